//! What follows from an error: one table.
//!
//! Only an error that one record certainly caused may turn that record into a dead letter. Every
//! other error, also one that the table does not name, concerns all records: publishing waits.

use rdkafka::error::KafkaError;

use super::Code;
use crate::event::named;

/// What an error means, and so what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// One record may have caused it: it is searched for by sending fewer.
    Record,
    /// The same, if it happens twice: a record that was damaged on the way passes the second time.
    RecordIfTwice,
    /// The record only shared a request with one that was refused.
    Neighbour,
    /// The broker refuses the timestamp: the next try carries the present time.
    Clock,
    /// Time ran out: the next try is smaller.
    Time,
    /// Our own purge before an abort.
    Purged,
    /// The producer is unusable: open another, and read the position to see what was committed.
    Client,
    /// It concerns all records: wait, and report why.
    Shared(Blocked),
}

named! {
    /// Why nothing is published: the label `reason` of `publish_blocked`. RUNBOOK says what to do.
    Blocked {
        NoBroker = "no_broker",
        NotAuthorized = "not_authorized",
        GroupNotAuthorized = "group_not_authorized",
        PositionUnreadable = "position_unreadable",
        UnknownTopic = "unknown_topic",
        TopicRefuses = "topic_refuses",
        TooFewReplicas = "too_few_replicas",
        TooSlow = "too_slow",
        Clock = "clock",
        NoTransactions = "no_transactions",
        JournalDiverged = "journal_diverged",
        PositionReset = "position_reset",
        ClusterChanged = "cluster_changed",
        PublisherWedged = "publisher_wedged",
        /// The journal cannot be read, or the quarantine or the checkpoint cannot be written.
        Disk = "disk",
        /// The TLS handshake fails.
        Tls = "tls",
        /// Any other error of Kafka; the log has librdkafka's words.
        KafkaError = "kafka_error",
    }
}

impl Blocked {
    /// What an error code says, if it concerns all records.
    pub(super) fn by(code: Code) -> Self {
        match classify(code) {
            ErrorClass::Shared(blocked) => blocked,
            ErrorClass::Time => Self::NoBroker,
            _ => Self::KafkaError,
        }
    }

    /// Whether an operator has to decide before anything is published.
    pub fn needs_operator(self) -> bool {
        matches!(self, Self::JournalDiverged | Self::PositionReset | Self::ClusterChanged)
    }
}

/// What stands in the way of publishing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", blocked.as_str())]
pub struct Obstacle {
    /// The reason that the metric `publish_blocked` shows.
    pub blocked: Blocked,
    /// In words, for the log.
    pub detail: String,
}

impl Obstacle {
    /// With these words.
    pub fn new(blocked: Blocked, detail: impl Into<String>) -> Self {
        Self { blocked, detail: detail.into() }
    }

    /// With the failure's code as words.
    pub fn of(blocked: Blocked, failure: &Failure) -> Self {
        Self::new(blocked, label(failure.code))
    }
}

impl From<KafkaError> for Obstacle {
    fn from(error: KafkaError) -> Self {
        Self::new(Blocked::by(code(&error)), error.to_string())
    }
}

/// Where in a transaction something failed.
#[expect(missing_docs, reason = "the names are those of Kafka's calls")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Begin,
    Produce,
    Offsets,
    Commit,
}

/// Why a transaction was not committed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The call that failed.
    pub step: Step,
    /// Kafka's or librdkafka's.
    pub code: Code,
    /// The producer is unusable.
    pub fatal: bool,
    /// Records that were not accepted: the [number](super::Record::number) of each, and why.
    pub reports: Vec<(usize, Code)>,
}

impl Failure {
    /// Of a producer that is still usable.
    pub fn new(step: Step, code: Code) -> Self {
        Self { step, code, fatal: false, reports: Vec::new() }
    }

    pub(super) fn of(step: Step, error: &KafkaError) -> Self {
        let fatal = matches!(error, KafkaError::Transaction(error) if error.is_fatal());
        Self { fatal, ..Self::new(step, code(error)) }
    }

    /// What the failure means. Reports of records say more than the call that failed after them.
    /// Without a report, no record is to blame.
    pub fn class(&self) -> ErrorClass {
        if self.fatal {
            return ErrorClass::Client;
        }
        let reported = || self.reports.iter().map(|(_, code)| classify(*code));
        // A neighbour's report names no cause, and the client itself purges.
        let is_cause =
            |class: &ErrorClass| !matches!(class, ErrorClass::Neighbour | ErrorClass::Purged);
        if let Some(class) = reported().find(is_cause).or(reported().next()) {
            return class;
        }
        match classify(self.code) {
            ErrorClass::Record | ErrorClass::RecordIfTwice | ErrorClass::Neighbour => {
                ErrorClass::Shared(Blocked::KafkaError)
            }
            class => class,
        }
    }

    /// The obstacle, if the failure concerns all records.
    pub fn shared(&self) -> Option<Obstacle> {
        match classify(self.code) {
            ErrorClass::Shared(blocked) => Some(Obstacle::of(blocked, self)),
            _ => None,
        }
    }
}

pub(super) fn code(error: &KafkaError) -> Code {
    error.rdkafka_error_code().unwrap_or(Code::Unknown)
}

/// The label of an error code: librdkafka's own names, a closed set.
pub fn label(code: Code) -> String {
    format!("{code:?}")
}

/// The table.
pub fn classify(code: Code) -> ErrorClass {
    use Blocked::*;
    match code {
        Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidRecord
        | Code::InvalidArgument
        | Code::InvalidMessageSize => ErrorClass::Record,
        Code::InvalidMessage | Code::BadMessage => ErrorClass::RecordIfTwice,
        Code::InvalidDifferentRecord => ErrorClass::Neighbour,
        Code::InvalidTimestamp => ErrorClass::Clock,

        Code::MessageTimedOut
        | Code::OperationTimedOut
        | Code::TimedOutQueue
        | Code::RequestTimedOut
        | Code::QueueFull => ErrorClass::Time,
        Code::PurgeQueue | Code::PurgeInflight => ErrorClass::Purged,

        Code::Fatal
        | Code::Fenced
        | Code::State
        | Code::Conflict
        | Code::Inconsistent
        | Code::GaplessGuarantee
        | Code::ProducerFenced
        | Code::InvalidProducerEpoch
        | Code::InvalidProducerIdMapping
        | Code::InvalidTransactionalState
        | Code::TransactionCoordinatorFenced
        | Code::ConcurrentTransactions
        | Code::UnknownProducerId
        | Code::OutOfOrderSequenceNumber
        | Code::DuplicateSequenceNumber
        | Code::UnknownMemberId
        | Code::IllegalGeneration => ErrorClass::Client,

        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::NetworkException
        | Code::BrokerNotAvailable
        | Code::WaitingForCoordinator
        | Code::CoordinatorNotAvailable
        | Code::CoordinatorLoadInProgress
        | Code::NotCoordinator => ErrorClass::Shared(NoBroker),
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::SecurityDisabled => ErrorClass::Shared(NotAuthorized),
        Code::SSL => ErrorClass::Shared(Tls),
        Code::GroupAuthorizationFailed => ErrorClass::Shared(GroupNotAuthorized),
        Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicOrPartition
        | Code::UnknownTopicId
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::InvalidTopic => ErrorClass::Shared(UnknownTopic),
        Code::PolicyViolation
        | Code::UnsupportedForMessageFormat
        | Code::UnsupportedCompressionType => ErrorClass::Shared(TopicRefuses),
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => {
            ErrorClass::Shared(TooFewReplicas)
        }
        Code::UnsupportedFeature | Code::UnsupportedVersion | Code::InvalidTransactionTimeout => {
            ErrorClass::Shared(NoTransactions)
        }
        _ => ErrorClass::Shared(KafkaError),
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::types::RDKafkaRespErr;

    use super::*;

    /// Of all codes that there are, librdkafka's own and the brokers'.
    #[test]
    fn only_what_is_certainly_a_records_own_doing_can_be_its_fault() {
        let all = (-200..RDKafkaRespErr::RD_KAFKA_RESP_ERR_END_ALL as i32)
            .filter_map(|code| RDKafkaRespErr::try_from(code).ok().map(Code::from));
        let blame = |code: &Code| {
            matches!(
                classify(*code),
                ErrorClass::Record | ErrorClass::RecordIfTwice | ErrorClass::Neighbour
            )
        };
        let blaming: Vec<_> = all.filter(blame).map(|code| (code, classify(code))).collect();
        let expected = [
            (Code::BadMessage, ErrorClass::RecordIfTwice),
            (Code::InvalidArgument, ErrorClass::Record),
            (Code::InvalidDifferentRecord, ErrorClass::Neighbour),
            (Code::InvalidMessage, ErrorClass::RecordIfTwice),
            (Code::InvalidMessageSize, ErrorClass::Record),
            (Code::MessageSizeTooLarge, ErrorClass::Record),
            (Code::MessageBatchTooLarge, ErrorClass::Record),
            (Code::InvalidRecord, ErrorClass::Record),
        ];
        assert_eq!(blaming, expected);
    }

    #[test]
    fn what_nobody_foresaw_waits() {
        for code in [
            Code::ThrottlingQuotaExceeded,
            Code::KafkaStorageError,
            Code::Unknown,
            Code::CriticalSystemResource,
        ] {
            assert_eq!(classify(code), ErrorClass::Shared(Blocked::KafkaError), "{code:?}");
        }
    }

    #[test]
    fn an_ordinary_failover_opens_again_and_blames_nobody() {
        for code in [Code::Fenced, Code::InvalidTransactionalState, Code::InvalidProducerIdMapping]
        {
            assert_eq!(classify(code), ErrorClass::Client, "{code:?}");
        }
    }
}
