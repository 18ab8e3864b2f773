//! `config`: shows the configuration in effect.

use std::process::ExitCode;

use super::{
    ConfigFile, Output,
    terminal::{lines, print},
};
use crate::config::{Config, DEFAULT_FILE, to_toml};

/// Show the configuration in effect, and where each value comes from
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    weni-edge config --config weni-edge.toml\n  \
    WENI_EDGE__HTTP__DRAIN=5s weni-edge config --config weni-edge.toml\n  \
    weni-edge config --default > weni-edge.toml\n\n\
    Variables override the file, and the file overrides the defaults. Secrets are hidden. \
    The exit code is 0 if the configuration is valid. Otherwise it is 2, and standard error says \
    why. `weni-edge check` looks at what it names, too: certificates, ports, disk and Kafka.")]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,

    /// Print a commented file with every key and its default instead
    #[arg(long, conflicts_with = "output")]
    default: bool,

    /// TOML for people, or a list of keys in JSON
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.default {
        print(DEFAULT_FILE)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (config, values) = Config::load_effective(args.config.path.as_deref())?;
    let text = match args.output {
        Output::Human => to_toml(&values),
        Output::Json => serde_json::to_string(&values)?,
    };
    print(&lines(&text))?;
    config.ready_to_serve()?;
    Ok(ExitCode::SUCCESS)
}
