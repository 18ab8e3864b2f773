//! Reading the journal in order, up to the durable watermark.

use std::{io, sync::Arc};

use super::{
    Position,
    disk::Mode,
    salvage::{RetriedFile, is_shortage},
    segment::{self, Frame, Frames, Header},
    shared::Shared,
};

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalRecord<'a> {
    /// Its place in the journal.
    pub position: Position,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// Reads records in order, with one file open and a buffer of the largest record.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    /// Records before this position are not read any more.
    pub(super) position: Position,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    base: Position,
    /// Limited to what is durable, as far as this reader knows.
    frames: Frames,
    /// Offset of the next frame.
    at: u64,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, position: Position) -> Self {
        Self { shared, position, open: None }
    }

    /// The next durable record, or `None` when there is none yet. Reads the disk, and does not wait. Skips
    /// recycled segments and lost records.
    ///
    /// # Errors
    /// The position stays. After `EMFILE`, `ENFILE`, `ENOMEM` or `EAGAIN` the caller may try again. Any
    /// other error is damage (`InvalidData`) or a disk that fails after retries: the
    /// [journal has failed](super::Journal::failed), and the next opening puts the damage aside.
    #[expect(clippy::should_implement_trait, reason = "a record borrows from the reader")]
    pub fn next(&mut self) -> io::Result<Option<JournalRecord<'_>>> {
        let frame = self.find().inspect_err(|error| {
            self.open = None;
            self.shared.metrics.journal_errors_total.with_label_values(&["read"]).inc();
            if !is_shortage(error) {
                let at = self.position;
                self.shared.fail(format!("the record at or after {at} cannot be read: {error}"));
            }
        })?;
        let Some(frame) = frame else { return Ok(None) };
        let position = frame.position;
        self.position = position.next();
        let payload = self.open.as_ref().map(|open| open.frames.payload(&frame));
        Ok(payload.map(|payload| JournalRecord { position, payload }))
    }

    /// The record at `position`, for people who look at it: none if it is not durable yet, or recycled.
    /// Ask for records in their order: then what was read of a file serves the next ones, too.
    ///
    /// # Errors
    /// Unlike [`next`](Self::next) an error does not fail the journal, because damage to a committed
    /// record is no loss. The publisher finds any other damage.
    pub fn at(&mut self, position: Position) -> io::Result<Option<&[u8]>> {
        if position < self.position {
            self.open = None;
        } else if let Some(open) = self.open.as_mut().filter(|_| position > self.position) {
            // Read nothing more until the index has told where the record lies.
            open.frames.limit = open.at;
        }
        self.position = position;
        let frame = self.find().inspect_err(|_| self.open = None)?;
        let Some(frame) = frame.filter(|frame| frame.position == position) else {
            self.open = None;
            return Ok(None);
        };
        self.position = position.next();
        Ok(self.open.as_ref().map(|open| open.frames.payload(&frame)))
    }

    /// Closes a segment that was recycled, because an open file keeps its space on the disk. Call it before
    /// a long wait.
    pub fn rest(&mut self) {
        let recycled = {
            let index = &self.shared.watermarks.lock().index;
            self.open.take_if(|open| !index.has(open.base))
        };
        // Without the lock: it may free the blocks of a whole segment.
        drop(recycled);
    }

    fn find(&mut self) -> io::Result<Option<Frame>> {
        loop {
            let Some(open) = self.open.as_mut().filter(|open| open.at < open.frames.limit) else {
                if self.advance()? {
                    continue;
                }
                return Ok(None);
            };
            match open.frames.frame_at(open.at, open.base)? {
                Some(frame) => {
                    open.at = frame.end;
                    if frame.position >= self.position {
                        return Ok(Some(frame));
                    }
                }
                // The file has been recycled for another segment.
                None if !self.shared.watermarks.lock().index.has(open.base) => self.open = None,
                None => {
                    let message = "it is damaged (its CRC does not match)";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
            }
        }
    }

    /// Learns where the next record lies and what else is durable, and opens its segment if that is
    /// another. False when there is nothing more to read.
    fn advance(&mut self) -> io::Result<bool> {
        let (Header { base, salt, .. }, at, limit) = {
            let index = &self.shared.watermarks.lock().index;
            let Some(segment) = index.locate(self.position) else { return Ok(false) };
            (segment.header, segment.mark_before(self.position), segment.end)
        };
        if let Some(open) = self.open.as_mut().filter(|open| open.base == base) {
            (open.at, open.frames.limit) = (open.at.max(at), limit);
            return Ok(true);
        }
        match segment::open(self.shared.options.directory(), base, Mode::Read) {
            Ok(file) => {
                let frames = Frames::new(RetriedFile::strict(file), salt, limit);
                self.open = Some(Open { base, frames, at });
            }
            Err(error) if self.shared.watermarks.lock().index.has(base) => return Err(error),
            // It was recycled in the meantime: the caller looks for the next one.
            Err(_) => {}
        }
        Ok(true)
    }
}
