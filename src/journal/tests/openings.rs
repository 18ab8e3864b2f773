//! Runs, identity, checkpoint, forks, inspection.

use super::*;

#[test]
fn a_second_process_is_kept_out_and_told_who_has_it() {
    let directory = directory();
    let journal = open(&directory);
    let error = Journal::open(options(directory.path()), Arc::default()).unwrap_err();
    let holder = format!("in use by process {}", std::process::id());
    assert!(error.to_string().contains(&holder), "{error}");
    drop(journal);
    open(&directory);
}

#[test]
fn a_run_that_another_process_has_taken_is_not_used() {
    let directory = directory();
    drop(open(&directory));
    let mut runs = identity::Runs::read(here(&directory)).unwrap();
    assert_eq!(runs.clone().take(here(&directory), Uuid::new_v4()).unwrap(), 2);
    assert!(matches!(
        runs.take(here(&directory), Uuid::new_v4()),
        Err(OpenError::RunTaken { run: 2 })
    ));
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
            let read = identity::Identity::read(here(&directory)).unwrap().unwrap();
            assert_eq!((read.id, read.label.as_str()), (id, "a label"), "{name} {at}");
            flip(&path, at);
        }
    }
    // Each opening makes both of them again.
    for name in ["identity", "identity.copy", "identity"] {
        fs::remove_file(directory.path().join(name)).unwrap();
        let other = Options { label: "another".to_owned(), ..options(directory.path()) };
        let journal = Journal::open(other, Arc::default()).unwrap();
        assert_eq!((journal.id(), journal.label().as_str()), (id, "a label"));
    }
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

/// A sealed text of a newer program.
fn newer(kind: sealed::Kind) -> Vec<u8> {
    let mut sealed = sealed::seal(kind, b"from the future");
    sealed[12..16].copy_from_slice(&7_u32.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&sealed[8..20]), &sealed[24..]);
    sealed[20..24].copy_from_slice(&crc.to_le_bytes());
    sealed
}

#[test]
fn a_newer_format_is_refused_with_the_reason() {
    let original = directory();
    append(&open(&original), b"one").unwrap();
    let directory = copy_of(&original);
    fs::write(directory.path().join("identity"), newer(*b"idty")).unwrap();
    let error = Journal::open(options(directory.path()), Arc::default()).unwrap_err();
    assert!(error.to_string().contains("identity has format version 7"), "{error}");

    let directory = copy_of(&original);
    let segment = File::options().write(true).open(&segments(&directory)[0]).unwrap();
    segment.write_all_at(&newer(*b"segm"), 0).unwrap();
    let error = Journal::open(options(directory.path()), Arc::default()).unwrap_err();
    assert!(error.to_string().contains("segment has format version 7"), "{error}");
}

#[test]
fn every_opening_is_a_run_of_its_own_and_lost_run_files_come_back() {
    let directory = directory();
    let mut ids = Vec::new();
    for run in 1..=4 {
        let journal = open(&directory);
        assert_eq!(journal.durable().run(), run);
        ids.push(journal.run_id(run).unwrap());
        append(&journal, b"one").unwrap();
    }
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 4);
    fs::remove_dir_all(directory.path().join("runs")).unwrap();
    for _ in 0..2 {
        let journal = open(&directory);
        assert!(journal.durable().run() > 4);
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
    journal.advance_committed(checkpoint(&journal, end));
    journal.close();
    drop(journal);
    for lost in ["runs", "segments"] {
        fs::remove_dir_all(directory.path().join(lost)).unwrap();
    }
    let journal = open(&directory);
    assert_eq!((journal.durable().run(), journal.run_id(1)), (2, Some(id)));
    assert!(journal.knows_run_id(id));
}

#[test]
fn a_missing_or_damaged_checkpoint_makes_everything_pending() {
    let original = directory();
    let journal = open(&original);
    for payload in numbered(0..10) {
        append(&journal, &payload).unwrap();
    }
    let settled = checkpoint(&journal, Position::new(1, 4));
    journal.advance_committed(settled.clone());
    journal.close();
    drop(journal);
    let journal = open(&copy_of(&original));
    assert_eq!((journal.checkpoint(), journal.pending()), (Some(settled), 6));
    let path = original.path().join("checkpoint");
    for at in 0..fs::metadata(&path).unwrap().len() {
        flip(&path, at);
        assert_eq!(Checkpoint::read(here(&original), journal.id()).unwrap(), None, "{at}");
        flip(&path, at);
    }
    fs::remove_file(path).unwrap();
    let journal = open(&original);
    assert_eq!((journal.checkpoint(), journal.pending(), recovered(&journal)), (None, 10, 10));
}

#[test]
fn a_fork_changes_all_ids_at_once_and_publishing_begins_where_it_says() {
    let directory = directory();
    let journal = open(&directory);
    for payload in numbered(0..10) {
        append(&journal, &payload).unwrap();
    }
    journal.advance_committed(checkpoint(&journal, Position::new(1, 6)));
    journal.close();
    drop(journal);
    let journal = open(&directory);
    let old_ids = [journal.run_id(1).unwrap(), journal.run_id(2).unwrap()];
    assert_eq!(journal.take_fork().unwrap(), None);

    let (new_id, label) = (Uuid::from_u128(9), "new".to_owned());
    let identity = Identity { id: new_id, start: Position::new(1, 2), label };
    fork::request(here(&directory), &identity).unwrap();
    assert!(directory.path().join(super::super::fork::NAME).exists());
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
fn a_fork_that_the_disk_may_have_half_ends_the_process() {
    // Two files, each with a name and its directory's sync.
    for broken in 1..=4 {
        let directory = directory();
        append(&open(&directory), b"one").unwrap();
        let journal = stepped(&directory);
        let old = journal.id();
        let identity =
            Identity { id: Uuid::from_u128(9), start: Position::MIN, label: String::new() };
        fork::request(here(&directory), &identity).unwrap();
        let mut calls = 0;
        faults(&journal).set(move |call, _| {
            let counts = [Call::Rename, Call::SyncDirectory].contains(&call);
            calls += u32::from(counts);
            match counts && calls == broken {
                true => Err(io::Error::other("the disk is gone")),
                false => Ok(()),
            }
        });
        assert!(journal.take_fork().is_err(), "{broken}");
        // Before the first name nothing has changed.
        assert_eq!(journal.failure().is_none(), broken == 1, "{broken}");
        assert_eq!(journal.id(), old);
        drop(journal);
        let journal = open(&directory);
        journal.take_fork().unwrap();
        drop(journal);
        // The copy has it as well.
        fs::write(directory.path().join("identity"), b"damaged").unwrap();
        let journal = open(&directory);
        assert_eq!((journal.id(), journal.pending()), (identity.id, 1), "{broken}");
    }
}

#[test]
fn a_fork_that_leaves_records_out_says_how_many() {
    let directory = directory();
    let journal = open(&directory);
    for payload in numbered(0..10) {
        append(&journal, &payload).unwrap();
    }
    let (id, start) = (Uuid::from_u128(9), journal.durable());
    let identity = Identity { id, start, label: String::new() };
    fork::request(here(&directory), &identity).unwrap();
    let forked = journal.take_fork().unwrap().unwrap();
    assert_eq!((forked.left_out, forked.repeated, journal.pending()), (10, 0, 0));
    // A request whose file came back is not taken up twice.
    append(&journal, b"later").unwrap();
    fork::request(here(&directory), &identity).unwrap();
    assert_eq!((journal.take_fork().unwrap(), journal.pending()), (None, 1));
}

#[test]
fn inspecting_says_what_is_there_and_disturbs_nobody() {
    let directory = directory();
    assert!(inspect(here(&directory)).is_err());
    let journal = open(&directory);
    for payload in numbered(0..300) {
        append(&journal, &payload).unwrap();
    }
    journal.advance_committed(checkpoint(&journal, Position::new(1, 100)));
    journal.write_checkpoint().unwrap();
    let seen = inspect(here(&directory)).unwrap();
    assert_eq!((seen.id, seen.label.as_str()), (journal.id(), "a label"));
    let run = Run { number: 1, id: journal.run_id(1).unwrap(), records: 300 };
    assert_eq!(seen.runs, [run]);
    assert_eq!((seen.oldest, seen.end), (Position::new(1, 0), Position::new(1, 300)));
    assert_eq!(seen.checkpoint.clone().unwrap().position, Position::new(1, 100));
    assert_eq!(seen.count(Position::new(1, 100), seen.end), 200);
    append(&journal, b"undisturbed").unwrap();
}
