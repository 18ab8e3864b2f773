//! Files for dead letters that Kafka refused, and for journal records that this program cannot read.
//!
//! `<name>.headers.json` holds an array of `[key, base64 of the value]`, `<name>.value` the original
//! bytes. Both are synced before the position moves past their callback, so nothing is lost. The name holds
//! the callback's position: the files mean nothing until the position after it is committed. Replayed
//! files end in `.replayed`.

use std::{error::Error, io, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use uuid::Uuid;

use crate::{
    event::DeadLetter,
    journal::{Directory, Position, disk::Disk},
    mutant,
};

const LETTER: &str = "dead-letter-";
const HEADERS: &str = ".headers.json";
const VALUE: &str = ".value";

/// Names and values, as the record would have had them.
type Headers = Vec<(String, Vec<u8>)>;

/// The name for a dead letter: the position and the receipt of its callback, and its number within it.
/// The receipt tells letters of different journals apart.
pub(crate) fn letter_name(position: Position, receipt: Uuid, number: u32) -> String {
    format!("{LETTER}{:016x}-{receipt}-{number}", position.as_u64())
}

/// The name for a journal record that this program cannot read.
pub(crate) fn record_name(position: Position) -> String {
    format!("record-{:016x}", position.as_u64())
}

/// Whether a dead letter of that name belongs to the callback with this receipt.
pub(crate) fn is_of(name: &str, receipt: Uuid) -> bool {
    name.contains(&receipt.to_string())
}

/// The position in a name, if the name has one. Names of version 0.1.0 have a receipt instead.
fn position_of(name: &str) -> Option<Position> {
    let rest = name.strip_prefix(LETTER)?;
    let digits = rest.split('-').next().filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok().map(Position::from_u64)
}

/// The directory of the files.
pub(crate) struct QuarantinedFiles<'a> {
    disk: &'a dyn Disk,
    pub(crate) path: PathBuf,
}

impl<'a> QuarantinedFiles<'a> {
    /// The quarantine of a journal. Its directory may be missing.
    pub(crate) fn of(journal: Directory<'a>) -> Self {
        Self { disk: journal.disk, path: journal.path.join("quarantine") }
    }

    fn file(&self, name: &str, part: &str) -> PathBuf {
        self.path.join(format!("{name}{part}"))
    }

    /// Keeps a dead letter under `name`, as [`keep`](Self::keep) does.
    pub(crate) fn keep_letter(&self, name: &str, letter: &DeadLetter<'_>) -> io::Result<()> {
        let mut headers = Vec::new();
        letter.headers(&mut |key, value| headers.push((key.to_owned(), STANDARD.encode(value))));
        self.keep(name, &headers, &letter.value)
    }

    /// Keeps `value` and its headers in base64 under `name`; the same name again replaces it. After an
    /// error the callback waits.
    pub(crate) fn keep(
        &self,
        name: &str,
        headers: &[(String, String)],
        value: &[u8],
    ) -> io::Result<()> {
        self.disk.create_directory(&self.path)?;
        self.disk.write(&self.file(name, HEADERS), &serde_json::to_vec(headers)?)?;
        self.disk.write(&self.file(name, VALUE), value)?;
        self.disk.sync_directory(&self.path)?;
        // The directory may be new.
        self.path.parent().map_or(Ok(()), |journal| self.disk.sync_directory(journal))
    }

    /// The dead letters that are named by a position, in order.
    pub(crate) fn letters(&self) -> io::Result<Vec<(Position, String)>> {
        let names = self.names()?.into_iter();
        Ok(names.filter_map(|name| Some((position_of(&name)?, name))).collect())
    }

    /// The names of the dead letters whose callbacks are settled: those before `committed`, in order. A
    /// name of version 0.1.0 has no position, and version 0.1.0 is not running any more.
    pub(crate) fn settled_letters(&self, committed: Position) -> io::Result<Vec<String>> {
        let is_settled = |position| position < committed || mutant::is("uncommitted file replayed");
        let mut names = self.names()?;
        names.retain(|name| name.starts_with(LETTER) && position_of(name).is_none_or(is_settled));
        Ok(names)
    }

    /// All names, in order. Without a directory there are none.
    fn names(&self) -> io::Result<Vec<String>> {
        let paths = match self.disk.list(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            paths => paths?,
        };
        let name =
            |path: &PathBuf| Some(path.file_name()?.to_str()?.strip_suffix(VALUE)?.to_owned());
        let mut names: Vec<_> = paths.iter().filter_map(name).collect();
        names.sort();
        Ok(names)
    }

    /// Removes the files of an attempt that was not committed.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        // The value first: without it the letter is not listed.
        self.disk.remove_if_there(&self.file(name, VALUE))?;
        self.disk.remove_if_there(&self.file(name, HEADERS))?;
        self.disk.sync_directory(&self.path)
    }

    /// Headers and value, as they were [kept](Self::keep). `InvalidData`: a file is not what was written.
    pub(crate) fn read(&self, name: &str) -> io::Result<(Headers, Vec<u8>)> {
        let headers = self.disk.read(&self.file(name, HEADERS))?;
        // serde_json calls the end of a file that was cut `UnexpectedEof`.
        let headers: Vec<(String, String)> = serde_json::from_slice(&headers).map_err(invalid)?;
        let decode = |(key, value)| Ok((key, STANDARD.decode::<String>(value).map_err(invalid)?));
        let headers = headers.into_iter().map(decode).collect::<io::Result<_>>()?;
        Ok((headers, self.disk.read(&self.file(name, VALUE))?))
    }

    /// Marks a dead letter that has been replayed into Kafka.
    pub(crate) fn mark_replayed(&self, name: &str) -> io::Result<()> {
        // The value last: as long as it has its name, the letter is listed.
        for part in [HEADERS, VALUE] {
            let replayed = self.file(name, &format!("{part}.replayed"));
            match self.disk.rename(&self.file(name, part), &replayed) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                renamed => renamed?,
            }
        }
        self.disk.sync_directory(&self.path)
    }

    /// Whether a letter of this name was replayed before. An edge that died before its commit writes the
    /// letter again. [`mark_replayed`](Self::mark_replayed) renames the headers first, and may be broken off.
    pub(crate) fn was_replayed(&self, name: &str) -> io::Result<bool> {
        self.disk.exists(&self.file(name, &format!("{HEADERS}.replayed")))
    }
}

fn invalid(error: impl Into<Box<dyn Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal;

    #[test]
    fn only_letters_of_settled_callbacks_are_listed() {
        let directory = tempfile::tempdir().unwrap();
        let quarantine =
            QuarantinedFiles::of(Directory { disk: &journal::disk::Real, path: directory.path() });
        let old = "dead-letter-01a2071c-c17a-7718-a073-f555e25a6040-0";
        let letter = |position| letter_name(position, Uuid::nil(), 1);
        let [first, second] = [4, 5].map(|index| Position::new(1, index));
        for name in [old, &letter(first), &letter(second), &record_name(first)] {
            quarantine.keep(name, &[], b"value").unwrap();
        }
        let listed = quarantine.settled_letters(second).unwrap();
        assert_eq!(listed, [letter(first), old.to_owned()]);
        let both = [first, second].map(|position| (position, letter(position)));
        assert_eq!(quarantine.letters().unwrap(), both);
        assert!(is_of(&both[0].1, Uuid::nil()) && !is_of(&both[0].1, Uuid::max()));
        quarantine.remove(&letter(second)).unwrap();
        assert_eq!(quarantine.letters().unwrap(), both[..1]);
    }

    #[test]
    fn headers_that_were_cut_are_no_letter() {
        let directory = tempfile::tempdir().unwrap();
        let quarantine =
            QuarantinedFiles::of(Directory { disk: &journal::disk::Real, path: directory.path() });
        let headers = [("receipt".to_owned(), STANDARD.encode("1"))];
        quarantine.keep("letter", &headers, b"value").unwrap();
        let file = quarantine.file("letter", HEADERS);
        let whole = std::fs::read(&file).unwrap();
        for kept in 0..whole.len() {
            std::fs::write(&file, &whole[..kept]).unwrap();
            let error = quarantine.read("letter").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{kept} bytes: {error}");
        }
    }
}
