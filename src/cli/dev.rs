//! `dev`: the whole edge with an embedded Kafka, to try it out.
//!
//! The Kafka is librdkafka's mock cluster in this process, and the journal a temporary directory.
//! Everything else is what `serve` runs.

use std::{net::SocketAddr, path::Path, process::ExitCode, sync::Arc, thread, time::Duration};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue, Method};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::{BorrowedMessage, Headers},
    mocking::MockCluster,
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{
    Output,
    terminal::{print_line, visible},
};
use crate::{
    caller::{LIFE, MessageId, Sample, Target, Template, WeniClient},
    config::{Config, Secret, Source, Topics},
    metrics::Metrics,
    serve::Edge,
};

const SOURCE: &str = "demo";
const HEADER: &str = "X-Token";
const PARTITIONS: i32 = 3;
/// Between two calls of the demo, so that a person can follow it.
const STEP: Duration = Duration::from_millis(700);

/// Try the edge with an embedded Kafka: no configuration, nothing kept
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    weni-edge dev --demo            watch the life of a few messages\n  \
    weni-edge dev                   then paste the URL into Weni, or use the printed curl\n  \
    weni-edge dev --output json     one line of JSON for each record\n\n\
    This Kafka is for trying out and keeps nothing. Ctrl-C ends it.")]
pub(super) struct Args {
    /// Call the edge as Weni would during the life of a few messages
    #[arg(long)]
    demo: bool,
    /// The format of standard output. The first line of JSON says where everything is, and each
    /// further line is a record
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// The address for webhooks; port 0 is a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The address for probes and metrics; port 0 is a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    admin: SocketAddr,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let journal = tempfile::Builder::new().prefix("weni-edge-dev-").tempdir()?;
    let cluster = MockCluster::new(1).context("cannot start the embedded Kafka")?;
    let kafka = cluster.bootstrap_servers();
    let secret = Uuid::new_v4().simple().to_string();
    let config = config(&args, &kafka, &secret, journal.path());
    let topics = config.topics.clone();
    for name in event_topics(&topics) {
        cluster.create_topic(name, PARTITIONS, 1)?;
    }
    cluster.create_topic(&topics.position, 1, 1)?;
    // The consumer would report a cluster that ends before the process does.
    std::mem::forget(cluster);
    let metrics = Arc::new(Metrics::default());
    super::log::init(&config.log, metrics.log_lines_dropped_total.clone())?;

    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let edge = Edge::start(config, metrics).await?;
        let hooks = format!("http://{}/hooks/{SOURCE}", edge.public);
        let admin = format!("http://{}", edge.admin);
        print_line(&match args.output {
            Output::Human => welcome(&hooks, &secret, &admin, &kafka, &topics),
            Output::Json => ready(&hooks, &secret, &admin, &kafka, &topics).to_string(),
        })?;
        print_records(&kafka, &topics, args.output)?;
        if args.demo {
            tokio::spawn(async move {
                tokio::select! {
                    played = play(&hooks, &secret) => if let Err(error) = played {
                        tracing::error!(error = format!("{error:#}"), "the demo failed");
                    },
                    // The edge stops and refuses the demo's calls.
                    _ = tokio::signal::ctrl_c() => {}
                }
            });
        }
        edge.run().await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn config(args: &Args, kafka: &str, secret: &str, journal: &Path) -> Config {
    let mut config = Config::default();
    config.http.listen = args.listen;
    // No load balancer needs time to notice the end.
    config.http.drain = Duration::ZERO;
    config.admin.listen = args.admin;
    config.journal.directory = journal.into();
    config.journal.min_free_bytes = 0;
    config.journal.allow_volatile = true;
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

fn event_topics(topics: &Topics) -> [&str; 4] {
    let Topics { message_status, inbound_message, channel_event, dead_letter, .. } = topics;
    [message_status, inbound_message, channel_event, dead_letter]
}

fn ready(hooks: &str, secret: &str, admin: &str, kafka: &str, topics: &Topics) -> Value {
    let [message_status, inbound_message, channel_event, dead_letter] = event_topics(topics);
    json!({
        "ready": true, "hooks": hooks, "method": "POST", "headers": {HEADER: secret},
        "admin": admin, "inspector": format!("{admin}/inspector"), "kafka": kafka,
        "topics": {
            "message_status": message_status, "inbound_message": inbound_message,
            "channel_event": channel_event, "dead_letter": dead_letter,
        },
    })
}

fn welcome(hooks: &str, secret: &str, admin: &str, kafka: &str, topics: &Topics) -> String {
    let statuses = &topics.message_status;
    format!(
        "weni-edge dev: this Kafka is for trying out and keeps nothing. Ctrl-C ends it.\n\n\
         In Weni's webhook settings (Weni must be able to reach this machine):\n  \
           Método          POST\n  URL do webhook  {hooks}\n  Cabeçalhos      Chave {HEADER}, Valor {secret}\n\n\
         Or by hand:\n  \
           curl -H '{HEADER}: {secret}' {hooks} \\\n    \
             -d '{{\"statuses\":[{{\"id\":\"wamid.test\",\"status\":\"read\",\"timestamp\":\"1763842385\",\"recipient_id\":\"5511900000001\"}}]}}'\n\n\
         Or as Weni does:\n  weni-edge send {hooks} -H '{HEADER}: {secret}'\n\n\
         Kafka   {kafka}   (weni-edge tail -b {kafka}; kcat -b {kafka} -C -t {statuses})\n\
         Metrics {admin}/metrics\n\
         Inspector {admin}/inspector   (what to paste, and each call as it arrives)\n\n\
         Every event as it reaches Kafka:"
    )
}

/// Starts a thread that prints every record of the four topics until the process ends.
fn print_records(kafka: &str, topics: &Topics, output: Output) -> anyhow::Result<()> {
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
    thread::Builder::new().name("print".to_owned()).spawn(move || {
        for record in &consumer {
            let line = match (record, output) {
                (Ok(record), Output::Human) => as_text(&record),
                (Ok(record), Output::Json) => as_json(&record).to_string(),
                (Err(error), _) => {
                    tracing::warn!(%error, "the embedded Kafka cannot be read");
                    continue;
                }
            };
            // The reader of standard output has gone. The edge goes on.
            if print_line(&visible(&line)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
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
    // A dead letter's bytes may be JSON, but they are no event.
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

/// Calls the edge as Weni would.
async fn play(hooks: &str, secret: &str) -> anyhow::Result<()> {
    let header = (HeaderName::from_static("x-token"), HeaderValue::from_str(secret)?);
    let target = Target::new(hooks, Method::POST, &[header], None)?;
    let mut client = WeniClient::new(Arc::new(target));
    for life in LIFE {
        let id = MessageId::fresh();
        for name in life {
            let sample = Sample::named(name).context("a sample")?;
            let body = Template::new(sample, 0).fill(&id);
            let answer = client.call(body.into()).await.context("cannot call the edge")?;
            anyhow::ensure!(answer.status.is_success(), "the edge answered {}", answer.status);
            tokio::time::sleep(STEP).await;
        }
    }
    // Text that is not JSON becomes a dead letter.
    client.call("not JSON at all".into()).await.context("cannot call the edge")?;
    Ok(())
}
