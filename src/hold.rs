//! The hold stores audio while its destination is unavailable: in databases, or in a folder that all workers share. A place of the hold is
//! one implementation of `Store`. `tests/destinations/hold.rs` has the contract that each of them keeps.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use secrecy::ExposeSecret as _;
use thiserror::Error;

use crate::config::{self, HoldKind};
use crate::couch::{ByteStream, Couch, CouchError, Server};
use crate::entry::fact::Holding;
use crate::ingest::SpoolFile;
use crate::kazoo::time::Moment;
use crate::ledger::Address;
use crate::recording::audio::Audio;
use crate::recording::digest::{Digests, Hasher};

use room::Room;

mod couch;
mod folder;
mod nowhere;
mod room;

pub use folder::{MARKER, is_marked};

/// Why the hold failed.
#[derive(Debug, Error)]
pub enum HoldError {
    #[error("there is no hold")]
    None,
    #[error("the hold is full: {held} of {max} bytes, and {size} more do not fit")]
    Full { held: u64, max: u64, size: u64 },
    #[error(transparent)]
    Database(#[from] CouchError),
    #[error("the spooled file cannot be read: {0}")]
    Source(std::io::Error),
    #[error("the hold's folder: {0}")]
    Folder(#[from] std::io::Error),
    #[error("what is held is not what was put in")]
    Corrupt,
    /// A 202: the only copy may be on a node that fails later.
    #[error("the hold's database has fewer copies than its quorum")]
    FewCopies,
    #[error("the hold was not done within {0:?}")]
    Late(Duration),
}

impl HoldError {
    /// The kinds of refusals, for the metric.
    pub const REASONS: [&str; 7] = ["full", "none", "database", "folder", "source", "corrupt", "late"];

    pub const fn reason(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Full { .. } => "full",
            Self::Database(_) | Self::FewCopies => "database",
            Self::Source(_) => "source",
            Self::Folder(_) => "folder",
            Self::Corrupt => "corrupt",
            Self::Late(_) => "late",
        }
    }
}

/// One held recording: its address, its place, its name.
pub type Old = (Address, String, String);

/// Where the next page starts: a place, and the last name of the page before.
pub type Mark = (String, Option<String>);

/// Held recordings, and where the next page starts, if there is one.
pub type Page = (Vec<Old>, Option<Mark>);

/// Audio that is to be held. Touches the spooled file only to read it.
pub struct Item<'a> {
    pub of: &'a Address,
    pub now: Moment,
    pub audio: &'a Audio,
    pub file: &'a SpoolFile,
}

impl Item<'_> {
    async fn open(&self) -> Result<ByteStream, HoldError> {
        self.file.open().await.map_err(HoldError::Source)
    }

    fn holding(&self, place: String, name: String) -> Holding {
        Holding {
            place,
            name,
            size: self.audio.size,
            digests: self.audio.digests.clone(),
        }
    }
}

/// A place that keeps held audio. The name of held audio contains the audio's digest: storing audio twice gives one copy, and other audio
/// of the same recording is stored beside it.
pub trait Store: Send + Sync {
    /// Whether audio can be stored here at all.
    fn is_there(&self) -> bool {
        true
    }

    /// Stores the audio completely, or fails.
    fn put<'a>(&'a self, item: &'a Item<'a>) -> BoxFuture<'a, Result<Holding, HoldError>>;

    /// The audio from its beginning.
    fn open<'a>(&'a self, holding: &'a Holding) -> BoxFuture<'a, Result<ByteStream, HoldError>>;

    /// Removes exactly that audio. Missing audio is no error.
    fn remove<'a>(&'a self, place: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), HoldError>>;

    /// One page of the audio held since before the day of `now`.
    fn older(&self, now: Moment, after: Option<Mark>) -> BoxFuture<'_, Result<Page, HoldError>>;

    /// Makes ready for the day of `next`, if the store is in use.
    fn prepare(&self, now: Moment, next: Moment) -> BoxFuture<'_, Result<(), HoldError>>;

    /// Frees the disk of what no audio needs any more.
    fn tidy(&self, now: Moment) -> BoxFuture<'_, Result<(), HoldError>>;

    /// Bytes of held audio.
    fn bytes(&self) -> BoxFuture<'_, Result<u64, HoldError>>;
}

/// How many digits of the audio's SHA-256 the name of a copy has.
const NAMED_BY: usize = 16;

/// Time limit of an operation, unless another one is set.
const PATIENCE: Duration = Duration::from_secs(120);

/// The hold, in its configured place. Touches its store, and no more bytes of it than the limit. Cheap to clone.
#[derive(Clone)]
pub struct Hold {
    store: Arc<dyn Store>,
    max_bytes: u64,
    patience: Duration,
    room: Arc<Room>,
}

impl Hold {
    /// The configured hold. `cluster` is the database server, unless the configuration names another one.
    ///
    /// # Errors
    /// When the client of the other server cannot be built.
    pub fn new(config: &config::Hold, couchdb: &config::Couchdb, cluster: &Couch) -> Result<Self, CouchError> {
        let store: Arc<dyn Store> = match (config.kind, &config.url) {
            (HoldKind::None, _) => Arc::new(nowhere::Nowhere),
            (HoldKind::Folder, _) => Arc::new(folder::Folder::new(config.folder.clone(), config.marked)),
            (HoldKind::Couchdb, None) => Arc::new(couch::Databases::new(cluster.clone())),
            (HoldKind::Couchdb, Some(url)) => {
                let server = Server::parse(url.expose_secret(), 5984)
                    .map_err(|error| CouchError::NoAnswer(format!("hold.url: {error}")))?;
                Arc::new(couch::Databases::new(Couch::elsewhere(&server, couchdb)?))
            }
        };
        Ok(Self {
            store,
            max_bytes: config.max_bytes,
            patience: PATIENCE,
            room: Arc::default(),
        })
    }

    /// The same hold, with another time limit of each operation.
    #[must_use]
    pub fn within(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// A folder can hang, and a database can take a body ever more slowly. The recording that waits for it has a slot of its switch.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, HoldError>>) -> Result<T, HoldError> {
        let done = tokio::time::timeout(self.patience, work).await;
        done.unwrap_or(Err(HoldError::Late(self.patience)))
    }

    pub fn is_there(&self) -> bool {
        self.store.is_there()
    }

    /// The most bytes that the hold accepts.
    pub const fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Stores audio in the hold. Storing it twice gives one copy. Other audio of the same recording is stored beside it.
    ///
    /// # Errors
    /// When the audio is not completely stored.
    pub async fn put(&self, of: &Address, now: Moment, audio: &Audio, file: &SpoolFile) -> Result<Holding, HoldError> {
        let item = Item { of, now, audio, file };
        self.in_time(self.put_if_it_fits(&item)).await
    }

    async fn put_if_it_fits(&self, item: &Item<'_>) -> Result<Holding, HoldError> {
        let place = self
            .room
            .take(item.audio.size, self.max_bytes, self.store.bytes())
            .await?;
        let holding = self.store.put(item).await?;
        place.fill();
        Ok(holding)
    }

    /// The audio from its beginning.
    ///
    /// # Errors
    /// When the audio is unavailable.
    pub async fn open(&self, holding: &Holding) -> Result<ByteStream, HoldError> {
        self.store.open(holding).await
    }

    /// A copy that is known only by its place and name. All of its audio is read.
    ///
    /// # Errors
    /// When the audio is unavailable, or is not the audio that the copy is named for.
    pub async fn read(&self, place: String, name: String) -> Result<Holding, HoldError> {
        let unread = Digests {
            md5: String::new(),
            sha256: String::new(),
        };
        let mut holding = Holding {
            place,
            name,
            size: 0,
            digests: unread,
        };
        let (mut audio, mut hasher) = (self.open(&holding).await?, Hasher::default());
        while let Some(chunk) = audio.next().await {
            let chunk = chunk?;
            holding.size += chunk.len() as u64;
            hasher.update(&chunk);
        }
        holding.digests = hasher.finish();
        let is_named = |digits: &str| holding.name.contains(digits);
        match holding.digests.sha256.get(..NAMED_BY).is_some_and(is_named) {
            true => Ok(holding),
            false => Err(HoldError::Corrupt),
        }
    }

    /// Removes the audio from the hold. Missing audio is no error.
    ///
    /// # Errors
    /// When the audio may still exist.
    pub async fn remove(&self, holding: &Holding) -> Result<(), HoldError> {
        self.remove_named(&holding.place, &holding.name).await
    }

    /// Removes audio by its place and name.
    ///
    /// # Errors
    /// As `remove`.
    pub async fn remove_named(&self, place: &str, name: &str) -> Result<(), HoldError> {
        self.in_time(self.store.remove(place, name)).await
    }

    /// Creates the next day's database ahead, if the hold is in use. At midnight many tasks and workers would create it at the same moment,
    /// and can make two on different nodes of the cluster: audio in the one is lost when the nodes agree on the other.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn prepare(&self, now: Moment, next: Moment) -> Result<(), HoldError> {
        self.in_time(self.store.prepare(now, next)).await
    }

    /// Drops the empty databases of past days, which frees the disk. In a folder, removes partial files of workers that were killed.
    ///
    /// # Errors
    /// When the database, or the folder, does not answer.
    pub async fn drop_empty_days(&self, now: Moment) -> Result<(), HoldError> {
        self.store.tidy(now).await
    }

    /// One page of the audio held since before today, with its recordings. Also where the next page starts, if there is one.
    ///
    /// # Errors
    /// When the database, or the folder, does not answer.
    pub async fn older(&self, now: Moment, after: Option<Mark>) -> Result<Page, HoldError> {
        self.store.older(now, after).await
    }

    /// Bytes in the hold now.
    ///
    /// # Errors
    /// When the database, or the folder, does not answer.
    pub async fn bytes(&self) -> Result<u64, HoldError> {
        self.room.measured_by(self.store.bytes()).await
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use futures_util::future::pending;
    use serde_json::json;

    use crate::couch::testing;
    use crate::ingest::Spool;
    use crate::recording::identity::Key;

    use super::*;

    /// A place that hangs.
    struct Hanging;

    impl Store for Hanging {
        fn put<'a>(&'a self, _: &'a Item<'a>) -> BoxFuture<'a, Result<Holding, HoldError>> {
            Box::pin(pending())
        }

        fn open<'a>(&'a self, _: &'a Holding) -> BoxFuture<'a, Result<ByteStream, HoldError>> {
            Box::pin(pending())
        }

        fn remove<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<(), HoldError>> {
            Box::pin(pending())
        }

        fn older(&self, _: Moment, _: Option<Mark>) -> BoxFuture<'_, Result<Page, HoldError>> {
            Box::pin(pending())
        }

        fn prepare(&self, _: Moment, _: Moment) -> BoxFuture<'_, Result<(), HoldError>> {
            Box::pin(pending())
        }

        fn tidy(&self, _: Moment) -> BoxFuture<'_, Result<(), HoldError>> {
            Box::pin(pending())
        }

        fn bytes(&self) -> BoxFuture<'_, Result<u64, HoldError>> {
            Box::pin(async { Ok(0) })
        }
    }

    /// The recording has a slot of its switch meanwhile, and after four of them the worker would take no file of that switch any more.
    #[tokio::test(start_paused = true)]
    async fn a_hold_that_hangs_refuses_in_time() {
        let hold = Hold {
            store: Arc::new(Hanging),
            max_bytes: 10_000,
            patience: PATIENCE,
            room: Arc::default(),
        };
        let hold = hold.within(Duration::from_secs(7));
        let (of, now, audio, spooled) = to_be_held();
        let file = &spooled.file;
        let begun = tokio::time::Instant::now();
        let late = hold.put(&of, now, &audio, file).await.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::from_secs(7));
        assert_eq!(late.to_string(), "the hold was not done within 7s");
        assert_eq!(late.reason(), "late");
        assert!(hold.remove_named("place", "name").await.is_err());
        assert!(hold.prepare(now, now).await.is_err());
    }

    /// BigCouch returns the names of all databases of the cluster, whatever range is requested.
    #[tokio::test]
    async fn many_puts_read_the_names_of_all_databases_once() {
        let (of, now, audio, spooled) = to_be_held();
        let day = format!("kz_record_call_hold-{}", now.day());
        let there = day.clone();
        let stub = json!({"audio": {"length": audio.size, "digest": audio.digests.couch()}});
        let document = json!({"_id": "x", "_rev": "1-a", "_attachments": stub});
        let key = of.key.to_string();
        let (couch, log) = testing::couch(move |asked| match (asked.method.as_str(), asked.path.as_str()) {
            (_, path) if path.contains("_all_dbs") => (200, json!(["account%2Fa", there, "system_config"])),
            ("PUT", _) => (201, json!({"ok": true, "id": "x", "rev": "1-a"})),
            (_, path) if path.contains(&key) => (200, document.clone()),
            _ => (200, json!({"db_name": there, "doc_count": 1, "sizes": {"active": 5}})),
        })
        .await;
        let hold = Hold {
            store: Arc::new(couch::Databases::new(couch)),
            max_bytes: 20_500,
            patience: PATIENCE,
            room: Arc::default(),
        };
        let puts = (0..20).map(|_| hold.put(&of, now, &audio, &spooled.file));
        let held = futures_util::future::join_all(puts).await;
        assert!(held.iter().all(Result::is_ok), "{held:?}");
        let full = hold.put(&of, now, &audio, &spooled.file).await.unwrap_err();
        assert_eq!(
            full.to_string(),
            "the hold is full: 20005 of 20500 bytes, and 1000 more do not fit"
        );
        let log = log.lock().unwrap();
        let lists = log.iter().filter(|asked| asked.path.contains("_all_dbs")).count();
        assert_eq!(
            (lists, log.iter().filter(|asked| asked.method == "PUT").count()),
            (1, 20)
        );
        assert!(log.iter().any(|asked| asked.path.contains(&day)));
    }

    /// The second try finds the document of the first. The node that took the first can be the only one.
    #[tokio::test]
    async fn a_hold_on_a_server_that_hides_its_nodes_has_audio_only_after_a_201() {
        let (of, now, audio, spooled) = to_be_held();
        let stub = json!({"audio": {"length": audio.size, "digest": audio.digests.couch()}});
        let document = json!({"_id": "x", "_rev": "1-a", "_attachments": stub});
        for (again, is_held) in [(202, false), (201, true)] {
            let (there, tries) = (document.clone(), std::sync::atomic::AtomicUsize::new(0));
            let (couch, _) = testing::couch(move |asked| match asked.method.as_str() {
                _ if asked.path.contains("_membership") => (
                    401,
                    json!({"error": "unauthorized", "reason": "You are not a server admin."}),
                ),
                _ if asked.path.contains("_all_dbs") => (200, json!([])),
                "PUT" if asked.body.starts_with('{') => (again, json!({"ok": true, "id": "x", "rev": "2-b"})),
                "PUT" => match tries.fetch_add(1, std::sync::atomic::Ordering::AcqRel) {
                    0 => (202, json!({"ok": true, "id": "x", "rev": "1-a"})),
                    _ => (409, json!({"error": "conflict", "reason": "Document update conflict."})),
                },
                _ => (200, there.clone()),
            })
            .await;
            let hold = Hold {
                store: Arc::new(couch::Databases::new(couch)),
                max_bytes: 20_500,
                patience: PATIENCE,
                room: Arc::default(),
            };
            let first = hold.put(&of, now, &audio, &spooled.file).await;
            assert!(matches!(first, Err(HoldError::FewCopies)), "{first:?}");
            let second = hold.put(&of, now, &audio, &spooled.file).await;
            assert_eq!(second.is_ok(), is_held, "{again} {second:?}");
        }
    }

    struct Spooled {
        file: SpoolFile,
        dir: std::path::PathBuf,
    }

    impl Drop for Spooled {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    /// A recording with a file of a thousand bytes.
    fn to_be_held() -> (Address, Moment, Audio, Spooled) {
        let dir = std::env::temp_dir().join(format!("kz-record-call-{}", uuid::Uuid::new_v4().simple()));
        let (mut open, file) = Spool::open(&dir, 0).unwrap().create().unwrap();
        open.write_all(&[b'x'; 1000]).unwrap();
        let mut hasher = Hasher::default();
        hasher.update(&[b'x'; 1000]);
        let audio = Audio {
            size: 1000,
            digests: hasher.finish(),
            duration_ms: None,
            findings: Vec::new(),
            as_written: None,
        };
        let now = Moment::from_unix_seconds(1_795_386_262);
        let of = Address {
            month: now.month(),
            call_id: "call".into(),
            key: Key::of("call", "action"),
        };
        (of, now, audio, Spooled { file, dir })
    }
}
