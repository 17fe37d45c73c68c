//! When the entries that this worker wrote are due. The view of due timers need not be asked before that for them. It is asked for the entries
//! of other workers, and nothing depends on this memory.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::kazoo::time::Moment;

/// A write arrives within this time, as a rule.
const ON_ITS_WAY: Duration = Duration::from_secs(3);

/// Entries that are remembered: the ones that are due first.
const MOST: usize = 100_000;

#[derive(Debug, Default)]
struct Timers {
    /// By a number for an entry's id, in Unix microseconds.
    due: HashMap<u64, i64>,
    order: BTreeSet<(i64, u64)>,
}

impl Timers {
    fn forget(&mut self, id: u64) {
        if let Some(due) = self.due.remove(&id) {
            self.order.remove(&(due, id));
        }
    }
}

/// The timers of the entries that were written last.
#[derive(Debug, Default)]
pub(super) struct Soon(Mutex<Timers>);

impl Soon {
    /// An entry is written as this document.
    pub fn note(&self, document: &Value) {
        let Some(id) = document.get("_id").and_then(Value::as_str) else {
            return;
        };
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let id = hasher.finish();
        let mut timers = self.lock();
        timers.forget(id);
        let Some(due) = document.get("due").and_then(Value::as_i64) else {
            return;
        };
        timers.due.insert(id, due);
        timers.order.insert((due, id));
        if timers.order.len() > MOST
            && let Some((_, last)) = timers.order.pop_last()
        {
            timers.due.remove(&last);
        }
    }

    /// Whether an entry is due.
    pub fn has(&self, now: Moment) -> bool {
        let timers = self.lock();
        timers.order.first().is_some_and(|(due, _)| *due <= now.unix_micros())
    }

    /// All that the ledger had at that time, and that was due, was found. An entry is noted before its write is answered, so a timer stays
    /// until its write must have arrived.
    pub fn passed(&self, now: Moment) {
        let now = now.minus(ON_ITS_WAY);
        let mut timers = self.lock();
        while let Some((due, id)) = timers
            .order
            .first()
            .copied()
            .filter(|(due, _)| *due <= now.unix_micros())
        {
            timers.order.remove(&(due, id));
            timers.due.remove(&id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Timers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Moment {
        Moment::from_unix_seconds(second)
    }

    #[test]
    fn the_last_version_of_an_entry_says_when_it_is_due() {
        let soon = Soon::default();
        assert!(!soon.has(at(1000)));
        soon.note(&json!({"_id": "a", "due": at(10)}));
        soon.note(&json!({"_id": "b", "due": at(20)}));
        assert!(!soon.has(at(9)) && soon.has(at(10)));
        soon.note(&json!({"_id": "a", "due": at(300)}));
        assert!(
            !soon.has(at(19)) && soon.has(at(20)),
            "it was written with a later timer"
        );
        soon.passed(at(22));
        assert!(soon.has(at(22)), "its write may be on its way");
        soon.passed(at(23));
        assert!(!soon.has(at(299)) && soon.has(at(300)));
        soon.note(&json!({"_id": "a"}));
        assert!(!soon.has(at(100_000)), "it waits for an event, or is final");
    }

    #[test]
    fn of_too_many_entries_those_that_are_due_first_are_remembered() {
        let soon = Soon::default();
        for n in 0..MOST + 10 {
            soon.note(&json!({"_id": n.to_string(), "due": at(i64::try_from(n).unwrap())}));
        }
        let timers = soon.lock();
        assert_eq!((timers.order.len(), timers.due.len()), (MOST, MOST));
        assert_eq!(timers.order.first().map(|(due, _)| *due), Some(0));
    }
}
