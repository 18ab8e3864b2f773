"""The first dashboard after a page: rows from symptoms to causes."""

from panels import NONZERO, RECORDED, RELEASE, TOPIC, dashboard, most, panel, quantiles, rate, row, stat, timeline

FIRING = f'ALERTS{{{RELEASE}, alertname=~"WeniEdge.*", alertstate="firing"}}'
SLOWEST = 'weni_edge_kafka_rtt_seconds{@, quantile="0.99"}'
CAPACITY = "weni_edge_journal_bytes{@} / weni_edge_journal_capacity_bytes{@}"

HEALTH = row(
    "Health and SLO",
    stat("All edges up", "Whether Prometheus can scrape every instance that it knew in the last day. While one is down, the callbacks in its journal stay out of Kafka.",
         "bool_yes_no", ("min(up{@} or 0 * max_over_time(up{@}[1d]))", "up"), bad_below=1, w=3),
    stat("Ready", "Whether every instance is ready: its journal is open and has room, and it is not stopping.",
         "bool_yes_no", ("min(weni_edge_ready{@})", "ready"), bad_below=1, w=3),
    stat("Error budget left", "Of 30 days, in which 99.9 % of calls must be answered 2xx within 250 ms; wrong secrets and broken bodies do not count. Below 0 the promise is broken; -100 % also stands for anything lower.",
         "percentunit", (f"clamp_min(1 - job:weni_edge_acceptance_bad:ratio30d{RECORDED} / 0.001, -1)", "left"), bad_below=0, decimals=1, w=4),
    stat("Refused or slow, 1 h", "Share of the last hour's calls that were not answered 2xx within 250 ms. The budget is 0.1 %.",
         "percentunit", (f"job:weni_edge_acceptance_bad:ratio_rate1h{RECORDED}", "1 h"), bad_above=0.001, decimals=2, w=4),
    stat("Late in Kafka, 1 h", "Share of the last hour's records that were committed more than 5 s after acceptance. The budget is 1 %. No data while nothing is committed: look at the oldest pending callback.",
         "percentunit", (f"job:weni_edge_freshness_late:ratio_rate1h{RECORDED}", "1 h"), bad_above=0.01, decimals=2, w=4),
    stat("Oldest pending", "Age of the oldest accepted callback that is not in Kafka. More than 5 minutes page.",
         "s", ("max(weni_edge_journal_oldest_pending_age_seconds{@})", "age"), bad_above=300, w=3),
    stat("Journal used", "The fullest journal. At 100 % calls are refused and lost; 80 % page.",
         "percentunit", (f"max({CAPACITY})", "used"), bad_above=0.8, decimals=0, w=3),
    timeline("Firing alerts", "When each alert fired. Each has a section in the runbook.",
             (f"max by (alertname) ({most(FIRING)})", "{{alertname}}"),
             w=12, h=6),
    panel("Error budget burn", "1 uses up the error budget in exactly 30 days. Above 14.4 over 1 h, or above 6 over 6 h, pages.",
          "none", (f"job:weni_edge_acceptance_bad:ratio_rate5m{RECORDED} / 0.001", "5 min"),
          (f"job:weni_edge_acceptance_bad:ratio_rate1h{RECORDED} / 0.001", "1 h"),
          (f"job:weni_edge_acceptance_bad:ratio_rate6h{RECORDED} / 0.001", "6 h"), bad_above=6, min=0, w=12, h=6),
)  # fmt: skip

TRAFFIC = row(
    "Traffic",
    panel("Callbacks accepted, by source", "Calls whose callback is on disk, per second. A source that falls silent has usually lost its webhook's settings.",
          "cps", (rate("weni_edge_callbacks_accepted_total", "source"), "{{source}}"), stack=True, min=0),
    panel("Statuses, by status", "Status updates that are committed to Kafka, per second.",
          "ops", (rate("weni_edge_statuses_total", "status") + NONZERO, "{{status}}"), min=0),
    panel("Since the last callback", "How long each source has been silent, counted at most from the start of its edge.",
          "s", ("time() - max by (source) (weni_edge_last_callback_timestamp_seconds{@})", "{{source}}"), min=0),
)  # fmt: skip

ACCEPTANCE = row(
    "Acceptance",
    panel("Requests, by status code", "401: wrong secret. 404: unknown source. 503: no room, a slow disk, or too many calls at once.",
          "reqps", (rate("weni_edge_http_requests_total", "code") + NONZERO, "{{code}}"), min=0),
    panel("Rejections, by reason", "Calls that were not accepted. Weni does not repeat them: they are lost.",
          "reqps", (rate("weni_edge_http_rejections_total", "reason") + NONZERO, "{{reason}}"), min=0),
    panel("Duration", "From the head of a request to the head of its answer, over all configured sources.",
          "s", *quantiles("weni_edge_http_request_duration_seconds"), bad_above=0.25, min=0),
)  # fmt: skip

JOURNAL = row(
    "Journal",
    panel("Pending callbacks", "Accepted callbacks that are not in Kafka. They increase while Kafka is away.",
          "short", (f"sum by (instance) ({most('weni_edge_journal_pending_callbacks{@}')})", "{{instance}}"), min=0),
    panel("Journal used", "Share of journal.max_bytes. When the journal is full, calls are refused and lost.",
          "percentunit", (CAPACITY, "{{instance}}"), min=0, max=1, bad_above=0.8),
    panel("Append and sync", "99th percentile. Each answer waits for a sync of the disk.",
          "s", *[(list(quantiles(f"weni_edge_journal_{what}_seconds"))[1][0], what) for what in ("append", "sync")], min=0),
)  # fmt: skip

PUBLISHING = row(
    "Publishing and end to end",
    panel("Records committed, by topic", "Records of committed transactions.",
          "ops", (rate("weni_edge_publish_records_total", "topic", TOPIC), "{{topic}}"), stack=True, min=0),
    panel("Accepted to committed", "From acceptance to the commit in Kafka. No data while nothing is committed.",
          "s", *quantiles("weni_edge_end_to_end_seconds", where=TOPIC), bad_above=5, min=0),
    timeline("Why nothing is published", "When publishing waited, and why. The runbook says what to do for each reason.",
             (f"max by (instance, reason) ({most('weni_edge_publish_blocked{@}')})", "{{instance}} {{reason}}")),
)  # fmt: skip

DEAD_LETTERS = row(
    "Dead letters",
    panel("Dead letters, by reason", "Callbacks, or parts of them, that could not be read (stage normalize) or published (stage publish). Their bytes are in the dead letter topic.",
          "short", ("sum by (stage, reason) (increase(weni_edge_dead_letters_total{@}[$__rate_interval]))" + NONZERO, "{{stage}} {{reason}}"),
          min=0, w=16),
    stat("In quarantine", "Files put aside since each edge started: records that Kafka refused even as dead letters (publish), and damaged bytes (journal).",
         "short", ("sum by (stage) (max_over_time(weni_edge_quarantined_total{@}[$__range]))", "{{stage}}"), bad_above=1, w=8, h=7),
)  # fmt: skip

KAFKA = row(
    "Kafka client",
    panel("Brokers connected", "Brokers that librdkafka is connected to.",
          "short", ("sum by (instance) (min_over_time(weni_edge_kafka_broker_up{@}[$__rate_interval]))", "{{instance}}"), min=0, decimals=0),
    panel("Round trips", "99th percentile in librdkafka's last statistics, to the slowest broker.",
          "s", (f"max by (instance) ({most(SLOWEST)})", "{{instance}}"), min=0),
    panel("Readers held", "For how long an open transaction has kept consumers with read_committed from new records. One minute pages.",
          "s", (f"max by (topic) ({most(f'weni_edge_kafka_stable_lag_seconds{{@, {TOPIC}}}')})", "{{topic}}"), min=0, bad_above=60),
)  # fmt: skip

RUNTIME = row(
    "Runtime",
    panel("CPU", "Cores in use. One core is enough for tens of thousands of callbacks a second.",
          "none", (rate("process_cpu_seconds_total", "instance"), "{{instance}}"), min=0, decimals=2, w=6),
    panel("Memory", "Resident memory. It does not grow with the backlog.",
          "bytes", ("process_resident_memory_bytes{@}", "{{instance}}"), min=0, w=6),
    panel("Open files and connections", "Open descriptors and calls in progress of all edges; the most connections of one public listener and their limit (one of HTTP/2 counts as 16). Evicted: connections that were closed for new ones at the limit.",
          "short", ("sum(process_open_fds{@})", "descriptors"), ("max(weni_edge_http_connections{@})", "connections of the fullest edge"),
          ("min(weni_edge_http_connections_max{@})", "limit of an edge"),
          ("sum(increase(weni_edge_http_connections_evicted_total{@}[$__rate_interval]))", "evicted"),
          ("sum(weni_edge_http_in_flight{@})", "in flight"), min=0, w=6),
    panel("Tasks", "Tasks of the async runtime, and those that wait for a worker.",
          "short", ("sum(tokio_alive_tasks{@})", "alive"), ("sum(tokio_global_queue_depth{@})", "queued"), min=0, w=6),
    panel("Log lines dropped", "Log lines that were dropped because the reader of stderr was too slow. The edge does not wait for it.",
          "cps", (rate("weni_edge_log_lines_dropped_total", "instance"), "{{instance}}"), min=0, w=6),
)  # fmt: skip

OVERVIEW = dashboard(
    "weni-edge-overview", "weni-edge: overview", "Whether the edge is well, and if not, where. Read from top to bottom.",
    HEALTH, TRAFFIC, ACCEPTANCE, JOURNAL, PUBLISHING, DEAD_LETTERS, KAFKA, RUNTIME,
)  # fmt: skip
