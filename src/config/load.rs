//! The table of all keys: names, defaults, and permitted values.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use http::Uri;
use tracing_subscriber::filter::Targets;

use super::{
    Admin, Config, CreateTopics, Http, Journal, Kafka, Log, LogFormat, Source, Tls, Topics,
    document::{self, DEFAULT, EffectiveValue, Node, NodeValue},
    properties,
    section::{Findings, Section, flag, path, text},
    sources::{secrets_file, source, sources},
};

/// Everything that is wrong with a configuration.
///
/// Each line names the place (line of the file, or variable), the problem and the remedy, and holds
/// no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl Config {
    /// Reads the file, if a path is given, then the environment, and then the files of secrets.
    ///
    /// # Errors
    /// All problems: files that cannot be read, unknown keys, impossible values.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        Ok(Self::load_effective(path)?.0)
    }

    /// As [`load`](Self::load), and returns every value in effect, in the order of the sections.
    pub fn load_effective(path: Option<&Path>) -> Result<(Self, Vec<EffectiveValue>), ConfigError> {
        // All of our variables are UTF-8.
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self::load_from(path, std::env::vars_os().filter_map(text))
    }

    pub(super) fn load_from(
        path: Option<&Path>,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<(Self, Vec<EffectiveValue>), ConfigError> {
        let document = document::read(path, variables).map_err(ConfigError)?;
        let findings = Findings::default();
        let config = config(Section::new(Vec::new(), document, &findings));
        let problems = findings.problems.into_inner();
        if !problems.is_empty() {
            return Err(ConfigError(problems.join("\n")));
        }
        let config = Self { secret_files: findings.secret_files.into_inner(), ..config };
        Ok((config, findings.effective.into_inner()))
    }

    /// Checks that the configuration has what `serve` needs beyond other commands.
    ///
    /// # Errors
    /// Says what is missing and shows the shortest configuration that works.
    pub fn ready_to_serve(&self) -> Result<(), ConfigError> {
        let missing = match (self.kafka.bootstrap_servers.is_empty(), self.sources.is_empty()) {
            (false, false) => return Ok(()),
            (true, false) => "kafka.bootstrap_servers",
            (false, true) => "a source",
            (true, true) => "kafka.bootstrap_servers and a source",
        };
        Err(ConfigError(format!(
            "the configuration lacks {missing}. The least that works is\n\n    \
             [kafka]\n    bootstrap_servers = \"localhost:9092\"\n\n    \
             [sources.shop]                       # https://…/hooks/shop\n    \
             header = \"X-Token\"                   # the same header and value in Weni\n    \
             secrets = [\"16 random characters, or more\"]\n"
        )))
    }
}

impl Default for Config {
    fn default() -> Self {
        default_of(config)
    }
}

impl Default for Source {
    fn default() -> Self {
        default_of(source)
    }
}

/// What `read` makes of a section without keys.
fn default_of<T>(read: impl FnOnce(Section<'_>) -> T) -> T {
    read(Section::new(Vec::new(), Node::empty(DEFAULT), &Findings::default()))
}

fn config(mut root: Section<'_>) -> Config {
    const DUPLICATES: &str = "was removed: every event that arrives is published, and consumers \
                              upsert by event_id; delete the section";
    root.removed("duplicates", DUPLICATES);
    let http = http(root.section("http"));
    let admin = admin(root.section("admin"), &http);
    Config {
        sources: sources(root.section("sources")),
        journal: journal(root.section("journal"), &http),
        kafka: kafka(root.section("kafka")),
        topics: topics(root.section("topics")),
        log: log(root.section("log")),
        http,
        admin,
        secret_files: BTreeSet::new(),
    }
}

fn http(mut section: Section<'_>) -> Http {
    const SLOW: &str = "Weni waits at most 60 s, and a call takes little time";
    const SIZE: &str = "Weni sends up to 1000000 bytes, and Kafka must take the largest body as one \
                        record";
    const MEMORY: &str = "it has to hold at least one body of http.max_body_bytes";
    const CONNECTIONS: &str = "that many connections cannot be served";
    const IDLE: &str =
        "Weni's client keeps connections for 15 s, so anything below 20s loses calls";
    const WAIT: &str = "Weni answers Meta only after this time";
    const DRAIN: &str = "stopping would take too long";
    let listen = section.value_or("listen", (Ipv4Addr::UNSPECIFIED, 8080), address);
    let max_body_bytes = section.number("max_body_bytes", 1_000_000, 1024..=16_777_216, SIZE);
    let memory = max_body_bytes.max(67_108_864);
    let least_memory = max_body_bytes..=1 << 40;
    Http {
        listen,
        public_url: section.value("public_url", public_url),
        max_body_bytes,
        max_memory_bytes: section.number("max_memory_bytes", memory, least_memory, MEMORY),
        max_connections: section.number("max_connections", 10_000, 1..=1_000_000, CONNECTIONS),
        header_timeout: section.duration("header_timeout", 10_000, 100..=60_000, SLOW),
        body_timeout: section.duration("body_timeout", 30_000, 100..=60_000, SLOW),
        idle_timeout: section.duration("idle_timeout", 75_000, 20_000..=3_600_000, IDLE),
        wait_for_kafka: section.duration("wait_for_kafka", 0, 0..=5000, WAIT),
        drain: section.duration("drain", 20_000, 0..=600_000, DRAIN),
        tls: section.table("tls").and_then(tls),
    }
}

fn public_url(value: &NodeValue) -> Result<String, String> {
    const WHOLE: &str = "use scheme and host alone, as in \"https://edge.example.com\": the path \
                         /hooks/ and the source's name follow it";
    let written = text(value)?;
    if written.contains('@') {
        // The text is not repeated: it may hold a password.
        return Err(format!("has a login in it: {WHOLE}"));
    }
    // `Uri` leaves out what follows '#', and takes any number for a port.
    let is_base = |uri: &Uri| {
        let Some(authority) = uri.authority() else { return false };
        let is_host = authority.host() == authority.as_str() || authority.port_u16().is_some();
        let is_http = matches!(uri.scheme_str(), Some("https" | "http"));
        let is_alone = uri.path() == "/" && !written.contains(['?', '#']);
        is_http && !authority.host().is_empty() && is_host && is_alone
    };
    match written.parse().ok().filter(is_base) {
        Some(_) => Ok(written.trim_end_matches('/').to_owned()),
        None => Err(format!("is \"{written}\": {WHOLE}")),
    }
}

fn tls(mut section: Section<'_>) -> Option<Tls> {
    let files = section.value("certificate_file", path).zip(section.value("key_file", path));
    let Some((certificate_file, key_file)) = files else {
        section.problem("needs both certificate_file and key_file, PEM each");
        return None;
    };
    section.holds_secret(&key_file);
    Some(Tls { certificate_file, key_file })
}

/// Whether the system gives only one of them. An address of all networks of IPv6 takes those of IPv4, too.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let takes = |all: SocketAddr, some: SocketAddr| {
        all.ip().is_unspecified() && (all.is_ipv6() || some.is_ipv4())
    };
    let same_ip = one.ip() == other.ip() || takes(one, other) || takes(other, one);
    one.port() != 0 && one.port() == other.port() && same_ip
}

fn admin(mut section: Section<'_>, http: &Http) -> Admin {
    let listen = |value: &NodeValue| match address(value)? {
        same if overlap(same, http.listen) => Err(format!(
            "is {same}, which http.listen ({}) takes: probes and metrics need a port of their own",
            http.listen
        )),
        other => Ok(other),
    };
    let listen = section.value_or("listen", (Ipv4Addr::LOCALHOST, 9090), listen);
    Admin { listen, tokens: secrets_file(&mut section, "token_file") }
}

fn journal(mut section: Section<'_>, http: &Http) -> Journal {
    const BYTES: &str = "the journal has to hold two bodies of http.max_body_bytes, each with its \
                         head";
    const FREE: &str = "no file system is that large";
    // Readiness needs room for the largest call, and after a full journal for two. A frame of the
    // journal has less than 64 bytes beside its record.
    let least = 2 * (http.largest_record_bytes() as u64 + 64);
    const DURABILITY: &str = "was removed: a callback is always synced to disk before it is \
                              answered 200; delete the line";
    section.removed("durability", DURABILITY);
    Journal {
        directory: section.value_or("directory", "/var/lib/weni-edge", path),
        max_bytes: section.number("max_bytes", 10_737_418_240, least..=1 << 50, BYTES),
        min_free_bytes: section.number("min_free_bytes", 1_073_741_824, 0..=1 << 50, FREE),
        allow_volatile: section.value_or("allow_volatile", false, flag),
    }
}

fn kafka(mut section: Section<'_>) -> Kafka {
    const LATE: &str = "every event would wait that long";
    Kafka {
        bootstrap_servers: section.value("bootstrap_servers", servers).unwrap_or_default(),
        identity_prefix: section
            .value_or("identity_prefix", "weni-edge.", |value| plain(text(value)?, 100)),
        commit_interval: section.duration("commit_interval", 50, 0..=5000, LATE),
        // Tables come last: the values in effect are written in the order in which they are read.
        create_topics: create_topics(&mut section),
        properties: properties::read(section.section("properties")),
    }
}

fn create_topics(section: &mut Section<'_>) -> Option<CreateTopics> {
    const TABLE: &str = "{ partitions = 12, replication_factor = 3 }";
    const REFUSED: &str = "Kafka does not take it";
    if section.peek("create_topics").is_none_or(|value| flag(value).is_ok()) {
        section.value_or("create_topics", false, |value| match flag(value)? {
            true => Err(format!("is true: say {TABLE}")),
            false => Ok(false),
        });
        return None;
    }
    let mut section = section.table("create_topics")?;
    if section.peek("partitions").is_none() || section.peek("replication_factor").is_none() {
        section.problem(&format!("has to be false or whole: {TABLE}"));
    }
    Some(CreateTopics {
        partitions: section.number("partitions", 12, 1..=10_000, REFUSED),
        replication_factor: section.number("replication_factor", 3, 1..=32_767, REFUSED),
    })
}

fn servers(value: &NodeValue) -> Result<String, String> {
    let servers = text(value)?;
    let server = |server: &str| {
        let address = server.rsplit_once("://").map_or(server, |(_, address)| address);
        let (host, port) = match address.rsplit_once(':') {
            // An IPv6 address without a port ends with a bracket.
            Some((host, port)) if !port.ends_with(']') => (host, port.parse::<u16>().ok()),
            _ => (address, Some(9092)),
        };
        !host.is_empty() && !host.contains(char::is_whitespace) && port.is_some()
    };
    if servers.split(',').map(str::trim).all(server) {
        return Ok(servers);
    }
    Err(format!("is \"{servers}\": use host:port, several with commas between them"))
}

fn topics(mut section: Section<'_>) -> Topics {
    let name = |value: &NodeValue| match text(value)? {
        name if matches!(&*name, "." | "..") => {
            Err(format!("is \"{name}\", which Kafka does not take for a topic's name"))
        }
        name => plain(name, 249),
    };
    let mut topic = |key, default| section.value_or(key, default, name);
    let topics = Topics {
        message_status: topic("message_status", "weni.message-status.v1"),
        inbound_message: topic("inbound_message", "weni.inbound-message.v1"),
        channel_event: topic("channel_event", "weni.channel-event.v1"),
        dead_letter: topic("dead_letter", "weni.dead-letter.v1"),
        position: topic("position", "weni.edge-position.v1"),
        key_by_conversation: section
            .choice("inbound_key", &[("message", false), ("conversation", true)]),
    };
    // The dead letters' topic can replace an event topic that does not exist yet.
    let mut taken = BTreeSet::from([&topics.dead_letter]);
    let events = [&topics.message_status, &topics.inbound_message, &topics.channel_event];
    for name in events.into_iter().filter(|name| **name != topics.dead_letter) {
        if !taken.insert(name) {
            section.problem(&format!(
                "name \"{name}\" twice: each kind of event needs its own topic, or that of the \
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

fn plain(text: String, len_max: usize) -> Result<String, String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=len_max).contains(&text.len()) && text.bytes().all(is_plain) {
        return Ok(text);
    }
    Err(format!("is \"{text}\": use 1 to {len_max} of A-Z, a-z, 0-9, '.', '_', '-'"))
}

fn log(mut section: Section<'_>) -> Log {
    let formats =
        [("auto", LogFormat::Auto), ("human", LogFormat::Human), ("json", LogFormat::Json)];
    Log {
        format: section.choice("format", &formats),
        level: section.value_or("level", "info", level),
    }
}

/// `Targets` would take a misspelt level for a module's name, and silence everything else.
fn level(value: &NodeValue) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let directive = |text: &str| text.contains('=') || LEVELS.contains(&text);
    let text = text(value)?;
    if text.split(',').map(str::trim).all(directive) && text.parse::<Targets>().is_ok() {
        return Ok(text);
    }
    Err(format!("is \"{text}\": use {}, or \"info,weni_edge::publish=debug\"", LEVELS.join(", ")))
}

fn address(value: &NodeValue) -> Result<SocketAddr, String> {
    let text = text(value)?;
    text.parse().map_err(|_| {
        format!("is \"{text}\": use an address and a port, as in \"0.0.0.0:8080\" or \"[::]:8080\"")
    })
}
