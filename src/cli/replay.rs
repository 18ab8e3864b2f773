//! `replay`: dead letters and quarantined files go into Kafka again.

use std::{
    io::{IsTerminal, Write, stderr, stdin, stdout},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::bail;
use clap::{ValueEnum, builder::PossibleValuesParser};
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use jiff::Timestamp;

use super::prompt;
use crate::{
    config::Config,
    event::Reason,
    publish::replay::{self, Filter, Options, Summary},
};

const EXAMPLES: &str = "\
Examples:
  What would happen:
    weni-edge replay --config weni-edge.toml --dry-run
  After max.message.bytes was raised:
    weni-edge replay --config weni-edge.toml --reason refused --reason too_large
  One source's of a day, without a question:
    weni-edge replay --config weni-edge.toml --source loja \\
      --since 2026-11-22T00:00:00Z --until 2026-11-23T00:00:00Z --yes

Rights, beside the edge's own: to read the group and to write with the transactional id
weni-edge-replay.<dead-letter topic>, and to read the dead-letter topic.

The exit code is 0 when it went through (letters that still are dead stay where they are), 1 when
you said no, and 2 when it could not run, or not go on; the next run goes on there.";

/// Publish dead letters and quarantined files again, by today's program and topics
///
/// Each letter is replayed once, whatever happens in between and whichever filters are used one
/// after the other: Kafka keeps which ones are done, in the same transactions. What still cannot be
/// read or published stays where it is, for a later program. The edge may run meanwhile.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    /// Configuration of the edge: Kafka, topics, and the journal with its quarantine
    #[arg(short, long, env = "WENI_EDGE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Only letters with this reason; may be given again
    #[arg(long = "reason", value_name = "REASON", value_parser = reason())]
    reasons: Vec<String>,

    /// Only letters of this source; may be given again
    #[arg(long = "source", value_name = "SOURCE")]
    sources: Vec<String>,

    /// Only callbacks received at this time or later, such as 2026-11-22T20:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,

    /// Only callbacks received before this time
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,

    /// Take letters that still are dead as done: no later replay looks at them (they stay in their
    /// topic)
    #[arg(long)]
    dismiss_dead: bool,

    /// Only show what would happen
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,

    /// Do not ask
    #[arg(long)]
    yes: bool,

    /// How the summary is printed
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Human,
    Json,
}

fn reason() -> PossibleValuesParser {
    PossibleValuesParser::new(Reason::ALL.map(Reason::as_str))
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { config, reasons, sources, since, until, dismiss_dead, dry_run, yes, output } = args;
    let config = Config::load(config.as_deref())?;
    if config.kafka.bootstrap_servers.is_empty() {
        bail!("the configuration lacks kafka.bootstrap_servers");
    }
    let reasons = reasons.into_iter().collect();
    let sources = sources.into_iter().collect();
    let options = Options { filter: Filter { reasons, sources, since, until }, dismiss_dead };
    if !dry_run && !yes && !stdin().is_terminal() {
        bail!("nobody to ask: say --yes if that is what you want, or --dry-run to see what it is");
    }
    if !yes {
        let summary = replay::look(&config, &options, &mut Bar::new("reading").watch())?;
        show(&summary, output, "would be replayed")?;
        if dry_run {
            return Ok(ExitCode::SUCCESS);
        }
        if !prompt::confirmed()? {
            println!("Nothing was changed.");
            return Ok(ExitCode::FAILURE);
        }
    }
    let summary = replay::run(&config, &options, &mut Bar::new("replaying").watch())?;
    show(&summary, output, "replayed")?;
    Ok(ExitCode::SUCCESS)
}

fn show(summary: &Summary, output: Output, done: &str) -> anyhow::Result<()> {
    if summary.no_progress && summary.total() > 0 {
        eprintln!(
            "note: Kafka keeps no progress of an earlier replay. It forgets it some time after the \
             last one (offsets.retention.minutes, by default 7 days): if there was one, leave out \
             with --since what it replayed"
        );
    }
    let text = match output {
        Output::Human => format!("{}{}\n", summary.table(), summary.line(done)),
        Output::Json => format!("{}\n", summary.json()),
    };
    Ok(stdout().write_all(text.as_bytes())?)
}

/// How far it is, on a terminal.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(what: &'static str) -> Self {
        if !stderr().is_terminal() {
            return Self(None);
        }
        // INVARIANT: the template is right; a run on a terminal shows it.
        let shown = "{bar:40} {human_pos}/{human_len} {msg} {eta}";
        let style = ProgressStyle::with_template(shown).expect("a template");
        let bar = ProgressBar::new(0).with_style(style).with_message(what);
        Self(Some(bar.with_finish(ProgressFinish::AndClear)))
    }

    fn watch(self) -> impl FnMut(u64, u64) {
        move |behind, total| {
            if let Some(bar) = &self.0 {
                bar.set_length(total);
                bar.set_position(behind);
            }
        }
    }
}
