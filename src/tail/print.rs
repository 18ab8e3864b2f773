//! A record as a line for people, and as a line of JSON.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value as Json, json};

use super::{Content, TailedRecord, errors, text};
use crate::{event::Topic, kafka::follow::Followed};

/// What is shown of a dead letter's bytes.
const START_CHARS: usize = 80;

/// When, what, who, which message, which source, and more; and the ANSI code for what happened.
/// Control characters are still in it.
pub(crate) fn line(item: &TailedRecord) -> (Vec<String>, &'static str) {
    let record = &item.record;
    let own = |name| item.header(name).to_owned();
    let time = jiff::Timestamp::from_millisecond(record.timestamp_ms).unwrap_or_default();
    let (time, source) = (time.to_string(), item.source().to_owned());
    let what = format!("{:<20}", item.what());
    match &item.content {
        Content::Event(event) => {
            let id = text(event, "/message_id").or(text(event, "/receipt")).unwrap_or("-");
            let when = text(event, "/occurred_at").or(text(event, "/received_at"));
            let when = when.map_or(time, str::to_owned);
            let who = format!("{:<5}", who(event).unwrap_or("-"));
            let line = vec![when, what, who, id.to_owned(), source];
            (line.into_iter().chain(more(event)).collect(), colour(event))
        }
        Content::DeadLetter => {
            let mut line =
                vec![own("received_at"), what, "-    ".to_owned(), own("receipt"), source];
            if !own("element").is_empty() {
                line.push(format!("at {}", own("element")));
            }
            line.push(format!("{} bytes", record.value.len()));
            if !item.is_masked {
                line.extend([own("detail"), start(&record.value)]);
            }
            (line, "31")
        }
        Content::Unreadable => {
            let at = format!("{}/{}@{}", record.topic, record.partition, record.offset);
            (vec![time, what, source, format!("{at}: {NO_EVENT}")], "33")
        }
    }
}

const NO_EVENT: &str = "it is no JSON object";

/// Red, green, yellow, blue, magenta and cyan are 31 to 36.
fn colour(event: &Json) -> &'static str {
    match text(event, "/status") {
        Some("sent" | "sending") => "34",
        Some("delivered") => "32",
        Some("read" | "played") => "36",
        Some("failed") => "31",
        Some(_) => "33",
        None if errors(event).next().is_some() => "31",
        None => "35",
    }
}

/// The user: in a group the participant; the phone number, if it is known.
fn who(event: &Json) -> Option<&str> {
    let is_group = text(event, "/recipient/type") == Some("group");
    let individual = ["/recipient/id", "/recipient/user_id"].into_iter().filter(|_| !is_group);
    ["/recipient/participant_id", "/recipient/participant_user_id"]
        .into_iter()
        .chain(individual)
        .chain(["/user_key"])
        .find_map(|at| text(event, at))
}

/// Errors and prices, and what the user wrote.
fn more(event: &Json) -> Vec<String> {
    let error = |error: &Json| {
        let of = |at| text(error, at).unwrap_or_default();
        let code = error["code"].as_i64().map(|code| format!("{code} ")).unwrap_or_default();
        let title = text(error, "/details").unwrap_or(of("/title"));
        format!("{code}fault={} retry={} {title}", of("/fault"), of("/retry"))
    };
    let mut more: Vec<_> = errors(event).map(error).collect();
    let price = ["/pricing/category", "/pricing/type"];
    let price: Vec<_> = price.into_iter().filter_map(|at| text(event, at)).collect();
    if !price.is_empty() {
        more.push(price.join("/"));
    }
    more.extend(text(event, "/text").map(|text| format!("{text:?}")));
    more
}

/// The first of a dead letter's bytes.
fn start(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(&value[..value.len().min(START_CHARS * 4)]);
    let mut start: String = text.chars().take(START_CHARS).collect();
    if start.len() < value.len() {
        start.push('…');
    }
    start
}

/// The record as it is in Kafka, or what may be shown of it.
pub(crate) fn json(item: &TailedRecord) -> Json {
    let Followed { topic, partition, offset, timestamp_ms, key, headers, value } = &item.record;
    let text = |bytes: &[u8]| Json::from(String::from_utf8_lossy(bytes));
    let headers = headers.iter().map(|(name, value)| (name.clone(), text(value)));
    let contract = match &item.content {
        Content::DeadLetter => Topic::DeadLetter.as_str(),
        _ => item.header("ce_dataschema").trim_start_matches("urn:weni-edge:"),
    };
    let mut line = json!({
        "topic": topic, "contract": contract, "partition": partition, "offset": offset,
        "timestamp": timestamp_ms, "key": text(key), "headers": headers.collect::<Map<_, _>>(),
    });
    match &item.content {
        Content::Event(event) => {
            line["event"] = event.clone();
            return line;
        }
        Content::DeadLetter => line["value_bytes"] = value.len().into(),
        Content::Unreadable => line["unreadable"] = NO_EVENT.into(),
    }
    if !item.is_masked {
        line["value_base64"] = STANDARD.encode(value).into();
    }
    line
}
