use std::{path::PathBuf, sync::Arc};

use uuid::Uuid;

use super::disk::{self, Directory, Disk};

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
