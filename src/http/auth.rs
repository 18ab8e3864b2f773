//! Whether a caller knows a secret. Pure. The admin listener's login compares in the same way.
//!
//! Secrets and offered values are compared by their digests, so each comparison takes the same time
//! whatever the lengths.

use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::{
    calls::{
        Words,
        explain::{self, AFTER_A_WORD, IN_QUOTES, Remedy, WITH_BLANKS},
    },
    config::{self, Secret},
};

/// Headers that HTTP, clients and proxies send by themselves. A refused caller is not told of them.
const USUAL: [&str; 20] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "forwarded",
    "host",
    "te",
    "traceparent",
    "transfer-encoding",
    "user-agent",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
];
/// Headers of a refused call that are looked at.
const LOOKED_AT: usize = 8;
/// A longer value is only measured.
const VALUE_BYTES_MAX: usize = 512;
/// A longer name of a header is not kept.
const NAME_BYTES_MAX: usize = 40;

/// By SHA-256.
pub(crate) type Digest256 = [u8; 32];

/// What a source asks of its callers.
pub(super) struct Check {
    /// None: no caller can send the header, so none passes.
    header: Option<HeaderName>,
    digests: Vec<Digest256>,
    source: config::Source,
}

impl Check {
    pub(super) fn of(source: &config::Source) -> Self {
        let digests = source.secrets.iter().map(|secret| digest(secret.expose().as_bytes()));
        Self {
            header: HeaderName::try_from(&source.header).ok(),
            digests: digests.collect(),
            source: source.clone(),
        }
    }

    /// Whether anyone may call.
    pub(super) fn is_open(&self) -> bool {
        self.source.allow_unauthenticated
    }

    pub(super) fn passes(&self, headers: &HeaderMap) -> bool {
        let is_secret = |offered: &[u8]| is_among(&self.digests, offered);
        self.is_open() || self.offered(headers).is_some_and(is_secret)
    }

    fn offered<'h>(&self, headers: &'h HeaderMap) -> Option<&'h [u8]> {
        let value = headers.get(self.header.as_ref()?)?;
        // Whitespace around a value is no part of it (RFC 9110, 5.5). HTTP/2 does not strip it.
        Some(value.as_bytes().trim_ascii())
    }

    /// What a caller that does not pass did wrong, by names and lengths.
    pub(super) fn explain(&self, headers: &HeaderMap) -> Words {
        let Self { digests, source, .. } = self;
        let (header, secrets) = (&source.header, source.secrets.iter().map(Secret::expose));
        if let Some(value) = self.offered(headers) {
            let chars = String::from_utf8_lossy(value).chars().count();
            let secrets: Vec<_> = secrets.map(|secret| secret.chars().count()).collect();
            return explain::wrong(header, chars, &secrets, remedy(digests, value));
        }
        let own = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let own: Vec<_> = own.filter(|(name, _)| !USUAL.contains(name)).take(LOOKED_AT).collect();
        // A header's name arrives in lower case.
        let lower = secrets.map(|secret| digest(secret.to_ascii_lowercase().as_bytes()));
        let lower: Vec<_> = lower.collect();
        if own.iter().any(|(name, _)| is_among(&lower, name.as_bytes())) {
            return explain::exchanged(header);
        }
        let is_right = |value: &[u8]| {
            let value = value.trim_ascii();
            let is_short = value.len() <= VALUE_BYTES_MAX;
            is_short && (is_among(digests, value) || remedy(digests, value).is_some())
        };
        // A longer name may be a secret that was cut.
        let is_name = |name: &&str| name.len() <= NAME_BYTES_MAX;
        let misplaced = own.iter().find(|(_, value)| is_right(value)).map(|(name, _)| *name);
        let present: Vec<_> = own.iter().map(|(name, _)| *name).filter(is_name).collect();
        explain::missing(header, &present, misplaced.filter(is_name))
    }
}

/// Whether one of these digests is that of `offered`.
pub(crate) fn is_among(digests: &[Digest256], offered: &[u8]) -> bool {
    let offered = digest(offered);
    // All secrets are compared, also after a match.
    let none = Choice::from(0);
    digests.iter().fold(none, |found, known| found | known.ct_eq(&offered)).into()
}

/// How a right secret is got out of a value that holds it.
fn remedy(digests: &[Digest256], value: &[u8]) -> Option<Remedy> {
    let text = str::from_utf8(value).ok().filter(|text| text.len() <= VALUE_BYTES_MAX)?;
    let bare = text.trim_matches(|letter: char| "\"'`“”‘’«»<>[](){}".contains(letter));
    let last = bare.rsplit([' ', ':', '=']).next().unwrap_or_default();
    let is_seen = |letter: &char| {
        !letter.is_whitespace() && !matches!(letter, '\u{200b}'..='\u{200f}' | '\u{feff}')
    };
    let seen: String = text.chars().filter(is_seen).collect();
    let tries = [(bare, IN_QUOTES), (last, AFTER_A_WORD), (seen.as_str(), WITH_BLANKS)];
    let right = tries.into_iter().find(|(text, _)| is_among(digests, text.as_bytes()));
    right.map(|(_, remedy)| remedy)
}

pub(crate) fn digest(text: &[u8]) -> Digest256 {
    Sha256::digest(text).into()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(header: &str, secrets: &[&str]) -> Check {
        Check::of(&config::Source {
            header: header.into(),
            secrets: secrets.iter().map(|text| Secret::new(*text)).collect(),
            ..config::Source::default()
        })
    }

    fn offered(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(
            HeaderName::from_static("x-token"),
            HeaderValue::from_static(value),
        )])
    }

    #[test]
    fn each_live_secret_passes_and_nothing_else_does() {
        let check = check("X-Token", &["old", "a-new-and-longer-one"]);
        assert!(check.passes(&offered("old")) && check.passes(&offered("a-new-and-longer-one")));
        for wrong in ["", "ol", "older", "OLD", "a-new-and-longer-onf"] {
            assert!(!check.passes(&offered(wrong)), "{wrong}");
        }
        assert!(!check.passes(&HeaderMap::new()));
    }

    #[test]
    fn blanks_and_tabs_around_a_value_are_no_part_of_it() {
        let check = check("X-Token", &["s3cret"]);
        for value in ["s3cret ", " s3cret", "\ts3cret\t ", "s3cret\t"] {
            assert!(check.passes(&offered(value)), "{value:?}");
        }
        assert!(!check.passes(&offered("s3 cret")) && !check.passes(&offered(" ")));
    }

    #[test]
    fn a_refused_caller_learns_nothing_and_people_learn_what_was_wrong_by_names_and_lengths() {
        const SECRET: &str = "s3cret-of-more-than-16";
        let check = check("X-Token", &[SECRET]);
        for (value, remedy) in [
            ("another-one", None),
            ("\"s3cret-of-more-than-16\"", Some(IN_QUOTES)),
            ("Bearer s3cret-of-more-than-16", Some(AFTER_A_WORD)),
            ("X-Token: s3cret-of-more-than-16", Some(AFTER_A_WORD)),
            ("s3cret-of- more-than-16", Some(WITH_BLANKS)),
        ] {
            let wrong = explain::wrong("X-Token", value.len(), &[22], remedy);
            assert_eq!(check.explain(&offered(value)), wrong);
        }
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("edge"));
        headers.insert("authorization", HeaderValue::from_static("Bearer 1"));
        let missing = |misplaced: Option<&str>, present: &[&str]| {
            explain::missing("X-Token", present, misplaced)
        };
        assert_eq!(check.explain(&headers), missing(None, &["authorization"]));
        headers.insert("token", HeaderValue::from_static(SECRET));
        assert_eq!(check.explain(&headers), missing(Some("token"), &["authorization", "token"]));
        assert!(!format!("{:?}", check.explain(&headers)).contains(SECRET));
        // Name and value exchanged: the secret arrives as a name, in lower case.
        let (name, value) = (SECRET.to_ascii_lowercase(), HeaderValue::from_static("X-Token"));
        let exchanged = HeaderMap::from_iter([(name.parse().unwrap(), value)]);
        assert_eq!(check.explain(&exchanged), explain::exchanged("X-Token"));
        let long = "n".repeat(NAME_BYTES_MAX + 1).parse().unwrap();
        let long = HeaderMap::from_iter([(long, HeaderValue::from_static("any"))]);
        assert_eq!(check.explain(&long), missing(None, &[]));
    }

    #[test]
    fn without_a_secret_or_a_header_nobody_gets_in_unless_it_is_said() {
        assert!(!check("X-Token", &[]).passes(&offered("")));
        assert!(!check("", &["s"]).passes(&offered("s")));
        let open = config::Source { allow_unauthenticated: true, ..config::Source::default() };
        assert!(Check::of(&open).passes(&HeaderMap::new()));
    }
}
