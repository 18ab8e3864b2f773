//! Keeps over a restart when Weni last called each source.
//!
//! The file `arrivals` in the journal's directory holds it, as a JSON object of milliseconds since
//! 1970. Only the inspector shows it, so it is not synced.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    calls::RecentCalls,
    journal::{Directory, Journal, disk::Mode},
};

/// Between two writes. A process that is killed forgets what came after the last one.
const EVERY: Duration = Duration::from_secs(5);
const FILE: &str = "arrivals";
const NEW_FILE: &str = "arrivals.new";

type Times = BTreeMap<String, u64>;

/// What is on disk, and where the newer times come from.
#[derive(Clone)]
pub(super) struct Arrivals {
    calls: Arc<RecentCalls>,
    journal: Journal,
    /// None: the last write failed, and the log says so.
    written: Arc<Mutex<Option<Times>>>,
}

impl Arrivals {
    /// Takes up what an earlier process wrote. A file that cannot be read counts as none.
    pub(super) fn restore(calls: Arc<RecentCalls>, journal: Journal) -> Self {
        let Directory { disk, path } = journal.directory();
        let content = disk.read(&path.join(FILE)).ok();
        let times = content.and_then(|content| serde_json::from_slice::<Times>(&content).ok());
        let times = times.unwrap_or_default();
        calls.restore(times.clone());
        Self { calls, journal, written: Arc::new(Mutex::new(Some(times))) }
    }

    /// Writes changes until it is aborted.
    pub(super) async fn keep(self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let arrivals = self.clone();
            // A disk that hangs must hang no worker of the runtime.
            tokio::task::spawn_blocking(move || arrivals.write()).await.ok();
        }
    }

    /// Writes the file if there is something new, and no other write is under way.
    pub(super) fn write(&self) {
        let Some(mut written) = self.written.try_lock() else { return };
        let times = self.calls.last_arrivals();
        if written.as_ref() == Some(&times) {
            return;
        }
        match self.try_write(&times) {
            Ok(()) => {
                if written.replace(times).is_none() {
                    tracing::info!("the last arrivals are written again");
                }
            }
            Err(error) => {
                if written.take().is_some() {
                    tracing::warn!(
                        %error,
                        "when each source called last cannot be written, so a restart forgets it; \
                         calls are not concerned, and it is tried again"
                    );
                }
            }
        }
    }

    fn try_write(&self, times: &Times) -> io::Result<()> {
        let Directory { disk, path } = self.journal.directory();
        let new = path.join(NEW_FILE);
        disk.open(&new, Mode::Truncate)?.write_at(&serde_json::to_vec(times)?, 0)?;
        disk.rename(&new, &path.join(FILE))
    }
}
