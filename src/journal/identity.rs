//! Who this journal is: its id, its runs, and that nobody else has it open.
//!
//! A *run* is one opening. Its number grows by one each time and is taken by creating `runs/<n>`
//! exclusively, with a random id in it, before anything is cut or appended: so a position is never
//! used twice, even where the lock does not hold (NFS).

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    path::Path,
};

use uuid::Uuid;

use super::{
    OpenError,
    files::{self, read_text, sync_directory_of, write_atomically},
};

const IDENTITY: &str = "journal";
const MAGIC: &str = "weni-edge-journal";
/// The layout of the directory; segments have a version of their own.
const VERSION: u32 = 1;
const LOCK: &str = "lock";
const RUNS: &str = "runs";
/// Run files that are kept: a position in Kafka can be told to be ours for so many openings.
const RUNS_KEPT: usize = 1000;

/// What is fixed when the journal is born, or forked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) id: Uuid,
    /// The publisher's, opaque: under which names it keeps its position.
    pub(super) label: String,
}

impl Identity {
    /// Reads the directory's identity, if a journal was born there.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, OpenError> {
        let Some(text) = read_text(&directory.join(IDENTITY))? else { return Ok(None) };
        let mut lines = text.lines();
        let version = lines.next().and_then(|line| line.strip_prefix(MAGIC)?.trim().parse().ok());
        match version {
            Some(VERSION) => {}
            Some(version) => return Err(OpenError::Newer { version }),
            None => return Err(OpenError::NotAJournal),
        }
        let id = lines.next().and_then(|line| line.parse().ok()).ok_or(OpenError::NotAJournal)?;
        Ok(Some(Self { id, label: lines.next().unwrap_or_default().to_owned() }))
    }

    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        let text = format!("{MAGIC} {VERSION}\n{}\n{}\n", self.id, self.label);
        write_atomically(&directory.join(IDENTITY), text.as_bytes())
    }
}

/// Keeps a second process out for as long as the file is open.
pub(super) fn lock(directory: &Path) -> Result<File, OpenError> {
    let mut file = files::options().create(true).truncate(false).open(directory.join(LOCK))?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)?;
            file.rewind()?;
            write!(file, "{}", std::process::id())?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder)?;
            Err(OpenError::Locked { holder })
        }
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// The runs that are on record, by number. Unreadable files are left out: segments know theirs.
pub(super) fn read_runs(directory: &Path) -> io::Result<BTreeMap<u32, Uuid>> {
    let entries = match fs::read_dir(directory.join(RUNS)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let mut runs = BTreeMap::new();
    for entry in entries {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        let id = read_text(&path)?.and_then(|text| text.trim().parse().ok());
        if let Some((number, id)) = number.zip(id) {
            runs.insert(number, id);
        }
    }
    Ok(runs)
}

/// Takes the next run, durably. `known` are those of run files, segments and checkpoint; those that
/// have no file any more get it back.
pub(super) fn take_run(directory: &Path, known: &mut BTreeMap<u32, Uuid>) -> io::Result<u32> {
    let runs = directory.join(RUNS);
    files::create_directory(&runs)?;
    for (number, id) in known.iter() {
        let path = runs.join(number.to_string());
        if !path.exists() {
            write_atomically(&path, id.to_string().as_bytes())?;
        }
    }
    // Numbers whose files cannot be read are taken as well.
    let mut number = known.keys().next_back().map_or(1, |last| last + 1);
    let id = Uuid::new_v4();
    loop {
        let path = runs.join(number.to_string());
        match files::options().create_new(true).open(&path) {
            Ok(mut file) => {
                file.write_all(id.to_string().as_bytes())?;
                file.sync_all()?;
                sync_directory_of(&path)?;
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    }
    sync_directory_of(&runs)?;
    known.insert(number, id);
    while known.len() > RUNS_KEPT {
        if let Some((oldest, _)) = known.pop_first() {
            fs::remove_file(runs.join(oldest.to_string()))?;
        }
    }
    Ok(number)
}
