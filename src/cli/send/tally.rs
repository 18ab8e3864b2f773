//! What became of the calls.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use crate::cli::courier::{Answer, Failure};

/// The longest latency that is told apart: more than a call's timeout.
const MICROS_MAX: u64 = 120_000_000;
const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

/// Counts of all calls that are over.
pub(super) struct Tally {
    accepted: u64,
    refused: BTreeMap<StatusCode, u64>,
    failed: BTreeMap<Failure, u64>,
    /// Of answered calls, in microseconds.
    latency: Histogram<u64>,
    receipts: Option<BufWriter<File>>,
    /// The first error in writing receipts.
    receipts_error: Option<anyhow::Error>,
}

#[derive(Deserialize)]
struct Accepted<'a> {
    receipt: &'a str,
}

impl Tally {
    pub(super) fn new(receipts: Option<File>) -> Self {
        // INVARIANT: one microsecond to two minutes in three digits is a valid range.
        let latency = Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("a valid range");
        Self {
            accepted: 0,
            refused: BTreeMap::new(),
            failed: BTreeMap::new(),
            latency,
            receipts: receipts.map(BufWriter::new),
            receipts_error: None,
        }
    }

    pub(super) fn count(&mut self, name: &str, took: Duration, answer: Result<Answer, Failure>) {
        match answer {
            Err(failure) => *self.failed.entry(failure).or_default() += 1,
            Ok(answer) => {
                self.latency.saturating_record(took.as_micros() as u64);
                if answer.status.is_success() {
                    self.accepted += 1;
                    self.write_receipt(name, &answer.body);
                } else {
                    *self.refused.entry(answer.status).or_default() += 1;
                }
            }
        }
    }

    fn write_receipt(&mut self, name: &str, body: &Bytes) {
        let Some(receipts) = &mut self.receipts else { return };
        let receipt = serde_json::from_slice(body).map_or("-", |Accepted { receipt }| receipt);
        if let Err(error) = writeln!(receipts, "{receipt}\t{name}") {
            self.receipts_error.get_or_insert(error.into());
        }
    }

    /// Calls that are over.
    pub(super) fn total(&self) -> u64 {
        self.accepted + self.refused.values().sum::<u64>() + self.failed.values().sum::<u64>()
    }

    /// Whether there were calls and each of them was accepted.
    pub(super) fn is_clean(&self) -> bool {
        self.accepted > 0 && self.accepted == self.total()
    }

    /// Writes what receipts are left in memory.
    pub(super) fn close(&mut self) -> anyhow::Result<()> {
        let flushed = self.receipts.take().map_or(Ok(()), |mut receipts| receipts.flush());
        let error = self.receipts_error.take();
        error.map_or(flushed.map_err(Into::into), Err).context("cannot write the receipts")
    }

    pub(super) fn json(&self, elapsed: Duration) -> serde_json::Value {
        let refused: BTreeMap<_, _> =
            self.refused.iter().map(|(status, count)| (status.as_str(), count)).collect();
        let latency: BTreeMap<_, _> =
            QUANTILES.iter().map(|(name, quantile)| (name, self.millis(*quantile))).collect();
        json!({
            "calls": self.total(),
            "accepted": self.accepted,
            "refused": refused,
            "failed": self.failed,
            "seconds": elapsed.as_secs_f64(),
            "calls_per_second": self.rate(elapsed),
            "latency_ms": latency,
        })
    }

    pub(super) fn human(&self, elapsed: Duration) -> String {
        let mut text = format!("accepted  {}\n", self.accepted);
        for (status, count) in &self.refused {
            text += &format!("refused   {count}  {status}\n");
        }
        for (failure, count) in &self.failed {
            text += &format!("failed    {count}  {failure}\n");
        }
        let (rate, seconds) = (self.rate(elapsed), elapsed.as_secs_f64());
        text += &format!("rate      {rate:.0} calls/s in {seconds:.1} s\n");
        if !self.latency.is_empty() {
            let shown =
                QUANTILES.map(|(name, quantile)| format!("{name} {:.2} ms", self.millis(quantile)));
            text += &format!("latency   {}\n", shown.join("   "));
        }
        text
    }

    fn millis(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }

    fn rate(&self, elapsed: Duration) -> f64 {
        self.total() as f64 / elapsed.as_secs_f64().max(f64::EPSILON)
    }
}
