//! The simulator: the real journal, publisher and replay in a simulated world, several hundred runs a
//! second. `cargo test --features simulation --test sim -- --help`.

#![expect(unreachable_pub, reason = "a program of its own")]

mod disk;
mod found;
mod judge;
mod kafka;
mod run;
mod world;

use std::{
    collections::BTreeSet,
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use weni_edge::mutant;

use crate::world::{Coverage, Plan};

/// Faults of the program that the judge has to find.
const MUTANTS: &[&str] = &[
    "effects kept after a disk error",
    "abort forgotten",
    "abort without waiting for what is under way",
    "position off by one",
    "lost answer taken for an abort",
    "lost answer taken for a commit",
    "recycled too early",
    "salt not checked",
    "data not synced",
    "directory not synced",
    "damage taken for a torn tail",
    "partition error of committed offsets ignored",
    "position that went back not believed",
    "run id not judged",
    "acknowledged commit not looked for",
    "uncommitted file replayed",
    "run number used twice",
    "order within a callback changed",
    "replay's offsets not committed",
    "ready although full",
    "a second opening past the lock",
];

/// Runs a mutant has at most.
const MUTANT_RUNS: u64 = 10_000;
/// How often each cell has to be hit.
const CELL_MIN: u64 = 100;

/// Runs the edge in simulated worlds until something is wrong, or the time is over
#[derive(Debug, Parser)]
#[command(name = "sim")]
struct Args {
    /// How many seconds at least
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// At least so many runs
    #[arg(long, default_value_t = 0)]
    runs: u64,
    /// Where the seeds begin
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this one run, with its trace
    #[arg(long)]
    only: Option<u64>,
    /// With --only: as the list of the fault that was found with this number
    #[arg(long, requires = "only", value_parser = found::number)]
    found: Option<usize>,
    /// Look that each mutant is found
    #[arg(long)]
    mutants: bool,
    /// Only this mutant; with --only: the run of this mutant
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(MUTANTS))]
    mutant: Option<String>,
    /// Fail on a cell of the coverage table that was hit fewer than 100 times
    #[arg(long)]
    coverage: bool,
    /// Ignored: what cargo passes to tests
    #[arg(hide = true)]
    rest: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // A panic is a verdict here, and said with its trace.
    std::panic::set_hook(Box::new(|_| {}));
    if let Some(seed) = args.only {
        let mutant = MUTANTS.iter().find(|name| args.mutant.as_deref() == Some(**name));
        mutant::set(mutant.unwrap_or(&""));
        return args
            .found
            .map_or_else(|| explain(seed), |number| tell_run(seed, found::plan(number)));
    }
    if args.mutants || args.mutant.is_some() {
        return mutants(args.seed, args.mutant.as_deref());
    }
    if let Err(again) = found::look() {
        println!("{again}");
        return ExitCode::FAILURE;
    }
    let begun = Instant::now();
    let (next, wrong) = (AtomicU64::new(args.seed), AtomicU64::new(u64::MAX));
    let over = AtomicBool::new(false);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut coverage = Coverage::new();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut coverage = Coverage::new();
                    while !over.load(Ordering::Relaxed) {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        let outcome = run::run(seed, Plan::Random, false);
                        merge(&mut coverage, outcome.world.coverage);
                        if outcome.verdict.is_some() {
                            wrong.fetch_min(seed, Ordering::Relaxed);
                            over.store(true, Ordering::Relaxed);
                        }
                        let enough = seed - args.seed >= args.runs;
                        if enough && begun.elapsed() >= Duration::from_secs(args.seconds) {
                            over.store(true, Ordering::Relaxed);
                        }
                    }
                    coverage
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| {
            if let Ok(own) = worker.join() {
                merge(&mut coverage, own);
            }
        });
    });
    let runs = next.load(Ordering::Relaxed) - args.seed;
    println!("{runs} runs in {:.1} s", begun.elapsed().as_secs_f64());
    let wrong = wrong.load(Ordering::Relaxed);
    if wrong != u64::MAX {
        return explain(wrong);
    }
    for ((call, outcome), count) in &coverage {
        println!("{count:>10}  {call}: {outcome}");
    }
    let empty: Vec<_> = coverage.iter().filter(|(_, count)| **count < CELL_MIN).collect();
    if args.coverage && !empty.is_empty() {
        println!("cells that were hit fewer than {CELL_MIN} times: {empty:?}");
        return ExitCode::FAILURE;
    }
    println!("nothing is wrong");
    ExitCode::SUCCESS
}

fn merge(all: &mut Coverage, own: Coverage) {
    for (cell, count) in own {
        *all.entry(cell).or_default() += count;
    }
}

/// Shrinks a run that went wrong, and tells it.
fn explain(seed: u64) -> ExitCode {
    let first = run::run(seed, Plan::Random, false);
    let Some(verdict) = first.verdict else { return tell_run(seed, Plan::Random) };
    let places = first.world.failed.iter().map(|(place, ..)| *place);
    let mut needed: BTreeSet<u64> = places.clone().collect();
    for place in places.rev() {
        let mut fewer = needed.clone();
        fewer.remove(&place);
        if run::run(seed, Plan::Only(fewer.clone()), false).verdict.is_some() {
            needed = fewer;
        }
    }
    println!("as it was first: {verdict}");
    tell_run(seed, Plan::Only(needed))
}

/// Tells a run, and what failed in it.
fn tell_run(seed: u64, plan: Plan) -> ExitCode {
    let told = tell(|| run::run(seed, plan, true));
    told.world.trace.iter().flatten().for_each(|line| println!("{line}"));
    let faults =
        told.world.failed.iter().map(|(_, call, outcome)| format!("({call:?}, {outcome:?})"));
    println!("seed {seed}, faults: {}", faults.collect::<Vec<_>>().join(", "));
    println!("{}", told.verdict.as_deref().unwrap_or("nothing is wrong"));
    if told.verdict.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs with the program's own log on the standard output.
fn tell<T>(run: impl FnOnce() -> T) -> T {
    let log = tracing_subscriber::fmt()
        .with_ansi(false)
        .without_time()
        .with_writer(run::TraceWriter::default)
        .finish();
    tracing::subscriber::with_default(log, run)
}

fn mutants(first: u64, only: Option<&str>) -> ExitCode {
    let mut missed = 0;
    for name in MUTANTS.iter().filter(|name| only.is_none_or(|only| only == **name)) {
        mutant::set(name);
        let found = (first..first + MUTANT_RUNS)
            .find_map(|seed| Some((seed, run::run(seed, Plan::Random, false).verdict?)));
        mutant::set("");
        match found {
            Some((seed, verdict)) => {
                println!("{:>6} runs  {name}: {verdict}", seed - first + 1);
            }
            None => {
                println!("   not found  {name}");
                missed += 1;
            }
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
