//! What librdkafka calls back with: refused records, errors, statistics, log lines.

use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Statistics, config::RDKafkaLogLevel, consumer::ConsumerContext,
    error::KafkaError, message::DeliveryResult, producer::ProducerContext,
};

use super::{
    Blocked, Code, ErrorClass, Obstacle, classify, error::code, label, statistics::Exporter,
};
use crate::metrics::Metrics;

/// Receives the callbacks on the thread that polls.
pub(super) struct PollContext {
    metrics: Arc<Metrics>,
    /// Number and code of each record that was not accepted.
    pub(super) reports: Mutex<Vec<(usize, Code)>>,
    trouble: Mutex<Option<Obstacle>>,
    statistics: Mutex<Exporter>,
}

impl PollContext {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        let (reports, trouble, statistics) = Default::default();
        Self { metrics, reports, trouble, statistics }
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
        self.statistics.lock().export(&statistics, &self.metrics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = code(&error);
        // A reader's news, which its poll brings too.
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
