//! One process for each journal, also where locks do not work.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use super::{
    OpenError, Options,
    disk::{self, Directory, Disk, DiskFile, Mode},
    identity::Runs,
    io_at,
};
use crate::{clock, mutant};

const NAME: &str = "lock";
/// A lock that is taken is tried again for a second, because [`holder`] may have it for a moment.
const PAUSES: usize = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// Takes the lock and writes this process's id into it. It is held until the file is dropped or the process
/// ends.
pub(super) fn take(journal: Directory<'_>) -> Result<Box<dyn DiskFile>, OpenError> {
    let path = journal.path.join(NAME);
    let file = journal.disk.open(&path, Mode::Create).map_err(io_at(&path))?;
    let mut pauses = PAUSES;
    while !file.try_lock().map_err(io_at(&path))? {
        if pauses == 0 {
            let Holder { pid } = named_in(journal);
            return Err(OpenError::Locked { directory: journal.path.into(), pid });
        }
        pauses -= 1;
        clock::sleep(PAUSE);
    }
    let holder = format!("{}\n", std::process::id());
    let written = file.set_len(0).and_then(|()| file.write_at(holder.as_bytes(), 0));
    written.map_err(io_at(&path)).map(|()| file)
}

/// A process that has a journal open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Its id, if the lock's file tells it.
    pub pid: Option<u32>,
}

/// The process that has the journal open, if there is one. It makes no file. To find out, this takes a
/// shared lock for a moment: others may ask meanwhile, and an opening waits for it.
///
/// # Errors
/// The lock's file cannot be read or locked.
pub fn holder(journal: Directory<'_>) -> io::Result<Option<Holder>> {
    let path = journal.path.join(NAME);
    let Some(file) = disk::if_there(journal.disk.open(&path, Mode::Read))? else { return Ok(None) };
    Ok(file.is_locked()?.then(|| named_in(journal)))
}

fn named_in(journal: Directory<'_>) -> Holder {
    let named = journal.disk.read(&journal.path.join(NAME)).unwrap_or_default();
    Holder { pid: String::from_utf8_lossy(&named).trim().parse().ok() }
}

/// What shows that no other process has opened the journal since this one did. A process that gets past
/// the lock takes the next run before it reads any record. So it sees all that was durable while the claim
/// stood, and nothing else may be acknowledged.
#[derive(Debug)]
pub(super) struct Claim {
    disk: Arc<dyn Disk>,
    /// The lock and the run's file, with what identifies them.
    own: [(PathBuf, (u64, u64)); 2],
    next_run: PathBuf,
}

impl Claim {
    pub(super) fn new(options: &Options, lock: &dyn DiskFile, run: u32) -> io::Result<Self> {
        let (disk, journal) = (options.disk.clone(), &options.directory);
        let run_file = Runs::path(journal, run);
        let run_identity = disk.metadata(&run_file)?.identity;
        let lock = (journal.join(NAME), lock.metadata()?.identity);
        let next_run = Runs::path(journal, run + 1);
        Ok(Self { disk, own: [lock, (run_file, run_identity)], next_run })
    }

    /// An error unless the claim stands.
    pub(super) fn check(&self) -> io::Result<()> {
        if mutant::is("a second opening past the lock") {
            return Ok(());
        }
        for (path, identity) in &self.own {
            let found = disk::if_there(self.disk.metadata(path))?;
            if found.is_none_or(|found| found.identity != *identity) {
                return Err(challenged(&format!("{} was removed or replaced", path.display())));
            }
        }
        if self.disk.exists(&self.next_run)? {
            return Err(challenged(&format!("it has made {}", self.next_run.display())));
        }
        Ok(())
    }
}

fn challenged(why: &str) -> io::Error {
    io::Error::other(format!(
        "another process may have opened the journal: {why}. This process acknowledges nothing any \
         more. Run one process for each journal.directory, on a file system where locks work"
    ))
}
