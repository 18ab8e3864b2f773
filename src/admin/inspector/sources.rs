//! What to paste into Weni's settings, for each source.

use serde::Serialize;

use super::{BUILD, Inspector};
use crate::{config, metrics::UNKNOWN_SOURCE};

/// All sources.
#[derive(Serialize)]
pub(super) struct Sources {
    build: &'static str,
    version: &'static str,
    /// Someone has logged in and may log out.
    login: bool,
    /// The name under which calls are shown that name no source.
    unknown: &'static str,
    /// Pages that may still follow the calls.
    places: usize,
    sources: Vec<ShownSource>,
}

#[derive(Serialize)]
struct ShownSource {
    name: String,
    url: ShownUrl,
    /// None: anyone who knows the URL may call.
    header: Option<String>,
    /// Each of them is valid.
    secrets: Vec<String>,
    /// When Weni's last call arrived: milliseconds since 1970.
    last_ms: Option<u64>,
}

/// The URL to paste, and why the edge believes it.
#[derive(Serialize)]
pub(super) struct ShownUrl {
    /// None: part of it is not known.
    pub(super) url: Option<String>,
    pub(super) basis: UrlBasis,
    /// The host, where the scheme is not known.
    host: Option<String>,
    path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum UrlBasis {
    /// `http.public_url`.
    Configured,
    /// Callers that were accepted used it.
    Seen,
    /// Only this machine reaches the listener.
    Local,
    Unknown,
}

impl Inspector {
    pub(super) fn sources(&self) -> Sources {
        let config = self.state.config.load();
        let source = |(name, source): (&String, &config::Source)| ShownSource {
            name: name.clone(),
            url: self.url(name),
            header: (!source.allow_unauthenticated).then(|| source.header.clone()),
            secrets: source.secrets.iter().map(|secret| secret.expose().to_owned()).collect(),
            last_ms: self.state.calls.ring(name).last_arrival_ms(),
        };
        Sources {
            build: &BUILD,
            version: env!("CARGO_PKG_VERSION"),
            login: self.access.needs_login(),
            unknown: UNKNOWN_SOURCE,
            places: self.streams.available_permits(),
            sources: config.sources.iter().map(source).collect(),
        }
    }

    /// Where Weni reaches a source.
    pub(super) fn url(&self, source: &str) -> ShownUrl {
        let config = self.state.config.load();
        let path = format!("/hooks/{source}");
        let shown = |basis, url: Option<String>, host: Option<String>| {
            let url = url.map(|base| base + &path);
            ShownUrl { url, basis, host, path: path.clone() }
        };
        if let Some(base) = &config.http.public_url {
            return shown(UrlBasis::Configured, Some(base.clone()), None);
        }
        let public = self.state.public;
        let scheme = if config.http.tls.is_some() { "https" } else { "http" };
        if let Some(host) = self.state.calls.ring(source).host() {
            let url = host.scheme.map(|scheme| format!("{scheme}://{}", host.authority));
            return shown(UrlBasis::Seen, url, Some(host.authority));
        }
        if public.ip().is_loopback() {
            return shown(UrlBasis::Local, Some(format!("{scheme}://{public}")), None);
        }
        shown(UrlBasis::Unknown, None, None)
    }
}
