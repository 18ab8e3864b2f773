//! The configuration in effect, as TOML that says where each value was written.

use std::collections::HashMap;

use serde::Serialize;
use toml::{Table, Value};

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
        let around = |inner, name: &String| Table::from_iter([(name.clone(), Value::Table(inner))]);
        let header = section[0].section.iter().rev().fold(Table::new(), around);
        text += &format!("{}{header}", if text.is_empty() { "" } else { "\n" });
        for EffectiveValue { key, value, origin, .. } in section {
            let line = Table::from_iter([(key.clone(), value.clone())]).to_string();
            // A name of a file may have a line's end.
            text += &format!("{:<COLUMN$} # {}\n", line.trim_end(), origin.escape_debug());
        }
    }
    text
}
