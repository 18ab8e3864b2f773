"""Kafka, edge, Prometheus and senders as separate processes. Each process that starts here ends here."""

import http.server
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECRET = "only for the operations test"
SOURCES = ("loja", "filial", "calada")
STEP = 1  # seconds between scrapes
# Labels that a Kubernetes target has.
NAMESPACE, RELEASE = "production", "edge"


def wait_for(what, condition, seconds):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.25)
    return found


def end(process, sign=signal.SIGTERM):
    if process.poll() is None:
        process.send_signal(sign)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


class Kafka:
    """tests/kafka/kafka with a folder and ports of its own."""

    def __init__(self, work, port):
        self.port, self.address = port, f"127.0.0.1:{port}"
        self.environment = os.environ | {"KAFKA_DIR": str(work / "kafka"), "BASE_PORT": str(port)}

    def __call__(self, *arguments):
        subprocess.run([ROOT / "tests/kafka/kafka", *arguments], env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def start(self):
        self("start", "1")
        self("wait", "1")


class Edge:
    """The edge with TLS, a small journal and two sources."""

    def __init__(self, binary, work, port, kafka):
        self.binary, self.work, self.kafka = binary, work, kafka
        self.public, self.admin = f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"
        self.config, self.journal = work / "weni-edge.toml", work / "journal"
        self.ca, self.process = work / "ca.pem", None
        self.certify(days=10)
        shutil.copy(work / "tls.pem", self.ca)
        self.configure()

    def certify(self, days):
        """A certificate for the same key, so that senders trust the next one, too."""
        key = self.work / "key.pem"
        if not key.exists():
            subprocess.run(["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", key], check=True)
        subprocess.run(
            ["openssl", "req", "-x509", "-key", key, "-out", self.work / "tls.new", "-days", str(days), "-subj", "/CN=edge",
             "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "subjectAltName=IP:127.0.0.1"], check=True)  # fmt: skip
        (self.work / "tls.new").rename(self.work / "tls.pem")

    def configure(self, more=""):
        text = f"""
[http]
listen = "{self.public}"
drain = "0s"
wait_for_kafka = "100ms"
[http.tls]
certificate_file = "{self.work}/tls.pem"
key_file = "{self.work}/key.pem"
[admin]
listen = "{self.admin}"
[journal]
directory = "{self.journal}"
max_bytes = 30_000_000
min_free_bytes = 0
allow_volatile = true
[kafka]
bootstrap_servers = "{self.kafka.address}"
create_topics = {{ partitions = 3, replication_factor = 1 }}
"""
        for source in SOURCES:
            text += f'[sources.{source}]\nheader = "X-Token"\nsecrets = ["{SECRET}"]\n'
        self.config.write_text(text + more)

    def command(self, *arguments):
        """What a command of the edge prints."""
        return subprocess.check_output([self.binary, *arguments, "--config", self.config], text=True)

    def start(self):
        with open(self.work / "edge.log", "a") as log:
            self.process = subprocess.Popen([self.binary, "serve", "--config", self.config], stdout=log, stderr=log)
        wait_for("the edge listens", lambda: self.process.poll() is not None or get(f"http://{self.admin}/livez"), 30)
        if self.process.poll() is not None:
            raise RuntimeError(f"the edge ended: see {self.work}/edge.log")

    def stop(self, sign=signal.SIGTERM):
        if self.process:
            end(self.process, sign)

    def metrics(self):
        return get(f"http://{self.admin}/metrics").decode()

    def metric(self, line_start):
        """The value of the one sample whose line starts like that."""
        return next((float(line.rsplit(" ", 1)[1]) for line in self.metrics().splitlines() if line.startswith(line_start)), 0)

    def send(self, source, rate, *arguments, secret=SECRET):
        """Calls at a steady rate, in the background, until ended or for --duration."""
        url, method = f"https://{self.public}/hooks/{source}", "PUT" if source == "filial" else "POST"
        return subprocess.Popen(
            [self.binary, "send", url, "-X", method, "-H", f"X-Token: {secret}", "--ca-file", self.ca, "-r", str(rate),
             *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip


class Prometheus:
    """Scrapes the edge each second and evaluates rules whose windows are scaled down."""

    def __init__(self, binary, work, port, rules, *targets):
        self.url, data = f"http://127.0.0.1:{port}", work / "prometheus"
        self.targets = data / "targets.json"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        (data / "prometheus.yml").write_text(
            json.dumps({  # JSON is YAML
                "global": {"scrape_interval": f"{STEP}s", "scrape_timeout": f"{STEP}s", "evaluation_interval": f"{STEP}s"},
                "rule_files": [str(rules)],
                "scrape_configs": [{
                    "job_name": "weni-edge",
                    "file_sd_configs": [{"files": [str(self.targets)], "refresh_interval": "1s"}],
                }],
            })
        )  # fmt: skip
        self.discover(*targets)
        with open(data / "log", "w") as log:
            self.process = subprocess.Popen(
                [binary, f"--config.file={data}/prometheus.yml", f"--storage.tsdb.path={data}/tsdb",
                 f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)  # fmt: skip
        wait_for("Prometheus is ready", lambda: get(f"{self.url}/-/ready"), 30)

    def discover(self, *targets):
        """What Kubernetes would do: these are the targets from now on, and no others."""
        found = [{"targets": list(targets), "labels": {"namespace": NAMESPACE, "release": RELEASE}}] if targets else []
        new = self.targets.with_suffix(".new")
        new.write_text(json.dumps(found))
        new.rename(self.targets)

    def stop(self):
        end(self.process)

    def api(self, path, **parameters):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["error"]) from error

    def series(self, query, since):
        """The series of a query over the time from `since` until now."""
        return self.api("query_range", query=query, start=since, end=time.time(), step=STEP)["result"]

    def alerts(self):
        """Active alerts: pending or firing, with their annotations."""
        return self.api("alerts")["alerts"]

    def firing(self):
        return {alert["labels"]["alertname"] for alert in self.alerts() if alert["state"] == "firing"}


def empty_target():
    """The address of an edge that exports nothing, for as long as this process lives: that of one without callbacks."""

    class Empty(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_port}"


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.read()
    except OSError:
        return None
