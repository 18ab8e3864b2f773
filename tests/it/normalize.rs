//! The contract with consumers: what each callback yields, and what holds for any body.
//!
//! `tests/fixtures/contract` has pairs. `NAME.json` is a body, or an array of bodies that are called one
//! after the other. `NAME.expect.json` lists every record that they must yield: its topic, key, headers,
//! fields (dotted paths; a path that begins with `/` is one key) and fields that must be absent. One
//! entry of the list may be `settings`: `raw` and `labels` of the source, `inbound_key` of the topics.

use std::{env, fs, path::Path};

use proptest::prelude::*;
use serde_json::Value as Json;
use uuid::Uuid;
use weni_edge::{
    callback::Callback,
    event::{Item, Settings, Topic},
    normalize,
};

use crate::{contract, fuzzed};

/// A record as consumers see it.
#[derive(Debug)]
struct Record {
    call: usize,
    topic: &'static str,
    key: String,
    headers: Vec<(String, String)>,
    /// Null for a dead letter.
    event: Json,
}

fn records(call: usize, body: &[u8], settings: &Json) -> Vec<Record> {
    let labels = settings.get("labels").map(Json::to_string).unwrap_or_default();
    let key_by_conversation = settings["inbound_key"] == "conversation";
    let callback = Callback {
        receipt: Uuid::from_u128(call as u128),
        received_at_ms: 1_795_600_007_482,
        source: "loja",
        raw: settings["raw"] != "untyped",
        method: "POST",
        content_type: None,
        content_encoding: None,
        traceparent: None,
        body,
    };
    let decoded = normalize::decode(&callback, 1_000_000);
    let document = normalize::parse(&decoded);
    let settings = Settings { labels: labels.as_bytes(), key_by_conversation };
    let items = normalize::items(&callback, settings, &document);
    let record = |item| {
        let mut headers = Vec::new();
        let mut header = |name: &str, value: &[u8]| {
            headers.push((name.to_owned(), String::from_utf8_lossy(value).into_owned()));
        };
        match item {
            Item::Event(event) => {
                let mut value = Vec::new();
                event.write_json(&mut value);
                event.headers(&mut header);
                let (topic, key) = (event.topic().as_str(), event.key().to_owned());
                hold(event.topic(), &headers, &value);
                let event = serde_json::from_slice(&value).unwrap();
                Record { call, topic, key, headers, event }
            }
            Item::DeadLetter(letter) => {
                letter.headers(&mut header);
                hold(Topic::DeadLetter, &headers, &letter.value);
                let key = letter.key().to_owned();
                Record { call, topic: "dead-letter.v1", key, headers, event: Json::Null }
            }
        }
    };
    items.into_iter().map(record).collect()
}

fn hold(topic: Topic, headers: &[(String, String)], value: &[u8]) {
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    contract::hold(topic, headers, value);
}

/// The value at a dotted path, in which a JSON pointer is one key.
fn at<'j>(json: &'j Json, path: &str) -> Option<&'j Json> {
    let (first, rest) = match path.strip_prefix('/') {
        Some(_) => (path, None),
        None => path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest))),
    };
    let found = match json {
        Json::Array(all) => all.get(first.parse::<usize>().ok()?)?,
        json => json.get(first)?,
    };
    rest.map_or(Some(found), |rest| at(found, rest))
}

/// Why the record is not the expected one.
fn difference(record: &Record, expected: &Json) -> Option<String> {
    let text = |name: &str| expected[name].as_str();
    let members = |name: &str| expected[name].as_object().into_iter().flatten();
    if text("topic").is_some_and(|topic| topic.strip_prefix("weni.") != Some(record.topic)) {
        return Some("topic".to_owned());
    }
    if text("key").is_some_and(|key| key != record.key) {
        return Some("key".to_owned());
    }
    if expected["call"].as_u64().is_some_and(|call| call as usize != record.call) {
        return Some("call".to_owned());
    }
    for (path, value) in members("fields") {
        let found = at(&record.event, path);
        if found != Some(value) {
            return Some(format!("{path}: {found:?} is not {value}"));
        }
    }
    for (name, value) in members("headers") {
        let found = record.headers.iter().find(|(key, _)| key == name);
        if found.map(|(_, value)| value.as_str()) != value.as_str() {
            return Some(format!("header {name}: {found:?} is not {value}"));
        }
    }
    let absent = expected["absent"].as_array().into_iter().flatten().filter_map(Json::as_str);
    absent
        .filter(|path| at(&record.event, path).is_some())
        .map(|path| format!("{path} is there"))
        .next()
}

/// What is wrong with one pair of files.
fn judge(body: &[u8], expected: &[Json]) -> Result<(), String> {
    let settings = expected.iter().find_map(|one| one.get("settings")).unwrap_or(&Json::Null);
    let is_sequence = expected.iter().any(|one| one.get("call").is_some());
    let bodies: Vec<Vec<u8>> = match is_sequence {
        true => serde_json::from_slice::<Vec<Json>>(body).map_err(|error| error.to_string())?,
        false => Vec::new(),
    }
    .iter()
    .map(|body| body.to_string().into_bytes())
    .collect();
    let mut records: Vec<_> = match is_sequence {
        true => bodies
            .iter()
            .enumerate()
            .flat_map(|(at, body)| records(at + 1, body, settings))
            .collect(),
        false => records(1, body, settings),
    };
    let event_ids = |records: &[Record], call: u64| -> Vec<String> {
        let of_call = records.iter().filter(|record| record.call as u64 == call);
        of_call.map(|record| record.event["event_id"].to_string()).collect()
    };
    for one in expected {
        if let (Some(call), Some(same)) =
            (one["call"].as_u64(), one["same_event_id_as_call"].as_u64())
            && event_ids(&records, call) != event_ids(&records, same)
        {
            return Err(format!("calls {call} and {same} have different event ids"));
        }
    }
    for one in expected.iter().filter(|one| one.get("topic").is_some()) {
        let differences: Vec<_> = records.iter().map(|record| difference(record, one)).collect();
        let Some(found) = differences.iter().position(Option::is_none) else {
            return Err(format!("{one} is not among the records: {differences:?}"));
        };
        records.remove(found);
    }
    match &records[..] {
        [] => Ok(()),
        more => Err(format!("records beyond those: {more:?}")),
    }
}

fn judge_directory(directory: &Path) -> usize {
    let mut failed = Vec::new();
    let mut judged = 0;
    let mut files: Vec<_> =
        fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let Some(name) = name.strip_suffix(".expect.json") else { continue };
        let expected: Vec<Json> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let body = fs::read(directory.join(format!("{name}.json"))).unwrap();
        if let Err(why) = judge(&body, &expected) {
            failed.push(format!("{name}: {why}"));
        }
        judged += 1;
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    judged
}

#[test]
fn each_callback_yields_what_the_contract_says() {
    // More cases, where there are some.
    if let Some(directory) = env::var_os("WENI_EDGE_CASES") {
        assert!(judge_directory(Path::new(&directory)) > 0);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(judge_directory(&root.join("tests/fixtures/contract")) >= 10);
}

/// A value whose `elements` all share this phone number.
fn sharing(number: &[u8], elements: usize) -> Vec<u8> {
    let statuses: Vec<_> =
        (0..elements).map(|at| format!(r#"{{"id":"wamid.{at}","status":"read"}}"#)).collect();
    let mut body = br#"{"metadata":{"phone_number_id":"P","display_phone_number":""#.to_vec();
    body.extend_from_slice(number);
    body.extend_from_slice(br#""},"statuses":["#);
    body.extend_from_slice(statuses.join(",").as_bytes());
    body.extend_from_slice(b"]}");
    body
}

/// Callbacks to start from: the project's fixtures, and what fuzzing kept.
fn known_bodies() -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["fuzz/corpus/normalize", "tests/fixtures/callbacks"]
        .map(|directory| fs::read_dir(root.join(directory)).unwrap());
    files.into_iter().flatten().map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

#[test]
fn known_bodies_hold_to_the_contract() {
    let mut bodies = known_bodies();
    assert!(bodies.len() > 30);
    // More bodies, where there are some.
    if let Some(corpus) = env::var_os("WENI_EDGE_CORPUS") {
        let files = fs::read_dir(Path::new(&corpus).join("payloads")).unwrap();
        bodies.extend(files.map(|file| fs::read(file.unwrap().path()).unwrap()));
    }
    bodies.iter().for_each(|body| fuzzed::normalize(body));
}

proptest! {
    // Each case is megabytes.
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..Default::default() })]

    #[test]
    fn callbacks_whose_elements_share_much_hold_to_the_contract(
        byte: u8, len in 0usize..20_000, elements in 0usize..400,
    ) {
        fuzzed::normalize(&sharing(&vec![byte; len], elements));
    }
}

proptest! {
    #[test]
    fn any_bytes_hold_to_the_contract(body: Vec<u8>) {
        fuzzed::normalize(&body);
    }

    #[test]
    fn damaged_callbacks_hold_to_the_contract(
        which: proptest::sample::Index,
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>(), 0..3u8), 1..8),
    ) {
        let bodies = known_bodies();
        let mut body = which.get(&bodies).clone();
        for (at, byte, edit) in edits {
            if body.is_empty() {
                break;
            }
            let at = at.index(body.len());
            match edit {
                0 => body[at] = byte,
                1 => body.insert(at, byte),
                _ => drop(body.remove(at)),
            }
        }
        fuzzed::normalize(&body);
    }
}
