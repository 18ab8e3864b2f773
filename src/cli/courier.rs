//! Calls a webhook the way Weni's Courier does.
//!
//! Chunked whatever the method, the first chunk of a GET or DELETE one byte, no Content-Type of
//! its own, connections kept for 15 idle seconds, HTTP/2 where TLS offers it, no redirect
//! followed, nothing ever repeated (`handlers/webhook.go` of weni-ai/courier, and Go's client).
//!
//! **Invariant:** one call is sent at most once.

use std::{
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

const USER_AGENT: &str = concat!("Courier/0.0.0 (weni-edge send ", env!("CARGO_PKG_VERSION"), ")");
const TIMEOUT: Duration = Duration::from_secs(60);
const IDLE: Duration = Duration::from_secs(15);

/// Headers that HTTP itself sets.
const HEADERS_REFUSED: [HeaderName; 4] =
    [header::CONNECTION, header::CONTENT_LENGTH, header::HOST, header::TRANSFER_ENCODING];

/// Whom to call, and how.
pub(super) struct Target {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    method: Method,
    /// As HTTP/1.1 wants them; HTTP/2 has no Host and no Transfer-Encoding.
    headers: HeaderMap,
}

impl Target {
    /// Reads the URL and, for https, the certificates of `ca_file` (Mozilla's without it).
    ///
    /// # Errors
    /// Says what is wrong with URL, header or file.
    pub(super) fn new(
        url: &str,
        method: Method,
        own_headers: &[(HeaderName, HeaderValue)],
        ca_file: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is not a URL"))?;
        let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else {
            bail!("{url} is not a whole URL: use one such as http://localhost:8080/hooks/loja");
        };
        let (tls, port) = match uri.scheme_str() {
            Some("http") => (None, 80),
            Some("https") => (Some(tls(host, ca_file)?), 443),
            _ => bail!("{url} is neither http:// nor https://"),
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(authority.as_str())?);
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        for (name, value) in own_headers {
            if HEADERS_REFUSED.contains(name) {
                bail!("header {name} is set by HTTP itself: leave it out");
            }
            headers.insert(name, value.clone());
        }
        if !headers.contains_key(header::ACCEPT_ENCODING) {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
        Ok(Self { port: uri.port_u16().unwrap_or(port), host, tls, method, headers, uri })
    }
}

fn tls(host: &str, ca_file: Option<&Path>) -> anyhow::Result<(TlsConnector, ServerName<'static>)> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(file) => {
            let name = || format!("cannot read certificates from {}", file.display());
            for certificate in CertificateDer::pem_file_iter(file).with_context(name)? {
                roots.add(certificate.with_context(name)?).with_context(name)?;
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from(host.to_string())
        .with_context(|| format!("{host} is not a name that a certificate can have"))?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// Why nothing came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub(super) enum Failure {
    #[error("no connection")]
    Connect,
    #[error("no TLS")]
    Tls,
    #[error("no answer in 60 s")]
    Timeout,
    #[error("closed before the answer")]
    Closed,
    #[error("answer is not HTTP")]
    Malformed,
}

/// One caller with one connection, which it keeps while it is in use.
pub(super) struct Courier {
    target: Arc<Target>,
    connection: Option<Connection>,
    used: Instant,
}

enum Connection {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Courier {
    pub(super) fn new(target: Arc<Target>) -> Self {
        Self { target, connection: None, used: Instant::now() }
    }

    /// Sends one body and waits for the whole answer, 60 s at most, as Weni does.
    ///
    /// # Errors
    /// The call is over then, and may have been received.
    pub(super) async fn call(&mut self, body: Bytes) -> Result<Answer, Failure> {
        let answer = match tokio::time::timeout(TIMEOUT, self.exchange(body)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::Timeout),
        };
        if answer.is_err() {
            self.connection = None;
        }
        self.used = Instant::now();
        answer
    }

    async fn exchange(&mut self, body: Bytes) -> Result<Answer, Failure> {
        let request = |version| {
            let body = Body::new(body, &self.target.method);
            self.target.request(version, body)
        };
        let kept = match self.connection.take() {
            Some(kept) if self.used.elapsed() < IDLE => kept.ready().await,
            _ => None,
        };
        let connection = match kept {
            Some(connection) => connection,
            None => self.target.connect().await?,
        };
        let response = match self.connection.insert(connection) {
            Connection::Http1(sender) => sender.send_request(request(http::Version::HTTP_11)).await,
            Connection::Http2(sender) => sender.send_request(request(http::Version::HTTP_2)).await,
        };
        Answer::read(response.map_err(|error| Failure::of(&error))?).await
    }
}

impl Target {
    fn request(&self, version: http::Version, body: Body) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.version_mut() = version;
        *request.headers_mut() = self.headers.clone();
        if version == http::Version::HTTP_2 {
            *request.uri_mut() = self.uri.clone();
            request.headers_mut().remove(header::HOST);
            request.headers_mut().remove(header::TRANSFER_ENCODING);
        } else if let Some(path) = self.uri.path_and_query() {
            *request.uri_mut() = path.clone().into();
        }
        request
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        let stream = stream.map_err(|_| Failure::Connect)?;
        let Some((connector, name)) = &self.tls else {
            return Connection::http1(stream).await;
        };
        let stream = connector.connect(name.clone(), stream).await.map_err(|_| Failure::Tls)?;
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            Connection::http2(stream).await
        } else {
            Connection::http1(stream).await
        }
    }
}

impl Connection {
    /// Itself, if it is still open.
    async fn ready(mut self) -> Option<Self> {
        let ready = match &mut self {
            Self::Http1(sender) => sender.ready().await,
            Self::Http2(sender) => sender.ready().await,
        };
        ready.ok().map(|()| self)
    }

    async fn http1<S>(stream: S) -> Result<Self, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake =
            http1::Builder::new().title_case_headers(true).handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| Failure::of(&error))?;
        // What goes wrong on the connection is told to the call that is waiting for it.
        tokio::spawn(async move { connection.await.ok() });
        Ok(Self::Http1(sender))
    }

    async fn http2<S>(stream: S) -> Result<Self, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake =
            http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| Failure::of(&error))?;
        tokio::spawn(async move { connection.await.ok() });
        Ok(Self::Http2(sender))
    }
}

impl Answer {
    async fn read(response: Response<Incoming>) -> Result<Self, Failure> {
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| Failure::of(&error))?;
        Ok(Self { status, body: body.to_bytes() })
    }
}

impl Failure {
    fn of(error: &hyper::Error) -> Self {
        if error.is_parse() { Self::Malformed } else { Self::Closed }
    }
}

/// A body of unknown length, so that it goes out in chunks.
struct Body {
    parts: [Bytes; 2],
}

impl Body {
    fn new(mut body: Bytes, method: &Method) -> Self {
        // Go's client looks whether there is a body before it sends one where none is usual.
        let usual = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
        let first = if usual { body.len() } else { body.len().min(1) };
        let parts = [body.split_to(first), body];
        Self { parts }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let part = self.parts.iter_mut().find(|part| !part.is_empty());
        Poll::Ready(part.map(|part| Ok(Frame::data(std::mem::take(part)))))
    }
}
