//! Faults between the edge and its brokers: a slow link, a link on which nothing arrives, and addresses
//! that change.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Instant,
};

use tempfile::NamedTempFile;

use super::{
    faults::{must_have, run},
    link::{Link, Quality, Way},
    *,
};

const PER_SECOND: u32 = 100;
/// How long an answer may take: less than any way to Kafka and back in these tests.
const AT_ONCE: Duration = Duration::from_millis(200);

/// A link to the first node of a cluster, which is told to clients from the node's next start on.
fn link_to(cluster: &Cluster, port: usize, quality: Quality) -> Link {
    let address = (Ipv4Addr::LOCALHOST, cluster.spare_ports().nth(port).unwrap());
    let link = Link::open(address.into(), cluster.proxied(), quality);
    cluster.advertise(&link.address().to_string());
    link
}

/// The answers since the last look: most of them came at once.
fn assert_answers_at_once(load: &Load) {
    let mut latencies = load.latencies();
    latencies.sort_unstable();
    let [p50, p99] = [50, 99].map(|percent| latencies[(latencies.len() - 1) * percent / 100]);
    println!("{} answers: p50 {p50:.1?}, p99 {p99:.1?}", latencies.len());
    assert!(p50 < AT_ONCE, "{p50:?}");
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_slow_link_delays_kafka_and_no_caller() {
    const SLOW: Quality = Quality { latency: AT_ONCE, bytes_per_second: 200_000 };
    let cluster = Cluster::format();
    let link = link_to(&cluster, 0, SLOW);
    cluster.start_again();
    let topics = Topics::create(&cluster.bootstrap());
    let edge = Edge::start(&Settings {
        // The callbacks of a test are very much alike.
        properties: vec![("compression.codec", "none".to_owned())],
        ..settings(&link.address().to_string(), &topics)
    });
    let load = Load::start_paced(&edge, 2 * PER_SECOND);
    load.await_accepted(1000);
    assert_answers_at_once(&load);
    let calls = load.finish();
    let (ended, pending) = (Instant::now(), edge.metrics().total("journal_pending_callbacks", &[]));
    assert!(pending > 0, "Kafka keeps up");
    let samples = edge.settle();
    println!("{pending} callbacks waited, all in Kafka {:.0?} later", ended.elapsed());

    let seconds = samples.total("transaction_seconds_sum", &[]);
    let bytes = link.bytes_passed(Way::ToBroker);
    println!("{} transactions in {seconds} s, {bytes} bytes", committed(&edge));
    // Once there and back for the records, for the position and for the commit.
    assert!(seconds as f64 >= 6.0 * AT_ONCE.as_secs_f64() * committed(&edge) as f64);
    assert!(bytes > 1_500_000, "it was not slow for long");
    assert!(calls.values().all(Option::is_some), "no call went without an answer");
    assert_exactly_once(&topics, &calls);
}

/// Nothing arrives for so long; afterwards everything does, also what the client has given up.
fn nothing_arrives(ways: &[Way], lasts: Duration) {
    let cluster = Cluster::format();
    let link = link_to(&cluster, 0, Quality::LOOPBACK);
    cluster.start_again();
    let topics = Topics::create(&cluster.bootstrap());
    let edge = Edge::start(&settings(&link.address().to_string(), &topics));
    let load = Load::start_paced(&edge, PER_SECOND);
    await_commit(&edge, 2);
    load.latencies();
    link.hold(ways);
    let before = committed(&edge);
    thread::sleep(lasts);
    assert!(committed(&edge) <= before + 1, "only one that was on its way");
    assert!(ways.iter().any(|way| link.bytes_held(*way) > 0));
    assert_answers_at_once(&load);
    edge.await_blocked("no_broker");
    assert!(edge.metrics().total("producer_rebuilds_total", &["lost"]) > 0);

    let since = Instant::now();
    link.release();
    await_commit(&edge, before + 2);
    println!("went on {:.1?} after the link did", since.elapsed());
    assert_callers_noticed_nothing(&edge, load, &topics);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_link_that_stands_still_for_longer_than_every_time_limit_loses_and_doubles_nothing() {
    nothing_arrives(Way::BOTH, Duration::from_secs(40));
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn answers_of_kafka_that_come_when_nobody_awaits_them_lose_and_double_nothing() {
    nothing_arrives(&[Way::ToEdge], Duration::from_secs(20));
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_broker_that_comes_back_at_another_address_is_found_by_the_bootstrap() {
    let cluster = Cluster::format();
    let bootstrap = link_to(&cluster, 0, Quality::LOOPBACK);
    let mut link = link_to(&cluster, 1, Quality::LOOPBACK);
    cluster.start_again();
    let topics = Topics::create(&cluster.bootstrap());
    let edge = Edge::start(&settings(&bootstrap.address().to_string(), &topics));
    move_the_broker(&cluster, &edge, &topics, &mut link, &[2]);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn a_broker_is_found_by_whichever_of_the_bootstrap_addresses_is_there() {
    let cluster = Cluster::format();
    let addresses = cluster.spare_ports().take(3).map(|port| format!("127.0.0.1:{port}"));
    let bootstrap = addresses.collect::<Vec<_>>().join(",");
    // The first two are not there.
    let mut link = link_to(&cluster, 2, Quality::LOOPBACK);
    cluster.start_again();
    let topics = Topics::create(&cluster.bootstrap());
    let edge = Edge::start(&settings(&bootstrap, &topics));
    move_the_broker(&cluster, &edge, &topics, &mut link, &[0, 1]);
}

/// Under load the broker goes, and comes back at another port each time; nobody is at the last one then.
fn move_the_broker(
    cluster: &Cluster,
    edge: &Edge,
    topics: &Topics,
    link: &mut Link,
    ports: &[usize],
) {
    let load = Load::start_paced(edge, PER_SECOND);
    for port in ports {
        await_commit(edge, committed(edge) + 2);
        assert!(link.bytes_passed(Way::ToBroker) > 0, "it is not used");
        cluster.kill();
        link.close();
        let moved = link_to(cluster, *port, Quality::LOOPBACK);
        load.await_accepted(100);
        cluster.start_again();
        let since = Instant::now();
        await_commit(edge, committed(edge));
        println!("first commit {:.1?} after the broker's port was open", since.elapsed());
        assert!(link.refuses());
        *link = moved;
    }
    assert!(link.bytes_passed(Way::ToBroker) > 0, "it is not used");
    assert_answers_at_once(&load);
    assert_callers_noticed_nothing(edge, load, topics);
}

/// The addresses of names for a process and its children.
struct Names(NamedTempFile);

impl Names {
    const BROKER: &str = "kafka.test";

    /// # Panics
    /// Also where the machine gives a process no mounts of its own.
    fn make() -> Self {
        must_have(&["unshare", "mount"]);
        let names = Self(NamedTempFile::new().unwrap());
        let [program, arguments @ ..] = &names.starter();
        let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(["true"]).collect();
        run(program, &arguments).expect("mounts of its own");
        names
    }

    fn set(&self, address: SocketAddr) {
        let line = format!("{} {}\n", address.ip(), Self::BROKER);
        std::fs::write(self.0.path(), line).unwrap();
    }

    /// What starts a program with these names.
    fn starter(&self) -> [String; 6] {
        let mount = format!("mount --bind {} /etc/hosts && exec \"$@\"", self.0.path().display());
        ["unshare", "--mount", "sh", "-c", &mount, "sh"].map(str::to_owned)
    }
}

#[test]
#[ignore = "needs Kafka, root and unshare: .ci/run kafka"]
fn a_broker_whose_name_leads_to_another_address_is_found() {
    let names = Names::make();
    let cluster = Cluster::format();
    let port = cluster.spare_ports().start;
    let link_at = |last| {
        let address = (Ipv4Addr::new(127, 0, 0, last), port).into();
        let link = Link::open(address, cluster.proxied(), Quality::LOOPBACK);
        names.set(address);
        link
    };
    let mut link = link_at(2);
    let bootstrap = format!("{}:{port}", Names::BROKER);
    cluster.advertise(&bootstrap);
    cluster.start_again();
    let topics = Topics::create(&cluster.bootstrap());
    let mut edge = Edge::new(&settings(&bootstrap, &topics));
    let starter = names.starter();
    edge.start_by(&starter.each_ref().map(String::as_str));
    let load = Load::start_paced(&edge, PER_SECOND);
    for (last, says_so) in [(3, true), (4, false)] {
        await_commit(&edge, committed(&edge) + 2);
        assert!(link.bytes_passed(Way::ToBroker) > 0, "it is not used");
        // Whoever was there is gone, and whoever is connected to it may be told or not.
        if says_so {
            link.close()
        } else {
            link.hold(Way::BOTH)
        }
        let (before, since) = (committed(&edge), Instant::now());
        let moved = link_at(last);
        await_commit(&edge, before + 1);
        println!("went on after {:.1?}; connections were closed: {says_so}", since.elapsed());
        link.close();
        assert!(link.refuses());
        link = moved;
    }
    assert!(link.bytes_passed(Way::ToBroker) > 0, "it is not used");
    assert_answers_at_once(&load);
    assert_callers_noticed_nothing(&edge, load, &topics);
}
