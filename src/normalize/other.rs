//! Reads what statuses and messages share with all else: errors; and calls, payments, what is not
//! known.

use super::{error_codes, json::Value};
use crate::event::{Event, EventKind, Object, write_text};

/// Errors wherever Meta puts them: in the element, and in what it says about parts of a request.
pub(super) fn errors<'a>(element: Value<'a>, event: &mut Event<'a>, out: &mut Object<'_>) {
    let of = |value: Value<'a>| {
        let given = value.members().filter(|(key, _)| key == "errors");
        given.flat_map(|(_, errors)| objects(errors))
    };
    let mut errors: Vec<_> = of(element).collect();
    if event.kind == EventKind::ChannelEvent {
        errors.extend(element.members().flat_map(|(_, part)| objects(part)).flat_map(of));
    }
    write_errors(errors, event, out);
}

/// One of a value's own errors.
pub(super) fn error<'a>(element: Value<'a>, event: &mut Event<'a>, out: &mut Object<'_>) {
    write_errors(vec![element], event, out);
}

/// The objects of an array, or the one object that stands for it.
fn objects<'a>(value: Value<'a>) -> impl Iterator<Item = Value<'a>> {
    let alone = value.is_object().then_some(value);
    alone.into_iter().chain(value.elements()).filter(|element| element.is_object())
}

fn write_errors<'a>(errors: Vec<Value<'a>>, event: &mut Event<'a>, out: &mut Object<'_>) {
    out.objects("errors", errors, |out, error: Value<'a>| {
        let (retry, label) = error_codes::read(error.copy_number("code", "code", out));
        error.copy_member("title", "title", out);
        error.copy_member("message", "message", out);
        let data = error.get("error_data");
        let details = data.and_then(|data| data.get("details")).or(data);
        let details = details.filter(|details| details.text().is_some());
        if let Some(details) = details.or_else(|| error.get("details")) {
            details.copy("details", out);
        }
        error.copy_member("href", "href", out);
        out.text("retry", retry.as_str());
        out.text("fault", label.fault.as_str());
        event.errors.push(label);
    });
}

/// What a call, or a status of one, says of the call.
pub(super) fn call(element: Value<'_>, kind: EventKind, out: &mut Object<'_>) {
    out.object("call", |out| {
        for name in ["event", "direction", "from", "to"] {
            element.copy_member(name, name, out);
        }
        if kind == EventKind::Call {
            element.copy_member("status", "status", out);
        }
        element.copy_time("start_time", "started_at", out);
        element.copy_time("end_time", "ended_at", out);
        element.copy_number("duration", "duration_seconds", out);
    });
}

pub(super) fn payment(element: Value<'_>, out: &mut Object<'_>) {
    let Some(payment) = element.get("payment") else { return };
    out.object("payment", |out| {
        payment.copy_member("reference_id", "reference_id", out);
        if let Some(amount) =
            payment.get("amount").filter(|amount| !amount.is_null() && amount.is_strict())
        {
            amount.mark_typed();
            out.json("amount", amount.bytes());
        }
        payment.copy_member("currency", "currency", out);
        if let Some(transaction) = payment.get("transaction") {
            transaction.copy_member("id", "transaction_id", out);
            transaction.copy_member("status", "transaction_status", out);
        }
    });
}

/// An object of members, each by its JSON pointer and verbatim.
pub(super) fn gather(members: &[(String, Value<'_>)]) -> Vec<u8> {
    let mut gathered = vec![b'{'];
    for (at, (pointer, value)) in members.iter().enumerate() {
        if at > 0 {
            gathered.push(b',');
        }
        write_text(&mut gathered, pointer);
        gathered.push(b':');
        gathered.extend_from_slice(value.bytes());
    }
    gathered.push(b'}');
    gathered
}
