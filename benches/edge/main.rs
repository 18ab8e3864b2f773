//! Measures the table in the README: `cargo bench`, or `cargo bench -- requests` for a part.
//!
//! Server, Kafka and load generator are separate processes on loopback. This process starts them,
//! measures from outside (`/proc`, `/metrics`, the generator's summary) and ends them. The
//! baseline, the comparators and Kafka's mock cluster are this same program, started with
//! `--child`.
//!
//! **Invariant:** a run that lost, doubled or aborted anything gives no figure. Every row ends with
//! [`Edge::prove`](edge::Edge::prove).

mod backlog;
mod children;
mod comeback;
mod comparators;
mod cost;
mod counts;
mod edge;
mod figures;
mod inspector;
mod kafka;
mod load;
mod machine;
mod process;
mod readable;
mod requests;
mod scale;
mod servers;
mod side_by_side;
mod topics;
mod waiting;
mod wrk;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::{Parser, ValueEnum};

use self::{children::Child, figures::Row, machine::Machine};

/// The edge's allocator, so that servers do not differ by it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the edge and prints the table of the README (Markdown) to standard output
///
/// The baseline, 1.0, is plain axum::serve with a handler that reads the body. Kafka is
/// librdkafka's mock cluster in another process, with 12 partitions. The load generator is
/// `weni-edge send`; a row says "generator-bound" if it took more than 80 % of a core. Each body
/// has 1 KB and its own message id. Each callback is synced before its answer, and published.
/// Baseline and edge take turns. Figures are medians of the rounds, with the least and the most in
/// parentheses. For the rows of `wrk`, `cost`, `scale` and `inspector` the generator is wrk, which
/// takes less CPU and sends one body again and again, of 1 KB and with Content-Length unless the row
/// says otherwise.
///
/// A run fails, without a table, if a call was not accepted, a transaction was aborted, a record is
/// missing in Kafka or there twice, or the journal would not be on a disk.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo bench --")]
struct Args {
    /// What to measure [default: everything]
    #[arg(value_enum)]
    rows: Vec<Rows>,

    /// Rounds of each row, instead of 5 for requests, wrk and inspector, 12 for --against, and 3 for the rest
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,

    /// How long one round of requests, waiting, or a row of wrk loads the server
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,

    /// Only compares the edge with another build of it, in 12 pairs of rounds of wrk (5 minutes).
    /// PATH may be a script that executes that build. For 0.1.0 it has to set
    /// WENI_EDGE__DUPLICATES__ENTRIES=0, because wrk repeats one body, and to remove
    /// `allow_volatile` from the file that --config names
    #[arg(long, value_name = "PATH", conflicts_with = "rows")]
    against: Option<PathBuf>,

    /// How much is in the journal before it is opened and drained, and in the last row of scale
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..))]
    backlog: u64,

    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,

    /// What this process does as a child of another one.
    #[arg(long, hide = true, value_enum)]
    child: Option<Child>,

    /// Where that child finds Kafka.
    #[arg(long, hide = true, default_value = "")]
    bootstrap: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rows {
    /// Requests a second at 64 and 256 connections, CPU a request, p99 of the answer (4 minutes)
    Requests,
    /// Requests a second and CPU under wrk: the baseline, axum with rdkafka, and the edge, at 16,
    /// 64 and 256 connections; the edge's CPU by thread (7 minutes; needs wrk)
    Wrk,
    /// What a request costs under wrk, with a Content-Length and chunked: context switches by thread,
    /// syscalls and allocations (6 minutes; needs wrk; to count the latter two, perf and root)
    Cost,
    /// How requests a second and CPU a request under wrk change with cores, sources, bytes, elements
    /// and a backlog (5 minutes; needs wrk and taskset)
    Scale,
    /// The same with 0, 1 and 8 open event streams of the inspector (2 minutes; needs wrk)
    Inspector,
    /// 1 GiB accepted while Kafka is away: memory, opening it again, draining it on one core
    /// (5 minutes; a second time with the Kafka that WENI_EDGE_TEST_KAFKA names)
    Backlog,
    /// First commit after Kafka was away for 30 s, compared with an outside client's first success
    /// (2 minutes)
    Return,
    /// Accepted -> readable by a read_committed consumer, 1,000 a second; needs a real Kafka:
    /// WENI_EDGE_TEST_KAFKA=host:port; also with shorter values of `kafka.commit_interval`, and what
    /// they cost the broker (8 minutes)
    Latency,
    /// What `wait_for_kafka` costs, on a real Kafka if WENI_EDGE_TEST_KAFKA names one (2 minutes)
    Waiting,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: Option<u32>,
    round: Duration,
    backlog_bytes: u64,
}

impl Effort {
    fn rounds(&self, unless_given: u32) -> u32 {
        self.rounds.unwrap_or(unless_given)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match args.child {
        Some(child) => children::run(child, &args.bootstrap),
        // `cargo test --all-targets` also starts benches.
        None if !args.bench => {
            println!("nothing measured: this is for `cargo bench`");
            Ok(())
        }
        None => measure(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> anyhow::Result<()> {
    let effort = Effort {
        rounds: args.rounds,
        round: Duration::from_secs(args.seconds),
        backlog_bytes: args.backlog << 20,
    };
    let machine = Machine::look()?;
    let table = match &args.against {
        Some(old) => side_by_side::against(old, effort)?,
        None => measure_rows(&args.rows, effort)?,
    };
    println!("{machine}");
    figures::print(&table);
    Ok(())
}

fn measure_rows(rows: &[Rows], effort: Effort) -> anyhow::Result<Vec<Row>> {
    let rows = if rows.is_empty() { Rows::value_variants() } else { rows };
    if [Rows::Wrk, Rows::Cost, Rows::Scale, Rows::Inspector].iter().any(|row| rows.contains(row)) {
        wrk::look()?;
    }
    let mut table = Vec::new();
    for name in rows {
        let measured = match name {
            Rows::Requests => requests::measure(effort),
            Rows::Wrk => side_by_side::measure(effort),
            Rows::Cost => cost::measure(effort),
            Rows::Scale => scale::measure(effort),
            Rows::Inspector => inspector::measure(effort),
            Rows::Backlog => backlog::measure(effort),
            Rows::Return => comeback::measure(effort),
            Rows::Latency => readable::measure(effort),
            Rows::Waiting => waiting::measure(effort),
        };
        table.extend(measured.with_context(|| format!("{name:?}"))?);
    }
    Ok(table)
}
