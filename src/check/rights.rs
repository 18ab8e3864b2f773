//! What the edge's user may do: a transaction as the edge makes them, aborted.
//!
//! Records of an aborted transaction stay in their topics until retention deletes them, and no
//! `read_committed` consumer is shown one. Nothing else in Kafka shows that a record may be written.

use std::time::{Duration, Instant};

use super::{
    Aspect, Finding, Report,
    kafka::{obstructed, remedy},
};
use crate::{
    clock,
    config::{Config, client::TRANSACTION_TIMEOUT},
    kafka::{
        BATCH_BYTES, Blocked, Cluster as _, Code, ErrorClass, Failure, GroupOffset, Headers,
        Producer as _, ProducerSettings, Record, Topics, View, classify, label,
        librdkafka::{Cluster, Producer},
    },
};

const ASPECT: Aspect = Aspect::KafkaTransaction;
/// A check that is killed leaves its transaction open until this is over, so none is begun so late.
const TRIAL: Duration = Duration::from_secs(10);
/// Of a broker's answer.
const CALL: Duration = Duration::from_secs(5);
const SETTINGS: ProducerSettings =
    ProducerSettings { timeout: TRANSACTION_TIMEOUT, batch_bytes: BATCH_BYTES };

/// Writes to each of the topics and commits a position, each in a transaction that is aborted. The names
/// are those of topics that exist. An error is the last finding.
pub(super) fn check(
    config: &Config,
    cluster: &Cluster,
    topics: &Topics,
    names: &[&str],
    report: &Report,
) -> Result<(), Finding> {
    let started = Instant::now();
    let mut producer = open(cluster, topics)?;
    let short = judge_timeout(producer.timeout());
    let mut is_well = short.is_none();
    report.all(short);
    let position = config.topics.position.as_str();
    for name in names {
        if report.time_left() < TRIAL {
            let found = format!("{name} and what follows was not tried: Kafka answers too slowly");
            return Err(ASPECT.warning(found, remedy(Blocked::TooSlow)));
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
        true => ASPECT.ok(format!("{wrote}, committed a position, aborted: {took} ms")),
        false => ASPECT.warning(
            format!(
                "{wrote}, aborted: {took} ms; committing a position was not tried, because {position} does \
                 not exist yet"
            ),
            "check again after the first start, or create the topic (one partition)",
        ),
    });
    Ok(())
}

fn judge_timeout(timeout: Duration) -> Option<Finding> {
    (timeout < TRANSACTION_TIMEOUT).then(|| {
        let found = format!(
            "the cluster allows transactions of {:.0} s, and the edge asks for {} s: large callbacks may \
             not fit",
            timeout.as_secs_f64(),
            TRANSACTION_TIMEOUT.as_secs()
        );
        let remedy = "set transaction.max.timeout.ms of the brokers to 15000 or more (900000 is Kafka's \
                      default)";
        ASPECT.warning(found, remedy)
    })
}

fn open(cluster: &Cluster, topics: &Topics) -> Result<Producer, Finding> {
    let opened = cluster.open(topics, SETTINGS);
    opened.map_err(|obstacle| obstructed(ASPECT, "no transaction can be opened", &obstacle))
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
    read.map(drop).map_err(|obstacle| obstructed(ASPECT, &what, &obstacle))
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
        let unsure = || ASPECT.problem(what, remedy(Blocked::KafkaError));
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
    ASPECT.problem(format!("{what}: {words} ({})", label(code)), remedy(blocked))
}
