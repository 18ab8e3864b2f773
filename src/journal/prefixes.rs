//! CRCs of any ranges of a file, each at a small cost that does not depend on the range's length.
//!
//! After damage, every place whose bytes look like the head of a frame has to be checked, and a body may
//! hold thousands of them, each with the length of the whole segment. So the CRCs of the file from one
//! place on are kept step by step, and that of a range is worked out from those at its two ends.
//! `crc(AB) = combine(crc(A), 0, length of B) ^ crc(B)`, where A may be any bytes with that CRC.

use std::{io, ops::Range};

use super::salvage::Source;

const STEP: u64 = 512;
const READ_BYTES: u64 = 256 * 1024;

/// The CRCs of a file's bytes from `start` on.
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
        source: &mut Source,
        bytes: Range<u64>,
        before: u32,
    ) -> io::Result<u32> {
        let (start, end) = (self.upto(source, bytes.start)?, self.upto(source, bytes.end)?);
        let len = (bytes.end - bytes.start) as usize;
        Ok(crc32c::crc32c_combine(before ^ start, 0, len) ^ end)
    }

    /// The CRC of the bytes from the start up to here.
    fn upto(&mut self, source: &mut Source, end: u64) -> io::Result<u32> {
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
