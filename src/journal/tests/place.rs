//! Where a journal is refused.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn refused(directory: &TempDir) -> String {
    Journal::open(options(directory.path()), Arc::default()).unwrap_err().to_string()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn a_file_system_that_a_restart_empties_is_refused_unless_allowed() {
    for kind in ["tmpfs", "overlay"] {
        let directory = directory();
        let disk = FaultyDisk::on(kind);
        let volatile = Options { disk: Arc::new(disk), ..options(directory.path()) };
        let strict = Options { allow_volatile: false, ..volatile.clone() };
        let error = Journal::open(strict, Arc::default()).unwrap_err().to_string();
        assert!(error.contains(kind) && error.contains("journal.allow_volatile"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        Journal::open(volatile, Arc::default()).unwrap();
    }
}

#[test]
fn a_directory_that_others_write_to_is_refused() {
    let directory = directory();
    drop(open(&directory));
    for name in ["", "segments", "runs"] {
        let path = directory.path().join(name);
        for mode in [0o777, 0o1777, 0o702] {
            set_mode(&path, mode);
            assert!(refused(&directory).contains("all users"), "{name} {mode:o}");
        }
        set_mode(&path, 0o700);
    }
    // Kubernetes' fsGroup: the group's, and the process is in it.
    set_mode(directory.path(), 0o2775);
    drop(open(&directory));
}

#[test]
fn a_directory_of_another_group_is_refused() {
    let directory = directory();
    let foreign = FaultyDisk::of_group(4_000_000_000);
    set_mode(directory.path(), 0o770);
    let options = Options { disk: Arc::new(foreign), ..options(directory.path()) };
    let error = Journal::open(options, Arc::default()).unwrap_err().to_string();
    assert!(error.contains("a group that this process is not in"), "{error}");
}

#[test]
fn a_link_to_the_directory_is_followed_and_those_within_are_not() {
    let directory = directory();
    let link = directory.path().join("link");
    fs::create_dir(directory.path().join("real")).unwrap();
    symlink(directory.path().join("real"), &link).unwrap();
    append(&Journal::open(options(&link), Arc::default()).unwrap(), b"one").unwrap();

    let victim = directory.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    for name in ["lock", "identity.tmp", "checkpoint.tmp", "history.tmp", "runs/2"] {
        let planted = link.join(name);
        fs::remove_file(&planted).ok();
        symlink(&victim, &planted).unwrap();
        let opened = Journal::open(options(&link), Arc::default());
        opened.iter().for_each(Journal::close);
        drop(opened);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious", "{name}");
        fs::remove_file(&planted).ok();
    }
    let segments = link.join("segments");
    fs::rename(&segments, link.join("moved")).unwrap();
    symlink(link.join("moved"), &segments).unwrap();
    let error = Journal::open(options(&link), Arc::default()).unwrap_err().to_string();
    assert!(error.contains("is no directory"), "{error}");
}
