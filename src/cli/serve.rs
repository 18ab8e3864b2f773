//! `serve`: the edge itself.

use std::{process::ExitCode, sync::Arc};

use tokio::signal::unix::{SignalKind, signal};

use super::{ConfigFile, log};
use crate::{caller::on_this_machine, metrics::Metrics, serve::Edge};

/// Take callbacks, keep them on disk, publish them to Kafka
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    weni-edge serve --config weni-edge.toml\n  \
    WENI_EDGE__KAFKA__BOOTSTRAP_SERVERS=kafka:9092 weni-edge serve --config weni-edge.toml\n\n\
    SIGHUP reloads sources, secrets and topics; a changed file is noticed without it. \
    SIGTERM stops in order: calls are still accepted for http.drain. A second one shortens that.")]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    config.ready_to_serve()?;
    let metrics = Arc::new(Metrics::default());
    log::init(&config.log, metrics.log_lines_dropped_total.clone())?;
    if let Some(files) = config.exposed_files() {
        tracing::warn!(
            "every user of this machine may read or change files that hold secrets: run chmod o-rwx {files}"
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        // Without a handler, a reload that is asked for during a long recovery would end the process. The edge
        // reads its files anyway when it runs.
        let _hangup = signal(SignalKind::hangup())?;
        let edge = Edge::start(config, metrics).await?;
        edge.reload_from(args.config.path.as_deref());
        let inspector = format!("http://{}/inspector", on_this_machine(edge.admin));
        tracing::info!(public = %edge.public, admin = %edge.admin, inspector, "listening");
        edge.run().await
    });
    // Dropping it would wait for calls that hang on a disk, and only a restart mends those.
    runtime.shutdown_background();
    ended.map(|()| ExitCode::SUCCESS)
}
