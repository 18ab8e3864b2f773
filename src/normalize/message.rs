//! Reads one message: of a user, of the history, or an echo of our own.

use super::{Read, json::Value, other};
use crate::event::{Detail, From, Media, Message, Occurred, Text};

/// Types whose content is a file.
const MEDIA: [&str; 6] = ["image", "audio", "video", "document", "sticker", "voice"];

pub(super) fn read(element: Value<'_>) -> Read<'_> {
    let text = |name| element.get(name).and_then(Value::text);
    let filled = |name| text(name).filter(|text| !text.is_empty());
    let mut errors = Vec::new();
    if let Some(member) = element.get("errors") {
        other::read_errors(member, &mut errors);
    }
    let context = element.get("context");
    let of_context = |name| context.and_then(|context| context.get(name)).and_then(Value::text);
    let mut message = Message {
        kind: text("type"),
        from: From {
            id: filled("from"),
            user_id: filled("from_user_id"),
            parent_user_id: filled("from_parent_user_id"),
        },
        to: filled("to"),
        group_id: filled("group_id"),
        context_id: of_context("id"),
        context_from: of_context("from"),
        ..Message::default()
    };
    let referral = element.get("referral").filter(|referral| referral.is_object());
    message.referral = referral.filter(|referral| referral.is_strict()).map(Value::bytes);
    if let Some(kind) = message.kind.clone()
        && let Some(content) = element.get(&kind)
    {
        read_content(&kind, content, &mut message);
    }
    let to_user_id = filled("to_user_id");
    Read {
        id: text("id"),
        other_key: message.group_id.clone().or_else(|| message.to.clone()),
        occurred: Occurred { text: text("timestamp") },
        state: element.get("status").and_then(Value::written),
        wa_ids: [&message.from.id, &message.to].into_iter().flatten().cloned().collect(),
        user_ids: [&message.from.user_id, &to_user_id].into_iter().flatten().cloned().collect(),
        errors,
        detail: Detail::Message(Box::new(message)),
    }
}

/// What stands under the name of the message's type.
fn read_content<'a>(kind: &str, content: Value<'a>, message: &mut Message<'a>) {
    let text = |name| content.get(name).and_then(Value::text);
    match kind {
        "text" | "system" => message.text = text("body"),
        "button" => {
            message.text = text("text");
            message.reply_id = text("payload");
        }
        "reaction" => {
            message.text = text("emoji");
            message.related_message_id = text("message_id");
        }
        "edit" | "revoke" => {
            message.related_message_id = text("original_message_id").or_else(|| text("message_id"));
        }
        "interactive" => read_interactive(content, message),
        kind if MEDIA.contains(&kind) => {
            message.media = Some(Media {
                id: text("id"),
                mime_type: text("mime_type"),
                sha256: text("sha256"),
                filename: text("filename"),
                caption: text("caption"),
            });
        }
        _ => {}
    }
}

fn read_interactive<'a>(content: Value<'a>, message: &mut Message<'a>) {
    let kind = content.get("type").and_then(Value::text);
    if let Some(reply) = kind.as_deref().and_then(|kind| content.get(kind)) {
        let text = |name| -> Option<Text<'a>> { reply.get(name).and_then(Value::text) };
        message.reply_id = text("id").or_else(|| text("name"));
        message.text = text("title").or_else(|| text("body"));
    }
    message.interactive_type = kind;
}
