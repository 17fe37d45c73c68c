//! The spool holds an upload while it is checked and delivered. It is never the only place with the audio.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt as _;
use tokio_util::io::ReaderStream;
use tracing::warn;

use crate::couch::ByteStream;

/// Bytes per read from the disk.
const CHUNK: usize = 64 << 10;

/// A folder that only this worker uses, locked for as long as the value lives.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    min_free: u64,
    serial: AtomicU64,
    _lock: File,
}

/// State of a spool folder, for a process that does not use the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolState {
    /// Whether a worker uses it now.
    pub in_use: bool,
    /// Free bytes on its disk for this user.
    pub free: u64,
    /// Uploads in the folder.
    pub uploads: usize,
}

const LOCK: &str = "lock";
const SUFFIX: &str = "upload";

impl Spool {
    /// Opens the folder, and creates it if it is missing. Removes the files of an earlier process, because those files are still on their
    /// switches.
    ///
    /// # Errors
    /// When the folder cannot be used, or another worker uses it.
    pub fn open(dir: &Path, min_free: u64) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let lock = File::create(dir.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another worker uses this spool folder",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == SUFFIX) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            min_free,
            serial: AtomicU64::new(0),
            _lock: lock,
        })
    }

    /// Checks an existing folder. A test file is written and removed. Otherwise the folder stays unchanged.
    ///
    /// # Errors
    /// When the folder cannot be read or written.
    pub fn look(dir: &Path) -> io::Result<SpoolState> {
        use std::io::Write as _;
        let uploads = std::fs::read_dir(dir)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == SUFFIX))
            .count();
        let name = format!("check-{}-{}", std::process::id(), fastrand::u64(..));
        let tried = Remove(dir.join(name));
        let mut file = File::options().write(true).create_new(true).open(&tried.0)?;
        file.write_all(&[0; 4096])?;
        drop(tried);
        let in_use = match File::options().write(true).open(dir.join(LOCK)) {
            // The lock is held for no longer than this expression.
            Ok(lock) => match lock.try_lock() {
                Ok(()) => false,
                Err(TryLockError::WouldBlock) => true,
                Err(TryLockError::Error(error)) => return Err(error),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        Ok(SpoolState {
            in_use,
            free: Self::free(dir)?,
            uploads,
        })
    }

    /// Free bytes for this user on the folder's disk.
    ///
    /// # Errors
    /// When the folder is missing.
    pub fn free(dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Whether `bytes` more fit, with the minimum still free afterwards.
    pub fn has_room(&self, bytes: u64) -> bool {
        match Self::free(&self.dir) {
            Ok(free) => free >= self.min_free.saturating_add(bytes),
            // An operator may have removed the folder. The next file creates it again.
            Err(_) => self.dir.parent().is_some_and(Path::exists),
        }
    }

    /// Free bytes on its disk. `None` when the folder is missing.
    pub fn free_bytes(&self) -> Option<u64> {
        Self::free(&self.dir).ok()
    }

    /// With fewer bytes free than this, the spool accepts no upload.
    pub const fn min_free_bytes(&self) -> u64 {
        self.min_free
    }

    /// Whether a file can be written now.
    pub fn is_writable(&self) -> bool {
        self.create().is_ok()
    }

    /// A new, empty file. If an operator removed the folder, it is created again.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(&self) -> io::Result<(File, SpoolFile)> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{}-{serial}.{SUFFIX}", std::process::id()));
        let open = || File::options().write(true).create_new(true).open(&path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(&self.dir)?;
                open()?
            }
            other => other?,
        };
        Ok((
            file,
            SpoolFile {
                path: Arc::new(Remove(path)),
            },
        ))
    }
}

/// A file in the spool. It is removed when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct SpoolFile {
    path: Arc<Remove>,
}

#[derive(Debug)]
struct Remove(PathBuf);

impl SpoolFile {
    pub fn path(&self) -> &Path {
        &self.path.0
    }

    /// The audio as a stream from the beginning, any number of times.
    ///
    /// # Errors
    /// When the file cannot be opened any more.
    pub async fn open(&self) -> io::Result<ByteStream> {
        let file = tokio::fs::File::open(self.path()).await?;
        // The stream holds the file, so that it is not removed.
        let keep = self.clone();
        let stream = ReaderStream::with_capacity(file, CHUNK).inspect(move |_| {
            let _ = &keep;
        });
        Ok(stream.boxed())
    }
}

impl Drop for Remove {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(event = "spool_file_left", path = %self.0.display(), %error, "spool file not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("kz-record-call-spool-{name}-{}", uuid::Uuid::new_v4().simple()))
    }

    #[test]
    fn a_spool_is_one_workers_and_empty_at_start() {
        let dir = folder("lock");
        let spool = Spool::open(&dir, 0).unwrap();
        assert!(Spool::open(&dir, 0).is_err(), "a second worker is refused");
        let (_, file) = spool.create().unwrap();
        let path = file.path().to_owned();
        std::mem::forget(file); // as a killed process would
        drop(spool);
        assert!(path.exists());
        let spool = Spool::open(&dir, 0).unwrap();
        assert!(!path.exists());
        let (_, file) = spool.create().unwrap();
        let path = file.path().to_owned();
        drop(file);
        assert!(!path.exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_look_at_a_spool_changes_nothing() {
        let dir = folder("look");
        assert!(Spool::look(&dir).is_err() && !dir.exists());
        let spool = Spool::open(&dir, 0).unwrap();
        let (_, file) = spool.create().unwrap();
        let list = || std::fs::read_dir(&dir).unwrap().count();
        let before = list();
        let state = Spool::look(&dir).unwrap();
        assert!(state.in_use && state.uploads == 1 && state.free > 0, "{state:?}");
        assert!(file.path().exists() && list() == before);
        drop((file, spool));
        assert!(!Spool::look(&dir).unwrap().in_use);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_folder_that_was_removed_is_made_again() {
        let dir = folder("gone");
        let spool = Spool::open(&dir, 0).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(spool.is_writable());
        assert!(!spool.has_room(u64::MAX / 2));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
