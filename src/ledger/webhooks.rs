//! Which entries owe notices to endpoints of operators. The views are in a design document of their own, which exists only if the settings
//! have an endpoint.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::couch::CouchError;
use crate::kazoo::time::{Moment, Month};

use super::readable::Readable;
use super::record::{Address, Record};
use super::store::{Store, address};
use super::{Ledger, LedgerError, database};

/// The design document.
pub(super) const WEBHOOKS: &str = "kz_record_call_webhooks";
/// Which endpoints must get a notice, and when.
const DUE: &str = "due";
/// Notices that are owed and parked, counted.
const COUNTS: &str = "counts";

/// The views. `webhooks` and `webhooks_parked` are fields of the entry's document.
pub(super) fn views() -> Value {
    let due = "function(doc) { (doc.webhooks || []).forEach(function(one) { \
               emit([doc.zone || '', one.endpoint, one.due], null); }); }";
    let counts = "function(doc) { \
                  (doc.webhooks || []).forEach(function(one) { emit([doc.zone || '', one.endpoint, 'owed'], null); }); \
                  (doc.webhooks_parked || []).forEach(function(one) { emit([doc.zone || '', one, 'parked'], null); }); }";
    json!({DUE: {"map": due}, COUNTS: {"map": counts, "reduce": "_count"}})
}

/// The notices that an endpoint has not accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owing {
    pub owed: u64,
    pub parked: u64,
}

/// Entries that are read at once.
const BATCH: usize = 100;

impl Store {
    async fn webhooks_due(
        &self,
        (zone, endpoint): (&str, &str),
        now: Moment,
        limit: usize,
    ) -> Result<Vec<(Address, Record)>, CouchError> {
        let (from, to) = (
            json!([zone, endpoint, 0]).to_string(),
            json!([zone, endpoint, now]).to_string(),
        );
        let limit = limit.to_string();
        let query = [
            ("startkey", from.as_str()),
            ("endkey", &to),
            ("limit", &limit),
            ("include_docs", "true"),
        ];
        let mut months = Readable::default();
        for month in self.months().await? {
            let rows = self.rows(month, WEBHOOKS, DUE, &query).await;
            let read = |doc: &Value| Some((address(month, doc)?, Record::read(doc)?));
            let found = rows.map(|rows| rows.iter().filter_map(|row| read(row.doc.as_ref()?)).collect());
            months.take(month, found);
        }
        months.all()
    }

    /// Whether an entry of the month owes a notice to one of the endpoints in the settings.
    pub(super) async fn owes_webhooks(&self, month: Month) -> Result<bool, CouchError> {
        // Endpoints that the settings do not have any more get nothing, and keep no month.
        let is_known = |key: &Value| {
            let name = key.get(1).and_then(Value::as_str);
            self.policy
                .hooks
                .endpoints
                .iter()
                .any(|hook| Some(hook.name.as_str()) == name)
        };
        if self.policy.hooks.endpoints.is_empty() {
            return Ok(false);
        }
        let rows = self.rows(month, WEBHOOKS, DUE, &[]).await?;
        Ok(rows.iter().any(|row| is_known(&row.key)))
    }

    async fn webhook_counts(&self, zone: &str) -> Result<BTreeMap<String, Owing>, CouchError> {
        let (from, to) = (json!([zone]).to_string(), json!([zone, {}]).to_string());
        let query = [("startkey", from.as_str()), ("endkey", &to), ("group", "true")];
        let mut months = Readable::default();
        for month in self.months().await? {
            let rows = self.couch.reduced(&database(month), WEBHOOKS, COUNTS, &query).await;
            let rows = match rows {
                Err(error @ (CouchError::NotFound | CouchError::DatabaseMissing(_))) => {
                    self.missing(error).await.map(|()| Vec::new())
                }
                other => other,
            };
            months.take(month, rows);
        }
        let mut all: BTreeMap<String, Owing> = BTreeMap::new();
        for (key, count) in months.all()? {
            let text = |n: usize| key.get(n).and_then(Value::as_str);
            let (Some(endpoint), Some(what), Some(count)) = (text(1), text(2), count.as_u64()) else {
                continue;
            };
            let owing = all.entry(endpoint.to_owned()).or_default();
            match what {
                "parked" => owing.parked += count,
                _ => owing.owed += count,
            }
        }
        Ok(all)
    }

    /// The ids of the entries with notices that are parked, or owed, in a month.
    async fn with_webhooks(&self, month: Month, parked: bool) -> Result<Vec<Record>, CouchError> {
        let rows = self.rows(month, WEBHOOKS, COUNTS, &[("reduce", "false")]).await?;
        let wanted = if parked { "parked" } else { "owed" };
        let is_wanted = |key: &Value| key.get(2).and_then(Value::as_str) == Some(wanted);
        let mut ids: Vec<String> = rows
            .into_iter()
            .filter(|row| is_wanted(&row.key))
            .map(|row| row.id)
            .collect();
        ids.sort_unstable();
        ids.dedup();
        let mut found = Vec::new();
        for some in ids.chunks(BATCH) {
            let documents = self.couch.get_many(&database(month), some).await?;
            found.extend(documents.iter().flatten().filter_map(Record::read));
        }
        Ok(found)
    }
}

impl Ledger {
    /// Entries of this zone whose next notice to this endpoint is due, the earliest first, at most `limit` per month.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn webhooks_due(
        &self,
        to: (&str, &str),
        now: Moment,
        limit: usize,
    ) -> Result<Vec<(Address, Record)>, LedgerError> {
        self.store()
            .webhooks_due(to, now, limit)
            .await
            .map_err(LedgerError::Down)
    }

    /// The notices of a zone that endpoints have not accepted, by endpoint.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn webhook_counts(&self, zone: &str) -> Result<BTreeMap<String, Owing>, LedgerError> {
        self.store().webhook_counts(zone).await.map_err(LedgerError::Down)
    }

    /// For commands: the entries with notices that are parked, or owed.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn with_webhooks(&self, parked: bool) -> Result<Vec<Record>, LedgerError> {
        let reading = async {
            let mut found = Vec::new();
            for month in self.store().months_now().await? {
                found.extend(self.store().with_webhooks(month, parked).await?);
            }
            Ok(found)
        };
        reading.await.map_err(LedgerError::Down)
    }
}
