//! Reading a disk that does not give everything back.

use std::{collections::BTreeSet, io, ops::Range, time::Duration};

use rustix::io::Errno;

use super::disk::DiskFile;
use crate::clock;

/// Attempts to read before the bytes count as lost, with this pause between them.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(50);
const PAGE_BYTES: u64 = 4096;
/// The CRCs of a file are kept at multiples of this.
const STEP: u64 = 512;
const READ_BYTES: u64 = 256 * 1024;
/// The polynomial of CRC-32C, lowest power first.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// `x^(8 * 2^n)` modulo the polynomial.
const POWERS: [u32; 40] = {
    let mut powers = [1 << 23; 40];
    let mut n = 1;
    while n < powers.len() {
        powers[n] = multiply(powers[n - 1], powers[n - 1]);
        n += 1;
    }
    powers
};

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

    pub(super) fn read(&mut self, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
        let pages = at / PAGE_BYTES..(at + buffer.len() as u64).div_ceil(PAGE_BYTES);
        let is_hit = |known: &BTreeSet<u64>| known.range(pages).next().is_some();
        // Pages that are known were tried again before.
        if !self.unreadable.as_ref().is_some_and(is_hit) {
            match retried(|| self.file.read_at(buffer, at)) {
                Err(error) if self.unreadable.is_some() && is_unreadable(&error) => {}
                result => return result,
            }
        }
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

/// CRCs of any ranges of a file, each at a small cost that does not depend on the range's length.
///
/// After damage, every place whose bytes look like the head of a frame has to be checked, and a body may
/// hold thousands of them, each with the length of the whole segment. So the CRCs of the file from `start`
/// on are kept step by step. That of a range follows from those at its two ends:
/// `crc(AB) = shift(crc(A), length of B) ^ crc(B)`.
#[derive(Debug)]
pub(super) struct Prefixes {
    start: u64,
    /// Of the first `n * STEP` bytes.
    crcs: Vec<u32>,
}

impl Prefixes {
    pub(super) fn new(start: u64) -> Self {
        Self { start, crcs: vec![0] }
    }

    /// The CRC of these bytes, none of which lies before the start, after the CRC `before`.
    pub(super) fn crc(
        &mut self,
        source: &mut RetriedFile,
        bytes: Range<u64>,
        before: u32,
    ) -> io::Result<u32> {
        let (start, end) = (self.upto(source, bytes.start)?, self.upto(source, bytes.end)?);
        Ok(shift(before ^ start, bytes.end - bytes.start) ^ end)
    }

    /// The CRC of the bytes from the start up to here.
    fn upto(&mut self, source: &mut RetriedFile, end: u64) -> io::Result<u32> {
        let steps = (end - self.start) / STEP;
        let mut buffer = Vec::new();
        while self.crcs.len() as u64 <= steps {
            let known = self.crcs.len() as u64 - 1;
            buffer.resize(((steps - known) * STEP).min(READ_BYTES) as usize, 0);
            source.read(&mut buffer, self.start + known * STEP)?;
            for step in buffer.chunks(STEP as usize) {
                self.crcs.push(crc32c::crc32c_append(self.crcs[self.crcs.len() - 1], step));
            }
        }
        let mut rest = [0; STEP as usize];
        let rest = &mut rest[..((end - self.start) % STEP) as usize];
        source.read(rest, self.start + steps * STEP)?;
        Ok(crc32c::crc32c_append(self.crcs[steps as usize], rest))
    }
}

/// What a CRC adds to the CRC of the `bytes` bytes after it. `crc32c::crc32c_combine` takes a hundred
/// times as long, for each place that looks like a frame.
fn shift(crc: u32, bytes: u64) -> u32 {
    let powers = POWERS.iter().enumerate().filter(|(n, _)| bytes >> n & 1 == 1);
    powers.fold(crc, |crc, (_, power)| multiply(*power, crc))
}

/// The product of two polynomials modulo that of the CRC.
const fn multiply(left: u32, mut right: u32) -> u32 {
    let (mut product, mut bit) = (0, 32);
    while bit > 0 {
        bit -= 1;
        if left >> bit & 1 == 1 {
            product ^= right;
        }
        right = if right & 1 == 1 { right >> 1 ^ POLYNOMIAL } else { right >> 1 };
    }
    product
}
