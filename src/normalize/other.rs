//! Reads what is neither a status nor a message: calls, errors, and what is not known.

use super::{Read, error_codes, json::Value};
use crate::event::{Detail, ErrorDetail, Occurred, Text};

/// An element of which only the id, the time and the people are read.
pub(super) fn read(element: Value<'_>) -> Read<'_> {
    let text = |name| element.get(name).and_then(Value::text).filter(|text| !text.is_empty());
    let people = |one, other| text(one).into_iter().chain(text(other)).collect();
    let mut errors = Vec::new();
    if let Some(member) = element.get("errors") {
        read_errors(member, &mut errors);
    }
    Read {
        id: text("id"),
        other_key: text("from"),
        occurred: Occurred { text: text("timestamp") },
        state: element.get("status").and_then(Value::written),
        detail: Detail::Other,
        errors,
        wa_ids: people("from", "to"),
        user_ids: people("from_user_id", "to_user_id"),
    }
}

/// One of a value's own errors.
pub(super) fn read_error(element: Value<'_>) -> Read<'_> {
    Read { errors: vec![error(element)], ..read(element) }
}

/// The objects of an array of errors.
pub(super) fn read_errors<'a>(member: Value<'a>, errors: &mut Vec<ErrorDetail<'a>>) {
    errors.extend(member.elements().filter(|element| element.is_object()).map(error));
}

fn error(element: Value<'_>) -> ErrorDetail<'_> {
    let text = |name| element.get(name).and_then(Value::text);
    let code = text("code").and_then(|code| code.trim().parse().ok());
    let data = element.get("error_data").and_then(|data| data.get("details"));
    ErrorDetail {
        code,
        label: error_codes::label(code),
        title: text("title"),
        message: text("message"),
        details: data.and_then(Value::text).or_else(|| text("details")),
        href: text("href"),
        retry: error_codes::retry(code),
    }
}

/// An object of members, and of contacts that belong to nobody, each verbatim.
pub(super) fn gather(members: &[(Text<'_>, Value<'_>)], contacts: &[Value<'_>]) -> Vec<u8> {
    let mut gathered = vec![b'{'];
    let key = |out: &mut Vec<u8>, name: &str| {
        if out.len() > 1 {
            out.push(b',');
        }
        // INVARIANT: text can always be written to memory as JSON.
        serde_json::to_writer(&mut *out, name).expect("text into memory");
        out.push(b':');
    };
    for (name, value) in members {
        key(&mut gathered, name);
        gathered.extend_from_slice(value.bytes());
    }
    if !contacts.is_empty() {
        key(&mut gathered, "contacts");
        gathered.push(b'[');
        for (at, contact) in contacts.iter().enumerate() {
            if at > 0 {
                gathered.push(b',');
            }
            gathered.extend_from_slice(contact.bytes());
        }
        gathered.push(b']');
    }
    gathered.push(b'}');
    gathered
}
