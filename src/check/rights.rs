//! What the edge's user may do: a transaction as the edge makes them, aborted.
//!
//! Records of an aborted transaction stay in their topics until retention deletes them, and no
//! `read_committed` consumer is shown one. Nothing else in Kafka shows that a record may be written.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{
    Aspect, Finding, Report,
    kafka::{obstructed, remedy},
};
use crate::{
    config::{Config, client::TRANSACTION_TIMEOUT},
    kafka::{
        BATCH_BYTES, Blocked, Cluster as _, Code, Failure, Fault, GroupOffset, Headers,
        Producer as _, ProducerSettings, Record, Topics, View, classify, label,
        librdkafka::{Cluster, Producer},
    },
};

const ASPECT: Aspect = Aspect::KafkaTransaction;
/// Of a broker's answer.
const CALL: Duration = Duration::from_secs(5);
const SETTINGS: ProducerSettings =
    ProducerSettings { timeout: TRANSACTION_TIMEOUT, batch_bytes: BATCH_BYTES };

/// Writes to each of the topics and commits a position, each in a transaction that is aborted. The names
/// are those of topics that exist.
pub(super) fn check(
    config: &Config,
    cluster: &Cluster,
    topics: &Topics,
    names: &[&str],
    report: &Report,
) {
    let started = Instant::now();
    let mut trial = match Trial::open(cluster, topics) {
        Ok(trial) => trial,
        Err(finding) => return report.add(finding),
    };
    let mut is_well = true;
    if let Some(finding) = judge_timeout(trial.producer.timeout()) {
        is_well = false;
        report.add(finding);
    }
    let position = config.topics.position.as_str();
    for name in names {
        let tried = match *name == position {
            true => trial.commit_position(position),
            false => trial.write(name),
        };
        let Err(finding) = tried else { continue };
        is_well = false;
        report.add(finding);
        // A producer that was refused something may be of no more use.
        trial = match Trial::open(cluster, topics) {
            Ok(trial) => trial,
            Err(finding) => return report.add(finding),
        };
    }
    if is_well {
        report.add(Finding::ok(ASPECT, summary(names, position, started.elapsed())));
    }
}

/// What was tried, where all is well.
fn summary(names: &[&str], position: &str, took: Duration) -> String {
    let has_position = names.contains(&position);
    let events = names.len() - usize::from(has_position);
    let group = match has_position {
        true => "committed a position",
        false => "committed no position, because its topic does not exist yet",
    };
    format!("opened, wrote to {events} topics, {group}, aborted: {} ms", took.as_millis())
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
        Finding::warning(ASPECT, found, remedy)
    })
}

/// A producer and what it tries.
struct Trial<'a> {
    cluster: &'a Cluster,
    producer: Producer,
}

impl<'a> Trial<'a> {
    fn open(cluster: &'a Cluster, topics: &Topics) -> Result<Self, Finding> {
        let opened = cluster.open(topics, SETTINGS);
        let producer = opened
            .map_err(|obstacle| obstructed(ASPECT, "no transaction can be opened", &obstacle))?;
        Ok(Self { cluster, producer })
    }

    fn write(&mut self, topic: &str) -> Result<(), Finding> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut headers = Headers::default();
        headers.push("weni-edge-check", b"aborted");
        let record = Record {
            topic,
            key: "weni-edge-check",
            value: b"",
            headers: &headers,
            timestamp_ms: now.as_millis() as i64,
            number: 0,
        };
        let deadline = Instant::now() + CALL;
        self.aborted(&format!("{topic} takes no event"), |producer| {
            producer.send(&record, deadline)?;
            producer.await_reports(deadline)
        })
    }

    /// Commits a position in a transaction that is aborted, and reads the group's position. In this order,
    /// because the answer to the first names a missing right, and librdkafka retries the second until its
    /// time is over.
    fn commit_position(&mut self, topic: &str) -> Result<(), Finding> {
        let what = format!("{topic} takes no position");
        let position = GroupOffset {
            topic: topic.to_owned(),
            partition: 0,
            offset: 0,
            metadata: String::new(),
        };
        self.aborted(&what, |producer| producer.send_offsets(&[position]))?;
        let read = self.cluster.committed(View::Unstable, &[(topic, 0)], CALL);
        read.map(drop).map_err(|obstacle| obstructed(ASPECT, &what, &obstacle))
    }

    fn aborted(
        &mut self,
        what: &str,
        work: impl FnOnce(&mut Producer) -> Result<(), Failure>,
    ) -> Result<(), Finding> {
        let worked = self.producer.begin().and_then(|()| work(&mut self.producer));
        let aborted = self.producer.abort();
        worked.map_err(|failure| refused(what, &failure))?;
        aborted.map_err(|code| {
            let found = format!("{what}: its transaction cannot be aborted ({})", label(code));
            Finding::problem(ASPECT, found, remedy(Blocked::KafkaError))
        })
    }
}

fn refused(what: &str, failure: &Failure) -> Finding {
    let code = failure.reports.first().map_or(failure.code, |(_, code)| *code);
    let blocked = match classify(code) {
        Fault::Shared(blocked) => blocked,
        Fault::Clock => Blocked::Clock,
        Fault::Time => Blocked::TooSlow,
        _ => Blocked::KafkaError,
    };
    let words = match code {
        Code::TopicAuthorizationFailed => "its user lacks a right to the topic",
        Code::GroupAuthorizationFailed => "its user lacks the right Read on the group",
        _ => "Kafka refuses",
    };
    Finding::problem(ASPECT, format!("{what}: {words} ({})", label(code)), remedy(blocked))
}
