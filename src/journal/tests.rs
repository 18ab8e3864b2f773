use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, PermissionsExt},
    task::{Context, Waker},
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    batch::Batch,
    fork::Request,
    segment::{HEADER_BYTES, Header},
    *,
};

/// What the disk does to the writer: an error each time one is put here, and a sync that hangs
/// as long as a test holds the lock.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) write: Mutex<Option<io::Error>>,
    pub(super) sync: Mutex<Option<io::Error>>,
    pub(super) hang: Mutex<()>,
}

/// A directory in memory where there is one: most tests here are about bytes and not about disks.
fn directory() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap_or_else(|_| TempDir::new().unwrap())
}

/// Segments of 8 KiB of frames.
fn options(directory: &Path) -> Options {
    let (segment_bytes, label) = (2 * HEADER_BYTES, "a label".to_owned());
    Options { min_free_bytes: 0, segment_bytes, label, ..Options::new(directory) }
}

fn open(directory: &TempDir) -> Journal {
    Journal::open(options(directory.path()), Arc::default()).unwrap()
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
    let hang = journal.shared().faults.hang.lock();
    let commits: Vec<_> = [b"first".to_vec()]
        .iter()
        .chain(payloads)
        .map(|payload| {
            let len = payload.len();
            let pushed = journal.shared().queue.push(len, &accepted, |out| out.extend(payload));
            // The first goes alone.
            while journal.shared().queue.is_idle() {
                std::thread::yield_now();
            }
            pushed.unwrap().1
        })
        .collect();
    drop(hang);
    for commit in commits {
        assert_eq!(block_on(commit.wait()), Outcome::Durable);
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
    let file = File::open(path).unwrap();
    let mut offsets = vec![HEADER_BYTES];
    let header = Header::read(&file, segment::base_of(path).unwrap()).unwrap().unwrap();
    let mut frames = segment::Frames::new(file, header.salt);
    let limit = fs::metadata(path).unwrap().len();
    let mut at = HEADER_BYTES;
    while let Some(frame) = frames.frame_at(at, limit, header.base).unwrap() {
        at = frame.end;
        offsets.push(at);
    }
    offsets
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
        let _hang = journal.shared().faults.hang.lock();
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
fn a_second_process_is_kept_out_and_told_who_has_it() {
    let directory = directory();
    let journal = open(&directory);
    let error = Journal::open(options(directory.path()), Arc::default()).unwrap_err();
    let holder = format!("in use by process {}", std::process::id());
    assert!(error.to_string().ends_with(&holder), "{error}");
    drop(journal);
    open(&directory);
}

#[test]
fn a_run_that_another_process_has_taken_is_not_used() {
    let directory = directory();
    drop(open(&directory));
    let mut runs = identity::Runs::read(directory.path()).unwrap();
    assert_eq!(runs.clone().take(directory.path()).unwrap(), 2);
    assert!(matches!(runs.take(directory.path()), Err(OpenError::RunTaken { run: 2 })));
}

#[test]
fn id_and_label_are_those_of_its_birth_also_when_one_copy_is_damaged() {
    let directory = directory();
    let journal = open(&directory);
    let id = journal.id();
    drop(journal);
    for name in ["identity", "identity.copy"] {
        let path = directory.path().join(name);
        for at in 0..fs::metadata(&path).unwrap().len() {
            flip(&path, at);
            let read = identity::Identity::read(directory.path()).unwrap().unwrap();
            assert_eq!((read.id, read.label.as_str()), (id, "a label"), "{name} {at}");
            flip(&path, at);
        }
    }
    fs::remove_file(directory.path().join("identity")).unwrap();
    let other = Options { label: "another".to_owned(), ..options(directory.path()) };
    let journal = Journal::open(other, Arc::default()).unwrap();
    assert_eq!((journal.id(), journal.label().as_str()), (id, "a label"));
}

#[test]
fn nobody_else_may_read_what_is_in_a_journal() {
    let directory = directory();
    let path = directory.path().join("deep/journal");
    let journal = Journal::open(options(&path), Arc::default()).unwrap();
    append(&journal, b"personal").unwrap();
    journal.close();
    let mut paths = vec![path];
    while let Some(path) = paths.pop() {
        let is_directory = path.is_dir();
        let mode = path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if is_directory { 0o700 } else { 0o600 }, "{}", path.display());
        if is_directory {
            paths.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}

#[test]
fn a_newer_format_is_refused_with_the_reason() {
    let original = directory();
    append(&open(&original), b"one").unwrap();
    let newer = sealed::seal_as(7, *b"idty", b"from the future");
    let directory = copy_of(&original);
    fs::write(directory.path().join("identity"), newer).unwrap();
    let error = Journal::open(options(directory.path()), Arc::default()).unwrap_err();
    assert!(error.to_string().contains("identity has format version 7"), "{error}");

    let directory = copy_of(&original);
    let newer = sealed::seal_as(7, *b"segm", b"from the future");
    let segment = File::options().write(true).open(&segments(&directory)[0]).unwrap();
    segment.write_all_at(&newer, 0).unwrap();
    let error = Journal::open(options(directory.path()), Arc::default()).unwrap_err();
    assert!(error.to_string().contains("segment has format version 7"), "{error}");
}

#[test]
fn every_opening_is_a_run_of_its_own_and_lost_run_files_come_back() {
    let directory = directory();
    let mut ids = Vec::new();
    for run in 1..=4 {
        let journal = open(&directory);
        assert_eq!(journal.current_run(), run);
        ids.push(journal.run_id(run).unwrap());
        append(&journal, b"one").unwrap();
    }
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 4);
    fs::remove_dir_all(directory.path().join("runs")).unwrap();
    for _ in 0..2 {
        let journal = open(&directory);
        assert!(journal.current_run() > 4);
        for (run, id) in (1..).zip(&ids) {
            assert_eq!((journal.run_id(run), journal.knows_run_id(*id)), (Some(*id), true));
        }
        assert!(!journal.knows_run_id(Uuid::from_u128(1)));
    }
}

#[test]
fn the_checkpoint_remembers_its_run_where_nothing_else_does() {
    let directory = directory();
    let journal = open(&directory);
    append(&journal, b"one").unwrap();
    let (end, id) = (journal.durable(), journal.run_id(1).unwrap());
    journal.settle(checkpoint(&journal, end));
    journal.close();
    drop(journal);
    for lost in ["runs", "segments"] {
        fs::remove_dir_all(directory.path().join(lost)).unwrap();
    }
    let journal = open(&directory);
    assert_eq!((journal.current_run(), journal.run_id(1)), (2, Some(id)));
    assert!(journal.knows_run_id(id));
}

fn settle_all(journal: &Journal) {
    journal.settle(checkpoint(journal, journal.durable()));
    journal.write_checkpoint().unwrap();
    journal.shared().recycle().unwrap();
}

#[test]
fn settled_segments_are_recycled_once_the_publisher_has_opened_and_old_frames_never_return() {
    let directory = directory();
    let journal = open(&directory);
    for payload in numbered(0..600) {
        append(&journal, &payload).unwrap();
    }
    let before = segments(&directory).len();
    settle_all(&journal);
    assert_eq!((journal.pending(), segments(&directory).len()), (0, before));
    journal.opened_by_publisher(journal.durable());
    settle_all(&journal);
    assert_eq!(segments(&directory).len(), 1);

    // New records in files in which old ones lie behind them.
    for payload in numbered(600..650) {
        append(&journal, &payload).unwrap();
        settle_all(&journal);
    }
    let expected = records(&journal, Position::default());
    drop(journal);
    let journal = open(&directory);
    assert_eq!(records(&journal, Position::default()), expected);
    assert_eq!((corrupt_bytes(&journal), quarantined(&directory)), (0, 0));
}

#[test]
fn what_the_last_transaction_carried_is_kept_until_the_next() {
    let directory = directory();
    let journal = open(&directory);
    for payload in numbered(0..600) {
        append(&journal, &payload).unwrap();
    }
    journal.opened_by_publisher(Position::default());
    let all = segments(&directory).len();
    settle_all(&journal);
    assert_eq!((journal.pending(), segments(&directory).len()), (0, all));
    settle_all(&journal);
    assert_eq!(segments(&directory).len(), 1);
}

#[test]
fn a_reader_that_is_overtaken_by_recycling_goes_on_with_what_is_left() {
    let directory = directory();
    let journal = open(&directory);
    for payload in numbered(0..300) {
        append(&journal, &payload).unwrap();
    }
    let mut reader = journal.reader(Position::default());
    reader.next().unwrap();
    journal.opened_by_publisher(Position::default());
    settle_all(&journal);
    for payload in numbered(300..600) {
        append(&journal, &payload).unwrap();
    }
    let mut last = reader.position();
    while let Some(record) = reader.next().unwrap() {
        assert_eq!(record.payload, numbered(record.position.index() as u32..601)[0]);
        assert!(record.position >= last);
        last = record.position.next();
    }
    assert_eq!(last, Position::new(1, 600));
}

#[test]
fn a_watermark_that_moves_either_way_keeps_the_account() {
    let directory = directory();
    let journal = open(&directory);
    for payload in numbered(0..10) {
        append(&journal, &payload).unwrap();
    }
    journal.settle(checkpoint(&journal, Position::new(1, 8)));
    journal.close();
    drop(journal);

    let journal = open(&directory);
    assert_eq!((recovered(&journal), journal.pending()), (2, 2));
    assert_eq!(journal.opened_by_publisher(Position::new(1, 9)), 1);
    assert_eq!((recovered(&journal), journal.pending()), (2, 1));
    assert_eq!(journal.opened_by_publisher(Position::new(1, 3)), 0);
    assert_eq!((recovered(&journal), journal.pending()), (2 + 6, 7));
    journal.settle(checkpoint(&journal, Position::new(1, 1)));
    assert_eq!(journal.committed(), Position::new(1, 3));
}

#[test]
fn a_missing_or_damaged_checkpoint_makes_everything_pending() {
    let original = directory();
    let journal = open(&original);
    for payload in numbered(0..10) {
        append(&journal, &payload).unwrap();
    }
    let settled = checkpoint(&journal, Position::new(1, 4));
    journal.settle(settled.clone());
    journal.close();
    drop(journal);
    let journal = open(&copy_of(&original));
    assert_eq!((journal.checkpoint(), journal.pending()), (Some(settled), 6));
    let path = original.path().join("checkpoint");
    for at in 0..fs::metadata(&path).unwrap().len() {
        flip(&path, at);
        assert_eq!(Checkpoint::read(original.path(), journal.id()).unwrap(), None, "{at}");
        flip(&path, at);
    }
    fs::remove_file(path).unwrap();
    let journal = open(&original);
    assert_eq!((journal.checkpoint(), journal.pending(), recovered(&journal)), (None, 10, 10));
}

#[test]
fn a_full_journal_says_so_and_takes_more_when_it_has_room() {
    let directory = directory();
    let tight = Options { max_bytes: 3000, ..options(directory.path()) };
    let journal = Journal::open(tight, Arc::default()).unwrap();
    let payload = vec![7; 480];
    for _ in 0..6 {
        append(&journal, &payload).unwrap();
    }
    assert_eq!(append(&journal, &payload), Err(AppendError::Full));
    journal.refresh_metrics();
    assert_eq!(journal.shared().metrics.journal_bytes.get(), 3000);
    journal.settle(checkpoint(&journal, journal.durable()));
    assert_eq!(append(&journal, &payload), Ok(Position::new(1, 6)));
    journal.refresh_metrics();
    assert_eq!(journal.shared().metrics.journal_bytes.get(), 500);
}

#[test]
fn space_that_has_to_stay_free_is_not_taken() {
    let directory = directory();
    let tight = Options { min_free_bytes: u64::MAX, ..options(directory.path()) };
    let journal = Journal::open(tight, Arc::default()).unwrap();
    assert_eq!(append(&journal, b"one"), Err(AppendError::Full));
    drop(journal);
    append(&open(&directory), b"one").unwrap();
}

#[test]
fn a_full_disk_refuses_what_does_not_fit_and_goes_on_when_there_is_room() {
    let directory = directory();
    let journal = open(&directory);
    append(&journal, b"before").unwrap();
    *journal.shared().faults.write.lock() = Some(io::ErrorKind::StorageFull.into());
    assert_eq!(append(&journal, &[1; 400]), Err(AppendError::Full));
    assert_eq!(errors(&journal, "append"), 1);
    journal.shared().limit_space();
    assert_eq!(append(&journal, b"behind"), Ok(Position::new(1, 1)));
    let expected = [&b"before"[..], b"behind"];
    assert_eq!(payloads(&journal), expected);
    drop(journal);
    let journal = open(&directory);
    assert_eq!(
        (payloads(&journal), errors(&journal, "read")),
        (expected.map(<[u8]>::to_vec).to_vec(), 0)
    );
}

#[test]
fn a_first_write_of_a_segment_that_does_not_fit_leaves_no_trace() {
    let directory = directory();
    let journal = open(&directory);
    *journal.shared().faults.write.lock() = Some(io::ErrorKind::StorageFull.into());
    assert_eq!(append(&journal, b"refused"), Err(AppendError::Full));
    journal.shared().limit_space();
    append(&journal, b"one").unwrap();
    assert_eq!((payloads(&journal), segments(&directory).len()), (vec![b"one".to_vec()], 1));
    drop(journal);
    assert_eq!(payloads(&open(&directory)), [b"one"]);
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_any_more() {
    let directory = directory();
    let journal = open(&directory);
    append(&journal, b"before").unwrap();
    *journal.shared().faults.sync.lock() = Some(io::Error::other("the disk is gone"));
    assert_eq!(append(&journal, b"lost"), Err(AppendError::Failed));
    assert!(block_on(journal.failed()).contains("the disk is gone"));
    assert_eq!(append(&journal, b"later"), Err(AppendError::Failed));
    assert_eq!(journal.durable(), Position::new(1, 1));
    drop(journal);
    // What the failed sync left is found, and counts as recovered.
    let journal = open(&directory);
    assert_eq!((payloads(&journal).len(), recovered(&journal)), (2, 2));
}

#[test]
fn callers_of_a_slow_disk_are_answered_and_the_record_still_counts() {
    let directory = directory();
    let slow = Duration::from_millis(20);
    let hasty = Options { append_timeout: slow, ..options(directory.path()) };
    let journal = Journal::open(hasty, Arc::default()).unwrap();
    let accepted = counter();
    let hang = journal.shared().faults.hang.lock();
    let late = journal.append(4, &accepted, |out| out.extend(b"late"));
    assert_eq!(block_on(late), Err(AppendError::Slow));
    // Once it is known how slow the disk is, nothing more is taken.
    while journal.shared().queue.push(4, &accepted, |out| out.extend(b"more")).is_ok() {
        std::thread::yield_now();
    }
    drop(hang);
    journal.close();
    assert_eq!(payloads(&journal)[0], b"late");
    assert_eq!(accepted.get(), journal.pending());
}

#[test]
fn a_fork_changes_all_ids_at_once_and_publishing_begins_where_it_says() {
    let directory = directory();
    let journal = open(&directory);
    for payload in numbered(0..10) {
        append(&journal, &payload).unwrap();
    }
    journal.settle(checkpoint(&journal, Position::new(1, 6)));
    journal.close();
    drop(journal);
    let journal = open(&directory);
    let old_ids = [journal.run_id(1).unwrap(), journal.run_id(2).unwrap()];
    assert_eq!(journal.take_fork().unwrap(), None);

    let (new_id, label) = (Uuid::from_u128(9), "new".to_owned());
    Request { new_id, from: Position::new(1, 2), label }.write(directory.path()).unwrap();
    assert!(Request::is_pending(directory.path()));
    let forked = journal.take_fork().unwrap().unwrap();
    assert_eq!((forked.left_out, forked.repeated), (0, 4));
    let check = |journal: &Journal| {
        assert_eq!((journal.id(), journal.label().as_str()), (new_id, "new"));
        assert!(!old_ids.iter().any(|id| journal.knows_run_id(*id)));
        assert!(journal.knows_run_id(journal.run_id(1).unwrap()));
        assert_eq!((journal.committed(), journal.pending()), (Position::new(1, 2), 8));
        assert_eq!(journal.checkpoint().unwrap().position, Position::new(1, 2));
        assert_eq!((payloads(journal), recovered(journal)), (numbered(0..10), 8));
        assert_eq!(journal.take_fork().unwrap(), None);
    };
    check(&journal);
    journal.close();
    drop(journal);
    check(&open(&directory));
}

#[test]
fn a_fork_that_leaves_records_out_says_how_many() {
    let directory = directory();
    let journal = open(&directory);
    for payload in numbered(0..10) {
        append(&journal, &payload).unwrap();
    }
    let (new_id, from) = (Uuid::from_u128(9), journal.durable());
    let request = Request { new_id, from, label: String::new() };
    request.write(directory.path()).unwrap();
    let forked = journal.take_fork().unwrap().unwrap();
    assert_eq!((forked.left_out, forked.repeated, journal.pending()), (10, 0, 0));
    // A request whose file came back is not taken up twice.
    append(&journal, b"later").unwrap();
    request.write(directory.path()).unwrap();
    assert_eq!((journal.take_fork().unwrap(), journal.pending()), (None, 1));
}

#[test]
fn inspecting_says_what_is_there_and_disturbs_nobody() {
    let directory = directory();
    assert!(inspect(directory.path()).is_err());
    let journal = open(&directory);
    for payload in numbered(0..300) {
        append(&journal, &payload).unwrap();
    }
    journal.settle(checkpoint(&journal, Position::new(1, 100)));
    journal.write_checkpoint().unwrap();
    let seen = inspect(directory.path()).unwrap();
    assert_eq!((seen.id, seen.label.as_str()), (journal.id(), "a label"));
    let run = Run { number: 1, id: journal.run_id(1).unwrap(), records: 300 };
    assert_eq!(seen.runs, [run]);
    assert_eq!((seen.oldest, seen.end), (Position::new(1, 0), Position::new(1, 300)));
    assert_eq!(seen.checkpoint.clone().unwrap().position, Position::new(1, 100));
    assert_eq!(seen.count(Position::new(1, 100), seen.end), 200);
    append(&journal, b"undisturbed").unwrap();
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
    let mut keeper = Keeper::new(journal.handle.shared.clone());
    assert!((3600.0..3700.0).contains(&keeper.oldest_pending_age_seconds().unwrap()));
    journal.settle(checkpoint(&journal, Position::new(1, 1)));
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
        assert_eq!(reader.position(), Position::new(1, 1));
    }
    drop((journal, reader));
    assert_eq!(payloads(&open(&directory)).len(), 2);
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

#[test]
fn a_flip_at_any_byte_costs_its_own_record_and_is_corruption_unless_it_is_the_last() {
    let all = numbered(100..104);
    let original = crashed(&all);
    let offsets = frame_offsets(&segments(&original)[0]);
    for at in offsets[0]..offsets[4] {
        let hit = offsets.partition_point(|offset| *offset <= at) - 1;
        let (left, is_corrupt) = opened_after(&original, |copy| flip(&segments(copy)[0], at));
        assert_eq!((left, is_corrupt), (except(&all, hit), hit < 3), "{at}");
    }
    for at in (0..64).chain(4096..4096 + 64) {
        let (left, is_corrupt) = opened_after(&original, |copy| flip(&segments(copy)[0], at));
        assert_eq!((left, is_corrupt), (all.clone(), false), "{at}");
    }
}

#[test]
fn a_cut_at_any_byte_keeps_what_is_before_it() {
    let all = numbered(100..104);
    let original = crashed(&all);
    let offsets = frame_offsets(&segments(&original)[0]);
    for at in offsets[0]..offsets[4] {
        let whole = offsets.partition_point(|offset| *offset <= at) - 1;
        let (left, _) = opened_after(&original, |copy| cut(&segments(copy)[0], at));
        assert_eq!(left, all[..whole], "{at}");
    }
}

#[test]
fn a_flip_or_cut_at_any_byte_of_an_earlier_run_is_corruption_also_at_its_end() {
    let all = numbered(100..103);
    let original = crashed(&all);
    drop(open(&original));
    let offsets = frame_offsets(&segments(&original)[0]);
    for at in offsets[0]..offsets[3] {
        let hit = offsets.partition_point(|offset| *offset <= at) - 1;
        let flipped = opened_after(&original, |copy| flip(&segments(copy)[0], at));
        assert_eq!(flipped, (except(&all, hit), true), "{at}");
        let cut = opened_after(&original, |copy| cut(&segments(copy)[0], at));
        assert_eq!(cut, (all[..hit].to_vec(), true), "{at}");
    }
}

#[test]
fn after_a_clean_stop_even_the_last_record_is_known_to_have_been_there() {
    let all = numbered(100..103);
    let original = directory();
    let journal = open(&original);
    for payload in &all {
        append(&journal, payload).unwrap();
    }
    journal.close();
    drop(journal);
    let offsets = frame_offsets(&segments(&original)[0]);
    let last = |copy: &TempDir| flip(&segments(copy)[0], offsets[2] + 25);
    assert_eq!(opened_after(&original, last), (all[..2].to_vec(), true));
}

#[test]
fn damage_between_two_batches_is_put_aside_and_all_else_is_kept() {
    let all = numbered(100..108);
    let original = crashed(&all);
    let offsets = frame_offsets(&segments(&original)[0]);
    let copy = copy_of(&original);
    let path = &segments(&copy)[0];
    let damaged = fs::read(path).unwrap()[offsets[3] as usize..offsets[5] as usize].to_vec();
    flip(path, offsets[3] + 5);
    flip(path, offsets[4] + 25);
    let journal = open(&copy);
    assert_eq!(payloads(&journal), [&all[..3], &all[5..]].concat());
    assert_eq!(corrupt_bytes(&journal), offsets[5] - offsets[3]);
    assert_eq!(errors(&journal, "read"), 1);
    let aside = fs::read_dir(copy.path().join("quarantine")).unwrap().next().unwrap().unwrap();
    let aside = fs::read(aside.path()).unwrap();
    let differing = aside.iter().zip(&damaged).filter(|(left, right)| left != right).count();
    assert_eq!((aside.len(), differing), (damaged.len(), 2));
    assert_eq!(journal.pending(), 6);
}

#[test]
fn a_body_that_holds_frames_is_no_frame() {
    let directory = directory();
    let mut inner = Batch::new(Position::new(1, 1), Vec::new());
    inner.push(&counter(), |out| out.extend(b"forged"));
    let forged = inner.seal(12345).to_vec();
    let journal = open(&directory);
    append(&journal, &forged).unwrap();
    drop(journal);
    let path = &segments(&directory)[0];
    flip(path, HEADER_BYTES);
    assert_eq!(payloads(&open(&directory)), Vec::<Vec<u8>>::new());
}

#[test]
fn segments_that_are_gone_or_unreadable_are_missed_and_the_others_kept() {
    let all = numbered(100..500);
    let original = crashed(&all);
    let gone = segments(&original).len() - 2;
    let (first, behind) = {
        let paths = segments(&original);
        let index = |path: &PathBuf| segment::base_of(path).unwrap().index() as usize;
        (index(&paths[gone]), index(&paths[gone + 1]))
    };
    let left = [&all[..first], &all[behind..]].concat();
    let remove = |copy: &TempDir| fs::remove_file(&segments(copy)[gone]).unwrap();
    assert_eq!(opened_after(&original, remove), (left.clone(), true));
    let behead = |copy: &TempDir| {
        flip(&segments(copy)[gone], 30);
        flip(&segments(copy)[gone], 4096 + 30);
        assert_eq!(quarantined(copy), 0);
    };
    assert_eq!(opened_after(&original, behead), (left, true));
    let empty = |copy: &TempDir| cut(&segments(copy)[gone], 10);
    assert_eq!(opened_after(&original, empty).0.len(), all.len() - (behind - first));
}

#[test]
fn the_first_segment_of_a_run_is_missed_too() {
    let original = crashed(&numbered(0..2));
    append(&open(&original), b"second run").unwrap();
    append(&open(&original), b"third run").unwrap();
    let remove = |copy: &TempDir| fs::remove_file(&segments(copy)[1]).unwrap();
    let left = [numbered(0..2), vec![b"third run".to_vec()]].concat();
    assert_eq!(opened_after(&original, remove), (left, true));
}

#[test]
fn without_syncs_what_a_power_cut_took_is_reported_and_is_no_corruption() {
    let original = directory();
    let fast = Options { durability: Durability::Os, ..options(original.path()) };
    let journal = Journal::open(fast, Arc::default()).unwrap();
    for payload in numbered(0..5) {
        append(&journal, &payload).unwrap();
    }
    assert_eq!(journal.shared().metrics.journal_sync_seconds.get_sample_count(), 0);
    drop(journal);
    let offsets = frame_offsets(&segments(&original)[0]);
    let lose = |copy: &TempDir| flip(&segments(copy)[0], offsets[2]);
    assert_eq!(opened_after(&original, lose), (except(&numbered(0..5), 2), false));
}

/// Writes those pages of a batch behind the durable end that the mask says, as a power cut may.
fn tear(directory: &TempDir, batch: &mut Batch, page: usize, mask: u64) -> Vec<bool> {
    let path = segments(directory).pop().unwrap();
    let end = *frame_offsets(&path).last().unwrap();
    let mut file = File::options().read(true).write(true).open(&path).unwrap();
    let header = Header::read(&file, segment::base_of(&path).unwrap()).unwrap().unwrap();
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn of_a_torn_batch_every_whole_record_is_kept_and_none_is_corruption(
        lengths in prop::collection::vec(0usize..700, 1..12), mask: u64, page in 64usize..512,
    ) {
        let directory = crashed(&numbered(0..5));
        let mut batch = Batch::new(Position::new(1, 5), Vec::new());
        let torn: Vec<_> = lengths.iter().map(|len| vec![0xA5; *len]).collect();
        for payload in &torn {
            batch.push(&counter(), |out| out.extend(payload));
        }
        let written = tear(&directory, &mut batch, page, mask);
        let mut expected = numbered(0..5);
        let mut at = 0;
        for payload in torn {
            let frame = at..at + segment::FRAME_HEADER_BYTES + payload.len();
            at = frame.end;
            if written[frame].iter().all(|written| *written) {
                expected.push(payload);
            }
        }
        prop_assert_eq!(opened_after(&directory, |_| ()), (expected, false));
    }
}

#[test]
fn a_hole_in_the_last_batch_is_torn_and_one_that_begins_before_it_is_corrupt() {
    let directory = directory();
    let journal = open(&directory);
    append_together(&journal, &numbered(100..105));
    drop(journal);
    let offsets = frame_offsets(&segments(&directory)[0]);
    let within = |copy: &TempDir| flip(&segments(copy)[0], offsets[3]);
    let all = [vec![b"first".to_vec()], numbered(100..105)].concat();
    assert_eq!(opened_after(&directory, within), (except(&all, 3), false));
    let begin = |copy: &TempDir| flip(&segments(copy)[0], offsets[1]);
    assert_eq!(opened_after(&directory, begin), (except(&all, 1), false));
    let before = |copy: &TempDir| flip(&segments(copy)[0], offsets[0]);
    assert_eq!(opened_after(&directory, before), (except(&all, 0), true));
}

#[test]
fn what_is_recycled_while_it_is_being_opened_is_not_missed() {
    for _ in 0..100 {
        let directory = directory();
        let journal = open(&directory);
        let last = append(&journal, b"settled").unwrap();
        journal.close();
        drop(journal);
        let journal = open(&directory);
        journal.opened_by_publisher(last.next());
        journal.settle(checkpoint(&journal, last.next()));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                journal.write_checkpoint().unwrap();
                journal.shared().recycle().unwrap();
            });
            while journal.oldest() <= last {
                assert!(records(&journal, Position::default()).len() <= 1);
            }
        });
        assert_eq!(errors(&journal, "read"), 0);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<u8>),
    Together(Vec<Vec<u8>>),
    Settle(prop::sample::Index),
    Recycle,
    Stop,
    Crash { torn: Vec<usize>, mask: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let payload = || (any::<u8>(), 0usize..900).prop_map(|(byte, len)| vec![byte; len]);
    prop_oneof![
        8 => payload().prop_map(Step::Append),
        3 => prop::collection::vec(payload(), 1..8).prop_map(Step::Together),
        3 => any::<prop::sample::Index>().prop_map(Step::Settle),
        2 => Just(Step::Recycle),
        1 => Just(Step::Stop),
        2 => (prop::collection::vec(0usize..900, 0..8), any::<u64>())
            .prop_map(|(torn, mask)| Step::Crash { torn, mask }),
    ]
}

/// What a journal should hold: a list that forgets only what is settled and recycled.
#[derive(Debug, Default)]
struct Model {
    records: Vec<(Position, Vec<u8>)>,
    committed: Position,
}

impl Model {
    fn check(&self, journal: &Journal) {
        // The keeper recycles beside this: only what was read without it can be compared.
        let (oldest, found) = loop {
            let oldest = journal.oldest();
            let found = records(journal, Position::default());
            if journal.oldest() == oldest {
                break (oldest, found);
            }
        };
        let kept: Vec<_> = self.records.iter().filter(|(at, _)| *at >= oldest).cloned().collect();
        let told = |records: &[(Position, Vec<u8>)]| -> Vec<_> {
            records.iter().map(|(at, payload)| format!("{at} {}", payload.len())).collect()
        };
        assert_eq!(told(&found), told(&kept), "oldest {oldest}, end {}", journal.durable());
        assert_eq!(found, kept);
        let pending = self.records.iter().filter(|(at, _)| *at >= self.committed).count();
        assert_eq!(journal.pending(), pending as u64, "{:?}", self.committed);
        assert_eq!(kept.iter().filter(|(at, _)| *at >= self.committed).count(), pending);
        assert_eq!((corrupt_bytes(journal), errors(journal, "read")), (0, 0));
    }

    /// What a crash left of a batch that was never acknowledged is taken over.
    fn learn(&mut self, journal: &Journal, torn: &[usize]) {
        let last = self.records.last().map_or(Position::default(), |(at, _)| at.next());
        for (at, payload) in records(journal, last) {
            assert!(torn.contains(&payload.len()) && payload.iter().all(|byte| *byte == 0xA5));
            self.records.push((at, payload));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn it_behaves_like_a_list_that_forgets_only_what_is_settled(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let directory = directory();
        let mut journal = open(&directory);
        journal.opened_by_publisher(journal.committed());
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Append(payload) => {
                    let position = append(&journal, &payload).unwrap();
                    model.records.push((position, payload));
                }
                Step::Together(payloads) => {
                    append_together(&journal, &payloads);
                    let last = model.records.last().map_or(Position::default(), |(at, _)| at.next());
                    let added = records(&journal, last);
                    let expected = [vec![b"first".to_vec()], payloads].concat();
                    prop_assert!(added.iter().map(|(_, payload)| payload).eq(&expected));
                    model.records.extend(added);
                }
                Step::Settle(index) if !model.records.is_empty() => {
                    let position = index.get(&model.records).0.next();
                    model.committed = model.committed.max(position);
                    journal.settle(checkpoint(&journal, model.committed));
                }
                Step::Settle(_) => {}
                Step::Recycle => {
                    journal.write_checkpoint().unwrap();
                    journal.shared().recycle().unwrap();
                }
                Step::Stop => {
                    journal.close();
                    drop(journal);
                    journal = open(&directory);
                    journal.opened_by_publisher(model.committed);
                }
                Step::Crash { torn, mask } => {
                    let next = journal.durable();
                    drop(journal);
                    let mut batch = Batch::new(next, Vec::new());
                    for len in &torn {
                        batch.push(&counter(), |out| out.resize(out.len() + len, 0xA5));
                    }
                    if next.index() > 0 {
                        tear(&directory, &mut batch, 256, mask);
                    }
                    journal = open(&directory);
                    model.learn(&journal, &torn);
                    journal.opened_by_publisher(model.committed);
                }
            }
            model.check(&journal);
        }
    }
}
