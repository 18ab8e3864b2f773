use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, time::Instant};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// What the disk does wrong.
pub(super) struct Fault {
    op: Op,
    /// Calls that go well before it.
    after: usize,
    kind: io::ErrorKind,
}

#[derive(PartialEq)]
enum Op {
    Write,
    Sync,
}

impl Fault {
    pub(super) fn on_write(fault: &Mutex<Option<Self>>) -> io::Result<()> {
        Self::on(fault, Op::Write)
    }

    pub(super) fn on_sync(fault: &Mutex<Option<Self>>) -> io::Result<()> {
        Self::on(fault, Op::Sync)
    }

    fn on(fault: &Mutex<Option<Self>>, op: Op) -> io::Result<()> {
        match &mut *fault.lock() {
            Some(fault) if fault.op == op && fault.after == 0 => Err(fault.kind.into()),
            Some(fault) if fault.op == op => {
                fault.after -= 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn options(directory: &Path) -> Options {
    Options { segment_bytes: 4096, label: "a label".to_owned(), ..Options::new(directory) }
}

fn open(directory: &Path) -> Journal {
    Journal::open(options(directory), Arc::default()).unwrap()
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn append(journal: &Journal, payload: &[u8]) -> Result<(), AppendError> {
    let accepted = IntCounter::new("accepted", "test").unwrap();
    block_on(journal.append(payload.len(), &accepted, |buffer| buffer.extend_from_slice(payload)))
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

fn checkpoint(position: Position) -> Checkpoint {
    let (run_id, receipt) = (Uuid::from_u128(1), Uuid::from_u128(2));
    Checkpoint { position, run_id, receipt, cluster_id: "cluster".to_owned() }
}

fn segment_files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(directory.join("segments"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some())
        .collect();
    files.sort();
    files
}

/// A journal of one run with these batches, one record each, its threads gone as after a crash.
fn crashed(batches: &[&[u8]]) -> TempDir {
    let directory = TempDir::new().unwrap();
    let journal = open(directory.path());
    for payload in batches {
        append(&journal, payload).unwrap();
    }
    directory
}

#[test]
fn what_was_appended_is_read_in_order_now_and_after_a_restart() {
    let directory = TempDir::new().unwrap();
    let expected: Vec<_> = (0..200u32).map(|at| at.to_le_bytes().repeat(40)).collect();
    let journal = open(directory.path());
    let mut reader = journal.reader(Position::default());
    for payload in &expected {
        append(&journal, payload).unwrap();
        assert_eq!(reader.next().unwrap().unwrap().payload, payload);
        assert!(reader.next().unwrap().is_none());
    }
    assert!(segment_files(directory.path()).len() > 5);
    assert_eq!((journal.pending(), journal.oldest()), (200, Position::new(1, 0)));
    journal.close();
    drop((journal, reader));

    let journal = open(directory.path());
    assert_eq!(payloads(&journal), expected);
    assert_eq!(journal.durable(), Position::new(2, 0));
    assert_eq!(journal.handle.shared.metrics.callbacks_recovered_total.get(), 200);
    append(&journal, b"more").unwrap();
    let tail = records(&journal, Position::new(1, 199));
    assert_eq!(tail.len(), 2);
    assert_eq!(tail[1], (Position::new(2, 0), b"more".to_vec()));
}

#[test]
fn concurrent_appends_share_syncs_and_none_is_lost() {
    let directory = TempDir::new().unwrap();
    let metrics = Arc::new(Metrics::default());
    let options = Options { segment_bytes: 1 << 16, ..options(directory.path()) };
    let journal = Journal::open(options, Arc::clone(&metrics)).unwrap();
    let accepted = IntCounter::new("accepted", "test").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..64u32 {
            let (journal, accepted) = (journal.clone(), accepted.clone());
            tasks.spawn(async move {
                for round in 0..20u32 {
                    let payload = format!("{task} {round}");
                    let write = |buffer: &mut Vec<u8>| buffer.extend_from_slice(payload.as_bytes());
                    journal.append(payload.len(), &accepted, write).await.unwrap();
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    });
    let found = payloads(&journal);
    assert_eq!((found.len(), accepted.get()), (1280, 1280));
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 1280);
    // Of one caller, in its order.
    let rounds = found.iter().map(|payload| String::from_utf8(payload.clone()).unwrap());
    let of_one: Vec<_> = rounds.filter(|text| text.starts_with("7 ")).collect();
    assert_eq!(of_one, (0..20).map(|round| format!("7 {round}")).collect::<Vec<_>>());
    assert!(metrics.journal_sync_seconds.get_sample_count() < 1280);
}

#[test]
fn a_second_process_is_kept_out_and_told_who_has_it() {
    let directory = TempDir::new().unwrap();
    let journal = open(directory.path());
    let refused = Journal::open(options(directory.path()), Arc::default()).map(drop);
    let pid = std::process::id().to_string();
    assert!(matches!(refused, Err(OpenError::Locked { holder }) if holder == pid));
    drop(journal);
    open(directory.path());
}

#[test]
fn id_and_label_are_those_of_its_birth_and_files_are_private() {
    let directory = TempDir::new().unwrap();
    let id = open(directory.path()).id();
    let again = Options { label: "another".to_owned(), ..options(directory.path()) };
    let journal = Journal::open(again, Arc::default()).unwrap();
    assert_eq!((journal.id(), journal.label().as_str()), (id, "a label"));
    append(&journal, b"x").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory.path().join("segments")), 0o700);
    assert!(segment_files(directory.path()).iter().all(|file| mode(file) == 0o600));
}

#[test]
fn every_opening_is_a_run_of_its_own_also_when_run_files_are_lost() {
    let directory = crashed(&[b"a"]);
    let first = {
        let journal = open(directory.path());
        append(&journal, b"b").unwrap();
        (1..=2).map(|run| journal.run_id(run).unwrap()).collect::<Vec<_>>()
    };
    fs::remove_dir_all(directory.path().join("runs")).unwrap();
    let journal = open(directory.path());
    assert_eq!(journal.durable().run(), 3);
    assert_eq!(journal.run_id(1), Some(first[0]));
    assert!(journal.knows_run_id(first[1]));
    assert!(!journal.knows_run_id(Uuid::new_v4()));
}

#[test]
fn a_newer_format_is_refused_with_the_reason() {
    let directory = crashed(&[b"a"]);
    let path = directory.path().join("journal");
    let text = fs::read_to_string(&path).unwrap().replace("journal 1", "journal 9");
    fs::write(&path, text).unwrap();
    let refused = Journal::open(options(directory.path()), Arc::default()).map(drop);
    assert!(matches!(refused, Err(OpenError::Newer { version: 9 })));
}

#[test]
fn settled_segments_are_recycled_when_the_publisher_has_opened_and_old_frames_never_return() {
    let directory = TempDir::new().unwrap();
    let journal = open(directory.path());
    let payload = [7u8; 1000];
    for _ in 0..40 {
        append(&journal, &payload).unwrap();
    }
    journal.settle(checkpoint(Position::new(1, 35)));
    assert_eq!(journal.pending(), 5);
    journal.handle.shared.write_checkpoint().unwrap();
    journal.handle.shared.recycle_for_test();
    assert_eq!(journal.oldest(), Position::new(1, 0), "nobody has said where to go on");
    journal.go_on_from(Position::new(1, 35));
    journal.handle.shared.recycle_for_test();
    assert!(journal.oldest() > Position::new(1, 30));
    let used = journal.handle.shared.used.load(Ordering::Relaxed);
    assert!(used < 12_000, "{used}");
    for _ in 0..20 {
        append(&journal, b"small").unwrap();
    }
    drop(journal);
    let journal = open(directory.path());
    let found = payloads(&journal);
    assert_eq!(found.iter().filter(|found| found.as_slice() == b"small").count(), 20);
    assert!(found.len() < 30, "{}", found.len());
    assert_eq!(journal.committed(), Position::new(1, 35));
    assert_eq!(journal.pending(), 25);
    assert_eq!(journal.handle.shared.metrics.journal_corrupt_bytes_total.get(), 0);
}

#[test]
fn a_watermark_that_goes_back_makes_records_pending_again() {
    let directory = TempDir::new().unwrap();
    let journal = open(directory.path());
    (0..10).for_each(|_| append(&journal, b"x").unwrap());
    journal.settle(checkpoint(Position::new(1, 8)));
    journal.go_on_from(Position::new(1, 3));
    assert_eq!(journal.pending(), 7);
    assert_eq!(journal.handle.shared.metrics.callbacks_recovered_total.get(), 5);
}

#[test]
fn a_full_journal_says_so_and_takes_more_when_it_has_room() {
    let directory = TempDir::new().unwrap();
    let options = Options { max_bytes: 10_000, ..options(directory.path()) };
    let journal = Journal::open(options, Arc::default()).unwrap();
    let mut taken = 0;
    while append(&journal, &[0; 500]).is_ok() {
        taken += 1;
    }
    assert_eq!(taken, 10_000 / 520);
    assert!(append(&journal, &[0; 500]) == Err(AppendError::Full));
    journal.settle(checkpoint(journal.durable()));
    journal.go_on_from(journal.durable());
    journal.handle.shared.write_checkpoint().unwrap();
    journal.handle.shared.recycle_for_test();
    append(&journal, &[0; 500]).unwrap();
}

#[test]
fn a_full_disk_is_no_end() {
    let directory = TempDir::new().unwrap();
    let journal = open(directory.path());
    append(&journal, b"before").unwrap();
    let full = Fault { op: Op::Write, after: 0, kind: io::ErrorKind::StorageFull };
    *journal.handle.shared.disk.fault.lock() = Some(full);
    assert_eq!(append(&journal, b"lost"), Err(AppendError::Full));
    *journal.handle.shared.disk.fault.lock() = None;
    append(&journal, b"after").unwrap();
    assert_eq!(payloads(&journal), [b"before".to_vec(), b"after".to_vec()]);
    drop(journal);
    assert_eq!(payloads(&open(directory.path())), [b"before".to_vec(), b"after".to_vec()]);
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_any_more() {
    let directory = TempDir::new().unwrap();
    let journal = open(directory.path());
    append(&journal, b"before").unwrap();
    let broken = Fault { op: Op::Sync, after: 0, kind: io::ErrorKind::Other };
    *journal.handle.shared.disk.fault.lock() = Some(broken);
    assert_eq!(append(&journal, b"lost"), Err(AppendError::Failed));
    *journal.handle.shared.disk.fault.lock() = None;
    assert_eq!(append(&journal, b"never"), Err(AppendError::Failed));
    assert!(block_on(journal.failed()).contains("append failed"));
}

#[test]
fn callers_of_a_slow_disk_are_answered_and_the_record_still_counts() {
    let directory = TempDir::new().unwrap();
    let options =
        Options { append_timeout: Duration::from_millis(20), ..options(directory.path()) };
    let journal = Journal::open(options, Arc::default()).unwrap();
    append(&journal, b"before").unwrap();
    let accepted = IntCounter::new("accepted", "test").unwrap();
    // The writer stands still at the disk while this lock is held.
    let stuck = journal.handle.shared.disk.fault.lock();
    let slow = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            block_on(journal.append(4, &accepted, |buffer| buffer.extend_from_slice(b"slow")))
        });
        let started = Instant::now();
        while !waiting.is_finished() {
            assert!(started.elapsed() < Duration::from_secs(60));
            journal.handle.shared.give_up_on_slow_disk();
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(append(&journal, b"new"), Err(AppendError::Slow), "nobody new waits");
        waiting.join().unwrap()
    });
    assert_eq!((slow, accepted.get()), (Err(AppendError::Slow), 0));
    drop(stuck);
    assert!(journal.wait_durable(Position::new(1, 1), Duration::from_secs(60)));
    assert_eq!(accepted.get(), 1);
    append(&journal, b"after").unwrap();
}

#[test]
fn a_fork_gives_a_new_name_and_a_new_start_to_a_running_or_stopped_journal() {
    let directory = TempDir::new().unwrap();
    let journal = open(directory.path());
    (0..10).for_each(|_| append(&journal, b"x").unwrap());
    journal.settle(checkpoint(Position::new(1, 4)));
    let ask = |new_id, from| {
        let request = fork::Request { new_id, from, label: "a new label".to_owned() };
        request.write(directory.path()).unwrap();
    };
    ask(Uuid::from_u128(5), Position::new(1, 6));
    assert!(journal.fork_requested());
    let (request, left_out) = journal.take_fork().unwrap().unwrap();
    assert_eq!((journal.id(), left_out), (request.new_id, 2));
    assert_eq!((journal.label().as_str(), journal.pending()), ("a new label", 4));
    assert!(journal.checkpoint().unwrap().cluster_id.is_empty());
    assert!(!journal.fork_requested());
    journal.close();
    drop(journal);
    ask(Uuid::from_u128(6), Position::new(1, 0));
    let journal = open(directory.path());
    assert_eq!((journal.id(), journal.pending()), (Uuid::from_u128(6), 10));
}

#[test]
fn inspecting_disturbs_nobody() {
    let directory = TempDir::new().unwrap();
    let journal = open(directory.path());
    (0..10).for_each(|_| append(&journal, b"x").unwrap());
    journal.settle(checkpoint(Position::new(1, 4)));
    journal.handle.shared.write_checkpoint().unwrap();
    let inspection = inspect(directory.path()).unwrap();
    assert_eq!((inspection.id, inspection.end()), (journal.id(), Position::new(1, 10)));
    assert_eq!(inspection.count(inspection.committed(), inspection.end()), 6);
    assert_eq!(inspection.runs.len(), 1);
    append(&journal, b"y").unwrap();
}

#[test]
fn the_age_of_what_is_pending_is_seen() {
    let mut samples = Samples::default();
    samples.add(Position::new(1, 0), 1000);
    samples.add(Position::new(1, 5), 2000);
    samples.add(Position::new(1, 5), 3000);
    samples.add(Position::new(1, 9), 4000);
    assert_eq!(samples.before(Position::new(1, 0)), Some(1000));
    assert_eq!(samples.before(Position::new(1, 6)), Some(3000));
    assert_eq!(samples.before(Position::new(1, 50)), Some(4000));
}

/// Damages one byte, or cuts there, and says what is left.
fn damaged(batches: &[&[u8]], damage: impl Fn(&mut Vec<u8>)) -> (Vec<Vec<u8>>, u64, usize) {
    let directory = crashed(batches);
    let file = segment_files(directory.path()).remove(0);
    let mut bytes = fs::read(&file).unwrap();
    damage(&mut bytes);
    fs::write(&file, bytes).unwrap();
    let metrics = Arc::new(Metrics::default());
    let journal = Journal::open(options(directory.path()), Arc::clone(&metrics)).unwrap();
    append(&journal, b"new").unwrap();
    let found = payloads(&journal);
    drop(journal);
    // The damage was mended: the next opening finds the same, and nothing to complain about.
    let again = Arc::new(Metrics::default());
    let journal = Journal::open(options(directory.path()), Arc::clone(&again)).unwrap();
    assert_eq!(payloads(&journal), found);
    assert_eq!(again.journal_corrupt_bytes_total.get(), 0);
    let quarantine = fs::read_dir(directory.path().join("quarantine"));
    let kept = quarantine.map_or(0, Iterator::count);
    (found, metrics.journal_corrupt_bytes_total.get(), kept)
}

const FRAMES: [&[u8]; 3] = [b"first", b"second record", b"third"];

/// Where each frame begins, and where the last one ends.
fn frame_starts() -> Vec<usize> {
    let mut at = segment::FRAMES_START as usize;
    let mut starts = vec![at];
    for payload in FRAMES {
        at += segment::FRAME_HEADER_BYTES + payload.len();
        starts.push(at);
    }
    starts
}

#[test]
fn a_flip_at_any_byte_costs_only_its_own_record_and_is_reported() {
    let starts = frame_starts();
    for at in 0..starts[3] {
        let (found, corrupt, _) = damaged(&FRAMES, |bytes| bytes[at] ^= 0x41);
        let hit = starts.iter().rposition(|start| at >= *start);
        let mut expected: Vec<_> = FRAMES.map(<[u8]>::to_vec).into();
        expected.push(b"new".to_vec());
        if let Some(hit) = hit {
            expected.remove(hit);
        }
        assert_eq!(found, expected, "flipped at {at}");
        // The last record alone could also be a torn write.
        assert_eq!(corrupt > 0, hit != Some(2), "flipped at {at}");
    }
}

#[test]
fn a_cut_at_any_byte_keeps_what_is_before_it() {
    let starts = frame_starts();
    for at in starts[0]..starts[3] {
        let (found, corrupt, _) = damaged(&FRAMES, |bytes| bytes.truncate(at));
        let whole = starts.iter().filter(|start| **start <= at).count() - 1;
        let mut expected: Vec<_> = FRAMES[..whole].iter().map(|payload| payload.to_vec()).collect();
        expected.push(b"new".to_vec());
        assert_eq!((found, corrupt), (expected, 0), "cut at {at}");
    }
}

#[test]
fn a_torn_last_batch_loses_only_pages_that_were_not_written_and_is_no_corruption() {
    // One batch of many records: written by hand, as the writer would.
    let salt = 0xfeed;
    let header = segment::Header {
        run: 1,
        run_id: Uuid::from_u128(3),
        base: Position::new(1, 0),
        created_ms: 0,
        salt,
    };
    let mut image = header.encode();
    let mut frames = Vec::new();
    for index in 0..60u32 {
        let mut frame = vec![0; segment::FRAME_HEADER_BYTES];
        frame.extend_from_slice(&index.to_le_bytes().repeat(50));
        segment::seal(&mut frame, salt, Position::new(1, index.into()), index);
        frames.push((image.len(), image.len() + frame.len()));
        image.extend(frame);
    }
    for mask in 1..64u32 {
        let directory = TempDir::new().unwrap();
        let segments = directory.path().join("segments");
        fs::create_dir(&segments).unwrap();
        let mut torn = image.clone();
        let lost = |at: usize| at >= 512 && mask >> (at / 2048 % 6) & 1 == 1;
        for at in (0..torn.len()).filter(|at| lost(*at)) {
            torn[at] = 0;
        }
        fs::write(segments.join(format!("{:016x}.segment", header.base.as_u64())), torn).unwrap();
        let metrics = Arc::new(Metrics::default());
        let journal = Journal::open(options(directory.path()), Arc::clone(&metrics)).unwrap();
        let found: Vec<_> = records(&journal, Position::default())
            .iter()
            .map(|(at, _)| at.index() as usize)
            .collect();
        let whole = |(start, end): &(usize, usize)| !(*start..*end).any(lost);
        let expected: Vec<_> = (0..60).filter(|at| whole(&frames[*at])).collect();
        assert_eq!(found, expected, "{mask:b}");
        assert_eq!(metrics.journal_corrupt_bytes_total.get(), 0, "{mask:b}");
        assert_eq!(journal.count(Position::default(), journal.durable()), expected.len() as u64);
    }
}

#[test]
fn a_segment_whose_end_is_gone_before_another_one_is_corrupt() {
    let directory = crashed(&[&[1; 3000], &[2; 3000], &[3; 3000]]);
    let first = segment_files(directory.path()).remove(0);
    fs::OpenOptions::new().write(true).open(&first).unwrap().set_len(1000).unwrap();
    let metrics = Arc::new(Metrics::default());
    let journal = Journal::open(options(directory.path()), Arc::clone(&metrics)).unwrap();
    assert_eq!(payloads(&journal), [vec![2; 3000], vec![3; 3000]]);
    assert_eq!(journal.pending(), 2);
    assert!(metrics.journal_corrupt_bytes_total.get() > 0);
}

#[test]
fn a_segment_without_a_readable_header_is_set_aside_whole() {
    let (found, corrupt, kept) = damaged(&FRAMES, |bytes| bytes[..112].fill(0));
    assert_eq!((found, kept), (vec![b"new".to_vec()], 1));
    assert!(corrupt > 0);
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<u8>),
    /// Settle so many of a hundred of what is pending.
    Settle(u64),
    Crash,
    Close,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => proptest::collection::vec(any::<u8>(), 0..600).prop_map(Step::Append),
        2 => (0..=100u64).prop_map(Step::Settle),
        1 => Just(Step::Crash),
        1 => Just(Step::Close),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn it_behaves_like_a_list_that_forgets_only_what_is_settled(steps in steps()) {
        let directory = TempDir::new().unwrap();
        let mut journal = open(directory.path());
        journal.go_on_from(journal.committed());
        // Everything that was appended; what lies before `settled` may be gone.
        let mut model: Vec<Vec<u8>> = Vec::new();
        let (mut settled, mut written) = (0usize, 0usize);
        for step in steps {
            match step {
                Step::Append(payload) => {
                    append(&journal, &payload).unwrap();
                    model.push(payload);
                }
                Step::Settle(percent) => {
                    let pending = records(&journal, journal.committed());
                    let count = pending.len() * percent as usize / 100;
                    let position = pending.get(count).map_or(journal.durable(), |(at, _)| *at);
                    journal.settle(checkpoint(position));
                    settled += count;
                    journal.handle.shared.write_checkpoint().unwrap();
                    journal.handle.shared.recycle_for_test();
                    written = settled;
                }
                Step::Crash | Step::Close => {
                    if matches!(step, Step::Close) {
                        journal.close();
                        written = settled;
                    }
                    drop(journal);
                    settled = written;
                    journal = open(directory.path());
                    journal.go_on_from(journal.committed());
                }
            }
            let pending: Vec<_> =
                records(&journal, journal.committed()).into_iter().map(|(_, payload)| payload).collect();
            prop_assert_eq!(&pending, &model[settled..]);
            prop_assert_eq!(journal.pending() as usize, model.len() - settled);
        }
    }
}
