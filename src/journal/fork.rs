//! A new identity for a journal whose old identity is lost, or was used by another edge.
//!
//! The command leaves a [`Request`] in the journal's directory; the next start of the edge takes it up
//! through [`Journal::take_fork`](super::Journal::take_fork).

use std::io;

use uuid::Uuid;

use super::{
    OpenError, Position,
    disk::Directory,
    sealed::{self, Fields},
};

const KIND: sealed::Kind = *b"fork";
/// The file of the request, in the journal's directory.
pub const NAME: &str = "fork";

/// What the journal shall be from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The journal's id from now on. Random: it must never have published.
    pub new_id: Uuid,
    /// Where publishing begins: at the first record at or after this position.
    pub from: Position,
    /// The journal's label from now on.
    pub label: String,
}

impl Request {
    /// Leaves the request, durably, in a journal's directory. A later one replaces it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, journal: Directory<'_>) -> io::Result<()> {
        let mut payload = self.new_id.as_bytes().to_vec();
        sealed::put_position(&mut payload, self.from);
        sealed::put_text(&mut payload, &self.label);
        sealed::write(journal, NAME, KIND, &payload)
    }

    pub(super) fn read(journal: Directory<'_>) -> Result<Option<Self>, OpenError> {
        let path = journal.path.join(NAME);
        let Some(payload) = sealed::read(journal.disk, &path, KIND)? else { return Ok(None) };
        let mut fields = Fields(&payload);
        Ok((|| {
            let (new_id, from) = (fields.uuid()?, fields.position()?);
            Some(Self { new_id, from, label: fields.text()? })
        })())
    }

    pub(super) fn remove(journal: Directory<'_>) -> io::Result<()> {
        journal.disk.remove_if_there(&journal.path.join(NAME))
    }
}

/// What a fork that was taken up did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forked {
    /// Where publishing goes on.
    pub from: Position,
    /// Records that waited and will not be published. The account of callbacks holds only if the
    /// caller counts them as settled.
    pub left_out: u64,
    /// Records that were committed under the old id and will be published again. They are
    /// counted as recovered.
    pub repeated: u64,
}
