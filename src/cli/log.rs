//! Where logs go and how they look: stderr, for people on a terminal, as JSON otherwise.

use std::io::{IsTerminal, stderr};

use anyhow::Context;
use tracing_subscriber::{Layer, filter::Targets, fmt, prelude::*};

use crate::config::{self, LogFormat};

/// Installs the process's log.
///
/// # Errors
/// When the level cannot be read or a log is installed already.
pub(super) fn init(config: &config::Log) -> anyhow::Result<()> {
    let filter: Targets = config.level.parse().context("log.level")?;
    let terminal = stderr().is_terminal();
    let log = fmt::layer().with_writer(stderr).with_ansi(terminal);
    let json = match config.format {
        LogFormat::Auto => !terminal,
        LogFormat::Human => false,
        LogFormat::Json => true,
    };
    let log = if json {
        log.json().flatten_event(true).with_current_span(false).boxed()
    } else {
        log.boxed()
    };
    tracing_subscriber::registry().with(log.with_filter(filter)).try_init().context("the log")
}
