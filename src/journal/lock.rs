//! One process a journal, also where locks do not work.

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
};

use super::{
    OpenError,
    disk::{Directory, Disk, DiskFile, Mode},
    identity::Runs,
    io_at,
};

/// Holds the journal's directory until it is dropped or the process ends.
#[derive(Debug)]
pub(super) struct Lock {
    file: Box<dyn DiskFile>,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock and writes this process's id into it.
    pub(super) fn take(journal: Directory<'_>) -> Result<Self, OpenError> {
        let path = journal.path.join("lock");
        let file = journal.disk.open(&path, Mode::Create).map_err(io_at(&path))?;
        if !file.try_lock().map_err(io_at(&path))? {
            // A holder that cannot be read is named as unknown: it is locked all the same.
            let holder = journal.disk.read(&path).unwrap_or_default();
            let pid = String::from_utf8_lossy(&holder).trim().parse().ok();
            return Err(OpenError::Locked { directory: journal.path.into(), pid });
        }
        let holder = format!("{}\n", std::process::id());
        let written = file.set_len(0).and_then(|()| file.write_at(holder.as_bytes(), 0));
        written.map_err(io_at(&path))?;
        Ok(Self { file, path })
    }
}

/// What shows that no other process has opened the journal since this one did: one that gets past the
/// lock takes the next run before it looks at any record. So what is durable while the claim stands is
/// seen by that process, and nothing else may be acknowledged.
#[derive(Debug)]
pub(super) struct Claim {
    /// The lock and the run's file, with what identifies them.
    own: [(PathBuf, (u64, u64)); 2],
    next_run: PathBuf,
}

impl Claim {
    pub(super) fn new(journal: Directory<'_>, lock: &Lock, run: u32) -> io::Result<Self> {
        let path = Runs::path(journal.path, run);
        let run_file = journal.disk.metadata(&path)?;
        let lock_file = lock.file.metadata()?;
        Ok(Self {
            own: [(lock.path.clone(), lock_file.identity), (path, run_file.identity)],
            next_run: Runs::path(journal.path, run + 1),
        })
    }

    /// An error unless the claim stands.
    pub(super) fn check(&self, disk: &dyn Disk) -> io::Result<()> {
        for (path, identity) in &self.own {
            match disk.metadata(path) {
                Ok(found) if found.identity == *identity => {}
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {
                    return Err(taken_over(&format!("{} was removed or replaced", path.display())));
                }
            }
        }
        if disk.exists(&self.next_run)? {
            return Err(taken_over(&format!("it has made {}", self.next_run.display())));
        }
        Ok(())
    }
}

fn taken_over(why: &str) -> io::Error {
    io::Error::other(format!(
        "another process may have opened the journal: {why}. This process acknowledges nothing any \
         more. Run one process for each journal.directory, on a file system where locks work"
    ))
}
