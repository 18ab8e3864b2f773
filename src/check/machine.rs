//! The machine: its clock, the limit of open files, and the memory that the edge may take.

use std::{fs, path::Path};

use jiff::{Timestamp, fmt::rfc2822};
use rustix::process::{Resource, getrlimit};

use super::{Aspect, Finding, Report, Subject};
use crate::{config::Http, http::KEPT_DESCRIPTORS, journal::Holder};

/// 2026-01-01 in Unix seconds. The program was written later, so an earlier clock is wrong.
const EARLIEST: i64 = 1_767_225_600;
/// Two clocks may differ by this many seconds without a warning.
const CLOCKS: i64 = 30;
/// What the process takes beside calls, and what a connection takes, with TLS and without (deploy/RUNBOOK.md,
/// Capacity).
const BASE_BYTES: u64 = 64 << 20;
const TLS_CONNECTION_BYTES: u64 = 64 << 10;
const CONNECTION_BYTES: u64 = 32 << 10;

pub(super) fn probe(subject: &Subject, report: &Report) {
    let (proc, who) = process(subject.running().ok().flatten());
    let http = &subject.config.http;
    report.all([
        judge_clock(Timestamp::now()),
        judge_descriptors(http.max_connections as u64, open_files(&proc), who),
        judge_memory(http, memory(&proc)),
    ]);
}

fn judge_clock(now: Timestamp) -> Finding {
    if now.as_second() < EARLIEST {
        let found = format!("the clock says {now:.0}, which has long passed");
        let remedy = "set it (timedatectl): certificates count as not valid yet, and Kafka deletes \
                      what carries such a time";
        return Aspect::Clock.problem(found, remedy);
    }
    Aspect::Clock.ok(format!("this machine says {now:.0}"))
}

/// Compares this machine's clock with that of a server, by the `Date` of its answer.
pub(super) fn compare_clocks(date: Option<&str>, now: Timestamp) -> Finding {
    let Some(theirs) = date.and_then(|date| rfc2822::parse(date).ok()) else {
        let found = "the clock was not compared with another one: no answer has a Date";
        return Aspect::Clock.ok(found);
    };
    let seconds = (now.as_second() - theirs.timestamp().as_second()).abs();
    let found = format!("the clock here and that of the server differ by {seconds} s");
    if seconds > CLOCKS {
        let remedy = "set the wrong one of the two (timedatectl)";
        return Aspect::Clock.warning(found, remedy);
    }
    Aspect::Clock.ok(found)
}

/// The edge that runs here if its limits can be read, or else this process, whose limits a new edge gets
/// if it is started in the same way. Its directory in `/proc`, and what it is.
fn process(running: Option<Holder>) -> (String, &'static str) {
    let proc = running.and_then(|holder| Some(format!("/proc/{}", holder.pid?)));
    // In another container the id may be another program's.
    let is_edge = |proc: &String| {
        let name = fs::read_to_string(format!("{proc}/comm")).unwrap_or_default();
        name.trim() == "weni-edge" && fs::read(format!("{proc}/limits")).is_ok()
    };
    match proc.filter(is_edge) {
        Some(proc) => (proc, "the running edge"),
        None => ("/proc/self".to_owned(), "this process"),
    }
}

/// The hard limit, up to which an edge raises the other. None: there is no limit.
fn open_files(proc: &str) -> Option<u64> {
    let limits = fs::read_to_string(format!("{proc}/limits")).unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    match line.and_then(|line| line.split_whitespace().nth(1)) {
        Some("unlimited") => None,
        Some(hard) => hard.parse().ok(),
        None => getrlimit(Resource::Nofile).maximum,
    }
}

/// The least of the control group's limits and the machine's memory, in bytes.
fn memory(proc: &str) -> Option<u64> {
    let groups = fs::read_to_string(format!("{proc}/cgroup")).unwrap_or_default();
    let limit = memory_limit(&groups, Path::new("/sys/fs/cgroup"));
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_of(&text));
    limit.into_iter().chain(machine).min()
}

/// The least limit of a process's group and of those above it. `groups` is its `/proc/PID/cgroup`, and
/// `root` where control groups are mounted. In a container the root is often the process's own group.
fn memory_limit(groups: &str, root: &Path) -> Option<u64> {
    let mut least = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (mount, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            // "max" is no limit.
            let limit = fs::read_to_string(mount.join(group).join(file)).ok();
            let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
            least = least.into_iter().chain(limit).min();
        }
    }
    least
}

/// Bytes, of `/proc/meminfo`.
fn total_of(meminfo: &str) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

fn judge_descriptors(connections: u64, limit: Option<u64>, who: &str) -> Finding {
    const ASPECT: Aspect = Aspect::Descriptors;
    let needed = connections + KEPT_DESCRIPTORS;
    match limit {
        Some(limit) if limit < needed => {
            let affordable = limit.saturating_sub(KEPT_DESCRIPTORS);
            let found = format!(
                "{who} may open {limit} files, so it takes {affordable} connections instead of \
                 http.max_connections = {connections}"
            );
            let remedy = format!(
                "raise the limit to {needed} (LimitNOFILE= of systemd, ulimit -Hn), or lower \
                 http.max_connections"
            );
            ASPECT.warning(found, remedy)
        }
        Some(limit) => ASPECT.ok(format!("{who} may open {limit} files; {needed} are needed")),
        None => ASPECT.ok(format!("{who} may open any number of files")),
    }
}

/// The most that an edge takes, as in deploy/RUNBOOK.md, Capacity.
fn needed_memory(http: &Http) -> u64 {
    let of_connection = if http.tls.is_some() { TLS_CONNECTION_BYTES } else { CONNECTION_BYTES };
    BASE_BYTES + 2 * http.max_memory_bytes as u64 + of_connection * http.max_connections as u64
}

fn judge_memory(http: &Http, limit: Option<u64>) -> Finding {
    let needed = needed_memory(http) >> 20;
    let Some(limit) = limit else {
        return Aspect::Memory
            .ok(format!("no limit is known; the edge takes at most {needed} MiB"));
    };
    let limit = limit >> 20;
    if limit < needed {
        let found = format!(
            "there are {limit} MiB, and the edge may take {needed} MiB: the system may kill it in a \
             flood of calls"
        );
        let remedy = "raise the limit (resources.limits.memory, MemoryMax=), or lower \
                      http.max_memory_bytes or http.max_connections (RUNBOOK, Capacity)";
        return Aspect::Memory.warning(found, remedy);
    }
    Aspect::Memory.ok(format!("there are {limit} MiB; the edge takes at most {needed} MiB"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::Severity,
        config::{Config, Tls},
    };

    #[test]
    fn memory_is_compared_with_the_formula_of_the_runbook() {
        let mut http = Config::default().http;
        assert_eq!(needed_memory(&http), (64 + 2 * 64) * (1 << 20) + 10_000 * 32 * 1024);
        let runbook = include_str!("../../deploy/RUNBOOK.md");
        assert!(runbook.contains("at most 504 MiB: 64 MiB, twice"));
        assert!(runbook.contains("at most 817 MiB"));
        let judged = |http: &Http, mib: u64| judge_memory(http, Some(mib << 20)).severity;
        assert_eq!(judged(&http, 504), Severity::Ok);
        assert_eq!(judged(&http, 503), Severity::Warning);
        let tls = Tls { certificate_file: "".into(), key_file: "".into() };
        let with_tls = Http { tls: Some(tls), ..http.clone() };
        assert_eq!(judged(&with_tls, 817), Severity::Ok);
        assert_eq!(judged(&with_tls, 816), Severity::Warning);
        http.max_connections = 1000;
        assert_eq!(judged(&http, 256), Severity::Ok);
        assert_eq!(judge_memory(&http, None).severity, Severity::Ok);
    }

    #[test]
    fn the_least_limit_of_a_group_and_those_above_it_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let limit = |groups: &str| memory_limit(groups, root.path());
        write("system.slice/edge.service/memory.max", "max\n");
        assert_eq!(limit("0::/system.slice/edge.service\n"), None);
        write("system.slice/memory.max", "1073741824\n");
        assert_eq!(limit("0::/system.slice/edge.service\n"), Some(1 << 30));
        write("system.slice/edge.service/memory.max", "536870912\n");
        assert_eq!(limit("0::/system.slice/edge.service\n"), Some(512 << 20));
        write("memory.max", "268435456\n");
        assert_eq!(limit("0::/../other\n"), Some(256 << 20));
        write("memory/pod/memory.limit_in_bytes", "134217728\n");
        let v1 = "12:pids:/pod\n5:cpu,cpuacct:/pod\n4:memory:/pod\n";
        assert_eq!(limit(v1), Some(128 << 20));
        assert_eq!(limit(""), None);
        assert_eq!(total_of("MemTotal:        8000000 kB\nMemFree: 1 kB\n"), Some(8_192_000_000));
    }

    #[test]
    fn open_files_are_compared_with_connections_and_what_is_kept_beside_them() {
        assert_eq!(judge_descriptors(10_000, Some(10_192), "it").severity, Severity::Ok);
        assert_eq!(judge_descriptors(10_000, None, "it").severity, Severity::Ok);
        let few = judge_descriptors(10_000, Some(1024), "it");
        assert_eq!(few.severity, Severity::Warning);
        assert!(few.found.contains("takes 832 connections"), "{few:?}");
    }

    #[test]
    fn a_clock_of_another_year_is_noticed() {
        assert_eq!(judge_clock(Timestamp::UNIX_EPOCH).severity, Severity::Problem);
        let now = Timestamp::from_second(1_795_000_000).unwrap();
        assert_eq!(judge_clock(now).found, "this machine says 2026-11-18T11:06:40Z");
    }

    #[test]
    fn clocks_that_differ_are_noticed() {
        let now = "2026-11-27T10:00:00Z".parse().unwrap();
        let near = compare_clocks(Some("Fri, 27 Nov 2026 10:00:20 GMT"), now);
        assert_eq!(near.severity, Severity::Ok);
        let far = compare_clocks(Some("Fri, 27 Nov 2026 09:58:00 GMT"), now);
        assert!(far.severity == Severity::Warning && far.found.contains("by 120 s"), "{far:?}");
        for date in [None, Some("yesterday")] {
            assert!(compare_clocks(date, now).found.contains("was not compared"), "{date:?}");
        }
    }
}
