//! Merges entries that were written on both sides of a partitioned cluster. CouchDB shows one of the versions. No worker acts on the other
//! version until both are merged.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tracing::debug;

use crate::couch::CouchError;
use crate::kazoo::time::Month;

use super::database;
use super::store::Store;

/// Changes per request.
const PAGE: usize = 1000;

/// Requests per month in one run.
const MOST_PAGES: usize = 10;

/// The sequence up to which each month's changes were checked.
#[derive(Debug, Default)]
pub struct Seen(Mutex<HashMap<Month, String>>);

impl Seen {
    fn of(&self, month: Month) -> String {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&month).cloned().unwrap_or_else(|| "0".to_owned())
    }

    fn up_to(&self, month: Month, since: String) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(month, since);
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
        for _ in 0..MOST_PAGES {
            let branched = self
                .couch
                .branched(&database(month), &self.branches.of(month), PAGE)
                .await?;
            let ids: Vec<String> = branched
                .ids
                .into_iter()
                .filter(|id| !id.starts_with("_design/"))
                .collect();
            if !ids.is_empty() {
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
