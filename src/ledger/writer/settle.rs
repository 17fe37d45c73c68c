//! Handles the result of each row of a request. Nothing is lost, and no row is written again without a backoff. A row that conflicts is
//! merged with the other version. A row that the database cannot take now waits. A row that it will never take is reported to its callers.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::couch::{CouchError, Row};
use crate::kazoo::call::shown;
use crate::kazoo::time::Month;
use crate::ledger::record::Record;
use crate::ledger::store::Found;
use crate::telemetry::events::LedgerBelowQuorum;

use super::{Pending, Writer};

/// Backoff before a failed entry is written again. It doubles with each attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// After this many failed writes in a row, the writer logs a warning for the entry.
const MANY: u32 = 8;

/// Delay before an entry below the quorum is written once more. It doubles with each attempt.
const MORE_COPIES: Duration = Duration::from_secs(1);

/// Writes of one entry that may end below the quorum. After that the entry counts as durable, because its cluster has no more nodes now.
const BELOW_QUORUM: u32 = 4;

impl Writer {
    pub(super) async fn settle(&mut self, month: Month, batch: Vec<(String, Pending)>, rows: Vec<Row>) {
        let mut met = Vec::new();
        for ((id, pending), row) in batch.into_iter().zip(rows) {
            match row {
                Row::Saved { rev, below_quorum } => self.saved(id, pending, rev, below_quorum),
                Row::Conflict => met.push((id, pending)),
                Row::Refused(why) if is_for_good(&why) => self.give_up(vec![(id, pending)], &why),
                Row::Refused(why) => self.later(id, pending, &why),
            }
        }
        if met.is_empty() {
            return;
        }
        let ids: Vec<String> = met.iter().map(|(id, _)| id.clone()).collect();
        match self.store.load_many(month, &ids).await {
            Ok(mut stored) => {
                for (id, pending) in met {
                    let there = stored.remove(&id);
                    self.meets(id, pending, there);
                }
            }
            Err(error) => {
                self.put_back(met);
                self.is_down(&error);
            }
        }
    }

    /// The entry is written. Below the quorum, one lost disk could destroy it, so it is written once more before it counts as durable.
    fn saved(&mut self, id: String, mut pending: Pending, rev: String, below_quorum: bool) {
        self.revs.remember(&id, &rev, &pending.record.entry, !below_quorum);
        let awaited = pending.waiters.iter().any(|waiter| !waiter.is_closed());
        if !below_quorum || !awaited {
            return durable(pending);
        }
        pending.tries += 1;
        if pending.tries >= BELOW_QUORUM {
            LedgerBelowQuorum {
                call_id: shown(&pending.record.entry.call_id),
                writes: pending.tries,
            }
            .emit();
            return durable(pending);
        }
        pending.record.rev = Some(rev);
        pending.deadline = Instant::now() + MORE_COPIES * 2u32.saturating_pow(pending.tries - 1);
        self.put_back(vec![(id, pending)]);
    }

    /// The database has another version.
    fn meets(&mut self, id: String, mut pending: Pending, there: Option<Found>) {
        match there {
            // The document was deleted meanwhile, or is missing at the node that answered. It is written anew.
            None => {
                self.revs.forget(&id);
                pending.record.rev = None;
                self.later(id, pending, "it is not there");
            }
            Some(Found::Unreadable) => {
                self.revs.forget(&id);
                pending.record.rev = None;
                self.later(id, pending, "what is there is no entry");
            }
            Some(Found::Record(there)) => {
                if let Some(rev) = &there.rev {
                    // The number of copies is unknown.
                    self.revs.remember(&id, rev, &there.entry, true);
                }
                if there.knows(&pending.record.entry) && pending.record.lease.is_none() && pending.tries == 0 {
                    return durable(pending);
                }
                let mine = Record {
                    rev: None,
                    ..pending.record
                };
                pending.record = there.merge(mine);
                self.later(id, pending, "another worker wrote too");
            }
        }
    }

    /// Writes the entry again, after a backoff.
    pub(super) fn later(&mut self, id: String, mut pending: Pending, why: &str) {
        let pause = FIRST_PAUSE * 2u32.saturating_pow(pending.tries.min(16));
        let pause = if pending.tries == 0 {
            Duration::ZERO
        } else {
            pause.min(LONGEST_PAUSE)
        };
        pending.tries = pending.tries.saturating_add(1);
        let call_id = shown(&pending.record.entry.call_id);
        if pending.tries == MANY {
            warn!(
                event = "ledger_entry_waits",
                id, call_id, why, "ledger entry not written, retrying"
            );
        } else {
            debug!(
                event = "ledger_entry_rewrite",
                id, call_id, why, "ledger entry written again"
            );
        }
        pending.deadline = Instant::now() + pause.mul_f64(0.75 + fastrand::f64() * 0.5);
        pending.waiters.retain(|waiter| !waiter.is_closed());
        if pending.tries > MANY && pending.waiters.is_empty() {
            // The entry was written elsewhere, or its message comes again.
            return;
        }
        self.put_back(vec![(id, pending)]);
    }

    /// Handles a batch that was refused, or failed, as a whole. One row may be at fault. When two rows in a row get no answer, the server
    /// is at fault.
    pub(super) async fn one_by_one(&mut self, month: Month, batch: Vec<(String, Pending)>) {
        let (mut failed, mut rows) = (0, batch.into_iter());
        while let Some(row) = rows.next() {
            let single = [row];
            let sent = self.send(month, &single).await;
            let single = Vec::from(single);
            match sent {
                Ok(rows) => {
                    failed = 0;
                    self.is_up();
                    self.settle(month, single, rows).await;
                }
                Err(error @ CouchError::Refused { .. }) => {
                    failed = 0;
                    self.is_up();
                    self.give_up(single, &error.to_string());
                }
                Err(error) => {
                    failed += 1;
                    for (id, pending) in single {
                        self.later(id, pending, &error.to_string());
                    }
                    if failed > 1 {
                        self.put_back(rows.collect());
                        return self.is_down(&error);
                    }
                }
            }
        }
    }

    /// Handles entries that the database will never accept. If an entry is too large, its callers get the reason, and put their messages
    /// into the dead-letter queue. Otherwise the callers get no result, and their messages stay with the broker.
    pub(super) fn give_up(&mut self, batch: Vec<(String, Pending)>, why: &str) {
        for (id, pending) in batch {
            error!(
                event = "ledger_entry_refused",
                id,
                call_id = shown(&pending.record.entry.call_id),
                why,
                "ledger entry refused"
            );
            if is_too_large(why) {
                let why = format!("the ledger refuses the entry: {why}");
                for waiter in pending.waiters {
                    // If a caller no longer waits, its message comes again.
                    let _ = waiter.send(Err(why.clone()));
                }
            }
        }
    }

    /// Puts entries back to the pending ones, merged with later notes.
    pub(super) fn put_back(&mut self, batch: Vec<(String, Pending)>) {
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
}

/// Whether the reason names a document's size: CouchDB's `document_too_large`, or a status 413 of CouchDB or of a proxy.
pub(super) fn is_too_large(why: &str) -> bool {
    why.contains("too_large") || why.contains(": 413 ")
}

/// Whether a row's refusal is final. For example, the refusal of a shard that does not answer is not.
fn is_for_good(why: &str) -> bool {
    let named = |word: &str| why.starts_with(word);
    is_too_large(why) || named("forbidden") || named("unauthorized") || named("bad_request") || named("doc_validation")
}

fn durable(pending: Pending) {
    for waiter in pending.waiters {
        // A caller that no longer waits needs no result.
        let _ = waiter.send(Ok(()));
    }
}
