//! Opening what an earlier run left: find every intact record, tell a torn tail from corruption,
//! put aside what is damaged, and cut it.
//!
//! *Torn* is what the last batch of the last segment may look like after a power cut: it was
//! never acknowledged. Everything else that is missing is *corrupt*: a batch is written only when
//! the one before is durable, so an intact frame of a later batch after the damage proves it, and
//! so does a later segment or the end that the last recovery or a clean stop wrote down
//! ([`History`]). Either way every intact frame is kept.
//!
//! The order is: all is looked at, the run is taken, what was found is synced, damage is copied
//! to quarantine, the history says what is known to be missing (so that it is reported once),
//! and only then is anything cut.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    ops::Range,
    path::{Path, PathBuf},
};

use super::{
    OpenError, Position,
    disk::{Directory, DiskFile, Mode},
    index, io_at,
    salvage::Source,
    sealed::{self, Fields, Unsealed},
    segment::{self, Frames, HEADER_BYTES, Header, Scan},
    spares,
};
use crate::metrics::Metrics;

const COPIED_AT_ONCE: u64 = 1 << 20;

/// A segment file and what is in it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) header: Header,
    pub(super) scan: Scan,
}

/// What lies in a journal's directory. Made without changing anything.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Oldest first.
    pub(super) segments: Vec<Found>,
    /// Base positions of files whose header is lost in both copies.
    headless: Vec<Position>,
    pub(super) spares: Vec<PathBuf>,
    /// What a crash within a recovery left of segments that it wrote anew.
    unfinished: Vec<PathBuf>,
    /// Files in the directory of segments that are not the journal's.
    foreign: Vec<PathBuf>,
    mark_every_bytes: u64,
}

impl Survey {
    /// Reads every segment.
    ///
    /// # Errors
    /// When a file cannot be read, or is of a newer format.
    pub(super) fn make(journal: Directory<'_>, mark_every_bytes: u64) -> Result<Self, OpenError> {
        let mut survey = Self { mark_every_bytes, ..Self::default() };
        let mut headers = Vec::new();
        let directory = segment::directory(journal.path);
        for path in journal.disk.list(&directory).map_err(io_at(&directory))? {
            let Some(base) = segment::base_of(&path) else {
                survey.add_other(path);
                continue;
            };
            let file = match journal.disk.open(&path, Mode::Read) {
                // An inspection of a running journal: the segment has just been recycled.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                file => file.map_err(io_at(&path))?,
            };
            match Header::read(file, base).map_err(io_at(&path))? {
                Ok(header) => headers.push(header),
                Err(Unsealed::Damaged) => survey.headless.push(base),
                Err(Unsealed::Newer(version)) => return Err(OpenError::Newer { path, version }),
            }
        }
        headers.sort_unstable_by_key(|header| header.base);
        for (at, header) in headers.iter().enumerate() {
            let next = headers.get(at + 1).map(|next| next.base);
            let next = next.filter(|next| next.run() == header.base.run());
            let path = segment::path(journal.path, header.base);
            // One file at a time: a large backlog is not short of descriptors by itself.
            let file = match journal.disk.open(&path, Mode::Read) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                file => file.map_err(io_at(&path))?,
            };
            let scan = segment::scan(file, header, next, mark_every_bytes).map_err(io_at(&path))?;
            survey.segments.push(Found { header: *header, scan });
        }
        Ok(survey)
    }

    fn add_other(&mut self, path: PathBuf) {
        let others = if spares::is_spare(&path) {
            &mut self.spares
        } else if segment::base_of_unfinished(&path).is_some() {
            &mut self.unfinished
        } else {
            &mut self.foreign
        };
        others.push(path);
    }

    pub(super) fn bases(&self) -> impl Iterator<Item = Position> {
        self.segments.iter().map(|found| found.header.base).chain(self.headless.iter().copied())
    }

    pub(super) fn spans(&self) -> impl Iterator<Item = &Range<Position>> {
        self.segments.iter().flat_map(|found| &found.scan.spans)
    }

    /// Where each run ends, as far as the segments show it.
    fn ends(&self) -> BTreeMap<u32, Position> {
        let mut ends = BTreeMap::new();
        let found = self.segments.iter().map(|found| found.scan.end_position(&found.header));
        for end in found.chain(self.headless.iter().copied()) {
            let highest = ends.entry(end.run()).or_insert(end);
            *highest = end.max(*highest);
        }
        ends
    }
}

/// What the last recovery, or a clean stop, found to be true.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct History {
    /// The position after the last record of each run.
    pub(super) ends: BTreeMap<u32, Position>,
    /// Positions that are missing and have been reported.
    pub(super) lost: Vec<Range<Position>>,
}

const KIND: sealed::Kind = *b"hist";
const NAME: &str = "history";

impl History {
    pub(super) fn read(journal: Directory<'_>) -> Result<Self, OpenError> {
        let payload =
            sealed::read(journal.disk, &journal.path.join(NAME), KIND)?.unwrap_or_default();
        let mut fields = Fields(&payload);
        let mut history = Self::default();
        for _ in 0..fields.u32().unwrap_or(0) {
            history.ends.extend(fields.position().map(|end| (end.run(), end)));
        }
        while let (Some(start), Some(end)) = (fields.position(), fields.position()) {
            history.lost.push(start..end);
        }
        Ok(history)
    }

    pub(super) fn write(&self, journal: Directory<'_>) -> io::Result<()> {
        let mut payload = (self.ends.len() as u32).to_le_bytes().to_vec();
        let lost = self.lost.iter().flat_map(|lost| [lost.start, lost.end]);
        for position in self.ends.values().copied().chain(lost) {
            sealed::put_position(&mut payload, position);
        }
        sealed::write(journal, NAME, KIND, &payload)
    }
}

/// What there is to say about a journal's records, and to do.
#[derive(Debug)]
pub(super) struct Verdict {
    /// Missing, and acknowledged once.
    corrupt: Vec<Range<Position>>,
    /// Missing, and never acknowledged; or written without syncs.
    excused: Vec<Range<Position>>,
    /// What is written down from now on.
    pub(super) history: History,
}

impl Verdict {
    /// Compares what should be there with what is.
    pub(super) fn reach(survey: &Survey, known: &History, checkpoint: Option<Position>) -> Self {
        let mut ends = survey.ends();
        // Nothing at or after the checkpoint was ever recycled, nor anything after the oldest segment that
        // is left.
        let floor = checkpoint.into_iter().chain(survey.bases()).min().unwrap_or(Position::MAX);
        for (run, end) in &known.ends {
            if *end > floor {
                let there = ends.entry(*run).or_insert(*end);
                *there = (*there).max(*end);
            }
        }
        let expected: Vec<_> = ends
            .iter()
            .map(|(run, end)| Position::new(*run, 0).max(floor)..*end)
            .filter(|range| range.start < range.end)
            .collect();
        let present: Vec<_> = survey.spans().cloned().collect();
        let mut missing = without(&without(&expected, &present), &known.lost);
        let excused = survey.excused(known, &missing);
        missing = without(&missing, &excused);
        let mut lost = known.lost.clone();
        lost.retain(|range| range.end > floor);
        lost.extend(missing.iter().chain(&excused).cloned());
        lost.sort_unstable_by_key(|range| range.start);
        Self { corrupt: missing, excused, history: History { ends, lost } }
    }
}

impl Survey {
    /// Of what is missing, that whose loss was never promised against.
    fn excused(&self, known: &History, missing: &[Range<Position>]) -> Vec<Range<Position>> {
        let mut excused = Vec::new();
        let newest = self.bases().max();
        if let Some(last) = self.segments.last().filter(|last| Some(last.header.base) == newest) {
            let durable = known.ends.get(&last.header.base.run());
            // What cannot be read is damage and no tear.
            let torn = last.scan.torn.iter().filter(|_| last.scan.unreadable_bytes == 0);
            excused
                .extend(torn.filter(|torn| durable.is_none_or(|end| torn.start >= *end)).cloned());
        }
        without(missing, &without(missing, &excused))
    }
}

/// `ranges` without the positions of `others`.
fn without(ranges: &[Range<Position>], others: &[Range<Position>]) -> Vec<Range<Position>> {
    let mut left = ranges.to_vec();
    for other in others {
        left = left
            .into_iter()
            .flat_map(|range| {
                let before = range.start..range.end.min(other.start);
                let after = range.start.max(other.end)..range.end;
                [before, after]
            })
            .filter(|range| range.start < range.end)
            .collect();
    }
    left
}

/// Carries out a verdict: syncs, puts aside, writes down, cuts. From then on every segment ends
/// with its last intact frame and holds nothing else.
pub(super) fn repair(
    journal: Directory<'_>,
    run: u32,
    survey: &mut Survey,
    verdict: &Verdict,
    metrics: &Metrics,
) -> io::Result<()> {
    let quarantine =
        Quarantine { journal, directory: journal.path.join("quarantine"), run, metrics };
    for Found { header, .. } in &survey.segments {
        journal.disk.open(&segment::path(journal.path, header.base), Mode::Read)?.sync_all()?;
    }
    for base in &survey.headless {
        quarantine.take_file(*base)?;
    }
    for (at, found) in survey.segments.iter().enumerate() {
        if found.scan.unreadable_bytes > 0 {
            quarantine.keep_unreadable(found)?;
            continue;
        }
        let is_corrupt = |range: &Range<Position>| {
            verdict.corrupt.iter().any(|lost| lost.start < range.end && range.start < lost.end)
        };
        let next = survey.segments.get(at + 1).map_or(Position::MAX, |next| next.header.base);
        quarantine.copy(found, is_corrupt(&(found.header.base..next)))?;
        let end = found.scan.end_position(&found.header);
        if let Some(lost) = verdict.corrupt.iter().find(|lost| lost.start == end) {
            let damaged_end = trailing_damage_end(journal, found, lost.end)?;
            quarantine.copy_bytes(found.header.base, found.scan.end..damaged_end, true)?;
        }
    }
    report(survey, verdict, metrics);
    verdict.history.write(journal)?;
    let last = survey.segments.len().saturating_sub(1);
    for (at, found) in survey.segments.iter_mut().enumerate() {
        // Between a full segment's last frame and its end lies only what was there before.
        let is_full = at < last && verdict.corrupt.is_empty();
        if !found.scan.holes.is_empty() || found.scan.unreadable_bytes > 0 {
            rewrite(journal, found, survey.mark_every_bytes)?;
        } else if !is_full && found.scan.end < found.scan.file_bytes {
            cut(journal, found)?;
        }
    }
    for path in &survey.unfinished {
        journal.disk.remove_if_there(path)?;
    }
    journal.disk.sync_directory(&segment::directory(journal.path))
}

/// Where the damage after a segment's last intact frame ends: after the frames that were lost, as far as
/// their heads can be believed, or else after the last byte that is not zero.
fn trailing_damage_end(
    journal: Directory<'_>,
    found: &Found,
    lost_end: Position,
) -> io::Result<u64> {
    let Found { header, scan } = found;
    let file = journal.disk.open(&segment::path(journal.path, header.base), Mode::Read)?;
    let mut frames = Frames::new(Source::strict(file), header.salt);
    let (mut at, mut expected) = (scan.end, scan.end_position(header));
    while expected < lost_end {
        let head = frames.head_at(at, scan.file_bytes, expected)?;
        let Some(head) = head.filter(|head| head.position == expected) else {
            return frames.last_content(at, scan.file_bytes);
        };
        (at, expected) = (head.end, expected.next());
    }
    Ok(at)
}

fn report(survey: &Survey, verdict: &Verdict, metrics: &Metrics) {
    for path in &survey.foreign {
        tracing::warn!(path = %path.display(),
            "a file that the journal did not make lies among its segments; it is neither read nor removed");
    }
    let all = (Position::default(), Position::MAX);
    for lost in &verdict.corrupt {
        let records = index::count([lost].into_iter(), all.0, all.1);
        metrics.journal_errors_total.with_label_values(&["read"]).inc();
        tracing::error!(from = %lost.start, to = %lost.end, records, "acknowledged records of the journal are damaged or gone");
    }
    for lost in &verdict.excused {
        let records = index::count([lost].into_iter(), all.0, all.1);
        tracing::warn!(from = %lost.start, to = %lost.end, records, "records that were not synced yet are gone");
    }
}

/// Cuts a segment after its last intact frame.
fn cut(journal: Directory<'_>, found: &mut Found) -> io::Result<()> {
    let file = journal.disk.open(&segment::path(journal.path, found.header.base), Mode::Create)?;
    file.set_len(found.scan.end)?;
    file.sync_all()?;
    found.scan.file_bytes = found.scan.end;
    Ok(())
}

/// Replaces a segment by one that holds its intact frames alone.
fn rewrite(journal: Directory<'_>, found: &mut Found, mark_every_bytes: u64) -> io::Result<()> {
    let path = segment::path(journal.path, found.header.base);
    let temporary = path.with_extension("tmp");
    let mut damaged = Source::salvaging(journal.disk.open(&path, Mode::Read)?);
    let whole = journal.disk.open(&temporary, Mode::Truncate)?;
    whole.write_at(&found.header.encode(), 0)?;
    let (mut at, mut len) = (HEADER_BYTES, HEADER_BYTES);
    let end = found.scan.end..found.scan.end;
    for hole in found.scan.holes.iter().chain([&end]) {
        copy_range(&mut damaged, at..hole.start, &*whole, len)?;
        len += hole.start - at;
        at = hole.end;
    }
    whole.sync_all()?;
    journal.disk.rename(&temporary, &path)?;
    let (file, complete_at) = (journal.disk.open(&path, Mode::Read)?, None);
    found.scan = segment::scan(file, &found.header, complete_at, mark_every_bytes)?;
    Ok(())
}

fn copy_range(
    from: &mut Source,
    bytes: Range<u64>,
    to: &dyn DiskFile,
    offset: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; (bytes.end - bytes.start).min(COPIED_AT_ONCE) as usize];
    let mut at = bytes.start;
    while at < bytes.end {
        buffer.truncate((bytes.end - at) as usize);
        from.read(&mut buffer, at)?;
        to.write_at(&buffer, offset + at - bytes.start)?;
        at += buffer.len() as u64;
    }
    Ok(())
}

/// Where damaged bytes are kept for inspection.
struct Quarantine<'a> {
    journal: Directory<'a>,
    directory: PathBuf,
    run: u32,
    metrics: &'a Metrics,
}

impl Quarantine<'_> {
    /// Copies the damage between a segment's intact frames.
    fn copy(&self, found: &Found, is_corrupt: bool) -> io::Result<()> {
        for hole in &found.scan.holes {
            self.copy_bytes(found.header.base, hole.clone(), is_corrupt)?;
        }
        Ok(())
    }

    fn copy_bytes(&self, base: Position, bytes: Range<u64>, is_corrupt: bool) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let path = self.path(base, bytes.start)?;
        let Directory { disk, path: journal } = self.journal;
        let mut segment = Source::strict(disk.open(&segment::path(journal, base), Mode::Read)?);
        let copy = disk.open(&path, Mode::Truncate)?;
        copy_range(&mut segment, bytes.clone(), &*copy, 0)?;
        copy.sync_all()?;
        disk.sync_directory(&self.directory)?;
        self.count(&path, bytes.end - bytes.start, is_corrupt);
        Ok(())
    }

    /// Gives the file of a segment that cannot be read throughout a second name here. The segment is
    /// written anew from what can be read, and nothing is lost of what may be read one day.
    fn keep_unreadable(&self, found: &Found) -> io::Result<()> {
        let path = self.path(found.header.base, 0)?;
        self.journal.disk.link(&segment::path(self.journal.path, found.header.base), &path)?;
        self.journal.disk.sync_directory(&self.directory)?;
        self.metrics.journal_errors_total.with_label_values(&["read"]).inc();
        self.count(&path, found.scan.unreadable_bytes, true);
        Ok(())
    }

    /// Moves a whole file whose frames cannot be read.
    fn take_file(&self, base: Position) -> io::Result<()> {
        let path = self.path(base, 0)?;
        let Directory { disk, path: journal } = self.journal;
        let segment = segment::path(journal, base);
        let bytes = disk.metadata(&segment)?.bytes;
        disk.rename(&segment, &path)?;
        disk.sync_directory(&self.directory)?;
        self.metrics.journal_errors_total.with_label_values(&["read"]).inc();
        self.count(&path, bytes, true);
        Ok(())
    }

    fn path(&self, base: Position, offset: u64) -> io::Result<PathBuf> {
        self.journal.disk.create_directory(&self.directory)?;
        let name = format!("{:016x}-{offset}-found-by-run-{}", base.as_u64(), self.run);
        Ok(self.directory.join(name))
    }

    fn count(&self, path: &Path, bytes: u64, is_corrupt: bool) {
        self.metrics.quarantined_total.with_label_values(&["journal"]).inc();
        if is_corrupt {
            self.metrics.journal_corrupt_bytes_total.inc_by(bytes);
        }
        tracing::warn!(path = %path.display(), bytes, is_corrupt, "damaged bytes of the journal put aside");
    }
}
