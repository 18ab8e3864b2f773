//! A long outage and a long load.
//!
//! They are short in `cargo test`. In `.ci/full` they take as long as `deploy/RELIABILITY.md` says, and
//! must keep what it promises.

use std::{fs, time::Instant};

use super::*;

/// From here on the figures mean something, and are held to what is promised.
const LONG: Duration = Duration::from_secs(60);

fn seconds(variable: &str, unless_given: u64) -> Duration {
    let given = std::env::var(variable).map(|given| given.parse().unwrap());
    Duration::from_secs(given.unwrap_or(unless_given))
}

/// Calls a second: what is promised for a long time, in an optimised program.
fn rate(lasts: Duration, promised: u32) -> u32 {
    if lasts >= LONG { promised } else { promised / 10 }
}

fn calls_in(time: Duration, rate: u32) -> usize {
    (time.as_secs_f64() * f64::from(rate)) as usize
}

fn percentile(latencies: &mut [Duration], share: f64) -> Duration {
    latencies.sort_unstable();
    latencies[((latencies.len() - 1) as f64 * share) as usize]
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_long_outage_costs_callers_nothing() {
    let outage = seconds("WENI_EDGE_OUTAGE_SECONDS", 5);
    let rate = rate(outage, 1000);
    let cluster = Cluster::start();
    let topics = Topics::create(&cluster.bootstrap());
    let edge = Edge::start(&settings(&cluster.bootstrap(), &topics));
    let load = Load::start_paced(&edge, rate);
    let (mut there, mut away) = (Vec::new(), Vec::new());
    let rounds = if outage < LONG { vec![outage] } else { vec![LONG, LONG, outage] };
    for round in rounds {
        eventually("nothing waits", || (pending(&edge) < i64::from(rate)).then_some(()));
        load.latencies();
        load.await_accepted(calls_in(round.min(LONG), rate));
        there.extend(load.latencies());

        cluster.kill();
        load.latencies();
        load.await_accepted(calls_in(round, rate));
        away.extend(load.latencies());
        let (waiting, before) = (pending(&edge), committed(&edge));
        assert!(waiting as usize >= calls_in(round, rate) / 2, "{waiting} wait");

        cluster.start_again();
        let back = Instant::now();
        await_commit(&edge, before);
        let went_on = back.elapsed();
        eventually("nothing waits", || (pending(&edge) < i64::from(rate)).then_some(()));
        println!(
            "away for {round:?} at {rate}/s: {waiting} callbacks waited; first commit {went_on:.1?} \
             after the broker's port was open, all of them {:.1?} after it",
            back.elapsed()
        );
    }
    let calls = load.finish();
    edge.settle();
    let [there, away] = [&mut there, &mut away].map(|answers| percentile(answers, 0.99));
    println!("p99 of the answer: {there:.2?} with Kafka, {away:.2?} without");
    assert!(outage < LONG || away <= 2 * there, "{there:?} with Kafka, {away:?} without");
    assert!(calls.values().all(Option::is_some), "no call went without an answer");
    assert_exactly_once(&topics, &calls);
}

fn pending(edge: &Edge) -> i64 {
    edge.metrics().total("journal_pending_callbacks", &[])
}

/// What must not grow.
#[derive(Debug, Clone, Copy)]
struct Look {
    resident_mib: i64,
    descriptors: i64,
    journal_mib: i64,
    p50: Duration,
    p99: Duration,
}

impl Look {
    fn at(edge: &Edge, load: &Load) -> Self {
        let process = format!("/proc/{}", edge.pid());
        let status = fs::read_to_string(format!("{process}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident_kib: i64 = resident.trim().strip_suffix(" kB").unwrap().parse().unwrap();
        let mut latencies = load.latencies();
        Self {
            resident_mib: resident_kib >> 10,
            descriptors: fs::read_dir(format!("{process}/fd")).unwrap().count() as i64,
            journal_mib: edge.metrics().total("journal_bytes", &[]) >> 20,
            p50: percentile(&mut latencies, 0.5),
            p99: percentile(&mut latencies, 0.99),
        }
    }
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_long_load_leaves_nothing_behind() {
    const LOOKS: usize = 20;
    let lasts = seconds("WENI_EDGE_SOAK_SECONDS", 10);
    let rate = rate(lasts, 2000);
    let cluster = Cluster::start();
    let topics = Topics::create(&cluster.bootstrap());
    let edge = Edge::start(&settings(&cluster.bootstrap(), &topics));
    let load = Load::start_paced(&edge, rate);
    let begun = Instant::now();
    let look = |_| {
        load.await_accepted(calls_in(lasts, rate) / LOOKS);
        let look = Look::at(&edge, &load);
        println!("{:>6.0?} {look:?}", begun.elapsed());
        look
    };
    let looks: Vec<_> = (0..LOOKS).map(look).collect();
    let calls = load.finish();
    edge.settle();
    assert!(calls.values().all(Option::is_some), "no call went without an answer");

    // The first quarter is for warming up.
    let (early, late) = (&looks[LOOKS / 4..LOOKS / 2], &looks[LOOKS * 3 / 4..]);
    for (name, allowed, of) in [
        ("MiB resident", 8, (|look| look.resident_mib) as fn(&Look) -> i64),
        ("descriptors", 32, |look| look.descriptors),
        ("MiB of journal", 64, |look| look.journal_mib),
    ] {
        let most = |looks: &[Look]| looks.iter().map(of).max().unwrap();
        let (early, late) = (most(early), most(late));
        println!("{name}: {early} early, {late} late");
        assert!(late <= early + allowed, "{name}: {early} early, {late} late");
    }
    // The machine's other work decides the p99: it is only printed.
    let [p50, p99] = [|look: &Look| look.p50, |look: &Look| look.p99].map(|of| {
        [early, late].map(|looks| percentile(&mut looks.iter().map(of).collect::<Vec<_>>(), 0.5))
    });
    println!("p50: {p50:.2?}, p99: {p99:.2?} (early, late)");
    assert!(lasts < LONG || p50[1] <= 2 * p50[0], "{p50:?}");
    assert_exactly_once(&topics, &calls);
}
