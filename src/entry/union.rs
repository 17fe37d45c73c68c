//! The event log itself: how it grows, how two versions merge, what is kept of long logs, and how it is stored.
//!
//! Old and new program versions write the same entries. If this version can read a fact only in part, or not at all, it keeps the fact as
//! it was written. The fact goes back into the ledger unchanged.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::faults::{self, is_back};
use crate::recording::identity::Key;

use super::Entry;
use super::fact::{Fact, What};
use super::shared::{SharedFact, fingerprint};

/// Facts of one kind that are kept: the first of them and the last.
pub(super) const KEPT_FIRST: usize = 4;
pub(super) const KEPT_LAST: usize = 28;

/// How many kinds of facts of other versions are kept.
const MOST_KINDS: usize = 64;

/// A fact as another version of the program wrote it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Opaque {
    at: i64,
    kind: String,
    /// The fact as JSON text, for a total order.
    text: String,
    written: Value,
    /// The part of it that this version can read.
    read: Option<SharedFact>,
}

/// An entry as it is written down.
#[derive(Serialize, Deserialize)]
pub(super) struct Written {
    key: Key,
    call_id: String,
    facts: Vec<Value>,
}

impl Opaque {
    fn of(written: Value, read: Option<SharedFact>) -> Self {
        Self {
            at: written.get("at").and_then(Value::as_i64).unwrap_or_default(),
            kind: written
                .get("fact")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            text: written.to_string(),
            written,
            read,
        }
    }

    fn place(&self) -> (i64, &str, &str) {
        (self.at, &self.kind, &self.text)
    }
}

impl From<Written> for Entry {
    fn from(written: Written) -> Self {
        Self::of_written(written.key, &written.call_id, &written.facts)
    }
}

impl From<Entry> for Written {
    fn from(entry: Entry) -> Self {
        Self {
            facts: entry.written(),
            key: entry.key,
            call_id: entry.call_id,
        }
    }
}

/// Whether `ours` contains everything that `theirs` contains. A missing field equals `null`.
fn says_all(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => theirs
            .iter()
            .all(|(name, value)| value.is_null() || ours.get(name).is_some_and(|ours| says_all(ours, value))),
        (Value::Array(ours), Value::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(ours, theirs)| says_all(ours, theirs))
        }
        (ours, theirs) => ours == theirs,
    }
}

impl Entry {
    /// The entry whose facts are stored like this.
    pub fn of_written(key: Key, call_id: &str, facts: &[Value]) -> Self {
        let mut entry = Self::new(key, call_id);
        for fact in facts {
            let read = Fact::deserialize(fact).ok().map(SharedFact::from);
            let whole = read
                .as_ref()
                .and_then(|read| serde_json::to_value(read).ok())
                .is_some_and(|ours| says_all(&ours, fact));
            entry.facts.extend(read.clone());
            if !whole {
                entry.opaque.push(Opaque::of(fact.clone(), read));
            }
        }
        entry.normalise();
        entry
    }

    /// Adds a fact. `false` when the same fact is known already, from any worker and any time. Also `false` when too many of its kind are
    /// known to keep it.
    pub fn add(&mut self, fact: Fact) -> bool {
        let fact = SharedFact::from(fact);
        let news = !self.facts().any(|known| known.what == fact.what);
        self.facts.push(fact.clone());
        self.normalise();
        news && self.facts.contains(&fact)
    }

    /// The union of two versions of the same entry. Commutative, associative and idempotent.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        let dropped = |fact: &Fact| fact.what.kind() == "held" && is_back(faults::Fault::MergeDropsHeld);
        self.facts.extend(other.facts.into_iter().filter(|fact| !dropped(fact)));
        self.opaque.extend(other.opaque);
        self.normalise();
        self
    }

    /// Whether everything that `other` knows is known here.
    pub fn knows(&self, other: &Self) -> bool {
        let fact = |fact: &SharedFact| self.facts.iter().any(|known| known == fact || known.what == fact.what);
        let opaque = |opaque: &Opaque| self.opaque.iter().any(|known| known.written == opaque.written);
        other.facts.iter().all(fact) && other.opaque.iter().all(opaque)
    }

    /// The facts as they are stored, including those of other versions.
    pub fn written(&self) -> Vec<Value> {
        let is_there = |fact: &SharedFact| self.opaque.iter().any(|opaque| opaque.read.as_ref() == Some(fact));
        let own = self.facts.iter().filter(|fact| !is_there(fact));
        let mut written: Vec<(i64, Value)> = own
            .filter_map(|fact| Some((fact.at.unix_micros(), serde_json::to_value(fact).ok()?)))
            .chain(self.opaque.iter().map(|opaque| (opaque.at, opaque.written.clone())))
            .collect();
        written.sort_by_key(|(at, _)| *at);
        written.into_iter().map(|(_, fact)| fact).collect()
    }

    /// A number for each fact. Facts with the same content have the same number. Facts of other versions are included.
    pub fn fingerprints(&self) -> Vec<u64> {
        let own = self.facts.iter().map(SharedFact::fingerprint);
        own.chain(self.opaque.iter().map(|opaque| fingerprint(&opaque.text)))
            .collect()
    }

    /// Facts of kinds that this version knows, with unknown content: a newer version decided something that this one cannot judge.
    pub fn unreadable(&self) -> impl Iterator<Item = &str> {
        let unread = self.opaque.iter().filter(|opaque| opaque.read.is_none());
        unread
            .map(|opaque| opaque.kind.as_str())
            .filter(|kind| What::KINDS.contains(kind))
    }

    /// How many facts only another program version can read, or read completely.
    pub fn of_other_versions(&self) -> usize {
        self.opaque.len()
    }

    /// Sorts. Keeps the earliest of facts with the same content, and the first few and the last of each kind.
    fn normalise(&mut self) {
        self.facts.sort_by(|one, other| one.order(other));
        let mut kept: Vec<SharedFact> = Vec::with_capacity(self.facts.len());
        for fact in self.facts.drain(..) {
            if !kept.iter().any(|known| known.what == fact.what) {
                kept.push(fact);
            }
        }
        // Rarely needed.
        if kept.len() > KEPT_FIRST + KEPT_LAST {
            // Read-backs without an answer displace none that had one.
            bound(&mut kept, |fact| is_unanswered(&fact.what), |fact| rank(fact));
            for kind in What::KINDS.iter().copied() {
                let is_of_kind = |fact: &SharedFact| fact.what.kind() == kind && !is_unanswered(&fact.what);
                bound(&mut kept, is_of_kind, |fact| rank(fact));
            }
        }
        self.facts = kept;
        if !self.opaque.is_empty() {
            self.bound_opaque();
        }
    }

    fn bound_opaque(&mut self) {
        self.opaque.sort_by(|one, other| one.place().cmp(&other.place()));
        let mut kept: Vec<Opaque> = Vec::with_capacity(self.opaque.len());
        for opaque in self.opaque.drain(..) {
            if !kept.iter().any(|known| known.written == opaque.written) {
                kept.push(opaque);
            }
        }
        let mut kinds: Vec<String> = kept.iter().map(|opaque| opaque.kind.clone()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds.truncate(MOST_KINDS);
        kept.retain(|opaque| kinds.contains(&opaque.kind));
        for kind in &kinds {
            let rank = |opaque: &Opaque| (opaque.at, opaque.text.clone());
            bound(&mut kept, |opaque| opaque.kind == *kind, rank);
        }
        self.opaque = kept;
    }
}

const fn is_unanswered(what: &What) -> bool {
    matches!(what, What::Looked { unanswered: true, .. })
}

/// The rank of a fact among those of its kind. A number counts before the time. Two workers see the same fact at different times, and the
/// facts that are kept must not depend on the order of merges.
fn rank(fact: &Fact) -> (i64, String) {
    let content = || format!("{:?}", fact.what);
    let number = fact.what.number().map(i64::from);
    (number.unwrap_or(fact.at.unix_micros()), content())
}

/// Keeps the first few and the last of the items that `is` selects.
fn bound<T, R: Ord>(all: &mut Vec<T>, is: impl Fn(&T) -> bool, rank: impl Fn(&T) -> R) {
    if all.iter().filter(|one| is(one)).count() <= KEPT_FIRST + KEPT_LAST {
        return;
    }
    let mut ranked: Vec<(R, usize)> = all
        .iter()
        .enumerate()
        .filter(|(_, one)| is(one))
        .map(|(index, one)| (rank(one), index))
        .collect();
    ranked.sort_unstable();
    let end = ranked.len() - KEPT_LAST;
    let mut drop: Vec<usize> = ranked[KEPT_FIRST..end].iter().map(|(_, index)| *index).collect();
    drop.sort_unstable();
    let mut index = 0;
    all.retain(|_| {
        index += 1;
        drop.binary_search(&(index - 1)).is_err()
    });
}

#[cfg(test)]
mod tests {
    use crate::kazoo::dialplan::Control;
    use crate::kazoo::time::Moment;
    use crate::recording::controls::Why;

    use super::*;

    /// What follows from an entry is added until nothing more follows. A fact that is not kept must not count as new.
    #[test]
    fn a_fact_that_is_not_kept_is_no_news() {
        let mut entry = Entry::new(Key::of("call", "action"), "call");
        let fact = |n: i64| Fact {
            at: Moment::from_unix_seconds(1_795_386_262 - n),
            by: "w".into(),
            what: What::NotObeyed {
                action: format!("a{n}"),
                what: Control::Mask,
                why: Why::Moved,
            },
        };
        for n in 0..200 {
            let news = entry.add(fact(n));
            let is_there = entry.facts().any(|known| known.what == fact(n).what);
            assert_eq!(news, is_there, "{n}");
        }
        assert!(entry.facts().count() <= 32);
        let added = (0..200).filter(|n| entry.add(fact(*n))).count();
        assert!(added < 200, "{added}");
    }
}
