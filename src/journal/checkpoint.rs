//! The local copy of the position that is committed in Kafka.
//!
//! It bounds what may be recycled and stands in where Kafka has no position. It carries the id
//! of its journal: after a fork an older one means nothing.

use std::io;

use uuid::Uuid;

use super::{
    OpenError, Position,
    disk::Directory,
    sealed::{self, Fields},
};

const KIND: sealed::Kind = *b"ckpt";
const NAME: &str = "checkpoint";

/// How far the journal's records are committed in Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The first position that is not committed.
    pub position: Position,
    /// [`Journal::run_id`](super::Journal::run_id) that was committed with it.
    pub run_id: Uuid,
    /// Receipt of the last committed callback; nil where there is none.
    pub receipt: Uuid,
    /// The cluster that it was committed to; empty where none has been yet.
    pub cluster_id: String,
}

impl Checkpoint {
    pub(super) fn write(&self, journal: Directory<'_>, journal_id: Uuid) -> io::Result<()> {
        let mut payload = journal_id.as_bytes().to_vec();
        sealed::put_position(&mut payload, self.position);
        payload.extend_from_slice(self.run_id.as_bytes());
        payload.extend_from_slice(self.receipt.as_bytes());
        sealed::put_text(&mut payload, &self.cluster_id);
        sealed::write(journal, NAME, KIND, &payload)
    }

    /// The checkpoint of the journal with this id, if there is one and it is whole.
    pub(super) fn read(
        journal: Directory<'_>,
        journal_id: Uuid,
    ) -> Result<Option<Self>, OpenError> {
        let path = journal.path.join(NAME);
        let Some(payload) = sealed::read(journal.disk, &path, KIND)? else { return Ok(None) };
        let mut fields = Fields(&payload);
        if fields.uuid() != Some(journal_id) {
            tracing::warn!("the checkpoint is of another journal and not used");
            return Ok(None);
        }
        Ok((|| {
            Some(Self {
                position: fields.position()?,
                run_id: fields.uuid()?,
                receipt: fields.uuid()?,
                cluster_id: fields.text()?,
            })
        })())
    }
}
