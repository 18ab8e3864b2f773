//! What to paste into Weni's settings, for each source.

use serde_json::{Value as Json, json};

use super::{BUILD, Inspector};
use crate::{
    config::{self, Config},
    metrics::UNKNOWN_SOURCE,
};

impl Inspector {
    /// All sources, as the page gets them.
    pub(super) fn sources(&self) -> Json {
        let config = self.state.config.load();
        let source = |(name, source): (&String, &config::Source)| {
            let secrets = source.secrets.iter().map(config::Secret::expose);
            let (basis, base, host) = self.public_base(&config, name);
            let path = format!("/hooks/{name}");
            json!({
                "name": name,
                // `host` is shown where the scheme is not known.
                "url": {
                    "url": base.map(|base| base + &path),
                    "basis": basis,
                    "host": host,
                    "path": path,
                },
                // None: anyone who knows the URL may call.
                "header": (!source.allow_unauthenticated).then_some(&source.header),
                // Each of them is valid.
                "secrets": secrets.collect::<Vec<_>>(),
                // When Weni's last call arrived: milliseconds since 1970.
                "last_ms": self.state.calls.ring(name).last_arrival_ms(),
            })
        };
        json!({
            "build": *BUILD,
            "version": env!("CARGO_PKG_VERSION"),
            // Someone has logged in and may log out.
            "login": self.access.needs_login(),
            // The name under which calls are shown that name no source.
            "unknown": UNKNOWN_SOURCE,
            // Pages that may still follow the calls.
            "places": self.streams.available_permits(),
            "sources": config.sources.iter().map(source).collect::<Vec<_>>(),
        })
    }

    /// Where Weni reaches a source: why the edge believes it, the URL without its path if all of it is
    /// known, and the host if callers used one.
    pub(super) fn public_base(
        &self,
        config: &Config,
        source: &str,
    ) -> (&'static str, Option<String>, Option<String>) {
        let public = self.state.public;
        if let Some(base) = &config.http.public_url {
            ("configured", Some(base.clone()), None)
        } else if let Some(host) = self.state.calls.ring(source).host() {
            let base = host.scheme.map(|scheme| format!("{scheme}://{}", host.authority));
            ("seen", base, Some(host.authority))
        } else if public.ip().is_loopback() {
            let scheme = if config.http.tls.is_some() { "https" } else { "http" };
            ("local", Some(format!("{scheme}://{public}")), None)
        } else {
            ("unknown", None, None)
        }
    }
}
