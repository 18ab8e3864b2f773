//! A new identity for a journal whose old identity is lost, or was used by another edge.
//!
//! The command leaves a request in the journal's directory. The next start of the edge takes it up with
//! [`Journal::take_fork`](super::Journal::take_fork).

use std::io;

use super::{Identity, Journal, Position, disk::Directory, sealed};

const KIND: sealed::Kind = *b"fork";
/// The file of the request, in the journal's directory.
pub const NAME: &str = "fork";

/// Leaves a request durably. It replaces an earlier one.
///
/// The id must be random and never have published. Publishing begins at the first record at or after
/// [`Identity::start`].
///
/// # Errors
/// When the file cannot be written.
pub fn request(journal: Directory<'_>, identity: &Identity) -> io::Result<()> {
    sealed::write(journal, NAME, KIND, &identity.encode())
}

/// What a fork did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forked {
    /// Where publishing goes on.
    pub from: Position,
    /// Pending records that will not be published. The caller must count them as settled.
    pub left_out: u64,
    /// Records that were committed under the old id and will be published again. They are counted as
    /// recovered.
    pub repeated: u64,
}

impl Journal {
    /// Takes up the request that `journal fork` left, if there is one. The journal then has another id
    /// and label, its runs have other ids, and publishing begins where the request says: all at once, and
    /// durably. Call it while nothing is being published.
    ///
    /// # Errors
    /// When the request cannot be read, or the identity cannot be written. The journal has failed if the
    /// new identity may be on disk.
    pub fn take_fork(&self) -> io::Result<Option<Forked>> {
        let shared = self.shared();
        let journal = shared.options.directory();
        let _writing = shared.history.lock();
        let request = sealed::read(journal, NAME, KIND, Identity::decode);
        let Some(mut forked) = request.map_err(io::Error::other)? else { return Ok(None) };
        let request = journal.path.join(NAME);
        let mut identity = shared.identity.write();
        if identity.id == forked.id {
            // Taken up already. The copy may be missing, and the request is still there.
            identity.write(journal)?;
            journal.disk.remove_if_there(&request)?;
            return Ok(None);
        }
        let (oldest, end) = (self.oldest(), self.durable());
        forked.start = forked.start.clamp(oldest, end);
        if let Err(error) = forked.write(journal) {
            // If the new identity may be on disk, the next opening begins where it says. What this process
            // published under the old one would be published again.
            if !Identity::is_written(&identity, journal) {
                shared.fail(format!("the new identity of a fork cannot be written: {error}"));
            }
            return Err(error);
        }
        let from = forked.start;
        let mut watermarks = shared.watermarks.lock();
        let (left_out, repeated) = shared.move_to(&mut watermarks, from);
        watermarks.moved = None;
        watermarks.checkpoint = forked.first_checkpoint(&shared.runs);
        *identity = forked;
        drop((watermarks, identity));
        if let Err(error) = journal.disk.remove_if_there(&request) {
            tracing::warn!(%error, "a fork request that was taken up could not be removed");
        }
        Ok(Some(Forked { from, left_out, repeated }))
    }
}
