//! Drops whole months of the ledger, once no entry in them is open or parked.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tracing::info;

use crate::couch::CouchError;
use crate::kazoo::time::{Moment, Month};
use crate::lifecycle::STATES;

use super::{Ledger, LedgerError, database};

/// A month must have had no open entry for this long.
const DONE_FOR: Duration = Duration::from_secs(5 * 3600);

/// Months without open entries, and since when that is known.
#[derive(Debug, Default)]
pub struct Done(Mutex<HashMap<Month, Moment>>);

impl Done {
    /// Whether no entry has been open for long enough.
    fn for_long(&self, month: Month, is_done: bool, now: Moment) -> bool {
        let mut done = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_done {
            done.remove(&month);
            return false;
        }
        let since = *done.entry(month).or_insert(now);
        now.since(since) >= DONE_FOR
    }
}

/// Drops each month that ended longer than `keep` ago and has no open or parked entry, now and in a check hours ago. A node that returns
/// may lack entries for a time. Returns the dropped months.
///
/// # Errors
/// When the ledger does not answer. A month is dropped only when its state is certain.
pub async fn sweep(ledger: &Ledger, now: Moment, keep: Duration) -> Result<Vec<Month>, LedgerError> {
    let store = ledger.store();
    let mut dropped = Vec::new();
    for month in store.months_now().await.map_err(LedgerError::Down)? {
        if now.since(month.next().start()) <= keep {
            continue;
        }
        let is_done = !has_open(ledger, month).await.map_err(LedgerError::Down)?;
        if !store.done.for_long(month, is_done, now) {
            continue;
        }
        store
            .couch
            .drop_database(&database(month))
            .await
            .map_err(LedgerError::Down)?;
        store.forget(month);
        info!(event = "ledger_month_dropped", %month, "ledger month dropped");
        dropped.push(month);
    }
    Ok(dropped)
}

async fn has_open(ledger: &Ledger, month: Month) -> Result<bool, CouchError> {
    for state in STATES.into_iter().filter(|state| !state.is_final()) {
        let state = state.name();
        let (from, to) = (json!([state]).to_string(), json!([state, {}]).to_string());
        let query = [("startkey", from.as_str()), ("endkey", &to), ("limit", "1")];
        // A month with unreadable views is kept.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_is_dropped_only_when_nothing_was_open_at_an_earlier_look_too() {
        let (done, month) = (Done::default(), Month::of_id("202611-x").unwrap());
        let at = |hours: u64| Moment::from_unix_seconds(1_795_386_262).plus(Duration::from_secs(hours * 3600));
        assert!(!done.for_long(month, true, at(0)));
        assert!(!done.for_long(month, true, at(4)));
        assert!(
            !done.for_long(month, false, at(5)),
            "a node that came back has an open one"
        );
        assert!(!done.for_long(month, true, at(6)));
        assert!(!done.for_long(month.next(), true, at(12)), "each month for itself");
        assert!(done.for_long(month, true, at(12)));
    }
}
