//! One process a journal.

use std::{
    fs::{File, TryLockError},
    io::{Read, Write},
    path::Path,
};

use super::{OpenError, disk, io_at};

/// Holds the journal's directory until it is dropped or the process ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock and writes this process's id into it.
    pub(super) fn take(directory: &Path) -> Result<Self, OpenError> {
        let path = directory.join("lock");
        let mut file = disk::open_or_create(&path).map_err(io_at(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // A holder that cannot be read is named as unknown: it is locked all the same.
                let pid =
                    file.read_to_string(&mut holder).ok().and_then(|_| holder.trim().parse().ok());
                return Err(OpenError::Locked { directory: directory.into(), pid });
            }
            Err(TryLockError::Error(source)) => return Err(OpenError::Io { path, source }),
        }
        file.set_len(0).map_err(io_at(&path))?;
        writeln!(file, "{}", std::process::id()).map_err(io_at(&path))?;
        Ok(Self { _file: file })
    }
}
