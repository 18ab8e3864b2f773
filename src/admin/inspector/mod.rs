//! The inspector: one page for the person who pastes the URL into Weni's settings.
//!
//! It shows what to paste, the last calls as they arrive, and what was wrong with refused ones.
//! `access` says who may look, `sources` what to paste and whether it works, `describe` what a call was,
//! and `stream` sends new calls.
//!
//! **Invariant:** no header's value and no body goes to anyone without a login, where one is needed.
//! **Invariant:** nothing is computed unless someone looks, except the words for a few refused calls a
//! second. Who looks holds at most [`STREAMS`] connections, and a browser that stands still is sent
//! nothing.

mod access;
mod describe;
mod sources;
mod stream;

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Either, Full, Limited, channel::Channel};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::Value as Json;
use tokio::{sync::Semaphore, time::timeout};
use uuid::Uuid;

use self::access::Access;
use crate::http::{RequestGuard, State, answer, digest};

/// The body of an answer: whole, or a stream.
pub(super) type Body = Either<Full<Bytes>, Channel<Bytes>>;

/// Streams of events at once. The admin listener has 64 connections, and probes need some.
const STREAMS: usize = 8;
/// Calls that are read with their bodies at once. Each may take several times `http.max_body_bytes`.
const DETAILS: usize = 2;
/// A person's request has a token or a name.
const BODY_BYTES_MAX: usize = 4 << 10;
const BODY_TIME: Duration = Duration::from_secs(2);

const PAGE: &str = include_str!("page.html");
const ASSETS: [(&str, &str, &str); 5] = [
    ("/inspector/icon.svg", "image/svg+xml", include_str!("icon.svg")),
    ("/inspector/page.css", "text/css; charset=utf-8", include_str!("page.css")),
    ("/inspector/page.js", "text/javascript; charset=utf-8", include_str!("page.js")),
    ("/inspector/tools.js", "text/javascript; charset=utf-8", include_str!("tools.js")),
    ("/inspector/texts.js", "text/javascript; charset=utf-8", include_str!("texts.js")),
];

/// Names this version of the page. A page that sees another one loads itself again.
static BUILD: LazyLock<String> = LazyLock::new(|| {
    let program = concat!(env!("CARGO_PKG_VERSION"), "\n");
    let revision = option_env!("WENI_EDGE_REVISION").unwrap_or_default();
    let assets = ASSETS.map(|(.., text)| text).concat();
    hex::encode(&digest([program, revision, PAGE, &assets].concat().as_bytes())[..8])
});

/// Headers of every answer: nothing from elsewhere, nothing inline, in no frame.
const HEADERS: [(header::HeaderName, &str); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
         img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// What the page is told when it does not get what it asked for.
struct Problem(StatusCode, &'static str);

impl Problem {
    /// The listener is not on loopback, and there is no token.
    const OFF: Self = Self(
        StatusCode::NOT_FOUND,
        "The inspector is off: the admin listener is not on loopback, so it needs \
         admin.token_file.",
    );
    const WRONG_HOST: Self = Self(
        StatusCode::FORBIDDEN,
        "Without admin.token_file the inspector answers only to localhost and 127.0.0.1.",
    );
    const OTHER_SITE: Self =
        Self(StatusCode::FORBIDDEN, "The request came from another site's page.");
    const LOGIN_NEEDED: Self = Self(StatusCode::UNAUTHORIZED, "A login is needed.");
    const WRONG_TOKEN: Self = Self(StatusCode::UNAUTHORIZED, "This is not the admin token.");
    const TOO_MANY_LOGINS: Self =
        Self(StatusCode::TOO_MANY_REQUESTS, "Too many logins at once: try again in a second.");
    const TOO_MANY_STREAMS: Self =
        Self(StatusCode::SERVICE_UNAVAILABLE, "Eight pages follow the calls already.");
    const TOO_MANY_TESTS: Self =
        Self(StatusCode::TOO_MANY_REQUESTS, "A test is under way already.");
    const TOO_MANY_DETAILS: Self =
        Self(StatusCode::TOO_MANY_REQUESTS, "Other calls are being read: try again in a second.");
    const NOT_FOUND: Self = Self(StatusCode::NOT_FOUND, "There is no such page or call.");
    const WRONG_METHOD: Self = Self(StatusCode::METHOD_NOT_ALLOWED, "Use GET, or POST to change.");
    const WRONG_BODY: Self =
        Self(StatusCode::BAD_REQUEST, "The request's body is not what it should be.");
    const RECYCLED: Self =
        Self(StatusCode::GONE, "The call is in Kafka, and the journal does not have it any more.");
    const UNREADABLE: Self =
        Self(StatusCode::INTERNAL_SERVER_ERROR, "The journal's record cannot be read.");

    fn response(self) -> Response<Body> {
        let Self(status, text) = self;
        let mut response = whole(status, "text/plain; charset=utf-8", [text, "\n"].concat());
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

pub(super) struct Inspector {
    pub(super) state: State,
    access: Access,
    streams: Arc<Semaphore>,
    tests: Semaphore,
    details: Arc<Semaphore>,
    /// Numbers of calls begin again in another process.
    run: Uuid,
}

impl Inspector {
    /// `is_local`: only this machine reaches the listener.
    pub(super) fn new(state: State, is_local: bool) -> Self {
        Self {
            access: Access::new(state.clone(), is_local),
            state,
            streams: Arc::new(Semaphore::new(STREAMS)),
            tests: Semaphore::new(1),
            details: Arc::new(Semaphore::new(DETAILS)),
            run: Uuid::new_v4(),
        }
    }

    pub(super) fn has(path: &str) -> bool {
        path == "/" || path == "/inspector" || path.starts_with("/inspector/")
    }

    /// Answers one request. The guard keeps the connection of a stream.
    pub(super) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        guard: RequestGuard,
    ) -> Response<Body> {
        let mut response = self.route(request, guard).await.unwrap_or_else(Problem::response);
        for (name, value) in HEADERS {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }

    async fn route(
        self: Arc<Self>,
        request: Request<Incoming>,
        guard: RequestGuard,
    ) -> Result<Response<Body>, Problem> {
        let (head, body) = request.into_parts();
        let (headers, path) = (&head.headers, head.uri.path());
        self.access.check_place(headers)?;
        let is_get = matches!(head.method, Method::GET | Method::HEAD);
        if is_get && let Some(page) = page(path) {
            return Ok(page);
        }
        access::check_origin(headers)?;
        match (&head.method, path) {
            (&Method::POST, "/inspector/login") => {
                let cookie = self.access.log_in(headers, read(headers, body)).await?;
                Ok(with_cookie(&cookie))
            }
            (&Method::POST, "/inspector/logout") => {
                let pass = self.access.pass(headers)?;
                read::<serde_json::Map<_, _>>(headers, body).await?;
                Ok(with_cookie(&self.access.log_out(pass)))
            }
            (&Method::POST, "/inspector/test") => {
                self.access.pass(headers)?;
                self.test(read(headers, body).await?).await
            }
            _ if !is_get => Err(Problem::WRONG_METHOD),
            (_, "/inspector/sources") => {
                self.access.pass(headers)?;
                Ok(json_answer(&self.sources()))
            }
            (_, "/inspector/events") => {
                let pass = self.access.pass(headers)?;
                self.follow(pass, guard)
            }
            (_, path) => {
                self.access.pass(headers)?;
                let call =
                    path.strip_prefix("/inspector/calls/").and_then(|call| call.split_once('/'));
                let (source, number) = call.ok_or(Problem::NOT_FOUND)?;
                self.call(source, number.parse().map_err(|_| Problem::NOT_FOUND)?).await
            }
        }
    }
}

/// The page and what belongs to it. They hold nothing of this edge.
fn page(path: &str) -> Option<Response<Body>> {
    match path {
        "/" => {
            let mut response = whole(StatusCode::SEE_OTHER, "text/plain", "/inspector\n");
            response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/inspector"));
            Some(response)
        }
        "/inspector" | "/inspector/" => {
            let page = PAGE.replace("BUILD", &BUILD);
            Some(whole(StatusCode::OK, "text/html; charset=utf-8", page))
        }
        path => {
            let (_, kind, text) = ASSETS.into_iter().find(|(asset, ..)| *asset == path)?;
            Some(whole(StatusCode::OK, kind, text))
        }
    }
}

/// An answer that is no stream.
fn whole(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    answer(status, content_type, Either::Left(Full::new(body.into())))
}

fn json_answer(value: &Json) -> Response<Body> {
    whole(StatusCode::OK, "application/json", value.to_string())
}

fn with_cookie(cookie: &str) -> Response<Body> {
    let mut response = whole(StatusCode::NO_CONTENT, "text/plain", "");
    // INVARIANT: hexadecimal digits and fixed words.
    let cookie = HeaderValue::from_str(cookie).expect("a header's value");
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    response
}

/// The JSON of a request. Its type is one that no form of another site's page can send.
async fn read<T: for<'de> Deserialize<'de>>(
    headers: &HeaderMap,
    body: Incoming,
) -> Result<T, Problem> {
    if headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind != "application/json") {
        return Err(Problem::WRONG_BODY);
    }
    let body = timeout(BODY_TIME, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    let body = body.map_err(|_| Problem::WRONG_BODY)?.map_err(|_| Problem::WRONG_BODY)?;
    serde_json::from_slice(&body.to_bytes()).map_err(|_| Problem::WRONG_BODY)
}
