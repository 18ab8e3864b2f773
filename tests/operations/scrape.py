"""What a fresh edge exports. All values of closed label sets are exported from the start, at 0."""

import json
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from pathlib import Path

SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? \S+$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
LISTENING = re.compile(r'"message":"listening".*')


def take(binary):
    """Starts an edge that reaches no Kafka, calls it twice, and returns what /metrics says."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        (work / "weni-edge.toml").write_text(f"""
[http]
listen = "127.0.0.1:0"
drain = "0s"
[admin]
listen = "127.0.0.1:0"
[journal]
directory = "{work}/journal"
min_free_bytes = 0
[kafka]
bootstrap_servers = "127.0.0.1:9"
[sources.loja]
header = "X-Token"
secrets = ["only for the static checks"]
[log]
format = "json"
""")
        with open(work / "log", "w") as log:
            edge = subprocess.Popen([binary, "serve", "--config", work / "weni-edge.toml"], stdout=log, stderr=log)
        try:
            public, admin = addresses(edge, work / "log")
            for secret in ("only for the static checks", "a wrong secret"):
                call(f"http://{public}/hooks/loja", b"{}", {"X-Token": secret})
            return call(f"http://{admin}/metrics").decode()
        finally:
            edge.kill()
            edge.wait()


def addresses(edge, log):
    for _ in range(200):
        text = log.read_text()
        if line := LISTENING.search(text):
            return (re.search(rf'"{name}":"([^"]+)"', line[0])[1] for name in ("public", "admin"))
        if edge.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"the edge does not listen: {text}")


def call(url, body=None, headers=None):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers or {}), timeout=10) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        return error.read()


def parse(text):
    """metric -> label -> values. Buckets, sums and counts keep their names."""
    metrics = defaultdict(lambda: defaultdict(set))
    for name, labels in SAMPLE.findall(text):
        metrics[name].update({})
        for label, value in LABEL.findall(labels):
            metrics[name][label].add(json.loads(f'"{value}"'))
    return metrics
