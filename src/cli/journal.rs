//! `journal`: shows what a journal holds, and forks a journal that must not publish any more.

use std::{
    io,
    os::unix::fs::{MetadataExt, chown},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::Subcommand;
use uuid::Uuid;

use super::{
    ConfigFile,
    terminal::{confirmed, print},
};
use crate::{
    config::Config,
    journal::{self, Directory, Identity, Inspection, Position, disk, fork},
    serve::publish_label,
};

/// Look into a journal, or give it a new identity
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    weni-edge journal show --config weni-edge.toml\n  \
    weni-edge journal fork --config weni-edge.toml --from checkpoint")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what a journal holds, without disturbing a running edge
    #[command(after_help = "Examples:\n  \
        weni-edge journal show --config weni-edge.toml\n  \
        WENI_EDGE__JOURNAL__DIRECTORY=/mnt/copy weni-edge journal show")]
    Show {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Publish under a new identity, after this journal was copied, restored, or moved to another
    /// cluster
    ///
    /// A journal that contradicts Kafka's position (journal_diverged, position_reset,
    /// cluster_changed) accepts callbacks but publishes none, because only you know which copy is
    /// right. A fork publishes under a new identity, from where you say, as soon as you restart the
    /// edge.
    #[command(after_help = "Examples:\n  \
        weni-edge journal fork --config weni-edge.toml --from checkpoint\n  \
        weni-edge journal fork --config weni-edge.toml --from run:7")]
    Fork {
        #[command(flatten)]
        config: ConfigFile,
        /// Where to go on: `checkpoint` (what this journal knows as committed), `oldest` (everything
        /// that is left, again), `run:<n>` (the first callback of that run), `end` (nothing that is
        /// pending: it is left out)
        #[arg(long, value_name = "WHERE", value_parser = fork_start)]
        from: ForkStart,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ForkStart {
    Checkpoint,
    Oldest,
    /// At the first callback of this run.
    Run(u32),
    End,
}

fn fork_start(text: &str) -> Result<ForkStart, &'static str> {
    match text {
        "checkpoint" => Ok(ForkStart::Checkpoint),
        "oldest" => Ok(ForkStart::Oldest),
        "end" => Ok(ForkStart::End),
        _ => {
            let run = text.strip_prefix("run:").and_then(|run| run.parse().ok());
            run.map(ForkStart::Run).ok_or("use checkpoint, oldest, run:<n> or end")
        }
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (Command::Show { config } | Command::Fork { config, .. }) = &args.command;
    let config = config.load()?;
    let directory = &config.journal.directory;
    let inspection = journal::inspect(Directory { disk: &disk::Real, path: directory })
        .with_context(|| format!("cannot read the journal in {}", directory.display()))?;
    match args.command {
        Command::Show { .. } => {
            show(&inspection)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Fork { from, yes, .. } => fork(&config, &inspection, from, yes),
    }
}

fn show(inspection: &Inspection) -> io::Result<()> {
    let checkpoint = inspection.checkpoint.as_ref().map_or("none".to_owned(), |kept| {
        let (at, cluster) = (kept.position, &kept.cluster_id);
        format!("run {} index {}, cluster {cluster}", at.run(), at.index())
    });
    let pending = inspection.count(committed(inspection), inspection.end);
    let mut lines = vec![
        format!("journal     {}", inspection.id),
        format!("published   {}", inspection.label),
        format!("checkpoint  {checkpoint}"),
        format!("pending     {pending} callbacks"),
    ];
    lines.extend(
        inspection
            .runs
            .iter()
            .map(|run| format!("run {:<7} {} callbacks, id {}", run.number, run.records, run.id)),
    );
    print(&lines.join("\n"))
}

/// The first position that this journal does not know as committed.
fn committed(inspection: &Inspection) -> Position {
    inspection.checkpoint.as_ref().map_or(inspection.oldest, |kept| kept.position)
}

fn fork(
    config: &Config,
    inspection: &Inspection,
    from: ForkStart,
    yes: bool,
) -> anyhow::Result<ExitCode> {
    let committed = committed(inspection);
    let from = match from {
        ForkStart::Checkpoint => committed,
        ForkStart::Oldest => inspection.oldest,
        ForkStart::Run(run) => {
            if !inspection.runs.iter().any(|one| one.number == run) {
                bail!("the journal has no run {run}: `weni-edge journal show` lists those it has");
            }
            Position::new(run, 0)
        }
        ForkStart::End => inspection.end,
    };
    let again = inspection.count(from, committed);
    let left_out = inspection.count(committed, from);
    print(&format!(
        "The journal will have a new identity: {} callbacks will be published, {again} of them \
         again (with the same event_id) as far as this journal knows. {left_out} pending callbacks \
         will be left out.",
        inspection.count(from, inspection.end)
    ))?;
    if !yes && !confirmed()? {
        print("Nothing was changed.")?;
        return Ok(ExitCode::FAILURE);
    }
    let identity = Identity { id: Uuid::new_v4(), label: publish_label(config), start: from };
    let directory = &config.journal.directory;
    let journal = Directory { disk: &disk::Real, path: directory };
    fork::request(journal, &identity).context("cannot write the request")?;
    // Root may run this command, and the edge's user must be able to read the request.
    let owner = directory.metadata().context("cannot read the owner of the journal's directory")?;
    chown(directory.join(fork::NAME), Some(owner.uid()), Some(owner.gid()))
        .context("cannot give the request to the owner of the journal's directory")?;
    print(
        "The request is in the journal's directory. Now restart the edge: it forks the journal.",
    )?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_start_of_a_fork_is_refused() {
        assert_eq!(fork_start("run:7"), Ok(ForkStart::Run(7)));
        assert_eq!(fork_start("end"), Ok(ForkStart::End));
        for mistyped in ["", "End", "run", "run:", "run:-1", "run:seven", "7"] {
            assert!(fork_start(mistyped).is_err(), "{mistyped:?}");
        }
    }
}
