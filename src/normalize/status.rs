//! Reads one element of `statuses`.

use super::{Read, json::Value, other};
use crate::event::{Conversation, Detail, Occurred, Pricing, Status, Text};

pub(super) fn read(element: Value<'_>) -> Read<'_> {
    let mut id = None;
    let mut occurred = Occurred::default();
    let mut status = Status::default();
    let mut group = None;
    let mut errors = Vec::new();
    let mut state = None;
    let recipient = &mut status.recipient;
    let mut pricing = None;
    for (key, member) in element.members() {
        let text = member.text();
        match &*key {
            "id" => id = text,
            "timestamp" => occurred.text = text,
            "status" => {
                state = member.written();
                status.raw = text;
            }
            "recipient_id" => recipient.id = filled(text),
            "recipient_type" => group = filled(text),
            "recipient_user_id" => recipient.user_id = filled(text),
            "recipient_parent_user_id" | "parent_recipient_user_id" | "parent_user_id" => {
                recipient.parent_user_id = filled(text).or(recipient.parent_user_id.take());
            }
            "recipient_participant_id" | "participant_recipient_id" => {
                recipient.participant_id = filled(text).or(recipient.participant_id.take());
            }
            "recipient_participant_user_id" => recipient.participant_user_id = filled(text),
            "recipient_participant_parent_user_id" => {
                recipient.participant_parent_user_id = filled(text);
            }
            "conversation" if member.is_object() => {
                status.conversation = Some(conversation(member));
                // One sample of Meta's nests it there.
                pricing = member.get("pricing").or(pricing);
            }
            "pricing" if member.is_object() => pricing = Some(member),
            "errors" => other::read_errors(member, &mut errors),
            "biz_opaque_callback_data" => status.callback_data = text,
            _ => {}
        }
    }
    recipient.kind = group.unwrap_or(Text::Borrowed("individual"));
    let wa_ids = [&recipient.participant_id, &recipient.id];
    let user_ids = [&recipient.participant_user_id, &recipient.user_id];
    Read {
        wa_ids: wa_ids.into_iter().flatten().cloned().collect(),
        user_ids: user_ids.into_iter().flatten().cloned().collect(),
        other_key: recipient.id.clone(),
        id,
        occurred,
        state,
        errors,
        detail: Detail::Status(Box::new(Status { pricing: pricing.map(self::pricing), ..status })),
    }
}

/// Users may hide their number: then it comes empty.
fn filled(text: Option<Text<'_>>) -> Option<Text<'_>> {
    text.filter(|text| !text.is_empty())
}

fn conversation(member: Value<'_>) -> Conversation<'_> {
    let text = |name| member.get(name).and_then(Value::text);
    Conversation {
        id: text("id"),
        origin: member.get("origin").and_then(|origin| origin.get("type")).and_then(Value::text),
        expires: Occurred { text: text("expiration_timestamp") },
    }
}

fn pricing(member: Value<'_>) -> Pricing<'_> {
    let text = |name| member.get(name).and_then(Value::text);
    Pricing {
        billable: member.get("billable").and_then(Value::flag),
        model: text("pricing_model"),
        kind: text("type"),
        category: text("category"),
    }
}
