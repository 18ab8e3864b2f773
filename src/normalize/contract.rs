//! What holds for every body there is: fuzzing and the tests run it.

use super::normalize;
use crate::{callback::Callback, event::Item};

/// What fuzzing and the tests demand of any body: its items can be written, each event is JSON with a
/// key and its bytes, and the same body gives the same items again.
///
/// # Panics
/// When the contract is broken.
pub fn hold_to_the_contract(body: &[u8]) {
    let callback = Callback {
        receipt: uuid::Uuid::from_u128(1),
        received_at_ms: 1_763_842_387_482,
        source: "fuzz",
        raw: true,
        method: "POST",
        content_type: None,
        content_encoding: None,
        traceparent: None,
        body,
    };
    let written = || {
        let mut all = Vec::new();
        normalize(&callback, &mut |item| {
            let mut out = Vec::new();
            match item {
                Item::Event(event) => {
                    assert!(!event.key().is_empty());
                    event.headers(&mut |_, value| out.extend_from_slice(value));
                    let start = out.len();
                    event.write_json(&mut out);
                    let json: serde_json::Value = match serde_json::from_slice(&out[start..]) {
                        Ok(json) => json,
                        Err(error) => panic!("an event is no JSON: {error}"),
                    };
                    assert!(json.get("raw").is_some() != json.get("raw_base64").is_some());
                }
                Item::DeadLetter(letter) => {
                    letter.headers(&mut |_, value| out.extend_from_slice(value));
                    out.extend_from_slice(letter.value());
                }
            }
            all.push(out);
        });
        all
    };
    assert_eq!(written(), written());
}
