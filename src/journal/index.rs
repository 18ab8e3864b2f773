//! Positions, and which records lie where: one entry a segment, whatever the backlog.

use std::{collections::VecDeque, fmt, ops::Range};

use super::segment::{HEADER_BYTES, Header, Layout};

/// Where a record lies in a journal: the run that appended it, and its number in that run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u64);

impl Position {
    const INDEX_BITS: u32 = 40;
    /// Before every record.
    pub const MIN: Self = Self(0);
    /// After every record.
    pub const MAX: Self = Self(u64::MAX);

    /// Record `index` (below 2^40) of run `run`.
    pub const fn new(run: u32, index: u64) -> Self {
        Self((run as u64) << Self::INDEX_BITS | index)
    }

    /// The position that [`as_u64`](Self::as_u64) gave.
    pub const fn from_u64(position: u64) -> Self {
        Self(position)
    }

    /// `run << 40 | index`; fits 63 bits for the first eight million runs.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The opening of the journal that appended the record; the first is 1.
    pub const fn run(self) -> u32 {
        (self.0 >> Self::INDEX_BITS) as u32
    }

    /// The record's number in its run; the first is 0.
    pub const fn index(self) -> u64 {
        self.0 & ((1 << Self::INDEX_BITS) - 1)
    }

    /// The position after this one in its run.
    pub const fn next(self) -> Self {
        self.plus(1)
    }

    pub(super) const fn plus(self, records: u64) -> Self {
        Self(self.0 + records)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.run(), self.index())
    }
}

/// All durable records by segment, oldest first.
#[derive(Debug, Clone)]
pub(super) struct Index {
    pub(super) segments: VecDeque<Layout>,
    /// Whether the last segment is appended to.
    pub(super) last_is_open: bool,
    /// The first position that is not durable yet.
    pub(super) end: Position,
    /// Bytes of all durable frames since the oldest that was there at opening; only ever grows.
    pub(super) bytes: u64,
}

impl Index {
    /// Of the segments that were found at opening, oldest first.
    pub(super) fn new(found: VecDeque<Layout>, end: Position) -> Self {
        let bytes = found.iter().map(|segment| segment.end - HEADER_BYTES).sum();
        Self { segments: found, last_is_open: false, end, bytes }
    }

    /// Adds the segment that is appended to from now on. It may have the name of an empty one.
    pub(super) fn add_empty(&mut self, header: Header) {
        self.segments.pop_back_if(|last| last.header.base == header.base);
        self.segments.push_back(Layout::new(header));
        self.last_is_open = true;
    }

    /// Adds records that have just become durable to the end of the last segment.
    pub(super) fn extend(&mut self, positions: Range<Position>, bytes: u64) {
        let Some(last) = self.segments.back_mut() else { return };
        self.end = positions.end;
        last.add(positions, last.end..last.end + bytes);
        self.bytes += bytes;
    }

    /// Takes out the oldest segment if all its records lie before `position` and it is not appended
    /// to. An empty last one stays: the next may have its name.
    pub(super) fn pop_before(&mut self, position: Position) -> Option<Header> {
        let is_last = self.segments.len() == 1;
        let is_open = is_last && self.last_is_open;
        let oldest = self.segments.pop_front_if(|oldest| {
            let is_settled = oldest.end_position() <= position;
            is_settled && !is_open && !(is_last && oldest.spans.is_empty())
        });
        oldest.map(|segment| segment.header)
    }

    pub(super) fn has(&self, base: Position) -> bool {
        self.segments.binary_search_by_key(&base, |segment| segment.header.base).is_ok()
    }

    /// The oldest record that is left, or the end.
    pub(super) fn oldest(&self) -> Position {
        self.spans().next().map_or(self.end, |span| span.start)
    }

    fn spans(&self) -> impl Iterator<Item = &Range<Position>> {
        self.segments.iter().flat_map(|segment| &segment.spans)
    }

    /// How many records lie in `[from, to)`.
    pub(super) fn count(&self, from: Position, to: Position) -> u64 {
        self.spans().map(|span| positions(&(span.start.max(from)..span.end.min(to)))).sum()
    }

    fn first_after(&self, position: Position) -> usize {
        self.segments.partition_point(|segment| segment.end_position() <= position)
    }

    /// The segment of the first record at or after `position`.
    pub(super) fn locate(&self, position: Position) -> Option<&Layout> {
        let mut rest = self.segments.range(self.first_after(position)..);
        rest.find(|segment| !segment.spans.is_empty())
    }

    /// Bytes of all frames before `position`, on the scale of [`bytes`](Self::bytes), or a little less.
    pub(super) fn bytes_before(&self, position: Position) -> u64 {
        let mut rest = self.segments.range(self.first_after(position)..).peekable();
        let within = rest.peek().map_or(0, |first| first.mark_before(position) - HEADER_BYTES);
        self.bytes + within - rest.map(|segment| segment.end - HEADER_BYTES).sum::<u64>()
    }
}

/// How many positions a range has. It never spans runs.
pub(super) fn positions(range: &Range<Position>) -> u64 {
    range.end.as_u64().saturating_sub(range.start.as_u64())
}
