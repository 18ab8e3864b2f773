//! Whether a call knows a secret. Pure.
//!
//! Secrets and what is offered are compared by their digests: so every comparison takes the same
//! time, whatever the lengths, and the secrets themselves are not kept here.

use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::config;

/// What a source asks of its callers.
pub(super) enum Check {
    Nothing,
    /// One of the secrets, in this header.
    Secret {
        header: HeaderName,
        digests: Vec<[u8; 32]>,
    },
    /// The configuration names no usable header: nobody gets in.
    Never,
}

impl Check {
    pub(super) fn of(source: &config::Source) -> Self {
        if source.allow_unauthenticated {
            return Self::Nothing;
        }
        let digests = source.secrets.iter().map(|secret| digest(secret.expose().as_bytes()));
        match HeaderName::try_from(&source.header) {
            Ok(header) => Self::Secret { header, digests: digests.collect() },
            Err(_) => Self::Never,
        }
    }

    /// Compares with all secrets, also when the first one is right.
    pub(super) fn passes(&self, headers: &HeaderMap) -> bool {
        let (header, digests) = match self {
            Self::Nothing => return true,
            Self::Never => return false,
            Self::Secret { header, digests } => (header, digests),
        };
        let Some(offered) = headers.get(header) else { return false };
        let offered = digest(offered.as_bytes());
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
    fn without_a_secret_or_a_header_nobody_gets_in_unless_it_is_said() {
        assert!(!check("X-Token", &[]).passes(&offered("")));
        assert!(!check("", &["s"]).passes(&offered("s")));
        let open = config::Source { allow_unauthenticated: true, ..config::Source::default() };
        assert!(Check::of(&open).passes(&HeaderMap::new()));
    }
}
