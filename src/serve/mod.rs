//! Starts, supervises and stops the parts of an edge.
//!
//! Start: the listeners are bound first, so that calls during the journal's recovery wait in the
//! kernel's queue instead of being refused. Then the journal is opened, then the publisher starts.
//! When the public listener or the journal fails, the process ends, and its restart is the
//! recovery. The publisher is replaced instead.
//!
//! Stop: the edge is unready and still accepts; it takes no new connections; it finishes requests
//! in progress; the publisher drains; the checkpoint is written. The next start publishes what is
//! left.

mod arrivals;
mod reload;
pub mod signals;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use arc_swap::ArcSwap;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::JoinHandle,
};

use self::{arrivals::Arrivals, reload::Reloader, signals::Signals};
use crate::{
    admin,
    callback::Callback,
    calls::RecentCalls,
    config::Config,
    http::{self, Phase, State, tls::Certificates},
    journal::{self, Journal},
    metrics::Metrics,
    publish::Publisher,
};

/// How many callers the kernel queues while the journal recovers or all places are taken. It is Linux'
/// default maximum. With the usual 128, further callers wait for seconds.
const BACKLOG: u32 = 4096;
/// How long the publisher may drain after the last call was answered.
const PUBLISH_DRAIN: Duration = Duration::from_secs(10);

/// A started edge.
pub struct Edge {
    /// Address of the public listener.
    pub public: SocketAddr,
    /// Address of probes and metrics.
    pub admin: SocketAddr,
    state: State,
    publisher: Publisher,
    phase: watch::Sender<Phase>,
    http: JoinHandle<()>,
    admin_task: JoinHandle<()>,
    arrivals: Arrivals,
    certificates: Option<Arc<Certificates>>,
    signals: Signals,
}

impl Edge {
    /// Starts everything. After its return a signal makes [`run`](Self::run) stop in order.
    ///
    /// # Errors
    /// If an address cannot be bound, the certificate cannot be read, the journal cannot be opened or
    /// signals cannot be handled. Never because of Kafka.
    pub async fn start(config: Config, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let tls = config.http.tls.as_ref();
        let certificates =
            tls.map(|tls| Certificates::load(tls, Arc::clone(&metrics))).transpose()?;
        let public = listen("http.listen", config.http.listen)?;
        let probes = listen("admin.listen", config.admin.listen)?;
        let (public_address, probes_address) = (public.local_addr()?, probes.local_addr()?);

        let journal = open_journal(&config, Arc::clone(&metrics))?;
        let config = Arc::new(ArcSwap::from_pointee(config));
        let publisher =
            Publisher::start(Arc::clone(&config), journal.clone(), Arc::clone(&metrics))
                .context("the publisher's threads cannot be started")?;
        let (phase, watched) = watch::channel(Phase::Serving);
        let calls = Arc::default();
        let state =
            State { config, journal, metrics, calls, phase: watched, public: public_address };
        let arrivals = Arrivals::restore(Arc::clone(&state.calls), state.journal.clone());
        Ok(Self {
            public: public_address,
            admin: probes_address,
            publisher,
            phase,
            http: tokio::spawn(http::serve(public, certificates.clone(), state.clone())),
            admin_task: tokio::spawn(admin::serve(probes, state.clone())),
            arrivals,
            state,
            certificates,
            signals: Signals::take_over()?,
        })
    }

    /// The last calls of each source.
    pub fn calls(&self) -> Arc<RecentCalls> {
        Arc::clone(&self.state.calls)
    }

    /// Takes up changes of the configuration and of the certificate until the process ends.
    pub fn reload_from(&self, file: Option<&Path>) {
        let reloader = Reloader::new(
            file.map(PathBuf::from),
            Arc::clone(&self.state.config),
            Arc::clone(&self.state.metrics),
            self.certificates.clone(),
        );
        tokio::spawn(async move {
            let Err(error) = reloader.run(reload::EVERY).await;
            tracing::error!(%error, "cannot handle SIGHUP: changed settings need a restart");
        });
    }

    /// Runs until a signal asks to stop, then stops in order.
    ///
    /// # Errors
    /// If the journal or the public listener failed: the process has to start again.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let keeping = tokio::spawn(self.arrivals.clone().keep());
        let journal = self.state.journal.clone();
        tokio::select! {
            answered = self.accept() => answered?,
            why = journal.failed() => bail!("the journal failed: {why}"),
        }
        let Self { publisher, admin_task, arrivals, .. } = self;
        keeping.abort();
        let left = tokio::task::spawn_blocking(move || {
            publisher.stop(Instant::now() + PUBLISH_DRAIN);
            journal.close();
            // Last, because nothing depends on it.
            arrivals.write();
            journal.pending()
        })
        .await?;
        admin_task.abort();
        tracing::info!(pending = left, "stopped; the next start publishes pending callbacks");
        Ok(())
    }

    /// Returns after a signal asked to stop, and the last call was answered.
    async fn accept(&mut self) -> anyhow::Result<()> {
        tokio::select! {
            () = self.signals.next() => {}
            ended = &mut self.http => bail!("the public listener ended: {ended:?}"),
        }
        let drain = self.state.config.load().http.drain;
        tracing::info!(
            seconds = drain.as_secs_f64(),
            "stopping; calls are accepted until http.drain is over, or until a second signal"
        );
        self.phase.send_replace(Phase::Draining);
        tokio::time::timeout(drain, self.signals.next()).await.ok();
        self.phase.send_replace(Phase::Closing);
        tracing::info!(
            seconds = PUBLISH_DRAIN.as_secs_f64(),
            "no more connections are accepted; after the last call, what is on disk is published for at \
             most this time"
        );
        (&mut self.http).await.context("the public listener")
    }
}

fn listen(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = bind(address).and_then(|socket| socket.listen(BACKLOG));
    listener.map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => {
                ". Another program has this port, perhaps a running edge: end it (ss -tanp shows it), or \
                 choose another port"
            }
            _ => "",
        };
        anyhow!("cannot listen on {address} ({key}): {error}{remedy}")
    })
}

/// Takes an address. `SO_REUSEADDR` does not allow one that another program listens on.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn open_journal(config: &Config, metrics: Arc<Metrics>) -> anyhow::Result<Journal> {
    let label = publish_label(config);
    let options = journal::Options {
        max_bytes: config.journal.max_bytes,
        min_free_bytes: config.journal.min_free_bytes,
        allow_volatile: config.journal.allow_volatile,
        accepted_at_ms: |record| {
            Callback::decode(record).ok().map(|callback| callback.received_at_ms)
        },
        label: label.clone(),
        ..journal::Options::new(&config.journal.directory)
    };
    // Not in `spawn_blocking`: where the OS refuses threads, that never runs and reports nothing.
    let journal = Journal::open(options, Arc::clone(&metrics))?;
    crate::publish::take_up_fork(&journal, &metrics);
    if let Some(why) = journal.failure() {
        bail!("the journal failed: {why}");
    }
    if journal.label() != label {
        bail!(
            "the journal was created with kafka.identity_prefix and topics.position {:?}, but the \
             configuration has {label:?}. Kafka keeps its position under the former: restore \
             them, or run `weni-edge journal fork` with the new ones",
            journal.label()
        );
    }
    Ok(journal)
}

/// The part of the configuration that is fixed when a journal is created.
pub(crate) fn publish_label(config: &Config) -> String {
    format!("{} {}", config.kafka.identity_prefix, config.topics.position)
}
