//! `dev`: the whole edge with an embedded Kafka, for trying out.
//!
//! The Kafka is librdkafka's mock cluster in this process, the journal a temporary folder; all else
//! is what `serve` runs.

use std::{
    io::Write,
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue, Method};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::{BorrowedMessage, Headers},
    mocking::MockCluster,
    producer::DefaultProducerContext,
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{
    courier::{Courier, Target},
    samples::{LIFE, MessageIds, Sample, Template},
};
use crate::{
    config::{Config, Secret, Source, Topics},
    serve::Edge,
};

const SOURCE: &str = "demo";
const HEADER: &str = "X-Token";
const PARTITIONS: i32 = 3;
/// Between two steps of the demo: slow enough to be followed.
const STEP: Duration = Duration::from_millis(700);
/// How soon printing notices that it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// Try the edge with an embedded Kafka: no configuration, nothing kept
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    weni-edge dev --demo            watch the life of a few messages\n  \
    weni-edge dev                   then paste the URL into Weni, or use the printed curl\n  \
    weni-edge dev --output json     one line of JSON for each record\n\n\
    This Kafka is for trying out and keeps nothing. Ends with Ctrl-C.")]
pub(super) struct Args {
    /// Play the life of a few messages through the edge's own door
    #[arg(long)]
    demo: bool,
    /// What stdout gets
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// Where webhooks are taken; a free port unless given
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where probes and metrics are; a free port unless given
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    admin: SocketAddr,
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum Output {
    /// For people
    #[default]
    Human,
    /// For programs: the first line says where everything is, then one a record
    Json,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let journal = tempfile::Builder::new().prefix("weni-edge-dev-").tempdir()?;
    let cluster = MockCluster::new(1).context("the embedded Kafka")?;
    let secret = Uuid::new_v4().simple().to_string();
    let config = config(&args, &cluster.bootstrap_servers(), &secret, journal.path());
    let topics = config.topics.clone();
    create_topics(&cluster, &topics)?;
    super::log::init(&config.log)?;

    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let edge = Edge::start(config).await?;
        let hooks = format!("http://{}/hooks/{SOURCE}", edge.public);
        let welcome = Welcome {
            hooks: &hooks,
            secret: &secret,
            admin: &format!("http://{}", edge.admin),
            kafka: &cluster.bootstrap_servers(),
            topics: &topics,
        };
        welcome.print(args.output)?;
        let follower = Follower::start(&cluster.bootstrap_servers(), &topics, args.output)?;
        if args.demo {
            tokio::spawn(async {
                tokio::select! {
                    () = demo(hooks, secret) => {}
                    // The edge ends, and takes no call of the demo any more.
                    _ = tokio::signal::ctrl_c() => {}
                }
            });
        }
        let ran = edge.run().await;
        // Before its Kafka is gone, which it would complain of.
        follower.stop();
        ran
    })?;
    Ok(ExitCode::SUCCESS)
}

fn config(args: &Args, kafka: &str, secret: &str, journal: &std::path::Path) -> Config {
    let mut config = Config::default();
    config.http.listen = args.listen;
    // Nobody routes here but the one who tries it out.
    config.http.drain = Duration::ZERO;
    config.admin.listen = args.admin;
    config.journal.directory = journal.into();
    config.journal.min_free_bytes = 0;
    config.kafka.bootstrap_servers = kafka.to_owned();
    config.log.level = "warn".to_owned();
    let source = Source {
        header: HEADER.to_owned(),
        secrets: vec![Secret::new(secret)],
        ..Source::default()
    };
    config.sources.insert(SOURCE.to_owned(), source);
    config
}

fn create_topics(
    cluster: &MockCluster<'_, DefaultProducerContext>,
    topics: &Topics,
) -> anyhow::Result<()> {
    for name in event_topics(topics) {
        cluster.create_topic(name, PARTITIONS, 1)?;
    }
    Ok(cluster.create_topic(&topics.position, 1, 1)?)
}

fn event_topics(topics: &Topics) -> [&str; 4] {
    let Topics { message_status, inbound_message, channel_event, dead_letter, .. } = topics;
    [message_status, inbound_message, channel_event, dead_letter]
}

/// Where everything is.
struct Welcome<'a> {
    hooks: &'a str,
    secret: &'a str,
    admin: &'a str,
    kafka: &'a str,
    topics: &'a Topics,
}

impl Welcome<'_> {
    fn print(&self, output: Output) -> anyhow::Result<()> {
        let Self { hooks, secret, admin, kafka, topics } = self;
        let Topics { message_status, inbound_message, channel_event, dead_letter, .. } = topics;
        let text = match output {
            Output::Json => json!({
                "ready": true, "hooks": hooks, "method": "POST", "headers": {HEADER: secret},
                "admin": admin, "kafka": kafka,
                "topics": {
                    "message_status": message_status, "inbound_message": inbound_message,
                    "channel_event": channel_event, "dead_letter": dead_letter,
                },
            })
            .to_string(),
            Output::Human => format!(
                "weni-edge dev: this Kafka is for trying out and keeps nothing. Ctrl-C ends it.\n\n\
                 In Weni's webhook settings (Weni must be able to reach this machine):\n  \
                   Method  POST\n  URL     {hooks}\n  Header  {HEADER}: {secret}\n\n\
                 Or by hand:\n  \
                   curl -H '{HEADER}: {secret}' {hooks} \\\n    \
                     -d '{{\"statuses\":[{{\"id\":\"wamid.test\",\"status\":\"read\",\"timestamp\":\"1763842385\",\"recipient_id\":\"5511900000001\"}}]}}'\n\n\
                 Or as Weni does:\n  weni-edge send {hooks} -H '{HEADER}: {secret}'\n\n\
                 Kafka   {kafka}   (kcat -b {kafka} -C -t {message_status})\n\
                 Metrics {admin}/metrics\n\n\
                 Every event as it reaches Kafka:"
            ),
        };
        print_line(&text)
    }
}

/// One line to stdout, whole.
fn print_line(line: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}

/// Prints every record of the four topics from a thread of its own.
struct Follower {
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Follower {
    fn start(kafka: &str, topics: &Topics, output: Output) -> anyhow::Result<Self> {
        let consumer: BaseConsumer = rdkafka::ClientConfig::new()
            .set("bootstrap.servers", kafka)
            .set("group.id", "weni-edge-dev")
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "50")
            .create()?;
        let mut all = TopicPartitionList::new();
        for name in event_topics(topics) {
            for partition in 0..PARTITIONS {
                all.add_partition_offset(name, partition, Offset::Beginning)?;
            }
        }
        consumer.assign(&all)?;
        let stopping = Arc::new(AtomicBool::default());
        let stop = Arc::clone(&stopping);
        let thread = thread::Builder::new().name("follow".to_owned()).spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Some(record) = consumer.poll(LOOK) else { continue };
                let line = match (record, output) {
                    (Ok(record), Output::Json) => as_json(&record).to_string(),
                    (Ok(record), Output::Human) => as_text(&record),
                    (Err(error), _) => {
                        tracing::warn!(%error, "the embedded Kafka");
                        continue;
                    }
                };
                // Whoever read stdout has gone; the edge itself has not.
                if print_line(&line).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { stopping, thread })
    }

    fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        // A panic of its own has been reported.
        self.thread.join().ok();
    }
}

fn headers(record: &BorrowedMessage<'_>) -> Map<String, Value> {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    record
        .headers()
        .into_iter()
        .flat_map(|headers| headers.iter())
        .map(|header| (header.key.to_owned(), text(header.value.unwrap_or_default()).into()))
        .collect()
}

fn as_json(record: &BorrowedMessage<'_>) -> Value {
    let payload = record.payload().unwrap_or_default();
    let key = String::from_utf8_lossy(record.key().unwrap_or_default());
    let mut line = json!({
        "topic": record.topic(), "partition": record.partition(), "offset": record.offset(),
        "timestamp": record.timestamp().to_millis(), "key": key, "headers": headers(record),
    });
    // A dead letter is no event, also where its bytes happen to be JSON.
    let event = headers(record).contains_key("ce_id");
    match serde_json::from_slice::<Value>(payload) {
        Ok(value) if event => line["value"] = value,
        _ => line["value_base64"] = STANDARD.encode(payload).into(),
    }
    line
}

fn as_text(record: &BorrowedMessage<'_>) -> String {
    let key = String::from_utf8_lossy(record.key().unwrap_or_default());
    let headers = headers(record);
    let header = |name: &str| headers.get(name).and_then(Value::as_str).unwrap_or_default();
    let value: Value =
        serde_json::from_slice(record.payload().unwrap_or_default()).unwrap_or_default();
    let field = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let what = match field("event_kind") {
        "" => format!("dead_letter      {:<14}", header("reason")),
        "inbound_message" => format!("{:<16} {:<14}", "inbound_message", field("type")),
        kind => {
            let detail = if field("status").is_empty() { field("field") } else { field("status") };
            format!("{kind:<16} {detail:<14}")
        }
    };
    let time = jiff::Timestamp::from_millisecond(record.timestamp().to_millis().unwrap_or(0))
        .unwrap_or_default();
    let (topic, partition, offset) = (record.topic(), record.partition(), record.offset());
    format!("{} {what} {topic}[{partition}]@{offset}  {key}", time.strftime("%H:%M:%S%.3f"))
}

/// Plays the life of a few messages, as Weni would call.
async fn demo(hooks: String, secret: String) {
    if let Err(error) = play(&hooks, &secret).await {
        tracing::error!(error = format!("{error:#}"), "the demo ended");
    }
}

async fn play(hooks: &str, secret: &str) -> anyhow::Result<()> {
    let header = (HeaderName::from_static("x-token"), HeaderValue::from_str(secret)?);
    let target = Target::new(hooks, Method::POST, &[header], None)?;
    let mut courier = Courier::new(Arc::new(target));
    let ids = MessageIds::default();
    for life in LIFE {
        let id = ids.next();
        for name in life {
            let sample = Sample::named(name).context("a sample")?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            let body = Template::new(sample, 0).fill(&id, now);
            let answer = courier.call(body.into()).await.context("calling the edge")?;
            anyhow::ensure!(answer.status.is_success(), "the edge answered {}", answer.status);
            tokio::time::sleep(STEP).await;
        }
    }
    // What is no JSON is kept as well, to be looked at.
    courier.call("not JSON at all".into()).await.context("calling the edge")?;
    Ok(())
}
