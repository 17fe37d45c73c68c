//! What becomes of each row of a request. Nothing is lost, and nothing is written again without a pause: what meets another version is merged
//! with it, what the database cannot take now waits, and what it never will take is told to its waiters.

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

/// Pauses before an entry that was written in vain is written again; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// An entry that this many writes in a row came to nothing with is worth a line in the log.
const MANY: u32 = 8;

/// Before an entry that fewer copies than the quorum have is written once more; each pause is twice the one before.
const MORE_COPIES: Duration = Duration::from_secs(1);

/// Writes of one entry that may end with too few copies, before that is as good as it gets: its cluster has no more nodes now.
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

    /// It is written. Where fewer copies than the quorum have it, one lost disk would take it along: it is written once more before it counts.
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

    /// Another version is there.
    fn meets(&mut self, id: String, mut pending: Pending, there: Option<Found>) {
        match there {
            // Deleted meanwhile, or not at the node that was asked: written anew.
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
                    // How many copies there are of it nobody told.
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

    /// Written again, after a pause that grows.
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
            // It has found another place, or comes again.
            return;
        }
        self.put_back(vec![(id, pending)]);
    }

    /// A batch that was refused, or failed, as a whole. One row of it may be at fault; when two in a row get no answer at all, it is the server.
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

    /// What the database will never have. When that is because it is too large, its waiters are told, and put their messages to the dead
    /// letters; otherwise they are told nothing, and their messages stay with the broker.
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
                    // Whoever does not wait any more comes again.
                    let _ = waiter.send(Err(why.clone()));
                }
            }
        }
    }

    /// Back among what waits, with what was noted meanwhile.
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

/// Whether a refusal, in words, is of a document's size: CouchDB's `document_too_large`, a status 413 of it or of a proxy before it.
pub(super) fn is_too_large(why: &str) -> bool {
    why.contains("too_large") || why.contains(": 413 ")
}

/// Whether a row's refusal is for good. Others, as of a shard that does not answer, are not.
fn is_for_good(why: &str) -> bool {
    let named = |word: &str| why.starts_with(word);
    is_too_large(why) || named("forbidden") || named("unauthorized") || named("bad_request") || named("doc_validation")
}

fn durable(pending: Pending) {
    for waiter in pending.waiters {
        // Whoever does not wait any more does not need to know.
        let _ = waiter.send(Ok(()));
    }
}
