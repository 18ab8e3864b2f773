//! Signals that arrive before the edge runs.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::{Pid, Signal, kill_process},
};
use tempfile::TempDir;

use crate::harness::await_exit;

/// A process that is PID 1 ignores signals without a handler: that there is one shows in the exit code,
/// because without one the signal itself would end this process.
#[test]
fn a_stop_is_heard_while_the_journal_recovers() {
    let directory = TempDir::new().unwrap();
    let journal = directory.path().join("journal");
    fs::create_dir(&journal).unwrap();
    // Opening it waits for a writer that never comes: a recovery that lasts.
    mknodat(CWD, journal.join("identity"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let config = directory.path().join("weni-edge.toml");
    let text = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [sources.loja]\nheader = \"X-Token\"\nsecrets = [\"0123456789abcdef\"]\n\
         [journal]\ndirectory = {journal:?}\nmin_free_bytes = 0\nallow_volatile = true\n\
         [kafka]\nbootstrap_servers = \"127.0.0.1:1\"\n"
    );
    fs::write(&config, text).unwrap();
    let mut edge = Command::new(env!("CARGO_BIN_EXE_weni-edge"))
        .args(["serve", "--config", config.to_str().unwrap()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !journal.join("runs").exists() {
        assert!(Instant::now() < deadline && edge.try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&edge), Signal::TERM).unwrap();
    let status = await_exit(&mut edge);
    assert_eq!(status.code(), Some(143), "{status}");
}
