//! What a session does before its first transaction.

use std::io;

use uuid::Uuid;

use super::{
    Shared,
    session::{Ended, Session},
    settled_unpublished,
};
use crate::{callback::Callback, kafka::Producer, quarantine};

impl<P: Producer> Session<'_, P> {
    /// Brings files, account and checkpoint to where Kafka's position says that publishing is.
    pub(super) fn begin(&mut self) -> Result<(), Ended> {
        let removed = if self.is_certain { self.remove_uncommitted_files() } else { Ok(()) };
        self.account();
        // Without a position in Kafka the checkpoint counts. An abort may delete the position
        // before it, so the checkpoint goes back on disk before anything is sent.
        let set_back = || {
            if !self.unfinished {
                return Ok(());
            }
            let journal = &self.shared.journal;
            journal.advance_committed(self.checkpoint((self.position, Uuid::nil())));
            journal.write_checkpoint()
        };
        let done = removed.and_then(|()| set_back());
        done.map_err(|error| Ended::Lost(Some(self.disk_failed(&error))))?;
        if std::mem::take(&mut self.learnt.suspects.first_is_slow)
            && !self.unfinished
            && let Some(first) = self.takes_small_records()?
        {
            self.learnt.suspects.was_too_slow(first);
        }
        Ok(())
    }

    /// Removes the quarantined files of an attempt that was not committed. Its callbacks are still
    /// in the journal and are published again, perhaps without a file.
    fn remove_uncommitted_files(&self) -> io::Result<()> {
        let (journal, files) = (&self.shared.journal, self.shared.quarantine());
        let uncommitted = self.position.max(journal.committed());
        for (position, name) in files.letters()? {
            // A letter that another journal in this directory left at the same position stays. So does a
            // record that could not be read: it has no receipt to tell whose it is.
            let is_intact = || -> io::Result<bool> {
                let mut reader = journal.reader(position);
                let record = reader.next()?.filter(|record| record.position == position);
                let callback = record.and_then(|record| Callback::decode(record.payload).ok());
                Ok(callback.is_some_and(|callback| quarantine::is_of(&name, callback.receipt)))
            };
            if position >= uncommitted && is_intact()? {
                files.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Counts callbacks that the position shows as committed and that no account has: their
    /// commit's answer was lost, or an earlier process committed them.
    fn account(&self) {
        let Shared { journal, metrics, .. } = self.shared;
        let found_committed = journal.reset_committed(self.position);
        settled_unpublished(metrics, "already_committed", found_committed);
        if self.is_certain && found_committed > 0 {
            // On disk too: a replay takes only quarantined files before the checkpoint.
            journal.advance_committed(self.checkpoint((self.position, self.last_receipt)));
        }
    }
}
