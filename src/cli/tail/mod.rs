//! `tail`: shows the edge's topics as they grow.

mod session;

use std::{
    io::{self, ErrorKind},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, anyhow, bail};
use clap::builder::{PossibleValue, PossibleValuesParser};
use jiff::Timestamp;

use self::session::TailSession;
use super::{ConfigFile, Output};
use crate::{
    config::parse_duration,
    event::Topic,
    kafka::{Blocked, Obstacle, librdkafka::Cluster},
    serve::signals::stop_flag,
    tail::Filter,
};

const EXAMPLES: &str = "\
Examples:
  Message statuses from now on:
    weni-edge tail --config weni-edge.toml
  What became of a customer's messages in the last two hours:
    weni-edge tail --bootstrap kafka:9092 --recipient +5511999990000 --since 2h --state
  Why messages fail:
    weni-edge tail --bootstrap kafka:9092 --status failed --since 10m
  Events for jq, numbers and texts included:
    weni-edge tail --bootstrap kafka:9092 --topic all --output json --show-personal | jq .event
  Rates, and failures by fault:
    weni-edge tail --bootstrap kafka:9092 --topic all --stats

Columns: time (Meta's, in UTC), status or kind, user, message, source, and errors or prices. The \
second is coloured on a terminal, unless NO_COLOR is set. Notes go to standard error.

Without --show-personal only the end of a phone number, of a user's id and of a message's id is \
shown: a message's id begins with the phone number in base64. Names, texts, the original element, \
members that this program does not know, and all of an error but its code, title, fault and retry are \
left out, also of --output json. A status, type or field that is no plain word is shown as …. Of a \
dead letter its headers are shown and the number of its bytes, without detail, contact and thread. \
--message takes an id as it is shown, too. event_id and receipt are always whole.

tail reads committed events only. It joins no consumer group and commits no offsets, so it disturbs \
no consumer. It needs the rights to describe and to read the topics.

The exit code is 0 when it was stopped or came to the end, 2 when it could not read, and 143 when it \
was stopped while the reader of its output stood still.";

/// Clients need a name of a group. Nothing joins it, and nothing is committed for it.
const GROUP: &str = "weni-edge-tail";

/// Show the edge's events as they come
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,

    /// The brokers, instead of those of the configuration. Without a configuration the topics have
    /// their default names
    #[arg(short, long, value_name = "HOST:PORT")]
    bootstrap: Option<String>,

    /// Which topics; may be repeated
    #[arg(short, long = "topic", value_parser = topic(), default_value = "status")]
    topics: Vec<String>,

    #[command(flatten)]
    filter: Filter,

    /// Begin with what the edge accepted at this time (Kafka's timestamp): 10m or 2h ago, or such as
    /// 2026-11-22T20:00:00Z [default: now; with --no-follow the oldest event]
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Timestamp>,

    /// End at the present end of the topics
    #[arg(long)]
    no_follow: bool,

    /// Show the current state of each message, by rank: a line whenever it changes; with --no-follow
    /// a line for each message at the end
    #[arg(long, conflicts_with_all = ["topics", "stats"])]
    state: bool,

    /// Count events and their rate by status or kind, source, and fault: a table every 10 seconds
    #[arg(long, conflicts_with = "output")]
    stats: bool,

    /// Show phone numbers, ids, names and texts
    #[arg(long)]
    show_personal: bool,

    /// The format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// The topics as --topic names them, beside `all`.
const TOPICS: [(&str, &str, Topic); Topic::ALL.len()] = [
    ("status", "Statuses of messages", Topic::MessageStatus),
    ("inbound", "Messages of users", Topic::InboundMessage),
    ("channel", "Calls, payments, echoes, and all else", Topic::ChannelEvent),
    ("dead-letter", "What could not be read or published", Topic::DeadLetter),
];

fn topic() -> PossibleValuesParser {
    let values = TOPICS.map(|(name, about, _)| PossibleValue::new(name).help(about));
    PossibleValuesParser::new(values.into_iter().chain([PossibleValue::new("all")]))
}

fn since(text: &str) -> Result<Timestamp, String> {
    let ago = || Timestamp::now().checked_sub(parse_duration(text).ok()?).ok();
    let how = "use a time that has passed, as 10m or 2h, or one such as 2026-11-22T20:00:00Z";
    text.parse().ok().or_else(ago).ok_or_else(|| how.into())
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let stop = stop_flag().context("cannot wait for signals")?;
    let mut config = args.config.load()?;
    if let Some(bootstrap) = &args.bootstrap {
        config.kafka.bootstrap_servers.clone_from(bootstrap);
    }
    if config.kafka.bootstrap_servers.is_empty() {
        bail!("no brokers: name them with --bootstrap HOST:PORT, or give the edge's --config");
    }
    let config = Arc::new(config);
    let show = || {
        let cluster = Cluster::new(Arc::clone(&config), GROUP.to_owned(), Arc::default())?;
        TailSession::open(&args, &config, &cluster)?.run(&stop)
    };
    let Err(error) = show() else { return Ok(ExitCode::SUCCESS) };
    match error.downcast_ref::<io::Error>() {
        // The reader of standard output has gone.
        Some(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        _ => Err(match error.downcast::<Obstacle>() {
            Ok(obstacle) => explain(obstacle, &config.kafka.bootstrap_servers),
            Err(error) => error,
        }),
    }
}

fn explain(obstacle: Obstacle, brokers: &str) -> anyhow::Error {
    let detail = &obstacle.detail;
    match obstacle.blocked {
        Blocked::NoBroker => anyhow!("Kafka at {brokers} cannot be reached: {detail}"),
        Blocked::NotAuthorized => anyhow!(
            "Kafka refuses: {detail}. tail needs a login with the rights to describe and to read the \
             topics"
        ),
        Blocked::UnknownTopic => anyhow!("{detail}"),
        _ => obstacle.into(),
    }
}
