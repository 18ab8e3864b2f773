//! Reading a disk that does not give everything back.

use std::{collections::BTreeSet, io, time::Duration};

use rustix::io::Errno;

use super::disk::DiskFile;
use crate::clock;

/// Attempts to read before the bytes count as lost, with this pause between them.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(50);
const PAGE_BYTES: u64 = 4096;

/// A file of which each read is tried again, and what of it cannot be read.
#[derive(Debug)]
pub(super) struct RetriedFile {
    file: Box<dyn DiskFile>,
    /// Pages that are taken for zeros, where that is done.
    unreadable: Option<BTreeSet<u64>>,
}

impl RetriedFile {
    /// What cannot be read is an error.
    pub(super) fn strict(file: Box<dyn DiskFile>) -> Self {
        Self { file, unreadable: None }
    }

    /// Pages that cannot be read are zeros.
    pub(super) fn salvaging(file: Box<dyn DiskFile>) -> Self {
        Self { file, unreadable: Some(BTreeSet::new()) }
    }

    pub(super) fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.bytes)
    }

    pub(super) fn unreadable_bytes(&self) -> u64 {
        self.unreadable.as_ref().map_or(0, BTreeSet::len) as u64 * PAGE_BYTES
    }

    pub(super) fn read(&mut self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let pages = at / PAGE_BYTES..(at + buffer.len() as u64).div_ceil(PAGE_BYTES);
        let is_hit = |known: &BTreeSet<u64>| known.range(pages).next().is_some();
        if self.unreadable.as_ref().is_some_and(is_hit) {
            // They were tried again before.
            return self.read_by_pages(buffer, at);
        }
        match retried(|| self.file.read_at(buffer, at)) {
            Err(error) if self.unreadable.is_some() && is_unreadable(&error) => {
                self.read_by_pages(buffer, at)
            }
            result => result,
        }
    }

    fn read_by_pages(&mut self, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            let step = (PAGE_BYTES - at % PAGE_BYTES).min(buffer.len() as u64);
            let (page, rest) = buffer.split_at_mut(step as usize);
            match self.file.read_at(page, at) {
                Err(error) if is_unreadable(&error) => {
                    page.fill(0);
                    self.unreadable.get_or_insert_default().insert(at / PAGE_BYTES);
                }
                result => result?,
            }
            (buffer, at) = (rest, at + step);
        }
        Ok(())
    }
}

/// Whether the error says that the medium does not give the bytes back.
pub(super) fn is_unreadable(error: &io::Error) -> bool {
    let unreadable = [Errno::IO, Errno::NODATA, Errno::ILSEQ, Errno::BADMSG];
    Errno::from_io_error(error).is_some_and(|error| unreadable.contains(&error))
}

/// Whether the error says that the process or machine lacks something for a while.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];
    Errno::from_io_error(error).is_some_and(|error| shortages.contains(&error))
}

/// Tries again where the medium does not answer.
pub(super) fn retried<T>(mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..ATTEMPTS {
        match act() {
            Err(error) if is_unreadable(&error) => clock::sleep(PAUSE),
            result => return result,
        }
    }
    act()
}
