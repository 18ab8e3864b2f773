//! The load generator: `weni-edge send` in a process of its own.

use std::{
    collections::BTreeMap,
    io::Read,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::{edge, process::Process};

/// A share of one core above which the generator may be what is measured.
const BOUND: f64 = 0.8;

/// What is sent: statuses of 1 KB, each of a message of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) connections: u16,
    pub(crate) amount: Amount,
    /// Calls a second; as many as there is room for without.
    pub(crate) rate: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Amount {
    Calls(u64),
    Time(Duration),
}

/// What the generator said in the end.
#[derive(Debug, Deserialize)]
pub(crate) struct Summary {
    calls: u64,
    pub(crate) accepted: u64,
    seconds: f64,
    pub(crate) calls_per_second: f64,
    latency_ms: BTreeMap<String, f64>,
    #[serde(skip)]
    cpu: Duration,
}

/// A generator at work.
#[derive(Debug)]
pub(crate) struct Running(Process);

impl Load {
    /// Begins to send.
    pub(crate) fn start(self, url: &str) -> anyhow::Result<Running> {
        let mut command = Command::new(edge::BINARY);
        command
            .args(["send", url, "--sample", "delivered", "--size", "1024", "--output", "json"])
            .args(["-H", &format!("{}: {}", edge::HEADER, edge::SECRET)])
            .args(["--connections", &self.connections.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        match self.amount {
            Amount::Calls(calls) => command.args(["--count", &calls.to_string()]),
            Amount::Time(time) => command.args(["--duration", &format!("{}ms", time.as_millis())]),
        };
        if let Some(rate) = self.rate {
            command.args(["--rate", &rate.to_string()]);
        }
        Ok(Running(Process::start("the load generator", &mut command)?))
    }

    /// Sends, and waits for the end.
    pub(crate) fn send(self, url: &str) -> anyhow::Result<Summary> {
        self.start(url)?.finish()
    }
}

impl Running {
    /// Waits for the end.
    ///
    /// # Errors
    /// When a call was not accepted.
    pub(crate) fn finish(mut self) -> anyhow::Result<Summary> {
        let mut text = String::new();
        self.0.take_stdout()?.read_to_string(&mut text)?;
        let cpu = self.0.finish().with_context(|| text.clone())?;
        let summary: Summary = serde_json::from_str(&text)?;
        ensure!(summary.accepted == summary.calls, "not every call was accepted: {text}");
        Ok(Summary { cpu, ..summary })
    }
}

impl Summary {
    /// A percentile of the answers, in milliseconds: `p50`, `p99`.
    pub(crate) fn latency_ms(&self, name: &str) -> anyhow::Result<f64> {
        self.latency_ms.get(name).copied().with_context(|| format!("no {name} of the answers"))
    }

    /// From the first call to the last answer.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Of one core, what the generator itself took.
    pub(crate) fn generator_share(&self) -> f64 {
        self.cpu.as_secs_f64() / self.seconds
    }

    /// Whether the generator may be what was measured.
    pub(crate) fn is_generator_bound(&self) -> bool {
        self.generator_share() > BOUND
    }
}
