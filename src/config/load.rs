//! Every key of the configuration, and what it may be.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderName, HeaderValue, header};
use tracing_subscriber::filter::Targets;

use super::{
    Admin, Config, CreateTopics, Duplicates, Durability, Http, Journal, Kafka, Log, LogFormat,
    Secret, Source, Tls, Topics,
    document::{self, Value},
    properties,
    section::{Problems, Section, flag, text, texts},
};

const SECRET_CHARS_MIN: usize = 16;

/// What HTTP itself, or the journal, keeps of a request: no place for a secret.
const HEADERS_REFUSED: [HeaderName; 9] = [
    header::ACCEPT_ENCODING,
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::HOST,
    header::TRANSFER_ENCODING,
    header::USER_AGENT,
    HeaderName::from_static("traceparent"),
];

/// What is wrong with a configuration, everything at once.
///
/// Each line names the place (line of the file, or variable), what is wrong there and the remedy.
/// No line holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct ConfigError {
    problems: Vec<String>,
}

impl Config {
    /// Reads the file, lays the environment over it, and reads the files of secrets.
    ///
    /// Without a path there is only the environment.
    ///
    /// # Errors
    /// Everything that is wrong: a file that cannot be read, unknown keys, impossible values.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        // A variable that is not UTF-8 cannot be one of ours.
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self::load_from(path, std::env::vars_os().filter_map(text))
    }

    pub(super) fn load_from(
        path: Option<&Path>,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let document = document::read(path, variables)
            .map_err(|problem| ConfigError { problems: vec![problem] })?;
        let problems = Problems::default();
        let config = config(Section::new(String::new(), document, &problems));
        match problems.into_inner() {
            problems if problems.is_empty() => Ok(config),
            problems => Err(ConfigError { problems }),
        }
    }

    /// Whether there is all that `serve` needs; other commands need less.
    ///
    /// # Errors
    /// Says what is missing and shows the least that works.
    pub fn ready_to_serve(&self) -> Result<(), ConfigError> {
        let mut missing = Vec::new();
        if self.kafka.bootstrap_servers.is_empty() {
            missing.push("kafka.bootstrap_servers");
        }
        if self.sources.is_empty() {
            missing.push("a source");
        }
        if missing.is_empty() {
            return Ok(());
        }
        let problem = format!(
            "the configuration lacks {}. The least that works is\n\n    \
             [kafka]\n    bootstrap_servers = \"localhost:9092\"\n\n    \
             [sources.shop]                       # https://…/hooks/shop\n    \
             header = \"X-Token\"                   # the same header and value in Weni\n    \
             secrets = [\"16 random characters, or more\"]\n",
            missing.join(" and "),
        );
        Err(ConfigError { problems: vec![problem] })
    }
}

fn config(mut root: Section<'_>) -> Config {
    let http = http(root.section("http"));
    let admin = admin(root.section("admin"), &http);
    Config {
        sources: sources(root.section("sources")),
        journal: journal(root.section("journal"), &http),
        kafka: kafka(root.section("kafka")),
        topics: topics(root.section("topics")),
        duplicates: duplicates(root.section("duplicates")),
        log: log(root.section("log")),
        http,
        admin,
    }
}

fn http(mut section: Section<'_>) -> Http {
    const HANGS: &str = "Weni waits at most 60 s and no call takes long";
    let default = Http::default();
    let times = Duration::from_millis(100)..=Duration::from_secs(60);
    let max_body_bytes = section.number(
        "max_body_bytes",
        default.max_body_bytes,
        1024..=16_777_216,
        "Weni sends up to 1000000 bytes, and Kafka has to take the largest body as one record",
    );
    Http {
        listen: section.value("listen", address).unwrap_or(default.listen),
        max_body_bytes,
        max_memory_bytes: section.number(
            "max_memory_bytes",
            default.max_memory_bytes.max(max_body_bytes),
            max_body_bytes..=1 << 40,
            "it has to hold at least one body of http.max_body_bytes",
        ),
        max_connections: section.number(
            "max_connections",
            default.max_connections,
            1..=1_000_000,
            "that many connections cannot be served",
        ),
        header_timeout: section.duration(
            "header_timeout",
            default.header_timeout,
            times.clone(),
            HANGS,
        ),
        body_timeout: section.duration("body_timeout", default.body_timeout, times, HANGS),
        idle_timeout: section.duration(
            "idle_timeout",
            default.idle_timeout,
            Duration::from_secs(20)..=Duration::from_secs(3600),
            "Weni's client keeps connections for 15 s, so anything below 20s loses calls",
        ),
        wait_for_kafka: section.duration(
            "wait_for_kafka",
            default.wait_for_kafka,
            Duration::ZERO..=Duration::from_secs(5),
            "Weni's own answer to Meta waits as long",
        ),
        drain: section.duration(
            "drain",
            default.drain,
            Duration::ZERO..=Duration::from_secs(600),
            "stopping would take too long",
        ),
        tls: section.table("tls").and_then(tls),
    }
}

fn tls(mut section: Section<'_>) -> Option<Tls> {
    let files = section.value("certificate_file", path).zip(section.value("key_file", path));
    if files.is_none() {
        section.problem("needs both certificate_file and key_file, PEM each");
    }
    files.map(|(certificate_file, key_file)| Tls { certificate_file, key_file })
}

fn admin(mut section: Section<'_>, http: &Http) -> Admin {
    let listen = section.value("listen", |value| match address(value)? {
        same if same == http.listen && same.port() != 0 => Err(format!(
            "is {same}, as http.listen: probes and metrics need an address of their own"
        )),
        other => Ok(other),
    });
    listen.map_or_else(Admin::default, |listen| Admin { listen })
}

fn sources(mut section: Section<'_>) -> BTreeMap<String, Source> {
    let mut sources = BTreeMap::new();
    for (name, node) in section.drain() {
        let path = section.path_of(&name);
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let named = matches!(name.len(), 1..=64)
            && name.bytes().all(|byte| plain(byte) || b"._-".contains(&byte))
            && name.bytes().next().is_some_and(plain);
        if !named || name == crate::metrics::UNKNOWN_SOURCE {
            let why = "cannot be a source: its name is part of the URL, 1 to 64 of a-z, 0-9, '.', \
                       '_', '-', a letter or digit first, and not \"unknown\"";
            section.report(&node.origin, &path, why);
        }
        let source = source(section.nested(path, node));
        sources.insert(name, source);
    }
    sources
}

fn source(mut section: Section<'_>) -> Source {
    let default = Source::default();
    let has = |key| section.peek(key).is_some();
    let (has_header, has_secret) = (has("header"), has("secrets") || has("secrets_file"));
    let header = section.value("header", |value| text(value).and_then(header_name));
    let listed = section.value("secrets", |value| {
        let secrets = texts(value)?;
        let checked = secrets.into_iter().enumerate().map(|(at, secret)| {
            secret_of(secret).map_err(|why| format!("has {why} at place {}", at + 1))
        });
        checked.collect::<Result<Vec<_>, _>>()
    });
    let file = section.value("secrets_file", |value| {
        let file = path(value)?;
        Ok((secrets_of_file(&file)?, file))
    });
    let allow_unauthenticated = section.value("allow_unauthenticated", flag).unwrap_or_default();
    let raw = section.value("raw", flag).unwrap_or(default.raw);
    match (allow_unauthenticated, has_header, has_secret) {
        (false, false, _) => section
            .problem("has no header: say which one carries the secret, as in header = \"X-Token\""),
        (false, true, false) => section.problem(
            "has no secret: give secrets or secrets_file, or say allow_unauthenticated = true \
             instead of the header",
        ),
        (true, false, false) | (false, true, true) => {}
        (true, ..) => section.problem(
            "says allow_unauthenticated = true and has a header or secrets: leave out one of both",
        ),
    }
    let (more, secrets_file) = file.unzip();
    let mut secrets = listed.unwrap_or_default();
    secrets.extend(more.unwrap_or_default());
    Source { header: header.unwrap_or_default(), secrets, secrets_file, allow_unauthenticated, raw }
}

fn header_name(name: String) -> Result<String, String> {
    match HeaderName::try_from(&name) {
        Err(_) => Err("is not the name of a header; use one such as X-Token".into()),
        Ok(parsed) if HEADERS_REFUSED.contains(&parsed) => {
            Err(format!("is {parsed}, which is not secret on its way; use one such as X-Token"))
        }
        Ok(_) => Ok(name),
    }
}

fn secret_of(secret: String) -> Result<Secret, String> {
    if secret.chars().count() < SECRET_CHARS_MIN {
        Err(format!("a secret of fewer than {SECRET_CHARS_MIN} characters"))
    } else if secret.trim() != secret || HeaderValue::from_str(&secret).is_err() {
        Err("a secret with blanks around it or characters that no header can carry".into())
    } else {
        Ok(Secret::new(secret))
    }
}

fn secrets_of_file(file: &Path) -> Result<Vec<Secret>, String> {
    let name = file.display();
    let text = fs::read_to_string(file).map_err(|error| format!("names {name}: {error}"))?;
    let secret = |(line, secret): (usize, &str)| {
        secret_of(secret.into())
            .map_err(|why| format!("names {name}, which has {why} in line {}", line + 1))
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    match lines.map(secret).collect::<Result<Vec<_>, _>>()? {
        secrets if secrets.is_empty() => {
            Err(format!("names {name}, which is empty: it holds one secret a line"))
        }
        secrets => Ok(secrets),
    }
}

fn journal(mut section: Section<'_>, http: &Http) -> Journal {
    let default = Journal::default();
    let least = 2 * http.max_body_bytes as u64;
    Journal {
        directory: section.value("directory", path).unwrap_or(default.directory),
        max_bytes: section.number(
            "max_bytes",
            default.max_bytes,
            least..=1 << 50,
            "the journal has to hold more than one body of http.max_body_bytes",
        ),
        min_free_bytes: section.number(
            "min_free_bytes",
            default.min_free_bytes,
            0..=1 << 50,
            "no file system is that large",
        ),
        durability: section.choice(
            "durability",
            default.durability,
            &[("fsync", Durability::Fsync), ("os", Durability::Os)],
        ),
    }
}

fn kafka(mut section: Section<'_>) -> Kafka {
    let default = Kafka::default();
    let create_topics = create_topics(&mut section);
    Kafka {
        bootstrap_servers: section.text("bootstrap_servers", default.bootstrap_servers, servers),
        create_topics,
        identity_prefix: section.text("identity_prefix", default.identity_prefix, |prefix| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            if matches!(prefix.len(), 1..=100) && prefix.bytes().all(plain) {
                return Ok(());
            }
            Err(format!("is \"{prefix}\": use 1 to 100 of A-Z, a-z, 0-9, '.', '_', '-'"))
        }),
        commit_interval: section.duration(
            "commit_interval",
            default.commit_interval,
            Duration::ZERO..=Duration::from_secs(5),
            "every event would wait that long",
        ),
        properties: properties::read(section.section("properties")),
    }
}

fn create_topics(section: &mut Section<'_>) -> Option<CreateTopics> {
    const TABLE: &str = "{ partitions = 12, replication_factor = 3 }";
    let written = section.peek("create_topics").map(flag)?;
    if let Ok(created) = written {
        let read = |_: &Value| if created { Err(format!("is true: say {TABLE}")) } else { Ok(()) };
        section.value("create_topics", read);
        return None;
    }
    let mut section = section.table("create_topics")?;
    if section.peek("partitions").is_none() || section.peek("replication_factor").is_none() {
        section.problem(&format!("has to be false or whole: {TABLE}"));
    }
    Some(CreateTopics {
        partitions: section.number("partitions", 12, 1..=10_000, "Kafka does not take it"),
        replication_factor: section.number(
            "replication_factor",
            3,
            1..=i32::from(i16::MAX),
            "Kafka does not take it",
        ),
    })
}

fn servers(servers: &str) -> Result<(), String> {
    let server = |server: &str| {
        let address = server.rsplit_once("://").map_or(server, |(_, address)| address);
        let (host, port) = match address.rsplit_once(':') {
            // The colons of an IPv6 address without a port are not followed by one.
            Some((host, port)) if !port.ends_with(']') => (host, port.parse::<u16>().ok()),
            _ => (address, Some(9092)),
        };
        !host.is_empty() && !host.contains(char::is_whitespace) && port.is_some()
    };
    if servers.split(',').map(str::trim).all(server) {
        return Ok(());
    }
    Err(format!("is \"{servers}\": use host:port, several with commas between them"))
}

fn topics(mut section: Section<'_>) -> Topics {
    let default = Topics::default();
    let mut topic = |key, default| section.text(key, default, topic_name);
    let topics = Topics {
        message_status: topic("message_status", default.message_status),
        inbound_message: topic("inbound_message", default.inbound_message),
        channel_event: topic("channel_event", default.channel_event),
        dead_letter: topic("dead_letter", default.dead_letter),
        position: topic("position", default.position),
    };
    // An event topic that is missing can be routed to the dead letters, until it is there.
    let mut taken = BTreeSet::from([&topics.dead_letter]);
    let events = [&topics.message_status, &topics.inbound_message, &topics.channel_event];
    for name in events.into_iter().filter(|name| **name != topics.dead_letter) {
        if !taken.insert(name) {
            section.problem(&format!(
                "name \"{name}\" twice: each kind of event has a topic of its own, or that of the \
                 dead letters"
            ));
        }
    }
    if taken.contains(&topics.position) {
        section.problem(&format!(
            "give \"{}\" to the position and to records: the position's topic stays empty",
            topics.position
        ));
    }
    topics
}

fn topic_name(name: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if matches!(name.len(), 1..=249) && name.bytes().all(plain) && name != "." && name != ".." {
        return Ok(());
    }
    Err(format!("is \"{name}\": a topic's name has 1 to 249 of A-Z, a-z, 0-9, '.', '_', '-'"))
}

fn duplicates(mut section: Section<'_>) -> Duplicates {
    let default = Duplicates::default();
    Duplicates {
        window: section.duration(
            "window",
            default.window,
            Duration::ZERO..=Duration::from_secs(86_400),
            "repetitions come within minutes",
        ),
        entries: section.number(
            "entries",
            default.entries,
            0..=10_000_000,
            "each one takes memory",
        ),
    }
}

fn log(mut section: Section<'_>) -> Log {
    let default = Log::default();
    let formats =
        [("auto", LogFormat::Auto), ("human", LogFormat::Human), ("json", LogFormat::Json)];
    Log {
        format: section.choice("format", default.format, &formats),
        level: section.text("level", default.level, level),
    }
}

/// A misspelt level alone would be taken for a module's name, and everything else be silent.
fn level(text: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let directive = |text: &str| text.contains('=') || LEVELS.contains(&text);
    if text.split(',').map(str::trim).all(directive) && text.parse::<Targets>().is_ok() {
        return Ok(());
    }
    Err(format!("is \"{text}\": use {}, or \"info,weni_edge::publish=debug\"", LEVELS.join(", ")))
}

fn address(value: &Value) -> Result<SocketAddr, String> {
    let text = text(value)?;
    text.parse().map_err(|_| {
        format!("is \"{text}\": use an address and a port, as in \"0.0.0.0:8080\" or \"[::]:8080\"")
    })
}

fn path(value: &Value) -> Result<PathBuf, String> {
    match text(value)? {
        empty if empty.is_empty() => Err("is empty: name a file".into()),
        path => Ok(path.into()),
    }
}
