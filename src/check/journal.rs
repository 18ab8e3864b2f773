//! The journal's directory: its place, its format, its room, and how fast its disk syncs. A journal that
//! is open is only read, and its lock is asked for.

use std::{
    fs, io, iter,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use indicatif::BinaryBytes;
use rustix::fs::Access;

use super::{Aspect, Finding, Report, Subject};
use crate::{
    config,
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
const ASPECT: Aspect = Aspect::Journal;

pub(super) fn probe(subject: &Subject, report: &Report) {
    let config = &subject.config.journal;
    let path = config.directory.as_path();
    let directory = Directory { disk: &disk::Real, path };
    let looked = match directory.disk.exists(path) {
        Ok(true) => judge(subject, directory).map(|judged| (path.to_owned(), judged)),
        Ok(false) => judge_missing(config),
        Err(error) => Err(unusable(path, &error)),
    };
    let (place, judged) = match looked {
        Ok(looked) => looked,
        Err(problem) => return report.add(problem),
    };
    let room = room(&place).map(|(free, own)| judge_room(config, free, own));
    // The disk of an edge that runs is left alone.
    let is_running = matches!(subject.running(), Ok(Some(_)));
    let syncs = (!is_running).then(|| syncs(&place).map(judge_syncs));
    let measured = Vec::from_iter(iter::once(room).chain(syncs));
    // A directory whose disk cannot be measured is not well.
    if judged.remedy.is_some() || measured.iter().all(Result::is_ok) {
        report.add(judged);
    }
    let findings = measured.into_iter();
    report.all(findings.map(|found| found.unwrap_or_else(|error| unusable(&place, &error))));
}

fn unusable(path: &Path, error: &io::Error) -> Finding {
    let found = format!("{} cannot be used: {error}", path.display());
    let remedy = match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            "mount its volume for writing (dmesg says whether the system made it read-only after an \
             error)"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room on the volume; never delete files of the journal"
        }
        io::ErrorKind::PermissionDenied => {
            "run this as the edge's own user, and give that user the directory (chown, chmod 700)"
        }
        _ => "name a directory of the edge's user in journal.directory, on a disk that works",
    };
    ASPECT.problem(found, remedy)
}

/// A directory that does not exist is not made, because nothing is left behind. Returns the one in which it
/// can be made; an error is a problem.
fn judge_missing(config: &config::Journal) -> Result<(PathBuf, Finding), Finding> {
    let path = config.directory.as_path();
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let parent = absolute.ancestors().find(|parent| parent.exists()).unwrap_or(Path::new("/"));
    let (name, parent_name) = (path.display(), parent.display());
    rustix::fs::access(parent, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
        let found = format!("{name} does not exist and cannot be made in {parent_name}: {error}");
        let remedy = "make it, for the edge's user alone (install -d -m 700 -o USER), on a volume \
                      that stays";
        ASPECT.problem(found, remedy)
    })?;
    let kind = disk::Real.file_system(parent).ok().and_then(|found| found.volatile);
    if let Some(file_system) = kind.filter(|_| !config.allow_volatile) {
        return Err(refused(OpenError::Volatile { directory: path.to_owned(), file_system }));
    }
    let found = format!("{name} does not exist yet; serve makes it{}", on_volatile(kind));
    Ok((parent.to_owned(), ASPECT.ok(found)))
}

/// An error is a problem.
fn judge(subject: &Subject, directory: Directory<'_>) -> Result<Finding, Finding> {
    let config = &subject.config;
    let path = directory.path;
    let name = path.display();
    check_place(directory, config.journal.allow_volatile).map_err(refused)?;
    let needed = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::access(path, needed).map_err(|error| unusable(path, &error.into()))?;
    let running = subject.running().map_err(|error| unusable(path, error))?;
    let identity = Identity::read(directory).map_err(refused)?;
    let label = publish_label(config);
    if let Some(other) = identity.as_ref().filter(|identity| identity.label != label) {
        let found = format!(
            "{name} was created with kafka.identity_prefix and topics.position {:?}, and the \
             configuration has {label:?}",
            other.label
        );
        let remedy = "restore the two keys, or run `weni-edge journal fork` with the new ones";
        return Err(ASPECT.problem(found, remedy));
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
        return Ok(ASPECT.warning(found, "check again as the edge's user"));
    }
    Ok(ASPECT.ok(what + &on_volatile(kind)))
}

/// Of a place that journal.allow_volatile allows.
fn on_volatile(kind: Option<&str>) -> String {
    kind.map(|kind| format!("; it is on {kind}, which a restart empties")).unwrap_or_default()
}

/// Why the edge would not open the journal.
fn refused(error: OpenError) -> Finding {
    match error {
        OpenError::Io { path, source } => unusable(&path, &source),
        OpenError::Exposed { path, why } => {
            let name = path.display();
            let remedy = format!("give it to the edge's user alone: chmod 700 {name}");
            ASPECT.problem(format!("{name} {why}"), remedy)
        }
        OpenError::Volatile { directory, file_system } => {
            let name = directory.display();
            let remedy = "put journal.directory on a volume that stays, or set \
                          journal.allow_volatile = true where callbacks may be lost";
            ASPECT.problem(format!("{name} is on {file_system}, which a restart empties"), remedy)
        }
        // Their words say what to do.
        OpenError::Newer { .. } | OpenError::Locked { .. } | OpenError::RunTaken { .. } => {
            ASPECT.problem(error.to_string(), "the edge does not start before that is mended")
        }
    }
}

/// The bytes of a file system that are free, and those of the journal's own files.
fn room(path: &Path) -> io::Result<(u64, u64)> {
    let free = disk::Real.file_system(path)?.free_bytes;
    let segments = match fs::read_dir(path.join("segments")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((free, 0)),
        segments => segments?,
    };
    // A running edge removes files meanwhile.
    let bytes = segments.flatten().filter_map(|file| Some(file.metadata().ok()?.len()));
    Ok((free, bytes.sum()))
}

fn judge_room(limits: &config::Journal, free: u64, own: u64) -> Finding {
    let usable = (free + own).saturating_sub(limits.min_free_bytes);
    let wanted = limits.max_bytes + SEGMENTS_BYTES;
    let [free, kept, has, wants] = [free, limits.min_free_bytes, usable, wanted].map(BinaryBytes);
    if usable < SEGMENTS_BYTES {
        let found = format!(
            "the volume has {free} free, of which {kept} stay free (journal.min_free_bytes): the journal \
             is full at once, and calls are answered 503"
        );
        let remedy = "make room, enlarge the volume, or lower journal.min_free_bytes";
        return Aspect::JournalSpace.problem(found, remedy);
    }
    if usable < wanted {
        let found = format!(
            "the volume has room for {has}, and a journal of journal.max_bytes takes {wants} (with \
             128 MiB of segments, beside {kept} that stay free): it is full earlier"
        );
        let remedy = "enlarge the volume, or lower journal.max_bytes to what it can hold";
        return Aspect::JournalSpace.warning(found, remedy);
    }
    Aspect::JournalSpace.ok(format!("room for {has}; the journal takes at most {wants}"))
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

fn judge_syncs(mut times: Vec<Duration>) -> Finding {
    times.sort_unstable();
    let count = times.len();
    let [median, longest] = [count / 2, count - 1].map(|at| times[at]);
    let [middle, most] = [median, longest].map(|time| time.as_secs_f64() * 1000.0);
    let found =
        format!("a sync of 4 KiB takes {middle:.1} ms (median of {count}; longest {most:.1} ms)");
    if median > SLOW_MEDIAN || longest > SLOW_LONGEST {
        let remedy = "each answer waits for a sync, and Weni waits for the answer: stop other programs \
                      that write to this volume, or use a faster one";
        return Aspect::JournalSync.warning(found, remedy);
    }
    Aspect::JournalSync.ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check::Severity, config::Config};

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
            let judged = judge_room(&limits, free, own);
            assert_eq!(judged.severity, severity, "{free} and {own}: {judged:?}");
        }
    }

    #[test]
    fn the_commonest_errors_say_what_to_do() {
        let path = PathBuf::from("/var/lib/edge");
        let exposed = OpenError::Exposed { path: path.clone(), why: "may be written by others" };
        let volatile = OpenError::Volatile { directory: path, file_system: "tmpfs" };
        let remedy = |error| refused(error).remedy.unwrap();
        assert_eq!(remedy(exposed), "give it to the edge's user alone: chmod 700 /var/lib/edge");
        assert!(remedy(volatile).contains("set journal.allow_volatile = true"));
    }

    #[test]
    fn a_disk_is_slow_by_its_median_or_by_its_longest_sync() {
        let judged = |times: &[u64]| {
            judge_syncs(times.iter().map(|ms| Duration::from_millis(*ms)).collect()).severity
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
