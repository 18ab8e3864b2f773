//! `serve`: the edge itself.

use std::{path::PathBuf, process::ExitCode};

use crate::{config::Config, serve::Edge};

/// Take callbacks, keep them on disk, publish them to Kafka
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    weni-edge serve --config weni-edge.toml\n  \
    WENI_EDGE__KAFKA__BOOTSTRAP_SERVERS=kafka:9092 weni-edge serve --config weni-edge.toml\n\n\
    SIGHUP reads sources, secrets and topics again (a changed file is noticed by itself).\n\
    SIGTERM stops in order: http.drain long it still accepts; a second one shortens that.")]
pub(super) struct Args {
    /// Configuration in TOML; WENI_EDGE__… in the environment counts more
    #[arg(short, long, env = "WENI_EDGE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(args.config.as_deref())?;
    config.ready_to_serve()?;
    super::log::init(&config.log)?;
    end_with_main_thread();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let edge = Edge::start(config).await?;
        edge.reload_from(args.config.as_deref());
        tracing::info!(public = %edge.public, admin = %edge.admin, "listening");
        edge.run().await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Where threads are missing, tokio panics while it builds its runtime, and unwinding would wait for
/// ever for those that it has got.
fn end_with_main_thread() {
    let report = std::panic::take_hook();
    let main = std::thread::current().id();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if std::thread::current().id() == main {
            std::process::exit(101);
        }
    }));
}
