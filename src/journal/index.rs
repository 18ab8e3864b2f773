//! Which records lie where: one entry a segment, whatever the backlog.

use std::{collections::VecDeque, ops::Range};

use super::{
    Position,
    segment::{HEADER_BYTES, Header, Mark, Scan},
};

/// What memory keeps of one segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) header: Header,
    /// Positions of its durable records: one range, or more where damage was cut out.
    spans: Vec<Range<Position>>,
    /// Where reading can begin, some way apart.
    marks: Vec<Mark>,
    /// Offset after its last durable frame.
    end: u64,
    /// Bytes of all frames in the segments before it, as [`Index::bytes`] counts them.
    bytes_before: u64,
}

impl Segment {
    fn end_position(&self) -> Position {
        self.spans.last().map_or(self.header.base, |span| span.end)
    }

    fn mark_before(&self, position: Position) -> u64 {
        let after = self.marks.partition_point(|mark| mark.position <= position);
        self.marks[..after].last().map_or(HEADER_BYTES, |mark| mark.offset)
    }
}

/// Where a reader finds a position.
#[derive(Debug, Clone, Copy)]
pub(super) struct SegmentLocation {
    pub(super) base: Position,
    pub(super) salt: u32,
    /// An offset in the segment at or before the position's frame, at which a frame begins.
    pub(super) offset: u64,
    /// Offset after the segment's last durable frame.
    pub(super) limit: u64,
}

/// All durable records by segment, oldest first.
#[derive(Debug)]
pub(super) struct Index {
    segments: VecDeque<Segment>,
    /// Whether the last segment is appended to.
    last_is_open: bool,
    /// The first position that is not durable yet.
    end: Position,
    /// Bytes of all durable frames since the oldest that was there at opening; only ever grows.
    bytes: u64,
    mark_every_bytes: u64,
}

impl Index {
    pub(super) fn new(end: Position, mark_every_bytes: u64) -> Self {
        Self { segments: VecDeque::new(), last_is_open: false, end, bytes: 0, mark_every_bytes }
    }

    /// Adds a segment that was found at opening; oldest first.
    pub(super) fn add_scanned(&mut self, header: Header, scan: &Scan) {
        let Scan { spans, marks, end, .. } = scan;
        let (spans, marks, end) = (spans.clone(), marks.clone(), *end);
        let bytes_before = self.bytes;
        self.segments.push_back(Segment { header, spans, marks, end, bytes_before });
        self.bytes += end - HEADER_BYTES;
    }

    /// Adds the segment that is appended to from now on. One that got no record is forgotten.
    pub(super) fn add_empty(&mut self, header: Header) {
        self.segments.pop_back_if(|last| last.header.base == header.base);
        let (spans, marks, bytes_before) = (Vec::new(), Vec::new(), self.bytes);
        self.segments.push_back(Segment { header, spans, marks, end: HEADER_BYTES, bytes_before });
        self.last_is_open = true;
    }

    /// Whether the last segment is appended to, and has records.
    pub(super) fn is_appended_to(&self) -> bool {
        self.last_is_open && self.segments.back().is_some_and(|last| !last.spans.is_empty())
    }

    /// Nothing is appended to the last segment any more.
    pub(super) fn close_last(&mut self) {
        self.last_is_open = false;
    }

    /// Adds records that have just become durable to the end of the last segment.
    pub(super) fn extend(&mut self, positions: Range<Position>, bytes: u64) {
        let Some(last) = self.segments.back_mut() else { return };
        if last.marks.last().is_none_or(|mark| last.end - mark.offset >= self.mark_every_bytes) {
            last.marks.push(Mark { position: positions.start, offset: last.end });
        }
        self.end = positions.end;
        match last.spans.last_mut() {
            Some(span) => span.end = positions.end,
            None => last.spans.push(positions),
        }
        last.end += bytes;
        self.bytes += bytes;
    }

    /// Takes out the oldest segment if all its records lie before `position` and nothing is
    /// appended to it. The last one stays while it is empty: the next may have its name.
    pub(super) fn pop_before(&mut self, position: Position) -> Option<Header> {
        let is_last = self.segments.len() == 1;
        let is_open = is_last && self.last_is_open;
        let oldest = self.segments.pop_front_if(|oldest| {
            let is_settled = oldest.end_position() <= position;
            is_settled && !is_open && !(is_last && oldest.spans.is_empty())
        });
        oldest.map(|segment| segment.header)
    }

    pub(super) fn len(&self) -> usize {
        self.segments.len()
    }

    pub(super) fn end(&self) -> Position {
        self.end
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn has(&self, base: Position) -> bool {
        self.segments.binary_search_by_key(&base, |segment| segment.header.base).is_ok()
    }

    /// The oldest record that is left, or the end.
    pub(super) fn oldest(&self) -> Position {
        self.spans().next().map_or(self.end, |span| span.start)
    }

    pub(super) fn spans(&self) -> impl Iterator<Item = &Range<Position>> {
        self.segments.iter().flat_map(|segment| &segment.spans)
    }

    /// How many records lie in `[from, to)`.
    pub(super) fn count(&self, from: Position, to: Position) -> u64 {
        count(self.spans(), from, to)
    }

    /// The segment of the first record at or after `position`.
    pub(super) fn locate(&self, position: Position) -> Option<SegmentLocation> {
        let at = self.segments.partition_point(|segment| segment.end_position() <= position);
        let segment = self.segments.range(at..).find(|segment| !segment.spans.is_empty())?;
        Some(SegmentLocation {
            base: segment.header.base,
            salt: segment.header.salt,
            offset: segment.mark_before(position),
            limit: segment.end,
        })
    }

    /// Bytes of all frames before `position`, as [`bytes`](Self::bytes) counts them, or a little
    /// less.
    pub(super) fn bytes_before(&self, position: Position) -> u64 {
        let at = self.segments.partition_point(|segment| segment.end_position() <= position);
        self.segments.get(at).map_or(self.bytes, |segment| {
            segment.bytes_before + segment.mark_before(position) - HEADER_BYTES
        })
    }
}

/// How many positions of the ranges lie in `[from, to)`. A range never spans runs.
pub(super) fn count<'a>(
    spans: impl Iterator<Item = &'a Range<Position>>,
    from: Position,
    to: Position,
) -> u64 {
    spans
        .map(|span| {
            let (first, last) = (span.start.max(from), span.end.min(to));
            last.as_u64().saturating_sub(first.as_u64())
        })
        .sum()
}
