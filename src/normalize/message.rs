//! Reads one message: of a user, of the history, or an echo of our own.

use super::json::Value;
use crate::event::{Event, EventKind, Object};

/// Types whose content is a file.
const MEDIA: [&str; 6] = ["image", "audio", "video", "document", "sticker", "voice"];

pub(super) fn read<'a>(element: Value<'a>, event: &mut Event<'a>, out: &mut Object<'_>) {
    let kind = element.get("type").and_then(Value::text);
    element.copy_member("type", "type", out);
    for (id, user_id, parent_user_id) in
        [("from", "from_user_id", "from_parent_user_id"), ("to", "to_user_id", "to_parent_user_id")]
    {
        out.object(id, |out| {
            element.copy_first(&[id], "id", out);
            element.copy_first(&[user_id], "user_id", out);
            element.copy_first(&[parent_user_id], "parent_user_id", out);
        });
    }
    element.copy_first(&["group_id"], "group_id", out);
    let content = kind.as_deref().and_then(|kind| element.get(kind));
    if let (Some(kind), Some(content)) = (kind.as_deref(), content) {
        read_content(kind, content, out);
    }
    let edited = content.filter(|_| kind.as_deref() == Some("edit"));
    let context = element.get("context").or_else(|| edited?.get("message")?.get("context"));
    if let Some(context) = context {
        out.object("context", |out| {
            context.copy_member("id", "id", out);
            context.copy_member("from", "from", out);
        });
    }
    if let Some(referral) = element.get("referral").filter(|referral| referral.is_object())
        && referral.is_strict()
    {
        referral.mark_typed();
        out.json("referral", referral.bytes());
    }
    if event.kind == EventKind::InboundMessage {
        event.state = kind;
    }
}

/// What stands under the name of the message's type.
fn read_content(kind: &str, content: Value<'_>, out: &mut Object<'_>) {
    match kind {
        "text" => content.copy_member("body", "text", out),
        "order" => content.copy_member("text", "text", out),
        "button" => {
            content.copy_member("text", "text", out);
            content.copy_member("payload", "reply_id", out);
        }
        "reaction" => {
            content.copy_member("emoji", "text", out);
            content.copy_member("message_id", "related_message_id", out);
        }
        "edit" | "revoke" => {
            let names = ["original_message_id", "message_id"];
            content.copy_first(&names, "related_message_id", out);
            if let Some(message) = content.get("message").filter(|_| kind == "edit") {
                edited(message, out);
            }
        }
        "interactive" => interactive(content, out),
        "system" => {
            content.copy_member("body", "text", out);
            out.object("system", |out| {
                content.copy_member("type", "type", out);
                content.copy_first(&["wa_id", "new_wa_id"], "new_id", out);
                content.copy_first(&["user_id"], "new_user_id", out);
            });
        }
        kind if MEDIA.contains(&kind) => out.object("media", |out| {
            for name in ["id", "mime_type", "sha256", "filename", "caption", "url"] {
                content.copy_member(name, name, out);
            }
            content.copy_flag("voice", "voice", out);
        }),
        _ => {}
    }
}

/// The new content of a message that was edited.
fn edited(message: Value<'_>, out: &mut Object<'_>) {
    let kind = message.get("type").and_then(Value::text);
    message.copy_member("type", "edited_type", out);
    if let Some(kind) = kind.as_deref().filter(|kind| *kind == "text" || MEDIA.contains(kind))
        && let Some(content) = message.get(kind)
    {
        read_content(kind, content, out);
    }
}

fn interactive(content: Value<'_>, out: &mut Object<'_>) {
    let kind = content.get("type").and_then(Value::text);
    content.copy_member("type", "interactive_type", out);
    let Some(reply) = kind.as_deref().and_then(|kind| content.get(kind)) else { return };
    reply.copy_first(&["title", "body"], "text", out);
    reply.copy_first(&["id", "name"], "reply_id", out);
    reply.copy_member("response_json", "response_json", out);
    if kind.as_deref() == Some("call_permission_reply") {
        out.object("permission", |out| {
            reply.copy_member("response", "response", out);
            reply.copy_time("expiration_timestamp", "expires_at", out);
        });
    }
}
