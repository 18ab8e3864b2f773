"""Checks that the edge exports each label and value that rules and dashboards select, for each release."""

import json
import re

import promql
import static

RELEASE = {"job", "namespace", "release"}
TARGET = RELEASE | {"instance"}
ALERTS = {"alertname", "alertstate", "severity"} | TARGET
# Their values are the configuration's, Kafka's or the build's.
OPEN = TARGET | {"source", "topic", "broker", "version", "revision", "librdkafka"}
DECLARED = re.compile(r"^    (\w+): \w+(?:\[([^\]]*)\])?[^;]*;$", re.MULTILINE)


class Known:
    """Every series' labels and values, from the declarations and from a real scrape."""

    def __init__(self, scrape):
        self.scrape = scrape
        source = (static.ROOT / "src/metrics.rs").read_text()
        self.declared = {f"weni_edge_{name}": set(re.findall(r'"(\w+)"', labels)) for name, labels in DECLARED.findall(source)}
        self.files = [path.read_text() for path in (static.ROOT / "src").rglob("*.rs") if path.name != "tests.rs"]
        self.alerts = {rule["alert"] for rule in static.rules("alert")}

    def labels(self, metric):
        """None: no such metric."""
        base = re.sub(r"_(bucket|sum|count)$", "", metric)
        if metric == "ALERTS":
            return ALERTS | set().union(*self.declared.values())
        if metric.startswith("job:"):
            return RELEASE
        if metric == "up" or metric in static.PROCESS or metric.startswith("tokio_"):
            return TARGET
        exported = set(self.scrape[metric]) if metric in self.scrape else set()
        if exported - {"le"} - self.declared.get(base, set()):
            return None  # the program and its source do not agree
        declared = self.declared.get(metric, self.declared.get(base))
        return None if declared is None else declared | TARGET | ({"le"} if metric.endswith("_bucket") else set())

    def literals(self, base):
        """What the files that fill a metric have in quotes, and their numbers: the bounds of buckets."""
        texts = [text for text in self.files if re.search(rf"\b{base.removeprefix('weni_edge_')}\b", text)]
        return {word for text in texts for pair in re.findall(r'"([^"\n]*)"|\b(\d+\.\d+)\b', text) for word in pair}

    def has_value(self, metric, label, operator, value):
        if label in OPEN or value.startswith("$"):
            return True
        if label == "alertname":
            known = self.alerts
        elif label in ("severity", "alertstate"):
            known = {"page", "ticket", "firing", "pending"}
        else:
            known = self.scrape.get(metric, {}).get(label) or self.literals(re.sub(r"_(bucket|sum|count)$", "", metric))
        pattern = operator in ("=~", "!~")
        parts = promql.alternatives(value) if pattern else [re.escape(value)]
        return all(any(re.fullmatch(part, one) for one in known) for part in parts)


def variable_queries():
    """Pairs of a name and what is asked: the series and the label."""
    for board in static.dashboards():
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
                yield f"{board['title']} / ${variable['name']}", series, label


def legends(panel):
    for target in panel["targets"]:
        yield target["expr"], re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"])


def faults(known, expr):
    """What an expression asks for in vain."""
    found = []
    for selector in promql.selectors(expr):
        labels = known.labels(selector.metric)
        if labels is None:
            found.append(f"no metric {selector.metric}")
            continue
        for label, operator, value in selector.matchers:
            if label not in labels:
                found.append(f"{selector.metric} has no label {label}")
            elif not known.has_value(selector.metric, label, operator, value):
                found.append(f"{selector.metric}: {label} is never {value}")
    for word, names, inner in promql.groups(expr):
        series = [known.labels(metric) or set() for metric in metrics(inner)]
        # Of a disjunction it is enough that one side has the label.
        missing = set(names) - set.union(*series) if series else set(names)
        found += [f"{word} ({label}): no series has it" for label in sorted(missing)]
    return found


def metrics(expr):
    """Every series that an expression names, with or without matchers."""
    bare = re.findall(r"(?<![\w:])((?:job:)?weni_edge_[\w:]+|process_\w+|tokio_\w+|up|ALERTS)(?![\w:(])", re.sub(r'"[^"]*"', '""', expr))
    return set(bare)


def result_labels(known, expr):
    grouped = [set(names) for word, names, _ in promql.groups(expr) if word == "by"]
    own = [known.labels(metric) or set() for metric in metrics(expr)]
    return set().union(*(grouped or own))


def check(report, scrape):
    known = Known(scrape)
    expressions = {name: expr for name, expr in static.queries()}
    expressions |= {rule.get("alert") or rule["record"]: rule["expr"] for rule in static.rules("expr")}
    expressions |= {name: series for name, series, _ in variable_queries()}
    for name, expr in expressions.items():
        report.same(f"{name} asks for labels and values that are there", faults(known, expr), [])
    check_results(report, known)
    check_releases(report)


def check_results(report, known):
    """Legends, titles and texts show labels that the query's result has."""
    for board, panel in static.panels():
        missing = [label for expr, shown in legends(panel) for label in shown if label not in result_labels(known, expr)]
        report.same(f"{board} / {panel['title']}: its legends are labels of its series", missing, [])
    for one in static.dashboards()[0]["annotations"]["list"]:
        shown = re.findall(r"\{\{(\w+)\}\}", one["titleFormat"])
        report.same(f"annotation / {one['name']}: its title", [label for label in shown if label not in result_labels(known, one["expr"])], [])
    for rule in static.rules("alert"):
        # What is not aggregated keeps all of its labels; on one side of `or` that is enough.
        own = set().union(*(known.labels(metric) or set() for metric in metrics(rule["expr"])))
        shown = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        result = result_labels(known, rule["expr"]) if rule["expr"].lstrip().startswith(("sum", "max", "histogram")) else own
        report.same(f"{rule['alert']}: its texts show labels that it has", shown - result, set())
    for name, series, label in variable_queries():
        report.that(f"{name}: its series has the label", label in (known.labels(series.partition("{")[0]) or ()), f"{series}, {label}")


def check_releases(report):
    """One Prometheus may have several releases: none hides another's trouble."""
    for rule in static.rules("expr"):
        name = rule.get("alert") or rule["record"]
        narrow = [names for word, names, _ in promql.groups(rule["expr"]) if not RELEASE <= set(names)]
        report.same(f"{name} keeps releases apart", narrow, [])
        loose = [one.metric for one in promql.selectors(rule["expr"]) if ("job", "=", "weni-edge") not in one.matchers]
        bare = static.METRIC.findall(re.sub(r"\w+\{", "", rule["expr"]))
        report.same(f"{name} asks for the edge's job only", (loose, bare), ([], []))
    for name, expr in static.queries():
        selected = [RELEASE <= {label for label, _, _ in one.matchers} for one in promql.selectors(expr)]
        bare = static.METRIC.findall(re.sub(r"[\w:]+\{", "", expr))
        report.that(f"{name} shows one release", selected and all(selected) and not bare, expr)
    for board in static.dashboards():
        names = [variable["name"] for variable in board["templating"]["list"]]
        report.same(f"{board['title']}: its variables", names, ["datasource", "job", "namespace", "release", "instance", "topic"])
        for number, variable in enumerate(board["templating"]["list"]):
            asked = set(re.findall(r"\$(\w+)", json.dumps(variable.get("query"))))
            report.same(f"{board['title']} / ${variable['name']} depends on those before it", asked - set(names[:number]), set())
