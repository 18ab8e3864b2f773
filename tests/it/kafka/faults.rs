//! Causes faults: full or broken file systems in files, and system calls that fail. If the machine does
//! not allow that, the test fails; it is never skipped silently.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::*;

/// Fails unless the test runs as root, and these programs are there.
pub(super) fn must_have(programs: &[&str]) {
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    for program in programs {
        assert!(run("which", &[program]).is_ok(), "this test needs {program}");
    }
}

/// Runs a program to its end; what it printed, or what it complained about.
pub(super) fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(format!("{program} {arguments:?}: {}", text(&output.stderr))),
    }
}

/// An ext4 of its own in a file, mounted. Unmounted and gone with the test, also when it fails.
pub(super) struct Disk {
    directory: TempDir,
}

impl Disk {
    /// # Panics
    /// Also where the machine has no loop devices to give.
    pub(super) fn make(megabytes: u64) -> Self {
        must_have(&["mkfs.ext4", "mount", "xfs_io"]);
        let disk = Self { directory: TempDir::new().unwrap() };
        fs::File::create(disk.image()).unwrap().set_len(megabytes << 20).unwrap();
        fs::create_dir(disk.path()).unwrap();
        // No blocks kept for root: what `statvfs` says is what there is.
        run("mkfs.ext4", &["-q", "-F", "-m", "0", disk.image().to_str().unwrap()]).unwrap();
        disk.try_mount().expect("a loop device");
        disk
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// Where it is mounted.
    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    pub(super) fn journal(&self) -> Option<PathBuf> {
        Some(self.path().join("journal"))
    }

    fn try_mount(&self) -> Result<String, String> {
        let [image, path] = [self.image(), self.path()].map(|path| path.display().to_string());
        run("mount", &["-o", "loop,errors=remount-ro", &image, &path])
    }

    /// Without what was not synced, if it was cut.
    pub(super) fn mount_again(&self) {
        run("umount", &[self.path().to_str().unwrap()]).unwrap();
        self.try_mount().unwrap();
    }

    /// A power cut: from now on nothing reaches the disk, neither data that was not synced nor
    /// the file system's own log.
    pub(super) fn cut(&self) {
        run("xfs_io", &["-x", "-c", "shutdown", self.path().to_str().unwrap()]).unwrap();
        assert!(fs::write(self.ballast(), "anything").is_err(), "it can still be written to");
    }

    /// The file system finds an error in itself and becomes read-only.
    pub(super) fn become_read_only(&self) {
        let device =
            run("findmnt", &["-n", "-o", "SOURCE", self.path().to_str().unwrap()]).unwrap();
        let name = Path::new(&device).file_name().unwrap().to_str().unwrap().to_owned();
        fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "1").unwrap();
    }

    /// Takes all the room but `left` bytes.
    pub(super) fn fill(&self, left: u64) {
        let state = rustix::fs::statvfs(self.path()).unwrap();
        // What describes a large file takes some room too.
        let bytes = (state.f_bavail * state.f_frsize).saturating_sub(left.max(1 << 20));
        let ballast = self.ballast().display().to_string();
        run("fallocate", &["-l", &bytes.to_string(), &ballast]).unwrap();
        let mut ballast = fs::File::options().append(true).open(self.ballast()).unwrap();
        // What was deleted before is free only after a sync.
        for _ in 0..if left == 0 { 3 } else { 0 } {
            ballast.sync_all().unwrap();
            io::copy(&mut io::repeat(0), &mut ballast).unwrap_err();
        }
    }

    /// Gives back what [`fill`](Self::fill) took.
    pub(super) fn empty(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: an edge of a test that has failed may be there for a moment more.
        run("umount", &["-l", self.path().to_str().unwrap()]).ok();
    }
}

/// System calls of a running edge that fail.
pub(super) struct Injection {
    strace: Child,
    trace: tempfile::NamedTempFile,
}

impl Injection {
    /// `rule` as strace's `inject=` wants it, for calls on `paths` alone if there are any.
    pub(super) fn begin(edge: &Edge, rule: &str, paths: &[PathBuf]) -> Self {
        let trace = tempfile::NamedTempFile::new().unwrap();
        let calls = rule.split(':').next().unwrap();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-p", &edge.pid(), "-e", &format!("trace={calls}")]);
        strace.args(["-e", &format!("inject={rule}"), "-o"]).arg(trace.path());
        strace.args(paths.iter().flat_map(|path| [Path::new("-P"), path]));
        let strace = strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let injection = Self { strace: strace.spawn().unwrap(), trace };
        let tracer = format!("TracerPid:\t{}", injection.strace.id());
        eventually("strace has all threads", || {
            let tasks = fs::read_dir(format!("/proc/{}/task", edge.pid())).unwrap();
            let traced = |task: fs::DirEntry| {
                let status = fs::read_to_string(task.path().join("status"));
                status.is_ok_and(|status| status.contains(&tracer))
            };
            let all = tasks.map(Result::unwrap).all(traced);
            // Under load the first call may have failed already, and ended the edge.
            (all || injection.count() > 0).then_some(())
        });
        injection
    }

    /// How many calls have failed so far.
    pub(super) fn count(&self) -> usize {
        fs::read_to_string(self.trace.path()).unwrap().matches("(INJECTED)").count()
    }

    /// Lets the calls succeed again; gives back how many have failed.
    pub(super) fn end(mut self) -> usize {
        self.detach();
        self.count()
    }

    fn detach(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.strace);
        // It ends by itself when the edge does.
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        self.strace.wait().ok();
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        self.detach();
    }
}
