//! The time from acceptance until a `read_committed` consumer of a real Kafka has read the record, and
//! what a shorter `kafka.commit_interval` costs the broker.

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
    process,
    topics::PARTITIONS,
};

const TARGET: &str = "p50 ≤ 30 ms, p99 ≤ 60 ms";
/// By how much the broker may take more CPU for that.
const BROKER_MOST: f64 = 1.1;
const ROUNDS: u32 = 3;
/// How long the broker may wait for more records before it answers a consumer, in milliseconds: for
/// a consumer that wants records soon, and librdkafka's default.
const PROMPT: &str = "50";
const DEFAULT: &str = "500";
/// `kafka.commit_interval`, first its default; and how long the broker may wait.
const SETTINGS: [(&str, &str); 5] =
    [("50ms", PROMPT), ("50ms", DEFAULT), ("25ms", PROMPT), ("15ms", PROMPT), ("10ms", PROMPT)];
const ROUND: Load =
    Load { connections: 64, amount: Amount::Time(Duration::from_secs(20)), rate: Some(1000) };
/// Makes the edge create its topics and open its client.
const FIRST: Load = Load { connections: 64, amount: Amount::Calls(100), rate: None };
/// How long the reader waits for a record that was accepted.
const PATIENCE: Duration = Duration::from_secs(30);

/// An edge with its own topics.
struct Setting {
    interval: &'static str,
    wait_ms: &'static str,
    kafka: Kafka,
    edge: Edge,
    _home: Home,
    accepted: u64,
    turns: Vec<Turn>,
}

struct Turn {
    p50: f64,
    p99: f64,
    /// That the broker takes. 0 if its process is not known.
    cores: f64,
}

pub(crate) fn measure(effort: Effort) -> anyhow::Result<Vec<Row>> {
    let figure =
        "accepted → readable by a `read_committed` consumer of a real Kafka, 1,000/s".to_owned();
    let Some(bootstrap) = kafka::real() else {
        return Ok(vec![Row::without_kafka(figure, TARGET)]);
    };
    let mut settings = Vec::new();
    for setting in SETTINGS {
        settings.push(Setting::start(&bootstrap, setting)?);
    }
    // The broker's Java compiles itself at first.
    settings[0].turn()?;
    settings[0].turns.clear();
    for round in 0..effort.rounds(ROUNDS) as usize {
        for at in 0..SETTINGS.len() {
            settings[(at + round) % SETTINGS.len()].turn()?;
        }
    }
    for setting in &settings {
        setting.edge.prove(&setting.kafka, setting.accepted)?;
    }
    let mut rows = vec![row(figure, &settings[0], &settings[1])];
    rows.extend(settings[2..].iter().map(|setting| compare(&settings[0], setting)));
    Ok(rows)
}

impl Setting {
    fn start(bootstrap: &str, setting: (&'static str, &'static str)) -> anyhow::Result<Self> {
        let (interval, wait_ms) = setting;
        let kafka = Kafka::real(bootstrap, PARTITIONS);
        let home = Home::new(&kafka)?;
        let edge = Edge::start_with(&home, "KAFKA__COMMIT_INTERVAL", interval)?;
        let (accepted, turns) = (FIRST.send(&edge.url())?.accepted, Vec::new());
        edge.settle()?;
        Ok(Self { interval, wait_ms, kafka, edge, _home: home, accepted, turns })
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        // A new one each time, because one that has nothing to read costs the broker, too.
        let mut reader = Reader::new(&self.kafka, self.wait_ms)?;
        // After this read it is connected, so that the turn does not measure its start.
        reader.read(|| Ok(Some(self.accepted)))?;
        let broker = kafka::broker(&self.kafka.bootstrap);
        let cpu = || broker.map_or(Ok(Duration::ZERO), process::cpu_of);
        let (start, before) = (Instant::now(), cpu()?);
        let latency = reader.read_along(ROUND.start(&self.edge.url())?)?;
        let cores = (cpu()? - before).as_secs_f64() / start.elapsed().as_secs_f64();
        self.accepted = reader.seen;
        let [p50, p99] = [0.5, 0.99].map(|quantile| latency.value_at_quantile(quantile) as f64);
        progress(format_args!(
            "commit_interval {}, waiting {} ms: readable after {p50} ms, p99 {p99} ms; the broker \
             takes {cores:.3} cores",
            self.interval, self.wait_ms
        ));
        self.turns.push(Turn { p50, p99, cores });
        Ok(())
    }

    fn latency(&self) -> [Spread; 2] {
        let spread = |figure: fn(&Turn) -> f64| Spread::of(self.turns.iter().map(figure));
        [spread(|turn| turn.p50), spread(|turn| turn.p99)]
    }
}

fn show([p50, p99]: [Spread; 2]) -> String {
    format!("p50 {} ms, p99 {} ms", p50.show(decimals(0)), p99.show(decimals(0)))
}

/// Whether the target is met.
fn is_soon([p50, p99]: [Spread; 2]) -> bool {
    p50.median <= 30.0 && p99.median <= 60.0
}

fn row(figure: String, prompt: &Setting, default: &Setting) -> Row {
    Row {
        figure,
        target: TARGET,
        measured: show(prompt.latency()),
        met: Some(is_soon(prompt.latency())),
        note: format!(
            "from the record's timestamp, which is when the callback was received; a consumer with \
             `fetch.wait.max.ms={PROMPT}`. With the default of {DEFAULT} the broker may delay \
             records by that long: {}",
            show(default.latency())
        ),
    }
}

/// Another `commit_interval` with the default.
fn compare(default: &Setting, setting: &Setting) -> Row {
    let pairs = setting.turns.iter().zip(&default.turns);
    let cost = Spread::of(pairs.map(|(turn, one)| turn.cores / one.cores));
    let cores = Spread::of(setting.turns.iter().map(|turn| turn.cores));
    let is_known = cores.median > 0.0;
    Row {
        figure: format!("the same with `kafka.commit_interval = \"{}\"`", setting.interval),
        target: "p50 ≤ 30 ms, p99 ≤ 60 ms, ≤ 1.1× the broker's CPU",
        measured: show(setting.latency()),
        met: is_known.then(|| is_soon(setting.latency()) && cost.median <= BROKER_MOST),
        note: if is_known {
            let (cost, cores) = (cost.show(decimals(2)), cores.show(decimals(3)));
            format!("{cost}× the broker's CPU with {}: {cores} cores", default.interval)
        } else {
            "the broker's CPU is unknown, because its process is not on this machine".to_owned()
        },
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
