//! The thread that does what no append should wait for, once a second and whenever a segment was begun.

use std::{
    io,
    sync::{Arc, mpsc},
    time::Duration,
};

use super::{Position, reader::Reader, shared::Shared};
use crate::clock;

const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    /// Tells that a segment was begun. It is disconnected when the writer has ended.
    woken: mpsc::Receiver<()>,
    /// The committed watermark, and when the oldest pending record was accepted. None without one.
    oldest: Option<(Position, Option<u64>)>,
    /// What failed in the last round, to report it once.
    failing: Vec<&'static str>,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, woken: mpsc::Receiver<()>) -> Self {
        Self { shared, woken, oldest: None, failing: Vec::new() }
    }

    pub(super) fn run(mut self) {
        loop {
            let next = clock::now() + EVERY;
            self.round();
            let pause = next.saturating_duration_since(clock::now());
            if self.woken.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }

    pub(super) fn round(&mut self) {
        let shared = self.shared.clone();
        if let Err(error) = shared.claim.check() {
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

    /// Counts and reports a failure. The next round tries again.
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
        let committed = self.shared.watermarks.lock().committed;
        if self.oldest.is_none_or(|(position, _)| position != committed) {
            let mut reader = Reader::new(self.shared.clone(), committed);
            let accepted_at_ms = self.shared.options.accepted_at_ms;
            self.oldest = reader.next()?.map(|it| (committed, accepted_at_ms(it.payload)));
        }
        let accepted_at_ms = self.oldest.and_then(|(_, accepted_at_ms)| accepted_at_ms);
        let age_ms = accepted_at_ms.map_or(0, |at| clock::wall_ms().saturating_sub(at));
        Ok(age_ms as f64 / 1000.0)
    }
}
