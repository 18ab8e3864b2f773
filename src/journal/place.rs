//! Where a journal may lie: on a disk that keeps it, in a directory that no other user writes to.

use std::path::Path;

use rustix::fs::{FileType, Mode};

use super::{
    OpenError,
    disk::{self, Directory, Disk},
    io_at,
};

/// Refuses a place that a restart empties, and one where another user could put files or symbolic links.
///
/// # Errors
/// [`OpenError`], which says what to do.
pub fn check_place(journal: Directory<'_>, allow_volatile: bool) -> Result<(), OpenError> {
    let Directory { disk, path } = journal;
    // The dot follows a link that leads to the directory: that is the operator's.
    check_directory(disk, &path.join("."))?;
    for name in ["segments", "runs", "quarantine"] {
        let path = path.join(name);
        if disk.exists(&path).map_err(io_at(&path))? {
            check_directory(disk, &path)?;
        }
    }
    let volatile = disk.file_system(path).map_err(io_at(path))?.volatile;
    volatile.filter(|_| !allow_volatile).map_or(Ok(()), |file_system| {
        Err(OpenError::Volatile { directory: path.to_owned(), file_system })
    })
}

fn check_directory(disk: &dyn Disk, path: &Path) -> Result<(), OpenError> {
    let found = disk.metadata(path).map_err(io_at(path))?;
    let refused = |why| Err(OpenError::Exposed { path: path.to_owned(), why });
    let mode = Mode::from_raw_mode(found.mode);
    if !FileType::from_raw_mode(found.mode).is_dir() {
        return refused("is no directory");
    }
    if mode.contains(Mode::WOTH) {
        return refused("can be written by all users");
    }
    let is_own_group = || disk::own_groups().map(|groups| groups.contains(&found.group));
    if mode.contains(Mode::WGRP) && !is_own_group().map_err(io_at(path))? {
        return refused("can be written by a group that this process is not in");
    }
    Ok(())
}
