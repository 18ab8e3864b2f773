//! Files that are read while the edge runs: certificate, key, configuration and secrets. If one is wrong,
//! or not a regular file, the edge goes on with what it has, reports it, and recovers.

use std::{
    fs,
    process::{Command, Stdio},
};

use crate::harness::{
    Edge, PROGRAM, Settings, certificate_and_key, certificate_files, eventually, run, said,
};

fn await_reload(edge: &Edge, successful: i64) {
    eventually(&format!("config_last_reload_successful is {successful}"), || {
        assert_eq!(edge.probe("/livez").0, 200);
        let shown = edge.metrics().total("config_last_reload_successful", &[]);
        (shown == successful).then_some(())
    });
}

#[test]
fn a_certificate_that_cannot_be_used_or_read_shows_in_the_metric_until_it_is_mended() {
    let directory = tempfile::TempDir::new().unwrap();
    let (certificate, key) = certificate_files(directory.path());
    let pair = [&certificate, &key].map(|file| fs::read(file).unwrap());
    let tls = Some((certificate.clone(), key.clone()));
    let bootstrap = "127.0.0.1:9".to_owned();
    let edge = Edge::start(&Settings { bootstrap, tls, ..Settings::default() });

    fs::write(&key, certificate_and_key().1).unwrap();
    await_reload(&edge, 0);
    fs::write(&key, &pair[1]).unwrap();
    await_reload(&edge, 1);

    fs::remove_file(&certificate).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &certificate, 0o600.into()).unwrap();
    await_reload(&edge, 0);
    fs::remove_file(&certificate).unwrap();
    fs::write(&certificate, &pair[0]).unwrap();
    await_reload(&edge, 1);
}

#[test]
fn a_file_of_secrets_that_is_none_shows_in_the_metric_until_it_is_mended() {
    let directory = tempfile::TempDir::new().unwrap();
    let secrets = directory.path().join("secrets");
    fs::write(&secrets, "first-secret-of-22-cha").unwrap();
    let bootstrap = "127.0.0.1:9".to_owned();
    let mut edge = Edge::new(&Settings { bootstrap, ..Settings::default() });
    let more = format!("[sources.filial]\nheader = \"X-Token\"\nsecrets_file = {secrets:?}\n");
    let text = fs::read_to_string(edge.config_file()).unwrap() + &more;
    fs::write(edge.config_file(), text).unwrap();
    edge.start_again();

    fs::remove_file(&secrets).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &secrets, 0o600.into()).unwrap();
    await_reload(&edge, 0);
    fs::remove_file(&secrets).unwrap();
    fs::write(&secrets, "second-secret-of-23-ch").unwrap();
    await_reload(&edge, 1);
}

/// What the refusal tells the operator to do has to lead out of it.
#[test]
fn a_journal_under_other_names_is_refused_until_it_is_forked() {
    let settings = |position: &str| Settings {
        bootstrap: "127.0.0.1:9".to_owned(),
        topics: [("position", position.to_owned())].into(),
        ..Settings::default()
    };
    let mut edge = Edge::start(&settings("first"));
    edge.accept("{}");
    edge.kill();
    edge.configure(&settings("second"));
    edge.start_in_vain(&[]).assert_says("weni-edge journal fork");
    edge.journal_command("fork", &["--from", "checkpoint", "--yes"]);
    edge.start_again();
    assert_eq!(edge.metrics().total("journal_pending_callbacks", &[]), 1, "nothing is lost");
    edge.kill();
    edge.configure(&settings("first"));
    edge.start_in_vain(&[]).assert_says("weni-edge journal fork");
}

/// It may be half written, or of root where the edge is another user.
#[test]
fn a_request_for_a_fork_that_cannot_be_read_is_said_and_holds_nothing() {
    let bootstrap = "127.0.0.1:9".to_owned();
    let mut edge = Edge::start(&Settings { bootstrap, ..Settings::default() });
    edge.kill();
    fs::write(edge.journal().join("fork"), "").unwrap();
    edge.start_again();
    edge.await_logged("a file of the journal is damaged and not used");
    edge.accept("{}");
    edge.await_blocked("no_broker");
}

/// A slip would leave out what is pending, or publish everything again.
#[test]
fn a_fork_from_a_run_that_the_journal_does_not_have_is_refused_and_one_that_it_has_is_not() {
    let bootstrap = "127.0.0.1:9".to_owned();
    let mut edge = Edge::start(&Settings { bootstrap, ..Settings::default() });
    edge.accept("{}");
    edge.kill();
    let fork = |from: &str| {
        let config = edge.config_file();
        let arguments = ["journal", "fork", "--config", config.to_str().unwrap(), "--yes"];
        run(arguments.into_iter().chain(["--from", from]))
    };
    let refused = fork("run:99");
    assert_eq!(refused.status.code(), Some(2));
    let said = said(&refused);
    assert!(said.contains("the journal has no run 99: "), "{said}");
    assert!(!edge.journal().join("fork").exists());
    assert_eq!(fork("run:1").status.code(), Some(0));
}

/// What the command found or did stands, whoever reads it.
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let bootstrap = "127.0.0.1:9".to_owned();
    let mut edge = Edge::start(&Settings { bootstrap, ..Settings::default() });
    edge.kill();
    let config = edge.config_file();
    let config = config.to_str().unwrap();
    for (arguments, code) in [
        (&["journal", "show", "--config", config][..], 0),
        (&["journal", "fork", "--from", "oldest", "--yes", "--config", config], 0),
        (&["check", "--config", config], 1),
        (&["config", "--config", config], 0),
        (&["config", "--default"], 0),
        (&["schema", "asyncapi"], 0),
        (&["completions", "bash"], 0),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(PROGRAM);
        command.args(arguments).stdout(writer).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
    assert!(edge.journal().join("fork").exists());
}
