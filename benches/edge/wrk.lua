-- What wrk sends: always the same statuses. Making a body for each call would cost more than the
-- server that is measured. Arguments: "chunked" or "length", bytes of the body, statuses in it, and
-- sources, which take turns.

local channel = '"messaging_product":"whatsapp","metadata":{"display_phone_number":"558233330000","phone_number_id":"118406294417035"}'
local contact = '"contacts":[{"profile":{"name":"Caetano Lira"},"wa_id":"5582999990000"}]'
local price = '"conversation":{"id":"5f0c1e6a7b2d49838e4410c2d97ab365","origin":{"type":"utility"}},"pricing":{"billable":true,"pricing_model":"PMP","type":"regular","category":"utility"}'
local status = '{"id":"wamid.HBgNNTU4Mjk5OTk5MDAwMBUCABEYEjNBQUFBQUFBQUFBQUFBQUFB%04d","status":"delivered","timestamp":"1780000000","recipient_id":"5582999990000",' .. price .. ',"biz_opaque_callback_data":"%s"}'
local callback = '{"object":"whatsapp_business_account","entry":[{"id":"104996122399160","changes":[{"field":"messages","value":{' .. channel .. "," .. contact .. ',"statuses":[%s]}}]}]}'

function init(args)
  local framing, bytes, elements, sources = args[1], tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
  local function body(padding)
    local statuses = {}
    for at = 1, elements do
      statuses[at] = status:format(at, at == 1 and padding or "")
    end
    return callback:format(table.concat(statuses, ","))
  end
  wrk.method = "POST"
  wrk.body = body(("x"):rep(bytes - #body("")))
  if framing == "chunked" then
    wrk.body = ("%x\r\n%s\r\n0\r\n\r\n"):format(#wrk.body, wrk.body)
    wrk.headers["Transfer-Encoding"] = "chunked"
    local format = wrk.format
    function wrk.format(...)
      return (format(...):gsub("Content%-Length: %d+\r\n", ""))
    end
  end
  -- Without this function wrk sends one request again and again, which costs it less.
  if sources > 1 then
    local requests, last = {}, 0
    for at = 1, sources do
      requests[at] = wrk.format(nil, wrk.path .. (at == 1 and "" or at))
    end
    function request()
      last = last % sources + 1
      return requests[last]
    end
  end
end

-- The last line of the output; latencies in microseconds.
function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  local line = '\n{"requests":%d,"seconds":%f,"errors":%d,"p50":%f,"p99":%f}'
  local p50, p99 = latency:percentile(50), latency:percentile(99)
  print(line:format(summary.requests, summary.duration / 1e6, failed, p50, p99))
end
