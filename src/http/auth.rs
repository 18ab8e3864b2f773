//! Whether a caller knows a secret. Pure.
//!
//! Secrets and offered values are compared by their digests, so each comparison takes the same time
//! whatever the lengths.

use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::config;

/// What a source asks of its callers.
pub(super) enum Check {
    Nothing,
    /// One of the secrets in this header. Without a usable header no caller passes.
    Secret {
        header: Option<HeaderName>,
        digests: Vec<[u8; 32]>,
    },
}

impl Check {
    pub(super) fn of(source: &config::Source) -> Self {
        if source.allow_unauthenticated {
            return Self::Nothing;
        }
        let digests = source.secrets.iter().map(|secret| digest(secret.expose().as_bytes()));
        Self::Secret {
            header: HeaderName::try_from(&source.header).ok(),
            digests: digests.collect(),
        }
    }

    pub(super) fn passes(&self, headers: &HeaderMap) -> bool {
        let Self::Secret { header, digests } = self else { return true };
        let Some(offered) = header.as_ref().and_then(|header| headers.get(header)) else {
            return false;
        };
        // Whitespace around a value is no part of it (RFC 9110, 5.5). HTTP/2 does not strip it.
        let offered = digest(offered.as_bytes().trim_ascii());
        // All secrets are compared, also after a match.
        let none = Choice::from(0);
        digests.iter().fold(none, |found, known| found | known.ct_eq(&offered)).into()
    }
}

fn digest(text: &[u8]) -> [u8; 32] {
    Sha256::digest(text).into()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

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
    fn without_a_secret_or_a_header_nobody_gets_in_unless_it_is_said() {
        assert!(!check("X-Token", &[]).passes(&offered("")));
        assert!(!check("", &["s"]).passes(&offered("s")));
        let open = config::Source { allow_unauthenticated: true, ..config::Source::default() };
        assert!(Check::of(&open).passes(&HeaderMap::new()));
    }
}
