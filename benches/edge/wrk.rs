//! The independent load generator: Debian's `wrk`, which costs the machine less than a server that
//! reads the body does.

use std::{
    io::Read,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::{edge, process::Process};

/// Two, so that one of them is not what is measured.
const THREADS: &str = "2";

/// As many calls as there is room for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wrk {
    pub(crate) connections: u16,
    pub(crate) time: Duration,
}

/// What `wrk.lua` printed in the end.
#[derive(Debug, Deserialize)]
pub(crate) struct Summary {
    /// Calls that were answered. At the end wrk leaves one more on each connection, at most.
    pub(crate) requests: u64,
    pub(crate) seconds: f64,
    errors: u64,
    /// Of the answers, in microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    #[serde(skip)]
    pub(crate) cpu: Duration,
}

/// # Errors
/// When there is no `wrk`.
pub(crate) fn look() -> anyhow::Result<()> {
    let found = Command::new("wrk").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.map(drop).context("wrk cannot be started; on Debian and Ubuntu: apt-get install wrk")
}

impl Wrk {
    /// Sends, and waits for the end.
    ///
    /// # Errors
    /// When a call was not answered, or not with success.
    pub(crate) fn send(self, url: &str) -> anyhow::Result<Summary> {
        let mut command = Command::new("wrk");
        command
            .args(["-t", THREADS, "-c", &self.connections.to_string()])
            .args(["-d", &format!("{}s", self.time.as_secs())])
            .args(["-H", &format!("{}: {}", edge::HEADER, edge::SECRET), "-s"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/edge/wrk.lua"))
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut process = Process::start("wrk", &mut command)?;
        let mut text = String::new();
        process.take_stdout()?.read_to_string(&mut text)?;
        let cpu = process.finish().with_context(|| text.clone())?;
        let last = text.lines().last().context("wrk printed nothing")?;
        let summary: Summary = serde_json::from_str(last).with_context(|| text.clone())?;
        ensure!(summary.errors == 0 && summary.requests > 0, "not every call succeeded: {text}");
        Ok(Summary { cpu, ..summary })
    }
}
