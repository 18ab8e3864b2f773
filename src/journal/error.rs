use std::{
    io,
    path::{Path, PathBuf},
};

use super::sealed;

/// Why a journal cannot be opened.
#[expect(missing_docs, reason = "the messages say what each holds")]
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the journal in {directory} is in use by {}: end that process, or give this one another \
         journal.directory",
        match pid { Some(pid) => format!("process {pid}"), None => "another process".to_owned() },
        directory = directory.display()
    )]
    Locked { directory: PathBuf, pid: Option<u32> },
    /// Another process opened it past the lock.
    #[error(
        "another process has just opened the journal as run {run}; locks seem not to work on its file system"
    )]
    RunTaken { run: u32 },
    #[error(
        "{} has format version {version}; this program reads up to {}: start the newer program again, \
         until nothing is pending, or give this one another journal.directory",
        path.display(), sealed::FORMAT_VERSION
    )]
    Newer { path: PathBuf, version: u32 },
    #[error(
        "the journal's directory {} is on {file_system}, which a restart empties: callbacks that were \
         answered 200 would be lost. Put journal.directory on a volume that stays, or set \
         journal.allow_volatile = true where that loss does not matter",
        directory.display()
    )]
    Volatile { directory: PathBuf, file_system: &'static str },
    #[error(
        "{} {why}: others could put files or symbolic links into the journal. Make it a directory that \
         only this user writes to (chmod 700)",
        path.display()
    )]
    Exposed { path: PathBuf, why: &'static str },
    #[error(
        "the journal cannot use {}: mend that and start again, nothing in the journal has been lost by it",
        path.display()
    )]
    Io { path: PathBuf, source: io::Error },
}

/// Says at which path an I/O error happened.
pub(super) fn io_at(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { path: path.to_owned(), source }
}

/// Why a record was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// No room in the journal or on the disk. The record is not stored.
    #[error("the journal is full")]
    Full,
    /// More records wait for the disk than it takes. The record is not stored.
    #[error("the journal's disk is too slow")]
    Slow,
    /// The journal is closed or can no longer be trusted. The record may be found at the next opening, and
    /// counts as recovered then.
    #[error("the journal takes no records any more")]
    Failed,
}
