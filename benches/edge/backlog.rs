//! The cost of a long outage of Kafka: memory, opening, draining.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;

use crate::{
    Effort,
    edge::{Edge, Home},
    figures::{Row, Spread, decimals, mib, progress, thousands},
    kafka::{self, Kafka},
    load::{Amount, Load},
    process::Memory,
    topics::PARTITIONS,
};

const ROUNDS: u32 = 3;
const CONNECTIONS: u16 = 64;
/// Calls between two reads of the journal's size.
const CALLS: u64 = 25_000;
const LOOK: Duration = Duration::from_millis(20);

/// One outage, from the first call to the last commit.
struct Absence {
    /// Of the process that accepted the backlog.
    memory: Memory,
    /// With nothing in the page cache, as after a restart of the machine.
    opened_cold: Duration,
    /// With everything in the page cache, as after a crash.
    opened_warm: Duration,
    drained: Drained,
}

struct Drained {
    events: f64,
    seconds: f64,
    cpu_seconds: f64,
    kafka_cpu_seconds: f64,
    memory: Memory,
}

pub(crate) fn measure(effort: Effort) -> anyhow::Result<Vec<Row>> {
    let rounds = effort.rounds(ROUNDS);
    let mut absences = Vec::new();
    for _ in 0..rounds {
        absences.push(absence(effort, Kafka::mock()?)?);
    }
    let size = mib(effort.backlog_bytes as f64);
    let mut rows = vec![
        memory(&size, &absences),
        opening(&size, &absences),
        draining("draining the backlog on one core".to_owned(), &absences),
    ];
    let figure = "the same into a real Kafka".to_owned();
    rows.push(match kafka::real() {
        None => Row::without_kafka(figure, ""),
        Some(bootstrap) => {
            let mut absences = Vec::new();
            for _ in 0..rounds {
                absences.push(absence(effort, Kafka::real(&bootstrap, PARTITIONS))?);
            }
            draining(figure, &absences)
        }
    });
    Ok(rows)
}

fn absence(effort: Effort, kafka: Kafka) -> anyhow::Result<Absence> {
    let nowhere = kafka::nowhere()?;
    let home = Home::new(&kafka)?;
    let edge = Edge::start_without_kafka(&home, &nowhere)?;
    let mut accepted = 0;
    while edge.metrics()?.sum("journal_bytes", "") < effort.backlog_bytes as f64 {
        let amount = Amount::Calls(CALLS);
        let load = Load { connections: CONNECTIONS, amount, rate: None };
        accepted += load.send(&edge.url())?.accepted;
    }
    let memory = edge.process().memory()?;
    // The process is killed each time, so that each opening has to recover the journal.
    drop(edge);
    home.drop_page_cache()?;
    let opened_cold = Edge::start_without_kafka(&home, &nowhere)?.opened_in;
    let opened_warm = Edge::start_without_kafka(&home, &nowhere)?.opened_in;

    let edge = Edge::start_on_one_core(&home)?;
    let drained = drain(&edge, &kafka)?;
    edge.prove(&kafka, accepted)?;
    progress(format_args!(
        "backlog of {accepted}: {} ({} at most), opened in {:.2} s ({:.2} s from the page cache), drained \
         {:.0}/s, {:.0} a second of CPU, {:.2} s of Kafka's in {:.2} s",
        mib(memory.now as f64),
        mib(memory.most as f64),
        opened_cold.as_secs_f64(),
        opened_warm.as_secs_f64(),
        drained.events / drained.seconds,
        drained.events / drained.cpu_seconds,
        drained.kafka_cpu_seconds,
        drained.seconds,
    ));
    Ok(Absence { memory, opened_cold, opened_warm, drained })
}

/// From the first commit to the last.
fn drain(edge: &Edge, kafka: &Kafka) -> anyhow::Result<Drained> {
    let all = edge.metrics()?.pending();
    let mut pending = all;
    while pending == all {
        thread::sleep(LOOK);
        pending = edge.metrics()?.pending();
    }
    ensure!(pending > 0.0, "the backlog is too small to be measured");
    let (start, cpu, kafka_cpu) = (Instant::now(), edge.process().cpu()?, kafka.cpu()?);
    edge.settle()?;
    Ok(Drained {
        events: pending,
        seconds: start.elapsed().as_secs_f64(),
        cpu_seconds: (edge.process().cpu()? - cpu).as_secs_f64(),
        kafka_cpu_seconds: (kafka.cpu()? - kafka_cpu).as_secs_f64(),
        memory: edge.process().memory()?,
    })
}

fn memory(size: &str, absences: &[Absence]) -> Row {
    let bytes = |figure: fn(&Absence) -> u64| {
        Spread::of(absences.iter().map(|absence| figure(absence) as f64))
    };
    let most = bytes(|absence| absence.memory.most);
    let limit = f64::from(64 << 20);
    Row {
        figure: format!("memory with {size} of backlog"),
        target: "≤ 64 MiB",
        measured: most.show(mib),
        met: Some(most.median <= limit),
        note: format!(
            "most resident memory while 64 connections filled the journal (VmHWM); {} at the end \
             (VmRSS); at most {} while it was drained",
            bytes(|absence| absence.memory.now).show(mib),
            bytes(|absence| absence.drained.memory.most).show(mib)
        ),
    }
}

fn opening(size: &str, absences: &[Absence]) -> Row {
    let seconds = |figure: fn(&Absence) -> Duration| {
        Spread::of(absences.iter().map(|absence| figure(absence).as_secs_f64()))
    };
    let cold = seconds(|absence| absence.opened_cold);
    let warm = seconds(|absence| absence.opened_warm);
    Row {
        figure: format!("opening {size} of backlog"),
        target: "≤ 2 s",
        measured: format!("{} s", cold.show(decimals(2))),
        met: Some(cold.median <= 2.0),
        note: format!(
            "after kill -9, with nothing in the page cache, from the process's start until it \
             listens; {} s with all of it in the page cache",
            warm.show(decimals(2))
        ),
    }
}

fn draining(figure: String, absences: &[Absence]) -> Row {
    let each = |figure: fn(&Drained) -> f64| {
        Spread::of(absences.iter().map(|absence| figure(&absence.drained)))
    };
    let rate = each(|drained| drained.events / drained.seconds);
    Row {
        figure,
        target: "≥ 60,000 events/s",
        measured: format!("{} events/s", rate.show(thousands)),
        met: Some(rate.median >= 60_000.0),
        note: format!(
            "the edge on one core (taskset), Kafka on any; {} events per second of the edge's CPU time",
            each(|drained| drained.events / drained.cpu_seconds).show(thousands)
        ),
    }
}
