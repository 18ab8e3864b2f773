# shellcheck shell=bash
# The chart: what it renders, and which values it refuses. Sourced by run.

render() { # VALUES [ARGUMENT...]
  local values=$1
  shift
  "$tools/helm" template edge "$work/chart" --namespace edge --kube-version "$kubernetes" -f "$values" "$@"
}

valid() { # FILE
  "$tools/kubeconform" -strict -schema-location "$target/schemas/{{.ResourceKind}}{{.KindSuffix}}.json" "$1"
}

# Whether the program accepts this configuration, with addresses and paths of this machine.
accepts() { # TOML
  local log=$work/accepts.log
  rm -rf "$work/accepts" "$log"
  mkdir -p "$work/accepts/secrets"
  sed -e "s#/etc/weni-edge/secrets/#$work/accepts/secrets/#" -e "s#/run/weni-edge/secrets/#$work/accepts/secrets/#" \
    "$1" >"$work/accepts/weni-edge.toml"
  grep -o "$work/accepts/secrets/[^\"]*" "$work/accepts/weni-edge.toml" |
    while read -r file; do echo 'only for the tests of deploying' >"$file"; done
  WENI_EDGE__HTTP__LISTEN=127.0.0.1:0 WENI_EDGE__HTTP__DRAIN=0s WENI_EDGE__ADMIN__LISTEN=127.0.0.1:0 \
    WENI_EDGE__JOURNAL__DIRECTORY=$work/accepts/journal WENI_EDGE__JOURNAL__ALLOW_VOLATILE=true WENI_EDGE__LOG__FORMAT=json \
    start "$log" "$edge" serve --config "$work/accepts/weni-edge.toml"
  local pid=$!
  eventually 10 grep -q '"message":"listening"\|^error' "$log" || true
  cat "$log"
  grep -q '"message":"listening"' "$log" && stop "$pid"
}

toml_of() { # VALUES
  render "$1" --show-only templates/configmap.yaml | sed '1,/weni-edge.toml: |/d; s/^    //'
}

chart() {
  step "Chart"
  rm -rf "$work/chart"
  if [[ -e $chart/files/weni-edge.rules.yml ]]; then
    cp -rL "$chart" "$work/chart"
  else
    echo "deploy/prometheus/weni-edge.rules.yml is not there: a stand-in"
    cp -r "$chart" "$work/chart"
    rm "$work/chart/files/weni-edge.rules.yml"
    echo 'groups: [{name: stand-in, rules: [{alert: A, expr: vector(1), labels: {of: "{{ .Values }}"}}]}]' \
      >"$work/chart/files/weni-edge.rules.yml"
  fi
  local values name
  for values in tests/deploy/values/*.yaml; do
    name=$(basename "$values" .yaml)
    check "lint, $name" "$tools/helm" lint --strict --kube-version "$kubernetes" "$work/chart" -f "$values"
    check "render, $name" render "$values"
    cp "$work/check.log" "$work/$name.yaml"
    check "manifests are Kubernetes', $name" valid "$work/$name.yaml"
    toml_of "$values" >"$work/$name.toml"
    check "the program takes the configuration, $name" accepts "$work/$name.toml"
  done
  check "the program takes the compose file's configuration" accepts deploy/compose/weni-edge.toml
  sed 's/preStop:/preStopp:/' "$work/minimal.yaml" >"$work/unknown-key.yaml"
  check "a manifest with an unknown key is refused" refuses valid "$work/unknown-key.yaml"
  check "a pod ends after preStop, drain, calls and publisher" \
    grep -q 'terminationGracePeriodSeconds: 85$' "$work/minimal.yaml"
  check "volumes outlive scaling in and removal" \
    grep -q 'RetentionPolicy: {whenScaled: Retain, whenDeleted: Retain}' "$work/minimal.yaml"
  check "its objects fit each other" "$target/venv/bin/python" tests/deploy/chart.py "$work"/{minimal,bare,everything}.yaml
  check "the rules arrive unchanged" rules_arrive
  check "nothing scales by itself" refuses grep -q 'kind: HorizontalPodAutoscaler' "$work/everything.yaml"
  bad_values
  notes
}

rules_arrive() {
  render tests/deploy/values/everything.yaml --show-only templates/prometheusrule.yaml >"$work/rule.yaml"
  "$target/venv/bin/python" - "$work/rule.yaml" "$work/chart/files/weni-edge.rules.yml" <<'PY'
import sys, yaml
rule, rules = (yaml.safe_load(open(name)) for name in sys.argv[1:])
assert rule["spec"] == rules, "not the same"
PY
}

bad_values() {
  local bad=(
    config.kafka.bootstrap_servers=kafka config.kafka.bootstrap_servers= config.sources.UPPER.header=X config.sources=null
    config.sources.loja.secrets=x config.http.drain=20 config.http.drain=20sec config.journal.directory=/tmp
    config.admin.listen=127.0.0.1:9090 config.htpp.drain=1s replicas=0 replica=2 image.digest=sha256:12
    persistence.size=5 persistence.accessMode=ReadWriteMany ingress.enabled=true service.type=Public
    'config.kafka.properties.sasl\.password=x' 'config.kafka.properties.ssl\.key\.password=x'
    'config.kafka.properties.ssl\.key\.pem=x' config.kafka.properties.sasl.password=x
    config.http.drian=1s config.sources.loja.rwa=true config.log.format=text config.kafka.create_topics=true
    'extraEnv[0].name=WENI_EDGE__KAFKA__PROPERTIES__SASL_PASSWORD,extraEnv[0].value=x'
    networkPolicy.kafkaPorts=null topologySpread=Sometimes persistence.size=11Gi config.journal.max_bytes=20000000000
    config.kafka.bootstrap_servers=kafka:9093
  )
  local set
  for set in "${bad[@]}"; do
    check "refused: $set" refuses render tests/deploy/values/minimal.yaml --set "$set"
  done
  check "refused: a source without its secret" refuses render tests/deploy/values/minimal.yaml --set secrets.existing=
  check "refused: no values" refuses render /dev/null
}

notes() {
  # Without a cluster helm shows no notes: a manifest that includes them does.
  echo '{{ include (print .Template.BasePath "/NOTES.txt") . }}' >"$work/chart/templates/notes.yaml"
  render tests/deploy/values/everything.yaml --debug >"$work/notes" 2>/dev/null || true
  rm "$work/chart/templates/notes.yaml"
  check "the notes say what to paste into Weni" grep -q 'URL do webhook *https://edge.example.com/hooks/loja' "$work/notes"
  check "the notes say where the secret is" grep -q 'Cabeçalhos *Chave X-Token, Valor <secret>' "$work/notes"
}
