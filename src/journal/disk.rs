//! Every system call of the journal, as two traits. The simulator implements them in memory; a test's
//! implementation fails when told to.

use std::{
    any::Any,
    fmt,
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::FallocateFlags;

const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
/// An allocation syncs after each of these steps in bytes, because the syncs of appends wait for it.
const ALLOCATION_STEP: usize = 1 << 20;

/// How a file is opened. All but `Read` also write, and make a missing file for its owner alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Only to read.
    Read,
    /// Keeps what is there.
    Create,
    /// An error if the file is there.
    CreateNew,
    /// Empties the file.
    Truncate,
}

/// Of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// Length.
    pub bytes: u64,
    /// Device and inode: two paths with the same are the same file.
    pub identity: (u64, u64),
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// The id of the group that owns it.
    pub group: u32,
}

/// The file system under a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// Bytes that this process may still take.
    pub free_bytes: u64,
    /// Its type, if a restart of the machine or container empties it.
    pub volatile: Option<&'static str>,
}

/// A file system. The last component of a path is never followed if it is a symbolic link.
pub trait Disk: Any + fmt::Debug + Send + Sync {
    /// Opens a file.
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Box<dyn DiskFile>>;
    /// Makes a directory, and those above it, for its owner alone. No error if it is there.
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// The paths in a directory, in any order.
    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>>;
    /// Makes the names in a directory durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// Of what is at the path.
    fn metadata(&self, path: &Path) -> io::Result<Metadata>;
    /// Replaces what is at `to`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name, at which there must be none.
    fn link(&self, file: &Path, name: &Path) -> io::Result<()>;
    /// Takes a file's name away.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Of what is at the path.
    fn file_system(&self, path: &Path) -> io::Result<FileSystem>;
}

/// An open file. Dropping it releases its lock.
pub trait DiskFile: fmt::Debug + Send + Sync {
    /// Fills the buffer; `UnexpectedEof` if the file ends before.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all bytes. After an error any part of them may be written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Makes content and all metadata durable.
    fn sync_all(&self) -> io::Result<()>;
    /// Cuts the file, or extends it with zeros.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Takes the blocks for `bytes` without changing the length.
    fn reserve(&self, bytes: u64) -> io::Result<()>;
    /// Of the file.
    fn metadata(&self) -> io::Result<Metadata>;
    /// Takes the exclusive lock; false if another opening of the file has it.
    fn try_lock(&self) -> io::Result<bool>;
    /// Whether another opening of the file has the exclusive lock. Takes a shared one for a moment.
    fn is_locked(&self) -> io::Result<bool>;
}

impl dyn Disk {
    /// The content of a file.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path, Mode::Read)?;
        let mut content = vec![0; file.metadata()?.bytes as usize];
        file.read_at(&mut content, 0)?;
        Ok(content)
    }

    /// Writes a whole file and makes its content durable; its name needs
    /// [`sync_directory`](Disk::sync_directory).
    pub fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let file = self.open(path, Mode::Truncate)?;
        file.write_at(content, 0)?;
        file.sync_all()
    }

    /// Whether something is at the path.
    pub fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(if_there(self.metadata(path))?.is_some())
    }

    /// Removes a file; no error if there is none.
    pub fn remove_if_there(&self, path: &Path) -> io::Result<()> {
        if_there(self.remove(path)).map(drop)
    }
}

/// A journal's directory on its disk.
#[derive(Debug, Clone, Copy)]
pub struct Directory<'a> {
    /// The file system that it is on.
    pub disk: &'a dyn Disk,
    /// Where it is.
    pub path: &'a Path,
}

/// The file system of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Real;

impl Disk for Real {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
        match mode {
            Mode::Read => &mut options,
            Mode::Create => options.write(true).create(true),
            Mode::CreateNew => options.write(true).create_new(true),
            Mode::Truncate => options.write(true).create(true).truncate(true),
        };
        Ok(Box::new(options.mode(FILE_MODE).open(path)?))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let create = || DirBuilder::new().mode(DIRECTORY_MODE).create(path);
        let created = match (create(), path.parent()) {
            (Err(error), Some(parent)) if error.kind() == ErrorKind::NotFound => {
                self.create_directory(parent)?;
                create()
            }
            (created, _) => created,
        };
        match created {
            Err(_) if path.is_dir() => return Ok(()),
            created => created?,
        }
        // A single name has the empty path as its parent.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        self.sync_directory(parent.unwrap_or(Path::new(".")))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        std::fs::symlink_metadata(path).map(Metadata::from)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn link(&self, file: &Path, name: &Path) -> io::Result<()> {
        std::fs::hard_link(file, name)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn file_system(&self, path: &Path) -> io::Result<FileSystem> {
        let state = rustix::fs::statvfs(path)?;
        let free_bytes = state.f_bavail.saturating_mul(state.f_frsize);
        // The numbers of linux/magic.h.
        let volatile = match rustix::fs::statfs(path)?.f_type as u32 {
            0x0102_1994 => Some("tmpfs"),
            0x8584_58f6 => Some("ramfs"),
            0x794c_7630 => Some("overlay"),
            _ => None,
        };
        Ok(FileSystem { free_bytes, volatile })
    }
}

impl From<std::fs::Metadata> for Metadata {
    fn from(metadata: std::fs::Metadata) -> Self {
        Self {
            bytes: metadata.len(),
            identity: (metadata.dev(), metadata.ino()),
            mode: metadata.mode(),
            group: metadata.gid(),
        }
    }
}

impl DiskFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }

    fn sync_all(&self) -> io::Result<()> {
        Self::sync_all(self)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        Self::set_len(self, bytes)
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(self, FallocateFlags::KEEP_SIZE, 0, bytes) {
            // Some network file systems cannot: there, writing takes the blocks.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn metadata(&self) -> io::Result<Metadata> {
        Self::metadata(self).map(Metadata::from)
    }

    fn try_lock(&self) -> io::Result<bool> {
        match Self::try_lock(self) {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn is_locked(&self) -> io::Result<bool> {
        match self.try_lock_shared() {
            Ok(()) => self.unlock().map(|()| false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// The groups that this process is in.
pub(super) fn own_groups() -> io::Result<Vec<u32>> {
    let groups = rustix::process::getgroups()?.into_iter();
    Ok(groups.chain([rustix::process::getegid()]).map(|group| group.as_raw()).collect())
}

/// Fills an empty file with zeros, durably. Writing to it then cannot run out of space and changes no
/// metadata. Blocks that are allocated but not written would change it: ext4 that turned read-only in a
/// sync of them (`errors=remount-ro`) called it successful and lost them, on Linux 6.18 one time in ten.
pub(super) fn allocate(file: &dyn DiskFile, bytes: u64) -> io::Result<()> {
    // The length comes with the zeros, so a file that is as long as a segment is complete.
    file.reserve(bytes)?;
    let zeros = vec![0; ALLOCATION_STEP.min(bytes as usize)];
    let mut at = 0;
    while at < bytes {
        let step = (bytes - at).min(zeros.len() as u64);
        file.write_at(&zeros[..step as usize], at)?;
        file.sync_data()?;
        at += step;
    }
    Ok(())
}

/// The result of a call, or `None` because nothing is at its path.
pub(super) fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Whether the error says that there is no room, and nothing worse.
pub(super) fn is_full(error: &io::Error) -> bool {
    use ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
