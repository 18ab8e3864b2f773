-- What wrk sends: always the same status of 1 KB, with Content-Length. Making a body for each call would
-- cost more than the server that is measured.

local channel = '"messaging_product":"whatsapp","metadata":{"display_phone_number":"558233330000","phone_number_id":"118406294417035"}'
local contact = '"contacts":[{"profile":{"name":"Caetano Lira"},"wa_id":"5582999990000"}]'
local price = '"conversation":{"id":"5f0c1e6a7b2d49838e4410c2d97ab365","origin":{"type":"utility"}},"pricing":{"billable":true,"pricing_model":"PMP","type":"regular","category":"utility"}'
local status = '{"id":"wamid.HBgNNTU4Mjk5OTk5MDAwMBUCABEYEjNBQUFBQUFBQUFBQUFBQUFBQQA=","status":"delivered","timestamp":"1780000000","recipient_id":"5582999990000",' .. price .. ',"biz_opaque_callback_data":"%s"}'
local body = '{"object":"whatsapp_business_account","entry":[{"id":"104996122399160","changes":[{"field":"messages","value":{' .. channel .. "," .. contact .. ',"statuses":[' .. status .. "]}}]}]}"

wrk.method = "POST"
wrk.body = body:format(("x"):rep(1024 - #body + #"%s"))

-- The last line of the output; latencies in microseconds.
function done(summary, latency)
  local errors = summary.errors
  print(("\n{\"requests\":%d,\"seconds\":%f,\"errors\":%d,\"p50\":%f,\"p99\":%f}"):format(
    summary.requests,
    summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50),
    latency:percentile(99)
  ))
end
