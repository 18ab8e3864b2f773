#!/usr/bin/env python3
"""Renders the recording rules and alerts of weni-edge, for Prometheus.

    rules.py                      print the rules
    rules.py --check FILE         fail unless FILE is what would be printed
    rules.py --scale 60           every window, duration and age divided by 60, to see alerts in a test

In expressions `$5m` stands for 300, so that `--scale` divides ages, too.
"""

import argparse
import json
import re
import sys
import textwrap
from pathlib import Path

RUNBOOK = "https://github.com/weni-ai/weni-edge/blob/main/deploy/RUNBOOK.md"
JOB = 'job="weni-edge"'
# One Prometheus may scrape several releases (staging, production). Each is judged alone. Targets
# without these labels (Docker, systemd) are one release.
RELEASE = "job, namespace, release"
INSTANCE = f"{RELEASE}, instance"

# 99.9 % of callbacks are answered 2xx within 250 ms; 99 % are in Kafka within 5 s of acceptance.
# 250 ms and 5 s are bounds of the histograms' buckets, so nothing is interpolated.
ACCEPTANCE_BUDGET = 0.001

UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def record(name, expr):
    return {"record": name, "expr": expr}


def alert(name, severity, hold, expr, summary, description):
    where = "{{ with $labels.release }} ({{ $labels.namespace }}/{{ . }}){{ end }}"
    return {
        "alert": name, "expr": expr, "for": hold, "labels": {"severity": severity},
        "annotations": {
            "summary": summary + where, "description": description, "runbook_url": f"{RUNBOOK}#{name.lower()}",
        },
    }  # fmt: skip


# Ratios are recorded only when there is traffic: 0 / 0 is NaN, and one NaN makes every average, sum and
# maximum over its window NaN.
#
# Calls with a wrong secret or a broken body are the caller's fault: they count neither as good nor as
# bad. Bad calls are counted from rejections, which are exported from 0 on;
# http_requests_total{code!="200"} is not. A slow rejection counts twice, which errs on the safe side.
def acceptance(window):
    duration = "weni_edge_http_request_duration_seconds"
    rejected = f"weni_edge_http_rejections_total{{{JOB}, source!=\"unknown\", reason=~\"%s\"}}[{window}]"
    count = f"sum by ({RELEASE}) (rate({duration}_count{{{JOB}}}[{window}]))"
    callers = rejected % "auth|malformed"
    ours = rejected % "journal_full|journal_slow|overloaded|too_large|timeout"
    requests, bad = (f"job:weni_edge_acceptance_{kind}:rate{window}" for kind in ("requests", "bad"))
    return [
        record(requests, f"{count}\n- sum by ({RELEASE}) (rate({callers}))"),
        record(bad, f"""\
            {count}
            - sum by ({RELEASE}) (rate({duration}_bucket{{{JOB}, le="0.25"}}[{window}]))
            + sum by ({RELEASE}) (rate({ours}))"""),
        record(f"job:weni_edge_acceptance_bad:ratio_rate{window}", f"{bad} / ({requests} > 0)"),
    ]  # fmt: skip


def freshness(window):
    records, late = (f"job:weni_edge_freshness_{kind}:rate{window}" for kind in ("records", "late"))
    # Prometheus 3 writes the bound 5 as 5.0.
    bucket = f'weni_edge_end_to_end_seconds_bucket{{{JOB}, le=~"5([.]0)?"}}'
    return [
        record(records, f"sum by ({RELEASE}) (rate(weni_edge_end_to_end_seconds_count{{{JOB}}}[{window}]))"),
        record(late, f"{records} - sum by ({RELEASE}) (rate({bucket}[{window}]))"),
        record(f"job:weni_edge_freshness_late:ratio_rate{window}", f"{late} / ({records} > 0)"),
    ]


def month(kind, whole):
    """What share was bad in 30 days (or as far back as Prometheus keeps)."""
    bad, all_of_it = (f"sum_over_time(job:weni_edge_{name}:rate5m[30d])" for name in (kind, whole))
    return record(f"job:weni_edge_{kind}:ratio30d", f"{bad} / ({all_of_it} > 0)")


def burn(factor, long, short):
    """Both windows burn, and there were more than 500 calls, so that one failed call does not page."""
    ratio = "job:weni_edge_acceptance_bad:ratio_rate"
    return f"""\
        {ratio}{long} > {factor} * {ACCEPTANCE_BUDGET}
        and {ratio}{short} > {factor} * {ACCEPTANCE_BUDGET}
        and job:weni_edge_acceptance_requests:rate{long} * ${long} > 500"""


def young(metric):
    """increase() does not see a counter that is above 0 at its first scrape, as those that count at an opening are."""
    return f"{metric}{{{JOB}}} > 0 and on ({INSTANCE}) time() - process_start_time_seconds{{{JOB}}} < $15m"


RECORDS = {
    "weni-edge-slo": [
        *acceptance("5m"), *acceptance("30m"), *acceptance("1h"), *acceptance("6h"),
        *freshness("5m"), *freshness("1h"),
        month("acceptance_bad", "acceptance_requests"),
        month("freshness_late", "freshness_records"),
    ],
    "weni-edge-business": [
        record("job:weni_edge_statuses_failed:ratio_rate1h", f"""\
            sum by ({RELEASE}) (rate(weni_edge_statuses_total{{{JOB}, status="failed"}}[1h]))
            / (sum by ({RELEASE}) (rate(weni_edge_statuses_total{{{JOB}}}[1h])) > 0)"""),
    ],
}  # fmt: skip

# Scraped in the last day and no longer a target: a pod that is pending, lost or scaled in has no `up`,
# so WeniEdgeDown does not fire.
GONE = f"max_over_time(up{{{JOB}}}[1d]) == 1\nunless on ({INSTANCE}) up{{{JOB}}}"
# For a week: as long as the volume is there, so are the callbacks.
LEFT_BEHIND = f"last_over_time(weni_edge_journal_pending_callbacks{{{JOB}}}[7d]) > 0"

PAGES = [
    alert("WeniEdgeAcceptanceBurnFast", "page", "2m", burn(14.4, "1h", "5m"),
          "Many calls are refused or answered late",
          "{{ $value | humanizePercentage }} of the last hour's calls were refused or took longer than 250 ms. "
          "At this rate the month's error budget is used up in two days."),
    alert("WeniEdgeAcceptanceBurnSlow", "page", "15m", burn(6, "6h", "30m"),
          "Calls are steadily refused or answered late",
          "{{ $value | humanizePercentage }} of the last six hours' calls were refused or took longer than "
          "250 ms. At this rate the month's error budget is used up in five days."),
    # Each instance has its own journal. While it is down, the callbacks in it stay out of Kafka.
    alert("WeniEdgeDown", "page", "2m", f"up{{{JOB}}} == 0 or absent(up{{{JOB}}})",
          "{{ with $labels.instance }}Edge {{ . }} is down{{ else }}No edge is up{{ end }}",
          "Prometheus cannot scrape {{ with $labels.instance }}{{ . }}{{ else }}any edge{{ end }}. "
          "The callbacks in its journal stay out of Kafka."),
    # Between two processes the port refuses calls, mostly for too short a time for WeniEdgeDown.
    alert("WeniEdgeRestarting", "page", None, f"changes(process_start_time_seconds{{{JOB}}}[15m]) > 2",
          "{{ $labels.instance }} starts again and again",
          "{{ $labels.instance }} was restarted {{ $value | humanize }} times in 15 minutes. Calls in between are "
          "refused and lost."),
    alert("WeniEdgeInstanceLost", "page", "5m", f"{LEFT_BEHIND}\nunless on ({INSTANCE}) up{{{JOB}}}",
          "{{ $labels.instance }} is gone, with callbacks in its journal",
          "{{ $labels.instance }} is no longer a target of Prometheus. At its last scrape {{ $value | humanize }} "
          "callbacks waited in its journal; they are not in Kafka."),
    # More than 10, so that one stray call to a quiet source does not page.
    alert("WeniEdgeSecretsRejected", "page", "10m", f"""\
            sum by ({RELEASE}, source) (rate(weni_edge_http_rejections_total{{{JOB}, reason="auth"}}[10m]))
            / (sum by ({RELEASE}, source) (rate(weni_edge_http_request_duration_seconds_count{{{JOB}}}[10m])) > 0) > 0.05
            and sum by ({RELEASE}, source) (increase(weni_edge_http_rejections_total{{{JOB}, reason="auth"}}[10m])) > 10""",
          "Calls for source {{ $labels.source }} carry a wrong secret",
          "{{ $value | humanizePercentage }} of the calls for {{ $labels.source }} are answered 401, and "
          "Weni does not repeat them."),
    alert("WeniEdgeCallbacksAging", "page", "5m",
          f"max by ({INSTANCE}) (weni_edge_journal_oldest_pending_age_seconds{{{JOB}}}) > $5m",
          "Callbacks in {{ $labels.instance }} do not reach Kafka",
          "The oldest callback that is not in Kafka is {{ $value | humanizeDuration }} old."),
    alert("WeniEdgeJournalFilling", "page", "5m", f"""\
            weni_edge_journal_bytes{{{JOB}}} / weni_edge_journal_capacity_bytes{{{JOB}}} > 0.8
            or (
              weni_edge_journal_bytes{{{JOB}}} / weni_edge_journal_capacity_bytes{{{JOB}}} > 0.25
              and predict_linear(weni_edge_journal_bytes{{{JOB}}}[30m], $4h) > weni_edge_journal_capacity_bytes{{{JOB}}}
            )""",
          "The journal of {{ $labels.instance }} is filling up",
          "{{ $value | humanizePercentage }} of the journal is used: above 80 %, or at this rate full within four "
          "hours. With a full journal the edge refuses calls, and they are lost."),
    alert("WeniEdgeJournalFull", "page", "1m", f'weni_edge_ready{{{JOB}, check="room"}} == 0',
          "The journal of {{ $labels.instance }} is full",
          "The journal of {{ $labels.instance }} has no room for the largest allowed call. The edge is not ready; "
          "calls that find no room are refused and lost."),
    # A failed append ends the process before its counter is scraped: `ready` may be the only trace.
    alert("WeniEdgeJournalFault", "page", None, f"""\
            increase(weni_edge_journal_errors_total{{{JOB}}}[5m]) > 0
            or ({young("weni_edge_journal_errors_total")})
            or ({young("weni_edge_journal_corrupt_bytes_total")})
            or weni_edge_ready{{{JOB}, check="journal"}} == 0""",
          "The journal of {{ $labels.instance }} has failed or was damaged",
          "{{ with $labels.op }}Operation {{ . }} failed.{{ else }}The journal had damaged bytes when it was "
          "opened, or accepts nothing more.{{ end }} (value {{ $value | humanize }})"),
    alert("WeniEdgePublishingStalled", "page", "2m", f"""\
            time() - weni_edge_last_publish_timestamp_seconds{{{JOB}}} > $2m
            and on ({INSTANCE}) weni_edge_journal_pending_callbacks{{{JOB}}} > 0""",
          "{{ $labels.instance }} publishes nothing while callbacks wait",
          "The last commit was {{ $value | humanizeDuration }} ago."),
    alert("WeniEdgeJournalDiverged", "page", None, f"""\
            weni_edge_publish_blocked{{{JOB}, reason=~"journal_diverged|position_reset|cluster_changed"}} == 1
            or increase(weni_edge_position_went_back_total{{{JOB}}}[5m]) > 0
            or ({young("weni_edge_position_went_back_total")})""",
          "The journal of {{ $labels.instance }} and Kafka disagree",
          "{{ with $labels.reason }}Publishing waits for an operator: {{ . }}.{{ else }}Kafka's position went "
          "back: events are repeated with the same event_id.{{ end }}"),
    alert("WeniEdgePublisherWedged", "page", None,
          f'weni_edge_publish_blocked{{{JOB}, reason="publisher_wedged"}} == 1',
          "The publisher of {{ $labels.instance }} is stuck",
          "Several publishers of {{ $labels.instance }} in a row panicked or hung without a commit."),
    alert("WeniEdgeReadersHeld", "page", "1m",
          f"max by ({RELEASE}, topic) (weni_edge_kafka_stable_lag_seconds{{{JOB}}}) > $1m",
          "Readers of {{ $labels.topic }} are held",
          "Consumers with read_committed have seen nothing new for {{ $value | humanizeDuration }}, because a "
          "transaction is open."),
    alert("WeniEdgeNoBroker", "page", "5m",
          f'weni_edge_publish_blocked{{{JOB}, reason="no_broker"}} == 1',
          "{{ $labels.instance }} reaches no Kafka broker",
          "{{ $labels.instance }} publishes nothing; it accepts callbacks until its journal is full."),
]  # fmt: skip

TICKETS = [
    alert("WeniEdgeInstanceGone", "ticket", "15m", f"{GONE}\nunless on ({INSTANCE}) {LEFT_BEHIND}",
          "{{ $labels.instance }} is gone",
          "{{ $labels.instance }} was scraped in the last day and is no longer a target of Prometheus (value "
          "{{ $value }}). Its journal was empty at its last scrape."),
    # For quiet sources, too. Accepted calls are exported from 0 on, so one of them ends the alert.
    alert("WeniEdgeSourceRefused", "ticket", "10m", f"""\
            sum by ({RELEASE}, source) (increase(weni_edge_http_rejections_total{{{JOB}, source!="unknown"}}[1h])) > 0
            unless sum by ({RELEASE}, source) (increase(weni_edge_callbacks_accepted_total{{{JOB}}}[1h])) > 0""",
          "All calls for source {{ $labels.source }} are refused",
          "{{ $value | humanize }} calls for {{ $labels.source }} were refused in the last hour, and none was accepted."),
    # Not callbacks_accepted_total, which stays after a reload has removed its source.
    alert("WeniEdgeNoTraffic", "ticket", "10m", f"""\
            sum by ({RELEASE}, source) (rate(weni_edge_http_requests_total{{{JOB}, code="200"}}[15m])) == 0
            and sum by ({RELEASE}, source) (rate(weni_edge_http_requests_total{{{JOB}, code="200"}}[15m] offset 1w)) > 0.1""",
          "Source {{ $labels.source }} has fallen silent",
          "{{ $value | humanize }} accepted calls a second in 15 minutes. A week ago there were more than 0.1."),
    alert("WeniEdgeConnectionsNearLimit", "ticket", "5m",
          f"weni_edge_http_connections{{{JOB}}} / weni_edge_http_connections_max{{{JOB}}} > 0.9",
          "{{ $labels.instance }} is close to its limit of connections",
          "{{ $value | humanizePercentage }} of the allowed connections are open. At the limit each new one closes an "
          "idle one, and a call that begins on that at the same moment is lost."),
    alert("WeniEdgeSlowSync", "ticket", "10m", f"""\
            histogram_quantile(0.99,
              sum by ({INSTANCE}, le) (rate(weni_edge_journal_sync_seconds_bucket{{{JOB}}}[10m]))) > 0.25""",
          "The disk of {{ $labels.instance }} is slow",
          "One sync in a hundred takes longer than {{ $value | humanizeDuration }}. Each answer waits for a sync."),
    # More than 3, because a broker's restart may cost a transaction at any time.
    alert("WeniEdgePublishErrors", "ticket", "10m", f"""\
            sum by ({RELEASE}) (rate(weni_edge_transactions_total{{{JOB}, outcome!="committed"}}[10m]))
            / (sum by ({RELEASE}) (rate(weni_edge_transactions_total{{{JOB}}}[10m])) > 0) > 0.01
            and sum by ({RELEASE}) (increase(weni_edge_transactions_total{{{JOB}, outcome!="committed"}}[10m])) > 3""",
          "Kafka transactions fail",
          "{{ $value | humanizePercentage }} of the last ten minutes' transactions were aborted or lost."),
    alert("WeniEdgeDeadLetters", "ticket", None, f"""\
            sum by ({RELEASE}, stage, reason) (increase(weni_edge_dead_letters_total{{{JOB}}}[30m])) > 0
            or sum by ({RELEASE}, stage) (increase(weni_edge_quarantined_total{{{JOB}, stage="publish"}}[30m])) > 0""",
          "Callbacks could not be read or published",
          "{{ $value | humanize }} in the last 30 minutes (stage {{ $labels.stage }}, reason "
          "{{ with $labels.reason }}{{ . }}{{ else }}refused even as a dead letter: in quarantine{{ end }})."),
    # Only if the day before had none: members that come with every callback are not news.
    alert("WeniEdgeRemainders", "ticket", None, f"""\
            sum by ({RELEASE}) (increase(weni_edge_callback_remainders_total{{{JOB}}}[1h])) > 0
            unless sum by ({RELEASE}) (increase(weni_edge_callback_remainders_total{{{JOB}}}[1d] offset 1h)) > 0""",
          "Callbacks have members that the edge does not know",
          "{{ $value | humanize }} callbacks of the last hour have such members, and none of the day before. The members "
          "are published as events of kind remainder."),
    alert("WeniEdgeReloadFailed", "ticket", "5m", f"weni_edge_config_last_reload_successful{{{JOB}}} == 0",
          "{{ $labels.instance }} does not take up its configuration",
          "A file of {{ $labels.instance }} is wrong or cannot be read. The edge goes on with its old "
          "configuration. It would not start again."),
    alert("WeniEdgeCertificateExpires", "ticket", None,
          f"weni_edge_tls_certificate_not_after_seconds{{{JOB}}} - time() < 14 * 86400",
          "The certificate of {{ $labels.instance }} expires",
          "It is valid for another {{ $value | humanizeDuration }}. After that no call arrives."),
    # Compared with the sender's own week, because senders differ; above 5 %, because Meta limits numbers
    # whose messages fail; more than 20, so that one failure among ten messages is not news.
    alert("WeniEdgeFailedShareHigh", "ticket", "10m", f"""\
            job:weni_edge_statuses_failed:ratio_rate1h > 0.05
            and job:weni_edge_statuses_failed:ratio_rate1h
              > 3 * avg_over_time(job:weni_edge_statuses_failed:ratio_rate1h[1w] offset 1h)
            and sum by ({RELEASE}) (increase(weni_edge_statuses_total{{{JOB}, status="failed"}}[1h])) > 20""",
          "Far more messages fail than usual",
          "{{ $value | humanizePercentage }} of the last hour's status updates say failed: more than three times "
          "the week's average."),
]  # fmt: skip


def scaled(duration, factor):
    number, unit = re.fullmatch(r"(\d+)([a-z]+)", duration).groups()
    milliseconds = int(number) * UNITS[unit] / factor
    return duration if factor == 1 else f"{max(1, round(milliseconds))}ms"


def seconds(duration, factor):
    number, unit = re.fullmatch(r"(\d+)([a-z]+)", duration).groups()
    return f"{int(number) * UNITS[unit] / 1000 / factor:g}"


def expression(text, factor):
    text = textwrap.dedent(text).strip()
    text = re.sub(r"\[(\w+)\]", lambda found: f"[{scaled(found[1], factor)}]", text)
    text = re.sub(r"offset (\w+)", lambda found: f"offset {scaled(found[1], factor)}", text)
    return re.sub(r"\$(\d+[a-z])", lambda found: seconds(found[1], factor), text)


def render_rule(rule, factor):
    """Strings are written as JSON, which is also YAML."""
    kind = "alert" if "alert" in rule else "record"
    yield f"      - {kind}: {rule[kind]}"
    yield "        expr: |"
    yield textwrap.indent(expression(rule["expr"], factor), " " * 10)
    if rule.get("for"):
        yield f"        for: {scaled(rule['for'], factor)}"
    for section in ("labels", "annotations"):
        if section in rule:
            yield f"        {section}:"
            yield from (f"          {key}: {json.dumps(value)}" for key, value in rule[section].items())


def render(factor=1):
    yield "# Made by rules.py: change that."
    yield "groups:"
    for name, rules in {**RECORDS, "weni-edge-pages": PAGES, "weni-edge-tickets": TICKETS}.items():
        yield f"  - name: {name}"
        yield "    rules:"
        for rule in rules:
            yield from render_rule(rule, factor)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1, metavar="FACTOR")
    parser.add_argument("--check", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    text = "\n".join(render(arguments.scale)) + "\n"
    if not arguments.check:
        sys.stdout.write(text)
    elif arguments.check.read_text() != text:
        sys.exit(f"{arguments.check} is not what {sys.argv[0]} renders: render it again")


if __name__ == "__main__":
    main()
