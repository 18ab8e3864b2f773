//! The thread that makes records durable.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use prometheus::IntCounter;

use super::{
    Durability, Position,
    batch::{Batch, Outcome},
    disk,
    segment::{self, HEADER_BYTES, Header},
    shared::Shared,
};

/// Why a batch did not become durable.
enum Trouble {
    /// There is no room; nothing of the batch is on disk.
    Full(io::Error),
    /// What is on disk is not known.
    Broken(io::Error),
}

/// The segment that is written to.
struct Active {
    file: File,
    salt: u32,
    /// Offset behind the last durable frame.
    end: u64,
    capacity: u64,
}

/// The thread that makes records durable.
pub(super) struct Writer {
    shared: Arc<Shared>,
    active: Option<Active>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, active: None }
    }

    pub(super) fn run(mut self) {
        while let Some(mut batch) = self.shared.queue.next() {
            let error = match self.write(&mut batch) {
                Ok(()) => {
                    self.acknowledge(batch);
                    continue;
                }
                Err(error) => error,
            };
            self.shared.metrics.journal_errors_total.with_label_values(&["append"]).inc();
            match error {
                Trouble::Full(error) => {
                    tracing::error!(%error, "no room for the journal; callbacks are refused");
                    // Until the keeper has looked again.
                    self.shared.active_left_bytes.store(0, Ordering::Relaxed);
                    self.shared.queue.space_limit.store(0, Ordering::Relaxed);
                    self.shared.queue.refuse(batch, Outcome::Full);
                }
                Trouble::Broken(error) => {
                    self.shared.fail(format!("the journal's disk failed: {error}"));
                    self.shared.queue.refuse(batch, Outcome::Failed);
                }
            }
        }
    }

    /// Makes a batch durable.
    fn write(&mut self, batch: &mut Batch) -> Result<(), Trouble> {
        let mut active = match self.active.take() {
            Some(active) if active.end + batch.whole as u64 <= active.capacity => active,
            _ => self.next_segment(batch.first)?,
        };
        let frames = batch.seal(active.salt);
        if let Err(error) = self.shared.write_at(&active.file, frames, active.end) {
            // The next batch begins another segment.
            self.shared.index.lock().close_last();
            return Err(cut_back(&active, error));
        }
        if self.shared.options.durability == Durability::Fsync {
            let started = Instant::now();
            self.shared.sync(&active.file).map_err(Trouble::Broken)?;
            self.shared.metrics.journal_sync_seconds.observe(started.elapsed().as_secs_f64());
        }
        active.end += frames.len() as u64;
        let left = active.capacity.saturating_sub(active.end);
        self.shared.active_left_bytes.store(left, Ordering::Relaxed);
        self.active = Some(active);
        Ok(())
    }

    /// Tells everyone that a batch is durable.
    fn acknowledge(&self, batch: Batch) {
        let records = batch.accepted.len();
        self.shared.metrics.journal_batch_records.observe(records as f64);
        batch.accepted.iter().for_each(IntCounter::inc);
        self.shared.made_durable(batch.first..batch.end(), batch.whole as u64);
        batch.commit.decide(Outcome::Durable);
        self.shared.queue.recycle(batch.frames);
    }

    /// Begins a segment in a spare file. It has its name only when its header is durable.
    fn next_segment(&self, base: Position) -> Result<Active, Trouble> {
        let shared = &self.shared;
        // Where there is room for no other segment, this one has to make it, once it is settled.
        shared.index.lock().close_last();
        let spare = shared.spares.take().map_err(Trouble::Full)?;
        let header = Header::new(shared.own_run_id, base, shared.options.durability);
        let file = match self.name_segment(&spare, &header) {
            Ok(file) => file,
            Err(error) if disk::is_full(&error) => {
                return Err(match fs::remove_file(&spare) {
                    Ok(()) => Trouble::Full(error),
                    Err(error) => Trouble::Broken(error),
                });
            }
            Err(error) => return Err(Trouble::Broken(error)),
        };
        shared.index.lock().add_empty(header);
        let capacity = shared.options.segment_bytes;
        // Before the keeper looks how much room there is.
        shared.active_left_bytes.store(capacity - HEADER_BYTES, Ordering::Relaxed);
        shared.keeper_bell.ring();
        Ok(Active { file, salt: header.salt, end: HEADER_BYTES, capacity })
    }

    fn name_segment(&self, spare: &PathBuf, header: &Header) -> io::Result<File> {
        let journal = &self.shared.options.directory;
        let file = disk::open_or_create(spare)?;
        file.write_all_at(&header.encode(), 0)?;
        file.sync_all()?;
        fs::rename(spare, segment::path(journal, header.base))?;
        disk::sync_directory(&segment::directory(journal))?;
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

/// Takes back what a failed write may have left behind the durable end.
fn cut_back(active: &Active, error: io::Error) -> Trouble {
    if !disk::is_full(&error) {
        return Trouble::Broken(error);
    }
    match active.file.set_len(active.end).and_then(|()| active.file.sync_all()) {
        Ok(()) => Trouble::Full(error),
        Err(error) => Trouble::Broken(error),
    }
}
