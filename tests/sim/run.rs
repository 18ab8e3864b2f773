//! One run: callers append, the real journal and the real publisher work, processes and machines die. At
//! the end the judge checks what a `read_committed` consumer sees.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use uuid::Uuid;
use weni_edge::{
    callback::Callback,
    clock,
    config::Config,
    journal::{self, AppendError, Journal, Position},
    metrics::Metrics,
    mutant, publish, replay,
};

use crate::{
    disk::{Machine, Mounted},
    judge,
    kafka::{self, Cluster},
    world::{self, Crash, Plan, Verdict, World, below, chance, fault, now, trace},
};

const DIRECTORY: &str = "/journal";
/// Small, so that runs begin many segments.
const SEGMENT_BYTES: u64 = 16 << 10;

type Append = Pin<Box<dyn Future<Output = Result<Position, AppendError>>>>;

/// What a caller knows of its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Waiting,
    /// 200.
    Accepted,
    /// Anything else: it may be there or not.
    Unknown,
    /// It is not stored.
    Refused,
}

/// A call.
#[derive(Debug)]
pub struct Call {
    pub statuses: usize,
    pub answer: Answer,
    /// When it was answered 200: the order that its key promises.
    pub position: Option<Position>,
    pub deadly: bool,
}

/// What is shared by everything that happens on this thread.
pub struct Stage {
    pub machine: Machine,
    pub broker: kafka::Shared,
    pub calls: Vec<Call>,
    config: Arc<ArcSwap<Config>>,
    /// How many more calls come.
    left: u64,
    waiting: Vec<(usize, Append)>,
    process: Option<Process>,
    /// The last part of the run: nothing fails any more.
    last: bool,
    /// Turns until this process ends in order.
    ends_in: u64,
    /// How many calls there were when a bit was turned.
    pub damaged: usize,
    /// A bit was turned since the journal was opened.
    flipped: bool,
    /// The last process ended in order, so that all damage is known as such.
    in_order: bool,
    /// What recoveries reported as damaged, over all processes.
    pub reported_damage: u64,
    /// Calls that the last sync made durable. After a crash, damage to the last batch cannot be told from
    /// a batch that was never synced.
    last_batch: Vec<usize>,
    pub excused: Vec<usize>,
    /// A backup of the disk, and how many calls there were.
    backup: Option<(Machine, usize)>,
    /// Calls that a restored backup may lack, over all restorations.
    pub exempt: BTreeSet<usize>,
    pub replayed: bool,
    /// Another process has the journal open, too.
    intruding: bool,
    /// One had, since this process began.
    overtaken: bool,
    /// The operator has to fork.
    fork_due: bool,
    pub forked: bool,
}

#[derive(Clone)]
struct Process {
    journal: Journal,
    publisher: Rc<publish::Stepped>,
    metrics: Arc<Metrics>,
}

thread_local! {
    static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
}

pub fn on<T>(act: impl FnOnce(&mut Stage) -> T) -> T {
    STAGE.with_borrow_mut(|stage| act(stage.as_mut().expect("a stage")))
}

struct Clock;

impl clock::World for Clock {
    fn now(&self) -> Instant {
        now()
    }

    fn wall_ms(&self) -> u64 {
        world::wall_ms()
    }

    fn turn(&self, until: Instant) {
        turns();
        let left = until.saturating_duration_since(now());
        let step = match below(3) {
            0 => Duration::from_millis(1 + below(20)),
            1 => left / 4,
            _ => left,
        };
        world::advance(step.min(left));
    }
}

/// Lets everything else happen for a moment.
pub fn turns() {
    world::turn();
    for _ in 0..=below(3) {
        one_turn();
    }
}

fn one_turn() {
    let Some(process) = on(|stage| stage.process.clone()) else { return };
    match below(12) {
        0..=3 => call(&process),
        4..=7 => drop(process.journal.step_writer()),
        8 => process.journal.round_keeper(),
        9 => on(|stage| Rc::clone(&stage.broker)).try_borrow_mut().map_or((), |mut it| it.turn()),
        11 if chance(40) && may_intrude() => intrude(),
        10 if chance(20) => world::with(|world| {
            // The wall clock jumps.
            let by = (world.faults as i64) * 3_600_000;
            world.wall_offset_ms += if world.wall_offset_ms % 2 == 0 { by } else { -by };
        }),
        _ => {}
    }
    poll(&process);
    if has_failed(&process.journal) {
        trace(|| "the journal failed: the process ends".to_owned());
        resume_unwind(Box::new(Crash));
    }
    end_or_go_on(&process);
}

fn has_failed(journal: &Journal) -> bool {
    let mut failed = Box::pin(journal.failed());
    matches!(failed.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(_))
}

/// A caller calls.
fn call(process: &Process) {
    let number = on(|stage| {
        if stage.left == 0 {
            return None;
        }
        stage.left -= 1;
        Some(stage.calls.len())
    });
    let Some(number) = number else { return };
    let key = format!("k{}", below(4));
    let statuses = 1 + usize::from(chance(200));
    let poison = match (world::listed_mark(), below(60)) {
        (Some(mark), 0..=9) => mark,
        (None, 0..=2) => kafka::POISON,
        (None, 3..=5) => kafka::DEADLY,
        (None, 6) => kafka::SLOW,
        _ => "",
    };
    let status = |at: usize| {
        format!(
            r#"{{"id":"{key}","status":"sent","timestamp":"1700000000","recipient_id":"55","pad":"{}","mark":"<{number}.{at}>{poison}"}}"#,
            "x".repeat(below(600) as usize)
        )
    };
    let all: Vec<_> = (0..statuses).map(status).collect();
    let mut body = format!(r#"{{"statuses":[{}]}}"#, all.join(",")).into_bytes();
    let forged = chance(150);
    if forged {
        body = format!("<{number}.0>").into_bytes();
        body.extend(forged_frame(process.journal.durable()));
    }
    let (statuses, poison) = if forged { (1, "") } else { (statuses, poison) };
    let record = record(number as u128 + 1, &body);
    let deadly = poison == kafka::DEADLY;
    on(|stage| {
        let answer = Answer::Waiting;
        stage.calls.push(Call { statuses, answer, position: None, deadly });
    });
    let has_room = process.journal.has_room(record.len());
    let (journal, metrics) = (process.journal.clone(), Arc::clone(&process.metrics));
    let append = async move {
        let accepted = metrics.callbacks_accepted_total.with_label_values(&["loja"]);
        let appended = journal.append(record.len(), &accepted, |out| out.extend(record)).await;
        if appended == Err(AppendError::Full) && has_room {
            let still = journal.has_room(1);
            if mutant::is("ready although full") && still {
                world::fail("ready although full");
            }
        }
        appended
    };
    on(|stage| stage.waiting.push((number, Box::pin(append))));
}

/// A journal record of a callback with this body.
fn record(receipt: u128, body: &[u8]) -> Vec<u8> {
    let callback = Callback {
        receipt: Uuid::from_u128(receipt),
        received_at_ms: world::wall_ms(),
        source: "loja",
        raw: true,
        method: "POST",
        content_type: None,
        content_encoding: None,
        traceparent: None,
        body,
    };
    let mut record = Vec::new();
    callback.encode(&mut record);
    record
}

/// What a caller sends who knows the journal's format, and not the segment's salt: the frame of a callback
/// that was never called.
fn forged_frame(durable: Position) -> Vec<u8> {
    let payload =
        record(u128::MAX, br#"{"statuses":[{"id":"k0","status":"sent","mark":"<999999.0>"}]}"#);
    let position = Position::new(durable.run(), durable.index() + below(8));
    let mut frame = (payload.len() as u32).to_le_bytes().to_vec();
    frame.extend(position.as_u64().to_le_bytes());
    frame.extend(0_u32.to_le_bytes());
    frame.extend(payload);
    let crc = crc32c::crc32c(&frame);
    [&crc.to_le_bytes()[..], &frame].concat()
}

/// Looks who is answered.
fn poll(_: &Process) {
    let mut waiting = on(|stage| std::mem::take(&mut stage.waiting));
    let mut durable = Vec::new();
    waiting.retain_mut(|(number, append)| {
        let Poll::Ready(answer) = append.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        else {
            return true;
        };
        trace(|| format!("call {number}: {answer:?}"));
        durable.extend(answer.is_ok().then_some(*number));
        on(|stage| {
            let call = &mut stage.calls[*number];
            (call.answer, call.position) = match answer {
                Ok(position) => (Answer::Accepted, Some(position)),
                Err(AppendError::Full | AppendError::Slow) => (Answer::Refused, None),
                Err(_) => (Answer::Unknown, None),
            };
        });
        false
    });
    on(|stage| {
        waiting.append(&mut stage.waiting);
        stage.waiting = waiting;
        if !durable.is_empty() {
            stage.last_batch = durable;
        }
    });
}

/// The operator gives the journal another identity.
fn fork(journal: &Journal) {
    let (id, start) = (Uuid::from_u128(world::random()), journal.committed());
    trace(|| format!("the operator forks from {start}"));
    let identity = journal::Identity { id, start, label: String::new() };
    // If it fails, it is found blocked again.
    drop(journal::fork::request(journal.directory(), &identity));
    on(|stage| stage.forked = true);
}

/// Whether another process would take a call, and leave some to the first.
fn may_intrude() -> bool {
    world::with(|world| world.faults) && on(|stage| !stage.intruding && stage.left > 1)
}

/// Another process opens the journal past the lock, takes a call, publishes, and dies. Callers of the
/// first go on meanwhile.
fn intrude() {
    trace(|| "another process opens the journal past the lock".to_owned());
    world::count("a second process", "opens past the lock");
    let machine = on(|stage| stage.machine.clone());
    let mounted = machine.mount();
    on(|stage| (stage.intruding, stage.overtaken) = (true, true));
    let _death = scopeguard::guard((), |()| {
        machine.break_locks(false);
        mounted.kill();
        trace(|| "the other process dies".to_owned());
        on(|stage| stage.intruding = false);
    });
    machine.break_locks(true);
    let metrics = Arc::new(Metrics::default());
    let opened = Journal::open(options(&mounted, false), Arc::clone(&metrics));
    machine.break_locks(false);
    let Ok(journal) = opened else { return };
    let publisher = Rc::new(publisher(&journal, &metrics));
    let process = Process { journal, publisher: Rc::clone(&publisher), metrics };
    call(&process);
    // Queues it, and hears that it is durable.
    poll(&process);
    while process.journal.step_writer() {}
    poll(&process);
    publisher.stop(now() + Duration::from_secs(10));
    publish(&publisher);
}

fn publisher(journal: &Journal, metrics: &Arc<Metrics>) -> publish::Stepped {
    let config = on(|stage| Arc::clone(&stage.config));
    publish::Stepped::new(config, journal.clone(), Arc::clone(metrics))
}

/// Publishes until the publisher stops. Returns how many transactions it tried to begin.
fn publish(publisher: &publish::Stepped) -> u64 {
    let begun = Rc::new(Cell::new(0));
    let (broker, names) =
        on(|stage| (Rc::clone(&stage.broker), stage.config.load().topics.clone()));
    publisher.run(&|group| {
        let (broker, group) = (Rc::clone(&broker), group.to_owned());
        Ok(Cluster { broker, group, names: names.clone(), begun: Rc::clone(&begun) })
    });
    begun.get()
}

fn end_or_go_on(process: &Process) {
    let operator = process.publisher.blocked().is_some_and(|blocked| blocked.needs_operator());
    if operator && on(|stage| stage.overtaken && !stage.intruding) {
        trace(|| "the operator ends the process that was overtaken".to_owned());
        resume_unwind(Box::new(Crash));
    }
    if operator && !on(|stage| std::mem::replace(&mut stage.fork_due, true)) {
        process.publisher.stop(now());
    }
    let (last, done, ends) = on(|stage| {
        stage.ends_in = stage.ends_in.saturating_sub(1);
        (stage.last, stage.left == 0 && stage.waiting.is_empty(), stage.ends_in == 0)
    });
    // What was acknowledged and not told is not pending.
    let owes = on(|stage| Rc::clone(&stage.broker)).try_borrow_mut().is_ok_and(|mut broker| {
        let oldest = process.journal.oldest().as_u64();
        // A full journal recycles it: the promise ends there.
        if broker.acknowledged_untold.take_if(|start| oldest > *start).is_some() {
            (broker.forgot_untold, broker.lost_something) = (true, true);
            on(|stage| stage.exempt.extend(0..stage.calls.len()));
        }
        broker.is_unfinished() && !broker.forgot_untold
    });
    let settled = || process.journal.pending() == 0 && !owes;
    if (last && done && settled()) || (!last && ends) {
        process.publisher.stop(now() + Duration::from_secs(10));
    }
}

fn options(mounted: &Mounted, full: bool) -> journal::Options {
    journal::Options {
        max_bytes: if full { 24 << 10 } else { 1 << 20 },
        min_free_bytes: 0,
        segment_bytes: SEGMENT_BYTES,
        disk: Arc::new(mounted.clone()),
        random: world::random,
        stepped: true,
        ..journal::Options::new(DIRECTORY)
    }
}

/// One process, from its start to its end.
fn process(full: bool) {
    let mounted = on(|stage| stage.machine.mount());
    let metrics = Arc::new(Metrics::default());
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let journal = match Journal::open(options(&mounted, full), Arc::clone(&metrics)) {
            Ok(journal) => journal,
            Err(error) => {
                trace(|| format!("the journal does not open: {error}"));
                return;
            }
        };
        let publisher = Rc::new(publisher(&journal, &metrics));
        let process =
            Process { journal, publisher: Rc::clone(&publisher), metrics: Arc::clone(&metrics) };
        on(|stage| (stage.in_order, stage.overtaken, stage.flipped) = (false, false, false));
        trace(|| format!("a process begins run {}", process.journal.durable().run()));
        // What was recycled before Kafka lost it cannot be published again: the promise ends there.
        let went_back_to = on(|stage| stage.broker.borrow_mut().went_back_to.take());
        if went_back_to.is_some_and(|to| full || process.journal.oldest().as_u64() > to) {
            on(|stage| stage.exempt.extend(0..stage.calls.len()));
        }
        on(|stage| stage.process = Some(process.clone()));
        let begun = publish(&publisher);
        judge::accounts(&process.journal, &metrics, begun);
        if on(|stage| stage.fork_due) {
            fork(&process.journal);
        }
        // In order: nothing may come between the last sync and the end.
        process.journal.close();
        on(|stage| stage.in_order = true);
        trace(|| "the process ends in order".to_owned());
    }));
    mounted.kill();
    // The promise ends there (deploy/RELIABILITY.md).
    on(|stage| {
        if stage.broker.borrow_mut().forgets() {
            stage.exempt.extend(0..stage.calls.len());
        }
    });
    on(|stage| {
        stage.reported_damage += metrics.journal_corrupt_bytes_total.get();
        stage.process = None;
        let waiting = std::mem::take(&mut stage.waiting);
        for (number, _) in &waiting {
            stage.calls[*number].answer = Answer::Unknown;
        }
        stage.machine.release_locks();
        drop(waiting);
    });
    match opened {
        Ok(()) => {}
        Err(why) if why.is::<Crash>() => {
            if fault("crash", &["with power loss", "with power loss"]).is_some() || chance(400) {
                trace(|| "the machine loses its power".to_owned());
                on(|stage| stage.machine.lose_power());
            } else {
                trace(|| "the process dies".to_owned());
            }
        }
        Err(why) => resume_unwind(why),
    }
}

/// What happens between two processes.
fn between() {
    let outcomes = [
        "a bit turns",
        "the last commit is lost",
        "offsets are deleted",
        "a backup is made",
        "a backup is restored",
        "a replay runs",
    ];
    let (machine, broker) = on(|stage| (stage.machine.clone(), Rc::clone(&stage.broker)));
    match fault("between processes", &outcomes) {
        // What ends an unfinished transaction has to hold the same callbacks, of the same identity, in
        // the same partitions. Two such losses at once are beyond the promise.
        Some(_) if broker.borrow().is_unfinished() => {}
        // A second one may hide that the first is no torn tail.
        Some("a bit turns") if on(|stage| stage.flipped) => {}
        Some("a bit turns") => {
            let damaged = machine.flip_a_bit("/segments/");
            on(|stage| {
                stage.flipped |= damaged;
                if damaged {
                    stage.damaged = stage.calls.len();
                    let last_batch = std::mem::take(&mut stage.last_batch);
                    stage.excused.extend(last_batch.into_iter().filter(|_| !stage.in_order));
                }
            });
        }
        Some("the last commit is lost") => drop(broker.borrow_mut().lose_the_last_commit()),
        Some("offsets are deleted") => drop(broker.borrow_mut().forget_offsets()),
        Some("a backup is made") => on(|stage| {
            stage.backup.get_or_insert((stage.machine.copy(), stage.calls.len()));
        }),
        Some("a replay runs") => {
            on(|stage| stage.replayed = true);
            replay_letters();
        }
        Some(_) => on(|stage| {
            if let Some((machine, calls)) = stage.backup.take() {
                stage.machine = machine;
                // What was quarantined after the backup was only on the disk, too.
                let deadly = (0..calls).filter(|call| stage.calls[*call].deadly);
                stage.exempt.extend(deadly.chain(calls..stage.calls.len()));
            }
        }),
        None => {}
    }
}

/// Replays. Returns whether that came to its end.
fn replay_letters() -> bool {
    let (config, broker, mounted) =
        on(|stage| (stage.config.load_full(), Rc::clone(&stage.broker), stage.machine.mount()));
    broker.borrow_mut().poisonous = false;
    let group = "weni-edge-replay.dead".to_owned();
    let names = config.topics.clone();
    let options = replay::ReplayOptions::default();
    let done = catch_unwind(AssertUnwindSafe(|| {
        let cluster = Cluster { broker, group, names, begun: Rc::default() };
        let done = replay::run_on(&config, &options, &mut |_, _| {}, cluster, &mounted);
        done.map_err(|error| trace(|| format!("the replay ends: {error:#}"))).is_ok()
    }));
    match done {
        Ok(done) => done,
        Err(why) if why.is::<Crash>() => {
            trace(|| "the replay dies".to_owned());
            false
        }
        Err(why) => resume_unwind(why),
    }
}

/// How one run went.
pub struct Outcome {
    pub verdict: Option<String>,
    pub world: World,
}

/// One run.
#[expect(clippy::too_many_lines, reason = "the steps of one run, in their order")]
pub fn run(seed: u64, plan: Plan, traced: bool) -> Outcome {
    world::replace(World::new(seed, plan, traced));
    clock::enter(Some(Rc::new(Clock)));
    let mut config = Config::default();
    config.journal.directory = DIRECTORY.into();
    config.topics.message_status = "status".to_owned();
    config.topics.dead_letter = "dead".to_owned();
    config.topics.position = "position".to_owned();
    let mut broker = kafka::Broker::default();
    broker.poisonous = true;
    // Mostly short: they find more in the same time.
    let long = chance(200);
    let stage = Stage {
        machine: Machine::default(),
        broker: Rc::new(RefCell::new(broker)),
        calls: Vec::new(),
        config: Arc::new(ArcSwap::from_pointee(config)),
        left: 0,
        waiting: Vec::new(),
        process: None,
        last: false,
        ends_in: 0,
        damaged: 0,
        flipped: false,
        in_order: true,
        reported_damage: 0,
        last_batch: Vec::new(),
        excused: Vec::new(),
        backup: None,
        exempt: BTreeSet::new(),
        replayed: false,
        intruding: false,
        overtaken: false,
        fork_due: false,
        forked: false,
    };
    STAGE.set(Some(stage));
    let rates = [2, 5, 20, 60];
    world::with(|world| world.fault_rate = rates[seed as usize % rates.len()]);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let full = chance(200);
        for _ in 0..1 + below(if long { 6 } else { 3 }) {
            on(|stage| {
                stage.left = below(if long { 60 } else { 15 });
                stage.ends_in = 20 + below(if long { 2000 } else { 300 });
            });
            process(full);
            while on(|stage| std::mem::take(&mut stage.fork_due)) {
                process(full);
            }
            between();
        }
        world::with(|world| world.faults = false);
        on(|stage| (stage.last, stage.left) = (true, below(5)));
        process(full);
        while on(|stage| std::mem::take(&mut stage.fork_due)) {
            process(full);
        }
        let replayed = chance(500);
        if replayed {
            on(|stage| stage.replayed = true);
            world::with(|world| world.faults = true);
            for _ in 0..below(3) {
                replay_letters();
            }
            world::with(|world| world.faults = false);
            on(|stage| stage.broker.borrow_mut().down_until = None);
            if !replay_letters() {
                world::fail("a replay without a fault failed");
            }
        }
        on(|stage| {
            // The broker ends what a producer left open that never came back.
            world::advance(2 * kafka::TRANSACTION_TIME);
            stage.broker.borrow_mut().turn();
            judge::consumers(stage, replayed);
        });
    }));
    clock::enter(None);
    STAGE.set(None);
    let world = world::replace(World::new(0, Plan::Random, false));
    let verdict = match result {
        Ok(()) => None,
        Err(why) => Some(match why.downcast::<Verdict>() {
            Ok(verdict) => verdict.0,
            Err(why) if why.is::<Crash>() => "a process died without a fault".to_owned(),
            Err(why) => why
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| why.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "a panic".to_owned()),
        }),
    };
    Outcome { verdict, world }
}

/// What was seen, by mark.
pub type Seen = BTreeMap<(usize, usize), Vec<String>>;

/// Puts the program's log into the trace.
#[derive(Default)]
pub struct TraceWriter;

impl std::io::Write for TraceWriter {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        trace(|| format!("        {}", String::from_utf8_lossy(line).trim_end()));
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
