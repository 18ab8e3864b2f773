//! A Kafka cluster in memory: partitions, transactions with epochs, groups' offsets. A call may fail, be
//! done while its answer is lost, or come late.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    rc::Rc,
    time::{Duration, Instant},
};

use weni_edge::{
    config,
    journal::Position,
    kafka::{
        self, Blocked, Code, Failure, Fetched, Followed, GroupOffset, Obstacle, ProducerSettings,
        Record, Step, Topics, View,
    },
    mutant,
};

use crate::{
    run,
    world::{self, below, chance, fault, now, trace},
};

pub const PARTITIONS: i32 = 3;
/// The longest that a transaction may be open.
pub const TRANSACTION_TIME: Duration = Duration::from_secs(20 * 60);
/// A record with this in its value is rejected, unless its topic is the dead letters'.
pub const POISON: &str = "poison";
/// A record with this in its value is never answered in time, unless its topic is the dead letters'.
pub const SLOW: &str = "slow";
/// A record with this in its value is rejected in every topic.
pub const DEADLY: &str = "deadly";

/// A record in a partition.
#[derive(Debug, Clone)]
pub struct Entry {
    pub key: String,
    pub value: Vec<u8>,
    pub headers: Vec<(String, Vec<u8>)>,
    transaction: u64,
    pub state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Open,
    /// Its transaction has ended, and this partition was not told.
    Untold,
    Committed,
    Aborted,
}

/// What the coordinator keeps for a transactional id.
#[derive(Debug, Default)]
struct Coordinator {
    epoch: u64,
    open: Option<Transaction>,
}

#[derive(Debug, Clone)]
struct Transaction {
    number: u64,
    begun: Instant,
    partitions: BTreeSet<(String, i32)>,
    offsets: Vec<GroupOffset>,
}

/// A request that a broker takes up later.
#[derive(Debug)]
struct Late {
    id: String,
    epoch: u64,
    topic: String,
    partition: i32,
    entry: Entry,
}

#[derive(Debug, Default)]
pub struct Broker {
    pub partitions: BTreeMap<(String, i32), Vec<Entry>>,
    coordinators: HashMap<String, Coordinator>,
    offsets: BTreeMap<(String, String, i32), GroupOffset>,
    /// Groups whose offsets belong to a transaction whose end the partitions were not told.
    untold: BTreeMap<String, Vec<GroupOffset>>,
    late: Vec<Late>,
    transactions: u64,
    /// Nothing is answered until then.
    pub down_until: Option<Instant>,
    /// Records are rejected.
    pub poisonous: bool,
    /// What was kept before the last commit: a broker that loses its memory goes back to it.
    before_last: Option<Snapshot>,
    /// The cluster has lost what it acknowledged.
    pub lost_something: bool,
    /// Where the transaction begins whose commit was acknowledged and whose partitions were not told,
    /// until another one is committed.
    pub acknowledged_untold: Option<u64>,
    /// A process died so with its next transaction open: only it knew.
    pub forgot_untold: bool,
    /// The position that it went back to.
    pub went_back_to: Option<u64>,
}

type Snapshot = (BTreeMap<(String, i32), Vec<Entry>>, BTreeMap<(String, String, i32), GroupOffset>);

pub type Shared = Rc<RefCell<Broker>>;

impl Broker {
    fn end(&mut self, transaction: &Transaction, state: State, group: &str) {
        trace(|| format!("kafka: {group}: {:?} ends as {state:?}", transaction.partitions));
        for partition in &transaction.partitions {
            for entry in self.partitions.entry(partition.clone()).or_default() {
                let own = entry.transaction == transaction.number && entry.state == State::Open;
                // A marker also ends what an earlier transaction of this id left untold.
                if own || entry.state == State::Untold {
                    entry.state = state;
                }
            }
        }
        if transaction.offsets.is_empty() {
            return;
        }
        let untold = self.untold.remove(group).unwrap_or_default();
        if state == State::Committed {
            for offset in untold.iter().chain(&transaction.offsets) {
                let key = (group.to_owned(), offset.topic.clone(), offset.partition);
                self.offsets.insert(key, offset.clone());
            }
        }
    }

    fn leave_untold(&mut self, transaction: &Transaction, group: &str) {
        trace(|| format!("kafka: {group}: {:?} are not told", transaction.partitions));
        for partition in &transaction.partitions {
            for entry in self.partitions.entry(partition.clone()).or_default() {
                if entry.transaction == transaction.number && entry.state == State::Open {
                    entry.state = State::Untold;
                }
            }
        }
        if !transaction.offsets.is_empty() {
            self.untold.entry(group.to_owned()).or_default().extend(transaction.offsets.clone());
        }
    }

    /// Whether the topic does not take the record.
    fn rejects(&self, topic: &str, entry: &Entry) -> bool {
        let text = String::from_utf8_lossy(&entry.value);
        self.poisonous
            && (text.contains(DEADLY) || (text.contains(POISON) && !topic.contains("dead")))
    }

    /// Whether the topic does not answer for the record in time.
    fn is_slow(&self, topic: &str, entry: &Entry) -> bool {
        let text = String::from_utf8_lossy(&entry.value);
        // Both at once would be waited for: nothing tells which callbacks the unfinished one held.
        self.poisonous && !topic.contains("dead") && text.contains(SLOW) && !self.is_unfinished()
    }

    /// Takes up a record, if its producer is not fenced.
    fn take(&mut self, late: Late) -> Result<(), Code> {
        let Late { id, epoch, topic, partition, mut entry } = late;
        let rejected = self.rejects(&topic, &entry) || self.is_slow(&topic, &entry);
        let coordinator = self.coordinators.entry(id).or_default();
        if coordinator.epoch != epoch {
            return Err(Code::InvalidProducerEpoch);
        }
        if rejected {
            return Err(Code::InvalidRecord);
        }
        // Without KIP-890's second part it becomes part of whatever transaction is open.
        let Some(open) = &mut coordinator.open else { return Err(Code::InvalidTransactionalState) };
        open.partitions.insert((topic.clone(), partition));
        entry.transaction = open.number;
        self.partitions.entry((topic, partition)).or_default().push(entry);
        Ok(())
    }

    /// What happens by itself.
    pub fn turn(&mut self) {
        // A transaction whose producer does not come back.
        let abandoned: Vec<_> = self
            .coordinators
            .iter_mut()
            .filter_map(|(id, own)| {
                let open = own.open.take_if(|open| now() > open.begun + TRANSACTION_TIME)?;
                own.epoch += 1;
                Some((id.clone(), open))
            })
            .collect();
        for (id, open) in abandoned {
            trace(|| format!("kafka: the transaction of {id} is over"));
            self.end(&open, State::Aborted, &id);
        }
        if !self.late.is_empty() && chance(600) {
            let late = self.late.swap_remove(below(self.late.len() as u64) as usize);
            trace(|| format!("kafka: a late record of {} is taken up", late.id));
            self.take(late).ok();
        }
    }

    /// A process has ended. Whether what Kafka acknowledged and did not tell may be missing now.
    pub fn forgets(&mut self) -> bool {
        let open = self.coordinators.values().any(|own| own.open.is_some());
        // The position no longer shows it, and some partitions may.
        let forgets = self.acknowledged_untold.is_some() && (open || self.untold.is_empty());
        self.forgot_untold |= forgets;
        self.lost_something |= forgets;
        forgets && open
    }

    pub fn is_unfinished(&self) -> bool {
        !self.untold.is_empty()
            || self.partitions.values().flatten().any(|entry| entry.state == State::Untold)
    }

    /// The broker loses what it acknowledged last.
    pub fn lose_the_last_commit(&mut self) -> bool {
        // Once in a run: where Kafka loses its records and then the position too, nothing can tell.
        if self.lost_something {
            return false;
        }
        let Some((partitions, offsets)) = self.before_last.take() else { return false };
        // Without any position left the edge can only believe its checkpoint: the promise ends there.
        if !offsets.keys().any(|(group, ..)| group.starts_with("weni-edge.")) {
            return false;
        }
        let position = offsets.iter().find(|((_, topic, _), _)| topic == "position");
        self.went_back_to = position.map(|(_, kept)| kept.offset as u64);
        (self.partitions, self.offsets) = (partitions, offsets);
        self.coordinators.values_mut().for_each(|coordinator| coordinator.open = None);
        for entry in self.partitions.values_mut().flatten() {
            if matches!(entry.state, State::Open | State::Untold) {
                entry.state = State::Aborted;
            }
        }
        self.untold.clear();
        self.lost_something = true;
        true
    }

    /// A group's offsets are deleted.
    pub fn forget_offsets(&mut self) -> bool {
        if self.lost_something {
            return false;
        }
        self.lost_something |= !self.offsets.is_empty();
        let some = !self.offsets.is_empty();
        self.offsets.clear();
        some
    }

    /// What a `read_committed` consumer sees of a partition, with offsets.
    fn visible(&self, topic: &str, partition: i32) -> (Vec<(i64, Entry)>, i64) {
        let empty = Vec::new();
        let all = self.partitions.get(&(topic.to_owned(), partition)).unwrap_or(&empty);
        let stable = all
            .iter()
            .position(|entry| matches!(entry.state, State::Open | State::Untold))
            .unwrap_or(all.len());
        let committed = all[..stable].iter().enumerate();
        let committed = committed.filter(|(_, entry)| entry.state == State::Committed);
        (committed.map(|(at, entry)| (at as i64, entry.clone())).collect(), stable as i64)
    }
}

fn no_broker() -> Obstacle {
    Obstacle::new(Blocked::NoBroker, "no broker answers")
}

/// A cluster, as one group sees it.
pub struct Cluster {
    pub broker: Shared,
    pub group: String,
    pub names: config::Topics,
    /// How often its producers were asked to begin a transaction.
    pub begun: Rc<Cell<u64>>,
}

impl Cluster {
    fn call(
        &self,
        call: &'static str,
        outcomes: &[&'static str],
    ) -> Result<Option<&'static str>, Obstacle> {
        run::turns();
        let down = self.broker.borrow().down_until.filter(|until| now() < *until);
        if let Some(until) = down {
            world::advance((until - now()).min(Duration::from_secs(5)));
            world::count(call, "brokers are down");
            return Err(no_broker());
        }
        match fault(call, outcomes) {
            Some("no broker") => {
                world::advance(Duration::from_secs(5));
                Err(no_broker())
            }
            Some("brokers go down") => {
                let until = now() + Duration::from_secs(below(120));
                self.broker.borrow_mut().down_until = Some(until);
                Err(no_broker())
            }
            Some("not authorized") => Err(Obstacle::new(Blocked::NotAuthorized, "no right")),
            outcome => Ok(outcome),
        }
    }
}

impl kafka::Cluster for Cluster {
    type Producer = Producer;
    type Reader = Reader;

    fn look(&self, _: bool) -> Result<Topics, Obstacle> {
        self.call("look", &["no broker", "brokers go down", "not authorized", "crash before"])?;
        let (cluster_id, names) = ("simulated".to_owned(), self.names.clone());
        Ok(Topics { cluster_id, names, limits: HashMap::new() })
    }

    fn partitions(&self, _: &str) -> Result<Vec<i32>, Obstacle> {
        self.call("partitions", &["no broker"])?;
        Ok((0..PARTITIONS).collect())
    }

    fn watermarks(&self, topic: &str, partition: i32) -> Result<Range<i64>, Obstacle> {
        self.call("watermarks", &["no broker"])?;
        Ok(0..self.broker.borrow().visible(topic, partition).1)
    }

    fn committed(
        &self,
        view: View,
        partitions: &[(&str, i32)],
        within: Duration,
    ) -> Result<Vec<GroupOffset>, Obstacle> {
        let name = if view == View::Stable { "committed" } else { "committed unstable" };
        let unreadable = || Obstacle::new(Blocked::PositionUnreadable, "no clear answer");
        let outcome =
            self.call(name, &["no broker", "brokers go down", "unreadable", "partition error"])?;
        let broker = self.broker.borrow();
        let open = broker.coordinators.get(&self.group).and_then(|own| own.open.as_ref());
        let unstable = broker.untold.contains_key(&self.group)
            || open.is_some_and(|open| !open.offsets.is_empty());
        if outcome == Some("partition error") {
            if mutant::is("partition error of committed offsets ignored") {
                return Ok(Vec::new());
            }
            return Err(unreadable());
        }
        if outcome.is_some() || (view == View::Stable && unstable) {
            world::advance(within);
            return Err(unreadable());
        }
        let key = |(topic, partition): &(&str, i32)| {
            (self.group.clone(), (*topic).to_owned(), *partition)
        };
        Ok(partitions.iter().filter_map(|asked| broker.offsets.get(&key(asked)).cloned()).collect())
    }

    fn read(&self, topic: &str, from: &[(i32, i64)]) -> Result<Reader, Obstacle> {
        self.call("read partitions", &["no broker"])?;
        let broker = self.broker.borrow();
        let records = from.iter().map(|(partition, start)| {
            let mut records = broker.visible(topic, *partition).0;
            records.retain(|(offset, _)| offset >= start);
            records.reverse();
            (*partition, records)
        });
        Ok(Reader { records: records.collect() })
    }

    fn open(&self, _: &Topics, settings: ProducerSettings) -> Result<Producer, Obstacle> {
        let outcomes = ["no broker", "brokers go down", "done, answer lost", "crash before"];
        let outcome = self.call("open", &outcomes)?;
        let mut broker = self.broker.borrow_mut();
        let coordinator = broker.coordinators.entry(self.group.clone()).or_default();
        coordinator.epoch += 1;
        let epoch = coordinator.epoch;
        if let Some(open) = coordinator.open.take() {
            // A broker that dies while it ends the transaction may tell no partition.
            drop(broker);
            // Where a callback of it is damaged, or goes into another topic because a replay has mended
            // that one, nothing can end it any more.
            let untold = !self.group.starts_with("weni-edge-replay")
                && run::on(|stage| stage.damaged == 0)
                && self.broker.borrow().poisonous
                && fault("ending at open", &["partitions not told"]).is_some();
            broker = self.broker.borrow_mut();
            if untold {
                // Without the position in it nothing tells the edge of it (deploy/RELIABILITY.md).
                broker.lost_something |= open.offsets.is_empty();
                broker.leave_untold(&open, &self.group);
            } else {
                broker.end(&open, State::Aborted, &self.group);
            }
        }
        trace(|| format!("kafka: {} opens with epoch {epoch}", self.group));
        if outcome.is_some() {
            return Err(no_broker());
        }
        let (broker, id) = (Rc::clone(&self.broker), self.group.clone());
        let queue = Vec::new();
        Ok(Producer {
            broker,
            id,
            epoch,
            timeout: settings.timeout,
            queue,
            asked_to_begin: Rc::clone(&self.begun),
            begun: false,
            dead: false,
            doomed: false,
        })
    }
}

pub struct Reader {
    /// What is left, the next one last.
    records: Vec<(i32, Vec<(i64, Entry)>)>,
}

impl kafka::Reader for Reader {
    fn poll(&mut self, number: i32, _: Duration) -> Result<Option<Fetched>, Obstacle> {
        run::turns();
        if fault("poll", &["no broker"]).is_some() {
            return Err(no_broker());
        }
        let all = self.records.iter_mut().find(|(partition, _)| *partition == number);
        let Some((offset, entry)) = all.and_then(|(_, records)| records.pop()) else {
            return Ok(Some(Fetched::End(number)));
        };
        let Entry { headers, value, .. } = entry;
        let record = Followed { partition: number, offset, headers, value, ..Followed::default() };
        Ok(Some(Fetched::Record(record)))
    }
}

pub struct Producer {
    broker: Shared,
    id: String,
    epoch: u64,
    timeout: Duration,
    /// Records that were sent and not reported.
    queue: Vec<(usize, String, i32, Entry)>,
    asked_to_begin: Rc<Cell<u64>>,
    begun: bool,
    /// It has to be dropped.
    dead: bool,
    /// The broker died after it had acknowledged a commit: no transaction ends in time any more.
    doomed: bool,
}

fn failure(step: Step, code: Code) -> Failure {
    Failure::new(step, code)
}

impl Producer {
    fn call(
        &mut self,
        call: &'static str,
        step: Step,
        outcomes: &[&'static str],
    ) -> Result<Option<&'static str>, Failure> {
        run::turns();
        if self.dead {
            world::fail(format!("{call} on a producer that has to be dropped"));
        }
        let down = self.broker.borrow().down_until.filter(|until| now() < *until);
        if down.is_some() {
            world::advance(self.timeout / 4);
            world::count(call, "brokers are down");
            return Err(failure(step, Code::OperationTimedOut));
        }
        match fault(call, outcomes) {
            Some("no broker") => Err(failure(step, Code::BrokerTransportFailure)),
            Some("not enough replicas") => Err(failure(step, Code::NotEnoughReplicas)),
            Some("fenced") => {
                self.dead = true;
                Err(Failure { fatal: true, ..failure(step, Code::Fenced) })
            }
            Some("timed out") => {
                world::advance(self.timeout / 4);
                Err(failure(step, Code::OperationTimedOut))
            }
            outcome => Ok(outcome),
        }
    }

    fn is_replay(&self) -> bool {
        self.id.starts_with("weni-edge-replay")
    }

    fn is_fenced(&self) -> bool {
        self.broker.borrow().coordinators.get(&self.id).is_none_or(|own| own.epoch != self.epoch)
    }

    /// Sends what is queued to the brokers, a request for each partition; the refusals.
    fn deliver(&mut self) -> Vec<(usize, Code)> {
        let mut reports = Vec::new();
        let mut requests: BTreeMap<(String, i32), Vec<(usize, Entry)>> = BTreeMap::new();
        for (number, topic, partition, entry) in self.queue.drain(..) {
            requests.entry((topic, partition)).or_default().push((number, entry));
        }
        for ((topic, partition), records) in requests {
            if !reports.is_empty() && chance(500) {
                // Still under way when the first refusal is known.
                let back = |(number, entry)| (number, topic.clone(), partition, entry);
                self.queue.extend(records.into_iter().map(back));
                continue;
            }
            let broker = Rc::clone(&self.broker);
            let is_poison = |(_, entry): &(usize, Entry)| broker.borrow().rejects(&topic, entry);
            let code = if records.iter().any(is_poison) {
                Some(
                    fault("reject", &["the batch"])
                        .map_or(Code::InvalidRecord, |_| Code::MessageSizeTooLarge),
                )
            } else {
                fault("produce", &["corrupted"]).map(|_| Code::InvalidMessage)
            };
            for (number, entry) in records {
                let code = match code {
                    Some(Code::InvalidRecord) if !is_poison(&(number, entry.clone())) => {
                        Some(Code::InvalidDifferentRecord)
                    }
                    code => code,
                };
                let (id, epoch, topic) = (self.id.clone(), self.epoch, topic.clone());
                let late = Late { id, epoch, topic, partition, entry };
                let taken = code.map_or_else(|| self.broker.borrow_mut().take(late), Err);
                reports.extend(taken.err().map(|code| (number, code)));
            }
        }
        reports
    }

    fn reported(&mut self) -> Result<(), Failure> {
        let reports = self.deliver();
        match reports.first() {
            None => Ok(()),
            Some((_, code)) => {
                Err(Failure { reports: reports.clone(), ..failure(Step::Produce, *code) })
            }
        }
    }
}

impl kafka::Producer for Producer {
    fn begin(&mut self) -> Result<(), Failure> {
        run::turns();
        self.asked_to_begin.set(self.asked_to_begin.get() + 1);
        if self.begun && !mutant::is("abort forgotten") {
            world::fail("a transaction was begun while one was open");
        }
        if self.is_fenced() {
            self.dead = true;
            return Err(Failure { fatal: true, ..failure(Step::Begin, Code::Fenced) });
        }
        let mut broker = self.broker.borrow_mut();
        broker.transactions += 1;
        let number = broker.transactions;
        let coordinator = broker.coordinators.entry(self.id.clone()).or_default();
        // The real one opens it with the first record; nothing depends on that.
        coordinator.open.get_or_insert(Transaction {
            number,
            begun: now(),
            partitions: BTreeSet::new(),
            offsets: Vec::new(),
        });
        self.begun = true;
        Ok(())
    }

    fn send(&mut self, record: &Record<'_>, _: Instant) -> Result<(), Failure> {
        let outcomes = ["timed out", "no broker", "crash before"];
        self.call("send", Step::Produce, &outcomes)?;
        let headers = record.headers.iter();
        let entry = Entry {
            key: record.key.to_owned(),
            value: record.value.to_vec(),
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect(),
            transaction: 0,
            state: State::Open,
        };
        let partition = record.key.bytes().map(i32::from).sum::<i32>() % PARTITIONS;
        self.queue.push((record.number, record.topic.to_owned(), partition, entry));
        Ok(())
    }

    fn check(&mut self) -> Result<(), Failure> {
        if self.begun { self.reported() } else { Ok(()) }
    }

    fn send_offsets(&mut self, offsets: &[GroupOffset]) -> Result<(), Failure> {
        let outcomes = ["timed out", "done, answer lost", "no broker", "not enough replicas"];
        let outcome = self.call("send_offsets", Step::Offsets, &outcomes)?;
        if self.is_fenced() {
            return Err(failure(Step::Offsets, Code::Fenced));
        }
        let mut broker = self.broker.borrow_mut();
        let coordinator = broker.coordinators.entry(self.id.clone()).or_default();
        if let Some(open) = &mut coordinator.open {
            open.offsets = offsets.to_vec();
        }
        match outcome {
            None => Ok(()),
            Some(_) => Err(failure(Step::Offsets, Code::OperationTimedOut)),
        }
    }

    fn await_reports(&mut self, deadline: Instant) -> Result<(), Failure> {
        let outcomes = ["late", "no broker", "not enough replicas", "fenced", "crash before"];
        let outcome = self.call("await_reports", Step::Produce, &outcomes)?;
        let broker = Rc::clone(&self.broker);
        let is_slow = |(_, topic, _, entry): &(usize, String, i32, Entry)| {
            broker.borrow().is_slow(topic, entry)
        };
        if self.doomed {
            world::advance(deadline.saturating_duration_since(now()));
            self.deliver();
            return Err(failure(Step::Produce, Code::OperationTimedOut));
        }
        if outcome == Some("late") || self.queue.iter().any(is_slow) {
            // They are under way, and some broker takes them up some time.
            world::advance(deadline.saturating_duration_since(now()));
            return Err(failure(Step::Produce, Code::OperationTimedOut));
        }
        self.reported()
    }

    fn commit(&mut self) -> Result<(), Failure> {
        let outcomes = [
            "done, answer lost",
            "not done, answer lost",
            "not done, answer lost, then done",
            "partitions not told",
            // Once more: a replay has it never.
            "partitions not told",
            "acknowledged, partitions not told",
            "acknowledged, partitions not told",
            "fenced",
            "crash before",
            "crash after",
        ];
        if !self.queue.is_empty() {
            world::fail("a commit while records are under way");
        }
        // What a replay leaves untold is an operator's to end (deploy/RUNBOOK.md).
        let outcomes = outcomes.map(|outcome| match outcome {
            "partitions not told" | "acknowledged, partitions not told" if self.is_replay() => {
                "done, answer lost"
            }
            outcome => outcome,
        });
        let outcome =
            self.call("commit", Step::Commit, &outcomes).inspect_err(|_| self.dead = true)?;
        let lost = |this: &mut Self| {
            this.dead = true;
            Err(failure(Step::Commit, Code::OperationTimedOut))
        };
        if outcome == Some("not done, answer lost") {
            return lost(self);
        }
        if self.is_fenced() {
            self.dead = true;
            return Err(Failure { fatal: true, ..failure(Step::Commit, Code::Fenced) });
        }
        self.begun = false;
        let mut broker = self.broker.borrow_mut();
        let coordinator = broker.coordinators.entry(self.id.clone()).or_default();
        let open = coordinator.open.take();
        if let Some(open) = open {
            let acknowledged = outcome == Some("acknowledged, partitions not told");
            let key = (self.id.clone(), "position".to_owned(), 0);
            let before = broker.offsets.get(&key).map(|kept| kept.offset as u64);
            broker.acknowledged_untold =
                acknowledged.then(|| before.unwrap_or(Position::new(1, 0).as_u64()));
            if outcome == Some("partitions not told") || acknowledged {
                broker.leave_untold(&open, &self.id);
            } else {
                broker.before_last = Some((broker.partitions.clone(), broker.offsets.clone()));
                broker.end(&open, State::Committed, &self.id);
                trace(|| format!("kafka: {} commits {:?}", self.id, open.offsets));
            }
        }
        drop(broker);
        match outcome {
            None => Ok(()),
            Some("acknowledged, partitions not told") => {
                self.doomed = true;
                Ok(())
            }
            Some("crash after") => world::crash(),
            Some(_) => lost(self),
        }
    }

    fn abort(&mut self) -> Result<(), Code> {
        // librdkafka refuses it after a fatal error.
        if self.dead {
            return Err(Code::Fenced);
        }
        let outcomes = ["timed out", "done, answer lost", "no broker", "fenced", "crash before"];
        let outcome = self.call("abort", Step::Begin, &outcomes).map_err(|failure| {
            self.dead = true;
            failure.code
        })?;
        if self.doomed {
            world::advance(self.timeout);
            self.dead = true;
            return Err(Code::OperationTimedOut);
        }
        self.begun = false;
        // What is under way is taken up before the abort, or never.
        let under_way = std::mem::take(&mut self.queue);
        for (_, topic, partition, entry) in under_way {
            let late = Late { id: self.id.clone(), epoch: self.epoch, topic, partition, entry };
            if mutant::is("abort without waiting for what is under way") {
                self.broker.borrow_mut().late.push(late);
            } else if chance(500) {
                self.broker.borrow_mut().take(late).ok();
            }
        }
        if self.is_fenced() {
            self.dead = true;
            return Err(Code::Fenced);
        }
        let mut broker = self.broker.borrow_mut();
        let coordinator = broker.coordinators.entry(self.id.clone()).or_default();
        if let Some(open) = coordinator.open.take() {
            broker.end(&open, State::Aborted, &self.id);
        }
        trace(|| format!("kafka: {} aborts", self.id));
        drop(broker);
        if outcome.is_some() {
            self.dead = true;
            return Err(Code::OperationTimedOut);
        }
        Ok(())
    }

    fn take_trouble(&mut self) -> Option<Obstacle> {
        None
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }

    fn longest_call(&self) -> Duration {
        2 * self.timeout
    }
}

impl Drop for Producer {
    /// What is under way when the client is dropped may still be taken up.
    fn drop(&mut self) {
        let Ok(mut broker) = self.broker.try_borrow_mut() else { return };
        for (_, topic, partition, entry) in self.queue.drain(..) {
            let id = self.id.clone();
            broker.late.push(Late { id, epoch: self.epoch, topic, partition, entry });
        }
    }
}
