# shellcheck shell=bash
# Two edges in a balancer, replaced one after the other under load. Sourced by run.

# A balancer of calls (http) is like an ingress, one of connections (tcp) like a Service: there a caller
# stays with an edge until that edge closes the connection.
haproxy_configuration() { # http|tcp
  cat <<CFG
global
  maxconn 1000
defaults
  mode $1
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option redispatch
  option httpchk GET /readyz
  default-server check inter 500ms fall 1 rise 1
listen edge
  bind 127.0.0.1:$((base_port + 10))
  balance leastconn
  server one 127.0.0.1:$((base_port + 12)) port $((base_port + 13))
  server two 127.0.0.1:$((base_port + 14)) port $((base_port + 15))
CFG
}

# Ends an edge as Kubernetes would, and starts it again on its journal.
replace() { # NAME PORT PID; the new one's id is then in $replaced
  local began=$EPOCHREALTIME
  check "$1: stops in order" stop "$3"
  figure "upgrade, $1: from SIGTERM to its end" "$(bc <<<"$EPOCHREALTIME - $began") s"
  began=$EPOCHREALTIME
  start_edge "$1" "$2" deploy/compose/weni-edge.toml
  replaced=$!
  check "$1: is ready again" eventually 30 healthy $(($2 + 1))
  figure "upgrade, $1: from its start to ready" "$(bc <<<"$EPOCHREALTIME - $began") s"
  sleep 2 # the balancer has to see it; minReadySeconds in the chart
}

upgrade() {
  export WENI_EDGE__HTTP__DRAIN=4s
  start_edge one $((base_port + 12)) deploy/compose/weni-edge.toml
  one=$!
  start_edge two $((base_port + 14)) deploy/compose/weni-edge.toml
  two=$!
  check "both are ready" eventually 30 eval "healthy $((base_port + 13)) && healthy $((base_port + 15))"
  upgrade_behind http
  upgrade_behind tcp
  check "both stop" eval "stop $one && stop $two"
  unset WENI_EDGE__HTTP__DRAIN
}

upgrade_behind() { # http|tcp
  step "Two edges behind HAProxy ($1), one replaced after the other under load"
  local balancer load port
  haproxy_configuration "$1" >"$work/haproxy.cfg"
  start "$work/haproxy.log" haproxy -db -f "$work/haproxy.cfg"
  balancer=$!
  eventually 30 listens $((base_port + 10)) || fail "HAProxy: $(tail -1 "$work/haproxy.log")"
  sleep 1 # it has looked at both
  "$edge" send "http://127.0.0.1:$((base_port + 10))/hooks/demo" --header "X-Token: $(cat "$work/secrets/demo")" \
    --sample delivered --size 1024 --connections 32 --rate 300 --duration 10m --output json \
    --receipts "$work/upgrade.receipts" >"$work/upgrade.json" &
  load=$!
  sleep 3
  replace one $((base_port + 12)) "$one"
  one=$replaced
  replace two $((base_port + 14)) "$two"
  two=$replaced
  check "the load goes on during all of it" kill -0 "$load"
  kill -INT "$load" || true # it has ended too early, as the check says
  check "every call is accepted" wait "$load"
  figure "upgrade behind $1, calls" "$(jq -c . "$work/upgrade.json")"
  for port in $((base_port + 13)) $((base_port + 15)); do
    check "nothing is left in the journal behind $port" eventually 60 settled "$port"
  done
  check "every call's event is in Kafka, once" arrived_once "$work/upgrade.receipts"
  sed 's/^/        /' "$work/check.log"
  check "one event a call" test \
    "$(grep -cFf "$work/accepted" "$work/events")" = "$(wc -l <"$work/upgrade.receipts")"
  # HAProxy ends at once on SIGTERM, and says so.
  stop "$balancer" || true
}
