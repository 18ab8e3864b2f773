//! Reads one element of `statuses`.

use super::{json::Value, other};
use crate::event::{Event, EventKind, Object, Pricing, Text};

/// Rank of a known status of a message; inside, `None` never overwrites state. `None` outside: the
/// status is not known.
pub(super) fn rank(status: &str) -> Option<Option<i64>> {
    match status {
        "sending" => Some(Some(5)),
        "sent" => Some(Some(10)),
        "failed" => Some(Some(15)),
        "delivered" => Some(Some(20)),
        "read" => Some(Some(30)),
        "played" => Some(Some(40)),
        "deleted" | "warning" => Some(None),
        _ => None,
    }
}

pub(super) fn read<'a>(element: Value<'a>, event: &mut Event<'a>, out: &mut Object<'_>) {
    status(element, event, out);
    out.object("recipient", |out| event.participant = recipient(element, out));
    let conversation = element.get("conversation").filter(|member| member.is_object());
    if let Some(conversation) = conversation {
        out.object("conversation", |out| {
            conversation.copy_member("id", "id", out);
            if let Some(origin) = conversation.get("origin") {
                origin.copy_member("type", "origin", out);
            }
            conversation.copy_time("expiration_timestamp", "expires_at", out);
        });
    }
    // One sample of Meta's nests it in the conversation.
    let nested = conversation.and_then(|conversation| conversation.get("pricing"));
    let pricing = element.get("pricing").filter(|member| member.is_object());
    if let Some(pricing) = pricing.or(nested) {
        let text = |name| pricing.get(name).and_then(Value::text).unwrap_or_default();
        event.pricing = Some(Pricing { kind: text("type"), category: text("category") });
        out.object("pricing", |out| {
            pricing.copy_flag("billable", "billable", out);
            pricing.copy_member("pricing_model", "model", out);
            pricing.copy_member("type", "type", out);
            pricing.copy_member("category", "category", out);
        });
    }
    element.copy_member("biz_opaque_callback_data", "callback_data", out);
    if event.kind == EventKind::PaymentStatus {
        other::payment(element, out);
    }
    if event.kind == EventKind::CallStatus {
        other::call(element, event.kind, out);
    }
}

fn status<'a>(element: Value<'a>, event: &mut Event<'a>, out: &mut Object<'_>) {
    if let Some(kind) = element.get("type")
        && matches!(kind.text().as_deref(), Some("message" | "payment" | "call"))
    {
        // The event's kind says it.
        kind.mark_typed();
    }
    let Some(member) = element.get("status") else { return };
    let Some(text) = member.text() else { return };
    let is_normal = text.bytes().all(|byte| byte.is_ascii_lowercase());
    let normal = if is_normal { text.clone() } else { text.trim().to_lowercase().into() };
    let is_ranked = !matches!(event.kind, EventKind::PaymentStatus | EventKind::CallStatus);
    if normal == text {
        member.copy("status", out);
    } else {
        out.text("status", &normal);
        if is_ranked {
            member.copy("status_raw", out);
        }
    }
    if is_ranked {
        let rank = rank(&normal);
        out.flag("status_known", rank.is_some());
        match rank.flatten() {
            Some(rank) => out.number("status_rank", rank),
            None => out.json("status_rank", b"null"),
        }
    }
    event.status = Some(normal);
}

/// Returns the participant whom the status is about.
fn recipient<'a>(element: Value<'a>, out: &mut Object<'_>) -> Option<Text<'a>> {
    if element.copy_first(&["recipient_id"], "id", out).is_none()
        && let Some(message) = element.get("message")
    {
        message.copy_first(&["recipient_id"], "id", out);
    }
    if element.copy_first(&["recipient_type"], "type", out).is_none() {
        out.text("type", "individual");
    }
    let parent = ["recipient_parent_user_id", "parent_recipient_user_id", "parent_user_id"];
    element.copy_first(&["recipient_user_id"], "user_id", out);
    element.copy_first(&parent, "parent_user_id", out);
    let ids = ["recipient_participant_id", "participant_recipient_id"];
    let user_id = ["recipient_participant_user_id"];
    let id = element.copy_first(&ids, "participant_id", out);
    let user_id = element.copy_first(&user_id, "participant_user_id", out);
    let parent = ["recipient_participant_parent_user_id"];
    element.copy_first(&parent, "participant_parent_user_id", out);
    user_id.or(id)
}
