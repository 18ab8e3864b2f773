//! A disk in memory. A crash may lose any page that was not synced, and every call may fail.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use weni_edge::journal::disk::{Disk, DiskFile, FileSystem, Metadata, Mode};

use crate::world::{self, below, chance, fault};

const PAGE: usize = 4096;
/// What a page is torn into.
const SECTOR: usize = 512;
const CAPACITY: u64 = 1 << 30;

/// One file: what is in it, and what a crash may bring back.
#[derive(Debug, Clone, Default)]
struct File {
    bytes: Vec<u8>,
    /// The pages that were written since they were synced, as they were then.
    unsynced: BTreeMap<usize, Vec<u8>>,
    durable_len: usize,
    locked: bool,
}

/// A change of a directory that was not synced: all of it survives a crash, or nothing.
type Change = Vec<(PathBuf, Option<u64>)>;

fn apply(names: &mut BTreeMap<PathBuf, u64>, change: Change) {
    for (path, inode) in change {
        match inode {
            Some(inode) => drop(names.insert(path, inode)),
            None => drop(names.remove(&path)),
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Inner {
    files: BTreeMap<u64, File>,
    names: BTreeMap<PathBuf, u64>,
    /// The names that survive a crash for certain, and what came after them, in order.
    durable_names: BTreeMap<PathBuf, u64>,
    changes: Vec<Change>,
    next: u64,
    /// Locks are granted to everyone.
    pub broken_locks: bool,
}

/// The disk of a machine.
#[derive(Debug, Clone, Default)]
pub struct Machine(Arc<Mutex<Inner>>);

/// The disk as one process sees it: after the process has died, nothing reaches the disk any more.
#[derive(Debug, Clone)]
pub struct Mounted {
    machine: Machine,
    alive: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Handle {
    mounted: Mounted,
    inode: u64,
    holds_lock: AtomicBool,
}

fn error(kind: &str) -> io::Error {
    let number = match kind {
        "ENOSPC" => 28,
        "EMFILE" => 24,
        _ => 5,
    };
    io::Error::from_raw_os_error(number)
}

impl Machine {
    pub fn mount(&self) -> Mounted {
        Mounted { machine: self.clone(), alive: Arc::new(AtomicBool::new(true)) }
    }

    pub fn break_locks(&self, broken: bool) {
        self.0.lock().broken_locks = broken;
    }

    /// The process has ended; the machine has not.
    pub fn release_locks(&self) {
        self.0.lock().files.values_mut().for_each(|file| file.locked = false);
    }

    /// The machine has lost its power.
    pub fn lose_power(&self) {
        let mut inner = self.0.lock();
        let kept = below(inner.changes.len() as u64 + 1) as usize;
        let mut names = inner.durable_names.clone();
        for change in inner.changes.drain(..).take(kept) {
            apply(&mut names, change);
        }
        inner.names.clone_from(&names);
        inner.durable_names = names;
        for file in inner.files.values_mut() {
            let unsynced = std::mem::take(&mut file.unsynced);
            for (page, old) in unsynced {
                let start = page * PAGE;
                let end = (start + PAGE).min(file.bytes.len());
                for at in (start..end).step_by(SECTOR) {
                    if chance(500) {
                        for byte in at..(at + SECTOR).min(end) {
                            file.bytes[byte] = old.get(byte - start).copied().unwrap_or(0);
                        }
                    }
                }
            }
            let shortest = file.durable_len.min(file.bytes.len());
            let len = if chance(500) { shortest } else { file.bytes.len() };
            file.bytes.truncate(len);
            file.durable_len = len;
            file.locked = false;
        }
    }

    /// Turns a bit in the durable content of a file whose path has `part` in it. Returns whether one was
    /// found.
    pub fn flip_a_bit(&self, part: &str) -> bool {
        let mut inner = self.0.lock();
        let all: Vec<_> =
            inner.names.iter().filter(|(path, _)| path.to_string_lossy().contains(part)).collect();
        if all.is_empty() {
            return false;
        }
        let inode = *all[below(all.len() as u64) as usize].1;
        let Some(file) = inner.files.get_mut(&inode) else { return false };
        // Behind the two copies of the header.
        if file.bytes.len() <= 2 * PAGE {
            return false;
        }
        let at = 2 * PAGE + below((file.bytes.len() - 2 * PAGE) as u64) as usize;
        file.bytes[at] ^= 1 << below(8);
        true
    }

    /// A copy of the machine's disk as it is.
    pub fn copy(&self) -> Self {
        let mut inner = self.0.lock().clone();
        inner.files.values_mut().for_each(|file| file.locked = false);
        Self(Arc::new(Mutex::new(inner)))
    }
}

impl Mounted {
    pub fn kill(&self) {
        self.alive.store(false, Ordering::Relaxed);
    }

    fn before(
        &self,
        call: &'static str,
        outcomes: &[&'static str],
    ) -> io::Result<Option<&'static str>> {
        if !self.alive.load(Ordering::Relaxed) {
            return Err(error("EIO"));
        }
        match fault(call, outcomes) {
            Some("crash after") => Ok(Some("crash after")),
            Some("short write") => Ok(Some("short write")),
            Some(kind) => Err(error(kind)),
            None => Ok(None),
        }
    }
}

fn after(outcome: Option<&'static str>) {
    if outcome == Some("crash after") {
        world::crash();
    }
}

const CRASHES: [&str; 2] = ["crash before", "crash after"];

impl Disk for Mounted {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Box<dyn DiskFile>> {
        self.before("open", &["EIO", "EMFILE"])?;
        let mut inner = self.machine.0.lock();
        let there = inner.names.get(path).copied();
        let inode = match (there, mode) {
            (None, Mode::Read) => return Err(ErrorKind::NotFound.into()),
            (Some(_), Mode::CreateNew) => return Err(ErrorKind::AlreadyExists.into()),
            (Some(inode), _) => inode,
            (None, _) => inner.create(path),
        };
        if mode == Mode::Truncate {
            inner.file(inode).resize(0);
        }
        drop(inner);
        let holds_lock = AtomicBool::new(false);
        Ok(Box::new(Handle { mounted: self.clone(), inode, holds_lock }))
    }

    fn create_directory(&self, _: &Path) -> io::Result<()> {
        self.before("create_directory", &["EIO", "ENOSPC"])?;
        Ok(())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        self.before("list", &["EIO", "EMFILE"])?;
        let inner = self.machine.0.lock();
        Ok(inner.names.keys().filter(|path| path.parent() == Some(directory)).cloned().collect())
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let outcome = self.before("sync_directory", &["EIO", "EMFILE", CRASHES[0], CRASHES[1]])?;
        let mut inner = self.machine.0.lock();
        // An earlier change that is not of this directory may become durable with it, too.
        let (of_it, others): (Vec<_>, Vec<_>) = inner
            .changes
            .drain(..)
            .partition(|change| change.iter().any(|(changed, _)| changed.parent() == Some(path)));
        inner.changes = others;
        for change in of_it {
            apply(&mut inner.durable_names, change);
        }
        drop(inner);
        after(outcome);
        Ok(())
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.before("metadata", &["EIO"])?;
        let inner = self.machine.0.lock();
        if let Some(inode) = inner.names.get(path) {
            return Ok(inner.metadata(*inode));
        }
        // Directories are not kept: one is there if something is in it, or if it is the journal's.
        if path.extension().is_none() && path.components().count() <= 3 {
            return Ok(Metadata { bytes: 0, identity: (1, 0), mode: 0o040_700, group: 0 });
        }
        Err(ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let outcome = self.before("rename", &["EIO", CRASHES[0], CRASHES[1]])?;
        let mut inner = self.machine.0.lock();
        let inode = inner.names.remove(from).ok_or(ErrorKind::NotFound)?;
        inner.names.insert(to.to_owned(), inode);
        inner.changes.push(vec![(to.to_owned(), Some(inode)), (from.to_owned(), None)]);
        drop(inner);
        after(outcome);
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let outcome = self.before("link", &["EIO", CRASHES[0], CRASHES[1]])?;
        let mut inner = self.machine.0.lock();
        let inode = *inner.names.get(from).ok_or(ErrorKind::NotFound)?;
        if inner.names.contains_key(to) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        inner.names.insert(to.to_owned(), inode);
        inner.changes.push(vec![(to.to_owned(), Some(inode))]);
        drop(inner);
        after(outcome);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let outcome = self.before("remove", &["EIO", CRASHES[0], CRASHES[1]])?;
        let mut inner = self.machine.0.lock();
        inner.names.remove(path).ok_or(ErrorKind::NotFound)?;
        inner.changes.push(vec![(path.to_owned(), None)]);
        drop(inner);
        after(outcome);
        Ok(())
    }

    fn file_system(&self, _: &Path) -> io::Result<FileSystem> {
        self.before("file_system", &["EIO"])?;
        Ok(FileSystem { free_bytes: CAPACITY, volatile: None })
    }
}

impl Inner {
    fn create(&mut self, path: &Path) -> u64 {
        self.next += 1;
        self.files.insert(self.next, File::default());
        self.names.insert(path.to_owned(), self.next);
        self.changes.push(vec![(path.to_owned(), Some(self.next))]);
        self.next
    }

    fn file(&mut self, inode: u64) -> &mut File {
        self.files.entry(inode).or_default()
    }

    fn metadata(&self, inode: u64) -> Metadata {
        Metadata {
            bytes: self.files.get(&inode).map_or(0, |file| file.bytes.len() as u64),
            identity: (1, inode),
            mode: 0o100_600,
            group: 0,
        }
    }
}

impl File {
    fn resize(&mut self, len: usize) {
        if len < self.bytes.len() {
            self.remember(len, self.bytes.len());
        }
        self.bytes.resize(len, 0);
    }

    /// Keeps the pages of a range as they are, unless older ones are kept.
    fn remember(&mut self, start: usize, end: usize) {
        for page in start / PAGE..end.div_ceil(PAGE) {
            let bytes = &self.bytes;
            self.unsynced.entry(page).or_insert_with(|| {
                let start = (page * PAGE).min(bytes.len());
                bytes[start..(start + PAGE).min(bytes.len())].to_vec()
            });
        }
    }

    fn write(&mut self, bytes: &[u8], at: usize) {
        let end = at + bytes.len();
        self.remember(at, end);
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[at..end].copy_from_slice(bytes);
    }

    fn sync(&mut self) {
        self.unsynced.clear();
        self.durable_len = self.bytes.len();
    }
}

impl Handle {
    fn sync(&self, call: &'static str) -> io::Result<()> {
        let outcome = self.mounted.before(call, &["EIO", CRASHES[0], CRASHES[1]])?;
        self.mounted.machine.0.lock().file(self.inode).sync();
        after(outcome);
        Ok(())
    }
}

impl DiskFile for Handle {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.mounted.before("read", &["EIO", "EMFILE"])?;
        let mut inner = self.mounted.machine.0.lock();
        let bytes = &inner.file(self.inode).bytes;
        let start = offset as usize;
        let found = bytes.get(start..start + buffer.len()).ok_or(ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let outcomes = ["EIO", "ENOSPC", "short write", CRASHES[0], CRASHES[1]];
        let outcome = self.mounted.before("write", &outcomes);
        let written = match outcome {
            Ok(Some("short write")) | Err(_) if self.mounted.alive.load(Ordering::Relaxed) => {
                bytes.len() / 2
            }
            Err(error) => return Err(error),
            Ok(_) => bytes.len(),
        };
        self.mounted.machine.0.lock().file(self.inode).write(&bytes[..written], offset as usize);
        match outcome? {
            Some("short write") => Err(error("ENOSPC")),
            outcome => {
                after(outcome);
                Ok(())
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync("sync_data")
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync("sync_all")
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let outcome = self.mounted.before("set_len", &["EIO", CRASHES[0], CRASHES[1]])?;
        self.mounted.machine.0.lock().file(self.inode).resize(bytes as usize);
        after(outcome);
        Ok(())
    }

    fn reserve(&self, _: u64) -> io::Result<()> {
        self.mounted.before("reserve", &["EIO", "ENOSPC"])?;
        Ok(())
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.mounted.before("file metadata", &["EIO"])?;
        Ok(self.mounted.machine.0.lock().metadata(self.inode))
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.mounted.before("lock", &["EIO"])?;
        let mut inner = self.mounted.machine.0.lock();
        let broken = inner.broken_locks;
        let file = inner.file(self.inode);
        if file.locked && !broken {
            return Ok(false);
        }
        file.locked = true;
        self.holds_lock.store(true, Ordering::Relaxed);
        Ok(true)
    }

    fn is_locked(&self) -> io::Result<bool> {
        self.mounted.before("lock", &["EIO"])?;
        Ok(self.mounted.machine.0.lock().file(self.inode).locked)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.holds_lock.load(Ordering::Relaxed) && self.mounted.alive.load(Ordering::Relaxed) {
            self.mounted.machine.0.lock().file(self.inode).locked = false;
        }
    }
}
