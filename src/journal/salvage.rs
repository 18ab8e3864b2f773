//! Reading a disk that does not give everything back.

use std::{collections::BTreeSet, io, path::Path, time::Duration};

use rustix::io::Errno;

use super::disk::{Disk, DiskFile};
use crate::clock;

/// Attempts to read before the bytes count as lost, with this pause between them.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(50);
const PAGE_BYTES: u64 = 4096;

/// A file that is read, and what of it cannot be.
#[derive(Debug)]
pub(super) struct Source {
    file: Box<dyn DiskFile>,
    /// Pages that are taken for zeros, where that is done.
    unreadable: Option<BTreeSet<u64>>,
}

impl Source {
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
        let result = match self.knows(buffer.len(), at) {
            true => self.file.read_at(buffer, at),
            false => retried(|| self.file.read_at(buffer, at)),
        };
        match (result, &mut self.unreadable) {
            (Err(error), Some(pages)) if is_unreadable(&error) => {
                by_pages(&*self.file, buffer, at, pages)
            }
            (result, _) => result,
        }
    }

    /// Whether one of these pages is known to be unreadable.
    fn knows(&self, len: usize, at: u64) -> bool {
        let pages = at / PAGE_BYTES..(at + len as u64).div_ceil(PAGE_BYTES);
        self.unreadable.as_ref().is_some_and(|known| known.range(pages).next().is_some())
    }
}

fn by_pages(
    file: &dyn DiskFile,
    mut buffer: &mut [u8],
    mut at: u64,
    unreadable: &mut BTreeSet<u64>,
) -> io::Result<()> {
    while !buffer.is_empty() {
        let step = (PAGE_BYTES - at % PAGE_BYTES).min(buffer.len() as u64);
        let (page, rest) = buffer.split_at_mut(step as usize);
        match file.read_at(page, at) {
            Err(error) if is_unreadable(&error) => {
                page.fill(0);
                unreadable.insert(at / PAGE_BYTES);
            }
            result => result?,
        }
        (buffer, at) = (rest, at + step);
    }
    Ok(())
}

/// Whether the error says that the medium does not give the bytes back.
pub(super) fn is_unreadable(error: &io::Error) -> bool {
    let unreadable = [Errno::IO, Errno::NODATA, Errno::ILSEQ, Errno::BADMSG];
    Errno::from_io_error(error).is_some_and(|error| unreadable.contains(&error))
}

/// Whether the error says that the process or machine lacks something for a while, and nothing of the
/// file.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];
    Errno::from_io_error(error).is_some_and(|error| shortages.contains(&error))
}

/// The content of a small file. Opening it is tried as often as reading it: a journal whose identity is
/// not read gets another one, and publishes everything again.
pub(super) fn read(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    retried(|| disk.read(path))
}

/// Tries again where the medium does not answer.
fn retried<T>(mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut result = act();
    for _ in 1..ATTEMPTS {
        if !result.as_ref().is_err_and(is_unreadable) {
            break;
        }
        clock::sleep(PAUSE);
        result = act();
    }
    result
}
