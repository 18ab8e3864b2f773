//! Requests per second and processor time per request, compared with the baseline; p99 of the
//! answer, compared with p99 of the journal's append.

use std::time::{Duration, Instant};

use crate::{
    Effort,
    children::{self, Child},
    edge::{Edge, Home},
    figures::{Row, Spread, decimals, progress, thousands},
    kafka::Kafka,
    load::{Amount, Load, Summary},
    process::Process,
    servers::WARM_UP,
};

const ROUNDS: u32 = 5;
/// If the publisher needs a larger share of a round's time after its end, the round's figures lack
/// a part of its work.
const PUBLISH_LAG_MAX: f64 = 0.1;

/// One turn of one server.
struct Turn {
    summary: Summary,
    /// Processor time of the server per request, until all was published.
    cpu_us: f64,
}

/// One turn of the edge.
struct EdgeTurn {
    turn: Turn,
    append_p99_ms: f64,
    answer_p99_ms: f64,
    /// From the last answer until everything was published.
    publish_lag: Duration,
    /// Of Kafka's mock cluster, per request.
    kafka_cpu_us: f64,
}

pub(crate) fn measure(effort: Effort) -> anyhow::Result<Vec<Row>> {
    let (baseline, edge) = take_turns(effort, 64)?;
    let mut rows = vec![rate(64, "≥ 0.48", 0.48, &baseline, &edge)];
    rows.push(cpu(&baseline, &edge));
    rows.push(answer(&edge)?);
    let (baseline, edge) = take_turns(effort, 256)?;
    rows.insert(1, rate(256, "≥ 0.55", 0.55, &baseline, &edge));
    Ok(rows)
}

fn take_turns(effort: Effort, connections: u16) -> anyhow::Result<(Vec<Turn>, Vec<EdgeTurn>)> {
    let (baseline, _conversation, address) = children::start(Child::Baseline, "")?;
    let baseline_url = format!("http://{address}/hooks/bench");
    let kafka = Kafka::mock()?;
    let home = Home::new(&kafka)?;
    let edge = Edge::start(&home)?;
    let load = |time| Load { connections, amount: Amount::Time(time), rate: None };

    load(WARM_UP).send(&baseline_url)?;
    let mut accepted = load(WARM_UP).send(&edge.url())?.accepted;
    edge.settle()?;
    let (mut baseline_turns, mut edge_turns) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds(ROUNDS) {
        let plain = baseline_turn(load(effort.round), &baseline, &baseline_url)?;
        let ours = edge_turn(load(effort.round), &edge, &kafka)?;
        accepted += ours.turn.summary.accepted;
        progress(format_args!(
            "{connections} connections: baseline {:.0}/s, {:.1} µs (generator {:.2}); edge {:.0}/s, \
             {:.1} µs (generator {:.2}, Kafka {:.1} µs), append p99 {:.2} ms, answer p99 {:.2} ms, \
             published {:.0} ms after the last answer",
            plain.summary.calls_per_second,
            plain.cpu_us,
            plain.summary.generator_share(),
            ours.turn.summary.calls_per_second,
            ours.turn.cpu_us,
            ours.turn.summary.generator_share(),
            ours.kafka_cpu_us,
            ours.append_p99_ms,
            ours.turn.summary.latency_ms("p99")?,
            ours.publish_lag.as_secs_f64() * 1e3,
        ));
        baseline_turns.push(plain);
        edge_turns.push(ours);
    }
    edge.prove(&kafka, accepted)?;
    Ok((baseline_turns, edge_turns))
}

fn baseline_turn(load: Load, baseline: &Process, url: &str) -> anyhow::Result<Turn> {
    let before = baseline.cpu()?;
    let summary = load.send(url)?;
    let cpu_us = micros_each(baseline.cpu()? - before, &summary);
    Ok(Turn { summary, cpu_us })
}

fn edge_turn(load: Load, edge: &Edge, kafka: &Kafka) -> anyhow::Result<EdgeTurn> {
    let metrics_before = edge.metrics()?;
    let (before, kafka_before) = (edge.process().cpu()?, kafka.cpu()?);
    let summary = load.send(&edge.url())?;
    let end = Instant::now();
    let metrics = edge.settle()?;
    let publish_lag = end.elapsed();
    let p99_ms =
        |name| Ok::<_, anyhow::Error>(metrics.quantile(&metrics_before, name, 0.99)? * 1e3);
    Ok(EdgeTurn {
        append_p99_ms: p99_ms("journal_append_seconds")?,
        answer_p99_ms: p99_ms("http_request_duration_seconds")?,
        publish_lag,
        kafka_cpu_us: micros_each(kafka.cpu()? - kafka_before, &summary),
        turn: Turn { cpu_us: micros_each(edge.process().cpu()? - before, &summary), summary },
    })
}

fn micros_each(cpu: Duration, summary: &Summary) -> f64 {
    cpu.as_secs_f64() * 1e6 / summary.accepted as f64
}

/// The ratio of each round. Both servers ran in it, so that other load of the machine cancels out.
fn ratios(baseline: &[Turn], edge: &[EdgeTurn], figure: impl Fn(&Turn) -> f64) -> Spread {
    Spread::of(edge.iter().zip(baseline).map(|(ours, plain)| figure(&ours.turn) / figure(plain)))
}

fn rate(
    connections: u16,
    target: &'static str,
    least: f64,
    baseline: &[Turn],
    edge: &[EdgeTurn],
) -> Row {
    let per_second = |turn: &Turn| turn.summary.calls_per_second;
    let ratio = ratios(baseline, edge, per_second);
    let plain = Spread::of(baseline.iter().map(per_second));
    let ours = Spread::of(edge.iter().map(|ours| per_second(&ours.turn)));
    let lag = Spread::of(edge.iter().map(|ours| ours.publish_lag.as_secs_f64()));
    let mut note = format!("{} of {} requests/s", ours.show(thousands), plain.show(thousands));
    for (name, bound) in [
        ("baseline", baseline.iter().any(|turn| turn.summary.is_generator_bound())),
        ("edge", edge.iter().any(|ours| ours.turn.summary.is_generator_bound())),
    ] {
        if bound {
            note += &format!("; {name} generator-bound");
        }
    }
    if edge.iter().any(|ours| ours.publish_lag > ours.turn.summary.time().mul_f64(PUBLISH_LAG_MAX))
    {
        note += &format!("; the last is published {} s after its answer", lag.show(decimals(2)));
    }
    Row {
        figure: format!("requests/s against the baseline, {connections} connections"),
        target,
        measured: ratio.show(decimals(2)),
        met: Some(ratio.median >= least),
        note,
    }
}

fn cpu(baseline: &[Turn], edge: &[EdgeTurn]) -> Row {
    let each = |turn: &Turn| turn.cpu_us;
    let ratio = ratios(baseline, edge, each);
    let plain = Spread::of(baseline.iter().map(each));
    let ours = Spread::of(edge.iter().map(|ours| each(&ours.turn)));
    Row {
        figure: "CPU per request against the baseline, 64 connections".to_owned(),
        target: "≤ 2.4×",
        measured: format!("{}×", ratio.show(decimals(2))),
        met: Some(ratio.median <= 2.4),
        note: format!(
            "{} µs, publishing included, of {} µs",
            ours.show(decimals(1)),
            plain.show(decimals(1))
        ),
    }
}

fn answer(edge: &[EdgeTurn]) -> anyhow::Result<Row> {
    let mut client = Vec::new();
    for ours in edge {
        client.push(ours.turn.summary.latency_ms("p99")?);
    }
    let ratio = Spread::of(client.iter().zip(edge).map(|(ms, ours)| ms / ours.append_p99_ms));
    let append = Spread::of(edge.iter().map(|ours| ours.append_p99_ms));
    let server = Spread::of(edge.iter().map(|ours| ours.answer_p99_ms));
    Ok(Row {
        figure: "p99 of the answer against p99 of the journal's append, 64 connections".to_owned(),
        target: "≤ 2×",
        measured: format!("{}×", ratio.show(decimals(2))),
        met: Some(ratio.median <= 2.0),
        note: format!(
            "{} ms at the client ({} ms within the edge), append {} ms (from its histogram)",
            Spread::of(client).show(decimals(2)),
            server.show(decimals(2)),
            append.show(decimals(2))
        ),
    })
}
