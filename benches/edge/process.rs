//! Processes that are measured. Dropping one kills it.

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, ChildStdin, ChildStdout, Command},
    time::Duration,
};

use anyhow::{Context, bail};
use rustix::process::{WaitId, WaitIdOptions, waitid};

/// The unit of `/proc/<pid>/stat`: USER_HZ, which is 100 whatever the kernel's HZ.
const TICK: Duration = Duration::from_millis(10);

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
}

/// Resident memory in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Now (VmRSS).
    pub(crate) now: u64,
    /// The most since the process began (VmHWM).
    pub(crate) most: u64,
}

/// What a thread has used since it began.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Taken {
    pub(crate) cpu: Duration,
    /// How often it gave up its core to wait: voluntary context switches.
    pub(crate) waits: u64,
    /// How often its core was taken from it: the other context switches.
    pub(crate) losses: u64,
}

impl Process {
    pub(crate) fn start(name: &'static str, command: &mut Command) -> anyhow::Result<Self> {
        let child = command.spawn().with_context(|| format!("{name} cannot be started"))?;
        Ok(Self { name, child })
    }

    /// The pipe to the child's standard input, the first time.
    pub(crate) fn take_stdin(&mut self) -> anyhow::Result<ChildStdin> {
        self.child.stdin.take().with_context(|| format!("{} has no stdin", self.name))
    }

    /// As [`take_stdin`](Self::take_stdin).
    pub(crate) fn take_stdout(&mut self) -> anyhow::Result<ChildStdout> {
        self.child.stdout.take().with_context(|| format!("{} has no stdout", self.name))
    }

    /// The child itself, for its other pipes.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Processor time of all its threads, user and system, in steps of 10 ms.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_of(self.child.id()).with_context(|| format!("{} is gone", self.name))
    }

    /// What its threads have used, by name. Threads with one name are added up.
    pub(crate) fn threads(&self) -> anyhow::Result<BTreeMap<String, Taken>> {
        let mut threads = BTreeMap::<String, Taken>::new();
        for entry in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let path = entry?.path();
            let read = |file| fs::read_to_string(path.join(file));
            // A thread that ends meanwhile uses no more.
            let (Ok(stat), Ok(status)) = (read("stat"), read("status")) else { continue };
            let (name, cpu) = cpu(&stat)?;
            let switches = |field| -> anyhow::Result<u64> {
                let count = status.lines().find_map(|line| line.strip_prefix(field));
                Ok(count.context("no switches in /proc/<pid>/status")?.trim().parse()?)
            };
            let taken = threads.entry(name.to_owned()).or_default();
            taken.cpu += cpu;
            taken.waits += switches("voluntary_ctxt_switches:")?;
            taken.losses += switches("nonvoluntary_ctxt_switches:")?;
        }
        Ok(threads)
    }

    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        let status = self.proc("status")?;
        let bytes = |field: &str| -> anyhow::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let value = line.with_context(|| format!("no {field} in /proc/<pid>/status"))?;
            let kib = value.trim().trim_end_matches("kB").trim().parse::<u64>()?;
            Ok(kib * 1024)
        };
        Ok(Memory { now: bytes("VmRSS:")?, most: bytes("VmHWM:")? })
    }

    /// Waits for its end, which must be a success, and returns its processor time.
    pub(crate) fn finish(mut self) -> anyhow::Result<Duration> {
        let pid = rustix::process::Pid::from_child(&self.child);
        // It stays a zombie, whose times can still be read.
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
        let cpu = self.cpu()?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("{} ended with {status}", self.name);
        }
        Ok(cpu)
    }

    fn proc(&self, file: &str) -> anyhow::Result<String> {
        let path = format!("/proc/{}/{file}", self.child.id());
        fs::read_to_string(&path).with_context(|| format!("{} is gone: {path}", self.name))
    }
}

/// As [`Process::cpu`], of a process that this one did not start.
pub(crate) fn cpu_of(id: u32) -> anyhow::Result<Duration> {
    Ok(cpu(&fs::read_to_string(format!("/proc/{id}/stat"))?)?.1)
}

/// Name and processor time of a process or thread, from its `/proc/…/stat`.
fn cpu(stat: &str) -> anyhow::Result<(&str, Duration)> {
    // The second field is the name, in parentheses, and may hold anything; utime and stime are the
    // 14th and 15th.
    let (head, fields) = stat.rsplit_once(')').context("no name in /proc/<pid>/stat")?;
    let (_, name) = head.split_once('(').context("no name in /proc/<pid>/stat")?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks = || -> anyhow::Result<u32> {
        Ok(fields.next().context("too few fields in /proc/<pid>/stat")?.parse()?)
    };
    Ok((name, TICK * (ticks()? + ticks()?)))
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the child has already ended and been waited for.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
