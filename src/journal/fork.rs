//! A new identity for a journal whose old identity is lost, or was used by another edge.
//!
//! The command leaves a request in the journal's directory. The next start of the edge takes it up with
//! [`Journal::take_fork`](super::Journal::take_fork).

use std::io;

use super::{Identity, disk::Directory, sealed};

pub(super) const KIND: sealed::Kind = *b"fork";
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
    /// Pending records that will not be published. The caller must count them as settled.
    pub left_out: u64,
    /// Records that were committed under the old id and will be published again. They are counted as
    /// recovered.
    pub repeated: u64,
}
