//! Who may use the inspector: the login, its sessions, and what a browser's request must say.
//!
//! Without a token the inspector is open on a loopback listener and absent from any other.
//!
//! **Invariant:** a wrong token costs its caller a second, and few may try at once. So nobody guesses
//! a token, and probes keep their connections.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::{HeaderMap, header};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use uuid::Uuid;

use super::Problem;
use crate::{
    calls::is_loopback,
    config::Config,
    http::{Digest256, digest, is_among},
    metrics::Metrics,
};

/// Logins at once.
const ATTEMPTS: usize = 4;
/// What a wrong token costs.
const DELAY: Duration = Duration::from_secs(1);
/// Life of a session.
const SESSION: Duration = Duration::from_secs(12 * 60 * 60);
/// A further login ends the oldest session.
const SESSIONS_MAX: usize = 32;

/// The door of the inspector.
#[derive(Debug)]
pub(super) struct Access {
    config: Arc<ArcSwap<Config>>,
    metrics: Arc<Metrics>,
    /// Only this machine reaches the listener.
    is_local: bool,
    /// Several edges may be forwarded to one host, whose cookies all ports share.
    cookie: String,
    logins: Mutex<VecDeque<Login>>,
    attempts: Semaphore,
}

/// One login of a person.
#[derive(Debug)]
struct Login {
    session: Digest256,
    /// The token that it was made with.
    token: Digest256,
    until: Instant,
}

/// The right to look, for as long as it lasts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pass {
    /// No login is needed.
    Open,
    /// The digest of the session's id.
    Session(Digest256),
}

impl Access {
    pub(super) fn new(
        config: Arc<ArcSwap<Config>>,
        metrics: Arc<Metrics>,
        is_local: bool,
        edge: Uuid,
    ) -> Self {
        let cookie = format!("weni_edge_{}", &edge.simple().to_string()[..8]);
        let (logins, attempts) = (Mutex::default(), Semaphore::new(ATTEMPTS));
        Self { config, metrics, is_local, cookie, logins, attempts }
    }

    pub(super) fn needs_login(&self) -> bool {
        !self.config.load().admin.tokens.is_empty()
    }

    /// Whether there is an inspector for this request at all.
    pub(super) fn check_place(&self, headers: &HeaderMap) -> Result<(), Problem> {
        match (self.needs_login(), self.is_local) {
            (true, _) => Ok(()),
            (false, false) => Err(Problem::Off),
            // Else a page of another site could read it through a name that it points to 127.0.0.1.
            (false, true)
                if text(headers, header::HOST).is_some_and(is_loopback)
                    && !is_forwarded(headers) =>
            {
                Ok(())
            }
            (false, true) => Err(Problem::WrongHost),
        }
    }

    /// Who asks. Fails if a login is needed.
    pub(super) fn pass(&self, headers: &HeaderMap) -> Result<Pass, Problem> {
        if !self.needs_login() {
            return Ok(Pass::Open);
        }
        let ids = self.session_ids(headers).into_iter();
        let mut passes = ids.map(|id| Pass::Session(digest(id.as_bytes())));
        passes.find(|pass| self.is_valid(*pass)).ok_or(Problem::LoginNeeded)
    }

    /// Whether a pass still holds: a login ends with its time, and with its token.
    pub(super) fn is_valid(&self, pass: Pass) -> bool {
        let Pass::Session(session) = pass else { return !self.needs_login() };
        let tokens = self.token_digests();
        let mut logins = self.logins.lock();
        logins.retain(|login| login.until > Instant::now() && tokens.contains(&login.token));
        logins.iter().any(|login| login.session == session)
    }

    /// Begins a try to log in. Fails if too many are under way.
    pub(super) fn begin_login(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.attempts.try_acquire().map_err(|_| {
            self.count("throttled");
            Problem::TooManyLogins
        })
    }

    /// Logs in. Gives the cookie back.
    pub(super) async fn log_in(
        &self,
        token: &str,
        headers: &HeaderMap,
        _begun: SemaphorePermit<'_>,
    ) -> Result<String, Problem> {
        let token = token.trim().as_bytes();
        if !is_among(&self.token_digests(), token) {
            self.count("wrong");
            tracing::warn!("a login to the inspector with a wrong token");
            tokio::time::sleep(DELAY).await;
            return Err(Problem::WrongToken);
        }
        self.count("accepted");
        tracing::info!("a login to the inspector");
        let id = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let until = Instant::now() + SESSION;
        let mut logins = self.logins.lock();
        if logins.len() == SESSIONS_MAX {
            logins.pop_front();
        }
        logins.push_back(Login { session: digest(id.as_bytes()), token: digest(token), until });
        let secure = if is_from_https(headers) { "; Secure" } else { "" };
        let seconds = SESSION.as_secs();
        Ok(format!("{}={id}; Max-Age={seconds}; {}{secure}", self.cookie, Self::ATTRIBUTES))
    }

    /// No script reads the cookie, and no other site's page sends it.
    const ATTRIBUTES: &str = "Path=/inspector; HttpOnly; SameSite=Strict";

    /// Ends a session. Gives the cookie back that removes it.
    pub(super) fn log_out(&self, pass: Pass) -> String {
        if let Pass::Session(session) = pass {
            self.logins.lock().retain(|login| login.session != session);
        }
        format!("{}=; Max-Age=0; {}", self.cookie, Self::ATTRIBUTES)
    }

    fn token_digests(&self) -> Vec<Digest256> {
        let config = self.config.load();
        config.admin.tokens.iter().map(|token| digest(token.expose().as_bytes())).collect()
    }

    fn session_ids<'h>(&self, headers: &'h HeaderMap) -> Vec<&'h str> {
        let cookies = headers.get_all(header::COOKIE).into_iter();
        let pairs =
            cookies.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(';'));
        let id = |pair: &'h str| pair.trim().strip_prefix(&self.cookie)?.strip_prefix('=');
        pairs.filter_map(id).collect()
    }

    fn count(&self, outcome: &str) {
        self.metrics.admin_logins_total.with_label_values(&[outcome]).inc();
    }
}

/// Refuses what a page of another site asks for: to change something, or to take up a stream.
pub(super) fn check_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let is_own = match (text(headers, "sec-fetch-site"), text(headers, header::ORIGIN)) {
        // `none`: a person typed the address.
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            authority.is_some() && authority == text(headers, header::HOST)
        }
        // Browsers send one of the two with whatever changes something.
        (None, None) => true,
    };
    if is_own { Ok(()) } else { Err(Problem::OtherSite) }
}

fn is_from_https(headers: &HeaderMap) -> bool {
    text(headers, header::ORIGIN).is_some_and(|origin| origin.starts_with("https://"))
}

/// Whether a proxy says that it passes on another machine's request.
fn is_forwarded(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| {
        let name = name.as_str();
        matches!(name, "forwarded" | "via" | "x-real-ip") || name.starts_with("x-forwarded-")
    })
}

fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_loopback() {
        for host in
            ["localhost", "LOCALHOST:9090", "127.0.0.1:9090", "127.1.2.3", "[::1]:80", "[::1]"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in
            ["", "edge.example.com", "localhost.example.com:80", "10.0.0.1", "127.0.0.1.nip.io"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_page_of_another_site_asks_for_nothing() {
        let check = |pairs: &[(&'static str, &str)]| {
            let pair = |(name, value): &(&'static str, &str)| {
                (http::HeaderName::from_static(name), value.parse().unwrap())
            };
            check_origin(&pairs.iter().map(pair).collect()).is_ok()
        };
        assert!(
            check(&[]) && check(&[("sec-fetch-site", "same-origin"), ("origin", "https://proxy")])
        );
        assert!(check(&[("origin", "http://edge:9090"), ("host", "edge:9090")]));
        assert!(!check(&[("sec-fetch-site", "cross-site"), ("host", "a")]));
        assert!(!check(&[("sec-fetch-site", "same-site")]));
        assert!(!check(&[("origin", "http://edge:9091"), ("host", "edge:9090")]));
        assert!(
            !check(&[("origin", "null"), ("host", "edge:9090")]) && !check(&[("origin", "null")])
        );
    }
}
