//! Keeps over a restart when Weni last called each source.
//!
//! The file `arrivals` in the journal's directory holds it, as a JSON object of milliseconds since
//! 1970. Nothing depends on it but what the inspector shows, so it is not synced.

use std::{collections::BTreeMap, io, mem, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    calls::RecentCalls,
    journal::{
        Journal,
        disk::{Disk, Mode},
    },
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
    written: Arc<Mutex<Written>>,
}

struct Written {
    times: Times,
    /// The last write failed, and the log says so.
    is_failing: bool,
}

impl Arrivals {
    /// Takes up what an earlier process wrote. A file that cannot be read counts as none.
    pub(super) fn restore(calls: Arc<RecentCalls>, journal: Journal) -> Self {
        let directory = journal.directory();
        let content = directory.disk.read(&directory.path.join(FILE));
        let times: Times = content
            .ok()
            .and_then(|content| serde_json::from_slice(&content).ok())
            .unwrap_or_default();
        calls.restore(times.clone());
        let written = Written { times, is_failing: false };
        Self { calls, journal, written: Arc::new(Mutex::new(written)) }
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
        if times == written.times {
            return;
        }
        match self.try_write(&times) {
            Ok(()) => {
                written.times = times;
                if mem::take(&mut written.is_failing) {
                    tracing::info!("the last arrivals are written again");
                }
            }
            Err(error) => {
                if !mem::replace(&mut written.is_failing, true) {
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
        let directory = self.journal.directory();
        let (file, new) = (directory.path.join(FILE), directory.path.join(NEW_FILE));
        let content = serde_json::to_vec(times)?;
        let disk: &dyn Disk = directory.disk;
        disk.open(&new, Mode::Truncate)?.write_at(&content, 0)?;
        disk.rename(&new, &file)
    }
}
