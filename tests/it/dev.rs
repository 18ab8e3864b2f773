//! `weni-edge dev` as a newcomer runs it: no configuration, no server.

use std::{
    io::{BufRead, BufReader, Lines},
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::Value;

/// A running `dev`, ended when it is dropped.
struct Dev {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    ready: Value,
}

impl Dev {
    fn start(arguments: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_weni-edge"))
            .args(["dev", "--output", "json"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let ready = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        Self { process, lines, ready }
    }

    fn next(&mut self) -> Value {
        serde_json::from_str(&self.lines.next().unwrap().unwrap()).unwrap()
    }

    fn text(&self, pointer: &str) -> &str {
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
    let (mut inbound, mut other, mut dead) = (0, 0, 0);
    while dead == 0 || statuses.len() < 5 || inbound < 2 || other < 1 {
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
            Some(_) => other += 1,
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
    let sent = Command::new(env!("CARGO_BIN_EXE_weni-edge"))
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
