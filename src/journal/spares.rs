//! Files for segments to come: filled with zeros, or recycled from settled segments.
//!
//! A sync is fast where only existing content is overwritten, and an append then depends on nothing else
//! in the file system. A full disk shows here, ahead of time.

use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

use super::{Options, disk, disk::Mode, segment, segment::Header};

/// Spares that are kept when segments are recycled.
const KEPT: usize = 3;

#[derive(Debug)]
pub(super) struct Spares {
    options: Options,
    files: Mutex<Vec<PathBuf>>,
    /// Held while spares are made or recycled, so that the writer waits for them instead of making another.
    pub(super) making: Mutex<()>,
    run: u32,
    next: AtomicU64,
}

impl Spares {
    /// Takes over the spares of an earlier run that are among these files, and removes those that are not
    /// usable. Other files are left alone.
    pub(super) fn adopt(options: &Options, run: u32, found: &[PathBuf]) -> io::Result<Self> {
        let (options, (files, making, next)) = (options.clone(), Default::default());
        let spares = Self { options, files, making, run, next };
        found.iter().filter(|path| is_spare(path)).try_for_each(|path| spares.put(path))?;
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

    /// Makes a spare ahead, unless there is one.
    pub(super) fn prepare(&self) -> io::Result<()> {
        let _making = self.making.lock();
        if self.len() == 0 {
            let made = self.make()?;
            self.files.lock().push(made);
        }
        Ok(())
    }

    /// Makes spares of settled segments. Their headers are overwritten only after their new names are
    /// durable, so that a segment's name and header always agree.
    pub(super) fn recycle(&self, settled: &[Header]) -> io::Result<()> {
        // One that fails stays until the next start, and holds up no other.
        let put = |header: &Header| self.put(&segment::path(&self.options.directory, header.base));
        settled.iter().map(put).fold(Ok(()), Result::and)
    }

    fn put(&self, path: &Path) -> io::Result<()> {
        let disk = &self.options.disk;
        let usable = disk.metadata(path)?.bytes == self.options.segment_bytes;
        if !usable || self.len() >= KEPT {
            return disk.remove(path);
        }
        let spare = self.name();
        disk.rename(path, &spare)?;
        disk.sync_directory(&segment::directory(&self.options.directory))?;
        self.files.lock().push(spare);
        Ok(())
    }

    fn make(&self) -> io::Result<PathBuf> {
        if self.room() == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let path = self.name();
        let file = self.options.disk.open(&path, Mode::CreateNew)?;
        if let Err(error) = disk::allocate(&*file, self.options.segment_bytes) {
            self.options.disk.remove(&path)?;
            return Err(error);
        }
        Ok(path)
    }

    /// How many more segments the file system has room for. 0 if it does not say.
    fn room(&self) -> u64 {
        let Options { disk, directory, min_free_bytes, segment_bytes, .. } = &self.options;
        let free = disk.file_system(directory).map_or(0, |found| found.free_bytes);
        free.saturating_sub(*min_free_bytes) / segment_bytes
    }

    /// Bytes of frames that fit into segments to come.
    pub(super) fn room_bytes(&self) -> u64 {
        let segments = self.room().saturating_add(self.len() as u64);
        segments.saturating_mul(self.options.segment_bytes - segment::HEADER_BYTES)
    }

    pub(super) fn len(&self) -> usize {
        self.files.lock().len()
    }

    /// A name that no file has, nor ever had.
    fn name(&self) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        segment::directory(&self.options.directory).join(format!("spare-{}-{number}", self.run))
    }
}

pub(super) fn is_spare(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let numbers = name.and_then(|name| name.strip_prefix("spare-")?.split_once('-'));
    numbers.is_some_and(|(run, number)| run.parse::<u32>().is_ok() && number.parse::<u64>().is_ok())
}
