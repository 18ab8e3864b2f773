//! How many connections a listener may have, and which one ends when another comes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::activity::Activity;
use crate::metrics::Metrics;

/// Places of an HTTP/2 connection, because it takes more memory than one of HTTP/1
/// (deploy/RELIABILITY.md). In a small listener it takes an eighth of the places.
const HTTP2_PLACES: u32 = 16;
/// A connection that was asked to end may have begun a call. Another is asked after this time.
const CHOOSE_AGAIN: Duration = Duration::from_millis(50);

/// Descriptors kept for everything except public connections: 64 for probes, the rest for the
/// journal and Kafka. The journal needs one for each new segment, and without it the process ends.
pub(crate) const KEPT_DESCRIPTORS: u64 = 192;
/// The least number of connections, however low the limit of descriptors is.
const CONNECTIONS_MIN: u64 = 16;

pub(super) struct Places {
    permits: Arc<Semaphore>,
    limit: u32,
    open: Mutex<Connections>,
    /// Only one connection at a time looks for more places. Two would evict each other.
    widening: tokio::sync::Mutex<()>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Connections {
    next: u64,
    /// Connections that had no request when they were last looked at, oldest first.
    unused: BTreeMap<u64, Arc<Activity>>,
    others: HashMap<u64, Arc<Activity>>,
}

/// The places of one connection, until it is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    pub(super) activity: Arc<Activity>,
    permit: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new(limit: u32, metrics: Arc<Metrics>) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(limit as usize));
        let (open, widening) = Default::default();
        Arc::new(Self { permits, limit, open, widening, metrics })
    }

    /// Waits for a place for one more connection. At the limit another one is asked to end: the oldest
    /// without a request, or else the one that has been idle longest, or else the oldest that never showed a
    /// right secret.
    pub(super) async fn take(self: &Arc<Self>) -> Place {
        let permit = self.permits(1, None).await;
        let activity = Activity::new();
        let mut open = self.open.lock();
        let number = open.next;
        open.next += 1;
        open.unused.insert(number, Arc::clone(&activity));
        Place { places: Arc::clone(self), number, activity, permit }
    }

    /// Permits for connection `keep`, or for a new one.
    async fn permits(&self, count: u32, keep: Option<u64>) -> OwnedSemaphorePermit {
        let permits = loop {
            if let Ok(permits) = Arc::clone(&self.permits).try_acquire_many_owned(count) {
                break permits;
            }
            for _ in self.permits.available_permits()..count as usize {
                if self.open.lock().evict(keep) {
                    self.metrics.http_connections_evicted_total.inc();
                }
            }
            let next = Arc::clone(&self.permits).acquire_many_owned(count);
            if let Ok(Ok(permits)) = timeout(CHOOSE_AGAIN, next).await {
                break permits;
            }
        };
        self.metrics.http_connections.add(count.into());
        permits
    }

    /// Resolves when the last connection has ended. No other may come meanwhile.
    pub(super) async fn all_left(&self) {
        // The semaphore is never closed.
        self.permits.acquire_many(self.limit).await.map(drop).ok();
    }
}

impl Place {
    /// Waits until the connection speaks HTTP/2, and then for its other places. Poll it after the
    /// connection, in the same task.
    pub(super) async fn widen(&mut self) {
        self.activity.until(Activity::waits_for_places).await;
        let more = (HTTP2_PLACES - 1).min(self.places.limit / 8);
        let _alone = self.places.widening.lock().await;
        self.permit.merge(self.places.permits(more, Some(self.number)).await);
        self.activity.set_placed();
    }
}

impl Connections {
    /// Asks one connection to end, but not `keep`. Returns false if none can.
    fn evict(&mut self, keep: Option<u64>) -> bool {
        // Each is looked at once: afterwards it is in use, asked to end, or `keep`.
        while let Some((number, activity)) = self.unused.pop_first() {
            self.others.insert(number, Arc::clone(&activity));
            if !activity.is_used() && Some(number) != keep && activity.evict() {
                return true;
            }
        }
        let others = self.others.iter().filter(|(number, _)| Some(**number) != keep);
        let ranked = others.filter_map(|(_, activity)| Some((activity.eviction_rank()?, activity)));
        ranked.min_by_key(|(rank, _)| *rank).is_some_and(|(_, activity)| activity.evict())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.places.open.lock();
        open.unused.remove(&self.number);
        open.others.remove(&self.number);
        self.places.metrics.http_connections.sub(self.permit.num_permits() as i64);
    }
}

/// How many public connections the process can afford, at most `wanted`. Raises the limit of
/// descriptors as far as allowed: it is often 1,024 at start because of `select()`.
pub(super) fn affordable_connections(wanted: usize) -> u32 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let affordable = current
        .map_or(u64::MAX, |limit| limit.saturating_sub(KEPT_DESCRIPTORS).max(CONNECTIONS_MIN));
    if affordable < wanted as u64 {
        tracing::warn!(
            wanted,
            affordable,
            "fewer connections than http.max_connections: raise the limit of open files"
        );
    }
    affordable.min(wanted as u64).min(u32::MAX.into()) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn strangers_who_are_busy_go_when_nobody_is_idle_and_known_callers_stay() {
        let places = Places::new(4, Arc::default());
        let (mut taken, mut busy) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            let place = places.take().await;
            busy.push(place.activity.begin());
            taken.push(place);
        }
        busy[0].trust();
        drop(busy.pop());
        let evict = || places.open.lock().evict(None);
        assert!(evict() && taken[3].activity.eviction_rank().is_none(), "the idle one");
        assert!(evict() && taken[1].activity.eviction_rank().is_none(), "the oldest stranger");
        tokio::time::timeout(CHOOSE_AGAIN, taken[1].activity.evicted()).await.unwrap();
        assert!(evict() && !evict(), "never the known one");
        // A stranger who was chosen shows the secret.
        busy[2].trust();
        let evicted = tokio::time::timeout(CHOOSE_AGAIN, taken[2].activity.evicted()).await;
        assert!(evicted.is_err(), "it stays");
    }

    #[tokio::test]
    async fn connections_without_a_request_go_oldest_first_and_leave_nothing_behind() {
        let places = Places::new(3, Arc::default());
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(places.take().await);
        }
        drop(taken[0].activity.begin());
        assert!(places.open.lock().evict(None));
        assert!(taken[1].activity.eviction_rank().is_none(), "the oldest without a request");
        assert!(places.open.lock().evict(Some(2)), "the one that was used");
        assert!(!places.open.lock().evict(Some(2)), "it keeps itself");
        assert!(places.open.lock().evict(None));
        drop(taken);
        let open = places.open.lock();
        assert_eq!((open.unused.len(), open.others.len()), (0, 0));
    }
}
