//! Takes values out of one table of the configuration, and reports what is wrong with them.
//!
//! Asking for a key makes it a known one. Keys that are left when the section is dropped are
//! unknown.
//! So the code that reads the configuration is also the table of its keys.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    document::{Node, Value, parse},
    duration::{parse_duration, show_duration},
};

/// What reading finds beside the values.
#[derive(Default)]
pub(super) struct Findings {
    /// One sentence each.
    pub(super) problems: RefCell<Vec<String>>,
    /// Files that hold a secret.
    pub(super) secret_files: RefCell<BTreeSet<PathBuf>>,
}

/// One table. Reading empties it.
pub(super) struct Section<'p> {
    /// `http` or `sources.loja`. Empty for the root.
    path: String,
    /// The place where the table begins.
    origin: String,
    entries: BTreeMap<String, Node>,
    known: Vec<&'static str>,
    findings: &'p Findings,
}

impl<'p> Section<'p> {
    pub(super) fn new(path: String, node: Node, findings: &'p Findings) -> Self {
        let origin = node.origin.clone();
        let entries = node.into_table().unwrap_or_else(|| {
            findings
                .problems
                .borrow_mut()
                .push(format!("{origin}: {path} has to be a table, [{path}]"));
            BTreeMap::new()
        });
        Self { path, origin, entries, known: Vec::new(), findings }
    }

    /// The table under `key`.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Self> {
        let node = self.take(key)?;
        Some(Self::new(self.path_of(key), node, self.findings))
    }

    /// The table under `key`, or an empty one.
    pub(super) fn section(&mut self, key: &'static str) -> Self {
        let node = self.take(key).unwrap_or_else(|| Node::empty(&self.origin));
        Self::new(self.path_of(key), node, self.findings)
    }

    /// The table `node`, which [`drain`](Self::drain) returned.
    pub(super) fn nested(&self, path: String, node: Node) -> Self {
        Self::new(path, node, self.findings)
    }

    /// The value under `key`. It stays in the section.
    pub(super) fn peek(&self, key: &str) -> Option<&Value> {
        self.entries.get(key).map(|node| &node.value)
    }

    /// All entries, whose names the user chooses.
    pub(super) fn drain(&mut self) -> BTreeMap<String, Node> {
        std::mem::take(&mut self.entries)
    }

    /// The value under `key`, or `None` if it is missing or `read` refuses it.
    pub(super) fn value<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        let node = self.take(key)?;
        let value = read(&node.value);
        value.map_err(|why| self.report(&node.origin, &self.path_of(key), &why)).ok()
    }

    /// Text that `check` accepts.
    pub(super) fn text(
        &mut self,
        key: &'static str,
        default: &str,
        check: impl FnOnce(&str) -> Result<(), String>,
    ) -> String {
        self.value(key, |value| text(value).and_then(|text| check(&text).map(|()| text)))
            .unwrap_or_else(|| default.to_owned())
    }

    /// A number within `range`. `why` is the reason for the range.
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

    /// A duration within `range`. `why` is the reason for the range.
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

    /// A key of an earlier version. `why` says what replaced it.
    pub(super) fn removed(&mut self, key: &'static str, why: &str) {
        if let Some(node) = self.entries.remove(key) {
            self.report(&node.origin, &self.path_of(key), why);
        }
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

    /// Reports a problem of the whole table.
    pub(super) fn problem(&self, why: &str) {
        self.report(&self.origin, &self.path, why);
    }

    /// Reports a problem of `path`, which was written at `origin`.
    pub(super) fn report(&self, origin: &str, path: &str, why: &str) {
        self.findings.problems.borrow_mut().push(format!("{origin}: {path} {why}"));
    }

    /// Notes that the file at `path` holds a secret.
    pub(super) fn holds_secret(&self, path: &Path) {
        self.findings.secret_files.borrow_mut().insert(path.to_owned());
    }

    /// Notes that the configuration's own file holds a secret.
    pub(super) fn holds_secret_itself(&self) {
        let file = self.origin.rsplit_once(':').map_or(self.origin.as_str(), |(file, _)| file);
        self.holds_secret(Path::new(file));
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
            None if self.path.is_empty() => {
                format!("is not a section; there are {}", self.known.join(", "))
            }
            None => format!("is not a key; [{}] has {}", self.path, self.known.join(", ")),
        }
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        for (key, node) in &self.entries {
            self.report(&node.origin, &self.path_of(key), &self.unknown(key));
        }
    }
}

/// Text.
pub(super) fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::Variable(text) | Value::Typed(toml::Value::String(text)) => Ok(text.clone()),
        other => Err(format!("has to be text in quotes, and is {}", kind(other))),
    }
}

/// A list of texts. A variable holds it as TOML.
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

/// A path that is not empty.
pub(super) fn path(value: &Value) -> Result<PathBuf, String> {
    match text(value)? {
        empty if empty.is_empty() => Err("is empty: name a file".into()),
        path => Ok(path.into()),
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
