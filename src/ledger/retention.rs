//! Drops whole months of the ledger, once no entry in them is open or parked. Deletes entries of final states earlier, where the configuration
//! says so.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tracing::info;

use crate::couch::CouchError;
use crate::entry::Entry;
use crate::kazoo::time::{Moment, Month};
use crate::lifecycle::{STATES, State};

use super::store::Store;
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

/// Entries that are deleted in one run, of a month and a state.
const AT_ONCE: usize = 500;

/// Deletes the entries of a final state that began longer than `keep` ago. A later fact of another worker makes the entry anew. Returns how
/// many were deleted.
///
/// # Errors
/// When the ledger does not answer.
pub async fn expire(ledger: &Ledger, now: Moment, state: &str, keep: Duration) -> Result<usize, LedgerError> {
    let (store, mut deleted) = (ledger.store(), 0);
    // From 0: entries without a time sort before.
    let (from, to) = (
        json!([state, 0]).to_string(),
        json!([state, now.minus(keep)]).to_string(),
    );
    let most = AT_ONCE.to_string();
    let query = [("startkey", from.as_str()), ("endkey", &to), ("limit", &most)];
    for month in store.months_now().await.map_err(LedgerError::Down)? {
        let expiring = async {
            let rows = store.rows(month, super::views::LOOKUP, "state", &query).await?;
            let ids: Vec<String> = rows.into_iter().map(|row| row.id).collect();
            let mut deleted = 0;
            for (id, found) in store.load_many(month, &ids).await? {
                // The view may be older than the entry. An entry that an earlier version of this program took for final can owe something by
                // the rules of this version.
                let is_final = |state_now: State| state_now.name() == state || state_now == State::Closing;
                let record = found.record().filter(|record| is_final(State::of(&record.entry)));
                // An endpoint that is down must still get its notice.
                let record = record.filter(|record| !owes(store, &record.entry));
                let Some(rev) = record.and_then(|record| record.rev) else {
                    continue;
                };
                match store.couch.delete(&database(month), &id, &rev).await {
                    Ok(()) => deleted += 1,
                    Err(CouchError::Conflict) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(deleted)
        };
        let of_month = expiring.await.map_err(LedgerError::Down)?;
        if of_month > 0 {
            info!(event = "ledger_entries_expired", %month, state, entries = of_month, "ledger entries past their retention deleted");
        }
        deleted += of_month;
    }
    Ok(deleted)
}

/// Whether an endpoint in the settings must still get a notice.
fn owes(store: &Store, entry: &Entry) -> bool {
    let mut known = store.policy.hooks.endpoints.iter();
    known.any(|hook| entry.next_webhook(&hook.name).is_some())
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
            .view(&database(month), super::views::LOOKUP, "state", &query)
            .await?;
        if !rows.is_empty() {
            return Ok(true);
        }
    }
    ledger.store().owes_webhooks(month).await
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use crate::entry::cause::{Cause, Outcome};
    use crate::entry::fact::{Announcement, What};
    use crate::entry::webhooks::{Given, Owed};
    use crate::kazoo::time::Clock;
    use crate::ledger::testing::{document, found, policy, server, welcome};
    use crate::lifecycle::{Hook, Policy};

    use super::*;

    /// How many entries are deleted where the view lists one with these facts, and what was asked of the view.
    async fn expired(whats: &[What], keep: Duration) -> (usize, String) {
        expired_by(whats, keep, &policy()).await
    }

    async fn expired_by(whats: &[What], keep: Duration, policy: &Policy) -> (usize, String) {
        let entry = document(whats, "3-c");
        let (couch, log) = server(move |first, _| {
            if first.contains("_all_dbs") {
                ("200 OK", json!(["kz_record_call-202611"]))
            } else if first.contains("_view/state") {
                let row = json!({"id": entry["_id"], "key": ["failed", 1], "value": null});
                ("200 OK", json!({"total_rows": 1, "offset": 0, "rows": [row]}))
            } else if first.contains("_all_docs") {
                found(&entry)
            } else {
                welcome()
            }
        })
        .await;
        let (ledger, _writer) = Ledger::over(
            std::sync::Arc::new(couch),
            Clock::system(),
            policy,
            CancellationToken::new(),
        );
        let deleted = expire(&ledger, Moment::from_unix_seconds(1_795_386_262), "failed", keep)
            .await
            .unwrap();
        let log = log.lock().unwrap();
        let lines = || log.iter().map(|(first, _)| first.as_str());
        assert_eq!(lines().filter(|line| line.starts_with("DELETE")).count(), deleted);
        (
            deleted,
            lines()
                .find(|line| line.contains("_view/state"))
                .unwrap_or_default()
                .to_owned(),
        )
    }

    #[tokio::test]
    async fn entries_of_a_final_state_expire_and_no_others() {
        let (outcome, cause) = (Outcome::Failed, Cause::CallGone);
        let mut facts = vec![What::Commanded, What::Concluded { outcome, cause }];
        let keep = Duration::from_secs(86_400);
        // It has its outcome, and not all events of it are published: it is announcing, whatever the view says.
        assert_eq!(expired(&facts, keep).await.0, 0);
        facts.push(What::Announced(Announcement::Outcome(outcome)));
        let (deleted, asked) = expired(&facts, keep).await;
        assert_eq!(deleted, 1);
        // By the rules of this version the document must still say that the recording failed.
        facts.push(What::Documented(crate::lifecycle::tests::document()));
        assert_eq!(expired(&facts, keep).await.0, 1);
        // The entries that began more than a day before.
        assert!(asked.contains("startkey=%5B%22failed%22%2C0%5D"), "{asked}");
        assert!(asked.contains("endkey=%5B%22failed%22%2C1795299862"), "{asked}");
    }

    #[tokio::test]
    async fn an_entry_that_owes_a_notice_to_an_endpoint_does_not_expire() {
        let (outcome, cause) = (Outcome::Failed, Cause::CallGone);
        let notice = Given {
            endpoint: "archive".into(),
            n: 1,
            id: "id".into(),
        };
        let mut facts = vec![
            What::Commanded,
            What::Concluded { outcome, cause },
            What::Announced(Announcement::Outcome(outcome)),
            What::WebhooksOwed(Box::new(Owed {
                n: 1,
                id: "id".into(),
                outcome,
                cause,
                endpoints: vec!["archive".into()],
            })),
        ];
        let mut hooked = policy();
        hooked.hooks.endpoints.push(Hook {
            name: "archive".into(),
            outcomes: Vec::new(),
            accounts: Vec::new(),
        });
        let keep = Duration::from_secs(86_400);
        assert_eq!(expired_by(&facts, keep, &hooked).await.0, 0);
        assert_eq!(expired(&facts, keep).await.0, 1, "the endpoint was removed");
        facts.push(What::WebhookSent(notice));
        assert_eq!(expired_by(&facts, keep, &hooked).await.0, 1);
    }

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
