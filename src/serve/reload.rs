//! Takes up changes of the configuration while the edge runs.
//!
//! On SIGHUP, and every two seconds, the file and the files of secrets are read again and
//! compared with what is known. Reading is the one way that notices every change: Kubernetes
//! swaps a symbolic link two directories up, network file systems notify nobody, and editors
//! replace files; all of it is a few kilobytes.
//!
//! Sources and the routes of events are taken up. Everything else is said once to need a restart.
//!
//! **Invariant:** a configuration that is not whole and right changes nothing. A file may be read
//! while it is being written, and half of one can look right with a source missing, whose calls
//! would be lost: so what the clock finds counts when it reads the same twice in a row.

use std::{convert::Infallible, io, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use crate::{
    config::{Config, ConfigError, Topics},
    metrics::Metrics,
};

const EVERY: Duration = Duration::from_secs(2);

/// Runs until it is dropped; `on_tick` is called as often as the configuration is read, for what
/// else is kept in files (certificates).
///
/// # Errors
/// Only when no handler for SIGHUP can be installed.
pub async fn run(
    path: Option<PathBuf>,
    config: Arc<ArcSwap<Config>>,
    metrics: Arc<Metrics>,
    on_tick: impl FnMut(),
) -> io::Result<Infallible> {
    run_every(EVERY, Reloader::new(path, config, metrics), on_tick).await
}

async fn run_every(
    every: Duration,
    mut reloader: Reloader,
    mut on_tick: impl FnMut(),
) -> io::Result<Infallible> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let asked = tokio::select! {
            _ = ticks.tick() => false,
            _ = hangup.recv() => true,
        };
        if asked {
            tracing::info!("reading the configuration again, on SIGHUP");
        }
        // Files of a network file system may take their time.
        let path = reloader.path.clone();
        let loaded = tokio::task::spawn_blocking(move || load(path)).await;
        // INVARIANT: loading does not panic, and nobody aborts it while this runs.
        reloader.see(loaded.expect("the configuration's reader"), asked);
        on_tick();
    }
}

/// Reads a configuration that can be served.
fn load(path: Option<PathBuf>) -> Result<Config, ConfigError> {
    let config = Config::load(path.as_deref())?;
    config.ready_to_serve().map(|()| config)
}

struct Reloader {
    path: Option<PathBuf>,
    config: Arc<ArcSwap<Config>>,
    metrics: Arc<Metrics>,
    last: Option<Result<Config, ConfigError>>,
    /// What was said last, so that it is not said every two seconds.
    error: Option<ConfigError>,
    waiting: Vec<&'static str>,
}

impl Reloader {
    fn new(path: Option<PathBuf>, config: Arc<ArcSwap<Config>>, metrics: Arc<Metrics>) -> Self {
        Self { path, config, metrics, last: None, error: None, waiting: Vec::new() }
    }

    /// Takes up what was read, if it is whole: read the same twice, or `asked` for by somebody.
    fn see(&mut self, loaded: Result<Config, ConfigError>, asked: bool) {
        let before = self.last.replace(loaded.clone());
        if asked || before.as_ref() == Some(&loaded) {
            self.take_up(loaded);
        }
    }

    fn take_up(&mut self, loaded: Result<Config, ConfigError>) {
        self.metrics.config_last_reload_successful.set(loaded.is_ok().into());
        match loaded {
            Err(error) if self.error.as_ref() == Some(&error) => {}
            Err(error) => {
                tracing::error!(%error, "the configuration is wrong; the old one stays");
                self.error = Some(error);
            }
            Ok(new) => {
                if self.error.take().is_some() {
                    tracing::info!("the configuration is right again");
                }
                self.swap(new);
            }
        }
    }

    fn swap(&mut self, new: Config) {
        let old = self.config.load_full();
        let waiting = needs_restart(&old, &new);
        if waiting != self.waiting {
            if !waiting.is_empty() {
                let sections = waiting.join(", ");
                tracing::warn!(%sections, "the configuration has changes that take a restart");
            }
            self.waiting = waiting;
        }
        // The position's topic is fixed when the journal is born.
        let topics = Topics { position: old.topics.position.clone(), ..new.topics };
        if new.sources == old.sources && topics == old.topics {
            return;
        }
        for source in new.sources.keys() {
            self.metrics.add_source(source);
        }
        let names: Vec<_> = new.sources.keys().map(String::as_str).collect();
        tracing::info!(sources = names.join(", "), ?topics, "took up a changed configuration");
        self.config.store(Arc::new(Config { sources: new.sources, topics, ..(*old).clone() }));
    }
}

/// Sections with changes that are not taken up.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let sections = [
        ("http", old.http != new.http),
        ("admin", old.admin != new.admin),
        ("journal", old.journal != new.journal),
        ("kafka", old.kafka != new.kafka),
        ("topics.position", old.topics.position != new.topics.position),
        ("duplicates", old.duplicates != new.duplicates),
        ("log", old.log != new.log),
    ];
    sections.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use rustix::process::{Signal, getpid, kill_process};
    use tempfile::TempDir;
    use tokio::sync::mpsc;

    use super::*;

    const FIRST: &str = "first-secret-of-22-cha";
    const SECOND: &str = "second-secret-of-23-ch";

    fn text(source: &str, secrets_file: &Path, more: &str) -> String {
        let secrets_file = secrets_file.display();
        format!(
            "[kafka]\nbootstrap_servers = \"localhost:9092\"\n\
             [sources.{source}]\nheader = \"X-Token\"\nsecrets_file = '{secrets_file}'\n{more}\n"
        )
    }

    /// A running edge's configuration, and the directory that it comes from.
    struct Edge {
        directory: TempDir,
        reloader: Reloader,
    }

    impl Edge {
        fn start() -> Self {
            let directory = TempDir::new().unwrap();
            let path = directory.path().join("weni-edge.toml");
            let secrets = directory.path().join("secrets");
            fs::write(&secrets, FIRST).unwrap();
            fs::write(&path, text("loja", &secrets, "")).unwrap();
            let config = Arc::new(ArcSwap::from_pointee(load(Some(path.clone())).unwrap()));
            let reloader = Reloader::new(Some(path), config, Arc::new(Metrics::default()));
            Self { directory, reloader }
        }

        fn write(&self, source: &str, more: &str) {
            let secrets = self.directory.path().join("secrets");
            let path = self.directory.path().join("weni-edge.toml");
            fs::write(path, text(source, &secrets, more)).unwrap();
        }

        fn tick(&mut self) -> Arc<Config> {
            self.reloader.see(load(self.reloader.path.clone()), false);
            self.reloader.config.load_full()
        }

        fn settle(&mut self) -> Arc<Config> {
            self.tick();
            self.tick()
        }

        fn is_successful(&self) -> bool {
            self.reloader.metrics.config_last_reload_successful.get() == 1
        }
    }

    fn secrets(config: &Config, source: &str) -> Vec<String> {
        config.sources[source].secrets.iter().map(|secret| secret.expose().into()).collect()
    }

    #[test]
    fn changed_sources_and_routes_are_taken_up_and_have_their_metrics() {
        let mut edge = Edge::start();
        edge.write("filial", "[topics]\nchannel_event = \"weni.dead-letter.v1\"");
        let config = edge.settle();
        assert_eq!(config.sources.keys().collect::<Vec<_>>(), ["filial"]);
        assert_eq!(config.topics.channel_event, "weni.dead-letter.v1");
        let metrics = String::from_utf8(edge.reloader.metrics.encode().unwrap()).unwrap();
        assert!(metrics.contains("callbacks_accepted_total{source=\"filial\"} 0"), "{metrics}");
    }

    #[test]
    fn what_takes_a_restart_stays_as_it_was_and_is_remembered_as_said() {
        let mut edge = Edge::start();
        let before = edge.settle();
        edge.write(
            "filial",
            "[http]\nmax_connections = 5\n[topics]\nposition = \"elsewhere\"\n[log]\nlevel = \"debug\"",
        );
        let after = edge.settle();
        assert!(after.sources.contains_key("filial"));
        assert_eq!(
            (&after.http, &after.topics, &after.log),
            (&before.http, &before.topics, &before.log)
        );
        assert_eq!(edge.reloader.waiting, ["http", "topics.position", "log"]);
        edge.write("filial", "");
        edge.settle();
        assert!(edge.reloader.waiting.is_empty());
    }

    #[test]
    fn nothing_is_swapped_when_nothing_has_changed() {
        let mut edge = Edge::start();
        let before = edge.reloader.config.load_full();
        edge.write("loja", "# a comment");
        assert!(Arc::ptr_eq(&before, &edge.settle()));
    }

    #[test]
    fn a_changed_file_of_secrets_is_taken_up() {
        let mut edge = Edge::start();
        fs::write(edge.directory.path().join("secrets"), format!("{SECOND}\n{FIRST}\n")).unwrap();
        assert_eq!(secrets(&edge.settle(), "loja"), [SECOND, FIRST]);
    }

    #[test]
    fn a_swapped_link_is_taken_up_as_kubernetes_swaps_it() {
        let mut edge = Edge::start();
        let at = |name: &str| edge.directory.path().join(name);
        for (version, secret) in [("..1", FIRST), ("..2", SECOND)] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("secrets"), secret).unwrap();
            let text = text("loja", &at("secrets"), "");
            fs::write(at(version).join("weni-edge.toml"), text).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        for name in ["secrets", "weni-edge.toml"] {
            fs::remove_file(at(name)).unwrap();
            symlink(format!("..data/{name}"), at(name)).unwrap();
        }
        let swapped = (at("..new"), at("..data"));
        assert_eq!(secrets(&edge.settle(), "loja"), [FIRST]);
        symlink("..2", &swapped.0).unwrap();
        fs::rename(&swapped.0, &swapped.1).unwrap();
        assert_eq!(secrets(&edge.settle(), "loja"), [SECOND]);
    }

    #[test]
    fn a_bad_file_keeps_the_old_configuration_and_the_metric_says_so_until_it_is_mended() {
        let mut edge = Edge::start();
        let before = edge.settle();
        let path = edge.directory.path().join("weni-edge.toml");
        for bad in ["[http]\nlistn = 1\n", "no TOML", ""] {
            fs::write(&path, bad).unwrap();
            assert!(Arc::ptr_eq(&before, &edge.settle()), "{bad}");
            assert!(!edge.is_successful() && edge.reloader.error.is_some(), "{bad}");
        }
        fs::remove_file(&path).unwrap();
        assert!(Arc::ptr_eq(&before, &edge.settle()));
        edge.write("filial", "");
        assert!(edge.settle().sources.contains_key("filial"));
        assert!(edge.is_successful() && edge.reloader.error.is_none());
    }

    #[test]
    fn a_file_that_is_still_being_written_is_not_taken_up() {
        let mut edge = Edge::start();
        let before = edge.settle();
        edge.write("half", "");
        assert!(Arc::ptr_eq(&before, &edge.tick()));
        edge.write("whole", "");
        assert!(Arc::ptr_eq(&before, &edge.tick()));
        assert_eq!(edge.tick().sources.keys().collect::<Vec<_>>(), ["whole"]);
    }

    #[tokio::test]
    async fn the_clock_reads_by_itself() {
        let edge = Edge::start();
        let config = edge.reloader.config.clone();
        edge.write("filial", "");
        let (ticked, mut ticks) = mpsc::unbounded_channel();
        let every = Duration::from_millis(1);
        let running = tokio::spawn(run_every(every, edge.reloader, move || {
            ticked.send(()).unwrap();
        }));
        for _ in 0..2 {
            ticks.recv().await.unwrap();
        }
        assert!(config.load().sources.contains_key("filial"));
        running.abort();
    }

    #[tokio::test]
    async fn sighup_reads_and_takes_up_at_once() {
        let mut edge = Edge::start();
        edge.settle();
        let config = edge.reloader.config.clone();
        let (ticked, mut ticks) = mpsc::unbounded_channel();
        // The first tick of the clock comes at once, the second not while this test runs.
        let every = Duration::from_secs(3600);
        let path = edge.reloader.path.clone().unwrap();
        let running = tokio::spawn(run_every(every, edge.reloader, move || {
            ticked.send(()).unwrap();
        }));
        ticks.recv().await.unwrap();
        fs::write(path, text("filial", &edge.directory.path().join("secrets"), "")).unwrap();
        kill_process(getpid(), Signal::HUP).unwrap();
        ticks.recv().await.unwrap();
        assert!(config.load().sources.contains_key("filial"));
        running.abort();
    }
}
