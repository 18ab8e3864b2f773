//! Where logs go and how they look: stderr, for people on a terminal, as JSON otherwise.

use std::io::{IsTerminal, stderr};

use anyhow::Context;
use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{self, LogFormat};

/// Installs the process's log.
///
/// # Errors
/// When the level cannot be read or a log is installed already.
pub(super) fn init(config: &config::Log) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.level).context("log.level")?;
    let terminal = stderr().is_terminal();
    let log = fmt().with_env_filter(filter).with_writer(stderr).with_ansi(terminal);
    let json = match config.format {
        LogFormat::Auto => !terminal,
        LogFormat::Human => false,
        LogFormat::Json => true,
    };
    let installed = if json {
        log.json().flatten_event(true).with_current_span(false).try_init()
    } else {
        log.try_init()
    };
    installed.map_err(anyhow::Error::from_boxed).context("the log")
}
