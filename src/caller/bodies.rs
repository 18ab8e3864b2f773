//! The bodies of calls: built-in samples of what Weni would send, filled anew for each call, or files as
//! they are.
//!
//! **Invariant:** two fresh bodies never hold the same element, so each record identifies its call.

use std::{
    borrow::Cow,
    fs,
    io::{self, Read},
    iter,
    path::{Path, PathBuf},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use uuid::Uuid;

/// One kind of callback.
#[derive(Debug)]
pub struct Sample {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is, for help texts.
    pub about: &'static str,
    /// The changed field that a Cloud API envelope names. `None` is a value without an envelope, as
    /// on-premise systems send it.
    field: Option<&'static str>,
    /// JSON with the holes `<id>`, `<time>` and `<number>`, the constants `<channel>`, `<contact>`
    /// and `<price>`, and `<more>` where padding may go.
    value: &'static str,
}

/// The lives of a few messages: each row is what happens to one message, in this order.
pub const LIFE: [&[&str]; 4] =
    [&["sent", "delivered", "read"], &["text"], &["sent", "failed"], &["reply"]];

const CHANNEL: &str = r#""messaging_product":"whatsapp","metadata":{"display_phone_number":"558233330000","phone_number_id":"118406294417035"}"#;
const CONTACT: &str = r#""contacts":[{"profile":{"name":"Caetano Lira"},"wa_id":"5582999990000"}]"#;
const PRICE: &str = r#""conversation":{"id":"5f0c1e6a7b2d49838e4410c2d97ab365","origin":{"type":"utility"}},"pricing":{"billable":true,"pricing_model":"PMP","type":"regular","category":"utility"}"#;

/// All samples.
pub const SAMPLES: [Sample; 9] = [
    Sample {
        name: "sent",
        about: "a message that was sent",
        field: Some("messages"),
        value: r#"{<channel>,<contact>,"statuses":[{"id":"<id>","status":"sent","timestamp":"<time>","recipient_id":"5582999990000",<price><more>}]}"#,
    },
    Sample {
        name: "delivered",
        about: "a message that reached its phone",
        field: Some("messages"),
        value: r#"{<channel>,<contact>,"statuses":[{"id":"<id>","status":"delivered","timestamp":"<time>","recipient_id":"5582999990000",<price><more>}]}"#,
    },
    Sample {
        name: "read",
        about: "a message that was read",
        field: Some("messages"),
        value: r#"{<channel>,<contact>,"statuses":[{"id":"<id>","status":"read","timestamp":"<time>","recipient_id":"5582999990000"<more>}]}"#,
    },
    Sample {
        name: "failed",
        about: "a message that could not be delivered",
        field: Some("messages"),
        value: r#"{<channel>,"statuses":[{"id":"<id>","status":"failed","timestamp":"<time>","recipient_id":"5582999990001","errors":[{"code":131026,"title":"Message undeliverable","message":"Message undeliverable","error_data":{"details":"The recipient cannot be reached."}}]<more>}]}"#,
    },
    Sample {
        name: "text",
        about: "a text from a user",
        field: Some("messages"),
        value: r#"{<channel>,<contact>,"messages":[{"from":"5582999990000","id":"<id>","timestamp":"<time>","type":"text","text":{"body":"Oi! Meu pedido já saiu? 🚚"}<more>}]}"#,
    },
    Sample {
        name: "reply",
        about: "a user's tap on a button",
        field: Some("messages"),
        value: r#"{<channel>,<contact>,"messages":[{"from":"5582999990000","id":"<id>","timestamp":"<time>","type":"interactive","interactive":{"type":"button_reply","button_reply":{"id":"confirm","title":"Confirmar"}}<more>}]}"#,
    },
    Sample {
        name: "image",
        about: "a picture from a user",
        field: Some("messages"),
        value: r#"{<channel>,<contact>,"messages":[{"from":"5582999990000","id":"<id>","timestamp":"<time>","type":"image","image":{"mime_type":"image/jpeg","id":"<number>","sha256":"mF0Vb1bA2y8q3sJwS9n5mJtRz6m0cYv3u1pE7oQxK4g="}<more>}]}"#,
    },
    Sample {
        name: "template",
        about: "a template was refused: from Meta directly, for Weni does not forward it",
        field: Some("message_template_status_update"),
        value: r#"{"event":"REJECTED","message_template_id":<number>,"message_template_name":"aviso_de_entrega","message_template_language":"pt_BR","reason":"INCORRECT_CATEGORY"<more>}"#,
    },
    Sample {
        name: "on-premise",
        about: "a status in the older shape, without an envelope",
        field: None,
        value: r#"{"statuses":[{"id":"<id>","status":"delivered","timestamp":"<time>","recipient_id":"5582999990000","type":"message","conversation":{"id":"5f0c1e6a7b2d49838e4410c2d97ab365"},"pricing":{"billable":false,"pricing_model":"CBP"}<more>}]}"#,
    },
];

/// A call that tests a running edge. It becomes a channel event, and is no status of any message.
pub static EDGE_TEST: Sample = Sample {
    name: "edge-test",
    about: "a test of the edge",
    field: Some("edge_test"),
    value: r#"{"test":"<id>","timestamp":"<time>"}"#,
};

impl Sample {
    /// The sample of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        SAMPLES.iter().find(|sample| sample.name == name)
    }

    fn text(&self) -> String {
        let Self { field, value, .. } = self;
        match field {
            None => (*value).to_owned(),
            Some(field) => format!(
                r#"{{"object":"whatsapp_business_account","entry":[{{"id":"215580931774206","changes":[{{"field":"{field}","value":{value}}}]}}]}}"#
            ),
        }
    }
}

/// The name of one message.
#[derive(Debug)]
pub struct MessageId {
    /// As it stands in the body.
    pub text: String,
    serial: u64,
}

impl MessageId {
    /// An id that neither this process nor another has used.
    pub fn fresh() -> Self {
        static NEXT: LazyLock<AtomicU64> =
            LazyLock::new(|| AtomicU64::new(Uuid::new_v4().as_u64_pair().0));
        Self::new(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    fn new(serial: u64) -> Self {
        // Meta's ids look like this: a phone number, and a name of 18 hexadecimal digits.
        let inner = format!("\x1c\x18\x0d5582999990000\x15\x02\x00\x11\x18\x123A{serial:016X}\x00");
        Self { text: format!("wamid.{}", STANDARD.encode(inner)), serial }
    }
}

/// A sample that is split at its holes once, so that a fresh body needs no search and no JSON.
#[derive(Debug)]
pub struct Template(Vec<Piece>);

#[derive(Debug)]
enum Piece {
    Text(String),
    Id,
    Time,
    Number,
}

impl Template {
    /// Pads bodies of fewer than `size` bytes to that size, or up to 30 bytes more. The padding is
    /// part of the sample's element, so the event has the size too.
    pub fn new(sample: &Sample, size: usize) -> Self {
        let plain = Self::split(sample, "");
        let len = plain.fill_at(&MessageId::new(0), 1_000_000_000).len();
        if len >= size {
            return plain;
        }
        let more = |padding: &str| format!(r#","biz_opaque_callback_data":"{padding}""#);
        Self::split(sample, &more(&padding(size.saturating_sub(len + more("").len()))))
    }

    fn split(sample: &Sample, more: &str) -> Self {
        let piece = |text: &str| match text {
            "id" => Piece::Id,
            "time" => Piece::Time,
            "number" => Piece::Number,
            "channel" => Piece::Text(CHANNEL.into()),
            "contact" => Piece::Text(CONTACT.into()),
            "price" => Piece::Text(PRICE.into()),
            "more" => Piece::Text(more.into()),
            text => Piece::Text(text.into()),
        };
        Self(sample.text().split(['<', '>']).map(piece).collect())
    }

    /// A body about the message `id`, at this second.
    pub fn fill(&self, id: &MessageId) -> String {
        // A clock before 1970 gives odd samples, nothing worse.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.fill_at(id, now.as_secs())
    }

    fn fill_at(&self, id: &MessageId, seconds: u64) -> String {
        const NUMBERS: u64 = 100_000_000_000_000_000;
        let mut digits = itoa::Buffer::new();
        let mut body = String::with_capacity(1024);
        for piece in &self.0 {
            body += match piece {
                Piece::Text(text) => text,
                Piece::Id => &id.text,
                Piece::Time => digits.format(seconds),
                // Always 18 digits.
                Piece::Number => digits.format(NUMBERS + id.serial % NUMBERS),
            };
        }
        body
    }
}

/// Letters and digits that compression hardly shortens.
fn padding(len: usize) -> String {
    let random = iter::repeat_with(|| STANDARD.encode(Uuid::new_v4().as_bytes()));
    let mut text: String = random.take(len / 24 + 1).collect();
    text.truncate(len);
    text
}

/// All bodies. Calls take them in turn.
pub struct Bodies(Vec<Body>);

enum Body {
    Fixed { name: String, body: Bytes },
    Fresh(Template),
}

impl Bodies {
    /// These samples, padded to `size` bytes. `identical` ones keep their first message id.
    pub fn samples(samples: Vec<&'static Sample>, size: usize, identical: bool) -> Self {
        let body = |sample| {
            let template = Template::new(sample, size);
            if !identical {
                return Body::Fresh(template);
            }
            let id = MessageId::fresh();
            Body::Fixed { body: template.fill(&id).into(), name: id.text }
        };
        Self(samples.into_iter().map(body).collect())
    }

    /// Files, the files of directories in the order of their names, and `-` for standard input.
    ///
    /// # Errors
    /// When a file cannot be read, or there is none.
    pub fn files(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let mut bodies = Vec::new();
        for path in paths {
            if path.as_os_str() == "-" {
                let mut body = Vec::new();
                io::stdin().read_to_end(&mut body).context("cannot read standard input")?;
                bodies.push(Body::Fixed { name: "-".into(), body: body.into() });
                continue;
            }
            let files = if path.is_dir() { files_of(path)? } else { vec![path.clone()] };
            for file in files {
                let name = file.display().to_string();
                let body = fs::read(&file).with_context(|| format!("cannot read {name}"))?;
                bodies.push(Body::Fixed { name, body: body.into() });
            }
        }
        if bodies.is_empty() {
            bail!("there is no file to send");
        }
        Ok(Self(bodies))
    }

    /// How many different bodies there are.
    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// The body of the call at `index`, and its name: a message id, or a file's path.
    pub fn at(&self, index: u64) -> (Bytes, Cow<'_, str>) {
        match &self.0[(index % self.count()) as usize] {
            Body::Fixed { name, body } => (body.clone(), name.into()),
            Body::Fresh(template) => {
                let id = MessageId::fresh();
                (template.fill(&id).into(), id.text.into())
            }
        }
    }
}

fn files_of(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let paths = |entries: fs::ReadDir| entries.map(|entry| Ok(entry?.path())).collect();
    let found: io::Result<Vec<_>> = fs::read_dir(directory).and_then(paths);
    let mut files = found.with_context(|| format!("cannot read {}", directory.display()))?;
    files.retain(|path| path.is_file());
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn every_sample_is_json_with_the_id_and_time_it_was_given() {
        for sample in &SAMPLES {
            let id = MessageId::fresh();
            let text = Template::new(sample, 0).fill_at(&id, 1_763_842_387);
            serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert!(!text.contains(['<', '>']), "{text}");
            assert_eq!(text.contains(&id.text), sample.value.contains("<id>"), "{text}");
            assert_eq!(text.contains("\"1763842387\""), sample.value.contains("<time>"), "{text}");
        }
        for name in LIFE.iter().copied().flatten() {
            assert!(Sample::named(name).is_some(), "{name}");
        }
    }

    #[test]
    fn fresh_bodies_differ_and_the_same_id_gives_the_same_body() {
        for sample in &SAMPLES {
            let template = Template::new(sample, 0);
            let bodies: HashSet<_> =
                (0..100).map(|_| template.fill_at(&MessageId::fresh(), 1_700_000_000)).collect();
            assert_eq!(bodies.len(), 100, "{}", sample.name);
            let id = MessageId::fresh();
            assert_eq!(template.fill_at(&id, 1_700_000_000), template.fill_at(&id, 1_700_000_000));
        }
    }

    #[test]
    fn a_body_is_padded_to_the_size_that_was_asked_for() {
        let id = MessageId::new(7);
        for sample in &SAMPLES {
            let plain = Template::new(sample, 0).fill_at(&id, 1_700_000_000).len();
            for size in [0, plain, plain + 1, 1000, 1024, 65_536] {
                let body = Template::new(sample, size).fill_at(&id, 1_700_000_000);
                serde_json::from_str::<Value>(&body).unwrap();
                let slack = if size <= plain { plain - size } else { 30 };
                assert!((size..=size + slack).contains(&body.len()), "{} {size}", sample.name);
                assert!(body.len() == size || size < plain + 31, "{} {size}", sample.name);
            }
        }
    }

    #[test]
    fn a_message_id_looks_like_one_of_metas() {
        let id = MessageId::new(0x0123_4567_89ab_cdef);
        let inner = STANDARD.decode(id.text.strip_prefix("wamid.").unwrap()).unwrap();
        assert_eq!(inner[..3], [0x1c, 0x18, 13]);
        assert_eq!(inner[3..16], *b"5582999990000");
        assert_eq!(inner[22..40], *b"3A0123456789ABCDEF");
        assert_eq!(inner.len(), 41);
    }
}
