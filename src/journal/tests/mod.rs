mod damage;
mod faulty;
mod limits;
mod model;
mod openings;
mod place;
mod takeover;
mod torn;

use std::{
    any::Any,
    collections::BTreeSet,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, Waker},
};

use proptest::prelude::*;
use tempfile::TempDir;

use self::faulty::{Call, Faults, FaultyDisk};
use super::{
    disk::Real,
    queue::WriteBatch,
    segment::{HEADER_BYTES, Header},
    *,
};

/// A directory in memory where there is one: most tests here are about bytes and not about disks.
fn directory() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap_or_else(|_| TempDir::new().unwrap())
}

/// Segments of 8 KiB of frames.
fn options(directory: &Path) -> Options {
    let (segment_bytes, label) = (2 * HEADER_BYTES, "a label".to_owned());
    Options {
        min_free_bytes: 0,
        allow_volatile: true,
        segment_bytes,
        label,
        disk: Arc::<FaultyDisk>::default(),
        ..Options::new(directory)
    }
}

fn here(directory: &TempDir) -> Directory<'_> {
    Directory { disk: &Real, path: directory.path() }
}

fn open(directory: &TempDir) -> Journal {
    Journal::open(options(directory.path()), Arc::default()).unwrap()
}

/// A journal without threads: only the test's own calls reach the disk.
fn stepped(directory: &TempDir) -> Journal {
    let stepped = Options { stepped: true, ..options(directory.path()) };
    Journal::open(stepped, Arc::default()).unwrap()
}

/// Appends a record, and lets the writer write it.
fn step(journal: &Journal, payload: &[u8]) -> Result<Position, AppendError> {
    let accepted = counter();
    let mut append = Box::pin(journal.append(payload.len(), &accepted, |out| out.extend(payload)));
    let mut poll = || append.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    match poll() {
        Poll::Ready(refused) => refused,
        Poll::Pending => {
            journal.step_writer();
            let Poll::Ready(written) = poll() else { panic!("the writer has done its step") };
            written
        }
    }
}

fn faults(journal: &Journal) -> Arc<Faults> {
    let disk: &dyn Any = journal.directory().disk;
    disk.downcast_ref::<FaultyDisk>().unwrap().faults().clone()
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn counter() -> IntCounter {
    IntCounter::new("accepted", "accepted").unwrap()
}

fn append(journal: &Journal, payload: &[u8]) -> Result<Position, AppendError> {
    let accepted = counter();
    let result = block_on(journal.append(payload.len(), &accepted, |out| out.extend(payload)));
    assert_eq!(accepted.get(), u64::from(result.is_ok()));
    result
}

/// Appends records in one batch: while the writer is held up by a first one.
fn append_together(journal: &Journal, payloads: &[Vec<u8>]) {
    let accepted = counter();
    let faults = faults(journal);
    let hang = faults.hang.lock();
    let outcomes: Vec<_> = [b"first".to_vec()]
        .iter()
        .chain(payloads)
        .map(|payload| {
            let len = payload.len();
            let pushed = journal.shared().queue.push(len, &accepted, |out| out.extend(payload));
            let (_, outcome) = pushed.unwrap();
            // The first goes alone.
            while payload == b"first" && !journal.shared().queue.is_empty() {
                std::thread::yield_now();
            }
            outcome
        })
        .collect();
    drop(hang);
    for outcome in outcomes {
        assert_eq!(block_on(outcome), Ok(()));
    }
}

fn records(journal: &Journal, from: Position) -> Vec<(Position, Vec<u8>)> {
    let mut reader = journal.reader(from);
    let mut records = Vec::new();
    while let Some(record) = reader.next().unwrap() {
        records.push((record.position, record.payload.to_vec()));
    }
    records
}

fn payloads(journal: &Journal) -> Vec<Vec<u8>> {
    records(journal, Position::default()).into_iter().map(|(_, payload)| payload).collect()
}

fn numbered(numbers: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    numbers.map(|number| number.to_string().repeat(20).into_bytes()).collect()
}

fn checkpoint(journal: &Journal, position: Position) -> Checkpoint {
    let run_id = journal.run_id(position.run()).unwrap();
    Checkpoint { position, run_id, receipt: Uuid::from_u128(2), cluster_id: "cluster".to_owned() }
}

fn segments(directory: &TempDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory.path().join("segments")).unwrap();
    let mut paths: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| segment::base_of(path).is_some())
        .collect();
    paths.sort();
    paths
}

fn quarantined(directory: &TempDir) -> usize {
    fs::read_dir(directory.path().join("quarantine")).map_or(0, Iterator::count)
}

fn corrupt_bytes(journal: &Journal) -> u64 {
    journal.shared().metrics.journal_corrupt_bytes_total.get()
}

fn errors(journal: &Journal, op: &str) -> u64 {
    journal.shared().metrics.journal_errors_total.with_label_values(&[op]).get()
}

fn recovered(journal: &Journal) -> u64 {
    journal.shared().metrics.callbacks_recovered_total.get()
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
        if path.is_dir() {
            copy_tree(&path, &to.join(name));
        } else {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

fn copy_of(original: &TempDir) -> TempDir {
    let copy = directory();
    copy_tree(original.path(), copy.path());
    copy
}

fn flip(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

fn cut(path: &Path, len: u64) {
    File::options().write(true).open(path).unwrap().set_len(len).unwrap();
}

/// Where each frame of a segment begins, and where the last one ends.
fn frame_offsets(path: &Path) -> Vec<u64> {
    let open = || Box::new(File::open(path).unwrap());
    let mut offsets = vec![HEADER_BYTES];
    let header = Header::read(open(), segment::base_of(path).unwrap()).unwrap().unwrap();
    let limit = fs::metadata(path).unwrap().len();
    let mut frames = segment::Frames::new(salvage::RetriedFile::strict(open()), header.salt, limit);
    let mut at = HEADER_BYTES;
    while let Some(frame) = frames.frame_at(at, header.base).unwrap() {
        at = frame.end;
        offsets.push(at);
    }
    offsets
}

fn settle_all(journal: &Journal) {
    journal.advance_committed(checkpoint(journal, journal.durable()));
    journal.write_checkpoint().unwrap();
    journal.shared().recycle().unwrap();
}

/// Damages a copy of a journal and opens it twice. What is left is the same both times, and is
/// reported once. Returns the payloads, and whether the damage was taken for corruption.
fn opened_after(original: &TempDir, damage: impl FnOnce(&TempDir)) -> (Vec<Vec<u8>>, bool) {
    let copy = copy_of(original);
    damage(&copy);
    let journal = open(&copy);
    let left = payloads(&journal);
    let is_corrupt = errors(&journal, "read") > 0;
    append(&journal, b"behind it").unwrap();
    drop(journal);
    let journal = open(&copy);
    assert_eq!((errors(&journal, "read"), corrupt_bytes(&journal)), (0, 0), "reported again");
    assert_eq!(payloads(&journal), [left.clone(), vec![b"behind it".to_vec()]].concat());
    (left, is_corrupt)
}

/// A journal that crashed after these batches of one record each.
fn crashed(batches: &[Vec<u8>]) -> TempDir {
    let directory = directory();
    let journal = open(&directory);
    for payload in batches {
        append(&journal, payload).unwrap();
    }
    directory
}

fn except(all: &[Vec<u8>], missing: usize) -> Vec<Vec<u8>> {
    let (before, behind) = (&all[..missing], &all[missing + 1..]);
    [before, behind].concat()
}

/// Writes those pages of a batch behind the durable end that the mask says, as a power cut may.
fn tear(directory: &TempDir, batch: &mut WriteBatch, page: usize, mask: u64) -> Vec<bool> {
    let path = segments(directory).pop().unwrap();
    let end = *frame_offsets(&path).last().unwrap();
    let mut file = File::options().read(true).write(true).open(&path).unwrap();
    let opened = Box::new(file.try_clone().unwrap());
    let header = Header::read(opened, segment::base_of(&path).unwrap()).unwrap().unwrap();
    let frames = batch.seal(header.salt).to_vec();
    let mut written = vec![false; frames.len()];
    for (at, chunk) in frames.chunks(page).enumerate() {
        if mask >> (at % 64) & 1 == 1 {
            file.seek(SeekFrom::Start(end + (at * page) as u64)).unwrap();
            file.write_all(chunk).unwrap();
            written[at * page..at * page + chunk.len()].fill(true);
        }
    }
    written
}

#[test]
fn single_records_are_read_forwards_backwards_and_over_gaps() {
    let directory = directory();
    let journal = open(&directory);
    let expected = numbered(0..1500);
    for payload in &expected {
        append(&journal, payload).unwrap();
    }
    let mut reader = journal.reader(Position::default());
    let steps = (0..1500).step_by(7).chain([1499, 3, 4, 900, 2, 1498, 1499]);
    for index in steps {
        let read = reader.at(Position::new(1, index)).unwrap();
        assert_eq!(read, Some(&expected[index as usize][..]), "{index}");
    }
    assert_eq!(reader.at(journal.durable()).unwrap(), None);
    assert_eq!(reader.at(Position::new(1, 5)).unwrap(), Some(&expected[5][..]));
}

#[test]
fn what_was_appended_is_read_in_order_now_and_after_a_restart() {
    let directory = directory();
    let journal = open(&directory);
    let expected = numbered(0..1500);
    let mut reader = journal.reader(Position::default());
    for (index, payload) in expected.iter().enumerate() {
        assert_eq!(append(&journal, payload), Ok(Position::new(1, index as u64)));
        assert_eq!(reader.next().unwrap().unwrap().payload, payload);
        assert_eq!(reader.next().unwrap(), None);
    }
    assert!(segments(&directory).len() > 5);
    assert_eq!((journal.pending(), journal.oldest()), (1500, Position::new(1, 0)));
    journal.close();
    assert_eq!(append(&journal, b"late"), Err(AppendError::Failed));
    drop((journal, reader));

    let journal = open(&directory);
    assert_eq!((journal.durable(), recovered(&journal)), (Position::new(2, 0), 1500));
    append(&journal, b"more").unwrap();
    assert_eq!(payloads(&journal), [expected, vec![b"more".to_vec()]].concat());
    assert_eq!(journal.count(Position::new(1, 1490), Position::new(2, 1)), 11);
    for at in [0, 1, 777, 1499] {
        assert_eq!(records(&journal, Position::new(1, at))[0].0, Position::new(1, at));
    }
    assert_eq!(records(&journal, Position::new(1, 1500))[0].0, Position::new(2, 0));
}

#[test]
fn concurrent_appends_share_syncs_and_keep_the_order_of_each_caller() {
    let directory = directory();
    let journal = open(&directory);
    let accepted = counter();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let callers: Vec<_> = (0..64u32)
        .map(|caller| {
            let (journal, accepted) = (journal.clone(), accepted.clone());
            runtime.spawn(async move {
                let mut positions = Vec::new();
                for number in 0..50u32 {
                    let payload = [caller.to_le_bytes(), number.to_le_bytes()].concat();
                    let append = journal.append(8, &accepted, |out| out.extend(&payload));
                    positions.push((append.await.unwrap(), payload));
                }
                positions
            })
        })
        .collect();
    let mut all = Vec::new();
    for caller in callers {
        let positions = runtime.block_on(caller).unwrap();
        assert!(positions.is_sorted());
        all.extend(positions);
    }
    all.sort();
    assert_eq!(records(&journal, Position::default()), all);
    assert_eq!(accepted.get(), 64 * 50);
    let metrics = &journal.shared().metrics;
    assert!(metrics.journal_sync_seconds.get_sample_count() < 64 * 50);
    assert_eq!(metrics.journal_batch_records.get_sample_sum(), 64.0 * 50.0);
}

#[test]
fn a_record_outlives_the_future_that_appended_it() {
    let directory = directory();
    let journal = open(&directory);
    let accepted = counter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let faults = faults(&journal);
        let _hang = faults.hang.lock();
        let mut append = Box::pin(journal.append(4, &accepted, |out| out.extend(b"gone")));
        assert!(append.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    });
    assert!(journal.wait_durable(Position::new(1, 0), Duration::from_secs(60)));
    assert_eq!((payloads(&journal), accepted.get()), (vec![b"gone".to_vec()], 1));
}

#[test]
fn a_caller_that_panics_in_writing_its_record_leaves_nothing_of_it() {
    let directory = directory();
    let journal = open(&directory);
    let pushed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let half = |out: &mut Vec<u8>| {
            out.extend(b"half");
            panic!("a record that cannot be written");
        };
        journal.shared().queue.push(8, &counter(), half).map(drop)
    }));
    assert!(pushed.is_err());
    append(&journal, b"whole").unwrap();
    assert_eq!(payloads(&journal), [b"whole"]);
}

#[test]
fn waiting_for_the_watermark_ends_when_it_moves_or_the_time_is_over() {
    let directory = directory();
    let journal = open(&directory);
    let start = Position::new(1, 0);
    assert!(!journal.wait_durable(start, Duration::from_millis(1)));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| journal.wait_durable(start, Duration::from_secs(60)));
        append(&journal, b"one").unwrap();
        assert!(waiting.join().unwrap());
    });
}

#[test]
fn a_stepped_journal_does_nothing_until_it_is_told() {
    let directory = directory();
    let stepped = Options { stepped: true, ..options(directory.path()) };
    let journal = Journal::open(stepped, Arc::default()).unwrap();
    let accepted = counter();
    let mut append = Box::pin(journal.append(3, &accepted, |out| out.extend(b"one")));
    let mut poll = || append.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(poll().is_pending() && journal.durable().index() == 0);
    assert!(journal.step_writer() && !journal.step_writer());
    assert_eq!(poll(), Poll::Ready(Ok(Position::new(1, 0))));
    journal.advance_committed(checkpoint(&journal, journal.durable()));
    assert_eq!(journal.checkpoint(), None);
    journal.round_keeper();
    assert_eq!(journal.checkpoint().unwrap().position, Position::new(1, 1));
    drop(append);
    journal.close();
}

#[test]
fn the_age_of_the_oldest_pending_record_is_read_from_it() {
    let directory = directory();
    let accepted_at_ms = |record: &[u8]| Some(u64::from_le_bytes(record.try_into().unwrap()));
    let aged = Options { accepted_at_ms, ..options(directory.path()) };
    let journal = Journal::open(aged.clone(), Arc::default()).unwrap();
    let hour_ago_ms = (Metrics::now_seconds() as u64 - 3600) * 1000;
    append(&journal, &hour_ago_ms.to_le_bytes()).unwrap();
    append(&journal, &u64::MAX.to_le_bytes()).unwrap();
    drop(journal);
    let journal = Journal::open(aged, Arc::default()).unwrap();
    let mut keeper = Keeper::new(journal.handle.shared.clone(), mpsc::channel().1);
    assert!((3600.0..3700.0).contains(&keeper.oldest_pending_age_seconds().unwrap()));
    journal.advance_committed(checkpoint(&journal, Position::new(1, 1)));
    assert_eq!(keeper.oldest_pending_age_seconds().unwrap(), 0.0);
}

#[test]
fn a_record_larger_than_a_segment_has_one_of_its_own() {
    let directory = directory();
    let journal = open(&directory);
    let large = vec![3; 5 * HEADER_BYTES as usize];
    for payload in [&b"small"[..], &large, b"small"] {
        append(&journal, payload).unwrap();
    }
    assert_eq!(segments(&directory).len(), 3);
    drop(journal);
    assert_eq!(payloads(&open(&directory)), [b"small".to_vec(), large, b"small".to_vec()]);
}

#[test]
fn damage_of_what_was_read_once_is_an_error_until_the_journal_is_opened_again() {
    let directory = directory();
    let journal = open(&directory);
    for payload in numbered(0..3) {
        append(&journal, &payload).unwrap();
    }
    let path = &segments(&directory)[0];
    flip(path, frame_offsets(path)[1] + 30);
    let mut reader = journal.reader(Position::default());
    assert!(reader.next().is_ok());
    for _ in 0..2 {
        assert_eq!(reader.next().unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(reader.position, Position::new(1, 1));
    }
    assert!(block_on(journal.failed()).contains("its CRC does not match"));
    assert_eq!(append(&journal, b"refused"), Err(AppendError::Failed));
    drop((journal, reader));
    assert_eq!(payloads(&open(&directory)).len(), 2);
}

#[test]
fn what_is_set_aside_is_settled_and_never_committed() {
    let directory = directory();
    let journal = open(&directory);
    let [first, second] = [b"one", b"two"].map(|payload| append(&journal, payload).unwrap());
    let committed = |position| {
        let mut waiting = Box::pin(journal.wait_committed(position));
        waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
    };
    assert!(!committed(first));
    journal.set_aside(&[first]);
    journal.advance_committed(checkpoint(&journal, second.next()));
    assert_eq!((committed(first), committed(second), journal.pending()), (false, true, 0));
}
