//! How a journal is opened, and why that or an append fails.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use uuid::Uuid;

use super::{
    disk::{self, Directory, Disk},
    sealed,
};

/// How a journal is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Made if it is not there, for its owner alone.
    pub directory: PathBuf,
    /// The most that uncommitted records may take. On disk the journal may take four segments more.
    pub max_bytes: u64,
    /// Bytes of the file system that are left free.
    pub min_free_bytes: u64,
    /// Whether the directory may be on a file system that a restart empties.
    pub allow_volatile: bool,
    /// Length of a segment file, at least 16 KiB. A larger record makes its segment longer.
    pub segment_bytes: u64,
    /// What a new journal keeps until a fork.
    pub label: String,
    /// When a record was accepted, in milliseconds since 1970, read from its bytes. For the metric of
    /// the oldest one.
    pub accepted_at_ms: fn(&[u8]) -> Option<u64>,
    /// The file system of the directory.
    pub disk: Arc<dyn Disk>,
    /// Where ids and salts come from.
    pub random: fn() -> u128,
    /// Starts no threads: `Journal::step_writer` and `Journal::round_keeper` do their work.
    #[cfg(any(test, feature = "simulation"))]
    pub stepped: bool,
}

impl Options {
    /// The defaults: 10 GiB, 1 GiB left free, segments of 64 MiB.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            max_bytes: 10 << 30,
            min_free_bytes: 1 << 30,
            allow_volatile: false,
            segment_bytes: 64 << 20,
            label: String::new(),
            accepted_at_ms: |_| None,
            disk: Arc::new(disk::Real),
            random: || Uuid::new_v4().as_u128(),
            #[cfg(any(test, feature = "simulation"))]
            stepped: false,
        }
    }

    pub(super) fn directory(&self) -> Directory<'_> {
        Directory { disk: &*self.disk, path: &self.directory }
    }

    pub(super) fn random_uuid(&self) -> Uuid {
        uuid::Builder::from_random_bytes((self.random)().to_be_bytes()).into_uuid()
    }
}

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
