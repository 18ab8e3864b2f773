use std::{
    fs,
    io::BufRead,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::*;
use crate::event::Topic;

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
    for item in super::items(callback, Settings::default(), &document) {
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
                let value = letter.value.to_vec();
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
            "user_key": "5511900000001",
            "contact": {"wa_id": "5511900000001", "name": "Inês"},
            "status": "failed", "status_raw": " Failed", "status_known": true, "status_rank": 15,
            "recipient": {"id": "5511900000001", "type": "individual"},
            "conversation": {"id": "c", "origin": "utility", "expires_at": "2025-11-23T20:13:06Z"},
            "pricing": {"billable": true, "model": "PMP", "type": "regular", "category": "utility"},
            "errors": [{"code": 131026, "title": "T", "details": "D", "retry": "never", "fault": "recipient"}],
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
            "receipt",
            "status",
            "phone_number_id"
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
    for text in ["soon", "-1", "12345678901234", "1763842385.5"] {
        let seen =
            one(&format!(r#"{{"statuses":[{{"id":"1","status":"read","timestamp":"{text}"}}]}}"#));
        assert!(seen.event["occurred_at"].is_null(), "{text}");
        assert_eq!(seen.event["timestamp_raw"], text);
        assert_eq!(seen.header("ce_time"), "2025-11-22T20:13:07.482Z");
    }
    for (number, occurred_at) in [
        ("1763842385", "2025-11-22T20:13:05Z"),
        ("1763842385482", "2025-11-22T20:13:05.482Z"),
        ("123456789012", "1973-11-29T21:33:09.012Z"),
    ] {
        let seen =
            one(&format!(r#"{{"statuses":[{{"id":"1","status":"read","timestamp":{number}}}]}}"#));
        assert_eq!(seen.event["occurred_at"], occurred_at);
    }
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
fn the_only_contact_is_that_of_the_only_user_and_others_are_in_the_remainder() {
    let read = |contacts: &str| {
        read(&format!(
            r#"{{"metadata":{{"phone_number_id":"P"}},"contacts":[{contacts}],"statuses":[{{"id":"1","status":"read","recipient_id":"8"}}]}}"#,
        ))
    };
    let seen = read(r#"{"wa_id":"9"}"#);
    assert_eq!((seen.len(), &seen[0].event["contact"]["wa_id"]), (1, &json!("9")));
    let seen = read(r#"{"wa_id":"9"},{"wa_id":"7"}"#);
    assert!(seen[0].event.get("contact").is_none());
    assert_eq!(
        seen[1].event["raw"],
        json!({"/contacts/0": {"wa_id": "9"}, "/contacts/1": {"wa_id": "7"}})
    );
    assert_eq!((seen[1].topic, seen.len()), (Topic::ChannelEvent, 2));
    assert_eq!(seen[1].event["event_kind"], "remainder");
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
fn what_all_elements_share_is_counted() {
    let escaped = format!("\\u0031{}", "1".repeat(400_000));
    let statuses = vec!["{}"; 19_000].join(",");
    let messages = vec![r#"{"id":"a"}"#; 19_000].join(",");
    let read = vec![r#"{"id":"a","status":"read","recipient_id":"1"}"#; 9_000].join(",");
    let field = "k".repeat(300_000);
    let (sevens, objects) = (vec!["7"; 19_000].join(","), vec!["{}"; 100_000].join(","));
    for body in [
        // Each would be gigabytes: in pointers, in the channel, in the thread, in the contact.
        format!(
            r#"{{"entry":[{{"changes":[{{"field":"{field}","value":{{"{field}":[{statuses}]}}}}]}}]}}"#
        ),
        format!(r#"{{"metadata":{{"phone_number_id":"{escaped}"}},"statuses":[{statuses}]}}"#),
        format!(
            r#"{{"entry":[{{"id":"{escaped}","changes":[{{"value":{{"statuses":[{statuses}]}}}}]}}]}}"#
        ),
        format!(r#"{{"entry":[{{"id":"{escaped}","changes":[{sevens}]}}]}}"#),
        format!(r#"{{"history":[{{"threads":[{{"id":"{escaped}","messages":[{messages}]}}]}}]}}"#),
        format!(
            r#"{{"contacts":[{{"wa_id":"1","profile":{{"name":"{escaped}"}}}}],"statuses":[{read}]}}"#
        ),
    ] {
        assert_eq!(reasons(body.as_bytes()), ["amplification"], "{}", &body[..60]);
    }
    // Here no event holds it.
    let changes = format!(r#"{{"entry":[{{"id":"{escaped}","changes":[{objects}]}}]}}"#);
    assert!(reasons(changes.as_bytes()).is_empty());
}

/// Reading all elements would take minutes: each looks through megabytes that it shares with the others.
#[test]
fn what_elements_share_is_not_read_for_each() {
    let (dots, escaped) = (".".repeat(4 << 20), format!(r"\u0031{}", "1".repeat(4 << 20)));
    let from = vec![r#"{"from":"1"}"#; ELEMENTS_MAX].join(",");
    let started = Instant::now();
    for body in [
        format!(r#"{{"metadata":{{"display_phone_number":"{dots}"}},"messages":[{from}]}}"#),
        format!(r#"{{"metadata":{{"display_phone_number":"{dots}1"}},"messages":[{from}]}}"#),
        format!(r#"{{"history":[{{"threads":[{{"id":"{dots}","messages":[{from}]}}]}}]}}"#),
        format!(r#"{{"history":[{{"threads":[{{"id":"{escaped}","messages":[{from}]}}]}}]}}"#),
    ] {
        assert_eq!(reasons(body.as_bytes()), ["amplification"]);
    }
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
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
        (Some("echo"), &json!({"id": "2"}))
    );
    let history = change(
        "history",
        r#"{"history":[{"metadata":{"phase":0},"threads":[{"id":"9","messages":[{"id":"h1"},{"id":"h2","from_user_id":"BR.1"}]}]}]}"#,
    );
    // A user may have an id as well, and then the phone number is nowhere else.
    for (event, user_key) in history.iter().zip(["9", "BR.1"]) {
        assert_eq!(event.event["user_key"], user_key);
        assert_eq!(event.event["thread"], "9");
    }
    let kinds: Vec<_> =
        history.iter().map(|seen| seen.event["event_kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["history_message", "history_message", "remainder"]);
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
    assert_eq!(
        error[0].event["errors"],
        json!([{"code": 130429, "retry": "backoff", "fault": "rate"}])
    );
}

#[test]
fn members_that_are_not_known_come_once_a_callback() {
    let seen = read(
        r#"{"entry":[{"id":"W","new":1,"changes":[{"field":"messages","odd":2,"value":{"statuses":[{"id":"1","status":"read"}],"future":[3],"more":4}}]}],"top":5}"#,
    );
    let [_, remainder] = &seen[..] else { panic!("{seen:#?}") };
    assert_eq!(
        remainder.event["raw"],
        json!({
            "/entry/0/changes/0/value/future": [3],
            "/entry/0/changes/0/value/more": 4,
            "/entry/0/changes/0/odd": 2,
            "/entry/0/new": 1,
            "/top": 5,
        })
    );
    assert_eq!(remainder.key, "01920000-0000-7000-8000-000000000001");
}

/// The kinds, or reasons, and places of what a callback yields.
fn places(body: &str) -> Vec<(String, String)> {
    let text = |seen: &Seen, name: &str| seen.event[name].as_str().unwrap_or_default().to_owned();
    let place = |seen: Seen| match seen.event {
        Json::Null => (seen.header("reason").to_owned(), seen.header("element").to_owned()),
        _ => (text(&seen, "event_kind"), text(&seen, "element")),
    };
    read(body).into_iter().map(place).collect()
}

/// What a callback's remainder holds; it yields nothing else.
fn remainder(body: &str) -> Json {
    let seen = one(body);
    assert_eq!(seen.event["event_kind"], "remainder");
    seen.event["raw"].clone()
}

#[test]
fn an_array_that_has_the_name_of_its_field_is_split_under_that_field_alone() {
    let of =
        |field: &str, value: &str| places(&format!(r#"{{"field":"{field}","value":{value}}}"#));
    let one = |kind: &str, element: &str| vec![(kind.to_owned(), element.to_owned())];
    let echoes = r#"{"smb_message_echoes":[{"id":"e"}]}"#;
    assert_eq!(of("smb_message_echoes", echoes), one("echo", "/value/smb_message_echoes/0"));
    assert_eq!(of("messages", echoes), one("channel_event", "/value"));
    let object = r#"{"smb_message_echoes":{"id":"e"}}"#;
    assert_eq!(of("smb_message_echoes", object), one("channel_event", "/value"));
    let known = r#"{"message_echoes":{"id":"e"}}"#;
    assert_eq!(of("messages", known), one("echo", "/value/message_echoes"));
    assert_eq!(places(echoes), one("unrecognized", ""));
}

#[test]
fn what_is_known_but_of_a_wrong_type_is_in_the_remainder() {
    for body in [
        r#"{"metadata":7}"#,
        r#"{"metadata":[7]}"#,
        r#"{"metadata":"7"}"#,
        r#"{"contacts":7}"#,
        r#"{"messaging_product":[],"statuses":[]}"#,
        r#"{"standby":7,"statuses":[]}"#,
        r#"{"history":7,"statuses":[]}"#,
    ] {
        let raw = remainder(body);
        let (key, member) = raw.as_object().unwrap().iter().next().unwrap();
        assert_eq!(serde_json::from_str::<Json>(body).unwrap()[&key[1..]], *member, "{body}");
    }
    assert_eq!(
        remainder(r#"{"field":"metadata","value":{"metadata":[7]}}"#),
        json!({"/value/metadata": [7]})
    );
    for body in
        [r#"{"standby":7}"#, r#"{"history":7}"#, r#"{"statuses":7}"#, r#"{"standby":{"calls":7}}"#]
    {
        assert_eq!(read(body).len(), 1, "{body}");
    }
    assert_eq!(reasons(br#"{"statuses":7,"messages":""}"#), ["not_an_object", "not_an_object"]);
}

#[test]
fn the_id_of_a_thread_is_in_the_remainder_if_it_is_no_text() {
    let of =
        |id: &str| read(&format!(r#"{{"history":[{{"threads":[{{"id":{id},"messages":[]}}]}}]}}"#));
    assert_eq!(of(r#"{"a":1}"#)[0].event["raw"], json!({"/history/0/threads/0/id": {"a": 1}}));
    assert_eq!(of("[1]")[0].event["raw"], json!({"/history/0/threads/0/id": [1]}));
    for id in ["7", r#""7""#, "null"] {
        assert!(of(id).is_empty(), "{id}");
    }
}

#[test]
fn known_members_that_are_null_are_nothing() {
    for members in [
        r#""contacts":[{"wa_id":"9","profile":null}]"#,
        r#""contacts":[{"wa_id":"9","profile":{"name":null}}],"metadata":null,"standby":null"#,
        r#""contacts":[{"wa_id":"9","username":"a","profile":{"username":null}}]"#,
        r#""contacts":[{"wa_id":"9","username":"a","profile":{"username":"a"}}]"#,
        r#""standby":{"contacts":null,"metadata":null,"statuses":null}"#,
    ] {
        let body = format!(
            r#"{{"statuses":[{{"id":"1","status":"read","recipient_id":"9"}}],{members}}}"#
        );
        assert_eq!(read(&body).len(), 1, "{body}");
    }
}

#[test]
fn a_single_change_is_known_by_its_names() {
    let body = r#"{"field":"x","value":7}"#;
    assert_eq!(places(body), [("not_an_object".to_owned(), "/value".to_owned())]);
    assert_eq!(one(body).header("field"), "x");
    assert!(read(r#"{"field":"x","value":null}"#).is_empty());
}

#[test]
fn a_call_from_the_own_number_is_outgoing() {
    let key = |members: &str| {
        let call = format!(r#"{{"id":"c","from":"55 1","to":"9"{members}}}"#);
        one(&format!(r#"{{"metadata":{{"display_phone_number":"+551"}},"calls":[{call}]}}"#)).event
            ["user_key"]
            .clone()
    };
    assert_eq!(key(""), "9");
    assert_eq!(key(r#","direction":"BUSINESS_INITIATED""#), "9");
}

#[test]
fn a_contact_that_no_event_holds_is_in_the_remainder() {
    let of = |contacts: &str| {
        let status = r#"{"id":"1","status":"read","recipient_id":"9","recipient_user_id":"U"}"#;
        read(&format!(r#"{{"statuses":[{status}],"contacts":[{contacts}]}}"#))
    };
    let (first, other) =
        (r#"{"wa_id":"9","profile":{"name":"A"}}"#, r#"{"wa_id":"9","profile":{"name":"B"}}"#);
    let seen = of(&format!("{first},{other}"));
    assert_eq!(seen[0].event["contact"]["name"], "A");
    assert_eq!(
        seen[1].event["raw"],
        json!({"/contacts/1": {"wa_id": "9", "profile": {"name": "B"}}})
    );
    let seen = of(&format!(r#"{first},{{"user_id":"U"}}"#));
    assert_eq!(seen[0].event["contact"], json!({"user_id": "U"}));
    assert_eq!(
        seen[1].event["raw"],
        json!({"/contacts/0": {"wa_id": "9", "profile": {"name": "A"}}})
    );
    // The event holds all that the repetition says.
    assert_eq!(of(&format!("{first},{first}")).len(), 1);
}

#[test]
fn a_text_is_written_alike_whatever_stands_beside_it() {
    let written = |beside: &[u8]| {
        let text = br#"{"messages":[{"id":"m","type":"text","text":{"body":"Ol\u00e1"}}],"x":""#;
        let seen = items(&callback(&[&text[..], beside, b"\"}"].concat())).remove(0);
        String::from_utf8(seen.value).unwrap()
    };
    for beside in [&b""[..], b"\xff", br"\ud83d", br"\ud83d\udc4b"] {
        assert!(written(beside).contains(r#""text":"Ol\u00e1""#), "{beside:?}");
    }
}

#[test]
fn what_no_field_takes_of_metadata_and_profiles_is_in_the_remainder() {
    let raw = |members: &str| {
        let status = r#"{"id":"1","status":"read","recipient_id":"9"}"#;
        let seen = read(&format!(r#"{{"statuses":[{status}],{members}}}"#));
        assert_eq!(seen.len(), 2, "{seen:#?}");
        seen[1].event["raw"].clone()
    };
    let twice = r#""metadata":{"phone_number_id":"P"},"metadata":"#;
    let of_first = json!({"/metadata/phone_number_id": "P"});
    assert_eq!(raw(&format!(r#"{twice}{{"phone_number_id":"Q"}}"#)), of_first);
    let contact = |members: &str| raw(&format!(r#""contacts":[{{"wa_id":"9",{members}}}]"#));
    assert_eq!(
        contact(r#""profile":{"name":"A"},"profile":{"name":"B"}"#),
        json!({"/contacts/0/profile/name": "A"})
    );
    assert_eq!(
        contact(r#""username":"a","profile":{"name":"A","username":"b"}"#),
        json!({"/contacts/0/profile/username": "b"})
    );
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
    // The number became text.
    assert_eq!(seen.event["raw"]["id"], 12345);
    let body = br#"{"statuses":[{"id":"12345","status":"read","timestamp":"1763842385"}]}"#;
    let seen = &items(&Callback { raw: false, ..callback(body) })[0];
    assert!(seen.event.get("raw").is_none());
}

#[test]
fn numbers_without_digits_are_not_the_same_number() {
    let seen = one(
        r#"{"metadata":{"display_phone_number":"<OWN>"},"messages":[{"id":"m","type":"text","from":"<USER>"}]}"#,
    );
    assert_eq!(seen.event["user_key"], "<USER>");
}

#[test]
fn raw_stays_where_joined_errors_do_not_say_what_they_belong_to() {
    let body = br#"{"groups":[{"id":"g","failed":[{"errors":[{"code":131000}]}]}]}"#;
    let seen = &items(&Callback { raw: false, ..callback(body) })[0];
    assert_eq!(seen.event["errors"][0]["code"], 131000);
    assert_eq!(seen.event["raw"]["failed"], json!([{"errors": [{"code": 131000}]}]));
}

#[test]
fn an_empty_id_or_time_that_no_field_holds_keeps_raw() {
    for body in [
        r#"{"calls":[{"id":"","timestamp":"1763842390","event":"connect"}]}"#,
        r#"{"calls":[{"id":"c","timestamp":"","event":"connect"}]}"#,
    ] {
        let seen = &items(&Callback { raw: false, ..callback(body.as_bytes()) })[0];
        assert_eq!(seen.event["raw"]["event"], "connect", "{body}");
    }
}

#[test]
fn an_amount_that_is_null_is_left_out() {
    let seen = status(r#","type":"payment","payment":{"amount":null,"reference_id":"r"}"#);
    assert_eq!(seen.event["payment"], json!({"reference_id": "r"}));
}

#[test]
fn the_place_of_a_message_of_the_history_is_known_from_its_pointer() {
    for pointer in [
        "/entry/0/changes/0/value/history/0/threads/1/messages/2",
        "/entry/0/changes/0/value/history/0/threads/messages/2",
        "/history/threads/messages",
    ] {
        let (array, in_standby) = value::Array::around(pointer, Some("history"));
        assert_eq!((array, in_standby), (value::Array::History, false), "{pointer}");
    }
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
