//! The last known revisions, so that a write needs no read before it.

use std::collections::{HashMap, VecDeque};

use crate::entry::Entry;

/// Revisions that are remembered.
const REMEMBERED: usize = 20_000;

/// The entries that were written or read last.
#[derive(Default)]
pub struct Revs {
    known: HashMap<String, Known>,
    order: VecDeque<String>,
}

/// A revision, and the facts that it contains.
struct Known {
    rev: String,
    facts: Vec<u64>,
    /// Whether as many copies as the quorum contain it.
    safe: bool,
}

impl Revs {
    /// The revision that `entry` may replace: a revision without further facts. An entry from another source, such as the journal, may lack
    /// facts that were written already. Its write would delete them.
    pub fn get(&self, id: &str, entry: &Entry) -> Option<String> {
        let known = self.known.get(id)?;
        let has = entry.fingerprints();
        known
            .facts
            .iter()
            .all(|fact| has.contains(fact))
            .then(|| known.rev.clone())
    }

    /// Whether all facts of `entry` were written before, with enough copies.
    pub fn has_all(&self, id: &str, entry: &Entry) -> bool {
        let Some(known) = self.known.get(id) else { return false };
        known.safe && entry.fingerprints().iter().all(|fact| known.facts.contains(fact))
    }

    /// `safe`: as many copies as the quorum contain the revision.
    pub fn remember(&mut self, id: &str, rev: &str, entry: &Entry, safe: bool) {
        let known = Known {
            rev: rev.to_owned(),
            facts: entry.fingerprints(),
            safe,
        };
        if self.known.insert(id.to_owned(), known).is_none() {
            self.order.push_back(id.to_owned());
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }

    pub fn forget(&mut self, id: &str) {
        self.known.remove(id);
    }

    pub fn clear(&mut self) {
        self.known.clear();
        self.order.clear();
    }
}

#[cfg(test)]
mod tests {
    use crate::entry::fact::{Fact, What};
    use crate::kazoo::time::Moment;
    use crate::recording::identity::Key;

    use super::*;

    fn entry(facts: &[What]) -> Entry {
        let mut entry = Entry::new(Key::of("call", "action"), "call");
        for what in facts {
            entry.add(Fact {
                at: Moment::from_unix_seconds(1_795_386_262),
                by: "w".into(),
                what: what.clone(),
            });
        }
        entry
    }

    #[test]
    fn an_entry_that_knows_less_than_what_is_written_replaces_nothing() {
        let less = entry(&[What::Commanded]);
        let more = entry(&[What::Commanded, What::StopUnconfirmed]);
        let mut revs = Revs::default();
        assert_eq!(revs.get("id", &more), None);
        revs.remember("id", "1-a", &less, true);
        assert_eq!(revs.get("id", &more).as_deref(), Some("1-a"));
        revs.remember("id", "2-b", &more, true);
        assert_eq!(revs.get("id", &less), None);
        assert!(revs.has_all("id", &less) && revs.has_all("id", &more) && !revs.has_all("other", &less));
        assert_eq!(revs.get("id", &more).as_deref(), Some("2-b"));
        revs.remember("id", "3-c", &more, false);
        assert!(!revs.has_all("id", &more), "one copy of it is no promise");
        assert_eq!(revs.get("id", &more).as_deref(), Some("3-c"));
    }
}
