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
    pub(super) value: NodeValue,
}

#[derive(Debug, Clone)]
pub(super) enum NodeValue {
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
    let table = DeTable::parse(&text).map_err(|error| {
        // The error's own text quotes the line, which may hold a secret.
        let place = error.span().map_or_else(|| name.to_string(), |span| line(span.start));
        format!("{place}: {}", error.message().replace('\n', ", "))
    })?;
    let value = NodeValue::Table(entries(table.into_inner(), &line));
    Ok(Node { origin: name.to_string(), value })
}

fn entries(table: DeTable<'_>, origin: &impl Fn(usize) -> String) -> BTreeMap<String, Node> {
    let entry = |(key, value): (Spanned<Cow<'_, str>>, Spanned<DeValue<'_>>)| {
        let span = value.span();
        let value = match value.into_inner() {
            DeValue::Table(table) => NodeValue::Table(entries(table, origin)),
            value => {
                let value = ValueDeserializer::from(Spanned::new(span, value));
                // An error is a number that does not fit. Every key refuses the largest number.
                let typed = toml::Value::deserialize(value);
                NodeValue::Typed(typed.unwrap_or(toml::Value::Integer(i64::MAX)))
            }
        };
        let origin = origin(key.span().start);
        (key.into_inner().into_owned(), Node { origin, value })
    };
    table.into_iter().map(entry).collect()
}

impl Node {
    /// A table without entries.
    pub(super) fn empty(origin: &str) -> Self {
        Self { origin: origin.into(), value: NodeValue::Table(BTreeMap::new()) }
    }

    pub(super) fn is_variable(&self) -> bool {
        matches!(self.value, NodeValue::Variable(_))
    }

    /// Sets the value at `path` below this node. A node on the way that is no table becomes one.
    fn put<'k>(&mut self, mut path: impl Iterator<Item = &'k str>, name: &str, text: String) {
        let Some(key) = path.next() else {
            *self = Self { origin: name.into(), value: NodeValue::Variable(text) };
            return;
        };
        if !matches!(self.value, NodeValue::Table(_)) {
            self.value = NodeValue::Table(BTreeMap::new());
        }
        let NodeValue::Table(entries) = &mut self.value else { return };
        entries.entry(key.into()).or_insert_with(|| Self::empty(name)).put(path, name, text);
    }

    /// The entries, if this is a table. A variable may hold an inline table.
    pub(super) fn into_table(self) -> Option<BTreeMap<String, Self>> {
        match self.value {
            NodeValue::Table(entries) => Some(entries),
            NodeValue::Typed(_) => None,
            NodeValue::Variable(text) => parse(&text, &self.origin)?.into_table(),
        }
    }
}

/// Reads the text of a variable as a TOML value.
pub(super) fn parse(text: &str, origin: &str) -> Option<Node> {
    let text = format!("value = {text}");
    let table = DeTable::parse(&text).ok()?;
    entries(table.into_inner(), &|_| origin.to_owned()).remove("value")
}
