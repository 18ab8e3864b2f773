//! The world of one run: its time, its random numbers, its trace, and its faults.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::found::Found;

/// What a run may cost: a run that takes more waits for ever.
const TURNS_MAX: u64 = 60_000;

/// How often each outcome of each call happened.
pub type Coverage = BTreeMap<(&'static str, &'static str), u64>;

/// Calls that a run makes seldom fail so many times as often as others.
const SELDOM: &[(&str, u64)] = &[
    ("between processes", 20),
    ("committed", 6),
    ("committed unstable", 6),
    ("ending at open", 10),
    ("reserve", 3),
    ("set_len", 3),
    ("link", 10),
    ("send_offsets", 4),
    ("await_reports", 3),
    ("commit", 6),
    ("remove", 6),
    ("abort", 4),
    ("partitions", 3),
    ("read partitions", 10),
    ("poll", 3),
    ("file_system", 3),
];

/// Which of the faults that can happen do.
pub enum Plan {
    /// Any, by chance.
    Random,
    /// Of those that chance picks, only those at these places: a run that is being shrunk.
    Only(BTreeSet<u64>),
    /// Those of the list, in its order; and how many of them have happened.
    Listed(&'static Found, usize),
}

/// A fault of the world: its place, its call, and what happened.
pub type Fault = (u64, &'static str, &'static str);

/// The state of one run.
pub struct World {
    dice: u64,
    base: Instant,
    elapsed: Duration,
    /// What the wall clock differs by, in milliseconds.
    pub wall_offset_ms: i64,
    pub faults: bool,
    /// How many in a thousand calls fail.
    pub fault_rate: u64,
    /// Numbers the places where something may fail.
    places: u64,
    pub plan: Plan,
    /// What has failed.
    pub failed: Vec<Fault>,
    pub trace: Option<Vec<String>>,
    pub coverage: Coverage,
    turns: u64,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new(0, Plan::Random, false));
}

/// The process dies here.
pub struct Crash;

/// The run has shown a fault of the program.
pub struct Verdict(pub String);

impl World {
    pub fn new(seed: u64, plan: Plan, traced: bool) -> Self {
        Self {
            dice: seed ^ 0x9e37_79b9_7f4a_7c15,
            base: Instant::now(),
            elapsed: Duration::ZERO,
            wall_offset_ms: 1_763_842_000_000,
            faults: true,
            fault_rate: 10,
            places: 0,
            plan,
            failed: Vec::new(),
            trace: traced.then(Vec::new),
            coverage: Coverage::new(),
            turns: 0,
        }
    }
}

/// Reaches the world of this thread. No other call into the world may be made meanwhile.
pub fn with<T>(act: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(act)
}

/// Begins a run; returns the world of the last one.
pub fn replace(world: World) -> World {
    WORLD.replace(world)
}

/// A random number below `bound` (splitmix64).
pub fn below(bound: u64) -> u64 {
    with(|world| world.next() % bound)
}

pub fn random() -> u128 {
    with(|world| u128::from(world.next()) << 64 | u128::from(world.next()))
}

/// Whether something happens, `per_mille` times in a thousand.
pub fn chance(per_mille: u64) -> bool {
    below(1000) < per_mille
}

pub fn now() -> Instant {
    with(|world| world.base + world.elapsed)
}

pub fn wall_ms() -> u64 {
    with(|world| (world.elapsed.as_millis() as i64 + world.wall_offset_ms) as u64)
}

pub fn advance(by: Duration) {
    with(|world| world.elapsed += by);
}

pub fn trace(line: impl FnOnce() -> String) {
    with(|world| {
        let seconds = world.elapsed.as_secs_f64();
        if let Some(trace) = &mut world.trace {
            trace.push(format!("{seconds:>9.3}  {}", line()));
        }
    });
}

pub fn count(call: &'static str, outcome: &'static str) {
    with(|world| *world.coverage.entry((call, outcome)).or_default() += 1);
}

/// A place where one of `outcomes` may happen instead of what is usual.
pub fn fault(call: &'static str, outcomes: &[&'static str]) -> Option<&'static str> {
    let outcome = with(|world| {
        let is_new = !world.coverage.contains_key(&(call, "done"));
        for outcome in outcomes.iter().chain(&["done"]).filter(|_| is_new) {
            world.coverage.entry((call, outcome)).or_default();
        }
        world.places += 1;
        let outcome = world.next_outcome(call, outcomes);
        *world.coverage.entry((call, outcome.unwrap_or("done"))).or_default() += 1;
        world.failed.extend(outcome.map(|outcome| (world.places, call, outcome)));
        outcome
    })?;
    trace(|| format!("{call}: {outcome}"));
    if outcome == "crash before" {
        std::panic::resume_unwind(Box::new(Crash));
    }
    Some(outcome)
}

/// The process dies after a call that was asked to.
pub fn crash() -> ! {
    std::panic::resume_unwind(Box::new(Crash));
}

pub fn fail(why: impl Into<String>) -> ! {
    std::panic::resume_unwind(Box::new(Verdict(why.into())));
}

/// What the list of this run marks callbacks with.
pub fn listed_mark() -> Option<&'static str> {
    with(|world| match world.plan {
        Plan::Listed(found, _) => found.mark,
        Plan::Random | Plan::Only(_) => None,
    })
}

/// Counts a turn of the world.
pub fn turn() {
    let turns = with(|world| {
        world.turns += 1;
        world.turns
    });
    if turns > TURNS_MAX {
        fail("it waits for ever");
    }
}

impl World {
    /// What happens at this place instead of what is usual.
    fn next_outcome(
        &mut self,
        call: &'static str,
        outcomes: &[&'static str],
    ) -> Option<&'static str> {
        let (happens, which) = (self.next() % 1000, self.next() as usize);
        if !self.faults || outcomes.is_empty() {
            return None;
        }
        let times =
            SELDOM.iter().find(|(seldom, _)| *seldom == call).map_or(1, |(_, times)| *times);
        let by_chance =
            (happens < self.fault_rate * times).then(|| outcomes[which % outcomes.len()]);
        match &mut self.plan {
            Plan::Random => by_chance,
            Plan::Only(places) => by_chance.filter(|_| places.contains(&self.places)),
            Plan::Listed(found, done) => {
                let (listed, outcome) = found.faults.get(*done)?;
                // Not always at once, so that many seeds try many places.
                let now = *listed == call && outcomes.contains(outcome) && happens < 700;
                *done += usize::from(now);
                now.then_some(*outcome)
            }
        }
    }

    fn next(&mut self) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.dice;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
