//! The address that Weni calls: whether Weni can use it, and what answers there.

use std::{fmt::Display, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Aspect, Finding, Report, Severity, Subject, block_on, certificate, machine::compare_clocks,
};
use crate::caller::is_public;

/// The limit for each step: a name's addresses, a connection, a handshake, an answer.
const STEP: Duration = Duration::from_secs(5);
const ASPECT: Aspect = Aspect::PublicUrl;
const NO_ANSWER: &str = "nothing answers";

pub(super) fn probe(subject: &Subject, report: &Report) {
    let Some(url) = &subject.config.http.public_url else {
        let found = "http.public_url is not set, so the address that Weni calls was not looked at";
        let remedy = "set it to scheme and host of the URL in Weni, such as \
                      \"https://edge.example.com\"";
        return report.add(ASPECT.warning(found, remedy));
    };
    let judged = judge(url);
    let is_usable = judged.iter().all(|finding| finding.severity < Severity::Problem);
    report.all(judged);
    let visiting = visit(url, &subject.roots, report);
    let visited = if is_usable { block_on(ASPECT, visiting) } else { Ok(None) };
    let date = visited.unwrap_or_else(|finding| {
        report.add(finding);
        None
    });
    report.add(compare_clocks(date.as_deref(), Timestamp::now()));
}

/// The host of a checked URL, without the brackets of an IPv6 address.
pub(super) fn host(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    Some(uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned())
}

/// What the URL says without a look at the network.
fn judge(url: &str) -> Vec<Finding> {
    let host = host(url).unwrap_or_default();
    let mut findings = Vec::new();
    if url.starts_with("http://") {
        let found =
            format!("{url} is not encrypted: all on the way read the secret and the messages");
        let remedy = "give the address a certificate ([http.tls], a load balancer or an ingress), and \
                      enter https:// in Weni";
        findings.push(ASPECT.warning(found, remedy));
    }
    let is_private = match host.parse::<IpAddr>() {
        Ok(address) => !is_public(address),
        Err(_) => {
            let name = host.trim_end_matches('.').to_ascii_lowercase();
            let ends = ["local", "internal", "localhost", "svc", "lan", "home", "corp", "test"];
            !name.contains('.') || ends.iter().any(|end| name.ends_with(&format!(".{end}")))
        }
    };
    if is_private {
        let found = format!("{host} is not an address of the internet, so Weni cannot reach it");
        let remedy = "use a public name that leads to this edge; to try the edge out, a tunnel gives \
                      one";
        findings.push(ASPECT.problem(found, remedy));
    }
    findings
}

/// Resolves the name, connects, looks at the certificate, and asks for `/` to learn the server's `Date`. The
/// request has no secret, and an edge counts it as a refused call. An error is the last finding.
async fn visit(
    url: &str,
    roots: &RootCertStore,
    report: &Report,
) -> Result<Option<String>, Finding> {
    let host = host(url).unwrap_or_default();
    let is_https = url.starts_with("https://");
    let port = url.parse::<Uri>().ok().and_then(|uri| uri.port_u16());
    let port = port.unwrap_or(if is_https { 443 } else { 80 });
    let looking = tokio::net::lookup_host((host.as_str(), port));
    let addresses = step(looking, "no name server answers").await.map_err(|why| {
        let remedy = "create the name (an A or AAAA record), or correct http.public_url";
        ASPECT.problem(format!("{host} has no address: {why}"), remedy)
    })?;
    let addresses: Vec<_> = addresses.collect();
    if !addresses.iter().any(|address| is_public(address.ip())) {
        let listed: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
        let found = format!("from here {host} leads only to {}", listed.join(", "));
        let remedy = "compare with a public name server: Weni cannot reach such an address";
        report.add(ASPECT.warning(found, remedy));
    }
    let connecting = TcpStream::connect(&addresses[..]);
    let stream = step(connecting, NO_ANSWER).await.map_err(|why| {
        let remedy = "let the port through to http.listen (firewall, balancer, service). If it is, this \
                      network may have no way back to itself: try `weni-edge check --url` from \
                      elsewhere";
        ASPECT.warning(format!("{url} cannot be reached from here: {why}"), remedy)
    })?;
    let answers = ASPECT.ok(format!("a server answers at {url}"));
    if !is_https {
        report.add(answers);
        return Ok(date_of(url, stream).await);
    }
    let stream = handshake(&host, stream).await.map_err(|why| {
        let remedy = "have something that speaks TLS 1.2 or 1.3 with a certificate for the name listen \
                      there";
        ASPECT.problem(format!("{host} {why}"), remedy)
    })?;
    report.add(answers);
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    for judged in certificate::judge(chain, Some(&host), roots, UnixTime::now()) {
        let found = format!("the certificate at {host}: {}", judged.found);
        report.add(Finding { found, ..judged });
    }
    Ok(date_of(url, stream).await)
}

/// What comes within the time of a step, or why nothing does. `silent` says what a timeout means.
async fn step<T, E: Display>(
    future: impl Future<Output = Result<T, E>>,
    silent: &str,
) -> Result<T, String> {
    match timeout(STEP, future).await {
        Ok(output) => output.map_err(|error| error.to_string()),
        Err(_) => Err(format!("{silent} within {} s", STEP.as_secs())),
    }
}

/// The header `Date` of an answer over this connection, if there is one.
async fn date_of(
    url: &str,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let request = Request::head("/").header(header::HOST, uri.authority()?.as_str());
    let request = request.body(Empty::<Bytes>::new()).ok()?;
    let exchange = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    let answer = step(exchange, NO_ANSWER).await.ok()?;
    Some(answer.headers().get(header::DATE)?.to_str().ok()?.to_owned())
}

/// Takes any certificate, because [`certificate::judge`] judges what the server shows. No secret is sent over
/// the connection.
async fn handshake(host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
    const SILENT: &str = "does not agree on TLS";
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| "is not a name that a certificate can have")?;
    let provider = ring::default_provider();
    let verifier = AnyCertificate(provider.signature_verification_algorithms);
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let agreed = async { connecting.await.map_err(|error| format!("{SILENT}: {error}")) };
    step(agreed, SILENT).await
}

#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _own: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Instant};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn weni_needs_a_name_of_the_internet_and_should_use_https() {
        use Severity::{Problem, Warning};
        for (url, expected) in [
            ("https://edge.example.com", &[][..]),
            ("https://edge.example.com:8443", &[]),
            ("https://[2001:4860:4860::8888]", &[]),
            ("http://edge.example.com", &[Warning]),
            ("http://127.0.0.1:8080", &[Warning, Problem]),
            ("https://10.1.2.3", &[Problem]),
            ("https://100.64.0.1", &[Problem]),
            ("https://169.254.169.254", &[Problem]),
            ("https://[::1]", &[Problem]),
            ("https://[::ffff:192.168.0.1]", &[Problem]),
            ("https://[fd00::1]", &[Problem]),
            ("https://localhost", &[Problem]),
            ("https://edge", &[Problem]),
            ("https://edge.shop.svc", &[Problem]),
            ("https://edge.local", &[Problem]),
        ] {
            let judged: Vec<_> = judge(url).iter().map(|finding| finding.severity).collect();
            assert_eq!(judged, expected, "{url}");
        }
    }

    #[tokio::test]
    async fn a_server_that_answers_is_said_and_its_certificate_judged() {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let chain = vec![pair.cert.der().clone()];
        let mut roots = RootCertStore::empty();
        roots.add(chain[0].clone()).unwrap();
        let key = pair.signing_key.serialize_der().try_into().unwrap();
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let serve = async {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let answer = "HTTP/1.1 404 No\r\ndate: Fri, 27 Nov 2026 10:00:00 GMT\r\n\r\n";
                assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        };
        let (sender, findings) = mpsc::channel();
        let report = Report { probe: 0, deadline: Instant::now(), sender };
        let date = tokio::select! {
            visited = visit(&url, &roots, &report) => visited.unwrap(),
            () = serve => unreachable!(),
        };
        drop(report);
        let findings: Vec<_> = findings.iter().filter_map(|(_, finding)| finding).collect();
        let found: Vec<_> = findings.iter().map(|finding| finding.found.as_str()).collect();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("from here localhost leads only to"), "{found:?}");
        assert_eq!(found[1], format!("a server answers at {url}"));
        assert!(found[2].contains("valid until"), "{found:?}");
        assert_eq!(date.as_deref(), Some("Fri, 27 Nov 2026 10:00:00 GMT"));
    }
}
