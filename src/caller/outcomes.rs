//! Counts what happened to calls.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, BufWriter, Write},
    mem,
    time::Duration,
};

use hdrhistogram::Histogram;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::client::{Answer, CallError, CallFailure};

/// The longest latency that is recorded as it is: twice a call's timeout.
const MICROS_MAX: u64 = 120_000_000;
const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

/// Counts calls that have ended.
pub struct Outcomes {
    summary: Summary,
    /// Of answered calls, in microseconds.
    latency: Histogram<u64>,
    /// The first write error ends the file.
    receipts: io::Result<Option<BufWriter<File>>>,
}

/// The counts as `send --output json` prints them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// All that were made.
    pub calls: u64,
    /// Answered 2xx.
    pub accepted: u64,
    /// Answered otherwise, by status code.
    pub refused: BTreeMap<u16, u64>,
    /// Not answered.
    pub failed: BTreeMap<CallFailure, u64>,
    /// What the system or TLS says of the first such call.
    pub causes: BTreeMap<CallFailure, String>,
    /// From the first call to the last answer.
    pub seconds: f64,
    /// Made in that time.
    pub calls_per_second: f64,
    /// Quantiles by name, such as `p99`.
    pub latency_ms: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Accepted<'a> {
    receipt: &'a str,
}

impl Outcomes {
    /// `receipts` gets a line for each accepted call: its receipt, a tab, and the body's name.
    pub fn new(receipts: Option<File>) -> Self {
        // INVARIANT: one microsecond to two minutes in three digits is a valid range.
        let latency = Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("a valid range");
        let receipts = Ok(receipts.map(BufWriter::new));
        Self { summary: Summary::default(), latency, receipts }
    }

    /// Counts one call. `name` is its body's.
    pub fn count(&mut self, name: &str, took: Duration, answer: Result<Answer, CallError>) {
        self.summary.calls += 1;
        match answer {
            Err(CallError { failure, cause }) => {
                *self.summary.failed.entry(failure).or_default() += 1;
                if let Some(cause) = cause {
                    self.summary.causes.entry(failure).or_insert_with(|| cause.to_string());
                }
            }
            Ok(answer) => {
                self.latency.saturating_record(took.as_micros() as u64);
                if answer.status().is_success() {
                    self.summary.accepted += 1;
                    self.write_receipt(name, answer.body());
                } else {
                    *self.summary.refused.entry(answer.status().as_u16()).or_default() += 1;
                }
            }
        }
    }

    fn write_receipt(&mut self, name: &str, body: &[u8]) {
        let Ok(Some(receipts)) = &mut self.receipts else { return };
        let receipt = serde_json::from_slice(body).map_or("-", |Accepted { receipt }| receipt);
        if let Err(error) = writeln!(receipts, "{receipt}\t{name}") {
            self.receipts = Err(error);
        }
    }

    /// Calls that have ended.
    pub fn total(&self) -> u64 {
        self.summary.calls
    }

    /// Writes the receipts that are still in memory.
    ///
    /// # Errors
    /// When a receipt could not be written, now or earlier.
    pub fn close(&mut self) -> io::Result<()> {
        mem::replace(&mut self.receipts, Ok(None))?.map_or(Ok(()), |mut receipts| receipts.flush())
    }

    /// The counts of calls that took `elapsed` together.
    pub fn summary(&mut self, elapsed: Duration) -> &Summary {
        let millis = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1000.0;
        let summary = &mut self.summary;
        summary.seconds = elapsed.as_secs_f64();
        summary.calls_per_second = summary.calls as f64 / summary.seconds.max(f64::EPSILON);
        summary.latency_ms = QUANTILES.map(|(name, of)| (name.into(), millis(of))).into();
        summary
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "accepted  {}", self.accepted)?;
        for (status, count) in &self.refused {
            let name = StatusCode::from_u16(*status).unwrap_or_default();
            writeln!(f, "refused   {count}  {name}")?;
            let hint = match status {
                401 => "the secret is missing or wrong: give -H 'X-Token: SECRET'",
                404 => "no such source: the path is /hooks/ and a source's name",
                _ => continue,
            };
            writeln!(f, "          {hint}")?;
        }
        for (failure, count) in &self.failed {
            writeln!(f, "failed    {count}  {failure}")?;
            if let Some(cause) = self.causes.get(failure) {
                writeln!(f, "          {cause}")?;
            }
            let hint = match failure {
                CallFailure::Connect => "start the edge, or mend host and port",
                CallFailure::Tls => {
                    "use http:// if the edge has no TLS, and --ca-file if its certificate is your own"
                }
                _ => continue,
            };
            writeln!(f, "          {hint}")?;
        }
        writeln!(f, "rate      {:.0} calls/s in {:.1} s", self.calls_per_second, self.seconds)?;
        if self.accepted == 0 && self.refused.is_empty() {
            return Ok(());
        }
        let latency = QUANTILES.map(|(name, _)| format!("{name} {:.2} ms", self.latency_ms[name]));
        writeln!(f, "latency   {}", latency.join("   "))
    }
}
