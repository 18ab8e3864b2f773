"""The journal and the Kafka client in detail: to find a cause."""

from panels import NONZERO, TOPIC, dashboard, most, panel, quantiles, rate, row, stat, table

EACH = "{{instance}}"
BROKER = "{{instance}} broker {{broker}}"


def mean(metric):
    return rate(f"{metric}_sum", "instance") + " / " + rate(f"{metric}_count", "instance")


def broker(title, description, metric):
    """Events a second of each broker."""
    return panel(title, description, "ops", (rate(metric, "instance, broker"), BROKER), min=0, w=6)


SPACE = row(
    "Journal: room",
    panel("Bytes", "Bytes of unsettled records and what is reserved for more, beside journal.max_bytes.",
          "bytes", ("weni_edge_journal_bytes{@}", f"{EACH} used"), ("weni_edge_journal_capacity_bytes{@}", f"{EACH} capacity"), min=0),
    panel("Segments", "Segment files of the journal, spare ones included.",
          "short", ("weni_edge_journal_segments{@}", EACH), min=0, decimals=0),
    panel("Oldest pending", "Age of the oldest accepted callback that is not in Kafka.",
          "s", (most("weni_edge_journal_oldest_pending_age_seconds{@}"), EACH), min=0, bad_above=300),
    panel("In and out", "Callbacks accepted and settled per second. If fewer are settled than accepted, the backlog grows.",
          "cps", (rate("weni_edge_callbacks_accepted_total"), "accepted"), (rate("weni_edge_callbacks_settled_total"), "settled"), min=0),
    panel("Recovered at the start", "Callbacks of earlier runs that were not settled when the journal was opened.",
          "short", ("weni_edge_callbacks_recovered_total{@}", EACH), min=0),
    panel("Unaccounted callbacks", "accepted + recovered - pending - settled since the start. Callbacks that move during a scrape make it differ from 0 for a moment. If it stays different, that is a defect.",
          "short", ("sum by (instance) (weni_edge_callbacks_accepted_total{@}) + on (instance) weni_edge_callbacks_recovered_total{@} - on (instance) weni_edge_journal_pending_callbacks{@} - on (instance) weni_edge_callbacks_settled_total{@}", EACH)),
)  # fmt: skip

DISK = row(
    "Journal: disk",
    panel("Append", "From the admission of a callback to the end of the sync that makes it durable.", "s", *quantiles("weni_edge_journal_append_seconds", "instance"), min=0),
    panel("Sync", "One sync of the journal's file. p99 above 250 ms opens a ticket.", "s",
          *quantiles("weni_edge_journal_sync_seconds", "instance"), min=0, bad_above=0.25),
    panel("Records in one sync", "Mean number of callbacks that share a sync. It grows with the load.",
          "short", (mean("weni_edge_journal_batch_records"), EACH), min=0),
    panel("Size of bodies", "Accepted bodies.", "bytes", *quantiles("weni_edge_http_request_body_bytes"), min=0),
    panel("Failed operations", "append: the process ends, and its restart recovers. read: the same, unless descriptors or memory are short. prepare, checkpoint: tried again every second. Each pages.",
          "short", ("sum by (instance, op) (increase(weni_edge_journal_errors_total{@}[$__rate_interval]))", f"{EACH} {{{{op}}}}"), min=0),
    panel("Damaged bytes", "Bytes that were damaged when the journal was opened. They were copied to its directory quarantine and cut.",
          "bytes", ("weni_edge_journal_corrupt_bytes_total{@}", EACH), min=0),
)  # fmt: skip

TRANSACTIONS = row(
    "Publishing",
    panel("Transactions, by outcome", "lost: the client was dropped; the next one reads Kafka's position to see whether the transaction was committed. That loses and doubles nothing.",
          "ops", (rate("weni_edge_transactions_total", "outcome"), "{{outcome}}"), min=0),
    panel("Duration of transactions", "From begin to commit.", "s", *quantiles("weni_edge_transaction_seconds"), min=0),
    panel("Records in one transaction", "Mean number of records in a committed transaction. It grows with the backlog.", "short", (mean("weni_edge_transaction_records"), EACH), min=0),
    panel("Errors, by librdkafka's code", "Failed attempts to publish, per second.", "ops", (rate("weni_edge_publish_errors_total", "reason"), "{{reason}}"), min=0),
    panel("Kafka clients opened, by reason", "Since the process started. start is normal, lost belongs to an outage, wedged and panic are defects.",
          "short", ("sum by (instance, reason) (weni_edge_producer_rebuilds_total{@})" + NONZERO, f"{EACH} {{{{reason}}}}"), min=0, decimals=0),
    panel("Answered, by whether Kafka had it", "Accepted callbacks, only with http.wait_for_kafka. `false`: the callback was on disk when it was answered, and not yet in Kafka.",
          "cps", (rate("weni_edge_callbacks_answered_total", "in_kafka"), "{{in_kafka}}"), min=0),
    panel("Since the last commit", "Two minutes page if callbacks wait.",
          "s", ("time() - weni_edge_last_publish_timestamp_seconds{@}", EACH), min=0),
    panel("Accepted to committed, by topic", "From acceptance to the commit in Kafka, 99th percentile.",
          "s", *list(quantiles("weni_edge_end_to_end_seconds", "topic", TOPIC))[1:], min=0, bad_above=5),
    panel("Readers held, by topic", "For how long an open transaction has kept consumers with read_committed from new records.",
          "s", (f"max by (topic) ({most(f'weni_edge_kafka_stable_lag_seconds{{@, {TOPIC}}}')})", "{{topic}}"), min=0, bad_above=60),
    stat("Position went back", "Openings since each edge started that found Kafka's position below the one that the journal knew as committed. Events were repeated.",
         "short", ("sum(max_over_time(weni_edge_position_went_back_total{@}[$__range]))", "openings"), bad_above=1, h=7),
    stat("Age of the statistics", "librdkafka gives statistics every few seconds. If they are old, so is the row below.",
         "s", ("time() - min(weni_edge_kafka_stats_timestamp_seconds{@} > 0)", "age"), bad_above=60, h=7),
)  # fmt: skip

BROKERS = row(
    "Kafka client, by broker",
    panel("Connected", "1 while librdkafka is connected to the broker.", "short", ("min_over_time(weni_edge_kafka_broker_up{@}[$__rate_interval])", BROKER), min=0, max=1, w=6),
    panel("Round trips", "99th percentile in the last statistics window.", "s", (most('weni_edge_kafka_rtt_seconds{@, quantile="0.99"}'), BROKER), min=0, w=6),
    panel("Throttled", "By the broker's quotas: 99th percentile in the last statistics window.", "s",
          (most('weni_edge_kafka_throttle_seconds{@, quantile="0.99"}'), BROKER), min=0, w=6),
    panel("Output buffer", "Messages that wait to be sent.", "short", (most("weni_edge_kafka_broker_outbuf_messages{@}"), BROKER), min=0, w=6),
    panel("Waiting for answers", "Requests in flight.", "short", (most("weni_edge_kafka_broker_waiting_responses{@}"), BROKER), min=0, w=6),
    broker("Requests that failed in sending", "Mostly because a connection broke.", "weni_edge_kafka_broker_tx_errors_total"),
    broker("Requests sent again", "Requests that librdkafka tried again after a temporary error.", "weni_edge_kafka_broker_retries_total"),
    broker("Requests that timed out", "The broker did not answer.", "weni_edge_kafka_broker_timeouts_total"),
    broker("Connections lost", "Includes idle connections that were closed.", "weni_edge_kafka_broker_disconnects_total"),
    table("Topics at risk", "Topics whose settings let Kafka lose what it acknowledged: too few replicas, min.insync.replicas of 1, unclean leader elections, compaction.",
          "short", f"max by (topic, risk) (weni_edge_kafka_topic_risky{{@, {TOPIC}}}) > 0", (), w=9),
    table("Configuration read", "1 if the configuration, its files of secrets and the certificate were last read without an error. 0 if the edge goes on with the old ones.",
          "short", "min by (instance) (weni_edge_config_last_reload_successful{@})", (), w=4),
    table("Certificates", "How long each instance's certificate is still valid. No data if the edge speaks plain HTTP.",
          "s", "max by (instance) (weni_edge_tls_certificate_not_after_seconds{@}) - time()", (), w=5),
    panel("Logins to the inspector", "Wrong tokens, and tries that were turned away because too many came at once, can be someone who guesses.",
          "short", ("sum by (outcome) (increase(weni_edge_admin_logins_total{@}[$__rate_interval]))", "{{outcome}}"), min=0, w=6),
)  # fmt: skip

DEPTH = dashboard(
    "weni-edge-depth", "weni-edge: journal and Kafka client", "Where callbacks wait, and why.",
    SPACE, DISK, TRANSACTIONS, BROKERS,
)  # fmt: skip
