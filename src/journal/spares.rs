//! Files for segments to come: written with zeros ahead, or recycled from settled segments.
//!
//! Overwriting what a file has already is what makes a sync fast, and an append independent of
//! everything else in the file system; and a full disk shows here, ahead of time.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

use super::{Options, disk, segment, segment::Header};

/// Spares that are made ahead.
const READY: usize = 1;
/// Spares that are kept when segments are recycled.
const KEPT: usize = 3;

#[derive(Debug)]
pub(super) struct Spares {
    journal: PathBuf,
    segment_bytes: u64,
    min_free_bytes: u64,
    files: Mutex<Vec<PathBuf>>,
    /// Held while a file is made, so that who needs one waits for it instead of making another.
    making: Mutex<()>,
    run: u32,
    /// Numbers the names of this run's spares.
    next: AtomicU64,
}

impl Spares {
    /// Takes over the spare files of an earlier run, and removes `others` that are of no use.
    pub(super) fn adopt(options: &Options, run: u32, others: &[PathBuf]) -> io::Result<Self> {
        let spares = Self {
            journal: options.directory.clone(),
            segment_bytes: options.segment_bytes,
            min_free_bytes: options.min_free_bytes,
            files: Mutex::default(),
            making: Mutex::default(),
            run,
            next: AtomicU64::new(0),
        };
        for path in others {
            spares.put(path)?;
        }
        Ok(spares)
    }

    /// A file for a segment: ready, or else made now.
    pub(super) fn take(&self) -> io::Result<PathBuf> {
        let ready = || self.files.lock().pop();
        if let Some(ready) = ready() {
            return Ok(ready);
        }
        let _making = self.making.lock();
        ready().map_or_else(|| self.make(), Ok)
    }

    /// Makes the spares that should be ready.
    pub(super) fn prepare(&self) -> io::Result<()> {
        let _making = self.making.lock();
        while self.len() < READY {
            let made = self.make()?;
            self.files.lock().push(made);
        }
        Ok(())
    }

    /// Makes files of settled segments ready for new ones. Their headers are overwritten only
    /// when their new names are durable: a header never lies about a segment that has its name.
    pub(super) fn recycle(&self, settled: &[Header]) -> io::Result<()> {
        // One that fails stays until the next start; it keeps no other.
        let put = |header: &Header| self.put(&segment::path(&self.journal, header.base));
        settled.iter().map(put).fold(Ok(()), Result::and)
    }

    fn put(&self, path: &Path) -> io::Result<()> {
        let usable = fs::metadata(path)?.len() == self.segment_bytes;
        if !usable || self.len() >= KEPT {
            return fs::remove_file(path);
        }
        let spare = self.name();
        fs::rename(path, &spare)?;
        disk::sync_directory(&segment::directory(&self.journal))?;
        self.files.lock().push(spare);
        Ok(())
    }

    fn make(&self) -> io::Result<PathBuf> {
        if self.room() == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let path = self.name();
        let mut file = disk::create_new(&path)?;
        if let Err(error) = disk::allocate(&mut file, self.segment_bytes) {
            fs::remove_file(&path)?;
            return Err(error);
        }
        Ok(path)
    }

    /// How many more segments the file system has room for. 0 if it does not say.
    fn room(&self) -> u64 {
        let free = disk::free_bytes(&self.journal).unwrap_or(0);
        free.saturating_sub(self.min_free_bytes) / self.segment_bytes
    }

    /// Bytes of frames that there is room for in segments to come.
    pub(super) fn room_bytes(&self) -> u64 {
        let segments = self.room().saturating_add(self.len() as u64);
        segments.saturating_mul(self.segment_bytes - segment::HEADER_BYTES)
    }

    pub(super) fn len(&self) -> usize {
        self.files.lock().len()
    }

    /// A name that no file has, nor ever had.
    fn name(&self) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        segment::directory(&self.journal).join(format!("spare-{}-{number}", self.run))
    }
}
