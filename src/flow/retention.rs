//! What is done every minute, and every few hours: conflicting entries are merged, what is past its retention is dropped, and the next
//! databases are created.
//!
//! Audio of the hold is dropped by its age only through the recording's outcome: the lifecycle concludes it, and then removes the copy.

use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use crate::amqp::{self, Letter, Removed};
use crate::couch::{Couch, CouchError};
use crate::entry::Entry;
use crate::entry::fact::What;
use crate::hold::{Hold, HoldError};
use crate::kazoo::names::APP_NAME;
use crate::kazoo::time::{Clock, Moment};
use crate::ledger::{self, Address, Filter, Ledger, LedgerError, retention};
use crate::lifecycle::{self, Input, State};
use crate::telemetry::events::{DeadLettersExpired, HeldCopyFound, RetentionPutOff};

use super::common::{Common, Interrupted};
use super::drivers::Drivers;
use super::inbox::dead_letters::DEAD_LETTERS;
use super::sweep::{Resume, Sweep};

/// Interval at which old months are examined.
const RETENTION: Duration = Duration::from_secs(6 * 3600);

/// How long ahead the databases of the next day and month are created: longer than the longest interval between two runs.
const AHEAD: Duration = Duration::from_secs(12 * 3600);

/// Time limit for the hold to be examined: its folder can hang.
const TIDYING: Duration = Duration::from_secs(3600);

/// Interval between two searches for entries that were written on both sides of a partitioned cluster.
const MEND: Duration = Duration::from_secs(60);

/// If the host's clock differs by more than this from the database server's, nothing is taken for old.
const CLOCKS_AGREE: Duration = Duration::from_secs(3600);

/// Keeps ledger and hold tidy.
pub struct Retention<D = Drivers> {
    pub common: Arc<Common>,
    pub couch: Couch,
    pub ledger: Ledger,
    pub hold: Hold,
    pub sweep: Arc<Sweep<D>>,
}

impl<D: Resume> Retention<D> {
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
            // The host's own clock, also where a test puts the worker's clock forward: that stands for time that has passed everywhere.
            self.examine(&Clock::system()).await;
            debug!(event = "retention_done", "ledger, hold and dead letters examined");
            tokio::select! {
                // Not all workers at the same moment, also where all were started together.
                () = tokio::time::sleep(RETENTION.mul_f64(0.75 + fastrand::f64() * 0.5)) => {}
                () = self.common.stop().cancelled() => return,
            }
        }
    }

    /// One round. `clock` is the host's own.
    async fn examine(self: &Arc<Self>, clock: &Clock) {
        if let Err(error) = self.finish().await {
            debug!(event = "retention_failed", %error, "final entries of earlier versions not read");
        }
        match clock_fault(&self.couch, clock).await {
            Ok(None) => {}
            Ok(Some(why)) => return RetentionPutOff { why: &why }.emit(),
            Err(error) => {
                debug!(event = "retention_failed", %error, "clock of the database server not read");
                return;
            }
        }
        self.remove_old().await;
        match tokio::time::timeout(TIDYING, self.tidy_hold()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(event = "hold_retention_failed", %error, "old days of the hold not examined"),
            Err(_) => debug!(
                event = "hold_retention_failed",
                "old days of the hold not examined within an hour"
            ),
        }
        self.prepare().await;
    }

    /// Removes what is older than the configuration keeps it.
    async fn remove_old(self: &Arc<Self>) {
        if let Err(error) = retention::sweep(&self.ledger, self.common.now(), self.common.config.ledger.retention).await
        {
            debug!(event = "retention_failed", %error, "old months not examined");
        }
        self.expire().await;
        if let Err(error) = self.conclude_outlived().await {
            debug!(event = "hold_retention_failed", %error, "parked recordings past their retention not read");
        }
        self.expire_dead_letters().await;
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

    /// Resumes the parked recordings whose audio the hold keeps no longer: the lifecycle concludes them. They have no timer, because they were
    /// parked for an operator, perhaps under other settings.
    async fn conclude_outlived(&self) -> Result<(), LedgerError> {
        let Some(keep) = self.common.policy.hold_retention else {
            return Ok(());
        };
        let filter = Filter {
            state: Some(State::Parked),
            before: Some(self.common.now().minus(keep)),
            ..Filter::default()
        };
        let policy = &self.common.policy;
        let is_over = |entry: &Entry, now| lifecycle::is_outlived(entry, now, policy);
        self.resume(filter, &Input::Outlived, is_over).await
    }

    /// Resumes what an earlier version took for final, and what is not by the rules of this version: the document must tell that its
    /// recording was discarded or failed, or the switch still has the file. These entries have no timer.
    async fn finish(&self) -> Result<(), LedgerError> {
        for state in [State::Discarded, State::Failed] {
            let filter = Filter {
                noted_as: Some(state),
                ..Filter::default()
            };
            let policy = &self.common.policy;
            let owes = |entry: &Entry, now| lifecycle::due(entry, now, policy).is_some_and(|due| due <= now);
            self.resume(filter, &Input::Due, owes).await?;
        }
        Ok(())
    }

    /// Resumes the recordings of this zone that fit, with this input.
    async fn resume(
        &self,
        filter: Filter,
        input: &Input,
        fits: impl Fn(&Entry, Moment) -> bool,
    ) -> Result<(), LedgerError> {
        let now = self.common.now();
        let mut search = self.ledger.search(filter).await?;
        while let Some(records) = search.next().await? {
            let zone = &self.common.config.kazoo.zone;
            let entries = records.into_iter().map(|record| record.entry);
            let ours = entries.filter(|entry| entry.order().is_some_and(|order| order.zone == *zone));
            let over = ours.filter(|entry| fits(entry, now));
            let wanted: Vec<_> = over.map(|entry| (ledger::address(&entry), Some(entry))).collect();
            if self.wait_for_room().await.is_err() {
                return Ok(());
            }
            self.sweep.take(wanted, input, false).await;
        }
        Ok(())
    }

    /// Waits until this worker has fewer recordings in flight than its limit.
    async fn wait_for_room(&self) -> Result<(), Interrupted> {
        while self.sweep.in_flight.busy() >= self.sweep.limits.in_flight {
            self.common.rest().await?;
        }
        Ok(())
    }

    /// Removes the dead letters that the configuration keeps no longer, from the first broker that answers.
    async fn expire_dead_letters(&self) {
        let amqp = &self.common.config.amqp;
        let Some(keep) = amqp.dead_letters_retention else {
            return;
        };
        let since = u64::try_from(self.common.now().minus(keep).unix_seconds()).unwrap_or(0);
        let is_over = |letter: &Letter<'_>| letter.dead_at.is_some_and(|at| at <= since);
        let name = format!("{APP_NAME}@{} retention", self.common.config.kazoo.host);
        for uri in &amqp.uris {
            match amqp::remove_from(amqp, uri, &name, DEAD_LETTERS, &is_over).await {
                Ok(Removed { removed, read }) => {
                    let expired = DeadLettersExpired {
                        queue: DEAD_LETTERS,
                        removed,
                        left: read - removed,
                    };
                    expired.emit();
                    return;
                }
                Err(error) => {
                    debug!(event = "dead_letter_retention_failed", %error, "dead letters past their retention not removed");
                }
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

    /// Removes copies of closed recordings from the hold: two workers that did not see each other may have put a recording there twice. Notes
    /// copies that an entry lacks.
    async fn tidy_hold(&self) -> Result<(), HoldError> {
        let mut after = None;
        loop {
            let (older, more) = self.hold.older(self.common.now(), after).await?;
            for (address, place, name) in older {
                let entry = self.needs_hold(&address).await;
                let is_lacking = |entry: &Entry| lacks(entry, &name, &self.common.config.kazoo.zone);
                match entry {
                    Some(entry) if is_lacking(&entry) => self.note_copy(entry, place, name).await,
                    entry if self.is_needed(entry.as_ref(), &name).await => {}
                    _ => self.hold.remove_named(&place, &name).await?,
                }
            }
            match more {
                Some(more) => after = Some(more),
                None => return self.hold.drop_empty_days(self.common.now()).await,
            }
        }
    }

    /// Whether a copy must stay. `entry`: what the ledger has of its recording.
    async fn is_needed(&self, entry: Option<&Entry>, name: &str) -> bool {
        let separated = entry.and_then(|entry| entry.separated(name, self.common.now(), &self.common.policy.worker));
        match separated {
            Some(separated) => {
                let entry = self.needs_hold(&ledger::address(&separated)).await;
                entry.is_none_or(|entry| !entry.is_closed())
            }
            None => entry.is_none_or(|entry| !entry.is_closed()),
        }
    }

    /// Resumes a recording with a copy of its audio that its entry lacks. A damaged copy stays as it is.
    async fn note_copy(&self, entry: Entry, place: String, name: String) {
        let holding = match self.hold.read(place, name).await {
            Ok(holding) => holding,
            Err(error) => {
                debug!(event = "hold_retention_failed", call_id = entry.call_id, %error, "unknown copy in the hold not read");
                return;
            }
        };
        if self.wait_for_room().await.is_err() {
            return;
        }
        HeldCopyFound {
            call_id: &entry.call_id,
            media_id: entry.order().map_or("", |order| order.media_id.as_str()),
            place: &holding.place,
            name: &holding.name,
        }
        .emit();
        let n = entry.next_hold();
        let input = Input::Fact(What::Held { n, holding });
        self.sweep
            .take(vec![(ledger::address(&entry), Some(entry))], &input, false)
            .await;
    }
}

/// Whether an entry of this zone has no audio anywhere, and does not know of this copy: the worker that made it was killed before it noted
/// the copy, or the answer of the hold was lost. The switch may have deleted its file since.
fn lacks(entry: &Entry, name: &str, zone: &str) -> bool {
    let knows = |what: &What| matches!(what, What::Held { holding, .. } if holding.name == name);
    matches!(State::of(entry), State::Ended | State::Parked | State::Lost)
        && entry.held().is_none()
        && entry.uploaded().is_none()
        && entry.order().is_some_and(|order| order.zone == zone)
        && !entry.facts().any(|fact| knows(&fact.what))
}

/// Why the age of nothing can be told now. A host can boot with a clock that is months ahead: by that clock the only copy of each parked
/// recording would be too old, and today's database of the hold, into which other workers put audio, a past day's.
async fn clock_fault(couch: &Couch, clock: &Clock) -> Result<Option<String>, CouchError> {
    let Some(ahead) = couch.welcome(clock).await?.ahead_ms else {
        return Ok(Some("the database server does not tell its time".into()));
    };
    let apart = Duration::from_millis(ahead.unsigned_abs());
    let side = if ahead > 0 { "ahead of" } else { "behind" };
    let (is_wrong, seconds) = (apart > CLOCKS_AGREE, apart.as_secs());
    let fault = || format!("this host's clock is {seconds} s {side} the database server's clock");
    Ok(is_wrong.then(fault))
}

#[cfg(test)]
mod tests;
