//! The thread that makes records durable.

use std::{
    io,
    path::Path,
    sync::{Arc, atomic::Ordering, mpsc::SyncSender},
};

use prometheus::IntCounter;

use super::{
    AppendError, Position,
    disk::{self, DiskFile, Mode},
    queue::WriteBatch,
    segment::{self, HEADER_BYTES, Header},
    shared::Shared,
};
use crate::{clock, mutant};

#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    /// Lets the keeper begin its next round at once.
    wake_keeper: SyncSender<()>,
    /// The index's open segment.
    open: Option<OpenSegment>,
}

/// A segment's file, its salt, and the offset after its last frame.
type OpenSegment = (Box<dyn DiskFile>, u32, u64);

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, wake_keeper: SyncSender<()>) -> Self {
        Self { shared, wake_keeper, open: None }
    }

    pub(super) fn run(mut self) {
        while let Some(batch) = self.shared.queue.next() {
            self.step(batch);
        }
    }

    /// Makes a batch durable and tells its callers, or refuses it.
    pub(super) fn step(&mut self, mut batch: WriteBatch) {
        match self.write(&mut batch) {
            Ok(()) => self.acknowledge(batch),
            Err(why) => self.shared.queue.refuse(batch, why),
        }
    }

    fn write(&mut self, batch: &mut WriteBatch) -> Result<(), AppendError> {
        let capacity = self.shared.options.segment_bytes;
        let fits = |(_, _, end): &OpenSegment| end + batch.whole as u64 <= capacity;
        let (file, salt, end) = match self.open.take().filter(fits) {
            Some(open) => open,
            None => self.next_segment(batch.first)?,
        };
        if let Err(error) = file.write_at(batch.seal(salt), end) {
            // `file` is dropped: the next batch begins another segment.
            self.shared.watermarks.lock().index.last_is_open = false;
            return Err(self.undone(error, || file.set_len(end).and_then(|()| file.sync_all())));
        }
        let started = clock::now();
        if !mutant::is("data not synced") {
            file.sync_data().map_err(|error| self.failed(&error))?;
        }
        let took = clock::now() - started;
        self.shared.metrics.journal_sync_seconds.observe(took.as_secs_f64());
        // Before any caller is told.
        if let Err(error) = self.shared.claim.check() {
            self.count_error();
            self.shared.fail(error.to_string());
            return Err(AppendError::Failed);
        }
        self.open = Some((file, salt, end + batch.whole as u64));
        Ok(())
    }

    /// Comes before the log and before what a failure leads to: the process may end there.
    fn count_error(&self) {
        self.shared.metrics.journal_errors_total.with_label_values(&["append"]).inc();
    }

    /// There is no room, and nothing of the batch is on disk.
    fn full(&self, error: &io::Error) -> AppendError {
        self.count_error();
        tracing::error!(%error, "the disk has no room for the journal: callbacks are refused until there is room");
        // The keeper computes the real limit in its next round.
        self.shared.queue.space_limit.store(0, Ordering::Relaxed);
        AppendError::Full
    }

    /// What is on disk is unknown.
    fn failed(&self, error: &io::Error) -> AppendError {
        self.count_error();
        self.shared.fail(format!("the journal's disk failed: {error}"));
        AppendError::Failed
    }

    /// There may only have been no room: then `undo` removes what was begun.
    fn undone(&self, error: io::Error, undo: impl FnOnce() -> io::Result<()>) -> AppendError {
        if !disk::is_full(&error) {
            return self.failed(&error);
        }
        undo().map_or_else(|error| self.failed(&error), |()| self.full(&error))
    }

    /// Counts the records of a durable batch, moves the durable watermark, wakes the callers.
    fn acknowledge(&self, batch: WriteBatch) {
        let records = batch.accepted.len();
        self.shared.metrics.journal_batch_records.observe(records as f64);
        batch.accepted.iter().for_each(IntCounter::inc);
        let positions = batch.first..batch.end();
        self.shared.watermarks.lock().index.extend(positions, batch.whole as u64);
        self.shared.durable_moved.notify_all();
        batch.decision.decide(Ok(()));
        self.shared.queue.recycle(batch.frames);
    }

    /// Begins a segment in a spare file, which gets the segment's name only after its header is durable.
    fn next_segment(&self, base: Position) -> Result<OpenSegment, AppendError> {
        let shared = &self.shared;
        // Close the full segment now. If the disk has no room for another, the only way to get space is to
        // recycle this one after it is committed.
        shared.watermarks.lock().index.last_is_open = false;
        let spare = shared.spares.take().or_else(|error| {
            let recycled = shared.recycle();
            shared.spares.take().map_err(|_| recycled.err().unwrap_or(error))
        });
        let spare = spare.map_err(|error| self.full(&error))?;
        let salt = (shared.options.random)() as u32;
        let salt = if mutant::is("salt not checked") { 0 } else { salt };
        // INVARIANT: the opening took this run, and keeps its id.
        let header = Header { run_id: shared.runs.own[&base.run()], base, salt };
        let file = self.name_segment(&spare, &header);
        let file =
            file.map_err(|error| self.undone(error, || shared.options.disk.remove(&spare)))?;
        shared.watermarks.lock().index.add_empty(header);
        self.wake_keeper.try_send(()).ok();
        Ok((file, salt, HEADER_BYTES))
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
