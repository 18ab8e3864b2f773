//! Writes the typed fields of one element: a status, a message, a call; and of any, its errors.

use super::{json::Value, value::Array};
use crate::event::{ErrorCode, Event, EventKind, Fault, Object, Pricing, Retry, Text};

/// Rank of a known status of a message; inside, `None` never overwrites state. `None` outside: the
/// status is not known.
fn rank(status: &str) -> Option<Option<i64>> {
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

/// Writes a status.
pub(super) fn status<'a>(element: Value<'a>, event: &mut Event<'a>, out: &mut Object<'_>) {
    state(element, event, out);
    out.object("recipient", |out| event.participant = recipient(element, out).map(Text::from));
    let conversation = element.get("conversation");
    out.object("conversation", |out| {
        conversation.copy_members(&["id"], out);
        conversation.get("origin").get("type").copy("origin", out);
        conversation.get("expiration_timestamp").copy_time("expires_at", out);
    });
    let own = element.get("pricing");
    // One sample of Meta's nests it in the conversation.
    let pricing = if own.is_object() { own } else { conversation.get("pricing") };
    if pricing.is_object() {
        let text = |name| pricing.get(name).text().unwrap_or_default().into();
        event.pricing = Some(Pricing { kind: text("type"), category: text("category") });
        out.object("pricing", |out| {
            pricing.get("billable").copy_flag("billable", out);
            pricing.get("pricing_model").copy("model", out);
            pricing.copy_members(&["type", "category"], out);
        });
    }
    element.get("biz_opaque_callback_data").copy("callback_data", out);
    match event.kind {
        EventKind::PaymentStatus => payment(element, out),
        EventKind::CallStatus => call(element, event.kind, out),
        _ => {}
    }
}

fn state<'a>(element: Value<'a>, event: &mut Event<'a>, out: &mut Object<'_>) {
    let (kind, member) = (element.get("type"), element.get("status"));
    if matches!(kind.text(), Some("message" | "payment" | "call")) {
        // The event's kind says it.
        kind.mark_typed();
    }
    let Some(text) = member.text() else { return };
    let is_normal = text.bytes().all(|byte| byte.is_ascii_lowercase());
    let normal: Text<'a> = if is_normal { text.into() } else { text.trim().to_lowercase().into() };
    let is_ranked = !matches!(event.kind, EventKind::PaymentStatus | EventKind::CallStatus);
    if normal == text {
        member.copy("status", out);
    } else {
        out.value("status", &normal);
        if is_ranked {
            member.copy("status_raw", out);
        }
    }
    if is_ranked {
        let rank = rank(&normal);
        out.value("status_known", rank.is_some());
        out.value("status_rank", rank.flatten());
    }
    event.status = Some(normal);
}

/// Returns the participant whom the status is about.
fn recipient<'a>(element: Value<'a>, out: &mut Object<'_>) -> Option<&'a str> {
    if element.copy_first(&["recipient_id"], "id", out).is_none() {
        element.get("message").copy_first(&["recipient_id"], "id", out);
    }
    if element.copy_first(&["recipient_type"], "type", out).is_none() {
        out.value("type", "individual");
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

/// Types whose content is a file.
const MEDIA: [&str; 6] = ["image", "audio", "video", "document", "sticker", "voice"];

/// Writes a message: of a user, of the history, or an echo of our own.
pub(super) fn message<'a>(element: Value<'a>, event: &mut Event<'a>, out: &mut Object<'_>) {
    element.copy_members(&["type"], out);
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
    let kind = element.get("type").text();
    let content = element.get(kind.unwrap_or_default());
    write_content(kind.unwrap_or_default(), content, out);
    let context = match kind {
        Some("edit") if !element.has("context") => content.get("message").get("context"),
        _ => element.get("context"),
    };
    out.object("context", |out| context.copy_members(&["id", "from"], out));
    let referral = element.get("referral");
    if referral.is_object() {
        referral.copy_json("referral", out);
    }
    if event.kind == EventKind::InboundMessage {
        event.state = kind.map(Text::from);
    }
}

/// What stands under the name of the message's type.
fn write_content(kind: &str, content: Value<'_>, out: &mut Object<'_>) {
    match kind {
        "text" => content.get("body").copy("text", out),
        "order" => content.get("text").copy("text", out),
        "button" => {
            content.get("text").copy("text", out);
            content.get("payload").copy("reply_id", out);
        }
        "reaction" => {
            // Empty, as when it is absent: the reaction was removed.
            content.copy_first(&["emoji"], "text", out);
            content.get("message_id").copy("related_message_id", out);
        }
        "edit" | "revoke" => {
            let names = ["original_message_id", "message_id"];
            content.copy_first(&names, "related_message_id", out);
            if kind == "edit" {
                edited(content.get("message"), out);
            }
        }
        "interactive" => interactive(content, out),
        "system" => {
            content.get("body").copy("text", out);
            out.object("system", |out| {
                content.get("type").copy("type", out);
                content.copy_first(&["wa_id", "new_wa_id"], "new_id", out);
                content.copy_first(&["user_id"], "new_user_id", out);
            });
        }
        kind if MEDIA.contains(&kind) => out.object("media", |out| {
            let names = ["id", "mime_type", "sha256", "filename", "caption", "url"];
            content.copy_members(&names, out);
            content.get("voice").copy_flag("voice", out);
        }),
        _ => {}
    }
}

/// The new content of a message that was edited.
fn edited(message: Value<'_>, out: &mut Object<'_>) {
    let kind = message.get("type");
    kind.copy("edited_type", out);
    if let Some(kind) = kind.text().filter(|kind| *kind == "text" || MEDIA.contains(kind)) {
        write_content(kind, message.get(kind), out);
    }
}

fn interactive(content: Value<'_>, out: &mut Object<'_>) {
    content.get("type").copy("interactive_type", out);
    let Some(kind) = content.get("type").text() else { return };
    let reply = content.get(kind);
    reply.copy_first(&["title", "body"], "text", out);
    reply.copy_first(&["id", "name"], "reply_id", out);
    reply.copy_members(&["response_json"], out);
    if kind == "call_permission_reply" {
        out.object("permission", |out| {
            reply.copy_members(&["response"], out);
            reply.get("expiration_timestamp").copy_time("expires_at", out);
        });
    }
}

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
        let (retry, label) = judged(error.get("code").copy_number("code", out));
        error.copy_members(&["title", "message"], out);
        let data = error.get("error_data");
        let details = [data.get("details"), data, error.get("details")];
        if let Some(details) = details.iter().find(|details| details.text().is_some()) {
            details.copy("details", out);
        }
        error.copy_members(&["href"], out);
        out.value("retry", retry.as_str());
        out.value("fault", label.fault.as_str());
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
        element.copy_members(&["event", "direction", "from", "to"], out);
        if kind == EventKind::Call {
            element.copy_members(&["status"], out);
        }
        element.get("start_time").copy_time("started_at", out);
        element.get("end_time").copy_time("ended_at", out);
        element.get("duration").copy_number("duration_seconds", out);
    });
}

fn payment(element: Value<'_>, out: &mut Object<'_>) {
    let payment = element.get("payment");
    let transaction = payment.get("transaction");
    out.object("payment", |out| {
        payment.copy_members(&["reference_id"], out);
        payment.get("amount").copy_json("amount", out);
        payment.copy_members(&["currency"], out);
        transaction.get("id").copy("transaction_id", out);
        transaction.get("status").copy("transaction_status", out);
    });
}

/// What is known of a code.
fn judged(code: Option<i64>) -> (Retry, ErrorCode) {
    let code = code.and_then(|code| u32::try_from(code).ok());
    // Permissions of the API: one label for all.
    let code = code.map(|code| if matches!(code, 200..=299) { 200 } else { code });
    match code.and_then(known) {
        Some((retry, fault)) => (retry, ErrorCode { code, fault }),
        None => (Retry::Unknown, ErrorCode { code: None, fault: Fault::Unknown }),
    }
}

/// Whether the same message may be sent again after an error of this code, and whose fault it is: of
/// the codes in Meta's lists for the Cloud API and for the on-premise API. The judgement is ours.
fn known(code: u32) -> Option<(Retry, Fault)> {
    use Fault::{Account, Meta, Rate, Recipient, Sender, Template};
    use Retry::{AfterFix, Backoff, ChangeRequest, Later, Never};
    Some(match code {
        131057 => (Backoff, Account),
        4 | 80007 | 130429 | 131056 | 131208 => (Backoff, Rate),
        1 | 2 | 1011 | 131000 | 131016 | 131027 | 131036 | 138002 | 138004 | 138005 | 138007
        | 138019 | 138020 | 138021 | 138022 | 138023 => (Backoff, Meta),
        138003 => (Later, Recipient),
        134101 => (Later, Template),
        131214 => (Later, Account),
        131048 | 131064 | 132069 | 138009 | 138012 => (Later, Rate),
        131049 => (Later, Meta),
        480 | 137000 | 138006 => (AfterFix, Recipient),
        131030 | 131053 | 131063 => (AfterFix, Sender),
        132015 | 132068 => (AfterFix, Template),
        0 | 3 | 10 | 190 | 200 | 368 | 131005 | 131020 | 131031 | 131037 | 131042 | 131044
        | 131045 | 131207 | 131215 | 133010 | 134011 | 134102 | 138000 | 138014 | 138015
        | 138018 => (AfterFix, Account),
        131052 => (ChangeRequest, Recipient),
        100 | 470 | 130470 | 131008 | 131009 | 131021 | 131041 | 131047 | 131055 | 131062
        | 131201 | 131202 | 131204 | 131209 | 131210 | 131211 | 131212 | 131213 | 134100
        | 135000 => (ChangeRequest, Sender),
        132000 | 132001 | 132005 | 132007 | 132008 | 132012 | 132016 | 132018 | 134103 => {
            (ChangeRequest, Template)
        }
        2046 | 2047 => (ChangeRequest, Account),
        501 | 130501 | 131026 | 131050 | 131051 | 131060 | 131203 | 138001 => (Never, Recipient),
        138017 => (Never, Sender),
        33 | 130497 | 2593109 => (Never, Account),
        2026 | 130472 | 131035 => (Never, Meta),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_said_to_be_unknown() {
        let of = |code| {
            let (retry, ErrorCode { code, fault }) = judged(code);
            (retry, fault, code)
        };
        assert_eq!(of(Some(131026)), (Retry::Never, Fault::Recipient, Some(131026)));
        assert_eq!(of(Some(250)), (Retry::AfterFix, Fault::Account, Some(200)));
        for code in [None, Some(-1), Some(99), Some(i64::MAX)] {
            assert_eq!(of(code), (Retry::Unknown, Fault::Unknown, None), "{code:?}");
        }
    }
}
