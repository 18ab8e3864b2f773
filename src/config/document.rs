//! The file and the environment as one tree, in which each value knows where it was written.

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use serde::Deserialize;
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::file;

/// The beginning of every variable's name. Two underscores separate levels.
const PREFIX: &str = "WENI_EDGE__";

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// `weni-edge.toml:12`, or the name of a variable.
    pub(super) origin: String,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Table(BTreeMap<String, Node>),
    /// From the file, and no table.
    Typed(toml::Value),
    /// From the environment. Its key determines its type.
    Variable(String),
}

/// Reads the file, if a path is given, and lets the environment override it.
///
/// # Errors
/// One sentence, if the file cannot be read or is not TOML.
pub(super) fn read(
    path: Option<&Path>,
    variables: impl Iterator<Item = (String, String)>,
) -> Result<Node, String> {
    let mut root = match path {
        Some(path) => read_file(path)?,
        None => Node::empty("environment"),
    };
    let mut variables: Vec<_> = variables.filter(|(name, _)| name.starts_with(PREFIX)).collect();
    // A name sorts before longer names that begin with it, so the table does not replace its entry.
    variables.sort();
    for (name, text) in variables {
        let path = name[PREFIX.len()..].to_lowercase();
        root.put(path.split("__"), &name, text);
    }
    Ok(root)
}

fn read_file(path: &Path) -> Result<Node, String> {
    let name = path.display();
    let text = file::read(path).map_err(|error| format!("cannot read {name}: {error}"))?;
    let ends: Vec<_> = text.match_indices('\n').map(|(at, _)| at).collect();
    let line = |at: usize| format!("{name}:{}", ends.partition_point(|end| *end < at) + 1);
    match DeTable::parse(&text) {
        // The error's own text quotes the line, which may hold a secret.
        Err(error) => {
            let message = error.message().replace('\n', ", ");
            Err(match error.span() {
                Some(span) => format!("{}: {message}", line(span.start)),
                None => format!("{name}: {message}"),
            })
        }
        Ok(table) => {
            Ok(Node { origin: name.to_string(), value: entries(table.into_inner(), &line) })
        }
    }
}

fn entries(table: DeTable<'_>, line: &impl Fn(usize) -> String) -> Value {
    let entry = |(key, value): (Spanned<Cow<'_, str>>, Spanned<DeValue<'_>>)| {
        let origin = line(key.span().start);
        let span = value.span();
        let value = match value.into_inner() {
            DeValue::Table(table) => entries(table, line),
            value => {
                let value = ValueDeserializer::from(Spanned::new(span, value));
                // An error is a number that does not fit. Every key refuses the largest number.
                let typed = toml::Value::deserialize(value);
                Value::Typed(typed.unwrap_or(toml::Value::Integer(i64::MAX)))
            }
        };
        (key.into_inner().into_owned(), Node { origin, value })
    };
    Value::Table(table.into_iter().map(entry).collect())
}

impl Node {
    /// A table without entries.
    pub(super) fn empty(origin: &str) -> Self {
        Self { origin: origin.into(), value: Value::Table(BTreeMap::new()) }
    }

    pub(super) fn is_variable(&self) -> bool {
        matches!(self.value, Value::Variable(_))
    }

    /// Sets the value at `path` below this node. A node on the way that is no table becomes one.
    fn put<'k>(&mut self, mut path: impl Iterator<Item = &'k str>, name: &str, text: String) {
        let Some(key) = path.next() else {
            *self = Self { origin: name.into(), value: Value::Variable(text) };
            return;
        };
        if !matches!(self.value, Value::Table(_)) {
            self.value = Value::Table(BTreeMap::new());
        }
        let Value::Table(entries) = &mut self.value else { return };
        entries
            .entry(key.into())
            .or_insert_with(|| Self { origin: name.into(), value: Value::Variable(String::new()) })
            .put(path, name, text);
    }

    /// The entries, if this is a table. A variable may hold an inline table.
    pub(super) fn into_table(self) -> Option<BTreeMap<String, Self>> {
        match self.value {
            Value::Table(entries) => Some(entries),
            Value::Typed(_) => None,
            Value::Variable(text) => match parse(&text)? {
                toml::Value::Table(table) => Some(within(&self.origin, table)),
                _ => None,
            },
        }
    }
}

/// The entries of an inline table, all with the same origin.
fn within(origin: &str, table: toml::Table) -> BTreeMap<String, Node> {
    let entry = |(key, value)| {
        let value = match value {
            toml::Value::Table(table) => Value::Table(within(origin, table)),
            value => Value::Typed(value),
        };
        (key, Node { origin: origin.into(), value })
    };
    table.into_iter().map(entry).collect()
}

/// Reads the text of a variable as a TOML value.
pub(super) fn parse(text: &str) -> Option<toml::Value> {
    let mut table: toml::Table = toml::from_str(&format!("value = {text}")).ok()?;
    table.remove("value")
}
