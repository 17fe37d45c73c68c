//! Stops of one call that reach several workers at the same time.

use std::sync::Arc;
use std::time::Duration;

use crate::entry::Entry;
use crate::entry::fact::{Fact, What};
use crate::kazoo::time::Moment;
use crate::ledger::Address;

use super::find::Finder;
use crate::flow::inbox::request::Request;
use crate::flow::memory::Open;

/// Time limit for the ledger to load a recording.
const KNOWLEDGE: Duration = Duration::from_secs(1);

/// Another worker's message about a stop that it sent at the same time is there after the first of these, or on a busy machine after both.
const HEARD_WITHIN: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(700)];

/// No command is under way for longer than that.
const WELL_BEFORE: Duration = Duration::from_secs(2);

/// How many stops of one call may come at the same time.
const MOST_AT_ONCE: usize = 4;

/// Tells apart stops that come at the same time.
pub struct AtOnce {
    pub finder: Arc<Finder>,
}

impl AtOnce {
    /// Two stops of one call can reach two workers at the same moment. They must not both be spent on the call's newest recording: the later
    /// stop is for the recording before it. Both workers see the same facts, so both see the same stop as the later one. Nor must a stop be
    /// spent on a recording that was over while its end was on the way.
    pub(super) async fn the_one_before(&self, request: &Request<'_>, open: &Open, asked: &Fact) -> Option<Open> {
        if !self.knows_others(request, open) {
            // Of a recording that began while the connection to the broker was away this worker never heard.
            if !self.finder.ledger.is_up() {
                return None;
            }
            self.learn_others(request).await;
            if !self.knows_others(request, open) {
                return None;
            }
        }
        let mine = stop_of(asked)?;
        for pause in HEARD_WITHIN {
            tokio::time::sleep(pause).await;
            let next = self.not_spent(request, open, mine).await?;
            if next.key != open.key {
                return Some(next);
            }
        }
        None
    }

    fn knows_others(&self, request: &Request<'_>, open: &Open) -> bool {
        let of_call = self
            .finder
            .memory
            .of_call(request.action.call.fetch_id.as_deref(), &request.action.call_id);
        of_call.iter().any(|other| other.key != open.key)
    }

    /// Remembers what the ledger knows of the call, and this worker never heard of.
    async fn learn_others(&self, request: &Request<'_>) {
        let looking = self.finder.in_ledger(request);
        let Ok(Ok(records)) = tokio::time::timeout(KNOWLEDGE, looking).await else {
            return;
        };
        for record in &records {
            self.finder.remember_unheard(&record.entry);
        }
    }

    /// The newest recording of the call, from `open` on, on which no earlier stop was spent, and that was not over; `None`: there is none.
    async fn not_spent(&self, request: &Request<'_>, open: &Open, mine: (Moment, &str)) -> Option<Open> {
        let memory = &self.finder.memory;
        let mut newest = open.clone();
        for _ in 0..MOST_AT_ONCE {
            let Some(entry) = self.now_known(&newest).await else {
                break;
            };
            let mut stops = entry.facts().filter_map(stop_of);
            let collides = stops.any(|(at, action)| action != mine.1 && (at, action) < mine);
            // The stop itself ends it too: what counts is an end well before.
            let end = entry.told_end().and_then(|told| Some(entry.by_our_clock(told.stamp?)));
            let was_over = end.is_some_and(|end| end.plus(WELL_BEFORE) < mine.0);
            if !collides && !was_over {
                break;
            }
            memory.stopping(newest.key);
            // None that was begun since: the call has its answer, and goes on.
            let before = Some(open.asked_at);
            newest = memory.newest(request.action.call.fetch_id.as_deref(), &request.action.call_id, before)?;
        }
        Some(newest)
    }

    /// What is known of a recording by now, here and in the ledger. The memory alone does not suffice: what it heard of a recording is dropped
    /// when another worker's notice says that the recording is over, and what comes after that is a part.
    async fn now_known(&self, open: &Open) -> Option<Entry> {
        let remembered = self.finder.memory.entry(open.key);
        let address = Address {
            month: open.asked_at.month(),
            call_id: open.call_id.clone(),
            key: open.key,
        };
        let loading = tokio::time::timeout(KNOWLEDGE, self.finder.ledger.load(&address)).await;
        let written = loading.ok().and_then(Result::ok).flatten().map(|record| record.entry);
        match (remembered, written) {
            (Some(remembered), Some(written)) => Some(written.merge(remembered)),
            (remembered, written) => remembered.or(written),
        }
    }
}

/// When a stop was carried out, and which stop it was.
fn stop_of(fact: &Fact) -> Option<(Moment, &str)> {
    match &fact.what {
        What::StopAsked { action, .. } => Some((fact.at, action)),
        _ => None,
    }
}
