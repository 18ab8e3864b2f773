#!/usr/bin/env python3
"""Checks that the services of the compose file fit together, and fit the files that they mount.

    compose.py MODEL.json     what `docker-compose --profile '*' config --format json` printed

Prints one line for each misfit; the exit status is then 1.
"""

import json
import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = re.sub(r"\\\n", "", (ROOT / "deploy/Dockerfile").read_text())
SECONDS = {"s": 1, "m": 60, "ms": 0.001, "h": 3600}


def configuration():
    """The edge's configuration: what the compose file mounts over the defaults."""
    defaults = tomllib.loads((ROOT / "deploy/weni-edge.toml").read_text())
    own = tomllib.loads((ROOT / "deploy/compose/weni-edge.toml").read_text())
    merged = {section: table | own.get(section, {}) for section, table in defaults.items() if section != "sources"}
    return merged | {"sources": own["sources"]}


def from_dockerfile(pattern, stage="edge"):
    text = re.search(rf"^FROM \S+ AS {stage}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)[1]
    found = re.search(pattern, text, re.MULTILINE)
    return found and found[1]


def seconds(text):
    return sum(int(number) * SECONDS[unit] for number, unit in re.findall(r"(\d+)(ms|[smh])", text))


def mounts(service):
    """Where each volume or file is, seen from inside."""
    return {volume["target"]: volume for volume in service.get("volumes", [])}


def mounted_file(service, path):
    """The file of this tree that is at a path inside; None where there is none."""
    for target, volume in mounts(service).items():
        if volume["type"] == "bind" and (path == target or path.startswith(target + "/")):
            file = Path(volume["source"] + path[len(target):])
            return file if file.exists() else None
    return None


def mounted_volume(service, path):
    return next((volume["source"] for target, volume in mounts(service).items()
                 if volume["type"] == "volume" and (path == target or path.startswith(target + "/"))), None)  # fmt: skip


def script(service):
    return "\n".join([*(service.get("entrypoint") or []), *(service.get("command") or [])])


def the_edge(services, config):
    edge = services["edge"]
    yield "the edge reads the configuration of deploy/compose", mounted_file(edge, "/etc/weni-edge/weni-edge.toml") == (
        ROOT / "deploy/compose/weni-edge.toml")  # fmt: skip
    yield "WENI_EDGE_CONFIG names what is mounted", from_dockerfile(r"WENI_EDGE_CONFIG=(\S+)") == "/etc/weni-edge/weni-edge.toml"
    yield "the journal is on the volume `journal`", mounted_volume(edge, config["journal"]["directory"]) == "journal"
    yield "and that is the directory that the image prepares", from_dockerfile(r"^VOLUME (\S+)") == config["journal"]["directory"]
    yield "a new volume belongs to the image's user", (
        from_dockerfile(r"^COPY .*--chown=(\S+) /journal") == from_dockerfile(r"^USER (\S+)"))  # fmt: skip
    host, port = config["http"]["listen"].rsplit(":", 1)
    yield "the webhook listens on every address", host in ("0.0.0.0", "[::]")
    admin = from_dockerfile(r"WENI_EDGE__ADMIN__LISTEN=(\S+)")
    ports = [int(port), int(admin.rsplit(":")[-1])]
    yield "both ports are published", [one["target"] for one in edge["ports"]] == ports
    yield "the inspector is published on loopback only", edge["ports"][1].get("host_ip") == "127.0.0.1"
    token = config["admin"].get("token_file")
    yield "the inspector's token is where the edge looks", mounted_volume(edge, token) == mounted_volume(services["secret"], token)
    yield "the inspector's token is made there", f"token={token}\n" in script(services["secret"])
    yield "the admin port listens on every address", admin.startswith("0.0.0.0:")
    yield "the image exposes both ports", from_dockerfile(r"^EXPOSE (.*)").split() == [port, admin.rsplit(":")[-1]]
    stop = seconds(config["http"]["drain"]) + seconds(config["http"]["body_timeout"]) + 20
    yield "the edge is given the time to stop", seconds(edge["stop_grace_period"]) > stop
    yield "the edge is built as the target without a shell", edge["build"]["target"] == "edge"
    user = from_dockerfile(r"^USER (\S+)")
    for name, source in config["sources"].items():
        file = source["secrets_file"]
        yield f"the secret of {name} is where the edge looks", mounted_volume(edge, file) == mounted_volume(services["secret"], file)
        yield f"the secret of {name} is made there", f"file={file}\n" in script(services["secret"])
    yield "the secret belongs to the edge's user", re.findall(r"chown (\S+)", script(services["secret"])) == [user]


def the_demo(services, config):
    demo, edge = services["demo"], services["edge"]
    url = urlsplit(re.search(r"http://\S+", script(demo))[0])
    source = url.path.removeprefix("/hooks/")
    yield "the demo calls the edge's port", (url.hostname, url.port) == ("edge", edge["ports"][0]["target"])
    yield "the demo calls a source of the configuration", source in config["sources"]
    secret = re.search(r"\$\(cat ([^)]+)\)", script(demo).replace("$$", "$"))[1]
    yield "the demo reads that source's secret", secret == config["sources"].get(source, {}).get("secrets_file")
    yield "the demo has the volume of secrets", mounted_volume(demo, secret) == mounted_volume(edge, secret)
    base = re.search(rf"^FROM \$\{{(\w+)\}} AS {demo['build']['target']}$", DOCKERFILE, re.MULTILINE)
    image = base and re.search(rf"^ARG {base[1]}=(\S+)", DOCKERFILE, re.MULTILINE)[1]
    yield "the demo's image has a shell", image and ":debug" in image
    yield "it is another image than the edge's", demo["image"] != edge["image"]


def kafka(services, config):
    environment = services["kafka"]["environment"]
    pairs = lambda key: dict(one.split("://") for one in environment[key].split(","))  # noqa: E731
    listeners, advertised = pairs("KAFKA_LISTENERS"), pairs("KAFKA_ADVERTISED_LISTENERS")
    protocols = dict(one.split(":") for one in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    yield "every listener of Kafka has a protocol", set(listeners) == set(protocols)
    yield "every advertised listener listens on its port", all(
        listeners.get(name, "").rsplit(":")[-1] == address.rsplit(":")[-1] for name, address in advertised.items())  # fmt: skip
    inside = [name for name, address in advertised.items() if address.startswith("kafka:")]
    yield "brokers speak to each other where the network is", [environment["KAFKA_INTER_BROKER_LISTENER_NAME"]] == inside
    addresses = {advertised[name] for name in inside}
    yield "the edge goes to the listener of the network", set(config["kafka"]["bootstrap_servers"].split(",")) <= addresses
    for name in ("kafka", "topics"):
        text = script(services[name]) + str(services[name].get("healthcheck"))
        yield f"{name}: its commands go to that listener", set(re.findall(r"--bootstrap-server (\S+)", text)) == addresses
    outside = {int(address.rsplit(":")[-1]) for address in advertised.values() if address.startswith("localhost:")}
    yield "the listener for this machine is published", {one["target"] for one in services["kafka"]["ports"]} == outside
    voter = environment["KAFKA_CONTROLLER_QUORUM_VOTERS"].rsplit(":")[-1]
    yield "the controller votes where it listens", voter == listeners[environment["KAFKA_CONTROLLER_LISTENER_NAMES"]].rsplit(":")[-1]
    yield "Kafka's data are on a volume", mounted_volume(services["kafka"], environment["KAFKA_LOG_DIRS"]) == "kafka"
    made = set(re.findall(r"^create (\S+)", script(services["topics"]), re.MULTILINE))
    named = {topic for key, topic in config["topics"].items() if key != "inbound_key"}
    yield "the topics are those of the configuration", made == named


def monitoring(services, config):
    prometheus, grafana = services["prometheus"], services["grafana"]
    path = next(one for one in prometheus["command"] if one.startswith("--config.file=")).partition("=")[2]
    file = mounted_file(prometheus, path)
    yield "Prometheus reads a file that is mounted", file is not None
    settings = yaml.safe_load((file or ROOT / "deploy/prometheus/prometheus.yml").read_text())
    for rules in settings["rule_files"]:
        yield f"the rules are mounted: {rules}", mounted_file(prometheus, rules) is not None
    targets = {target for job in settings["scrape_configs"] for one in job["static_configs"] for target in one["targets"]}
    yield "Prometheus scrapes the edge's admin port", targets == {
        "edge:" + from_dockerfile(r"WENI_EDGE__ADMIN__LISTEN=(\S+)").rsplit(":")[-1]}  # fmt: skip
    yield "its job is the one of the rules", [job["job_name"] for job in settings["scrape_configs"]] == ["weni-edge"]
    data = next(one for one in prometheus["command"] if one.startswith("--storage.tsdb.path=")).partition("=")[2]
    yield "Prometheus' data are on a volume", mounted_volume(prometheus, data) == "prometheus"
    for kind in ("dashboards", "datasources"):
        files = mounted_file(grafana, f"/etc/grafana/provisioning/{kind}")
        yield f"Grafana finds its {kind} provisioned", files is not None
        for one in sorted((files or ROOT / "nothing").glob("*.yml")):
            found = yaml.safe_load(one.read_text())
            for provider in found.get("providers", []):
                folder = mounted_file(grafana, provider["options"]["path"])
                yield f"the dashboards are where {one.name} looks", folder is not None and any(folder.glob("*.json"))
            for source in found.get("datasources", []):
                url = urlsplit(source["url"])
                published = {port["target"] for port in services.get(url.hostname, {}).get("ports", [])}
                yield f"{one.name} names a service and its port", url.port in published
    yield "Grafana's data are on a volume", mounted_volume(grafana, "/var/lib/grafana") == "grafana"


def starts(services, config):
    for name, service in services.items():
        for other, how in (service.get("depends_on") or {}).items():
            healthy = services[other].get("healthcheck") or (other == "edge" and from_dockerfile(r"^(HEALTHCHECK)"))
            completes = not services[other].get("restart")
            fits = {"service_healthy": healthy, "service_completed_successfully": completes}.get(how["condition"], True)
            yield f"{name} waits for {other} in a way that ends", fits


def main(model):
    services, config = json.loads(Path(model).read_text())["services"], configuration()
    checks = [one for group in (the_edge, the_demo, kafka, monitoring, starts) for one in group(services, config)]
    bad = [what for what, holds in checks if not holds]
    print("\n".join(f"does not hold: {what}" for what in bad) or f"{len(checks)} cross-checks hold")
    sys.exit(bool(bad))


main(*sys.argv[1:])
