"""Parts of Grafana's dashboards, in the classic JSON schema because file provisioning refuses v2."""

import re

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
RUNBOOK = "https://github.com/weni-ai/weni-edge/blob/main/deploy/RUNBOOK.md"
WIDTH = 24

# One release at a time, because staging must not hide production. For targets without these labels they are empty.
RELEASE = 'job=~"$job", namespace=~"$namespace", release=~"$release"'
# `@` within braces stands for the variables by which every query selects.
SELECTOR = f'{RELEASE}, instance=~"$instance"'

TOPIC = 'topic=~"$topic"'
# Recorded series have no instance.
RECORDED = f"{{{RELEASE}}}"
# Graphs leave out series that are 0, because many always are.
NONZERO = " > 0"


def expand(expr):
    return re.sub(r"@", SELECTOR, " ".join(expr.split()))


def rate(metric, by="", where=""):
    """Events a second, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{@{where and ', ' + where}}}[$__rate_interval]))"


def quantiles(metric, by="", where=""):
    """The median and the 99th percentile of a histogram, as targets."""
    for q in (0.5, 0.99):
        legend = f"p{q * 100:g}" + "".join(f" {{{{{label.strip()}}}}}" for label in by.split(",") if label)
        buckets = rate(f"{metric}_bucket", "le" + (by and f", {by}"), where)
        yield f"histogram_quantile({q}, {buckets})", legend


def most(series):
    """The highest value of a gauge since the previous point, so that a day's view shows what lasted seconds."""
    return f"max_over_time({series}[$__rate_interval])"


def panel(title, description, unit, *targets, kind="timeseries", w=8, h=7, **more):
    """`targets` are pairs of query and legend. `more` may be bad_above, bad_below, min, max, stack, decimals and others."""
    defaults = {"unit": unit, "custom": {}}
    if kind == "state-timeline":
        defaults["custom"] = {"fillOpacity": 80, "lineWidth": 0}
    if kind == "timeseries":
        defaults["custom"] = {"fillOpacity": 10, "showPoints": "auto", "lineWidth": 1}
        if more.get("stack"):
            defaults["custom"] |= {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 40}
    for key in ("min", "max", "decimals", "noValue", "mappings"):
        if key in more:
            defaults[key] = more[key]
    steps = [{"color": "green", "value": None}]
    if "bad_below" in more:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": more["bad_below"]}]
    if "bad_above" in more:
        steps.append({"color": "red", "value": more["bad_above"]})
        if kind == "timeseries":
            defaults["custom"]["thresholdsStyle"] = {"mode": "dashed"}
    if kind != "timeseries":
        defaults["color"] = {"mode": "thresholds"}
    defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return {
        "type": kind, "title": title, "description": description, "datasource": DATASOURCE,
        "gridPos": {"w": w, "h": h},
        "fieldConfig": {"defaults": defaults, "overrides": more.get("overrides", [])},
        "options": OPTIONS[kind] | more.get("options", {}),
        "targets": [
            {
                "refId": chr(ord("A") + i), "datasource": DATASOURCE, "expr": expand(expr), "legendFormat": legend,
                **({"instant": True, "range": False, "format": "table"} if kind == "table" else {}),
            }
            for i, (expr, legend) in enumerate(targets)
        ],
        **({"transformations": more["transformations"]} if "transformations" in more else {}),
    }  # fmt: skip


REDUCE = {"calcs": ["lastNotNull"], "fields": "", "values": False}
OPTIONS = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": REDUCE, "colorMode": "background", "graphMode": "area", "textMode": "auto"},
    "bargauge": {"reduceOptions": REDUCE, "orientation": "horizontal", "displayMode": "basic"},
    "table": {"showHeader": True, "cellHeight": "sm"},
    "state-timeline": {
        "showValue": "never", "mergeValues": True, "rowHeight": 0.8, "alignValue": "left",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False}, "tooltip": {"mode": "single"},
    },
}


def stat(title, description, unit, *targets, w=4, h=4, **more):
    return panel(title, description, unit, *targets, kind="stat", w=w, h=h, **more)


def timeline(title, description, target, **more):
    """One lane for each series that was above 0 in the range. A month's view shows even a moment."""
    expr, legend = target
    return panel(title, description, "short", (f"({expr}) > 0", legend), kind="state-timeline", bad_above=1, **more)


def table(title, description, unit, query, hide, **more):
    """One line for each series, without the columns in `hide`."""
    excluded = dict.fromkeys(("Time", "__name__", "job", *hide), True)
    organize = {"id": "organize", "options": {"excludeByName": excluded}}
    return panel(title, description, unit, (query, ""), kind="table", transformations=[organize], **more)


def row(title, *panels):
    return {"type": "row", "title": title, "collapsed": False, "panels": []}, panels


def layout(rows):
    """Places panels from left to right in the given order."""
    placed, y = [], 0
    for head, panels in rows:
        placed.append(head | {"gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})
        x, y, height = 0, y + 1, 0
        for one in panels:
            w, h = one["gridPos"]["w"], one["gridPos"]["h"]
            if x + w > WIDTH:
                x, y, height = 0, y + height, 0
            placed.append(one | {"gridPos": {"x": x, "y": y, "w": w, "h": h}})
            x, height = x + w, max(height, h)
        y += height
    return [one | {"id": i} for i, one in enumerate(placed, 1)]


def variable(name, query, multi=True):
    return {
        "name": name, "type": "query", "datasource": DATASOURCE, "query": {"query": query, "refId": name},
        "definition": query, "refresh": 2, "sort": 1, "multi": multi, "includeAll": multi,
        **({"allValue": ".*", "current": {"text": "All", "value": "$__all"}} if multi else {}),
    }  # fmt: skip


VARIABLES = [
    {"name": "datasource", "type": "datasource", "query": "prometheus", "hide": 0},
    variable("job", "label_values(weni_edge_journal_capacity_bytes, job)", multi=False),
    variable("namespace", 'label_values(weni_edge_journal_capacity_bytes{job=~"$job"}, namespace)', multi=False),
    variable("release", 'label_values(weni_edge_journal_capacity_bytes{job=~"$job", namespace=~"$namespace"}, release)', multi=False),
    variable("instance", f"label_values(weni_edge_journal_capacity_bytes{{{RELEASE}}}, instance)"),
    variable("topic", f"label_values(weni_edge_publish_records_total{{{RELEASE}}}, topic)"),
]


def annotation(name, color, expr, title):
    return {"name": name, "enable": True, "iconColor": color, "datasource": DATASOURCE, "expr": expand(expr),
            "titleFormat": title, "step": "60s", "useValueForTime": False}  # fmt: skip


BUILD = 'sum by (version, revision) (weni_edge_build_info{@}%s)'
ANNOTATIONS = [
    annotation("Deploys", "blue", f"{BUILD % ''} unless {BUILD % ' offset 5m'}", "{{version}} {{revision}}"),
    annotation("Restarts", "orange", "changes(process_start_time_seconds{@}[2m]) > 0", "{{instance}} restarted"),
    annotation("Pages", "red", f'ALERTS{{{RELEASE}, severity="page", alertstate="firing"}}', "{{alertname}}"),
]


def dashboard(uid, title, description, *rows):
    return {
        "uid": uid, "title": title, "description": description, "tags": ["weni-edge"], "schemaVersion": 39,
        "version": 1, "editable": False, "graphTooltip": 1, "refresh": "30s", "timezone": "browser",
        "time": {"from": "now-3h", "to": "now"},
        "links": [
            {"type": "dashboards", "title": "weni-edge", "tags": ["weni-edge"], "asDropdown": False, "includeVars": True,
             "keepTime": True},
            {"type": "link", "title": "Runbook", "url": RUNBOOK, "icon": "doc", "targetBlank": True},
        ],
        "annotations": {"list": ANNOTATIONS},
        "templating": {"list": VARIABLES},
        "panels": layout(rows),
    }  # fmt: skip
