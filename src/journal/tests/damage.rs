//! Disks that do not give back what was written, and recoveries that are interrupted.

use rustix::io::Errno;

use super::*;

/// A disk of which these bytes of the first segment cannot be read.
fn unreadable(path: PathBuf, bytes: std::ops::Range<u64>) -> FaultyDisk {
    let disk = FaultyDisk::default();
    let mut is_replaced = false;
    disk.faults().set(move |call, at| match call {
        Call::Rename if at == path.with_extension("tmp") => {
            is_replaced = true;
            Ok(())
        }
        Call::Read(from, len) if at == path && !is_replaced => {
            let is_hit = from < bytes.end && bytes.start < from + len as u64;
            if is_hit { Err(Errno::IO.into()) } else { Ok(()) }
        }
        _ => Ok(()),
    });
    disk
}

fn open_on(disk: FaultyDisk, directory: &TempDir) -> Result<Journal, OpenError> {
    let options = Options { disk: Arc::new(disk), ..options(directory.path()) };
    Journal::open(options, Arc::default())
}

/// What the reads of a segment return, one after the other, and then what they find.
fn fail_reads(journal: &Journal, errors: &'static [Errno]) {
    let mut errors = errors.iter();
    faults(journal).set(move |call, _| match call {
        Call::Read(..) | Call::Open(disk::Mode::Read) => {
            errors.next().map_or(Ok(()), |error| Err((*error).into()))
        }
        _ => Ok(()),
    });
}

#[test]
fn a_read_that_lacks_descriptors_or_memory_is_tried_again_by_the_caller() {
    let directory = directory();
    let journal = stepped(&directory);
    step(&journal, b"one").unwrap();
    for shortage in [&[Errno::MFILE], &[Errno::NFILE], &[Errno::NOMEM]] {
        fail_reads(&journal, shortage);
        let mut reader = journal.reader(Position::default());
        assert_eq!(reader.next().unwrap_err().raw_os_error(), Some(shortage[0].raw_os_error()));
        assert_eq!(reader.next().unwrap().unwrap().payload, b"one");
        assert!(journal.shared().failure.borrow().is_none());
    }
}

#[test]
fn a_read_error_that_passes_is_none() {
    let directory = directory();
    let journal = stepped(&directory);
    step(&journal, b"one").unwrap();
    let mut reader = journal.reader(Position::default());
    fail_reads(&journal, &[]);
    assert_eq!(reader.next().unwrap().unwrap().payload, b"one");
    step(&journal, b"two").unwrap();
    let mut errors = [Errno::IO; 2].into_iter();
    faults(&journal).set(move |call, _| match call {
        Call::Read(..) => errors.next().map_or(Ok(()), |error| Err(error.into())),
        _ => Ok(()),
    });
    assert_eq!(reader.next().unwrap().unwrap().payload, b"two");
    assert!(journal.shared().failure.borrow().is_none());
}

#[test]
fn a_read_error_that_stays_ends_the_process_and_recovery_keeps_the_file_whole() {
    let directory = directory();
    let large = Options { segment_bytes: 64 << 10, ..options(directory.path()) };
    let journal = Journal::open(large, Arc::default()).unwrap();
    // Each has a page that it shares with no other.
    let all: Vec<_> = (1..4).map(|number| vec![number; 9000]).collect();
    for payload in &all {
        append(&journal, payload).unwrap();
    }
    let path = segments(&directory)[0].clone();
    let hit = frame_offsets(&path)[1] + 4096;
    drop(journal);
    let journal = open_on(unreadable(path.clone(), 0..0), &directory).unwrap();
    append(&journal, b"later").unwrap();
    let (target, page) = (path.clone(), hit..hit + 1);
    faults(&journal).set(move |call, at| match call {
        Call::Read(from, len)
            if at == target && from <= page.start && page.start < from + len as u64 =>
        {
            Err(Errno::IO.into())
        }
        _ => Ok(()),
    });
    assert!(journal.reader(Position::default()).next().is_err());
    assert!(block_on(journal.failed()).contains("cannot be read"));
    assert_eq!(append(&journal, b"refused"), Err(AppendError::Failed));
    drop(journal);

    let original = fs::read(&path).unwrap();
    let journal = open_on(unreadable(path.clone(), hit..hit + 1), &directory).unwrap();
    let left = payloads(&journal);
    assert_eq!(left, [all[0].clone(), all[2].clone(), b"later".to_vec()]);
    assert!(errors(&journal, "read") > 0 && corrupt_bytes(&journal) == 4096);
    let aside: Vec<_> = fs::read_dir(directory.path().join("quarantine")).unwrap().collect();
    assert_eq!(aside.len(), 1);
    assert_eq!(fs::read(aside[0].as_ref().unwrap().path()).unwrap(), original);
    drop(journal);
    let journal = open(&directory);
    assert_eq!((payloads(&journal), errors(&journal, "read")), (left, 0));
}

#[test]
fn sealed_files_that_cannot_be_read_count_as_damaged() {
    for name in ["identity", "checkpoint", "history", "runs/1"] {
        let directory = directory();
        let journal = open(&directory);
        append(&journal, b"one").unwrap();
        journal.advance_committed(checkpoint(&journal, Position::new(1, 0)));
        journal.close();
        let id = journal.id();
        drop(journal);
        let disk = unreadable(directory.path().join(name), 0..1);
        let journal = open_on(disk, &directory).unwrap();
        assert_eq!((journal.id(), payloads(&journal)), (id, vec![b"one".to_vec()]), "{name}");
    }
}

#[test]
fn recovery_waits_where_descriptors_or_memory_are_short() {
    let original = crashed(&numbered(0..100));
    flip(&segments(&original)[0], HEADER_BYTES + 30);
    let tried = |at: usize, shortage: Errno| {
        let copy = copy_of(&original);
        let disk = FaultyDisk::default();
        let mut calls = 0;
        disk.faults().set(move |call, path| {
            // The lock is taken once, before recovery.
            let counts = path.file_name().unwrap() != "lock" && call != Call::FileSystem;
            calls += usize::from(counts);
            if counts && calls == at + 2 { Err(shortage.into()) } else { Ok(()) }
        });
        assert_eq!(payloads(&open_on(disk, &copy).unwrap()).len(), 99, "{at}");
    };
    std::thread::scope(|scope| {
        for (at, shortage) in (0..48).zip([Errno::MFILE, Errno::NOMEM].into_iter().cycle()) {
            scope.spawn(move || tried(at, shortage));
        }
    });
}

#[test]
fn what_is_neither_damage_nor_shortage_refuses_the_start_and_changes_nothing() {
    let directory = crashed(&numbered(0..3));
    let path = segments(&directory)[0].clone();
    let disk = FaultyDisk::default();
    disk.faults().set(move |call, at| match call {
        Call::Open(disk::Mode::Read) if at == path => Err(Errno::ACCESS.into()),
        _ => Ok(()),
    });
    let files = |directory: &TempDir| fs::read_dir(directory.path().join("runs")).unwrap().count();
    let runs = files(&directory);
    let error = open_on(disk, &directory).unwrap_err();
    assert!(error.to_string().contains("mend that and start again"), "{error}");
    assert_eq!((files(&directory), quarantined(&directory)), (runs, 0));
    assert_eq!(payloads(&open(&directory)), numbered(0..3));
}

#[test]
fn a_recovery_that_is_interrupted_at_any_call_is_made_up_for_by_the_next() {
    let original = crashed(&numbered(0..250));
    flip(&segments(&original)[0], HEADER_BYTES + 30);
    let whole: Vec<_> = fs::read(&segments(&original)[1]).unwrap();
    flip(&segments(&original)[1], HEADER_BYTES);
    fs::write(original.path().join("segments/spare-1-77"), vec![0; whole.len()]).unwrap();
    let expected = payloads(&open(&copy_of(&original)));
    assert_eq!(expected.len(), 248);
    for at in 0.. {
        let copy = copy_of(&original);
        let disk = FaultyDisk::default();
        let mut calls = 0;
        disk.faults().set(move |_, _| {
            calls += 1;
            // Everything fails from here on, as in a process that is gone.
            if calls > at { Err(Errno::ROFS.into()) } else { Ok(()) }
        });
        let is_whole = open_on(disk, &copy).is_ok();
        let journal = open(&copy);
        assert_eq!(payloads(&journal), expected, "{at}");
        append(&journal, b"later").unwrap();
        if is_whole {
            assert!(at > 50);
            break;
        }
    }
}

#[test]
fn only_the_damaged_record_is_put_aside_at_the_end_of_a_segment_too() {
    for hit in [25, 9] {
        let directory = directory();
        let journal = open(&directory);
        append(&journal, b"kept").unwrap();
        append(&journal, &[7; 100]).unwrap();
        journal.close();
        drop(journal);
        let offsets = frame_offsets(&segments(&directory)[0]);
        flip(&segments(&directory)[0], offsets[1] + hit);
        let journal = open(&directory);
        assert_eq!(payloads(&journal), [b"kept"]);
        assert_eq!(corrupt_bytes(&journal), offsets[2] - offsets[1], "{hit}");
    }
}

#[test]
fn files_among_the_segments_that_are_not_the_journals_are_left_alone() {
    let original = crashed(&numbered(0..3));
    let segments_directory = original.path().join("segments");
    let segment = segments(&original)[0].clone();
    let copies =
        ["0000010000000000.segment.bak", "0000010000000000 copy.segment", "1.segment", "spare"];
    for name in copies {
        fs::copy(&segment, segments_directory.join(name)).unwrap();
    }
    fs::create_dir(segments_directory.join("old")).unwrap();
    let journal = open(&original);
    for payload in numbered(3..300) {
        append(&journal, &payload).unwrap();
    }
    assert_eq!(payloads(&journal), numbered(0..300));
    assert!(segments_directory.join("old").is_dir());
    for name in copies {
        assert!(segments_directory.join(name).exists(), "{name}");
    }
    assert_eq!(corrupt_bytes(&journal), 0);
}

#[test]
fn forged_heads_after_damage_cost_no_more_than_reading_them_some_times() {
    let directory = directory();
    let large = Options { segment_bytes: 8 << 20, ..options(directory.path()) };
    let journal = Journal::open(large.clone(), Arc::default()).unwrap();
    append(&journal, b"damaged").unwrap();
    // 50,000 heads of frames that would be half a megabyte each.
    let mut forged = Vec::new();
    for index in 1000..51_000_u64 {
        forged.extend_from_slice(&[1; 4]);
        forged.extend_from_slice(&(500_000_u32).to_le_bytes());
        sealed::put_position(&mut forged, Position::new(1, index));
        forged.extend_from_slice(&[0; 4]);
    }
    append(&journal, &forged).unwrap();
    append(&journal, b"intact").unwrap();
    drop(journal);
    let path = segments(&directory)[0].clone();
    let offsets = frame_offsets(&path);
    // The head of the forged one too, so that it is searched through.
    flip(&path, offsets[0] + 4);
    flip(&path, offsets[1] + 9);
    let disk = FaultyDisk::default();
    let read = Arc::new(AtomicU64::new(0));
    let counted = read.clone();
    disk.faults().set(move |call, _| {
        if let Call::Read(_, len) = call {
            counted.fetch_add(len as u64, Ordering::Relaxed);
        }
        Ok(())
    });
    let journal = Journal::open(Options { disk: Arc::new(disk), ..large }, Arc::default()).unwrap();
    assert_eq!(payloads(&journal), [b"intact"]);
    assert!(read.load(Ordering::Relaxed) < 200 << 20, "{} bytes", read.load(Ordering::Relaxed));
}

proptest! {
    #[test]
    fn the_crc_of_any_range_is_that_of_its_bytes(
        content in prop::collection::vec(any::<u8>(), 1..5000), ranges in prop::collection::vec(any::<(u16, u16)>(), 1..20), before: u32,
    ) {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&content, 0).unwrap();
        let mut source = salvage::RetriedFile::strict(Box::new(file));
        let mut prefixes = prefixes::Prefixes::new(0);
        for (left, right) in ranges {
            let [left, right] = [left, right].map(|at| usize::from(at) % (content.len() + 1));
            let (start, end) = (left.min(right), left.max(right));
            let crc = prefixes.crc(&mut source, start as u64..end as u64, before).unwrap();
            prop_assert_eq!(crc, crc32c::crc32c_append(before, &content[start..end]));
        }
    }
}
