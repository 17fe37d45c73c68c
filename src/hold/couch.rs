//! The hold in CouchDB: one database per day, with one document and one attachment per recording. Audio is never in the ledger: a bulk
//! update without an attachment's stub deletes the attachment.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};

use crate::couch::{Attachment, ByteStream, Couch, CouchError};
use crate::entry::fact::Holding;
use crate::kazoo::time::{Moment, Month};
use crate::ledger::Address;

use super::{HoldError, Item, Mark, NAMED_BY, Page, Store};

/// Prefix of the hold's databases. The day follows.
const PREFIX: &str = "kz_record_call_hold-";

/// The attachment's name in each document.
const AUDIO: &str = "audio";

/// A type that CouchDB stores unchanged. CouchDB compresses some types, which would change the digest.
const CONTENT_TYPE: &str = "application/octet-stream";

/// A day's database is dropped when the day has been over for this long,
const LONG_OVER: Duration = Duration::from_secs(2 * 86_400);
/// and when it has been empty for this long.
const EMPTY_FOR: Duration = Duration::from_secs(5 * 3600);

/// The databases of the hold. Touches databases with the hold's prefix, and those that a holding names.
pub struct Databases {
    couch: Couch,
    /// Days with an empty database, and since when it is known to be empty.
    empty: Mutex<HashMap<String, Moment>>,
    /// One task at a time creates a database.
    creating: tokio::sync::Mutex<()>,
}

impl Databases {
    pub fn new(couch: Couch) -> Self {
        Self {
            couch,
            empty: Mutex::default(),
            creating: tokio::sync::Mutex::default(),
        }
    }

    async fn store(&self, item: &Item<'_>) -> Result<Holding, HoldError> {
        let (key, digests) = (item.of.key, &item.audio.digests);
        let day = format!("{PREFIX}{}", item.now.day());
        let name = format!("{key}-{}", digests.sha256.get(..NAMED_BY).unwrap_or_default());
        let holding = item.holding(day, name);
        let (day, name) = (&holding.place, &holding.name);
        let mut is_replaced = false;
        for _ in 0..3 {
            let attachment = Attachment {
                name: AUDIO,
                content_type: CONTENT_TYPE,
                length: item.audio.size,
                digest: digests.couch().unwrap_or_default(),
                body: item.open().await?,
            };
            let created = self.couch.create_with_attachment(day, name, document(item), attachment);
            match created.await {
                Ok(saved) if saved.below_quorum => return Err(HoldError::FewCopies),
                Ok(_) => break,
                // The name contains the content's digest, so a document of that name has the same content. How many nodes have it
                // is unknown.
                Err(CouchError::Conflict) => {
                    match self.check(&holding).await {
                        // A server took a copy, and damaged it. It would keep the audio out of the hold for good.
                        Err(HoldError::Corrupt) if !is_replaced => {
                            self.delete(day, name).await?;
                            is_replaced = true;
                            continue;
                        }
                        checked => checked?,
                    }
                    if !self.couch.keeps(day, name).await? {
                        return Err(HoldError::FewCopies);
                    }
                    break;
                }
                Err(CouchError::DatabaseMissing(_) | CouchError::NotFound) => {
                    let _one = self.creating.lock().await;
                    self.couch.create_database(day).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.check(&holding).await?;
        Ok(holding)
    }

    /// The stub must match what was sent.
    async fn check(&self, holding: &Holding) -> Result<(), HoldError> {
        let document = self
            .couch
            .get(&holding.place, &holding.name)
            .await?
            .ok_or(HoldError::Corrupt)?;
        let stub = document
            .get("_attachments")
            .and_then(|all| all.get(AUDIO))
            .ok_or(HoldError::Corrupt)?;
        let same = stub.get("length").and_then(Value::as_u64) == Some(holding.size)
            && stub.get("digest").and_then(Value::as_str) == holding.digests.couch().as_deref();
        same.then_some(()).ok_or(HoldError::Corrupt)
    }

    async fn delete(&self, place: &str, name: &str) -> Result<(), HoldError> {
        let found = match self.couch.get(place, name).await {
            // The day's database was dropped.
            Err(CouchError::DatabaseMissing(_)) => None,
            found => found?,
        };
        if let Some(document) = found {
            let rev = document.get("_rev").and_then(Value::as_str).unwrap_or_default();
            self.couch.delete(place, name, rev).await?;
        }
        Ok(())
    }

    async fn page(&self, now: Moment, after: Option<Mark>) -> Result<Page, HoldError> {
        let today = format!("{PREFIX}{}", now.day());
        let mut days = self.couch.databases(PREFIX).await?;
        days.retain(|day| *day < today && after.as_ref().is_none_or(|(since, _)| day >= since));
        days.sort_unstable();
        let Some(day) = days.first().cloned() else {
            return Ok(Page::default());
        };
        let name = after.filter(|(since, _)| *since == day).and_then(|(_, name)| name);
        let page = self.couch.id_page(&day, ("0", name.as_deref()), "g").await;
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
            let text = |key: &str| document.get(key).and_then(Value::as_str);
            let address = Address {
                month: Month::of_id(text("month")?)?,
                call_id: text("call_id")?.to_owned(),
                key: text("key")?.parse().ok()?,
            };
            Some((address, day.clone(), text("_id")?.to_owned()))
        });
        Ok((older.collect(), next))
    }

    async fn create_next(&self, now: Moment, next: Moment) -> Result<(), HoldError> {
        let (today, next) = [now, next].map(|day| format!("{PREFIX}{}", day.day())).into();
        if today != next && self.couch.databases(&today).await?.contains(&today) {
            let _one = self.creating.lock().await;
            self.couch.create_database(&next).await?;
        }
        Ok(())
    }

    async fn drop_empty(&self, now: Moment) -> Result<(), HoldError> {
        let long_over = format!("{PREFIX}{}", now.minus(LONG_OVER).day());
        for name in self.couch.databases(PREFIX).await? {
            let info = self.couch.database_info(&name).await?;
            let is_empty = name < long_over && info.get("doc_count").and_then(Value::as_u64) == Some(0);
            let long = is_empty_for_long(&mut self.empty(), &name, is_empty, now);
            if long {
                self.couch.drop_database(&name).await?;
            }
        }
        Ok(())
    }

    fn empty(&self) -> MutexGuard<'_, HashMap<String, Moment>> {
        self.empty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn measure(&self) -> Result<u64, HoldError> {
        let (mut bytes, mut failed, mut read) = (0u64, None, false);
        for name in self.couch.databases(PREFIX).await? {
            // One day's database that cannot be read, or was dropped since, must not close the hold.
            let info = match self.couch.database_info(&name).await {
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
                    .and_then(Value::as_u64)
            };
            bytes += size("active")
                .or_else(|| size("external"))
                .or_else(|| size("file"))
                .unwrap_or(0);
        }
        match failed {
            Some(error) if !read => Err(error.into()),
            _ => Ok(bytes),
        }
    }
}

impl Store for Databases {
    fn put<'a>(&'a self, item: &'a Item<'a>) -> BoxFuture<'a, Result<Holding, HoldError>> {
        Box::pin(self.store(item))
    }

    fn open<'a>(&'a self, holding: &'a Holding) -> BoxFuture<'a, Result<ByteStream, HoldError>> {
        Box::pin(async move { Ok(self.couch.get_attachment(&holding.place, &holding.name, AUDIO).await?) })
    }

    fn remove<'a>(&'a self, place: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), HoldError>> {
        Box::pin(self.delete(place, name))
    }

    fn older(&self, now: Moment, after: Option<Mark>) -> BoxFuture<'_, Result<Page, HoldError>> {
        Box::pin(self.page(now, after))
    }

    fn prepare(&self, now: Moment, next: Moment) -> BoxFuture<'_, Result<(), HoldError>> {
        Box::pin(self.create_next(now, next))
    }

    fn tidy(&self, now: Moment) -> BoxFuture<'_, Result<(), HoldError>> {
        Box::pin(self.drop_empty(now))
    }

    fn bytes(&self) -> BoxFuture<'_, Result<u64, HoldError>> {
        Box::pin(self.measure())
    }
}

/// The document of held audio. It identifies the recording, so that the worker can find held audio that is no longer needed.
fn document(item: &Item<'_>) -> Map<String, Value> {
    let mut document = Map::new();
    document.insert("held_at".into(), json!(item.now.rfc3339()));
    document.insert("call_id".into(), json!(item.of.call_id));
    document.insert("month".into(), json!(item.of.month.to_string()));
    document.insert("key".into(), json!(item.of.key));
    document
}

/// Whether a day's database has been empty for long enough. A node that returns counts only its own documents, until it has received those
/// of the other nodes.
fn is_empty_for_long(empty: &mut HashMap<String, Moment>, day: &str, is_empty: bool, now: Moment) -> bool {
    if !is_empty {
        empty.remove(day);
        return false;
    }
    let since = *empty.entry(day.to_owned()).or_insert(now);
    now.since(since) >= EMPTY_FOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_dropped_only_when_it_was_empty_at_an_earlier_look_too() {
        let mut empty = HashMap::new();
        let mut is_empty_for_long =
            |is_empty: bool, at: Moment| super::is_empty_for_long(&mut empty, "d", is_empty, at);
        let at = |hours: u64| Moment::from_unix_seconds(1_795_386_262).plus(Duration::from_secs(hours * 3600));
        assert!(!is_empty_for_long(true, at(0)));
        assert!(!is_empty_for_long(true, at(4)));
        assert!(!is_empty_for_long(false, at(5)), "it only looked so");
        assert!(!is_empty_for_long(true, at(6)));
        assert!(is_empty_for_long(true, at(12)));
    }
}
