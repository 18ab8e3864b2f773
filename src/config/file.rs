//! Reads the files that a configuration consists of.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::OFlags;

/// 5,000 sources take half of a megabyte.
const BYTES_MAX: u64 = 4 << 20;

/// Opens a regular file. Reading any other might never end.
pub(super) fn open(path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK, opening a FIFO waits until another process writes to it.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file; name one of at most 4 MiB"));
    }
    Ok(file)
}

/// The text of a regular file of at most 4 MiB.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    open(path)?.take(BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(io::Error::other("it is larger than 4 MiB; is it the right file?"));
    }
    // The error's own `Debug` holds the file's text.
    String::from_utf8(text).map_err(|_| io::Error::other("it is not UTF-8; is it the right file?"))
}
