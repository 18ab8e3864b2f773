//! Reading the journal in order, up to the durable watermark.

use std::{io, sync::Arc};

use super::{
    Position,
    disk::Mode,
    index::SegmentLocation,
    salvage::{Source, is_shortage},
    segment::{self, Frame, Frames},
    shared::Shared,
};

/// A durable record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    pub position: Position,
    pub payload: &'a [u8],
}

/// Reads records one after the other, with one file open and a buffer of the largest record.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    position: Position,
    open: Option<Open>,
}

/// The segment that is being read.
#[derive(Debug)]
struct Open {
    base: Position,
    frames: Frames,
    /// Offset of the next frame.
    at: u64,
    /// Offset after the last durable frame, as far as this reader knows.
    limit: u64,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, position: Position) -> Self {
        Self { shared, position, open: None }
    }

    /// The position after the record that was read last. After [`next`](Self::next) found none, it is the
    /// durable watermark.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next durable record, or `None` when there is none yet. Does not wait, but reads the
    /// disk. It skips recycled segments and lost records.
    ///
    /// # Errors
    /// The position stays. When the process or machine is short of something (`EMFILE`, `ENFILE`,
    /// `ENOMEM`), the caller may try again. Anything else is damage (`InvalidData`) or a disk that
    /// fails, also after retries: then the [journal has failed](super::Journal::failed), and the next
    /// opening puts the damage aside.
    #[expect(clippy::should_implement_trait, reason = "a record borrows from the reader")]
    pub fn next(&mut self) -> io::Result<Option<Record<'_>>> {
        let found = self.find();
        let frame = found.inspect_err(|error| {
            self.open = None;
            self.shared.metrics.journal_errors_total.with_label_values(&["read"]).inc();
            if !is_shortage(error) {
                let at = self.position;
                self.shared.fail(format!("the record at or after {at} cannot be read: {error}"));
            }
        })?;
        Ok(match (frame, &self.open) {
            (Some(frame), Some(open)) => {
                self.position = frame.position.next();
                Some(Record { position: frame.position, payload: open.frames.payload(&frame) })
            }
            _ => None,
        })
    }

    /// Closes a segment that was recycled: an open file keeps its space on the disk. Call it when there may
    /// be nothing to read for long.
    pub fn rest(&mut self) {
        let index = self.shared.index.lock();
        self.open.take_if(|open| !index.has(open.base));
    }

    fn find(&mut self) -> io::Result<Option<Frame>> {
        loop {
            let Some(open) = self.open.as_mut().filter(|open| open.at < open.limit) else {
                if self.advance()? {
                    continue;
                }
                return Ok(None);
            };
            let floor = open.base;
            match open.frames.frame_at(open.at, open.limit, floor)? {
                Some(frame) => {
                    open.at = frame.end;
                    if frame.position >= self.position {
                        return Ok(Some(frame));
                    }
                }
                // The file has been recycled for another segment.
                None if !self.shared.index.lock().has(open.base) => self.open = None,
                None => {
                    let message = "it is damaged (its CRC does not match)";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
            }
        }
    }

    /// Learns what else is durable, and opens the segment of the next record if that is another.
    /// False when there is nothing more to read.
    fn advance(&mut self) -> io::Result<bool> {
        loop {
            let place = {
                let index = self.shared.index.lock();
                let Some(place) = index.locate(self.position) else {
                    self.position = self.position.max(index.end());
                    return Ok(false);
                };
                place
            };
            if let Some(open) = self.open.as_mut().filter(|open| open.base == place.base) {
                open.limit = place.limit;
                return Ok(true);
            }
            let SegmentLocation { base, salt, offset: at, limit } = place;
            let journal = self.shared.options.directory();
            match journal.disk.open(&segment::path(journal.path, base), Mode::Read) {
                Ok(file) => {
                    self.open = Some(Open {
                        base,
                        frames: Frames::new(Source::strict(file), salt),
                        at,
                        limit,
                    });
                    return Ok(true);
                }
                Err(error) if self.shared.index.lock().has(base) => return Err(error),
                // It was recycled in the meantime: look for the next one.
                Err(_) => {}
            }
        }
    }
}
