//! Whose fault is an error: the record's or everyone's?
//!
//! One table. Only what is certainly one record's own doing may become a dead letter; everything
//! that is not named here is everyone's, and waits. Nothing is ever skipped because of it.

use std::fmt;

use rdkafka::{error::KafkaError, types::RDKafkaErrorCode as Code};

/// Whose fault an error is, and so what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Can be one record's: the search for the one that is refused alone begins.
    Record,
    /// One record's if it comes a second time: what was damaged on the way passes the next time.
    RecordIfTwice,
    /// This record only shared a request with one that was refused.
    Neighbour,
    /// The clock's: the next try carries the present time.
    Clock,
    /// Time ran out: the next try is smaller.
    Time,
    /// Our own purge before an abort.
    Purged,
    /// The client is of no use any more: open again, and the position tells what was committed.
    Client,
    /// Everyone's: wait and say why.
    Everyone(Blocked),
}

/// Why nothing moves: the label `reason` of `publish_blocked`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blocked {
    NoBroker,
    NotAuthorized,
    GroupNotAuthorized,
    PositionUnreadable,
    UnknownTopic,
    TopicRefuses,
    TooSlow,
    Clock,
    NoTransactions,
    JournalDiverged,
    PositionReset,
    ClusterChanged,
    PublisherWedged,
    /// Nothing that an operator could mend by its name alone; the log has librdkafka's words.
    KafkaError,
}

impl Blocked {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NoBroker => "no_broker",
            Self::NotAuthorized => "not_authorized",
            Self::GroupNotAuthorized => "group_not_authorized",
            Self::PositionUnreadable => "position_unreadable",
            Self::UnknownTopic => "unknown_topic",
            Self::TopicRefuses => "topic_refuses",
            Self::TooSlow => "too_slow",
            Self::Clock => "clock",
            Self::NoTransactions => "no_transactions",
            Self::JournalDiverged => "journal_diverged",
            Self::PositionReset => "position_reset",
            Self::ClusterChanged => "cluster_changed",
            Self::PublisherWedged => "publisher_wedged",
            Self::KafkaError => "kafka_error",
        }
    }

    /// Whether an operator has to decide before anything may move: then the position is only read.
    pub(super) fn needs_operator(self) -> bool {
        matches!(self, Self::JournalDiverged | Self::PositionReset | Self::ClusterChanged)
    }
}

/// What stands in the way of publishing.
#[derive(Debug)]
pub(super) struct Obstacle {
    pub(super) blocked: Blocked,
    pub(super) detail: String,
}

impl Obstacle {
    pub(super) fn new(blocked: Blocked, detail: impl Into<String>) -> Self {
        Self { blocked, detail: detail.into() }
    }

    pub(super) fn missing(topic: &str) -> Self {
        let remedy = "create it, set kafka.create_topics, or route it to the dead letters";
        Self::new(Blocked::UnknownTopic, format!("topic {topic} does not exist: {remedy}"))
    }

    pub(super) fn kafka(error: KafkaError) -> Self {
        let blocked = match error.rdkafka_error_code().map(whose) {
            Some(Fault::Everyone(blocked)) => blocked,
            Some(Fault::Time) => Blocked::NoBroker,
            _ => Blocked::KafkaError,
        };
        Self::new(blocked, error.to_string())
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.blocked.as_str(), self.detail)
    }
}

/// The table.
pub(super) fn whose(code: Code) -> Fault {
    use Blocked::*;
    match code {
        Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidRecord
        | Code::InvalidArgument
        | Code::InvalidMessageSize => Fault::Record,
        Code::InvalidMessage | Code::BadMessage => Fault::RecordIfTwice,
        Code::InvalidDifferentRecord => Fault::Neighbour,
        Code::InvalidTimestamp => Fault::Clock,

        Code::MessageTimedOut
        | Code::OperationTimedOut
        | Code::TimedOutQueue
        | Code::RequestTimedOut
        | Code::QueueFull => Fault::Time,
        Code::PurgeQueue | Code::PurgeInflight => Fault::Purged,

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
        | Code::IllegalGeneration => Fault::Client,

        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::SSL
        | Code::NetworkException
        | Code::BrokerNotAvailable
        | Code::WaitingForCoordinator
        | Code::CoordinatorNotAvailable
        | Code::CoordinatorLoadInProgress
        | Code::NotCoordinator => Fault::Everyone(NoBroker),
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::SecurityDisabled => Fault::Everyone(NotAuthorized),
        Code::GroupAuthorizationFailed => Fault::Everyone(GroupNotAuthorized),
        Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicOrPartition
        | Code::UnknownTopicId
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::InvalidTopic => Fault::Everyone(UnknownTopic),
        Code::PolicyViolation
        | Code::UnsupportedForMessageFormat
        | Code::UnsupportedCompressionType => Fault::Everyone(TopicRefuses),
        Code::UnsupportedFeature | Code::UnsupportedVersion | Code::InvalidTransactionTimeout => {
            Fault::Everyone(NoTransactions)
        }
        _ => Fault::Everyone(KafkaError),
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
            matches!(whose(*code), Fault::Record | Fault::RecordIfTwice | Fault::Neighbour)
        };
        let blaming: Vec<_> = all.filter(blame).map(|code| (code, whose(code))).collect();
        let expected = [
            (Code::BadMessage, Fault::RecordIfTwice),
            (Code::InvalidArgument, Fault::Record),
            (Code::InvalidDifferentRecord, Fault::Neighbour),
            (Code::InvalidMessage, Fault::RecordIfTwice),
            (Code::InvalidMessageSize, Fault::Record),
            (Code::MessageSizeTooLarge, Fault::Record),
            (Code::MessageBatchTooLarge, Fault::Record),
            (Code::InvalidRecord, Fault::Record),
        ];
        assert_eq!(blaming, expected);
    }

    #[test]
    fn what_nobody_foresaw_waits() {
        for code in [
            Code::NotEnoughReplicas,
            Code::ThrottlingQuotaExceeded,
            Code::KafkaStorageError,
            Code::Unknown,
            Code::CriticalSystemResource,
        ] {
            assert_eq!(whose(code), Fault::Everyone(Blocked::KafkaError), "{code:?}");
        }
    }

    #[test]
    fn an_ordinary_failover_opens_again_and_blames_nobody() {
        for code in [Code::Fenced, Code::InvalidTransactionalState, Code::InvalidProducerIdMapping]
        {
            assert_eq!(whose(code), Fault::Client, "{code:?}");
        }
    }
}
