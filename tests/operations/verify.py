"""Checks after the incident: every query had data, and every alert that can be caused fired and resolved."""

import re

import labels
import static
from incident import NOT_CAUSED
from processes import NAMESPACE, RELEASE


def substituted(expr):
    """As Grafana would ask for it, with the variables at All."""
    values = {"$job": "weni-edge", "$namespace": NAMESPACE, "$release": RELEASE, "$instance": ".*", "$topic": ".*", "$__rate_interval": "15s", "$__range": "300s"}
    return re.sub(r"\$\w+", lambda found: values[found[0]], expr)


def check(report, incident):
    prometheus, since = incident.prometheus, incident.started

    def has_data(query):
        values = [float(value) for series in prometheus.series(query, since) for _, value in series["values"]]
        return any(value == value for value in values)  # NaN is none

    for name, expr in static.queries():
        try:
            found, why = has_data(substituted(expr)), "no data"
        except ValueError as error:
            found, why = False, str(error)
        report.that(f"{name} has data", found, f"{why}: {expr}")
    for rule in static.rules("record"):
        report.that(f"{rule['record']} has data", has_data(rule["record"]))

    for name, series, label in labels.variable_queries():
        found = prometheus.api("series", **{"match[]": substituted(series), "start": since})
        report.that(f"{name} has values", any(label in one for one in found), f"{series}, {label}")

    exported = static.metrics_in(" ".join(prometheus.api("label/__name__/values")))
    wanted = set().union(*(static.metrics_in(expr) for _, expr in static.queries()))
    report.same("every metric on the dashboards is exported", wanted - exported, set())

    rules = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
    report.same("every rule can be evaluated", {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok"}, {})

    still = prometheus.firing()
    for rule in static.rules("alert"):
        name = rule["alert"]
        if name in NOT_CAUSED:
            print(f"    {name} is not caused: {NOT_CAUSED[name]}")
            continue
        fired = prometheus.series(f'ALERTS{{alertname="{name}", alertstate="firing"}}', since)
        report.that(f"{name} fired", fired)
        report.that(f"{name} resolved", fired and name not in still)
        texts = " ".join(incident.fired.get(name, {}).values())
        report.that(f"{name} says what is wrong", fired and not re.search("<no value>|<error|NaN", texts), texts)
