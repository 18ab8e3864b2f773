use std::fmt;

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
