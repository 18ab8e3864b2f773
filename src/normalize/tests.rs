use std::{fs, io::BufRead, path::Path, process::Command};

use proptest::prelude::*;
use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::*;

const MAX_BODY_BYTES: usize = 1_000_000;

fn callback(body: &[u8]) -> Callback<'_> {
    Callback {
        receipt: Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001),
        received_at_ms: 1_763_842_387_482,
        source: "loja",
        raw: true,
        method: "POST",
        content_type: None,
        content_encoding: None,
        traceparent: None,
        body,
    }
}

/// What one callback yields, as consumers see it.
#[derive(Debug)]
struct Seen {
    topic: Topic,
    key: String,
    /// The event's JSON; null for a dead letter.
    event: Json,
    headers: Vec<(String, String)>,
    value: Vec<u8>,
}

impl Seen {
    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }
}

fn items(callback: &Callback<'_>) -> Vec<Seen> {
    let mut seen = Vec::new();
    let body = decode(callback, MAX_BODY_BYTES);
    let document = parse(&body);
    for item in super::items(callback, &document) {
        let mut headers = Vec::new();
        let mut header = |key: &str, value: &[u8]| {
            headers.push((key.to_owned(), String::from_utf8(value.to_vec()).unwrap()));
        };
        seen.push(match item {
            Item::Event(event) => {
                event.headers(&mut header);
                let mut value = Vec::new();
                event.write_json(&mut value);
                Seen {
                    topic: event.topic(),
                    key: event.key().to_owned(),
                    event: serde_json::from_slice(&value).unwrap(),
                    headers,
                    value,
                }
            }
            Item::DeadLetter(letter) => {
                letter.headers(&mut header);
                let value = letter.value().to_vec();
                let (topic, key) = (Topic::DeadLetter, letter.key().to_owned());
                Seen { topic, key, event: Json::Null, headers, value }
            }
        });
    }
    seen
}

fn read(body: &str) -> Vec<Seen> {
    items(&callback(body.as_bytes()))
}

fn one(body: &str) -> Seen {
    let mut seen = read(body);
    assert_eq!(seen.len(), 1, "{seen:#?}");
    seen.remove(0)
}

/// A callback with one status that has these members more.
fn status(members: &str) -> Seen {
    one(&format!(
        r#"{{"statuses":[{{"id":"wamid.1","status":"read","timestamp":"1763842385"{members}}}]}}"#
    ))
}

fn reasons(body: &[u8]) -> Vec<String> {
    items(&callback(body)).iter().map(|seen| seen.header("reason").to_owned()).collect()
}

#[test]
fn a_status_says_what_the_contract_promises() {
    let body = r#"{"object":"whatsapp_business_account","entry":[{"id":"W","changes":[{"field":"messages","value":{"messaging_product":"whatsapp","metadata":{"display_phone_number":"551140000000","phone_number_id":"P"},"contacts":[{"profile":{"name":"Inês"},"wa_id":"5511900000001"}],"statuses":[{"id":"wamid.1","status":" Failed","timestamp":"1763842386","recipient_id":"5511900000001","errors":[{"code":131026,"title":"T","error_data":{"details":"D"}}],"conversation":{"id":"c","origin":{"type":"utility"},"expiration_timestamp":1763928786},"pricing":{"billable":true,"pricing_model":"PMP","type":"regular","category":"utility"},"biz_opaque_callback_data":"x"}]}}]}]}"#;
    let seen = one(body);
    let raw = seen.event["raw"].clone();
    let mut event = seen.event.clone();
    event.as_object_mut().unwrap().remove("raw");
    assert_eq!(
        event,
        json!({
            "schema_version": 1, "event_id": event["event_id"], "event_kind": "message_status",
            "message_id": "wamid.1", "source": "loja",
            "receipt": "01920000-0000-7000-8000-000000000001",
            "received_at": "2025-11-22T20:13:07.482Z", "occurred_at": "2025-11-22T20:13:06Z",
            "format": "cloud", "field": "messages", "element": "/entry/0/changes/0/value/statuses/0",
            "channel": {"waba_id": "W", "phone_number_id": "P", "display_phone_number": "551140000000"},
            "contact": {"wa_id": "5511900000001", "name": "Inês"},
            "status": "failed", "status_raw": " Failed", "status_known": true, "status_rank": 15,
            "recipient": {"id": "5511900000001", "type": "individual"},
            "conversation": {"id": "c", "origin": "utility", "expires_at": "2025-11-23T20:13:06Z"},
            "pricing": {"billable": true, "model": "PMP", "type": "regular", "category": "utility"},
            "errors": [{"code": 131026, "title": "T", "details": "D", "retry": "never"}],
            "callback_data": "x",
        })
    );
    assert_eq!(raw["pricing"]["category"], "utility");
    assert_eq!((seen.topic, seen.key.as_str()), (Topic::MessageStatus, "wamid.1"));
    let names: Vec<_> = seen.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "ce_specversion",
            "ce_id",
            "ce_type",
            "ce_source",
            "ce_time",
            "ce_dataschema",
            "content-type",
            "receipt"
        ]
    );
    assert_eq!(seen.header("ce_id"), event["event_id"]);
    assert_eq!(seen.header("ce_type"), "ai.weni.message_status.v1");
    assert_eq!(seen.header("ce_dataschema"), "urn:weni-edge:message-status.v1");
    assert_eq!(seen.header("ce_time"), "2025-11-22T20:13:06Z");
}

#[test]
fn ranks_are_those_of_the_contract_and_unknown_statuses_are_published() {
    for (status, known, rank) in [
        ("sending", true, json!(5)),
        ("sent", true, json!(10)),
        ("failed", true, json!(15)),
        ("delivered", true, json!(20)),
        ("READ", true, json!(30)),
        ("played", true, json!(40)),
        ("deleted", true, Json::Null),
        ("warning", true, Json::Null),
        ("glimpsed", false, Json::Null),
    ] {
        let seen = one(&format!(r#"{{"statuses":[{{"id":"1","status":"{status}"}}]}}"#));
        assert_eq!(seen.event["status_known"], known, "{status}");
        assert_eq!(seen.event["status_rank"], rank, "{status}");
        assert!(seen.event.as_object().unwrap().contains_key("status_rank"));
    }
}

#[test]
fn a_timestamp_that_cannot_be_read_is_null_and_kept_as_text() {
    for text in ["soon", "-1", "123456789012", "1763842385.5"] {
        let seen =
            one(&format!(r#"{{"statuses":[{{"id":"1","status":"read","timestamp":"{text}"}}]}}"#));
        assert!(seen.event["occurred_at"].is_null(), "{text}");
        assert_eq!(seen.event["timestamp_raw"], text);
        assert_eq!(seen.header("ce_time"), "2025-11-22T20:13:07.482Z");
    }
    let number = one(r#"{"statuses":[{"id":"1","status":"read","timestamp":1763842385}]}"#);
    assert_eq!(number.event["occurred_at"], "2025-11-22T20:13:05Z");
}

#[test]
fn statuses_of_payments_and_calls_are_something_else() {
    for (kind, event_kind, topic) in [
        ("message", "message_status", Topic::MessageStatus),
        ("payment", "payment_status", Topic::ChannelEvent),
        ("call", "call_status", Topic::ChannelEvent),
        ("parcel", "channel_event", Topic::ChannelEvent),
    ] {
        let seen = status(&format!(r#","type":"{kind}""#));
        assert_eq!((seen.event["event_kind"].as_str(), seen.topic), (Some(event_kind), topic));
        assert_eq!(seen.key, "wamid.1");
    }
}

#[test]
fn all_spellings_of_the_parent_id_and_of_participants_are_read() {
    for name in ["recipient_parent_user_id", "parent_recipient_user_id", "parent_user_id"] {
        assert_eq!(status(&format!(r#","{name}":"p""#)).event["recipient"]["parent_user_id"], "p");
    }
    for name in ["recipient_participant_id", "participant_recipient_id"] {
        let seen = status(&format!(r#","{name}":"p","recipient_type":"group""#));
        assert_eq!(seen.event["recipient"]["participant_id"], "p");
        assert_eq!(seen.event["recipient"]["type"], "group");
    }
}

#[test]
fn participants_of_a_group_have_updates_of_their_own() {
    let seen = read(
        r#"{"statuses":[{"id":"1","status":"read","timestamp":"1","recipient_participant_id":"a"},{"id":"1","status":"read","timestamp":"1","recipient_participant_id":"b"}]}"#,
    );
    assert_ne!(seen[0].event["event_id"], seen[1].event["event_id"]);
}

#[test]
fn a_hidden_number_is_left_out_and_the_contact_is_found_by_user_id() {
    let seen = one(
        r#"{"contacts":[{"user_id":"U","profile":{"username":"ana"}}],"statuses":[{"id":"1","status":"read","recipient_id":"","recipient_user_id":"U"}]}"#,
    );
    assert_eq!(seen.event["recipient"], json!({"type": "individual", "user_id": "U"}));
    assert_eq!(seen.event["contact"], json!({"user_id": "U", "username": "ana"}));
}

#[test]
fn a_contact_that_belongs_to_nobody_is_an_event_of_its_value() {
    let seen = read(
        r#"{"metadata":{"phone_number_id":"P"},"contacts":[{"wa_id":"9"}],"statuses":[{"id":"1","status":"read","recipient_id":"8"}]}"#,
    );
    assert!(seen[0].event.get("contact").is_none());
    assert_eq!(seen[1].event["raw"], json!({"contacts": [{"wa_id": "9"}]}));
    assert_eq!((seen[1].topic, seen.len()), (Topic::ChannelEvent, 2));
}

#[test]
fn one_bad_element_costs_only_itself() {
    let seen = read(
        r#"{"statuses":[{"id":"1","status":"read"},7,{"status":"read"},{"id":"2"},{"id":"3","status":"sent"}],"messages":[{"type":"text"}]}"#,
    );
    let reasons: Vec<_> = seen.iter().map(|seen| seen.header("reason")).collect();
    assert_eq!(reasons, ["", "not_an_object", "missing_id", "missing_status", "", "missing_id"]);
    assert_eq!(seen[2].value, br#"{"status":"read"}"#);
    assert_eq!(seen[2].key, "01920000-0000-7000-8000-000000000001");
    assert_eq!(seen[2].header("element"), "/statuses/2");
    assert_eq!(seen[2].header("topic"), "message-status.v1");
    assert_eq!(seen[5].header("topic"), "inbound-message.v1");
}

#[test]
fn what_serde_json_refuses_costs_no_status() {
    let deep = format!(r#","x":{}{}"#, "[".repeat(200), "]".repeat(200));
    for more in [&b",\"x\":\"\xff\""[..], br#","x":"\ud83d""#, deep.as_bytes()] {
        let body = [&br#"{"statuses":[{"id":"1","status":"read""#[..], more, b"}]}"].concat();
        let seen = items(&callback(&body));
        assert_eq!((seen.len(), &*seen[0].key), (1, "1"));
        assert!(seen[0].event.get("raw").is_none());
        assert!(seen[0].event["raw_base64"].is_string());
    }
    let twice = status(r#","status":"sent","recipient_id":"a","recipient_id":"b""#);
    assert_eq!(twice.event["status"], "sent");
    assert_eq!(twice.event["recipient"]["id"], "b");
    let arrays = read(
        r#"{"statuses":[{"id":"1","status":"read"}],"statuses":[{"id":"2","status":"read"}]}"#,
    );
    assert_eq!(arrays.len(), 2);
}

#[test]
fn bodies_without_anything_are_empty() {
    for body in [
        "",
        " \r\n\t",
        "{}",
        "[]",
        "[{},{}]",
        r#"{"entry":[]}"#,
        r#"{"entry":[{"id":"1","changes":[]}]}"#,
        r#"{"object":"x","entry":[{"id":"1","changes":[{"field":"messages","value":{"metadata":{}}}]}]}"#,
        r#"{"statuses":[],"messages":null}"#,
    ] {
        assert!(read(body).is_empty(), "{body}");
    }
}

#[test]
fn what_is_no_callback_is_one_dead_letter_with_its_bytes() {
    for (body, reason) in [
        (&b"hello"[..], "invalid_json"),
        (b"{\"statuses\":[", "invalid_json"),
        (b"\xef\xbb\xbf{}", "invalid_json"),
        (b"a=1&b=2", "invalid_json"),
        (b"null", "unrecognized"),
        (b"7", "unrecognized"),
        (b"\"x\"", "unrecognized"),
        (b"{\"x\":1}", "unrecognized"),
        (b"[1]", "unrecognized"),
        (b"{\"Entry\":[]}", "unrecognized"),
    ] {
        let seen = items(&callback(body));
        assert_eq!((seen.len(), seen[0].header("reason")), (1, reason), "{body:?}");
        assert_eq!(seen[0].value, body);
        assert_eq!(seen[0].header("stage"), "normalize");
    }
}

#[test]
fn gzip_is_read_where_it_says_so() {
    use std::io::Write;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(br#"{"statuses":[{"id":"1","status":"read"}]}"#).unwrap();
    let body = gzip.finish().unwrap();
    let compressed = Callback { content_encoding: Some("GZIP"), ..callback(&body) };
    assert_eq!(items(&compressed)[0].key, "1");
    assert_eq!(reasons(&body), ["invalid_json"]);
    let cut = Callback { body: &body[..20], ..compressed };
    assert_eq!(items(&cut)[0].header("reason"), "bad_encoding");
    let brotli = Callback { content_encoding: Some("br"), ..compressed };
    assert_eq!(items(&brotli)[0].header("reason"), "bad_encoding");
}

#[test]
fn a_bomb_is_one_dead_letter() {
    use std::io::Write;
    let gzip_of = |bytes| {
        let mut body = br#"{"statuses":[{"id":"1","status":"read"}]}"#.to_vec();
        body.resize(bytes, b' ');
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&body).unwrap();
        gzip.finish().unwrap()
    };
    let (largest, bomb) = (gzip_of(MAX_BODY_BYTES), gzip_of(MAX_BODY_BYTES + 1));
    let compressed = |body| items(&Callback { content_encoding: Some("gzip"), ..callback(body) });
    assert_eq!(compressed(&largest)[0].header("ce_type"), "ai.weni.message_status.v1");
    let letters = compressed(&bomb);
    assert_eq!((letters.len(), letters[0].header("reason")), (1, "bad_encoding"));
    assert_eq!(letters[0].value, bomb);
    let many = format!(r#"{{"statuses":[{}]}}"#, vec!["{}"; ELEMENTS_MAX + 1].join(","));
    assert_eq!(reasons(many.as_bytes()), ["too_many_elements"]);
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

#[test]
fn a_callback_that_would_become_gigabytes_is_one_dead_letter_with_its_bytes() {
    let dots = vec![b'.'; 400_000];
    let repaired = vec![0xff; 600_000];
    let escaped = br"\u0001".repeat(60_000);
    for body in [sharing(&dots, 9000), sharing(&repaired, 9000), sharing(&escaped, 9000)] {
        let seen = items(&callback(&body));
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].header("reason"), "amplification");
        assert_eq!(seen[0].value, body);
    }
    let contacts = format!(
        r#"{{"contacts":[{{"wa_id":"1","profile":{{"name":"{}"}}}}],"statuses":[{}]}}"#,
        "n".repeat(300_000),
        vec![r#"{"id":"a","status":"read","recipient_id":"1"}"#; 5000].join(",")
    );
    assert_eq!(reasons(contacts.as_bytes()), ["amplification"]);
    let tiny = format!(r#"{{"statuses":[{}]}}"#, vec!["7"; 15_000].join(","));
    assert_eq!(reasons(tiny.as_bytes()), ["amplification"]);
}

#[test]
fn what_the_head_of_a_call_adds_to_each_event_counts_as_well() {
    let (body, traceparent) = (sharing(b"1", 100), "0".repeat(15_000));
    assert_eq!(items(&callback(&body)).len(), 100);
    let long = Callback { traceparent: Some(&traceparent), ..callback(&body) };
    assert_eq!(items(&long)[0].header("reason"), "amplification");
}

#[test]
fn only_elements_count_as_elements() {
    let mut body = sharing(b"1", ELEMENTS_MAX);
    body.truncate(body.len() - 1);
    body.extend_from_slice(br#","unknown":1}"#);
    assert_eq!(items(&callback(&body)).len(), ELEMENTS_MAX + 1);
}

#[test]
fn what_a_large_honest_callback_becomes_is_far_below_the_limit() {
    assert_eq!(items(&callback(&sharing(b"+55 82 3333-0000", 10_000))).len(), 10_000);
    // One element may be as large as the body.
    assert_eq!(items(&callback(&sharing(&vec![b'5'; 900_000], 1))).len(), 1);
}

#[test]
fn a_thousand_updates_are_a_thousand_events_in_order() {
    let updates: Vec<_> =
        (0..1000).map(|at| format!(r#"{{"id":"wamid.{at}","status":"sent"}}"#)).collect();
    let seen = read(&format!(r#"{{"statuses":[{}]}}"#, updates.join(",")));
    assert_eq!(seen.len(), 1000);
    for (at, seen) in seen.iter().enumerate() {
        assert_eq!(seen.key, format!("wamid.{at}"));
    }
}

#[test]
fn inbound_messages_say_what_they_carry() {
    let read = |members: &str| {
        one(&format!(
            r#"{{"messages":[{{"from":"55","id":"m","timestamp":"1763842390",{members}}}]}}"#
        ))
        .event
    };
    let text = read(r#""type":"text","text":{"body":"Olá"},"context":{"id":"c","from":"f"}"#);
    assert_eq!((&text["text"], &text["type"]), (&json!("Olá"), &json!("text")));
    assert_eq!(text["context"], json!({"id": "c", "from": "f"}));
    assert_eq!(text["from"], json!({"id": "55"}));
    let reply = read(
        r#""type":"interactive","interactive":{"type":"list_reply","list_reply":{"id":"r","title":"T"}}"#,
    );
    assert_eq!(reply["interactive_type"], "list_reply");
    assert_eq!((&reply["reply_id"], &reply["text"]), (&json!("r"), &json!("T")));
    let reaction = read(r#""type":"reaction","reaction":{"message_id":"other","emoji":"👍"}"#);
    assert_eq!(reaction["related_message_id"], "other");
    let image = read(r#""type":"image","image":{"id":"i","mime_type":"image/png","caption":"c"}"#);
    assert_eq!(image["media"], json!({"id": "i", "mime_type": "image/png", "caption": "c"}));
    let odd = read(r#""type":"hologram","hologram":{"x":1},"referral":{"source_id":"s"}"#);
    assert_eq!((&odd["type"], &odd["referral"]), (&json!("hologram"), &json!({"source_id": "s"})));
    assert_eq!(odd["raw"]["hologram"]["x"], 1);
}

#[test]
fn everything_else_is_a_channel_event() {
    let change = |field: &str, value: &str| {
        read(&format!(
            r#"{{"entry":[{{"id":"W","time":1763842390,"changes":[{{"field":"{field}","value":{value}}}]}}]}}"#
        ))
    };
    let account = change("account_update", r#"{"event":"DISABLED","x":1}"#);
    assert_eq!(account.len(), 1);
    assert_eq!(account[0].event["raw"], json!({"event": "DISABLED", "x": 1}));
    assert_eq!(account[0].event["element"], "/entry/0/changes/0/value");
    assert_eq!(account[0].event["occurred_at"], "2025-11-22T20:13:10Z");
    assert_eq!(account[0].key, "01920000-0000-7000-8000-000000000001");
    let call = change("calls", r#"{"calls":[{"id":"wacid.1","event":"connect"}]}"#);
    assert_eq!((call[0].event["event_kind"].as_str(), &*call[0].key), (Some("call"), "wacid.1"));
    let echo = change(
        "smb_message_echoes",
        r#"{"message_echoes":[{"id":"e","from":"1","to":"2","type":"text","text":{"body":"x"}}]}"#,
    );
    assert_eq!(
        (echo[0].event["event_kind"].as_str(), &echo[0].event["to"]),
        (Some("echo"), &json!("2"))
    );
    let history = change(
        "history",
        r#"{"history":[{"metadata":{"phase":0},"threads":[{"id":"9","messages":[{"id":"h1"},{"id":"h2"}]}]}]}"#,
    );
    let kinds: Vec<_> =
        history.iter().map(|seen| seen.event["event_kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["history_message", "history_message", "channel_event"]);
    assert_eq!(
        history[1].event["element"],
        "/entry/0/changes/0/value/history/0/threads/0/messages/1"
    );
    let standby = change(
        "standby",
        r#"{"standby":{"statuses":[{"id":"s","status":"read"}],"messages":[{"id":"m"}]}}"#,
    );
    assert!(standby.iter().all(|seen| seen.topic == Topic::ChannelEvent));
    assert_eq!(standby.len(), 2);
    let error = change("messages", r#"{"errors":[{"code":130429}],"statuses":[]}"#);
    assert_eq!(error[0].event["errors"], json!([{"code": 130429, "retry": "backoff"}]));
}

#[test]
fn members_that_are_not_known_come_once_a_value_beside_those_that_are() {
    let seen = read(
        r#"{"entry":[{"id":"W","new":1,"changes":[{"field":"messages","odd":2,"value":{"statuses":[{"id":"1","status":"read"}],"future":[3],"more":4}}]}],"top":5}"#,
    );
    let raws: Vec<_> = seen[1..].iter().map(|seen| seen.event["raw"].clone()).collect();
    assert_eq!(
        raws,
        [
            json!({"future": [3], "more": 4}),
            json!({"odd": 2}),
            json!({"new": 1}),
            json!({"top": 5})
        ]
    );
    let ids: std::collections::BTreeSet<_> =
        seen.iter().map(|seen| seen.event["event_id"].to_string()).collect();
    assert_eq!(ids.len(), 5);
}

#[test]
fn bare_values_changes_and_arrays_of_envelopes_are_callbacks() {
    let bare =
        one(r#"{"metadata":{"phone_number_id":"P"},"statuses":[{"id":"1","status":"read"}]}"#);
    assert_eq!(bare.event["format"], "cloud");
    assert!(bare.event.get("field").is_none());
    let on_premise = one(r#"{"statuses":[{"id":"1","status":"read"}]}"#);
    assert_eq!(on_premise.event["format"], "on_premise");
    let change = one(r#"{"field":"messages","value":{"statuses":[{"id":"1","status":"read"}]}}"#);
    assert_eq!(change.event["element"], "/value/statuses/0");
    let array = read(r#"[{"statuses":[{"id":"1","status":"read"}]},7]"#);
    assert_eq!(array[0].event["element"], "/0/statuses/0");
    assert_eq!(array[1].header("reason"), "not_an_object");
}

#[test]
fn a_number_as_id_is_its_text_and_the_source_may_keep_raw_back() {
    let body = br#"{"statuses":[{"id":12345,"status":"read"}]}"#;
    let seen = &items(&Callback { raw: false, ..callback(body) })[0];
    assert_eq!((&*seen.key, &seen.event["message_id"]), ("12345", &json!("12345")));
    assert!(seen.event.get("raw").is_none());
}

/// By an implementation that shares no code with ours: a fixture, an element, its kind and id.
const EVENT_IDS: &str = "
    failed_with_errors /entry/0/changes/0/value/statuses/0 message_status cc913d9227edc40bc1c0b92ed4a34dc7
    group_participants /entry/0/changes/0/value/statuses/0 message_status e4179b26ea48701529c0f8ee5aa31c47
    group_participants /entry/0/changes/0/value/statuses/1 message_status 15e7d78384de319afb969e2368fd12b5
    status_payment_call /entry/0/changes/0/value/statuses/0 message_status 6022cc057682e0384d9310390964f0b1
    status_payment_call /entry/0/changes/0/value/statuses/1 payment_status 1084dcd893bd2fe3f1cab1eed04397da
    status_payment_call /entry/0/changes/0/value/statuses/2 call_status 99fe54b4fc958e84cf0d1a0b495d1891
    unknown_statuses_and_times /entry/0/changes/0/value/statuses/0 message_status 2970450b3f65c6e12ad43a5b68e2c8b0
    unknown_statuses_and_times /entry/0/changes/0/value/statuses/1 message_status d8649294634440c72d1427d639eca790
    unknown_statuses_and_times /entry/0/changes/0/value/statuses/2 message_status ae4f912631fb8eeb74d1aa5f2b4c7fe8
    unknown_statuses_and_times /entry/0/changes/0/value/statuses/3 message_status 67b636d2aac19bf8042317f55dbec1f7
    unknown_statuses_and_times /entry/0/changes/0/value/statuses/4 message_status eb76fb2d96876f316b64c944ce625cb2
    batch_of_one_message /entry/0/changes/0/value/statuses/0 message_status 561369c01dadbb7bae6b880f95c71a4d
    batch_of_one_message /entry/0/changes/0/value/statuses/1 message_status 280626cb80a6423b59bb063c7badb4fc
    batch_of_one_message /entry/0/changes/0/value/statuses/2 message_status 8f48d10b5192d4767ee52b1b2e7e9baa
    batch_of_one_message /entry/0/changes/0/value/statuses/3 message_status 4cf274dbc6197c98fecff2518a8f2ed1
    several_numbers /entry/0/changes/0/value/statuses/0 message_status 39d170fc724c2d70c69e675fa122d004
    several_numbers /entry/1/changes/0/value/statuses/0 message_status 82c8b30697419ea0fe3e3995c67e8464
    several_numbers /entry/2/changes/0/value/statuses/0 message_status b9f523df5a12e4c5518979d2ac9a66c8
";

#[test]
fn event_ids_are_those_of_the_reference() {
    let mut compared = 0;
    for line in EVENT_IDS.lines().filter(|line| !line.is_empty()) {
        let row: Vec<_> = line.split_whitespace().collect();
        let [fixture, element, kind, event_id] = row[..] else { panic!("{line}") };
        let path =
            format!("{}/tests/fixtures/callbacks/{fixture}.json", env!("CARGO_MANIFEST_DIR"));
        let seen = items(&callback(&fs::read(path).unwrap()));
        let event = seen.iter().map(|seen| &seen.event).find(|event| event["element"] == element);
        let event = event.unwrap_or_else(|| panic!("there is no {line}"));
        assert_eq!((&event["event_kind"], &event["event_id"]), (&json!(kind), &json!(event_id)));
        compared += 1;
    }
    assert_eq!(compared, 18);
}

/// The element as it came; where no strict parser reads it, the members that tests look at.
fn lenient(event: &Json) -> Json {
    let Some(bytes) = event["raw_base64"].as_str() else { return event["raw"].clone() };
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, bytes).unwrap();
    let document = Document::parse(&bytes).unwrap();
    let element = document.root();
    let members = ["id", "type", "status", "timestamp"];
    members.into_iter().filter_map(|name| Some((name, element.get(name)?.text()?))).collect()
}

#[test]
fn the_corpus_yields_what_it_must_where_it_is_present() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus");
    let Ok(expected) = fs::read_to_string(corpus.join("EXPECTED.jsonl")) else { return };
    for line in expected.lines() {
        let expected: Json = serde_json::from_str(line).unwrap();
        let file = expected["file"].as_str().unwrap();
        let body = fs::read(corpus.join("payloads").join(file)).unwrap();
        let seen = items(&callback(&body));
        let of = |kinds: &[&str]| -> Vec<Json> {
            let found = seen
                .iter()
                .filter(|seen| kinds.iter().any(|kind| seen.event["event_kind"] == *kind));
            found.map(|seen| lenient(&seen.event)).collect()
        };
        let part = |raw: &Json, name: &str| raw.get(name).cloned().unwrap_or(Json::Null);
        let statuses: Vec<_> = of(&["message_status", "payment_status", "call_status"])
            .iter()
            .map(|raw| {
                json!([
                    part(raw, "id"),
                    part(raw, "type"),
                    part(raw, "status"),
                    part(raw, "timestamp")
                ])
            })
            .collect();
        let messages: Vec<_> = of(&["inbound_message"])
            .iter()
            .map(|raw| json!([part(raw, "id"), part(raw, "type")]))
            .collect();
        // What has no id has no key: it is a dead letter.
        let mut nameless = 0;
        for (found, name) in [(statuses, "statuses"), (messages, "messages")] {
            let listed = expected[name].as_array().unwrap();
            let named: Vec<_> = listed.iter().filter(|listed| !listed[0].is_null()).collect();
            assert_eq!(json!(found), json!(named), "{file}");
            nameless += listed.len() - named.len();
        }
        let dead = seen.iter().filter(|seen| seen.header("reason") == "missing_id").count();
        assert_eq!(dead, nameless, "{file}");
        for (kind, name) in
            [("echo", "echoes"), ("history_message", "history_messages"), ("call", "calls")]
        {
            let ids: Vec<_> = of(&[kind]).iter().map(|raw| part(raw, "id")).collect();
            assert_eq!(json!(ids), expected[name], "{file}: {name}");
        }
    }
}

/// Callbacks to start from: the project's fixtures, and what fuzzing kept.
fn known_bodies() -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["fuzz/corpus/normalize", "tests/fixtures/callbacks"]
        .map(|directory| fs::read_dir(root.join(directory)).unwrap());
    files.into_iter().flatten().map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

#[test]
fn what_fuzzing_kept_holds_to_the_contract() {
    let bodies = known_bodies();
    assert!(bodies.len() > 30);
    bodies.iter().for_each(|body| hold_to_the_contract(body));
}

/// An update as `tests/read_by_python.py` prints it: its pointer, id and status.
type Update = (String, String, String);

#[test]
#[ignore = "needs python3: .ci/run tests"]
fn what_python_reads_as_updates_we_read_too() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/read_by_python.py");
    let python = Command::new("python3").arg(script).output().expect("python3");
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let mut compared = 0;
    for line in python.stdout.lines() {
        let (body, updates): (String, Vec<Update>) = serde_json::from_str(&line.unwrap()).unwrap();
        let body = hex::decode(body).unwrap();
        let seen = items(&callback(&body));
        for (pointer, id, status) in &updates {
            let found = seen.iter().filter(|seen| is_read(seen, pointer, id, status)).count();
            assert_eq!(found, 1, "{pointer} {id:?} {status:?} in {}", body.escape_ascii());
        }
        compared += updates.len();
    }
    assert!(compared > 1_000, "{compared} are too few to compare");
}

/// Whether this is the update: an event, or a dead letter because a text in it is empty.
fn is_read(seen: &Seen, pointer: &str, id: &str, status: &str) -> bool {
    let status = status.trim().to_lowercase();
    let named = !id.is_empty() && !status.is_empty();
    let text = |name: &str| seen.event[name].as_str().unwrap_or_default();
    match seen.event {
        Json::Null => !named && seen.header("element") == pointer,
        _ => text("element") == pointer && text("message_id") == id && text("status") == status,
    }
}

proptest! {
    // Each case is megabytes.
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..Default::default() })]

    #[test]
    fn callbacks_whose_elements_share_much_hold_to_the_contract(
        byte: u8, len in 0usize..20_000, elements in 0usize..400,
    ) {
        hold_to_the_contract(&sharing(&vec![byte; len], elements));
    }
}

proptest! {
    #[test]
    fn any_bytes_hold_to_the_contract(body: Vec<u8>) {
        hold_to_the_contract(&body);
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
        hold_to_the_contract(&body);
    }
}
