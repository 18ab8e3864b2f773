//! A fork: the journal goes on under a new identity, from where somebody said.
//!
//! The request is a file in the journal's directory, so that a running edge takes it up and a
//! stopped one finds it: one line, `<new id> <position> <label>`.

use std::{fs, io, path::Path};

use uuid::Uuid;

use super::{
    Checkpoint, Position,
    files::{read_text, sync_directory_of, write_atomically},
    identity::Identity,
};

const NAME: &str = "fork";

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The journal's new id.
    pub new_id: Uuid,
    /// The first position to be published under it.
    pub from: Position,
    /// The publisher's new label.
    pub label: String,
}

impl Request {
    /// Leaves the request, durably; it replaces an earlier one.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let line = format!("{} {} {}\n", self.new_id, self.from.as_u64(), self.label);
        write_atomically(&directory.join(NAME), line.as_bytes())
    }

    pub(super) fn is_there(directory: &Path) -> bool {
        directory.join(NAME).exists()
    }

    /// Reads the request, if there is one.
    pub(super) fn read(directory: &Path) -> io::Result<Option<Self>> {
        let Some(text) = read_text(&directory.join(NAME))? else { return Ok(None) };
        let mut words = text.trim_end().splitn(3, ' ');
        let id = words.next().and_then(|word| word.parse().ok());
        let from = words.next().and_then(|word| word.parse().ok());
        let label = words.next();
        match id.zip(from).zip(label) {
            Some(((new_id, from), label)) => {
                let (from, label) = (Position::from_u64(from), label.to_owned());
                Ok(Some(Self { new_id, from, label }))
            }
            None => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "the fork's request is damaged"))
            }
        }
    }

    /// Makes it true. Every step may be repeated, and the request goes last: a crash in between is
    /// taken up at the next start.
    pub(super) fn apply(&self, directory: &Path) -> io::Result<Checkpoint> {
        // No cluster, no run: whatever Kafka keeps under the new name is ours.
        let checkpoint = Checkpoint {
            position: self.from,
            run_id: Uuid::nil(),
            receipt: Uuid::nil(),
            cluster_id: String::new(),
        };
        checkpoint.write(directory)?;
        Identity { id: self.new_id, label: self.label.clone() }.write(directory)?;
        let path = directory.join(NAME);
        fs::remove_file(&path)?;
        sync_directory_of(&path)?;
        Ok(checkpoint)
    }
}
