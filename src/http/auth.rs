//! Whether a request carries one of a source's secrets.
//!
//! Secrets and what callers send are compared as SHA-256 digests: the time that takes depends on
//! nothing but the length of what was sent.

use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::config::Source;

type Hash = [u8; 32];

/// What lets a request in.
pub(super) enum Door {
    Open,
    Locked { header: HeaderName, secrets: Vec<Hash> },
}

impl Door {
    /// A source whose header is no header name lets nobody in; configuration refuses such a one.
    pub(super) fn of(source: &Source) -> Self {
        if source.allow_unauthenticated {
            return Self::Open;
        }
        match HeaderName::from_bytes(source.header.as_bytes()) {
            Ok(header) => {
                let hashes = source.secrets.iter().map(|secret| hash(secret.expose().as_bytes()));
                Self::Locked { header, secrets: hashes.collect() }
            }
            Err(_) => Self::Locked { header: http::header::AUTHORIZATION, secrets: Vec::new() },
        }
    }

    /// Every value of the header is compared with every secret.
    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        match self {
            Self::Open => true,
            Self::Locked { header, secrets } => {
                let mut admitted = Choice::from(0);
                for value in headers.get_all(header) {
                    let given = hash(value.as_bytes());
                    for secret in secrets {
                        admitted |= given.ct_eq(secret);
                    }
                }
                admitted.into()
            }
        }
    }
}

fn hash(text: &[u8]) -> Hash {
    Sha256::digest(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn admits(source: &Source, values: &[&[u8]]) -> bool {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-token", http::HeaderValue::from_bytes(value).unwrap());
        }
        Door::of(source).admits(&headers)
    }

    fn source(secrets: &[&str]) -> Source {
        let secrets = secrets.iter().map(|secret| Secret::new(*secret)).collect();
        Source { header: "X-Token".into(), secrets, ..Source::default() }
    }

    #[test]
    fn every_live_secret_opens_and_nothing_else_does() {
        let two = source(&["the old secret of 2025", "novo é não-ASCII"]);
        assert!(admits(&two, &[b"the old secret of 2025"]));
        assert!(admits(&two, &["novo é não-ASCII".as_bytes()]));
        assert!(admits(&two, &[b"of another proxy", b"the old secret of 2025"]));
        let others: [&[u8]; 4] = [b"", b"the old secret of 202", b"the old secret of 20255", b"T"];
        for wrong in others {
            assert!(!admits(&two, &[wrong]), "{wrong:?}");
        }
        assert!(!admits(&two, &[]));
    }

    #[test]
    fn without_a_secret_only_a_source_that_says_so_is_open() {
        assert!(!admits(&source(&[]), &[b""]));
        assert!(!admits(&source(&[]), &[]));
        let open = Source { allow_unauthenticated: true, ..Source::default() };
        assert!(admits(&open, &[]));
    }
}
