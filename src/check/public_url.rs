//! The address that Weni calls: whether Weni can use it, and what answers there.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::Uri;
use jiff::Timestamp;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    Aspect, Finding, Report, Severity, Subject, block_on, certificate, machine::compare_clocks,
};
use crate::caller::is_public;

/// Of a name's addresses, of a connection, and of a handshake.
const STEP: Duration = Duration::from_secs(5);
/// Of an answer, more is not read.
const HEAD_BYTES_MAX: u64 = 16 << 10;
const ASPECT: Aspect = Aspect::PublicUrl;

pub(super) fn probe(subject: &Subject, report: &Report) {
    let Some(url) = &subject.config.http.public_url else {
        let found = "http.public_url is not set, so the address that Weni calls was not looked at";
        let remedy = "set it to scheme and host of the URL in Weni, such as \
                      \"https://edge.example.com\"";
        report.add(Finding::warning(ASPECT, found, remedy));
        return report.add(compare_clocks(None, Timestamp::now()));
    };
    let judged = judge(url);
    let is_usable = judged.iter().all(|finding| finding.severity < Severity::Problem);
    report.all(judged);
    let visited =
        if is_usable { block_on(ASPECT, visit(url, &subject.roots)) } else { Ok(<_>::default()) };
    let (findings, date) = visited.unwrap_or_else(|refused| (vec![refused], None));
    report.all(findings);
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
        findings.push(Finding::warning(ASPECT, found, remedy));
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
        findings.push(Finding::problem(ASPECT, found, remedy));
    }
    findings
}

/// Resolves the name, connects, looks at the certificate, and asks for `/` to learn the server's `Date`. The
/// request has no secret, and an edge counts it as a refused call.
async fn visit(url: &str, roots: &RootCertStore) -> (Vec<Finding>, Option<String>) {
    let Some(host) = host(url) else { return (Vec::new(), None) };
    let is_https = url.starts_with("https://");
    let port = url.parse::<Uri>().ok().and_then(|uri| uri.port_u16());
    let port = port.unwrap_or(if is_https { 443 } else { 80 });
    let addresses = match timeout(STEP, tokio::net::lookup_host((host.as_str(), port))).await {
        Ok(Ok(addresses)) => addresses.collect::<Vec<_>>(),
        Ok(Err(error)) => return (vec![unresolved(&host, &error.to_string())], None),
        Err(_) => return (vec![unresolved(&host, "no name server answers within 5 s")], None),
    };
    let mut findings = Vec::new();
    if !addresses.iter().any(|address| is_public(address.ip())) {
        let found = format!("from here {host} leads only to {}", listed(&addresses));
        let remedy = "compare with a public name server: Weni cannot reach such an address";
        findings.push(Finding::warning(ASPECT, found, remedy));
    }
    let connected = match timeout(STEP, TcpStream::connect(&addresses[..])).await {
        Ok(Ok(stream)) if is_https => handshake(&host, stream, roots).await,
        Ok(Ok(stream)) => Ok((Vec::new(), date_of(&host, stream).await)),
        Ok(Err(error)) => Err(unreached(url, &error.to_string())),
        Err(_) => Err(unreached(url, "nothing answers within 5 s")),
    };
    match connected {
        Ok((judged, date)) => {
            findings.push(Finding::ok(ASPECT, format!("a server answers at {url}")));
            findings.extend(judged);
            (findings, date)
        }
        Err(finding) => {
            findings.push(finding);
            (findings, None)
        }
    }
}

/// The header `Date` of an answer over this connection, if there is one.
async fn date_of(host: &str, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Option<String> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let request = format!("HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        stream.take(HEAD_BYTES_MAX).read_to_end(&mut answer).await
    };
    // What came before an end without a farewell counts.
    timeout(STEP, exchange).await.ok();
    let answer = String::from_utf8_lossy(&answer);
    let mut headers = answer.lines().take_while(|line| !line.is_empty());
    let date = headers.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("date").then(|| value.trim().to_owned())
    });
    date.filter(|_| answer.starts_with("HTTP/"))
}

fn listed(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ")
}

fn unresolved(host: &str, why: &str) -> Finding {
    let remedy = "create the name (an A or AAAA record), or correct http.public_url";
    Finding::problem(ASPECT, format!("{host} has no address: {why}"), remedy)
}

fn unreached(url: &str, why: &str) -> Finding {
    let remedy = "let the port through to http.listen (firewall, balancer, service). If it is, this \
                  network may have no way back to itself: try `weni-edge check --url` from elsewhere";
    Finding::warning(ASPECT, format!("{url} cannot be reached from here: {why}"), remedy)
}

/// Judges the certificate that the server shows, and learns its `Date`.
async fn handshake(
    host: &str,
    stream: TcpStream,
    roots: &RootCertStore,
) -> Result<(Vec<Finding>, Option<String>), Finding> {
    let remedy = "have something that speaks TLS 1.2 or 1.3 with a certificate for the name listen \
                  there";
    let problem = |why: String| Finding::problem(ASPECT, why, remedy);
    let (Ok(config), Ok(name)) = (any_certificate(), ServerName::try_from(host.to_owned())) else {
        return Err(problem(format!("{host} is not a name that a certificate can have")));
    };
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let stream = match timeout(STEP, connecting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(problem(format!("{host} does not agree on TLS: {error}"))),
        Err(_) => return Err(problem(format!("{host} does not agree on TLS within 5 s"))),
    };
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let judged = certificate::judge(chain, Some(host), roots, UnixTime::now()).into_iter();
    let judged = judged.map(|finding| of_server(host, finding)).collect();
    Ok((judged, date_of(host, stream).await))
}

fn of_server(host: &str, mut finding: Finding) -> Finding {
    finding.found = format!("the certificate at {host}: {}", finding.found);
    finding
}

/// A client that takes any certificate, because [`certificate::judge`] judges what the server shows.
/// No secret is sent over the connection.
fn any_certificate() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    Ok(ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth())
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

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
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
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
        let (findings, date) = tokio::select! {
            visited = visit(&url, &roots) => visited,
            () = serve => unreachable!(),
        };
        let found: Vec<_> = findings.iter().map(|finding| finding.found.as_str()).collect();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("from here localhost leads only to"), "{found:?}");
        assert_eq!(found[1], format!("a server answers at {url}"));
        assert!(found[2].contains("valid until"), "{found:?}");
        assert_eq!(date.as_deref(), Some("Fri, 27 Nov 2026 10:00:00 GMT"));
    }
}
