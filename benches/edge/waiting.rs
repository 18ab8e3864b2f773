//! What `http.wait_for_kafka` costs: answers that wait until their callback is in Kafka, compared
//! with answers that do not.

use std::time::Duration;

use crate::{
    Effort,
    edge::{Edge, Home},
    figures::{Row, Spread, decimals, progress, thousands},
    kafka::{self, Kafka},
    load::{Amount, Load, Summary},
};

const ROUNDS: u32 = 3;
/// The value that the documentation uses.
const WAIT: &str = "250ms";
const CONNECTIONS: u16 = 64;
const RATE: u32 = 1000;
/// Of each topic of a real Kafka. The target is for the first.
const PARTITIONS: [i32; 3] = [3, 12, 30];
const TARGET: &str = "≥ 2,500/s, p50 ≤ 25 ms";

/// One turn of an edge: requests a second, and p50 and p99 of the answers in milliseconds.
struct Turn {
    per_second: f64,
    full: [f64; 2],
    /// At [`RATE`].
    paced: [f64; 2],
}

/// On the real Kafka if there is one, else on the mock cluster.
pub(crate) fn measure(effort: Effort) -> anyhow::Result<Vec<Row>> {
    let Some(bootstrap) = kafka::real() else {
        return Ok(vec![compare(effort, &Kafka::mock()?, "the mock cluster", "none")?]);
    };
    let of = |partitions: i32| {
        let target = if partitions == PARTITIONS[0] { TARGET } else { "none" };
        let name = format!("a real Kafka, {partitions} partitions");
        compare(effort, &Kafka::real(&bootstrap, partitions), &name, target)
    };
    PARTITIONS.into_iter().map(of).collect()
}

/// Answers that wait, and answers that do not, in turn.
fn compare(effort: Effort, kafka: &Kafka, name: &str, target: &'static str) -> anyhow::Result<Row> {
    let home = Home::new(kafka)?;
    let (mut plain, mut waiting, mut accepted) = (Vec::new(), Vec::new(), 0);
    for _ in 0..effort.rounds(ROUNDS) {
        for (wait, turns) in [("0s", &mut plain), (WAIT, &mut waiting)] {
            let edge = Edge::start_with(&home, "HTTP__WAIT_FOR_KAFKA", wait)?;
            let (turn, calls) = turn(&edge, effort.round)?;
            accepted += calls;
            edge.prove(kafka, accepted)?;
            progress(format_args!(
                "{name}, wait_for_kafka {wait}: {:.0}/s, p50 {:.2} ms; at {RATE}/s p50 {:.2} ms",
                turn.per_second, turn.full[0], turn.paced[0]
            ));
            turns.push(turn);
        }
    }
    Ok(row(name, target, &plain, &waiting))
}

fn turn(edge: &Edge, round: Duration) -> anyhow::Result<(Turn, u64)> {
    let load = |rate| Load { connections: CONNECTIONS, amount: Amount::Time(round), rate };
    // Its client is open and its topics exist.
    let mut accepted = load(Some(RATE)).send(&edge.url())?.accepted;
    edge.settle()?;
    let full = load(None).send(&edge.url())?;
    edge.settle()?;
    let paced = load(Some(RATE)).send(&edge.url())?;
    accepted += full.accepted + paced.accepted;
    let per_second = full.calls_per_second;
    let turn = Turn { per_second, full: latency(&full)?, paced: latency(&paced)? };
    Ok((turn, accepted))
}

fn latency(load: &Summary) -> anyhow::Result<[f64; 2]> {
    Ok([load.latency_ms("p50")?, load.latency_ms("p99")?])
}

fn row(kafka: &str, target: &'static str, plain: &[Turn], waiting: &[Turn]) -> Row {
    let spread = |turns: &[Turn], figure: fn(&Turn) -> f64| Spread::of(turns.iter().map(figure));
    let latency = |turns: &[Turn], figure: fn(&Turn) -> [f64; 2]| {
        let [p50, p99] = [0, 1].map(|at| Spread::of(turns.iter().map(|turn| figure(turn)[at])));
        format!("p50 {} ms, p99 {} ms", p50.show(decimals(1)), p99.show(decimals(1)))
    };
    let (full, paced) = (|turn: &Turn| turn.full, |turn: &Turn| turn.paced);
    let per_second = |turns| spread(turns, |turn| turn.per_second);
    let (rate, p50) = (per_second(waiting), spread(waiting, |turn| turn.full[0]));
    Row {
        figure: format!(
            "answers with `wait_for_kafka = \"{WAIT}\"`, {kafka}, {CONNECTIONS} connections"
        ),
        target,
        measured: format!("{} requests/s, {}", rate.show(thousands), latency(waiting, full)),
        met: (target == TARGET).then_some(rate.median >= 2500.0 && p50.median <= 25.0),
        note: format!(
            "without {} requests/s, {}; at {RATE}/s {}, without {}",
            per_second(plain).show(thousands),
            latency(plain, full),
            latency(waiting, paced),
            latency(plain, paced)
        ),
    }
}
