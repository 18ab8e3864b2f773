//! `dev`: the whole edge with an embedded Kafka, to try it out.
//!
//! The Kafka is librdkafka's mock cluster in this process, and the journal a temporary directory.
//! Everything else is what `serve` runs.

use std::{net::SocketAddr, path::Path, process::ExitCode, sync::Arc, thread, time::Duration};

use anyhow::Context;
use http::{HeaderName, HeaderValue, Method};
use jiff::Timestamp;
use rdkafka::mocking::MockCluster;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Output,
    terminal::{print_line, visible},
};
use crate::{
    caller::{LIFE, MessageId, Sample, Target, Template, WeniClient, is_public, on_this_machine},
    calls::{CALLS_KEPT, RecentCalls, explain},
    config::{Config, LogFormat, Secret, Source, Topics},
    event::Topic,
    kafka::{
        follow::{Followed, Offsets},
        librdkafka::Cluster,
    },
    metrics::{Metrics, UNKNOWN_SOURCE},
    serve::Edge,
    tail::{self, TailedRecord},
};

const SOURCE: &str = "demo";
const HEADER: &str = "X-Token";
const PARTITIONS: i32 = 3;
/// Between two calls of the demo, so that a person can follow it.
const STEP: Duration = Duration::from_millis(700);
/// Between two looks for refused calls, and how many of a look are shown: the last ones.
const REFUSED_EVERY: Duration = Duration::from_millis(200);
const REFUSED_SHOWN: usize = 10;
/// The demo's last call. It becomes a dead letter.
const NOT_JSON: &[u8] = b"not JSON at all";
/// The port of the advice to listen on all addresses, if none is given.
const LISTEN_PORT: u16 = 8080;
const YOUR_ADDRESS: &str = "https://YOUR-PUBLIC-ADDRESS";
const DEMO_ENDED: &str = "\nThe demo has ended, and the edge goes on: call it as shown above, or end it \
                          with Ctrl-C.\n";

/// Try the edge with an embedded Kafka: no configuration, nothing kept
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    weni-edge dev --demo            watch the life of a few messages\n  \
    weni-edge dev                   then call it with the printed curl\n  \
    weni-edge dev --listen 0.0.0.0:8080     for Weni, behind a tunnel to port 8080\n  \
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
    /// The address for the inspector, probes and metrics; port 0 is a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    admin: SocketAddr,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let journal = tempfile::Builder::new().prefix("weni-edge-dev-").tempdir()?;
    let cluster = MockCluster::new(1).context("cannot start the embedded Kafka")?;
    let secret = Uuid::new_v4().simple().to_string();
    let config = config(&args, &cluster.bootstrap_servers(), &secret, journal.path());
    for topic in Topic::ALL {
        cluster.create_topic(config.topics.name(topic), PARTITIONS, 1)?;
    }
    cluster.create_topic(&config.topics.position, 1, 1)?;
    // The consumer would report a cluster that ends before the process does.
    std::mem::forget(cluster);
    let metrics = Arc::new(Metrics::default());
    super::log::init(&config.log, metrics.log_lines_dropped_total.clone())?;

    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let edge = Edge::start(config.clone(), metrics).await?;
        let hooks = format!("http://{}/hooks/{SOURCE}", on_this_machine(edge.public));
        let admin = format!("http://{}", on_this_machine(edge.admin));
        print_line(&match args.output {
            Output::Human => {
                for_weni(args.listen.port(), edge.public, &secret)
                    + &by_hand(&config, &hooks, &admin, &secret)
            }
            Output::Json => ready(&config, &hooks, &admin, &secret).to_string(),
        })?;
        print_records(Arc::new(config), &args)?;
        if args.output == Output::Human {
            tokio::spawn(print_refused(edge.calls()));
        }
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
    // The mock cluster does not answer earlier when a record comes.
    config.kafka.properties.insert("fetch.wait.max.ms".to_owned(), Secret::new("50"));
    config.log.level = "warn".to_owned();
    if args.output == Output::Human {
        config.log.format = LogFormat::Human;
        // `print_refused` says more of each.
        config.log.level = "warn,weni_edge::http::sources=error".to_owned();
    }
    if !args.admin.ip().is_loopback() {
        // There is no inspector on such an address without a token.
        config.admin.tokens = vec![Secret::new(secret)];
    }
    let source = Source {
        header: HEADER.to_owned(),
        secrets: vec![Secret::new(secret)],
        ..Source::default()
    };
    config.sources.insert(SOURCE.to_owned(), source);
    config
}

fn ready(config: &Config, hooks: &str, admin: &str, secret: &str) -> Value {
    let Topics { message_status, inbound_message, channel_event, dead_letter, .. } = &config.topics;
    json!({
        "ready": true, "hooks": hooks, "method": "POST", "headers": {HEADER: secret},
        "admin": admin, "inspector": format!("{admin}/inspector"),
        "kafka": config.kafka.bootstrap_servers,
        "topics": {
            "message_status": message_status, "inbound_message": inbound_message,
            "channel_event": channel_event, "dead_letter": dead_letter,
        },
    })
}

/// `port` is the wanted one; 0: any.
fn for_weni(port: u16, public: SocketAddr, secret: &str) -> String {
    let (ip, program) = (public.ip(), program());
    let port = if port == 0 { LISTEN_PORT } else { port };
    let cannot_reach = format!(
        "  Weni cannot reach {ip}. Start `{program} dev --listen 0.0.0.0:{port}` instead.\n"
    );
    let (url, how) = match ip.is_unspecified() {
        true => (YOUR_ADDRESS.to_owned(), tunnel(public.port())),
        false if is_public(ip) => (format!("http://{public}"), String::new()),
        false => (YOUR_ADDRESS.to_owned(), cannot_reach + &tunnel(port)),
    };
    format!(
        "weni-edge dev: this Kafka is for trying out and keeps nothing. Ctrl-C ends it.\n\n\
         In Weni's webhook settings:\n  \
           Método          POST\n  URL do webhook  {url}/hooks/{SOURCE}\n  \
           Cabeçalhos      Chave {HEADER}, Valor {secret}\n\n{how}\n"
    )
}

fn tunnel(port: u16) -> String {
    format!(
        "  YOUR-PUBLIC-ADDRESS is that of a tunnel or proxy of your choice, which takes https:// calls\n  \
           from the internet to port {port} of this machine. Each start makes a new secret.\n"
    )
}

/// This program as it was called. After `cargo run` no shell finds it by its name alone.
fn program() -> String {
    let name = std::env::args_os().next().unwrap_or("weni-edge".into());
    visible(&name.to_string_lossy())
}

fn by_hand(config: &Config, hooks: &str, admin: &str, secret: &str) -> String {
    let (program, statuses) = (program(), &config.topics.message_status);
    let kafka = &config.kafka.bootstrap_servers;
    let is_open = config.admin.tokens.is_empty();
    let now = Timestamp::now().as_second();
    let login = if is_open { "" } else { "; its token is the secret above" };
    format!(
        "By hand, in another terminal:\n  \
           curl -H '{HEADER}: {secret}' {hooks} \\\n    \
             -d '{{\"statuses\":[{{\"id\":\"wamid.test\",\"status\":\"read\",\"timestamp\":\"{now}\",\"recipient_id\":\"5511900000001\"}}]}}'\n\n\
         Or as Weni does:\n  {program} send {hooks} -H '{HEADER}: {secret}'\n\n\
         Kafka   {kafka}   ({program} tail -b {kafka}; kcat -b {kafka} -C -t {statuses})\n\
         Metrics {admin}/metrics\n\
         Inspector {admin}/inspector   (what to paste, and each call as it arrives{login})\n\n\
         Every event as it reaches Kafka (a body without any, such as {{}}, is answered 200 all the same):"
    )
}

/// Starts a thread that prints every record of the four topics until the process ends.
fn print_records(config: Arc<Config>, args: &Args) -> anyhow::Result<()> {
    let output = args.output;
    let mut tells_end = args.demo && output == Output::Human;
    let mut beginnings = Offsets::new();
    for topic in Topic::ALL.map(|topic| config.topics.name(topic).to_owned()) {
        beginnings.extend((0..PARTITIONS).map(|partition| ((topic.clone(), partition), 0)));
    }
    let cluster = Cluster::new(config, "weni-edge-dev".to_owned(), Arc::default())?;
    let mut follower = cluster.follow(&beginnings, Offsets::new(), true)?;
    let mut print = move |record| {
        let item = TailedRecord::read(record);
        let mut line = visible(&match output {
            Output::Human => as_text(&item),
            Output::Json => as_json(&item).to_string(),
        });
        if tells_end && item.record.value == NOT_JSON {
            line = format!("{line}\n{DEMO_ENDED}");
            tells_end = false;
        }
        print_line(&line)
    };
    thread::Builder::new().name("print".to_owned()).spawn(move || {
        loop {
            match follower.poll().map(|record| record.map_or(Ok(()), &mut print)) {
                Ok(Ok(())) => {}
                // The reader of standard output has gone. The edge goes on.
                Ok(Err(_)) => return,
                Err(error) => {
                    return tracing::warn!(%error, "the embedded Kafka cannot be read");
                }
            }
        }
    })?;
    Ok(())
}

/// Prints why calls are refused, until the process ends.
async fn print_refused(calls: Arc<RecentCalls>) {
    let mut rings = [SOURCE, UNKNOWN_SOURCE].map(|source| (calls.ring(source), 0));
    loop {
        for (ring, next) in &mut rings {
            let calls = ring.since(*next, CALLS_KEPT);
            *next = calls.last().map_or(*next, |call| call.number + 1);
            for call in calls.into_iter().rev().take(REFUSED_SHOWN).rev() {
                let Err(refused) = &call.outcome else { continue };
                let (why, status) = (explain(refused).en, refused.status);
                let time = Timestamp::from_millisecond(call.at_ms as i64).unwrap_or_default();
                let line = format!("{time:.3}  refused {status:>12}  {why}");
                // The reader of standard output may have gone. The edge goes on.
                print_line(&visible(&line)).ok();
            }
        }
        tokio::time::sleep(REFUSED_EVERY).await;
    }
}

/// The record as `tail` shows it, but the event is its `value`.
fn as_json(item: &TailedRecord) -> Value {
    let mut line = tail::json(item);
    if let Some(event) = line.as_object_mut().and_then(|line| line.remove("event")) {
        line["value"] = event;
    }
    line
}

/// When, what and who as `tail` shows them, and where the record is in Kafka.
fn as_text(item: &TailedRecord) -> String {
    let (columns, _) = tail::line(item);
    let Followed { topic, partition, offset, key, .. } = &item.record;
    let key = String::from_utf8_lossy(key);
    format!("{}  {topic}[{partition}]@{offset}  {key}", columns[..3].join("  "))
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
            anyhow::ensure!(answer.status().is_success(), "the edge answered {}", answer.status());
            tokio::time::sleep(STEP).await;
        }
    }
    client.call(NOT_JSON.into()).await.context("cannot call the edge")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_to_listen_on_all_addresses_keeps_the_port() {
        let said = |port, public: &str| for_weni(port, public.parse().unwrap(), "secret");
        let wanted = said(38080, "127.0.0.1:38080");
        assert!(wanted.contains("dev --listen 0.0.0.0:38080` instead"), "{wanted}");
        assert!(wanted.contains("to port 38080 of this machine"), "{wanted}");
        assert!(said(0, "127.0.0.1:41234").contains("dev --listen 0.0.0.0:8080` instead"));
    }
}
