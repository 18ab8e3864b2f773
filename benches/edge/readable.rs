//! The time from acceptance until a `read_committed` consumer of a real Kafka has read the record.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use rdkafka::{
    Message, Offset,
    consumer::{BaseConsumer, Consumer},
};

use crate::{
    Effort,
    edge::{Edge, Home},
    figures::{Row, Spread, decimals, progress},
    kafka::{self, Kafka},
    load::{Amount, Load, Running},
    topics::PARTITIONS,
};

const TARGET: &str = "p50 ≤ 30 ms, p99 ≤ 60 ms";
const ROUNDS: u32 = 3;
/// How long the broker may wait for more records before it answers a consumer, in milliseconds: for
/// a consumer that wants records soon, and librdkafka's default.
const PROMPT: &str = "50";
const DEFAULT: &str = "500";
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
    let Some(bootstrap) = kafka::real() else {
        let note = "WENI_EDGE_TEST_KAFKA names no Kafka".to_owned();
        let measured = "not measured".to_owned();
        return Ok(vec![Row { figure, target: TARGET, measured, met: None, note }]);
    };
    let kafka = Kafka::real(&bootstrap, PARTITIONS);
    let home = Home::new(&kafka)?;
    let edge = Edge::start(&home)?;
    let load = |amount, rate| Load { connections: CONNECTIONS, amount, rate };
    let first = load(Amount::Calls(FIRST), None).send(&edge.url())?.accepted;
    edge.settle()?;
    let mut accepted = first;
    let mut measured = Vec::new();
    for wait_ms in [PROMPT, DEFAULT] {
        let mut reader = Reader::new(&kafka, wait_ms)?;
        // After this read it is connected, so that the rounds do not measure its start.
        reader.read(|| Ok(Some(accepted)))?;
        let mut rounds = Vec::new();
        for _ in 0..effort.rounds(ROUNDS) {
            let running = load(Amount::Time(ROUND), Some(RATE)).start(&edge.url())?;
            let latency = reader.read_along(running)?;
            let [p50, p99] = [0.5, 0.99].map(|quantile| latency.value_at_quantile(quantile) as f64);
            progress(format_args!("waiting {wait_ms} ms: readable after {p50} ms, p99 {p99} ms"));
            rounds.push((p50, p99));
        }
        accepted = reader.seen;
        let p50 = Spread::of(rounds.iter().map(|(p50, _)| *p50));
        measured.push((p50, Spread::of(rounds.iter().map(|(_, p99)| *p99))));
    }
    edge.prove(&kafka, accepted)?;
    Ok(vec![row(figure, measured[0], measured[1])])
}

fn row(figure: String, prompt: (Spread, Spread), default: (Spread, Spread)) -> Row {
    let show = |(p50, p99): (Spread, Spread)| {
        format!("p50 {} ms, p99 {} ms", p50.show(decimals(0)), p99.show(decimals(0)))
    };
    Row {
        figure,
        target: TARGET,
        measured: show(prompt),
        met: Some(prompt.0.median <= 30.0 && prompt.1.median <= 60.0),
        note: format!(
            "from the record's timestamp, which is when the callback was received; a consumer with \
             `fetch.wait.max.ms={PROMPT}`. With the default of {DEFAULT} the broker may delay \
             records by that long: {}",
            show(default)
        ),
    }
}

/// A consumer of another application.
struct Reader {
    consumer: BaseConsumer,
    /// Records so far.
    seen: u64,
}

impl Reader {
    fn new(kafka: &Kafka, wait_ms: &str) -> anyhow::Result<Self> {
        let consumer = kafka.consumer(&[("fetch.wait.max.ms", wait_ms)])?;
        consumer.assign(&kafka.statuses(Offset::Beginning)?)?;
        Ok(Self { consumer, seen: 0 })
    }

    /// Reads until it has seen `accepted` records in all; that number may be unknown at first.
    /// Returns how long each record took, in milliseconds.
    fn read(
        &mut self,
        mut accepted: impl FnMut() -> anyhow::Result<Option<u64>>,
    ) -> anyhow::Result<Histogram<u64>> {
        let mut latency = Histogram::new(3)?;
        let mut last = Instant::now();
        while accepted()?.is_none_or(|accepted| self.seen < accepted) {
            ensure!(last.elapsed() < PATIENCE, "nothing to read after {} records", self.seen);
            let Some(record) = self.consumer.poll(Duration::from_millis(100)) else { continue };
            let received = record?.timestamp().to_millis().context("a record without a time")?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
            latency.record(now.saturating_sub(u128::try_from(received)?).try_into()?)?;
            last = Instant::now();
            self.seen += 1;
        }
        Ok(latency)
    }

    /// Reads while `load` sends.
    fn read_along(&mut self, load: Running) -> anyhow::Result<Histogram<u64>> {
        let before = self.seen;
        thread::scope(|scope| {
            let mut load = Some(scope.spawn(|| load.finish()));
            let mut accepted = None;
            self.read(|| {
                if let Some(ended) = load.take_if(|load| load.is_finished()) {
                    // INVARIANT: it returns its errors. If it panics, this process may panic, too.
                    accepted = Some(before + ended.join().expect("no panic")?.accepted);
                }
                Ok(accepted)
            })
        })
    }
}
