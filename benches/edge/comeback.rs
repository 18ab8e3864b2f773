//! How soon the edge publishes again after Kafka is back.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;

use crate::{
    Effort,
    edge::{Edge, Home},
    figures::{Row, Spread, decimals, progress},
    kafka::Kafka,
    load::{Amount, Load},
};

const ROUNDS: u32 = 3;
/// Long enough for every back-off to reach its longest pause.
const AWAY: Duration = Duration::from_secs(30);
/// Calls go on meanwhile.
const LOAD: Load =
    Load { connections: 8, amount: Amount::Time(Duration::from_secs(40)), rate: Some(100) };
const LIMIT: Duration = Duration::from_secs(60);

/// Both are measured from the moment when Kafka is back.
struct Return {
    outside: Duration,
    ours: Duration,
}

pub(crate) fn measure(effort: Effort) -> anyhow::Result<Vec<Row>> {
    let mut kafka = Kafka::mock()?;
    let home = Home::new(&kafka)?;
    let edge = Edge::start(&home)?;
    let mut returns = Vec::new();
    let mut accepted = 0;
    for _ in 0..effort.rounds(ROUNDS) {
        let load = LOAD.start(&edge.url())?;
        thread::sleep(Duration::from_secs(2));
        kafka.set_up(false)?;
        thread::sleep(AWAY);
        let Return { outside, ours } = bring_back(&mut kafka, &edge)?;
        accepted += load.finish()?.accepted;
        let metrics = edge.settle()?;
        let settled = metrics.sum("callbacks_settled_total", "");
        ensure!(settled == accepted as f64, "{accepted} were accepted, {settled} are settled");
        progress(format_args!("Kafka back: outside client {outside:?}, first commit {ours:?}"));
        returns.push(Return { outside, ours });
    }
    // The mock cluster also counts records of the transactions that were aborted when it went away.
    let records = kafka.records()?;
    ensure!(records >= accepted, "{accepted} were accepted, {records} are in Kafka");
    Ok(vec![row(&returns)])
}

fn bring_back(kafka: &mut Kafka, edge: &Edge) -> anyhow::Result<Return> {
    let committed =
        || Ok::<_, anyhow::Error>(edge.metrics()?.sum("transactions_total", "committed"));
    let before = committed()?;
    kafka.set_up(true)?;
    let back = Instant::now();
    thread::scope(|scope| {
        let outside = scope.spawn(|| kafka.first_outside_success(LIMIT));
        while committed()? == before {
            ensure!(back.elapsed() < LIMIT, "nothing was committed within {LIMIT:?}");
            thread::sleep(Duration::from_millis(5));
        }
        let ours = back.elapsed();
        // INVARIANT: the thread returns its errors. If it panics, this process may panic, too.
        Ok(Return { outside: outside.join().expect("no panic")?, ours })
    })
}

fn row(returns: &[Return]) -> Row {
    let seconds = |figure: fn(&Return) -> f64| Spread::of(returns.iter().map(figure));
    let later = seconds(|found| found.ours.as_secs_f64() - found.outside.as_secs_f64());
    Row {
        figure: "first commit after Kafka is back, after an outside client's first success"
            .to_owned(),
        target: "≤ 2 s",
        measured: format!("{} s", later.show(decimals(2))),
        met: Some(later.median <= 2.0),
        note: format!(
            "away for {AWAY:?}; first commit after {} s, a new client's first acks=all after {} s",
            seconds(|found| found.ours.as_secs_f64()).show(decimals(2)),
            seconds(|found| found.outside.as_secs_f64()).show(decimals(2))
        ),
    }
}
