//! Reads records in order, up to the durable watermark.

use std::{io, sync::Arc};

use super::{
    Position, Shared,
    recovery::Segment,
    segment::{FRAMES_START, Found, FrameReader},
};

/// A place in the journal that moves on with each record.
pub struct Reader {
    shared: Arc<Shared>,
    segment: Option<Segment>,
    offset: u64,
    frames: FrameReader,
    /// The first position that was not read.
    position: Position,
}

/// One record.
#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub position: Position,
    pub payload: &'a [u8],
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, from: Position) -> Self {
        Self { shared, segment: None, offset: 0, frames: FrameReader::new(), position: from }
    }

    /// The next record, or `None` at the durable watermark; does not wait.
    ///
    /// # Errors
    /// When the file cannot be read, or holds something else than when the journal was opened.
    // Not an iterator: a record borrows the reader's buffer.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> io::Result<Option<Record<'_>>> {
        let Some(file_end) = self.seek()? else { return Ok(None) };
        let Self { segment: Some(segment), offset, frames, position, .. } = self else {
            return Ok(None);
        };
        match frames.at(&segment.file, *offset, file_end, segment.header.salt)? {
            Found::Frame(header, payload) => {
                *offset += header.frame_bytes() as u64;
                let found = Position::from_u64(header.position);
                *position = found.next();
                Ok(Some(Record { position: found, payload }))
            }
            Found::Damaged(_) | Found::End => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} is damaged at {offset}", segment.path.display()),
            )),
        }
    }

    /// Moves to the frame of the next record; returns where its segment's frames end.
    fn seek(&mut self) -> io::Result<Option<u64>> {
        loop {
            if self.position >= self.shared.durable() {
                return Ok(None);
            }
            let Some(segment) = self.segment.as_ref().filter(|segment| self.offset < segment.end)
            else {
                if !self.next_segment() {
                    return Ok(None);
                }
                continue;
            };
            let header = self.frames.header_at(&segment.file, self.offset, segment.end)?;
            match header {
                Some(header) if header.is_filler() || header.position < self.position.as_u64() => {
                    self.offset += header.frame_bytes() as u64;
                }
                _ => return Ok(Some(segment.end)),
            }
        }
    }

    /// Takes the segment with the position, or the first behind it; again, if it has grown.
    fn next_segment(&mut self) -> bool {
        let Some(found) = self.shared.segment_at(self.position) else { return false };
        let same = self.segment.as_ref().is_some_and(|old| old.header == found.header);
        if !same {
            self.offset = FRAMES_START;
            self.frames = FrameReader::new();
        }
        self.segment = Some(found);
        true
    }
}
