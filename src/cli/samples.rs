//! Built-in callbacks: what Weni would send, made up.
//!
//! A [`Template`] is a sample with its holes found once, so that a body with a fresh message id
//! costs a copy and no JSON.
//!
//! **Invariant:** no two fresh bodies hold the same element, so none is taken for a repetition.

use std::sync::atomic::{AtomicU64, Ordering};

use base64::{Engine, engine::general_purpose::STANDARD};
use uuid::Uuid;

/// One kind of callback.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) name: &'static str,
    /// What it is, for help texts.
    pub(super) about: &'static str,
    /// What a Cloud API envelope says has changed; without it the value stands alone, as
    /// on-premise systems send it.
    field: Option<&'static str>,
    /// JSON with holes: [`ID`], [`TIME`], [`NUMBER`], and [`MORE`] where padding may go.
    value: &'static str,
}

/// The life of a few messages: what is in one row happens to one message, in this order.
pub(super) const LIFE: [&[&str]; 5] =
    [&["sent", "delivered", "read"], &["text"], &["sent", "failed"], &["reply"], &["template"]];

const ID: &str = "{id}";
const TIME: &str = "{time}";
const NUMBER: &str = "{number}";
const MORE: &str = "{more}";

const CHANNEL: &str = r#""messaging_product":"whatsapp","metadata":{"display_phone_number":"558233330000","phone_number_id":"118406294417035"}"#;
const CONTACT: &str = r#""contacts":[{"profile":{"name":"Caetano Lira"},"wa_id":"5582999990000"}]"#;
const PRICE: &str = r#""conversation":{"id":"5f0c1e6a7b2d49838e4410c2d97ab365","origin":{"type":"utility"}},"pricing":{"billable":true,"pricing_model":"PMP","type":"regular","category":"utility"}"#;

/// All samples.
pub(super) const SAMPLES: [Sample; 9] = [
    Sample {
        name: "sent",
        about: "a message that was sent",
        field: Some("messages"),
        value: r#"{{channel},{contact},"statuses":[{"id":"{id}","status":"sent","timestamp":"{time}","recipient_id":"5582999990000",{price}{more}}]}"#,
    },
    Sample {
        name: "delivered",
        about: "a message that reached its phone",
        field: Some("messages"),
        value: r#"{{channel},{contact},"statuses":[{"id":"{id}","status":"delivered","timestamp":"{time}","recipient_id":"5582999990000",{price}{more}}]}"#,
    },
    Sample {
        name: "read",
        about: "a message that was read",
        field: Some("messages"),
        value: r#"{{channel},{contact},"statuses":[{"id":"{id}","status":"read","timestamp":"{time}","recipient_id":"5582999990000"{more}}]}"#,
    },
    Sample {
        name: "failed",
        about: "a message that could not be delivered",
        field: Some("messages"),
        value: r#"{{channel},"statuses":[{"id":"{id}","status":"failed","timestamp":"{time}","recipient_id":"5582999990001","errors":[{"code":131026,"title":"Message undeliverable","message":"Message undeliverable","error_data":{"details":"The recipient cannot be reached."}}]{more}}]}"#,
    },
    Sample {
        name: "text",
        about: "a text from a user",
        field: Some("messages"),
        value: r#"{{channel},{contact},"messages":[{"from":"5582999990000","id":"{id}","timestamp":"{time}","type":"text","text":{"body":"Oi! Meu pedido já saiu? 🚚"}{more}}]}"#,
    },
    Sample {
        name: "reply",
        about: "a user's tap on a button",
        field: Some("messages"),
        value: r#"{{channel},{contact},"messages":[{"from":"5582999990000","id":"{id}","timestamp":"{time}","type":"interactive","interactive":{"type":"button_reply","button_reply":{"id":"confirm","title":"Confirmar"}}{more}}]}"#,
    },
    Sample {
        name: "image",
        about: "a picture from a user",
        field: Some("messages"),
        value: r#"{{channel},{contact},"messages":[{"from":"5582999990000","id":"{id}","timestamp":"{time}","type":"image","image":{"mime_type":"image/jpeg","id":"{number}","sha256":"mF0Vb1bA2y8q3sJwS9n5mJtRz6m0cYv3u1pE7oQxK4g="}{more}}]}"#,
    },
    Sample {
        name: "template",
        about: "a change of the account: a template was refused",
        field: Some("message_template_status_update"),
        value: r#"{"event":"REJECTED","message_template_id":{number},"message_template_name":"aviso_de_entrega","message_template_language":"pt_BR","reason":"INCORRECT_CATEGORY"{more}}"#,
    },
    Sample {
        name: "on-premise",
        about: "a status in the older shape, without an envelope",
        field: None,
        value: r#"{"statuses":[{"id":"{id}","status":"delivered","timestamp":"{time}","recipient_id":"5582999990000","type":"message","conversation":{"id":"5f0c1e6a7b2d49838e4410c2d97ab365"},"pricing":{"billable":false,"pricing_model":"CBP"}{more}}]}"#,
    },
];

impl Sample {
    /// The sample of that name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        SAMPLES.iter().find(|sample| sample.name == name)
    }

    fn text(&self) -> String {
        let value = self
            .value
            .replace("{channel}", CHANNEL)
            .replace("{contact}", CONTACT)
            .replace("{price}", PRICE);
        match self.field {
            None => value,
            Some(field) => format!(
                r#"{{"object":"whatsapp_business_account","entry":[{{"id":"215580931774206","changes":[{{"field":"{field}","value":{value}}}]}}]}}"#
            ),
        }
    }
}

/// A name for one message, such as Meta gives: 62 characters of ASCII.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MessageId {
    text: [u8; MessageId::LEN],
    serial: u64,
}

impl MessageId {
    const LEN: usize = 62;

    fn new(serial: u64) -> Self {
        // As Meta's look from outside: a phone number and a name of 18 hexadecimal digits.
        let mut inner = *b"\x1c\x18\x0d5582999990000\x15\x02\x00\x11\x18\x123A................\x00";
        let digits = inner.len() - 17;
        for (at, digit) in inner[digits..digits + 16].iter_mut().enumerate() {
            *digit = b"0123456789ABCDEF"[(serial >> (60 - 4 * at)) as usize & 0xf];
        }
        let mut text = *b"wamid.00000000000000000000000000000000000000000000000000000000";
        let encoded = STANDARD.encode_slice(inner, &mut text[6..]);
        debug_assert_eq!(encoded, Ok(Self::LEN - 6));
        Self { text, serial }
    }

    /// The id as it stands in the body.
    pub(super) fn as_str(&self) -> &str {
        // INVARIANT: made of `wamid.` and base64.
        std::str::from_utf8(&self.text).expect("ASCII")
    }
}

/// Message ids that were never given before, by this process or another.
#[derive(Debug)]
pub(super) struct MessageIds(AtomicU64);

impl Default for MessageIds {
    fn default() -> Self {
        Self(AtomicU64::new(Uuid::new_v4().as_u64_pair().0))
    }
}

impl MessageIds {
    /// The next one.
    pub(super) fn next(&self) -> MessageId {
        MessageId::new(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// A sample as bytes, with the places of its holes.
#[derive(Debug)]
pub(super) struct Template {
    text: Vec<u8>,
    holes: Vec<(usize, Hole)>,
}

#[derive(Debug, Clone, Copy)]
enum Hole {
    Id,
    Time,
    Number,
}

impl Hole {
    const ALL: [(Self, &str, usize); 3] =
        [(Self::Id, ID, MessageId::LEN), (Self::Time, TIME, 10), (Self::Number, NUMBER, 18)];
}

impl Template {
    /// Finds the sample's holes; bodies that would be shorter than `size` bytes are filled up to
    /// it (or to a few bytes more) within their element, so that what follows has the size too.
    pub(super) fn new(sample: &Sample, size: usize) -> Self {
        let plain = Self::punched(&sample.text().replace(MORE, ""));
        if plain.text.len() >= size {
            return plain;
        }
        let more = |filler: &str| format!(r#","biz_opaque_callback_data":"{filler}""#);
        let filler = filler(size.saturating_sub(plain.text.len() + more("").len()));
        Self::punched(&sample.text().replace(MORE, &more(&filler)))
    }

    fn punched(mut rest: &str) -> Self {
        let mut template = Self { text: Vec::new(), holes: Vec::new() };
        let next = |rest: &str| {
            let found = |(hole, mark, len): (Hole, &str, usize)| {
                rest.find(mark).map(|at| (at, hole, mark.len(), len))
            };
            Hole::ALL.into_iter().filter_map(found).min_by_key(|(at, ..)| *at)
        };
        while let Some((at, hole, mark, len)) = next(rest) {
            template.text.extend_from_slice(&rest.as_bytes()[..at]);
            template.holes.push((template.text.len(), hole));
            template.text.resize(template.text.len() + len, b'0');
            rest = &rest[at + mark..];
        }
        template.text.extend_from_slice(rest.as_bytes());
        template
    }

    /// A body about the message `id` at `seconds` since 1970 (of ten digits).
    pub(super) fn fill(&self, id: &MessageId, seconds: u64) -> Vec<u8> {
        let mut body = self.text.clone();
        for (at, hole) in &self.holes {
            let hole_of = |len: usize| *at..at + len;
            match hole {
                Hole::Id => body[hole_of(MessageId::LEN)].copy_from_slice(&id.text),
                Hole::Time => digits(&mut body[hole_of(10)], seconds),
                Hole::Number => {
                    digits(&mut body[hole_of(18)], id.serial);
                    // A number in JSON does not begin with zeros.
                    body[*at] = b'1';
                }
            }
        }
        body
    }
}

fn digits(out: &mut [u8], mut number: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Letters that do not shrink to nothing when they are compressed.
fn filler(len: usize) -> String {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut letter = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
                [(state >> 58) as usize],
        )
    };
    (0..len).map(|_| letter()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn every_sample_is_json_with_the_id_and_time_it_was_given() {
        let ids = MessageIds::default();
        for sample in &SAMPLES {
            let id = ids.next();
            let body = Template::new(sample, 0).fill(&id, 1_763_842_387);
            let text = String::from_utf8(body).unwrap();
            serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert!(!text.contains("{id}") && !text.contains("{more}"), "{text}");
            assert_eq!(text.contains(id.as_str()), sample.value.contains(ID), "{text}");
            assert_eq!(text.contains("\"1763842387\""), sample.value.contains(TIME), "{text}");
        }
        for name in LIFE.iter().copied().flatten() {
            assert!(Sample::named(name).is_some(), "{name}");
        }
    }

    #[test]
    fn fresh_bodies_differ_and_the_same_id_gives_the_same_body() {
        let ids = MessageIds::default();
        for sample in &SAMPLES {
            let template = Template::new(sample, 0);
            let bodies: HashSet<_> = (0..100).map(|_| template.fill(&ids.next(), 1)).collect();
            assert_eq!(bodies.len(), 100, "{}", sample.name);
            let id = ids.next();
            assert_eq!(template.fill(&id, 1), template.fill(&id, 1));
        }
    }

    #[test]
    fn a_body_is_padded_to_the_size_that_was_asked_for() {
        let id = MessageId::new(7);
        for sample in &SAMPLES {
            let plain = Template::new(sample, 0).fill(&id, 1).len();
            for size in [0, plain, plain + 1, 1000, 1024, 65_536] {
                let body = Template::new(sample, size).fill(&id, 1);
                serde_json::from_slice::<Value>(&body).unwrap();
                let slack = if size <= plain { plain - size } else { 30 };
                assert!((size..=size + slack).contains(&body.len()), "{} {size}", sample.name);
                assert!(body.len() == size || size < plain + 31, "{} {size}", sample.name);
            }
        }
    }

    #[test]
    fn a_message_id_looks_like_one_of_metas() {
        let id = MessageId::new(0x0123_4567_89ab_cdef);
        let inner = STANDARD.decode(id.as_str().strip_prefix("wamid.").unwrap()).unwrap();
        assert_eq!(inner[..3], [0x1c, 0x18, 13]);
        assert_eq!(inner[3..16], *b"5582999990000");
        assert_eq!(inner[22..40], *b"3A0123456789ABCDEF");
        assert_eq!(inner.len(), 41);
    }
}
