//! `check`: tries everything that an edge needs, and says what to do about what is not well.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use http::{HeaderName, HeaderValue, Uri};
use indicatif::ProgressBar;
use serde_json::json;

use super::{
    ConfigFile, Output, send,
    terminal::{coloured, print, visible},
};
use crate::{
    caller::without_secrets,
    check::{self, Finding, Severity, Subject, Webhook},
    config::Config,
};

const EXAMPLES: &str = "\
Examples:
  Before the first start, after an upgrade, and when something is wrong:
    weni-edge check --config weni-edge.toml
  Call a running edge as Weni does, with the source's secret of the configuration:
    weni-edge check --config weni-edge.toml --url https://edge.example.com/hooks/loja
  Only what is not well:
    weni-edge check --config weni-edge.toml --output json | jq '.findings[] | select(.remedy)'

Looked at, from the outside in: http.public_url and the certificate there, the certificate's files, the \
ports, the journal's directory, Kafka, the topics, the rights, the clock, and the limits of files and \
memory. A certificate's dates, a setting or a limit that may fail later is a warning.

The clock is compared with the Date of an answer: of --url, or else of http.public_url, which is asked for / \
without a secret. An edge counts that as a refused call.

A running edge is not disturbed: its journal is only read and its lock asked for, and its transactional id \
and group are never used. In Kafka check opens a transaction as PREFIXcheck.RANDOM (PREFIX is \
kafka.identity_prefix), writes a record without content to each topic, and aborts it: read_committed \
consumers see nothing. The brokers keep that id for a week (transactional.id.expiration.ms). A check that is \
killed may leave the transaction open, which holds such consumers for up to 15 s.

With --url each accepted call becomes a channel event with the field edge_test, which is no status of any \
message. One call over each version of HTTP has a wrong secret, which the edge counts as refused (auth). \
This machine is not looked at then.

The exit code is 0 when there is no problem (warnings are none), 1 when there is one, and 2 when check \
could not run.";

/// Try everything that an edge needs, and say what to do about what is not well
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,

    /// Call this webhook of a running edge, over HTTP/1.1 and HTTP/2, and look for the events in Kafka
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// The header with the secret, "Name: value" [default: that of the source in the configuration]
    #[arg(short = 'H', long = "header", value_name = "HEADER", requires = "url")]
    header: Option<String>,

    /// Certificates (PEM) to trust for https, instead of Mozilla's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// The format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let header = args.header.map(|text| send::header(&text)).transpose()?;
    let webhook = args.url.map(|url| webhook(&config, url, header)).transpose()?;
    if webhook.is_none() {
        config.ready_to_serve()?;
    }
    let subject = Subject::new(config, webhook, args.ca_file)?;
    // It is invisible where standard error is no terminal.
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(100));
    let findings = check::run(subject, |names| {
        spinner.set_message(format!("looking at {}", names.join(", ")));
    });
    spinner.finish_and_clear();
    let worst = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok);
    match args.output {
        Output::Json => {
            let report = json!({ "severity": worst, "findings": findings });
            print(&visible(&report.to_string()))?;
        }
        Output::Human => print(&table(&findings))?,
    }
    Ok(if worst == Severity::Problem { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The webhook to call, with the given header or the first secret of its source.
fn webhook(
    config: &Config,
    url: String,
    header: Option<(HeaderName, HeaderValue)>,
) -> anyhow::Result<Webhook> {
    if header.is_some() {
        return Ok(Webhook { url, secret: header });
    }
    let uri: Uri =
        url.parse().with_context(|| format!("{} is not a URL", without_secrets(&url)))?;
    let name = uri.path().trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let source = config.sources.get(name).with_context(|| {
        format!(
            "the configuration has no source {name:?}, which the URL names: give the edge's --config, or \
             the header as -H 'Name: value'"
        )
    })?;
    let secret = source.secrets.first().map(|secret| {
        let name = HeaderName::try_from(&source.header)?;
        anyhow::Ok((name, HeaderValue::from_str(secret.expose())?))
    });
    Ok(Webhook { url, secret: secret.transpose()? })
}

/// A line for each finding, and one below it for what to do.
fn table(findings: &[Finding]) -> String {
    let width = |text: fn(&Finding) -> &'static str| {
        findings.iter().map(|finding| text(finding).len()).max().unwrap_or_default()
    };
    let first = width(|finding| finding.severity.as_str());
    let second = width(|finding| finding.check.as_str());
    let mut table = String::new();
    for Finding { check, severity, found, remedy } in findings {
        let colour = match severity {
            Severity::Ok => "32",
            Severity::Warning => "33",
            Severity::Problem => "31",
        };
        table += &coloured(&format!("{:first$}", severity.as_str()), colour);
        table += &format!("  {:second$}  {}\n", check.as_str(), visible(found));
        if let Some(remedy) = remedy {
            table += &format!("{:1$}→ {2}\n", "", first + second + 4, visible(remedy));
        }
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let [problems, warnings] = [Severity::Problem, Severity::Warning].map(count);
    let plural = |count, word| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    table + &format!("\n{}, {}", plural(problems, "problem"), plural(warnings, "warning"))
}
