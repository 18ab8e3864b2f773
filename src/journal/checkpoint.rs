//! The local copy of the position that is committed in Kafka.
//!
//! It bounds what may be recycled, and stands in where Kafka has no position. One line of text:
//! `weni-edge-checkpoint 1 <position> <run id> <receipt> <cluster id or -> <crc32c of all before>`.

use std::{fs, io, path::Path};

use uuid::Uuid;

use super::{Position, files::write_atomically};

const NAME: &str = "checkpoint";
const MAGIC: &str = "weni-edge-checkpoint 1";

/// How far the journal is committed, as last heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The first position that is not committed.
    pub position: Position,
    /// Id of the run that the position counts in.
    pub run_id: Uuid,
    /// The last callback before the position.
    pub receipt: Uuid,
    /// The cluster that holds the position; empty when it is not known.
    pub cluster_id: String,
}

impl Checkpoint {
    fn encode(&self) -> String {
        let Self { position, run_id, receipt, cluster_id } = self;
        let cluster_id = if cluster_id.is_empty() { "-" } else { cluster_id };
        let line = format!("{MAGIC} {} {run_id} {receipt} {cluster_id}", position.as_u64());
        format!("{line} {:08x}\n", crc32c::crc32c(line.as_bytes()))
    }

    fn decode(text: &str) -> Option<Self> {
        let (line, crc) = text.trim_end().rsplit_once(' ')?;
        if u32::from_str_radix(crc, 16).ok()? != crc32c::crc32c(line.as_bytes()) {
            return None;
        }
        let mut words = line.strip_prefix(MAGIC)?.split_whitespace();
        let checkpoint = Self {
            position: Position::from_u64(words.next()?.parse().ok()?),
            run_id: words.next()?.parse().ok()?,
            receipt: words.next()?.parse().ok()?,
            cluster_id: words.next().filter(|id| *id != "-").unwrap_or_default().to_owned(),
        };
        Some(checkpoint)
    }

    /// Reads the directory's checkpoint; a damaged one is reported and counts as none.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub(super) fn read(directory: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(directory.join(NAME)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let checkpoint = std::str::from_utf8(&bytes).ok().and_then(Self::decode);
        if checkpoint.is_none() {
            tracing::error!("the journal's checkpoint is damaged: Kafka's position decides");
        }
        Ok(checkpoint)
    }

    /// Replaces the directory's checkpoint, durably.
    ///
    /// # Errors
    /// When the disk does not take it; the old one is still there.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        write_atomically(&directory.join(NAME), self.encode().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(cluster_id: &str) -> Checkpoint {
        Checkpoint {
            position: Position::new(7, 42),
            run_id: Uuid::from_u128(1),
            receipt: Uuid::from_u128(2),
            cluster_id: cluster_id.to_owned(),
        }
    }

    #[test]
    fn a_checkpoint_reads_back_as_it_was_written() {
        for cluster_id in ["", "4L6g3nShT-eMCtK--X86sw"] {
            let written = checkpoint(cluster_id);
            assert_eq!(Checkpoint::decode(&written.encode()), Some(written));
        }
    }

    #[test]
    fn a_damaged_checkpoint_counts_as_none() {
        let text = checkpoint("cluster").encode();
        for at in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let read = String::from_utf8(bytes).ok().and_then(|text| Checkpoint::decode(&text));
            assert_eq!(read, None, "flipped at {at}");
            assert_eq!(Checkpoint::decode(&text[..at]), None, "cut at {at}");
        }
    }
}
