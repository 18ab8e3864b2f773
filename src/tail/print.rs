//! A record as a line for people, and as a line of JSON.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value as Json, json};

use super::{Content, Item, mask};
use crate::event::{Topic, form::AnyEvent};

/// What is shown of a dead letter's bytes.
const START_CHARS: usize = 80;

const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const BLUE: &str = "34";
const MAGENTA: &str = "35";
const CYAN: &str = "36";
const DIM: &str = "2";

/// Text of a caller, and the ANSI code of its colour, if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) text: String,
    pub(crate) colour: &'static str,
}

fn span(text: impl Into<String>, colour: &'static str) -> Span {
    Span { text: text.into(), colour }
}

/// When, what, who, which message, which source, and more. Control characters are still in it.
pub(crate) fn line(item: &Item, is_personal: bool) -> Vec<Span> {
    let what = format!("{:<20}", item.what());
    let source = span(item.source(), DIM);
    match &item.content {
        Content::Event(event) => {
            let of = &event.envelope;
            let shown = |text: &str, mask: fn(&str) -> String| {
                if is_personal { text.to_owned() } else { mask(text) }
            };
            let id = of.message_id.as_ref();
            let id = id.map_or(of.receipt.clone(), |id| shown(id, mask::message_id));
            let who = who(event).map_or("-".to_owned(), |who| shown(who, mask::person));
            let time = of.occurred_at.as_ref().unwrap_or(&of.received_at);
            let mut spans = vec![span(time, DIM), span(what, colour(event))];
            spans.extend([span(format!("{who:<5}"), ""), span(id, DIM), source]);
            spans.extend(more(event, is_personal));
            spans
        }
        Content::DeadLetter => {
            let (time, element) = (item.header("received_at"), item.header("element"));
            let detail = item.header("detail");
            let detail = if is_personal { detail.to_owned() } else { mask::text(detail) };
            let mut spans = vec![span(time, DIM), span(what, RED), span("-    ", "")];
            spans.extend([span(item.header("receipt"), DIM), source, span(detail, "")]);
            if !element.is_empty() {
                spans.push(span(format!("at {element}"), ""));
            }
            spans.push(span(start(&item.record.value, is_personal), DIM));
            spans
        }
        Content::Unreadable(why) => {
            let time = jiff::Timestamp::from_millisecond(item.record.timestamp_ms);
            let time = time.unwrap_or_default().to_string();
            let record = &item.record;
            let at = format!("{}/{}@{}: {why}", record.topic, record.partition, record.offset);
            vec![span(time, DIM), span(what, YELLOW), source, span(at, "")]
        }
    }
}

fn colour(event: &AnyEvent) -> &'static str {
    match event.details.status.status.as_deref() {
        Some("sent" | "sending") => BLUE,
        Some("delivered") => GREEN,
        Some("read" | "played") => CYAN,
        Some("failed") => RED,
        Some(_) => YELLOW,
        None if event.envelope.errors.is_some() => RED,
        None => MAGENTA,
    }
}

/// The user: in a group the participant; the phone number, if it is known.
fn who(event: &AnyEvent) -> Option<&str> {
    let recipient = event.details.status.recipient.as_ref();
    let of_group =
        recipient.and_then(|of| of.participant_id.as_ref().or(of.participant_user_id.as_ref()));
    let individual = recipient.filter(|of| of.r#type != "group");
    let individual = individual.and_then(|of| of.id.as_ref().or(of.user_id.as_ref()));
    let known = of_group.or(individual).or(event.envelope.user_key.as_ref());
    known.map(String::as_str)
}

/// Errors and prices, and what the user wrote.
fn more(event: &AnyEvent, is_personal: bool) -> Vec<Span> {
    let mut spans = Vec::new();
    for error in event.envelope.errors.iter().flatten() {
        let code = error.code.map(|code| format!("{code} ")).unwrap_or_default();
        let title = error.details.as_ref().or(error.title.as_ref()).map_or("", String::as_str);
        let title = if is_personal { title.to_owned() } else { mask::text(title) };
        let (fault, retry) = (error.fault.as_str(), error.retry.as_str());
        spans.push(span(format!("{code}fault={fault} retry={retry} {title}"), RED));
    }
    if let Some(pricing) = &event.details.status.pricing {
        let known = [&pricing.category, &pricing.r#type];
        let known: Vec<_> = known.into_iter().flatten().map(String::as_str).collect();
        if !known.is_empty() {
            spans.push(span(known.join("/"), DIM));
        }
    }
    if let Some(text) = event.details.message.text.as_ref().filter(|_| is_personal) {
        spans.push(span(format!("{text:?}"), ""));
    }
    spans
}

/// The first of a dead letter's bytes.
fn start(value: &[u8], is_personal: bool) -> String {
    // More than are shown, so that a number at the end is not cut before it is seen to be one.
    let bytes = &value[..value.len().min(START_CHARS * 4)];
    let text = String::from_utf8_lossy(bytes);
    let text = if is_personal { text.into_owned() } else { mask::text(&text) };
    let mut start: String = text.chars().take(START_CHARS).collect();
    if start.len() < text.len() || bytes.len() < value.len() {
        start.push('…');
    }
    start
}

/// The record, as it is in Kafka or masked.
pub(crate) fn json(item: &Item, is_personal: bool) -> Json {
    let record = &item.record;
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let header = |(name, value): &(String, Vec<u8>)| {
        let value = lossy(value);
        let value = if is_personal { Some(value) } else { mask::header(name, &value) };
        Some((name.clone(), value?.into()))
    };
    let headers: Map<String, Json> = record.headers.iter().filter_map(header).collect();
    let contract = match &item.content {
        Content::DeadLetter => Topic::DeadLetter.as_str(),
        _ => item.header("ce_dataschema").trim_start_matches("urn:weni-edge:"),
    };
    let key = lossy(&record.key);
    let key = if is_personal { key } else { masked_key(item, key) };
    let mut line = json!({
        "topic": record.topic, "contract": contract, "partition": record.partition,
        "offset": record.offset, "timestamp": record.timestamp_ms, "key": key, "headers": headers,
    });
    match &item.content {
        Content::Event(_) if is_personal => {
            line["event"] = serde_json::from_slice(&record.value).unwrap_or_default();
        }
        Content::Event(event) => {
            let mut event = event.clone();
            mask::event(&mut event);
            line["event"] = serde_json::to_value(event).unwrap_or_default();
        }
        Content::DeadLetter => {
            line["value_bytes"] = record.value.len().into();
            line["value_start"] = start(&record.value, is_personal).into();
        }
        Content::Unreadable(why) => line["unreadable"] = why.as_str().into(),
    }
    if is_personal && item.event().is_none() {
        line["value_base64"] = STANDARD.encode(&record.value).into();
    }
    line
}

/// A receipt names no one.
fn masked_key(item: &Item, key: String) -> String {
    let message_id = item.event().and_then(|event| event.envelope.message_id.as_ref());
    match &key {
        key if *key == item.header("receipt") => key.clone(),
        key if Some(key) == message_id => mask::message_id(key),
        _ => mask::person(&key),
    }
}
