//! Where a journal may lie: on a disk that keeps it, in a directory that no other user writes to.

use std::path::Path;

use super::{
    OpenError,
    disk::{self, Directory, Disk},
    io_at,
};

const DIRECTORY: u32 = 0o040_000;
const FILE_TYPE: u32 = 0o170_000;
const GROUP_WRITES: u32 = 0o020;
const ALL_WRITE: u32 = 0o002;

/// Refuses a place that a restart empties, and one where another user could put files or symbolic links.
pub(super) fn check(journal: Directory<'_>, allow_volatile: bool) -> Result<(), OpenError> {
    let Directory { disk, path } = journal;
    // With the dot, a link that leads to the directory is followed: that is the operator's. Those
    // within are not.
    check_directory(disk, &path.join("."))?;
    for name in ["segments", "runs", "quarantine"] {
        let path = path.join(name);
        if disk.exists(&path).map_err(io_at(&path))? {
            check_directory(disk, &path)?;
        }
    }
    match disk.file_system(path).map_err(io_at(path))?.volatile {
        Some(file_system) if !allow_volatile => {
            Err(OpenError::Volatile { directory: path.to_owned(), file_system })
        }
        _ => Ok(()),
    }
}

fn check_directory(disk: &dyn Disk, path: &Path) -> Result<(), OpenError> {
    let found = disk.metadata(path).map_err(io_at(path))?;
    let refused = |why| Err(OpenError::Exposed { path: path.to_owned(), why });
    if found.mode & FILE_TYPE != DIRECTORY {
        return refused("is no directory");
    }
    if found.mode & ALL_WRITE != 0 {
        return refused("can be written by all users");
    }
    let is_own_group = || disk::own_groups().map(|groups| groups.contains(&found.group));
    if found.mode & GROUP_WRITES != 0 && !is_own_group().map_err(io_at(path))? {
        return refused("can be written by a group that this process is not in");
    }
    Ok(())
}
