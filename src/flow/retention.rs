//! What is done every minute, and every few hours: conflicting entries are merged, what is past its retention is dropped, and the next
//! databases are created.

use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use crate::entry::Entry;
use crate::hold::{Hold, HoldError};
use crate::ledger::{Address, Ledger, retention};

use super::common::Common;

/// Interval at which old months are examined.
const RETENTION: Duration = Duration::from_secs(6 * 3600);

/// How long ahead the databases of the next day and month are created: longer than the longest interval between two runs.
const AHEAD: Duration = Duration::from_secs(12 * 3600);

/// Interval between two searches for entries that were written on both sides of a partitioned cluster.
const MEND: Duration = Duration::from_secs(60);

/// Keeps ledger and hold tidy.
pub struct Retention {
    pub common: Arc<Common>,
    pub ledger: Ledger,
    pub hold: Hold,
}

impl Retention {
    /// Merges what a partitioned cluster wrote twice, every minute.
    pub async fn mend(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(MEND.mul_f64(0.75 + fastrand::f64() * 0.5)) => {}
                () = self.common.stop().cancelled() => return,
            }
            if !self.ledger.is_up() {
                continue;
            }
            match self.ledger.mend().await {
                Ok(0) => {}
                Ok(entries) => debug!(
                    event = "ledger_conflicts_merged",
                    entries, "conflicting ledger entries merged"
                ),
                Err(error) => debug!(event = "ledger_conflicts_unread", %error, "ledger not searched for conflicts"),
            }
        }
    }

    /// Drops what is past its retention, and prepares what comes next, every few hours.
    pub async fn retain(self: Arc<Self>) {
        loop {
            if let Err(error) =
                retention::sweep(&self.ledger, self.common.now(), self.common.config.ledger.retention).await
            {
                debug!(event = "retention_failed", %error, "old months not examined");
            }
            self.expire().await;
            if let Err(error) = self.tidy_hold().await {
                debug!(event = "hold_retention_failed", %error, "old days of the hold not examined");
            }
            self.prepare().await;
            tokio::select! {
                // Not all workers at the same moment, also where all were started together.
                () = tokio::time::sleep(RETENTION.mul_f64(0.75 + fastrand::f64() * 0.5)) => {}
                () = self.common.stop().cancelled() => return,
            }
        }
    }

    /// Deletes the entries that the configuration keeps less long than their month.
    async fn expire(&self) {
        let limits = self.common.config.ledger.retention_of;
        for (state, keep) in limits.into_iter().filter(|(_, keep)| !keep.is_zero()) {
            if let Err(error) = retention::expire(&self.ledger, self.common.now(), state, keep).await {
                debug!(event = "retention_failed", %error, "entries past their retention not deleted");
            }
        }
    }

    /// Creates the databases of the next day and the next month before they are needed.
    async fn prepare(&self) {
        let now = self.common.now();
        let soon = now.plus(AHEAD);
        if soon.month() != now.month()
            && let Err(error) = self.ledger.prepare(soon.month()).await
        {
            debug!(event = "ledger_not_prepared", %error, "next month's database not created ahead");
        }
        if let Err(error) = self.hold.prepare(now, soon).await {
            debug!(event = "hold_not_prepared", %error, "next day's database not created ahead");
        }
    }

    /// The entry that a copy in the hold belongs to. A copy must not be thrown away if the ledger does not know its recording, or does not
    /// answer.
    async fn needs_hold(&self, address: &Address) -> Option<Entry> {
        self.ledger
            .load(address)
            .await
            .ok()
            .flatten()
            .map(|record| record.entry)
    }

    /// Removes copies of closed recordings from the hold: two workers that did not see each other may have put a recording there twice.
    async fn tidy_hold(&self) -> Result<(), HoldError> {
        let mut after = None;
        loop {
            let (older, more) = self.hold.older(self.common.now(), after).await?;
            for (address, place, name) in older {
                if !self.is_needed(&address, &name).await {
                    self.hold.remove_named(&place, &name).await?;
                }
            }
            match more {
                Some(more) => after = Some(more),
                None => return self.hold.drop_empty_days(self.common.now()).await,
            }
        }
    }

    async fn is_needed(&self, address: &Address, name: &str) -> bool {
        let needed = self.needs_hold(address).await;
        let separated = needed.as_ref().and_then(|entry| {
            let separated = entry.separated(name, self.common.now(), &self.common.policy.worker)?;
            Some(crate::ledger::address(&separated))
        });
        let entry = match separated {
            Some(separated) => self.needs_hold(&separated).await,
            None => needed,
        };
        entry.is_none_or(|entry| !entry.is_closed())
    }
}
