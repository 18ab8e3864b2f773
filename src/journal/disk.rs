//! What the journal asks of a file system: private files, allocated blocks, durable names.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::FallocateFlags;

const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
/// So much is synced at once where there is much to write, for the syncs of appends wait for it.
const ALLOCATION_STEP: usize = 1 << 20;

/// Makes a directory, and those above it, that only its owner may enter.
pub(super) fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
}

/// Opens a file for reading and writing and makes it, readable by its owner alone, if needed.
pub(super) fn open_or_create(path: &Path) -> io::Result<File> {
    private().create(true).truncate(false).open(path)
}

/// Makes a file that must not be there yet.
pub(super) fn create_new(path: &Path) -> io::Result<File> {
    private().create_new(true).open(path)
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(FILE_MODE);
    options
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Replaces the file `name` durably: whoever reads it finds the old content or the new one.
pub(super) fn replace(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = directory.join(format!("{name}.tmp"));
    let mut file = private().create(true).truncate(true).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, directory.join(name))?;
    sync_directory(directory)
}

/// Gives an empty file its length and fills it with zeros, durably, so that writing to it needs
/// nothing more of the file system: it cannot run out of space, and does not depend on a later
/// change of metadata. Blocks that are allocated but not written do: ext4 that turns read-only in
/// a sync of them (`errors=remount-ro`) has called it successful and lost them, on Linux 6.18 one
/// time in ten.
pub(super) fn allocate(file: &mut File, bytes: u64) -> io::Result<()> {
    // The length comes with the zeros: a file that is as long as a segment is a whole one.
    match rustix::fs::fallocate(&*file, FallocateFlags::KEEP_SIZE, 0, bytes) {
        // Some network file systems do not know how: there, writing takes the blocks.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    let zeros = vec![0; ALLOCATION_STEP.min(bytes as usize)];
    let mut left = bytes as usize;
    while left > 0 {
        let step = left.min(zeros.len());
        file.write_all(&zeros[..step])?;
        file.sync_data()?;
        left -= step;
    }
    Ok(())
}

/// Bytes that this process may still take on the file system of `path`.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let state = rustix::fs::statvfs(path)?;
    Ok(state.f_bavail.saturating_mul(state.f_frsize))
}

/// Whether the error says that there is no room, and nothing worse.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}
