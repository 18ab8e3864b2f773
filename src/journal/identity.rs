//! What identifies a journal: its id and label, and the ids of its runs.
//!
//! A run's file holds the run's own random id. The id that is committed to Kafka is derived from it and
//! from the journal's id. So a fork changes the ids of all runs at once: the journal no longer knows any
//! id under which another copy may have published, and old records stay readable.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    Checkpoint, OpenError, Position,
    disk::{Directory, Mode},
    io_at,
    sealed::{self, Fields},
};
use crate::mutant;

const KIND: sealed::Kind = *b"idty";
const NAME: &str = "identity";
/// Written after the first file, read if the first is lost. Without an id the journal would get a new one
/// and publish everything again.
const COPY: &str = "identity.copy";
const RUNS: &str = "runs";
const RUN_KIND: sealed::Kind = *b"runn";
/// A run's file that nothing else needs is kept for this many runs.
const RUNS_KEPT: u32 = 1024;

/// What a journal gets when it is created. A fork replaces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Random. Positions are committed under ids that are made of it.
    pub id: Uuid,
    /// What the journal keeps of the configuration.
    pub label: String,
    /// Where publishing begins while this identity has no checkpoint. [`Position::MIN`] stands for none.
    pub start: Position,
}

impl Identity {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut payload = self.id.as_bytes().to_vec();
        sealed::put_position(&mut payload, self.start);
        sealed::put_text(&mut payload, &self.label);
        payload
    }

    pub(super) fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        let (id, start, label) = (fields.uuid()?, fields.position()?, fields.text()?);
        Some(Self { id, label, start })
    }

    /// Makes this the identity of the journal, durably.
    pub(super) fn write(&self, journal: Directory<'_>) -> io::Result<()> {
        sealed::write(journal, NAME, KIND, &self.encode())?;
        sealed::write(journal, COPY, KIND, &self.encode())
    }

    /// Whether the first of the two files has it.
    pub(super) fn is_written(&self, journal: Directory<'_>) -> bool {
        sealed::read(journal, NAME, KIND, Self::decode)
            .is_ok_and(|found| found.as_ref() == Some(self))
    }

    /// The identity of a journal; none where there is no journal.
    ///
    /// # Errors
    /// When the journal cannot be read, or is of a newer format.
    pub fn read(journal: Directory<'_>) -> Result<Option<Self>, OpenError> {
        let (first, copy) = Self::read_both(journal)?;
        Ok(first.or(copy))
    }

    fn read_both(journal: Directory<'_>) -> Result<(Option<Self>, Option<Self>), OpenError> {
        let read = |name| sealed::read(journal, name, KIND, Self::decode);
        Ok((read(NAME)?, read(COPY)?))
    }

    /// [Reads](Self::read) it, and writes it into the file that lacks it: a process may have died between
    /// the two.
    pub(super) fn read_and_mend(journal: Directory<'_>) -> Result<Option<Self>, OpenError> {
        let (first, copy) = Self::read_both(journal)?;
        let is_whole = first == copy;
        let found = first.or(copy);
        if let Some(identity) = found.as_ref().filter(|_| !is_whole) {
            identity.write(journal).map_err(io_at(journal.path))?;
        }
        Ok(found)
    }

    /// The id under which positions of a run are committed, from the run's own id.
    pub(super) fn run_id(&self, own: Uuid) -> Uuid {
        let hash = Sha256::new().chain_update(self.id).chain_update(own).finalize();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }

    /// The checkpoint that a forked identity begins with.
    pub(super) fn first_checkpoint(&self, runs: &Runs) -> Option<Checkpoint> {
        let position = Some(self.start).filter(|start| *start > Position::MIN)?;
        let own = runs.own.get(&position.run());
        let run_id = own.map(|own| self.run_id(*own)).unwrap_or_default();
        Some(Checkpoint { position, run_id, receipt: Uuid::nil(), cluster_id: String::new() })
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Runs {
    /// Their own ids.
    pub(super) own: BTreeMap<u32, Uuid>,
    /// The highest number that was ever taken.
    pub(super) highest: u32,
}

impl Runs {
    pub(super) fn directory(journal: &Path) -> PathBuf {
        journal.join(RUNS)
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
            let name = format!("{RUNS}/{number}");
            runs.add(number, sealed::read(journal, &name, RUN_KIND, |run| run.uuid())?);
        }
        Ok(runs)
    }

    pub(super) fn add(&mut self, number: u32, own: Option<Uuid>) {
        self.highest = self.highest.max(number);
        if let Some(own) = own {
            self.own.entry(number).or_insert(own);
        }
    }

    /// Takes the next run. Its file is created exclusively and is durable before any record is read. Even
    /// if locks do not work, two processes never have the same run, and an earlier process that is still
    /// alive acknowledges nothing that this one has not seen.
    pub(super) fn take(&mut self, journal: Directory<'_>, own: Uuid) -> Result<u32, OpenError> {
        let number = self.highest + 1;
        if mutant::is("run number used twice") && self.highest > 0 {
            return Ok(self.highest);
        }
        let (directory, path) = (Self::directory(journal.path), Self::path(journal.path, number));
        match write_run(journal, number, own) {
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
        let oldest = needed.min(self.highest.saturating_sub(RUNS_KEPT));
        for (number, own) in &self.own {
            let path = Self::path(journal.path, *number);
            if *number < oldest {
                journal.disk.remove_if_there(&path)?;
            } else if !journal.disk.exists(&path)? {
                write_run(journal, *number, *own)?;
            }
        }
        self.own.retain(|number, _| *number >= oldest);
        journal.disk.sync_directory(&Self::directory(journal.path))
    }
}

fn write_run(journal: Directory<'_>, number: u32, own: Uuid) -> io::Result<()> {
    let path = Runs::path(journal.path, number);
    let file = journal.disk.open(&path, Mode::CreateNew)?;
    let written = file.write_at(&sealed::seal(RUN_KIND, own.as_bytes()), 0);
    written.and_then(|()| file.sync_all()).inspect_err(|_| {
        // No process has used the number. An unfinished file would be reported as damage at each opening.
        journal.disk.remove(&path).ok();
    })
}
