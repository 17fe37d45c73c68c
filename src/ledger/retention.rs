//! Old months are dropped whole, once nothing in them is open or parked.

use std::time::Duration;

use serde_json::json;
use tracing::info;

use crate::couch::CouchError;
use crate::kazoo::time::{Moment, Month};

use super::{Ledger, LedgerError, database};

/// States that keep a month.
const KEEP: [&str; 8] = [
    "asked",
    "recording",
    "ended",
    "held",
    "parked",
    "announcing",
    "unverified",
    "closing",
];

/// Drops every month that ended longer than `keep` ago and has nothing open or parked in it; returns what was dropped.
///
/// # Errors
/// When the ledger does not answer; nothing is dropped on a doubt.
pub async fn sweep(ledger: &Ledger, now: Moment, keep: Duration) -> Result<Vec<Month>, LedgerError> {
    let store = ledger.store();
    let mut dropped = Vec::new();
    for month in store.months_now().await.map_err(LedgerError::Down)? {
        if now.since(month.next().start()) <= keep {
            continue;
        }
        if has_open(ledger, month).await.map_err(LedgerError::Down)? {
            continue;
        }
        store
            .couch
            .drop_database(&database(month))
            .await
            .map_err(LedgerError::Down)?;
        store.forget(month);
        info!(%month, "a month of the ledger is past its retention, and dropped");
        dropped.push(month);
    }
    Ok(dropped)
}

async fn has_open(ledger: &Ledger, month: Month) -> Result<bool, CouchError> {
    for state in KEEP {
        let (from, to) = (json!([state]).to_string(), json!([state, {}]).to_string());
        let query = [("startkey", from.as_str()), ("endkey", &to), ("limit", "1")];
        // A month whose views cannot be read is kept.
        let rows = ledger
            .store()
            .couch
            .view(&database(month), super::store::LOOKUP, "state", &query)
            .await?;
        if !rows.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}
