//! The ledger's databases: their names, views, and reads.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::couch::{CouchError, Documents, Pages, Range, Row, ViewRow};
use crate::faults::{Fault, is_back};
use crate::kazoo::time::{Clock, Moment, Month};
use crate::lifecycle::Policy;

use super::branches::{Seen, revision};
use super::database;
use super::due::{Timers, timers};
use super::months::Known;
use super::readable::Readable;
use super::record::{Address, Record, call_prefix};
use super::retention::Done;
use super::soon::Soon;
use super::views::{DUE, FETCH, FIELDS, INTERACTION, NATIVE, OPEN, View, designs};
use super::webhooks::{self, WEBHOOKS};

pub struct Store {
    pub(super) couch: Arc<dyn Documents>,
    /// Computes timers for entries that are merged here. No worker would resume an entry without a timer.
    pub(super) policy: Policy,
    pub(super) clock: Clock,
    /// Months whose database exists, with its views.
    ready: Mutex<BTreeSet<Month>>,
    pub(super) known: Known,
    pub(super) done: Done,
    pub(super) branches: Seen,
    /// Whether the server has indexes over fields.
    native: OnceCell<bool>,
    /// Which months have the index over fields, and when that was read.
    fields: Mutex<HashMap<Month, (bool, Instant)>>,
    pub(super) soon: Soon,
}

/// How long a month counts as one without the index over fields. Another worker may just be making the month.
const ABSENT_FOR: Duration = Duration::from_secs(600);

/// Entries per request to the view of due timers, and requests per month in a search for wanted entries.
const PAGE: usize = 128;
const MOST_PAGES: usize = 16;

/// What an entry's id holds.
pub enum Found {
    Record(Box<Record>),
    /// Not an entry that this version can read.
    Unreadable,
}

impl Found {
    pub(super) fn record(self) -> Option<Record> {
        match self {
            Self::Record(record) => Some(*record),
            Self::Unreadable => None,
        }
    }
}

impl Store {
    pub fn new(couch: Arc<dyn Documents>, clock: Clock, policy: Policy) -> Self {
        Self {
            couch,
            policy,
            clock,
            ready: Mutex::default(),
            known: Known::default(),
            done: Done::default(),
            branches: Seen::default(),
            native: OnceCell::new(),
            fields: Mutex::default(),
            soon: Soon::default(),
        }
    }

    /// Makes sure that a month's database and its views exist.
    pub async fn ensure(&self, month: Month) -> Result<(), CouchError> {
        if self.ready.lock().is_ok_and(|ready| ready.contains(&month)) {
            return Ok(());
        }
        let name = database(month);
        // A node that has not yet received the list of databases from the other nodes would create a second one of this name.
        self.couch.knows_databases().await?;
        let is_new = self.couch.create_database(&name).await?;
        let hooked = (!self.policy.hooks.endpoints.is_empty()).then(|| (WEBHOOKS, webhooks::views()));
        for (design, views) in designs().into_iter().chain(hooked) {
            let id = format!("_design/{design}");
            // CouchDB would otherwise update each index in the background after each write. An index that is updated when it is queried
            // takes only the last of the revisions that an entry had since the last query.
            let wanted = json!({"language": "javascript", "views": views, "autoupdate": false});
            match self.couch.put_design(&name, design, &wanted).await {
                Ok(()) => {}
                Err(CouchError::Conflict) => self.renew(&name, design, &id, wanted).await?,
                Err(error) => return Err(error),
            }
        }
        // A month that an earlier version made keeps its views in JavaScript: to build an index of many entries takes longer than a query may.
        if is_new && self.has_indexes().await? {
            match self.couch.put_text(&name, NATIVE, FIELDS).await {
                // The name stands for what it is.
                Ok(()) | Err(CouchError::Conflict) => {}
                Err(error) => return Err(error),
            }
            self.lock_fields().insert(month, (true, Instant::now()));
        }
        if let Ok(mut ready) = self.ready.lock() {
            ready.insert(month);
        }
        self.known.add(month);
        Ok(())
    }

    /// Replaces views that an older version wrote.
    async fn renew(&self, name: &str, design: &str, id: &str, mut wanted: Value) -> Result<(), CouchError> {
        let Some(present) = self
            .couch
            .get_many(name, &[id.to_owned()])
            .await?
            .into_iter()
            .flatten()
            .next()
        else {
            return Ok(());
        };
        // A worker of an older version replaces a design document only if its views differ.
        if ["views", "autoupdate"]
            .iter()
            .all(|field| present.get(field) == wanted.get(field))
        {
            return Ok(());
        }
        if let Some(map) = wanted.as_object_mut() {
            map.insert("_rev".into(), present.get("_rev").cloned().unwrap_or(Value::Null));
        }
        match self.couch.put_design(name, design, &wanted).await {
            // Another worker was first.
            Err(CouchError::Conflict) => Ok(()),
            other => other,
        }
    }

    /// Forgets that a month's database exists, because an operator or another worker dropped it.
    pub fn forget(&self, month: Month) {
        if let Ok(mut ready) = self.ready.lock() {
            ready.remove(&month);
        }
        self.lock_fields().remove(&month);
        self.known.forget();
    }

    pub async fn load(&self, address: &Address) -> Result<Option<Record>, CouchError> {
        Ok(self
            .load_many(address.month, &[address.id()])
            .await?
            .into_values()
            .find_map(Found::record))
    }

    /// The entries with these document ids. Missing documents are left out. Conflicting revisions are merged, and the merged revisions are
    /// deleted.
    pub async fn load_many(&self, month: Month, ids: &[String]) -> Result<HashMap<String, Found>, CouchError> {
        let name = database(month);
        let documents = match self.couch.get_many(&name, ids).await {
            Ok(found) => found,
            Err(error) => {
                self.missing(error).await?;
                self.forget(month);
                return Ok(HashMap::new());
            }
        };
        let mut found = HashMap::new();
        for (id, document) in ids.iter().zip(documents) {
            let Some(document) = document else { continue };
            found.insert(id.clone(), self.whole(&name, id, &document).await?);
        }
        Ok(found)
    }

    /// A record, with all its conflicting versions merged into it.
    async fn whole(&self, name: &str, id: &str, document: &Value) -> Result<Found, CouchError> {
        let Some(mut record) = Record::read(document) else {
            return Ok(Found::Unreadable);
        };
        let losers = document.get("_conflicts").and_then(Value::as_array);
        let mut merged = Vec::new();
        for rev in losers.into_iter().flatten().filter_map(Value::as_str) {
            let loser = revision(self.couch.as_ref(), name, id, rev).await?;
            // The revision is missing while copies differ, or is unreadable, or damaged. Its facts are unknown here, so it must stay.
            let Some(other) = loser.as_ref().and_then(Record::read) else {
                warn!(
                    event = "ledger_conflict_unread",
                    id, rev, "conflicting revision unreadable, left in place"
                );
                if is_back(Fault::UnreadDeleted) {
                    merged.push(rev);
                }
                continue;
            };
            record = record.merge(other);
            merged.push(rev);
        }
        if !merged.is_empty() {
            self.replace(name, id, &mut record, &merged).await?;
        }
        Ok(Found::Record(Box::new(record)))
    }

    /// Writes the union of conflicting revisions, and then deletes the merged revisions. A crash in between loses nothing. Another worker
    /// may do the same and be first. Then this call changes nothing, and the next read merges what is left.
    async fn replace(&self, name: &str, id: &str, record: &mut Record, merged: &[&str]) -> Result<(), CouchError> {
        let timers = timers(&record.entry, self.clock.now(), &self.policy);
        let timers = if is_back(Fault::MergeWithoutDue) {
            Timers::default()
        } else {
            timers
        };
        let document = record.document(id, timers);
        self.soon.note(&document);
        let rows = self.couch.bulk_docs(name, &[document]).await?;
        let [Row::Saved { rev, below_quorum }] = &rows[..] else {
            return Ok(());
        };
        record.rev = Some(rev.clone());
        if *below_quorum {
            // Only one node has the union. The merged revisions are its other copies.
            return Ok(());
        }
        for rev in merged {
            match self.couch.delete(name, id, rev).await {
                // The revision is no leaf any more, because another worker deleted it.
                Ok(()) | Err(CouchError::Conflict) => {}
                Err(error) => {
                    debug!(event = "ledger_conflict_not_deleted", id, rev, %error, "merged revision not deleted")
                }
            }
        }
        Ok(())
    }

    pub async fn of_call(&self, months: &[Month], call_id: &str) -> Result<Vec<Record>, CouchError> {
        let prefix = call_prefix(call_id);
        let mut records = Vec::new();
        for month in months {
            match self
                .couch
                .id_range(&database(*month), &prefix, &format!("{prefix}g"))
                .await
            {
                Ok(found) => records.extend(found.iter().filter_map(Record::read)),
                Err(error) => self.missing(error).await?,
            }
        }
        // Two call ids could have the same shortened form.
        records.retain(|record| record.entry.call_id == call_id);
        Ok(records)
    }

    pub async fn of_fetch(&self, months: &[Month], fetch_id: &str) -> Result<Vec<Record>, CouchError> {
        self.of_key(months, FETCH, fetch_id).await
    }

    pub async fn of_interaction(&self, months: &[Month], interaction: &str) -> Result<Vec<Record>, CouchError> {
        self.of_key(months, INTERACTION, interaction).await
    }

    /// Updates the view of `of_interaction`.
    pub async fn update_views(&self, months: &[Month]) {
        for month in months {
            // The index over fields is updated with the view of due timers. An error is seen by the next query too, which reports it.
            if matches!(self.is_native(*month).await, Ok(false)) {
                let _ = self.read_view(*month, (INTERACTION, false), &[("limit", "0")]).await;
            }
        }
    }

    async fn of_key(&self, months: &[Month], view: View, key: &str) -> Result<Vec<Record>, CouchError> {
        let mut records = Vec::new();
        for month in months {
            let native = self.is_native(*month).await?;
            let key = View::key(native, key).to_string();
            let query = [("key", key.as_str()), ("include_docs", "true")];
            let rows = self.read_view(*month, (view, native), &query).await?;
            records.extend(rows.iter().filter_map(|row| row.doc.as_ref()).filter_map(Record::read));
        }
        Ok(records)
    }

    /// Entries whose timer is due, the earliest first, at most `limit` per month. Unreadable entries are skipped. The worker can do nothing
    /// about them here, and they must not block other entries.
    pub async fn due(&self, zone: &str, now: Moment, limit: usize) -> Result<Vec<(Address, Record)>, CouchError> {
        let range = [json!([zone, 0]), json!([zone, now])];
        let mut months = Readable::default();
        for month in self.months().await? {
            months.take(month, self.in_range(month, &range, limit, |_| true).await);
        }
        months.all()
    }

    /// Entries that are leased by `worker`, at most `limit` per month. An entry's lease delays its timer, which the view lists.
    pub async fn leased_by(
        &self,
        worker: &str,
        zone: &str,
        until: Moment,
        limit: usize,
    ) -> Result<Vec<(Address, Record)>, CouchError> {
        let range = [json!([zone, 0]), json!([zone, until])];
        let is_its = |record: &Record| record.lease.as_ref().is_some_and(|lease| lease.by == worker);
        let mut months = Readable::default();
        for month in self.months().await? {
            months.take(month, self.in_range(month, &range, limit, is_its).await);
        }
        months.all()
    }

    async fn in_range(
        &self,
        month: Month,
        [from, to]: &[Value; 2],
        limit: usize,
        wanted: impl Fn(&Record) -> bool,
    ) -> Result<Vec<(Address, Record)>, CouchError> {
        let (from, to, page) = (from.to_string(), to.to_string(), PAGE.max(limit).to_string());
        let native = self.is_native(month).await?;
        let mut found = Vec::new();
        for nth in 0..MOST_PAGES {
            let skip = (nth * PAGE.max(limit)).to_string();
            let query = [
                ("startkey", from.as_str()),
                ("endkey", &to),
                ("limit", &page),
                ("skip", &skip),
                ("include_docs", "true"),
            ];
            let rows = self.read_view(month, (DUE, native), &query).await?;
            let is_last = rows.len() < PAGE.max(limit);
            let documents = rows.iter().filter_map(|row| row.doc.as_ref());
            let read = documents.filter_map(|doc| Some((address(month, doc)?, Record::read(doc)?)));
            found.extend(read.filter(|(_, record)| wanted(record)));
            if is_last || found.len() >= limit {
                break;
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    pub async fn open(&self, zone: &str) -> Result<Vec<Address>, CouchError> {
        let mut months = Readable::default();
        for month in self.months().await? {
            months.take(month, self.open_in(zone, month).await);
        }
        months.all()
    }

    async fn open_in(&self, zone: &str, month: Month) -> Result<Vec<Address>, CouchError> {
        let native = self.is_native(month).await?;
        let pages = Pages::of(Range {
            design: OPEN.design(native),
            view: OPEN.name,
            from: View::key(native, zone),
            to: View::key(native, zone),
            descending: false,
        });
        let rows = match pages.all(&*self.couch, &database(month)).await {
            Ok(rows) => rows,
            Err(error) => self.missing(error).await.map(|()| Vec::new())?,
        };
        self.addresses(month, rows).await
    }

    /// Rows of a view that workers read continuously. `query` is in the form that the month has.
    async fn read_view(
        &self,
        month: Month,
        (view, native): (View, bool),
        query: &[(&str, &str)],
    ) -> Result<Vec<ViewRow>, CouchError> {
        let database = database(month);
        match self.couch.view(&database, view.design(native), view.name, query).await {
            Ok(rows) => Ok(rows),
            // The index was removed. The next query reads which form there is.
            Err(CouchError::NotFound) if native => {
                self.lock_fields().remove(&month);
                Err(CouchError::NoAnswer("the month has no index any more".into()))
            }
            Err(error) => self.missing(error).await.map(|()| Vec::new()),
        }
    }

    /// Whether the month has the index over fields.
    async fn is_native(&self, month: Month) -> Result<bool, CouchError> {
        if !self.has_indexes().await? {
            return Ok(false);
        }
        let known = self.lock_fields().get(&month).copied();
        if let Some((native, read)) = known
            && (native || read.elapsed() < ABSENT_FOR)
        {
            return Ok(native);
        }
        let id = [format!("_design/{NATIVE}")];
        let native = match self.couch.get_many(&database(month), &id).await {
            Ok(found) => found.into_iter().flatten().next().is_some(),
            Err(error) => return self.missing(error).await.map(|()| false),
        };
        self.lock_fields().insert(month, (native, Instant::now()));
        Ok(native)
    }

    fn lock_fields(&self) -> MutexGuard<'_, HashMap<Month, (bool, Instant)>> {
        self.fields.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the server has indexes over fields. It is asked once.
    async fn has_indexes(&self) -> Result<bool, CouchError> {
        self.native
            .get_or_try_init(|| self.couch.indexes_fields())
            .await
            .copied()
    }

    pub(super) async fn rows(
        &self,
        month: Month,
        design: &str,
        view: &str,
        query: &[(&str, &str)],
    ) -> Result<Vec<ViewRow>, CouchError> {
        match self.couch.view(&database(month), design, view, query).await {
            Ok(rows) => Ok(rows),
            // A database that another worker is creating has no views yet.
            Err(error) => self.missing(error).await.map(|()| Vec::new()),
        }
    }
}

pub(super) fn address(month: Month, document: &Value) -> Option<Address> {
    let text = |key: &str| document.get(key).and_then(Value::as_str);
    Some(Address {
        month,
        call_id: text("call_id")?.to_owned(),
        key: text("key")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests;
