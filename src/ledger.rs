//! The ledger: what we have promised, in CouchDB databases of our own, one for each month, one document for each recording.
//!
//! A document is an entry: a set of facts. Two versions of it merge to their union, so a write that meets another one loses nothing, and it
//! does not matter which worker wrote last. A lease says which worker has a recording in hand; it saves work and is never trusted: every
//! effect is harmless when it is done twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::couch::{Couch, CouchError};
use crate::entry::Entry;
use crate::kazoo::time::{Clock, Moment, Month};
use crate::lifecycle::Policy;
use crate::telemetry::Pulses;

mod branches;
mod counts;
mod due;
mod lookup;
mod months;
mod readable;
mod record;
pub mod retention;
mod revs;
mod store;
#[cfg(test)]
mod testing;
mod writer;

pub use counts::Counted;
pub use lookup::{Filter, Search};
pub use record::{Address, Lease, Record};

use store::Store;
use writer::{Note, Writer};

/// Why the ledger did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LedgerError {
    #[error("the ledger is not to be had: {0}")]
    Down(CouchError),
    #[error("the ledger did not answer in time")]
    Late,
}

/// The ledger, as one worker sees it. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    notes: mpsc::Sender<Note>,
    store: Arc<Store>,
    up: watch::Receiver<bool>,
    clock: Clock,
    worker: Arc<str>,
}

/// Resolves when what was noted is durable.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Told>);

/// What is told of a note: that it is durable, or, in words, that it is too large for the ledger and always will be.
type Told = Result<(), String>;

/// What became of a note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Noted {
    Durable,
    /// The ledger will never have it; with its words.
    TooLarge(String),
    /// The writer gave it up, or is gone.
    Not,
}

impl Receipt {
    /// Waits until it is durable, for as long as that takes. `false` when the writer is gone before.
    pub async fn durable(self) -> bool {
        self.noted().await == Noted::Durable
    }

    /// As `durable`, and why not.
    pub async fn noted(self) -> Noted {
        match self.0.await {
            Ok(Ok(())) => Noted::Durable,
            Ok(Err(why)) => Noted::TooLarge(why),
            Err(_) => Noted::Not,
        }
    }

    /// Waits for at most `limit`. A note that nobody waits for any more may be given up while the ledger is down.
    pub async fn within(self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.durable()).await.unwrap_or(false)
    }
}

/// Notes that wait for the writer.
const WAITING: usize = 4096;

impl Ledger {
    /// Begins to write. Ends when `stop` is cancelled and everything that was noted is durable, or cannot be.
    pub fn start(
        couch: Couch,
        clock: Clock,
        policy: &Policy,
        (tasks, pulses): (&TaskTracker, &Pulses),
        stop: CancellationToken,
    ) -> Self {
        let (notes, receiver) = mpsc::channel(WAITING);
        let (up_sender, up) = watch::channel(true);
        let store = Arc::new(Store::new(couch, clock.clone(), policy.clone()));
        let writer = Writer::new(Arc::clone(&store), receiver, up_sender);
        tasks.spawn(pulses.beat("ledger", writer.run(stop)));
        Self {
            notes,
            store,
            up,
            clock,
            worker: policy.worker.as_str().into(),
        }
    }

    /// Whether the last that was heard of it was good.
    pub fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// Follows that.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.up.clone()
    }

    /// Notes what is known of a recording. It is written within `linger`, together with what comes meanwhile.
    pub async fn note(&self, entry: &Entry, lease: Option<Lease>, linger: Duration) -> Receipt {
        let (done, receipt) = oneshot::channel();
        let note = Note {
            entry: entry.clone(),
            lease,
            linger,
            done,
        };
        // A writer that is gone drops the note, and with it the promise.
        let _ = self.notes.send(note).await;
        Receipt(receipt)
    }

    /// A lease of ours that begins now.
    pub fn lease(&self, duration: Duration) -> Lease {
        let now = self.clock.now();
        Lease {
            by: self.worker.to_string(),
            until: now.plus(duration),
            stamped: now,
        }
    }

    /// Nobody's lease, from now on.
    pub fn no_lease(&self) -> Lease {
        let now = self.clock.now();
        Lease {
            by: String::new(),
            until: now,
            stamped: now,
        }
    }

    /// What is written of a recording. Conflicting versions are merged.
    ///
    /// # Errors
    /// When the ledger does not tell.
    pub async fn load(&self, address: &Address) -> Result<Option<Record>, LedgerError> {
        self.store.load(address).await.map_err(LedgerError::Down)
    }

    /// The recordings of a call, by its id when their actions ran. Looks into this month and the one before.
    ///
    /// # Errors
    /// When the ledger does not tell.
    pub async fn of_call(&self, call_id: &str) -> Result<Vec<Record>, LedgerError> {
        self.store
            .of_call(&self.recent(), call_id)
            .await
            .map_err(LedgerError::Down)
    }

    /// The open recordings of whatever call the fetch belongs to.
    ///
    /// # Errors
    /// When the ledger does not tell.
    pub async fn of_fetch(&self, fetch_id: &str) -> Result<Vec<Record>, LedgerError> {
        self.store
            .of_fetch(&self.recent(), fetch_id)
            .await
            .map_err(LedgerError::Down)
    }

    /// The open recordings of a conversation, by its `Call-Interaction-ID`, which a call's legs share.
    ///
    /// # Errors
    /// When the ledger does not tell.
    pub async fn of_interaction(&self, interaction: &str) -> Result<Vec<Record>, LedgerError> {
        self.store
            .of_interaction(&self.recent(), interaction)
            .await
            .map_err(LedgerError::Down)
    }

    /// Entries of this zone that something is to be done about, and where they are; at most `limit` of them for each month.
    ///
    /// # Errors
    /// When the ledger does not tell.
    pub async fn due(&self, zone: &str, limit: usize) -> Result<Vec<(Address, Record)>, LedgerError> {
        self.store
            .due(zone, self.clock.now(), limit)
            .await
            .map_err(LedgerError::Down)
    }

    /// Entries of this zone that a worker has in hand, as the ledger has it; at most `limit` of them for each month.
    ///
    /// # Errors
    /// When the ledger does not tell.
    pub async fn leased_by(
        &self,
        worker: &str,
        zone: &str,
        lease: Duration,
        limit: usize,
    ) -> Result<Vec<(Address, Record)>, LedgerError> {
        // Its clock may be ahead of ours.
        let until = self.clock.now().plus(lease * 2);
        let leased = self.store.leased_by(worker, zone, until, limit).await;
        leased.map_err(LedgerError::Down)
    }

    /// Merges what was written on two sides of a cluster that was parted: the entries of which a server has more than one version, among those that changed
    /// since the last time.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn mend(&self) -> Result<usize, LedgerError> {
        self.store.mend().await.map_err(LedgerError::Down)
    }

    /// Takes a recording in hand: `None` when another worker has it that is not gone, or it is not there.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn take(
        &self,
        address: &Address,
        duration: Duration,
        is_gone: &(dyn Fn(&str) -> bool + Sync),
    ) -> Result<Option<Record>, LedgerError> {
        let lease = self.lease(duration);
        let taken = self.store.take(address, lease, is_gone).await;
        taken.map_err(LedgerError::Down)
    }

    /// Every entry that is open, not parked, and of this zone.
    ///
    /// # Errors
    /// When the ledger does not tell.
    pub async fn open(&self, zone: &str) -> Result<Vec<Address>, LedgerError> {
        self.store.open(zone).await.map_err(LedgerError::Down)
    }

    /// For commands: begins to look for entries, over all months.
    ///
    /// # Errors
    /// When the ledger does not tell its months.
    pub async fn search(&self, filter: Filter) -> Result<Search<'_>, LedgerError> {
        self.store.search(filter).await.map_err(LedgerError::Down)
    }

    /// For commands: the entries that fit, over all months, newest first.
    ///
    /// # Errors
    /// When the ledger does not tell.
    pub async fn find(&self, filter: &Filter) -> Result<Vec<Record>, LedgerError> {
        self.store.find(filter).await.map_err(LedgerError::Down)
    }

    /// How many entries of a zone are in which state; states without any are left out.
    ///
    /// # Errors
    /// When the ledger does not tell.
    pub async fn counts(&self, zone: &str) -> Result<BTreeMap<String, Counted>, LedgerError> {
        self.store.counts(zone).await.map_err(LedgerError::Down)
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    fn recent(&self) -> Vec<Month> {
        let now = self.clock.now().month();
        // An entry of the next month can be written by a worker whose clock is a little ahead.
        vec![now, now.previous(), now.next()]
    }
}

/// The name of the ledger's database of a month.
pub fn database(month: Month) -> String {
    format!("{PREFIX}{month}")
}

/// What all the ledger's databases begin with.
pub const PREFIX: &str = "kz_record_call-";

/// The entry's address, from what is known of it.
pub fn address(entry: &Entry) -> Address {
    let month = entry.order().map_or_else(
        || {
            entry
                .facts()
                .first()
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
