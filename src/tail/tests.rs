use serde_json::json;

use super::*;
use crate::event::{Topic, schema};

const PHONE: &str = "5582999990000";
const MESSAGE: &str = "wamid.HBgNNTU4Mjk5OTk5MDAwMBUCABEYEjNBNTM2REMzM0JEQ0I0NDJDQQA=";

fn record(headers: &[(&str, &str)], value: impl Into<Vec<u8>>) -> Followed {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), value.as_bytes().to_vec());
    Followed {
        topic: "weni.message-status.v1".into(),
        key: MESSAGE.into(),
        headers: headers.iter().map(owned).collect(),
        value: value.into(),
        ..Followed::default()
    }
}

/// An event with these members beside those that all have.
fn item(members: Json) -> TailedRecord {
    let mut event = json!({
        "schema_version": 1, "event_id": "00", "event_kind": "message_status", "message_id": MESSAGE,
        "source": "loja", "receipt": "01a21968-ada0-773c-9634-c496cdb649d1",
        "received_at": "2026-11-26T19:50:20.320Z", "occurred_at": "2026-11-26T19:50:20Z",
        "format": "cloud", "element": "/statuses/0", "user_key": PHONE,
    });
    event.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    let headers = [("ce_id", "00"), ("ce_source", "/hooks/loja")];
    TailedRecord::read(record(&headers, event.to_string()))
}

fn status(status: &str, rank: Option<i64>, more: Json) -> TailedRecord {
    let mut members = json!({"status": status, "status_rank": rank,
        "recipient": {"id": PHONE, "type": "individual", "user_id": "BR.2749018350617743"}});
    members.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    item(members)
}

fn letter(detail: &str, value: &[u8]) -> TailedRecord {
    let headers = [("reason", "invalid_json"), ("source", "loja"), ("detail", detail)];
    TailedRecord::read(record(
        &[&headers[..], &[("contact", PHONE), ("thread", PHONE)]].concat(),
        value,
    ))
}

fn printed(item: &TailedRecord, is_personal: bool) -> String {
    line(&item.clone().shown(is_personal)).0.join(" ")
}

fn in_json(item: &TailedRecord, is_personal: bool) -> Json {
    json(&item.clone().shown(is_personal))
}

#[test]
fn numbers_and_ids_show_their_end_only() {
    assert_eq!(mask::person(PHONE), "…0000");
    assert_eq!(mask::person("BR.2749018350617743"), "…7743");
    assert_eq!(mask::person("123"), "…3");
    assert_eq!(mask::person(""), "…");
    assert_eq!(mask::message_id(MESSAGE), "…Q0I0NDJDQQA=");
    assert_eq!(mask::message_id("wamid.é"), "….é");
    // Of the on-premise API: the number is in its characters 4 to 12.
    assert_eq!(mask::message_id("gBEGkYiEB1VXAglK1ZEqA1YKPrU"), "…EqA1YKPrU");
}

#[test]
fn what_is_shown_is_in_the_contract() {
    for path in [mask::SHOWN, mask::WORDS, mask::MASKED].concat() {
        let is_in = |topic: &Topic| {
            let schema = schema::schema(*topic);
            let step = |at: &Json, name: &str| {
                let at = at.get("items").unwrap_or(at);
                at["properties"].get(name).cloned()
            };
            path.split('.').try_fold(schema, |at, name| step(&at, name)).is_some()
        };
        let events = [Topic::MessageStatus, Topic::InboundMessage, Topic::ChannelEvent];
        assert!(events.iter().any(is_in), "{path}");
    }
}

#[test]
fn nothing_personal_is_shown_unless_it_is_asked_for() {
    let party = json!({"id": PHONE, "user_id": PHONE, "parent_user_id": PHONE});
    let all = item(json!({
        "event_kind": "inbound_message", "timestamp_raw": PHONE, "contact": {"wa_id": PHONE, "name": "SECRET"},
        "raw": {"a": "SECRET"}, "raw_base64": "SECRET", "callback_data": "SECRET", "type": "text",
        "recipient": {"id": PHONE, "type": "group", "user_id": PHONE, "parent_user_id": PHONE,
            "participant_id": PHONE, "participant_user_id": PHONE, "participant_parent_user_id": PHONE},
        "from": party, "to": party, "group_id": PHONE, "text": "SECRET", "related_message_id": MESSAGE,
        "media": {"id": "SECRET", "sha256": "SECRET", "filename": "SECRET", "caption": "SECRET", "url": "SECRET"},
        "reply_id": "SECRET", "response_json": "SECRET", "system": {"new_id": PHONE, "new_user_id": PHONE},
        "context": {"id": MESSAGE, "from": PHONE}, "referral": {"a": "SECRET"},
        "call": {"from": PHONE, "to": PHONE}, "payment": {"reference_id": "SECRET"},
        "errors": [{"code": 1, "title": PHONE, "message": PHONE, "details": "SECRET of Ana", "error_data": "SECRET",
            "retry": "never", "fault": "meta", "href": "SECRET"}],
        "a_member_of_a_later_program": "SECRET",
    }));
    assert!(all.event().is_some(), "{:?}", all.content);
    let dead =
        letter(PHONE, format!("{{\"to\":\"{PHONE}\",\"id\":\"{MESSAGE}\", SECRET").as_bytes());
    let neither = TailedRecord::read(record(&[("ce_id", "00"), ("status", PHONE)], "\"SECRET\""));
    for item in [all, dead, neither] {
        let mut stats = Stats::default();
        stats.count(&item.clone().shown(false));
        let table = stats.table(1.0).join(" ");
        for shown in [printed(&item, false), in_json(&item, false).to_string(), table] {
            for hidden in ["SECRET", "Ana", PHONE, MESSAGE, "NNTU4Mjk5OTk5MDAwMB"] {
                assert!(!shown.contains(hidden), "{hidden}: {shown}");
            }
        }
        assert!(in_json(&item, true).to_string().contains(PHONE));
    }
    // The sender's free text is shown only where it is a word.
    for told in [
        "Ana Silva",
        "55.82.99999.0000",
        "55\u{a0}82\u{a0}99999\u{a0}0000",
        "٥٥٨٢٩٩٩٩٩٠٠٠٠",
        PHONE,
        "x_5582999990000",
        "wamid.HBgN=",
        &"a".repeat(41),
    ] {
        let members = json!({"status": told, "status_raw": told, "type": told, "field": told,
            "callback_data": told, "text": told, "unknown": {"a": [told]}, "timestamp_raw": told,
            "errors": [{"details": told, "message": told, "error_data": {"details": told}}]});
        let item = item(members);
        for shown in [printed(&item, false), in_json(&item, false).to_string()] {
            assert!(!shown.contains(told), "{told}: {shown}");
        }
        let shown = in_json(&item, false);
        let shown = &shown["event"];
        assert_eq!((&shown["status"], shown.get("unknown")), (&"…".into(), None));
        assert_eq!(shown.get("errors"), None, "nothing is left of it");
    }
}

#[test]
fn an_absent_member_stays_absent_and_a_harmless_one_as_it_is() {
    let errors = json!([{"code": 131026, "title": "Message undeliverable", "retry": "never", "fault": "recipient"}]);
    let members = json!({"errors": errors, "status_raw": "Failed", "labels": {"team": "a b"}});
    let mut item = status("failed", None, members);
    let shown = in_json(&item, false)["event"].take();
    let Content::Event(event) = &mut item.content else { panic!("{item:?}") };
    event["recipient"] = json!({"id": "…0000", "type": "individual", "user_id": "…7743"});
    event["user_key"] = "…0000".into();
    event["message_id"] = "…Q0I0NDJDQQA=".into();
    assert_eq!(shown, *event);
}

#[test]
fn a_record_is_shown_as_it_is_in_kafka_when_all_is_asked_for() {
    let item = status("read", Some(30), json!({"a_member_of_a_later_program": 1}));
    let shown = in_json(&item, true);
    let event: Json = serde_json::from_slice(&item.record.value).unwrap();
    assert_eq!((&shown["event"], &shown["key"]), (&event, &MESSAGE.into()));
    let letter = letter("no JSON", b"\xff\x00");
    assert_eq!(in_json(&letter, true)["value_base64"], "/wA=");
    assert_eq!(in_json(&letter, false)["value_bytes"], 2);
}

#[test]
fn a_long_dead_letter_is_cut() {
    let letter = letter("no JSON", &[b'a'; 10_000]);
    assert!(printed(&letter, true).ends_with(&format!(" {}…", "a".repeat(80))));
    assert!(printed(&letter, false).ends_with(" 10000 bytes"));
}

#[test]
fn what_a_later_version_writes_is_shown() {
    let errors = json!([{"code": 1, "retry": "tomorrow", "fault": "moon"}]);
    let later = item(json!({"schema_version": 2, "event_kind": "dream", "errors": errors}));
    let shown = printed(&later, false);
    assert!(shown.contains("dream") && shown.contains("1 fault=moon retry=tomorrow"), "{shown}");
    assert_eq!(in_json(&later, false)["event"]["schema_version"], 2);
    // Of an object's members none is needed.
    assert!(
        printed(&TailedRecord::read(record(&[], "{}")), false).starts_with("1970-01-01T00:00:00Z")
    );
}

#[test]
fn what_is_no_object_is_named_and_not_quoted() {
    for value in ["not JSON", "[\"Ana\"]", "\"Ana\"", ""] {
        let item = TailedRecord::read(record(&[("ce_id", "00")], value));
        assert!(matches!(item.content, Content::Unreadable), "{item:?}");
        assert!(
            printed(&item, false).ends_with("weni.message-status.v1/0@0: it is no JSON object")
        );
        assert_eq!(in_json(&item, false)["unreadable"], "it is no JSON object");
    }
}

#[test]
fn a_filter_selects_by_each_of_its_lists() {
    let errors = json!([{"code": 131026, "retry": "never", "fault": "recipient"}]);
    let failed = status("failed", Some(15), json!({"errors": errors}));
    let dead = letter("", format!("{PHONE} {MESSAGE}").as_bytes());
    let fits = |filter: &Filter, item| filter.is_about(item) && filter.has_outcome(item);
    let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let of = |change: &dyn Fn(&mut Filter)| {
        let mut filter = Filter::default();
        change(&mut filter);
        [fits(&filter, &failed), fits(&filter, &dead)]
    };
    assert!(Filter::default().is_empty());
    assert_eq!(of(&|_| {}), [true, true]);
    assert_eq!(of(&|filter| filter.messages = list(&["wamid.x", MESSAGE])), [true, true]);
    assert_eq!(
        of(&|filter| filter.messages = list(&["…Q0I0NDJDQQA="])),
        [true, false],
        "as it is shown"
    );
    assert_eq!(of(&|filter| filter.messages = list(&["Q0I0NDJDQQA="])), [false, true]);
    assert_eq!(of(&|filter| filter.recipients = list(&[PHONE])), [true, true]);
    assert_eq!(of(&|filter| filter.recipients = list(&["+55 82 9999-0000"])), [true, false]);
    assert_eq!(of(&|filter| filter.recipients = list(&["BR.2749018350617743"])), [true, false]);
    assert_eq!(of(&|filter| filter.recipients = list(&["5582999990001"])), [false, false]);
    assert_eq!(of(&|filter| filter.sources = list(&["loja"])), [true, true]);
    assert_eq!(of(&|filter| filter.sources = list(&["outra"])), [false, false]);
    assert_eq!(of(&|filter| filter.statuses = list(&["read", "failed"])), [true, false]);
    assert_eq!(of(&|filter| filter.statuses = list(&["read"])), [false, false]);
    assert_eq!(of(&|filter| filter.codes = vec![131_026]), [true, false]);
    assert_eq!(of(&|filter| filter.codes = vec![1]), [false, false]);
    assert_eq!(of(&|filter| filter.statuses = list(&["FAILED"])), [true, false]);
    assert_eq!(of(&|filter| filter.faults = list(&["recipient"])), [true, false]);
    assert_eq!(of(&|filter| filter.faults = list(&["meta"])), [false, false]);
}

fn update(state: &mut MessageStates, item: &TailedRecord, shown: &str) -> bool {
    state.update(item.event().unwrap(), Shown { line: shown.to_owned(), ..Shown::default() })
}

fn lines(state: &MessageStates) -> Vec<&str> {
    state.shown().map(|shown| shown.line.as_str()).collect()
}

#[test]
fn the_state_of_a_message_is_the_highest_rank_in_any_order() {
    let at = |seconds: u64| json!({"occurred_at": format!("2026-11-26T19:50:{seconds:02}Z")});
    let mut state = MessageStates::new(10);
    assert!(!update(&mut state, &status("snoozed", None, at(1)), "no rank"));
    assert!(update(&mut state, &status("delivered", Some(20), at(2)), "delivered"));
    assert!(!update(&mut state, &status("sent", Some(10), at(1)), "late"));
    assert!(!update(&mut state, &status("delivered", Some(20), at(2)), "with more detail"));
    assert_eq!(lines(&state), ["with more detail"]);
    assert!(!update(&mut state, &status("delivered", Some(20), at(1)), "earlier"));
    assert!(update(&mut state, &status("delivered", Some(20), at(3)), "later"));
    assert!(!update(&mut state, &status("snoozed", None, at(9)), "null never overwrites"));
    assert!(update(&mut state, &status("read", Some(30), at(4)), "read"));
    assert_eq!(lines(&state), ["read"]);
    // Without a time of Meta's, that of the acceptance counts.
    let without_time = status("read", Some(30), json!({"occurred_at": null}));
    assert!(update(&mut state, &without_time, "at 20 s"));

    let one_of = |participant: &str| {
        let recipient = json!({"id": "1", "type": "group", "participant_id": participant});
        status("read", Some(30), json!({"recipient": recipient}))
    };
    assert!(update(&mut state, &one_of("a"), "a"));
    assert!(update(&mut state, &one_of("b"), "b"));
    assert!(!update(&mut state, &item(json!({"event_kind": "inbound_message"})), "no status"));
    assert_eq!(lines(&state), ["at 20 s", "a", "b"]);
}

#[test]
fn the_states_that_changed_first_are_forgotten() {
    let mut state = MessageStates::new(2);
    let of = |id: &str, rank: i64| status("x", Some(rank), json!({"message_id": id}));
    for (id, rank) in [("1", 10), ("2", 10), ("1", 20)] {
        assert!(update(&mut state, &of(id, rank), id));
    }
    assert_eq!(state.forgotten, 0);
    assert!(update(&mut state, &of("3", 10), "3"));
    assert_eq!(lines(&state), ["1", "3"]);
    assert_eq!(state.forgotten, 1);
}

#[test]
fn rates_are_those_since_the_last_table() {
    let mut stats = Stats::default();
    let errors = json!([{"retry": "never", "fault": "recipient"}]);
    for _ in 0..20 {
        stats.count(&status("failed", Some(15), json!({"errors": errors})));
    }
    stats.count(&letter("", b""));
    let mut rows = |seconds| -> Vec<String> {
        let table = stats.table(seconds).into_iter().skip(1);
        table.map(|row| row.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    let first = [
        "- fault recipient loja 20 2.0",
        "dead_letter invalid_json loja 1 0.1",
        "failed loja 20 2.0",
    ];
    assert_eq!(rows(10.0), first);
    let then = [
        "- fault recipient loja 20 0.0",
        "dead_letter invalid_json loja 1 0.0",
        "failed loja 20 0.0",
    ];
    assert_eq!(rows(10.0), then);
}
