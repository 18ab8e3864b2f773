//! Reads the file and the environment as one tree, in which each value knows where it was written, and
//! writes the values in effect as TOML that says so.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read},
    mem,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use serde_json::json;
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

/// The largest file that is read. 5,000 sources take half of a megabyte.
const BYTES_MAX: u64 = 4 << 20;
/// The column of origins. Comments in the default file begin there, too.
const COLUMN: usize = 41;
/// The origin of a value that nobody wrote.
pub(super) const DEFAULT: &str = "default";
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
        Some(path) => tree_of(path)?,
        None => Node::empty("environment"),
    };
    let mut variables: Vec<_> = variables.filter(|(name, _)| name.starts_with(PREFIX)).collect();
    // In order, so that a table comes before its entries and does not replace them.
    variables.sort();
    for (name, text) in variables {
        let path = name[PREFIX.len()..].to_lowercase();
        root.put(path.split("__"), &name, text);
    }
    Ok(root)
}

/// Opens a regular file. Reading any other might never end.
pub(super) fn open_file(path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK, opening a FIFO waits until another process writes to it.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file; name one of at most 4 MiB"));
    }
    Ok(file)
}

/// The text of a regular file of at most 4 MiB.
pub(crate) fn read_file(path: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    open_file(path)?.take(BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(io::Error::other("it is larger than 4 MiB; is it the right file?"));
    }
    // The error's own `Debug` holds the file's text.
    String::from_utf8(text).map_err(|_| io::Error::other("it is not UTF-8; is it the right file?"))
}

fn tree_of(path: &Path) -> Result<Node, String> {
    let name = path.display();
    let text = read_file(path).map_err(|error| format!("cannot read {name}: {error}"))?;
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
                let typed = toml::Value::deserialize(value);
                // Only a number that does not fit is an error. Every key refuses the largest number.
                NodeValue::Typed(typed.unwrap_or(toml::Value::Integer(i64::MAX)))
            }
        };
        let origin = origin(key.span().start);
        (key.into_inner().into_owned(), Node { origin, value })
    };
    table.into_iter().map(entry).collect()
}

impl Node {
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
        let empty = Self::empty(&self.origin);
        let before = mem::replace(self, empty);
        // A variable with an inline table stays in effect beside a variable for one of its keys.
        let mut entries = before.into_table().unwrap_or_default();
        entries.entry(key.into()).or_insert_with(|| Self::empty(name)).put(path, name, text);
        self.value = NodeValue::Table(entries);
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

/// A key, its value in effect, and where that was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EffectiveValue {
    /// The tables around the key: `["sources", "loja"]`.
    pub section: Vec<String>,
    /// Its name in the innermost table.
    pub key: String,
    /// A secret is replaced.
    pub value: toml::Value,
    /// `weni-edge.toml:12`, the name of a variable, or `default`.
    pub origin: String,
}

/// Writes a configuration that can be loaded again as soon as its secrets are put back.
pub fn to_toml(values: &[EffectiveValue]) -> String {
    let mut text = String::new();
    for section in values.chunk_by(|one, next| one.section == next.section) {
        let path: Vec<_> = section[0].section.iter().map(|name| quoted(name)).collect();
        text += &format!("{}[{}]\n", if text.is_empty() { "" } else { "\n" }, path.join("."));
        for EffectiveValue { key, value, origin, .. } in section {
            let line = format!("{} = {}", quoted(key), written(value));
            // The name of a file may contain a line break.
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
fn written(value: &toml::Value) -> String {
    // The terminal's escapes would write these as surrogates, which TOML does not have.
    let escape = |letter| match letter {
        '\u{7f}' | '\u{10000}'.. => format!("\\U{:08x}", u32::from(letter)),
        _ => letter.to_string(),
    };
    json!(value).to_string().chars().map(escape).collect()
}
