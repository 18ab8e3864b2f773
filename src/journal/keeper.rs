//! The thread that does what no append should wait for: persists the checkpoint, recycles,
//! prepares segments, watches the free space, brings the gauges up to date. Once a second, and
//! whenever a segment was begun.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{Position, reader::Reader, shared::Shared};
use crate::clock;

const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    /// The last committed position for which the oldest record was looked at, and when that was
    /// accepted.
    oldest: Option<(Position, Option<u64>)>,
    /// What failed in the last round; said once.
    failing: Vec<&'static str>,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, oldest: None, failing: Vec::new() }
    }

    pub(super) fn run(mut self) {
        self.shared.keeper.set(std::thread::current()).ok();
        // `unpark` before `park_timeout` makes that return at once, so no stop is missed.
        while !self.shared.is_stopping.load(Ordering::SeqCst) {
            let next = clock::now() + EVERY;
            self.round();
            std::thread::park_timeout(next.saturating_duration_since(clock::now()));
        }
    }

    pub(super) fn round(&mut self) {
        let shared = self.shared.clone();
        if let Err(error) = shared.check_claim() {
            return shared.fail(format!("{error}"));
        }
        self.note("checkpoint", shared.write_checkpoint());
        self.note("recycle", shared.recycle());
        self.note("prepare", shared.spares.prepare());
        shared.limit_space();
        shared.refresh_metrics();
        let age = self.oldest_pending_age_seconds();
        let age = self.note("read", age).unwrap_or_default();
        shared.metrics.journal_oldest_pending_age_seconds.set(age);
    }

    /// Counts and reports what failed; all of it is tried again in the next round.
    fn note<T>(&mut self, what: &'static str, result: io::Result<T>) -> Option<T> {
        let error = match result {
            Ok(done) => {
                self.failing.retain(|failing| *failing != what);
                return Some(done);
            }
            Err(error) => error,
        };
        // Recycling is how most segments are prepared.
        let op = if what == "recycle" { "prepare" } else { what };
        self.shared.metrics.journal_errors_total.with_label_values(&[op]).inc();
        if !self.failing.contains(&what) {
            self.failing.push(what);
            tracing::error!(what, %error, "the journal's housekeeping failed; it is tried every second");
        }
        None
    }

    /// How long the oldest record has waited for Kafka.
    pub(super) fn oldest_pending_age_seconds(&mut self) -> io::Result<f64> {
        if self.shared.pending() == 0 {
            return Ok(0.0);
        }
        let committed = self.shared.committed.lock().position;
        let accepted_at_ms = match self.oldest {
            Some((position, accepted_at_ms)) if position == committed => accepted_at_ms,
            _ => {
                let mut reader = Reader::new(self.shared.clone(), committed);
                let record = reader.next()?;
                let accepted_at_ms =
                    record.and_then(|record| (self.shared.options.accepted_at_ms)(record.payload));
                self.oldest = Some((committed, accepted_at_ms));
                accepted_at_ms
            }
        };
        let accepted_at = accepted_at_ms.map(|ms| ms as f64 / 1000.0);
        let now = clock::wall_ms() as f64 / 1000.0;
        Ok(accepted_at.map_or(0.0, |at| (now - at).max(0.0)))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.fail("the journal's keeper panicked".to_owned());
        }
    }
}
