//! Room, recycling, slow and failing disks.

use super::*;

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
    journal.reset_committed(journal.durable());
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
    journal.reset_committed(Position::default());
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
    journal.reset_committed(Position::default());
    settle_all(&journal);
    for payload in numbered(300..600) {
        append(&journal, &payload).unwrap();
    }
    let mut last = reader.position;
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
    journal.advance_committed(checkpoint(&journal, Position::new(1, 8)));
    journal.close();
    drop(journal);

    let journal = open(&directory);
    assert_eq!((recovered(&journal), journal.pending()), (2, 2));
    assert_eq!(journal.reset_committed(Position::new(1, 9)), 1);
    assert_eq!((recovered(&journal), journal.pending()), (2, 1));
    assert_eq!(journal.reset_committed(Position::new(1, 3)), 0);
    assert_eq!((recovered(&journal), journal.pending()), (2 + 6, 7));
    journal.advance_committed(checkpoint(&journal, Position::new(1, 1)));
    assert_eq!(journal.committed(), Position::new(1, 3));
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
    journal.advance_committed(checkpoint(&journal, journal.durable()));
    assert_eq!(append(&journal, &payload), Ok(Position::new(1, 6)));
    journal.refresh_metrics();
    assert_eq!(journal.shared().metrics.journal_bytes.get(), 500);
}

#[test]
fn there_is_room_while_the_largest_record_fits_and_after_a_full_journal_when_two_do() {
    let directory = directory();
    let tight = Options { max_bytes: 3000, ..options(directory.path()) };
    let journal = Journal::open(tight, Arc::default()).unwrap();
    let largest = 980;
    for _ in 0..4 {
        assert!(journal.has_room(largest));
        append(&journal, &[7; 480]).unwrap();
    }
    assert!(journal.has_room(largest), "1,000 bytes are left for 1,000");
    append(&journal, &[7; 1]).unwrap();
    assert!(!journal.has_room(largest), "what is left is not enough for the largest");
    journal.advance_committed(Checkpoint {
        position: Position::new(1, 1),
        ..checkpoint(&journal, journal.durable())
    });
    assert!(!journal.has_room(largest), "one fits, and the next would find a full journal");
    journal.advance_committed(checkpoint(&journal, journal.durable()));
    assert!(journal.has_room(largest));
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

/// Until the next segment is begun the keeper writes no more files.
fn await_spares(journal: &Journal) {
    while journal.shared().spares.len() == 0 {
        std::thread::yield_now();
    }
}

#[test]
fn a_full_disk_refuses_what_does_not_fit_and_goes_on_when_there_is_room() {
    let directory = directory();
    let journal = open(&directory);
    append(&journal, b"before").unwrap();
    await_spares(&journal);
    faults(&journal).once(Call::Write, io::ErrorKind::StorageFull);
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
    await_spares(&journal);
    faults(&journal).once(Call::Write, io::ErrorKind::StorageFull);
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
    faults(&journal).once(Call::Sync, io::Error::other("the disk is gone"));
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
fn after_a_caller_has_gone_the_record_still_counts() {
    let directory = directory();
    let journal = open(&directory);
    let accepted = counter();
    let faults = faults(&journal);
    let hang = faults.hang.lock();
    let late = journal.append(4, &accepted, |out| out.extend(b"late"));
    let within = Duration::from_millis(20);
    block_on(async { tokio::time::timeout(within, late).await }).unwrap_err();
    drop(hang);
    journal.close();
    assert_eq!(payloads(&journal), [b"late"]);
    assert_eq!((accepted.get(), journal.pending()), (1, 1));
}

#[test]
fn a_caller_who_leaves_before_the_writer_wakes_wakes_it() {
    let directory = directory();
    let (journal, accepted) = (open(&directory), counter());
    let mut append = Box::pin(journal.append(4, &accepted, |out| out.extend(b"left")));
    assert!(append.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(!journal.shared().queue.is_empty(), "the writer sleeps");
    drop(append);
    assert!(journal.wait_durable(Position::default(), Duration::from_secs(60)));
}

#[test]
fn in_front_of_a_disk_that_hangs_eight_batches_wait_and_more_is_refused() {
    let directory = directory();
    let journal = open(&directory);
    let (faults, accepted) = (faults(&journal), counter());
    let record = vec![7; queue::BYTES_MAX / 2];
    let push = || journal.shared().queue.push(record.len(), &accepted, |out| out.extend(&record));
    let hang = faults.hang.lock();
    push().map(drop).unwrap();
    while !journal.shared().queue.is_empty() {
        std::thread::yield_now();
    }
    // A batch has room for one of them beside their heads.
    let taken = std::iter::from_fn(|| push().ok()).take(100).count();
    assert_eq!((taken, push().unwrap_err()), (8, AppendError::Slow));
    drop(hang);
    journal.close();
    assert_eq!(accepted.get(), 1 + 8);
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
        journal.reset_committed(last.next());
        journal.advance_committed(checkpoint(&journal, last.next()));
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

/// From now on the disk has no room for another segment.
fn leave_no_room(journal: &Journal) {
    faults(journal).set(|call, _| match call {
        Call::FileSystem => Err(io::Error::other("nothing is known of free space")),
        _ => Ok(()),
    });
    journal.round_keeper();
}

#[test]
fn the_only_segment_makes_room_for_itself_as_soon_as_it_is_settled() {
    let directory = directory();
    let journal = stepped(&directory);
    let filler = [7; 900];
    step(&journal, &filler).unwrap();
    leave_no_room(&journal);
    while step(&journal, &filler).is_ok() {}
    journal.reset_committed(journal.committed());
    journal.round_keeper();
    assert!(!journal.has_room(filler.len()), "nothing is settled");
    settle_all(&journal);
    journal.round_keeper();
    assert!(journal.has_room(filler.len()));
    step(&journal, &filler).unwrap();
    assert_eq!((journal.pending(), segments(&directory).len()), (1, 1));
    let left = records(&journal, journal.committed());
    drop(journal);
    let journal = open(&directory);
    assert_eq!((records(&journal, journal.committed()), corrupt_bytes(&journal)), (left, 0));
}

#[test]
fn nothing_has_room_where_no_segment_can_be_begun_whatever_is_settled() {
    let directory = directory();
    let journal = stepped(&directory);
    leave_no_room(&journal);
    journal.reset_committed(journal.committed());
    settle_all(&journal);
    journal.round_keeper();
    assert!(!journal.has_room(1));
}
