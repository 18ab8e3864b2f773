//! The thread that does what no append should wait for, once a second and whenever a segment was begun.
//! Above all it has spares ready, files for segments to come: filled with zeros, or recycled from settled
//! segments.
//!
//! A sync is fast where only existing content is overwritten, and an append then depends on nothing else
//! in the file system. A full disk shows here, ahead of time.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    Options, Reader,
    disk::{self, Mode},
    segment,
    shared::Shared,
};
use crate::{clock, mutant};

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(1);
/// Spares that are kept when segments are recycled. The keeper makes one ahead where there is none.
const KEPT: usize = 3;

#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    /// Tells that a segment was begun. It is disconnected when the writer has ended.
    woken: mpsc::Receiver<()>,
    /// What failed in the last round, to report it once.
    failing: Vec<&'static str>,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, woken: mpsc::Receiver<()>) -> Self {
        Self { shared, woken, failing: Vec::new() }
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
        self.note("prepare", shared.prepare_spare());
        shared.limit_space();
        shared.refresh_metrics();
        let age = self.oldest_pending_age_seconds();
        shared.metrics.journal_oldest_pending_age_seconds.set(*age.as_ref().unwrap_or(&0.0));
        self.note("read", age.map(drop));
    }

    /// Counts and reports a failure. The next round tries again.
    fn note(&mut self, what: &'static str, result: io::Result<()>) {
        let was_failing = self.failing.contains(&what);
        self.failing.retain(|failing| *failing != what);
        let Err(error) = result else { return };
        self.failing.push(what);
        // Recycling is how most segments are prepared.
        let op = if what == "recycle" { "prepare" } else { what };
        self.shared.metrics.journal_errors_total.with_label_values(&[op]).inc();
        if !was_failing {
            tracing::error!(what, %error, "the journal's housekeeping failed; it is tried every second");
        }
    }

    /// How long the oldest record has waited for Kafka; 0 if none waits.
    pub(super) fn oldest_pending_age_seconds(&self) -> io::Result<f64> {
        let shared = &self.shared;
        let mut reader = Reader::new(shared.clone(), shared.watermarks.lock().committed);
        let record = reader.next()?;
        let accepted_at_ms = record.and_then(|it| (shared.options.accepted_at_ms)(it.payload));
        let age_ms = accepted_at_ms.map_or(0, |at| clock::wall_ms().saturating_sub(at));
        Ok(age_ms as f64 / 1000.0)
    }
}

#[derive(Debug, Default)]
pub(super) struct Spares {
    run: u32,
    /// The number of the next one.
    next: AtomicU64,
    files: Mutex<Vec<PathBuf>>,
    /// Held while spares are made or recycled, so that the writer waits for them instead of making another.
    making: Mutex<()>,
}

impl Spares {
    pub(super) fn new(run: u32) -> Self {
        Self { run, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.files.lock().len()
    }
}

impl Shared {
    /// A file for a segment: ready, or else made now.
    pub(super) fn take_spare(&self) -> io::Result<PathBuf> {
        let ready = || self.spares.files.lock().pop();
        if let Some(ready) = ready() {
            return Ok(ready);
        }
        let _making = self.spares.making.lock();
        ready().map_or_else(|| self.make_spare(), Ok)
    }

    fn prepare_spare(&self) -> io::Result<()> {
        let _making = self.spares.making.lock();
        if self.spares.len() == 0 {
            let made = self.make_spare()?;
            self.spares.files.lock().push(made);
        }
        Ok(())
    }

    /// Makes spares of the segments that lie wholly before the checkpoint and before the last transaction.
    /// If room is short, segments of the last transaction are recycled too.
    pub(super) fn recycle(&self) -> io::Result<()> {
        let _making = self.spares.making.lock();
        // Without room for another segment, accepting new records comes first.
        let is_short = self.room_bytes() == 0;
        let mut watermarks = self.watermarks.lock();
        let Some(limit) = watermarks.recyclable(is_short) else { return Ok(()) };
        let index = &mut watermarks.index;
        let limit = if mutant::is("recycled too early") { index.end } else { limit };
        let settled: Vec<_> = std::iter::from_fn(|| index.pop_before(limit)).collect();
        drop(watermarks);
        let path = |base| segment::path(&self.options.directory, base);
        // One that fails stays until the next start, and holds up no other.
        let recycled = settled.iter().map(|header| self.add_spare(&path(header.base)));
        recycled.fold(Ok(()), Result::and)
    }

    /// Makes a spare of a file that is no longer needed, or removes it. A segment's header is overwritten
    /// only after the spare's name is durable, so that a segment's name and header always agree.
    pub(super) fn add_spare(&self, path: &Path) -> io::Result<()> {
        let Options { disk, directory, segment_bytes, .. } = &self.options;
        if disk.metadata(path)?.bytes != *segment_bytes || self.spares.len() >= KEPT {
            return disk.remove(path);
        }
        let spare = self.spare_name();
        disk.rename(path, &spare)?;
        disk.sync_directory(&segment::directory(directory))?;
        self.spares.files.lock().push(spare);
        Ok(())
    }

    fn make_spare(&self) -> io::Result<PathBuf> {
        if self.room() == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let path = self.spare_name();
        let file = self.options.disk.open(&path, Mode::CreateNew)?;
        if let Err(error) = disk::allocate(&*file, self.options.segment_bytes) {
            self.options.disk.remove(&path)?;
            return Err(error);
        }
        Ok(path)
    }

    /// A name that no file has.
    fn spare_name(&self) -> PathBuf {
        let number = self.spares.next.fetch_add(1, Ordering::Relaxed);
        spare(&self.options.directory, self.spares.run, number)
    }

    /// How many more segments the file system has room for. 0 if it does not say.
    fn room(&self) -> u64 {
        let Options { disk, directory, min_free_bytes, segment_bytes, .. } = &self.options;
        let free = disk.file_system(directory).map_or(0, |found| found.free_bytes);
        free.saturating_sub(*min_free_bytes) / segment_bytes
    }

    /// Bytes of frames that fit into segments to come.
    pub(super) fn room_bytes(&self) -> u64 {
        let segments = self.room().saturating_add(self.spares.len() as u64);
        segments.saturating_mul(self.options.segment_bytes - segment::HEADER_BYTES)
    }
}

pub(super) fn spare(journal: &Path, run: u32, number: u64) -> PathBuf {
    segment::directory(journal).join(format!("spare-{run}-{number}"))
}

pub(super) fn is_spare(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let numbers = name.and_then(|name| name.strip_prefix("spare-")?.split_once('-'));
    numbers.is_some_and(|(run, number)| run.parse::<u32>().is_ok() && number.parse::<u64>().is_ok())
}
