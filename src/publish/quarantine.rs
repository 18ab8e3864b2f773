//! Files for what Kafka refused even as a dead letter, or what this program cannot read.
//!
//! `<name>.headers.json` holds an array of `[key, base64 of the value]`, `<name>.value` the original
//! bytes. Both are synced before the position moves past their callback, so nothing is lost. What was
//! replayed ends in `.replayed`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};

/// Names and values, as the record would have had them.
type Headers = Vec<(String, Vec<u8>)>;

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

/// The names of the dead letters that are kept, in order, but for those that were written within the
/// time `young`: their callback may not be settled yet.
///
/// # Errors
/// When the directory cannot be read; none is there at first.
pub(super) fn list(directory: &Path, young: Duration) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let file_name = entry.file_name();
        let name = file_name.to_str().and_then(|name| name.strip_suffix(".value"));
        let Some(name) = name.filter(|name| name.starts_with("dead-letter-")) else { continue };
        let written = entry.metadata()?.modified()?;
        if written.elapsed().is_ok_and(|age| age >= young) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Headers and value, as they were [kept](keep).
///
/// # Errors
/// When a file cannot be read or is not what was written.
pub(super) fn read(directory: &Path, name: &str) -> io::Result<(Headers, Vec<u8>)> {
    let headers = fs::read(directory.join(format!("{name}.headers.json")))?;
    let headers: Vec<(String, String)> = serde_json::from_slice(&headers)?;
    let decode = |(key, value): (String, String)| match STANDARD.decode(value) {
        Ok(value) => Ok((key, value)),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    };
    let headers = headers.into_iter().map(decode).collect::<io::Result<_>>()?;
    Ok((headers, fs::read(directory.join(format!("{name}.value")))?))
}

/// Puts a dead letter aside that is in Kafka.
///
/// # Errors
/// When the disk does not take it.
pub(super) fn mark_replayed(directory: &Path, name: &str) -> io::Result<()> {
    // The value last: as long as it has its name, the letter is listed.
    for part in ["headers.json", "value"] {
        let file = directory.join(format!("{name}.{part}"));
        match fs::rename(&file, directory.join(format!("{name}.{part}.replayed"))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
    }
    File::open(directory)?.sync_all()
}

/// Whether a letter of that name was replayed before: an edge that died before its commit writes it
/// again.
pub(super) fn was_replayed(directory: &Path, name: &str) -> bool {
    directory.join(format!("{name}.value.replayed")).exists()
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
