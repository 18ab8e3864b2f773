//! `weni-edge check` without a server, and beside `dev`.

use std::{
    fs::{self, Permissions},
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpSocket;
use weni_edge::journal::{Journal, Options};

use crate::{
    dev::Dev,
    harness::{Edge, Settings, certificate_files, run, said},
};

pub(crate) const SECRET: &str = "s3cr3t-s3cr3t-s3cr3t";
/// Where nothing listens.
const NO_KAFKA: &str = "127.0.0.1:1";

/// What `check` reports, and its exit code.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) code: i32,
    pub(crate) findings: Vec<Value>,
}

impl Report {
    /// Runs `check` with this configuration.
    pub(crate) fn of(config: &Path, arguments: &[&str]) -> Self {
        let base = ["check", "--output", "json", "--config", config.to_str().unwrap()];
        let output = run(base.iter().chain(arguments));
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        assert!(!text.contains(SECRET) && !said(&output).contains(SECRET), "{output:?}");
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{output:?}"));
        let findings = report["findings"].as_array().unwrap().clone();
        for finding in &findings {
            assert_eq!(finding["remedy"].is_null(), finding["severity"] == "ok", "{finding}");
        }
        Self { code: output.status.code().unwrap(), findings }
    }

    /// What was found of an aspect: severity and words.
    pub(crate) fn about(&self, check: &str) -> Vec<(&str, &str)> {
        let of_check = self.findings.iter().filter(|finding| finding["check"] == check);
        of_check
            .map(|finding| {
                (finding["severity"].as_str().unwrap(), finding["found"].as_str().unwrap())
            })
            .collect()
    }

    /// The one finding of an aspect has this severity and these words.
    #[track_caller]
    pub(crate) fn assert(&self, check: &str, severity: &str, words: &str) {
        let found = self.about(check);
        let [(is, said)] = &found[..] else { panic!("{check}: {found:?}") };
        assert!(*is == severity && said.contains(words), "{check}: {found:?}, not {words}");
    }

    /// The aspects that are judged so.
    pub(crate) fn judged(&self, severity: &str) -> Vec<&str> {
        let judged = self.findings.iter().filter(|finding| finding["severity"] == severity);
        judged.map(|finding| finding["check"].as_str().unwrap()).collect()
    }
}

/// A place with a configuration and a journal that does not exist yet.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A configuration in which all is well but what `more` and the brokers say.
    fn config(&self, kafka: &str, more: &str) -> PathBuf {
        let journal = self.path("journal");
        self.config_at(kafka, &journal, "min_free_bytes = 0", more)
    }

    fn config_at(&self, kafka: &str, journal: &Path, limits: &str, more: &str) -> PathBuf {
        let text = format!(
            "[admin]\nlisten = \"127.0.0.1:0\"\n\
             [sources.demo]\nheader = \"X-Token\"\nsecrets = [\"{SECRET}\"]\n\
             [journal]\ndirectory = {journal:?}\nallow_volatile = true\nmax_bytes = 4_000_000\n{limits}\n\
             [kafka]\nbootstrap_servers = \"{kafka}\"\n\
             [http]\n{more}\n"
        );
        let path = self.path("weni-edge.toml");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path
    }
}

/// A host has no such letters.
const WRONG_URL: &str =
    "http://user:s3cr3t-s3cr3t-s3cr3t@ho<st/hooks/demo?token=s3cr3t-s3cr3t-s3cr3t";
const LISTEN: &str = "listen = \"127.0.0.1:0\"";

#[test]
fn its_help_says_how_to_begin_and_what_it_does_to_kafka() {
    let help = String::from_utf8(run(["check", "--help"]).stdout).unwrap();
    for text in ["weni-edge check --config weni-edge.toml", "aborts it", "exit code is 0", "--url"]
    {
        assert!(help.contains(text), "{text}: {help}");
    }
}

#[test]
fn what_cannot_run_ends_with_2() {
    let place = Place::new();
    let config = place.config(NO_KAFKA, LISTEN);
    let config = config.to_str().unwrap();
    let url = "http://127.0.0.1:1/hooks/none";
    for (arguments, words) in [
        (&["--config", "no/such/file.toml"][..], "cannot read no/such/file.toml"),
        (&[], "the configuration lacks kafka.bootstrap_servers and a source"),
        (&["--config", config, "--url", url], "has no source \"none\""),
        (&["--config", config, "--header", "X-Token: x"], "--url"),
        (&["--config", config, "--url", "127.0.0.1:1/hooks/demo"], "URL"),
        (&["--config", config, "--url", "ftp://127.0.0.1:1/hooks/demo"], "neither http://"),
        (
            &["--config", config, "--url", "http://127.0.0.1:1/hooks/demo", "-H", "Host: x"],
            "is set by HTTP itself",
        ),
        (&["--config", config, "--url", WRONG_URL], "http://ho<st/hooks/demo is not a URL"),
        (
            &["--config", config, "--url", WRONG_URL, "-H", "X-Token: x"],
            "http://ho<st/hooks/demo is not a URL",
        ),
        (&["--config", config, "--ca-file", config], "has no certificate in PEM"),
        (&["--config", config, "--ca-file", "no/such/file.pem"], "no/such/file.pem"),
    ] {
        let output = run(["check"].iter().chain(arguments));
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(said(&output).contains(words), "{words}: {}", said(&output));
        assert!(!said(&output).contains(SECRET), "{}", said(&output));
    }
}

#[test]
fn all_is_looked_at_and_no_file_is_left_behind() {
    let dev = Dev::start(&[]);
    let place = Place::new();
    let config = place.config(dev.text("/kafka"), LISTEN);
    let report = Report::of(&config, &[]);
    assert_eq!(report.code, 0, "{report:?}");
    for aspect in
        ["configuration", "http_listen", "admin_listen", "journal", "journal_space", "clock"]
    {
        assert_eq!(report.about(aspect)[0].0, "ok", "{aspect}: {report:?}");
    }
    report.assert("public_url", "warning", "http.public_url is not set");
    report.assert("kafka", "warning", "is the embedded Kafka of `weni-edge dev`");
    report.assert("journal", "ok", "does not exist yet");
    assert!(!place.path("journal").exists(), "check made the journal's directory");

    fs::create_dir(place.path("journal")).unwrap();
    fs::set_permissions(place.path("journal"), Permissions::from_mode(0o700)).unwrap();
    let report = Report::of(&config, &[]);
    report.assert("journal", "ok", "without a journal yet");
    // A slow disk is a warning.
    assert!(report.about("journal_sync")[0].1.starts_with("a sync of 4 KiB takes"), "{report:?}");
    assert_eq!(fs::read_dir(place.path("journal")).unwrap().count(), 0);
}

#[test]
fn for_people_it_is_a_table_with_what_to_do() {
    let place = Place::new();
    let config = place.config(NO_KAFKA, LISTEN);
    let output = run(["check", "--config", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let table = String::from_utf8(output.stdout).unwrap();
    let mut lines = table.lines();
    let problem = lines.find(|line| line.starts_with("problem  kafka")).expect("a line of Kafka");
    assert!(problem.contains("Kafka at 127.0.0.1:1 cannot be used: "), "{problem}");
    let remedy = lines.next().unwrap();
    assert!(remedy.trim_start().starts_with("→ start the brokers"), "{remedy}");
    assert!(table.contains("\n1 problem, "), "{table}");
    assert!(!table.contains('\u{1b}'), "colours are for terminals: {table}");
}

#[test]
fn a_kafka_that_is_away_costs_seconds_and_the_rest_is_looked_at() {
    let place = Place::new();
    let start = Instant::now();
    let report = Report::of(&place.config(NO_KAFKA, LISTEN), &[]);
    // A probe is given up after 28 s.
    assert!(start.elapsed() < Duration::from_secs(27), "{:?}", start.elapsed());
    assert_eq!((report.code, report.judged("problem")), (1, vec!["kafka"]), "{report:?}");
    report.assert("kafka", "problem", "Connection refused");
    report.assert("journal", "ok", "does not exist yet");
}

#[test]
fn what_makes_a_journals_directory_unusable_is_said() {
    let place = Place::new();
    let looked_at = |journal: &Path, limits: &str| {
        Report::of(&place.config_at(NO_KAFKA, journal, limits, LISTEN), &[])
    };
    let free = "min_free_bytes = 0";
    let file = place.path("file");
    fs::write(&file, "").unwrap();
    looked_at(&file, free).assert("journal", "problem", "file");
    looked_at(&file.join("journal"), free).assert("journal", "problem", "file");
    looked_at(Path::new("/proc/journal"), free).assert("journal", "problem", "/proc");

    let open = place.path("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    looked_at(&open, free).assert("journal", "problem", "can be written by all users");

    fs::set_permissions(&open, Permissions::from_mode(0o700)).unwrap();
    let report = looked_at(&open, "min_free_bytes = 1_000_000_000_000_000");
    report.assert("journal_space", "problem", "calls are answered 503");
    assert_eq!(report.code, 1);

    let label = "other. weni.edge-position.v1".to_owned();
    let options = Options { allow_volatile: true, label, ..Options::new(&open) };
    let journal = Journal::open(options, Arc::default()).unwrap();
    let report = looked_at(&open, free);
    report.assert("journal", "problem", "was created with kafka.identity_prefix");
    journal.close();
}

#[test]
fn a_port_of_another_program_is_a_problem() {
    let place = Place::new();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let report = Report::of(&place.config(NO_KAFKA, &format!("listen = \"{address}\"")), &[]);
    report.assert("http_listen", "problem", "another program listens");
    other.set_nonblocking(true).unwrap();
    assert!(other.accept().is_err(), "nobody was called");
}

#[test]
fn an_edge_that_runs_here_is_recognized_and_not_disturbed() {
    let edge = Edge::start(&Settings { bootstrap: NO_KAFKA.to_owned(), ..Settings::default() });
    let text = fs::read_to_string(edge.config_file()).unwrap();
    let place = Place::new();
    let config = |public: &str| {
        let path = place.path("weni-edge.toml");
        let text = text.replacen("127.0.0.1:0", public, 1);
        fs::write(&path, text.replacen("127.0.0.1:0", &edge.admin().to_string(), 1)).unwrap();
        path
    };
    let files = || fs::read_dir(edge.journal()).unwrap().count();
    let before = files();
    let report = Report::of(&config(&edge.public().to_string()), &[]);
    report.assert("journal", "ok", &format!("process {} has it open", edge.pid()));
    report.assert("http_listen", "ok", "an edge runs here");
    report.assert("admin_listen", "ok", "is ready");
    report.assert("descriptors", "ok", "the running edge may open");
    assert!(report.about("journal_sync").is_empty(), "its disk is left alone");
    assert_eq!(files(), before);

    // Bound without listening, it is nobody else's.
    let held = TcpSocket::new_v4().unwrap();
    held.set_reuseaddr(true).unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let free = held.local_addr().unwrap().to_string();
    Report::of(&config(&free), &[]).assert("http_listen", "warning", "does not listen on");
    edge.accept("{}");
}

#[test]
fn files_of_a_certificate_are_judged_as_callers_do() {
    let place = Place::new();
    let (certificate, key) = certificate_files(place.0.path());
    let looked_at = |more: &str, arguments: &[&str]| {
        let tls = format!(
            "{LISTEN}\n{more}\n[http.tls]\ncertificate_file = {certificate:?}\nkey_file = {key:?}"
        );
        fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        Report::of(&place.config(NO_KAFKA, &tls), arguments)
    };
    let trusting = ["--ca-file", certificate.to_str().unwrap()];
    looked_at("", &trusting).assert("certificate", "ok", "valid until");
    looked_at("", &[]).assert("certificate", "warning", "no authority that callers trust");
    let other = "public_url = \"https://edge.example.com\"";
    looked_at(other, &trusting).assert("certificate", "warning", "not for edge.example.com");

    let mut old = CertificateParams::new(["localhost".to_owned()]).unwrap();
    old.not_before = date_time_ymd(2020, 1, 1);
    old.not_after = date_time_ymd(2021, 1, 1);
    let pair = KeyPair::generate().unwrap();
    fs::write(&certificate, old.self_signed(&pair).unwrap().pem()).unwrap();
    fs::write(&key, pair.serialize_pem()).unwrap();
    let report = looked_at("", &trusting);
    report.assert("certificate", "problem", "it expired on 2021-01-01");
    assert_eq!(report.code, 1);

    fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    looked_at("", &trusting).assert("certificate", "problem", "are no pair");
}

#[test]
fn who_may_read_secrets_and_who_may_call_are_warnings() {
    let place = Place::new();
    let open = "[sources.open]\nallow_unauthenticated = true";
    let config = place.config(NO_KAFKA, &format!("{LISTEN}\n{open}"));
    fs::set_permissions(&config, Permissions::from_mode(0o644)).unwrap();
    let report = Report::of(&config, &[]);
    let found = report.about("configuration");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].1.contains("every user of this machine"), "{found:?}");
    assert!(found[1].1.contains("source open takes calls from anyone"), "{found:?}");
}

#[test]
fn a_login_that_the_protocol_does_not_use_is_a_warning() {
    let place = Place::new();
    let looked_at = |properties: &str| {
        let properties = format!("{LISTEN}\n[kafka.properties]\n{properties}");
        Report::of(&place.config(NO_KAFKA, &properties), &[])
    };
    let login = format!(
        "\"sasl.mechanism\" = \"PLAIN\"\n\"sasl.username\" = \"u\"\n\"sasl.password\" = \"{SECRET}\"\n\
         \"ssl.cipher.suites\" = \"DEFAULT\"\n"
    );
    let all =
        "has sasl.mechanism, sasl.password, sasl.username, ssl.cipher.suites, which nothing uses";
    looked_at(&login).assert("configuration", "warning", all);
    for (protocol, unused) in [
        ("SSL", "has sasl.mechanism, sasl.password, sasl.username, which"),
        ("sasl_plaintext", "has ssl.cipher.suites, which"),
    ] {
        let properties = format!("{login}\"security.protocol\" = \"{protocol}\"");
        looked_at(&properties).assert("configuration", "warning", unused);
    }
    let used = format!("{login}\"security.protocol\" = \"SASL_SSL\"");
    looked_at(&used).assert("configuration", "ok", "it can be used");
}

#[test]
fn a_public_url_is_visited() {
    let place = Place::new();
    let looked_at = |url: &str| {
        Report::of(&place.config(NO_KAFKA, &format!("{LISTEN}\npublic_url = \"{url}\"")), &[])
    };
    let private = looked_at("https://10.1.2.3");
    private.assert("public_url", "problem", "not an address of the internet");
    let nowhere = looked_at("https://edge.invalid");
    nowhere.assert("public_url", "problem", "edge.invalid has no address");
}

#[test]
fn an_edge_is_called_as_weni_does_and_its_events_are_found() {
    let dev = Dev::start(&[]);
    let place = Place::new();
    let (certificate, key) = certificate_files(place.0.path());
    let edge = Edge::start(&Settings {
        bootstrap: dev.text("/kafka").to_owned(),
        tls: Some((certificate.clone(), key)),
        ..Settings::default()
    });
    let url = edge.url();
    let arguments = ["--url", &url, "--ca-file", certificate.to_str().unwrap()];
    let report = Report::of(&edge.config_file(), &arguments);
    assert_eq!(report.code, 0, "{report:?}");
    let found: Vec<_> = report.about("call").into_iter().map(|(_, found)| found).collect();
    let ways = ["POST, chunked: answered 200", "GET with a body: answered 200"];
    let ways = ways.into_iter().chain(["POST, blanks around the secret: answered 200"]);
    let ways: Vec<_> = ways.chain(["POST with a wrong secret: refused with 401"]).collect();
    let expected = ["HTTP/1.1", "HTTP/2"]
        .map(|version| ways.iter().map(move |way| format!("{version} {way}")));
    let expected: Vec<_> = expected.into_iter().flatten().collect();
    assert_eq!(found[..8], expected, "{report:?}");
    assert!(found[8].starts_with("all 6 accepted calls are in Kafka"), "{report:?}");
    assert_eq!(found.len(), 9);

    let wrong = [&arguments[..], &["-H", "X-Token: of-another-source"]].concat();
    let report = Report::of(&edge.config_file(), &wrong);
    assert_eq!(report.code, 1);
    report.assert("call", "problem", "answered 401: the secret or the header's name");

    // Nobody is told that all is well when half of it was not looked at.
    let config = edge.config_file();
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace(dev.text("/kafka"), "127.0.0.1:1")).unwrap();
    let report = Report::of(&config, &arguments);
    let (severity, said) = report.about("call").pop().unwrap();
    assert!(said.starts_with("the receipts were not looked for in Kafka"), "{report:?}");
    assert_eq!((severity, report.code), ("problem", 1), "{report:?}");
}

/// A server that gives each of these answers to one call, and none to what follows.
fn server(answers: Vec<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut answers = answers.into_iter();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut request, mut part) = (Vec::new(), [0; 4096]);
            while !request.windows(5).any(|end| end == b"0\r\n\r\n") {
                let read = stream.read(&mut part).unwrap();
                if read == 0 {
                    break;
                }
                request.extend_from_slice(&part[..read]);
            }
            match answers.next() {
                Some(answer) => stream.write_all(answer.as_bytes()).unwrap(),
                None => thread::park(),
            }
        }
    });
    format!("http://{address}/hooks/demo")
}

#[test]
fn what_answers_instead_of_an_edge_is_told_from_one() {
    let place = Place::new();
    let config = place.config(NO_KAFKA, LISTEN);
    for (answer, words) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "something else than an edge"),
        ("HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n", "leads elsewhere"),
        ("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "no such source"),
        ("gopher\r\n\r\n", "answer is not HTTP"),
    ] {
        let report = Report::of(&config, &["--url", &server(vec![answer.to_owned()])]);
        report.assert("call", "problem", words);
        assert_eq!(report.code, 1);
    }
    let report = Report::of(&config, &["--url", "http://127.0.0.1:1/hooks/demo"]);
    report.assert("call", "problem", "no connection");
}

#[test]
fn what_was_answered_before_a_server_falls_silent_is_reported() {
    let place = Place::new();
    let receipt = "{\"receipt\":\"0190f1de-7d5b-7000-8000-000000000001\"}";
    let length = receipt.len();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{receipt}"
    );
    let url = format!("{}?token={SECRET}", server(vec![answer]));
    let report = Report::of(&place.config(NO_KAFKA, LISTEN), &["--url", &url]);
    let found = report.about("call");
    assert_eq!(found[0], ("ok", "HTTP/1.1 POST, chunked: answered 200"), "{report:?}");
    assert!(found[1].0 == "problem" && found[1].1.contains("no answer within 10 s"), "{report:?}");
    assert_eq!(report.code, 1);
}
