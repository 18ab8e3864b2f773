//! The edge, the baseline and simple bridges under `wrk`; and two builds of the edge under `wrk`.

use std::path::Path;

use anyhow::ensure;

use crate::{
    Effort,
    children::Child,
    edge,
    figures::{Row, Spread, decimals, thousands},
    servers::{Server, Turn, take_turns},
    wrk::{self, ONE_KB, Wrk},
};

const ROUNDS: u32 = 5;
/// For two builds: more pairs, because they differ less.
const PAIRS: u32 = 12;
/// By how much the new build may cost more, or serve less.
const TOLERANCE: f64 = 0.03;

pub(crate) fn measure(effort: Effort) -> anyhow::Result<Vec<Row>> {
    let mut servers = [
        Server::baseline("the baseline", ONE_KB)?,
        Server::comparator("axum + rdkafka, answers from memory", Child::FromMemory)?,
        Server::comparator("axum + rdkafka, awaits the ack", Child::Acknowledged)?,
        Server::edge("the edge", Path::new(edge::BINARY))?,
    ];
    let mut rows = Vec::new();
    for connections in [16, 64, 256] {
        let wrk = Wrk { connections, time: effort.round };
        let turns = take_turns(&mut servers, wrk, effort.rounds(ROUNDS))?;
        let figure = |server: &Server| format!("wrk, {connections} connections: {}", server.name);
        rows.push(first(figure(&servers[0]), &turns[0]));
        let others = servers.iter().zip(&turns).skip(1);
        rows.extend(others.map(|(server, own)| beside(figure(server), &turns[0], own)));
        let edge = servers.len() - 1;
        rows.push(threads(format!("{} by thread", figure(&servers[edge])), &turns[edge]));
    }
    Ok(rows)
}

/// Compares the edge of this build with `old`.
pub(crate) fn against(old: &Path, effort: Effort) -> anyhow::Result<Vec<Row>> {
    wrk::look()?;
    ensure!(old.is_file(), "--against {}: there is no such file", old.display());
    let mut servers = [Server::edge("old", old)?, Server::edge("new", Path::new(edge::BINARY))?];
    let mut rows = Vec::new();
    for connections in [64, 256] {
        let wrk = Wrk { connections, time: effort.round };
        let turns = take_turns(&mut servers, wrk, effort.rounds(PAIRS))?;
        rows.extend(pairs(connections, &turns[0], &turns[1]));
    }
    Ok(rows)
}

/// The ratio of each round. Both servers ran in it, so that other load of the machine cancels out.
pub(crate) fn ratio(before: &[Turn], after: &[Turn], figure: fn(&Turn) -> f64) -> Spread {
    Spread::of(after.iter().zip(before).map(|(after, before)| figure(after) / figure(before)))
}

fn spread(turns: &[Turn], figure: fn(&Turn) -> f64) -> Spread {
    Spread::of(turns.iter().map(figure))
}

pub(crate) fn absolute(turns: &[Turn]) -> String {
    format!(
        "{} requests/s, {} µs, p50 {} ms, p99 {} ms",
        spread(turns, |turn| turn.per_second).show(thousands),
        spread(turns, |turn| turn.cpu_us).show(decimals(1)),
        spread(turns, |turn| turn.p50_ms).show(decimals(2)),
        spread(turns, |turn| turn.p99_ms).show(decimals(2)),
    )
}

/// The server that others are compared with.
pub(crate) fn first(figure: String, turns: &[Turn]) -> Row {
    Row { figure, target: "", measured: "1".to_owned(), met: None, note: absolute(turns) }
}

pub(crate) fn beside(figure: String, baseline: &[Turn], turns: &[Turn]) -> Row {
    let two = decimals(2);
    Row {
        figure,
        target: "",
        measured: format!(
            "{} of the requests/s, {}× the CPU a request",
            ratio(baseline, turns, |turn| turn.per_second).show(&two),
            ratio(baseline, turns, |turn| turn.cpu_us).show(&two),
        ),
        met: None,
        note: absolute(turns),
    }
}

pub(crate) fn threads(figure: String, turns: &[Turn]) -> Row {
    let mut names: Vec<_> = turns.iter().flat_map(|turn| turn.threads.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let mut shares = Vec::new();
    for name in names {
        let each = || turns.iter().filter_map(|turn| turn.threads.get(name));
        let cpu = Spread::of(each().map(|share| share.cpu_us)).median;
        let waits = Spread::of(each().map(|share| share.waits)).median;
        shares.push((cpu, waits, name));
    }
    let waits: f64 = shares.iter().map(|(_, waits, _)| waits).sum();
    // Leaves out threads that use next to nothing.
    shares.retain(|(cpu, waits, _)| *cpu >= 0.05 || *waits >= 0.005);
    shares.sort_by(|(one, ..), (other, ..)| other.total_cmp(one));
    let shares: Vec<_> =
        shares.iter().map(|(cpu, waits, name)| format!("{name} {cpu:.1} µs, {waits:.3}")).collect();
    Row {
        figure,
        target: "",
        measured: format!(
            "{} µs, {waits:.2} voluntary and {} other context switches a request",
            spread(turns, |turn| turn.cpu_us).show(decimals(1)),
            spread(turns, |turn| turn.threads.values().map(|share| share.losses).sum())
                .show(decimals(2))
        ),
        met: None,
        note: shares.join("; "),
    }
}

fn pairs(connections: u16, old: &[Turn], new: &[Turn]) -> [Row; 2] {
    let three = decimals(3);
    let row = |figure: &str, target, ratio: Spread, met| Row {
        figure: format!("{figure}, new against old, wrk, {connections} connections"),
        target,
        measured: ratio.show(&three),
        met: Some(met),
        note: String::new(),
    };
    let rate = ratio(old, new, |turn| turn.per_second);
    let cpu = ratio(old, new, |turn| turn.cpu_us);
    let mut rate = row("requests/s", "≥ 0.97", rate, rate.median >= 1.0 - TOLERANCE);
    let mut cpu = row("CPU a request", "≤ 1.03", cpu, cpu.median <= 1.0 + TOLERANCE);
    rate.note = format!("{}; old {}", absolute(new), absolute(old));
    cpu.note = format!(
        "p50 of the answer {}, p99 {}",
        ratio(old, new, |turn| turn.p50_ms).show(&three),
        ratio(old, new, |turn| turn.p99_ms).show(&three)
    );
    [rate, cpu]
}
