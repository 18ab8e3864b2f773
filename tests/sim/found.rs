//! Faults of the program that the simulator has found, as the shrunk lists of what has to happen. A list
//! outlives changes of the program; a seed does not.

use std::{panic::resume_unwind, thread};

use crate::{
    kafka::{DEADLY, POISON},
    run,
    world::Plan,
};

/// How many seeds try a list, and how many of them have to come to its end.
const SEEDS: u64 = 200;
const WHOLE_MIN: usize = 20;

/// A fault that was found (deploy/RELIABILITY.md, "In simulated worlds").
pub struct Found {
    name: &'static str,
    /// What a sixth of the callbacks is marked with.
    pub mark: Option<&'static str>,
    /// Calls and what happens at them, in this order. Nothing else fails.
    pub faults: &'static [(&'static str, &'static str)],
}

const ALL: &[Found] = &[
    Found {
        name: "more than nine rejected records in one transaction",
        mark: Some(POISON),
        faults: &[],
    },
    Found { name: "EIO while the identity file is opened", mark: None, faults: &[("open", "EIO")] },
    Found {
        name: "death between the identity's two files, and the one cannot be read",
        mark: None,
        faults: &[
            ("rename", "crash after"),
            // So that what follows waits for another process.
            ("between processes", "a backup is made"),
            ("file metadata", "EIO"),
            ("file metadata", "EIO"),
            ("file metadata", "EIO"),
        ],
    },
    Found {
        name: "the answer to an abort is lost while an unfinished transaction is ended",
        mark: Some(POISON),
        faults: &[("commit", "partitions not told"), ("abort", "done, answer lost")],
    },
    Found {
        name: "many rejected records while an unfinished transaction is ended",
        mark: Some(POISON),
        faults: &[("commit", "partitions not told")],
    },
    Found {
        // Also a replay dies so, and the next one replays more files than its progress names.
        name: "death right after a commit, and nothing left to publish",
        mark: Some(DEADLY),
        faults: &[("commit", "crash after")],
    },
    Found {
        name: "death in the first transaction, which quarantines",
        mark: Some(DEADLY),
        // The replay also mends the topics, so that the callback is not quarantined again.
        faults: &[("commit", "crash before"), ("between processes", "a replay runs")],
    },
    Found {
        name: "a broker forgets the last commit of a replay",
        mark: Some(DEADLY),
        faults: &[
            ("between processes", "a replay runs"),
            // Before the commit that ends the replay.
            ("send_offsets", "no broker"),
            // The next process does not start, so that no other commit comes between.
            ("metadata", "EIO"),
            ("between processes", "the last commit is lost"),
        ],
    },
];

/// The number of a list.
pub fn number(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number < ALL.len());
    number.ok_or_else(|| format!("0 to {} are the lists", ALL.len() - 1))
}

/// The plan of the list with this number.
pub fn plan(number: usize) -> Plan {
    Plan::Listed(&ALL[number], 0)
}

/// Looks that none of them is back.
pub fn look() -> Result<(), String> {
    thread::scope(|scope| {
        let looks: Vec<_> =
            (0..ALL.len()).map(|number| scope.spawn(move || look_at(number))).collect();
        let looked =
            looks.into_iter().map(|look| look.join().unwrap_or_else(|why| resume_unwind(why)));
        let back: Vec<_> = looked.filter_map(Result::err).collect();
        if back.is_empty() { Ok(()) } else { Err(back.join("\n")) }
    })
}

fn look_at(number: usize) -> Result<(), String> {
    let (Found { name, faults, .. }, mut whole) = (&ALL[number], 0);
    for seed in 0..SEEDS {
        let outcome = run::run(seed, plan(number), false);
        if let Some(verdict) = outcome.verdict {
            return Err(format!("it is back (--found {number} --only {seed}): {name}: {verdict}"));
        }
        whole += usize::from(outcome.world.failed.len() == faults.len());
    }
    println!("{whole:>10} of {SEEDS} runs to the end of: {name}");
    if whole < WHOLE_MIN { Err(format!("too few runs to the end of: {name}")) } else { Ok(()) }
}
