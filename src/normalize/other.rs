//! Reads what statuses and messages share with all else: errors; and calls, payments, what is not
//! known.

use super::{error_codes, json::Value, value::Array};
use crate::event::{Event, EventKind, Object};

/// Errors wherever Meta puts them: the element itself, in it, and in what it says about parts of a
/// request.
pub(super) fn errors<'a>(
    element: Value<'a>,
    array: Array,
    event: &mut Event<'a>,
    out: &mut Object<'_>,
) {
    let of = |value: Value<'a>| value.all("errors").flat_map(objects);
    let errors: Vec<_> = match (array, event.kind) {
        (Array::Errors, _) => vec![element],
        (_, EventKind::ChannelEvent) => {
            let parts = element.members().flat_map(|(_, part)| objects(part));
            of(element).chain(parts.flat_map(of)).collect()
        }
        _ => of(element).collect(),
    };
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

/// The objects of an array, or the one object that stands for it.
fn objects<'a>(value: Value<'a>) -> impl Iterator<Item = Value<'a>> {
    let alone = value.is_object().then_some(value);
    alone.into_iter().chain(value.elements()).filter(|element| element.is_object())
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
