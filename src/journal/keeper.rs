//! The journal's housekeeping, on a thread of its own: checkpoint, recycling, segments prepared
//! ahead, free space, and a look at how long callers have waited.

use std::{
    collections::VecDeque,
    fs, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use uuid::Uuid;

use super::{
    Position, Shared,
    files::{self, sync_directory_of},
    recovery::{SEGMENTS, SPARE, Segment},
    segment::{FRAMES_START, Header},
};

pub(super) const EVERY: Duration = Duration::from_secs(1);
/// Segments that are kept ready: one is being filled while the next one is prepared.
const SPARES: usize = 2;
/// Samples of the watermark; beyond it every other one goes, and ages get coarser.
const SAMPLES_MAX: usize = 10_000;

/// When the durable watermark was where: how old what is pending is.
#[derive(Debug, Default)]
pub(super) struct Samples(VecDeque<(Position, u64)>);

impl Samples {
    pub(super) fn add(&mut self, position: Position, at_ms: u64) {
        match self.0.back_mut() {
            Some((last, at)) if *last == position => *at = at_ms,
            _ => self.0.push_back((position, at_ms)),
        }
        if self.0.len() > SAMPLES_MAX {
            let mut keep = false;
            self.0.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    /// When the record at `position` was not there yet.
    pub(super) fn before(&mut self, position: Position) -> Option<u64> {
        while self.0.get(1).is_some_and(|(next, _)| *next <= position) {
            self.0.pop_front();
        }
        self.0.front().map(|(_, at)| *at)
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The keeper's thread.
pub(super) fn run(shared: &Shared) {
    loop {
        let stopping = {
            let mut stopping = shared.stopping.lock();
            if !*stopping {
                shared.keep.wait_for(&mut stopping, EVERY);
            }
            *stopping
        };
        if stopping {
            return;
        }
        shared.give_up_on_slow_disk();
        shared.samples.lock().add(shared.durable(), now_ms());
        shared.look_at_free_space();
        report(shared, "checkpoint", shared.write_checkpoint().and_then(|()| shared.recycle()));
        report(shared, "prepare", shared.prepare());
        shared.observe();
    }
}

fn report(shared: &Shared, op: &str, done: io::Result<()>) {
    if let Err(error) = done {
        shared.metrics.journal_errors_total.with_label_values(&[op]).inc();
        tracing::error!(%error, op, "the journal's housekeeping failed");
    }
}

impl Shared {
    /// Writes the checkpoint, if it has moved.
    pub(super) fn write_checkpoint(&self) -> io::Result<()> {
        let mut checkpoints = self.checkpoints.lock();
        let Some(checkpoint) = checkpoints.known.clone() else { return Ok(()) };
        if checkpoints.written.as_ref() == Some(&checkpoint) {
            return Ok(());
        }
        checkpoint.write(&self.directory)?;
        checkpoints.written = Some(checkpoint);
        Ok(())
    }

    /// Segments before the checkpoint that is on disk are used again, or deleted.
    fn recycle(&self) -> io::Result<()> {
        let checkpoints = self.checkpoints.lock();
        let Some(bound) = checkpoints.written.as_ref().map(|written| written.position) else {
            return Ok(());
        };
        if !checkpoints.may_recycle {
            return Ok(());
        }
        drop(checkpoints);
        while let Some(segment) = self.take_settled(bound) {
            self.release(segment.bytes());
            if self.spares.lock().len() < SPARES {
                let spare = self.spare_path();
                fs::rename(&segment.path, &spare)?;
                sync_directory_of(&spare)?;
                allocate(&segment.file, self.segment_bytes)?;
                self.spares.lock().push(spare);
            } else {
                fs::remove_file(&segment.path)?;
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn recycle_for_test(&self) {
        self.recycle().expect("recycling");
    }

    fn take_settled(&self, bound: Position) -> Option<Segment> {
        let mut segments = self.segments.lock();
        // The last one may be being written.
        let settled =
            segments.len() > 1 && segments.front().is_some_and(|first| first.next <= bound);
        if settled { segments.pop_front() } else { None }
    }

    fn prepare(&self) -> io::Result<()> {
        while self.spares.lock().len() < SPARES {
            let spare = self.new_spare(self.segment_bytes)?;
            self.spares.lock().push(spare);
        }
        Ok(())
    }

    fn new_spare(&self, bytes: u64) -> io::Result<PathBuf> {
        let path = self.spare_path();
        let file = files::options().create_new(true).open(&path)?;
        allocate(&file, bytes).and_then(|()| file.sync_all()).inspect_err(|_| {
            // What is half allocated is no spare; the next try makes another.
            fs::remove_file(&path).ok();
        })?;
        sync_directory_of(&path)?;
        Ok(path)
    }

    fn spare_path(&self) -> PathBuf {
        let name = format!("{SPARE}{}", Uuid::new_v4().simple());
        self.directory.join(SEGMENTS).join(name)
    }

    /// A new segment with room for at least `least` bytes, durable and in the index.
    pub(super) fn next_segment(&self, least: u64) -> io::Result<Segment> {
        let prepared = self.spares.lock().pop();
        self.keep.notify_one();
        let spare = match prepared {
            Some(spare) => spare,
            None => self.new_spare(self.segment_bytes.max(least))?,
        };
        let header = Header {
            run: self.run,
            run_id: self.run_id,
            base: self.durable(),
            created_ms: now_ms(),
            salt: Uuid::new_v4().as_fields().0,
        };
        let file = files::options().open(&spare)?;
        self.disk.write(&file, &header.encode(), 0)?;
        file.sync_all()?;
        let name = format!("{:016x}.segment", header.base.as_u64());
        let path = self.directory.join(SEGMENTS).join(name);
        fs::rename(&spare, &path)?;
        sync_directory_of(&path)?;
        let segment = Segment {
            path,
            file: Arc::new(file),
            header,
            next: header.base,
            records: 0,
            missing: Vec::new(),
            end: FRAMES_START,
        };
        self.segments.lock().push_back(segment.clone());
        Ok(segment)
    }

    pub(super) fn look_at_free_space(&self) {
        let room = match rustix::fs::statvfs(&self.directory) {
            Ok(stat) => stat.f_bavail * stat.f_frsize >= self.min_free_bytes,
            Err(error) => {
                tracing::error!(%error, "the file system's free space cannot be read");
                true
            }
        };
        self.room.store(room, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Blocks on disk for the whole file, where the file system can say so ahead.
fn allocate(file: &fs::File, bytes: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes),
        Err(error) => Err(error.into()),
    }
}
