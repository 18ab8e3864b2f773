//! Who a journal is: its id and label, and the ids of its runs.
//!
//! A run's file holds the run's own random id. The id that is committed to Kafka is derived from it and
//! from the journal's id. So a fork, which gives the journal a new id, changes the ids of all its runs at
//! once: the journal no longer knows any id under which another copy may have published, and old records
//! stay readable.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    OpenError, Options, Position,
    disk::{Directory, Disk, Mode},
    io_at,
    sealed::{self, Fields},
};
use crate::mutant;

const KIND: sealed::Kind = *b"idty";
const NAME: &str = "identity";
/// Written after the first file, read if the first is lost. Without an id the journal would get a new one
/// and publish everything again.
const COPY: &str = "identity.copy";
const RUN_KIND: sealed::Kind = *b"runn";
/// A run's file that nothing else needs is kept for this many runs.
const RUNS_KEPT: u32 = 1024;

/// What a journal gets when it is created. A fork replaces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) id: Uuid,
    pub(super) label: String,
    /// Where publishing begins while this identity has no checkpoint: what a fork was told.
    pub(super) start: Option<Position>,
}

impl Identity {
    pub(super) fn born(options: &Options) -> Self {
        Self { id: options.random_uuid(), label: options.label.clone(), start: None }
    }

    /// Makes this the identity of the journal, durably.
    pub(super) fn write(&self, journal: Directory<'_>) -> io::Result<()> {
        let mut payload = self.id.as_bytes().to_vec();
        // No run has the number 0, so that its first position can stand for none.
        sealed::put_position(&mut payload, self.start.unwrap_or_default());
        sealed::put_text(&mut payload, &self.label);
        sealed::write(journal, NAME, KIND, &payload)?;
        sealed::write(journal, COPY, KIND, &payload)
    }

    pub(super) fn read(journal: Directory<'_>) -> Result<Option<Self>, OpenError> {
        for name in [NAME, COPY] {
            let path = journal.path.join(name);
            let Some(payload) = sealed::read(journal.disk, &path, KIND)? else { continue };
            let mut fields = Fields(&payload);
            let (id, start, label) = (fields.uuid(), fields.position(), fields.text());
            if let (Some(id), Some(start), Some(label)) = (id, start, label) {
                let start = Some(start).filter(|start| *start != Position::default());
                return Ok(Some(Self { id, label, start }));
            }
        }
        Ok(None)
    }

    /// The id of a run as the world sees it.
    pub(super) fn run_id(&self, own: Uuid) -> Uuid {
        let hash = Sha256::new().chain_update(self.id).chain_update(own).finalize();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }
}

/// The runs of a journal and their own ids.
#[derive(Debug, Clone, Default)]
pub(super) struct Runs {
    own: BTreeMap<u32, Uuid>,
    /// The highest number that was ever taken.
    highest: u32,
}

impl Runs {
    fn directory(journal: &Path) -> PathBuf {
        journal.join("runs")
    }

    pub(super) fn path(journal: &Path, number: u32) -> PathBuf {
        Self::directory(journal).join(number.to_string())
    }

    pub(super) fn read(journal: Directory<'_>) -> Result<Self, OpenError> {
        let mut runs = Self::default();
        let directory = Self::directory(journal.path);
        for path in journal.disk.list(&directory).map_err(io_at(&directory))? {
            let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            let Some(number) = number else { continue };
            runs.highest = runs.highest.max(number);
            if let Some(own) = read_run(journal.disk, &path)? {
                runs.own.insert(number, own);
            }
        }
        Ok(runs)
    }

    /// Learns of a run from something else than its file.
    pub(super) fn add(&mut self, number: u32, own: Option<Uuid>) {
        self.highest = self.highest.max(number);
        if let Some(own) = own {
            self.own.entry(number).or_insert(own);
        }
    }

    pub(super) fn highest(&self) -> u32 {
        self.highest
    }

    /// Takes the next run. Its file is created exclusively and is durable before any record is read. So
    /// two processes never have the same run, and an earlier process that is still alive acknowledges
    /// nothing that this one has not seen, even if the lock does not work.
    pub(super) fn take(&mut self, journal: Directory<'_>, own: Uuid) -> Result<u32, OpenError> {
        let number = self.highest + 1;
        if mutant::is("run number used twice") && self.highest > 0 {
            return Ok(self.highest);
        }
        let directory = Self::directory(journal.path);
        let path = Self::path(journal.path, number);
        match write_run(journal.disk, &path, own) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(OpenError::RunTaken { run: number });
            }
            result => result.map_err(io_at(&path))?,
        }
        journal.disk.sync_directory(&directory).map_err(io_at(&directory))?;
        self.add(number, Some(own));
        Ok(number)
    }

    /// Writes missing files of known runs again, and removes old ones of runs before `needed`.
    pub(super) fn mend(&mut self, journal: Directory<'_>, needed: u32) -> io::Result<()> {
        let directory = Self::directory(journal.path);
        let oldest = needed.min(self.highest.saturating_sub(RUNS_KEPT));
        for (number, own) in &self.own {
            let path = Self::path(journal.path, *number);
            if *number < oldest {
                journal.disk.remove_if_there(&path)?;
            } else if !journal.disk.exists(&path)? {
                write_run(journal.disk, &path, *own)?;
            }
        }
        self.own.retain(|number, _| *number >= oldest);
        journal.disk.sync_directory(&directory)
    }

    pub(super) fn create_directory(journal: Directory<'_>) -> io::Result<()> {
        journal.disk.create_directory(&Self::directory(journal.path))
    }

    pub(super) fn own(&self, number: u32) -> Option<Uuid> {
        self.own.get(&number).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Uuid)> {
        self.own.iter().map(|(number, own)| (*number, *own))
    }
}

fn read_run(disk: &dyn Disk, path: &Path) -> Result<Option<Uuid>, OpenError> {
    Ok(sealed::read(disk, path, RUN_KIND)?.and_then(|run| Fields(&run).uuid()))
}

fn write_run(disk: &dyn Disk, path: &Path, own: Uuid) -> io::Result<()> {
    let file = disk.open(path, Mode::CreateNew)?;
    let written = file.write_at(&sealed::seal(RUN_KIND, own.as_bytes()), 0);
    written.and_then(|()| file.sync_all()).inspect_err(|_| {
        // No process has used the number. An unfinished file would be reported as damage at each opening.
        disk.remove(path).ok();
    })
}
