//! Real Kafka: the one that `WENI_EDGE_TEST_KAFKA` names, clusters that a test may kill, and a
//! reader of committed records.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::Range,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    admin::{
        AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
    },
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Header, Headers, OwnedHeaders},
    metadata::MetadataPartition,
    producer::{BaseProducer, BaseRecord, Producer},
};
use serde_json::Value;
use tempfile::TempDir;
use uuid::Uuid;
use weni_edge::event::Topic;

use crate::{contract, harness::eventually};

/// The four topics by their role in the configuration, as in [`Topic::ALL`].
pub(crate) const ROLES: [&str; 4] =
    ["message_status", "inbound_message", "channel_event", "dead_letter"];
const CALL: Duration = Duration::from_secs(20);
const PARTITIONS: i32 = 4;

/// Where the tests' Kafka is. Tests that call this are ignored unless they are asked for.
pub(crate) fn kafka() -> String {
    std::env::var("WENI_EDGE_TEST_KAFKA")
        .expect("WENI_EDGE_TEST_KAFKA=host:port names no Kafka: see tests/kafka/kafka")
}

/// On records that a test writes and no edge would.
pub(crate) const STRANGER: (&str, &str) = ("written-by", "test");

/// Headers and value of a record that a test writes.
pub(crate) type Written<'a> = (&'a [(&'a str, &'a str)], &'a [u8]);

/// Topics that no other test has.
pub(crate) struct Topics {
    bootstrap: String,
    /// By role, that of the position included.
    pub(crate) names: BTreeMap<&'static str, String>,
}

impl Topics {
    pub(crate) fn named(bootstrap: &str) -> Self {
        let prefix = &Uuid::new_v4().simple().to_string()[..12];
        let name = |role: &'static str| (role, format!("{prefix}.{}.v1", role.replace('_', "-")));
        let names = ROLES.into_iter().chain(["position"]).map(name).collect();
        Self { bootstrap: bootstrap.to_owned(), names }
    }

    /// Names topics and creates all that carry events.
    pub(crate) fn create(bootstrap: &str) -> Self {
        let topics = Self::named(bootstrap);
        topics.create_all();
        topics
    }

    /// Topics of these names in another cluster.
    pub(crate) fn at(&self, bootstrap: &str) -> Self {
        Self { bootstrap: bootstrap.to_owned(), names: self.names.clone() }
    }

    /// Waits until each partition has so many replicas in sync.
    pub(crate) fn await_in_sync(&self, replicas: usize) {
        self.await_partitions("all replicas are in sync", |p| p.isr().len() >= replicas);
    }

    /// Waits until a node leads all partitions, of Kafka's own topics too.
    pub(crate) fn await_leader(&self, node: i32) {
        self.await_partitions("one node leads all partitions", |p| p.leader() == node);
    }

    fn await_partitions(&self, what: &str, is_well: impl Fn(&MetadataPartition) -> bool) {
        let admin = self.admin();
        eventually(what, || {
            let metadata = admin.inner().fetch_metadata(None, CALL).ok()?;
            let mut partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
            partitions.all(&is_well).then_some(())
        });
    }

    pub(crate) fn create_all(&self) {
        ROLES.iter().for_each(|role| self.create_one(role, &[]));
    }

    pub(crate) fn create_one(&self, role: &str, settings: &[(&str, &str)]) {
        // The broker's default: the number of its cluster's nodes.
        let replication = TopicReplication::Fixed(-1);
        let mut topic = NewTopic::new(&self.names[role], PARTITIONS, replication);
        for (name, value) in settings {
            topic = topic.set(name, value);
        }
        // A broker that has just started on a busy machine may answer too late, and have created it.
        eventually("the topic is created", || {
            let created = wait(self.admin().create_topics([&topic], &options())).ok()?.pop()?;
            let exists =
                matches!(&created, Err((_, code)) if *code == RDKafkaErrorCode::TopicAlreadyExists);
            assert!(created.is_ok() || exists, "{created:?}");
            Some(())
        });
    }

    pub(crate) fn alter(&self, role: &str, name: &str, value: &str) {
        let topic = ResourceSpecifier::Topic(&self.names[role]);
        let change = AlterConfig { specifier: topic, entries: HashMap::from([(name, value)]) };
        let altered = wait(self.admin().alter_configs([&change], &options())).unwrap();
        assert!(altered.iter().all(Result::is_ok), "{altered:?}");
    }

    pub(crate) fn delete_one(&self, role: &str) {
        let deleted = wait(self.admin().delete_topics(&[&self.names[role]], &options())).unwrap();
        assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    }

    /// Deletes what Kafka keeps for a consumer group.
    pub(crate) fn delete_group(&self, group: &str) {
        // Not while a transaction that holds its offsets is open.
        eventually("the group is deleted", || {
            let deleted = wait(self.admin().delete_groups(&[group], &options())).unwrap();
            deleted.iter().all(Result::is_ok).then_some(())
        });
    }

    /// Sets a group's position, as an administrator's tool does: without metadata.
    pub(crate) fn reset_group(&self, group: &str, role: &str, offset: i64) {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", group)
            .create()
            .unwrap();
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(&self.names[role], 0, Offset::Offset(offset)).unwrap();
        consumer.commit(&offsets, CommitMode::Sync).unwrap();
    }

    /// Whether an open transaction keeps readers of committed records before it.
    pub(crate) fn holds_readers(&self) -> bool {
        let [stable, all] = ["read_committed", "read_uncommitted"].map(|isolation| {
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", &self.bootstrap).set("group.id", "tests");
            config.set("isolation.level", isolation).create::<BaseConsumer>().unwrap()
        });
        ROLES.iter().any(|role| {
            (0..PARTITIONS).any(|partition| {
                let end = |consumer: &BaseConsumer| {
                    consumer.fetch_watermarks(&self.names[role], partition, CALL).unwrap().1
                };
                end(&stable) < end(&all)
            })
        })
    }

    /// Writes records, headers and value, all on one partition.
    pub(crate) fn write(&self, role: &str, records: &[Written<'_>]) {
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().unwrap();
        for (headers, value) in records {
            let headers = headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header { key, value: Some(*value) })
            });
            let record = BaseRecord::to(&self.names[role]).key("k").payload(*value);
            producer.send(record.headers(headers)).unwrap();
        }
        producer.flush(CALL).unwrap();
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().unwrap()
    }

    /// Everything that is committed, in the order of each partition.
    pub(crate) fn read(&self) -> Vec<Record> {
        let mut records = Vec::new();
        self.each(|record| records.push(record));
        records
    }

    /// Kafka answers a commit before it marks the end of the transaction in each partition. Waits until
    /// every partition can be read to its end, or 5 s: a test may have left a transaction open.
    fn await_ends(&self) {
        let client = |isolation: &str| -> BaseConsumer {
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", &self.bootstrap).set("isolation.level", isolation);
            config.set("group.id", "tests").create().unwrap()
        };
        let [committed, all] = ["read_committed", "read_uncommitted"].map(client);
        let until = Instant::now() + Duration::from_secs(5);
        for role in ROLES {
            let name = &self.names[role];
            let metadata = all.fetch_metadata(Some(name), CALL).unwrap();
            for partition in metadata.topics()[0].partitions() {
                let end = |client: &BaseConsumer| {
                    client.fetch_watermarks(name, partition.id(), CALL).unwrap().1
                };
                while end(&committed) < end(&all) && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }

    /// The same, one by one.
    pub(crate) fn each(&self, take: impl FnMut(Record)) {
        self.await_ends();
        self.each_at("read_committed", take);
    }

    /// Also what no transaction has committed.
    pub(crate) fn each_sent(&self, take: impl FnMut(Record)) {
        self.each_at("read_uncommitted", take);
    }

    fn each_at(&self, isolation_level: &str, mut take: impl FnMut(Record)) {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", "tests")
            .set("enable.auto.commit", "false")
            .set("isolation.level", isolation_level)
            .set("enable.partition.eof", "true")
            // The end of a partition is known when it has answered that there is nothing.
            .set("fetch.wait.max.ms", "10")
            .create()
            .unwrap();
        for role in ROLES {
            let name = &self.names[role];
            let metadata = consumer.fetch_metadata(Some(name), CALL).unwrap();
            let mut unread = BTreeSet::new();
            let mut list = TopicPartitionList::new();
            for partition in metadata.topics()[0].partitions() {
                list.add_partition_offset(name, partition.id(), Offset::Beginning).unwrap();
                unread.insert(partition.id());
            }
            consumer.assign(&list).unwrap();
            while !unread.is_empty() {
                match consumer.poll(CALL).expect("a record or the partition's end") {
                    Err(KafkaError::PartitionEOF(partition)) => {
                        unread.remove(&partition);
                    }
                    message => {
                        let record = Record::of(role, &message.unwrap());
                        if !record.headers.contains_key(STRANGER.0) {
                            record.hold_to_contract();
                        }
                        take(record);
                    }
                }
            }
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(CALL)).request_timeout(Some(CALL))
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// A committed record.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) role: &'static str,
    /// Partition and offset.
    pub(crate) at: (i32, i64),
    pub(crate) key: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) timestamp_ms: i64,
    pub(crate) value: Vec<u8>,
}

impl Record {
    fn of(role: &'static str, message: &BorrowedMessage<'_>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let headers = message.headers().unwrap().iter();
        Self {
            role,
            at: (message.partition(), message.offset()),
            key: text(message.key().unwrap()),
            headers: headers.map(|h| (h.key.to_owned(), text(h.value.unwrap()))).collect(),
            timestamp_ms: message.timestamp().to_millis().unwrap(),
            value: message.payload().unwrap().to_vec(),
        }
    }

    fn hold_to_contract(&self) {
        let role = ROLES.iter().position(|role| *role == self.role).unwrap();
        let headers = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        contract::hold(Topic::ALL[role], headers, &self.value);
    }

    /// The event, which is JSON.
    pub(crate) fn event(&self) -> Value {
        serde_json::from_slice(&self.value).unwrap()
    }
}

/// A Kafka that a test may do everything to. It ends with the test.
pub(crate) struct Cluster {
    directory: TempDir,
    port: u16,
    nodes: u16,
}

impl Cluster {
    /// Formats one node; it is down.
    pub(crate) fn format() -> Self {
        Self::format_nodes(1)
    }

    fn format_nodes(nodes: u16) -> Self {
        let directory = TempDir::new().unwrap();
        let cluster = Self { directory, port: free_ports(nodes), nodes };
        cluster.format_again();
        cluster
    }

    pub(crate) fn start() -> Self {
        Self::start_nodes(1)
    }

    /// With three nodes two have to be in sync.
    pub(crate) fn start_nodes(nodes: u16) -> Self {
        let cluster = Self::format_nodes(nodes);
        cluster.start_again();
        cluster
    }

    /// Another cluster at the same address, which is down.
    pub(crate) fn format_again(&self) {
        self.run(&["format", &self.nodes.to_string()]);
    }

    /// Starts all nodes.
    pub(crate) fn start_again(&self) {
        self.each(&["start"]);
        self.run(&["wait", &self.nodes.to_string()]);
    }

    /// kill -9 of all nodes.
    pub(crate) fn kill(&self) {
        self.each(&["kill9"]);
    }

    /// The partitions, as `TOPIC-NUMBER`, that the nodes say they never tell the end of an acknowledged
    /// commit: one without a leader yet, as after a restart, counts as deleted.
    pub(crate) fn untold_partitions(&self) -> BTreeSet<String> {
        let log =
            |node| fs::read_to_string(self.directory.path().join(format!("node{node}/broker.log")));
        let logs: Vec<_> = (1..=self.nodes).map(|node| log(node).unwrap()).collect();
        let lines = logs.iter().flat_map(|log| log.lines());
        let lines = lines.filter(|line| line.contains("likely deleted already"));
        let partitions = lines.flat_map(|line| {
            let (_, rest) = line.split_once("for partitions ").expect("the broker's words");
            let listed = rest.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
            listed.expect("a set of partitions").0.split(", ")
        });
        partitions.map(str::to_owned).collect()
    }

    /// The logs of all partitions that events and positions are in, and how long they are, once
    /// all have been told the end of their last transaction.
    pub(crate) fn logs_at_rest(&self) -> BTreeMap<PathBuf, u64> {
        eventually("all transactions are ended everywhere", || {
            let at_rest = |path: PathBuf| {
                let log = fs::read(&path).unwrap();
                let is_at_rest = log.is_empty() || marker_at_end(&log).is_some();
                is_at_rest.then_some((path, log.len() as u64))
            };
            self.logs().map(at_rest).collect()
        })
    }

    fn logs(&self) -> impl Iterator<Item = PathBuf> {
        fn entries(path: &Path) -> impl Iterator<Item = PathBuf> + use<> {
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path())
        }
        let is_told = |partition: &PathBuf| {
            let name = partition.file_name().unwrap().to_string_lossy();
            partition.is_dir()
                && !name.starts_with("__transaction_state")
                && !name.starts_with("__cluster_metadata")
        };
        let partitions = entries(&self.directory.path().join("node1/data")).filter(is_told);
        let files = partitions.flat_map(|partition| entries(&partition));
        files.filter(|path| path.extension().is_some_and(|extension| extension == "log"))
    }

    /// Takes the last transaction's end away from all partitions that have grown since `before`,
    /// while the node is down: as if nobody had told them. Returns from how many.
    pub(crate) fn forget_end(&self, before: &BTreeMap<PathBuf, u64>) -> usize {
        let grown = |path: &PathBuf| {
            path.metadata().unwrap().len() > before.get(path).copied().unwrap_or_default()
        };
        let forgotten = self.logs().filter(grown).map(|path| {
            let start = marker_at_end(&fs::read(&path).unwrap()).expect("an end");
            let log = fs::OpenOptions::new().write(true).open(&path).unwrap();
            log.set_len(start as u64).unwrap();
        });
        forgotten.count()
    }

    fn each(&self, command: &[&str]) {
        for node in 1..=self.nodes {
            self.run(&[command, &[&node.to_string()]].concat());
        }
    }

    pub(crate) fn bootstrap(&self) -> String {
        self.addresses(0)
    }

    pub(crate) fn sasl_plaintext(&self) -> String {
        self.addresses(2)
    }

    pub(crate) fn sasl_ssl(&self) -> String {
        self.addresses(3)
    }

    /// Where the first node expects a proxy.
    pub(crate) fn proxied(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port + 4).into()
    }

    /// Ports that nobody has, neither a node nor the system's clients.
    pub(crate) fn spare_ports(&self) -> Range<u16> {
        self.port + 5..self.port + PORTS_OF_NODE
    }

    /// Where the first node tells clients of a proxy that it is, from its next start on.
    pub(crate) fn advertise(&self, address: &str) {
        self.run(&["advertise", "1", address]);
    }

    fn addresses(&self, listener: u16) -> String {
        let address = |node| format!("127.0.0.1:{}", self.port + PORTS_OF_NODE * node + listener);
        (0..self.nodes).map(address).collect::<Vec<_>>().join(",")
    }

    /// Of the authority that signed the nodes' certificates.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.directory.path().join("tls/ca.pem")
    }

    /// Runs a command of `tests/kafka/kafka`, which explains them all.
    pub(crate) fn run(&self, arguments: &[&str]) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kafka/kafka");
        let output = Command::new(script)
            .args(arguments)
            .env("KAFKA_DIR", self.directory.path())
            .env("BASE_PORT", self.port.to_string())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "kafka {arguments:?}: {output:?}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Where a log's last batch begins, if it is the end of a transaction.
fn marker_at_end(log: &[u8]) -> Option<usize> {
    const LENGTH: usize = 8;
    const ATTRIBUTES: usize = 21;
    const TRANSACTIONAL_CONTROL: u8 = 0x30;
    let (mut start, mut last) = (0, None);
    while let Some(length) = log.get(start + LENGTH..start + LENGTH + 4) {
        last = Some(start);
        start += LENGTH + 4 + u32::from_be_bytes(length.try_into().unwrap()) as usize;
    }
    last.filter(|last| log[last + ATTRIBUTES + 1] & TRANSACTIONAL_CONTROL == TRANSACTIONAL_CONTROL)
}

const PORTS_OF_NODE: u16 = 10;

/// So many nodes have ports that no process which runs beside this one looks at first: those of a
/// broker that is down for a while are free.
const NODES_OF_PROCESS: u16 = 6;

/// The first of the ports that so many nodes need, and nobody has.
fn free_ports(nodes: u16) -> u16 {
    // Below the range from which the system hands out ports by itself.
    let process = u16::try_from(std::process::id() % 190).unwrap();
    let start = 20_000 + process * NODES_OF_PROCESS * PORTS_OF_NODE;
    let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut candidates = (start..32_000).step_by(usize::from(PORTS_OF_NODE));
    let is_candidate = |first: &u16| (*first..first + PORTS_OF_NODE * nodes).all(is_free);
    candidates.find(is_candidate).expect("free ports")
}
