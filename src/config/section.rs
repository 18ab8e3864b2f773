//! Takes values out of one table of the configuration, and says what is wrong with them.
//!
//! A key that was asked for is a known one; what is left when the section is dropped is unknown.
//! So the code that reads the configuration is also the list of its keys.

use std::{
    cell::RefCell, collections::BTreeMap, fmt::Display, ops::RangeInclusive, time::Duration,
};

use super::{
    document::{Node, Value, parse},
    duration::{parse_duration, show_duration},
};

/// Everything that is wrong with a configuration, a sentence each.
pub(super) type Problems = RefCell<Vec<String>>;

/// One table, emptied while it is read.
pub(super) struct Section<'p> {
    /// `http`, `sources.loja`; empty for the whole.
    path: String,
    /// Where the table begins.
    origin: String,
    entries: BTreeMap<String, Node>,
    known: Vec<&'static str>,
    problems: &'p Problems,
}

impl<'p> Section<'p> {
    pub(super) fn new(path: String, node: Node, problems: &'p Problems) -> Self {
        let origin = node.origin.clone();
        let entries = node.into_table().unwrap_or_else(|| {
            problems.borrow_mut().push(format!("{origin}: {path} has to be a table, [{path}]"));
            BTreeMap::new()
        });
        Self { path, origin, entries, known: Vec::new(), problems }
    }

    /// The table under `key`, if it is there.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Self> {
        let node = self.take(key)?;
        Some(Self::new(self.path_of(key), node, self.problems))
    }

    /// The table under `key`, an empty one when it is not there.
    pub(super) fn section(&mut self, key: &'static str) -> Self {
        self.table(key).unwrap_or_else(|| {
            let node = Node { origin: self.origin.clone(), value: Value::Table(BTreeMap::new()) };
            Self::new(self.path_of(key), node, self.problems)
        })
    }

    /// A table out of [`drain`](Self::drain).
    pub(super) fn nested(&self, path: String, node: Node) -> Self {
        Self::new(path, node, self.problems)
    }

    /// What is under `key`, before it is taken.
    pub(super) fn peek(&self, key: &str) -> Option<&Value> {
        self.entries.get(key).map(|node| &node.value)
    }

    /// Everything in here, by names that the user chooses.
    pub(super) fn drain(&mut self) -> BTreeMap<String, Node> {
        std::mem::take(&mut self.entries)
    }

    /// The value under `key`; `None` when it is not there or `read` refuses it.
    pub(super) fn value<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        let node = self.take(key)?;
        let value = read(&node.value);
        value.map_err(|why| self.report(&node.origin, &self.path_of(key), &why)).ok()
    }

    /// Text that `check` finds nothing wrong with, else what it says (and `default`).
    pub(super) fn text(
        &mut self,
        key: &'static str,
        default: String,
        check: impl FnOnce(&str) -> Result<(), String>,
    ) -> String {
        self.value(key, |value| text(value).and_then(|text| check(&text).map(|()| text)))
            .unwrap_or(default)
    }

    /// A number within `range`; `why` says what lies outside of it.
    pub(super) fn number<T: TryFrom<i64> + PartialOrd + Display>(
        &mut self,
        key: &'static str,
        default: T,
        range: RangeInclusive<T>,
        why: &str,
    ) -> T {
        let read = |value: &Value| {
            let number = number(value)?;
            T::try_from(number).ok().filter(|number| range.contains(number)).ok_or_else(|| {
                let (from, to) = (range.start(), range.end());
                format!("is {number}: {why}; use {from} to {to}, or leave it out for {default}")
            })
        };
        self.value(key, read).unwrap_or(default)
    }

    /// A duration within `range`; `why` says what lies outside of it.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
        why: &str,
    ) -> Duration {
        let read = |value: &Value| {
            let duration = duration(value)?;
            if range.contains(&duration) {
                return Ok(duration);
            }
            let [is, from, to, default] =
                [duration, *range.start(), *range.end(), default].map(show_duration);
            Err(format!("is {is}: {why}; use {from} to {to}, or leave it out for {default}"))
        };
        self.value(key, read).unwrap_or(default)
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        default: T,
        choices: &[(&str, T)],
    ) -> T {
        let read = |value: &Value| {
            let text = text(value)?;
            let found = choices.iter().find(|(name, _)| *name == text);
            found.map(|(_, choice)| *choice).ok_or_else(|| {
                let names: Vec<_> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
                format!("is \"{text}\": use {}", names.join(" or "))
            })
        };
        self.value(key, read).unwrap_or(default)
    }

    /// Says what is wrong with the table as a whole.
    pub(super) fn problem(&self, why: &str) {
        self.report(&self.origin, &self.path, why);
    }

    /// Says what is wrong with `path`, written at `origin`.
    pub(super) fn report(&self, origin: &str, path: &str, why: &str) {
        self.problems.borrow_mut().push(format!("{origin}: {path} {why}"));
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
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
            None if self.path.is_empty() => format!("is not a section; there are {}", self.known()),
            None => format!("is not a key; [{}] has {}", self.path, self.known()),
        }
    }

    fn known(&self) -> String {
        self.known.join(", ")
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        for (key, node) in &self.entries {
            self.report(&node.origin, &self.path_of(key), &self.unknown(key));
        }
    }
}

/// Text as it stands.
pub(super) fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::Variable(text) | Value::Typed(toml::Value::String(text)) => Ok(text.clone()),
        other => Err(format!("has to be text in quotes, and is {}", kind(other))),
    }
}

/// Several texts; a variable holds them as TOML does.
pub(super) fn texts(value: &Value) -> Result<Vec<String>, String> {
    let wanted = || "has to be a list of texts, as in [\"first\", \"second\"]".to_string();
    let array = match value {
        Value::Typed(toml::Value::Array(array)) => array.clone(),
        Value::Variable(text) => match parse(text) {
            Some(toml::Value::Array(array)) => array,
            _ => return Err(wanted()),
        },
        _ => return Err(wanted()),
    };
    let text = |item: toml::Value| item.as_str().map(String::from).ok_or_else(wanted);
    array.into_iter().map(text).collect()
}

/// `true` or `false`.
pub(super) fn flag(value: &Value) -> Result<bool, String> {
    match value {
        Value::Typed(toml::Value::Boolean(flag)) => Ok(*flag),
        Value::Variable(text) if text == "true" => Ok(true),
        Value::Variable(text) if text == "false" => Ok(false),
        other => Err(format!("has to be true or false, and is {}", kind(other))),
    }
}

fn number(value: &Value) -> Result<i64, String> {
    match value {
        Value::Typed(toml::Value::Integer(number)) => Ok(*number),
        Value::Variable(text) => text
            .replace('_', "")
            .parse()
            .map_err(|_| "has to be a whole number such as 1000 or 1_000".to_string()),
        other => Err(format!("has to be a whole number without quotes, and is {}", kind(other))),
    }
}

fn duration(value: &Value) -> Result<Duration, String> {
    match value {
        Value::Variable(text) | Value::Typed(toml::Value::String(text)) => {
            parse_duration(text).map_err(|why| format!("is \"{text}\": {why}"))
        }
        Value::Typed(toml::Value::Integer(number)) => {
            Err(format!("is {number} without a unit: write \"{number}s\" or \"{number}ms\""))
        }
        other => Err(format!("has to be a duration such as \"10s\", and is {}", kind(other))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Table(_) => "a table",
        Value::Variable(_) => "other text",
        Value::Typed(value) => value.type_str(),
    }
}
