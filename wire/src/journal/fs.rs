//! The few things a journal asks of a file system, so that tests can put one in its place that
//! fails, tears and fills up.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

/// A directory's file system. Names are whole paths.
pub trait Fs: Clone {
    /// An open file.
    type File: FsFile;
    /// What holds a lock; dropping it gives it back.
    type Lock;

    /// Makes the directory, and those above it, if it is not there; only its owner may enter.
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// Names and lengths of the files in a directory.
    fn list(&self, path: &Path) -> io::Result<Vec<(String, u64)>>;
    /// Takes the lock on the file at `path`, or tells which process has it.
    fn lock(&self, path: &Path) -> Result<Self::Lock, LockError>;
    /// A new empty file to read and write, in place of any other of that name.
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    /// An existing file, to read and, if `writable`, to write.
    fn open(&self, path: &Path, writable: bool) -> io::Result<Self::File>;
    /// Takes a name away.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Gives a file the name of another, which is gone then, in one step.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
}

/// An open file.
pub trait FsFile {
    /// Its length.
    fn bytes(&self) -> io::Result<u64>;
    /// Fills `out` from `offset`; less only at the end of the file.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`. On error any part of it may have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes room for the first `bytes`, which read as zeros; no effect where that is not known.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// Cuts or stretches to `bytes`.
    fn truncate(&self, bytes: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
    /// Begins to write this range to the disk, without waiting for it: a later sync has less to do. A hint.
    fn begin_sync(&self, offset: u64, bytes: u64);
    /// The kernel need not keep this range in memory. A hint.
    fn forget(&self, offset: u64, bytes: u64);
}

/// Why there is no lock.
#[derive(Debug)]
pub enum LockError {
    /// Another process has it: its id, if it can be told.
    Held(Option<u32>),
    /// The lock file cannot be used.
    Io(io::Error),
}

/// Whether an error says that the disk, or the share of it one may use, is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The file system of the host.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFs;

impl Fs for RealFs {
    type File = File;
    type Lock = File;

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            // One that is gone by now was deleted by the program that writes here.
            if let (Ok(name), Ok(metadata)) = (entry.file_name().into_string(), entry.metadata())
                && metadata.is_file()
            {
                files.push((name, metadata.len()));
            }
        }
        Ok(files)
    }

    fn lock(&self, path: &Path) -> Result<File, LockError> {
        let mut file = options().write(true).create(true).open(path).map_err(LockError::Io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let holder = file.take(20).read_to_string(&mut text).ok();
                return Err(LockError::Held(holder.and_then(|_| text.trim().parse().ok())));
            }
            Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
        }
        // Who has it, for the message above; a lock without a number is as good.
        let _ = file.set_len(0);
        let _ = file.rewind();
        let _ = file.write_all(format!("{}\n", std::process::id()).as_bytes());
        Ok(file)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        options().write(true).create(true).truncate(true).open(path)
    }

    fn open(&self, path: &Path, writable: bool) -> io::Result<File> {
        options().write(writable).open(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        // Elsewhere a directory cannot be opened as a file.
        if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
    }
}

/// Files are read, and are their owner's alone.
fn options() -> OpenOptions {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

impl FsFile for File {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < out.len() {
            #[cfg(unix)]
            let read = std::os::unix::fs::FileExt::read_at(self, &mut out[done..], offset + done as u64);
            #[cfg(windows)]
            let read = std::os::windows::fs::FileExt::seek_read(self, &mut out[done..], offset + done as u64);
            match read {
                Ok(0) => break,
                Ok(bytes) => done += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::write_all_at(self, bytes, offset);
        #[cfg(windows)]
        {
            let mut done = 0;
            while done < bytes.len() {
                let at = offset + done as u64;
                match std::os::windows::fs::FileExt::seek_write(self, &bytes[done..], at) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => done += written,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        }
    }

    #[cfg(target_os = "linux")]
    fn allocate(&self, bytes: u64) -> io::Result<()> {
        use nix::errno::Errno;
        use nix::fcntl::{FallocateFlags, fallocate};
        let bytes = bytes.try_into().map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        match fallocate(self, FallocateFlags::empty(), 0, bytes) {
            // Writes will allocate as they go, which is slower and right.
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn allocate(&self, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn begin_sync(&self, offset: u64, bytes: u64) {
        // On Linux the same call begins to write what is not written yet (mm/fadvise.c), and drops only what is.
        // sync_file_range(2) would be the exact one, at the price of `unsafe` here.
        self.forget(offset, bytes);
    }

    fn forget(&self, offset: u64, bytes: u64) {
        #[cfg(target_os = "linux")]
        if let (Ok(offset), Ok(bytes)) = (offset.try_into(), bytes.try_into()) {
            use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
            let _ = posix_fadvise(self, offset, bytes, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (offset, bytes);
    }
}
