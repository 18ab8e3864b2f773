//! The commands, one file or folder each. This file reads the arguments and calls the command.

mod check;
mod dev;
mod healthcheck;
mod journal;
mod log;
mod replay;
mod schema;
mod send;
mod serve;
mod tail;
mod terminal;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};

use crate::config::{Config, ConfigError};

/// Takes the webhook calls of Weni's WhatsApp channels and publishes them to Kafka, exactly once.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Try it without anything installed:\n  weni-edge dev --demo")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Dev(dev::Args),
    Check(check::Args),
    Send(send::Args),
    Journal(journal::Args),
    Healthcheck(healthcheck::Args),
    Replay(replay::Args),
    Schema(schema::Args),
    Tail(tail::Args),
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The edge's configuration in TOML; variables WENI_EDGE__… override it
    #[arg(short, long = "config", env = "WENI_EDGE_CONFIG", value_name = "FILE")]
    path: Option<PathBuf>,
}

impl ConfigFile {
    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.path.as_deref())
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Text for people
    #[default]
    Human,
    /// JSON for programs
    Json,
}

/// Runs the command that the process's arguments name.
///
/// The exit code is 0 when all went well, 1 when a part did not (`send`: a call was not accepted; `check`:
/// a problem; `healthcheck`: the edge is not ready), and 2 when the command could not run, or not go on.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Dev(args) => dev::run(args),
        Command::Check(args) => check::run(args),
        Command::Send(args) => send::run(args),
        Command::Journal(args) => journal::run(args),
        Command::Healthcheck(args) => healthcheck::run(args),
        Command::Replay(args) => replay::run(args),
        Command::Schema(args) => schema::run(args),
        Command::Tail(args) => tail::run(args),
    };
    let code = outcome.unwrap_or_else(|error| {
        log::say(&format!("error: {error:#}"));
        ExitCode::from(2)
    });
    log::flush();
    code
}
