//! What the commands ask: entries by id, by call, by state.

use serde_json::json;

use crate::couch::CouchError;
use crate::kazoo::time::{Moment, Month};

use super::record::{Record, call_prefix};
use super::store::{LOOKUP, Store};

/// Which entries are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// A recording's id, or its document's.
    pub media_id: Option<String>,
    pub call_id: Option<String>,
    /// One of `STATES`.
    pub state: Option<String>,
    pub account_id: Option<String>,
    pub cause: Option<String>,
    /// Asked for before then.
    pub before: Option<Moment>,
    /// Asked for after then.
    pub after: Option<Moment>,
    pub limit: usize,
}

/// Every state an entry can be in.
pub const STATES: [&str; 12] = [
    "asked",
    "recording",
    "ended",
    "held",
    "parked",
    "announcing",
    "unverified",
    "closing",
    "stored",
    "delivered",
    "discarded",
    "failed",
];

impl Store {
    pub async fn find(&self, filter: &Filter) -> Result<Vec<Record>, CouchError> {
        let mut months = self.months().await?;
        months.sort_unstable_by(|a, b| b.cmp(a));
        let mut found = Vec::new();
        for month in months {
            let room = filter.limit.saturating_sub(found.len());
            if room == 0 {
                break;
            }
            let records = self.in_month(month, filter, room).await?;
            found.extend(records.into_iter().filter(|record| filter.fits(record)).take(room));
        }
        Ok(found)
    }

    async fn in_month(&self, month: Month, filter: &Filter, room: usize) -> Result<Vec<Record>, CouchError> {
        if let Some(call_id) = &filter.call_id {
            let prefix = call_prefix(call_id);
            return match self
                .couch
                .id_range(&super::database(month), &prefix, &format!("{prefix}g"))
                .await
            {
                Ok(found) => Ok(found.iter().filter_map(Record::read).collect()),
                Err(CouchError::DatabaseMissing(_) | CouchError::NotFound) => Ok(Vec::new()),
                Err(error) => Err(error),
            };
        }
        if let Some(media_id) = &filter.media_id {
            let key = json!(media_id).to_string();
            return self
                .page(month, "media", &[("key", &key), ("include_docs", "true")])
                .await;
        }
        let states: Vec<&str> = match &filter.state {
            Some(state) => vec![state],
            None => STATES.to_vec(),
        };
        let mut records = Vec::new();
        for state in states {
            // Only account and cause are sorted out afterwards; with them every row must be looked at.
            let all = filter.account_id.is_some() || filter.cause.is_some();
            let limit = if all { 1_000_000 } else { room }.to_string();
            let newest = json!([
                state,
                filter
                    .before
                    .unwrap_or(Moment::from_unix_seconds(i64::from(u32::MAX) * 4))
            ]);
            let oldest = json!([state, filter.after.unwrap_or(Moment::from_unix_seconds(0))]);
            let (newest, oldest) = (newest.to_string(), oldest.to_string());
            let query = [
                ("descending", "true"),
                ("startkey", newest.as_str()),
                ("endkey", &oldest),
                ("limit", &limit),
                ("include_docs", "true"),
            ];
            records.extend(self.page(month, "state", &query).await?);
        }
        records.sort_by_key(|record| std::cmp::Reverse(record.entry.order().map(|order| order.asked_at)));
        Ok(records)
    }

    async fn page(&self, month: Month, view: &str, query: &[(&str, &str)]) -> Result<Vec<Record>, CouchError> {
        let rows = self.rows(month, LOOKUP, view, query).await?;
        Ok(rows
            .iter()
            .filter_map(|row| row.doc.as_ref())
            .filter_map(Record::read)
            .collect())
    }
}

impl Filter {
    fn fits(&self, record: &Record) -> bool {
        let entry = &record.entry;
        let order = entry.order();
        let asked = order.map(|order| order.asked_at);
        let cause = entry.outcome().map(|(_, cause)| cause).or_else(|| entry.parked());
        self.call_id.as_ref().is_none_or(|call_id| entry.call_id == *call_id)
            && self.state.as_ref().is_none_or(|state| entry.state() == state)
            && self
                .cause
                .as_ref()
                .is_none_or(|wanted| cause.is_some_and(|cause| cause.name() == wanted))
            && self.before.is_none_or(|before| asked.is_some_and(|at| at < before))
            && self.after.is_none_or(|after| asked.is_some_and(|at| at > after))
            && self.account_id.as_ref().is_none_or(|account| {
                order
                    .and_then(|order| order.account_id.as_ref())
                    .is_some_and(|of| of == account)
            })
    }
}
