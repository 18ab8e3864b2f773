//! An independent load generator: Debian's `wrk`, which uses less CPU than a server that reads the
//! body.

use std::{
    io::Read,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::{edge, process::Process};

/// Two, so that wrk's thread is not the bottleneck.
const THREADS: &str = "2";

/// A load of as many calls as the server answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wrk {
    pub(crate) connections: u16,
    pub(crate) time: Duration,
}

/// What each of the calls is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// Of the body, unless its elements need more.
    pub(crate) bytes: u32,
    /// Statuses in the body.
    pub(crate) elements: u32,
    /// Sources that the calls go to in turn.
    pub(crate) sources: u32,
    /// Whether the body is one chunk, instead of having a Content-Length.
    pub(crate) is_chunked: bool,
}

/// One status of 1 KB.
pub(crate) const ONE_KB: Call = Call { bytes: 1024, elements: 1, sources: 1, is_chunked: false };

/// What `wrk.lua` printed at the end.
#[derive(Debug, Deserialize)]
pub(crate) struct Summary {
    /// Calls that were answered. When wrk ends, at most one more is under way on each connection.
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
    pub(crate) fn send(self, url: &str, call: Call) -> anyhow::Result<Summary> {
        let Call { bytes, elements, sources, is_chunked } = call;
        let mut command = Command::new("wrk");
        command
            .args(["-t", THREADS, "-c", &self.connections.to_string()])
            .args(["-d", &format!("{}s", self.time.as_secs())])
            .args(["-H", &format!("{}: {}", edge::HEADER, edge::SECRET), "-s"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/edge/wrk.lua"))
            .args([url, "--", if is_chunked { "chunked" } else { "length" }])
            .args([bytes, elements, sources].map(|number| number.to_string()))
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
