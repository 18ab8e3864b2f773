//! Takes values out of one table of the configuration, and reports what is wrong with them.
//!
//! Asking for a key makes it a known one. Keys that are left when the section is dropped are unknown.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

use super::document::{DEFAULT, EffectiveValue, Node, NodeValue, parse};

/// Units of durations in milliseconds, the longest first.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// What reading finds beside the values.
#[derive(Default)]
pub(super) struct Findings {
    /// One sentence each.
    pub(super) problems: RefCell<Vec<String>>,
    pub(super) secret_files: RefCell<BTreeSet<PathBuf>>,
    /// In the order of reading.
    pub(super) effective: RefCell<Vec<EffectiveValue>>,
}

/// One table. Reading empties it.
pub(super) struct Section<'p> {
    /// `["http"]` or `["sources", "loja"]`. Empty for the root.
    path: Vec<String>,
    /// The place where the table begins.
    origin: String,
    entries: BTreeMap<String, Node>,
    known: Vec<&'static str>,
    findings: &'p Findings,
}

impl<'p> Section<'p> {
    pub(super) fn new(path: Vec<String>, node: Node, findings: &'p Findings) -> Self {
        let origin = node.origin.clone();
        let entries = BTreeMap::new();
        let mut section = Self { path, origin, entries, known: Vec::new(), findings };
        match node.into_table() {
            Some(entries) => section.entries = entries,
            None => section.problem(&format!("has to be a table, [{}]", section.path.join("."))),
        }
        section
    }

    /// The table under `key`.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Self> {
        let node = self.take(key)?;
        Some(self.nested(key, node))
    }

    /// The table under `key`, or an empty one.
    pub(super) fn section(&mut self, key: &'static str) -> Self {
        self.table(key).unwrap_or_else(|| self.nested(key, Node::empty(&self.origin)))
    }

    /// The table `node` under `key`, which [`drain`](Self::drain) returned.
    pub(super) fn nested(&self, key: &str, node: Node) -> Self {
        let path = self.path.iter().cloned().chain([key.to_owned()]).collect();
        Self::new(path, node, self.findings)
    }

    /// The value under `key`. It stays in the section.
    pub(super) fn peek(&self, key: &str) -> Option<&NodeValue> {
        self.entries.get(key).map(|node| &node.value)
    }

    /// All entries, whose names the user chooses.
    pub(super) fn drain(&mut self) -> BTreeMap<String, Node> {
        std::mem::take(&mut self.entries)
    }

    /// The value under `key`, or `None` if it is missing or `read` refuses it.
    pub(super) fn value<T: Serialize>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&NodeValue) -> Result<T, String>,
    ) -> Option<T> {
        self.value_or(key, None::<T>, |value| read(value).map(Some))
    }

    /// The value under `key`, or `default`.
    pub(super) fn value_or<T: Serialize>(
        &mut self,
        key: &'static str,
        default: impl Into<T>,
        read: impl FnOnce(&NodeValue) -> Result<T, String>,
    ) -> T {
        // TOML has no word for `None`, which is not shown.
        self.shown(key, default.into(), read, |value| toml::Value::try_from(value).ok())
    }

    /// The value under `key`, or `default` if it is missing or `read` refuses it. `show` makes the
    /// value that is said to be in effect.
    pub(super) fn shown<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&NodeValue) -> Result<T, String>,
        show: impl FnOnce(&T) -> Option<toml::Value>,
    ) -> T {
        let (value, origin) = match self.take(key) {
            None => (default, DEFAULT.to_owned()),
            Some(node) => match read(&node.value) {
                Ok(value) => (value, node.origin),
                Err(why) => {
                    self.report(&node.origin, key, &why);
                    return default;
                }
            },
        };
        if let Some(shown) = show(&value) {
            self.in_effect(key, shown, origin);
        }
        value
    }

    /// A number within `range`. `why` is the reason for the range.
    pub(super) fn number<T: TryFrom<i64> + PartialOrd + Display + Serialize + Copy>(
        &mut self,
        key: &'static str,
        default: T,
        range: RangeInclusive<T>,
        why: &str,
    ) -> T {
        let read = |value: &NodeValue| {
            let number = number(value)?;
            T::try_from(number).ok().filter(|number| range.contains(number)).ok_or_else(|| {
                let (from, to) = (range.start(), range.end());
                format!("is {number}: {why}; use {from} to {to}, or leave it out for {default}")
            })
        };
        self.value_or(key, default, read)
    }

    /// A duration within `range`, both in milliseconds. `why` is the reason for the range.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
        why: &str,
    ) -> Duration {
        let [default, from, to] =
            [default, *range.start(), *range.end()].map(Duration::from_millis);
        let read = |value: &NodeValue| {
            let duration = duration(value)?;
            if (from..=to).contains(&duration) {
                return Ok(duration);
            }
            let [is, from, to, default] = [duration, from, to, default].map(show_duration);
            Err(format!("is {is}: {why}; use {from} to {to}, or leave it out for {default}"))
        };
        self.shown(key, default, read, |duration| Some(show_duration(*duration).into()))
    }

    /// A key of an earlier version. `why` says what replaced it.
    pub(super) fn removed(&mut self, key: &'static str, why: &str) {
        if let Some(node) = self.entries.remove(key) {
            self.report(&node.origin, key, why);
        }
    }

    /// One of a few words. The first one is the default.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> T {
        let read = |value: &NodeValue| {
            let found = text(value).and_then(|text| {
                let found = choices.iter().find(|(name, _)| *name == text);
                found.copied().ok_or_else(|| format!("is \"{text}\""))
            });
            found.map_err(|why| {
                let names: Vec<_> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
                format!("{why}: use {}", names.join(" or "))
            })
        };
        self.shown(key, choices[0], read, |(name, _)| Some((*name).into())).1
    }

    /// Reports a problem of the whole table.
    pub(super) fn problem(&self, why: &str) {
        self.note(&self.origin, &self.path.join("."), why);
    }

    /// Reports a problem of `key`, which was written at `origin`.
    pub(super) fn report(&self, origin: &str, key: &str, why: &str) {
        self.note(origin, &self.path_of(key), why);
    }

    fn note(&self, origin: &str, path: &str, why: &str) {
        self.findings.problems.borrow_mut().push(format!("{origin}: {path} {why}"));
    }

    pub(super) fn holds_secret(&self, path: &Path) {
        self.findings.secret_files.borrow_mut().insert(path.to_owned());
    }

    /// Notes that the configuration's own file holds a secret.
    pub(super) fn holds_secret_itself(&self) {
        let file = self.origin.rsplit_once(':').map_or(self.origin.as_str(), |(file, _)| file);
        self.holds_secret(Path::new(file));
    }

    /// Notes a value in effect. The caller replaces a secret.
    pub(super) fn in_effect(&self, key: &str, value: toml::Value, origin: String) {
        let section = self.path.clone();
        let value = EffectiveValue { section, key: key.to_owned(), value, origin };
        self.findings.effective.borrow_mut().push(value);
    }

    fn path_of(&self, key: &str) -> String {
        self.path.iter().map(String::as_str).chain([key]).collect::<Vec<_>>().join(".")
    }

    fn take(&mut self, key: &'static str) -> Option<Node> {
        self.known.push(key);
        self.entries.remove(key)
    }

    fn unknown(&self, key: &str) -> String {
        let nearest = self
            .known
            .iter()
            .map(|known| (strsim::damerau_levenshtein(key, known), known))
            .min()
            .filter(|(distance, known)| *distance <= known.len() / 3 + 1);
        match nearest {
            Some((_, known)) => format!("is not a key; did you mean {}?", self.path_of(known)),
            None if self.path.is_empty() => {
                format!("is not a section; there are {}", self.known.join(", "))
            }
            None => {
                format!("is not a key; [{}] has {}", self.path.join("."), self.known.join(", "))
            }
        }
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        for (key, node) in &self.entries {
            self.report(&node.origin, key, &self.unknown(key));
        }
    }
}

pub(super) fn text(value: &NodeValue) -> Result<String, String> {
    match value {
        NodeValue::Variable(text) | NodeValue::Typed(toml::Value::String(text)) => Ok(text.clone()),
        other => Err(format!("has to be text in quotes, and is {}", kind(other))),
    }
}

/// A list of texts. A variable holds it as TOML.
pub(super) fn texts(value: &NodeValue) -> Result<Vec<String>, String> {
    let parsed = match value {
        NodeValue::Variable(text) => parse(text, "").map(|node| node.value),
        value => Some(value.clone()),
    };
    let texts = match parsed {
        Some(NodeValue::Typed(list)) => list.try_into().ok(),
        _ => None,
    };
    texts.ok_or_else(|| "has to be a list of texts, as in [\"first\", \"second\"]".into())
}

pub(super) fn flag(value: &NodeValue) -> Result<bool, String> {
    match value {
        NodeValue::Typed(toml::Value::Boolean(flag)) => Ok(*flag),
        NodeValue::Variable(text) if text == "true" => Ok(true),
        NodeValue::Variable(text) if text == "false" => Ok(false),
        other => Err(format!("has to be true or false, and is {}", kind(other))),
    }
}

/// A path that is not empty.
pub(super) fn path(value: &NodeValue) -> Result<PathBuf, String> {
    match text(value)? {
        empty if empty.is_empty() => Err("is empty: name a file".into()),
        path => Ok(path.into()),
    }
}

fn number(value: &NodeValue) -> Result<i64, String> {
    match value {
        NodeValue::Typed(toml::Value::Integer(number)) => Ok(*number),
        NodeValue::Variable(text) => text
            .replace('_', "")
            .parse()
            .map_err(|_| "has to be a whole number such as 1000 or 1_000".to_string()),
        other => Err(format!("has to be a whole number without quotes, and is {}", kind(other))),
    }
}

fn duration(value: &NodeValue) -> Result<Duration, String> {
    match value {
        NodeValue::Variable(text) | NodeValue::Typed(toml::Value::String(text)) => {
            parse_duration(text).map_err(|why| format!("is \"{text}\": {why}"))
        }
        NodeValue::Typed(toml::Value::Integer(number)) => {
            Err(format!("is {number} without a unit: write \"{number}s\" or \"{number}ms\""))
        }
        other => Err(format!("has to be a duration such as \"10s\", and is {}", kind(other))),
    }
}

fn kind(value: &NodeValue) -> &'static str {
    match value {
        NodeValue::Table(_) => "a table",
        NodeValue::Variable(_) => "other text",
        NodeValue::Typed(value) => value.type_str(),
    }
}

/// Reads `250ms`, `10s`, `5m` or `1h`.
///
/// # Errors
/// A sentence that says how to write a duration.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = UNITS.iter().find(|(name, _)| *name == unit);
    let millis = unit.and_then(|(_, millis)| number.parse::<u64>().ok()?.checked_mul(*millis));
    millis.map(Duration::from_millis).ok_or_else(|| {
        "a duration is one whole number and its unit: \"250ms\", \"10s\", \"5m\", \"1h\"".into()
    })
}

/// Writes a duration the way that [`parse_duration`] reads it, to the millisecond.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis() as u64;
    // Timeouts up to two minutes are given in seconds.
    let unit = |&&(name, unit): &&(&str, u64)| {
        millis.is_multiple_of(unit) && (millis > 120_000 || name == "s" || name == "ms")
    };
    // INVARIANT: every number is a multiple of one millisecond.
    let (name, unit) = UNITS.iter().find(unit).expect("a unit that fits");
    format!("{}{name}", millis / unit)
}
