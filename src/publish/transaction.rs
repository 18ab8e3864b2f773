//! One Kafka client and its transactions: the only place that touches librdkafka's producer.
//!
//! librdkafka's calls block, and some have ignored their time limit; so everything here runs on the
//! publisher's own thread, which a watchdog looks after. Four traps shape this file:
//!
//! - a commit with messages outstanding waits in steps of 100 ms, and a refused batch shows only
//!   after the whole time limit: [`Client::settle`] polls until all is reported first;
//! - an abort with messages outstanding blocks: they are purged and polled to zero first;
//! - an abort after a commit has begun loops for ever: it is never tried;
//! - nothing sends what lingers early but a flush, and rdkafka's only waits in steps of 100 ms:
//!   so `linger.ms` is short, and the position travels while the records do;
//! - rdkafka's poll spins for the last millisecond of its time: [`Client::poll`] gives it none.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, ClientContext, Offset, Statistics, TopicPartitionList,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata},
    error::{KafkaError, KafkaResult},
    message::{DeliveryResult, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig},
    types::RDKafkaErrorCode as Code,
};

use super::{
    faults::{Blocked, Fault, Obstacle, whose},
    stats::Exporter,
};
use crate::metrics::Metrics;

/// The precision with which the last report is noticed.
const PAUSE: Duration = Duration::from_millis(1);
/// How long initialising waits between two looks at the client's events.
const STEP: Duration = Duration::from_millis(500);
/// How long an abort waits before it purges what has come back into the queue.
const PURGE_AGAIN: Duration = Duration::from_millis(100);
/// The longest that ending a transaction may take beside the transaction's own time.
const CALL: Duration = Duration::from_secs(10);
/// What the machine may take beside, when it has too much to do.
const MARGIN: Duration = Duration::from_secs(5);

/// Where in a transaction something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Begin,
    Produce,
    Offsets,
    Commit,
}

/// Why a transaction was not committed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) step: Step,
    pub(super) code: Code,
    /// The client is of no use any more.
    pub(super) fatal: bool,
    /// Records that were not accepted: the number that each was sent with, and why.
    pub(super) reports: Vec<(usize, Code)>,
}

impl Failure {
    pub(super) fn new(step: Step, code: Code) -> Self {
        Self { step, code, fatal: false, reports: Vec::new() }
    }

    fn of(step: Step, error: &KafkaError) -> Self {
        let fatal = matches!(error, KafkaError::Transaction(error) if error.is_fatal());
        let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
        Self { step, code, fatal, reports: Vec::new() }
    }

    /// Whose fault it is: the reports know it better than the call that failed behind them, and
    /// without a report no record is to blame.
    pub(super) fn fault(&self) -> Fault {
        if self.fatal {
            return Fault::Client;
        }
        let reported = self.reports.iter().map(|(_, code)| whose(*code));
        // A neighbour's word names nobody, and a purge is our own.
        let names = |fault: &Fault| !matches!(fault, Fault::Neighbour | Fault::Purged);
        reported.clone().find(names).or_else(|| reported.clone().next()).unwrap_or_else(|| {
            match whose(self.code) {
                Fault::Record | Fault::RecordIfTwice | Fault::Neighbour => {
                    Fault::Everyone(Blocked::KafkaError)
                }
                fault => fault,
            }
        })
    }
}

/// Receives refusals, errors and statistics on the thread that polls.
pub(super) struct Context {
    metrics: Arc<Metrics>,
    /// Number and code of each record that was not accepted.
    reports: Mutex<Vec<(usize, Code)>>,
    trouble: Mutex<Option<Blocked>>,
    statistics: Mutex<Exporter>,
}

impl Context {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            reports: Mutex::default(),
            trouble: Mutex::default(),
            statistics: Mutex::default(),
        }
    }

    /// What the client's own errors point to, if there were any since it was last asked.
    pub(super) fn take_trouble(&self) -> Option<Blocked> {
        self.trouble.lock().take()
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Debug => tracing::trace!(facility, message, "librdkafka"),
            _ => tracing::debug!(facility, message, "librdkafka"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        self.statistics.lock().export(&statistics, &self.metrics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
        self.metrics.publish_errors_total.with_label_values(&[&label(code)]).inc();
        if let Fault::Everyone(blocked) = whose(code) {
            let mut trouble = self.trouble.lock();
            // Refused credentials also bring the brokers down: the first cause says more.
            if *trouble != Some(Blocked::NotAuthorized) {
                *trouble = Some(blocked);
            }
        }
        tracing::debug!(?code, reason, "librdkafka reports an error");
    }
}

impl ConsumerContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        if let Err((error, _)) = result {
            let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
            self.reports.lock().push((number, code));
        }
    }
}

/// The label of an error code: librdkafka's own names, a closed set.
pub(super) fn label(code: Code) -> String {
    format!("{code:?}")
}

/// What one record is sent with.
pub(super) struct Record<'a> {
    pub(super) topic: &'a str,
    pub(super) key: &'a str,
    pub(super) value: &'a [u8],
    pub(super) headers: OwnedHeaders,
    /// Milliseconds since 1970.
    pub(super) timestamp_ms: i64,
    /// Names the record in [`Failure::reports`].
    pub(super) number: usize,
}

/// Initialises transactions in steps, and serves the client's events in between.
fn init_transactions(producer: &BaseProducer<Context>) -> KafkaResult<()> {
    let deadline = Instant::now() + 2 * CALL;
    loop {
        producer.poll(Duration::ZERO);
        let error = match producer.init_transactions(STEP) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let again = matches!(&error, KafkaError::Transaction(error) if error.is_retriable());
        if !again || Instant::now() >= deadline {
            return Err(error);
        }
    }
}

/// A transactional client that has been initialised.
pub(super) struct Client {
    producer: BaseProducer<Context>,
    group: ConsumerGroupMetadata,
    position_topic: String,
    /// The time that a transaction may take.
    timeout: Duration,
}

impl Client {
    /// Makes a client and initialises its transactions, which ends what an earlier client with the
    /// same transactional id left open.
    ///
    /// # Errors
    /// What stands in the way; nothing has been published then.
    pub(super) fn open(
        config: &ClientConfig,
        context: Context,
        consumer: &BaseConsumer<Context>,
        position_topic: &str,
        timeout: Duration,
    ) -> Result<Self, Obstacle> {
        let producer =
            BaseProducer::from_config_and_context(config, context).map_err(Obstacle::kafka)?;
        init_transactions(&producer).map_err(|error| {
            let obstacle = Obstacle::kafka(error);
            // What the connection itself says is nearer to the cause than a call's timeout.
            let trouble = producer.context().take_trouble();
            Obstacle { blocked: trouble.unwrap_or(obstacle.blocked), ..obstacle }
        })?;
        // INVARIANT: `group.id` is always set, and that is all that the metadata needs.
        let group = consumer.group_metadata().expect("a consumer with a group");
        Ok(Self { producer, group, position_topic: position_topic.to_owned(), timeout })
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// What any of the calls here takes at most, if librdkafka keeps its time limits. It does not when
    /// the group's coordinator dies and stays away: offsets that are to be sent to it then wait until
    /// some broker comes or goes (2.12.1, `rd_kafka_coord_req_fsm`).
    pub(super) fn longest_call(&self) -> Duration {
        2 * self.timeout.max(CALL) + MARGIN
    }

    pub(super) fn context(&self) -> &Context {
        self.producer.context()
    }

    /// Serves what reports and errors there are, without waiting.
    pub(super) fn poll(&self) {
        let reports = || self.context().reports.lock().len();
        loop {
            let before = reports();
            // One event: the refusals of one batch, where it is a report.
            self.producer.poll(Duration::ZERO);
            if reports() == before {
                break;
            }
        }
    }

    fn wait(&self) {
        thread::sleep(PAUSE);
        self.poll();
    }

    pub(super) fn begin(&self) -> Result<(), Failure> {
        self.context().reports.lock().clear();
        self.producer.begin_transaction().map_err(|error| Failure::of(Step::Begin, &error))
    }

    /// Hands a record over; it is copied.
    ///
    /// # Errors
    /// When librdkafka refuses it itself, which is then reported as a refusal of this record.
    pub(super) fn produce(&self, record: Record<'_>, deadline: Instant) -> Result<(), Failure> {
        let Record { topic, key, value, headers, timestamp_ms, number } = record;
        let mut next = BaseRecord::with_opaque_to(topic, number)
            .key(key)
            .payload(value)
            .headers(headers)
            .timestamp(timestamp_ms);
        loop {
            let Err((error, unsent)) = self.producer.send(next) else { return Ok(()) };
            let mut failure = Failure::of(Step::Produce, &error);
            if failure.code == Code::QueueFull && Instant::now() < deadline {
                self.wait();
                next = unsent;
                continue;
            }
            if matches!(whose(failure.code), Fault::Record) {
                failure.reports.push((number, failure.code));
            }
            return Err(self.cause_of(failure));
        }
    }

    /// When a broker has refused a record, librdkafka refuses all that follows in the transaction
    /// as a matter of its state; why says only the report, which may still be on its way. What was
    /// only purged says less than the failure: the records of a topic that is gone are.
    fn cause_of(&self, failure: Failure) -> Failure {
        let mut reported = self.check();
        if reported.is_ok() && failure.code == Code::State {
            reported = self.settle(Instant::now() + STEP);
        }
        reported
            .err()
            .filter(|cause| !cause.reports.is_empty() && cause.fault() != Fault::Purged)
            .unwrap_or(failure)
    }

    /// Whether a record of the open transaction has been refused already.
    ///
    /// # Errors
    /// The refusals so far.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.poll();
        let reports = std::mem::take(&mut *self.context().reports.lock());
        match reports.first() {
            None => Ok(()),
            Some((_, code)) => {
                Err(Failure { step: Step::Produce, code: *code, fatal: false, reports })
            }
        }
    }

    /// Adds what is reported within a moment: the refusal that brought the others down may come last.
    pub(super) fn hear_out(&self, mut failure: Failure) -> Failure {
        let deadline = Instant::now() + STEP;
        while failure.reports.iter().all(|(_, code)| whose(*code) == Fault::Purged)
            && self.outstanding() > 0
            && Instant::now() < deadline
        {
            self.wait();
            failure.reports.append(&mut self.context().reports.lock());
        }
        failure
    }

    /// Says why records were purged that nobody has purged here: librdkafka does it when a
    /// transaction has failed, and its reports do not name the cause. As long as the transaction is
    /// open every call that does not fit answers with it. A cause that only costs the client is what
    /// a refused record does to those behind it: that is no better known than a purge.
    pub(super) fn explain(&self, failure: Failure) -> Failure {
        if failure.fault() != Fault::Purged {
            return failure;
        }
        let failure = self.hear_out(failure);
        let Err(error) = self.producer.begin_transaction() else { return failure };
        let cause = Failure::of(failure.step, &error);
        let says_more = failure.fault() == Fault::Purged && cause.fault() != Fault::Client;
        if says_more { cause } else { failure }
    }

    /// Sends the position along: `offset` is the first one that is not in this transaction.
    ///
    /// # Errors
    /// Whatever librdkafka says; the transaction is still open.
    pub(super) fn send_position(&self, offset: i64, metadata: &str) -> Result<(), Failure> {
        let failed = |error: &KafkaError| Failure::of(Step::Offsets, error);
        let mut offsets = TopicPartitionList::new();
        let mut element = offsets.add_partition(&self.position_topic, 0);
        element.set_offset(Offset::Offset(offset)).map_err(|error| failed(&error))?;
        element.set_metadata(metadata);
        self.send_offsets(&offsets)
    }

    /// The same with whatever offsets the group keeps.
    ///
    /// # Errors
    /// Whatever librdkafka says; the transaction is still open.
    pub(super) fn send_offsets(&self, offsets: &TopicPartitionList) -> Result<(), Failure> {
        self.producer
            .send_offsets_to_transaction(offsets, &self.group, self.timeout)
            .map_err(|error| self.cause_of(Failure::of(Step::Offsets, &error)))
    }

    /// Waits until every record is reported.
    ///
    /// # Errors
    /// The first refusals, or time.
    pub(super) fn settle(&self, deadline: Instant) -> Result<(), Failure> {
        loop {
            self.check()?;
            if self.outstanding() == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Failure::new(Step::Produce, Code::OperationTimedOut));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Records that are neither acknowledged nor reported, and events that are not served.
    fn outstanding(&self) -> i32 {
        self.producer.in_flight_count()
    }

    /// Commits; everything has to be [settled](Self::settle).
    ///
    /// # Errors
    /// The client must be dropped then: only the position tells whether the commit happened.
    pub(super) fn commit(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + 2 * self.timeout;
        loop {
            let error = match self.producer.commit_transaction(self.timeout) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let again = matches!(&error, KafkaError::Transaction(error) if error.is_retriable());
            if !again || Instant::now() >= deadline {
                return Err(Failure::of(Step::Commit, &error));
            }
        }
    }

    /// Ends the open transaction without a trace for readers of committed records. What is on its
    /// way is waited for: a request that a broker takes up behind the abort would become part of
    /// this client's next transaction (KIP-890), and its records be there twice.
    ///
    /// # Errors
    /// The client must be dropped then; the next one's opening ends the transaction, and keeps
    /// out what comes late.
    pub(super) fn abort(&self) -> Result<(), Code> {
        let deadline = Instant::now() + CALL;
        while self.outstanding() > 0 {
            if Instant::now() >= deadline {
                return Err(Code::OperationTimedOut);
            }
            // Again, because a request that failed has its records back in the queue.
            self.producer.purge(PurgeConfig::default().queue());
            let look_again = Instant::now() + PURGE_AGAIN;
            while self.outstanding() > 0 && Instant::now() < look_again {
                self.wait();
            }
        }
        self.context().reports.lock().clear();
        let code = |error: KafkaError| error.rdkafka_error_code().unwrap_or(Code::Unknown);
        self.producer.abort_transaction(CALL).map_err(code)
    }
}
