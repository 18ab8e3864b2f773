//! The thread that makes records durable.

use std::{
    io,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use prometheus::IntCounter;

use super::{
    AppendError, Position,
    batch::WriteBatch,
    disk::{self, DiskFile, Mode},
    segment::{self, HEADER_BYTES, Header},
    shared::Shared,
};
use crate::{clock, mutant};

/// Why a batch did not become durable.
enum Trouble {
    /// There is no room; nothing of the batch is on disk.
    Full(io::Error),
    /// The state on disk is unknown, or another process may own it: the journal fails with this reason.
    Fatal(String),
}

impl Trouble {
    fn disk(error: io::Error) -> Self {
        Self::Fatal(format!("the journal's disk failed: {error}"))
    }
}

/// The segment that is written to.
#[derive(Debug)]
struct Active {
    file: Box<dyn DiskFile>,
    salt: u32,
    /// Offset after the last durable frame.
    end: u64,
    capacity: u64,
}

/// The thread that makes records durable.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    active: Option<Active>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, active: None }
    }

    pub(super) fn run(mut self) {
        while let Some(batch) = self.shared.queue.next() {
            self.step(batch);
        }
    }

    /// Makes a batch durable and tells its callers, or refuses it.
    pub(super) fn step(&mut self, mut batch: WriteBatch) {
        let error = match self.write(&mut batch) {
            Ok(()) => return self.acknowledge(batch),
            Err(error) => error,
        };
        self.shared.metrics.journal_errors_total.with_label_values(&["append"]).inc();
        match error {
            Trouble::Full(error) => {
                tracing::error!(%error, "the disk has no room for the journal: callbacks are refused until there is room");
                // The keeper computes the real limit in its next round.
                self.shared.active_left_bytes.store(0, Ordering::Relaxed);
                self.shared.queue.space_limit.store(0, Ordering::Relaxed);
                self.shared.queue.refuse(batch, AppendError::Full);
            }
            Trouble::Fatal(reason) => {
                self.shared.fail(reason);
                self.shared.queue.refuse(batch, AppendError::Failed);
            }
        }
    }

    /// Makes a batch durable.
    fn write(&mut self, batch: &mut WriteBatch) -> Result<(), Trouble> {
        let mut active = match self.active.take() {
            Some(active) if active.end + batch.whole as u64 <= active.capacity => active,
            _ => self.next_segment(batch.first)?,
        };
        let frames = batch.seal(active.salt);
        if let Err(error) = active.file.write_at(frames, active.end) {
            // `active` is dropped: the next batch begins another segment.
            self.shared.index.lock().close_last();
            return Err(cut_back(&active, error));
        }
        let started = clock::now();
        if !mutant::is("data not synced") {
            active.file.sync_data().map_err(Trouble::disk)?;
        }
        let took = clock::now() - started;
        self.shared.metrics.journal_sync_seconds.observe(took.as_secs_f64());
        // Before any caller is told.
        self.shared.check_claim().map_err(|error| Trouble::Fatal(error.to_string()))?;
        active.end += frames.len() as u64;
        let left = active.capacity.saturating_sub(active.end);
        self.shared.active_left_bytes.store(left, Ordering::Relaxed);
        self.active = Some(active);
        Ok(())
    }

    /// Publishes a durable batch: counts its records, moves the durable watermark, wakes its callers.
    fn acknowledge(&self, batch: WriteBatch) {
        let records = batch.accepted.len();
        self.shared.metrics.journal_batch_records.observe(records as f64);
        batch.accepted.iter().for_each(IntCounter::inc);
        self.shared.advance_durable(batch.first..batch.end(), batch.whole as u64);
        batch.decide(Ok(()));
        self.shared.queue.recycle(batch.frames);
    }

    /// Begins a segment in a spare file, which gets the segment's name only after its header is durable.
    fn next_segment(&self, base: Position) -> Result<Active, Trouble> {
        let shared = &self.shared;
        // Close the full segment now. If the disk has no room for another, the only way to get space is to
        // recycle this one after it is committed.
        shared.index.lock().close_last();
        let spare = shared.spares.take().or_else(|error| {
            let recycled = shared.recycle();
            shared.spares.take().map_err(|_| recycled.err().unwrap_or(error))
        });
        let spare = spare.map_err(Trouble::Full)?;
        let salt = (shared.options.random)() as u32;
        let salt = if mutant::is("salt not checked") { 0 } else { salt };
        let header = Header { run_id: shared.own_run_id, base, salt };
        let file = match self.name_segment(&spare, &header) {
            Ok(file) => file,
            Err(error) if disk::is_full(&error) => {
                return Err(match shared.options.disk.remove(&spare) {
                    Ok(()) => Trouble::Full(error),
                    Err(error) => Trouble::disk(error),
                });
            }
            Err(error) => return Err(Trouble::disk(error)),
        };
        shared.index.lock().add_empty(header);
        let capacity = shared.options.segment_bytes;
        // Before the keeper computes the room.
        shared.active_left_bytes.store(capacity - HEADER_BYTES, Ordering::Relaxed);
        shared.wake_keeper();
        Ok(Active { file, salt: header.salt, end: HEADER_BYTES, capacity })
    }

    fn name_segment(&self, spare: &Path, header: &Header) -> io::Result<Box<dyn DiskFile>> {
        let journal = self.shared.options.directory();
        let file = journal.disk.open(spare, Mode::Create)?;
        file.write_at(&header.encode(), 0)?;
        file.sync_all()?;
        journal.disk.rename(spare, &segment::path(journal.path, header.base))?;
        if !mutant::is("directory not synced") {
            journal.disk.sync_directory(&segment::directory(journal.path))?;
        }
        Ok(file)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.fail("the journal's writer panicked".to_owned());
        }
    }
}

/// Removes what a failed write may have left after the durable end.
fn cut_back(active: &Active, error: io::Error) -> Trouble {
    if !disk::is_full(&error) {
        return Trouble::disk(error);
    }
    match active.file.set_len(active.end).and_then(|()| active.file.sync_all()) {
        Ok(()) => Trouble::Full(error),
        Err(error) => Trouble::disk(error),
    }
}
