//! The real program in another process, called over real sockets.
//!
//! **Invariant:** an edge that stops, or is dropped, has its accounts in balance, and has logged
//! neither a secret nor a message id.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const SOURCE: &str = "loja";
const SECRET: &str = "only for the tests";
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_weni-edge");
/// More than anything here takes, also where the watchdog replaces a publisher after two minutes; a test
/// that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(240);

/// Looks until there is something to see.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until a process ends, at most a minute.
pub(crate) fn await_exit(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the process does not end");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Begins the program, with its output in pipes.
pub(crate) fn begin<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Child {
    Command::new(PROGRAM)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs the program to its end, which has to come.
pub(crate) fn run<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Output {
    let mut child = begin(arguments);
    await_exit(&mut child);
    child.wait_with_output().unwrap()
}

/// What it said on standard error.
pub(crate) fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Certificate and key for localhost, in PEM.
pub(crate) fn certificate_and_key() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// Files with certificate and key for localhost.
pub(crate) fn certificate_files(directory: &Path) -> (PathBuf, PathBuf) {
    let (certificate, key) = (directory.join("tls.crt"), directory.join("tls.key"));
    let pair = certificate_and_key();
    fs::write(&certificate, pair.0).unwrap();
    fs::write(&key, pair.1).unwrap();
    (certificate, key)
}

/// What a test's configuration says beside what all of them say.
#[derive(Default)]
pub(crate) struct Settings {
    pub(crate) bootstrap: String,
    /// librdkafka's own.
    pub(crate) properties: Vec<(&'static str, String)>,
    /// Role (as in the configuration) and name.
    pub(crate) topics: BTreeMap<&'static str, String>,
    /// Certificate and key.
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    /// How long answers wait for Kafka.
    pub(crate) wait_for_kafka: Duration,
    /// From the beginning of one transaction to that of the next, if not as by default.
    pub(crate) commit_interval: Option<Duration>,
    /// Where the journal is, if not beside the configuration.
    pub(crate) journal: Option<PathBuf>,
}

impl Settings {
    fn toml(&self, journal: &Path) -> String {
        let pairs = |pairs: &mut dyn Iterator<Item = (&str, &str)>| {
            pairs.map(|(name, value)| format!("{name:?} = {value:?}\n")).collect::<String>()
        };
        let properties = pairs(&mut self.properties.iter().map(|(name, v)| (*name, v.as_str())));
        let topics = pairs(&mut self.topics.iter().map(|(role, name)| (*role, name.as_str())));
        let tls = self.tls.as_ref().map_or(String::new(), |(certificate, key)| {
            format!("[http.tls]\ncertificate_file = {certificate:?}\nkey_file = {key:?}\n")
        });
        let interval = self.commit_interval.map_or(String::new(), |interval| {
            format!("commit_interval = \"{}ms\"\n", interval.as_millis())
        });
        format!(
            "[http]\nlisten = \"127.0.0.1:0\"\ndrain = \"0s\"\nwait_for_kafka = \"{}ms\"\n{tls}\
             [admin]\nlisten = \"127.0.0.1:0\"\n\
             [sources.{SOURCE}]\nheader = \"X-Token\"\nsecrets = [{SECRET:?}]\n\
             [journal]\ndirectory = {journal:?}\nmin_free_bytes = 0\nallow_volatile = true\n\
             [kafka]\nbootstrap_servers = {:?}\n{interval}[kafka.properties]\n{properties}\
             [topics]\n{topics}",
            self.wait_for_kafka.as_millis(),
            self.bootstrap
        )
    }
}

/// An edge with a journal of its own; it may be killed and started again.
pub(crate) struct Edge {
    directory: TempDir,
    journal: PathBuf,
    log: Arc<Mutex<Vec<String>>>,
    running: Option<Running>,
    is_tls: bool,
    /// Where the next process fails; only in a build with the feature.
    pub(crate) failpoints: &'static str,
}

struct Running {
    process: Started,
    public: SocketAddr,
    admin: SocketAddr,
}

/// A process, and the thread that reads its log to the end. A process whose log is not read to the end
/// would say its last words in the name of the next one.
struct Started {
    child: Killed,
    reading: thread::JoinHandle<()>,
    /// Lines that were there before.
    log_from: usize,
}

/// A process that does not outlive a test that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Most have ended long since; all that matters is that nothing is left behind.
        self.0.kill().and_then(|()| self.0.wait()).ok();
    }
}

/// How a process ended by itself, and all that it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) log: Vec<String>,
}

impl Ended {
    /// It ended as an edge does that cannot go on, and said why. Threads that end with it may have
    /// the last word.
    pub(crate) fn assert_says(&self, why: &str) {
        assert_eq!(self.status.code(), Some(2), "{self:?}");
        let mut errors = self.log.iter().filter(|line| line.starts_with("error: "));
        assert!(errors.any(|line| line.contains(why)), "no {why:?}: {self:?}");
    }
}

impl Edge {
    pub(crate) fn start(settings: &Settings) -> Self {
        let mut edge = Self::new(settings);
        edge.start_again();
        edge
    }

    /// An edge that is down.
    pub(crate) fn new(settings: &Settings) -> Self {
        let directory = TempDir::new().unwrap();
        let beside = directory.path().join("journal");
        let journal = settings.journal.clone().unwrap_or(beside);
        let is_tls = settings.tls.is_some();
        let log = Arc::default();
        let edge = Self { directory, journal, log, running: None, is_tls, failpoints: "" };
        edge.configure(settings);
        edge
    }

    /// Writes the configuration; a running edge looks at it by and by, or on SIGHUP.
    pub(crate) fn configure(&self, settings: &Settings) {
        fs::write(self.config_file(), settings.toml(&self.journal())).unwrap();
    }

    /// An edge that is down, with a copy of this one's journal, which must be down too.
    pub(crate) fn copy(&self, settings: &Settings) -> Self {
        assert!(self.running.is_none(), "the copy of what is being written is no copy");
        let copy = Self::new(settings);
        let copied = Command::new("cp").arg("-a").args([self.journal(), copy.journal()]).status();
        assert!(copied.unwrap().success());
        copy
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.journal.clone()
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.directory.path().join("weni-edge.toml")
    }

    /// Runs `weni-edge journal` on this edge's journal, and gives back what it prints.
    pub(crate) fn journal_command(&self, command: &str, arguments: &[&str]) -> String {
        let output = Command::new(PROGRAM)
            .args(["journal", command, "--config"])
            .arg(self.config_file())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "journal {command} {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `weni-edge replay` with this edge's configuration.
    pub(crate) fn replay(&self, arguments: &[&str]) -> Output {
        self.replay_command(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// The same, begun and left to itself.
    pub(crate) fn begin_replay(&self, arguments: &[&str]) -> Child {
        let mut command = self.replay_command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Begins `weni-edge tail` with this edge's configuration.
    pub(crate) fn begin_tail(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(PROGRAM);
        command.args(["tail", "--config"]).arg(self.config_file()).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn replay_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["replay", "--config"]).arg(self.config_file()).args(arguments);
        command
    }

    /// Starts the process on the journal that is there.
    pub(crate) fn start_again(&mut self) {
        self.start_by(&[]);
    }

    /// The same through a program that becomes it: `prlimit`, `env`, `sh -c 'exec "$@"'`.
    pub(crate) fn start_by(&mut self, starter: &[&str]) {
        if let Some(ended) = self.try_start_by(starter) {
            panic!("ended at once: {ended:?}");
        }
    }

    /// The same where it may also end at once; then how.
    pub(crate) fn try_start_by(&mut self, starter: &[&str]) -> Option<Ended> {
        let mut process = self.spawn(starter);
        let listens_at = eventually("the line that says where it listens, or its end", || {
            let ended = process.child.0.try_wait().unwrap();
            let log = &self.log.lock().unwrap()[process.log_from..];
            let addresses = log.iter().find_map(|line| listening(line));
            (ended.is_some() || addresses.is_some()).then_some(addresses)
        });
        let Some([public, admin]) = listens_at else { return Some(self.end_of(process)) };
        self.running = Some(Running { process, public, admin });
        None
    }

    /// Starts the process where it cannot start.
    pub(crate) fn start_in_vain(&self, starter: &[&str]) -> Ended {
        let process = self.spawn(starter);
        self.end_of(process)
    }

    fn spawn(&self, starter: &[&str]) -> Started {
        assert!(self.running.is_none(), "it runs already");
        let mut line = starter.iter().copied().chain([PROGRAM, "serve", "--config"]);
        let mut child = Command::new(line.next().expect("a program"))
            .args(line)
            .arg(self.config_file())
            .env("FAILPOINTS", self.failpoints)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (log, stderr) = (Arc::clone(&self.log), child.stderr.take().unwrap());
        let log_from = log.lock().unwrap().len();
        let reading = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                log.lock().unwrap().push(line);
            }
        });
        Started { child: Killed(child), reading, log_from }
    }

    /// Waits until the process has ended by itself.
    pub(crate) fn await_end(&mut self) -> Ended {
        let running = self.running.take().expect("the edge runs");
        self.end_of(running.process)
    }

    fn end_of(&self, mut process: Started) -> Ended {
        let status = eventually("it has ended", || process.child.0.try_wait().unwrap());
        process.reading.join().unwrap();
        let log = self.log.lock().unwrap()[process.log_from..].to_vec();
        Ended { status, log }
    }

    /// Waits until the running process has said this: a log line comes after what it tells of.
    pub(crate) fn await_logged(&self, what: &str) {
        eventually(&format!("logged: {what}"), || self.has_logged(what).then_some(()));
    }

    /// Whether the running process has said this by now.
    pub(crate) fn has_logged(&self, what: &str) -> bool {
        let log = self.log.lock().unwrap();
        log[self.running().process.log_from..].iter().any(|line| line.contains(what))
    }

    /// How often the edge has said this, in all its processes.
    pub(crate) fn times_logged(&self, what: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(what)).count()
    }

    /// Does something while nobody reads what the process logs.
    pub(crate) fn while_log_stands<T>(&self, work: impl FnOnce() -> T) -> T {
        let log = self.log.lock().unwrap();
        let worked = panic::catch_unwind(AssertUnwindSafe(work));
        // Not poisoned, whatever became of the work: the log is shown where a test fails.
        drop(log);
        worked.unwrap_or_else(|failed| panic::resume_unwind(failed))
    }

    /// Whether it has ended by itself within this time.
    pub(crate) fn ends_within(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let pid = self.running().process.child.0.id();
        let has_ended = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit_once(')').unwrap().1.starts_with(" Z")
        };
        while !has_ended() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        has_ended()
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the edge runs")
    }

    pub(crate) fn public(&self) -> SocketAddr {
        self.running().public
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.running().admin
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        // By name, as a certificate wants it.
        format!("{scheme}://localhost:{}/hooks/{SOURCE}", self.public().port())
    }

    pub(crate) fn caller(&self) -> Caller {
        Caller::connect(self.public()).unwrap()
    }

    /// Calls once, on a connection of its own, and gives back the receipt.
    pub(crate) fn accept(&self, body: &str) -> String {
        self.caller().call("POST", body.as_bytes()).unwrap().receipt()
    }

    /// A call for a client of one's own.
    pub(crate) fn request(&self, body: String) -> http::Request<String> {
        let request = http::Request::post(self.url()).header("X-Token", SECRET);
        request.body(body).unwrap()
    }

    /// Runs `weni-edge send` against it.
    pub(crate) fn send(&self, arguments: &[&str]) -> Output {
        let header = format!("X-Token: {SECRET}");
        let output = Command::new(PROGRAM)
            .args(["send", &self.url(), "--output", "json", "-H", &header])
            .args(arguments)
            .stdin(Stdio::null())
            .output();
        output.unwrap()
    }

    /// Answers of the admin listener: status and body.
    pub(crate) fn probe(&self, path: &str) -> (u16, String) {
        self.try_probe(path).unwrap()
    }

    fn try_probe(&self, path: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.running().admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        Ok((status, answer.split_once("\r\n\r\n").unwrap().1.to_owned()))
    }

    pub(crate) fn metrics(&self) -> Samples {
        Samples::parse(&self.probe("/metrics").1)
    }

    /// Waits until everything that was accepted is in Kafka.
    pub(crate) fn settle(&self) -> Samples {
        eventually("nothing is pending", || {
            let samples = self.metrics();
            (samples.total("journal_pending_callbacks", &[]) == 0).then_some(samples)
        })
    }

    /// Waits until the edge says that this is why nothing moves.
    pub(crate) fn await_blocked(&self, reason: &str) {
        let label = format!("reason=\"{reason}\"");
        eventually(&format!("blocked: {reason}"), || {
            (self.metrics().total("publish_blocked", &[&label]) == 1).then_some(())
        });
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        let Started { child, reading, .. } = self.running.take().expect("the edge runs").process;
        drop(child);
        reading.join().unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_child(&self.running().process.child.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub(crate) fn pid(&self) -> String {
        self.running().process.child.0.id().to_string()
    }

    /// SIGTERM, and the end of the process.
    pub(crate) fn stop(&mut self) {
        self.check_accounts();
        self.terminate();
    }

    /// The same in mid-work: a scrape shows the accounts in motion then.
    pub(crate) fn terminate(&mut self) {
        self.signal(Signal::TERM);
        let status = self.await_end().status;
        assert!(status.success(), "stopped with {status}");
    }

    /// Both equations of the contract.
    fn check_accounts(&self) {
        let mut seen = String::new();
        let balanced = (0..100).any(|_| {
            let samples = self.metrics();
            let total = |name| samples.total(name, &[]);
            let item = |outcome| samples.total("items_total", &[&format!("outcome=\"{outcome}\"")]);
            let callbacks = [
                total("callbacks_accepted_total") + total("callbacks_recovered_total"),
                total("journal_pending_callbacks") + total("callbacks_settled_total"),
            ];
            // Every item is accounted for; each callback has one, and each record is one.
            // A topic is counted from its first record on.
            let published: f64 = samples.of("publish_records_total").map(|(_, value)| value).sum();
            let records = [published as i64, item("published") + item("dead_lettered")];
            let items = [total("items_total"), total("callbacks_settled_total")];
            seen = format!("callbacks {callbacks:?}, records {records:?}, items {items:?}");
            let balanced =
                callbacks[0] == callbacks[1] && records[0] == records[1] && items[0] >= items[1];
            // A scrape is no snapshot: while something moves it may see one side of a step.
            thread::sleep(Duration::from_millis(if balanced { 0 } else { 50 }));
            balanced
        });
        assert!(balanced, "the accounts do not balance: {seen}");
    }

    fn check_log(&self) {
        for line in self.log.lock().unwrap().iter() {
            assert!(!line.contains(SECRET), "a secret was logged: {line}");
            assert!(!line.contains("wamid."), "a message id was logged: {line}");
            assert!(!line.contains("5582999990000"), "a phone number was logged: {line}");
        }
    }
}

impl Edge {
    /// What a process that still runs is doing: its threads, and its metrics that are not zero.
    fn show_state(&self) {
        let Some(running) = &self.running else { return };
        let tasks = format!("/proc/{}/task", running.process.child.0.id());
        for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
            let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            eprintln!("{} waits in {}", read("comm").trim(), read("wchan").trim());
        }
        let Ok(answer) = self.try_probe("/metrics") else { return };
        let is_set = |line: &&str| !line.starts_with('#') && !line.ends_with(" 0");
        answer.1.lines().filter(is_set).for_each(|line| eprintln!("{line}"));
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the edge's log:\n{}", self.log.lock().unwrap().join("\n"));
            self.show_state();
            return;
        }
        if self.running.is_some() {
            self.stop();
        }
        self.check_log();
    }
}

fn listening(line: &str) -> Option<[SocketAddr; 2]> {
    let line: Value = serde_json::from_str(line).ok()?;
    let address = |name: &str| line[name].as_str()?.parse().ok();
    (line["message"] == "listening").then_some([address("public")?, address("admin")?])
}

/// A scrape.
pub(crate) struct Samples(Vec<(String, f64)>);

impl Samples {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.strip_prefix("weni_edge_")?.to_owned(), value.parse().ok()?))
        };
        Self(lines.filter_map(sample).collect())
    }

    /// The sum of a metric's samples that have these labels; without any it fails, so that a name
    /// written wrongly is no zero.
    pub(crate) fn total(&self, name: &str, labels: &[&str]) -> i64 {
        assert!(self.of(name).next().is_some(), "there is no metric {name}");
        let has = |sample: &str| labels.iter().all(|label| sample.contains(label));
        self.of(name).filter(|(sample, _)| has(sample)).map(|(_, value)| *value).sum::<f64>() as i64
    }

    fn of(&self, name: &str) -> impl Iterator<Item = &(String, f64)> {
        self.0.iter().filter(move |(sample, _)| sample.split('{').next() == Some(name))
    }
}

/// One keep-alive connection that calls as Weni does: chunked, with the secret in a header.
pub(crate) struct Caller {
    stream: BufReader<TcpStream>,
}

/// What a call was answered.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// When the caller may try again.
    pub(crate) retry_after: Option<String>,
    pub(crate) body: String,
}

impl Answer {
    /// Whether the callback was in Kafka when the call was answered; none if nobody asked.
    pub(crate) fn is_in_kafka(&self) -> Option<bool> {
        serde_json::from_str::<Value>(&self.body).unwrap()["in_kafka"].as_bool()
    }

    /// The receipt of an accepted call.
    pub(crate) fn receipt(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.body);
        let body: Value = serde_json::from_str(&self.body).unwrap();
        body["receipt"].as_str().unwrap().to_owned()
    }
}

impl Caller {
    pub(crate) fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Calls and waits for the answer.
    ///
    /// # Errors
    /// When the connection ends before the whole answer is there.
    pub(crate) fn call(&mut self, method: &str, body: &[u8]) -> std::io::Result<Answer> {
        let mut request = format!(
            "{method} /hooks/{SOURCE} HTTP/1.1\r\nHost: localhost\r\nX-Token: {SECRET}\r\n\
             Transfer-Encoding: chunked\r\n\r\n{:x}\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        request.extend_from_slice(b"\r\n0\r\n\r\n");
        self.stream.get_mut().write_all(&request)?;
        self.answer()
    }

    fn answer(&mut self) -> std::io::Result<Answer> {
        let (mut status, mut length, mut retry_after) = (None, 0, None);
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            } else if status.is_none() {
                status = Some(line.split(' ').nth(1).unwrap().parse().unwrap());
            } else if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            } else if let Some(value) = line.strip_prefix("retry-after:") {
                retry_after = Some(value.trim().to_owned());
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        let (status, body) = (status.unwrap(), String::from_utf8(body).unwrap());
        Ok(Answer { status, retry_after, body })
    }
}
