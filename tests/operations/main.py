"""Runs the static checks, the incident, and the checks after it."""

import argparse
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import expected
import labels
import runbook
import scrape
import static
import verify
from incident import SCALE, Incident
from processes import ROOT, Edge, Kafka, Prometheus, empty_target, end
from report import Report


def live(work, binary, prometheus_binary, port, report):
    for old in ("journal", "copy", "edge.log", "key.pem"):
        subprocess.run(["rm", "-rf", work / old], check=True)
    rules = work / "scaled.rules.yml"
    render = [sys.executable, ROOT / "deploy/prometheus/rules.py", "--scale", str(SCALE)]
    rules.write_text(subprocess.run(render, check=True, capture_output=True, text=True).stdout)
    kafka = Kafka(work, port)
    edge = Edge(binary, work, port + 80, kafka)
    prometheus = incident = None
    try:
        print("==> Kafka, edge, Prometheus", flush=True)
        kafka("format", "1")
        kafka.start()
        prometheus = Prometheus(prometheus_binary, work, port + 90, rules, edge.admin, empty_target())
        edge.start()
        print("==> The incident", flush=True)
        incident = Incident(edge, kafka, prometheus)
        incident.run()
        print("==> What was seen", flush=True)
        verify.check(report, incident)
        if os.environ.get("KEEP_RUNNING"):
            input(f"Prometheus is at {prometheus.url}: press Enter to end ")
    except Exception:
        report.that("the incident goes through", False, traceback.format_exc())
    finally:
        for sender in incident.senders if incident else ():
            end(sender)
        edge.stop(signal.SIGKILL)
        if prometheus:
            prometheus.stop()
        kafka("kill9", "1")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--static", action="store_true", help="only what needs no server")
    for name in ("work", "edge", "prometheus"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--scrape", type=Path, help="what a fresh edge exports, if it was asked before")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    report = Report()
    print("==> Rules, tests, runbook and dashboards fit together", flush=True)
    static.check(report)
    exported = scrape.parse(arguments.scrape.read_text() if arguments.scrape else scrape.take(arguments.edge))
    labels.check(report, exported)
    expected.check(report, exported)
    runbook.check(report, exported, arguments.edge)
    if not arguments.static:
        live(arguments.work, arguments.edge, arguments.prometheus, arguments.port, report)
    (arguments.work / "counts").write_text(f"{report}\n")


if __name__ == "__main__":
    main()
