//! Publishing under injected errors, on librdkafka's mock cluster. The mock accepts transactional calls,
//! but keeps no position and shows aborted records. So exactly once is proved on a real Kafka instead.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use prometheus::IntCounter;
use rdkafka::{
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use tempfile::TempDir;
use uuid::Uuid;
use weni_edge::{
    callback::Callback,
    config::Config,
    journal::{Journal, Options},
    metrics::Metrics,
    publish::Publisher,
    replay,
};

const PATIENCE: Duration = Duration::from_secs(120);

/// A journal and its publisher on a mock cluster. When it is dropped the accounts must balance.
struct Edge {
    cluster: MockCluster<'static, DefaultProducerContext>,
    directory: TempDir,
    config: Arc<ArcSwap<Config>>,
    journal: Journal,
    metrics: Arc<Metrics>,
    accepted: IntCounter,
    publisher: Option<Publisher>,
}

impl Edge {
    fn new() -> Self {
        let cluster = MockCluster::new(1).unwrap();
        let directory = TempDir::new().unwrap();
        let mut config = Config::default();
        config.kafka.bootstrap_servers = cluster.bootstrap_servers();
        config.journal.directory = directory.path().into();
        let topics = &config.topics;
        for topic in [
            &topics.message_status,
            &topics.inbound_message,
            &topics.channel_event,
            &topics.dead_letter,
            &topics.position,
        ] {
            cluster.create_topic(topic, 1, 1).unwrap();
        }
        let metrics = Arc::new(Metrics::default());
        let options = Options { allow_volatile: true, ..Options::new(directory.path()) };
        let journal = Journal::open(options, Arc::clone(&metrics)).unwrap();
        let config = Arc::new(ArcSwap::from_pointee(config));
        let accepted = metrics.callbacks_accepted_total.with_label_values(&["loja"]);
        let mut edge =
            Self { cluster, directory, config, journal, metrics, accepted, publisher: None };
        edge.start();
        edge
    }

    fn start(&mut self) {
        let (config, metrics) = (Arc::clone(&self.config), Arc::clone(&self.metrics));
        let publisher = Publisher::start(config, self.journal.clone(), metrics).unwrap();
        self.publisher = Some(publisher);
    }

    fn stop(&mut self) {
        if let Some(publisher) = self.publisher.take() {
            publisher.stop(Instant::now() + Duration::from_secs(10));
        }
    }

    fn accept(&self, body: &str) {
        let callback = Callback {
            receipt: Uuid::now_v7(),
            received_at_ms: 1_763_842_387_482,
            source: "loja",
            raw: true,
            method: "POST",
            content_type: None,
            content_encoding: None,
            traceparent: None,
            body: body.as_bytes(),
        };
        let mut bytes = Vec::new();
        callback.encode(&mut bytes);
        self.accept_bytes(&bytes);
    }

    fn accept_bytes(&self, bytes: &[u8]) {
        let write = |buffer: &mut Vec<u8>| buffer.extend_from_slice(bytes);
        let append = self.journal.append(bytes.len(), &self.accepted, write);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(append).unwrap();
    }

    fn accept_statuses(&self, ids: std::ops::Range<u32>) {
        for id in ids {
            self.accept(&format!(r#"{{"statuses":[{{"id":"wamid.{id}","status":"read"}}]}}"#));
        }
    }

    fn wait(&self, what: &str, until: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !until(self) {
            assert!(started.elapsed() < PATIENCE, "{what}: {}", self.text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_settled(&self) {
        self.wait("settled", Self::is_settled);
    }

    /// Everything is in Kafka, and counted.
    fn is_settled(&self) -> bool {
        let known = self.accepted.get() + self.metrics.callbacks_recovered_total.get();
        self.journal.pending() == 0 && self.metrics.callbacks_settled_total.get() == known
    }

    fn wait_blocked(&self, reason: &str) {
        let blocked = self.metrics.publish_blocked.with_label_values(&[reason]);
        self.wait(reason, |_| blocked.get() == 1);
    }

    fn items(&self, kind: &str, outcome: &str) -> u64 {
        self.metrics.items_total.with_label_values(&[kind, outcome]).get()
    }

    fn text(&self) -> String {
        let text = self.metrics.encode();
        let told = |line: &&str| {
            !line.starts_with('#') && !line.ends_with(" 0") && !line.contains("_bucket")
        };
        text.lines().filter(told).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            return;
        }
        let metrics = &self.metrics;
        let known = self.accepted.get() + metrics.callbacks_recovered_total.get();
        let settled = metrics.callbacks_settled_total.get();
        assert_eq!(known, self.journal.pending() + settled, "the account of callbacks");
        let reported = ["no_broker", "not_authorized", "unknown_topic", "too_slow"];
        for reason in reported {
            let blocked = metrics.publish_blocked.with_label_values(&[reason]).get();
            assert!(blocked == 0 || self.journal.pending() > 0, "still blocked by {reason}");
        }
    }
}

#[test]
fn callbacks_are_settled_and_their_items_counted_once() {
    let edge = Edge::new();
    edge.accept_statuses(0..50);
    edge.accept(r#"{"messages":[{"id":"m","from":"1","type":"text"},{"type":"text"}]}"#);
    edge.accept("{}");
    edge.accept_statuses(49..50);
    edge.wait_settled();
    // One more than there are updates: what is sent twice is published twice.
    assert_eq!(edge.items("message_status", "published"), 51);
    assert_eq!(edge.items("inbound_message", "published"), 1);
    assert_eq!(edge.items("none", "dead_lettered"), 1);
    assert_eq!(edge.items("none", "empty"), 1);
    assert_eq!(edge.metrics.statuses_total.with_label_values(&["read"]).get(), 51);
    assert_eq!(edge.metrics.callbacks_settled_total.get(), 53);
}

#[test]
fn the_age_of_the_history_is_no_delay() {
    let edge = Edge::new();
    edge.accept(include_str!("../fixtures/callbacks/calls_echoes_history.json"));
    edge.wait_settled();
    assert_eq!(edge.items("history_message", "published"), 2);
    let lag = edge.metrics.source_lag_seconds.with_label_values(&["loja"]);
    assert_eq!(lag.get_sample_count(), 2, "a call and an echo");
}

/// The try has sent what precedes the record that needs the quarantine; none of that may count.
#[test]
fn a_try_that_the_disk_ends_leaves_nothing_behind_and_its_callbacks_are_published_once() {
    let mut edge = Edge::new();
    edge.accept_statuses(0..1);
    edge.wait_settled();
    let aborted = edge.metrics.transactions_total.with_label_values(&["aborted"]);
    let quarantine = edge.directory.path().join("quarantine");
    // While nothing is published, so that all of it is in one transaction.
    edge.stop();
    edge.accept_statuses(1..20);
    // A directory where the file has to be.
    let name = format!("record-{:016x}.headers.json", edge.journal.durable().as_u64());
    let obstacle = quarantine.join(name);
    std::fs::create_dir_all(&obstacle).unwrap();
    edge.accept_bytes(b"no callback of this program");
    edge.accept_statuses(20..40);
    edge.start();
    edge.wait_blocked("disk");
    edge.wait("aborted", |_| aborted.get() > 0);
    edge.accept_statuses(40..50);
    assert_eq!(edge.metrics.callbacks_settled_total.get(), 1, "nothing is settled by a failed try");
    std::fs::remove_dir(&obstacle).unwrap();
    edge.wait_settled();
    assert_eq!(edge.items("message_status", "published"), 50);
    assert_eq!(edge.items("none", "quarantined"), 1);
    assert_eq!(std::fs::read_dir(&quarantine).unwrap().count(), 2, "headers and value");
}

#[test]
fn what_goes_into_quarantine_fills_a_transaction_too() {
    let mut edge = Edge::new();
    edge.stop();
    // More than the 8 MiB of one transaction.
    (0..150).for_each(|_| edge.accept_bytes(&[b'x'; 64 << 10]));
    edge.start();
    edge.wait_settled();
    assert_eq!(edge.items("none", "quarantined"), 150);
    let committed = edge.metrics.transactions_total.with_label_values(&["committed"]);
    assert!(committed.get() >= 2, "{}", edge.text());
}

#[test]
fn a_cluster_that_allows_only_shorter_transactions_gets_them() {
    let mut edge = Edge::new();
    edge.stop();
    let too_long = RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_TRANSACTION_TIMEOUT;
    edge.cluster.request_errors(RDKafkaApiKey::InitProducerId, &[too_long; 2]);
    edge.accept_statuses(0..10);
    edge.start();
    let blocked = edge.metrics.publish_blocked.with_label_values(&["no_transactions"]);
    edge.wait("settled", |edge| {
        assert_eq!(blocked.get(), 0);
        edge.is_settled()
    });

    // One that refuses any time is named: halves come to an end, and the same time again would not.
    edge.stop();
    edge.cluster.request_errors(RDKafkaApiKey::InitProducerId, &[too_long; 20]);
    edge.accept_statuses(10..20);
    edge.start();
    edge.wait_blocked("no_transactions");
    edge.wait_settled();
}

#[test]
fn what_waits_while_no_broker_is_there_goes_on_when_one_is() {
    let edge = Edge::new();
    edge.accept_statuses(0..1);
    edge.wait_settled();
    edge.cluster.broker_down(1).unwrap();
    edge.accept_statuses(1..20);
    edge.wait_blocked("no_broker");
    edge.accept_statuses(20..40);
    assert!(edge.journal.pending() > 0);
    edge.cluster.broker_up(1).unwrap();
    edge.wait_settled();
    assert_eq!(edge.items("message_status", "published"), 40);
}

#[test]
fn kafka_that_comes_back_blocks_nothing_also_where_nothing_waits() {
    let mut edge = Edge::new();
    edge.stop();
    edge.cluster.broker_down(1).unwrap();
    edge.start();
    edge.wait_blocked("no_broker");
    edge.cluster.broker_up(1).unwrap();
    let blocked = edge.metrics.publish_blocked.with_label_values(&["no_broker"]);
    edge.wait("nothing is blocked", |_| blocked.get() == 0);
}

#[test]
fn a_refused_right_waits_and_nothing_is_blamed() {
    let edge = Edge::new();
    edge.accept_statuses(0..1);
    edge.wait_settled();
    let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    edge.cluster.request_errors(RDKafkaApiKey::Produce, &[denied; 3]);
    edge.accept_statuses(1..30);
    edge.wait_blocked("not_authorized");
    edge.cluster.clear_request_errors(RDKafkaApiKey::Produce);
    edge.wait_settled();
    assert_eq!(edge.items("message_status", "published"), 30);
    assert_eq!(edge.items("none", "dead_lettered"), 0);
}

#[test]
fn a_batch_that_is_refused_once_costs_nothing() {
    let edge = Edge::new();
    edge.accept_statuses(0..1);
    edge.wait_settled();
    let large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    edge.cluster.request_errors(RDKafkaApiKey::Produce, &[large]);
    edge.accept_statuses(1..30);
    edge.wait_settled();
    assert_eq!(edge.items("message_status", "published"), 30);
    assert_eq!(edge.items("none", "dead_lettered"), 0);
    assert!(edge.metrics.transactions_total.with_label_values(&["aborted"]).get() >= 1);
}

#[test]
fn a_record_that_is_refused_alone_again_and_again_becomes_a_dead_letter() {
    let edge = Edge::new();
    edge.accept_statuses(0..1);
    edge.wait_settled();
    let large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    // Once with its transaction, once alone.
    edge.cluster.request_errors(RDKafkaApiKey::Produce, &[large, large]);
    edge.accept_statuses(1..2);
    edge.wait_settled();
    assert_eq!(edge.items("none", "dead_lettered"), 1);
    let dead = edge.metrics.dead_letters_total.with_label_values(&["refused", "publish"]);
    assert_eq!(dead.get(), 1);
    edge.accept_statuses(2..10);
    edge.wait_settled();
    assert_eq!(edge.items("message_status", "published"), 9);
}

#[test]
fn a_topic_that_refuses_everything_waits_also_where_callbacks_come_one_by_one() {
    let edge = Edge::new();
    let large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    edge.accept_statuses(0..1);
    edge.wait_settled();
    // The tenth in a row asks whether the topic takes another record, which it does.
    for id in 1..20 {
        edge.cluster.request_errors(RDKafkaApiKey::Produce, &[large, large]);
        edge.accept_statuses(id..id + 1);
        edge.wait_settled();
    }
    assert_eq!(edge.items("none", "dead_lettered"), 19);
    edge.cluster.request_errors(RDKafkaApiKey::Produce, &[large; 10_000]);
    edge.accept_statuses(20..21);
    edge.wait_blocked("topic_refuses");
    let lost = edge.metrics.producer_rebuilds_total.with_label_values(&["lost"]);
    let tries = lost.get();
    edge.wait("two more tries", |_| lost.get() >= tries + 2);
    edge.cluster.clear_request_errors(RDKafkaApiKey::Produce);
    edge.wait_settled();
    assert_eq!(edge.items("none", "dead_lettered"), 19);
    assert_eq!(edge.items("message_status", "published"), 2);
}

/// Answers each code that a broker has once, to one kind of request, under callbacks one by one. A
/// record that is refused only once is nobody's fault, so all of them have to be published.
fn every_code_costs_nothing(api: RDKafkaApiKey) {
    const CODES: std::ops::Range<i32> = 1..RDKafkaRespErr::RD_KAFKA_RESP_ERR_END_ALL as i32;
    let edge = Edge::new();
    edge.accept_statuses(0..1);
    edge.wait_settled();
    let mut next = 1;
    for code in CODES.filter_map(|code| RDKafkaRespErr::try_from(code).ok()) {
        edge.cluster.request_errors(api, &[code]);
        if api == RDKafkaApiKey::InitProducerId {
            // Only opening asks for one.
            let fenced = RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH;
            edge.cluster.request_errors(RDKafkaApiKey::EndTxn, &[fenced]);
        }
        edge.accept_statuses(next..next + 1);
        next += 1;
        edge.wait(&format!("{code:?}"), Edge::is_settled);
        edge.cluster.clear_request_errors(api);
    }
    assert!(next > 100, "{next} codes");
    assert_eq!(edge.items("message_status", "published"), u64::from(next));
    assert_eq!(edge.items("none", "dead_lettered"), 0);
}

#[test]
fn every_error_of_every_request_costs_nothing() {
    use RDKafkaApiKey as Api;
    // Each has an edge of its own, which mostly waits.
    std::thread::scope(|scope| {
        for api in [
            Api::Produce,
            Api::InitProducerId,
            Api::AddPartitionsToTxn,
            Api::AddOffsetsToTxn,
            Api::TxnOffsetCommit,
            Api::EndTxn,
        ] {
            scope.spawn(move || every_code_costs_nothing(api));
        }
    });
}

#[test]
fn an_error_that_stays_is_told_and_not_run_against() {
    use RDKafkaApiKey as Api;
    use RDKafkaRespErr as Error;
    // Everyone's, one that would be a record's, and one that costs the client.
    let errors = [
        Error::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        Error::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
        Error::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
    ];
    let apis = [Api::AddPartitionsToTxn, Api::AddOffsetsToTxn, Api::TxnOffsetCommit, Api::EndTxn];
    std::thread::scope(|scope| {
        for (api, error) in apis.iter().flat_map(|api| errors.map(|error| (*api, error))) {
            scope.spawn(move || is_told(api, error));
        }
    });

    fn is_told(api: RDKafkaApiKey, error: RDKafkaRespErr) {
        let edge = Edge::new();
        edge.accept_statuses(0..1);
        edge.wait_settled();
        edge.cluster.request_errors(api, &[error; 10_000]);
        edge.accept_statuses(1..2);
        edge.wait_blocked("kafka_error");
        let ended = |how| edge.metrics.transactions_total.with_label_values(&[how]).get();
        let tries = ended("aborted") + ended("lost");
        assert!(tries < 10, "{api:?} {error:?}: {tries} tries");
        edge.cluster.clear_request_errors(api);
        edge.wait_settled();
        assert_eq!(edge.items("message_status", "published"), 2);
    }
}

#[test]
fn a_topic_can_be_routed_to_the_dead_letters_while_it_is_missing() {
    let edge = Edge::new();
    let mut config = edge.config.load().as_ref().clone();
    config.topics.message_status.clone_from(&config.topics.dead_letter);
    edge.config.store(Arc::new(config));
    edge.accept_statuses(0..5);
    edge.wait_settled();
    let dead = edge.metrics.dead_letters_total.with_label_values(&["unroutable", "publish"]);
    assert_eq!(dead.get(), 5);
}

#[test]
fn a_stopped_publisher_goes_on_where_it_was_in_the_next_process() {
    let mut edge = Edge::new();
    edge.accept_statuses(0..10);
    edge.wait_settled();
    edge.stop();
    edge.accept_statuses(10..20);
    assert_eq!(edge.journal.pending(), 10);
    edge.start();
    edge.wait_settled();
    assert_eq!(edge.items("message_status", "published"), 20);
}

#[test]
fn a_letter_that_is_refused_again_ends_a_replay_that_names_it() {
    let edge = Edge::new();
    edge.accept_statuses(0..1);
    edge.wait_settled();
    let large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    for at in 1..4 {
        edge.cluster.request_errors(RDKafkaApiKey::Produce, &[large, large]);
        edge.accept_statuses(at..at + 1);
        edge.wait_settled();
    }
    assert_eq!(edge.items("none", "dead_lettered"), 3);
    let config = edge.config.load_full();
    let replay = || replay::run(&config, &replay::ReplayOptions::default(), &mut |_, _| {});

    // Together, one half, and there alone.
    edge.cluster.request_errors(RDKafkaApiKey::Produce, &[large; 3]);
    let error = format!("{:#}", replay().unwrap_err());
    assert!(error.contains("the letter weni.dead-letter.v1/0@0 becomes"), "{error}");
    assert!(error.contains("weni.message-status.v1") && error.contains("max.message.bytes"));
    edge.cluster.clear_request_errors(RDKafkaApiKey::Produce);
    let summary = replay().unwrap();
    assert_eq!((summary.total(), summary.replayed()), (3, 3));
}
