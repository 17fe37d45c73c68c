//! The hold stores audio while its destination is unavailable. It uses one database per day, with one document and one attachment per
//! recording, or a folder that all workers share. Audio is never in the ledger: a bulk update without an attachment's stub deletes the
//! attachment.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use secrecy::ExposeSecret as _;
use serde_json::json;
use thiserror::Error;
use tokio_util::io::ReaderStream;

use crate::config::{self, HoldKind};
use crate::couch::{Attachment, ByteStream, Couch, CouchError, Server};
use crate::entry::fact::Holding;
use crate::kazoo::time::{Moment, Month};
use crate::ledger::Address;
use crate::recording::audio::Audio;

use super::{DeliveryError, Source};

mod folder;

/// Prefix of the hold's databases. The day follows.
const PREFIX: &str = "kz_record_call_hold-";

/// The attachment's name in each document.
const AUDIO: &str = "audio";

/// A type that CouchDB stores unchanged. CouchDB compresses some types, which would change the digest.
const CONTENT_TYPE: &str = "application/octet-stream";

const CHUNK: usize = 256 << 10;

/// Why the hold failed.
#[derive(Debug, Error)]
pub enum HoldError {
    #[error("there is no hold")]
    None,
    #[error("the hold is full: {held} of {max} bytes, and {size} more do not fit")]
    Full { held: u64, max: u64, size: u64 },
    #[error(transparent)]
    Database(#[from] CouchError),
    #[error(transparent)]
    Source(#[from] DeliveryError),
    #[error("the hold's folder: {0}")]
    Folder(#[from] std::io::Error),
    #[error("what is held is not what was put in")]
    Corrupt,
    /// A 202: the only copy may be on a node that fails later.
    #[error("the hold's database has fewer copies than its quorum")]
    FewCopies,
}

/// One held recording: its address, its place, its name.
type Old = (Address, String, String);

/// Where the next page starts: a place, and the last name of the page before.
type Mark = (String, Option<String>);

impl HoldError {
    /// The kinds of refusals, for the metric.
    pub const REASONS: [&str; 6] = ["full", "none", "database", "folder", "source", "corrupt"];

    pub const fn reason(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Full { .. } => "full",
            Self::Database(_) | Self::FewCopies => "database",
            Self::Source(_) => "source",
            Self::Folder(_) => "folder",
            Self::Corrupt => "corrupt",
        }
    }
}

/// A day's database is dropped when the day has been over for this long,
const LONG_OVER: Duration = Duration::from_secs(2 * 86_400);
/// and when it has been empty for this long.
const EMPTY_FOR: Duration = Duration::from_secs(5 * 3600);

/// The hold, in its configured place.
#[derive(Clone)]
pub struct Hold {
    place: Place,
    max_bytes: u64,
    /// Days with an empty database, and since when it is known to be empty.
    empty: Arc<Mutex<HashMap<String, Moment>>>,
    /// One task at a time creates a database.
    creating: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone)]
enum Place {
    None,
    Couch(Box<Couch>),
    Folder(PathBuf),
}

impl Hold {
    /// The configured hold. `cluster` is the database server, unless the configuration names another one.
    ///
    /// # Errors
    /// When the client of the other server cannot be built.
    pub fn new(config: &config::Hold, couchdb: &config::Couchdb, cluster: &Couch) -> Result<Self, CouchError> {
        let place = match (config.kind, &config.url) {
            (HoldKind::None, _) => Place::None,
            (HoldKind::Folder, _) => Place::Folder(config.folder.clone()),
            (HoldKind::Couchdb, None) => Place::Couch(Box::new(cluster.clone())),
            (HoldKind::Couchdb, Some(url)) => {
                let server = Server::parse(url.expose_secret(), 5984)
                    .map_err(|error| CouchError::NoAnswer(format!("hold.url: {error}")))?;
                Place::Couch(Box::new(Couch::elsewhere(&server, couchdb)?))
            }
        };
        Ok(Self {
            place,
            max_bytes: config.max_bytes,
            empty: Arc::default(),
            creating: Arc::default(),
        })
    }

    pub fn is_there(&self) -> bool {
        !matches!(self.place, Place::None)
    }

    /// The most bytes that the hold accepts.
    pub const fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Stores audio in the hold. Storing it twice gives one copy. Other audio of the same recording is stored beside it.
    ///
    /// # Errors
    /// When the audio is not completely stored.
    pub async fn put(&self, of: &Address, now: Moment, audio: &Audio, source: &Source) -> Result<Holding, HoldError> {
        let key = of.key;
        let held = self.bytes().await?;
        if held.saturating_add(audio.size) > self.max_bytes {
            return Err(HoldError::Full {
                held,
                max: self.max_bytes,
                size: audio.size,
            });
        }
        let holding = |place: String, name: String| Holding {
            place,
            name,
            size: audio.size,
            digests: audio.digests.clone(),
        };
        match &self.place {
            Place::None => Err(HoldError::None),
            Place::Couch(couch) => {
                let day = format!("{PREFIX}{}", now.day());
                let name = format!("{key}-{}", &audio.digests.sha256.get(..16).unwrap_or_default());
                let digest = audio.digests.couch().unwrap_or_default();
                for _ in 0..2 {
                    let attachment = Attachment {
                        name: AUDIO,
                        content_type: CONTENT_TYPE,
                        length: audio.size,
                        digest: digest.clone(),
                        body: source.open().await?,
                    };
                    let mut document = serde_json::Map::new();
                    document.insert("held_at".into(), json!(now.rfc3339()));
                    // Identifies the recording, so that the worker can find held audio that is no longer needed.
                    document.insert("call_id".into(), json!(of.call_id));
                    document.insert("month".into(), json!(of.month.to_string()));
                    document.insert("key".into(), json!(key));
                    match couch.create_with_attachment(&day, &name, document, attachment).await {
                        Ok(saved) if saved.below_quorum => return Err(HoldError::FewCopies),
                        Ok(_) => break,
                        // The name contains the content's digest, so a document of that name has the same content. How many nodes have it
                        // is unknown.
                        Err(CouchError::Conflict) => {
                            self.check(couch, &holding(day.clone(), name.clone())).await?;
                            if !couch.has_quorum(&day, &name).await? {
                                return Err(HoldError::FewCopies);
                            }
                            break;
                        }
                        Err(CouchError::DatabaseMissing(_) | CouchError::NotFound) => {
                            let _one = self.creating.lock().await;
                            couch.create_database(&day).await?;
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                let holding = holding(day, name);
                self.check(couch, &holding).await?;
                Ok(holding)
            }
            Place::Folder(folder) => {
                let name = folder::name(of, &audio.digests.sha256);
                let holding = holding(folder.display().to_string(), name);
                folder::put(folder, of, now, source, &holding).await?;
                Ok(holding)
            }
        }
    }

    /// The stub must match what was sent.
    async fn check(&self, couch: &Couch, holding: &Holding) -> Result<(), HoldError> {
        let document = couch
            .get(&holding.place, &holding.name)
            .await?
            .ok_or(HoldError::Corrupt)?;
        let stub = document
            .get("_attachments")
            .and_then(|all| all.get(AUDIO))
            .ok_or(HoldError::Corrupt)?;
        let same = stub.get("length").and_then(serde_json::Value::as_u64) == Some(holding.size)
            && stub.get("digest").and_then(serde_json::Value::as_str) == holding.digests.couch().as_deref();
        same.then_some(()).ok_or(HoldError::Corrupt)
    }

    /// The audio from its beginning.
    ///
    /// # Errors
    /// When the audio is unavailable.
    pub async fn open(&self, holding: &Holding) -> Result<ByteStream, HoldError> {
        match &self.place {
            Place::None => Err(HoldError::None),
            Place::Couch(couch) => Ok(couch.get_attachment(&holding.place, &holding.name, AUDIO).await?),
            Place::Folder(folder) => {
                let file = tokio::fs::File::open(folder::file(folder, &holding.name)?).await?;
                Ok(ReaderStream::with_capacity(file, CHUNK).boxed())
            }
        }
    }

    /// Removes the audio from the hold. Missing audio is no error.
    ///
    /// # Errors
    /// When the audio may still exist.
    pub async fn remove(&self, holding: &Holding) -> Result<(), HoldError> {
        match &self.place {
            Place::None => Ok(()),
            Place::Couch(_) => self.remove_named(&holding.place, &holding.name).await,
            Place::Folder(folder) => folder::remove(folder, &holding.name).await,
        }
    }

    /// Creates the next day's database ahead, if the hold is in use. At midnight many tasks and workers would create it at the same moment,
    /// and can make two on different nodes of the cluster: audio in the one is lost when the nodes agree on the other.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn prepare(&self, now: Moment, next: Moment) -> Result<(), HoldError> {
        let Place::Couch(couch) = &self.place else {
            return Ok(());
        };
        let (today, next) = [now, next].map(|day| format!("{PREFIX}{}", day.day())).into();
        if today != next && couch.databases(&today).await?.contains(&today) {
            let _one = self.creating.lock().await;
            couch.create_database(&next).await?;
        }
        Ok(())
    }

    /// Drops the empty databases of past days, which frees the disk. In a folder, removes partial files of workers that were killed.
    ///
    /// # Errors
    /// When the database, or the folder, does not answer.
    pub async fn drop_empty_days(&self, now: Moment) -> Result<(), HoldError> {
        let couch = match &self.place {
            Place::None => return Ok(()),
            Place::Folder(folder) => return folder::tidy(folder).await,
            Place::Couch(couch) => couch,
        };
        let long_over = format!("{PREFIX}{}", now.minus(LONG_OVER).day());
        for name in couch.databases(PREFIX).await? {
            let info = couch.database_info(&name).await?;
            let is_empty = name < long_over && info.get("doc_count").and_then(serde_json::Value::as_u64) == Some(0);
            if self.is_empty_for_long(&name, is_empty, now) {
                couch.drop_database(&name).await?;
            }
        }
        Ok(())
    }

    /// Whether a day's database has been empty for long enough. A node that returns counts only its own documents, until it has received
    /// those of the other nodes.
    fn is_empty_for_long(&self, day: &str, is_empty: bool, now: Moment) -> bool {
        let mut empty = self.empty.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_empty {
            empty.remove(day);
            return false;
        }
        let since = *empty.entry(day.to_owned()).or_insert(now);
        now.since(since) >= EMPTY_FOR
    }

    /// One page of the audio held since before today, with its recordings. Also where the next page starts, if there is one.
    ///
    /// # Errors
    /// When the database, or the folder, does not answer.
    pub async fn older(&self, now: Moment, after: Option<Mark>) -> Result<(Vec<Old>, Option<Mark>), HoldError> {
        let couch = match &self.place {
            Place::None => return Ok((Vec::new(), None)),
            Place::Folder(folder) => return Ok((folder::older(folder, &now.day().to_string()).await?, None)),
            Place::Couch(couch) => couch,
        };
        let today = format!("{PREFIX}{}", now.day());
        let mut days = couch.databases(PREFIX).await?;
        days.retain(|day| *day < today && after.as_ref().is_none_or(|(since, _)| day >= since));
        days.sort_unstable();
        let Some(day) = days.first().cloned() else {
            return Ok((Vec::new(), None));
        };
        let name = after.filter(|(since, _)| *since == day).and_then(|(_, name)| name);
        let page = couch.id_page(&day, ("0", name.as_deref()), "g").await;
        let (documents, more) = page.unwrap_or_else(|error| {
            // One day's database that cannot be read must not keep the later days from being tidied.
            tracing::debug!(event = "hold_day_unreadable", day, %error, "day of the hold unreadable");
            (Vec::new(), None)
        });
        let next = match (more, days.into_iter().nth(1)) {
            (Some(name), _) => Some((day.clone(), Some(name))),
            (None, next) => next.map(|day| (day, None)),
        };
        let older = documents.iter().filter_map(|document| {
            let text = |key: &str| document.get(key).and_then(serde_json::Value::as_str);
            let address = Address {
                month: Month::of_id(text("month")?)?,
                call_id: text("call_id")?.to_owned(),
                key: text("key")?.parse().ok()?,
            };
            Some((address, day.clone(), text("_id")?.to_owned()))
        });
        Ok((older.collect(), next))
    }

    /// Removes audio by its place and name.
    ///
    /// # Errors
    /// As `remove`.
    pub async fn remove_named(&self, place: &str, name: &str) -> Result<(), HoldError> {
        let couch = match &self.place {
            Place::None => return Ok(()),
            Place::Folder(folder) => return folder::remove(folder, name).await,
            Place::Couch(couch) => couch,
        };
        let found = match couch.get(place, name).await {
            // The day's database was dropped.
            Err(CouchError::DatabaseMissing(_)) => None,
            found => found?,
        };
        if let Some(document) = found {
            let rev = document
                .get("_rev")
                .and_then(serde_json::Value::as_str)
                .unwrap_or_default();
            couch.delete(place, name, rev).await?;
        }
        Ok(())
    }

    /// Bytes in the hold now.
    ///
    /// # Errors
    /// When the database, or the folder, does not answer.
    pub async fn bytes(&self) -> Result<u64, HoldError> {
        let mut bytes = 0u64;
        match &self.place {
            Place::None => {}
            Place::Couch(couch) => {
                let (mut failed, mut read) = (None, false);
                for name in couch.databases(PREFIX).await? {
                    // One day's database that cannot be read, or was dropped since, must not close the hold.
                    let info = match couch.database_info(&name).await {
                        Ok(info) => info,
                        Err(CouchError::DatabaseMissing(_)) => continue,
                        Err(error) => {
                            failed = Some(error);
                            continue;
                        }
                    };
                    read = true;
                    let size = |kind: &str| {
                        info.get("sizes")
                            .and_then(|sizes| sizes.get(kind))
                            .and_then(serde_json::Value::as_u64)
                    };
                    bytes += size("active")
                        .or_else(|| size("external"))
                        .or_else(|| size("file"))
                        .unwrap_or(0);
                }
                if let (Some(error), false) = (failed, read) {
                    return Err(error.into());
                }
            }
            Place::Folder(folder) => bytes = folder::bytes(folder).await?,
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_dropped_only_when_it_was_empty_at_an_earlier_look_too() {
        let hold = Hold {
            place: Place::None,
            max_bytes: 0,
            empty: Arc::default(),
            creating: Arc::default(),
        };
        let at = |hours: u64| Moment::from_unix_seconds(1_795_386_262).plus(Duration::from_secs(hours * 3600));
        assert!(!hold.is_empty_for_long("d", true, at(0)));
        assert!(!hold.is_empty_for_long("d", true, at(4)));
        assert!(!hold.is_empty_for_long("d", false, at(5)), "it only looked so");
        assert!(!hold.is_empty_for_long("d", true, at(6)));
        assert!(hold.is_empty_for_long("d", true, at(12)));
    }
}
