//! One segment file: its header, its frames, and what a scan finds in it.
//!
//! ```text
//! 0      header (sealed): run's own id 16 | base u64 | salt u32 | 0 u32
//! 4096   the same header once more
//! 8192   frames, one after the other:
//!        crc32c u32 | length u32 | position u64 | index in batch u32 | payload
//! ```
//!
//! A frame's CRC covers everything after itself and is seeded with the segment's random salt. So
//! neither bytes inside a body nor the old frames of a recycled file pass for a frame. A segment ends
//! where no intact frame follows.
//!
//! Positions grow by one from frame to frame. Where damage was cut out they leap.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{
    Position,
    disk::{Directory, DiskFile, Mode},
    prefixes::Prefixes,
    salvage::RetriedFile,
    sealed::{self, Fields, Unsealed},
};
use crate::mutant;

const KIND: sealed::Kind = *b"segm";
const PAGE_BYTES: usize = 4096;
/// Where the first frame begins.
pub(super) const HEADER_BYTES: u64 = 2 * PAGE_BYTES as u64;
/// What a record takes in a segment besides its payload.
pub(super) const FRAME_HEADER_BYTES: usize = 20;
const READ_BYTES: usize = 256 * 1024;

pub(super) fn directory(journal: &Path) -> PathBuf {
    journal.join("segments")
}

pub(super) fn path(journal: &Path, base: Position) -> PathBuf {
    directory(journal).join(format!("{:016x}.segment", base.as_u64()))
}

pub(super) fn open(
    journal: Directory<'_>,
    base: Position,
    mode: Mode,
) -> io::Result<Box<dyn DiskFile>> {
    journal.disk.open(&path(journal.path, base), mode)
}

/// The base position in a segment's file name.
pub(super) fn base_of(path: &Path) -> Option<Position> {
    base_with_extension(path, "segment")
}

/// Whether a file would have replaced a segment and was left unfinished.
pub(super) fn is_unfinished(path: &Path) -> bool {
    base_with_extension(path, "tmp").is_some()
}

fn base_with_extension(path: &Path, extension: &str) -> Option<Position> {
    let (stem, found) = path.file_name()?.to_str()?.split_once('.')?;
    let base = u64::from_str_radix(stem, 16).ok().filter(|base| stem == format!("{base:016x}"));
    base.filter(|_| found == extension).map(Position::from_u64)
}

/// What makes the frames of one segment readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The id of the run, the same as in the run's file.
    pub(super) run_id: Uuid,
    /// Position of the first frame.
    pub(super) base: Position,
    pub(super) salt: u32,
}

impl Header {
    /// Two copies, each on its own page: one bad page costs no segment.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut payload = self.run_id.as_bytes().to_vec();
        sealed::put_position(&mut payload, self.base);
        payload.extend_from_slice(&self.salt.to_le_bytes());
        payload.extend_from_slice(&[0; 4]);
        let mut page = sealed::seal(KIND, &payload);
        page.resize(PAGE_BYTES, 0);
        page.repeat(2)
    }

    /// Reads the first copy, or else the second.
    pub(super) fn read(
        file: Box<dyn DiskFile>,
        base: Position,
    ) -> io::Result<Result<Self, Unsealed>> {
        let mut pages = [0; 2 * PAGE_BYTES];
        let mut source = RetriedFile::salvaging(file);
        let len = source.bytes()?.min(HEADER_BYTES) as usize;
        source.read(&mut pages[..len], 0)?;
        let first = Self::decode(&pages, base);
        if first == Err(Unsealed::Damaged) {
            return Ok(Self::decode(&pages[PAGE_BYTES..], base));
        }
        Ok(first)
    }

    fn decode(page: &[u8], base: Position) -> Result<Self, Unsealed> {
        let mut fields = Fields(sealed::unseal(KIND, page)?);
        let header = (|| {
            Some(Self { run_id: fields.uuid()?, base: fields.position()?, salt: fields.u32()? })
        })();
        header.filter(|header| header.base == base).ok_or(Unsealed::Damaged)
    }
}

/// Appends a frame without its CRC, which [`seal_frames`] fills in once the segment is known.
/// Returns its bytes.
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

/// Fills in the CRCs of whole frames that lie one after the other.
pub(super) fn seal_frames(mut frames: &mut [u8], salt: u32) {
    while let Some(head) = frames.first_chunk() {
        let (frame, rest) = frames.split_at_mut(Frame::parse(head, 0).end as usize);
        let crc = crc32c::crc32c_append(salt, &frame[4..]);
        frame[..4].copy_from_slice(&crc.to_le_bytes());
        frames = rest;
    }
}

/// A frame as its head describes it.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) position: Position,
    index_in_batch: u32,
    crc: u32,
    /// Offsets in the file of its first byte and after its last.
    start: u64,
    pub(super) end: u64,
}

impl Frame {
    fn parse(head: &[u8; FRAME_HEADER_BYTES], start: u64) -> Self {
        let u32_at =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let position = u64::from(u32_at(12)) << 32 | u64::from(u32_at(8));
        Self {
            position: Position::from_u64(position),
            index_in_batch: u32_at(16),
            crc: u32_at(0),
            start,
            end: start + FRAME_HEADER_BYTES as u64 + u64::from(u32_at(4)),
        }
    }

    /// Whether it ends before `limit` and its position is in the run of `floor` and not below it.
    fn is_plausible(&self, limit: u64, floor: Position) -> bool {
        self.position.run() == floor.run() && self.position >= floor && self.end <= limit
    }
}

/// Reads the frames of one segment through a buffer that is as large as the largest of them.
#[derive(Debug)]
pub(super) struct Frames {
    source: RetriedFile,
    salt: u32,
    /// Nothing at or after this offset is read.
    pub(super) limit: u64,
    buffer: Vec<u8>,
    /// Offset in the file of the buffer's first byte.
    buffer_start: u64,
    /// From the first damage on, where anything may look like a frame.
    prefixes: Option<Prefixes>,
}

impl Frames {
    pub(super) fn new(source: RetriedFile, salt: u32, limit: u64) -> Self {
        Self { source, salt, limit, buffer: Vec::new(), buffer_start: 0, prefixes: None }
    }

    /// The frame at offset `at`, if it is [plausible](Frame::is_plausible) and intact.
    pub(super) fn frame_at(&mut self, at: u64, floor: Position) -> io::Result<Option<Frame>> {
        let Some(frame) = self.head_at(at, floor)? else { return Ok(None) };
        let crc = match &mut self.prefixes {
            Some(prefixes) => prefixes.crc(&mut self.source, at + 4..frame.end, self.salt)?,
            None => {
                let len = (frame.end - at) as usize;
                let start = self.fill(at, len)?;
                crc32c::crc32c_append(self.salt, &self.buffer[start + 4..start + len])
            }
        };
        Ok(Some(frame).filter(|frame| frame.crc == crc))
    }

    /// The frame that the bytes at offset `at` describe, if it is plausible.
    pub(super) fn head_at(&mut self, at: u64, floor: Position) -> io::Result<Option<Frame>> {
        if at + FRAME_HEADER_BYTES as u64 > self.limit {
            return Ok(None);
        }
        let start = self.fill(at, FRAME_HEADER_BYTES)?;
        let frame = self.buffer[start..].first_chunk().map(|head| Frame::parse(head, at));
        Ok(frame.filter(|frame| frame.is_plausible(self.limit, floor)))
    }

    /// The offset after the last byte that is not zero, or `at`.
    pub(super) fn last_content(&mut self, at: u64) -> io::Result<u64> {
        let (mut end, mut next) = (at, at);
        while next < self.limit {
            let start = self.fill(next, 1)?;
            let last = self.buffer[start..].iter().rposition(|byte| *byte != 0);
            end = last.map_or(end, |last| next + last as u64 + 1);
            next += (self.buffer.len() - start) as u64;
        }
        Ok(end)
    }

    /// The payload of the frame that was read last.
    pub(super) fn payload(&self, frame: &Frame) -> &[u8] {
        let start = (frame.start - self.buffer_start) as usize;
        &self.buffer[start + FRAME_HEADER_BYTES..start + (frame.end - frame.start) as usize]
    }

    /// The first intact frame at or after `at`.
    fn search(&mut self, mut at: u64, floor: Position) -> io::Result<Option<Frame>> {
        self.prefixes.get_or_insert_with(|| Prefixes::new(at));
        while at + FRAME_HEADER_BYTES as u64 <= self.limit {
            let start = self.fill(at, FRAME_HEADER_BYTES)?;
            let buffered = &self.buffer[start..];
            let candidate = (at..)
                .zip(buffered.array_windows())
                .find(|(at, head)| Frame::parse(head, *at).is_plausible(self.limit, floor));
            let Some((candidate, _)) = candidate else {
                at += (buffered.len() - FRAME_HEADER_BYTES + 1) as u64;
                continue;
            };
            if let Some(frame) = self.frame_at(candidate, floor)? {
                return Ok(Some(frame));
            }
            at = candidate + 1;
        }
        Ok(None)
    }

    /// Has `len` bytes from offset `at` in the buffer and returns where they begin in it.
    fn fill(&mut self, at: u64, len: usize) -> io::Result<usize> {
        let end = self.buffer_start + self.buffer.len() as u64;
        if at < self.buffer_start || at + len as u64 > end {
            // Taken out, so that a failed read leaves nothing that could be taken for content.
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.resize((self.limit - at).min(len.max(READ_BYTES) as u64) as usize, 0);
            self.source.read(&mut buffer, at)?;
            (self.buffer, self.buffer_start) = (buffer, at);
        }
        Ok((at - self.buffer_start) as usize)
    }
}

/// Where the intact frames of one segment lie.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) header: Header,
    /// Positions of the frames: one range, or more where some are missing.
    pub(super) spans: Vec<Range<Position>>,
    /// Position and offset in the file of some frames, which lie `mark_every_bytes` or more apart.
    marks: Vec<(Position, u64)>,
    pub(super) mark_every_bytes: u64,
    /// Offset after the last frame.
    pub(super) end: u64,
}

impl Layout {
    pub(super) fn new(header: Header, mark_every_bytes: u64) -> Self {
        let (spans, marks) = Default::default();
        Self { header, spans, marks, mark_every_bytes, end: HEADER_BYTES }
    }

    /// The position after the last frame.
    pub(super) fn end_position(&self) -> Position {
        self.spans.last().map_or(self.header.base, |span| span.end)
    }

    /// The offset of a frame at or before `position`.
    pub(super) fn mark_before(&self, position: Position) -> u64 {
        let after = self.marks.partition_point(|(marked, _)| *marked <= position);
        self.marks[..after].last().map_or(HEADER_BYTES, |(_, offset)| *offset)
    }

    /// Adds frames with these positions at these offsets.
    pub(super) fn add(&mut self, positions: Range<Position>, bytes: Range<u64>) {
        if self.marks.last().is_none_or(|(_, at)| bytes.start - at >= self.mark_every_bytes) {
            self.marks.push((positions.start, bytes.start));
        }
        match self.spans.last_mut() {
            Some(span) if span.end == positions.start => span.end = positions.end,
            _ => self.spans.push(positions),
        }
        self.end = bytes.end;
    }
}

/// What a scan found in a segment.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) layout: Layout,
    /// Bytes between intact frames.
    pub(super) holes: Vec<Range<u64>>,
    /// Positions that are missing and, if this is the last segment, were never durable: every intact
    /// frame after them belongs to the same batch.
    pub(super) torn: Vec<Range<Position>>,
    pub(super) file_bytes: u64,
    /// Bytes that cannot be read, in whole pages. They were taken for zeros.
    pub(super) unreadable_bytes: u64,
}

/// Reads a whole segment and finds every intact frame, also after damage. It ends at position
/// `complete_at`, if the next segment takes over there.
pub(super) fn scan(
    file: Box<dyn DiskFile>,
    header: Header,
    complete_at: Option<Position>,
    mark_every_bytes: u64,
) -> io::Result<Scan> {
    let source = RetriedFile::salvaging(file);
    let file_bytes = source.bytes()?;
    let mut frames = Frames::new(source, header.salt, file_bytes);
    let mut layout = Layout::new(header, mark_every_bytes);
    let (mut holes, mut torn) = (Vec::new(), Vec::<Range<Position>>::new());
    let mut expected = header.base;
    while complete_at != Some(expected) {
        let at = layout.end;
        let frame = match frames.frame_at(at, expected)? {
            Some(frame) => frame,
            None => {
                let Some(frame) = frames.search(at + 1, expected)? else { break };
                holes.push(at..frame.start);
                torn.push(expected..frame.position);
                frame
            }
        };
        // A batch is written only when the one before is durable: this frame proves that every
        // hole which begins before its own batch was durable once.
        let batch = frame.position.index().saturating_sub(frame.index_in_batch.into());
        if !mutant::is("damage taken for a torn tail") {
            torn.retain(|torn| batch <= torn.start.index());
        }
        expected = frame.position.next();
        layout.add(frame.position..expected, frame.start..frame.end);
    }
    let unreadable_bytes = frames.source.unreadable_bytes();
    Ok(Scan { layout, holes, torn, file_bytes, unreadable_bytes })
}
