//! Calls a webhook the way Weni's Courier does (`handlers/webhook.go` of weni-ai/courier, and Go's
//! client).
//!
//! Each body is chunked, whatever the method. The first chunk of a GET or DELETE is one byte. No
//! Content-Type is added, a connection is kept for 15 idle seconds, HTTP/2 is used where TLS offers
//! it, and redirects are not followed.
//!
//! **Invariant:** one call is sent at most once.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, channel::Channel};
use hyper::{
    body::Frame,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

const USER_AGENT: &str = concat!("Courier/0.0.0 (weni-edge send ", env!("CARGO_PKG_VERSION"), ")");
const TIMEOUT: Duration = Duration::from_secs(60);
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(15);

/// Headers that HTTP itself sets.
const HEADERS_REFUSED: [HeaderName; 4] =
    [header::CONNECTION, header::CONTENT_LENGTH, header::HOST, header::TRANSFER_ENCODING];

type Body = Channel<Bytes, Infallible>;

/// The webhook, and how to call it.
pub struct Target {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    method: Method,
    /// For HTTP/1.1. HTTP/2 has no Host and no Transfer-Encoding.
    headers: HeaderMap,
}

impl Target {
    /// Reads the URL. For https it trusts `roots`, or else Mozilla's.
    ///
    /// # Errors
    /// Says what is wrong with URL or header.
    pub fn new(
        url: &str,
        method: Method,
        own_headers: &[(HeaderName, HeaderValue)],
        roots: Option<&RootCertStore>,
    ) -> anyhow::Result<Self> {
        let shown = without_secrets(url);
        let uri: Uri = url.parse().with_context(|| {
            format!("{shown} is not a URL such as http://localhost:8080/hooks/loja")
        })?;
        let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else {
            bail!("{shown} is not a whole URL: use one such as http://localhost:8080/hooks/loja");
        };
        let (tls, port) = match uri.scheme_str() {
            Some("http") => (None, 80),
            Some("https") => (Some(tls(host, roots)?), 443),
            _ => bail!("{shown} is neither http:// nor https://"),
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
        headers.entry(header::ACCEPT_ENCODING).or_insert(HeaderValue::from_static("gzip"));
        let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
        Ok(Self { port: uri.port_u16().unwrap_or(port), host, tls, method, headers, uri })
    }

    /// The same webhook at another address: for a name that leads elsewhere.
    #[must_use]
    pub fn at(self, address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port(), ..self }
    }

    /// The same over HTTP/1.1, also where TLS offers HTTP/2.
    #[must_use]
    pub fn over_http1(mut self) -> Self {
        if let Some((connector, _)) = &mut self.tls {
            let mut config = ClientConfig::clone(connector.config());
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            *connector = TlsConnector::from(Arc::new(config));
        }
        self
    }

    fn request(&self, version: http::Version, body: Bytes) -> Request<Body> {
        let mut request = Request::new(chunks(body, &self.method));
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

    async fn connect(&self) -> Result<Connection, CallError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        let stream = stream.map_err(|cause| CallFailure::Connect.because(cause))?;
        let Some((connector, name)) = &self.tls else { return Ok(open_http1(stream).await?) };
        let stream = connector.connect(name.clone(), stream).await;
        let stream = stream.map_err(|cause| CallFailure::Tls.because(cause))?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Ok(open_http1(stream).await?);
        }
        let opening = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = opening.await?;
        tokio::spawn(connection);
        Ok(Connection::Http2(sender))
    }
}

/// The certificates that a caller trusts: those of `ca_file` (PEM), or else Mozilla's.
///
/// # Errors
/// The file cannot be read, or holds something else.
pub fn trusted_roots(ca_file: Option<&Path>) -> anyhow::Result<RootCertStore> {
    let Some(file) = ca_file else {
        return Ok(webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect());
    };
    let mut roots = RootCertStore::empty();
    let name = || format!("cannot read certificates from {}", file.display());
    for certificate in CertificateDer::pem_file_iter(file).with_context(name)? {
        roots.add(certificate.with_context(name)?).with_context(name)?;
    }
    if roots.is_empty() {
        bail!("{} has no certificate in PEM", file.display());
    }
    Ok(roots)
}

/// A URL, also a wrong one, without what may be secret: user, password, query and fragment.
pub fn without_secrets(url: &str) -> String {
    let is_scheme = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let scheme = url.find("://").filter(|end| is_scheme(&url[..*end])).map_or(0, |end| end + 3);
    let (scheme, rest) = url.split_at(scheme);
    let (address, query) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
    // The mark may stand in a password, and the @ in a query.
    let address = if query.contains('@') { "..." } else { address };
    scheme.to_owned() + address.rsplit('@').next().unwrap_or_default()
}

/// Whether the internet has a way to an address: neither private nor of a documentation's or another special
/// range.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [first, second, third, _] = v4.octets();
            let is_special = matches!(
                (first, second, third),
                (0 | 240.., ..) | (100, 64..128, _) | (192, 0, 0) | (198, 18 | 19, _)
            );
            !(is_special
                || v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_documentation()
                || v4.is_multicast())
        }
        IpAddr::V6(v6) => {
            let is_documentation = v6.segments()[..2] == [0x2001, 0xdb8];
            !(is_documentation
                || v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || v6.is_multicast())
        }
    }
}

/// Where to call a listener of this machine: on loopback, if it listens on every address.
pub fn on_this_machine(mut listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => listen.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => listen.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    listen
}

fn tls(
    host: &str,
    roots: Option<&RootCertStore>,
) -> anyhow::Result<(TlsConnector, ServerName<'static>)> {
    let roots = roots.map_or_else(|| trusted_roots(None), |roots| Ok(roots.clone()))?;
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

/// A body of unknown length, which HTTP/1.1 sends in chunks.
fn chunks(mut body: Bytes, method: &Method) -> Body {
    // Where a body is unusual, Go's client reads one byte to find out whether there is one.
    let is_usual = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
    let first = body.split_to(if is_usual { body.len() } else { body.len().min(1) });
    let (mut sender, chunks) = Channel::new(2);
    for chunk in [first, body].into_iter().filter(|chunk| !chunk.is_empty()) {
        // There is room for two.
        sender.try_send(Frame::data(chunk)).ok();
    }
    chunks
}

/// What the webhook answered.
pub type Answer = http::Response<Bytes>;

/// Why there is no answer.
#[expect(missing_docs, reason = "the messages say what each is")]
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error,
)]
#[serde(rename_all = "snake_case")]
pub enum CallFailure {
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

impl CallFailure {
    fn because(self, cause: io::Error) -> CallError {
        CallError { failure: self, cause: Some(cause) }
    }
}

/// A call without an answer.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub struct CallError {
    /// Why there is none.
    pub failure: CallFailure,
    /// What the system or TLS says of it. None: nothing more than that.
    #[source]
    pub cause: Option<io::Error>,
}

impl From<CallFailure> for CallError {
    fn from(failure: CallFailure) -> Self {
        Self { failure, cause: None }
    }
}

impl From<hyper::Error> for CallError {
    fn from(error: hyper::Error) -> Self {
        if error.is_parse() { CallFailure::Malformed } else { CallFailure::Closed }.into()
    }
}

/// One caller with at most one connection, which it keeps while it is in use.
pub struct WeniClient {
    target: Arc<Target>,
    connection: Option<Connection>,
    used: Instant,
}

impl WeniClient {
    /// A caller without a connection.
    pub fn new(target: Arc<Target>) -> Self {
        Self { target, connection: None, used: Instant::now() }
    }

    /// Sends one body and waits for the whole answer, at most 60 s.
    ///
    /// # Errors
    /// The webhook may have received the call all the same.
    pub async fn call(&mut self, body: Bytes) -> Result<Answer, CallError> {
        let answer = tokio::time::timeout(TIMEOUT, self.exchange(body)).await;
        self.used = Instant::now();
        answer.unwrap_or(Err(CallFailure::Timeout.into()))
    }

    async fn exchange(&mut self, body: Bytes) -> Result<Answer, CallError> {
        // A connection is kept again only after a whole answer.
        let mut kept = self.connection.take().filter(|_| self.used.elapsed() < IDLE);
        let is_open = match &mut kept {
            Some(Connection::Http1(sender)) => sender.ready().await.is_ok(),
            Some(Connection::Http2(sender)) => sender.ready().await.is_ok(),
            None => false,
        };
        // The idle one goes first: one caller has one connection.
        let mut connection = match kept.filter(|_| is_open) {
            Some(kept) => kept,
            None => self.target.connect().await?,
        };
        let request = |version| self.target.request(version, body);
        let response = match &mut connection {
            Connection::Http1(sender) => sender.send_request(request(http::Version::HTTP_11)).await,
            Connection::Http2(sender) => sender.send_request(request(http::Version::HTTP_2)).await,
        }?;
        let (head, body) = response.into_parts();
        let answer = Answer::from_parts(head, body.collect().await?.to_bytes());
        self.connection = Some(connection);
        Ok(answer)
    }
}

/// Asks an edge's admin listener, which answers at once while it is well. Returns the status and the first
/// line of the answer.
///
/// # Errors
/// There is no answer within three seconds.
pub async fn probe(authority: &str, path: &str) -> anyhow::Result<(StatusCode, String)> {
    let target = Target::new(&format!("http://{authority}{path}"), Method::GET, &[], None)?;
    let mut client = WeniClient::new(Arc::new(target));
    let Ok(answer) = tokio::time::timeout(PROBE_TIMEOUT, client.call(Bytes::new())).await else {
        bail!("{authority} does not answer within {} s", PROBE_TIMEOUT.as_secs());
    };
    let answer = answer.with_context(|| format!("{authority} does not answer"))?;
    let text = String::from_utf8_lossy(answer.body());
    Ok((answer.status(), text.lines().next().unwrap_or_default().to_owned()))
}

enum Connection {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

async fn open_http1(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> hyper::Result<Connection> {
    let opening = http1::Builder::new().title_case_headers(true).handshake(TokioIo::new(stream));
    let (sender, connection) = opening.await?;
    // The call that uses the connection gets its errors.
    tokio::spawn(connection);
    Ok(Connection::Http1(sender))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_what_may_be_secret() {
        for (url, shown) in [
            ("https://e.example/hooks/loja", "https://e.example/hooks/loja"),
            ("https://me:secret@e.example/hooks/loja", "https://e.example/hooks/loja"),
            ("https://e.example/hooks/loja?token=secret#secret", "https://e.example/hooks/loja"),
            ("https://me:se@cr/et@e.example", "https://e.example"),
            ("https://me:se?cret@e.example", "https://..."),
            ("https://e.example/hooks?to=secret@secret", "https://..."),
            ("me:secret@e.example/hooks/loja", "e.example/hooks/loja"),
            ("me:secret://secret@e.example", "e.example"),
            ("https://", "https://"),
            ("", ""),
        ] {
            assert_eq!(without_secrets(url), shown, "{url}");
        }
    }

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        let told = |text: &str| is_public(text.parse().unwrap());
        for public in ["8.8.8.8", "100.128.0.1", "198.20.0.1", "::ffff:8.8.8.8", "2001:4860::8888"]
        {
            assert!(told(public), "{public}");
        }
        for special in [
            "0.1.2.3",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.1.1",
            "172.16.0.1",
            "192.0.0.1",
            "192.0.2.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "fd00::1",
            "fe80::1",
            "ff02::1",
            "2001:db8::1",
        ] {
            assert!(!told(special), "{special}");
        }
    }
}
