//! The local copy of the position that is committed in Kafka.
//!
//! It bounds what may be recycled and stands in where Kafka has no position. It carries the id of its
//! journal, because after a fork an older one means nothing.

use std::io;

use uuid::Uuid;

use super::{OpenError, Position, disk::Directory, sealed};

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
    pub(super) fn read(journal: Directory<'_>, id: Uuid) -> Result<Option<Self>, OpenError> {
        sealed::read(journal, NAME, KIND, |fields| {
            let is_own = fields.uuid()? == id;
            let (position, run_id) = (fields.position()?, fields.uuid()?);
            let (receipt, cluster_id) = (fields.uuid()?, fields.text()?);
            if !is_own {
                tracing::warn!("the checkpoint is of another journal and not used");
            }
            is_own.then_some(Self { position, run_id, receipt, cluster_id })
        })
    }
}
