//! Sources and their secrets: `[sources.NAME]`.

use std::{collections::BTreeMap, io, path::Path};

use http::{HeaderName, HeaderValue, header};

use super::{
    HIDDEN, Secret, Source,
    document::{NodeValue, read_file},
    section::{Section, flag, path, text, texts},
};

/// Labels of a source, and bytes of their names and values together.
const LABELS_MAX: usize = 16;
const LABELS_BYTES_MAX: usize = 1024;
const SECRET_CHARS_MIN: usize = 16;

/// Headers that HTTP uses or the journal stores, so none of them can carry a secret.
const HEADERS_REFUSED: [HeaderName; 9] = [
    header::ACCEPT_ENCODING,
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::HOST,
    header::TRANSFER_ENCODING,
    header::USER_AGENT,
    HeaderName::from_static("traceparent"),
];

/// Each source has a section of its own.
pub(super) fn sources(mut section: Section<'_>) -> BTreeMap<String, Source> {
    let mut sources = BTreeMap::new();
    for (name, node) in section.drain() {
        let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
        let named = name.len() <= 64
            && name.starts_with(plain)
            && name.chars().all(|letter| plain(letter) || "._-".contains(letter));
        if !named || name == crate::metrics::UNKNOWN_SOURCE {
            let why = "cannot be a source: its name is part of the URL, 1 to 64 of a-z, 0-9, '.', \
                       '_', '-', a letter or digit first, and not \"unknown\"";
            section.report(&node.origin, &name, why);
        }
        let source = source(section.nested(&name, node));
        sources.insert(name, source);
    }
    sources
}

pub(super) fn source(mut section: Section<'_>) -> Source {
    let has = |key| section.peek(key).is_some();
    let (has_header, has_list, has_file) = (has("header"), has("secrets"), has("secrets_file"));
    let header = section.value("header", |value| text(value).and_then(header_name));
    let variable = matches!(section.peek("secrets"), Some(NodeValue::Variable(_)));
    let read = |value: &NodeValue| {
        let checked = texts(value)?.into_iter().enumerate().map(|(at, secret)| {
            secret_of(secret).map_err(|why| format!("has {why} at place {}", at + 1))
        });
        checked.collect::<Result<Vec<_>, _>>().map(Some)
    };
    let hide = |secrets: &Option<Vec<_>>| Some(vec![HIDDEN; secrets.as_ref()?.len()].into());
    let listed = section.shown("secrets", None, read, hide);
    if listed.is_some() && !variable {
        section.holds_secret_itself();
    }
    // An empty list is none: the source would refuse every call.
    let is_empty = listed.as_ref().is_some_and(Vec::is_empty);
    let has_secret = has_file || (has_list && !is_empty);
    let more = secrets_file(&mut section, "secrets_file");
    let allow_unauthenticated = section.value_or("allow_unauthenticated", false, flag);
    let raw = section.choice("raw", &[("all", true), ("untyped", false)]);
    let labels = labels(section.section("labels"));
    match (allow_unauthenticated, has_header, has_secret) {
        (false, false, _) => section
            .problem("has no header: name the one that carries the secret: header = \"X-Token\""),
        (false, true, false) => section.problem(
            "has no secret: give secrets or secrets_file, or say allow_unauthenticated = true \
             instead of the header",
        ),
        (true, false, false) | (false, true, true) => {}
        (true, ..) => section.problem(
            "says allow_unauthenticated = true and has a header or secrets: leave out one of the two",
        ),
    }
    let secrets = [listed.unwrap_or_default(), more].concat();
    let header = header.unwrap_or_default();
    Source { header, secrets, allow_unauthenticated, raw, labels }
}

/// Every event carries them: they are few and short.
fn labels(mut section: Section<'_>) -> String {
    let mut labels = BTreeMap::new();
    for (name, node) in section.drain() {
        match text(&node.value) {
            Ok(label) => {
                section.in_effect(&name, label.as_str().into(), node.origin);
                labels.insert(name, label);
            }
            Err(why) => section.report(&node.origin, &name, &why),
        }
    }
    let bytes: usize = labels.iter().map(|(name, label)| name.len() + label.len()).sum();
    if labels.len() > LABELS_MAX || bytes > LABELS_BYTES_MAX {
        section.problem(&format!(
            "has {} labels of {bytes} bytes together: at most {LABELS_MAX} and {LABELS_BYTES_MAX} \
             bytes, for each event carries them",
            labels.len()
        ));
    }
    if labels.is_empty() { String::new() } else { serde_json::json!(labels).to_string() }
}

fn header_name(name: String) -> Result<String, String> {
    match HeaderName::try_from(&name) {
        Err(_) => Err("is not the name of a header; use one such as X-Token".into()),
        Ok(parsed) if HEADERS_REFUSED.contains(&parsed) => {
            Err(format!("is {parsed}, which is not secret in transit; use one such as X-Token"))
        }
        Ok(_) => Ok(name),
    }
}

fn secret_of(secret: String) -> Result<Secret, String> {
    if secret.chars().count() < SECRET_CHARS_MIN {
        Err(format!("a secret of fewer than {SECRET_CHARS_MIN} characters"))
    } else if secret.trim() != secret || HeaderValue::from_str(&secret).is_err() {
        Err("a secret with blanks around it or characters that no header can carry".into())
    } else {
        Ok(Secret::new(secret))
    }
}

/// The secrets of the file that `key` names.
pub(super) fn secrets_file(section: &mut Section<'_>, key: &'static str) -> Vec<Secret> {
    let mut secrets = Vec::new();
    let file = section.value(key, |value| {
        let file = path(value)?;
        secrets = secrets_of_file(&file)?;
        Ok(file)
    });
    if let Some(file) = file {
        section.holds_secret(&file);
    }
    secrets
}

fn secrets_of_file(path: &Path) -> Result<Vec<Secret>, String> {
    let name = path.display();
    let text = read_file(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!("names {name}: {error}: make it, for example (umask 077; openssl rand -hex 24 >{name})")
        }
        _ => format!("names {name}: {error}"),
    })?;
    let secret = |(line, secret): (usize, &str)| {
        secret_of(secret.into())
            .map_err(|why| format!("names {name}, which has {why} in line {}", line + 1))
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    match lines.map(secret).collect::<Result<Vec<_>, _>>()? {
        secrets if secrets.is_empty() => {
            Err(format!("names {name}, which is empty: it holds one secret a line"))
        }
        secrets => Ok(secrets),
    }
}
