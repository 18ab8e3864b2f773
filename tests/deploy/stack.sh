# shellcheck shell=bash
# The compose file's services as plain processes, and the commands of the runbook. Sourced by run.

# Addresses and paths of the containers, as they are on this machine.
here() {
  sed -e "s#NETWORK://:19092#NETWORK://$kafka#; s#kafka:19092#$kafka#g" \
    -e "s#HOST://:9092#HOST://127.0.0.1:$((base_port + 1))#; s#localhost:9092#127.0.0.1:$((base_port + 1))#" \
    -e "s#CONTROLLER://:29093#CONTROLLER://127.0.0.1:$((base_port + 2))#; s#kafka:29093#127.0.0.1:$((base_port + 2))#" \
    -e "s#http://edge:8080#http://127.0.0.1:$((base_port + 3))#" \
    -e "s#/var/lib/kafka/data#$work/kafka#; s#/run/weni-edge/secrets#$work/secrets#g" \
    -e "s#/opt/kafka/bin#$work/kafka-bin#g; s#/usr/local/bin/weni-edge#$edge#g" \
    -e 's#^chown #: #'
}

# The scripts of the image's /opt/kafka/bin that the compose file and the runbook call.
kafka_bin() {
  mkdir -p "$work/kafka-bin"
  local name
  for name in kafka-topics:TopicCommand kafka-broker-api-versions:BrokerApiVersionsCommand \
    kafka-transactions:TransactionsCommand; do
    cat >"$work/kafka-bin/${name%:*}.sh" <<SH
#!/bin/sh
exec ${java[*]} -cp '$target/kafka-tools/*' org.apache.kafka.tools.${name#*:} "\$@"
SH
    chmod +x "$work/kafka-bin/${name%:*}.sh"
  done
}

# The image makes Kafka's properties of the variables: KAFKA_A_B is a.b.
start_kafka() {
  rm -rf "$work/kafka"
  of '.services.kafka.environment | to_entries[] | select(.key | startswith("KAFKA_")) |
      select(.key != "KAFKA_HEAP_OPTS") | "\(.key[6:] | ascii_downcase | gsub("_"; "."))=\(.value)"' |
    here >"$work/server.properties"
  "${java[@]}" -cp "$libs/*" kafka.tools.StorageTool format --config "$work/server.properties" \
    --cluster-id "$(of .services.kafka.environment.CLUSTER_ID)" >"$work/kafka.log" 2>&1 ||
    fail "Kafka's disk: $(tail -5 "$work/kafka.log")"
  start "$work/kafka.log" "${java[@]}" -cp "$libs/*" kafka.Kafka "$work/server.properties"
}

# Runs what a service of the compose file runs.
service() { # NAME [SED-SCRIPT]
  of ".services.$1.command[0]" | here | sed "${2:-}" >"$work/$1.sh"
  env "WENI_EDGE_SECRET=$(of ".services.$1.environment.WENI_EDGE_SECRET // \"\"")" sh -eu "$work/$1.sh"
}

start_edge() { # NAME PORT CONFIGURATION; the admin port is the next one
  WENI_EDGE_CONFIG=$3 WENI_EDGE__HTTP__LISTEN=127.0.0.1:$2 WENI_EDGE__ADMIN__LISTEN=127.0.0.1:$(($2 + 1)) \
    WENI_EDGE__JOURNAL__DIRECTORY=$work/$1 WENI_EDGE__JOURNAL__MIN_FREE_BYTES=0 \
    WENI_EDGE__KAFKA__BOOTSTRAP_SERVERS=$kafka WENI_EDGE__SOURCES__DEMO__SECRETS_FILE=$work/secrets/demo \
    WENI_EDGE__ADMIN__TOKEN_FILE=$work/secrets/admin \
    start "$work/$1.log" "$edge" serve
}

healthy() { # PORT of the admin listener
  "$edge" healthcheck --admin "http://127.0.0.1:$1" 2>/dev/null
}

listens() { # PORT
  (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

settled() { # PORT of the admin listener
  [[ $(metric "$1" journal_pending_callbacks) == 0 ]]
}

metric() { # PORT NAME
  (
    exec 3<>"/dev/tcp/127.0.0.1/$1"
    printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
    sed -n "s/^weni_edge_$2 //p" <&3 | tr -d '\r'
  )
}

# A line each committed event: receipt, a tab, event id.
events() {
  local topic
  for topic in "${topics[@]}"; do
    kcat -b "$kafka" -C -t "$topic" -o beginning -e -q -X isolation.level=read_committed -f '%h\n'
  done | sed -n 's/.*ce_id=\([^,]*\).*receipt=\([^,]*\).*/\2\t\1/p'
}

# Every accepted call has its events, and no event is there twice.
arrived_once() { # RECEIPTS
  events >"$work/events"
  cut -f1 "$1" | sort -u >"$work/accepted"
  cut -f1 "$work/events" | sort -u >"$work/seen"
  echo "calls: $(wc -l <"$work/accepted"), events: $(wc -l <"$work/events")"
  echo "events that are there twice: $(cut -f2 "$work/events" | sort | uniq -d | wc -l)"
  echo "calls without events: $(comm -23 "$work/accepted" "$work/seen" | wc -l)"
  [[ -s $work/accepted && -z $(comm -23 "$work/accepted" "$work/seen") && -z $(cut -f2 "$work/events" | sort | uniq -d) ]]
}

# Kafka with its topics and a secret, as `docker compose up` begins.
begin_stack() {
  model >"$work/compose.json"
  rm -rf "$work/secrets" "$work/one" "$work/two" "$work/edge"
  mkdir -p "$work/secrets"
  kafka_bin
  check "secret: makes one" service secret
  cp "$work/secrets/demo" "$work/secret.before"
  check "secret: keeps it" service secret
  check "secret: it is the same and long enough" \
    test "$(cat "$work/secrets/demo")" = "$(cat "$work/secret.before")" -a "$(wc -c <"$work/secrets/demo")" -gt 16
  start_kafka
  check "kafka: its health check" eventually 90 sh -c "$(of '.services.kafka.healthcheck.test[1]' | here)"
  check "topics: creates them" service topics
  check "topics: does nothing when they are there" service topics
  check "topics: all five, and no others" test "$(
    kcat -b "$kafka" -L -J | jq -r '[.topics[].topic | select(startswith("__") | not)] | sort | join(" ")'
  )" = "$(printf '%s\n' "${topics[@]}" weni.edge-position.v1 | sort | xargs)"
}

stack() {
  step "What the containers run, as plain processes"
  start_edge edge $((base_port + 3)) deploy/compose/weni-edge.toml
  local pid=$!
  check "edge: its health check" eventually 30 healthy $((base_port + 4))
  check "demo: every call is accepted" service demo "s#--duration 1h#--duration 5s --receipts $work/demo.receipts#"
  eventually 30 settled $((base_port + 4)) || true
  check "demo: every call's events are in Kafka, once" arrived_once "$work/demo.receipts"
  sed 's/^/        /' "$work/check.log"
  runbook
  check "edge: stops" stop "$pid"
}

# A command of the runbook, for this machine.
command_of_the_runbook() { # WORDS-THAT-IT-HAS
  # shellcheck disable=SC2016 # backticks as Markdown has them
  grep -oE '`(kafka-transactions\.sh|kcat) [^`]*`' deploy/RUNBOOK.md | tr -d '`' | grep -m1 -- "$1" |
    sed -e "s#HOST:PORT#$kafka#; s#kafka-transactions.sh#$work/kafka-bin/&#; s#ID\$#held#"
}

states_of_transactions() {
  bash -c "$(command_of_the_runbook ' list$')"
}

is_held() { states_of_transactions | grep -qE '^held .*Ongoing'; }

# The runbook's commands do what it says, on a transaction that holds readers.
runbook() {
  step "Commands of the runbook"
  start "$work/held.log" "$target/venv/bin/python" -c '
import sys, time, confluent_kafka
producer = confluent_kafka.Producer({"bootstrap.servers": sys.argv[1], "transactional.id": "held"})
producer.init_transactions(30)
producer.begin_transaction()
producer.produce("weni.message-status.v1", b"never seen")
producer.flush(10)
time.sleep(300)' "$kafka"
  local holder=$!
  check "it names the transactional id that holds readers" eventually 40 is_held
  check "it ends that transaction" bash -c "$(command_of_the_runbook forceTerminateTransaction)"
  check "which then holds nobody" eventually 20 refuses is_held
  kill -KILL "$holder"
  check "it reads dead letters" bash -c "$(command_of_the_runbook ' -C ')"
}
