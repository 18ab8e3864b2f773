//! The composition root: what is started in which order, who supervises it, how it stops.
//!
//! Start: listeners are bound first (a call that comes while the journal recovers waits in the
//! kernel's queue instead of being refused), then the journal is opened, then the publisher starts,
//! which may take as long as Kafka does. `http` and the journal are essential: when one ends, the
//! process does, and its restart is the recovery. The publisher is replaced instead.
//!
//! Stop: unready and still accepting, then no new connections, then what is in flight, then the
//! publisher drains, then the checkpoint. What is left stays in the journal for the next start.

pub mod reload;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};

use crate::{
    admin,
    callback::Callback,
    config::{Config, Durability},
    http::{self, Phase, tls::Certificates},
    journal::{self, Journal},
    metrics::Metrics,
    publish::Publisher,
};

/// Callers who wait in the kernel's queue, while a journal recovers or all connections are taken:
/// the most that Linux grants unless told otherwise. With the usual 128 the next would be a second late.
const BACKLOG: u32 = 4096;
/// How long the publisher may drain after the last call was answered.
const PUBLISH_DRAIN: Duration = Duration::from_secs(10);

/// A started edge.
pub struct Edge {
    /// Where webhooks are taken.
    pub public: SocketAddr,
    /// Where probes and metrics are.
    pub admin: SocketAddr,
    config: Arc<ArcSwap<Config>>,
    journal: Journal,
    publisher: Publisher,
    phase: watch::Sender<Phase>,
    http: JoinHandle<()>,
    admin_task: JoinHandle<()>,
    certificates: Option<Arc<Certificates>>,
    metrics: Arc<Metrics>,
}

impl Edge {
    /// Starts everything.
    ///
    /// # Errors
    /// When an address cannot be bound, the certificate not be read or the journal not be opened.
    /// Never because of Kafka.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::default());
        for source in config.sources.keys() {
            metrics.add_source(source);
        }
        let tls = config.http.tls.as_ref();
        let certificates =
            tls.map(|tls| Certificates::load(tls, Arc::clone(&metrics))).transpose()?;
        let public = bind(config.http.listen)?;
        let probes = bind(config.admin.listen)?;
        let (public_address, probes_address) = (public.local_addr()?, probes.local_addr()?);

        let journal = open_journal(&config, Arc::clone(&metrics))?;
        let config = Arc::new(ArcSwap::from_pointee(config));
        let publisher =
            Publisher::start(Arc::clone(&config), journal.clone(), Arc::clone(&metrics))
                .context("the publisher's threads cannot be started")?;
        let (phase, watched) = watch::channel(Phase::Serving);
        let state = http::State {
            config: Arc::clone(&config),
            journal: journal.clone(),
            metrics: Arc::clone(&metrics),
        };
        let http = tokio::spawn(http::serve(public, certificates.clone(), state, watched.clone()));
        let state = admin::State {
            journal: journal.clone(),
            metrics: Arc::clone(&metrics),
            phase: watched,
        };
        Ok(Self {
            public: public_address,
            admin: probes_address,
            config,
            journal,
            publisher,
            phase,
            http,
            admin_task: tokio::spawn(admin::serve(probes, state)),
            certificates,
            metrics,
        })
    }

    /// Takes up changes of the configuration in `file` (and of the environment's files), and of the
    /// certificate, until the process ends.
    pub fn reload_from(&self, file: Option<&Path>) {
        let certificates = self.certificates.clone();
        let reloading = reload::run(
            file.map(PathBuf::from),
            Arc::clone(&self.config),
            Arc::clone(&self.metrics),
            move || certificates.iter().for_each(|certificates| certificates.reload()),
        );
        tokio::spawn(async move {
            let Err(error) = reloading.await;
            tracing::error!(%error, "changes of the configuration are not taken up");
        });
    }

    /// Runs until a signal asks to stop, then stops in order.
    ///
    /// # Errors
    /// When something essential failed: the process has to end and start again.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut signals = Signals::new()?;
        tokio::select! {
            () = signals.next() => {}
            why = self.journal.failed() => bail!("the journal failed: {why}"),
            ended = &mut self.http => bail!("the public listener ended: {ended:?}"),
        }
        let drain = self.config.load().http.drain;
        tracing::info!(
            seconds = drain.as_secs_f64(),
            "stopping: still accepting, a second signal shortens it"
        );
        self.phase.send_replace(Phase::Draining);
        tokio::select! {
            () = tokio::time::sleep(drain) => {}
            () = signals.next() => {}
            why = self.journal.failed() => bail!("the journal failed: {why}"),
        }
        self.phase.send_replace(Phase::Closing);
        tokio::select! {
            ended = &mut self.http => ended.context("the public listener")?,
            why = self.journal.failed() => bail!("the journal failed: {why}"),
        }
        let Self { publisher, journal, admin_task, .. } = self;
        let left = tokio::task::spawn_blocking(move || {
            publisher.stop(Instant::now() + PUBLISH_DRAIN);
            journal.close();
            journal.pending()
        })
        .await?;
        admin_task.abort();
        tracing::info!(
            pending = left,
            "stopped; what is pending is published after the next start"
        );
        Ok(())
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bound().with_context(|| format!("cannot listen on {address}"))
}

fn open_journal(config: &Config, metrics: Arc<Metrics>) -> anyhow::Result<Journal> {
    let label = publish_label(config);
    let options = journal::Options {
        max_bytes: config.journal.max_bytes,
        min_free_bytes: config.journal.min_free_bytes,
        durability: match config.journal.durability {
            Durability::Fsync => journal::Durability::Fsync,
            Durability::Os => journal::Durability::Os,
        },
        accepted_at_ms: |record| {
            Callback::decode(record).ok().map(|callback| callback.received_at_ms)
        },
        label: label.clone(),
        ..journal::Options::new(&config.journal.directory)
    };
    // Here and now, for nothing else is to be done yet: tokio would wait in silence for a thread
    // where there are no more.
    let journal = Journal::open(options, metrics)?;
    if journal.label() != label {
        bail!(
            "this journal was born with kafka.identity_prefix and topics.position {:?}, the \
             configuration says {label:?}: its position is kept under the old ones. Put them back, \
             or run `weni-edge journal fork` with the new ones",
            journal.label()
        );
    }
    Ok(journal)
}

/// What of the configuration is fixed when the journal is born.
pub(crate) fn publish_label(config: &Config) -> String {
    format!("{} {}", config.kafka.identity_prefix, config.topics.position)
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
