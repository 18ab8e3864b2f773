//! One segment file: its header, its frames, and what a scan finds in it.
//!
//! ```text
//! 0      header (sealed): run's own id 16 | base u64 | salt u32 | durability u32
//! 4096   the same header once more
//! 8192   frames, one behind the other:
//!        crc32c u32 | length u32 | position u64 | index in batch u32 | payload
//! ```
//!
//! A frame's CRC covers everything behind itself and is seeded with the segment's salt, which is
//! random: bytes inside a body cannot pass for a frame, and old frames that lie behind the tail
//! of a recycled segment (whose salt was another) never verify. So an end is where no intact
//! frame follows, whatever the bytes there are.
//!
//! Positions grow by one from frame to frame. Where damage was cut out they leap.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{
    Durability, Position,
    sealed::{self, Fields, Unsealed},
};

const KIND: sealed::Kind = *b"segm";
const PAGE_BYTES: usize = 4096;
/// Where the first frame begins.
pub(super) const HEADER_BYTES: u64 = 2 * PAGE_BYTES as u64;
/// What a record takes in a segment besides its payload.
pub(super) const FRAME_HEADER_BYTES: usize = 20;
/// How much is read at once.
const READ_BYTES: usize = 256 * 1024;

/// Directory of the segments and of the spare files for more of them.
pub(super) fn directory(journal: &Path) -> PathBuf {
    journal.join("segments")
}

pub(super) fn path(journal: &Path, base: Position) -> PathBuf {
    directory(journal).join(format!("{:016x}.segment", base.as_u64()))
}

/// The base position that a file's name gives; `None` for files that are no segments.
pub(super) fn base_of(path: &Path) -> Option<Position> {
    if path.extension()? != "segment" {
        return None;
    }
    u64::from_str_radix(path.file_stem()?.to_str()?, 16).ok().map(Position::from_u64)
}

/// What makes the frames of one segment readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The own id of the run that wrote the segment, as in its run file.
    pub(super) run_id: Uuid,
    /// Position of the first frame.
    pub(super) base: Position,
    pub(super) salt: u32,
    pub(super) durability: Durability,
}

impl Header {
    pub(super) fn new(run_id: Uuid, base: Position, durability: Durability) -> Self {
        Self { run_id, base, salt: Uuid::new_v4().as_fields().0, durability }
    }

    /// Both copies of the header, each on a page of its own: one bad page costs no segment.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut payload = self.run_id.as_bytes().to_vec();
        sealed::put_position(&mut payload, self.base);
        payload.extend_from_slice(&self.salt.to_le_bytes());
        payload.extend_from_slice(&u32::from(self.durability == Durability::Os).to_le_bytes());
        let mut page = sealed::seal(KIND, &payload);
        page.resize(PAGE_BYTES, 0);
        page.repeat(2)
    }

    /// Reads the header of the segment with this base: its first copy, or else its second.
    pub(super) fn read(file: &File, base: Position) -> io::Result<Result<Self, Unsealed>> {
        let mut pages = [0; 2 * PAGE_BYTES];
        let len = file.metadata()?.len().min(HEADER_BYTES) as usize;
        file.read_exact_at(&mut pages[..len], 0)?;
        let first = Self::decode(&pages, base);
        if first == Err(Unsealed::Damaged) {
            return Ok(Self::decode(&pages[PAGE_BYTES..], base));
        }
        Ok(first)
    }

    fn decode(page: &[u8], base: Position) -> Result<Self, Unsealed> {
        let mut fields = Fields(sealed::unseal(KIND, page)?);
        let header = (|| {
            Some(Self {
                run_id: fields.uuid()?,
                base: fields.position()?,
                salt: fields.u32()?,
                durability: if fields.u32()? == 0 { Durability::Fsync } else { Durability::Os },
            })
        })();
        header.filter(|header| header.base == base).ok_or(Unsealed::Damaged)
    }
}

/// Appends a frame without its CRC, which [`seal_frames`] fills in once the segment is known.
/// Returns the bytes that it takes.
pub(super) fn put_frame(
    out: &mut Vec<u8>,
    position: Position,
    index_in_batch: u32,
    write: impl FnOnce(&mut Vec<u8>),
) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    sealed::put_position(out, position);
    out.extend_from_slice(&index_in_batch.to_le_bytes());
    write(out);
    let len = (out.len() - start - FRAME_HEADER_BYTES) as u32;
    out[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
    out.len() - start
}

/// Fills in the CRCs of whole frames that lie one behind the other.
pub(super) fn seal_frames(mut frames: &mut [u8], salt: u32) {
    while let Some((header, _)) = frames.split_first_chunk::<FRAME_HEADER_BYTES>() {
        let (frame, rest) = frames.split_at_mut(FRAME_HEADER_BYTES + RawFrame(header).len());
        let crc = crc32c::crc32c_append(salt, &frame[4..]);
        frame[..4].copy_from_slice(&crc.to_le_bytes());
        frames = rest;
    }
}

/// The fixed part of a frame.
struct RawFrame<'a>(&'a [u8; FRAME_HEADER_BYTES]);

impl RawFrame<'_> {
    fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    fn crc(&self) -> u32 {
        self.u32_at(0)
    }

    fn len(&self) -> usize {
        self.u32_at(4) as usize
    }

    fn position(&self) -> Position {
        Position::from_u64(u64::from(self.u32_at(12)) << 32 | u64::from(self.u32_at(8)))
    }

    fn index_in_batch(&self) -> u32 {
        self.u32_at(16)
    }
}

/// An intact frame.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) position: Position,
    index_in_batch: u32,
    /// Where its payload lies in the buffer of [`Frames`].
    payload: Range<usize>,
    /// Offset in the file of what follows it.
    pub(super) end: u64,
}

/// Reads the frames of one segment through a buffer that is as large as the largest of them.
#[derive(Debug)]
pub(super) struct Frames {
    file: File,
    salt: u32,
    buffer: Vec<u8>,
    /// Offset in the file of the buffer's first byte.
    buffer_start: u64,
}

impl Frames {
    pub(super) fn new(file: File, salt: u32) -> Self {
        Self { file, salt, buffer: Vec::new(), buffer_start: 0 }
    }

    /// The frame at offset `at`, if it is intact, ends before `limit` and its position is in the
    /// run of `floor` and not below it. Nothing at or behind `limit` is read.
    pub(super) fn frame_at(
        &mut self,
        at: u64,
        limit: u64,
        floor: Position,
    ) -> io::Result<Option<Frame>> {
        if at + FRAME_HEADER_BYTES as u64 > limit {
            return Ok(None);
        }
        let start = self.fill(at, FRAME_HEADER_BYTES, limit)?;
        let Some(header) = self.buffer[start..].first_chunk().map(RawFrame) else {
            return Ok(None);
        };
        let (position, index_in_batch) = (header.position(), header.index_in_batch());
        let (crc, len) = (header.crc(), FRAME_HEADER_BYTES + header.len());
        let end = at + len as u64;
        if end > limit || position.run() != floor.run() || position < floor {
            return Ok(None);
        }
        let start = self.fill(at, len, limit)?;
        let frame = &self.buffer[start..start + len];
        if crc32c::crc32c_append(self.salt, &frame[4..]) != crc {
            return Ok(None);
        }
        let payload = start + FRAME_HEADER_BYTES..start + len;
        Ok(Some(Frame { position, index_in_batch, payload, end }))
    }

    /// The payload of the frame that was read last.
    pub(super) fn payload(&self, frame: &Frame) -> &[u8] {
        &self.buffer[frame.payload.clone()]
    }

    /// The first intact frame at or behind `at`, and where it begins.
    fn search(
        &mut self,
        mut at: u64,
        limit: u64,
        floor: Position,
    ) -> io::Result<Option<(u64, Frame)>> {
        while at + FRAME_HEADER_BYTES as u64 <= limit {
            let start = self.fill(at, FRAME_HEADER_BYTES, limit)?;
            let buffered = &self.buffer[start..];
            let candidate = buffered.array_windows().position(|header| {
                let position = RawFrame(header).position();
                position.run() == floor.run() && position >= floor
            });
            let Some(skipped) = candidate else {
                at += (buffered.len() - FRAME_HEADER_BYTES + 1) as u64;
                continue;
            };
            at += skipped as u64;
            if let Some(frame) = self.frame_at(at, limit, floor)? {
                return Ok(Some((at, frame)));
            }
            at += 1;
        }
        Ok(None)
    }

    /// Has `len` bytes from offset `at` in the buffer and returns where they begin in it.
    fn fill(&mut self, at: u64, len: usize, limit: u64) -> io::Result<usize> {
        let end = self.buffer_start + self.buffer.len() as u64;
        if at < self.buffer_start || at + len as u64 > end {
            // Taken out, so that a failed read leaves nothing that could be taken for content.
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.resize((limit - at).min(len.max(READ_BYTES) as u64) as usize, 0);
            self.file.read_exact_at(&mut buffer, at)?;
            (self.buffer, self.buffer_start) = (buffer, at);
        }
        Ok((at - self.buffer_start) as usize)
    }
}

/// A place in a segment from which reading can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) position: Position,
    pub(super) offset: u64,
}

/// What a scan found in a segment.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Positions of the intact frames.
    pub(super) spans: Vec<Range<Position>>,
    pub(super) marks: Vec<Mark>,
    /// Offset behind the last intact frame.
    pub(super) end: u64,
    /// Bytes between intact frames that are none themselves.
    pub(super) holes: Vec<Range<u64>>,
    /// Positions that are missing and were never durable, if this is the last segment: what is
    /// left behind them belongs to the same batch.
    pub(super) torn: Vec<Range<Position>>,
    pub(super) file_bytes: u64,
}

impl Scan {
    /// The position behind the last intact frame.
    pub(super) fn end_position(&self, header: &Header) -> Position {
        self.spans.last().map_or(header.base, |span| span.end)
    }

    fn add(&mut self, frame: &Frame, offset: u64, mark_every_bytes: u64) {
        match self.spans.last_mut() {
            Some(span) if span.end == frame.position => span.end = frame.position.next(),
            _ => self.spans.push(frame.position..frame.position.next()),
        }
        if self.marks.last().is_none_or(|mark| offset - mark.offset >= mark_every_bytes) {
            self.marks.push(Mark { position: frame.position, offset });
        }
        self.end = frame.end;
    }
}

/// Reads a whole segment and finds every intact frame, also behind damage.
///
/// `complete_at` is the position at which the next segment takes over, where that is known.
pub(super) fn scan(
    file: File,
    header: &Header,
    complete_at: Option<Position>,
    mark_every_bytes: u64,
) -> io::Result<Scan> {
    let file_bytes = file.metadata()?.len();
    let mut scan = Scan { end: HEADER_BYTES, file_bytes, ..Scan::default() };
    let mut frames = Frames::new(file, header.salt);
    let mut expected = header.base;
    while complete_at != Some(expected) {
        let at = scan.end;
        let frame = match frames.frame_at(at, file_bytes, expected)? {
            Some(frame) => frame,
            None => {
                let Some((start, frame)) = frames.search(at + 1, file_bytes, expected)? else {
                    break;
                };
                scan.holes.push(at..start);
                let batch = frame.position.index().saturating_sub(frame.index_in_batch.into());
                if batch <= expected.index() {
                    scan.torn.push(expected..frame.position);
                }
                frame
            }
        };
        let start = frame.end - (FRAME_HEADER_BYTES + frame.payload.len()) as u64;
        expected = frame.position.next();
        scan.add(&frame, start, mark_every_bytes);
    }
    Ok(scan)
}
