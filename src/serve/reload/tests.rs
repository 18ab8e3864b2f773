use std::{fs, os::unix::fs::symlink, path::Path};

use rustix::process::{Signal, getpid, kill_process};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

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
        let reloader = Reloader::new(Some(path), config, Arc::default(), None);
        Self { directory, reloader }
    }

    fn write(&self, source: &str, more: &str) {
        let secrets = self.directory.path().join("secrets");
        let path = self.directory.path().join("weni-edge.toml");
        fs::write(path, text(source, &secrets, more)).unwrap();
    }

    async fn tick(&mut self) -> Arc<Config> {
        self.reloader.round(false).await;
        self.reloader.config.load_full()
    }

    async fn settle(&mut self) -> Arc<Config> {
        self.tick().await;
        self.tick().await
    }

    fn is_successful(&self) -> bool {
        self.reloader.metrics.config_last_reload_successful.get() == 1
    }
}

fn secrets(config: &Config, source: &str) -> Vec<String> {
    config.sources[source].secrets.iter().map(|secret| secret.expose().into()).collect()
}

#[tokio::test]
async fn changed_sources_and_routes_are_taken_up_and_have_their_metrics() {
    let mut edge = Edge::start();
    edge.write("filial", "[topics]\nchannel_event = \"weni.dead-letter.v1\"");
    let config = edge.settle().await;
    assert_eq!(config.sources.keys().collect::<Vec<_>>(), ["filial"]);
    assert_eq!(config.topics.channel_event, "weni.dead-letter.v1");
    let metrics = edge.reloader.metrics.encode();
    assert!(metrics.contains("callbacks_accepted_total{source=\"filial\"} 0"), "{metrics}");
}

#[tokio::test]
async fn a_source_that_a_reload_takes_away_leaves_no_series_but_its_accepted_callbacks() {
    let mut edge = Edge::start();
    let metrics = Arc::clone(&edge.reloader.metrics);
    let shown = || metrics.encode();
    add_source(&metrics, "loja");
    metrics.callbacks_accepted_total.with_label_values(&["loja"]).inc();
    metrics.http_request_duration_seconds.with_label_values(&["loja"]).observe(0.1);
    edge.write("filial", "");
    edge.settle().await;
    // A callback that was pending is published now.
    metrics.source_lag_seconds.with_label_values(&["loja"]).observe(0.1);
    let text = shown();
    let left: Vec<_> = text.lines().filter(|line| line.contains("source=\"loja\"")).collect();
    assert_eq!(left, ["weni_edge_callbacks_accepted_total{source=\"loja\"} 1"]);
    assert!(text.contains("http_rejections_total{reason=\"auth\",source=\"filial\"} 0"), "{text}");
    edge.write("loja", "");
    edge.settle().await;
    let text = shown();
    assert!(text.contains("http_rejections_total{reason=\"auth\",source=\"loja\"} 0"), "{text}");
    assert!(!text.contains("http_rejections_total{reason=\"auth\",source=\"filial\"}"), "{text}");
}

#[tokio::test]
async fn what_takes_a_restart_stays_as_it_was_and_is_remembered_as_said() {
    let mut edge = Edge::start();
    let before = edge.settle().await;
    edge.write(
        "filial",
        "[http]\nmax_connections = 5\n[topics]\nposition = \"elsewhere\"\n[log]\nlevel = \"debug\"",
    );
    let after = edge.settle().await;
    assert!(after.sources.contains_key("filial"));
    assert_eq!(
        (&after.http, &after.topics, &after.log),
        (&before.http, &before.topics, &before.log)
    );
    assert_eq!(edge.reloader.waiting, ["http", "topics.position", "log"]);
    edge.write("filial", "");
    edge.settle().await;
    assert!(edge.reloader.waiting.is_empty());
}

#[tokio::test]
async fn nothing_is_swapped_when_nothing_has_changed() {
    let mut edge = Edge::start();
    let before = edge.reloader.config.load_full();
    edge.write("loja", "# a comment");
    assert!(Arc::ptr_eq(&before, &edge.settle().await));
}

#[tokio::test]
async fn a_changed_file_of_secrets_is_taken_up() {
    let mut edge = Edge::start();
    fs::write(edge.directory.path().join("secrets"), format!("{SECOND}\n{FIRST}\n")).unwrap();
    assert_eq!(secrets(&*edge.settle().await, "loja"), [SECOND, FIRST]);
}

#[tokio::test]
async fn a_swapped_link_is_taken_up_as_kubernetes_swaps_it() {
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
    assert_eq!(secrets(&*edge.settle().await, "loja"), [FIRST]);
    symlink("..2", &swapped.0).unwrap();
    fs::rename(&swapped.0, &swapped.1).unwrap();
    assert_eq!(secrets(&*edge.settle().await, "loja"), [SECOND]);
}

#[tokio::test]
async fn a_bad_file_keeps_the_old_configuration_and_the_metric_says_so_until_it_is_mended() {
    let mut edge = Edge::start();
    let before = edge.settle().await;
    let path = edge.directory.path().join("weni-edge.toml");
    for bad in ["[http]\nlistn = 1\n", "no TOML", ""] {
        fs::write(&path, bad).unwrap();
        assert!(Arc::ptr_eq(&before, &edge.settle().await), "{bad}");
        assert!(!edge.is_successful() && edge.reloader.error.is_some(), "{bad}");
    }
    fs::remove_file(&path).unwrap();
    assert!(Arc::ptr_eq(&before, &edge.settle().await));
    edge.write("filial", "");
    assert!(edge.settle().await.sources.contains_key("filial"));
    assert!(edge.is_successful() && edge.reloader.error.is_none());
}

#[tokio::test]
async fn a_file_that_is_still_being_written_is_not_taken_up() {
    let mut edge = Edge::start();
    let before = edge.settle().await;
    edge.write("half", "");
    assert!(Arc::ptr_eq(&before, &edge.tick().await));
    edge.write("whole", "");
    assert!(Arc::ptr_eq(&before, &edge.tick().await));
    assert_eq!(edge.tick().await.sources.keys().collect::<Vec<_>>(), ["whole"]);
}

/// Waits until another task has brought this about.
async fn eventually(mut is_so: impl FnMut() -> bool) {
    let looked = timeout(Duration::from_secs(60), async {
        while !is_so() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    looked.await.expect("it never was so");
}

#[tokio::test]
async fn the_clock_reads_by_itself() {
    let edge = Edge::start();
    let config = edge.reloader.config.clone();
    edge.write("filial", "");
    let running = tokio::spawn(edge.reloader.run(Duration::from_millis(1)));
    eventually(|| config.load().sources.contains_key("filial")).await;
    running.abort();
}

#[tokio::test]
async fn sighup_reads_and_takes_up_at_once() {
    let mut edge = Edge::start();
    edge.settle().await;
    let (config, metrics) = (edge.reloader.config.clone(), edge.reloader.metrics.clone());
    let path = edge.reloader.path.clone().unwrap();
    metrics.config_last_reload_successful.set(0);
    // The first tick of the clock comes at once, the second not while this test runs.
    let running = tokio::spawn(edge.reloader.run(Duration::from_secs(3600)));
    eventually(|| metrics.config_last_reload_successful.get() == 1).await;
    fs::write(path, text("filial", &edge.directory.path().join("secrets"), "")).unwrap();
    kill_process(getpid(), Signal::HUP).unwrap();
    eventually(|| config.load().sources.contains_key("filial")).await;
    running.abort();
}

#[tokio::test]
async fn files_that_hang_show_in_the_metric_and_count_again_when_they_answer() {
    let mut edge = Edge::start();
    edge.settle().await;
    edge.write("filial", "");
    let (answer, hanging) = std::sync::mpsc::channel::<()>();
    edge.reloader.config_reader = BackgroundReader::new(Duration::from_millis(20));
    let hang = move || Err::<(), _>(hanging.recv().unwrap_err().to_string());
    assert!(edge.reloader.config_reader.read(hang).await.is_err());
    for _ in 0..3 {
        assert!(edge.settle().await.sources.contains_key("loja"));
        assert!(!edge.is_successful() && edge.reloader.error.is_some());
    }
    edge.reloader.config_reader.timeout = Duration::from_secs(60);
    drop(answer);
    let filial = timeout(Duration::from_secs(60), async {
        while !edge.tick().await.sources.contains_key("filial") {
            sleep(Duration::from_millis(5)).await;
        }
    });
    filial.await.expect("the files are read again");
    assert!(edge.is_successful());
}
