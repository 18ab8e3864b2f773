//! librdkafka's own properties: passed on, unless one would break what the edge promises.

use std::{collections::BTreeMap, fs};

use super::{
    Secret,
    document::{Node, Value},
    section::{Section, flag},
};

const IDENTITY: &str =
    "is made of kafka.identity_prefix and the journal's id: by it Kafka knows how far we came";
const IDEMPOTENCE: &str =
    "belongs to transactions: with another value events get lost, doubled or out of order";
const TIMEOUT: &str =
    "is managed by the edge: events wait in the journal for as long as Kafka is away";
const POSITION: &str = "is the position's: it is committed in the events' own transactions";
const SIZE: &str = "follows http.max_body_bytes";
const SERVERS: &str = "has a key of its own: kafka.bootstrap_servers";

/// Properties that are refused, and why.
const REFUSED: &[(&str, &str)] = &[
    ("acks", "stays `all`: an event is in Kafka when every replica in sync has it"),
    (
        "request.required.acks",
        "stays `all`: an event is in Kafka when every replica in sync has it",
    ),
    ("bootstrap.servers", SERVERS),
    ("metadata.broker.list", SERVERS),
    ("transactional.id", IDENTITY),
    ("group.id", IDENTITY),
    ("group.instance.id", IDENTITY),
    ("enable.idempotence", IDEMPOTENCE),
    ("enable.gapless.guarantee", IDEMPOTENCE),
    ("max.in.flight", IDEMPOTENCE),
    ("max.in.flight.requests.per.connection", IDEMPOTENCE),
    ("retries", IDEMPOTENCE),
    ("message.send.max.retries", IDEMPOTENCE),
    ("queuing.strategy", IDEMPOTENCE),
    ("transaction.timeout.ms", TIMEOUT),
    ("message.timeout.ms", TIMEOUT),
    ("delivery.timeout.ms", TIMEOUT),
    ("enable.auto.commit", POSITION),
    ("auto.commit.enable", POSITION),
    ("auto.commit.interval.ms", POSITION),
    ("enable.auto.offset.store", POSITION),
    ("auto.offset.reset", POSITION),
    ("isolation.level", "stays `read_committed`: an open transaction's position is not the truth"),
    ("partitioner", "stays `murmur2_random`: every client finds the partition of a message's id"),
    ("message.max.bytes", SIZE),
    (
        "delivery.report.only.error",
        "stays on: the edge is told what is refused, and counts the rest",
    ),
    ("test.mock.num.brokers", "keeps events in memory only; `weni-edge dev` is for trying out"),
];

/// Reads `[kafka.properties]`: `"sasl.password" = "…"`, or `"sasl.password_file" = "…"` with its
/// value in a file. In a variable's name one underscore stands for the property's dot.
pub(super) fn read(mut section: Section<'_>) -> BTreeMap<String, Secret> {
    let mut given = Vec::new();
    for (key, node) in section.drain() {
        flatten(key, node, &mut given);
    }
    // Variables come last, because they count more than the file.
    given.sort_by_key(|(_, node)| matches!(node.value, Value::Variable(_)));
    let mut properties: BTreeMap<String, (Secret, bool)> = BTreeMap::new();
    for (key, node) in given {
        let variable = matches!(node.value, Value::Variable(_));
        let (name, from_file) = name(&key, variable);
        let report = |why: &str| section.report(&node.origin, &section.path_of(&key), why);
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            report(&format!("is not for you to set: it {why}; leave it out"));
            continue;
        }
        match value(&node, from_file) {
            Err(why) => report(&why),
            Ok(value) => {
                let before = properties.insert(name.clone(), (Secret::new(value), variable));
                if before.is_some_and(|(_, before)| before == variable) {
                    report(&format!("gives {name} a second time; leave one of them out"));
                }
            }
        }
    }
    properties.into_iter().map(|(name, (value, _))| (name, value)).collect()
}

/// A dotted key without quotes is a table in a table to TOML, and one property to everybody else.
fn flatten(key: String, node: Node, out: &mut Vec<(String, Node)>) {
    match node.value {
        Value::Table(entries) => {
            for (below, node) in entries {
                flatten(format!("{key}.{below}"), node, out);
            }
        }
        _ => out.push((key, node)),
    }
}

fn name(key: &str, variable: bool) -> (String, bool) {
    let (name, from_file) = match key.strip_suffix("_file") {
        Some(name) => (name, true),
        None => (key, false),
    };
    (if variable { name.replace('_', ".") } else { name.into() }, from_file)
}

fn value(node: &Node, from_file: bool) -> Result<String, String> {
    let value = match &node.value {
        Value::Variable(text) | Value::Typed(toml::Value::String(text)) => text.clone(),
        Value::Typed(toml::Value::Integer(number)) => number.to_string(),
        value => {
            flag(value).map_err(|_| "has to be text, a whole number or true or false")?.to_string()
        }
    };
    if !from_file {
        return Ok(value);
    }
    let text = fs::read_to_string(&value).map_err(|error| format!("names {value}: {error}"))?;
    Ok(text.trim_end_matches(['\r', '\n']).into())
}
