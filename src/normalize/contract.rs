//! What holds for every body there is: fuzzing and the tests run it.

use serde_json::Value as Json;

use super::{decode, decode_letter, items, items_of_letter, parse};
use crate::{
    callback::Callback,
    event::{Event, Item, KeptLetter, Reason, Stage},
};

/// What fuzzing and the tests demand of any body: its items can be written, each event is JSON with a
/// key and its bytes, the same body gives the same items again, and an event that was a dead letter
/// is the same event again. What serde_json reads as a status is an event of its own.
///
/// # Panics
/// When the contract is broken.
pub fn hold_to_the_contract(body: &[u8]) {
    let callback = Callback {
        receipt: uuid::Uuid::from_u128(1),
        received_at_ms: 1_763_842_387_482,
        source: "fuzz",
        raw: true,
        method: "POST",
        content_type: None,
        content_encoding: None,
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        body,
    };
    let read = serde_json::from_slice(body).unwrap_or(Json::Null);
    let mut statuses = statuses(&read);
    let mut written = || {
        let mut all = Vec::new();
        let decoded = decode(&callback, 1_000_000);
        let document = parse(&decoded);
        for item in items(&callback, &document) {
            let mut out = Vec::new();
            match item {
                Item::Event(event) => {
                    assert!(!event.key().is_empty());
                    event.headers(&mut |_, value| out.extend_from_slice(value));
                    let start = out.len();
                    event.write_json(&mut out);
                    let json: Json = match serde_json::from_slice(&out[start..]) {
                        Ok(json) => json,
                        Err(error) => panic!("an event is no JSON: {error}"),
                    };
                    assert!(json.get("raw").is_some() != json.get("raw_base64").is_some());
                    statuses.retain(|status| *status != json["raw"]);
                    assert_comes_back(event);
                }
                Item::DeadLetter(letter) => {
                    letter.headers(&mut |_, value| out.extend_from_slice(value));
                    out.extend_from_slice(letter.value());
                    if letter.reason() == Reason::Amplification {
                        statuses.clear();
                    }
                }
            }
            all.push(out);
        }
        let bytes: usize = all.iter().map(Vec::len).sum();
        assert!(bytes <= 32 * body.len() + (1 << 20) + 1024, "{bytes} bytes of {}", body.len());
        all
    };
    assert_eq!(written(), written());
    assert_eq!(statuses, [Json::Null; 0], "statuses that were not read");
}

/// The statuses with an id in a callback of either shape, by another reading than ours.
fn statuses(body: &Json) -> Vec<Json> {
    let array = |value: &Json| value.as_array().cloned().unwrap_or_default();
    let mut found = array(&body["statuses"]);
    for change in array(&body["entry"]).iter().flat_map(|entry| array(&entry["changes"])) {
        if change["field"] == "messages" {
            found.extend(array(&change["value"]["statuses"]));
        }
    }
    let text = |value: &Json| value.as_str().is_some_and(|text| !text.trim().is_empty());
    found.retain(|status| text(&status["id"]) && text(&status["status"]));
    found
}

fn assert_comes_back(event: Event<'_>) {
    let written = written(&event);
    let letter = event.into_dead_letter(Reason::Refused, Stage::Publish, String::new());
    let mut headers = Vec::new();
    letter.headers(&mut |name, value| headers.push((name.to_owned(), value.to_vec())));
    let letter = KeptLetter::read(&headers, letter.value());
    let letter = letter.unwrap_or_else(|error| panic!("no letter: {error}"));
    let body = decode_letter(&letter, 1_000_000);
    let document = parse(&body);
    let again: Vec<_> = items_of_letter(&letter, &document)
        .iter()
        .map(|item| match item {
            Item::Event(event) => self::written(event),
            Item::DeadLetter(letter) => panic!("dead again: {:?}", letter.reason()),
        })
        .collect();
    assert_eq!(again, [written]);
}

/// Headers and JSON.
fn written(event: &Event<'_>) -> Vec<String> {
    let mut all = Vec::new();
    event.headers(&mut |name, value| {
        all.push(format!("{name}: {}", String::from_utf8_lossy(value)));
    });
    let mut json = Vec::new();
    event.write_json(&mut json);
    all.push(String::from_utf8_lossy(&json).into_owned());
    all
}
