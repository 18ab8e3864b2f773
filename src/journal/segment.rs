//! One segment file: its header, its frames, and what a scan finds in it.
//!
//! ```text
//! 0      header (sealed): run's own id 16 | base u64 | salt u32 | 0 u32
//! 4096   the same header once more
//! 8192   frames, one after the other:
//!        crc32c u32 | length u32 | position u64 | index in batch u32 | payload
//! ```
//!
//! A frame's CRC covers everything after itself and is seeded with the segment's salt, which is
//! random: bytes inside a body cannot pass for a frame, and old frames that lie after the tail
//! of a recycled segment (whose salt was another) never verify. So an end is where no intact
//! frame follows, whatever the bytes there are.
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
    disk::{Directory, DiskFile},
    prefixes::Prefixes,
    salvage::Source,
    sealed::{self, Fields, Unsealed},
};
use crate::mutant;

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
    base_of_name(path, "segment")
}

/// Likewise for a file that would have replaced a segment and was left unfinished.
pub(super) fn base_of_unfinished(path: &Path) -> Option<Position> {
    base_of_name(path, "tmp")
}

fn base_of_name(path: &Path, extension: &str) -> Option<Position> {
    let (stem, found) = path.file_name()?.to_str()?.split_once('.')?;
    let base = u64::from_str_radix(stem, 16).ok().filter(|base| stem == format!("{base:016x}"));
    base.filter(|_| found == extension).map(Position::from_u64)
}

/// The base positions of the segments that a journal has, in any order.
pub(super) fn bases(journal: Directory<'_>) -> io::Result<Vec<Position>> {
    let paths = journal.disk.list(&directory(journal.path))?;
    Ok(paths.iter().filter_map(|path| base_of(path)).collect())
}

/// What makes the frames of one segment readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The own id of the run that wrote the segment, as in its run file.
    pub(super) run_id: Uuid,
    /// Position of the first frame.
    pub(super) base: Position,
    pub(super) salt: u32,
}

impl Header {
    /// Both copies of the header, each on its own page: one bad page costs no segment.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut payload = self.run_id.as_bytes().to_vec();
        sealed::put_position(&mut payload, self.base);
        payload.extend_from_slice(&self.salt.to_le_bytes());
        payload.extend_from_slice(&[0; 4]);
        let mut page = sealed::seal(KIND, &payload);
        page.resize(PAGE_BYTES, 0);
        page.repeat(2)
    }

    /// Reads the header of the segment with this base: its first copy, or else its second.
    pub(super) fn read(
        file: Box<dyn DiskFile>,
        base: Position,
    ) -> io::Result<Result<Self, Unsealed>> {
        let mut pages = [0; 2 * PAGE_BYTES];
        let mut source = Source::salvaging(file);
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

/// Fills in the CRCs of whole frames that lie one after the other.
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

    /// The frame, if this can be the head of one at offset `at` that ends before `limit` and whose
    /// position is in the run of `floor` and not below it.
    fn plausible(&self, at: u64, limit: u64, floor: Position) -> Option<Frame> {
        let position = self.position();
        let end = at + (FRAME_HEADER_BYTES + self.len()) as u64;
        let is_plausible = position.run() == floor.run() && position >= floor && end <= limit;
        let (crc, index_in_batch) = (self.u32_at(0), self.u32_at(16));
        is_plausible.then_some(Frame { position, index_in_batch, crc, start: at, end })
    }

    fn len(&self) -> usize {
        self.u32_at(4) as usize
    }

    fn position(&self) -> Position {
        Position::from_u64(u64::from(self.u32_at(12)) << 32 | u64::from(self.u32_at(8)))
    }
}

/// A frame: what its head says, or once it was checked, what it is.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) position: Position,
    index_in_batch: u32,
    crc: u32,
    /// Offset in the file.
    start: u64,
    /// Offset in the file of what follows it.
    pub(super) end: u64,
}

/// Reads the frames of one segment through a buffer that is as large as the largest of them.
#[derive(Debug)]
pub(super) struct Frames {
    source: Source,
    salt: u32,
    buffer: Vec<u8>,
    /// Offset in the file of the buffer's first byte.
    buffer_start: u64,
    /// From the first damage on: what looks like a frame there may be anything.
    prefixes: Option<Prefixes>,
}

impl Frames {
    pub(super) fn new(source: Source, salt: u32) -> Self {
        Self { source, salt, buffer: Vec::new(), buffer_start: 0, prefixes: None }
    }

    /// The frame at offset `at`, if it is intact, ends before `limit` and its position is in the
    /// run of `floor` and not below it. Nothing at or after `limit` is read.
    pub(super) fn frame_at(
        &mut self,
        at: u64,
        limit: u64,
        floor: Position,
    ) -> io::Result<Option<Frame>> {
        let Some(frame) = self.head_at(at, limit, floor)? else { return Ok(None) };
        let crc = match &mut self.prefixes {
            Some(prefixes) => prefixes.crc(&mut self.source, at + 4..frame.end, self.salt)?,
            None => {
                let len = (frame.end - at) as usize;
                let start = self.fill(at, len, limit)?;
                crc32c::crc32c_append(self.salt, &self.buffer[start + 4..start + len])
            }
        };
        Ok(Some(frame).filter(|frame| frame.crc == crc))
    }

    /// What the bytes at offset `at` say, if they can be the head of such a frame.
    pub(super) fn head_at(
        &mut self,
        at: u64,
        limit: u64,
        floor: Position,
    ) -> io::Result<Option<Frame>> {
        if at + FRAME_HEADER_BYTES as u64 > limit {
            return Ok(None);
        }
        let start = self.fill(at, FRAME_HEADER_BYTES, limit)?;
        let head = self.buffer[start..].first_chunk().map(RawFrame);
        Ok(head.and_then(|head| head.plausible(at, limit, floor)))
    }

    /// The offset after the last byte before `limit` that is not zero, or `at`.
    pub(super) fn last_content(&mut self, at: u64, limit: u64) -> io::Result<u64> {
        let (mut end, mut next) = (at, at);
        while next < limit {
            let start = self.fill(next, 1, limit)?;
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
    fn search(&mut self, mut at: u64, limit: u64, floor: Position) -> io::Result<Option<Frame>> {
        self.prefixes.get_or_insert_with(|| Prefixes::new(at));
        while at + FRAME_HEADER_BYTES as u64 <= limit {
            let start = self.fill(at, FRAME_HEADER_BYTES, limit)?;
            let buffered = &self.buffer[start..];
            let candidate = (at..)
                .zip(buffered.array_windows())
                .find(|(at, head)| RawFrame(head).plausible(*at, limit, floor).is_some());
            let Some((candidate, _)) = candidate else {
                at += (buffered.len() - FRAME_HEADER_BYTES + 1) as u64;
                continue;
            };
            if let Some(frame) = self.frame_at(candidate, limit, floor)? {
                return Ok(Some(frame));
            }
            at = candidate + 1;
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
            self.source.read(&mut buffer, at)?;
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
    /// Offset after the last intact frame.
    pub(super) end: u64,
    /// Bytes between intact frames that are none themselves.
    pub(super) holes: Vec<Range<u64>>,
    /// Positions that are missing and were never durable, if this is the last segment: all that
    /// is left after them, to the last intact frame, belongs to the same batch.
    pub(super) torn: Vec<Range<Position>>,
    pub(super) file_bytes: u64,
    /// Bytes that cannot be read, in whole pages. They were taken for zeros.
    pub(super) unreadable_bytes: u64,
}

impl Scan {
    /// The position after the last intact frame.
    pub(super) fn end_position(&self, header: &Header) -> Position {
        self.spans.last().map_or(header.base, |span| span.end)
    }

    fn add(&mut self, frame: &Frame, mark_every_bytes: u64) {
        let offset = frame.start;
        // A batch is written only when the one before is durable: this frame proves that every
        // hole which begins before its own batch was durable once.
        let batch = frame.position.index().saturating_sub(frame.index_in_batch.into());
        if !mutant::is("damage taken for a torn tail") {
            self.torn.retain(|torn| batch <= torn.start.index());
        }
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

/// Reads a whole segment and finds every intact frame, also after damage.
///
/// `complete_at` is the position at which the next segment takes over, where that is known.
pub(super) fn scan(
    file: Box<dyn DiskFile>,
    header: &Header,
    complete_at: Option<Position>,
    mark_every_bytes: u64,
) -> io::Result<Scan> {
    let source = Source::salvaging(file);
    let file_bytes = source.bytes()?;
    let mut scan = Scan { end: HEADER_BYTES, file_bytes, ..Scan::default() };
    let mut frames = Frames::new(source, header.salt);
    let mut expected = header.base;
    while complete_at != Some(expected) {
        let at = scan.end;
        let frame = match frames.frame_at(at, file_bytes, expected)? {
            Some(frame) => frame,
            None => {
                let Some(frame) = frames.search(at + 1, file_bytes, expected)? else { break };
                scan.holes.push(at..frame.start);
                scan.torn.push(expected..frame.position);
                frame
            }
        };
        expected = frame.position.next();
        scan.add(&frame, mark_every_bytes);
    }
    scan.unreadable_bytes = frames.source.unreadable_bytes();
    Ok(scan)
}
