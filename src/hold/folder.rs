//! The hold as a folder that all workers share. Each recording's audio is one file, whose name contains the audio's digest. Other audio of
//! the same recording is another file. A small second file identifies the recording.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::fs;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::io::ReaderStream;

use crate::couch::ByteStream;
use crate::entry::fact::Holding;
use crate::kazoo::time::{Moment, Month};
use crate::ledger::Address;
use crate::recording::digest::Hasher;

use super::{HoldError, Item, Mark, NAMED_BY, Old, Page, Store};

/// Bytes per read from the disk.
const CHUNK: usize = 256 << 10;

/// A file by which a worker knows that the folder is the one that all workers share.
pub const MARKER: &str = ".kz-record-call-hold";

/// Suffix of files that are being written.
const PART: &str = ".part-";

/// Suffix of the file that identifies the recording.
const OWNER: &str = ".owner";

/// No upload takes this long. An older partial file belongs to a worker that was killed.
const ABANDONED: Duration = Duration::from_secs(2 * 86_400);

/// Time limit for the folder's file system to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// A file system that has answered is not asked again for this time.
const ANSWERED_FOR: Duration = Duration::from_secs(1);

/// The folder. Touches no file outside of it.
pub struct Folder {
    path: PathBuf,
    /// It must have a file of the name `MARKER`.
    marked: bool,
    /// When its file system answered last. Locked while it is asked: a network file system that hangs blocks each thread that asks it, for
    /// ever, and the spool needs these threads too.
    answered: Arc<Mutex<Option<Instant>>>,
}

impl Folder {
    pub fn new(path: PathBuf, marked: bool) -> Self {
        let answered = Arc::default();
        Self { path, marked, answered }
    }

    /// The folder, if its file system answers.
    async fn path(&self) -> Result<&Path, HoldError> {
        let look = async {
            let mut answered = Arc::clone(&self.answered).lock_owned().await;
            if answered.is_some_and(|at| at.elapsed() < ANSWERED_FOR) {
                return Ok(());
            }
            let (path, marked) = (self.path.clone(), self.marked);
            let look = move || {
                // Whatever it answers: the operation itself reports what is wrong. The file system is asked each time, whereas what is
                // known of files may be remembered by this host.
                let _ = rustix::fs::statvfs(&path);
                if marked && !is_marked(&path) {
                    let why =
                        format!("no {MARKER} is there, and hold.marked is true: its file system may not be mounted");
                    return Err(std::io::Error::new(ErrorKind::NotFound, why));
                }
                *answered = Some(Instant::now());
                Ok(())
            };
            tokio::task::spawn_blocking(look)
                .await
                .unwrap_or_else(|error| Err(std::io::Error::other(error)))
        };
        let late = |_| std::io::Error::new(ErrorKind::TimedOut, format!("no answer within {PATIENCE:?}"));
        timeout(PATIENCE, look).await.map_err(late)??;
        Ok(&self.path)
    }
}

/// Whether an operator has marked a folder as the hold. A mount point without its file system has no marker.
pub fn is_marked(folder: &Path) -> bool {
    std::fs::metadata(folder.join(MARKER)).is_ok_and(|marker| marker.is_file())
}

impl Store for Folder {
    fn put<'a>(&'a self, item: &'a Item<'a>) -> BoxFuture<'a, Result<Holding, HoldError>> {
        Box::pin(async { put(self.path().await?, item).await })
    }

    fn open<'a>(&'a self, holding: &'a Holding) -> BoxFuture<'a, Result<ByteStream, HoldError>> {
        Box::pin(async move {
            let file = fs::File::open(file(self.path().await?, &holding.name)?).await?;
            Ok(ReaderStream::with_capacity(file, CHUNK).boxed())
        })
    }

    fn remove<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), HoldError>> {
        Box::pin(async move { remove(self.path().await?, name).await })
    }

    fn older(&self, now: Moment, _: Option<Mark>) -> BoxFuture<'_, Result<Page, HoldError>> {
        Box::pin(async move { Ok((older(self.path().await?, &now.day().to_string()).await?, None)) })
    }

    fn prepare(&self, _: Moment, _: Moment) -> BoxFuture<'_, Result<(), HoldError>> {
        Box::pin(async { Ok(()) })
    }

    fn tidy(&self, _: Moment) -> BoxFuture<'_, Result<(), HoldError>> {
        Box::pin(async { tidy(self.path().await?).await })
    }

    fn bytes(&self) -> BoxFuture<'_, Result<u64, HoldError>> {
        Box::pin(async { bytes(self.path().await?).await })
    }
}

/// The file name of audio.
fn name(of: &Address, sha256: &str) -> String {
    format!("{}-{}.audio", of.key, sha256.get(..NAMED_BY).unwrap_or_default())
}

/// The path of a file name. Names come from the ledger, and must not lead out of the folder.
fn file(folder: &Path, name: &str) -> Result<PathBuf, HoldError> {
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(HoldError::Folder(std::io::Error::from(ErrorKind::InvalidInput)));
    }
    Ok(folder.join(name))
}

/// Writes audio atomically: the file exists whole or not at all. Content and name are on the disk when this returns.
async fn put(folder: &Path, item: &Item<'_>) -> Result<Holding, HoldError> {
    let (of, now) = (item.of, item.now);
    let holding = item.holding(folder.display().to_string(), name(of, &item.audio.digests.sha256));
    if let Err(error) = fs::metadata(folder).await
        && error.kind() == ErrorKind::NotFound
    {
        fs::create_dir_all(folder).await?;
        if let Some(parent) = folder.parent().filter(|parent| *parent != Path::new("")) {
            sync(parent).await?;
        }
    }
    let owner = json!({
        "call_id": of.call_id, "month": of.month.to_string(), "key": of.key, "held_at": now.rfc3339(),
        "day": now.day().to_string(),
    });
    let owners = file(folder, &format!("{}{OWNER}", holding.name))?;
    write(&owners, async |file| {
        Ok(file.write_all(owner.to_string().as_bytes()).await?)
    })
    .await?;
    let audio = async |file: &mut fs::File| {
        let (mut stream, mut hasher) = (item.open().await?, Hasher::default());
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            hasher.update(&chunk);
            file.write_all(&chunk).await?;
        }
        if hasher.finish() == holding.digests {
            Ok(())
        } else {
            Err(HoldError::Corrupt)
        }
    };
    // The name contains the digest. The replaced file has the same content, or was damaged.
    write(&file(folder, &holding.name)?, audio).await?;
    sync(folder).await?;
    Ok(holding)
}

async fn write(
    path: &Path,
    content: impl AsyncFnOnce(&mut fs::File) -> Result<(), HoldError>,
) -> Result<(), HoldError> {
    let mut part = path.as_os_str().to_owned();
    part.push(format!("{PART}{}", uuid::Uuid::new_v4().simple()));
    let mut part = Part {
        path: part.into(),
        is_whole: false,
    };
    let mut open = fs::File::create(&part.path).await?;
    let written = async {
        content(&mut open).await?;
        open.flush().await?;
        open.sync_all().await?;
        Ok(fs::rename(&part.path, path).await?)
    };
    let written: Result<(), HoldError> = written.await;
    if written.is_err() {
        let _ = fs::remove_file(&part.path).await;
    }
    part.is_whole = written.is_ok();
    written
}

/// A file that is being written. It is removed if its writer is given up.
struct Part {
    path: PathBuf,
    is_whole: bool,
}

impl Drop for Part {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        if !self.is_whole
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            // The file system may hang.
            runtime.spawn_blocking(move || std::fs::remove_file(path));
        }
    }
}

/// Writes the directory entries to the disk. Otherwise a power failure may undo a rename.
async fn sync(folder: &Path) -> Result<(), HoldError> {
    Ok(fs::File::open(folder).await?.sync_all().await?)
}

/// Removes exactly that audio. A missing file is no error.
async fn remove(folder: &Path, name: &str) -> Result<(), HoldError> {
    for name in [name.to_owned(), format!("{name}{OWNER}")] {
        match fs::remove_file(file(folder, &name)?).await {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// The audio held since before `today`, with its recordings.
async fn older(folder: &Path, today: &str) -> Result<Vec<Old>, HoldError> {
    let mut all = Vec::new();
    for (name, _) in files(folder).await? {
        let Some(audio) = name.strip_suffix(OWNER) else {
            continue;
        };
        let Ok(text) = fs::read(folder.join(&name)).await else {
            continue;
        };
        let owner: Value = serde_json::from_slice(&text).unwrap_or(Value::Null);
        let text = |key: &str| owner.get(key).and_then(Value::as_str);
        let address = || {
            Some(Address {
                month: Month::of_id(text("month")?)?,
                call_id: text("call_id")?.to_owned(),
                key: text("key")?.parse().ok()?,
            })
        };
        if let (Some(address), true) = (address(), text("day").is_some_and(|day| day < today)) {
            all.push((address, folder.display().to_string(), audio.to_owned()));
        }
    }
    Ok(all)
}

/// Bytes of held audio. Partial files do not count.
async fn bytes(folder: &Path) -> Result<u64, HoldError> {
    let files = files(folder).await?;
    Ok(files
        .iter()
        .filter(|(name, _)| !name.contains(PART))
        .map(|(_, meta)| meta.len())
        .sum())
}

/// Removes partial files of workers that were killed.
async fn tidy(folder: &Path) -> Result<(), HoldError> {
    for (name, meta) in files(folder).await? {
        let age = meta.modified().ok().and_then(|at| at.elapsed().ok());
        if name.contains(PART) && age.is_some_and(|age| age > ABANDONED) {
            let _ = fs::remove_file(folder.join(name)).await;
        }
    }
    Ok(())
}

/// The names and metadata of the files. Empty when the folder is missing.
async fn files(folder: &Path) -> Result<Vec<(String, std::fs::Metadata)>, HoldError> {
    let mut found = Vec::new();
    let mut entries = match fs::read_dir(folder).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    while let Some(entry) = entries.next_entry().await? {
        // A file that was removed meanwhile is not held.
        if let (Ok(name), Ok(meta)) = (entry.file_name().into_string(), entry.metadata().await)
            && meta.is_file()
        {
            found.push((name, meta));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each look would block a thread of its own: after some hundred of them the worker could not even use its spool.
    #[tokio::test(start_paused = true)]
    async fn a_folder_that_hangs_is_asked_by_one_thread_at_a_time() {
        let folder = Folder::new(std::env::temp_dir(), false);
        let hangs = Arc::clone(&folder.answered).lock_owned().await;
        for _ in 0..3 {
            let error = folder.bytes().await.unwrap_err();
            assert_eq!(error.to_string(), "the hold's folder: no answer within 3s");
            assert!(folder.remove("", "name").await.is_err());
        }
        drop(hangs);
        assert!(folder.path().await.is_ok(), "it answers again");
    }

    /// Audio that is held in an empty mount point is lost to the other workers, and to this one once the file system is mounted.
    #[tokio::test]
    async fn a_folder_without_its_marker_holds_nothing() {
        let path = std::env::temp_dir().join(format!("kz-record-call-marked-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&path).await.unwrap();
        assert!(Folder::new(path.clone(), false).path().await.is_ok());
        let error = Folder::new(path.clone(), true).path().await.map(drop).unwrap_err();
        assert!(
            error.to_string().contains("no .kz-record-call-hold is there"),
            "{error}"
        );
        fs::write(path.join(MARKER), b"").await.unwrap();
        let folder = Folder::new(path.clone(), true);
        assert!(folder.path().await.is_ok());
        assert_eq!(folder.bytes().await.unwrap(), 0, "the marker is no audio");
        assert!(
            folder
                .older(Moment::from_unix_seconds(1_900_000_000), None)
                .await
                .unwrap()
                .0
                .is_empty()
        );
        folder.tidy(Moment::from_unix_seconds(1_900_000_000)).await.unwrap();
        assert!(is_marked(&path));
        // As if the file system were gone.
        fs::remove_dir_all(&path).await.unwrap();
        assert!(Folder::new(path, true).path().await.is_err());
    }

    /// The hold has a limit for each recording. What a late one leaves would fill the disk, and no measurement counts it.
    #[tokio::test]
    async fn what_a_late_recording_has_written_is_removed() {
        let folder = std::env::temp_dir().join(format!("kz-record-call-part-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&folder).await.unwrap();
        let path = folder.join("copy");
        let mut late = Box::pin(write(&path, async |file: &mut fs::File| {
            file.write_all(b"half").await?;
            std::future::pending().await
        }));
        let names = || std::fs::read_dir(&folder).unwrap().count();
        while names() == 0 {
            let _ = timeout(Duration::from_millis(10), &mut late).await;
        }
        drop(late);
        let removed = async {
            while names() > 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(60), removed).await.unwrap();
        write(&path, async |file: &mut fs::File| Ok(file.write_all(b"whole").await?))
            .await
            .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
