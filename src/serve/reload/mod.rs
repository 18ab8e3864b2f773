//! Takes up changes of the configuration while the edge runs.
//!
//! Every two seconds, and on SIGHUP, the configuration and the files of secrets are read and
//! compared with the last version. Only reading notices every change: Kubernetes swaps a symbolic
//! link two directories up, network file systems send no notifications, and editors replace files.
//!
//! Sources, topics of events, `http.public_url`, the admin tokens and the certificate are taken up.
//! For all other changes one line of the log says that they need a restart. An error is logged once,
//! and the metric is 0 until it is mended.
//!
//! **Invariant:** an incomplete configuration changes nothing. A file may be read while it is
//! written, and half of it can be valid with a source missing, whose calls would then be lost. So a
//! change that the timer finds counts when two reads in a row are equal.

use std::{convert::Infallible, io, path::PathBuf, sync::Arc, thread, time::Duration};

use arc_swap::ArcSwap;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    config::{Admin, Config, Http, Topics},
    http::{add_source, tls::Certificates},
    metrics::Metrics,
};

/// Time between two reads.
pub(super) const EVERY: Duration = Duration::from_secs(2);
/// A file that takes longer counts as one that cannot be read.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads a configuration that can be served.
fn load(path: Option<PathBuf>) -> Result<Config, String> {
    let loaded = Config::load(path.as_deref());
    let checked = loaded.and_then(|config| config.ready_to_serve().map(|()| config));
    checked.map_err(|error| error.to_string())
}

/// Reads the configuration, its files and the certificate again and again.
pub(super) struct Reloader {
    path: Option<PathBuf>,
    config: Arc<ArcSwap<Config>>,
    metrics: Arc<Metrics>,
    certificates: Option<Arc<Certificates>>,
    config_reader: BackgroundReader,
    certificate_reader: BackgroundReader,
    last: Option<Result<Config, String>>,
    /// Logged errors, so that they are not logged every two seconds.
    error: Option<String>,
    certificate_error: Option<String>,
    /// Sections with changes that need a restart.
    waiting: Vec<&'static str>,
}

impl Reloader {
    pub(super) fn new(
        path: Option<PathBuf>,
        config: Arc<ArcSwap<Config>>,
        metrics: Arc<Metrics>,
        certificates: Option<Arc<Certificates>>,
    ) -> Self {
        Self {
            path,
            config,
            metrics,
            certificates,
            config_reader: BackgroundReader::new(READ_TIMEOUT),
            certificate_reader: BackgroundReader::new(READ_TIMEOUT),
            last: None,
            error: None,
            certificate_error: None,
            waiting: Vec::new(),
        }
    }

    /// Runs until it is dropped. Fails if no handler for SIGHUP can be installed.
    pub(super) async fn run(mut self, period: Duration) -> io::Result<Infallible> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                _ = ticks.tick() => false,
                _ = hangup.recv() => true,
            };
            if asked {
                tracing::info!("reading the configuration again, on SIGHUP");
            }
            self.round(asked).await;
        }
    }

    /// Reads everything once. A file that hangs delays the others but does not stop them.
    async fn round(&mut self, asked: bool) {
        let (path, certificates) = (self.path.clone(), self.certificates.clone());
        let certificate = async {
            let certificates = certificates?;
            let reload = move || certificates.reload(asked).map_or(Ok(()), Err);
            self.certificate_reader.read(reload).await.err()
        };
        let config = self.config_reader.read(move || load(path));
        let (loaded, certificate_error) = tokio::join!(config, certificate);
        let before = self.last.replace(loaded.clone());
        if asked || before.as_ref() == Some(&loaded) {
            self.take_up(loaded);
        }
        if certificate_error != self.certificate_error {
            match &certificate_error {
                Some(error) => tracing::error!(
                    error,
                    "the new certificate cannot be used; the certificate before it stays in use"
                ),
                None => tracing::info!("the certificate can be used again"),
            }
            self.certificate_error = certificate_error;
        }
        let succeeded = self.error.is_none() && self.certificate_error.is_none();
        self.metrics.config_last_reload_successful.set(succeeded.into());
    }

    fn take_up(&mut self, loaded: Result<Config, String>) {
        match loaded {
            Err(error) if self.error.as_ref() == Some(&error) => {}
            Err(error) => {
                tracing::error!(error, "the configuration is wrong; the old one stays in use");
                self.error = Some(error);
            }
            Ok(new) => {
                if self.error.take().is_some() {
                    tracing::info!("the configuration can be used again");
                }
                self.swap(new);
            }
        }
    }

    fn swap(&mut self, new: Config) {
        let old = self.config.load_full();
        let next = merged(&old, &new);
        let waiting = needs_restart(&next, &new);
        if waiting != self.waiting && !waiting.is_empty() {
            let sections = waiting.join(", ");
            tracing::warn!(%sections, "these sections have changes that need a restart");
        }
        self.waiting = waiting;
        if next == *old {
            return;
        }
        for source in next.sources.keys() {
            add_source(&self.metrics, source);
        }
        let is_configured = |source: &String| next.sources.contains_key(source);
        self.metrics.remove_sources(old.sources.keys(), is_configured);
        let names: Vec<_> = next.sources.keys().map(String::as_str).collect();
        let (sources, topics) = (names.join(", "), &next.topics);
        tracing::info!(sources, ?topics, "took up a changed configuration");
        self.config.store(Arc::new(next));
    }
}

/// The old configuration with all changes of the new one that need no restart.
fn merged(old: &Config, new: &Config) -> Config {
    Config {
        sources: new.sources.clone(),
        // The topic of the position is fixed when the journal is created.
        topics: Topics { position: old.topics.position.clone(), ..new.topics.clone() },
        http: Http { public_url: new.http.public_url.clone(), ..old.http.clone() },
        admin: Admin { listen: old.admin.listen, ..new.admin.clone() },
        ..old.clone()
    }
}

/// Sections of the new configuration that differ from the one in use.
fn needs_restart(used: &Config, new: &Config) -> Vec<&'static str> {
    let sections = [
        ("http", used.http != new.http),
        ("admin", used.admin != new.admin),
        ("journal", used.journal != new.journal),
        ("kafka", used.kafka != new.kafka),
        ("topics.position", used.topics.position != new.topics.position),
        ("log", used.log != new.log),
    ];
    sections.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| name).collect()
}

/// Reads files that may hang, such as those of a network file system that is away. It reads on its own
/// thread, because the end of the runtime waits for blocking tasks, and on one at a time: otherwise a
/// file that hangs would cost a thread every two seconds.
struct BackgroundReader {
    timeout: Duration,
    hanging: Option<thread::JoinHandle<()>>,
}

impl BackgroundReader {
    fn new(timeout: Duration) -> Self {
        Self { timeout, hanging: None }
    }

    /// The result of `read`. Fails if that takes too long, or while an earlier `read` hangs. The result of
    /// one that took too long is discarded.
    async fn read<T: Send + 'static>(
        &mut self,
        read: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let hangs = || {
            let seconds = self.timeout.as_secs();
            format!("reading the files takes longer than {seconds} s; look at the file system")
        };
        if self.hanging.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Err(hangs());
        }
        let (done, result) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("reload".to_owned())
            // The receiver is gone if this took too long, or if the edge has stopped.
            .spawn(move || drop(done.send(read())))
            .map_err(|error| format!("no thread can be started to read files: {error}"))?;
        match timeout(self.timeout, result).await {
            Ok(read) => read.map_err(|_| "the thread that reads files panicked".to_owned())?,
            Err(_) => {
                self.hanging = Some(thread);
                Err(hangs())
            }
        }
    }
}

#[cfg(test)]
mod tests;
