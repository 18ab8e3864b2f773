//! Servers that `wrk` loads in turn, and what each turn costs them.

use std::{
    collections::BTreeMap,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use crate::{
    children::{self, Child, Conversation},
    counts::{Counter, Counts},
    edge::{Edge, Home, PATIENCE},
    figures::progress,
    kafka::Kafka,
    process::{Process, Taken},
    wrk::{Call, ONE_KB, Summary, Wrk},
};

/// Long enough for segments to be recycled and connections to Kafka to be made.
pub(crate) const WARM_UP: Duration = Duration::from_secs(5);

/// A server with its own Kafka.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: &'static str,
    kind: Kind,
    kafka: Option<Kafka>,
    pub(crate) call: Call,
    /// Calls whose answer wrk has read.
    answered: u64,
    /// Further calls that may have been accepted, because wrk ends in the middle of them.
    unanswered: u64,
}

#[derive(Debug)]
enum Kind {
    /// Keeps its journal's directory as long as it runs.
    Edge { edge: Edge, _home: Home },
    /// With its address.
    Child(Process, Conversation, String),
}

/// One turn of one server.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Of all threads per request, until everything was published.
    pub(crate) cpu_us: f64,
    pub(crate) threads: BTreeMap<String, Share>,
}

/// What a thread uses per request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    pub(crate) cpu_us: f64,
    /// Voluntary context switches.
    pub(crate) waits: f64,
    /// The other context switches.
    pub(crate) losses: f64,
}

impl Server {
    pub(crate) fn edge(name: &'static str, binary: &Path) -> anyhow::Result<Self> {
        Self::edge_for(name, ONE_KB, |home| Edge::start_binary(home, binary))
    }

    /// An edge that gets such calls.
    pub(crate) fn edge_for(
        name: &'static str,
        call: Call,
        start: impl FnOnce(&Home) -> anyhow::Result<Edge>,
    ) -> anyhow::Result<Self> {
        let kafka = Kafka::mock()?;
        let home = Home::with_sources(&kafka, call.sources)?;
        let edge = start(&home)?;
        Ok(Self { call, ..Self::new(name, Kind::Edge { edge, _home: home }, Some(kafka)) })
    }

    pub(crate) fn baseline(name: &'static str, call: Call) -> anyhow::Result<Self> {
        let (process, conversation, address) = children::start(Child::Baseline, "")?;
        Ok(Self { call, ..Self::new(name, Kind::Child(process, conversation, address), None) })
    }

    pub(crate) fn comparator(name: &'static str, child: Child) -> anyhow::Result<Self> {
        let kafka = Kafka::mock()?;
        let (process, conversation, address) = children::start(child, &kafka.bootstrap)?;
        Ok(Self::new(name, Kind::Child(process, conversation, address), Some(kafka)))
    }

    fn new(name: &'static str, kind: Kind, kafka: Option<Kafka>) -> Self {
        Self { name, kind, kafka, call: ONE_KB, answered: 0, unanswered: 0 }
    }

    fn url(&self) -> String {
        match &self.kind {
            Kind::Edge { edge, .. } => edge.url(),
            Kind::Child(_, _, address) => format!("http://{address}/hooks/bench"),
        }
    }

    fn process(&self) -> &Process {
        match &self.kind {
            Kind::Edge { edge, .. } => edge.process(),
            Kind::Child(process, ..) => process,
        }
    }

    /// Waits until everything is published, and returns how many calls were accepted.
    fn settle(&mut self) -> anyhow::Result<u64> {
        let conversation = match &mut self.kind {
            Kind::Edge { edge, .. } => {
                return Ok(edge.settle()?.sum("callbacks_accepted_total", "") as u64);
            }
            Kind::Child(..) if self.kafka.is_none() => return Ok(self.answered),
            Kind::Child(_, conversation, _) => conversation,
        };
        let start = Instant::now();
        loop {
            let report = conversation.ask("report")?;
            let (left, accepted) = report.split_once(' ').context("no report")?;
            if left == "0" {
                return Ok(accepted.parse()?);
            }
            ensure!(start.elapsed() < PATIENCE, "{}: {left} records are left", self.name);
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn send(&mut self, wrk: Wrk) -> anyhow::Result<Summary> {
        let summary = wrk.send(&self.url(), self.call)?;
        self.answered += summary.requests;
        self.unanswered += u64::from(wrk.connections);
        Ok(summary)
    }

    /// Loads it, and waits until everything is published.
    fn load(&mut self, wrk: Wrk) -> anyhow::Result<Summary> {
        let summary = self.send(wrk)?;
        self.settle()?;
        Ok(summary)
    }

    /// The same, but asks Kafka whether everything is published, because the server is counted.
    fn load_without_asking(&mut self, wrk: Wrk) -> anyhow::Result<Summary> {
        let summary = self.send(wrk)?;
        let (start, elements) = (Instant::now(), u64::from(self.call.elements));
        let kafka = self.kafka.as_mut().context("no Kafka")?;
        while kafka.records()? < self.answered * elements {
            ensure!(start.elapsed() < PATIENCE, "{}: not all records are in Kafka", self.name);
            thread::sleep(Duration::from_millis(100));
        }
        Ok(summary)
    }

    /// A turn whose syscalls are counted, and then a slower one for its allocations. They give no
    /// other figures. With each count come the requests of its turn.
    pub(crate) fn counted(
        &mut self,
        wrk: Wrk,
        counter: &Counter,
    ) -> anyhow::Result<[(Counts, u64); 2]> {
        let id = self.process().id();
        let (syscalls, first) = Counter::syscalls(id, || self.load_without_asking(wrk))?;
        let (allocations, second) = counter.allocations(id, || self.load_without_asking(wrk))?;
        self.prove()?;
        Ok([(syscalls, first.requests), (allocations, second.requests)])
    }

    fn turn(&mut self, wrk: Wrk) -> anyhow::Result<Turn> {
        let before = self.process().threads()?;
        let summary = self.load(wrk)?;
        let turn = Turn::new(&summary, &before, &self.process().threads()?);
        progress(format_args!(
            "{} connections, {}: {:.0}/s, {:.1} µs, p50 {:.2} ms, p99 {:.2} ms (wrk takes {:.2} cores)",
            wrk.connections,
            self.name,
            turn.per_second,
            turn.cpu_us,
            turn.p50_ms,
            turn.p99_ms,
            summary.cpu.as_secs_f64() / summary.seconds,
        ));
        Ok(turn)
    }

    /// Proves that all answered calls were accepted, and that each of their elements is in Kafka once.
    fn prove(&mut self) -> anyhow::Result<()> {
        let accepted = self.settle()?;
        let (answered, most) = (self.answered, self.answered + self.unanswered);
        ensure!(
            (answered..=most).contains(&accepted),
            "{}: {accepted} were accepted, {answered} answered",
            self.name
        );
        let Some(kafka) = &self.kafka else { return Ok(()) };
        if let Kind::Edge { edge, .. } = &self.kind {
            return edge.prove(kafka, accepted * u64::from(self.call.elements));
        }
        let records = kafka.records()?;
        ensure!(records == accepted, "{}: {accepted} accepted, {records} in Kafka", self.name);
        Ok(())
    }
}

impl Turn {
    pub(crate) fn new(
        summary: &Summary,
        before: &BTreeMap<String, Taken>,
        after: &BTreeMap<String, Taken>,
    ) -> Self {
        let requests = summary.requests as f64;
        let share = |(name, taken): (&String, &Taken)| {
            let earlier = before.get(name).copied().unwrap_or_default();
            let cpu = taken.cpu.saturating_sub(earlier.cpu);
            let share = Share {
                cpu_us: cpu.as_secs_f64() * 1e6 / requests,
                waits: taken.waits.saturating_sub(earlier.waits) as f64 / requests,
                losses: taken.losses.saturating_sub(earlier.losses) as f64 / requests,
            };
            (name.clone(), share)
        };
        let threads: BTreeMap<_, _> = after.iter().map(share).collect();
        Self {
            per_second: requests / summary.seconds,
            p50_ms: summary.p50 / 1e3,
            p99_ms: summary.p99 / 1e3,
            cpu_us: threads.values().map(|share| share.cpu_us).sum(),
            threads,
        }
    }
}

/// Loads all servers in turn, in another order each round. Returns the turns of each server, in the
/// order of `servers`.
pub(crate) fn take_turns(
    servers: &mut [Server],
    wrk: Wrk,
    rounds: u32,
) -> anyhow::Result<Vec<Vec<Turn>>> {
    for server in &mut *servers {
        server.turn(Wrk { time: WARM_UP, ..wrk })?;
    }
    let mut turns: Vec<Vec<Turn>> = servers.iter().map(|_| Vec::new()).collect();
    let count = servers.len();
    for round in 0..rounds as usize {
        for at in 0..count {
            let at = (at + round) % count;
            turns[at].push(servers[at].turn(wrk)?);
        }
    }
    for server in servers {
        server.prove()?;
    }
    Ok(turns)
}
