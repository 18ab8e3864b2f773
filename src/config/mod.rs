//! Configuration: defaults < file < environment.
//!
//! The file is TOML. A variable such as `WENI_EDGE__KAFKA__BOOTSTRAP_SERVERS` overrides it (two
//! underscores between levels). All problems are reported at once, each with the line of the file
//! or the name of the variable, and with the remedy. `load` and `sources` are the tables of all keys
//! with their defaults; `section` takes values out of a `document`.
//!
//! **Invariant:** neither an error nor `Debug` shows the text of a [`Secret`].

pub(crate) mod client;
mod document;
mod load;
mod properties;
mod section;
mod sources;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::Duration,
};

pub(crate) use document::read_file;
pub use document::{EffectiveValue, to_toml};
pub use load::ConfigError;
pub use section::parse_duration;

use crate::event::{Settings, Topic};

/// A file with every key, its default and what it means. It lacks only a secret that is long enough.
pub const DEFAULT_FILE: &str = include_str!("../../deploy/weni-edge.toml");

/// What is shown instead of a secret. As a secret of a source it would be too short.
const HIDDEN: &str = "(secret)";

/// The whole configuration: a section of `weni-edge.toml` each.
#[expect(missing_docs, reason = "the types say what each is")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub http: Http,
    pub admin: Admin,
    pub sources: BTreeMap<String, Source>,
    pub journal: Journal,
    pub kafka: Kafka,
    pub topics: Topics,
    pub log: Log,
    /// Files that hold a secret. The configuration's own file may be one of them.
    pub secret_files: BTreeSet<PathBuf>,
}

/// The public listener and its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where callers reach it: scheme and host as they are pasted into Weni, without a path and
    /// without a slash at the end. None: not known.
    pub public_url: Option<String>,
    /// The largest accepted body, in bytes.
    pub max_body_bytes: usize,
    /// Bodies, heads and unsent answers together, in bytes.
    pub max_memory_bytes: usize,
    /// Connections that may be open at once.
    pub max_connections: usize,
    /// From the first byte of a request to the end of its head.
    pub header_timeout: Duration,
    /// From the end of the head to the end of the body.
    pub body_timeout: Duration,
    /// Keep-alive between two requests.
    pub idle_timeout: Duration,
    /// How long an answer waits until its callback is in Kafka. Zero means that it does not wait.
    pub wait_for_kafka: Duration,
    /// How long callbacks are still accepted after SIGTERM.
    pub drain: Duration,
    /// None: plain HTTP.
    pub tls: Option<Tls>,
}

/// PEM files of the public listener's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The chain, the edge's own certificate first.
    pub certificate_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

/// The listener for probes, metrics and the inspector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Each of them logs in to the inspector. They are the lines of `token_file`.
    pub tokens: Vec<Secret>,
}

/// One webhook: `/hooks/{name}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The header that carries the secret.
    pub header: String,
    /// Each of them is valid, also the lines of `secrets_file`.
    pub secrets: Vec<Secret>,
    /// Replaces header and secrets.
    pub allow_unauthenticated: bool,
    /// `raw = "all"`: each event carries its original element. Otherwise `"untyped"`: only where
    /// typed fields do not hold all of it.
    pub raw: bool,
    /// Pairs that each event carries, as a JSON object; empty without any.
    pub labels: String,
}

/// Text that must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Where callbacks are kept until they are in Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    /// Holds nothing else.
    pub directory: PathBuf,
    /// The most that callbacks may take that are not in Kafka yet.
    pub max_bytes: u64,
    /// Bytes of the file system that the journal leaves free.
    pub min_free_bytes: u64,
    /// Whether the directory may be on a file system that loses its content in a restart.
    pub allow_volatile: bool,
}

/// The cluster to publish to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kafka {
    /// Empty if it is not configured.
    pub bootstrap_servers: String,
    /// What missing event topics are created with. `None` creates none.
    pub create_topics: Option<CreateTopics>,
    /// The transactional id and the group are this prefix and the journal's id.
    pub identity_prefix: String,
    /// The shortest time from the beginning of a transaction that is not full to the next one.
    pub commit_interval: Duration,
    /// Of librdkafka.
    pub properties: BTreeMap<String, Secret>,
}

/// What missing topics are created with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreateTopics {
    /// Of each topic.
    pub partitions: i32,
    /// Of each partition.
    pub replication_factor: i32,
}

/// Names of the topics.
#[expect(missing_docs, reason = "`event::Topic` says what each carries")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    pub message_status: String,
    pub inbound_message: String,
    pub channel_event: String,
    pub dead_letter: String,
    pub position: String,
    /// `inbound_key = "conversation"`: inbound messages are keyed by group or user, not by message.
    pub key_by_conversation: bool,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The form of a line.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug` or `trace` for our own modules, and levels for named
    /// modules, as in `info,weni_edge::publish=debug`. Libraries that are not named are silent.
    pub level: String,
}

/// The form of a line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `Human` on a terminal, `Json` otherwise.
    Auto,
    /// Text for people.
    Human,
    /// An object a line.
    Json,
}

impl Config {
    /// What the configuration says of a source's events. A source that is gone has no labels.
    pub fn event_settings(&self, source: &str) -> Settings<'_> {
        let labels = self.sources.get(source).map_or("", |source| &source.labels).as_bytes();
        Settings { labels, key_by_conversation: self.topics.key_by_conversation }
    }

    /// Files with secrets that every user of this machine may read or change. None: there is none.
    pub fn exposed_files(&self) -> Option<String> {
        let exposed = |path: &&PathBuf| {
            fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0)
        };
        let exposed = self.secret_files.iter().filter(exposed);
        let names: Vec<_> = exposed.map(|path| path.display().to_string()).collect();
        (!names.is_empty()).then(|| names.join(" "))
    }

    /// The properties of a login or of TLS that do nothing, because `security.protocol` is one without it.
    pub fn unused_properties(&self) -> Vec<&str> {
        properties::unused(&self.kafka.properties)
    }
}

impl Topics {
    /// The configured name of a topic.
    pub fn name(&self, topic: Topic) -> &str {
        match topic {
            Topic::MessageStatus => &self.message_status,
            Topic::InboundMessage => &self.inbound_message,
            Topic::ChannelEvent => &self.channel_event,
            Topic::DeadLetter => &self.dead_letter,
        }
    }
}

impl Http {
    /// The size of the largest call's record in the journal.
    pub fn largest_record_bytes(&self) -> usize {
        // Beside the body: at most 16 KiB of headers, the source's name, and fixed fields.
        self.max_body_bytes + (17 << 10)
    }
}

impl Secret {
    /// Keeps it as it is.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, to compare it or to give it to librdkafka.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(HIDDEN)
    }
}
