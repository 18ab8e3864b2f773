//! Who a journal is: its id and label, and the ids of its runs.
//!
//! A run's file holds a random id of its own; the id that the world sees is derived from it and
//! the journal's. So when a fork gives the journal a new id, all its runs have new ones at the
//! same moment, and none under which another copy of the journal may have published is ours any
//! more, while old records stay readable.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    OpenError, Position, disk, io_at,
    sealed::{self, Fields},
};

const KIND: sealed::Kind = *b"idty";
const NAME: &str = "identity";
/// Written behind the first, read where the first is lost: without an id everything would have
/// to be published again under another.
const COPY: &str = "identity.copy";
const RUN_KIND: sealed::Kind = *b"runn";
/// Files of runs that nothing else needs are kept so long.
const RUNS_KEPT: u32 = 1024;

/// What a journal is born with, and what a fork replaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) id: Uuid,
    pub(super) label: String,
    /// Where publishing begins while this identity has no checkpoint: what a fork was told.
    pub(super) start: Option<Position>,
}

impl Identity {
    pub(super) fn born(label: &str) -> Self {
        Self { id: Uuid::new_v4(), label: label.to_owned(), start: None }
    }

    /// Makes this the identity of the journal, durably.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        let mut payload = self.id.as_bytes().to_vec();
        // No run has the number 0, so that its first position can stand for none.
        sealed::put_position(&mut payload, self.start.unwrap_or_default());
        sealed::put_text(&mut payload, &self.label);
        sealed::write(directory, NAME, KIND, &payload)?;
        sealed::write(directory, COPY, KIND, &payload)
    }

    pub(super) fn read(directory: &Path) -> Result<Option<Self>, OpenError> {
        for name in [NAME, COPY] {
            let Some(payload) = sealed::read(&directory.join(name), KIND)? else { continue };
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

    pub(super) fn read(journal: &Path) -> Result<Self, OpenError> {
        let mut runs = Self::default();
        let directory = Self::directory(journal);
        for entry in fs::read_dir(&directory).map_err(io_at(&directory))? {
            let path = entry.map_err(io_at(&directory))?.path();
            let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            let Some(number) = number else { continue };
            runs.highest = runs.highest.max(number);
            if let Some(own) = sealed::read(&path, RUN_KIND)?.and_then(|run| Fields(&run).uuid()) {
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

    /// Takes the next run: its file is made exclusively and durable before anything else of the
    /// run is, so that two processes never have one, whatever the lock is worth.
    pub(super) fn take(&mut self, journal: &Path) -> Result<u32, OpenError> {
        let number = self.highest + 1;
        let directory = Self::directory(journal);
        let path = directory.join(number.to_string());
        let own = Uuid::new_v4();
        match write_run(&path, own) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(OpenError::RunTaken { run: number });
            }
            result => result.map_err(io_at(&path))?,
        }
        disk::sync_directory(&directory).map_err(io_at(&directory))?;
        self.add(number, Some(own));
        Ok(number)
    }

    /// Writes the files of runs again that are known and have none, and drops those of runs
    /// before `needed` that are old.
    pub(super) fn mend(&mut self, journal: &Path, needed: u32) -> io::Result<()> {
        let directory = Self::directory(journal);
        let oldest = needed.min(self.highest.saturating_sub(RUNS_KEPT));
        for (number, own) in &self.own {
            let path = directory.join(number.to_string());
            if *number < oldest {
                fs::remove_file(path)?;
            } else if !path.exists() {
                write_run(&path, *own)?;
            }
        }
        self.own.retain(|number, _| *number >= oldest);
        disk::sync_directory(&directory)
    }

    pub(super) fn create_directory(journal: &Path) -> io::Result<()> {
        disk::create_directory(&Self::directory(journal))
    }

    pub(super) fn own(&self, number: u32) -> Option<Uuid> {
        self.own.get(&number).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Uuid)> {
        self.own.iter().map(|(number, own)| (*number, *own))
    }
}

fn write_run(path: &Path, own: Uuid) -> io::Result<()> {
    let mut file = disk::create_new(path)?;
    let written = file.write_all(&sealed::seal(RUN_KIND, own.as_bytes()));
    written.and_then(|()| file.sync_all()).inspect_err(|_| {
        // Nobody has used the number. Left behind, it would be reported as damage for ever.
        fs::remove_file(path).ok();
    })
}
