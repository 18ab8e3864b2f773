//! Checks records against the contract: the form of the events, and the schemas.

use std::{collections::BTreeMap, fs, path::Path, process::Command, sync::LazyLock};

use jsonschema::Validator;
use serde_json::{Map, Value as Json};
use tempfile::TempDir;
use weni_edge::event::{Topic, schema};

use crate::fuzzed;

/// The schema of the values, and that of the headers.
struct Schemas {
    value: Option<Validator>,
    headers: Validator,
}

static SCHEMAS: LazyLock<BTreeMap<Topic, Schemas>> = LazyLock::new(|| {
    let validator =
        |schema: Json| jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
    let of = |topic| Schemas {
        value: (topic != Topic::DeadLetter).then(|| validator(schema::schema(topic))),
        headers: validator(headers(topic)),
    };
    Topic::ALL.into_iter().map(|topic| (topic, of(topic))).collect()
});

/// The schema of the headers of a topic's records, as the AsyncAPI document has it.
fn headers(topic: Topic) -> Json {
    let document = schema::asyncapi(Topic::as_str, false);
    match topic {
        // There is a reference to it.
        Topic::DeadLetter => schema::schema(topic),
        _ => document["components"]["messages"][topic.as_str()]["headers"].clone(),
    }
}

/// # Panics
/// If the record is not as the contract says.
pub(crate) fn hold<'h>(
    topic: Topic,
    headers: impl IntoIterator<Item = (&'h str, &'h str)>,
    value: &[u8],
) {
    let schemas = &SCHEMAS[&topic];
    let mut given = Map::new();
    for (name, value) in headers {
        assert_eq!(given.insert(name.to_owned(), value.into()), None, "{name} is given twice");
    }
    let headers = Json::from(given);
    if let Err(error) = schemas.headers.validate(&headers) {
        panic!("headers of {}: {error} in {headers}", topic.as_str());
    }
    if let Some(validator) = &schemas.value {
        let event = serde_json::from_slice(value).unwrap();
        if let Err(error) = validator.validate(&event) {
            panic!("{}: {error} in {event}", topic.as_str());
        }
        fuzzed::has_its_form(topic, &event);
        assert_eq!(headers["ce_dataschema"], schema::urn(topic));
    }
}

/// Each member of a schema with its type, as `recipient.id string`. `!`: it is always there.
fn members(schema: &Json, path: &str, found: &mut Vec<String>) {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        let always = if required.contains(&name.as_str().into()) { "!" } else { "" };
        let of = match member["type"].as_array() {
            Some(types) => types.iter().filter_map(Json::as_str).collect::<Vec<_>>().join("|"),
            None => member["type"].as_str().unwrap_or("any").to_owned(),
        };
        found.push(format!("{path}{name} {of}{always}"));
        members(member, &format!("{path}{name}."), found);
        members(&member["items"], &format!("{path}{name}[]."), found);
    }
}

#[test]
fn no_schema_loses_or_retypes_what_consumers_were_promised() {
    let mut found = Vec::new();
    for topic in Topic::ALL {
        members(&schema::schema(topic), &format!("{} ", topic.as_str()), &mut found);
        members(&headers(topic), &format!("{} headers ", topic.as_str()), &mut found);
    }
    found.sort();
    found.dedup();
    let promised = include_str!("../fixtures/promised.txt");
    let promised: Vec<_> = promised.lines().filter(|line| !line.starts_with('#')).collect();
    let is_promised = |line: &String| promised.contains(&line.as_str());
    let lost: Vec<_> =
        promised.iter().filter(|line| !found.contains(&(**line).to_owned())).collect();
    let new: Vec<_> = found.iter().filter(|line| !is_promised(line)).collect();
    assert!(lost.is_empty(), "consumers rely on {lost:#?}");
    assert!(new.is_empty(), "add to tests/fixtures/promised.txt: {new:#?}");
}

#[test]
fn the_committed_schemas_are_those_of_the_program() {
    let directory = TempDir::new().unwrap();
    let program = env!("CARGO_BIN_EXE_weni-edge");
    let written = Command::new(program).args(["schema", "--write"]).arg(directory.path()).status();
    assert!(written.unwrap().success());
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let names = Topic::ALL.map(|topic| format!("schemas/{}.json", topic.as_str()));
    for name in names.iter().map(String::as_str).chain(["asyncapi.yaml"]) {
        let now = fs::read_to_string(directory.path().join(name)).unwrap();
        let committed = fs::read_to_string(docs.join(name)).unwrap_or_default();
        assert!(committed == now, "docs/{name} is old: run `weni-edge schema --write docs`");
    }
    assert_eq!(fs::read_dir(docs.join("schemas")).unwrap().count(), names.len());
}

#[test]
fn schema_prints_one_schema_and_the_topics_of_a_configuration() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("weni-edge.toml");
    fs::write(
        &file,
        "[topics]\nmessage_status = \"loja.status\"\ninbound_key = \"conversation\"\n",
    )
    .unwrap();
    let run = |arguments: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_weni-edge")).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = run(&["schema", "message-status.v1"]);
    assert_eq!(code, Some(0));
    assert_eq!(serde_json::from_str::<Json>(&text).unwrap(), schema::schema(Topic::MessageStatus));
    let (code, text) = run(&["schema", "asyncapi", "--config", file.to_str().unwrap()]);
    assert_eq!(code, Some(0));
    assert!(text.contains("address: loja.status\n"), "{text}");
    // What is routed to the dead letters is one.
    let routed = "[topics]\nmessage_status = \"weni.dead-letter.v1\"\n";
    let other = directory.path().join("routed.toml");
    fs::write(&other, routed).unwrap();
    let (_, routed) = run(&["schema", "asyncapi", "--config", other.to_str().unwrap()]);
    assert!(
        routed.contains("inbound-message.v1") && !routed.contains("message-status.v1"),
        "{routed}"
    );
    assert!(text.contains("The group id, else the user key, else the message id."), "{text}");
    assert_eq!(run(&["schema"]).0, Some(2));
}

/// The samples leave out what is as in the whole record, which is the first block.
#[test]
fn the_samples_of_the_documentation_are_events() {
    let text = include_str!("../../docs/events.md");
    let blocks = text.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let blocks: Vec<Json> = blocks.map(|block| serde_json::from_str(block).unwrap()).collect();
    let whole = blocks[0].as_object().unwrap();
    let mut judged = 0;
    for sample in blocks
        .iter()
        .flat_map(|block| block.as_array().map_or(vec![block], |all| all.iter().collect()))
    {
        let mut event = sample.as_object().unwrap().clone();
        let is_part = !event.contains_key("event_kind");
        let common = ["schema_version", "source", "receipt", "received_at", "format", "element"];
        let of_message = ["event_id", "occurred_at", "message_id"];
        for name in common.iter().chain(is_part.then_some(&of_message).into_iter().flatten()) {
            event.entry(*name).or_insert(whole[*name].clone());
        }
        event.entry("event_kind").or_insert("inbound_message".into());
        let topic = match event["event_kind"].as_str().unwrap() {
            "message_status" => Topic::MessageStatus,
            "inbound_message" => Topic::InboundMessage,
            _ => Topic::ChannelEvent,
        };
        let event = Json::from(event);
        let faults: Vec<_> = SCHEMAS[&topic]
            .value
            .as_ref()
            .unwrap()
            .iter_errors(&event)
            .map(|error| error.to_string())
            .collect();
        assert!(faults.is_empty(), "{faults:?} in {event}");
        fuzzed::has_its_form(topic, &event);
        judged += 1;
    }
    assert!(judged >= 30, "{judged}");
}
