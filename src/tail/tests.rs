use serde_json::{Value as Json, json};

use super::*;
use crate::event::Fault;

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
fn item(members: Json) -> Item {
    let mut event = json!({
        "schema_version": 1, "event_id": "00", "event_kind": "message_status", "message_id": MESSAGE,
        "source": "loja", "receipt": "01a21968-ada0-773c-9634-c496cdb649d1",
        "received_at": "2026-11-26T19:50:20.320Z", "occurred_at": "2026-11-26T19:50:20Z",
        "format": "cloud", "element": "/statuses/0", "user_key": PHONE,
    });
    event.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    let headers = [("ce_id", "00"), ("ce_source", "/hooks/loja")];
    Item::read(record(&headers, event.to_string()))
}

fn status(status: &str, rank: Option<i64>, more: Json) -> Item {
    let mut members = json!({"status": status, "status_rank": rank,
        "recipient": {"id": PHONE, "type": "individual", "user_id": "BR.2749018350617743"}});
    members.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    item(members)
}

fn letter(detail: &str, value: &[u8]) -> Item {
    let headers = [("reason", "invalid_json"), ("source", "loja"), ("detail", detail)];
    Item::read(record(&[&headers[..], &[("contact", PHONE), ("thread", PHONE)]].concat(), value))
}

fn text(item: &Item, is_personal: bool) -> String {
    line(item, is_personal).into_iter().map(|span| span.text).collect::<Vec<_>>().join(" ")
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
    for (told, shown) in [
        ("to 5582999990000, late", "to …0000, late"),
        ("+55 (82) 99999-0000", "…0000"),
        ("code 131026 at 12:30", "code 131026 at 12:30"),
        ("whatsapp_business_account", "whatsapp_business_account"),
        (&format!("\"{MESSAGE}\""), "\"wamid.…Q0I0NDJDQQA=\""),
        ("gBEGkYiEB1VXAglK1ZEqA1YKPrU", "…EqA1YKPrU"),
    ] {
        assert_eq!(mask::text(told), shown);
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
        "errors": [{"code": 1, "title": PHONE, "message": PHONE, "details": PHONE, "retry": "never", "fault": "meta"}],
        "a_member_of_a_later_program": "SECRET",
    }));
    assert!(all.event().is_some(), "{:?}", all.content);
    for item in
        [all, letter(PHONE, format!("{{\"to\":\"{PHONE}\",\"id\":\"{MESSAGE}\"").as_bytes())]
    {
        for shown in [text(&item, false), json(&item, false).to_string()] {
            for hidden in ["SECRET", PHONE, MESSAGE, "NNTU4Mjk5OTk5MDAwMB"] {
                assert!(!shown.contains(hidden), "{hidden}: {shown}");
            }
        }
        assert!(json(&item, true).to_string().contains(PHONE));
        assert!(text(&item, true).contains(PHONE));
    }
}

#[test]
fn a_record_is_shown_as_it_is_in_kafka_when_all_is_asked_for() {
    let item = status("read", Some(30), json!({"a_member_of_a_later_program": 1}));
    let shown = json(&item, true);
    let event: Json = serde_json::from_slice(&item.record.value).unwrap();
    assert_eq!((&shown["event"], &shown["key"]), (&event, &MESSAGE.into()));
    let letter = letter("no JSON", b"\xff\x00");
    assert_eq!(json(&letter, true)["value_base64"], "/wA=");
    assert_eq!(json(&letter, false)["value_bytes"], 2);
}

#[test]
fn a_long_dead_letter_is_cut() {
    let item = letter("no JSON", &[b'a'; 10_000]);
    let start = json(&item, true)["value_start"].as_str().unwrap().to_owned();
    assert_eq!(start, "a".repeat(80) + "…");
    // The cut does not make a number short enough to be shown.
    let number = "x ".repeat(36) + "5582999990000";
    assert!(!json(&letter("", number.as_bytes()), false).to_string().contains("558299"));
}

#[test]
fn what_cannot_be_read_says_why() {
    for (item, why) in [
        (item(json!({"schema_version": 2})), "its schema_version is 2"),
        (item(json!({"event_kind": "dream"})), "unknown variant `dream`"),
        (Item::read(record(&[("ce_id", "00")], "not JSON")), "not JSON"),
        (Item::read(record(&[("ce_id", "00")], "[]")), "invalid type"),
        (Item::read(record(&[], "{}")), "neither event nor dead letter"),
    ] {
        let Content::Unreadable(said) = &item.content else { panic!("{item:?}") };
        assert!(said.contains(why), "{said}");
        assert!(text(&item, false).contains(why));
        assert_eq!(json(&item, false)["unreadable"], said.as_str());
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
    assert_eq!(of(&|filter| filter.faults = vec![Fault::Recipient]), [true, false]);
    assert_eq!(of(&|filter| filter.faults = vec![Fault::Meta]), [false, false]);
}

fn update(state: &mut State<String>, item: &Item, shown: &str) -> bool {
    state.update(item.event().unwrap(), shown.to_owned())
}

#[test]
fn the_state_of_a_message_is_the_highest_rank_in_any_order() {
    let at = |seconds: u64| json!({"occurred_at": format!("2026-11-26T19:50:{seconds:02}Z")});
    let mut state = State::new(10);
    assert!(!update(&mut state, &status("snoozed", None, at(1)), "no rank"));
    assert!(update(&mut state, &status("delivered", Some(20), at(2)), "delivered"));
    assert!(!update(&mut state, &status("sent", Some(10), at(1)), "late"));
    assert!(!update(&mut state, &status("delivered", Some(20), at(2)), "with more detail"));
    assert_eq!(state.shown().collect::<Vec<_>>(), ["with more detail"]);
    assert!(!update(&mut state, &status("delivered", Some(20), at(1)), "earlier"));
    assert!(update(&mut state, &status("delivered", Some(20), at(3)), "later"));
    assert!(!update(&mut state, &status("snoozed", None, at(9)), "null never overwrites"));
    assert!(update(&mut state, &status("read", Some(30), at(4)), "read"));
    assert_eq!(state.shown().collect::<Vec<_>>(), ["read"]);
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
    assert_eq!(state.shown().collect::<Vec<_>>(), ["at 20 s", "a", "b"]);
}

#[test]
fn the_states_that_changed_first_are_forgotten() {
    let mut state = State::new(2);
    let of = |id: &str, rank: i64| status("x", Some(rank), json!({"message_id": id}));
    for (id, rank) in [("1", 10), ("2", 10), ("1", 20)] {
        assert!(update(&mut state, &of(id, rank), id));
    }
    assert_eq!(state.forgotten, 0);
    assert!(update(&mut state, &of("3", 10), "3"));
    assert_eq!(state.shown().collect::<Vec<_>>(), ["1", "3"]);
    assert_eq!(state.forgotten, 1);
}

#[test]
fn rates_are_those_of_the_last_ten_seconds() {
    let mut stats = Stats::default();
    let errors = json!([{"retry": "never", "fault": "recipient"}]);
    for _ in 0..20 {
        stats.count(&status("failed", Some(15), json!({"errors": errors})));
        stats.tick();
    }
    stats.count(&letter("", b""));
    let rows = &stats.json()["rows"];
    let row = |what: &str, events: u64, rate: f64| json!({"what": what, "source": "loja", "events": events, "per_second": rate});
    let expected = [
        row("- fault recipient", 20, 0.9),
        row("dead_letter invalid_json", 1, 0.1),
        row("failed", 20, 0.9),
    ];
    assert_eq!(rows, &json!(expected));
    assert_eq!(stats.table().len(), 4);
}
