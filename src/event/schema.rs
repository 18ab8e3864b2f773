//! The contract for programs: a JSON Schema for each topic, and an AsyncAPI document of all.

use schemars::{JsonSchema, Schema, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::{Map, Value as Json, json};

use super::{
    EventKind, Topic,
    form::{DeadLetterHeaders, Details, EventHeaders, Form, Message, Status},
};

/// What names the contract of a topic: the header `ce_dataschema`, and the `$id` of the schema.
pub fn urn(topic: Topic) -> String {
    ["urn:weni-edge:", topic.as_str()].concat()
}

/// The JSON Schema (2020-12) of a topic's values. The values of dead letters are any bytes: theirs is
/// the schema of the headers.
pub fn schema(topic: Topic) -> Json {
    let (mut schema, required): (_, &[&str]) = match topic {
        Topic::MessageStatus => (
            schema_of::<Form<Status>>(),
            &["occurred_at", "message_id", "status", "status_known", "status_rank", "recipient"],
        ),
        Topic::InboundMessage => (schema_of::<Form<Message>>(), &["occurred_at", "message_id"]),
        Topic::ChannelEvent => (schema_of::<Form<Details>>(), &["occurred_at"]),
        Topic::DeadLetter => (schema_of::<DeadLetterHeaders>(), &[]),
    };
    schema["$id"] = urn(topic).into();
    schema["title"] = title(topic).into();
    schema["description"] =
        "Ignore members and values that you do not know: later versions add some.".into();
    if topic != Topic::DeadLetter {
        let kinds = EventKind::ALL.into_iter().filter(|kind| kind.topic() == topic);
        let kinds: Vec<_> = kinds.map(EventKind::as_str).collect();
        schema["properties"]["event_kind"]["examples"] = json!(kinds);
    }
    if let Some(all) = schema["required"].as_array_mut() {
        all.extend(required.iter().map(|&name| name.into()));
    }
    schema
}

/// The AsyncAPI 3.0 document of these topics. Its references lead to the schemas in `schemas/` beside
/// it. `name`: what a topic is called. A topic of events that is routed to the dead letters has none.
pub fn asyncapi<'n>(name: impl Fn(Topic) -> &'n str, key_by_conversation: bool) -> Json {
    let is_written =
        |topic: &Topic| *topic == Topic::DeadLetter || name(*topic) != name(Topic::DeadLetter);
    let each = |value: &dyn Fn(Topic) -> Json| -> Map<String, Json> {
        let written = Topic::ALL.into_iter().filter(is_written);
        written.map(|topic| (topic.as_str().to_owned(), value(topic))).collect()
    };
    let key = |topic| match topic {
        Topic::MessageStatus => "The message id.",
        Topic::InboundMessage if key_by_conversation => {
            "The group id, else the user key, else the message id."
        }
        Topic::InboundMessage => "The message id.",
        Topic::ChannelEvent => {
            "The element's id, else its group id, else the user key, else the receipt."
        }
        Topic::DeadLetter => "The receipt.",
    };
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": env!("CARGO_PKG_NAME"),
            "version": env!("CARGO_PKG_VERSION"),
            "description": "WhatsApp callbacks of Weni as typed events. Read with \
                `isolation.level=read_committed`.",
            "license": { "name": env!("CARGO_PKG_LICENSE") },
        },
        "channels": each(&|topic| json!({
            "address": name(topic),
            "title": title(topic),
            "messages": { "record": { "$ref": format!("#/components/messages/{}", topic.as_str()) } },
        })),
        "operations": each(&|topic| json!({
            "action": "send",
            "channel": { "$ref": format!("#/channels/{}", topic.as_str()) },
        })),
        "components": { "messages": each(&|topic| {
            let schema = json!({ "$ref": format!("schemas/{}.json", topic.as_str()) });
            let mut message = json!({
                "title": title(topic),
                "bindings": { "kafka": { "key": { "type": "string", "description": key(topic) } } },
            });
            if topic == Topic::DeadLetter {
                message["contentType"] = "application/octet-stream".into();
                message["headers"] = schema;
            } else {
                message["contentType"] = "application/json".into();
                message["headers"] = schema_of::<EventHeaders>();
                message["payload"] = schema;
            }
            message
        }) },
    })
}

fn title(topic: Topic) -> &'static str {
    match topic {
        Topic::MessageStatus => "Status of a message",
        Topic::InboundMessage => "Message of a user",
        Topic::ChannelEvent => "Any other event",
        Topic::DeadLetter => "What could not be read or published",
    }
}

fn schema_of<T: JsonSchema>() -> Json {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let settings = settings.with_transform(RecursiveTransform(forbid_null));
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// A member that is absent is left out: null is only for the members that may be null.
fn forbid_null(schema: &mut Schema) {
    let properties = schema.get_mut("properties").and_then(Json::as_object_mut);
    for (name, member) in properties.into_iter().flatten() {
        if name != "occurred_at"
            && name != "status_rank"
            && let Some([one, _null]) = member["type"].as_array().map(Vec::as_slice)
        {
            member["type"] = one.clone();
        }
    }
}
