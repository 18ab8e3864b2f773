//! Starts publishing threads, and replaces those that panic or hang.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use super::{PAUSE_REFUSED, Shared, TICK, publish};
use crate::{
    journal::Position,
    kafka::{Blocked, Obstacle},
};

/// After more replacements without a commit, publishing counts as blocked.
const REPLACED_MAX: u32 = 3;

/// Signs of life of one publishing thread.
#[derive(Default)]
pub(super) struct Heartbeat {
    beats: AtomicU64,
    /// Ticks without a beat after which the thread counts as hung.
    silent_ticks_max: AtomicU32,
    pub(super) commits: AtomicU64,
    /// The thread was replaced: it must not touch anything shared if it wakes.
    abandoned: AtomicBool,
    /// The last beat came before a call of librdkafka.
    in_kafka: AtomicBool,
    /// The position that is being normalized; 0 for none.
    normalizing: AtomicU64,
}

impl Heartbeat {
    pub(super) fn beat(&self) {
        self.in_kafka.store(false, Ordering::Relaxed);
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// The same before a call of librdkafka.
    pub(super) fn beat_in_kafka(&self) {
        self.beat();
        self.in_kafka.store(true, Ordering::Relaxed);
    }

    pub(super) fn normalizing(&self, position: Option<Position>) {
        self.beat();
        self.normalizing.store(position.map_or(0, Position::as_u64), Ordering::Relaxed);
    }

    pub(super) fn abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Sets the longest time between two beats. It is counted in ticks, because a frozen process
    /// does not tick.
    pub(super) fn silent_at_most(&self, longest: Duration) {
        let longest = if cfg!(feature = "failpoints") { Duration::from_secs(5) } else { longest };
        let ticks = longest.as_millis() / TICK.as_millis();
        self.silent_ticks_max.store(ticks as u32, Ordering::Relaxed);
        self.beat();
    }
}

// Why a publishing thread has to be replaced: the label `reason` of the next one.
const PANICKED: &str = "panic";
/// It hung in a call of librdkafka, which exceeds its time limits when brokers die.
const HUNG: &str = "lost";
/// It hung in the edge's own code.
const WEDGED: &str = "wedged";

/// Runs publishing threads, one after the other, until one ends as it was asked to.
pub(super) fn supervise(shared: &Shared) {
    // Callbacks at which normalizing panicked or hung.
    let (mut once, mut twice) = (BTreeSet::new(), BTreeSet::new());
    let mut replaced = 0;
    let mut reason = "start";
    loop {
        let shared = Shared { heartbeat: Arc::default(), ..shared.clone() };
        shared.metrics.producer_rebuilds_total.with_label_values(&[reason]).inc();
        let Some(why) = run_thread(&shared, twice.clone()) else { return };
        reason = why;
        let normalizing = shared.heartbeat.normalizing.load(Ordering::Relaxed);
        let position = Position::from_u64(normalizing);
        if reason != HUNG && normalizing != 0 && !once.insert(position) {
            twice.insert(position);
        }
        let committed = shared.heartbeat.commits.load(Ordering::Relaxed) > 0;
        replaced = if committed { 0 } else { replaced + 1 };
        if replaced > REPLACED_MAX {
            let detail = format!("{replaced} publishers were lost without a commit: {reason}");
            // The death of a broker is no defect of the edge.
            let blocked =
                if reason == HUNG { Blocked::KafkaError } else { Blocked::PublisherWedged };
            let supervisor = Shared { heartbeat: Arc::default(), ..shared };
            supervisor.block(&Obstacle::new(blocked, detail));
            thread::sleep(PAUSE_REFUSED);
        }
    }
}

/// One publishing thread from its start to its end. Returns why it has to be replaced; none if it ended as
/// it was asked to.
fn run_thread(shared: &Shared, failed: BTreeSet<Position>) -> Option<&'static str> {
    shared.heartbeat.silent_at_most(super::SILENT_OPENING);
    let publishing = shared.clone();
    let thread = match thread::Builder::new()
        .name("publish".to_owned())
        .spawn(move || publish(&publishing, failed, &super::connect))
    {
        Ok(thread) => thread,
        Err(error) => {
            tracing::error!(%error, "the publisher's thread cannot be started: trying again in 1 s");
            thread::sleep(Duration::from_secs(1));
            return Some(WEDGED);
        }
    };
    let mut last_beats = 0;
    let mut silent_ticks = 0;
    loop {
        thread::sleep(TICK);
        if thread.is_finished() {
            return thread.join().err().map(|_| PANICKED);
        }
        let Heartbeat { beats, silent_ticks_max, abandoned, in_kafka, .. } = &*shared.heartbeat;
        let beats = beats.load(Ordering::Relaxed);
        silent_ticks = if beats == last_beats { silent_ticks + 1 } else { 0 };
        last_beats = beats;
        if silent_ticks > silent_ticks_max.load(Ordering::Relaxed) {
            abandoned.store(true, Ordering::Relaxed);
            let reason = if in_kafka.load(Ordering::Relaxed) { HUNG } else { WEDGED };
            tracing::error!(reason, "the publisher made no progress in time: it is replaced");
            return Some(reason);
        }
    }
}
