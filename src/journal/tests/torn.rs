//! What recovery makes of damaged and torn segments.

use super::*;

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
    let mut inner = WriteBatch::new(Position::new(1, 1), Vec::new());
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn of_a_torn_batch_every_whole_record_is_kept_and_none_is_corruption(
        lengths in prop::collection::vec(0usize..700, 1..12), mask: u64, page in 64usize..512,
    ) {
        let directory = crashed(&numbered(0..5));
        let mut batch = WriteBatch::new(Position::new(1, 5), Vec::new());
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

/// The one segment of a killed run: a batch of one record, then these batches of many.
fn killed_after_batches(sizes: &[u32]) -> TempDir {
    let directory = directory();
    let journal = open(&directory);
    for size in sizes {
        append_together(&journal, &numbered(0..*size));
    }
    let killed = copy_of(&directory);
    assert_eq!(segments(&killed).len(), 1);
    killed
}

#[test]
fn a_later_batch_turns_a_flip_in_any_record_before_it_into_corruption() {
    let original = killed_after_batches(&[5, 5, 4]);
    let offsets = frame_offsets(&segments(&original)[0]);
    let records = 3 + 5 + 5 + 4;
    let bytes = fs::read(&segments(&original)[0]).unwrap();
    // The writer decides what goes together; a frame says its number within its batch.
    let begins_batch = |at: &usize| bytes[offsets[*at] as usize + 16..][..4] == [0; 4];
    let last_batch = (0..records).rfind(begins_batch).unwrap();
    assert!((0..records).filter(begins_batch).count() >= 3 && last_batch > 0);
    for (hit, offset) in offsets[..records].iter().enumerate() {
        let damaged = copy_of(&original);
        flip(&segments(&damaged)[0], offset + segment::FRAME_HEADER_BYTES as u64);
        let journal = open(&damaged);
        assert_eq!(payloads(&journal).len(), records - 1, "record {hit}");
        assert_eq!(corrupt_bytes(&journal) > 0, hit < last_batch, "record {hit}");
    }
}
