//! `weni-edge send`: calls an edge exactly as Weni does, once or under load.

mod bodies;
mod tally;

use std::{
    fs::File,
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{
    ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use http::{HeaderName, HeaderValue, Method};
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use self::{bodies::Bodies, tally::Tally};
use crate::{
    cli::{
        courier::{Courier, Target},
        samples::{SAMPLES, Sample},
    },
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

The exit code is 0 when every call was accepted (answered 2xx), 1 when one was not, and 2 when
nothing could be sent at all.";

/// Call an edge exactly as Weni does
///
/// Chunked whatever the method, no Content-Type unless given, connections kept for 15 idle
/// seconds, HTTP/2 where https offers it, 60 s of patience, no redirects, nothing sent twice.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    /// The webhook, such as http://localhost:8080/hooks/loja
    url: String,

    /// Bodies: files, directories (their files by name) or - for standard input; without any,
    /// the built-in samples
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Any that Weni offers: GET, POST, PUT, PATCH or DELETE
    #[arg(short = 'X', long, default_value = "POST")]
    method: Method,

    /// A header, "Name: value"; may be given again
    #[arg(short = 'H', long = "header", value_name = "HEADER", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,

    /// Only this built-in sample; may be given again
    #[arg(long = "sample", value_name = "NAME", conflicts_with = "files", value_parser = sample())]
    samples: Vec<&'static Sample>,

    /// Send samples with the same message id again and again, instead of a fresh one each time
    #[arg(long, conflicts_with = "files")]
    identical: bool,

    /// Fill samples up to this many bytes
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 0,
        hide_default_value = true,
        conflicts_with = "files"
    )]
    size: usize,

    /// Calls in all; bodies are taken in turn [default: each body once, or as many as --duration
    /// allows]
    #[arg(short = 'n', long, value_name = "CALLS")]
    count: Option<u64>,

    /// Stop after this time, such as 10s
    #[arg(short = 'd', long, value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,

    /// Calls a second; latency is then counted from when a call was due
    #[arg(short = 'r', long, value_name = "CALLS", value_parser = rate)]
    rate: Option<f64>,

    /// Connections, with one call at a time each
    #[arg(short = 'c', long, value_name = "NUMBER", default_value_t = 8,
          value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,

    /// Certificates (PEM) to trust for https, instead of Mozilla's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Write a line for each accepted call: its receipt (- if there is none), a tab, and the
    /// message id of the sample or the name of the file
    #[arg(long, value_name = "FILE")]
    receipts: Option<PathBuf>,

    /// How the summary is printed
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Human,
    Json,
}

/// Sends everything and prints the summary to standard output.
///
/// # Errors
/// Arguments that cannot be used, files that cannot be read or written. A call that is refused or
/// fails is no error: it is counted and makes the exit code 1.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let target =
        Target::new(&args.url, args.method.clone(), &args.headers, args.ca_file.as_deref())?;
    let bodies = if args.files.is_empty() {
        let all =
            if args.samples.is_empty() { SAMPLES.iter().collect() } else { args.samples.clone() };
        Bodies::samples(all.into_iter(), args.size, args.identical)
    } else {
        Bodies::files(&args.files)?
    };
    let receipts = match &args.receipts {
        Some(path) => {
            let name = || format!("cannot write {}", path.display());
            Some(File::create(path).with_context(name)?)
        }
        None => None,
    };
    let count = args.count.unwrap_or(if args.duration.is_some() { u64::MAX } else { bodies.len() });
    if count == 0 {
        bail!("--count 0 sends nothing");
    }
    // One thread: the load generator has to take less than the server that it loads.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (tally, elapsed) = runtime.block_on(async {
        let plan = Plan::new(bodies, count, args.rate, args.duration);
        send(Arc::new(target), plan, args.connections, Mutex::new(Tally::new(receipts))).await
    });
    let mut tally = tally.lock();
    let summary = match args.output {
        Output::Human => tally.human(elapsed),
        Output::Json => format!("{}\n", tally.json(elapsed)),
    };
    std::io::stdout().write_all(summary.as_bytes())?;
    tally.close()?;
    Ok(if tally.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Which call is next, and when it is due.
struct Plan {
    bodies: Bodies,
    count: u64,
    /// Calls a second.
    rate: Option<f64>,
    start: Instant,
    end: Option<Instant>,
    next: AtomicU64,
}

impl Plan {
    fn new(bodies: Bodies, count: u64, rate: Option<f64>, duration: Option<Duration>) -> Self {
        let start = Instant::now();
        let end = duration.map(|duration| start + duration);
        Self { bodies, count, rate, start, end, next: AtomicU64::new(0) }
    }

    /// The next call's index and when it begins; `None` when that is all.
    ///
    /// With a rate, a call that is late counts from when it was due: a slow answer holds up its
    /// connection, and the calls behind it have waited as Weni's would have.
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

async fn send(
    target: Arc<Target>,
    plan: Plan,
    connections: u16,
    tally: Mutex<Tally>,
) -> (Arc<Mutex<Tally>>, Duration) {
    let (plan, tally) = (Arc::new(plan), Arc::new(tally));
    let mut callers = JoinSet::new();
    for _ in 0..plan.count.min(connections.into()) {
        callers.spawn(call(Courier::new(target.clone()), plan.clone(), tally.clone()));
    }
    tokio::select! {
        _ = callers.join_all() => {}
        () = show_progress(&plan, &tally) => {}
        // What is in flight is left alone; what is over is summed up.
        _ = tokio::signal::ctrl_c() => {}
    }
    (tally, plan.start.elapsed())
}

async fn call(mut courier: Courier, plan: Arc<Plan>, tally: Arc<Mutex<Tally>>) {
    while let Some((index, start)) = plan.next().await {
        let (body, name) = plan.bodies.at(index);
        let answer = courier.call(body).await;
        tally.lock().count(name.as_str(), start.elapsed(), answer);
    }
}

/// Shows on a terminal how far it is, for ever.
async fn show_progress(plan: &Plan, tally: &Mutex<Tally>) {
    if !std::io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let (bar, shown) = match plan.end {
        // With a duration the time is what goes by.
        Some(end) => {
            let millis = end.duration_since(plan.start).as_millis() as u64;
            (ProgressBar::new(millis), "{bar:40} {elapsed} {msg}")
        }
        None => (ProgressBar::new(plan.count), "{bar:40} {human_pos}/{human_len} {msg} {eta}"),
    };
    // INVARIANT: both templates are right; a run on a terminal shows them.
    let bar = bar
        .with_style(ProgressStyle::with_template(shown).expect("a template"))
        .with_finish(ProgressFinish::AndClear);
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (total, elapsed) = (tally.lock().total(), plan.start.elapsed());
        bar.set_position(if plan.end.is_some() { elapsed.as_millis() as u64 } else { total });
        bar.set_message(format!("{:.0} calls/s", total as f64 / elapsed.as_secs_f64()));
    }
}

fn sample() -> impl TypedValueParser<Value = &'static Sample> {
    let value = |sample: &Sample| PossibleValue::new(sample.name).help(sample.about);
    // INVARIANT: the parser lets only names of samples through.
    PossibleValuesParser::new(SAMPLES.iter().map(value))
        .map(|name| Sample::named(&name).expect("a sample of that name"))
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it as \"Name: value\"")?;
    let name = name.trim().parse().map_err(|_| format!("{name:?} is not a header's name"))?;
    // The value may be a secret, so the error does not repeat it.
    let value = value.trim().parse().map_err(|_| "its value has characters no header can carry")?;
    Ok((name, value))
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=1e6).contains(&rate) => Ok(rate),
        _ => Err("calls a second, 0.001 to 1000000".into()),
    }
}
