//! The stored form of an entry. Pure functions.

use std::panic::{AssertUnwindSafe, catch_unwind};

use aws_lc_rs::digest::{SHA256, digest};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::entry::Entry;
use crate::faults::{Fault, is_back};
use crate::kazoo::time::{Moment, Month};
use crate::lifecycle::State;
use crate::recording::digest::hex;
use crate::recording::identity::Key;

use super::due::Timers;

/// Where an entry is stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// The month of the action.
    pub month: Month,
    pub call_id: String,
    pub key: Key,
}

/// Which worker handles a recording, and until when. It is a hint, not a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Empty: no worker has the lease.
    pub by: String,
    pub until: Moment,
    /// When the lease was written. Of two leases the later one counts.
    pub stamped: Moment,
}

/// An entry as the ledger stores it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub entry: Entry,
    pub lease: Option<Lease>,
    pub rev: Option<String>,
}

/// Characters that stay unescaped in a document's id.
const SAFE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'@');

/// Longer call ids, in encoded form, are shortened in the document's id.
const MAX_CALL: usize = 200;
const KEPT_CALL: usize = 120;

/// Prefix of the ids of all entries of a call. It contains no time.
pub fn call_prefix(call_id: &str) -> String {
    let encoded = utf8_percent_encode(call_id, SAFE).to_string();
    if encoded.len() <= MAX_CALL {
        return format!("c{encoded}!");
    }
    let sum = digest(&SHA256, call_id.as_bytes());
    format!("c{}~{}!", &encoded[..KEPT_CALL], hex(sum.as_ref()))
}

impl Address {
    /// The address that a document's id encodes. `None` for a shortened call id, and for a document that is not an entry.
    pub fn of_id(month: Month, id: &str) -> Option<Self> {
        let (call, key) = id.strip_prefix('c')?.split_once('!')?;
        let address = Self {
            month,
            call_id: percent_decode_str(call).decode_utf8().ok()?.into_owned(),
            key: key.parse().ok()?,
        };
        (address.id() == id).then_some(address)
    }

    pub fn id(&self) -> String {
        format!("{}{}", call_prefix(&self.call_id), self.key)
    }
}

impl Lease {
    /// Whether a worker has the lease at `now`.
    pub fn holds(&self, now: Moment) -> bool {
        !self.by.is_empty() && self.until > now
    }

    /// The lease that was written later. Of two that were written in the same microsecond, no lease counts: a worker that lets a recording
    /// go at once would otherwise keep it from all workers until its lease expires.
    pub fn later(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        let place = |lease: &Self| (lease.stamped, lease.by.is_empty(), lease.until, lease.by.clone());
        match (one, other) {
            (Some(one), Some(other)) => Some(if place(&one) >= place(&other) { one } else { other }),
            (one, other) => one.or(other),
        }
    }
}

impl Record {
    /// Parses a document. `None` when it is not an entry.
    pub fn read(document: &Value) -> Option<Self> {
        let entry = Entry::of_written(
            Key::deserialize(document.get("key")?).ok()?,
            document.get("call_id")?.as_str()?,
            document.get("facts")?.as_array()?,
        );
        if entry.of_other_versions() > 0 && is_back(Fault::OthersUnreadable) {
            return None;
        }
        let lease = document
            .get("lease")
            .and_then(|lease| serde_json::from_value(lease.clone()).ok());
        let rev = document.get("_rev").and_then(Value::as_str).map(str::to_owned);
        Some(Self { entry, lease, rev })
    }

    /// The union of two versions. The revision is this version's.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        Self {
            entry: self.entry.merge(other.entry),
            lease: Lease::later(self.lease, other.lease),
            rev: self.rev.or(other.rev),
        }
    }

    /// Whether this version has all facts of `other`.
    pub fn knows(&self, other: &Entry) -> bool {
        self.entry.knows(other)
    }

    /// The document that `document_of` builds. If the code panics on the entry's facts, the facts are written all the same, with a timer
    /// that is due. A panic here would lose the writes of all other entries in the batch.
    pub fn document(&self, id: &str, timers: impl Into<Timers>) -> Value {
        let timers = timers.into();
        let due = timers.due;
        let made = catch_unwind(AssertUnwindSafe(|| self.document_of(id, timers)));
        made.unwrap_or_else(|_| {
            let mut document = json!({
                "_id": id,
                "key": self.entry.key,
                "call_id": self.entry.call_id,
                "facts": self.entry.written(),
                "zone": self.entry.order().map_or("", |order| order.zone.as_str()),
                "state": "asked",
                "due": due,
            });
            if let (Some(map), Some(rev)) = (document.as_object_mut(), &self.rev) {
                map.insert("_rev".into(), json!(rev));
            }
            document
        })
    }

    /// The document. `timers` are those of the entry without a lease. The fields beside the facts serve only the views, and are
    /// rebuilt at each write.
    fn document_of(&self, id: &str, timers: Timers) -> Value {
        let entry = &self.entry;
        let order = entry.order();
        let leased = self.lease.as_ref().filter(|lease| !lease.by.is_empty());
        // The timer of a leased entry is due when the lease expires, or later.
        let delaying = leased.filter(|_| !is_back(Fault::LeasesIgnored));
        let delayed = |due: Moment| delaying.map_or(due, |lease| due.max(lease.until));
        let due = timers.due.map(delayed);
        let webhooks: Vec<Value> = timers
            .webhooks
            .into_iter()
            .map(|(endpoint, due)| json!({"endpoint": endpoint, "due": delayed(due)}))
            .collect();
        let parked = entry.webhooks().into_iter().filter(|debt| debt.is_parked);
        let parked: Vec<String> = parked.map(|debt| debt.notice.endpoint).collect();
        let outcome = entry.outcome();
        let mut document = json!({
            "_id": id,
            "key": entry.key,
            "call_id": entry.call_id,
            "facts": entry.written(),
            "zone": order.map_or("", |order| order.zone.as_str()),
            "account_id": order.and_then(|order| order.account_id.as_deref()),
            "media_id": order.map(|order| order.media_id.as_str()),
            "document_id": entry.delivery().map(|delivery| delivery.document.id.as_str()),
            "fetch_id": order.and_then(|order| order.command.as_ref()).and_then(|command| command.fetch_id.as_deref()),
            "interaction": entry.interaction(),
            "asked_at": order.map(|order| order.asked_at),
            "state": State::of(entry).name(),
            "cause": outcome.map(|(_, cause)| cause).or_else(|| entry.parked()),
            "open": entry.is_open(),
            "due": due,
            "webhooks": (!webhooks.is_empty()).then_some(webhooks),
            "webhooks_parked": (!parked.is_empty()).then_some(parked),
        });
        if let Some(map) = document.as_object_mut() {
            map.retain(|_, value| !value.is_null());
            if let Some(rev) = &self.rev {
                map.insert("_rev".into(), json!(rev));
            }
            if let Some(lease) = leased {
                map.insert("lease".into(), json!(lease));
            }
        }
        document
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(call_id: &str) -> Address {
        Address {
            month: Moment::from_unix_seconds(0).month(),
            call_id: call_id.into(),
            key: Key::of(call_id, "a"),
        }
    }

    #[test]
    fn the_entries_of_a_call_are_one_range_of_ids() {
        let id = address("a84b@pc33.example.com").id();
        assert!(id.starts_with("ca84b@pc33.example.com!"), "{id}");
        assert_eq!(call_prefix("a b/c!"), "ca%20b%2Fc%21!");
        let long = "x".repeat(900);
        let prefix = call_prefix(&long);
        assert!(prefix.len() <= MAX_CALL && prefix != call_prefix(&"x".repeat(901)));
    }

    #[test]
    fn the_later_lease_counts() {
        let lease = |by: &str, stamped| Lease {
            by: by.into(),
            until: Moment::from_unix_seconds(100),
            stamped: Moment::from_unix_seconds(stamped),
        };
        assert_eq!(
            Lease::later(Some(lease("a", 1)), Some(lease("b", 2))),
            Some(lease("b", 2))
        );
        assert_eq!(
            Lease::later(Some(lease("", 3)), Some(lease("b", 2))),
            Some(lease("", 3))
        );
        let (taken, given_up) = (Some(lease("a", 1)), Some(lease("", 1)));
        for (one, other) in [(&taken, &given_up), (&given_up, &taken)] {
            assert_eq!(Lease::later(one.clone(), other.clone()), given_up, "in either order");
        }
        assert!(lease("a", 1).holds(Moment::from_unix_seconds(99)));
        assert!(!lease("a", 1).holds(Moment::from_unix_seconds(100)));
        assert!(!lease("", 1).holds(Moment::from_unix_seconds(99)));
    }

    #[test]
    fn a_record_survives_its_document() {
        let entry = Entry::new(Key::of("call", "a"), "call");
        let record = Record {
            entry,
            lease: None,
            rev: Some("1-a".into()),
        };
        let document = record.document("id", None);
        assert_eq!(Record::read(&document), Some(record));
        assert_eq!(Record::read(&json!({"_id": "_design/x"})), None);
    }

    proptest! {
        #[test]
        fn two_calls_never_share_an_id(one in ".{0,300}", other in ".{0,300}") {
            prop_assume!(one != other);
            prop_assert_ne!(call_prefix(&one), call_prefix(&other));
            prop_assert!(call_prefix(&one).len() <= MAX_CALL + 2 && call_prefix(&one).is_ascii());
        }
    }
}
