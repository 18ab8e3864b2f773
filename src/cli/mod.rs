//! The commands, one file each; this one only reads arguments and dispatches.

mod courier;
mod dev;
mod healthcheck;
mod journal;
mod log;
mod prompt;
mod replay;
mod samples;
mod send;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    Send(send::Args),
    Journal(journal::Args),
    Healthcheck(healthcheck::Args),
    Replay(replay::Args),
}

/// Runs the command that the process's arguments name. Exit codes: 0 all went well, 1 not all did
/// (`send`: a call was not accepted; `healthcheck`: it is not ready), 2 it could not run, or not go
/// on.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Dev(args) => dev::run(args),
        Command::Send(args) => send::run(&args),
        Command::Journal(args) => journal::run(args),
        Command::Healthcheck(args) => healthcheck::run(args),
        Command::Replay(args) => replay::run(args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
