//! From acceptance until a consumer of committed records can read it, on a real Kafka.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use rdkafka::{Message, Offset, consumer::Consumer};

use crate::{
    Effort,
    edge::{Edge, Home},
    figures::{Row, Spread, decimals, progress},
    kafka::{self, Kafka},
    load::{Amount, Load},
};

const ROUNDS: u32 = 3;
const RATE: u32 = 1000;
const CONNECTIONS: u16 = 64;
const ROUND: Duration = Duration::from_secs(20);
/// Calls that make the edge create its topics and open its client.
const FIRST: u64 = 100;
/// How long the reader waits for a record that was accepted.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn measure(effort: Effort) -> anyhow::Result<Vec<Row>> {
    let figure =
        "accepted → readable by a `read_committed` consumer of a real Kafka, 1,000/s".to_owned();
    let target = "p50 ≤ 100 ms, p99 ≤ 300 ms";
    let Some(bootstrap) = kafka::real() else {
        let note = "WENI_EDGE_TEST_KAFKA names no Kafka".to_owned();
        let measured = "not measured".to_owned();
        return Ok(vec![Row { figure, target, measured, met: None, note }]);
    };
    let kafka = Kafka::real(&bootstrap);
    let home = Home::new(&kafka)?;
    let edge = Edge::start(&home)?;
    let load = |amount, rate| Load { connections: CONNECTIONS, amount, rate };
    let mut accepted = load(Amount::Calls(FIRST), None).send(&edge.url())?.accepted;
    edge.settle()?;
    let mut rounds = Vec::new();
    for _ in 0..effort.rounds(ROUNDS) {
        let running = load(Amount::Time(ROUND), Some(RATE)).start(&edge.url())?;
        let (sent, latency) = read_along(&kafka, || Ok(running.finish()?.accepted), accepted)?;
        accepted += sent;
        let [p50, p99] = [0.5, 0.99].map(|quantile| latency.value_at_quantile(quantile) as f64);
        progress(format_args!("readable after {p50} ms, p99 {p99} ms, {} records", latency.len()));
        rounds.push((p50, p99));
    }
    edge.prove(&kafka, accepted)?;
    let p50 = Spread::of(rounds.iter().map(|(p50, _)| *p50));
    let p99 = Spread::of(rounds.iter().map(|(_, p99)| *p99));
    Ok(vec![Row {
        figure,
        target,
        measured: format!("p50 {} ms, p99 {} ms", p50.show(decimals(0)), p99.show(decimals(0))),
        met: Some(p50.median <= 100.0 && p99.median <= 300.0),
        note: "from the record's timestamp, which is when the callback was received".to_owned(),
    }])
}

/// Reads all that is committed while `load` runs and until what it sent is there; of what was
/// behind the first `before` records the milliseconds from acceptance to now.
fn read_along(
    kafka: &Kafka,
    load: impl FnOnce() -> anyhow::Result<u64> + Send,
    before: u64,
) -> anyhow::Result<(u64, Histogram<u64>)> {
    let consumer = kafka.consumer(&[])?;
    consumer.assign(&kafka.statuses(Offset::Beginning)?)?;
    let mut latency = Histogram::new(3)?;
    thread::scope(|scope| {
        let mut load = Some(scope.spawn(load));
        let (mut sent, mut seen) = (None, 0);
        let mut last = Instant::now();
        while sent.is_none_or(|sent| seen < before + sent) {
            if load.as_ref().is_some_and(|load| load.is_finished())
                && let Some(load) = load.take()
            {
                // INVARIANT: the thread returns its errors; a panic of it is one of this process.
                sent = Some(load.join().expect("no panic")?);
            }
            ensure!(
                last.elapsed() < PATIENCE,
                "{seen} records were read, {before} + {sent:?} sent"
            );
            let Some(record) = consumer.poll(Duration::from_millis(100)) else { continue };
            let accepted = record?.timestamp().to_millis().context("a record without a time")?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
            last = Instant::now();
            seen += 1;
            if seen > before {
                latency.record(now.saturating_sub(u128::try_from(accepted)?).try_into()?)?;
            }
        }
        let sent = sent.unwrap_or_default();
        Ok((sent, latency))
    })
}
