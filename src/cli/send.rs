//! `send`: calls an edge exactly as Weni does, once or under load.

use std::{
    fs::File,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use http::{HeaderName, HeaderValue, Method};
use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Output,
    terminal::{lines, print, progress_bar},
};
use crate::{
    caller::{Bodies, Outcomes, SAMPLES, Sample, Target, WeniClient, trusted_roots},
    config::parse_duration,
};

const EXAMPLES: &str = "\
Examples:
  One call of each built-in sample:
    weni-edge send http://localhost:8080/hooks/loja -H 'X-Token: s3cr3t…'
  Your own callbacks, as a GET:
    weni-edge send http://localhost:8080/hooks/loja -X GET callbacks/ one.json
  From standard input:
    jq -c . callback.json | weni-edge send http://localhost:8080/hooks/loja -
  Load: statuses of 1 KB on 64 connections for ten seconds:
    weni-edge send URL --sample delivered --size 1024 --connections 64 --duration 10s

The exit code is 0 when every call that has ended was accepted (answered 2xx), 1 when a call was not, and 2 \
when sending could not begin or the receipts could not be written. Ctrl-C ends it, and calls without an answer yet are not counted.";

/// Call an edge exactly as Weni does
///
/// Bodies are chunked whatever the method, and have no Content-Type unless --header gives one. A
/// connection is kept for 15 idle seconds, https uses HTTP/2 where it is offered, and an answer may
/// take 60 s. Redirects are not followed, and no call is repeated.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    /// The webhook, such as http://localhost:8080/hooks/loja
    url: String,

    /// Bodies: files, directories (their files in the order of their names), or - for standard
    /// input [default: the built-in samples]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// GET, POST, PUT, PATCH or DELETE, which are those that Weni offers
    #[arg(short = 'X', long, default_value = "POST", ignore_case = true, hide_possible_values = true,
          value_parser = method())]
    method: Method,

    /// A header, "Name: value"; may be repeated
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<String>,

    /// Send only this built-in sample; may be repeated
    #[arg(long = "sample", value_name = "NAME", conflicts_with = "files", value_parser = sample())]
    samples: Vec<&'static Sample>,

    /// Send each sample with one message id, instead of a fresh one for each call
    #[arg(long, conflicts_with = "files")]
    identical: bool,

    /// Pad samples to this many bytes
    #[arg(long, value_name = "BYTES", conflicts_with = "files")]
    size: Option<usize>,

    /// Number of calls; bodies are taken in turn [default: each body once, or as many calls as
    /// --duration allows]
    #[arg(short = 'n', long, value_name = "CALLS")]
    count: Option<u64>,

    /// Stop after this time, such as 10s
    #[arg(short = 'd', long, value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,

    /// Calls a second; latency then counts from the time at which a call was due
    #[arg(short = 'r', long, value_name = "CALLS", value_parser = rate)]
    rate: Option<f64>,

    /// Connections; each carries one call at a time
    #[arg(short = 'c', long, value_name = "NUMBER", default_value_t = 8,
          value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,

    /// Certificates (PEM) to trust for https, instead of Mozilla's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Write a line for each accepted call: its receipt (- if there is none), a tab, and the
    /// sample's message id or the file's name
    #[arg(long, value_name = "FILE")]
    receipts: Option<PathBuf>,

    /// The summary's format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let roots = args.ca_file.as_deref().map(|file| trusted_roots(Some(file))).transpose()?;
    let headers = args.headers.iter().map(|text| header(text)).collect::<Result<Vec<_>, _>>()?;
    let target = Target::new(&args.url, args.method, &headers, roots.as_ref())?;
    let size = args.size.unwrap_or(0);
    let samples = if args.samples.is_empty() { SAMPLES.iter().collect() } else { args.samples };
    let bodies = match args.files.is_empty() {
        true => Bodies::samples(samples, size, args.identical),
        false => Bodies::files(&args.files)?,
    };
    let create = |path: &PathBuf| {
        File::create(path).with_context(|| format!("cannot write {}", path.display()))
    };
    let receipts = args.receipts.as_ref().map(create).transpose()?;
    let count =
        args.count.unwrap_or(if args.duration.is_some() { u64::MAX } else { bodies.count() });
    if count == 0 {
        bail!("--count 0 sends nothing");
    }
    // One thread: the load generator must use less CPU than the server under load.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let start = Instant::now();
    let plan = Arc::new(Plan {
        bodies,
        count,
        rate: args.rate,
        start,
        end: args.duration.map(|duration| start + duration),
        next: AtomicU64::new(0),
        outcomes: Mutex::new(Outcomes::new(receipts)),
    });
    runtime.block_on(send(Arc::new(target), &plan, args.connections));
    let elapsed = start.elapsed();
    let mut outcomes = plan.outcomes.lock();
    let summary = outcomes.summary(elapsed);
    let is_clean = summary.accepted > 0 && summary.accepted == summary.calls;
    let summary = match args.output {
        Output::Human => summary.to_string(),
        Output::Json => serde_json::to_string(summary)?,
    };
    // A certificate's names are the server's.
    print(&lines(&summary))?;
    outcomes.close().context("cannot write the receipts")?;
    Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The calls to make, when, and what became of them.
struct Plan {
    bodies: Bodies,
    count: u64,
    rate: Option<f64>,
    start: Instant,
    end: Option<Instant>,
    next: AtomicU64,
    outcomes: Mutex<Outcomes>,
}

impl Plan {
    /// Waits for the next call. Returns its index and the time from which its latency counts, or
    /// `None` when no call is left.
    ///
    /// With a rate, a late call counts from the time at which it was due: Weni's call would have
    /// waited as long for a connection.
    async fn next(&self) -> Option<(u64, Instant)> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let due = match self.rate {
            Some(rate) => self.start + Duration::from_secs_f64(index as f64 / rate),
            None => now,
        };
        if index >= self.count || self.end.is_some_and(|end| due >= end) {
            return None;
        }
        if due <= now {
            return Some((index, due));
        }
        sleep_until(due).await;
        Some((index, Instant::now()))
    }
}

async fn send(target: Arc<Target>, plan: &Arc<Plan>, connections: u16) {
    let mut callers = JoinSet::new();
    for _ in 0..plan.count.min(connections.into()) {
        let mut client = WeniClient::new(Arc::clone(&target));
        let plan = Arc::clone(plan);
        callers.spawn(async move {
            while let Some((index, start)) = plan.next().await {
                let (body, name) = plan.bodies.at(index);
                let answer = client.call(body).await;
                plan.outcomes.lock().count(&name, start.elapsed(), answer);
            }
        });
    }
    tokio::select! {
        _ = callers.join_all() => {}
        () = show_progress(plan) => {}
        // Calls without an answer yet are given up and not counted.
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// Never ends.
async fn show_progress(plan: &Plan) {
    let bar = match plan.end {
        Some(end) => {
            let millis = end.duration_since(plan.start).as_millis() as u64;
            progress_bar(millis, "{bar:40} {elapsed} {msg}")
        }
        None => progress_bar(plan.count, "{bar:40} {human_pos}/{human_len} {msg} {eta}"),
    };
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (total, elapsed) = (plan.outcomes.lock().total(), plan.start.elapsed());
        bar.set_position(if plan.end.is_some() { elapsed.as_millis() as u64 } else { total });
        bar.set_message(format!("{:.0} calls/s", total as f64 / elapsed.as_secs_f64()));
    }
}

fn sample() -> impl TypedValueParser<Value = &'static Sample> {
    let value = |sample: &Sample| PossibleValue::new(sample.name).help(sample.about);
    // INVARIANT: the parser accepts only names of samples.
    PossibleValuesParser::new(SAMPLES.iter().map(value))
        .map(|name| Sample::named(&name).expect("a sample of that name"))
}

fn method() -> impl TypedValueParser<Value = Method> {
    // INVARIANT: the parser accepts only these names.
    PossibleValuesParser::new(["GET", "POST", "PUT", "PATCH", "DELETE"])
        .map(|name| name.to_uppercase().parse().expect("a method of that name"))
}

/// Reads a header. clap would repeat a wrong one, and its value may be a secret.
pub(super) fn header(text: &str) -> anyhow::Result<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':').context("write --header as \"Name: value\"")?;
    if name != name.trim() {
        bail!(
            "the name {name:?} of a header begins or ends with a blank. Weni does not call at all with such a Chave, and \
             does not say so. Write {:?}",
            format!("{}: …", name.trim())
        );
    }
    // The name may be a part of the secret.
    let name = name.parse().context("write --header as \"Name: value\"")?;
    let value = value.trim().parse().context("a header cannot carry this value's characters")?;
    Ok((name, value))
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=1e6).contains(&rate) => Ok(rate),
        _ => Err("use 0.001 to 1000000 calls a second".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_weni_would_not_send_is_refused() {
        assert!(header("X-Token:  a secret ").is_ok());
        for slip in ["X-Token : a secret", " X-Token: a secret"] {
            assert!(
                header(slip).unwrap_err().to_string().contains("Write \"X-Token: …\""),
                "{slip}"
            );
        }
    }
}
