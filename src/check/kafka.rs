//! Kafka: whether it answers and lets the edge in, its version, and what follows in [`topics`] and
//! [`rights`].

use std::sync::Arc;

use uuid::Uuid;

use super::{
    Aspect, Finding, Report, Subject, rights,
    topics::{self, Inventory},
};
use crate::{
    config::Config,
    event::Topic,
    kafka::{Blocked, Cluster as _, Obstacle, librdkafka::Cluster, version::PROVED},
};

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
    report.all(rights::check(config, &cluster, &topics, &usable, report).err());
}

/// Of clients and transactions. It begins as the rights of the edge's user do, and is no edge's.
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
        Blocked::JournalDiverged
        | Blocked::PositionReset
        | Blocked::ClusterChanged
        | Blocked::PublisherWedged
        | Blocked::Disk
        | Blocked::KafkaError => "the words are librdkafka's; the RUNBOOK has more",
    }
}

/// One line of an obstacle, as a finding.
pub(super) fn obstructed(aspect: Aspect, what: &str, obstacle: &Obstacle) -> Finding {
    let found = format!("{what}: {}", obstacle.detail);
    aspect.problem(found, remedy(obstacle.blocked))
}
