//! The configuration in effect, as TOML that says where each value was written.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::json;
use toml::Value;

/// The origin of a value that nobody wrote.
pub(super) const DEFAULT: &str = "default";
/// Of the origins, as of the comments in the default file.
const COLUMN: usize = 41;

/// A key, its value in effect, and where that was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EffectiveValue {
    /// The tables around the key: `["sources", "loja"]`.
    pub section: Vec<String>,
    /// Its name in the innermost table.
    pub key: String,
    /// A secret is replaced.
    pub value: Value,
    /// `weni-edge.toml:12`, the name of a variable, or `default`.
    pub origin: String,
}

/// Writes a configuration that can be loaded again as soon as its secrets are put back.
pub fn to_toml(values: &[EffectiveValue]) -> String {
    let mut first = HashMap::new();
    for (at, value) in values.iter().enumerate() {
        first.entry(&value.section).or_insert(at);
    }
    let mut values: Vec<_> = values.iter().collect();
    values.sort_by_key(|value| first[&value.section]);
    let mut text = String::new();
    for section in values.chunk_by(|one, next| one.section == next.section) {
        let path: Vec<_> = section[0].section.iter().map(|name| quoted(name)).collect();
        text += &format!("{}[{}]\n", if text.is_empty() { "" } else { "\n" }, path.join("."));
        for EffectiveValue { key, value, origin, .. } in section {
            let line = format!("{} = {}", quoted(key), written(value));
            // A name of a file may have a line's end.
            let origin = origin.replace(char::is_control, "?");
            text += &format!("{line:<COLUMN$} # {origin}\n");
        }
    }
    text
}

fn quoted(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if !key.is_empty() && key.bytes().all(is_bare) { key.into() } else { written(&key.into()) }
}

/// Texts, numbers, flags and lists are written as in JSON, in one line.
fn written(value: &Value) -> String {
    json!(value).to_string().replace('\u{7f}', "\\u007f")
}
