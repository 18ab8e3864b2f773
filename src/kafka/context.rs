//! What librdkafka calls back with: refused records, errors, statistics, log lines.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Statistics, config::RDKafkaLogLevel, consumer::ConsumerContext,
    error::KafkaError, message::DeliveryResult, producer::ProducerContext, statistics::Window,
};

use super::{Blocked, Code, ErrorClass, Obstacle, classify, error::code, label};
use crate::metrics::Metrics;

/// Receives the callbacks on the thread that polls.
pub(super) struct PollContext {
    metrics: Arc<Metrics>,
    /// Number and code of each record that was not accepted.
    pub(super) reports: Mutex<Vec<(usize, Code)>>,
    trouble: Mutex<Option<Obstacle>>,
    totals: Mutex<Totals>,
}

impl PollContext {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        let (reports, trouble, totals) = Default::default();
        Self { metrics, reports, trouble, totals }
    }

    /// The obstacle in the client's own errors since the last call.
    pub(super) fn take_trouble(&self) -> Option<Obstacle> {
        self.trouble.lock().take()
    }
}

impl ClientContext for PollContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Debug => tracing::trace!(facility, message, "librdkafka"),
            _ => tracing::debug!(facility, message, "librdkafka"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        export(&mut self.totals.lock(), &statistics, &self.metrics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = code(&error);
        // The poll of a reader returns this too.
        if code == Code::PartitionEOF {
            return;
        }
        self.metrics.publish_errors_total.with_label_values(&[&label(code)]).inc();
        if let ErrorClass::Shared(blocked) = classify(code) {
            let mut trouble = self.trouble.lock();
            // "All brokers down" follows the error of one broker, which says why.
            let says_more = |known: &Obstacle| {
                matches!(known.blocked, Blocked::NotAuthorized | Blocked::Tls)
                    || code == Code::AllBrokersDown
            };
            if !trouble.as_ref().is_some_and(says_more) {
                // librdkafka names the broker, its address and the reason.
                *trouble = Some(Obstacle::new(blocked, reason));
            }
        }
        tracing::debug!(?code, reason, "librdkafka reports an error");
    }
}

impl ConsumerContext for PollContext {}

impl ProducerContext for PollContext {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        if let Err((error, _)) = result {
            self.reports.lock().push((number, code(error)));
        }
    }
}

/// A client's totals by broker: errors, retries, timeouts, disconnects. The metrics add the difference
/// to the last totals.
type Totals = HashMap<String, [u64; 4]>;

fn export(totals: &mut Totals, statistics: &Statistics, metrics: &Metrics) {
    const MICROSECONDS: f64 = 1e-6;
    const MILLISECONDS: f64 = 1e-3;
    metrics.kafka_stats_timestamp_seconds.set(statistics.time as f64);
    // Bootstrap and logical entries have the number -1: they are the same brokers again.
    for broker in statistics.brokers.values().filter(|broker| broker.nodeid >= 0) {
        let name = broker.nodeid.to_string();
        let up = matches!(broker.state.as_str(), "UP" | "UPDATE");
        for (gauge, value) in [
            (&metrics.kafka_broker_up, up.into()),
            (&metrics.kafka_broker_outbuf_messages, broker.outbuf_msg_cnt),
            (&metrics.kafka_broker_waiting_responses, broker.waitresp_cnt),
        ] {
            gauge.with_label_values(&[&name]).set(value);
        }
        let disconnects = broker.disconnects.unwrap_or(0).try_into().unwrap_or(0);
        let now = [broker.txerrs, broker.txretries, broker.req_timeouts, disconnects];
        let last = totals.insert(name.clone(), now).unwrap_or_default();
        let counters = [
            &metrics.kafka_broker_tx_errors_total,
            &metrics.kafka_broker_retries_total,
            &metrics.kafka_broker_timeouts_total,
            &metrics.kafka_broker_disconnects_total,
        ];
        for ((counter, now), last) in counters.into_iter().zip(now).zip(last) {
            counter.with_label_values(&[&name]).inc_by(now.saturating_sub(last));
        }
        for (gauge, window, unit) in [
            (&metrics.kafka_rtt_seconds, &broker.rtt, MICROSECONDS),
            (&metrics.kafka_throttle_seconds, &broker.throttle, MILLISECONDS),
        ] {
            let Some(Window { p50, p95, p99, .. }) = *window else { continue };
            for (quantile, value) in [("0.5", p50), ("0.95", p95), ("0.99", p99)] {
                gauge.with_label_values(&[&name, quantile]).set(value as f64 * unit);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::statistics::Broker;

    use super::*;

    fn statistics(retries: u64) -> Statistics {
        let broker = Broker {
            nodeid: 1,
            state: "UP".to_owned(),
            txretries: retries,
            rtt: Some(Window { p99: 2_500, ..Window::default() }),
            throttle: Some(Window { p99: 2_500, ..Window::default() }),
            ..Broker::default()
        };
        let bootstrap = Broker { nodeid: -1, ..Broker::default() };
        let brokers = [("a".to_owned(), broker), ("b".to_owned(), bootstrap)].into();
        Statistics { brokers, time: 1_763_842_387, ..Statistics::default() }
    }

    #[test]
    fn units_are_seconds_and_totals_count_differences() {
        let metrics = Metrics::default();
        let mut totals = Totals::new();
        export(&mut totals, &statistics(3), &metrics);
        export(&mut totals, &statistics(5), &metrics);
        let label = ["1", "0.99"];
        assert_eq!(metrics.kafka_rtt_seconds.with_label_values(&label).get(), 0.0025);
        assert_eq!(metrics.kafka_throttle_seconds.with_label_values(&label).get(), 2.5);
        assert_eq!(metrics.kafka_broker_retries_total.with_label_values(&["1"]).get(), 5);
        assert_eq!(metrics.kafka_broker_up.with_label_values(&["1"]).get(), 1);
        assert_eq!(metrics.kafka_stats_timestamp_seconds.get(), 1_763_842_387.0);
    }

    #[test]
    fn bootstrap_entries_are_no_brokers() {
        let metrics = Metrics::default();
        export(&mut Totals::new(), &statistics(0), &metrics);
        let text = metrics.encode();
        assert!(text.contains("kafka_broker_up{broker=\"1\"}"));
        assert!(!text.contains("broker=\"-1\""));
    }
}
