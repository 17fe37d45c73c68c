//! Which recording has a place that only one may have, such as a file name at a user's URL.
//!
//! The list of a call's entries comes from one copy of the database, and a node that was away lacks the newest ones for a while. A claim has
//! an id of its own. It is created once, and read by its id from most copies.

use serde_json::{Value, json};

use crate::couch::{CouchError, Row};
use crate::kazoo::time::Month;

use super::database;
use super::record::Address;
use super::store::Store;

/// Begins the ids of claims. The ids of entries begin with `c`.
pub(super) const PREFIX: &str = "place-";

/// Who has a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    Mine,
    Other(Address),
}

impl Store {
    /// Claims a place for a recording, unless another recording of these months has it. `from` is the one that it may be taken from.
    pub async fn claim(
        &self,
        place: &str,
        mine: &Address,
        months: &[Month],
        from: Option<&Address>,
    ) -> Result<Holder, CouchError> {
        let id = format!("{PREFIX}{place}");
        let (mut month, mut rev) = (mine.month, None);
        for searched in months.iter().filter(|month| **month != mine.month).chain([&mine.month]) {
            let Some(document) = self.claim_in(*searched, &id).await? else {
                continue;
            };
            match holder(&document) {
                Some(holder) if holder == *mine => return Ok(Holder::Mine),
                Some(holder) if Some(&holder) != from => return Ok(Holder::Other(holder)),
                _ => (month, rev) = (*searched, document.get("_rev").cloned()),
            }
        }
        self.ensure(month).await?;
        let mut claim = json!({ "_id": id, "month": mine.month.to_string(), "call_id": mine.call_id, "key": mine.key });
        if let Some(rev) = rev {
            claim["_rev"] = rev;
        }
        match &self.couch.bulk_docs(&database(month), &[claim]).await?[..] {
            [
                Row::Saved {
                    below_quorum: false, ..
                },
            ] => return Ok(Holder::Mine),
            // The next try finds it, and by then the other nodes may have it.
            [Row::Saved { .. }] => return Err(CouchError::NoAnswer("too few nodes took the claim of a place".into())),
            _ => {}
        }
        // Another recording was first, or an earlier try of this one.
        match self.claim_in(month, &id).await?.as_ref().and_then(holder) {
            Some(holder) if holder == *mine => Ok(Holder::Mine),
            Some(holder) => Ok(Holder::Other(holder)),
            None => Err(CouchError::NoAnswer("the claim of a place was not taken".into())),
        }
    }

    async fn claim_in(&self, month: Month, id: &str) -> Result<Option<Value>, CouchError> {
        match self.couch.get_many(&database(month), &[id.to_owned()]).await {
            Ok(found) => Ok(found.into_iter().flatten().next()),
            Err(error) => {
                self.missing(error).await?;
                self.forget(month);
                Ok(None)
            }
        }
    }
}

/// The recording that a claim names. `None` for a document that is no claim.
fn holder(document: &Value) -> Option<Address> {
    let text = |key: &str| document.get(key).and_then(Value::as_str);
    Some(Address {
        month: Month::of_id(text("month")?)?,
        call_id: text("call_id")?.to_owned(),
        key: text("key")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use crate::entry::fact::What;
    use crate::kazoo::time::{Clock, Moment};
    use crate::ledger::testing::{entry, policy, server, welcome};

    use super::*;

    fn address(action: &str) -> Address {
        crate::ledger::address(&entry(action, 1_795_386_262, &[What::Commanded]))
    }

    /// What a claim comes to where a month's database has these claims, and a write gets this row.
    async fn claimed(present: [Option<Value>; 2], row: Value, from: Option<&Address>) -> Result<Holder, CouchError> {
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let (couch, _) = server(move |first, body| {
            if first.contains("_bulk_docs") {
                let mut row = row.clone();
                // A claim that is taken over names the revision that it replaces.
                if row.get("ok").is_some() && body.contains("_rev") != (row["rev"] == "2-b") {
                    row = json!({"id": "x", "error": "conflict", "reason": "conflict"});
                }
                ("201 Created", json!([row]))
            } else if first.contains("_all_docs") {
                let nth = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst).min(1);
                match &present[nth] {
                    Some(claim) => (
                        "200 OK",
                        json!({"rows": [{"id": "p", "key": "p", "value": {"rev": "1-a"}, "doc": claim}]}),
                    ),
                    None => ("200 OK", json!({"rows": [{"key": "p", "error": "not_found"}]})),
                }
            } else {
                welcome()
            }
        })
        .await;
        let store = Store::new(
            std::sync::Arc::new(couch),
            Clock::fixed(Moment::from_unix_seconds(1_795_386_400)),
            policy(),
        );
        store.claim("x", &address("mine"), &[address("mine").month], from).await
    }

    fn of(action: &str) -> Option<Value> {
        let address = address(action);
        Some(
            json!({"_id": "place-x", "_rev": "1-a", "month": "202611", "call_id": address.call_id, "key": address.key}),
        )
    }

    #[tokio::test]
    async fn a_place_has_one_recording_and_is_given_up_to_whom_it_is_left() {
        let (saved, conflict) = (
            json!({"ok": true, "id": "x", "rev": "1-a"}),
            json!({"id": "x", "error": "conflict"}),
        );
        let other = Holder::Other(address("other"));
        let claim = |present, row: &Value| claimed(present, row.clone(), None);
        assert_eq!(claim([None, None], &saved).await, Ok(Holder::Mine));
        assert_eq!(claim([of("mine"), None], &conflict).await, Ok(Holder::Mine));
        assert_eq!(claim([of("other"), None], &saved).await, Ok(other.clone()));
        // Two at once: one of them is told of the other.
        assert_eq!(claim([None, of("other")], &conflict).await, Ok(other.clone()));
        assert_eq!(claim([None, of("mine")], &conflict).await, Ok(Holder::Mine));
        assert!(claim([None, None], &conflict).await.is_err());
        let left = json!({"ok": true, "id": "x", "rev": "2-b"});
        let from = address("other");
        assert_eq!(claimed([of("other"), None], left, Some(&from)).await, Ok(Holder::Mine));
    }
}
