//! Every metric of the program: name, labels and help text.
//!
//! The name of a field is the metric's name without the prefix `weni_edge_`, and its doc comment is
//! the help text. Each [`Metrics`] has its own registry, so that parallel tests do not collide.
//!
//! A label whose values are known has series at 0 from the start: those given here, and those of an enum
//! from the room of that enum.
//!
//! **Invariant:** labels are closed sets. Nothing that a caller chooses becomes a label.

use std::{
    collections::HashSet,
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
    core::Collector,
    proto::{Metric, MetricFamily},
};
use tokio::runtime::RuntimeMetrics;

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
    ($( $(#[doc = $help:literal])+ $name:ident: $kind:ident $( [$($label:literal),*] )? $( in $buckets:ident )? $( = $values:expr )?; )+) => {
        /// All metrics, registered and ready to be counted.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            /// Sources that a reload has taken away.
            removed_sources: Mutex<HashSet<String>>,
            tokio: [IntGauge; TOKIO.len()],
            $( $(#[doc = $help])+ pub $name: $kind, )+
        }

        impl Default for Metrics {
            fn default() -> Self {
                let registry = Registry::new();
                let metrics = Self {
                    $( $name: {
                        let name = concat!("weni_edge_", stringify!($name));
                        let opts = Opts::new(name, concat!($($help),+).trim());
                        $( let opts = HistogramOpts::from(opts).buckets($buckets.into()); )?
                        add(&registry, made!($kind, opts $(, [$($label),*])?))
                    }, )+
                    tokio: TOKIO.map(|(name, help)| {
                        add(&registry, IntGauge::with_opts(Opts::new(name, help)))
                    }),
                    removed_sources: Mutex::default(),
                    registry,
                };
                $( $( for value in $values {
                    metrics.$name.with_label_values(&[value]);
                } )? )+
                metrics.start();
                metrics
            }
        }
    };
}

/// A metric with the labels of its kind, if it has any.
macro_rules! made {
    ($kind:ident, $opts:ident) => {
        $kind::with_opts($opts)
    };
    ($kind:ident, $opts:ident, [$($label:literal),*]) => {
        $kind::new($opts, &[$($label),*])
    };
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
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
    /// Open connections of the public listener; one of HTTP/2 counts as 16.
    http_connections: IntGauge;
    /// The most connections of the public listener: http.max_connections, or what the limit of open files leaves.
    http_connections_max: IntGauge;
    /// Idle connections of the public listener that were closed for new ones, at the limit.
    http_connections_evicted_total: IntCounter;
    /// Calls that were not accepted, by source and reason.
    http_rejections_total: IntCounterVec["source", "reason"];
    /// Callbacks that are durable in the journal.
    callbacks_accepted_total: IntCounterVec["source"];
    /// Accepted callbacks by whether they were in Kafka when they were answered; only with http.wait_for_kafka.
    callbacks_answered_total: IntCounterVec["in_kafka"];
    /// Callbacks whose transaction is committed.
    callbacks_settled_total: IntCounter;
    /// Callbacks of earlier runs that were found unsettled when the journal was opened.
    callbacks_recovered_total: IntCounter;
    /// From an element's own timestamp (the sender's clock) to acceptance; not of the history's messages.
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
    /// From the admission of a record to its durability.
    journal_append_seconds: Histogram in SECONDS;
    /// One sync of the journal's file.
    journal_sync_seconds: Histogram in SECONDS;
    /// Records that one sync made durable.
    journal_batch_records: Histogram in COUNTS;
    /// Bytes that were damaged, copied to quarantine and cut when the journal was opened.
    journal_corrupt_bytes_total: IntCounter;
    /// Files put into quarantine: journal (damaged bytes), publish (a record that Kafka refused even as a dead letter, or a journal record that this program cannot read).
    quarantined_total: IntCounterVec["stage"] = ["journal", "publish"];
    /// Failed operations of the journal: append, prepare, checkpoint, read.
    journal_errors_total: IntCounterVec["op"] = ["append", "prepare", "checkpoint", "read"];
    /// What callbacks held, counted once when the callback is settled: published, dead_lettered, empty, quarantined, already_committed, left_out (by a fork that was asked to).
    items_total: IntCounterVec["kind", "outcome"];
    /// Committed records by topic.
    publish_records_total: IntCounterVec["topic"];
    /// Failures of publishing by librdkafka's code.
    publish_errors_total: IntCounterVec["reason"];
    /// Kafka transactions: committed, aborted, or lost (the client was dropped; the position tells what became of it).
    transactions_total: IntCounterVec["outcome"] = ["committed", "aborted", "lost"];
    /// From the begin of a transaction to its commit.
    transaction_seconds: Histogram in SECONDS;
    /// Records of a committed transaction.
    transaction_records: Histogram in COUNTS;
    /// From acceptance of a callback to its commit in Kafka.
    end_to_end_seconds: HistogramVec["topic"] in LAG_SECONDS;
    /// 1 while nothing is published, by reason.
    publish_blocked: IntGaugeVec["reason"];
    /// When the last transaction was committed, in seconds since 1970.
    last_publish_timestamp_seconds: Gauge;
    /// Kafka clients opened, by reason: start, lost, wedged, panic.
    producer_rebuilds_total: IntCounterVec["reason"] = ["start", "lost", "wedged", "panic"];
    /// Published status updates by status.
    statuses_total: IntCounterVec["status"];
    /// Published failed statuses by Meta's error code, where it is a known one, and by whose fault it is: recipient, sender, template, account, rate, meta, unknown.
    failed_statuses_total: IntCounterVec["code", "fault"];
    /// Published statuses that say what a message costs, by Meta's pricing type and category.
    status_pricing_total: IntCounterVec["source", "type", "category"];
    /// Callbacks with something that the edge does not know; it is published as one event, the remainder.
    callback_remainders_total: IntCounter;
    /// Dead letters by reason and by the stage that made them: normalize, publish.
    dead_letters_total: IntCounterVec["reason", "stage"];
    /// How long readers of committed records have been held at one place of a topic.
    kafka_stable_lag_seconds: GaugeVec["topic"];
    /// How often Kafka's position was below the one that the edge knew as committed.
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
    /// 1 if the configuration, its files of secrets and the certificate were last read without an error.
    config_last_reload_successful: IntGauge;
    /// Logins to the inspector: accepted, wrong, throttled (too many at once).
    admin_logins_total: IntCounterVec["outcome"] = ["accepted", "wrong", "throttled"];
    /// Lines of the log that were dropped because the reader of stderr did not keep up.
    log_lines_dropped_total: IntCounter;
}

/// What tokio reports, under the names that other programs use too: without the prefix.
const TOKIO: [(&str, &str); 3] = [
    ("tokio_workers", "Worker threads of the runtime."),
    ("tokio_alive_tasks", "Tasks that have not ended."),
    ("tokio_global_queue_depth", "Tasks in the queue that all workers share."),
];

impl Metrics {
    /// Now in seconds since 1970, for metrics of time.
    pub fn now_seconds() -> f64 {
        // A clock before 1970 counts as 1970, and the metric shows it.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    }

    /// Updates the metrics of the async runtime.
    pub fn observe_runtime(&self, now: &RuntimeMetrics) {
        let now = [now.num_workers(), now.num_alive_tasks(), now.global_queue_depth()];
        for (gauge, value) in self.tokio.iter().zip(now) {
            gauge.set(value as i64);
        }
    }

    /// The reason of `publish_blocked` that is set; none while something is published.
    pub fn why_blocked(&self) -> Option<String> {
        let reasons = self.publish_blocked.collect();
        let mut reasons = reasons.iter().flat_map(MetricFamily::get_metric);
        let set = reasons.find(|reason| reason.get_gauge().get_value() != 0.0)?;
        Some(set.get_label().first()?.value().to_owned())
    }

    /// All metrics in Prometheus' text format, those of the process and of tokio included.
    pub fn encode(&self) -> String {
        // INVARIANT: it fails only for a family without a name or without series, and none is shown.
        TextEncoder::new().encode_to_string(&self.shown()).expect("metrics as text")
    }

    /// Takes up which sources a reload has taken away or brought back. Series are hidden and not
    /// deleted: calls in progress and pending callbacks of a source that is gone still count.
    pub fn remove_sources<'a>(
        &self,
        before: impl Iterator<Item = &'a String>,
        is_configured: impl Fn(&String) -> bool,
    ) {
        let mut removed = self.removed_sources.lock();
        removed.extend(before.cloned());
        removed.retain(|source| !is_configured(source));
    }

    /// All metrics without those of removed sources. Their accepted callbacks stay, because the
    /// account of callbacks is the sum over all sources.
    fn shown(&self) -> Vec<MetricFamily> {
        let removed = self.removed_sources.lock();
        let mut families = self.registry.gather();
        if removed.is_empty() {
            return families;
        }
        let is_shown = |metric: &Metric| {
            let mut labels = metric.get_label().iter();
            !labels.any(|label| label.name() == "source" && removed.contains(label.value()))
        };
        for family in &mut families {
            if family.name() != "weni_edge_callbacks_accepted_total" {
                family.mut_metric().retain(is_shown);
            }
        }
        // The encoder refuses a family without series.
        families.retain(|family| !family.get_metric().is_empty());
        families
    }

    /// Shows the versions. The revision is `WENI_EDGE_REVISION` at build time.
    pub fn set_build_info(&self, librdkafka: &str) {
        let revision = option_env!("WENI_EDGE_REVISION").unwrap_or("unknown");
        let labels = [env!("CARGO_PKG_VERSION"), revision, librdkafka];
        self.build_info.with_label_values(&labels).set(1);
    }

    fn start(&self) {
        self.config_last_reload_successful.set(1);
        self.last_publish_timestamp_seconds.set(Self::now_seconds());
        self.kafka_stats_timestamp_seconds.set(Self::now_seconds());
        let process = prometheus::process_collector::ProcessCollector::for_self();
        // INVARIANT: registered once, in a registry that is new.
        self.registry.register(Box::new(process)).expect("the process's metrics");
    }
}

/// Label `source` of calls that name no configured source.
pub const UNKNOWN_SOURCE: &str = "unknown";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_sets_are_there_from_the_start_and_what_is_not_configured_is_not() {
        let text = Metrics::default().encode();
        for line in [
            "weni_edge_callbacks_settled_total 0",
            "weni_edge_quarantined_total{stage=\"publish\"} 0",
            "weni_edge_transactions_total{outcome=\"committed\"} 0",
        ] {
            assert!(text.contains(line), "{line}");
        }
        assert!(!text.contains("tls_certificate_not_after_seconds"));
    }
}
