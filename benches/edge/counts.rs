//! Syscalls and allocations of a process, counted by the kernel: `perf`.
//!
//! The edge holds no code for this. A probe of the kernel at each function of the allocator counts
//! its calls.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};

const NEEDS: &str = "perf cannot count; it needs root, and on Debian: apt-get install linux-perf";
const ALL_SYSCALLS: &str = "raw_syscalls:sys_enter";
/// Those that are told by name.
const SYSCALLS: &str = "epoll_wait fallocate fdatasync futex poll pwrite64 pwritev read recvfrom \
     recvmsg sendmsg sendto write writev";
/// What Rust calls (`…_aligned`), and what librdkafka and other C call.
const ALLOCATORS: &str = "mi_malloc_aligned mi_realloc_aligned mi_zalloc_aligned mi_calloc mi_malloc \
     mi_realloc mi_strdup strndup";

/// A group of probes in a program. Dropping it removes them.
#[derive(Debug)]
pub(crate) struct Counter(String);

/// What all threads did, and what each kind of thread allocated.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) syscalls: u64,
    pub(crate) by_name: BTreeMap<String, u64>,
    /// Those of C apart.
    pub(crate) allocations: BTreeMap<String, u64>,
}

impl Counter {
    /// # Errors
    /// When there is no `perf`, or it may not count.
    pub(crate) fn new(binary: &Path) -> anyhow::Result<Self> {
        let counter = Self(format!("weni_bench_{}", std::process::id()));
        let mut command = Command::new("perf");
        command.args(["probe", "-q", "-x"]).arg(binary);
        for function in ALLOCATORS.split(' ') {
            command.args(["-a", &format!("{}:{function}={function}", counter.0)]);
        }
        let output = command.output().context(NEEDS)?;
        let problem = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{NEEDS} ({})", problem.lines().last().unwrap_or(""));
        Ok(counter)
    }

    /// Counts the syscalls of the process `id` in the meantime.
    pub(crate) fn syscalls<T>(
        id: u32,
        meantime: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<(Counts, T)> {
        let named = SYSCALLS.split(' ').map(|name| format!("syscalls:sys_enter_{name}"));
        count(id, std::iter::once(ALL_SYSCALLS.to_owned()).chain(named), meantime)
    }

    /// Counts its allocations. That makes it ten times slower, so what it does by the clock is done
    /// ten times as often for each request.
    pub(crate) fn allocations<T>(
        &self,
        id: u32,
        meantime: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<(Counts, T)> {
        count(id, ALLOCATORS.split(' ').map(|name| format!("{}:{name}", self.0)), meantime)
    }
}

fn count<T>(
    id: u32,
    events: impl Iterator<Item = String>,
    meantime: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(Counts, T)> {
    // It counts as long as cat runs, which is as long as its standard input is open.
    let mut perf = Command::new("perf")
        .args(["stat", "--per-thread", "-x", ";", "-p", &id.to_string()])
        .args(["-e", &events.collect::<Vec<_>>().join(","), "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(NEEDS)?;
    writeln!(perf.stdin.as_mut().context("no stdin")?, "begun")?;
    BufReader::new(perf.stdout.as_mut().context("no stdout")?).read_line(&mut String::new())?;
    let result = meantime()?;
    let output = perf.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{NEEDS} ({text})");
    Ok((Counts::parse(&text), result))
}

impl Drop for Counter {
    fn drop(&mut self) {
        // Without this they cost a little until the next start of the machine.
        Command::new("perf").args(["probe", "-q", "-d", &format!("{}:*", self.0)]).status().ok();
    }
}

impl Counts {
    /// From lines such as `publisher-123;4567;;raw_syscalls:sys_enter;…`.
    fn parse(text: &str) -> Self {
        let mut counts = Self::default();
        for line in text.lines() {
            let fields: Vec<_> = line.split(';').collect();
            // What a thread never did is "<not counted>".
            let [thread, count, _, event, ..] = fields[..] else { continue };
            let (Ok(count), Some((_, name))) = (count.parse::<u64>(), event.split_once(':')) else {
                continue;
            };
            if event == ALL_SYSCALLS {
                counts.syscalls += count;
            } else if let Some(name) = name.strip_prefix("sys_enter_") {
                *counts.by_name.entry(name.to_owned()).or_default() += count;
            } else {
                let thread = thread.rsplit_once('-').map_or(thread, |(name, _)| name);
                let whose = if name.ends_with("_aligned") { "" } else { " (C)" };
                *counts.allocations.entry(format!("{thread}{whose}")).or_default() += count;
            }
        }
        counts
    }
}
