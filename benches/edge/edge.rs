//! `weni-edge serve` in another process, and its log and metrics.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{ChildStderr, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use tempfile::TempDir;

use crate::{kafka::Kafka, machine, process::Process};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_weni-edge");
pub(crate) const HEADER: &str = "X-Token";
pub(crate) const SECRET: &str = "a secret of the benchmark";
/// Bytes that the journal may hold: more than any row needs.
const CAPACITY: u64 = 4 << 30;
/// How long opening or publishing may take before the run fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// Journal and configuration of one edge, on a disk. Dropping it removes them.
#[derive(Debug)]
pub(crate) struct Home(TempDir);

impl Home {
    /// # Errors
    /// Also if the build directory is in memory, where a sync costs nothing.
    pub(crate) fn new(kafka: &Kafka) -> anyhow::Result<Self> {
        Self::with_sources(kafka, 1)
    }

    /// Sources `bench`, `bench2` and so on. As [`new`](Self::new).
    pub(crate) fn with_sources(kafka: &Kafka, sources: u32) -> anyhow::Result<Self> {
        machine::file_system(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
        let home = Self(TempDir::with_prefix_in("bench-", env!("CARGO_TARGET_TMPDIR"))?);
        let mut text = format!(
            "[http]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [journal]\ndirectory = {:?}\nmax_bytes = {CAPACITY}\nallow_volatile = true\n\
             [log]\nformat = \"json\"\n{}",
            home.journal(),
            kafka.section()
        );
        for at in 1..=sources {
            let number = if at == 1 { String::new() } else { at.to_string() };
            text += &format!(
                "[sources.bench{number}]\nheader = \"{HEADER}\"\nsecrets = [\"{SECRET}\"]\n"
            );
        }
        fs::write(home.config(), text)?;
        Ok(home)
    }

    fn journal(&self) -> PathBuf {
        self.0.path().join("journal")
    }

    fn config(&self) -> PathBuf {
        self.0.path().join("weni-edge.toml")
    }

    /// Drops the journal's files from the page cache.
    pub(crate) fn drop_page_cache(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(self.journal())? {
            let path = entry?.path();
            if path.is_file() {
                let file = File::open(path)?;
                file.sync_all()?;
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            }
        }
        Ok(())
    }
}

/// A running edge. Dropping it kills the process.
#[derive(Debug)]
pub(crate) struct Edge {
    process: Process,
    public: SocketAddr,
    admin: SocketAddr,
    /// From the process's start until it listens with its journal open.
    pub(crate) opened_in: Duration,
}

/// The fields of the log's line `listening`.
#[derive(Deserialize)]
struct Listening {
    public: SocketAddr,
    admin: SocketAddr,
}

impl Edge {
    /// Starts the edge with the Kafka of its configuration.
    pub(crate) fn start(home: &Home) -> anyhow::Result<Self> {
        Self::spawn(home, &mut Command::new(BINARY))
    }

    /// Starts another build of it.
    pub(crate) fn start_binary(home: &Home, binary: &Path) -> anyhow::Result<Self> {
        Self::spawn(home, &mut Command::new(binary))
    }

    /// Starts it with an address at which there is no Kafka.
    pub(crate) fn start_without_kafka(home: &Home, nowhere: &str) -> anyhow::Result<Self> {
        Self::start_with(home, "KAFKA__BOOTSTRAP_SERVERS", nowhere)
    }

    /// Starts it with all its threads on the first core.
    pub(crate) fn start_on_one_core(home: &Home) -> anyhow::Result<Self> {
        Self::spawn(home, Command::new("taskset").args(["-c", "0", BINARY]))
    }

    /// Starts it with another value of a key of its configuration, such as `HTTP__WAIT_FOR_KAFKA`.
    pub(crate) fn start_with(home: &Home, key: &str, value: &str) -> anyhow::Result<Self> {
        Self::spawn(home, Command::new(BINARY).env(format!("WENI_EDGE__{key}"), value))
    }

    fn spawn(home: &Home, command: &mut Command) -> anyhow::Result<Self> {
        let start = Instant::now();
        command.args(["serve", "--config"]).arg(home.config());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Process::start("the edge", command)?;
        let (sender, listening) = mpsc::channel();
        let log = process.child().stderr.take().context("the edge has no stderr")?;
        thread::spawn(move || follow(log, &sender));
        let (at, Listening { public, admin }) = listening
            .recv_timeout(PATIENCE)
            .with_context(|| format!("the edge did not start: {}", log_path().display()))?;
        Ok(Self { process, public, admin, opened_in: at.duration_since(start) })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hooks/bench", self.public)
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    pub(crate) fn metrics(&self) -> anyhow::Result<Metrics> {
        let mut stream = TcpStream::connect(self.admin)?;
        // HTTP/1.0: the answer has no chunks and ends with the connection.
        write!(stream, "GET /metrics HTTP/1.0\r\nHost: edge\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no metrics")?;
        ensure!(head.contains(" 200 "), "/metrics: {head}");
        Ok(Metrics::parse(body))
    }

    /// Waits until everything is published.
    pub(crate) fn settle(&self) -> anyhow::Result<Metrics> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let metrics = self.metrics()?;
            if metrics.pending() == 0.0 {
                return Ok(metrics);
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("not everything was published within {PATIENCE:?}: {}", log_path().display())
    }

    /// Proves that each of `accepted` callbacks is in Kafka once, and that no transaction was
    /// aborted or lost.
    pub(crate) fn prove(&self, kafka: &Kafka, accepted: u64) -> anyhow::Result<()> {
        let metrics = self.settle()?;
        let serving = metrics.sum("ready", "serving");
        ensure!(serving == 1.0, "another process asked the edge to stop while it was measured");
        for outcome in ["aborted", "lost"] {
            let count = metrics.sum("transactions_total", outcome);
            ensure!(count == 0.0, "{count} transactions were {outcome}");
        }
        let records = kafka.records()?;
        ensure!(records == accepted, "{accepted} were accepted, {records} are in Kafka");
        Ok(())
    }
}

/// The file for the logs of all edges of a run.
pub(crate) fn log_path() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-edge.log")
}

/// Copies the log to a file until it ends, and reports the line that says where the edge listens.
fn follow(log: ChildStderr, listening: &mpsc::Sender<(Instant, Listening)>) {
    let mut copy = File::options().create(true).append(true).open(log_path()).ok();
    for line in BufReader::new(log).lines().map_while(Result::ok) {
        if line.contains("\"listening\"")
            && let Ok(found) = serde_json::from_str(&line)
        {
            // The receiver is gone if the run has failed.
            listening.send((Instant::now(), found)).ok();
        }
        if let Some(file) = &mut copy {
            writeln!(file, "{line}").ok();
        }
    }
}

/// One answer of `/metrics`: values by name and labels, without the prefix.
#[derive(Debug)]
pub(crate) struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    fn parse(text: &str) -> Self {
        let series = |line: &str| {
            let (name, value) = line.strip_prefix("weni_edge_")?.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(text.lines().filter_map(series).collect())
    }

    /// Callbacks that are not settled.
    pub(crate) fn pending(&self) -> f64 {
        self.sum("journal_pending_callbacks", "")
    }

    /// All series of that name with a label of that value (any, if it is empty).
    pub(crate) fn sum(&self, name: &str, label: &str) -> f64 {
        let wanted = |series: &str| {
            let (found, labels) = series.split_once('{').unwrap_or((series, ""));
            found == name && (label.is_empty() || labels.contains(&format!("=\"{label}\"")))
        };
        self.0.iter().filter(|(series, _)| wanted(series)).map(|(_, value)| value).sum()
    }

    /// A quantile of what a histogram counted since `before`, linear within its bucket, as in
    /// Prometheus.
    pub(crate) fn quantile(&self, before: &Self, name: &str, quantile: f64) -> anyhow::Result<f64> {
        let count = |metrics: &Self, bound: &str| metrics.sum(&format!("{name}_bucket"), bound);
        let mut bounds: Vec<(f64, f64)> = Vec::new();
        for series in self.0.keys().filter(|series| series.starts_with(&format!("{name}_bucket"))) {
            let bound = series.split("le=\"").nth(1).and_then(|rest| rest.split('"').next());
            let bound = bound.context("a bucket without a bound")?;
            bounds.push((bound.parse()?, count(self, bound) - count(before, bound)));
        }
        bounds.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let total = bounds.last().map_or(0.0, |(_, count)| *count);
        ensure!(total > 0.0, "{name} counted nothing");
        let rank = quantile * total;
        let mut below = (0.0, 0.0);
        for (bound, count) in bounds {
            if count >= rank {
                ensure!(bound.is_finite(), "{name}: beyond the last bucket");
                return Ok(below.0 + (bound - below.0) * (rank - below.1) / (count - below.1));
            }
            below = (bound, count);
        }
        bail!("{name}: its buckets do not add up")
    }
}
