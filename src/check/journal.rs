//! The journal's directory: its place, its format, its room, and how fast its disk syncs. A journal that
//! is open is only read, and its lock is asked for.

use std::{
    fs, io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::Access;

use super::{Aspect, Finding, Report, Severity, Subject};
use crate::{
    config::{self, Config},
    journal::{Directory, Holder, Identity, OpenError, check_place, disk, disk::Disk as _},
    serve::publish_label,
};

/// A write of a batch in the journal has about this size.
const WRITE_BYTES: usize = 4096;
const WRITES: usize = 32;
/// A slow disk is not asked for longer.
const WRITING: Duration = Duration::from_secs(5);
/// Each answer waits for a sync.
const SLOW_MEDIAN: Duration = Duration::from_millis(20);
/// The alert `WeniEdgeSlowSync` has the same limit.
const SLOW_LONGEST: Duration = Duration::from_millis(250);
/// What the journal takes beyond its limit: a segment in use and one prepared.
const SEGMENTS_BYTES: u64 = 128 << 20;

pub(super) fn probe(subject: &Subject, report: &Report) {
    report.all(look(subject));
}

fn look(subject: &Subject) -> Vec<Finding> {
    let config = &subject.config;
    let path = config.journal.directory.as_path();
    let directory = Directory { disk: &disk::Real, path };
    match directory.disk.exists(path) {
        Ok(true) => {}
        Ok(false) => return missing(config),
        Err(error) => return vec![unusable(path, &error)],
    }
    let running = subject.running();
    let mut findings = vec![judge_directory(subject, directory)];
    if findings[0].severity == Severity::Problem {
        return findings;
    }
    match room(path) {
        Ok(room) => findings.push(judge_room(&config.journal, room)),
        Err(error) => findings.push(unusable(path, &error)),
    }
    if running.is_none() {
        findings.push(match syncs(path) {
            Ok(times) => judge_syncs(&times),
            Err(error) => unusable(path, &error),
        });
    }
    findings
}

fn unusable(path: &Path, error: &io::Error) -> Finding {
    let found = format!("{} cannot be used: {error}", path.display());
    let remedy = match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            "mount its volume for writing (dmesg says whether the \
                                              system made it read-only after an error)"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room on the volume; never \
                                                                      delete files of the journal"
        }
        io::ErrorKind::PermissionDenied => {
            "run this as the edge's own user, and give that user the \
                                            directory (chown, chmod 700)"
        }
        _ => "name a directory of the edge's user in journal.directory, on a disk that works",
    };
    Finding::problem(Aspect::Journal, found, remedy)
}

/// A directory that does not exist is not made, because nothing is left behind.
fn missing(config: &Config) -> Vec<Finding> {
    let path = config.journal.directory.as_path();
    let Some(parent) = path.ancestors().skip(1).find(|parent| above(parent).exists()) else {
        let error = io::Error::from(io::ErrorKind::NotFound);
        return vec![unusable(path, &error)];
    };
    let parent = above(parent);
    if let Err(error) = rustix::fs::access(&parent, Access::WRITE_OK | Access::EXEC_OK) {
        let found = format!(
            "{} does not exist and cannot be made in {}: {}",
            path.display(),
            parent.display(),
            io::Error::from(error)
        );
        let remedy = "make it, for the edge's user alone (install -d -m 700 -o USER), on a volume \
                      that stays";
        return vec![Finding::problem(Aspect::Journal, found, remedy)];
    }
    let kind = disk::Real.file_system(&parent).ok().and_then(|found| found.volatile);
    if let Some(kind) = kind.filter(|_| !config.journal.allow_volatile) {
        return vec![volatile(path, kind)];
    }
    let place = on_volatile(kind);
    let measured = room(&parent).and_then(|room| Ok((room, syncs(&parent)?)));
    let (room, times) = match measured {
        Ok(measured) => measured,
        Err(error) => return vec![unusable(&parent, &error)],
    };
    let found = format!("{} does not exist yet; serve makes it{place}", path.display());
    vec![
        Finding::ok(Aspect::Journal, found),
        judge_room(&config.journal, room),
        judge_syncs(&times),
    ]
}

/// An empty path is the present directory.
fn above(path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { ".".into() } else { path.to_owned() }
}

fn judge_directory(subject: &Subject, directory: Directory<'_>) -> Finding {
    let config = &subject.config;
    let path = directory.path;
    let (name, allow_volatile) = (path.display(), config.journal.allow_volatile);
    if let Err(error) = check_place(directory, allow_volatile) {
        return refused(&error);
    }
    let needed = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    if let Err(error) = rustix::fs::access(path, needed) {
        return unusable(path, &error.into());
    }
    let running = match subject.lock() {
        Ok(running) => running,
        Err(error) => return unusable(path, error),
    };
    let identity = match Identity::read(directory) {
        Ok(identity) => identity,
        Err(error) => return refused(&error),
    };
    let label = publish_label(config);
    if let Some(other) = identity.as_ref().filter(|identity| identity.label != label) {
        let found = format!(
            "{name} was created with kafka.identity_prefix and topics.position {:?}, and the \
             configuration has {label:?}",
            other.label
        );
        let remedy = "restore the two keys, or run `weni-edge journal fork` with the new ones";
        return Finding::problem(Aspect::Journal, found, remedy);
    }
    let what = match (running, &identity) {
        (Some(Holder { pid: Some(pid) }), _) => format!("{name}: process {pid} has it open"),
        (Some(_), _) => format!("{name}: a process has it open"),
        (None, Some(_)) => format!("{name} has a journal, and no process has it open"),
        (None, None) => format!("{name} is there, without a journal yet"),
    };
    let kind = directory.disk.file_system(path).ok().and_then(|found| found.volatile);
    let user = rustix::process::geteuid().as_raw();
    let is_own = fs::metadata(path).is_ok_and(|found| found.uid() == user);
    if user == 0 && !is_own {
        let found = format!("{what}; it is another user's, and root may write everywhere");
        let remedy = "check again as the edge's user";
        return Finding::warning(Aspect::Journal, found, remedy);
    }
    Finding::ok(Aspect::Journal, what + &on_volatile(kind))
}

/// Of a place that journal.allow_volatile allows.
fn on_volatile(kind: Option<&str>) -> String {
    kind.map(|kind| format!("; it is on {kind}, which a restart empties")).unwrap_or_default()
}

/// Why the edge would not open the journal.
fn refused(error: &OpenError) -> Finding {
    let (found, remedy) = match error {
        OpenError::Io { path, source } => return unusable(path, source),
        OpenError::Exposed { path, why } => {
            let name = path.display();
            (format!("{name} {why}"), format!("give it to the edge's user alone: chmod 700 {name}"))
        }
        OpenError::Volatile { directory, file_system } => return volatile(directory, file_system),
        OpenError::Newer { .. } | OpenError::Locked { .. } | OpenError::RunTaken { .. } => {
            (error.to_string(), "the edge does not start before that is mended".to_owned())
        }
    };
    Finding::problem(Aspect::Journal, found, remedy)
}

fn volatile(directory: &Path, file_system: &str) -> Finding {
    let found = format!("{} is on {file_system}, which a restart empties", directory.display());
    let remedy = "put journal.directory on a volume that stays, or set journal.allow_volatile = true \
                  where callbacks may be lost";
    Finding::problem(Aspect::Journal, found, remedy)
}

/// Bytes of a file system.
#[derive(Debug, Clone, Copy)]
struct Room {
    free: u64,
    /// Of the journal's own files.
    own: u64,
}

fn room(path: &Path) -> io::Result<Room> {
    let free = disk::Real.file_system(path)?.free_bytes;
    let segments = match fs::read_dir(path.join("segments")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Room { free, own: 0 }),
        segments => segments?,
    };
    // A running edge removes files meanwhile.
    let bytes = segments.flatten().filter_map(|file| Some(file.metadata().ok()?.len()));
    Ok(Room { free, own: bytes.sum() })
}

fn judge_room(limits: &config::Journal, Room { free, own }: Room) -> Finding {
    const ASPECT: Aspect = Aspect::JournalSpace;
    let usable = (free + own).saturating_sub(limits.min_free_bytes);
    let [has, wants] = [usable, limits.max_bytes + SEGMENTS_BYTES].map(bytes);
    let kept = bytes(limits.min_free_bytes);
    if usable < SEGMENTS_BYTES {
        let found = format!(
            "the volume has {} free, of which {kept} stay free (journal.min_free_bytes): the journal \
             is full at once, and calls are answered 503",
            bytes(free)
        );
        let remedy = "make room, enlarge the volume, or lower journal.min_free_bytes";
        return Finding::problem(ASPECT, found, remedy);
    }
    if usable < limits.max_bytes + SEGMENTS_BYTES {
        let found = format!(
            "the volume has room for {has}, and a journal of journal.max_bytes takes {wants} (with \
             128 MiB of segments, beside {kept} that stay free): it is full earlier"
        );
        let remedy = "enlarge the volume, or lower journal.max_bytes to what it can hold";
        return Finding::warning(ASPECT, found, remedy);
    }
    Finding::ok(ASPECT, format!("room for {has}; the journal takes at most {wants}"))
}

fn bytes(count: u64) -> String {
    match count {
        0..1_048_576 => format!("{count} bytes"),
        1_048_576..1_073_741_824 => format!("{} MiB", count >> 20),
        _ => format!("{:.1} GiB", count as f64 / 1_073_741_824.0),
    }
}

/// Writes and syncs as the journal does, into a file that has no name and is gone with the process.
fn syncs(path: &Path) -> io::Result<Vec<Duration>> {
    let file = tempfile::tempfile_in(path)?;
    // As in a segment, the blocks are there before.
    file.write_all_at(&[0; WRITE_BYTES * WRITES], 0)?;
    file.sync_all()?;
    let started = Instant::now();
    let mut times = Vec::new();
    for at in 0..WRITES {
        let before = Instant::now();
        file.write_all_at(&[1; WRITE_BYTES], (at * WRITE_BYTES) as u64)?;
        file.sync_data()?;
        times.push(before.elapsed());
        if started.elapsed() > WRITING {
            break;
        }
    }
    Ok(times)
}

fn judge_syncs(times: &[Duration]) -> Finding {
    const ASPECT: Aspect = Aspect::JournalSync;
    let mut times = times.to_vec();
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let longest = times.last().copied().unwrap_or_default();
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
    let found = format!(
        "a sync of 4 KiB takes {} (median of {}; longest {})",
        ms(median),
        times.len(),
        ms(longest)
    );
    if median > SLOW_MEDIAN || longest > SLOW_LONGEST {
        let remedy = "each answer waits for a sync, and Weni waits for the answer: stop other programs \
                      that write to this volume, or use a faster one";
        return Finding::warning(ASPECT, found, remedy);
    }
    Finding::ok(ASPECT, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_is_compared_with_what_the_journal_may_take() {
        use Severity::{Ok, Problem, Warning};
        const GIB: u64 = 1 << 30;
        let limits = Config::default().journal;
        for (free, own, severity) in [
            // 10 GiB, 1 GiB that stays free, and 128 MiB of segments.
            (11 * GIB + SEGMENTS_BYTES, 0, Ok),
            (11 * GIB + SEGMENTS_BYTES - 1, 0, Warning),
            (2 * GIB, 10 * GIB, Ok),
            (GIB + SEGMENTS_BYTES, 0, Warning),
            (GIB, 0, Problem),
            (0, 0, Problem),
        ] {
            let judged = judge_room(&limits, Room { free, own });
            assert_eq!(judged.severity, severity, "{free} and {own}: {judged:?}");
        }
    }

    #[test]
    fn a_disk_is_slow_by_its_median_or_by_its_longest_sync() {
        let judged = |times: &[u64]| {
            let times: Vec<_> = times.iter().map(|ms| Duration::from_millis(*ms)).collect();
            judge_syncs(&times).severity
        };
        assert_eq!(judged(&[1, 1, 2, 20, 250]), Severity::Ok);
        assert_eq!(judged(&[1, 1, 21, 21, 30]), Severity::Warning);
        assert_eq!(judged(&[1, 1, 1, 1, 251]), Severity::Warning);
    }

    #[test]
    fn measuring_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(syncs(directory.path()).unwrap().len(), WRITES);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
