//! Files for what Kafka refused even as a dead letter, or what this program cannot read.
//!
//! `<name>.headers.json` holds an array of `[key, base64 of the value]`, `<name>.value` the original
//! bytes. Both are synced before the position moves past their callback, so nothing is lost.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use base64::{Engine, engine::general_purpose::STANDARD};

/// Keeps `value` and its headers under `name`; the same name again replaces it.
///
/// # Errors
/// When the disk does not take it: the callback then waits.
pub(super) fn keep(
    directory: &Path,
    name: &str,
    headers: &[(String, Vec<u8>)],
    value: &[u8],
) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let headers: Vec<_> =
        headers.iter().map(|(key, value)| (key, STANDARD.encode(value))).collect();
    write(&directory.join(format!("{name}.headers.json")), &serde_json::to_vec(&headers)?)?;
    write(&directory.join(format!("{name}.value")), value)?;
    File::open(directory)?.sync_all()
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
