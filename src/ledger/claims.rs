//! Which recording has a place that only one may have, such as a file name at a user's URL.
//!
//! The list of a call's entries comes from one copy of the database, and a node that was away lacks the newest ones for a while. A claim has
//! an id of its own. It is created once, and read by its id from most copies.

use futures_util::future::try_join_all;
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

/// A claim that is in the ledger.
struct Claim {
    document: Value,
    holder: Address,
    /// The month whose database has it: not always its recording's own.
    month: Month,
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
        let present = self.claims(&id, mine, months).await?;
        let own = present.iter().find(|claim| claim.holder == *mine);
        let others = present.iter().filter(|claim| claim.holder != *mine);
        let other = others
            .filter(|claim| Some(&claim.holder) != from)
            .min_by_key(|claim| &claim.holder);
        match (own, other) {
            // Both were written at the same time, and no worker came to its second look.
            (Some(own), Some(other)) if *mine > other.holder => {
                self.give_up(own).await?;
                return Ok(Holder::Other(other.holder.clone()));
            }
            (Some(_), _) => return Ok(Holder::Mine),
            (None, Some(other)) => return Ok(Holder::Other(other.holder.clone())),
            (None, None) => {}
        }
        let left = present.into_iter().next();
        let month = left.as_ref().map_or(mine.month, |claim| claim.month);
        self.ensure(month).await?;
        let mut claim = json!({ "_id": id, "month": mine.month.to_string(), "call_id": mine.call_id, "key": mine.key });
        if let Some(left) = left {
            claim["_rev"] = left.document["_rev"].clone();
        }
        match &self.couch.bulk_docs(&database(month), &[claim]).await?[..] {
            [
                Row::Saved {
                    below_quorum: false,
                    rev,
                },
            ] => {
                let own = Claim {
                    document: json!({ "_id": id, "_rev": rev }),
                    holder: mine.clone(),
                    month,
                };
                return self.after_all(own, months, from).await;
            }
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

    /// Whether a new claim stands. Two recordings of different months write into different databases, which cannot refuse the second one. Each
    /// looks for the other after it wrote, so the one that wrote last finds the other, and gives up its own. If both give up, each tries again.
    async fn after_all(&self, own: Claim, months: &[Month], from: Option<&Address>) -> Result<Holder, CouchError> {
        let id = own.document["_id"].as_str().unwrap_or_default();
        let elsewhere: Vec<Month> = months.iter().copied().filter(|month| *month != own.month).collect();
        if elsewhere.is_empty() {
            return Ok(Holder::Mine);
        }
        let present = self.claims(id, &own.holder, &elsewhere).await?;
        let mut others = present.into_iter().map(|claim| claim.holder);
        let Some(other) = others.find(|other| *other != own.holder && Some(other) != from) else {
            return Ok(Holder::Mine);
        };
        self.give_up(&own).await?;
        Ok(Holder::Other(other))
    }

    async fn give_up(&self, claim: &Claim) -> Result<(), CouchError> {
        let mut document = claim.document.clone();
        document["_deleted"] = true.into();
        self.couch.bulk_docs(&database(claim.month), &[document]).await?;
        Ok(())
    }

    /// The claims of a place in these months, and in the recording's own.
    async fn claims(&self, id: &str, mine: &Address, months: &[Month]) -> Result<Vec<Claim>, CouchError> {
        let all: Vec<Month> = months.iter().copied().filter(|month| *month != mine.month).collect();
        let found = try_join_all(all.iter().chain([&mine.month]).map(|month| async move {
            let document = self.claim_in(*month, id).await?;
            Ok(document.and_then(|document| {
                let (holder, month) = (holder(&document)?, *month);
                Some(Claim {
                    document,
                    holder,
                    month,
                })
            }))
        }));
        Ok(found.await?.into_iter().flatten().collect())
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
    /// What a claim in November comes to, and what it wrote. December's database has another recording's claim: from the beginning on, or only
    /// after November's was written.
    async fn beside_december(is_there: bool, november: Option<Value>, mine: &Address) -> (Holder, Vec<Value>) {
        let december = Month::of_id("202612").unwrap();
        let has_written = std::sync::atomic::AtomicBool::new(is_there);
        let (couch, log) = server(move |first, _| {
            if first.contains("_bulk_docs") {
                has_written.store(true, std::sync::atomic::Ordering::SeqCst);
                return ("201 Created", json!([{"ok": true, "id": "x", "rev": "1-b"}]));
            }
            if !first.contains("_all_docs") {
                return welcome();
            }
            let claim = match first.contains("202612") {
                true => of("other").filter(|_| has_written.load(std::sync::atomic::Ordering::SeqCst)),
                false => november.clone(),
            };
            let row = match claim {
                Some(mut claim) => {
                    if first.contains("202612") {
                        claim["month"] = "202612".into();
                    }
                    json!({"id": "p", "key": "p", "value": {"rev": "1-a"}, "doc": claim})
                }
                None => json!({"key": "p", "error": "not_found"}),
            };
            ("200 OK", json!({"rows": [row]}))
        })
        .await;
        let store = Store::new(
            std::sync::Arc::new(couch),
            Clock::fixed(Moment::from_unix_seconds(1_795_386_400)),
            policy(),
        );
        let claimed = store.claim("x", mine, &[mine.month, december], None).await.unwrap();
        let log = log.lock().unwrap();
        let writes = log.iter().filter(|(first, _)| first.contains("_bulk_docs"));
        let writes = writes.map(|(_, body)| serde_json::from_str::<Value>(body).unwrap()["docs"][0].clone());
        (claimed, writes.collect())
    }

    #[tokio::test]
    async fn of_two_claims_in_two_months_at_once_the_later_one_is_given_up() {
        let mine = address("mine");
        let mut other = address("other");
        other.month = Month::of_id("202612").unwrap();
        let (claimed, writes) = beside_december(false, None, &mine).await;
        assert_eq!(claimed, Holder::Other(other.clone()));
        assert_eq!(writes.len(), 2, "{writes:?}");
        assert_eq!(writes[1]["_deleted"], true, "{writes:?}");
        assert_eq!(writes[1]["_rev"], "1-b", "{writes:?}");
        // The other one was first.
        let (claimed, writes) = beside_december(true, None, &mine).await;
        assert_eq!((claimed, writes.len()), (Holder::Other(other), 0));
    }

    /// Both were written, and then both workers were killed.
    #[tokio::test]
    async fn of_two_claims_that_were_left_in_two_months_one_stands() {
        let mine = address("mine");
        let (claimed, writes) = beside_december(true, of("mine"), &mine).await;
        assert_eq!((claimed, writes.len()), (Holder::Mine, 0), "November comes first");
        let mut later = mine.clone();
        later.month = Month::of_id("202701").unwrap();
        let mut left = of("mine").unwrap();
        left["month"] = "202701".into();
        let (claimed, writes) = beside_december(true, Some(left), &later).await;
        assert!(matches!(claimed, Holder::Other(_)), "{claimed:?}");
        assert_eq!(writes.len(), 1, "{writes:?}");
        assert_eq!(writes[0]["_deleted"], true, "{writes:?}");
    }
}
