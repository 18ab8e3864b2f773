//! What is on disk when a journal is opened: which frames are intact, what is damaged, and whether
//! that is a torn write or corruption.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    OpenError, Position,
    files::{self, sync_directory_of},
    segment::{self, FRAMES_START, Found, FrameReader, Header, HeaderError},
};

pub(super) const SEGMENTS: &str = "segments";
const QUARANTINE: &str = "quarantine";
/// How a segment that is prepared or waits to be used again is named.
pub(super) const SPARE: &str = "spare-";

/// One segment with the records that it holds.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    pub(super) header: Header,
    /// The first position behind it; records lie at or behind `header.base`.
    pub(super) next: Position,
    /// Records in it.
    pub(super) records: u64,
    /// Positions, from and to, whose records are damaged and gone.
    pub(super) missing: Vec<(Position, Position)>,
    /// Where its last frame ends.
    pub(super) end: u64,
}

impl Segment {
    /// Records in [from, to).
    pub(super) fn count(&self, from: Position, to: Position) -> u64 {
        let within = |start: Position, end: Position| {
            let start = start.max(from).as_u64();
            end.min(to).as_u64().saturating_sub(start)
        };
        let gone: u64 = self.missing.iter().map(|(start, end)| within(*start, *end)).sum();
        within(self.header.base, self.next) - gone
    }

    /// Bytes of its frames.
    pub(super) fn bytes(&self) -> u64 {
        self.end - FRAMES_START
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// In order of their positions.
    pub(super) segments: VecDeque<Segment>,
    pub(super) spares: Vec<PathBuf>,
    /// Damaged bytes that cannot be a torn write.
    pub(super) corrupt_bytes: u64,
    /// Files put into quarantine.
    pub(super) quarantined: u64,
}

/// A damaged stretch of a segment.
#[derive(Debug, Clone, Copy)]
struct Damage {
    from: u64,
    to: u64,
    /// Intact frames lie behind it.
    inside: bool,
    corrupt: bool,
}

/// Reads every segment and tells what it holds; changes nothing.
pub(super) fn scan(directory: &Path) -> Result<(Vec<Scanned>, Vec<PathBuf>), OpenError> {
    let mut scanned = Vec::new();
    let mut spares = Vec::new();
    let entries = match fs::read_dir(directory.join(SEGMENTS)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((scanned, spares)),
        Err(error) => return Err(error.into()),
    };
    let mut paths: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    // Names are positions in hexadecimal: their order is the records'.
    paths.sort();
    for path in paths {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(SPARE) {
            spares.push(path);
        } else if name.ends_with(".segment") {
            scanned.push(scan_segment(path)?);
        }
    }
    link(&mut scanned);
    Ok((scanned, spares))
}

/// Within a run a segment begins where the one before it ends, and was begun only when that was
/// durable: a gap between the two is no torn write.
fn link(scanned: &mut [Scanned]) {
    for at in 1..scanned.len() {
        let (before, behind) = scanned.split_at_mut(at);
        let Some(header) = behind[0].header() else { continue };
        let Some(Scanned { segment: Some(segment), damage, .. }) = before.last_mut() else {
            continue;
        };
        if segment.header.run != header.run || segment.next >= header.base {
            continue;
        }
        segment.missing.push((segment.next, header.base));
        segment.next = header.base;
        match damage.last_mut().filter(|damage| !damage.inside) {
            Some(damage) => damage.corrupt = true,
            None => damage.push(Damage {
                from: segment.end,
                to: segment.end,
                inside: false,
                corrupt: true,
            }),
        }
    }
}

/// A segment as it was found.
pub(super) struct Scanned {
    path: PathBuf,
    file: File,
    /// `None`: both headers are damaged, and with the salt all of it.
    segment: Option<Segment>,
    damage: Vec<Damage>,
    /// A copy of the header is damaged.
    head_damaged: bool,
}

impl Scanned {
    pub(super) fn into_segment(self) -> Option<Segment> {
        self.segment
    }

    pub(super) fn header(&self) -> Option<Header> {
        self.segment.as_ref().map(|segment| segment.header)
    }

    /// Copies what is damaged to quarantine, cuts or fills it, and makes the rest durable.
    pub(super) fn mend(self, directory: &Path, recovered: &mut Recovered) -> io::Result<()> {
        let Self { path, file, segment, damage, head_damaged } = self;
        let Some(segment) = segment else {
            let name = path.file_name().map(PathBuf::from).unwrap_or_default();
            let kept = quarantine_directory(directory)?.join(name);
            recovered.corrupt_bytes += file.metadata()?.len();
            recovered.quarantined += 1;
            fs::rename(&path, &kept)?;
            sync_directory_of(&path)?;
            tracing::error!(file = %kept.display(), "a segment's header is damaged: set aside whole");
            return sync_directory_of(&kept);
        };
        for damage in damage {
            let mut bytes = vec![0; (damage.to - damage.from) as usize];
            file.read_exact_at(&mut bytes, damage.from)?;
            let name = format!("{:016x}-{}.damaged", segment.header.base.as_u64(), damage.from);
            let kept = quarantine_directory(directory)?.join(name);
            files::write_atomically(&kept, &bytes)?;
            recovered.quarantined += 1;
            if damage.corrupt {
                // A tail that is plainly gone leaves no bytes, and must be noticed all the same.
                recovered.corrupt_bytes += (bytes.len() as u64).max(1);
                tracing::error!(bytes = bytes.len(), file = %kept.display(),
                    "the journal is damaged before intact records: set aside");
            } else {
                tracing::warn!(bytes = bytes.len(), file = %kept.display(),
                    "the journal ends in a torn write, which was never acknowledged: set aside");
            }
            if damage.inside {
                segment::fill(&mut bytes, segment.header.salt);
                file.write_all_at(&bytes, damage.from)?;
            }
        }
        if head_damaged {
            recovered.corrupt_bytes += FRAMES_START / 2;
            tracing::error!(file = %path.display(), "one copy of a segment's header is damaged: mended");
            file.write_all_at(&segment.header.encode(), 0)?;
        }
        file.set_len(segment.end)?;
        file.sync_all()?;
        recovered.segments.push_back(segment);
        Ok(())
    }
}

fn quarantine_directory(directory: &Path) -> io::Result<PathBuf> {
    let quarantine = directory.join(QUARANTINE);
    files::create_directory(&quarantine)?;
    Ok(quarantine)
}

fn scan_segment(path: PathBuf) -> Result<Scanned, OpenError> {
    let file = files::options().open(&path)?;
    let file_end = file.metadata()?.len();
    let mut head = vec![0; (FRAMES_START.min(file_end)) as usize];
    file.read_exact_at(&mut head, 0)?;
    let header = match Header::decode(&head) {
        Ok(header) => header,
        Err(HeaderError::Newer(version)) => return Err(OpenError::Newer { version }),
        Err(HeaderError::Damaged) => {
            return Ok(Scanned {
                path,
                file,
                segment: None,
                damage: Vec::new(),
                head_damaged: true,
            });
        }
    };
    let mut segment = Segment {
        path: path.clone(),
        file: Arc::new(file.try_clone()?),
        header,
        next: header.base,
        records: 0,
        missing: Vec::new(),
        end: FRAMES_START,
    };
    let damage = scan_frames(&mut segment, &file, file_end)?;
    let head_damaged = head != header.encode();
    Ok(Scanned { path, file, segment: Some(segment), damage, head_damaged })
}

/// Walks the frames; where one is damaged, looks for the next intact one behind it.
fn scan_frames(segment: &mut Segment, file: &File, file_end: u64) -> io::Result<Vec<Damage>> {
    let salt = segment.header.salt;
    let mut reader = FrameReader::new();
    let mut damage = Vec::new();
    loop {
        let header = match reader.at(file, segment.end, file_end, salt)? {
            Found::Frame(header, _) if header.is_filler() => {
                segment.end += header.frame_bytes() as u64;
                continue;
            }
            Found::Frame(header, _) if header.position >= segment.next.as_u64() => {
                take(segment, header.position, header.frame_bytes());
                continue;
            }
            Found::End => break,
            Found::Frame(header, _) | Found::Damaged(header) => header,
        };
        let from = segment.end;
        match next_intact(segment, file, from + 1, file_end)? {
            Some((at, position, batch_start)) => {
                // A batch is written only when the one before it is durable.
                let corrupt = batch_start > segment.next.as_u64();
                damage.push(Damage { from, to: at, inside: true, corrupt });
                segment.end = at;
                debug_assert!(position >= segment.next.as_u64());
            }
            None => {
                if header.position == segment.next.as_u64() {
                    let whole = from + header.frame_bytes() as u64;
                    let to = whole.min(file_end);
                    damage.push(Damage { from, to, inside: false, corrupt: false });
                }
                break;
            }
        }
    }
    Ok(damage)
}

fn take(segment: &mut Segment, position: u64, frame_bytes: usize) {
    let position = Position::from_u64(position);
    if position > segment.next {
        segment.missing.push((segment.next, position));
    }
    segment.next = position.next();
    segment.records += 1;
    segment.end += frame_bytes as u64;
}

/// The next intact frame of this segment at or behind `offset`: where it is, its position, and the
/// position of its batch's first record. Tells frames from payload by position and salted CRC.
fn next_intact(
    segment: &Segment,
    file: &File,
    mut offset: u64,
    end: u64,
) -> io::Result<Option<(u64, u64, u64)>> {
    let mut headers = FrameReader::new();
    let mut frames = FrameReader::new();
    let next = segment.next.as_u64();
    while let Some(header) = headers.header_at(file, offset, end)? {
        // No more positions can have been written than bytes lie between.
        let plausible = header.position >= next
            && header.position - next <= end - segment.end
            && u64::from(header.index_in_batch) <= header.position;
        if plausible
            && let Found::Frame(header, _) = frames.at(file, offset, end, segment.header.salt)?
        {
            let batch_start = header.position - u64::from(header.index_in_batch);
            return Ok(Some((offset, header.position, batch_start)));
        }
        offset += 1;
    }
    Ok(None)
}
