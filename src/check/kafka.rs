//! Kafka: whether it answers and lets the edge in, its version, its topics (see [`topics`]), and what the
//! edge's user may do. Only a record that is written shows that the user may write one, so records are
//! written in transactions of the edge's kind, and these are aborted.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    Aspect, Finding, Report, Subject,
    topics::{self, Inventory},
};
use crate::{
    clock,
    config::{Config, client::TRANSACTION_TIMEOUT},
    event::Topic,
    kafka::{
        BATCH_BYTES, Blocked, Cluster as _, Code, ErrorClass, Failure, GroupOffset, Headers,
        Obstacle, Producer as _, ProducerSettings, Record, Topics, View, classify, label,
        librdkafka::{Cluster, Producer},
        version::PROVED,
    },
};

const TRANSACTION: Aspect = Aspect::KafkaTransaction;
/// A check that is killed leaves its transaction open until this is over, so none is begun so late.
const TRIAL: Duration = Duration::from_secs(10);
/// The limit for a broker's answer.
const CALL: Duration = Duration::from_secs(5);
const SETTINGS: ProducerSettings =
    ProducerSettings { timeout: TRANSACTION_TIMEOUT, batch_bytes: BATCH_BYTES };

pub(super) fn probe(subject: &Subject, report: &Report) {
    let config = &subject.config;
    let group = group(config);
    let servers = &config.kafka.bootstrap_servers;
    let entered = Cluster::new(Arc::clone(config), group, Arc::default())
        .and_then(|cluster| Ok((cluster.look(false)?, cluster)));
    let (topics, cluster) = match entered {
        Ok(entered) => entered,
        Err(obstacle) => {
            let found = format!(
                "Kafka at {servers} cannot be used: {}; version, topics and rights were not looked at",
                obstacle.detail
            );
            return report.add(Aspect::Kafka.problem(found, remedy(obstacle.blocked)));
        }
    };
    let id = &topics.cluster_id;
    if id.starts_with("mockCluster") {
        // It shows aborted records to consumers, and has no settings.
        let found =
            format!("{servers} is the embedded Kafka of `weni-edge dev`, which keeps nothing");
        let remedy = "name a real cluster in kafka.bootstrap_servers: version, topics and rights were not \
                      looked at";
        return report.add(Aspect::Kafka.warning(found, remedy));
    }
    report.add(Aspect::Kafka.ok(format!("{servers} answers: cluster {id}")));
    report.add(judge_version(cluster.broker_version()));
    let mut names = Vec::new();
    let events = Topic::ALL.map(|topic| config.topics.name(topic));
    for name in events.into_iter().chain([config.topics.position.as_str()]) {
        // Several kinds of events may share a topic.
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let states = cluster.topic_states(&names);
    let mut inventory = Inventory::default();
    if states.iter().any(|state| matches!(state, Ok(None))) {
        // Without it a remedy says less.
        (inventory.topics, inventory.brokers) = cluster.inventory().unwrap_or_default();
    }
    let mut usable = Vec::new();
    for (name, state) in names.iter().zip(states) {
        let state = match state {
            Ok(None) => cluster.try_creation(name).map(|()| None),
            state => state,
        };
        if matches!(state, Ok(Some(_))) {
            usable.push(*name);
        }
        report.all(topics::judge(config, &inventory, name, state));
    }
    report.all(try_rights(config, &cluster, &topics, &usable, report).err());
}

/// Writes to each of the topics and commits a position, each in a transaction that is aborted. The names
/// are those of topics that exist. An error is the last finding.
fn try_rights(
    config: &Config,
    cluster: &Cluster,
    topics: &Topics,
    names: &[&str],
    report: &Report,
) -> Result<(), Finding> {
    let started = Instant::now();
    let mut producer = open(cluster, topics)?;
    let mut is_well = producer.timeout() >= TRANSACTION_TIMEOUT;
    if !is_well {
        let found = format!(
            "the cluster allows transactions of {:.0} s, and the edge asks for {} s: large callbacks may \
             not fit",
            producer.timeout().as_secs_f64(),
            TRANSACTION_TIMEOUT.as_secs()
        );
        let remedy = "set transaction.max.timeout.ms of the brokers to 15000 or more (900000 is Kafka's \
                      default)";
        report.add(TRANSACTION.warning(found, remedy));
    }
    let position = config.topics.position.as_str();
    for name in names {
        if report.time_left() < TRIAL {
            let found = format!("{name} and what follows was not tried: Kafka answers too slowly");
            return Err(TRANSACTION.warning(found, remedy(Blocked::TooSlow)));
        }
        // In this order, because the answer to the first names a missing right, and librdkafka retries the
        // second until its time is over.
        let tried = match *name == position {
            true => commit_position(&mut producer, position)
                .and_then(|()| read_position(cluster, position)),
            false => write(&mut producer, name),
        };
        if let Err(finding) = tried {
            is_well = false;
            report.add(finding);
            // A producer that was refused something may be of no more use.
            producer = open(cluster, topics)?;
        }
    }
    let has_position = names.contains(&position);
    if !has_position {
        read_position(cluster, position)?;
    }
    if !is_well {
        return Ok(());
    }
    let wrote = match names.len() - usize::from(has_position) {
        0 => "opened, wrote nothing, because no topic of events exists yet".to_owned(),
        1 => "opened, wrote to one topic".to_owned(),
        topics => format!("opened, wrote to {topics} topics"),
    };
    let took = started.elapsed().as_millis();
    report.add(match has_position {
        true => TRANSACTION.ok(format!("{wrote}, committed a position, aborted: {took} ms")),
        false => TRANSACTION.warning(
            format!(
                "{wrote}, aborted: {took} ms; committing a position was not tried, because {position} does \
                 not exist yet"
            ),
            "check again after the first start, or create the topic (one partition)",
        ),
    });
    Ok(())
}

fn open(cluster: &Cluster, topics: &Topics) -> Result<Producer, Finding> {
    let opened = cluster.open(topics, SETTINGS);
    opened.map_err(|obstacle| obstructed(TRANSACTION, "no transaction can be opened", &obstacle))
}

fn write(producer: &mut Producer, topic: &str) -> Result<(), Finding> {
    let mut headers = Headers::default();
    headers.push("weni-edge-check", b"aborted");
    let record = Record {
        topic,
        key: "weni-edge-check",
        value: b"",
        headers: &headers,
        timestamp_ms: clock::wall_ms() as i64,
        number: 0,
    };
    let deadline = Instant::now() + CALL;
    aborted(producer, &format!("{topic} takes no event"), |producer| {
        producer.send(&record, deadline)?;
        producer.await_reports(deadline)
    })
}

fn commit_position(producer: &mut Producer, topic: &str) -> Result<(), Finding> {
    let (topic, metadata) = (topic.to_owned(), String::new());
    let what = format!("{topic} takes no position");
    let position = GroupOffset { topic, partition: 0, offset: 0, metadata };
    aborted(producer, &what, |producer| producer.send_offsets(&[position]))
}

fn read_position(cluster: &Cluster, topic: &str) -> Result<(), Finding> {
    let read = cluster.committed(View::Unstable, &[(topic, 0)], CALL);
    let what = format!("{topic} gives no position");
    read.map(drop).map_err(|obstacle| obstructed(TRANSACTION, &what, &obstacle))
}

/// Does `work` in a transaction that is aborted.
fn aborted(
    producer: &mut Producer,
    what: &str,
    work: impl FnOnce(&mut Producer) -> Result<(), Failure>,
) -> Result<(), Finding> {
    let worked = producer.begin().and_then(|()| work(producer));
    let mut refused = worked.err().map(|failure| refused(what, &failure));
    if let Err(code) = producer.abort() {
        let unsure = || TRANSACTION.problem(what, remedy(Blocked::KafkaError));
        let finding = refused.get_or_insert_with(unsure);
        finding.found += &format!("; its transaction cannot be aborted ({})", label(code));
    }
    refused.map_or(Ok(()), Err)
}

fn refused(what: &str, failure: &Failure) -> Finding {
    let code = failure.reports.first().map_or(failure.code, |(_, code)| *code);
    let blocked = match classify(code) {
        ErrorClass::Shared(blocked) => blocked,
        ErrorClass::Clock => Blocked::Clock,
        ErrorClass::Time => Blocked::TooSlow,
        _ => Blocked::KafkaError,
    };
    let words = match code {
        Code::TopicAuthorizationFailed => "its user lacks a right to the topic",
        Code::GroupAuthorizationFailed => "its user lacks the right Read on the group",
        _ => "Kafka refuses",
    };
    TRANSACTION.problem(format!("{what}: {words} ({})", label(code)), remedy(blocked))
}

/// The group and transactional id of this check. The edge's user has rights to the prefix, and no edge uses
/// the rest.
pub(super) fn group(config: &Config) -> String {
    format!("{}check.{}", config.kafka.identity_prefix, Uuid::new_v4().simple())
}

fn judge_version(version: Option<&str>) -> Finding {
    const ASPECT: Aspect = Aspect::KafkaVersion;
    let remedy = format!(
        "exactly once is proved on Apache Kafka {}: prefer one of them, or have your consumers upsert by \
         event_id",
        PROVED.join(" and ")
    );
    match version {
        Some(version) if PROVED.contains(&version) => {
            ASPECT.ok(format!("Apache Kafka {version}: proved"))
        }
        Some(version) => ASPECT.warning(format!("Apache Kafka {version}: not proved"), remedy),
        None => ASPECT.warning("the broker does not say what it offers", remedy),
    }
}

/// What to do about what stands in the way. The RUNBOOK says more in *WeniEdgeCallbacksAging*.
pub(super) fn remedy(blocked: Blocked) -> &'static str {
    match blocked {
        Blocked::NoBroker | Blocked::TooSlow => {
            "start the brokers; then look at DNS, firewall and NetworkPolicy, and whether \
             security.protocol fits the listener"
        }
        Blocked::NotAuthorized => {
            "compare sasl.username, password and mechanism; then give the user Write and Describe on the \
             four topics, and on transactional ids with the prefix kafka.identity_prefix"
        }
        Blocked::GroupNotAuthorized | Blocked::PositionUnreadable => {
            "give the user Read on groups with the prefix kafka.identity_prefix, and Read and Describe \
             on the position's topic"
        }
        Blocked::UnknownTopic => {
            "create it (or give the user Create on it), set kafka.create_topics to what the cluster can \
             do, or route it under [topics]"
        }
        Blocked::TopicRefuses => "mend the topic's settings (max.message.bytes, compression.type)",
        Blocked::TooFewReplicas => "start the brokers that are down",
        Blocked::NoTransactions => {
            "ask those who run Kafka: transactions have to be allowed, and \
             transaction.max.timeout.ms at least 15000"
        }
        Blocked::Clock => "set the clock of this machine or of the brokers (timedatectl)",
        Blocked::Tls => {
            "look at ssl.ca.location, and at name and dates of the brokers' certificates"
        }
        _ => "the words are librdkafka's; the RUNBOOK has more",
    }
}

/// One line of an obstacle, as a finding.
pub(super) fn obstructed(aspect: Aspect, what: &str, obstacle: &Obstacle) -> Finding {
    let found = format!("{what}: {}", obstacle.detail);
    aspect.problem(found, remedy(obstacle.blocked))
}
