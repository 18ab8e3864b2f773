"""Each alert's severity, its hold, and its numbers in order: thresholds and windows.

They are repeated here so that a slip in the rules is noticed. Change both to change one.
"""

import re

import promql
import static

ALERTS = {
    "WeniEdgeAcceptanceBurnFast": ("page", "2m", "14.4 0.001 14.4 0.001 3600 500"),
    "WeniEdgeAcceptanceBurnSlow": ("page", "15m", "6 0.001 6 0.001 21600 500"),
    "WeniEdgeDown": ("page", "2m", "0"),
    "WeniEdgeRestarting": ("page", None, "15m 2"),
    "WeniEdgeInstanceLost": ("page", "5m", "7d 0"),
    "WeniEdgeSecretsRejected": ("page", "10m", "10m 10m 0 0.05 10m 10"),
    "WeniEdgeCallbacksAging": ("page", "5m", "300"),
    "WeniEdgeJournalFilling": ("page", "5m", "0.8 0.25 30m 14400"),
    "WeniEdgeJournalFull": ("page", "1m", "0"),
    "WeniEdgeJournalFault": ("page", None, "5m 0 0 900 0 900 0"),
    "WeniEdgePublishingStalled": ("page", "2m", "120 0"),
    "WeniEdgeJournalDiverged": ("page", None, "1 5m 0 0 900"),
    "WeniEdgePublisherWedged": ("page", None, "1"),
    "WeniEdgeReadersHeld": ("page", "1m", "60"),
    "WeniEdgeNoBroker": ("page", "5m", "1"),
    "WeniEdgeInstanceGone": ("ticket", "15m", "1d 1 7d 0"),
    "WeniEdgeSourceRefused": ("ticket", "10m", "1h 0 1h 0"),
    "WeniEdgeNoTraffic": ("ticket", "10m", "15m 0 15m 1w 0.1"),
    "WeniEdgeConnectionsNearLimit": ("ticket", "5m", "0.9"),
    "WeniEdgeSlowSync": ("ticket", "10m", "0.99 10m 0.25"),
    "WeniEdgePublishErrors": ("ticket", "10m", "10m 10m 0 0.01 10m 3"),
    "WeniEdgeDeadLetters": ("ticket", None, "30m 0 30m 0"),
    "WeniEdgeRemainders": ("ticket", None, "1h 0 1d 1h 0"),
    "WeniEdgeReloadFailed": ("ticket", "5m", "0"),
    "WeniEdgeCertificateExpires": ("ticket", None, "14 86400"),
    "WeniEdgeFailedShareHigh": ("ticket", "10m", "0.05 3 1w 1h 1h 20"),
}
# What burns the budget, by its windows; 1h and 5m, 6h and 30m belong together (SRE workbook, chapter 5).
BURN_WINDOWS = {"WeniEdgeAcceptanceBurnFast": ["1h", "5m", "1h"], "WeniEdgeAcceptanceBurnSlow": ["6h", "30m", "6h"]}
# Calls that are refused by the caller's own fault; the edge's are all the others.
CALLERS_FAULT = {"auth", "malformed"}
NOBODYS = {"unknown_source"}


def check(report, scrape):
    rules = {rule["alert"]: rule for rule in static.rules("alert")}
    report.same("every alert has expected values", set(rules), set(ALERTS))
    for name in rules.keys() & ALERTS.keys():
        rule = rules[name]
        found = (rule["labels"]["severity"], rule.get("for"), " ".join(promql.numbers(rule["expr"])))
        report.same(f"{name}: severity, hold, thresholds and windows", found, ALERTS[name])
    for name, windows in BURN_WINDOWS.items():
        found = re.findall(r"job:weni_edge_\w+:(?:ratio_)?rate(\w+)", rules[name]["expr"])
        report.same(f"{name}: its two windows, and the one of its traffic", found, windows)
    reasons = scrape["weni_edge_http_rejections_total"]["reason"] - NOBODYS
    for window in ("5m", "30m", "1h", "6h"):
        for kind, wanted in (("requests", CALLERS_FAULT), ("bad", reasons - CALLERS_FAULT)):
            record = f"job:weni_edge_acceptance_{kind}:rate{window}"
            check_record(report, record, wanted, window)




def check_record(report, name, wanted, window):
    rule = next(rule for rule in static.rules("record") if rule["record"] == name)
    found = {reason for one in promql.selectors(rule["expr"]) for label, _, value in one.matchers if label == "reason"
             for reason in value.split("|")}  # fmt: skip
    report.same(f"{name}: the reasons that count", found, wanted)
    windows = {number for number in promql.numbers(rule["expr"]) if number[-1] in "smhdw"}
    report.same(f"{name}: its window", windows, {window})
