//! The commands, one file or folder each. This file reads the arguments and calls the command.

mod check;
mod completions;
mod config;
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
#[command(after_help = "Examples:\n  \
    weni-edge dev --demo                          try it without anything installed\n  \
    weni-edge config --default > weni-edge.toml   begin a configuration\n  \
    weni-edge serve --config weni-edge.toml       run it")]
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
    Config(config::Args),
    Completions(completions::Args),
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The edge's configuration in TOML; variables WENI_EDGE__… override it
    #[arg(short = 'c', long = "config", env = "WENI_EDGE_CONFIG", value_name = "FILE")]
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
        Command::Config(args) => config::run(args),
        Command::Completions(args) => completions::run(args),
    };
    let code = outcome.unwrap_or_else(|error| {
        log::say(&format!("error: {error:#}"));
        ExitCode::from(2)
    });
    log::flush();
    code
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// A command, and all commands below it, with their examples.
    fn examples(command: &clap::Command, path: &str, all: &mut Vec<(String, String)>) {
        let path = format!("{path} {}", command.get_name());
        let help = command.get_after_long_help().or(command.get_after_help());
        all.push((path.clone(), help.map_or(String::new(), ToString::to_string)));
        command.get_subcommands().for_each(|command| examples(command, &path, all));
    }

    /// The arguments of an example's line, as a shell takes them. Two blanks end them.
    fn arguments(line: &str) -> Vec<String> {
        let line = line.split(['|', '>']).find(|part| part.contains("weni-edge ")).unwrap();
        let (_, line) = line.split_once("weni-edge ").unwrap();
        let quoted = line.split("  ").next().unwrap().trim().split('\'').enumerate();
        let words = quoted.flat_map(|(at, part)| match at % 2 {
            0 => part.split_whitespace().map(String::from).collect(),
            _ => vec![part.to_owned()],
        });
        words.collect()
    }

    #[test]
    fn every_command_has_examples_that_it_takes() {
        let mut all = Vec::new();
        examples(&Cli::command(), "", &mut all);
        assert!(all.len() > 10, "{all:?}");
        for (path, help) in all {
            let path = path.trim();
            assert!(help.contains("Examples:"), "{path} has no examples");
            // The terminal's width breaks them.
            let lines: Vec<_> = help.lines().filter(|line| *line != "Examples:").collect();
            let is_prose = |line: &str| !line.is_empty() && !line.starts_with(' ');
            let broken = lines.windows(2).find(|two| two.iter().all(|line| is_prose(line)));
            assert_eq!(broken, None, "{path}: a paragraph is one line");
            let whole = help.replace("\\\n", " ");
            let lines: Vec<_> = whole
                .lines()
                .filter(|line| line.starts_with("  ") && line.contains("weni-edge "))
                .collect();
            assert!(lines.iter().any(|line| line.contains(path)), "{path} is in no example");
            for line in lines {
                let given = [vec!["weni-edge".to_owned()], arguments(line)].concat();
                Cli::try_parse_from(given).unwrap_or_else(|error| panic!("{line}\n{error}"));
            }
        }
    }
}
