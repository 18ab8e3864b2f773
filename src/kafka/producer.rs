//! librdkafka's transactional producer.
//!
//! Its calls block, and some exceed their time limit, so they run on the publisher's own thread,
//! which a watchdog supervises. Five traps shape this file:
//!
//! - A commit with records outstanding waits in steps of 100 ms, and reports a refused batch only
//!   when its time is over: [`Producer::await_reports`] polls until every record is reported first.
//! - An abort with records outstanding blocks: they are purged and polled down to zero first.
//! - An abort after a commit has begun never returns: it is never tried.
//! - Only a flush sends lingering records early, and rdkafka's flush waits in steps of 100 ms: so
//!   `linger.ms` is short, and the offsets are sent while the records are on their way.
//! - rdkafka's poll spins for the last millisecond of its time: it is given no time.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{Consumer, ConsumerGroupMetadata},
    error::{KafkaError, KafkaResult},
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _, PurgeConfig},
};

use super::{
    Code, ErrorClass, Failure, GroupOffset, Headers, Obstacle, ProducerSettings, Record, Step,
    Topics, classify, context::PollContext, error::code, librdkafka::Cluster,
};
use crate::config::client::producer_config;

/// The precision with which the last report is noticed.
const PAUSE: Duration = Duration::from_millis(1);
/// How long one step of initialising takes, and how long the report that names a cause may take.
const STEP: Duration = Duration::from_millis(500);
/// How long an abort waits before it purges again.
const PURGE_AGAIN: Duration = Duration::from_millis(100);
/// How long an abort, and half of the initialising, may take.
const CALL: Duration = Duration::from_secs(10);
/// No shorter time for a transaction is tried.
const TIMEOUT_MIN: Duration = Duration::from_secs(2);
/// What an overloaded machine may add to any call.
const MARGIN: Duration = Duration::from_secs(5);

/// A transactional producer of librdkafka that has been initialised.
pub struct Producer {
    client: BaseProducer<PollContext>,
    group: ConsumerGroupMetadata,
    timeout: Duration,
}

impl Producer {
    pub(super) fn open(
        cluster: &Cluster,
        topics: &Topics,
        settings: ProducerSettings,
    ) -> Result<Self, Obstacle> {
        let ProducerSettings { mut timeout, batch_bytes } = settings;
        let Cluster { config, group, metrics, base, unstable, .. } = cluster;
        let limits = topics.limits.values();
        let limit = limits.filter_map(|limits| limits.max_message_bytes).min();
        let client = loop {
            let config = producer_config(base, group, config, limit, timeout, batch_bytes);
            let context = PollContext::new(Arc::clone(metrics));
            let client = BaseProducer::from_config_and_context(&config, context)?;
            // In steps, to serve the client's events in between.
            let initialised = repeat(2 * CALL, || {
                client.poll(Duration::ZERO);
                client.init_transactions(STEP)
            });
            let Err(error) = initialised else { break client };
            if code(&error) != Code::InvalidTransactionTimeout || timeout / 2 < TIMEOUT_MIN {
                // The connection's own error is nearer to the cause than a call's timeout.
                let trouble = client.context().take_trouble();
                return Err(trouble.unwrap_or_else(|| error.into()));
            }
            // The cluster's `transaction.max.timeout.ms` is shorter.
            timeout /= 2;
            let seconds = timeout.as_secs_f64();
            tracing::warn!(
                seconds,
                "the cluster refuses the transaction timeout: trying a shorter one"
            );
        };
        // INVARIANT: `group.id` is always set, and that is all that the metadata needs.
        let group = unstable.group_metadata().expect("a consumer with a group");
        Ok(Self { client, group, timeout })
    }

    /// Serves reports and errors without waiting.
    fn poll(&self) {
        let reports = || self.client.context().reports.lock().len();
        loop {
            let before = reports();
            // Serves one event. A report holds the refusals of one batch.
            self.client.poll(Duration::ZERO);
            if reports() == before {
                break;
            }
        }
    }

    fn refusals(&self) -> Result<(), Failure> {
        self.poll();
        let reports = std::mem::take(&mut *self.client.context().reports.lock());
        let Some(&(_, code)) = reports.first() else { return Ok(()) };
        Err(Failure { reports, ..Failure::new(Step::Produce, code) })
    }

    /// Waits for a refusal, or until every record is reported; false if time ran out before.
    fn reports(&self, deadline: Instant) -> Result<bool, Failure> {
        let mut reported = Ok(());
        let all = self.wait_until(deadline, |producer| {
            reported = producer.refusals();
            reported.is_err() || producer.client.in_flight_count() == 0
        });
        reported.map(|()| all)
    }

    /// Polls until `met`, or until the deadline; returns whether it was met.
    fn wait_until(&self, deadline: Instant, mut met: impl FnMut(&Self) -> bool) -> bool {
        loop {
            if met(self) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(PAUSE);
            self.poll();
        }
    }

    /// Finds out why a call failed.
    ///
    /// After a broker has refused a record, librdkafka refuses every call of the transaction with
    /// `ERR__STATE` and purges the records that wait. The refused record's own report has the cause
    /// and may come last. If no report has it, a second `begin` answers with the transaction's
    /// error.
    fn root_cause(&self, failure: Failure) -> Failure {
        let mut failure = self.reported_cause(failure);
        if failure.class() != ErrorClass::Purged {
            return failure;
        }
        // librdkafka may report purged records before the refused one.
        self.wait_until(Instant::now() + STEP, |producer| {
            failure.reports.append(&mut producer.client.context().reports.lock());
            failure.reports.iter().any(|(_, code)| classify(*code) != ErrorClass::Purged)
                || producer.client.in_flight_count() == 0
        });
        let Err(error) = self.client.begin_transaction() else { return failure };
        let cause = Failure::of(failure.step, &error);
        // A refused record makes the producer unusable, so that error is not the cause.
        let is_cause = failure.class() == ErrorClass::Purged && cause.class() != ErrorClass::Client;
        if is_cause { cause } else { failure }
    }

    fn reported_cause(&self, failure: Failure) -> Failure {
        if !failure.reports.is_empty() {
            return failure;
        }
        let wait = if failure.code == Code::State { STEP } else { Duration::ZERO };
        let reported = self.reports(Instant::now() + wait);
        // librdkafka also purges the records of a deleted topic: there the failure has the cause.
        reported.err().filter(|cause| cause.class() != ErrorClass::Purged).unwrap_or(failure)
    }
}

impl super::Producer for Producer {
    fn begin(&mut self) -> Result<(), Failure> {
        self.client.context().reports.lock().clear();
        self.client.begin_transaction().map_err(|error| Failure::of(Step::Begin, &error))
    }

    fn send(&mut self, record: &Record<'_>, deadline: Instant) -> Result<(), Failure> {
        let Record { topic, key, value, headers, timestamp_ms, number } = *record;
        let mut next = BaseRecord::with_opaque_to(topic, number)
            .key(key)
            .payload(value)
            .headers(owned(headers))
            .timestamp(timestamp_ms);
        loop {
            let Err((error, unsent)) = self.client.send(next) else { return Ok(()) };
            let failure = Failure::of(Step::Produce, &error);
            if failure.code == Code::QueueFull && Instant::now() < deadline {
                thread::sleep(PAUSE);
                self.poll();
                next = unsent;
                continue;
            }
            let mut cause = self.root_cause(failure);
            if cause.reports.is_empty() && classify(cause.code) == ErrorClass::Record {
                cause.reports.push((number, cause.code));
            }
            return Err(cause);
        }
    }

    fn check(&mut self) -> Result<(), Failure> {
        self.refusals().map_err(|failure| self.root_cause(failure))
    }

    fn send_offsets(&mut self, offsets: &[GroupOffset]) -> Result<(), Failure> {
        let sent = partition_list(offsets).and_then(|list| {
            self.client.send_offsets_to_transaction(&list, &self.group, self.timeout)
        });
        sent.map_err(|error| self.root_cause(Failure::of(Step::Offsets, &error)))
    }

    fn await_reports(&mut self, deadline: Instant) -> Result<(), Failure> {
        match self.reports(deadline).map_err(|failure| self.root_cause(failure))? {
            true => Ok(()),
            false => Err(Failure::new(Step::Produce, Code::OperationTimedOut)),
        }
    }

    fn commit(&mut self) -> Result<(), Failure> {
        let committed = repeat(2 * self.timeout, || self.client.commit_transaction(self.timeout));
        committed.map_err(|error| Failure::of(Step::Commit, &error))
    }

    /// First waits until no request is on its way. A broker that takes one up after the abort adds
    /// it to this producer's next transaction (KIP-890), which then holds its records twice.
    fn abort(&mut self) -> Result<(), Code> {
        let deadline = Instant::now() + CALL;
        while self.client.in_flight_count() > 0 {
            if Instant::now() >= deadline {
                return Err(Code::OperationTimedOut);
            }
            // Again each time: the records of a failed request return to the queue.
            self.client.purge(PurgeConfig::default().queue());
            self.wait_until(Instant::now() + PURGE_AGAIN, |producer| {
                producer.client.in_flight_count() == 0
            });
        }
        self.client.context().reports.lock().clear();
        self.client.abort_transaction(CALL).map_err(|error| code(&error))
    }

    fn take_trouble(&mut self) -> Option<Obstacle> {
        self.client.context().take_trouble()
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }

    /// librdkafka exceeds its limit when the group's coordinator dies and stays away: sending
    /// offsets then waits until some broker comes or goes (2.12.1, `rd_kafka_coord_req_fsm`).
    fn longest_call(&self) -> Duration {
        2 * self.timeout.max(CALL) + MARGIN
    }
}

/// Repeats a call as long as librdkafka says that it may be repeated, and until the time is over.
fn repeat(within: Duration, mut call: impl FnMut() -> KafkaResult<()>) -> KafkaResult<()> {
    let deadline = Instant::now() + within;
    loop {
        match call() {
            Err(KafkaError::Transaction(error))
                if error.is_retriable() && Instant::now() < deadline => {}
            done => return done,
        }
    }
}

fn owned(headers: &Headers) -> OwnedHeaders {
    let empty = OwnedHeaders::new_with_capacity(headers.len());
    headers
        .iter()
        .fold(empty, |owned, (key, value)| owned.insert(Header { key, value: Some(value) }))
}

fn partition_list(offsets: &[GroupOffset]) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for GroupOffset { topic, partition, offset, metadata } in offsets {
        let mut element = list.add_partition(topic, *partition);
        element.set_offset(rdkafka::Offset::Offset(*offset))?;
        element.set_metadata(metadata);
    }
    Ok(list)
}
