//! `replay`: publishes dead letters and quarantined files again.

use std::{
    io::{IsTerminal, stdin},
    process::ExitCode,
};

use anyhow::bail;
use clap::builder::PossibleValuesParser;
use jiff::Timestamp;

use super::{
    ConfigFile, Output,
    terminal::{confirmed, lines, print, progress_bar},
};
use crate::{
    event::Reason,
    replay::{self, ReplayOptions, ReplaySummary},
};

const EXAMPLES: &str = "\
Examples:
  What would happen:
    weni-edge replay --config weni-edge.toml --dry-run
  After max.message.bytes was raised:
    weni-edge replay --config weni-edge.toml --reason refused --reason too_large
  The letters of one source and day, without a question:
    weni-edge replay --config weni-edge.toml --source loja \\
      --since 2026-11-22T00:00:00Z --until 2026-11-23T00:00:00Z --yes

Beside the edge's own rights, replay needs to read the dead-letter topic, and to use the group and \
the transactional id weni-edge-replay.<dead-letter topic>.

The exit code is 0 when replay went through all letters, also if some are still dead; 1 when you \
said no; and 2 when it could not run, or not go on. The next run goes on from there.";

/// Publish dead letters and quarantined files again, with this program and this configuration
///
/// Each letter is replayed once, whatever fails in between and whichever filters you use one after
/// the other: the transaction that publishes a letter also notes in Kafka that it is done. A letter
/// that still cannot be read or published stays where it is, for a later program. The edge may run
/// at the same time.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,

    /// Only letters with this reason; may be repeated
    #[arg(long = "reason", value_name = "REASON",
          value_parser = PossibleValuesParser::new(Reason::ALL.map(Reason::as_str)))]
    reasons: Vec<String>,

    /// Only letters of this source; may be repeated
    #[arg(long = "source", value_name = "SOURCE")]
    sources: Vec<String>,

    /// Only callbacks received at this time or later, such as 2026-11-22T20:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,

    /// Only callbacks received before this time
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,

    /// Mark letters that are still dead as done: they stay in their topic, and no later replay
    /// tries them
    #[arg(long)]
    dismiss_dead: bool,

    /// Show what would happen, and change nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,

    /// Do not ask
    #[arg(long)]
    yes: bool,

    /// The summary's format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { config, reasons, sources, since, until, dismiss_dead, dry_run, yes, output } = args;
    let config = config.load()?;
    if config.kafka.bootstrap_servers.is_empty() {
        bail!("the configuration lacks kafka.bootstrap_servers: set it to the brokers' host:port");
    }
    let (reasons, sources) = (reasons.into_iter().collect(), sources.into_iter().collect());
    let mut options = ReplayOptions { reasons, sources, since, until, dismiss_dead, dry_run: true };
    if !dry_run && !yes && !stdin().is_terminal() {
        bail!(
            "standard input is no terminal, so there is no one to ask: add --yes to replay, or \
             --dry-run to see what would happen"
        );
    }
    if !yes {
        let summary = replay::run(&config, &options, &mut progress("reading"))?;
        show(&summary, output, "would be replayed")?;
        if dry_run {
            return Ok(ExitCode::SUCCESS);
        }
        if !confirmed()? {
            print("Nothing was changed.")?;
            return Ok(ExitCode::FAILURE);
        }
    }
    options.dry_run = false;
    let summary = replay::run(&config, &options, &mut progress("replaying"))?;
    show(&summary, output, "replayed")?;
    Ok(ExitCode::SUCCESS)
}

fn show(summary: &ReplaySummary, output: Output, done: &str) -> anyhow::Result<()> {
    if summary.no_progress && summary.total() > 0 {
        eprintln!(
            "note: Kafka has no progress of an earlier replay. It deletes that some time after the \
             replay (offsets.retention.minutes, by default 7 days). If there was a replay, leave out \
             with --since what it replayed"
        );
    }
    if summary.started_over {
        eprintln!(
            "note: the progress of an earlier replay is beyond the end of the dead-letter topic. The \
             topic was deleted and created again, or has lost its end, so all of its letters count as \
             not replayed. If it is the same topic, leave out with --since what was replayed"
        );
    }
    let text = match output {
        Output::Human => format!("{}{}", summary.table(), summary.line(done)),
        Output::Json => summary.json().to_string(),
    };
    // The summary repeats texts of the letters, which another program may have written.
    Ok(print(&lines(&text))?)
}

fn progress(what: &'static str) -> impl FnMut(u64, u64) {
    let bar = progress_bar(0, "{bar:40} {human_pos}/{human_len} {msg} {eta}").with_message(what);
    move |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    }
}
