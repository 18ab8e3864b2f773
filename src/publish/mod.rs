//! From the journal into Kafka: read in order, normalize, one transaction for the events and the
//! journal's position after them.
//!
//! One thread publishes, because librdkafka's calls block. Another supervises it: a publisher that
//! panics or hangs is abandoned, and a new one opens and fences it. Accepting goes on all the time.
//!
//! **Invariant:** a callback is settled only when the position after it is committed in Kafka, or when an
//! operator's fork leaves it out; there is no second account of what was acknowledged.

mod account;
mod batch;
mod isolate;
mod position;
mod session;
mod sizing;
mod supervisor;

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use uuid::Uuid;

use self::{
    session::{Ended, Session},
    sizing::Learnt,
    supervisor::Heartbeat,
};
use crate::{
    callback::Callback,
    clock,
    config::Config,
    event::Item,
    journal::{Checkpoint, Journal, Position, fork::Forked},
    kafka::{self, Blocked, Cluster, Obstacle, Topics, lag, librdkafka},
    metrics::Metrics,
    normalize,
    quarantine::QuarantinedFiles,
};

/// The longest time between two beats while opening: the sum of its calls' limits.
const SILENT_OPENING: Duration = Duration::from_secs(120);
/// How often waiting is interrupted to look for a stop.
const TICK: Duration = Duration::from_millis(100);
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Between two tries where no broker can be reached.
const PAUSE_UNREACHABLE: Duration = Duration::from_millis(500);
/// Between two tries where brokers refuse.
const PAUSE_REFUSED: Duration = Duration::from_secs(30);
/// Between two looks at the position where an operator has to decide.
const PAUSE_OPERATOR: Duration = Duration::from_secs(10);
/// How long a stop waits for the publisher when nothing is left to publish.
const IDLE_STOP: Duration = Duration::from_secs(1);

/// The running publisher.
pub struct Publisher {
    shared: Shared,
    supervisor: JoinHandle<()>,
}

impl Publisher {
    /// Starts publishing what is in the journal. An obstacle in Kafka is reported and waited for.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(
        config: Arc<ArcSwap<Config>>,
        journal: Journal,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        metrics.set_build_info(&kafka::version());
        account::start_at_zero(&metrics);
        let shared = Shared::new(config, journal, metrics);
        let watched = shared.clone();
        thread::Builder::new().name("kafka-lag".to_owned()).spawn(move || {
            lag::watch(&watched.config, &watched.metrics, |pause| {
                watched.wait_unless_stopped(pause)
            });
        })?;
        let supervised = shared.clone();
        let supervisor = thread::Builder::new()
            .name("publish-watch".to_owned())
            .spawn(move || supervisor::supervise(&supervised))?;
        Ok(Self { shared, supervisor })
    }

    /// Publishes what is left until `deadline`, commits or aborts, and ends. Blocks until then, or
    /// 6 s longer if a call of librdkafka exceeds its time limit. What is left stays in the
    /// journal. If nothing is left it returns within two seconds.
    pub fn stop(self, deadline: Instant) {
        *self.shared.stop.lock() = Some(deadline);
        let mut idle_since = None;
        let mut until = || match self.shared.journal.pending() {
            0 => *idle_since.get_or_insert_with(clock::now) + IDLE_STOP,
            _ => deadline + Duration::from_secs(5),
        };
        while !self.supervisor.is_finished() && clock::now() < until() {
            thread::sleep(TICK / 10);
        }
        if !self.supervisor.is_finished() {
            tracing::warn!(
                "the publisher still waits for Kafka: stopping without it; what is left stays in the journal"
            );
        }
    }
}

/// Takes up the fork that the operator asked for, if there is one. Nothing may be published yet, and the
/// journal may have the labels of another configuration until then.
pub(crate) fn take_up_fork(journal: &Journal, metrics: &Metrics) {
    match journal.take_fork() {
        Ok(None) => {}
        Ok(Some(Forked { left_out, repeated })) => {
            // The operator asked for it.
            settled_unpublished(metrics, "left_out", left_out);
            tracing::warn!(journal = %journal.id(), left_out, repeated,
                "the journal was forked: it publishes under a new identity now");
        }
        Err(error) => tracing::error!(%error,
            "the fork that was asked for is not taken up: mend that, or run `weni-edge journal fork` \
             again as the edge's user, and restart the edge"),
    }
}

/// Counts callbacks that are settled without being published now.
fn settled_unpublished(metrics: &Metrics, outcome: &str, callbacks: u64) {
    metrics.items_total.with_label_values(&["none", outcome]).inc_by(callbacks);
    metrics.callbacks_settled_total.inc_by(callbacks);
}

/// What the publisher's threads share. Each publishing thread has a copy with its own heartbeat.
#[derive(Clone)]
struct Shared {
    config: Arc<ArcSwap<Config>>,
    journal: Journal,
    metrics: Arc<Metrics>,
    /// The deadline of a stop.
    stop: Arc<Mutex<Option<Instant>>>,
    blocked: Arc<Mutex<Option<Blocked>>>,
    heartbeat: Arc<Heartbeat>,
}

impl Shared {
    fn new(config: Arc<ArcSwap<Config>>, journal: Journal, metrics: Arc<Metrics>) -> Self {
        let (stop, blocked, heartbeat) = Default::default();
        Self { config, journal, metrics, stop, blocked, heartbeat }
    }

    /// Normalizes a callback, and passes its items on.
    fn items<T>(&self, callback: &Callback<'_>, then: impl FnOnce(Vec<Item<'_>>) -> T) -> T {
        let config = self.config.load();
        let body = normalize::decode(callback, config.http.max_body_bytes);
        let document = normalize::parse(&body);
        then(normalize::items(callback, config.event_settings(callback.source), &document))
    }

    /// The name of the group and the transactional id.
    fn identity(&self) -> String {
        format!("{}{}", self.config.load().kafka.identity_prefix, self.journal.id())
    }

    fn quarantine(&self) -> QuarantinedFiles<'_> {
        QuarantinedFiles::of(self.journal.directory())
    }

    fn checkpoint(&self, position: Position, receipt: Uuid, topics: &Topics) -> Checkpoint {
        // A run whose id was forgotten is an idle edge's, of long ago.
        let run_id = self.journal.run_id(position.run()).unwrap_or_default();
        Checkpoint { position, run_id, receipt, cluster_id: topics.cluster_id.clone() }
    }

    /// Brings the checkpoint on disk to a position that the journal was reset to.
    fn set_back(&self, position: Position, topics: &Topics) -> io::Result<()> {
        self.journal.advance_committed(self.checkpoint(position, Uuid::nil(), topics));
        self.journal.write_checkpoint()
    }

    /// Whether to end: a stop was asked for, and nothing or no time is left. A publisher that was replaced
    /// ends, too.
    fn stopping(&self) -> bool {
        let is_over = |deadline| clock::now() >= deadline || self.journal.pending() == 0;
        self.heartbeat.abandoned() || self.stop.lock().is_some_and(is_over)
    }

    fn block(&self, obstacle: &Obstacle) {
        if self.heartbeat.abandoned() {
            return;
        }
        if self.set_blocked(Some(obstacle.blocked)) != Some(obstacle.blocked) {
            tracing::error!(
                reason = obstacle.blocked.as_str(),
                detail = obstacle.detail,
                "publishing waits; accepting goes on"
            );
        }
    }

    /// Something was committed, or there is a producer and nothing to publish.
    fn unblock(&self) {
        if let Some(before) = self.set_blocked(None) {
            tracing::info!(was = before.as_str(), "publishing goes on");
        }
    }

    /// Keeps and shows why nothing is published, and returns what it was before.
    fn set_blocked(&self, now: Option<Blocked>) -> Option<Blocked> {
        let mut blocked = self.blocked.lock();
        let before = std::mem::replace(&mut *blocked, now);
        if before != now {
            for reason in Blocked::ALL {
                let gauge = self.metrics.publish_blocked.with_label_values(&[reason.as_str()]);
                gauge.set((Some(reason) == now).into());
            }
        }
        before
    }

    /// Waits until `pause` is over, the topics change or it is time to end.
    fn pause(&self, pause: Duration) {
        let until = clock::now() + pause;
        let topics = self.config.load().topics.clone();
        while clock::now() < until && !self.stopping() && self.config.load().topics == topics {
            self.heartbeat.beat();
            clock::sleep(TICK.min(pause));
        }
    }

    /// Waits; returns false as soon as a stop is asked for.
    fn wait_unless_stopped(&self, pause: Duration) -> bool {
        let until = clock::now() + pause;
        let is_running = || self.stop.lock().is_none();
        while is_running() && clock::now() < until {
            thread::sleep(TICK);
        }
        is_running()
    }
}

/// Makes the clients of the real cluster.
fn connect(shared: &Shared) -> Result<librdkafka::Cluster, Obstacle> {
    let config = shared.config.load_full();
    librdkafka::Cluster::new(config, shared.identity(), Arc::clone(&shared.metrics))
}

/// One publishing thread: opens, publishes until the producer is lost, opens again.
fn publish<C: Cluster>(
    shared: &Shared,
    failed: BTreeSet<Position>,
    connect: &dyn Fn(&Shared) -> Result<C, Obstacle>,
) {
    let mut learnt = Learnt::new(failed);
    let mut pause = PAUSE_MIN;
    let mut commits = 0;
    while !shared.stopping() {
        shared.heartbeat.silent_at_most(SILENT_OPENING);
        shared.heartbeat.beat_in_kafka();
        let opened =
            connect(shared).and_then(|cluster| position::open(shared, &cluster, &mut learnt));
        let obstacle = match opened.map(Session::run) {
            Ok(Ended::Stopped) => return,
            Ok(Ended::Reopen) => {
                shared.pause(PAUSE_UNREACHABLE);
                continue;
            }
            Ok(Ended::Lost(obstacle)) => {
                shared.metrics.producer_rebuilds_total.with_label_values(&["lost"]).inc();
                obstacle
            }
            Err(obstacle) => Some(obstacle),
        };
        let now = shared.heartbeat.commits.load(Ordering::Relaxed);
        if std::mem::replace(&mut commits, now) != now {
            pause = PAUSE_MIN;
        }
        let longest = match obstacle.as_ref().map(|obstacle| obstacle.blocked) {
            None | Some(Blocked::NoBroker | Blocked::TooFewReplicas) => PAUSE_UNREACHABLE,
            Some(blocked) if blocked.needs_operator() => PAUSE_OPERATOR,
            Some(_) => PAUSE_REFUSED,
        };
        // One lost producer is an ordinary failover; several in a row are not.
        let again_and_again = || {
            let detail = "the Kafka producer was lost several times in a row: either another edge uses \
                          this identity, or the cluster is unstable";
            (pause > PAUSE_UNREACHABLE).then(|| Obstacle::new(Blocked::KafkaError, detail))
        };
        if let Some(obstacle) = obstacle.or_else(again_and_again) {
            shared.block(&obstacle);
        }
        shared.pause(pause.min(longest));
        pause = (pause * 2).min(PAUSE_REFUSED);
    }
}

/// The publisher on the caller's thread, over any cluster.
#[cfg(feature = "simulation")]
pub struct Stepped(Shared);

#[cfg(feature = "simulation")]
impl Stepped {
    /// Takes up a fork, as a start does.
    pub fn new(config: Arc<ArcSwap<Config>>, journal: Journal, metrics: Arc<Metrics>) -> Self {
        take_up_fork(&journal, &metrics);
        Self(Shared::new(config, journal, metrics))
    }

    /// Publishes until it is asked to stop. `connect` is told the identity.
    pub fn run<C: Cluster>(&self, connect: &dyn Fn(&str) -> Result<C, Obstacle>) {
        publish(&self.0, BTreeSet::new(), &|shared| connect(&shared.identity()));
    }

    /// Asks it to stop.
    pub fn stop(&self, deadline: Instant) {
        *self.0.stop.lock() = Some(deadline);
    }

    /// Why nothing is published.
    pub fn blocked(&self) -> Option<Blocked> {
        *self.0.blocked.lock()
    }
}
