//! CRCs of any ranges of a file, each at a small cost that does not depend on the range's length.
//!
//! After damage, every place whose bytes look like the head of a frame has to be checked, and a body may
//! hold thousands of them, each with the length of the whole segment. So the CRCs of the file from one
//! place on are kept step by step, and that of a range is worked out from those at its two ends:
//! `crc(AB) = shift(crc(A), length of B) ^ crc(B)`.

use std::{io, ops::Range};

use super::salvage::RetriedFile;

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
