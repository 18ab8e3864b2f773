//! A disk that fails when a test tells it to.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use super::super::disk::{Disk, DiskFile, FileSystem, Metadata, Mode, Real};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Open(Mode),
    CreateDirectory,
    List,
    SyncDirectory,
    Metadata,
    Rename,
    Link,
    Remove,
    FileSystem,
    /// Offset and bytes.
    Read(u64, usize),
    Write,
    Sync,
    SetLen,
    Reserve,
    Lock,
}

type Fault = Box<dyn FnMut(Call, &Path) -> io::Result<()> + Send>;

/// The machine's disk with faults.
#[derive(Debug, Default)]
pub(super) struct FaultyDisk(Arc<Faults>);

#[derive(Default)]
pub(super) struct Faults {
    /// Asked before each call; its error is the call's.
    fault: Mutex<Option<Fault>>,
    /// Every opening of a file gets its lock.
    ignores_locks: bool,
    /// What the disk says of itself and of its files.
    volatile: Option<&'static str>,
    group: Option<u32>,
    /// A sync of file content waits as long as a test holds this.
    pub(super) hang: Mutex<()>,
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Faults")
    }
}

impl FaultyDisk {
    pub(super) fn without_locks() -> Self {
        Self(Arc::new(Faults { ignores_locks: true, ..Faults::default() }))
    }

    pub(super) fn on(volatile: &'static str) -> Self {
        Self(Arc::new(Faults { volatile: Some(volatile), ..Faults::default() }))
    }

    pub(super) fn of_group(group: u32) -> Self {
        Self(Arc::new(Faults { group: Some(group), ..Faults::default() }))
    }

    pub(super) fn faults(&self) -> &Arc<Faults> {
        &self.0
    }
}

impl Faults {
    pub(super) fn set(&self, fault: impl FnMut(Call, &Path) -> io::Result<()> + Send + 'static) {
        *self.fault.lock() = Some(Box::new(fault));
    }

    /// The next such call of the writer fails.
    pub(super) fn once(&self, what: Call, error: impl Into<io::Error>) {
        let mut error = Some(error.into());
        self.set(move |call, _| {
            let is_writer = std::thread::current().name() == Some("journal-writer");
            if is_writer && call == what { error.take().map_or(Ok(()), Err) } else { Ok(()) }
        });
    }

    fn before(&self, call: Call, path: &Path) -> io::Result<()> {
        self.fault.lock().as_mut().map_or(Ok(()), |fault| fault(call, path))
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Box<dyn DiskFile>> {
        self.0.before(Call::Open(mode), path)?;
        let (file, path) = (Real.open(path, mode)?, path.to_owned());
        Ok(Box::new(FaultyFile { file, path, faults: self.0.clone() }))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.0.before(Call::CreateDirectory, path)?;
        Real.create_directory(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        self.0.before(Call::List, directory)?;
        Real.list(directory)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.0.before(Call::SyncDirectory, path)?;
        Real.sync_directory(path)
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.0.before(Call::Metadata, path)?;
        let metadata = Real.metadata(path)?;
        Ok(Metadata { group: self.0.group.unwrap_or(metadata.group), ..metadata })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.before(Call::Rename, from)?;
        Real.rename(from, to)
    }

    fn link(&self, file: &Path, name: &Path) -> io::Result<()> {
        self.0.before(Call::Link, file)?;
        Real.link(file, name)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.before(Call::Remove, path)?;
        Real.remove(path)
    }

    fn file_system(&self, path: &Path) -> io::Result<FileSystem> {
        self.0.before(Call::FileSystem, path)?;
        let found = Real.file_system(path)?;
        Ok(FileSystem { volatile: self.0.volatile.or(found.volatile), ..found })
    }
}

#[derive(Debug)]
struct FaultyFile {
    file: Box<dyn DiskFile>,
    /// As it was opened.
    path: PathBuf,
    faults: Arc<Faults>,
}

impl FaultyFile {
    fn before(&self, call: Call) -> io::Result<()> {
        self.faults.before(call, &self.path)
    }
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.before(Call::Read(offset, buffer.len()))?;
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Err(error) = self.before(Call::Write) {
            self.file.write_at(&bytes[..bytes.len() / 2], offset)?;
            return Err(error);
        }
        self.file.write_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        drop(self.faults.hang.lock());
        self.before(Call::Sync)?;
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.before(Call::Sync)?;
        self.file.sync_all()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.before(Call::SetLen)?;
        self.file.set_len(bytes)
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        self.before(Call::Reserve)?;
        self.file.reserve(bytes)
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.before(Call::Metadata)?;
        self.file.metadata()
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.before(Call::Lock)?;
        if self.faults.ignores_locks {
            return Ok(true);
        }
        self.file.try_lock()
    }

    fn is_locked(&self) -> io::Result<bool> {
        self.before(Call::Lock)?;
        self.file.is_locked()
    }
}
