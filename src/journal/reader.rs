//! Reading the journal in order, up to the durable watermark.

use std::{fs::File, io, sync::Arc};

use super::{
    Position,
    index::Place,
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
    /// Offset behind the last durable frame, as far as is known here.
    limit: u64,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, position: Position) -> Self {
        Self { shared, position, open: None }
    }

    /// The position behind the record that was read last; where [`next`](Self::next) found none,
    /// the durable watermark.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next durable record, or `None` when there is none yet. Does not wait, but reads the
    /// disk. Where segments were recycled or records lost, it goes on behind them.
    ///
    /// # Errors
    /// When the disk cannot be read, or a record that was durable is damaged now
    /// (`InvalidData`). The position stays; opening the journal again puts the damage aside.
    #[expect(clippy::should_implement_trait, reason = "a record borrows from the reader")]
    pub fn next(&mut self) -> io::Result<Option<Record<'_>>> {
        let found = self.find();
        let frame = found.inspect_err(|_| {
            self.open = None;
            self.shared.metrics.journal_errors_total.with_label_values(&["read"]).inc();
        })?;
        Ok(match (frame, &self.open) {
            (Some(frame), Some(open)) => {
                self.position = frame.position.next();
                Some(Record { position: frame.position, payload: open.frames.payload(&frame) })
            }
            _ => None,
        })
    }

    /// Lets go of a segment that is not needed any more: an open file keeps its room on the disk.
    /// To be called where there may be nothing to read for long.
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
                // The file is another segment by now.
                None if !self.shared.index.lock().has(open.base) => self.open = None,
                None => {
                    let message = format!("the record at or behind {} is damaged", self.position);
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
            let Place { base, salt, offset: at, limit } = place;
            match File::open(segment::path(&self.shared.options.directory, base)) {
                Ok(file) => {
                    self.open = Some(Open { base, frames: Frames::new(file, salt), at, limit });
                    return Ok(true);
                }
                Err(error) if self.shared.index.lock().has(base) => return Err(error),
                // Recycled since: another one is the next, or none is.
                Err(_) => {}
            }
        }
    }
}
