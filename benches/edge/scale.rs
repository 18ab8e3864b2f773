//! How cost grows: with cores, sources, bytes of a body, elements of a callback, and the backlog.

use std::{thread, time::Duration};

use anyhow::ensure;

use crate::{
    Effort,
    edge::{Edge, Home},
    figures::{Row, Spread, decimals, mib, progress},
    kafka::{Kafka, nowhere},
    servers::{Server, Turn, take_turns},
    side_by_side::{absolute, first, ratio},
    wrk::{Call, ONE_KB, Wrk},
};

const ROUNDS: u32 = 3;
const CONNECTIONS: u16 = 64;
/// While the journal is filled: how long wrk loads the edge between two looks at its size.
const FILL: Duration = Duration::from_secs(1);
/// By how much CPU a request may grow faster than the work.
const TOLERANCE: f64 = 1.1;
const FIRST: &str = "1 KB, 1 element, 1 source, all cores";
const CASES: [(&str, Call); 5] = [
    ("4 sources", Call { sources: 4, ..ONE_KB }),
    ("16 sources", Call { sources: 16, ..ONE_KB }),
    ("10 KB", Call { bytes: 10 << 10, ..ONE_KB }),
    ("100 KB", Call { bytes: 100 << 10, ..ONE_KB }),
    ("100 elements", Call { elements: 100, ..ONE_KB }),
];

pub(crate) fn measure(effort: Effort) -> anyhow::Result<Vec<Row>> {
    let mut servers = vec![
        Server::edge_for(FIRST, ONE_KB, Edge::start)?,
        Server::edge_for("the edge on one core, others on all", ONE_KB, Edge::start_on_one_core)?,
    ];
    for (name, call) in CASES {
        servers.push(Server::edge_for(name, call, Edge::start)?);
    }
    let wrk = Wrk { connections: CONNECTIONS, time: effort.round };
    let turns = take_turns(&mut servers, wrk, effort.rounds(ROUNDS))?;
    let mut rows = vec![first(figure(FIRST), &turns[0])];
    let others = servers.iter().zip(&turns).skip(1);
    rows.extend(others.map(|(server, own)| row(server.name, server.call, &turns[0], own)));
    drop(servers);

    let (mut before, mut behind) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds(ROUNDS) {
        let [little, much] = backlog(effort)?;
        before.push(little);
        behind.push(much);
    }
    rows.push(first(figure("Kafka is away, an empty journal"), &before));
    let name = format!("Kafka is away, {} behind", mib(effort.backlog_bytes as f64));
    rows.push(row(&name, ONE_KB, &before, &behind));
    Ok(rows)
}

fn figure(name: &str) -> String {
    format!("scale, {CONNECTIONS} connections: {name}")
}

fn row(name: &str, call: Call, one: &[Turn], turns: &[Turn]) -> Row {
    let cpu = ratio(one, turns, |turn| turn.cpu_us);
    let (work, unit) = match call.elements {
        1 => (f64::from(call.bytes) / f64::from(ONE_KB.bytes), "KB"),
        elements => (f64::from(elements), "element"),
    };
    let mut measured = format!(
        "{} of the requests/s, {}× the CPU a request",
        ratio(one, turns, |turn| turn.per_second).show(decimals(2)),
        cpu.show(decimals(2)),
    );
    if work > 1.0 {
        let pairs = turns.iter().zip(one);
        let each = Spread::of(pairs.map(|(turn, one)| (turn.cpu_us - one.cpu_us) / (work - 1.0)));
        measured += &format!(", {} µs for each further {unit}", each.show(decimals(2)));
    }
    Row {
        figure: figure(name),
        target: "CPU grows no faster than the work (≤ 1.1×)",
        measured,
        met: Some(cpu.median <= TOLERANCE * work),
        note: absolute(turns),
    }
}

/// Turns of an edge whose journal is nearly empty, and of one with a backlog, one after the other.
fn backlog(effort: Effort) -> anyhow::Result<[Turn; 2]> {
    let mut without = Away::start()?;
    let mut with = Away::start()?;
    while with.edge.metrics()?.sum("journal_bytes", "") < effort.backlog_bytes as f64 {
        with.turn(FILL)?;
    }
    // Both have used up the segments that are prepared at a start.
    without.turn(FILL)?;
    let turns = [without.turn(effort.round)?, with.turn(effort.round)?];
    let [one, other] = [0, 1].map(|at| turns[at].cpu_us);
    progress(format_args!("Kafka is away: {one:.1} µs, with the backlog {other:.1} µs"));
    without.prove()?;
    with.prove()?;
    Ok(turns)
}

/// An edge whose Kafka is away, and what it answered.
struct Away {
    kafka: Kafka,
    home: Home,
    edge: Edge,
    answered: u64,
}

impl Away {
    fn start() -> anyhow::Result<Self> {
        let kafka = Kafka::mock()?;
        let home = Home::new(&kafka)?;
        let edge = Edge::start_without_kafka(&home, &nowhere()?)?;
        Ok(Self { kafka, home, edge, answered: 0 })
    }

    fn turn(&mut self, time: Duration) -> anyhow::Result<Turn> {
        let before = self.edge.process().threads()?;
        let summary = Wrk { connections: CONNECTIONS, time }.send(&self.edge.url(), ONE_KB)?;
        self.answered += summary.requests;
        Ok(Turn::new(&summary, &before, &self.edge.process().threads()?))
    }

    /// All that was answered reaches Kafka once it is there.
    fn prove(self) -> anyhow::Result<()> {
        let Self { kafka, home, edge, answered } = self;
        // Then calls in the middle of which wrk ended are written, too.
        thread::sleep(FILL);
        let accepted = edge.metrics()?.sum("callbacks_accepted_total", "") as u64;
        ensure!(accepted >= answered, "{accepted} were accepted, {answered} answered");
        drop(edge);
        Edge::start(&home)?.prove(&kafka, accepted)
    }
}
