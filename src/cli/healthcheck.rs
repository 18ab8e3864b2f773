//! `healthcheck`: asks a running edge's probes, where no curl is at hand (its image has no shell).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use crate::config::Config;

/// The edge answers at once, or something is wrong with it.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Ask a running edge whether it is ready
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    weni-edge healthcheck\n  \
    weni-edge healthcheck --admin http://localhost:9090\n  \
    weni-edge healthcheck --live --config weni-edge.toml\n\n\
    The exit code is 0 when it is, and 1 when it is not: standard error says why, in one line.\n\
    Ready means that callbacks are accepted; Kafka has no part in it.")]
pub(super) struct Args {
    /// Where its admin listener is, such as http://localhost:9090
    #[arg(long, env = "WENI_EDGE__ADMIN__LISTEN", value_name = "URL")]
    admin: Option<Admin>,

    /// Else the configuration of the edge, which says where
    #[arg(short, long, env = "WENI_EDGE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Ask only whether the process answers (/livez), not whether it is ready (/readyz)
    #[arg(long)]
    live: bool,
}

/// Host and port; an edge that listens everywhere also listens on loopback.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Admin(String);

impl FromStr for Admin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let authority = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none() || authority.contains(['/', '@', '?']) {
            return Err("use a URL such as http://localhost:9090".into());
        }
        Ok(Self(match authority.parse() {
            Ok(address) => reachable(address).to_string(),
            Err(_) => authority.into(),
        }))
    }
}

/// `listen` as a caller on the same machine can use it.
fn reachable(mut listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => listen.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => listen.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    listen
}

/// Asks once.
///
/// Never exits 2: container engines keep that code for themselves.
pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    Ok(match check(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{}", format!("{why:#}").replace('\n', "; "));
            ExitCode::FAILURE
        }
    })
}

fn check(args: Args) -> anyhow::Result<()> {
    let Admin(authority) = match args.admin {
        Some(admin) => admin,
        None => {
            let config = Config::load(args.config.as_deref())?;
            Admin(reachable(config.admin.listen).to_string())
        }
    };
    let path = if args.live { "/livez" } else { "/readyz" };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async { timeout(TIMEOUT, get(&authority, path)).await });
    let Ok(answer) = answer else {
        bail!("{authority} does not answer within {} s", TIMEOUT.as_secs());
    };
    let (status, text) = answer?;
    if status != StatusCode::OK {
        let first = text.lines().next().unwrap_or_default();
        bail!("{authority}{path} answers {}: {first}", status.as_u16());
    }
    Ok(())
}

async fn get(authority: &str, path: &str) -> anyhow::Result<(StatusCode, String)> {
    let unreachable = || format!("{authority} does not answer");
    let stream = TcpStream::connect(authority).await.with_context(unreachable)?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.with_context(unreachable)?;
    // What goes wrong on the connection is told to the request that is waiting for it.
    tokio::spawn(async move { connection.await.ok() });
    let request = Request::get(path).header(header::HOST, authority).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.with_context(unreachable)?;
    let status = response.status();
    let body = response.into_body().collect().await.with_context(unreachable)?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_listener_is_named_as_a_url_or_as_in_the_configuration() {
        for (given, asked) in [
            ("http://localhost:9090", "localhost:9090"),
            ("http://edge:9090/", "edge:9090"),
            ("0.0.0.0:9090", "127.0.0.1:9090"),
            ("[::]:9090", "[::1]:9090"),
            ("10.0.0.1:9090", "10.0.0.1:9090"),
        ] {
            assert_eq!(given.parse(), Ok(Admin(asked.into())), "{given}");
        }
        for wrong in ["", "localhost", "https://localhost:9090", "http://e:9090/readyz", "e:x"] {
            assert!(wrong.parse::<Admin>().is_err(), "{wrong}");
        }
    }
}
