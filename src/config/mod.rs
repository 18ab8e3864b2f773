//! Configuration: defaults < file < environment.
//!
//! One file in TOML, and `WENI_EDGE__KAFKA__BOOTSTRAP_SERVERS=…` over it (two underscores between
//! levels). Everything that is wrong is reported at once, each with the line of the file or the
//! name of the variable and with the remedy. `document` says where a value was written,
//! `section` takes values out of it, `load` knows every key and `properties` Kafka's own.
//!
//! **Invariant:** a [`Secret`] never shows itself: not in `Debug`, not in errors.

mod document;
mod duration;
mod load;
mod properties;
mod section;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

pub use duration::{parse_duration, show_duration};
pub use load::ConfigError;

/// The whole configuration, as in `weni-edge.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    pub http: Http,
    pub admin: Admin,
    pub sources: BTreeMap<String, Source>,
    pub journal: Journal,
    pub kafka: Kafka,
    pub topics: Topics,
    pub duplicates: Duplicates,
    pub log: Log,
}

/// The public listener and its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    pub listen: SocketAddr,
    /// The largest body that is accepted, in bytes.
    pub max_body_bytes: usize,
    /// Bodies of all requests together, in bytes.
    pub max_memory_bytes: usize,
    pub max_connections: usize,
    /// From the first byte of a request to the end of its head.
    pub header_timeout: Duration,
    /// From the end of the head to the end of the body.
    pub body_timeout: Duration,
    /// Keep-alive between two requests.
    pub idle_timeout: Duration,
    /// How long an answer waits for its callback to be in Kafka; zero for not at all.
    pub wait_for_kafka: Duration,
    /// How long callbacks are still accepted after SIGTERM.
    pub drain: Duration,
    pub tls: Option<Tls>,
}

/// PEM files of the public listener's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
}

/// The listener for probes and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    pub listen: SocketAddr,
}

/// One webhook: `/hooks/{name}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The header that carries the secret.
    pub header: String,
    /// All of them are valid; those of `secrets_file` are added when it is loaded.
    pub secrets: Vec<Secret>,
    pub secrets_file: Option<PathBuf>,
    /// Instead of header and secrets.
    pub allow_unauthenticated: bool,
    /// Whether events carry the element as it came.
    pub raw: bool,
}

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Where callbacks are kept until they are in Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    pub directory: PathBuf,
    pub max_bytes: u64,
    /// Bytes of the file system that the journal leaves free.
    pub min_free_bytes: u64,
    pub durability: Durability,
}

/// What an accepted callback survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// Power cuts: synced before the answer.
    #[default]
    Fsync,
    /// The process's end: in the page cache before the answer.
    Os,
}

/// The cluster that is published to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kafka {
    /// Empty until it is given.
    pub bootstrap_servers: String,
    /// `false`, or what the four event topics are created with when they are missing.
    pub create_topics: Option<CreateTopics>,
    /// Transactional id and group are this and the journal's id.
    pub identity_prefix: String,
    /// The shortest time between the beginnings of two transactions that are not full.
    pub commit_interval: Duration,
    /// librdkafka's own.
    pub properties: BTreeMap<String, Secret>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreateTopics {
    pub partitions: i32,
    pub replication_factor: i32,
}

/// Names of the topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    pub message_status: String,
    pub inbound_message: String,
    pub channel_event: String,
    pub dead_letter: String,
    pub position: String,
}

/// The window in which exact repetitions are dropped; either limit 0 turns it off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Duplicates {
    pub window: Duration,
    pub entries: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or such a level for a module, as in
    /// `info,weni_edge::publish=debug`.
    pub level: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    #[default]
    Auto,
    Human,
    Json,
}

impl Secret {
    /// Takes `text` out of sight.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for comparing and for handing to Kafka's client; not for showing.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(secret)")
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)),
            max_body_bytes: 1_000_000,
            max_memory_bytes: 67_108_864,
            max_connections: 10_000,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            wait_for_kafka: Duration::ZERO,
            drain: Duration::from_secs(20),
            tls: None,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)) }
    }
}

impl Default for Source {
    fn default() -> Self {
        Self {
            header: String::new(),
            secrets: Vec::new(),
            secrets_file: None,
            allow_unauthenticated: false,
            raw: true,
        }
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("/var/lib/weni-edge"),
            max_bytes: 10_737_418_240,
            min_free_bytes: 1_073_741_824,
            durability: Durability::default(),
        }
    }
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            bootstrap_servers: String::new(),
            create_topics: None,
            identity_prefix: "weni-edge.".into(),
            commit_interval: Duration::from_millis(50),
            properties: BTreeMap::new(),
        }
    }
}

impl Default for Topics {
    fn default() -> Self {
        Self {
            message_status: "weni.message-status.v1".into(),
            inbound_message: "weni.inbound-message.v1".into(),
            channel_event: "weni.channel-event.v1".into(),
            dead_letter: "weni.dead-letter.v1".into(),
            position: "weni.edge-position.v1".into(),
        }
    }
}

impl Default for Duplicates {
    fn default() -> Self {
        Self { window: Duration::from_secs(600), entries: 100_000 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::default(), level: "info".into() }
    }
}
