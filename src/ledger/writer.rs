//! The writer sends all writes of a worker, one request at a time. Each request contains all notes that arrived during the request before.
//!
//! Waiting facts of one entry become one write. A row that conflicts with another version is read, merged, and written again. While the
//! database is down, the writer keeps the notes whose callers wait. The journal has the notes whose callers no longer wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::couch::{CouchError, Row};
use crate::entry::Entry;
use crate::kazoo::time::Month;
use crate::telemetry::events::{LedgerBatch, LedgerState};

use super::due::timers;
use super::record::{Lease, Record};
use super::revs::Revs;
use super::store::Store;
use super::{Told, address, database};

mod settle;

/// An entry to write.
pub struct Note {
    pub entry: Entry,
    pub lease: Option<Lease>,
    pub linger: Duration,
    pub(super) done: oneshot::Sender<Told>,
}

/// Documents in one request.
const BATCH: usize = 200;

/// What is due within this time goes into the present request too. Each request costs the database several times as much as a document.
const SOON: Duration = Duration::from_millis(50);

/// Interval between attempts while the database is down.
const AGAIN: Duration = Duration::from_millis(500);

/// A request that takes longer counts as a database that is down.
const LATE: Duration = Duration::from_secs(2);

/// When the worker ends while the database is down, the writer retries for this long.
const LAST_WORDS: Duration = Duration::from_secs(3);

struct Pending {
    month: Month,
    record: Record,
    deadline: Instant,
    waiters: Vec<oneshot::Sender<Told>>,
    /// Writes in a row that failed, or reached too few copies.
    tries: u32,
}

pub struct Writer {
    store: Arc<Store>,
    notes: mpsc::Receiver<Note>,
    up: watch::Sender<bool>,
    pending: HashMap<String, Pending>,
    revs: Revs,
    /// When to check the database again. Never `None` while it counts as down.
    resting: Option<Instant>,
}

impl Writer {
    pub fn new(store: Arc<Store>, notes: mpsc::Receiver<Note>, up: watch::Sender<bool>) -> Self {
        Self {
            store,
            notes,
            up,
            pending: HashMap::new(),
            revs: Revs::default(),
            resting: None,
        }
    }

    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let next = self.next_write();
            // Due entries are written even while many notes arrive.
            let is_due = next.is_some_and(|next| next <= Instant::now());
            tokio::select! {
                biased;
                note = self.notes.recv(), if !is_due || self.pending.len() < BATCH * 4 => match note {
                    Some(note) => self.take(note),
                    None => break,
                },
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => self.write().await,
                () = stop.cancelled() => break,
            }
        }
        self.last_words().await;
    }

    /// Notes that are waiting when the worker ends are written too.
    async fn last_words(&mut self) {
        let end = Instant::now() + LAST_WORDS;
        while let Ok(note) = self.notes.try_recv() {
            self.take(note);
        }
        while !self.pending.is_empty() && Instant::now() < end {
            for pending in self.pending.values_mut() {
                pending.deadline = Instant::now();
            }
            self.resting = None;
            self.write().await;
            if !*self.up.borrow() {
                tokio::time::sleep(AGAIN).await;
            }
        }
        if !self.pending.is_empty() {
            error!(
                event = "ledger_down_at_exit",
                entries = self.pending.len(),
                "entries not written before exit"
            );
        }
    }

    /// Receives a note, and the notes behind it, which is cheaper than receiving them later. The number is limited to the channel's size.
    /// Otherwise a constant stream of notes would delay the writes.
    fn take(&mut self, note: Note) {
        self.take_one(note);
        for _ in 1..super::WAITING {
            if self.pending.len() >= BATCH * 4 {
                return;
            }
            let Ok(note) = self.notes.try_recv() else { return };
            self.take_one(note);
        }
    }

    fn take_one(&mut self, note: Note) {
        let address = address(&note.entry);
        let (id, deadline) = (address.id(), Instant::now() + note.linger);
        if note.lease.is_none() && !self.pending.contains_key(&id) && self.revs.has_all(&id, &note.entry) {
            // For example an entry that went to the journal because the ledger was slow.
            let _ = note.done.send(Ok(()));
            return;
        }
        let record = Record {
            entry: note.entry,
            lease: note.lease,
            rev: None,
        };
        match self.pending.remove(&id) {
            Some(mut pending) => {
                pending.record = pending.record.merge(record);
                pending.deadline = pending.deadline.min(deadline);
                pending.waiters.push(note.done);
                self.pending.insert(id, pending);
            }
            None => {
                let pending = Pending {
                    month: address.month,
                    record,
                    deadline,
                    waiters: vec![note.done],
                    tries: 0,
                };
                self.pending.insert(id, pending);
            }
        }
    }

    /// When to send the next request.
    fn next_write(&self) -> Option<Instant> {
        let first = self.pending.values().map(|pending| pending.deadline).min();
        match self.resting {
            // The database is checked in any case, so that all tasks that watch it learn when it is up.
            Some(rest) => Some(rest),
            None => first,
        }
    }

    async fn write(&mut self) {
        let now = Instant::now();
        // The entry that has waited longest decides the month, so that no month and no entry waits for ever.
        let ripe = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.deadline <= now + SOON);
        let mut ripe: Vec<(Instant, Month, String)> = ripe
            .map(|(id, pending)| (pending.deadline, pending.month, id.clone()))
            .collect();
        ripe.sort_unstable();
        let first = ripe.first().filter(|(deadline, ..)| *deadline <= now);
        let Some(month) = first.map(|(_, month, _)| *month) else {
            if self.resting.is_some() {
                self.look().await;
            }
            return;
        };
        let ids = ripe.into_iter().filter(|(_, of, _)| *of == month).map(|(.., id)| id);
        let batch: Vec<(String, Pending)> = ids
            .take(BATCH)
            .filter_map(|id| self.pending.remove_entry(&id))
            .collect();
        match self.send(month, &batch).await {
            Ok(rows) => {
                self.is_up();
                self.settle(month, batch, rows).await;
            }
            Err(CouchError::DatabaseMissing(_) | CouchError::NotFound) => {
                self.store.forget(month);
                // What was written there is gone with it.
                self.revs.clear();
                for (id, pending) in batch {
                    self.later(id, pending, "its database is not there");
                }
                if let Err(error) = self.store.ensure(month).await {
                    self.is_down(&error);
                }
            }
            // The request is at fault, or makes the server fail. One faulty row must not block the other rows.
            Err(CouchError::Refused { .. } | CouchError::Failed { .. }) if batch.len() > 1 => {
                self.one_by_one(month, batch).await;
            }
            Err(error @ CouchError::Refused { .. }) => {
                // The server answered, so it is up.
                self.is_up();
                self.give_up(batch, &error.to_string());
            }
            Err(error) => {
                for (id, pending) in batch {
                    self.later(id, pending, &error.to_string());
                }
                self.is_down(&error);
            }
        }
    }

    /// Sends one request, and receives notes meanwhile. A database that takes too long counts as down before it answers.
    async fn send(&mut self, month: Month, batch: &[(String, Pending)]) -> Result<Vec<Row>, CouchError> {
        let now = self.store.clock.now();
        let documents: Vec<Value> = batch
            .iter()
            .map(|(id, pending)| {
                let mut record = pending.record.clone();
                record.rev = record.rev.or_else(|| self.revs.get(id, &record.entry));
                let document = record.document(id, timers(&record.entry, now, &self.store.policy));
                self.store.soon.note(&document);
                document
            })
            .collect();
        let (store, begun) = (Arc::clone(&self.store), Instant::now());
        let sending = async move {
            store.ensure(month).await?;
            store.couch.bulk_docs(&database(month), &documents).await
        };
        tokio::pin!(sending);
        let late = tokio::time::sleep(LATE);
        tokio::pin!(late);
        let (mut is_late, mut open) = (false, true);
        let rows = loop {
            tokio::select! {
                biased;
                rows = &mut sending => break rows,
                note = self.notes.recv(), if open => match note {
                    Some(note) => self.take(note),
                    None => open = false,
                },
                () = &mut late, if !is_late => {
                    is_late = true;
                    self.rest("it does not answer");
                }
            }
        };
        LedgerBatch {
            entries: batch.len(),
            took: begun.elapsed(),
            good: rows.is_ok(),
        }
        .emit();
        rows
    }

    async fn look(&mut self) {
        match self.store.couch.ping().await {
            Ok(()) => self.is_up(),
            Err(error) => self.is_down(&error),
        }
    }

    fn is_up(&mut self) {
        self.resting = None;
        if self.up.send_if_modified(|up| !std::mem::replace(up, true)) {
            LedgerState { state: Ok(()) }.emit();
        }
    }

    /// Counts the database as down, and sets the time of the next check. Without that time no check would happen, because no notes arrive
    /// while the database is down.
    fn rest(&mut self, why: &str) {
        self.resting = Some(Instant::now() + AGAIN);
        if self.up.send_if_modified(|up| std::mem::replace(up, false)) {
            LedgerState { state: Err(why) }.emit();
        }
    }

    fn is_down(&mut self, error: &CouchError) {
        self.rest(&error.to_string());
        self.revs.clear();
        // A note without a waiting caller was written elsewhere, or its message comes again.
        self.pending.retain(|_, pending| {
            pending.waiters.retain(|waiter| !waiter.is_closed());
            !pending.waiters.is_empty()
        });
    }
}

#[cfg(test)]
mod tests;
