//! Merges entries that were written on both sides of a partitioned cluster. CouchDB shows one of the versions. No worker acts on the other
//! version until both are merged.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tracing::debug;

use crate::couch::{CouchError, Documents};
use crate::kazoo::time::Month;

use super::database;
use super::store::Store;

/// Changes per request.
const PAGE: usize = 1000;

/// Requests per month in one run.
const MOST_PAGES: usize = 10;

/// How often an entry with several versions is read again, one run after the other: a version that could not be read, or a union that was not
/// written, changes nothing that `_changes` would list.
const AGAIN: u32 = 5;

/// What was checked of each month.
#[derive(Debug, Default)]
pub struct Seen(Mutex<HashMap<Month, Checked>>);

#[derive(Debug)]
struct Checked {
    /// The sequence up to which the month's changes were checked.
    since: String,
    /// Entries that had several versions, and how often they are still read again.
    again: HashMap<String, u32>,
}

impl Default for Checked {
    fn default() -> Self {
        Self {
            since: "0".to_owned(),
            again: HashMap::new(),
        }
    }
}

impl Seen {
    fn of<T>(&self, month: Month, change: impl FnOnce(&mut Checked) -> T) -> T {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(seen.entry(month).or_default())
    }

    fn since(&self, month: Month) -> String {
        self.of(month, |checked| checked.since.clone())
    }

    fn up_to(&self, month: Month, since: String) {
        self.of(month, |checked| checked.since = since);
    }

    /// The entries of earlier runs that are read again.
    fn again(&self, month: Month) -> Vec<String> {
        self.of(month, |checked| {
            checked.again.retain(|_, left| *left > 0);
            checked.again.values_mut().for_each(|left| *left -= 1);
            let mut ids: Vec<String> = checked.again.keys().cloned().collect();
            ids.sort_unstable();
            ids
        })
    }

    fn read_again(&self, month: Month, ids: &[String]) {
        self.of(month, |checked| {
            checked.again.extend(ids.iter().map(|id| (id.clone(), AGAIN)));
        });
    }
}

impl Store {
    /// Merges the entries that changed since the last run and have several versions. Returns how many of them were read.
    pub async fn mend(&self) -> Result<usize, CouchError> {
        let mut looked_at = 0;
        for month in self.months().await? {
            match self.mend_month(month).await {
                Ok(entries) => looked_at += entries,
                Err(error) => {
                    debug!(event = "ledger_conflicts_unread", %month, %error, "month not searched for conflicts");
                    self.missing(error).await?;
                }
            }
        }
        Ok(looked_at)
    }

    async fn mend_month(&self, month: Month) -> Result<usize, CouchError> {
        let mut looked_at = 0;
        let again = self.branches.again(month);
        if !again.is_empty() {
            self.load_many(month, &again).await?;
        }
        for _ in 0..MOST_PAGES {
            let branched = self
                .couch
                .branched(&database(month), &self.branches.since(month), PAGE)
                .await?;
            let ids: Vec<String> = branched
                .ids
                .into_iter()
                .filter(|id| !id.starts_with("_design/"))
                .collect();
            if !ids.is_empty() {
                self.branches.read_again(month, &ids);
                // `load_many` merges the versions that it reads.
                looked_at += self.load_many(month, &ids).await?.len();
            }
            self.branches.up_to(month, branched.since);
            if branched.is_all {
                break;
            }
        }
        Ok(looked_at)
    }
}

/// After so many server errors in a row a revision counts as damaged.
const FAILURES_OF_A_REVISION: usize = 3;
const BETWEEN_FAILURES: Duration = Duration::from_millis(100);

/// One revision. The server can answer each request for a damaged one with an error. That must not keep other entries from their workers.
pub(super) async fn revision(
    couch: &dyn Documents,
    name: &str,
    id: &str,
    rev: &str,
) -> Result<Option<Value>, CouchError> {
    for _ in 1..FAILURES_OF_A_REVISION {
        match couch.get_revision(name, id, rev).await {
            Err(CouchError::Failed { .. }) => tokio::time::sleep(BETWEEN_FAILURES).await,
            answer => return answer,
        }
    }
    match couch.get_revision(name, id, rev).await {
        Err(CouchError::Failed { .. }) => Ok(None),
        answer => answer,
    }
}
