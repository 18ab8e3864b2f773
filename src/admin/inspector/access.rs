//! Who may use the inspector: the login, its sessions, and what a browser's request must say.
//!
//! Without a token the inspector is open on a loopback listener and absent from any other.
//!
//! **Invariant:** a wrong token costs its caller a second, and few may try at once. So nobody guesses
//! a token, and probes keep their connections.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use http::{HeaderMap, header};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::Problem;
use crate::{
    calls::is_loopback,
    http::{Digest256, State, digest, header_text as text, is_among},
};

/// Logins at once.
const ATTEMPTS: usize = 4;
/// What a wrong token costs.
const DELAY: Duration = Duration::from_secs(1);
/// Life of a session.
const SESSION: Duration = Duration::from_secs(12 * 60 * 60);
/// A further login ends the oldest session.
const SESSIONS_MAX: usize = 32;

pub(super) struct Access {
    state: State,
    /// Only this machine reaches the listener.
    is_local: bool,
    /// Several edges may be forwarded to one host, whose cookies all ports share.
    cookie: String,
    logins: Mutex<VecDeque<Login>>,
    attempts: Semaphore,
}

struct Login {
    session: Digest256,
    /// The token that it was made with.
    token: Digest256,
    until: Instant,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LoginRequest {
    token: String,
}

/// The right to look, for as long as it lasts: the digest of a session's id; none where no login is
/// needed.
pub(super) type Pass = Option<Digest256>;

impl Access {
    pub(super) fn new(state: State, is_local: bool) -> Self {
        let cookie = format!("weni_edge_{}", &state.journal.id().simple().to_string()[..8]);
        let (logins, attempts) = (Mutex::default(), Semaphore::new(ATTEMPTS));
        Self { state, is_local, cookie, logins, attempts }
    }

    pub(super) fn needs_login(&self) -> bool {
        !self.state.config.load().admin.tokens.is_empty()
    }

    /// Whether there is an inspector for this request at all.
    pub(super) fn check_place(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if self.needs_login() {
            return Ok(());
        }
        if !self.is_local {
            return Err(Problem::OFF);
        }
        // Else a page of another site could read it through a name that it points to 127.0.0.1.
        let is_own = text(headers, header::HOST).is_some_and(is_loopback) && !is_forwarded(headers);
        if is_own { Ok(()) } else { Err(Problem::WRONG_HOST) }
    }

    /// Who asks. Fails if a login is needed.
    pub(super) fn pass(&self, headers: &HeaderMap) -> Result<Pass, Problem> {
        if !self.needs_login() {
            return Ok(None);
        }
        let session = |pair: &str| {
            let id = pair.trim().strip_prefix(&self.cookie)?.strip_prefix('=')?;
            Some(digest(id.as_bytes()))
        };
        let cookies = headers.get_all(header::COOKIE).into_iter();
        let pairs =
            cookies.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(';'));
        let mut passes = pairs.filter_map(session).map(Some);
        passes.find(|pass| self.is_valid(*pass)).ok_or(Problem::LOGIN_NEEDED)
    }

    /// Whether a pass still holds: a login ends with its time, and with its token.
    pub(super) fn is_valid(&self, pass: Pass) -> bool {
        let Some(session) = pass else { return !self.needs_login() };
        let tokens = self.token_digests();
        let mut logins = self.logins.lock();
        logins.retain(|login| login.until > Instant::now() && tokens.contains(&login.token));
        logins.iter().any(|login| login.session == session)
    }

    /// Logs in. Gives the cookie back. Fails if too many logins are under way.
    pub(super) async fn log_in(
        &self,
        headers: &HeaderMap,
        request: impl Future<Output = Result<LoginRequest, Problem>>,
    ) -> Result<String, Problem> {
        // Before the request's body is read, so that slow ones hold no more connections than this.
        let _attempt = self.attempts.try_acquire().map_err(|_| {
            self.count("throttled");
            Problem::TOO_MANY_LOGINS
        })?;
        let LoginRequest { token } = request.await?;
        let token = token.trim().as_bytes();
        if !is_among(&self.token_digests(), token) {
            self.count("wrong");
            tracing::warn!("a login to the inspector with a wrong token");
            tokio::time::sleep(DELAY).await;
            return Err(Problem::WRONG_TOKEN);
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
        let origin = text(headers, header::ORIGIN).unwrap_or_default();
        let secure = if origin.starts_with("https://") { "; Secure" } else { "" };
        let seconds = SESSION.as_secs();
        Ok(format!("{}={id}; Max-Age={seconds}; {}{secure}", self.cookie, Self::ATTRIBUTES))
    }

    /// No script reads the cookie, and no other site's page sends it.
    const ATTRIBUTES: &str = "Path=/inspector; HttpOnly; SameSite=Strict";

    /// Ends a session. Gives the cookie back that removes it.
    pub(super) fn log_out(&self, pass: Pass) -> String {
        self.logins.lock().retain(|login| Some(login.session) != pass);
        format!("{}=; Max-Age=0; {}", self.cookie, Self::ATTRIBUTES)
    }

    fn token_digests(&self) -> Vec<Digest256> {
        let config = self.state.config.load();
        config.admin.tokens.iter().map(|token| digest(token.expose().as_bytes())).collect()
    }

    fn count(&self, outcome: &str) {
        self.state.metrics.admin_logins_total.with_label_values(&[outcome]).inc();
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
    if is_own { Ok(()) } else { Err(Problem::OTHER_SITE) }
}

/// Whether a proxy says that it passes on another machine's request.
fn is_forwarded(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| {
        let name = name.as_str();
        matches!(name, "forwarded" | "via" | "x-real-ip") || name.starts_with("x-forwarded-")
    })
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
