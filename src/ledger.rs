//! The ledger records all recordings that the workers have promised to store. It uses CouchDB databases of its own, one per month, with one
//! document per recording.
//!
//! A document is an entry: an event log (grow-only set) of facts. Two versions of an entry merge to their union. A write that conflicts
//! with another one therefore loses nothing, and the order of the workers does not matter. A lease says which worker handles a recording.
//! It saves work and is never trusted: every effect is harmless when it is done twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::couch::{Couch, CouchError, Documents};
use crate::entry::Entry;
use crate::entry::fact::What;
use crate::kazoo::time::{Clock, Moment, Month};
use crate::lifecycle::Policy;
use crate::telemetry::Pulses;

mod branches;
mod claims;
mod counts;
mod due;
mod leases;
mod lookup;
mod months;
mod readable;
mod record;
pub mod retention;
mod revs;
mod soon;
mod store;
#[cfg(test)]
pub(crate) mod testing;
mod views;
mod webhooks;
mod writer;

pub use claims::Holder;
pub use counts::Counted;
pub use due::Timers;
pub use lookup::{Filter, Search};
pub use record::{Address, Lease, Record};
pub use webhooks::Owing;

use store::Store;
use writer::{Note, Writer};

/// Why an operation of the ledger failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LedgerError {
    #[error("ledger unavailable: {0}")]
    Down(CouchError),
    #[error("the ledger did not answer in time")]
    Late,
}

/// The ledger as one worker sees it. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    notes: mpsc::Sender<Note>,
    store: Arc<Store>,
    up: watch::Receiver<bool>,
    clock: Clock,
    worker: Arc<str>,
}

/// Resolves when the noted entry is durable.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Told>);

/// The other end of a receipt. A receipt whose promise is dropped says that the entry was not written.
#[derive(Debug)]
pub struct Promise(oneshot::Sender<Told>);

impl Promise {
    /// The entry is durable.
    pub fn keep(self) {
        let _ = self.0.send(Ok(()));
    }
}

/// Result of a note: durable, or the reason why the entry is, and stays, too large for the ledger.
type Told = Result<(), String>;

/// Result of a note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Noted {
    Durable,
    /// The entry is, and stays, too large. Holds the ledger's reason.
    TooLarge(String),
    /// The writer discarded the note, or has ended.
    Not,
}

impl Receipt {
    /// A receipt, and the promise that resolves it.
    pub fn promised() -> (Promise, Self) {
        let (done, receipt) = oneshot::channel();
        (Promise(done), Self(receipt))
    }

    /// Waits without a limit until the note is durable. `false` when the writer ended first.
    pub async fn durable(self) -> bool {
        self.noted().await == Noted::Durable
    }

    /// As `durable`, with the reason of a failure.
    pub async fn noted(self) -> Noted {
        match self.0.await {
            Ok(Ok(())) => Noted::Durable,
            Ok(Err(why)) => Noted::TooLarge(why),
            Err(_) => Noted::Not,
        }
    }

    /// Waits for at most `limit`. While the ledger is down, the writer may discard a note after that.
    pub async fn within(self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.durable()).await.unwrap_or(false)
    }
}

/// No call lasts longer than this.
const LONGEST_CALL: Duration = Duration::from_secs(3 * 86_400);

/// Notes that may wait for the writer.
const WAITING: usize = 4096;

impl Ledger {
    /// Starts the writer. It ends when `stop` is cancelled and each note is durable, or cannot become durable.
    pub fn start(
        couch: Couch,
        clock: Clock,
        policy: &Policy,
        (tasks, pulses): (&TaskTracker, &Pulses),
        stop: CancellationToken,
    ) -> Self {
        let (ledger, writing) = Self::over(Arc::new(couch), clock, policy, stop);
        tasks.spawn(pulses.beat("ledger", writing));
        ledger
    }

    /// A ledger over any database server, and its writer, which the caller must poll.
    pub fn over(
        couch: Arc<dyn Documents>,
        clock: Clock,
        policy: &Policy,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (notes, receiver) = mpsc::channel(WAITING);
        let (up_sender, up) = watch::channel(true);
        let store = Arc::new(Store::new(couch, clock.clone(), policy.clone()));
        let writer = Writer::new(Arc::clone(&store), receiver, up_sender);
        let ledger = Self {
            notes,
            store,
            up,
            clock,
            worker: policy.worker.as_str().into(),
        };
        (ledger, writer.run(stop))
    }

    /// Whether the last request to the database succeeded.
    pub fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// Watches whether the ledger is up.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.up.clone()
    }

    /// Creates a month's database ahead of its first write. Workers that create one at the same moment, as at the turn of the month, can make
    /// two on different nodes of the cluster, and what is written to the one is lost when the nodes agree on the other.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn prepare(&self, month: Month) -> Result<(), LedgerError> {
        self.store.ensure(month).await.map_err(LedgerError::Down)
    }

    /// Notes what is known of a recording. The writer writes it within the batch delay `linger`, together with all notes that arrive
    /// meanwhile.
    pub async fn note(&self, entry: &Entry, lease: Option<Lease>, linger: Duration) -> Receipt {
        let (done, receipt) = Receipt::promised();
        let note = Note {
            entry: entry.clone(),
            lease,
            linger,
            done: done.0,
        };
        // A writer that has ended drops the note, and with it the sender of the receipt.
        let _ = self.notes.send(note).await;
        receipt
    }

    /// A lease of this worker that starts now.
    pub fn lease(&self, duration: Duration) -> Lease {
        let now = self.clock.now();
        Lease {
            by: self.worker.to_string(),
            until: now.plus(duration),
            stamped: now,
        }
    }

    /// A lease of no worker, which ends any earlier lease.
    pub fn no_lease(&self) -> Lease {
        let now = self.clock.now();
        Lease {
            by: String::new(),
            until: now,
            stamped: now,
        }
    }

    /// The ledger's entry of a recording. Conflicting versions are merged.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn load(&self, address: &Address) -> Result<Option<Record>, LedgerError> {
        self.store.load(address).await.map_err(LedgerError::Down)
    }

    /// The recordings of a call, by the id that the call had when their actions ran. Reads the months in which a call that runs now can have begun.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn of_call(&self, call_id: &str) -> Result<Vec<Record>, LedgerError> {
        self.store
            .of_call(&self.recent(), call_id)
            .await
            .map_err(LedgerError::Down)
    }

    /// The same in these months, in which the call ran.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn of_call_in(&self, months: &[Month], call_id: &str) -> Result<Vec<Record>, LedgerError> {
        self.store.of_call(months, call_id).await.map_err(LedgerError::Down)
    }

    /// Claims a place that only one recording may have, such as a file name at a user's URL, unless another recording has it. `place`
    /// identifies it; `from` is a recording that it may be taken from. Looks in these months, or else in all.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn claim(
        &self,
        place: &str,
        mine: &Address,
        months: Option<&[Month]>,
        from: Option<&Address>,
    ) -> Result<Holder, LedgerError> {
        let claiming = async {
            let months = match months {
                Some(months) => months.to_vec(),
                None => self.store.months().await?,
            };
            self.store.claim(place, mine, &months, from).await
        };
        claiming.await.map_err(LedgerError::Down)
    }

    /// The open recordings of the call that the fetch belongs to.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn of_fetch(&self, fetch_id: &str) -> Result<Vec<Record>, LedgerError> {
        self.store
            .of_fetch(&self.recent(), fetch_id)
            .await
            .map_err(LedgerError::Down)
    }

    /// The open recordings of a conversation, by its `Call-Interaction-ID`, which the legs of a call share.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn of_interaction(&self, interaction: &str) -> Result<Vec<Record>, LedgerError> {
        self.store
            .of_interaction(&self.recent(), interaction)
            .await
            .map_err(LedgerError::Down)
    }

    /// Entries of this zone whose timer is due, with their addresses, at most `limit` per month.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn due(&self, zone: &str, limit: usize) -> Result<Vec<(Address, Record)>, LedgerError> {
        let now = self.clock.now();
        let due = self.store.due(zone, now, limit).await.map_err(LedgerError::Down)?;
        if due.len() < limit {
            self.store.soon.passed(now);
        }
        Ok(due)
    }

    /// Whether an entry is due that this worker wrote, as far as it remembers.
    pub fn has_due(&self) -> bool {
        self.store.soon.has(self.clock.now())
    }

    /// Updates the views that are queried seldom, so that a query that a call waits for need not do it.
    pub async fn update_views(&self) {
        self.store.update_views(&self.recent()).await;
    }

    /// Entries of this zone that are leased by `worker`, at most `limit` per month.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn leased_by(
        &self,
        worker: &str,
        zone: &str,
        lease: Duration,
        limit: usize,
    ) -> Result<Vec<(Address, Record)>, LedgerError> {
        // The other worker's clock may be ahead of ours.
        let until = self.clock.now().plus(lease * 2);
        let leased = self.store.leased_by(worker, zone, until, limit).await;
        leased.map_err(LedgerError::Down)
    }

    /// Merges entries that were written on both sides of a partitioned cluster. Checks the entries that changed since the last call, and
    /// merges those with more than one version.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn mend(&self) -> Result<usize, LedgerError> {
        self.store.mend().await.map_err(LedgerError::Down)
    }

    /// Leases recordings to this worker, with few requests for all of them. `None` for a recording that another live worker has leased, and
    /// for a missing entry. An error where the ledger did not answer; then the lease may be written or not.
    pub async fn take(
        &self,
        addresses: &[Address],
        duration: Duration,
        is_gone: &(dyn Fn(&str) -> bool + Sync),
    ) -> Vec<Result<Option<Record>, LedgerError>> {
        let lease = self.lease(duration);
        let taken = self.store.take(addresses, &lease, is_gone).await;
        taken.into_iter().map(|one| one.map_err(LedgerError::Down)).collect()
    }

    /// Each entry of this zone that is open and not parked.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn open(&self, zone: &str) -> Result<Vec<Address>, LedgerError> {
        self.store.open(zone).await.map_err(LedgerError::Down)
    }

    /// For commands: starts a search for entries over all months.
    ///
    /// # Errors
    /// When the ledger does not list its months.
    pub async fn search(&self, filter: Filter) -> Result<Search<'_>, LedgerError> {
        self.store.search(filter).await.map_err(LedgerError::Down)
    }

    /// For commands: the matching entries over all months, newest first.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn find(&self, filter: &Filter) -> Result<Vec<Record>, LedgerError> {
        self.store.find(filter).await.map_err(LedgerError::Down)
    }

    /// How many entries of a zone are in each state. States without entries are left out.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn counts(&self, zone: &str) -> Result<BTreeMap<String, Counted>, LedgerError> {
        self.store.counts(zone).await.map_err(LedgerError::Down)
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The months in which a call that runs now can have recordings. A worker whose clock is slightly ahead can write an entry of the next
    /// month.
    fn recent(&self) -> Vec<Month> {
        Month::around(self.clock.now(), LONGEST_CALL)
    }
}

/// The view of a month's database, by state, and the parameters that select the parked entries.
pub const LOOKUP: &str = views::LOOKUP;
pub const PARKED: [(&str, &str); 2] = [("startkey", "[\"parked\"]"), ("endkey", "[\"parked\",{}]")];

/// The name of the ledger's database for a month.
pub fn database(month: Month) -> String {
    format!("{PREFIX}{month}")
}

/// Prefix of all the ledger's databases.
pub const PREFIX: &str = "kz_record_call-";

/// The entry's address, derived from its facts.
pub fn address(entry: &Entry) -> Address {
    let month = entry.order().map_or_else(
        || {
            // A notice says when the recording was ordered. Another worker's clock may stamp an earlier fact in the month before.
            let notice = || entry.facts().find(|fact| matches!(fact.what, What::HeardOf { .. }));
            notice()
                .or_else(|| entry.facts().next())
                .map_or(Moment::from_unix_seconds(0), |fact| fact.at)
                .month()
        },
        |order| order.asked_at.month(),
    );
    Address {
        month,
        call_id: entry.call_id.clone(),
        key: entry.key,
    }
}
