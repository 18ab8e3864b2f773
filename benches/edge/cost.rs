//! What a request costs beside processor time: context switches, syscalls, allocations; with a
//! Content-Length and with a chunked body.

use std::{collections::BTreeMap, path::Path};

use crate::{
    Effort,
    counts::Counter,
    edge::{BINARY, Edge},
    figures::Row,
    servers::{Server, take_turns},
    side_by_side::{beside, first, threads},
    wrk::{Call, ONE_KB, Wrk},
};

const ROUNDS: u32 = 3;
const CHUNKED: Call = Call { is_chunked: true, ..ONE_KB };

pub(crate) fn measure(effort: Effort) -> anyhow::Result<Vec<Row>> {
    let mut servers = [
        Server::baseline("the baseline", ONE_KB)?,
        Server::edge_for("the edge", ONE_KB, Edge::start)?,
        Server::baseline("the baseline, chunked", CHUNKED)?,
        Server::edge_for("the edge, chunked", CHUNKED, Edge::start)?,
    ];
    let mut rows = Vec::new();
    for connections in [16, 64, 256] {
        let wrk = Wrk { connections, time: effort.round };
        let turns = take_turns(&mut servers, wrk, effort.rounds(ROUNDS))?;
        // Not before, because it would slow them.
        let counter = Counter::new(Path::new(BINARY));
        for (servers, turns) in servers.chunks_mut(2).zip(turns.chunks(2)) {
            let name = |server: &Server, what: &str| {
                format!("cost, {connections} connections: {}{what}", server.name)
            };
            rows.push(first(name(&servers[0], ""), &turns[0]));
            rows.push(beside(name(&servers[1], ""), &turns[0], &turns[1]));
            rows.push(threads(name(&servers[1], " by thread"), &turns[1]));
            let figure = name(&servers[1], ", syscalls and allocations");
            rows.push(counted(figure, &mut servers[1], wrk, &counter)?);
        }
    }
    Ok(rows)
}

fn counted(
    figure: String,
    server: &mut Server,
    wrk: Wrk,
    counter: &anyhow::Result<Counter>,
) -> anyhow::Result<Row> {
    let (measured, note) = match counter {
        Err(missing) => ("not counted".to_owned(), format!("{missing:#}")),
        Ok(counter) => {
            let [(syscalls, calls), (allocations, slower_calls)] = server.counted(wrk, counter)?;
            let each = |count: u64, requests: u64| count as f64 / requests as f64;
            let measured = format!(
                "{:.2} syscalls, {:.1} allocations a request",
                each(syscalls.syscalls, calls),
                each(allocations.allocations.values().sum(), slower_calls)
            );
            let list = |counts: &BTreeMap<String, u64>, requests| {
                let counts = counts.iter().map(|(name, count)| (each(*count, requests), name));
                let mut counts: Vec<_> = counts.filter(|(each, _)| *each >= 0.005).collect();
                counts.sort_by(|(one, _), (other, _)| other.total_cmp(one));
                let counts = counts.iter().map(|(each, name)| format!("{name} {each:.2}"));
                counts.collect::<Vec<_>>().join(", ")
            };
            let by_name = list(&syscalls.by_name, calls);
            let by_thread = list(&allocations.allocations, slower_calls);
            (measured, format!("turns under perf; {by_name}; allocations: {by_thread}"))
        }
    };
    Ok(Row { figure, target: "", measured, met: None, note })
}
