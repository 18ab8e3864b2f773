//! Reading a journal without opening it, even while it is in use.

use std::io;

use uuid::Uuid;

use super::{
    Checkpoint, Identity, OpenError, Position, disk::Directory, identity::Runs, index::Index,
    io_at, recovery::Survey,
};

/// What is in a journal.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// Its identity since the last fork.
    pub id: Uuid,
    /// What it keeps of the configuration.
    pub label: String,
    /// Those that are known, oldest first.
    pub runs: Vec<Run>,
    /// The oldest record that is left, or `end`.
    pub oldest: Position,
    /// The position after the last record. A journal in use may have got more since.
    pub end: Position,
    /// The last one on disk.
    pub checkpoint: Option<Checkpoint>,
    index: Index,
}

/// One opening of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Counted from the first opening.
    pub number: u32,
    /// The id under which its positions are committed.
    pub id: Uuid,
    /// Its records that are left.
    pub records: u64,
}

impl Inspection {
    /// Records in `[from, to)`.
    pub fn count(&self, from: Position, to: Position) -> u64 {
        self.index.count(from, to)
    }
}

/// The first position that is not committed, as the checkpoint on disk has it; without one, where publishing
/// begins. None without a journal.
///
/// # Errors
/// When the journal cannot be read, or is of a newer format.
pub fn committed_on_disk(journal: Directory<'_>) -> Result<Option<Position>, OpenError> {
    let Some(identity) = Identity::read(journal)? else { return Ok(None) };
    let checkpoint = Checkpoint::read(journal, identity.id)?;
    Ok(Some(checkpoint.map_or(identity.start, |checkpoint| checkpoint.position)))
}

/// Reads a journal's directory, and changes nothing. Takes about half a second per GiB.
///
/// # Errors
/// When there is no journal, or it cannot be read, or is of a newer format.
pub fn inspect(journal: Directory<'_>) -> Result<Inspection, OpenError> {
    let none = || io::Error::new(io::ErrorKind::NotFound, "there is no journal here");
    let identity = Identity::read(journal)?.ok_or_else(|| io_at(journal.path)(none()))?;
    let mut known = Runs::read(journal)?;
    let survey = Survey::make(journal, u64::MAX)?;
    survey.add_runs(&mut known);
    let checkpoint = Checkpoint::read(journal, identity.id)?;
    let checkpoint = checkpoint.or_else(|| identity.first_checkpoint(&known));
    let end = survey.spans().last().map_or(Position::new(known.highest, 0), |last| last.end);
    let segments = survey.segments.into_iter().map(|scan| scan.layout).collect();
    let index = Index::new(segments, end, u64::MAX);
    let runs = known.own.iter().map(|(&number, own)| {
        let (start, end) = (Position::new(number, 0), Position::new(number + 1, 0));
        Run { number, id: identity.run_id(*own), records: index.count(start, end) }
    });
    Ok(Inspection {
        id: identity.id,
        runs: runs.collect(),
        oldest: index.oldest(),
        end,
        checkpoint,
        label: identity.label,
        index,
    })
}
