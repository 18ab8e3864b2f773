//! `weni-edge dev` as a newcomer runs it: no configuration, no server.

use std::{
    io::{BufRead, BufReader, Lines, Read, Write},
    net::TcpStream,
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{PROGRAM, run};

/// A running `dev`, ended when it is dropped.
pub(crate) struct Dev {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    ready: Value,
    /// Its journal. A process that is killed leaves it.
    _place: TempDir,
}

impl Dev {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut dev = Self::spawn("json", arguments);
        dev.ready = dev.next();
        dev
    }

    fn for_people(arguments: &[&str]) -> Self {
        Self::spawn("human", arguments)
    }

    fn spawn(output: &str, arguments: &[&str]) -> Self {
        let place = TempDir::new().unwrap();
        let mut process = Command::new(PROGRAM)
            .args(["dev", "--output", output])
            .args(arguments)
            .env("TMPDIR", place.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines, ready: Value::Null, _place: place }
    }

    /// What stands after `text` in the next line for people that has it.
    fn after(&mut self, text: &str) -> String {
        let rest = |line: String| Some(line.split_once(text)?.1.trim().to_owned());
        self.lines.find_map(|line| rest(line.unwrap())).unwrap()
    }

    pub(crate) fn next(&mut self) -> Value {
        serde_json::from_str(&self.lines.next().unwrap().unwrap()).unwrap()
    }

    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.ready.pointer(pointer).and_then(Value::as_str).unwrap()
    }

    /// Interrupts it, as Ctrl-C does. Returns whether it ended well.
    fn interrupt(&mut self) -> bool {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.process.wait().unwrap().success()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended already.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[test]
fn the_demo_shows_the_life_of_a_few_messages_and_goes_on_until_it_is_interrupted() {
    let mut dev = Dev::start(&["--demo"]);
    let mut statuses = Vec::new();
    let (mut inbound, mut dead) = (0, 0);
    while dead == 0 || statuses.len() < 5 || inbound < 2 {
        let record = dev.next();
        let topic = record["topic"].as_str().unwrap();
        match record["headers"]["ce_type"].as_str() {
            Some("ai.weni.message_status.v1") => {
                assert_eq!(topic, dev.text("/topics/message_status"));
                assert_eq!(record["key"], record["value"]["message_id"]);
                assert_eq!(record["headers"]["ce_id"], record["value"]["event_id"]);
                statuses.push(record["value"]["status"].as_str().unwrap().to_owned());
            }
            Some("ai.weni.inbound_message.v1") => inbound += 1,
            Some(other) => panic!("Weni does not forward {other}"),
            None => {
                assert_eq!(topic, dev.text("/topics/dead_letter"));
                assert_eq!(record["headers"]["reason"], "invalid_json");
                assert!(record["value_base64"].is_string());
                dead += 1;
            }
        }
    }
    statuses.sort();
    assert_eq!(statuses, ["delivered", "failed", "read", "sent", "sent"]);
    assert!(dev.process.try_wait().unwrap().is_none(), "it goes on");
    assert!(dev.interrupt());
}

#[test]
fn what_it_prints_is_enough_to_call_it() {
    let mut dev = Dev::start(&[]);
    assert_eq!(dev.ready["ready"], true);
    let secret = dev.text("/headers/X-Token");
    let header = format!("X-Token: {secret}");
    let sent = Command::new(PROGRAM)
        .args(["send", dev.text("/hooks"), "-X", dev.text("/method"), "-H", &header])
        .args(["--sample", "read"])
        .output()
        .unwrap();
    assert!(sent.status.success(), "{sent:?}");
    let record = dev.next();
    assert_eq!(record["value"]["status"], "read");
    assert_eq!(record["topic"], dev.text("/topics/message_status"));
    assert!(dev.interrupt());
}

/// Calls with a message's id that commands a terminal.
fn call_hostile(hooks: &str, secret: &str) {
    let (address, source) = hooks.strip_prefix("http://").unwrap().split_once("/hooks/").unwrap();
    let body = "{\"statuses\":[{\"id\":\"wamid.\\u001b[2J\\u0007\\n\u{7f}\u{9b}31m\",\
                \"status\":\"read\",\"timestamp\":\"1763842385\",\"recipient_id\":\"5511900000001\"}]}";
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let head = format!(
        "POST /hooks/{source} HTTP/1.1\r\nHost: h\r\nX-Token: {secret}\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn what_it_prints_of_a_call_does_not_command_the_terminal() {
    let mut dev = Dev::start(&[]);
    call_hostile(dev.text("/hooks"), dev.text("/headers/X-Token"));
    let line = dev.lines.next().unwrap().unwrap();
    assert!(!line.contains(char::is_control), "{line:?}");
    let record: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(record["key"], "wamid.\u{1b}[2J\u{7}\n\u{7f}\u{9b}31m");
    assert!(dev.interrupt());

    let mut dev = Dev::for_people(&[]);
    let secret = dev.after("Chave X-Token, Valor ");
    let command = dev.after("weni-edge send ");
    dev.after("Every event");
    call_hostile(command.split(' ').next().unwrap(), &secret);
    let line = dev.lines.next().unwrap().unwrap();
    assert!(!line.contains(char::is_control), "{line:?}");
    assert!(line.ends_with(r"wamid.\u001b[2J\u0007\u000a\u007f\u009b31m"), "{line:?}");
    assert!(dev.interrupt());
}

#[test]
fn a_newcomer_is_told_how_weni_reaches_this_machine() {
    let mut dev = Dev::for_people(&[]);
    assert_eq!(dev.after("URL do webhook"), "https://YOUR-PUBLIC-ADDRESS/hooks/demo");
    let advice = dev.after("Weni cannot reach 127.0.0.1. Start `");
    assert_eq!(advice, format!("{PROGRAM} dev --listen 0.0.0.0:8080` instead."));
    assert!(dev.after("from the internet to port ").starts_with("8080 of this machine."));

    let mut dev = Dev::for_people(&["--listen", "0.0.0.0:0"]);
    assert_eq!(dev.after("URL do webhook"), "https://YOUR-PUBLIC-ADDRESS/hooks/demo");
    let advice = dev.after("from the internet to port ");
    // What is printed can be called from this machine.
    let called = dev.after("weni-edge send http://127.0.0.1:");
    let port = called.split('/').next().unwrap();
    assert!(advice.starts_with(&format!("{port} of this machine.")), "{advice}");
}

#[test]
fn the_demo_says_when_it_has_ended_and_goes_on() {
    let mut dev = Dev::for_people(&["--demo"]);
    dev.after("Every event");
    let lines = dev.lines.by_ref().map(Result::unwrap);
    let records: Vec<_> =
        lines.take_while(|line| !line.starts_with("The demo has ended")).collect();
    let records: Vec<_> = records.iter().filter(|line| !line.is_empty()).collect();
    assert!(records.len() > 5, "{records:?}");
    assert!(records.last().unwrap().contains("dead_letter"), "{records:?}");
    assert!(dev.process.try_wait().unwrap().is_none(), "it goes on");
    assert!(dev.interrupt());
}

#[test]
fn a_refused_call_is_explained_in_the_terminal() {
    let mut dev = Dev::for_people(&[]);
    let command = dev.after("weni-edge send ");
    let inspector = dev.after("Inspector");
    assert!(inspector.starts_with("http://127.0.0.1:") && inspector.contains("/inspector "));
    let hooks = command.split(' ').next().unwrap();
    let header = "X-Token: a secret that somebody mistyped";
    let sent = run(["send", hooks, "-H", header, "--sample", "read"]);
    assert!(!sent.status.success());
    dev.after("refused          401  X-Token came with 31 characters; the secret has 32.");
    let sent = run(["send", &hooks.replace("demo", "deno"), "-H", header, "--sample", "read"]);
    assert!(!sent.status.success());
    dev.after("refused          404  The path is /hooks/deno. Did you mean /hooks/demo?");
    assert!(dev.interrupt());
}
