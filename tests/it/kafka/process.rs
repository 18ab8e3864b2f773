//! Faults of the process and its surroundings under load: nothing that was answered 200 is lost,
//! doubled or out of order.

use std::{fs, path::PathBuf, time::Instant};

use rustix::process::Signal;
use tempfile::{NamedTempFile, TempDir};

use super::{
    faults::{must_have, run},
    *,
};

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn stopping_under_load_without_kafka_takes_its_time_and_no_more() {
    let cluster = Cluster::start();
    let topics = Topics::create(&cluster.bootstrap());
    let mut edge = Edge::start(&settings(&cluster.bootstrap(), &topics));
    let load = Load::start_refusable(&edge);
    await_commit(&edge, 2);
    cluster.kill();
    load.await_accepted(200);
    assert!(edge.metrics().total("journal_pending_callbacks", &[]) > 0);
    let since = Instant::now();
    edge.terminate();
    let took = since.elapsed();
    println!("stopped within {took:?}");
    assert!(took < Duration::from_secs(25), "{took:?}");

    edge.start_again();
    load.go_on_at(&edge);
    load.await_accepted(100);
    cluster.start_again();
    let calls = load.finish();
    edge.settle();
    assert_exactly_once(&topics, &calls);
}

#[test]
#[ignore = "needs Kafka: .ci/run kafka"]
fn an_edge_that_was_frozen_goes_on() {
    let bootstrap = kafka();
    let topics = Topics::create(&bootstrap);
    let edge = Edge::start(&settings(&bootstrap, &topics));
    let load = Load::start_refusable(&edge);
    load.await_accepted(200);
    edge.signal(Signal::STOP);
    let stat = || fs::read_to_string(format!("/proc/{}/stat", edge.pid())).unwrap();
    eventually("it is frozen", || stat().contains(") T ").then_some(()));
    // As long as Kafka gives a transaction, and longer than a caller may wait.
    thread::sleep(Duration::from_secs(15));
    edge.signal(Signal::CONT);
    load.await_accepted(200);
    let calls = load.finish();
    edge.settle();
    assert_exactly_once(&topics, &calls);
}

/// Takes the calls of more connections than an edge has room for, and gives back those it has
/// answered.
fn crowd(edge: &Edge, callers: usize) -> Vec<Caller> {
    let connect = |_| Caller::connect(edge.public()).unwrap();
    (0..callers).map(connect).collect()
}

#[test]
#[ignore = "needs Kafka, root and prlimit: .ci/run kafka"]
fn connections_never_take_the_descriptors_of_the_journal() {
    let bootstrap = kafka();
    must_have(&["prlimit"]);
    let topics = Topics::create(&bootstrap);
    let mut edge = Edge::new(&settings(&bootstrap, &topics));
    edge.start_by(&["prlimit", "--nofile=100:224"]);
    edge.await_logged("fewer connections than http.max_connections");
    let mut waiting = crowd(&edge, 32);
    eventually("all connections are taken", || {
        (edge.metrics().total("http_connections", &[]) == 32).then_some(())
    });
    // Those that have one go on, and so do journal and Kafka.
    let mut calls = BTreeMap::new();
    let mut call = |callers: &mut [Caller], serial| {
        for (number, caller) in callers.iter_mut().enumerate() {
            let answer = caller.call("POST", Load::body(number, serial).as_bytes()).unwrap();
            calls.insert((number, serial), Some(answer.receipt()));
        }
    };
    call(&mut waiting[..32], 0);
    let samples = edge.settle();
    for op in ["append", "checkpoint", "prepare"] {
        assert_eq!(samples.total("journal_errors_total", &[op]), 0, "{op}");
    }

    // Now there are none left at all, whoever wants them.
    let descriptors = fs::read_dir(format!("/proc/{}/fd", edge.pid())).unwrap().count();
    let limit = |limit: &str| {
        run("prlimit", &["--pid", &edge.pid(), limit]).unwrap();
    };
    limit(&format!("--nofile={descriptors}:224"));
    call(&mut waiting[..32], 1);
    limit("--nofile=224:224");
    drop(waiting);
    // Before that, one that was never used would be closed for the next one.
    eventually("all are closed", || {
        (edge.metrics().total("http_connections", &[]) == 0).then_some(())
    });
    let mut late = crowd(&edge, 32);
    call(&mut late, 2);
    edge.settle();
    assert_exactly_once(&topics, &calls);
}

/// A group of processes that may have only so many threads.
struct Group(PathBuf);

impl Group {
    fn make() -> Self {
        let of_pids = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(PathBuf::from);
        let name = format!("weni-edge-test-{}", std::process::id());
        let made = of_pids.iter().map(|parent| parent.join(&name)).find(|group| {
            fs::create_dir(group).is_ok()
                && (group.join("pids.max").exists() || fs::remove_dir(group).is_err())
        });
        Self(made.expect("a control group that limits threads"))
    }

    fn limit(&self, threads: u32) {
        fs::write(self.0.join("pids.max"), threads.to_string()).unwrap();
    }

    /// How often somebody got no thread.
    fn refused(&self) -> u64 {
        let events = fs::read_to_string(self.0.join("pids.events")).unwrap();
        events.trim().rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes have ended, but the kernel may still be at it.
        let removed = (0..50).any(|_| {
            thread::sleep(Duration::from_millis(20));
            fs::remove_dir(&self.0).is_ok()
        });
        assert!(removed || thread::panicking(), "{} is left behind", self.0.display());
    }
}

#[test]
#[ignore = "needs Kafka, root and control groups: .ci/run kafka"]
fn an_edge_without_threads_says_so_and_spoils_nothing() {
    let bootstrap = kafka();
    must_have(&["sh"]);
    let group = Group::make();
    let topics = Topics::create(&bootstrap);
    let mut edge = Edge::new(&settings(&bootstrap, &topics));
    let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", group.0.display());
    let (mut calls, mut ended_at_once) = (BTreeMap::new(), 0);
    for threads in 1..=12 {
        let refused = group.refused();
        group.limit(threads);
        match edge.try_start_by(&["sh", "-c", &enter, "sh"]) {
            Some(ended) => {
                ended_at_once += 1;
                assert!(!ended.status.success(), "{ended:?}");
                // Ours, Rust's and librdkafka's words for it.
                let why = ["os error 11", "WouldBlock", "failed to create broker thread"];
                let says = |line: &String| why.iter().any(|why| line.contains(why));
                assert!(ended.log.iter().any(says), "{threads} threads: {ended:?}");
                assert!(group.refused() > refused, "it was not for threads: {ended:?}");
            }
            None => {
                // It may still end, when librdkafka gets no thread for a broker.
                let body = Load::body(0, threads.into());
                let call = |mut caller: Caller| caller.call("POST", body.as_bytes());
                let answer = Caller::connect(edge.public()).and_then(call).ok();
                calls.insert((0, threads.into()), answer.map(|answer| answer.receipt()));
                edge.kill();
            }
        }
    }
    assert!(ended_at_once > 0, "threads were never missing");
    edge.start_again();
    calls.insert((0, 13), Some(edge.accept(&Load::body(0, 13))));
    edge.settle();
    assert_exactly_once(&topics, &calls);
}

/// A clock that a test sets.
struct Clock {
    _directory: TempDir,
    library: PathBuf,
    shift: NamedTempFile,
}

impl Clock {
    fn make() -> Self {
        let directory = TempDir::new().unwrap();
        let library = directory.path().join("clock.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/kafka/clock.c");
        run("cc", &["-shared", "-fPIC", "-O1", "-o", library.to_str().unwrap(), source]).unwrap();
        let clock = Self { _directory: directory, library, shift: NamedTempFile::new().unwrap() };
        clock.set(0);
        clock
    }

    fn set(&self, seconds: i64) {
        use std::os::unix::fs::FileExt;
        self.shift.as_file().write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }

    /// What starts a program under this clock.
    fn starter(&self) -> [String; 3] {
        let preload = format!("LD_PRELOAD={}", self.library.display());
        ["env".to_owned(), preload, format!("CLOCK={}", self.shift.path().display())]
    }
}

#[test]
#[ignore = "needs Kafka, root and cc: .ci/run kafka"]
fn a_clock_that_is_set_back_and_forward_neither_repeats_nor_reorders() {
    const HOUR: i64 = 3600;
    let bootstrap = kafka();
    must_have(&["cc"]);
    let topics = Topics::create(&bootstrap);
    let clock = Clock::make();
    let mut edge = Edge::new(&settings(&bootstrap, &topics));
    let starter = clock.starter();
    let starter: Vec<_> = starter.iter().map(String::as_str).collect();
    edge.start_by(&starter);
    let load = Load::start(&edge);
    for hours in [0, -24, 1, -1, 24 * 365, -24 * 365] {
        clock.set(hours * HOUR);
        load.await_accepted(200);
    }
    edge.kill();
    edge.start_by(&starter);
    load.go_on_at(&edge);
    load.await_accepted(100);
    clock.set(0);
    let calls = load.finish();
    edge.settle();
    let records = topics.read();
    assert_exactly_once_among(&records, &calls);
    let answered = calls.values().flatten();
    assert_eq!(answered.clone().collect::<BTreeSet<_>>().len(), answered.count());
    let year = |record: &Record| record.event()["received_at"].as_str().unwrap()[..4].to_owned();
    let years: BTreeSet<_> = records.iter().map(year).collect();
    assert!(years.len() >= 3, "the clock was not set: {years:?}");
}
