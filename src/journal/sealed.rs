//! The envelope of everything that the journal writes besides frames.
//!
//! `magic 8 | kind 4 | version u32 | length u32 | crc32c u32 | payload`, numbers little-endian. The CRC
//! covers kind, version, length and payload. The envelope is the same in all versions, so that an older
//! program can tell a newer file from a damaged one.

use std::io::{self, ErrorKind};

use uuid::Uuid;

use super::{OpenError, Position, disk::Directory, salvage};

/// The format of files and frames that this program writes, and the newest that it reads.
pub(super) const FORMAT_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"weniedge";
const ENVELOPE_BYTES: usize = 24;

/// So that one file cannot pass for another.
pub(super) type Kind = [u8; 4];

/// Why a sealed text cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsealed {
    Damaged,
    /// Written by a newer program, in this version.
    Newer(u32),
}

pub(super) fn seal(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let (version, len) = (FORMAT_VERSION.to_le_bytes(), (payload.len() as u32).to_le_bytes());
    let head = [kind, version, len].concat();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head), payload);
    [&MAGIC[..], &head, &crc.to_le_bytes(), payload].concat()
}

/// The payload of a sealed text; bytes after it do not matter.
pub(super) fn unseal(kind: Kind, bytes: &[u8]) -> Result<&[u8], Unsealed> {
    let (envelope, rest) = bytes.split_first_chunk::<ENVELOPE_BYTES>().ok_or(Unsealed::Damaged)?;
    let mut fields = Fields(&envelope[12..]);
    let (Some(version), Some(len), Some(crc)) = (fields.u32(), fields.u32(), fields.u32()) else {
        return Err(Unsealed::Damaged);
    };
    let payload = rest.get(..len as usize).ok_or(Unsealed::Damaged)?;
    let intact = crc32c::crc32c_append(crc32c::crc32c(&envelope[8..20]), payload) == crc;
    if !intact || envelope[..8] != MAGIC || envelope[8..12] != kind {
        return Err(Unsealed::Damaged);
    }
    if version > FORMAT_VERSION { Err(Unsealed::Newer(version)) } else { Ok(payload) }
}

/// Replaces the sealed file `name` durably: a reader finds the old content or the new one.
pub(super) fn write(
    journal: Directory<'_>,
    name: &str,
    kind: Kind,
    payload: &[u8],
) -> io::Result<()> {
    let temporary = journal.path.join(format!("{name}.tmp"));
    journal.disk.write(&temporary, &seal(kind, payload))?;
    journal.disk.rename(&temporary, &journal.path.join(name))?;
    journal.disk.sync_directory(journal.path)
}

/// What a sealed file holds; `None` if it is missing or damaged. Damage is reported here, because the
/// journal can do without each of these files, or rebuild it.
pub(super) fn read<T>(
    journal: Directory<'_>,
    name: &str,
    kind: Kind,
    decode: impl FnOnce(&mut Fields<'_>) -> Option<T>,
) -> Result<Option<T>, OpenError> {
    let path = &journal.path.join(name);
    // Opening is tried again too: a journal whose identity is not read would publish everything again.
    let bytes = match salvage::retried(|| journal.disk.read(path)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if salvage::is_unreadable(&error) => {
            tracing::error!(path = %path.display(), %error, "a file of the journal cannot be read and is not used");
            return Ok(None);
        }
        Err(source) => return Err(OpenError::Io { path: path.into(), source }),
    };
    match unseal(kind, &bytes) {
        Ok(payload) => Ok(decode(&mut Fields(payload))),
        Err(Unsealed::Newer(version)) => Err(OpenError::Newer { path: path.into(), version }),
        Err(Unsealed::Damaged) => {
            tracing::error!(path = %path.display(), "a file of the journal is damaged and not used");
            Ok(None)
        }
    }
}

/// Reads the fields of a payload one after the other.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn position(&mut self) -> Option<Position> {
        self.take().map(u64::from_le_bytes).map(Position::from_u64)
    }

    pub(super) fn uuid(&mut self) -> Option<Uuid> {
        self.take().map(Uuid::from_bytes)
    }

    /// Text that [`put_text`] wrote.
    pub(super) fn text(&mut self) -> Option<String> {
        let len = self.u32()? as usize;
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        String::from_utf8(head.to_vec()).ok()
    }
}

pub(super) fn put_position(out: &mut Vec<u8>, position: Position) {
    out.extend_from_slice(&position.as_u64().to_le_bytes());
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}
