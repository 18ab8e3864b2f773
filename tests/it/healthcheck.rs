//! `weni-edge healthcheck` as a container engine runs it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
    sync::Arc,
};

use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch, task::spawn_blocking};
use weni_edge::{
    admin,
    http::Phase,
    journal::{Journal, Options},
    metrics::Metrics,
};

use crate::admin::state;

/// Its exit code, and what it says on standard error.
async fn healthcheck(
    arguments: &[&str],
    variables: &[(&'static str, String)],
) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weni-edge"));
    command.arg("healthcheck").args(arguments).stdin(Stdio::null());
    command.env_remove("WENI_EDGE_CONFIG").env_remove("WENI_EDGE__ADMIN__LISTEN");
    command.envs(variables.iter().cloned());
    let output = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn tells_ready_from_live_and_says_what_is_wrong_in_one_line() {
    let directory = TempDir::new().unwrap();
    let metrics = Arc::new(Metrics::default());
    let options = Options { allow_volatile: true, ..Options::new(directory.path()) };
    let journal = Journal::open(options, Arc::clone(&metrics)).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
    let listen = listener.local_addr().unwrap();
    let url = format!("http://localhost:{}", listen.port());
    let (phase, watched) = watch::channel(Phase::Serving);
    let state = state(journal, metrics, watched);
    tokio::spawn(admin::serve(listener, state));

    let config = directory.path().join("weni-edge.toml");
    std::fs::write(&config, format!("[admin]\nlisten = \"{listen}\"\n")).unwrap();
    let config = config.to_str().unwrap();
    let well = (Some(0), String::new());
    assert_eq!(healthcheck(&["--admin", &url], &[]).await, well);
    assert_eq!(healthcheck(&["--config", config], &[]).await, well);
    let variable = [("WENI_EDGE__ADMIN__LISTEN", listen.to_string())];
    assert_eq!(healthcheck(&[], &variable).await, well);

    phase.send_replace(Phase::Draining);
    let why = format!("localhost:{}/readyz answers 503: not ready: serving\n", listen.port());
    assert_eq!(healthcheck(&["--admin", &url], &[]).await, (Some(1), why));
    assert_eq!(healthcheck(&["--admin", &url, "--live"], &[]).await, well);
}

#[tokio::test]
async fn an_edge_that_is_not_there_or_does_not_answer_is_not_ready() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let silent: SocketAddr = listener.local_addr().unwrap();
    let url = format!("http://{silent}");
    let why = format!("{silent} does not answer within 3 s");
    let (code, said) = healthcheck(&["--admin", &url], &[]).await;
    assert!(code == Some(1) && said.starts_with(&why) && said.lines().count() == 1, "{said}");

    let (code, said) = healthcheck(&["--admin", "http://127.0.0.1:1"], &[]).await;
    let why = "127.0.0.1:1 does not answer: ";
    assert!(code == Some(1) && said.starts_with(why) && said.lines().count() == 1, "{said}");

    let variable = [("WENI_EDGE__ADMIN__LISTEN", "9090".to_owned())];
    let (code, said) = healthcheck(&[], &variable).await;
    let why = "--admin or WENI_EDGE__ADMIN__LISTEN is wrong: use a URL such as ";
    assert!(code == Some(1) && said.starts_with(why) && said.lines().count() == 1, "{said}");

    let (code, said) = healthcheck(&["--config", "/nowhere/weni-edge.toml"], &[]).await;
    assert!(code == Some(1) && said.lines().count() == 1, "{said}");
}
