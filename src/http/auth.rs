//! Whether a caller knows a secret. Pure. The admin listener's login compares in the same way.
//!
//! Secrets and offered values are compared by their digests, so each comparison takes the same time
//! whatever the lengths.

use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::{
    calls::{Excess, Slip},
    config,
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

/// A digest by SHA-256.
pub(crate) type Digest256 = [u8; 32];

/// What a source asks of its callers.
pub(super) enum Check {
    Nothing,
    /// One of the secrets in this header. Without a usable header no caller passes.
    Secret {
        header: Option<HeaderName>,
        /// The header as the configuration writes it.
        name: String,
        digests: Vec<Digest256>,
        /// Of the secrets in lower case, as which a header's name arrives.
        lower_digests: Vec<Digest256>,
        /// Lengths of the secrets in characters.
        chars: Vec<usize>,
    },
}

impl Check {
    pub(super) fn of(source: &config::Source) -> Self {
        if source.allow_unauthenticated {
            return Self::Nothing;
        }
        let digests = source.secrets.iter().map(|secret| digest(secret.expose().as_bytes()));
        let lower = source.secrets.iter().map(|secret| secret.expose().to_ascii_lowercase());
        let lower = lower.map(|secret| digest(secret.as_bytes()));
        Self::Secret {
            header: HeaderName::try_from(&source.header).ok(),
            name: source.header.clone(),
            digests: digests.collect(),
            lower_digests: lower.collect(),
            chars: source.secrets.iter().map(|secret| secret.expose().chars().count()).collect(),
        }
    }

    pub(super) fn passes(&self, headers: &HeaderMap) -> bool {
        let Self::Secret { header, digests, .. } = self else { return true };
        let Some(offered) = header.as_ref().and_then(|header| headers.get(header)) else {
            return false;
        };
        // Whitespace around a value is no part of it (RFC 9110, 5.5). HTTP/2 does not strip it.
        is_among(digests, offered.as_bytes().trim_ascii())
    }

    /// What a caller that does not pass did wrong, by names and lengths.
    pub(super) fn slip(&self, headers: &HeaderMap) -> Option<Slip> {
        let Self::Secret { header, name, digests, lower_digests, chars } = self else {
            return None;
        };
        let Some(offered) = header.as_ref().and_then(|header| headers.get(header)) else {
            let own = headers.iter().filter(|(name, _)| !USUAL.contains(&name.as_str()));
            let own: Vec<_> = own.take(LOOKED_AT).collect();
            if own.iter().any(|(name, _)| is_among(lower_digests, name.as_str().as_bytes())) {
                return Some(Slip::Exchanged { header: name.clone() });
            }
            let is_right = |value: &HeaderValue| {
                let value = value.as_bytes().trim_ascii();
                let is_short = value.len() <= VALUE_BYTES_MAX;
                is_short && (is_among(digests, value) || excess(digests, value).is_some())
            };
            let misplaced = own.iter().find(|(_, value)| is_right(value));
            // A longer name may be a secret that was cut.
            let is_name = |name: &&str| name.len() <= NAME_BYTES_MAX;
            let misplaced = misplaced.map(|(name, _)| name.as_str()).filter(is_name);
            let present = own.iter().map(|(name, _)| name.as_str()).filter(is_name);
            return Some(Slip::missing(name, present, misplaced));
        };
        let value = offered.as_bytes().trim_ascii();
        Some(Slip::Wrong {
            header: name.clone(),
            chars: String::from_utf8_lossy(value).chars().count(),
            secrets: chars.clone(),
            excess: excess(digests, value),
        })
    }
}

/// Whether one of these digests is that of `offered`.
pub(crate) fn is_among(digests: &[Digest256], offered: &[u8]) -> bool {
    let offered = digest(offered);
    // All secrets are compared, also after a match.
    let none = Choice::from(0);
    digests.iter().fold(none, |found, known| found | known.ct_eq(&offered)).into()
}

/// What has to be taken out of a value to get a right secret.
fn excess(digests: &[Digest256], value: &[u8]) -> Option<Excess> {
    let text = str::from_utf8(value).ok().filter(|text| text.len() <= VALUE_BYTES_MAX)?;
    let bare = text.trim_matches(|letter: char| "\"'`“”‘’«»<>[](){}".contains(letter));
    let last = bare.rsplit([' ', ':', '=']).next().unwrap_or_default();
    let is_seen = |letter: &char| {
        !letter.is_whitespace() && !matches!(letter, '\u{200b}'..='\u{200f}' | '\u{feff}')
    };
    let seen: String = text.chars().filter(is_seen).collect();
    let tries = [(bare, Excess::Quotes), (last, Excess::Prefix), (seen.as_str(), Excess::Blanks)];
    let right = tries.into_iter().find(|(text, _)| is_among(digests, text.as_bytes()));
    right.map(|(_, excess)| excess)
}

/// SHA-256.
pub(crate) fn digest(text: &[u8]) -> Digest256 {
    Sha256::digest(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

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
        let excess_of = |value: &'static str| match check.slip(&offered(value)) {
            Some(Slip::Wrong { header, chars, secrets, excess }) => {
                assert_eq!((&*header, chars, &*secrets), ("X-Token", value.len(), &[22][..]));
                excess
            }
            slip => panic!("{slip:?}"),
        };
        assert_eq!(excess_of("another-one"), None);
        assert_eq!(excess_of("\"s3cret-of-more-than-16\""), Some(Excess::Quotes));
        assert_eq!(excess_of("Bearer s3cret-of-more-than-16"), Some(Excess::Prefix));
        assert_eq!(excess_of("X-Token: s3cret-of-more-than-16"), Some(Excess::Prefix));
        assert_eq!(excess_of("s3cret-of- more-than-16"), Some(Excess::Blanks));
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("edge"));
        headers.insert("authorization", HeaderValue::from_static("Bearer 1"));
        let missing = |misplaced: Option<&str>, present: &[&str]| {
            Some(Slip::missing("X-Token", present.iter().copied(), misplaced))
        };
        assert_eq!(check.slip(&headers), missing(None, &["authorization"]));
        headers.insert("token", HeaderValue::from_static(SECRET));
        assert_eq!(check.slip(&headers), missing(Some("token"), &["authorization", "token"]));
        assert!(!format!("{:?}", check.slip(&headers)).contains(SECRET));
        // Name and value exchanged: the secret arrives as a name, in lower case.
        let (name, value) = (SECRET.to_ascii_lowercase(), HeaderValue::from_static("X-Token"));
        let exchanged = HeaderMap::from_iter([(name.parse().unwrap(), value)]);
        let expected = Slip::Exchanged { header: "X-Token".into() };
        assert_eq!(check.slip(&exchanged), Some(expected));
        let long = "n".repeat(NAME_BYTES_MAX + 1).parse().unwrap();
        let long = HeaderMap::from_iter([(long, HeaderValue::from_static("any"))]);
        assert_eq!(check.slip(&long), missing(None, &[]));
    }

    #[test]
    fn without_a_secret_or_a_header_nobody_gets_in_unless_it_is_said() {
        assert!(!check("X-Token", &[]).passes(&offered("")));
        assert!(!check("", &["s"]).passes(&offered("s")));
        let open = config::Source { allow_unauthenticated: true, ..config::Source::default() };
        assert!(Check::of(&open).passes(&HeaderMap::new()));
    }
}
