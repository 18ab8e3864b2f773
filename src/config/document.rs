//! The file and the environment as one tree that still knows where each value was written.

use std::{collections::BTreeMap, path::Path};

use toml::{Spanned, de::DeTable, de::DeValue};

/// What the names of variables begin with; two underscores stand between levels.
const PREFIX: &str = "WENI_EDGE__";

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// `weni-edge.toml:12`, or the variable's name.
    pub(super) origin: String,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Table(BTreeMap<String, Node>),
    /// From the file; never a table.
    Typed(toml::Value),
    /// From the environment: its type is what its key wants.
    Variable(String),
}

/// Reads the file, if there is one, and lays the environment over it.
///
/// # Errors
/// One sentence, when the file cannot be read or is not TOML.
pub(super) fn read(
    path: Option<&Path>,
    variables: impl Iterator<Item = (String, String)>,
) -> Result<Node, String> {
    let mut root = match path {
        Some(path) => read_file(path)?,
        None => Node { origin: "environment".into(), value: Value::Table(BTreeMap::new()) },
    };
    let mut variables: Vec<_> = variables.filter(|(name, _)| name.starts_with(PREFIX)).collect();
    // A name sorts before those that go deeper below it, so that the deeper one is not lost.
    variables.sort();
    for (name, text) in variables {
        let path = name[PREFIX.len()..].to_lowercase();
        root.put(path.split("__"), &name, text);
    }
    Ok(root)
}

fn read_file(path: &Path) -> Result<Node, String> {
    let name = path.display();
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("cannot read {name}: {error}"))?;
    let line = |at: usize| format!("{name}:{}", text[..at].matches('\n').count() + 1);
    match DeTable::parse(&text) {
        // The error's own text would quote the line, and there may be a secret in it.
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
    let entry = |(key, value): (Spanned<_>, Spanned<DeValue<'_>>)| {
        let origin = line(key.span().start);
        let value = match value.into_inner() {
            DeValue::Table(table) => entries(table, line),
            value => Value::Typed(typed(value)),
        };
        (std::borrow::Cow::into_owned(key.into_inner()), Node { origin, value })
    };
    Value::Table(table.into_iter().map(entry).collect())
}

fn typed(value: DeValue<'_>) -> toml::Value {
    match value {
        DeValue::String(text) => toml::Value::String(text.into_owned()),
        DeValue::Integer(number) => {
            // No key takes a number that does not fit; the largest is refused like any other.
            let number = i64::from_str_radix(number.as_str(), number.radix());
            toml::Value::Integer(number.unwrap_or(i64::MAX))
        }
        DeValue::Float(number) => toml::Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => toml::Value::Boolean(flag),
        DeValue::Datetime(time) => toml::Value::Datetime(time),
        DeValue::Array(items) => {
            items.into_iter().map(|item| typed(item.into_inner())).collect::<Vec<_>>().into()
        }
        DeValue::Table(table) => toml::Value::Table(
            table
                .into_iter()
                .map(|(key, value)| (key.into_inner().into_owned(), typed(value.into_inner())))
                .collect(),
        ),
    }
}

impl Node {
    /// Sets what is at `path` below this node; what is no table on the way becomes one.
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

    /// The entries, if this is a table; a variable may hold an inline one.
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

/// The entries of an inline table, all of them written at one place.
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

/// Reads a variable's text as a TOML value.
pub(super) fn parse(text: &str) -> Option<toml::Value> {
    let mut table: toml::Table = toml::from_str(&format!("value = {text}")).ok()?;
    table.remove("value")
}
