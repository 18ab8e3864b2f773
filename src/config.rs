//! Configuration: defaults < file < environment.
//!
//! **Invariant:** a [`Secret`] never shows itself: not in `Debug`, not in errors.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use serde::Deserialize;

/// The whole configuration, as in `weni-edge.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
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
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
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
    /// How long callbacks are still accepted after SIGTERM.
    pub drain: Duration,
    pub tls: Option<Tls>,
}

/// PEM files of the public listener's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
}

/// The listener for probes and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    pub listen: SocketAddr,
}

/// One webhook: `/hooks/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
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
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

/// Where callbacks are kept until they are in Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Journal {
    pub directory: PathBuf,
    pub max_bytes: u64,
    /// Bytes of the file system that the journal leaves free.
    pub min_free_bytes: u64,
    pub durability: Durability,
}

/// What an accepted callback survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Power cuts: synced before the answer.
    #[default]
    Fsync,
    /// The process's end: in the page cache before the answer.
    Os,
}

/// The cluster that is published to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kafka {
    pub bootstrap_servers: String,
    /// `false`, or what the four event topics are created with when they are missing.
    #[serde(deserialize_with = "false_or_table")]
    pub create_topics: Option<CreateTopics>,
    /// Transactional id and group are this and the journal's id.
    pub identity_prefix: String,
    /// The shortest time between the beginnings of two transactions that are not full.
    pub commit_interval: Duration,
    /// librdkafka's own.
    pub properties: BTreeMap<String, Secret>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTopics {
    pub partitions: i32,
    pub replication_factor: i32,
}

/// Names of the topics.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Topics {
    pub message_status: String,
    pub inbound_message: String,
    pub channel_event: String,
    pub dead_letter: String,
    pub position: String,
}

/// The window in which exact repetitions are dropped; either limit 0 turns it off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Duplicates {
    pub window: Duration,
    pub entries: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives as of tracing's `EnvFilter`.
    pub level: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    #[default]
    Auto,
    Human,
    Json,
}
