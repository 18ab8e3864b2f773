//! The load generator: `weni-edge send` in another process.

use std::{
    io::Read,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use weni_edge::caller;

use crate::{edge, process::Process};

/// The share of one core above which the generator may limit the figures.
const BOUND: f64 = 0.8;

/// What it sends: statuses of 1 KB, each of another message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) connections: u16,
    pub(crate) amount: Amount,
    /// Calls a second. `None` is as many as possible.
    pub(crate) rate: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Amount {
    Calls(u64),
    Time(Duration),
}

/// What the generator printed at its end.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) accepted: u64,
    pub(crate) calls_per_second: f64,
    all: caller::Summary,
    cpu: Duration,
}

/// A running generator.
#[derive(Debug)]
pub(crate) struct Running(Process);

impl Load {
    /// Starts to send.
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
        let all: caller::Summary = serde_json::from_str(&text)?;
        ensure!(all.accepted == all.calls, "not every call was accepted: {text}");
        let (accepted, calls_per_second) = (all.accepted, all.calls_per_second);
        Ok(Summary { accepted, calls_per_second, all, cpu })
    }
}

impl Summary {
    /// A percentile of the answers, in milliseconds: `p50`, `p99`.
    pub(crate) fn latency_ms(&self, name: &str) -> anyhow::Result<f64> {
        self.all.latency_ms.get(name).copied().with_context(|| format!("no {name} of the answers"))
    }

    /// From the first call to the last answer.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs_f64(self.all.seconds)
    }

    /// The share of one core that the generator itself used.
    pub(crate) fn generator_share(&self) -> f64 {
        self.cpu.as_secs_f64() / self.all.seconds
    }

    /// Whether the generator may have limited the figures.
    pub(crate) fn is_generator_bound(&self) -> bool {
        self.generator_share() > BOUND
    }
}
