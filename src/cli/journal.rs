//! `journal`: looks into a journal, and forks one that may not publish any more.

use std::{path::PathBuf, process::ExitCode, str::FromStr};

use anyhow::Context;
use clap::Subcommand;
use uuid::Uuid;

use super::prompt;
use crate::{
    config::Config,
    journal::{self, Inspection, Position, fork},
    serve::publish_label,
};

/// Look into a journal, or give it a new identity
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what a journal holds; a running edge is not disturbed
    Show {
        #[command(flatten)]
        place: Place,
    },
    /// Publish under a new identity, when this journal was copied, restored, or taken to another
    /// cluster
    ///
    /// A journal that is not what Kafka's position says (journal_diverged, position_reset,
    /// cluster_changed) accepts callbacks, but publishes none: nobody but you can know which copy is
    /// the right one. A fork goes on under a new name from where you say. A running edge takes it
    /// up at once, a stopped one at its next start.
    #[command(after_help = "Examples:\n  \
        weni-edge journal fork --config weni-edge.toml --from checkpoint\n  \
        weni-edge journal fork --config weni-edge.toml --from run:7")]
    Fork {
        #[command(flatten)]
        place: Place,
        /// Where to go on: `checkpoint` (what this journal knows as committed), `oldest` (everything
        /// that is left, again), `run:<n>` (the first callback of that run), `end` (nothing that is
        /// pending: it is left out)
        #[arg(long, value_name = "WHERE")]
        from: From,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Place {
    /// Configuration of the edge whose journal it is
    #[arg(short, long, env = "WENI_EDGE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy)]
enum From {
    Checkpoint,
    Oldest,
    Run(u32),
    End,
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "checkpoint" => Ok(Self::Checkpoint),
            "oldest" => Ok(Self::Oldest),
            "end" => Ok(Self::End),
            _ => text
                .strip_prefix("run:")
                .and_then(|run| run.parse().ok())
                .map(Self::Run)
                .ok_or_else(|| "use checkpoint, oldest, run:<n> or end".to_owned()),
        }
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (Command::Show { place } | Command::Fork { place, .. }) = &args.command;
    let config = Config::load(place.config.as_deref())?;
    let directory = &config.journal.directory;
    let inspection = journal::inspect(directory)
        .with_context(|| format!("cannot read the journal in {}", directory.display()))?;
    match args.command {
        Command::Show { .. } => show(&inspection),
        Command::Fork { from, yes, .. } => return fork(&config, &inspection, from, yes),
    }
    Ok(ExitCode::SUCCESS)
}

fn show(inspection: &Inspection) {
    println!("journal     {}", inspection.id);
    println!("published   {}", inspection.label);
    match &inspection.checkpoint {
        Some(checkpoint) => println!(
            "checkpoint  run {} index {}, cluster {}",
            checkpoint.position.run(),
            checkpoint.position.index(),
            checkpoint.cluster_id
        ),
        None => println!("checkpoint  none"),
    }
    let committed = committed(inspection);
    println!("pending     {} callbacks", inspection.count(committed, inspection.end));
    for run in &inspection.runs {
        println!("run {:<7} {} callbacks, id {}", run.number, run.records, run.id);
    }
}

/// What this journal knows as committed: the first position that is not.
fn committed(inspection: &Inspection) -> Position {
    inspection.checkpoint.as_ref().map_or(inspection.oldest, |kept| kept.position)
}

fn fork(
    config: &Config,
    inspection: &Inspection,
    from: From,
    yes: bool,
) -> anyhow::Result<ExitCode> {
    let committed = committed(inspection);
    let from = match from {
        From::Checkpoint => committed,
        From::Oldest => inspection.oldest,
        From::Run(run) => Position::new(run, 0),
        From::End => inspection.end,
    };
    let again = inspection.count(from, committed);
    let left_out = inspection.count(committed, from);
    println!(
        "The journal goes on under a new identity: {} callbacks will be published, {again} of them \
         again (with the same event_id) as far as this journal knows, and {left_out} that are \
         pending will be left out.",
        inspection.count(from, inspection.end)
    );
    if !yes && !prompt::confirmed()? {
        println!("Nothing was changed.");
        return Ok(ExitCode::FAILURE);
    }
    let request = fork::Request { new_id: Uuid::new_v4(), from, label: publish_label(config) };
    request.write(&config.journal.directory).context("cannot leave the request")?;
    println!("Asked for: a running edge takes it up at once, a stopped one at its next start.");
    Ok(ExitCode::SUCCESS)
}
