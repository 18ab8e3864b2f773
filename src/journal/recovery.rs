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
    disk::{self, Directory, DiskFile, Mode},
    identity::Runs,
    index, io_at, keeper,
    salvage::RetriedFile,
    sealed::{self, Unsealed},
    segment::{self, Frames, HEADER_BYTES, Header, Layout, Scan},
};
use crate::metrics::Metrics;

const COPIED_AT_ONCE: usize = 1 << 20;

/// What lies in a journal's directory. Made without changing anything.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Oldest first.
    pub(super) segments: Vec<Scan>,
    /// Base positions of files whose header is lost in both copies.
    headless: Vec<Position>,
    /// Also what a crash within a recovery left of segments that it wrote anew.
    pub(super) spares: Vec<PathBuf>,
    /// Files in the directory of segments that are not the journal's.
    foreign: Vec<PathBuf>,
}

impl Survey {
    /// Reads every segment.
    pub(super) fn make(journal: Directory<'_>) -> Result<Self, OpenError> {
        let mut survey = Self::default();
        let mut bases = Vec::new();
        let directory = segment::directory(journal.path);
        for path in journal.disk.list(&directory).map_err(io_at(&directory))? {
            match segment::base_of(&path) {
                Some(base) => bases.push(base),
                None if keeper::is_spare(&path) => survey.spares.push(path),
                None => survey.foreign.push(path),
            }
        }
        bases.sort_unstable();
        // One file at a time, so that a large backlog does not run out of descriptors.
        for (at, &base) in bases.iter().enumerate() {
            let path = segment::path(journal.path, base);
            // None where a running journal, which is inspected, has just recycled the segment.
            let open =
                || disk::if_there(journal.disk.open(&path, Mode::Read)).map_err(io_at(&path));
            let Some(file) = open()? else { continue };
            let header = match Header::read(file, base).map_err(io_at(&path))? {
                Ok(header) => header,
                Err(Unsealed::Damaged) => {
                    survey.headless.push(base);
                    continue;
                }
                Err(Unsealed::Newer(version)) => {
                    return Err(OpenError::Newer { path, version });
                }
            };
            let next = bases.get(at + 1).copied().filter(|next| next.run() == base.run());
            let Some(file) = open()? else { continue };
            survey.segments.push(segment::scan(file, header, next).map_err(io_at(&path))?);
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

    /// Of what is missing, what was never promised.
    fn excused(&self, known: &History, missing: &[Range<Position>]) -> Vec<Range<Position>> {
        let newest = self.bases().max();
        let last = self.segments.last().filter(|last| Some(last.layout.header.base) == newest);
        // What cannot be read is damage and no tear.
        let Some(last) = last.filter(|last| last.unreadable_bytes == 0) else { return Vec::new() };
        let durable = known.ends.get(&last.layout.header.base.run());
        let torn = last.torn.iter().filter(|torn| durable.is_none_or(|end| torn.start >= *end));
        let torn: Vec<_> = torn.cloned().collect();
        without(missing, &without(missing, &torn))
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
        // is left.
        let floor = checkpoint.into_iter().chain(survey.bases()).min().unwrap_or(Position::MAX);
        let mut ends: Vec<_> = known.ends.values().copied().filter(|end| *end > floor).collect();
        ends.extend(survey.layouts().map(Layout::end_position).chain(survey.bases()));
        ends.sort_unstable();
        // The highest of each run.
        let ends: BTreeMap<_, _> = ends.into_iter().map(|end| (end.run(), end)).collect();
        let expected: Vec<_> = ends
            .iter()
            .map(|(run, end)| Position::new(*run, 0).max(floor)..*end)
            .filter(|range| range.start < range.end)
            .collect();
        let present: Vec<_> = survey.layouts().flat_map(|layout| layout.spans.clone()).collect();
        let missing = without(&without(&expected, &present), &known.lost);
        let excused = survey.excused(known, &missing);
        let corrupt = without(&missing, &excused);
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

/// Acts on what a survey found.
pub(super) struct Repair<'a> {
    pub(super) journal: Directory<'a>,
    /// The one that this opening took.
    pub(super) run: u32,
    pub(super) metrics: &'a Metrics,
}

impl Repair<'_> {
    /// Syncs, puts aside, writes down, cuts. From then on every segment ends with its last intact frame and
    /// holds nothing else.
    pub(super) fn make(&self, survey: &mut Survey, missing: &MissingRecords) -> io::Result<()> {
        let Directory { disk, path } = self.journal;
        for Layout { header, .. } in survey.layouts() {
            segment::open(self.journal, header.base, Mode::Read)?.sync_all()?;
        }
        for base in &survey.headless {
            let segment = segment::path(path, *base);
            let bytes = disk.metadata(&segment)?.bytes;
            self.put_aside(*base, 0, bytes, true, |aside| disk.rename(&segment, aside))?;
            self.count_error();
        }
        let corrupt = &missing.corrupt;
        for (at, scan) in survey.segments.iter().enumerate() {
            let (base, end) = (scan.layout.header.base, scan.layout.end);
            if scan.unreadable_bytes > 0 {
                // It is written anew from what can be read. This keeps what may be read one day.
                let link = |aside: &Path| disk.link(&segment::path(path, base), aside);
                self.put_aside(base, 0, scan.unreadable_bytes, true, link)?;
                self.count_error();
                continue;
            }
            let next = survey.segments.get(at + 1);
            let next = next.map_or(Position::MAX, |next| next.layout.header.base);
            let is_corrupt = corrupt.iter().any(|lost| lost.start < next && base < lost.end);
            for hole in &scan.holes {
                self.copy(base, hole.clone(), is_corrupt)?;
            }
            let end_position = scan.layout.end_position();
            if let Some(lost) = corrupt.iter().find(|lost| lost.start == end_position) {
                let damaged_end = trailing_damage_end(self.journal, scan, lost.end)?;
                self.copy(base, end..damaged_end, true)?;
            }
        }
        self.report(survey, missing);
        missing.history.write(self.journal)?;
        let last = survey.segments.len().saturating_sub(1);
        for (at, scan) in survey.segments.iter_mut().enumerate() {
            // Between a full segment's last frame and its end lies only what was there before.
            let is_full = at < last && corrupt.is_empty();
            if !scan.holes.is_empty() || scan.unreadable_bytes > 0 {
                rewrite(self.journal, &keeper::spare(path, self.run, at as u64), scan)?;
            } else if !is_full && scan.layout.end < scan.file_bytes {
                let file = segment::open(self.journal, scan.layout.header.base, Mode::Create)?;
                file.set_len(scan.layout.end)?;
                file.sync_all()?;
            }
        }
        disk.sync_directory(&segment::directory(path))
    }

    /// Copies these bytes of a segment to quarantine.
    fn copy(&self, base: Position, bytes: Range<u64>, is_corrupt: bool) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.put_aside(base, bytes.start, bytes.end - bytes.start, is_corrupt, |aside| {
            let mut segment = RetriedFile::strict(segment::open(self.journal, base, Mode::Read)?);
            let copy = self.journal.disk.open(aside, Mode::Truncate)?;
            copy_range(&mut segment, bytes, &*copy, 0)?;
            copy.sync_all()
        })
    }

    /// Has `put` make a file in quarantine, of which `bytes` bytes are damaged.
    fn put_aside(
        &self,
        base: Position,
        offset: u64,
        bytes: u64,
        is_corrupt: bool,
        put: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        let Directory { disk, path } = self.journal;
        let directory = path.join("quarantine");
        disk.create_directory(&directory)?;
        let name = format!("{:016x}-{offset}-found-by-run-{}", base.as_u64(), self.run);
        let path = directory.join(name);
        put(&path)?;
        disk.sync_directory(&directory)?;
        self.metrics.quarantined_total.with_label_values(&["journal"]).inc();
        if is_corrupt {
            self.metrics.journal_corrupt_bytes_total.inc_by(bytes);
        }
        tracing::warn!(path = %path.display(), bytes, is_corrupt, "damaged bytes of the journal put aside");
        Ok(())
    }

    fn report(&self, survey: &Survey, missing: &MissingRecords) {
        for path in &survey.foreign {
            tracing::warn!(path = %path.display(),
                "a file that the journal did not make lies among its segments; it is neither read nor removed");
        }
        for lost in &missing.corrupt {
            self.count_error();
            let records = index::positions(lost);
            tracing::error!(from = %lost.start, to = %lost.end, records, "acknowledged records of the journal are damaged or gone");
        }
        for lost in &missing.excused {
            let records = index::positions(lost);
            tracing::warn!(from = %lost.start, to = %lost.end, records, "records that were not synced yet are gone");
        }
    }

    fn count_error(&self) {
        self.metrics.journal_errors_total.with_label_values(&["read"]).inc();
    }
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

/// Replaces a segment by one that holds its intact frames alone, which has the name of a spare first.
fn rewrite(journal: Directory<'_>, spare: &Path, scan: &mut Scan) -> io::Result<()> {
    let header = scan.layout.header;
    let path = segment::path(journal.path, header.base);
    let mut damaged = RetriedFile::salvaging(journal.disk.open(&path, Mode::Read)?);
    let whole = journal.disk.open(spare, Mode::Truncate)?;
    whole.write_at(&header.encode(), 0)?;
    let (mut at, mut len) = (HEADER_BYTES, HEADER_BYTES);
    let end = scan.layout.end..scan.layout.end;
    for hole in scan.holes.iter().chain([&end]) {
        len = copy_range(&mut damaged, at..hole.start, &*whole, len)?;
        at = hole.end;
    }
    whole.sync_all()?;
    journal.disk.rename(spare, &path)?;
    let file = journal.disk.open(&path, Mode::Read)?;
    *scan = segment::scan(file, header, None)?;
    Ok(())
}

/// Returns the offset after what it has written.
fn copy_range(
    from: &mut RetriedFile,
    bytes: Range<u64>,
    to: &dyn DiskFile,
    mut offset: u64,
) -> io::Result<u64> {
    for at in bytes.clone().step_by(COPIED_AT_ONCE) {
        let mut buffer = vec![0; COPIED_AT_ONCE.min((bytes.end - at) as usize)];
        from.read(&mut buffer, at)?;
        to.write_at(&buffer, offset)?;
        offset += buffer.len() as u64;
    }
    Ok(offset)
}
