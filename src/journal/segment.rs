//! The format on disk.
//!
//! A segment file begins with its header, twice, so that one damaged copy costs nothing:
//!
//! ```text
//! magic 8 | version u32 | run u32 | run id 16 | base position u64 | created_ms u64 | salt u32 | crc32c u32
//! ```
//!
//! Frames follow, one a record, all numbers little endian:
//!
//! ```text
//! crc32c u32 | length u32 | position u64 | index in batch u32 | payload
//! ```
//!
//! A frame's CRC covers everything after itself and starts from the segment's random salt, so that
//! bytes inside a payload, or old frames in a file that is used again, never pass for a frame. A
//! batch is written only when the one before it is durable: an intact frame of a later batch behind
//! a damaged one proves that the damage is no torn write. Where damage lies between intact frames it
//! is copied to quarantine and becomes filler, a frame that carries no record.

use std::{fs::File, io, os::unix::fs::FileExt};

use uuid::Uuid;

use super::Position;

const MAGIC: [u8; 8] = *b"weniedge";
/// The format that this program writes, and the newest that it reads.
pub(super) const VERSION: u32 = 1;
const HEADER_BYTES: usize = 56;
/// Where the first frame begins: behind both copies of the header.
pub(super) const FRAMES_START: u64 = 2 * HEADER_BYTES as u64;
pub(super) const FRAME_HEADER_BYTES: usize = 20;
/// The position in the header of filler.
const FILLER: u64 = u64::MAX;
/// The largest record: more than any body that is accepted.
pub(super) const PAYLOAD_BYTES_MAX: usize = 64 << 20;
/// How much is read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// What a segment file says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) run: u32,
    pub(super) run_id: Uuid,
    /// Position of the first record.
    pub(super) base: Position,
    /// Milliseconds since 1970.
    pub(super) created_ms: u64,
    pub(super) salt: u32,
}

/// Why a header cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// Both copies are damaged.
    Damaged,
    /// Written by a newer program, in this format.
    Newer(u32),
}

impl Header {
    /// Both copies, as they are written.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut copy = Vec::with_capacity(FRAMES_START as usize);
        copy.extend_from_slice(&MAGIC);
        copy.extend_from_slice(&VERSION.to_le_bytes());
        copy.extend_from_slice(&self.run.to_le_bytes());
        copy.extend_from_slice(self.run_id.as_bytes());
        copy.extend_from_slice(&self.base.as_u64().to_le_bytes());
        copy.extend_from_slice(&self.created_ms.to_le_bytes());
        copy.extend_from_slice(&self.salt.to_le_bytes());
        copy.extend_from_slice(&crc32c::crc32c(&copy).to_le_bytes());
        copy.extend_from_within(..);
        copy
    }

    /// Reads whichever copy is intact.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let mut newer = None;
        for copy in bytes.chunks_exact(HEADER_BYTES).take(2) {
            match Self::decode_copy(copy) {
                Ok(header) => return Ok(header),
                Err(HeaderError::Newer(version)) => newer = Some(version),
                Err(HeaderError::Damaged) => {}
            }
        }
        Err(newer.map_or(HeaderError::Damaged, HeaderError::Newer))
    }

    fn decode_copy(copy: &[u8]) -> Result<Self, HeaderError> {
        let (content, crc) = copy.split_at(HEADER_BYTES - 4);
        if content[..8] != MAGIC || crc32c::crc32c(content) != u32_at(crc, 0) {
            return Err(HeaderError::Damaged);
        }
        match u32_at(content, 8) {
            VERSION => {}
            version => return Err(HeaderError::Newer(version)),
        }
        let run_id = content[16..32].try_into().map_or(Uuid::nil(), Uuid::from_bytes);
        Ok(Self {
            run: u32_at(content, 12),
            run_id,
            base: Position::from_u64(u64_at(content, 32)),
            created_ms: u64_at(content, 40),
            salt: u32_at(content, 48),
        })
    }
}

/// The header of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    crc: u32,
    pub(super) len: u32,
    pub(super) position: u64,
    pub(super) index_in_batch: u32,
}

impl FrameHeader {
    fn decode(bytes: &[u8]) -> Self {
        Self {
            crc: u32_at(bytes, 0),
            len: u32_at(bytes, 4),
            position: u64_at(bytes, 8),
            index_in_batch: u32_at(bytes, 16),
        }
    }

    pub(super) fn is_filler(&self) -> bool {
        self.position == FILLER
    }

    /// Bytes of the whole frame.
    pub(super) fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.len as usize
    }
}

/// Writes the header into the first bytes of `frame`, whose payload is in place already.
pub(super) fn seal(frame: &mut [u8], salt: u32, position: Position, index_in_batch: u32) {
    seal_raw(frame, salt, position.as_u64(), index_in_batch);
}

fn seal_raw(frame: &mut [u8], salt: u32, position: u64, index_in_batch: u32) {
    let len = (frame.len() - FRAME_HEADER_BYTES) as u32;
    frame[4..8].copy_from_slice(&len.to_le_bytes());
    frame[8..16].copy_from_slice(&position.to_le_bytes());
    frame[16..20].copy_from_slice(&index_in_batch.to_le_bytes());
    let crc = crc32c::crc32c_append(salt, &frame[4..]);
    frame[..4].copy_from_slice(&crc.to_le_bytes());
}

/// Turns damaged bytes into a frame that carries nothing.
pub(super) fn fill(damaged: &mut [u8], salt: u32) {
    seal_raw(damaged, salt, FILLER, 0);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

/// Reads frames of one file in order, through a buffer of bounded size.
pub(super) struct FrameReader {
    buffer: Vec<u8>,
    /// Offset in the file of the buffer's first byte.
    start: u64,
}

/// What is at an offset of a segment.
pub(super) enum Found<'a> {
    /// An intact frame.
    Frame(FrameHeader, &'a [u8]),
    /// Bytes that are no intact frame; the header as it stands there.
    Damaged(FrameHeader),
    /// Less than a frame's header is left.
    End,
}

impl FrameReader {
    pub(super) fn new() -> Self {
        Self { buffer: Vec::new(), start: 0 }
    }

    /// Looks at `offset`; nothing at or behind `end` is read.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn at(
        &mut self,
        file: &File,
        offset: u64,
        end: u64,
        salt: u32,
    ) -> io::Result<Found<'_>> {
        let Some(header) = self.header_at(file, offset, end)? else { return Ok(Found::End) };
        let frame_bytes = header.frame_bytes();
        if header.len as usize > PAYLOAD_BYTES_MAX || offset + frame_bytes as u64 > end {
            return Ok(Found::Damaged(header));
        }
        let frame = self.bytes(file, offset, frame_bytes, end)?;
        if crc32c::crc32c_append(salt, &frame[4..]) != header.crc {
            return Ok(Found::Damaged(header));
        }
        Ok(Found::Frame(header, &frame[FRAME_HEADER_BYTES..]))
    }

    /// The header at `offset`, believed or not.
    pub(super) fn header_at(
        &mut self,
        file: &File,
        offset: u64,
        end: u64,
    ) -> io::Result<Option<FrameHeader>> {
        if offset + FRAME_HEADER_BYTES as u64 > end {
            return Ok(None);
        }
        Ok(Some(FrameHeader::decode(self.bytes(file, offset, FRAME_HEADER_BYTES, end)?)))
    }

    /// `len` bytes at `offset`, which are before `end`.
    fn bytes(&mut self, file: &File, offset: u64, len: usize, end: u64) -> io::Result<&[u8]> {
        let buffered = self.start..self.start + self.buffer.len() as u64;
        if offset < buffered.start || offset + len as u64 > buffered.end {
            let wanted = (CHUNK_BYTES.max(len) as u64).min(end - offset) as usize;
            self.buffer.resize(wanted, 0);
            self.start = offset;
            let read = file.read_exact_at(&mut self.buffer, offset);
            if read.is_err() {
                self.buffer.clear();
            }
            read?;
        }
        let from = (offset - self.start) as usize;
        Ok(&self.buffer[from..from + len])
    }
}
