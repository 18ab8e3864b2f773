//! What this program does as a child of itself. Each child ends when its standard input ends, and
//! so together with its parent.

use std::{
    io::{BufRead, Write, stdin, stdout},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};
use axum::{Router, body::Bytes, routing::any};
use clap::ValueEnum;
use rdkafka::mocking::MockCluster;
use tokio::net::TcpListener;

use crate::{
    comparators,
    process::Process,
    topics::{EVENTS, MOCK_PREFIX, OUTSIDE, PARTITIONS, POSITION, topic},
};

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Child {
    /// `axum::serve` and a handler that reads the body.
    Baseline,
    /// A mock cluster of one broker; `down` and `up` on standard input.
    Kafka,
    /// Answers from memory.
    FromMemory,
    /// Awaits Kafka's acknowledgement.
    Acknowledged,
}

/// Runs until standard input ends. Children that publish find Kafka at `bootstrap`.
pub(crate) fn run(child: Child, bootstrap: &str) -> anyhow::Result<()> {
    match child {
        Child::Baseline => baseline(),
        Child::Kafka => kafka(),
        Child::FromMemory => comparators::from_memory(bootstrap),
        Child::Acknowledged => comparators::acknowledged(bootstrap),
    }
}

/// Starts a child. It prints its address as its first line.
pub(crate) fn start(
    child: Child,
    bootstrap: &str,
) -> anyhow::Result<(Process, Conversation, String)> {
    let (name, argument) = match child {
        Child::Baseline => ("the baseline", "baseline"),
        Child::Kafka => ("the mock cluster", "kafka"),
        Child::FromMemory => ("the comparator that answers from memory", "from-memory"),
        Child::Acknowledged => ("the comparator that awaits Kafka", "acknowledged"),
    };
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--child", argument, "--bootstrap", bootstrap]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = Process::start(name, &mut command)?;
    let mut conversation = Conversation {
        to: process.take_stdin()?,
        from: std::io::BufReader::new(process.take_stdout()?),
    };
    let address = conversation.listen()?;
    Ok((process, conversation, address))
}

/// Standard input and output of a child.
#[derive(Debug)]
pub(crate) struct Conversation {
    to: std::process::ChildStdin,
    from: std::io::BufReader<std::process::ChildStdout>,
}

impl Conversation {
    /// Sends a line and waits for the answer.
    pub(crate) fn ask(&mut self, line: &str) -> anyhow::Result<String> {
        writeln!(self.to, "{line}")?;
        self.listen()
    }

    fn listen(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        if line.is_empty() {
            bail!("the child has ended");
        }
        Ok(line.trim_end().to_owned())
    }
}

fn baseline() -> anyhow::Result<()> {
    let handler = async |body: Bytes| if body.is_empty() { "empty\n" } else { "accepted\n" };
    serve(Router::new().route("/hooks/bench", any(handler)), String::new)
}

/// Serves with axum's defaults, and answers each line on standard input with a `report`.
pub(crate) fn serve(
    app: Router,
    report: impl Fn() -> String + Send + 'static,
) -> anyhow::Result<()> {
    std::thread::spawn(move || {
        for _ in stdin().lines().map_while(Result::ok) {
            // It fails only if the parent has ended, which also ends this process.
            say(&report()).ok();
        }
        std::process::exit(0);
    });
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        say(&listener.local_addr()?.to_string())?;
        Ok(axum::serve(listener, app).await?)
    })
}

fn kafka() -> anyhow::Result<()> {
    let cluster = MockCluster::new(1)?;
    for name in EVENTS {
        cluster.create_topic(&topic(MOCK_PREFIX, name), PARTITIONS, 1)?;
    }
    for name in [POSITION, OUTSIDE] {
        cluster.create_topic(&topic(MOCK_PREFIX, name), 1, 1)?;
    }
    say(&cluster.bootstrap_servers())?;
    for line in stdin().lines() {
        match line?.as_str() {
            "down" => cluster.broker_down(-1)?,
            "up" => cluster.broker_up(-1)?,
            other => bail!("{other:?} is neither down nor up"),
        }
        say("done")?;
    }
    Ok(())
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    out.flush().context("standard output")
}
