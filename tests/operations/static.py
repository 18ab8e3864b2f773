"""Checks of the files alone: rules, tests, runbook and dashboards fit together."""

import json
import re

import yaml

from processes import ROOT

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus/weni-edge.rules.yml"
METRIC = re.compile(r"(?<![:\w])((?:weni_edge|process|tokio)_[a-z_0-9]+)")
# Exported by the library prometheus, on Linux.
PROCESS = {f"process_{name}" for name in ("cpu_seconds_total", "open_fds", "max_fds", "resident_memory_bytes",
                                          "virtual_memory_bytes", "start_time_seconds", "threads")}  # fmt: skip


def rules(kind):
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def dashboards():
    return [json.loads(path.read_text()) for path in sorted((DEPLOY / "grafana/dashboards").glob("*.json"))]


def panels():
    """Pairs of a dashboard's title and a panel that queries something."""
    return [(board["title"], panel) for board in dashboards() for panel in board["panels"] if panel["type"] != "row"]


def queries():
    """Pairs of a name and an expression: of panels and annotations."""
    for title, panel in panels():
        yield from ((f"{title} / {panel['title']} / {target['refId']}", target["expr"]) for target in panel["targets"])
    for annotation in dashboards()[0]["annotations"]["list"]:
        yield f"annotation / {annotation['name']}", annotation["expr"]


def metrics_in(expr):
    """Base names: buckets, sums and counts belong to their histogram."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in METRIC.findall(expr)}


def registered():
    source = (ROOT / "src/metrics.rs").read_text()
    declared = re.findall(r"^    (\w+): (?:Int)?(?:Counter|Gauge|Histogram)(?:Vec)?\b.*;$", source, re.MULTILINE)
    return {f"weni_edge_{name}" for name in declared} | set(re.findall(r'"(tokio_\w+)"', source)) | PROCESS


def unit_that_fits(expr):
    """Units in which a query may be shown: its metric's suffix and what is done to it decide."""
    mean = re.search(r"(\w+?)_sum\b.*/.*\1_count\b", expr)
    base = next((name for name in sorted(metrics_in(expr))), "")
    if "/" in expr and not mean:
        return {"percentunit", "none"}
    if re.search(r"rate\(", expr) and not mean and "histogram_quantile" not in expr:
        return {"none", "percentunit"} if base.endswith("_seconds_total") else {"ops", "reqps", "cps"}
    if "_ratio" in expr or ":ratio" in expr:
        return {"percentunit"}
    if base.endswith("_seconds"):
        return {"s"}
    if base.endswith(("_bytes", "_bytes_total")):
        return {"bytes"}
    return {"short", "bool_yes_no"}


def slug(heading):
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def both_cases():
    """The alerts that have a case in which they fire, and one in which they do not."""
    fires, silent = set(), set()
    for path in (DEPLOY / "prometheus/tests").glob("*.yml"):
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["promql_expr_test"]:
                if name := re.search(r'ALERTS\{alertname="(\w+)"', case["expr"]):
                    (fires if case["exp_samples"] else silent).add(name[1])
    return fires & silent


def check(report):
    alerts = rules("alert")
    names = {rule["alert"] for rule in alerts}
    report.same("every alert has a case that fires and one that does not", names - both_cases(), set())
    for rule in alerts:
        report.that(f"{rule['alert']} has severity, summary and a description with values",
                    rule["labels"]["severity"] in ("page", "ticket") and rule["annotations"]["summary"]
                    and "{{ " in rule["annotations"]["description"])  # fmt: skip

    runbook = (DEPLOY / "RUNBOOK.md").read_text()
    anchors = {slug(heading) for heading in re.findall(r"^#+ (.+)$", runbook, re.MULTILINE)}
    wanted = {rule["annotations"]["runbook_url"].partition("#")[2] for rule in alerts}
    report.same("every runbook_url has its section", wanted - anchors, set())
    linked = set(re.findall(r"\]\(#([\w-]+)\)", runbook))
    report.same("every link within the runbook has its section", linked - anchors, set())

    known = registered()
    used = {name: metrics_in(expr) - known for name, expr in queries()}
    used |= {rule.get("alert") or rule["record"]: metrics_in(rule["expr"]) - known for rule in rules("expr")}
    report.same("every metric is registered in src/metrics.rs", {name: bad for name, bad in used.items() if bad}, {})
    unused = {metric for metric in known if metric.startswith("weni_edge_")} - set().union(
        *(metrics_in(expr) for _, expr in queries()))  # fmt: skip
    report.same("every metric of the edge is on a dashboard", unused, set())

    recorded = {rule["record"] for rule in rules("record")}
    texts = [expr for _, expr in queries()] + [rule["expr"] for rule in rules("expr")]
    asked = {name for text in texts for name in re.findall(r"job:weni_edge_\w+:\w+", text)}
    report.same("every recorded series that is asked for is recorded", asked - recorded, set())

    hidden = [panel["title"] for _, panel in panels() if panel["type"] == "timeseries"
              and panel["fieldConfig"]["defaults"]["custom"]["showPoints"] != "auto"]  # fmt: skip
    report.same("no time series hides a single event", hidden, [])
    ups = {expr for _, expr in queries() if re.search(r"\bup\{", expr) and not expr.startswith("min(")}
    report.same("one edge of several that is down shows", ups, set())

    for board, panel in panels():
        unit, name = panel["fieldConfig"]["defaults"].get("unit"), f"{board} / {panel['title']}"
        misfits = [target["expr"] for target in panel["targets"] if unit not in unit_that_fits(target["expr"])]
        report.same(f"{name} has a description and a unit that fits", (bool(panel["description"]), unit, misfits), (True, unit, []))
