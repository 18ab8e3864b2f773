//! Opening what an earlier run left: find every intact record, tell a torn tail from corruption, put
//! aside what is damaged, and cut it.
//!
//! *Torn* is what a power cut may leave of the last batch of the last segment, which was never
//! acknowledged. All else that is missing is *corrupt*. What proves it is an intact frame of a later batch
//! (a batch is written only when the one before is durable), a later segment, or the end that the last
//! recovery or a clean stop wrote down ([`History`]). Either way every intact frame is kept.
//!
//! The order is: look at all, take the run, sync what was found, copy damage to quarantine, write down
//! what is missing (so that it is reported once), and only then cut.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use super::{
    OpenError, Position,
    disk::{self, Directory, Disk, DiskFile, Mode},
    identity::Runs,
    index, io_at,
    salvage::RetriedFile,
    sealed,
    segment::{self, Frames, HEADER_BYTES, Header, Layout, Scan},
    spares,
};
use crate::metrics::Metrics;

const COPIED_AT_ONCE: u64 = 1 << 20;

/// What lies in a journal's directory. Made without changing anything.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Oldest first.
    pub(super) segments: Vec<Scan>,
    /// Base positions of files whose header is lost in both copies.
    headless: Vec<Position>,
    /// Files in `segments/` that are no segments.
    pub(super) others: Vec<PathBuf>,
}

impl Survey {
    /// Reads every segment.
    pub(super) fn make(journal: Directory<'_>, mark_every_bytes: u64) -> Result<Self, OpenError> {
        let mut survey = Self::default();
        let mut headers = Vec::new();
        let directory = segment::directory(journal.path);
        // One file at a time, so that a large backlog does not run out of descriptors.
        // None where a running journal, which is inspected, has just recycled the segment.
        let open =
            |path: &Path| disk::if_there(journal.disk.open(path, Mode::Read)).map_err(io_at(path));
        for path in journal.disk.list(&directory).map_err(io_at(&directory))? {
            let Some(base) = segment::base_of(&path) else {
                survey.others.push(path);
                continue;
            };
            let Some(file) = open(&path)? else { continue };
            match Header::read(file, base).map_err(io_at(&path))? {
                Ok(header) => headers.push(header),
                Err(sealed::Unsealed::Damaged) => survey.headless.push(base),
                Err(sealed::Unsealed::Newer(version)) => {
                    return Err(OpenError::Newer { path, version });
                }
            }
        }
        headers.sort_unstable_by_key(|header| header.base);
        for (at, header) in headers.iter().enumerate() {
            let next = headers.get(at + 1).map(|next| next.base);
            let next = next.filter(|next| next.run() == header.base.run());
            let path = segment::path(journal.path, header.base);
            let Some(file) = open(&path)? else { continue };
            let scan = segment::scan(file, *header, next, mark_every_bytes);
            survey.segments.push(scan.map_err(io_at(&path))?);
        }
        Ok(survey)
    }

    /// The runs of the segments become known, where their files are lost.
    pub(super) fn add_runs(&self, runs: &mut Runs) {
        for Layout { header, .. } in self.layouts() {
            runs.add(header.base.run(), Some(header.run_id));
        }
    }

    pub(super) fn layouts(&self) -> impl Iterator<Item = &Layout> {
        self.segments.iter().map(|scan| &scan.layout)
    }

    pub(super) fn bases(&self) -> impl Iterator<Item = Position> {
        self.layouts().map(|layout| layout.header.base).chain(self.headless.iter().copied())
    }

    pub(super) fn spans(&self) -> impl Iterator<Item = &Range<Position>> {
        self.layouts().flat_map(|layout| &layout.spans)
    }

    /// Positions that are missing and were never promised.
    fn torn(&self, known: &History) -> Vec<Range<Position>> {
        let newest = self.bases().max();
        let last = self.segments.last().filter(|last| Some(last.layout.header.base) == newest);
        // What cannot be read is damage and no tear.
        let Some(last) = last.filter(|last| last.unreadable_bytes == 0) else { return Vec::new() };
        let durable = known.ends.get(&last.layout.header.base.run());
        let torn = last.torn.iter().filter(|torn| durable.is_none_or(|end| torn.start >= *end));
        torn.cloned().collect()
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
        let history = sealed::read(journal, NAME, KIND, |fields| {
            let mut history = Self::default();
            for _ in 0..fields.u32()? {
                history.ends.extend(fields.position().map(|end| (end.run(), end)));
            }
            while let (Some(start), Some(end)) = (fields.position(), fields.position()) {
                history.lost.push(start..end);
            }
            Some(history)
        })?;
        Ok(history.unwrap_or_default())
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

/// What is missing from a journal.
#[derive(Debug)]
pub(super) struct MissingRecords {
    /// Acknowledged once.
    corrupt: Vec<Range<Position>>,
    /// Never acknowledged.
    excused: Vec<Range<Position>>,
    /// What is written down from now on.
    pub(super) history: History,
}

impl MissingRecords {
    /// Compares what should be there with what is.
    pub(super) fn find(survey: &Survey, known: &History, checkpoint: Option<Position>) -> Self {
        // Nothing at or after the checkpoint was ever recycled, nor anything after the oldest segment that
        // is left. (If the disk refused to recycle that one, what came after it counts as lost here.)
        let floor = checkpoint.into_iter().chain(survey.bases()).min().unwrap_or(Position::MAX);
        let found = survey.layouts().map(Layout::end_position).chain(survey.bases());
        let mut ends = BTreeMap::new();
        for end in found.chain(known.ends.values().copied().filter(|end| *end > floor)) {
            let highest = ends.entry(end.run()).or_insert(end);
            *highest = end.max(*highest);
        }
        let expected: Vec<_> = ends
            .iter()
            .map(|(run, end)| Position::new(*run, 0).max(floor)..*end)
            .filter(|range| range.start < range.end)
            .collect();
        let present: Vec<_> = survey.spans().cloned().collect();
        let missing = without(&without(&expected, &present), &known.lost);
        let corrupt = without(&missing, &survey.torn(known));
        let excused = without(&missing, &corrupt);
        let mut lost = known.lost.clone();
        lost.retain(|range| range.end > floor);
        lost.extend(missing);
        lost.sort_unstable_by_key(|range| range.start);
        Self { corrupt, excused, history: History { ends, lost } }
    }
}

/// `ranges` without the positions of `others`.
fn without(ranges: &[Range<Position>], others: &[Range<Position>]) -> Vec<Range<Position>> {
    let mut left = ranges.to_vec();
    for other in others {
        left = left
            .into_iter()
            .flat_map(|Range { start, end }| {
                [start..end.min(other.start), start.max(other.end)..end]
            })
            .filter(|range| range.start < range.end)
            .collect();
    }
    left
}

/// Acts on what is missing: syncs, puts aside, writes down, cuts. From then on every segment ends
/// with its last intact frame and holds nothing else.
pub(super) fn repair(
    journal: Directory<'_>,
    run: u32,
    survey: &mut Survey,
    missing: &MissingRecords,
    metrics: &Metrics,
) -> io::Result<()> {
    let directory = journal.path.join("quarantine");
    let quarantine = Quarantine { journal, directory, run, metrics };
    for Layout { header, .. } in survey.layouts() {
        segment::open(journal, header.base, Mode::Read)?.sync_all()?;
    }
    for base in &survey.headless {
        let bytes = journal.disk.metadata(&segment::path(journal.path, *base))?.bytes;
        quarantine.keep_file(*base, bytes, <dyn Disk as Disk>::rename)?;
    }
    for (at, scan) in survey.segments.iter().enumerate() {
        let (base, end) = (scan.layout.header.base, scan.layout.end_position());
        if scan.unreadable_bytes > 0 {
            // It is written anew from what can be read. Nothing is lost of what may be read one day.
            quarantine.keep_file(base, scan.unreadable_bytes, <dyn Disk as Disk>::link)?;
            continue;
        }
        let next =
            survey.segments.get(at + 1).map_or(Position::MAX, |next| next.layout.header.base);
        let is_corrupt = missing.corrupt.iter().any(|lost| lost.start < next && base < lost.end);
        for hole in &scan.holes {
            quarantine.copy(base, hole.clone(), is_corrupt)?;
        }
        if let Some(lost) = missing.corrupt.iter().find(|lost| lost.start == end) {
            let damaged_end = trailing_damage_end(journal, scan, lost.end)?;
            quarantine.copy(base, scan.layout.end..damaged_end, true)?;
        }
    }
    report(survey, missing, metrics);
    missing.history.write(journal)?;
    let last = survey.segments.len().saturating_sub(1);
    for (at, scan) in survey.segments.iter_mut().enumerate() {
        // Between a full segment's last frame and its end lies only what was there before.
        let is_full = at < last && missing.corrupt.is_empty();
        if !scan.holes.is_empty() || scan.unreadable_bytes > 0 {
            rewrite(journal, scan)?;
        } else if !is_full && scan.layout.end < scan.file_bytes {
            let file = segment::open(journal, scan.layout.header.base, Mode::Create)?;
            file.set_len(scan.layout.end)?;
            file.sync_all()?;
        }
    }
    // A crash within a recovery left them, of segments that it wrote anew.
    for path in survey.others.iter().filter(|path| segment::is_unfinished(path)) {
        journal.disk.remove_if_there(path)?;
    }
    journal.disk.sync_directory(&segment::directory(journal.path))
}

/// Where the damage after a segment's last intact frame ends: after the lost frames as far as their heads
/// are plausible, or else after the last byte that is not zero.
fn trailing_damage_end(journal: Directory<'_>, scan: &Scan, lost_end: Position) -> io::Result<u64> {
    let Layout { header, end, .. } = &scan.layout;
    let file = segment::open(journal, header.base, Mode::Read)?;
    let mut frames = Frames::new(RetriedFile::strict(file), header.salt, scan.file_bytes);
    let (mut at, mut expected) = (*end, scan.layout.end_position());
    while expected < lost_end {
        let head = frames.head_at(at, expected)?;
        let Some(head) = head.filter(|head| head.position == expected) else {
            return frames.last_content(at);
        };
        (at, expected) = (head.end, expected.next());
    }
    Ok(at)
}

fn report(survey: &Survey, missing: &MissingRecords, metrics: &Metrics) {
    let is_own = |path: &Path| spares::is_spare(path) || segment::is_unfinished(path);
    for path in survey.others.iter().filter(|path| !is_own(path)) {
        tracing::warn!(path = %path.display(),
            "a file that the journal did not make lies among its segments; it is neither read nor removed");
    }
    for lost in &missing.corrupt {
        let records = index::positions(lost);
        metrics.journal_errors_total.with_label_values(&["read"]).inc();
        tracing::error!(from = %lost.start, to = %lost.end, records, "acknowledged records of the journal are damaged or gone");
    }
    for lost in &missing.excused {
        let records = index::positions(lost);
        tracing::warn!(from = %lost.start, to = %lost.end, records, "records that were not synced yet are gone");
    }
}

/// Replaces a segment by one that holds its intact frames alone.
fn rewrite(journal: Directory<'_>, scan: &mut Scan) -> io::Result<()> {
    let Layout { header, mark_every_bytes, .. } = scan.layout;
    let path = segment::path(journal.path, header.base);
    let temporary = path.with_extension("tmp");
    let mut damaged = RetriedFile::salvaging(journal.disk.open(&path, Mode::Read)?);
    let whole = journal.disk.open(&temporary, Mode::Truncate)?;
    whole.write_at(&header.encode(), 0)?;
    let (mut at, mut len) = (HEADER_BYTES, HEADER_BYTES);
    let end = scan.layout.end..scan.layout.end;
    for hole in scan.holes.iter().chain([&end]) {
        copy_range(&mut damaged, at..hole.start, &*whole, len)?;
        len += hole.start - at;
        at = hole.end;
    }
    whole.sync_all()?;
    journal.disk.rename(&temporary, &path)?;
    let file = journal.disk.open(&path, Mode::Read)?;
    *scan = segment::scan(file, header, None, mark_every_bytes)?;
    Ok(())
}

fn copy_range(
    from: &mut RetriedFile,
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
    /// Copies these bytes of a segment.
    fn copy(&self, base: Position, bytes: Range<u64>, is_corrupt: bool) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let path = self.path(base, bytes.start)?;
        let mut segment = RetriedFile::strict(segment::open(self.journal, base, Mode::Read)?);
        let copy = self.journal.disk.open(&path, Mode::Truncate)?;
        copy_range(&mut segment, bytes.clone(), &*copy, 0)?;
        copy.sync_all()?;
        self.finish(&path, bytes.end - bytes.start, is_corrupt)
    }

    /// Keeps a segment's whole file, of which so many bytes cannot be read: `name` gives it a name here.
    fn keep_file(
        &self,
        base: Position,
        bytes: u64,
        name: fn(&dyn Disk, &Path, &Path) -> io::Result<()>,
    ) -> io::Result<()> {
        let path = self.path(base, 0)?;
        name(self.journal.disk, &segment::path(self.journal.path, base), &path)?;
        self.metrics.journal_errors_total.with_label_values(&["read"]).inc();
        self.finish(&path, bytes, true)
    }

    fn path(&self, base: Position, offset: u64) -> io::Result<PathBuf> {
        self.journal.disk.create_directory(&self.directory)?;
        let name = format!("{:016x}-{offset}-found-by-run-{}", base.as_u64(), self.run);
        Ok(self.directory.join(name))
    }

    fn finish(&self, path: &Path, bytes: u64, is_corrupt: bool) -> io::Result<()> {
        self.journal.disk.sync_directory(&self.directory)?;
        self.metrics.quarantined_total.with_label_values(&["journal"]).inc();
        if is_corrupt {
            self.metrics.journal_corrupt_bytes_total.inc_by(bytes);
        }
        tracing::warn!(path = %path.display(), bytes, is_corrupt, "damaged bytes of the journal put aside");
        Ok(())
    }
}
