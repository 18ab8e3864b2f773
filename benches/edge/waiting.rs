//! What `http.wait_for_kafka` costs: answers that wait until their callback is in Kafka, compared
//! with answers that do not.

use std::time::Duration;

use crate::{
    Effort,
    edge::{Edge, Home},
    figures::{Row, Spread, decimals, progress, thousands},
    kafka::{self, Kafka},
    load::{Amount, Load},
};

const ROUNDS: u32 = 3;
/// The value that the documentation uses.
const WAIT: &str = "250ms";
const CONNECTIONS: u16 = 64;
const RATE: u32 = 1000;

/// One turn of an edge.
struct Turn {
    per_second: f64,
    /// Of the answer at [`RATE`], in milliseconds.
    p50: f64,
    p99: f64,
}

/// On the real Kafka if there is one, else on the mock cluster.
pub(crate) fn measure(effort: Effort) -> anyhow::Result<Vec<Row>> {
    let real = kafka::real();
    let kafka = real.as_deref().map_or_else(Kafka::mock, |real| Ok(Kafka::real(real)))?;
    let home = Home::new(&kafka)?;
    let (mut plain, mut waiting, mut accepted) = (Vec::new(), Vec::new(), 0);
    for _ in 0..effort.rounds(ROUNDS) {
        for (wait, turns) in [("0s", &mut plain), (WAIT, &mut waiting)] {
            let edge = Edge::start_that_waits(&home, wait)?;
            let (turn, calls) = turn(&edge, effort.round)?;
            accepted += calls;
            edge.prove(&kafka, accepted)?;
            progress(format_args!(
                "wait_for_kafka {wait}: {:.0}/s; at {RATE}/s p50 {:.2} ms, p99 {:.2} ms",
                turn.per_second, turn.p50, turn.p99
            ));
            turns.push(turn);
        }
    }
    Ok(vec![row(
        &plain,
        &waiting,
        if real.is_some() { "a real Kafka" } else { "the mock cluster" },
    )])
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
    let turn = Turn { per_second, p50: paced.latency_ms("p50")?, p99: paced.latency_ms("p99")? };
    Ok((turn, accepted))
}

fn row(plain: &[Turn], waiting: &[Turn], kafka: &str) -> Row {
    let spread = |turns: &[Turn], figure: fn(&Turn) -> f64| Spread::of(turns.iter().map(figure));
    let answers = |turns: &[Turn]| {
        let [p50, p99] = [|turn: &Turn| turn.p50, |turn: &Turn| turn.p99]
            .map(|figure| spread(turns, figure).show(decimals(1)));
        format!("p50 {p50} ms, p99 {p99} ms")
    };
    let per_second = |turns| spread(turns, |turn| turn.per_second).show(thousands);
    Row {
        figure: format!("answers with `wait_for_kafka = \"{WAIT}\"`, {kafka}, 1,000/s"),
        target: "none",
        measured: answers(waiting),
        met: None,
        note: format!(
            "without {}; {CONNECTIONS} connections get {} requests/s, without {}",
            answers(plain),
            per_second(waiting),
            per_second(plain)
        ),
    }
}
