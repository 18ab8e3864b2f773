//! Two processes at one journal, past its lock.

use super::*;

/// A lock that everyone gets, as on file systems where locks do nothing.
fn without_locks(options: Options) -> Options {
    Options { disk: Arc::new(FaultyDisk::without_locks()), ..options }
}

fn open_without_locks(directory: &TempDir) -> Journal {
    Journal::open(without_locks(options(directory.path())), Arc::default()).unwrap()
}

#[test]
fn after_its_lock_was_removed_and_another_process_came_nothing_is_acknowledged() {
    let directory = directory();
    let first = open(&directory);
    append(&first, b"first").unwrap();
    fs::remove_file(directory.path().join("lock")).unwrap();
    let second = open(&directory);
    assert_eq!(append(&first, b"lost"), Err(AppendError::Failed));
    assert!(block_on(first.failed()).contains("another process"));
    append(&second, b"second").unwrap();
    assert_eq!(payloads(&second), [&b"first"[..], b"second"]);
}

#[test]
fn an_opening_waits_for_one_who_asks_who_has_the_journal_open() {
    let directory = directory();
    drop(open(&directory));
    let asking = fs::File::open(directory.path().join("lock")).unwrap();
    asking.lock_shared().unwrap();
    assert_eq!(holder(here(&directory)).unwrap(), None, "who asks is no edge");
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| open(&directory));
        std::thread::sleep(std::time::Duration::from_millis(50));
        asking.unlock().unwrap();
        let journal = opening.join().unwrap();
        let pid = Some(std::process::id());
        assert_eq!(holder(here(&directory)).unwrap(), Some(Holder { pid }));
        drop(journal);
    });
}

#[test]
fn after_another_process_came_where_locks_do_nothing_nothing_is_acknowledged() {
    let directory = directory();
    let first = open_without_locks(&directory);
    append(&first, b"first").unwrap();
    let second = open_without_locks(&directory);
    assert_eq!(append(&first, b"lost"), Err(AppendError::Failed));
    append(&second, b"second").unwrap();
}

#[test]
fn a_process_that_takes_nothing_notices_too() {
    let directory = directory();
    let stepped = Options { stepped: true, ..options(directory.path()) };
    let first = Journal::open(without_locks(stepped), Arc::default()).unwrap();
    first.round_keeper();
    assert!(first.shared().failure.borrow().is_none());
    drop(open_without_locks(&directory));
    first.round_keeper();
    assert!(first.shared().failure.borrow().is_some());
}

#[test]
fn its_own_files_gone_it_acknowledges_nothing() {
    for gone in ["lock", "runs/1", "runs"] {
        let directory = directory();
        let journal = open(&directory);
        append(&journal, b"before").unwrap();
        let gone = directory.path().join(gone);
        if gone.is_dir() { fs::remove_dir_all(gone) } else { fs::remove_file(gone) }.unwrap();
        assert_eq!(append(&journal, b"after"), Err(AppendError::Failed));
    }
}

#[test]
fn what_the_first_acknowledges_at_any_moment_of_the_second_ones_opening_is_in_the_second() {
    let mut acknowledged = 0;
    for at in 0.. {
        let directory = directory();
        let first = open_without_locks(&directory);
        append(&first, b"before").unwrap();
        let disk = FaultyDisk::without_locks();
        let (result, mut calls) = (Arc::new(Mutex::new(None)), 0);
        let (told, appender) = (result.clone(), first.clone());
        disk.faults().set(move |_, _| {
            if calls == at {
                *told.lock() = Some(append(&appender, b"meanwhile"));
            }
            calls += 1;
            Ok(())
        });
        let options = Options { disk: Arc::new(disk), ..options(directory.path()) };
        let second = Journal::open(Options { stepped: true, ..options }, Arc::default()).unwrap();
        let Some(result) = result.lock().take() else { break };
        if result.is_ok() {
            acknowledged += 1;
            assert_eq!(payloads(&second), [&b"before"[..], b"meanwhile"], "at call {at}");
        }
    }
    assert!(acknowledged > 3);
}
