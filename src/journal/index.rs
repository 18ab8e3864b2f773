//! Which records lie where: one entry a segment, whatever the backlog.

use std::{collections::VecDeque, ops::Range};

use super::{
    Position,
    segment::{HEADER_BYTES, Header, Layout},
};

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
    mark_every_bytes: u64,
}

impl Index {
    /// Of the segments that were found at opening, oldest first.
    pub(super) fn new(found: VecDeque<Layout>, end: Position, mark_every_bytes: u64) -> Self {
        let bytes = found.iter().map(|segment| segment.end - HEADER_BYTES).sum();
        Self { segments: found, last_is_open: false, end, bytes, mark_every_bytes }
    }

    /// Adds the segment that is appended to from now on. It may have the name of an empty one.
    pub(super) fn add_empty(&mut self, header: Header) {
        self.segments.pop_back_if(|last| last.header.base == header.base);
        self.segments.push_back(Layout::new(header, self.mark_every_bytes));
        self.last_is_open = true;
    }

    /// The segment that is appended to.
    pub(super) fn open(&self) -> Option<&Layout> {
        self.segments.back().filter(|_| self.last_is_open)
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
