//! What to paste into Weni's settings, for each source, and a test of it.
//!
//! The test is a call through the public door, made as Weni makes it. It proves all but Weni's side. It
//! becomes a channel event of the field `edge_test`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Method, Response};
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tokio::time::timeout;

use super::{BUILD, Body, Inspector, Problem, json_answer};
use crate::{
    caller::{CallFailure, EDGE_TEST, MessageId, Target, Template, WeniClient, on_this_machine},
    config::{self, Config},
    metrics::UNKNOWN_SOURCE,
};

/// A door that does not answer within this time is called closed.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TestRequest {
    source: String,
}

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
    fn public_base(
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

    /// Calls the public URL if one is configured. If that does not answer 200, or there is none, calls
    /// the listener directly.
    pub(super) async fn test(&self, request: TestRequest) -> Result<Response<Body>, Problem> {
        let _alone = self.tests.try_acquire().map_err(|_| Problem::TOO_MANY_TESTS)?;
        let config = self.state.config.load_full();
        let source = config.sources.get(&request.source).ok_or(Problem::NOT_FOUND)?;
        let name = HeaderName::try_from(&source.header).ok();
        let secret = source.secrets.first();
        let value = secret.and_then(|secret| HeaderValue::from_str(secret.expose()).ok());
        let headers: Vec<_> = name.zip(value).into_iter().collect();
        let mut results = Vec::new();
        let url = |base: &str| format!("{base}/hooks/{}", request.source);
        if let Some(base) = &config.http.public_url {
            results.push(call("public", &url(base), None, &headers).await);
        }
        if results.iter().all(|result| result["status"] != 200) {
            let address = on_this_machine(self.state.public);
            let scheme = if config.http.tls.is_some() { "https://" } else { "http://" };
            // Over TLS the certificate's name counts, wherever the connection goes.
            let (_, base, _) = self.public_base(&config, &request.source);
            let base = base.filter(|base| base.starts_with(scheme));
            let base = base.unwrap_or_else(|| format!("{scheme}{address}"));
            results.push(call("listener", &url(&base), Some(address), &headers).await);
        }
        Ok(json_answer(&results.into()))
    }
}

/// What became of a call. `way` is `public`, the whole way from outside, or straight to the `listener`.
async fn call(
    way: &str,
    url: &str,
    at: Option<SocketAddr>,
    headers: &[(HeaderName, HeaderValue)],
) -> Json {
    let body = Template::new(&EDGE_TEST, 0).fill(&MessageId::fresh());
    let answered = async {
        let target = Target::new(url, Method::POST, headers, None);
        let mut target = target.map_err(|error| error.to_string())?;
        if let Some(address) = at {
            target = target.at(address);
        }
        let mut client = WeniClient::new(Arc::new(target));
        let answer = timeout(PATIENCE, client.call(body.into())).await;
        let answer = answer.unwrap_or(Err(CallFailure::Timeout.into()));
        answer.map(|answer| answer.status().as_u16()).map_err(|failure| failure.to_string())
    };
    match answered.await {
        Ok(status) => json!({"way": way, "url": url, "status": status}),
        Err(failure) => json!({"way": way, "url": url, "failure": failure}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_each_failure_in_both_languages_and_what_to_do_about_tls() {
        use CallFailure::{Closed, Connect, Malformed, Timeout, Tls};
        let texts = include_str!("texts.js");
        for failure in [Connect, Tls, Timeout, Closed, Malformed] {
            let key = format!("\"{failure}\": ");
            let said: Vec<_> = texts.lines().filter(|line| line.contains(&key)).collect();
            assert_eq!(said.len(), 2, "{failure}");
            let has_remedy = said.iter().all(|line| line.contains("http.public_url"));
            assert!(failure != Tls || has_remedy, "{said:?}");
        }
    }
}
