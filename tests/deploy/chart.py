#!/usr/bin/env python3
"""Checks that the rendered objects of the chart fit together.

    chart.py MANIFESTS.yaml...     what `helm template` printed

Prints one line for each misfit; the exit status is then 1.
"""

import re
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
USER = int(re.search(r"^USER (\d+):", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)[1])
DEFAULTS = tomllib.loads((ROOT / "deploy/weni-edge.toml").read_text())
UNITS = {"Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "ms": 0.001, "s": 1, "m": 60, "h": 3600}
SEGMENTS = 128 << 20  # one in use and one prepared


def amount(text):
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]+)", text).groups()
    return int(number) * UNITS[unit]


def port_of(address):
    return int(address.rsplit(":", 1)[1])


class Chart:
    def __init__(self, text):
        self.objects = [one for one in yaml.safe_load_all(text) if one]
        self.stateful_set = self.one("StatefulSet")
        self.template = self.stateful_set["spec"]["template"]
        self.pod = self.template["spec"]
        (self.container,) = self.pod["containers"]
        self.labels = self.template["metadata"]["labels"]
        self.ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        self.config = tomllib.loads(self.one("ConfigMap")["data"]["weni-edge.toml"])
        self.env = {one["name"]: one.get("value") for one in self.container["env"]}
        self.mounts = {one["name"]: one["mountPath"] for one in self.container["volumeMounts"]}

    def all(self, kind):
        return [one for one in self.objects if one["kind"] == kind]

    def one(self, kind):
        found = self.all(kind)
        return found[0] if found else None

    def setting(self, section, key):
        return self.config.get(section, {}).get(key, DEFAULTS[section][key])

    def chosen(self, selector):
        return selector.items() <= self.labels.items()


def journal(chart):
    directory = chart.config["journal"]["directory"]
    yield "the journal is where its volume is mounted", directory == chart.mounts.get("journal")
    claims = {one["metadata"]["name"]: one for one in chart.stateful_set["spec"]["volumeClaimTemplates"]}
    yield "the journal's volume is a claim of each pod", set(claims) == {"journal"}
    size = amount(claims["journal"]["spec"]["resources"]["requests"]["storage"])
    needed = chart.setting("journal", "max_bytes") + chart.setting("journal", "min_free_bytes") + SEGMENTS
    yield f"the volume holds the journal ({needed} bytes)", size >= needed
    retention = {"whenScaled": "Retain", "whenDeleted": "Retain"}
    yield "volumes outlive pods", chart.stateful_set["spec"].get("persistentVolumeClaimRetentionPolicy") == retention


def security(chart):
    pod, container = chart.pod["securityContext"], chart.container["securityContext"]
    wanted = {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}
    yield "the pod runs as the image's user, and its volumes are that user's", wanted.items() <= pod.items()
    yield "a container has no rights", container == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                                     "capabilities": {"drop": ["ALL"]}}  # fmt: skip
    yield "no token of Kubernetes' interface", chart.pod["automountServiceAccountToken"] is False


def ports(chart):
    listen = {"http": chart.setting("http", "listen"), "admin": chart.config["admin"]["listen"]}
    yield "the ports are those on which the edge listens", chart.ports == {name: port_of(one) for name, one in listen.items()}
    yield "both listen on every address", all(one.startswith(("0.0.0.0:", "[::]:")) for one in listen.values())
    yield "the image's own admin.listen is overruled", chart.env["WENI_EDGE__ADMIN__LISTEN"] == listen["admin"]
    for name, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        yield f"{name} asks {path} of the admin port", chart.container[name]["httpGet"] == {"path": path, "port": "admin"}
    for service in chart.all("Service"):
        name = service["metadata"]["name"]
        targets = {port["targetPort"] for port in service["spec"]["ports"]}
        yield f"Service {name} leads to ports that there are", targets <= set(chart.ports)
        yield f"Service {name} leads to the pods", chart.chosen(service["spec"]["selector"])
        public = service["spec"].get("clusterIP") != "None"
        yield f"Service {name} offers the webhook or the admin port, not both", targets == ({"http"} if public else {"admin"})
    for ingress in chart.all("Ingress"):
        for path in (path for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]):
            backend = path["backend"]["service"]
            service = next((one for one in chart.all("Service") if one["metadata"]["name"] == backend["name"]), None)
            names = {port["name"] for port in service["spec"]["ports"]} if service else set()
            yield "the ingress leads to a port of a Service", backend["port"]["name"] in names


def files(chart):
    config = chart.one("ConfigMap")
    volumes = {volume["name"]: volume for volume in chart.pod["volumes"]}
    yield "the configuration is mounted where the edge looks", chart.env["WENI_EDGE_CONFIG"] == (
        chart.mounts["config"] + "/" + next(iter(config["data"])))  # fmt: skip
    yield "it is this release's", volumes["config"]["configMap"]["name"] == config["metadata"]["name"]
    secret = chart.one("Secret")
    yield "so are the secrets", not secret or volumes["secrets"]["secret"]["secretName"] == secret["metadata"]["name"]
    for name, source in chart.config["sources"].items():
        file = source.get("secrets_file")
        yield f"the secret of {name} is mounted where the edge looks", (
            file == f"{chart.mounts['secrets']}/{name}" or source.get("allow_unauthenticated"))  # fmt: skip
        yield f"the secret of {name} is there", not (secret and file) or name in secret["stringData"]
    token = chart.config["admin"].get("token_file")
    yield "the inspector's token is mounted where the edge looks", not token or token == f"{chart.mounts['secrets']}/ADMIN_TOKEN"
    yield "and the edge looks for the one that is there", not secret or bool(token) == ("ADMIN_TOKEN" in secret["stringData"])
    drain, body = chart.setting("http", "drain"), chart.setting("http", "body_timeout")
    before = chart.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    yield "a pod has the time to end", chart.pod["terminationGracePeriodSeconds"] >= before + amount(drain) + amount(body) + 20


def network(chart):
    policy = chart.one("NetworkPolicy")
    if not policy:
        return
    spec = policy["spec"]
    yield "the policy is about the pods", chart.chosen(spec["podSelector"]["matchLabels"])
    incoming = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
    yield "the policy lets calls and scrapes in", incoming == set(chart.ports)
    outgoing = {(port["port"], port.get("protocol", "TCP")) for rule in spec["egress"] for port in rule["ports"]}
    yield "the policy lets DNS out", {(53, "UDP"), (53, "TCP")} <= outgoing
    brokers = {(port_of(one), "TCP") for one in chart.config["kafka"]["bootstrap_servers"].split(",")}
    yield "the policy lets the edge reach its brokers", brokers <= outgoing


def operations(chart):
    headless = next(one for one in chart.all("Service") if one["spec"].get("clusterIP") == "None")
    name, replicas = chart.stateful_set["metadata"]["name"], chart.stateful_set["spec"]["replicas"]
    yield "pods have names in the headless Service", chart.stateful_set["spec"]["serviceName"] == headless["metadata"]["name"]
    test = chart.one("Pod")
    admin = next(port["port"] for port in headless["spec"]["ports"] if port["name"] == "admin")
    # A headless Service translates no ports: what answers is the pod's own.
    wanted = [f"http://{name}-{i}.{headless['metadata']['name']}:{chart.ports['admin']}" for i in range(replicas)]
    yield "helm test asks each edge's admin port", [one["args"][-1] for one in test["spec"]["containers"]] == wanted
    yield "the headless Service names the port that answers", admin == chart.ports["admin"]
    yield "no Service leads to the test's pod", not any(
        one["spec"]["selector"].items() <= test["metadata"]["labels"].items() for one in chart.all("Service"))  # fmt: skip
    for budget in chart.all("PodDisruptionBudget"):
        yield "the disruption budget is about the pods", chart.chosen(budget["spec"]["selector"]["matchLabels"])
    for monitor in chart.all("PodMonitor"):
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        yield "Prometheus scrapes a port that there is", endpoint["port"] == "admin" and "admin" in chart.ports
        yield "Prometheus scrapes the pods", chart.chosen(monitor["spec"]["selector"]["matchLabels"])
        relabelled = {one["targetLabel"]: one.get("replacement", one.get("sourceLabels")) for one in endpoint["relabelings"]}
        yield "series carry what the rules go by", relabelled == {
            "job": "weni-edge", "instance": ["__meta_kubernetes_pod_name"],
            "release": ["__meta_kubernetes_pod_label_app_kubernetes_io_instance"]}  # fmt: skip


def main(*manifests):
    checks, bad = 0, []
    for file in manifests:
        chart = Chart(Path(file).read_text())
        for group in (journal, security, ports, files, network, operations):
            for what, holds in group(chart):
                checks += 1
                if not holds:
                    bad.append(f"does not hold, {Path(file).stem}: {what}")
    print("\n".join(bad) or f"{checks} cross-checks hold")
    sys.exit(bool(bad))


main(*sys.argv[1:])
