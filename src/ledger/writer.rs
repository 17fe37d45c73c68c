//! The writer: all writes of a worker go out together, one request at a time, and everything that gathered meanwhile goes into the next.
//!
//! Facts of one entry that wait together become one write. A row that meets another version is read, merged, and written again. While the
//! database is down, notes that somebody waits for are kept; those that nobody waits for any more are in the journal already.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::couch::{CouchError, Row};
use crate::entry::Entry;
use crate::kazoo::call::shown;
use crate::kazoo::time::{Clock, Month};
use crate::telemetry::events::{LedgerBatch, LedgerState};

use super::record::{Lease, Record};
use super::revs::Revs;
use super::store::Store;
use super::{DueOf, Told, address, database};

/// Something to write down.
pub struct Note {
    pub entry: Entry,
    pub lease: Option<Lease>,
    pub linger: Duration,
    pub(super) done: oneshot::Sender<Told>,
}

/// Documents in one request.
const BATCH: usize = 200;

/// Pauses between tries while the database is down.
const AGAIN: Duration = Duration::from_millis(500);

/// A request that takes longer counts as a database that is down.
const LATE: Duration = Duration::from_secs(2);

/// A database that is down when the worker ends has this long to come back.
const LAST_WORDS: Duration = Duration::from_secs(3);

struct Pending {
    month: Month,
    record: Record,
    deadline: Instant,
    waiters: Vec<oneshot::Sender<Told>>,
}

pub struct Writer {
    store: Arc<Store>,
    clock: Clock,
    due: DueOf,
    notes: mpsc::Receiver<Note>,
    up: watch::Sender<bool>,
    pending: HashMap<String, Pending>,
    revs: Revs,
    /// When to look for the database again. Never `None` while it counts as down.
    resting: Option<Instant>,
}

impl Writer {
    pub fn new(
        store: Arc<Store>,
        clock: Clock,
        due: DueOf,
        notes: mpsc::Receiver<Note>,
        up: watch::Sender<bool>,
    ) -> Self {
        Self {
            store,
            clock,
            due,
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
            tokio::select! {
                biased;
                note = self.notes.recv() => match note {
                    Some(note) => self.take(note),
                    None => break,
                },
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => self.write().await,
                () = stop.cancelled() => break,
            }
        }
        self.last_words().await;
    }

    /// What is noted when the worker ends is written too.
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
                entries = self.pending.len(),
                "the ledger is down; what was not written comes again from the broker"
            );
        }
    }

    fn take(&mut self, note: Note) {
        let address = address(&note.entry);
        let (id, deadline) = (address.id(), Instant::now() + note.linger);
        if note.lease.is_none() && !self.pending.contains_key(&id) && self.revs.has_all(&id, &note.entry) {
            // As what went to the journal because the ledger was slow.
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
                };
                self.pending.insert(id, pending);
            }
        }
        // More may wait behind it; it is cheaper to take all of it now.
        while self.pending.len() < BATCH * 4 {
            let Ok(note) = self.notes.try_recv() else { break };
            self.take(note);
        }
    }

    /// When the next request is to go out.
    fn next_write(&self) -> Option<Instant> {
        let first = self.pending.values().map(|pending| pending.deadline).min();
        match self.resting {
            // Down: looked for in any case, so that everybody learns when it is back.
            Some(rest) => Some(rest),
            None => first,
        }
    }

    async fn write(&mut self) {
        let now = Instant::now();
        let ripe = |pending: &Pending| pending.deadline <= now;
        let Some(month) = self
            .pending
            .values()
            .find(|pending| ripe(pending))
            .map(|pending| pending.month)
        else {
            if self.resting.is_some() {
                self.look().await;
            }
            return;
        };
        let mut ids: Vec<String> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.month == month && ripe(pending))
            .map(|(id, _)| id.clone())
            .collect();
        ids.truncate(BATCH);
        let batch: Vec<(String, Pending)> = ids
            .into_iter()
            .filter_map(|id| self.pending.remove_entry(&id))
            .collect();
        match self.send(month, &batch).await {
            Ok(rows) => {
                self.is_up();
                self.settle(month, batch, rows).await;
            }
            Err(CouchError::DatabaseMissing(_) | CouchError::NotFound) => {
                self.store.forget(month);
                self.put_back(batch);
                if let Err(error) = self.store.ensure(month).await {
                    self.is_down(&error);
                }
            }
            // What was asked is at fault: one bad row must not hold up the others.
            Err(CouchError::Refused { .. }) if batch.len() > 1 => self.one_by_one(month, batch).await,
            Err(error @ CouchError::Refused { .. }) => {
                // An answer all the same.
                self.is_up();
                self.give_up(batch, &error.to_string());
            }
            Err(error) => {
                self.put_back(batch);
                self.is_down(&error);
            }
        }
    }

    /// Sends one request. Notes are taken in meanwhile, and a database that lets us wait counts as down before it says so.
    async fn send(&mut self, month: Month, batch: &[(String, Pending)]) -> Result<Vec<Row>, CouchError> {
        let now = self.clock.now();
        let documents: Vec<Value> = batch
            .iter()
            .map(|(id, pending)| {
                let mut record = pending.record.clone();
                record.rev = record.rev.or_else(|| self.revs.get(id, &record.entry));
                record.document(id, (self.due)(&record.entry, now))
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

    async fn settle(&mut self, month: Month, batch: Vec<(String, Pending)>, rows: Vec<Row>) {
        let mut met = Vec::new();
        for ((id, pending), row) in batch.into_iter().zip(rows) {
            match row {
                Row::Saved { rev } => {
                    self.revs.remember(&id, &rev, &pending.record.entry);
                    durable(pending);
                }
                Row::Conflict => met.push((id, pending)),
                Row::Refused(why) => self.give_up(vec![(id, pending)], &why),
            }
        }
        if met.is_empty() {
            return;
        }
        let ids: Vec<String> = met.iter().map(|(id, _)| id.clone()).collect();
        match self.store.load_many(month, &ids).await {
            Ok(mut stored) => {
                for (id, mut pending) in met {
                    let Some(there) = stored.remove(&id) else {
                        // Deleted meanwhile: written anew.
                        self.revs.forget(&id);
                        pending.record.rev = None;
                        self.put_back(vec![(id, pending)]);
                        continue;
                    };
                    if let Some(rev) = &there.rev {
                        self.revs.remember(&id, rev, &there.entry);
                    }
                    if there.knows(&pending.record.entry) && pending.record.lease.is_none() {
                        durable(pending);
                    } else {
                        debug!(id, "another worker wrote too; merging");
                        let mine = Record {
                            rev: None,
                            ..pending.record
                        };
                        pending.record = there.merge(mine);
                        pending.deadline = Instant::now();
                        self.put_back(vec![(id, pending)]);
                    }
                }
            }
            Err(error) => {
                self.put_back(met);
                self.is_down(&error);
            }
        }
    }

    async fn one_by_one(&mut self, month: Month, batch: Vec<(String, Pending)>) {
        for row in batch {
            let single = [row];
            let sent = self.send(month, &single).await;
            let single = Vec::from(single);
            match sent {
                Ok(rows) => {
                    self.is_up();
                    self.settle(month, single, rows).await;
                }
                Err(error @ CouchError::Refused { .. }) => {
                    self.is_up();
                    self.give_up(single, &error.to_string());
                }
                Err(error) => {
                    self.put_back(single);
                    self.is_down(&error);
                }
            }
        }
    }

    /// What the database will never have. When that is because it is too large, its waiters are told, and put their messages to the dead
    /// letters; otherwise they are told nothing, and their messages stay with the broker.
    fn give_up(&mut self, batch: Vec<(String, Pending)>, why: &str) {
        for (id, pending) in batch {
            error!(
                id,
                call_id = shown(&pending.record.entry.call_id),
                why,
                "the ledger refuses an entry; it is not written"
            );
            if is_too_large(why) {
                let why = format!("the ledger refuses the entry: {why}");
                for waiter in pending.waiters {
                    // Whoever does not wait any more comes again.
                    let _ = waiter.send(Err(why.clone()));
                }
            }
        }
    }

    fn put_back(&mut self, batch: Vec<(String, Pending)>) {
        for (id, mut pending) in batch {
            if let Some(newer) = self.pending.remove(&id) {
                let rev = pending.record.rev.clone();
                pending.record = pending.record.merge(newer.record);
                pending.record.rev = rev;
                pending.waiters.extend(newer.waiters);
            }
            self.pending.insert(id, pending);
        }
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

    /// Counts the database as down, and says when it is looked for again: without that, nobody would, for while it is down no notes come.
    fn rest(&mut self, why: &str) {
        self.resting = Some(Instant::now() + AGAIN);
        if self.up.send_if_modified(|up| std::mem::replace(up, false)) {
            LedgerState { state: Err(why) }.emit();
        }
    }

    fn is_down(&mut self, error: &CouchError) {
        self.rest(&error.to_string());
        self.revs.clear();
        // Notes that nobody waits for any more have found another place, or come again.
        self.pending.retain(|_, pending| {
            pending.waiters.retain(|waiter| !waiter.is_closed());
            !pending.waiters.is_empty()
        });
    }
}

/// Whether a refusal, in words, is of a document's size: CouchDB's `document_too_large`, a status 413 of it or of a proxy before it.
fn is_too_large(why: &str) -> bool {
    why.contains("too_large") || why.contains(": 413 ")
}

fn durable(pending: Pending) {
    for waiter in pending.waiters {
        // Whoever does not wait any more does not need to know.
        let _ = waiter.send(Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use crate::config::{Config, Couchdb, Layers};
    use crate::couch::Couch;
    use crate::recording::identity::Key;

    use super::*;

    /// Reads one request, and says whether it is a write of entries.
    async fn is_write(stream: &mut TcpStream) -> bool {
        let (mut head, mut buffer) = (Vec::new(), [0; 65_536]);
        loop {
            let text = String::from_utf8_lossy(&head).into_owned();
            if let Some((first, body)) = text.split_once("\r\n\r\n") {
                let length = first.lines().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("content-length")
                        .then(|| value.trim().parse::<usize>().ok())?
                });
                if body.len() >= length.unwrap_or(0) {
                    return first.lines().next().is_some_and(|line| line.contains("/_bulk_docs"));
                }
            }
            match stream.read(&mut buffer).await {
                Ok(read @ 1..) => head.extend_from_slice(&buffer[..read]),
                _ => return false,
            }
        }
    }

    /// A database that answers everything, but refuses entries, and does not even say so before it counts as down.
    async fn refuse_late(listener: TcpListener, up: watch::Receiver<bool>) {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut up = up.clone();
            tokio::spawn(async move {
                let (status, body) = if is_write(&mut stream).await {
                    let _ = up.wait_for(|up| !up).await;
                    ("400 Bad Request", r#"{"error":"bad_request","reason":"no"}"#)
                } else {
                    (
                        "200 OK",
                        r#"{"ok":true,"couchdb":"Welcome","version":"3.3.3","uuid":"u","vendor":{"name":"v"},"features":[]}"#,
                    )
                };
                let answer = format!(
                    "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    }

    async fn writer() -> (Writer, mpsc::Sender<Note>, watch::Receiver<bool>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = Config::of(Layers::load(None, std::iter::empty()).unwrap())
            .unwrap()
            .couchdb;
        let couch = Couch::new(&Couchdb {
            url: format!("http://{}", listener.local_addr().unwrap()).parse().unwrap(),
            ..config
        });
        let (notes, receiver) = mpsc::channel(8);
        let (sender, up) = watch::channel(true);
        tokio::spawn(refuse_late(listener, up.clone()));
        let store = Arc::new(Store::new(couch.unwrap()));
        let writer = Writer::new(store, Clock::system(), Arc::new(|_, _| None), receiver, sender);
        (writer, notes, up)
    }

    fn note(action: &str) -> (Note, oneshot::Receiver<Result<(), String>>) {
        let (done, receipt) = oneshot::channel();
        let note = Note {
            entry: Entry::new(Key::of("call", action), "call"),
            lease: None,
            linger: Duration::ZERO,
            done,
        };
        (note, receipt)
    }

    #[tokio::test]
    async fn a_database_that_refuses_late_counts_as_up_again_without_another_note() {
        for actions in [&["a"][..], &["a", "b"]] {
            let (mut writer, _notes, mut up) = writer().await;
            let (noted, receipts): (Vec<Note>, Vec<_>) = actions.iter().map(|action| note(action)).unzip();
            noted.into_iter().for_each(|note| writer.take(note));
            let stop = CancellationToken::new();
            let running = tokio::spawn(writer.run(stop.clone()));
            up.wait_for(|up| !up).await.unwrap();
            let back = tokio::time::timeout(LATE, up.wait_for(|up| *up)).await.is_ok();
            assert!(back, "{actions:?}");
            for receipt in receipts {
                assert!(!matches!(receipt.await, Ok(Ok(()))), "what was refused is not promised");
            }
            stop.cancel();
            running.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_database_that_counts_as_down_is_always_looked_for_again() {
        let (mut writer, _notes, mut up) = writer().await;
        writer.rest("it does not answer");
        assert!(!*up.borrow() && writer.next_write().is_some());
        let stop = CancellationToken::new();
        let running = tokio::spawn(writer.run(stop.clone()));
        assert!(tokio::time::timeout(LATE, up.wait_for(|up| *up)).await.is_ok());
        stop.cancel();
        running.await.unwrap();
    }

    #[test]
    fn a_refusal_of_a_documents_size_is_known_in_a_row_and_as_a_whole() {
        let whole = |status, error: &str| CouchError::of_status(status, error, "", "db").to_string();
        assert!(is_too_large("document_too_large: c1!k"));
        assert!(is_too_large(&whole(413, "document_too_large")) && is_too_large(&whole(413, "")));
        assert!(!is_too_large(&whole(400, "bad_request")) && !is_too_large("forbidden: 413"));
    }
}
