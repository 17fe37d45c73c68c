//! Entries that were written on both sides of a cluster that was parted. CouchDB shows one of the versions, and what the other one says is nobody's, until
//! both are merged.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tracing::debug;

use crate::couch::CouchError;
use crate::kazoo::time::Month;

use super::database;
use super::store::Store;

/// Changes in one answer.
const PAGE: usize = 1000;

/// Answers that are looked through in one go, of each month.
const MOST_PAGES: usize = 10;

/// Up to where the changes of each month were looked through.
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
    /// Merges what changed since the last look and has several versions; returns how many of them were looked at.
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
                // Whoever reads them merges them.
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
