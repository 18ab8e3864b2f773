//! `healthcheck`: asks a running edge's probes. The edge's image has neither curl nor a shell.

use std::process::ExitCode;

use anyhow::{anyhow, bail};
use http::StatusCode;

use super::{ConfigFile, log};
use crate::caller::{on_this_machine, probe};

/// Ask a running edge whether it is ready
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    weni-edge healthcheck\n  \
    weni-edge healthcheck --admin http://localhost:9090\n  \
    weni-edge healthcheck --live --config weni-edge.toml\n\n\
    The exit code is 0 when the edge is ready. It is 1 when it is not, and standard error says why \
    in one line. Ready means that callbacks are accepted, whether or not Kafka is available.")]
pub(super) struct Args {
    /// The edge's admin listener [default: admin.listen of the configuration]
    #[arg(long, env = "WENI_EDGE__ADMIN__LISTEN", value_name = "URL")]
    admin: Option<String>,

    #[command(flatten)]
    config: ConfigFile,

    /// Ask only whether the process answers (/livez), not whether it is ready (/readyz)
    #[arg(long)]
    live: bool,
}

/// Host and port of a URL, or of an address as the configuration has it.
fn admin(text: &str) -> Result<String, String> {
    let authority = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_none() || authority.contains(['/', '@', '?']) {
        return Err("use a URL such as http://localhost:9090".into());
    }
    let address = authority.parse().map(on_this_machine);
    Ok(address.map_or_else(|_| authority.to_owned(), |address| address.to_string()))
}

/// Asks once. Never exits with 2, because container engines reserve that code.
pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    Ok(match check(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            log::say(&format!("{why:#}").replace('\n', "; "));
            ExitCode::FAILURE
        }
    })
}

fn check(args: Args) -> anyhow::Result<()> {
    let authority = match args.admin {
        Some(url) => admin(&url)
            .map_err(|why| anyhow!("--admin or WENI_EDGE__ADMIN__LISTEN is wrong: {why}"))?,
        None => on_this_machine(args.config.load()?.admin.listen).to_string(),
    };
    let path = if args.live { "/livez" } else { "/readyz" };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (status, first) = runtime.block_on(probe(&authority, path)).map_err(|error| {
        anyhow!(
            "{error:#}: is an edge running, and is this its admin.listen? (--config or --admin)"
        )
    })?;
    if status != StatusCode::OK {
        bail!("{authority}{path} answers {}: {first}", status.as_u16());
    }
    Ok(())
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
            assert_eq!(admin(given), Ok(asked.into()), "{given}");
        }
        for wrong in ["", "localhost", "https://localhost:9090", "http://e:9090/readyz", "e:x"] {
            assert!(admin(wrong).is_err(), "{wrong}");
        }
    }
}
