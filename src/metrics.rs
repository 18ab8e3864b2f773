//! Every metric of the program: name, labels and help text live here and nowhere else.
//!
//! A field's name is the metric's name without the prefix `weni_edge_`, its doc comment the help
//! text. Each [`Metrics`] has a registry of its own, so that parallel tests do not collide.
//!
//! **Invariant:** labels are closed sets. Nothing that a caller chooses becomes a label.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Seconds, from 100 µs to a minute: appends, requests, transactions.
const SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0,
];
/// Seconds, from 5 ms to an hour: what outages stretch.
const LAG_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
];
const BYTES: &[f64] = &[256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0];
const COUNTS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0];

macro_rules! metrics {
    ($( $(#[doc = $help:literal])+ $name:ident: $kind:ident $( [$($label:literal),*] )? $( in $buckets:ident )?; )+) => {
        /// All metrics, registered and ready to be counted.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            /// Of the async runtime.
            pub runtime: Runtime,
            $( $(#[doc = $help])+ pub $name: $kind, )+
        }

        impl Default for Metrics {
            /// Registers every metric.
            ///
            /// # Panics
            /// Only if two metrics have one name, which the first test would show.
            fn default() -> Self {
                let registry = Registry::new();
                let metrics = Self {
                    $( $name: register!(
                        registry, $kind, concat!("weni_edge_", stringify!($name)),
                        concat!($($help),+).trim() $(, [$($label),*])? $(, in $buckets)?
                    ), )+
                    runtime: Runtime::new(&registry),
                    registry,
                };
                metrics.start_at_zero();
                metrics
            }
        }
    };
}

/// Makes one metric of its kind and registers it.
macro_rules! register {
    ($registry:ident, $kind:ident, $name:expr, $help:expr) => {
        add(&$registry, $kind::with_opts(Opts::new($name, $help)))
    };
    ($registry:ident, $kind:ident, $name:expr, $help:expr, in $buckets:ident) => {
        add(&$registry, $kind::with_opts(HistogramOpts::new($name, $help).buckets($buckets.into())))
    };
    ($registry:ident, $kind:ident, $name:expr, $help:expr, [$($label:literal),*]) => {
        add(&$registry, $kind::new(Opts::new($name, $help), &[$($label),*]))
    };
    ($registry:ident, $kind:ident, $name:expr, $help:expr, [$($label:literal),*], in $buckets:ident) => {
        add(&$registry, $kind::new(HistogramOpts::new($name, $help).buckets($buckets.into()), &[$($label),*]))
    };
}

fn add<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<C>,
) -> C {
    // INVARIANT: names and labels are literals of this file; the first test makes them all.
    let collector = made.expect("a valid metric");
    registry.register(Box::new(collector.clone())).expect("a metric registered once");
    collector
}

metrics! {
    /// Requests to the public listener, by configured source (`unknown` otherwise), method and status code.
    http_requests_total: IntCounterVec["source", "method", "code"];
    /// From the head of a request to the head of its answer, in seconds.
    http_request_duration_seconds: HistogramVec["source"] in SECONDS;
    /// Size of accepted bodies.
    http_request_body_bytes: Histogram in BYTES;
    /// Requests being handled.
    http_in_flight: IntGauge;
    /// Open connections of the public listener.
    http_connections: IntGauge;
    /// Calls that were not accepted: auth, unknown_source, too_large, timeout, journal_full, journal_slow, overloaded, malformed.
    http_rejections_total: IntCounterVec["source", "reason"];
    /// Callbacks that are durable in the journal.
    callbacks_accepted_total: IntCounterVec["source"];
    /// Accepted callbacks by whether they were in Kafka when they were answered; only with http.wait_for_kafka.
    callbacks_answered_total: IntCounterVec["in_kafka"];
    /// Callbacks whose transaction is committed.
    callbacks_settled_total: IntCounter;
    /// Callbacks of earlier runs that were found unsettled when the journal was opened.
    callbacks_recovered_total: IntCounter;
    /// From the callback's own timestamp (the sender's clock) to acceptance.
    source_lag_seconds: HistogramVec["source"] in LAG_SECONDS;
    /// When a source's last callback was accepted, in seconds since 1970.
    last_callback_timestamp_seconds: GaugeVec["source"];
    /// Durable callbacks that are not settled, counted from the journal's positions.
    journal_pending_callbacks: IntGauge;
    /// Bytes of the journal's unsettled records and what is reserved for more.
    journal_bytes: IntGauge;
    /// The most that the journal may hold.
    journal_capacity_bytes: IntGauge;
    /// Segment files, spare ones included.
    journal_segments: IntGauge;
    /// Age of the oldest callback that is not settled; 0 when there is none.
    journal_oldest_pending_age_seconds: Gauge;
    /// From an append's admission to its durability.
    journal_append_seconds: Histogram in SECONDS;
    /// One sync of the journal's file.
    journal_sync_seconds: Histogram in SECONDS;
    /// Records that one sync made durable.
    journal_batch_records: Histogram in COUNTS;
    /// Bytes that were damaged, copied to quarantine and cut when the journal was opened.
    journal_corrupt_bytes_total: IntCounter;
    /// Files put into quarantine: journal (damaged bytes), publish (a record that Kafka refused even as a dead letter).
    quarantined_total: IntCounterVec["stage"];
    /// Failed operations of the journal: append, prepare, checkpoint, read.
    journal_errors_total: IntCounterVec["op"];
    /// What callbacks held, counted once when the callback is settled: published, dead_lettered, duplicate, empty, quarantined, already_committed, left_out (by a fork that was asked to).
    items_total: IntCounterVec["kind", "outcome"];
    /// Committed records by topic.
    publish_records_total: IntCounterVec["topic"];
    /// Failures of publishing by librdkafka's code.
    publish_errors_total: IntCounterVec["reason"];
    /// Kafka transactions: committed, aborted, or lost (the client was dropped; the position tells what became of it).
    transactions_total: IntCounterVec["outcome"];
    /// From the begin of a transaction to its commit.
    transaction_seconds: Histogram in SECONDS;
    /// Records of a committed transaction.
    transaction_records: Histogram in COUNTS;
    /// From acceptance of a callback to its commit in Kafka.
    end_to_end_seconds: HistogramVec["topic"] in LAG_SECONDS;
    /// 1 while nothing moves, and why.
    publish_blocked: IntGaugeVec["reason"];
    /// When the last transaction was committed, in seconds since 1970.
    last_publish_timestamp_seconds: Gauge;
    /// Kafka clients made anew, and why: start, lost, wedged, panic.
    producer_rebuilds_total: IntCounterVec["reason"];
    /// Published status updates by status.
    statuses_total: IntCounterVec["status"];
    /// Published failed statuses by Meta's error code, where it is a known one.
    failed_statuses_total: IntCounterVec["code"];
    /// Dead letters by reason and by the stage that made them: normalize, publish.
    dead_letters_total: IntCounterVec["reason", "stage"];
    /// How long readers of committed records have been held at one place of a topic.
    kafka_stable_lag_seconds: GaugeVec["topic"];
    /// Openings at which Kafka's position was below what was known as committed.
    position_went_back_total: IntCounter;
    /// 1 where a topic is set up so that Kafka may lose what it acknowledged: replication, min_insync, unclean, compacted.
    kafka_topic_risky: IntGaugeVec["topic", "risk"];
    /// 1 while librdkafka is connected to the broker.
    kafka_broker_up: IntGaugeVec["broker"];
    /// Messages that wait in the broker's output buffer.
    kafka_broker_outbuf_messages: IntGaugeVec["broker"];
    /// Requests in flight to the broker.
    kafka_broker_waiting_responses: IntGaugeVec["broker"];
    /// Requests that failed in sending.
    kafka_broker_tx_errors_total: IntCounterVec["broker"];
    /// Requests sent again.
    kafka_broker_retries_total: IntCounterVec["broker"];
    /// Requests that timed out.
    kafka_broker_timeouts_total: IntCounterVec["broker"];
    /// Connections lost.
    kafka_broker_disconnects_total: IntCounterVec["broker"];
    /// Round trips to the broker in the last statistics window, by quantile.
    kafka_rtt_seconds: GaugeVec["broker", "quantile"];
    /// Throttling by the broker in the last statistics window, by quantile.
    kafka_throttle_seconds: GaugeVec["broker", "quantile"];
    /// When librdkafka last gave statistics, in seconds since 1970.
    kafka_stats_timestamp_seconds: Gauge;
    /// Always 1; what runs.
    build_info: IntGaugeVec["version", "revision", "librdkafka"];
    /// 1 while a part of readiness holds: journal, room, serving.
    ready: IntGaugeVec["check"];
    /// When the served certificate expires, in seconds since 1970.
    tls_certificate_not_after_seconds: GaugeVec[];
    /// 1 if the configuration was last read without an error.
    config_last_reload_successful: IntGauge;
}

/// What tokio tells of itself, under the names that other programs use too: without the prefix.
#[derive(Debug)]
pub struct Runtime {
    workers: IntGauge,
    alive_tasks: IntGauge,
    global_queue_depth: IntGauge,
}

impl Runtime {
    fn new(registry: &Registry) -> Self {
        let gauge =
            |name: &str, help: &str| add(registry, IntGauge::with_opts(Opts::new(name, help)));
        Self {
            workers: gauge("tokio_workers", "Worker threads of the runtime."),
            alive_tasks: gauge("tokio_alive_tasks", "Tasks that have not ended."),
            global_queue_depth: gauge(
                "tokio_global_queue_depth",
                "Tasks in the queue that all workers share.",
            ),
        }
    }

    /// Takes the runtime's figures as they are now.
    pub fn observe(&self, now: &tokio::runtime::RuntimeMetrics) {
        self.workers.set(now.num_workers() as i64);
        self.alive_tasks.set(now.num_alive_tasks() as i64);
        self.global_queue_depth.set(now.global_queue_depth() as i64);
    }
}

/// The closed sets of label values: all of them are exported from the start, at 0.
mod labels {
    pub(super) const REJECTIONS: &[&str] = &[
        "auth",
        "unknown_source",
        "too_large",
        "timeout",
        "journal_full",
        "journal_slow",
        "overloaded",
        "malformed",
    ];
    pub(super) const OUTCOMES: &[&str] = &["published", "duplicate"];
    pub(super) const KINDS: &[&str] = &[
        "message_status",
        "inbound_message",
        "call",
        "call_status",
        "payment_status",
        "echo",
        "history_message",
        "channel_event",
    ];
    pub(super) const STATUSES: &[&str] =
        &["sent", "delivered", "read", "played", "failed", "other"];
    pub(super) const BLOCKED: &[&str] = &[
        "no_broker",
        "not_authorized",
        "group_not_authorized",
        "position_unreadable",
        "unknown_topic",
        "topic_refuses",
        "too_slow",
        "clock",
        "no_transactions",
        "journal_diverged",
        "position_reset",
        "cluster_changed",
        "publisher_wedged",
        "kafka_error",
    ];
    pub(super) const DEAD_NORMALIZE: &[&str] = &[
        "invalid_json",
        "unrecognized",
        "not_an_object",
        "missing_id",
        "missing_status",
        "bad_encoding",
        "too_many_elements",
    ];
    pub(super) const DEAD_PUBLISH: &[&str] = &["too_large", "refused", "unroutable", "panic"];
}

impl Metrics {
    /// Seconds since 1970 now, as timestamp metrics want it.
    pub fn now_seconds() -> f64 {
        // INVARIANT: a clock before 1970 is taken as 1970; the metric is then plainly wrong.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    }

    /// Makes a source's series appear, so that a rate over its first call is right.
    pub fn add_source(&self, source: &str) {
        for reason in labels::REJECTIONS {
            self.http_rejections_total.with_label_values(&[source, reason]);
        }
        if source == UNKNOWN_SOURCE {
            return;
        }
        self.callbacks_accepted_total.with_label_values(&[source]);
        let last = self.last_callback_timestamp_seconds.with_label_values(&[source]);
        if last.get() == 0.0 {
            last.set(Self::now_seconds());
        }
    }

    /// All metrics in Prometheus' text format, those of the process and of tokio included.
    ///
    /// # Errors
    /// Only if a metric cannot be written as text.
    pub fn encode(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::with_capacity(64 * 1024);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    /// Says what runs; the revision is known where `WENI_EDGE_REVISION` was set when it was built.
    pub fn set_build_info(&self, librdkafka: &str) {
        let revision = option_env!("WENI_EDGE_REVISION").unwrap_or("unknown");
        let labels = [env!("CARGO_PKG_VERSION"), revision, librdkafka];
        self.build_info.with_label_values(&labels).set(1);
    }

    fn start_at_zero(&self) {
        self.add_source(UNKNOWN_SOURCE);
        for kind in labels::KINDS {
            for outcome in labels::OUTCOMES {
                self.items_total.with_label_values(&[kind, outcome]);
            }
        }
        for outcome in ["dead_lettered", "empty", "quarantined", "already_committed", "left_out"] {
            self.items_total.with_label_values(&["none", outcome]);
        }
        for status in labels::STATUSES {
            self.statuses_total.with_label_values(&[status]);
        }
        for reason in labels::BLOCKED {
            self.publish_blocked.with_label_values(&[reason]);
        }
        for (stage, reasons) in
            [("normalize", labels::DEAD_NORMALIZE), ("publish", labels::DEAD_PUBLISH)]
        {
            for reason in reasons {
                self.dead_letters_total.with_label_values(&[reason, stage]);
            }
        }
        for outcome in ["committed", "aborted", "lost"] {
            self.transactions_total.with_label_values(&[outcome]);
        }
        for reason in ["start", "lost", "wedged", "panic"] {
            self.producer_rebuilds_total.with_label_values(&[reason]);
        }
        for op in ["append", "prepare", "checkpoint", "read"] {
            self.journal_errors_total.with_label_values(&[op]);
        }
        for stage in ["journal", "publish"] {
            self.quarantined_total.with_label_values(&[stage]);
        }
        for check in ["journal", "room", "serving"] {
            self.ready.with_label_values(&[check]);
        }
        self.config_last_reload_successful.set(1);
        self.last_publish_timestamp_seconds.set(Self::now_seconds());
        self.kafka_stats_timestamp_seconds.set(Self::now_seconds());
        let process = prometheus::process_collector::ProcessCollector::for_self();
        // INVARIANT: registered once, in a registry that is new.
        self.registry.register(Box::new(process)).expect("the process's metrics");
    }
}

/// Label of what came for a source that is not configured.
pub const UNKNOWN_SOURCE: &str = "unknown";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_sets_are_there_from_the_start_and_what_is_not_configured_is_not() {
        let text = String::from_utf8(Metrics::default().encode().unwrap()).unwrap();
        for line in [
            "weni_edge_callbacks_settled_total 0",
            "weni_edge_publish_blocked{reason=\"no_broker\"} 0",
            "weni_edge_http_rejections_total{reason=\"unknown_source\",source=\"unknown\"} 0",
            "weni_edge_transactions_total{outcome=\"committed\"} 0",
        ] {
            assert!(text.contains(line), "{line}");
        }
        assert!(!text.contains("tls_certificate_not_after_seconds"));
    }
}
