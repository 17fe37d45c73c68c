use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::couch::Couch;
use crate::entry::fact::What;
use crate::ledger::record::Lease;
use crate::ledger::testing::{Log, document, entry, found, policy, server, welcome};

use super::*;

const NOW: Moment = Moment::from_unix_seconds(1_795_386_400);

fn store(couch: Couch) -> Store {
    Store::new(Arc::new(couch), Clock::fixed(NOW), policy())
}

fn here() -> Address {
    crate::ledger::address(&entry("action", 1_795_386_262, &[What::Commanded]))
}

/// A database with one entry, whose other revision is `loser`. `saved` and `deleted` are the answers to writes and deletions.
async fn in_conflict(
    loser: (&'static str, Value),
    saved: Value,
    deleted: (&'static str, Value),
) -> (Result<Option<Record>, CouchError>, Log) {
    let mut winner = document(&[What::Commanded], "2-b");
    winner["_conflicts"] = json!(["2-a"]);
    let (couch, log) = server(move |first, _| {
        if first.contains("_all_docs") {
            found(&winner)
        } else if first.contains("_bulk_docs") {
            ("201 Created", json!([saved]))
        } else if first.contains("rev=2-a") {
            if first.starts_with("GET") {
                loser.clone()
            } else {
                deleted.clone()
            }
        } else {
            welcome()
        }
    })
    .await;
    (store(couch).load(&here()).await, log)
}

fn written(log: &Log) -> Value {
    let log = log.lock().unwrap();
    let (_, body) = log.iter().find(|(first, _)| first.contains("_bulk_docs")).unwrap();
    serde_json::from_str::<Value>(body).unwrap()["docs"][0].clone()
}

fn deletions(log: &Log) -> usize {
    let log = log.lock().unwrap();
    log.iter().filter(|(first, _)| first.starts_with("DELETE")).count()
}

fn saved() -> Value {
    json!({"ok": true, "id": "x", "rev": "3-c"})
}

#[tokio::test]
async fn a_merge_of_conflicts_keeps_the_time_when_it_is_due() {
    let loser = document(&[What::Commanded, What::StopUnconfirmed], "2-a");
    let (loaded, log) = in_conflict(("200 OK", loser), saved(), welcome()).await;
    let written = written(&log);
    assert_eq!(
        written["due"],
        json!(NOW),
        "a start without its order is looked at at once: {written}"
    );
    assert_eq!(written["facts"].as_array().unwrap().len(), 2);
    assert_eq!(
        (deletions(&log), loaded.unwrap().unwrap().rev.as_deref()),
        (1, Some("3-c"))
    );
}

#[tokio::test]
async fn a_conflicting_revision_that_cannot_be_read_is_not_deleted() {
    for unreadable in [
        (
            "404 Object Not Found",
            json!({"error": "not_found", "reason": "missing"}),
        ),
        ("200 OK", json!("a proxy's page")),
        ("200 OK", json!({"_id": "x", "_rev": "2-a", "key": "not a key"})),
    ] {
        let (loaded, log) = in_conflict(unreadable.clone(), saved(), welcome()).await;
        assert_eq!(deletions(&log), 0, "{unreadable:?}");
        assert!(loaded.unwrap().is_some());
    }
}

#[tokio::test]
async fn what_a_newer_version_wrote_is_merged_and_not_lost() {
    let mut newer = document(&[What::Commanded], "2-a");
    let fact = json!({"at": 1, "by": "w2", "fact": "of_the_next_version", "of": {"n": 1}});
    newer["facts"].as_array_mut().unwrap().push(fact.clone());
    let (_, log) = in_conflict(("200 OK", newer), saved(), welcome()).await;
    assert!(written(&log)["facts"].as_array().unwrap().contains(&fact));
    assert_eq!(deletions(&log), 1);
}

#[tokio::test]
async fn to_resolve_a_conflict_second_is_no_outage() {
    let loser = document(&[What::Commanded, What::StopUnconfirmed], "2-a");
    let conflict = (
        "409 Conflict",
        json!({"error": "conflict", "reason": "Document update conflict."}),
    );
    let (loaded, _) = in_conflict(("200 OK", loser.clone()), saved(), conflict.clone()).await;
    assert_eq!(loaded.unwrap().unwrap().entry.facts().count(), 2);
    // The other worker was first with the union.
    let lost = json!({"id": "x", "error": "conflict", "reason": "Document update conflict."});
    let (loaded, log) = in_conflict(("200 OK", loser), lost, conflict).await;
    assert_eq!(
        (loaded.unwrap().unwrap().entry.facts().count(), deletions(&log)),
        (2, 0)
    );
}

#[tokio::test]
async fn the_revisions_that_a_union_was_made_of_stay_while_one_node_alone_has_it() {
    let loser = document(&[What::Commanded, What::StopUnconfirmed], "2-a");
    let accepted = json!({"ok": true, "id": "x", "rev": "3-c", "accepted": true});
    let (_, log) = in_conflict(("200 OK", loser), accepted, welcome()).await;
    assert_eq!(deletions(&log), 0);
}

#[tokio::test]
async fn a_document_that_a_shard_does_not_tell_of_is_not_taken_for_missing() {
    let (couch, _) = server(|first, _| match first.contains("_all_docs") {
        true => ("200 OK", json!({"rows": [{"key": "x", "error": "timeout"}]})),
        false => welcome(),
    })
    .await;
    assert!(store(couch).load(&here()).await.is_err());
}

#[tokio::test]
async fn what_cannot_be_read_does_not_stand_before_what_is_due() {
    let good = document(&[What::Commanded], "1-a");
    let (couch, _) = server(move |first, _| {
        let skip = first
            .split("skip=")
            .nth(1)
            .and_then(|rest| rest.split(['&', ' ']).next());
        let bad =
            json!({"id": "x", "key": [], "value": null, "doc": {"_id": "x", "key": "no", "call_id": "c", "facts": []}});
        match (first.contains("_all_dbs"), skip) {
            (true, _) => ("200 OK", json!(["kz_record_call-202611"])),
            (_, Some("0")) => ("200 OK", json!({"rows": vec![bad; PAGE]})),
            (_, Some(_)) => (
                "200 OK",
                json!({"rows": [{"id": good["_id"], "key": [], "value": null, "doc": good}]}),
            ),
            _ => welcome(),
        }
    })
    .await;
    let due = store(couch).due("", NOW, 4).await.unwrap();
    assert_eq!(
        due.into_iter().map(|(address, _)| address).collect::<Vec<_>>(),
        [here()]
    );
}

/// CouchDB answers each request for a damaged revision with an error. The entry's other facts, and all other entries, stay readable.
#[tokio::test]
async fn a_damaged_revision_is_left_in_place_and_keeps_no_entry_from_its_worker() {
    let damaged = (
        "500 Internal Server Error",
        json!({"error": "unknown_error", "reason": "function_clause"}),
    );
    let (loaded, log) = in_conflict(damaged, saved(), welcome()).await;
    assert!(loaded.unwrap().unwrap().entry.is_commanded());
    assert_eq!(deletions(&log), 0, "what it has is unknown");
    // A server that does not answer is another case.
    let (loaded, _) = in_conflict(
        ("401 Unauthorized", json!({"error": "unauthorized", "reason": "x"})),
        saved(),
        welcome(),
    )
    .await;
    assert!(loaded.is_err());
}

#[tokio::test]
async fn a_lease_of_a_worker_that_is_gone_is_taken_over() {
    for (gone, taken) in [("w2", true), ("another", false)] {
        let mut held = document(&[What::Commanded], "1-a");
        held["lease"] = json!({"by": "w2", "until": NOW.plus(std::time::Duration::from_secs(250)), "stamped": NOW});
        let (couch, _) = server(move |first, _| match first {
            _ if first.contains("_all_docs") => found(&held),
            _ if first.contains("_bulk_docs") => ("201 Created", json!([saved()])),
            _ => welcome(),
        })
        .await;
        let lease = Lease {
            by: "w".into(),
            until: NOW.plus(std::time::Duration::from_secs(300)),
            stamped: NOW,
        };
        let got = store(couch).take(&[here()], &lease, &|worker| worker == gone).await;
        assert_eq!(got[0].as_ref().unwrap().is_some(), taken, "{gone}");
    }
}

/// One copy took the lease, and sent it to the other copies before the cluster asked them. So the other copies refused the lease.
#[tokio::test]
async fn a_lease_that_a_cluster_refuses_and_has_nevertheless_is_taken() {
    for (by, taken) in [("w", true), ("w2", false)] {
        let lease = |by: &str| Lease {
            by: by.into(),
            until: NOW.plus(Duration::from_secs(300)),
            stamped: NOW,
        };
        let free = document(&[What::Commanded], "1-a");
        let mut held = document(&[What::Commanded], "2-b");
        held["lease"] = serde_json::to_value(lease(by)).unwrap();
        let is_written = std::sync::atomic::AtomicBool::new(false);
        let (couch, _) = server(move |first, _| match first {
            _ if first.contains("_all_docs") && is_written.load(Ordering::SeqCst) => found(&held),
            _ if first.contains("_all_docs") => found(&free),
            _ if first.contains("_bulk_docs") => {
                is_written.store(true, Ordering::SeqCst);
                let conflict = json!({"id": "x", "error": "conflict", "reason": "Document update conflict."});
                ("201 Created", json!([conflict]))
            }
            _ => welcome(),
        })
        .await;
        let got = store(couch).take(&[here()], &lease("w"), &|_| false).await;
        let rev = got[0].as_ref().unwrap().as_ref().map(|record| record.rev.clone());
        assert_eq!(rev, taken.then(|| Some("2-b".to_owned())), "{by}");
    }
}

/// The versions of both sides are merged without a lookup of the entry. A union that the server did not write is tried again at the next run,
/// although nothing changed since.
#[tokio::test]
async fn what_both_sides_of_a_parted_cluster_wrote_is_merged_without_anybody_asking_for_it() {
    for refusals in [0, 1] {
        merged_after(refusals).await;
    }
}

async fn merged_after(refusals: u32) {
    let id = here().id();
    let mut winner = document(&[What::Commanded], "2-b");
    winner["_conflicts"] = json!(["2-a"]);
    let loser = document(&[What::StopUnconfirmed], "2-a");
    let changed = json!({"results": [
        {"seq": "1-x", "id": "_design/kz_record_call", "changes": [{"rev": "1-a"}]},
        {"seq": "2-x", "id": id, "changes": [{"rev": "2-b"}, {"rev": "2-a"}]},
    ], "last_seq": "2-x", "pending": 0});
    let writes = std::sync::atomic::AtomicU32::new(0);
    let (couch, log) = server(move |first, _| {
        let written = writes.load(std::sync::atomic::Ordering::SeqCst);
        if first.contains("_all_dbs") {
            ("200 OK", json!(["kz_record_call-202611"]))
        } else if first.contains("_changes") && first.contains("since=0") {
            ("200 OK", changed.clone())
        } else if first.contains("_changes") {
            ("200 OK", json!({"results": [], "last_seq": "2-x", "pending": 0}))
        } else if first.contains("_all_docs") {
            let mut winner = winner.clone();
            if written > refusals {
                winner.as_object_mut().unwrap().remove("_conflicts");
            }
            found(&winner)
        } else if first.contains("_bulk_docs") {
            writes.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let row = match written < refusals {
                true => json!({"id": "x", "error": "timeout", "reason": "a shard did not answer"}),
                false => json!({"ok": true, "id": "x", "rev": "3-c"}),
            };
            ("201 Created", json!([row]))
        } else if first.starts_with("GET") && first.contains("rev=2-a") {
            ("200 OK", loser.clone())
        } else {
            welcome()
        }
    })
    .await;
    let store = store(couch);
    assert_eq!(store.mend().await.unwrap(), 1);
    for _ in 0..3 {
        assert_eq!(store.mend().await.unwrap(), 0);
    }
    let log = log.lock().unwrap();
    let writes: Vec<_> = log.iter().filter(|(first, _)| first.contains("_bulk_docs")).collect();
    assert_eq!(writes.len(), 1 + refusals as usize);
    assert!(writes[0].1.contains("stop_unconfirmed") && writes[0].1.contains("commanded"));
    assert!(
        log.iter()
            .any(|(first, _)| first.starts_with("DELETE") && first.contains("rev=2-a"))
    );
}

#[tokio::test]
async fn many_leases_are_taken_with_two_reads_and_one_write() {
    // The first entry is free. The second one has a live worker's lease. The third one is missing. The fourth one was written meanwhile.
    let mut leased = document(&[What::Commanded], "2-b");
    leased["lease"] = json!({"by": "another", "until": NOW.plus(Duration::from_secs(60)), "stamped": NOW});
    let rows = [
        document(&[What::Commanded], "2-a"),
        leased,
        Value::Null,
        document(&[What::Commanded], "2-d"),
    ];
    let (couch, log) = server(move |first, _| {
        if first.contains("_all_docs") {
            let rows: Vec<Value> = rows
                .iter()
                .map(|doc| match doc {
                    Value::Null => json!({"key": "x", "error": "not_found"}),
                    doc => json!({"id": "x", "key": "x", "value": {"rev": doc["_rev"]}, "doc": doc}),
                })
                .collect();
            ("200 OK", json!({"total_rows": 4, "offset": 0, "rows": rows}))
        } else if first.contains("_bulk_docs") {
            let conflict = json!({"id": "x", "error": "conflict", "reason": "Document update conflict."});
            ("201 Created", json!([saved(), conflict]))
        } else {
            welcome()
        }
    })
    .await;
    let addresses: Vec<Address> = ["a", "b", "c", "d"]
        .map(|action| crate::ledger::address(&entry(action, 1_795_386_262, &[What::Commanded])))
        .to_vec();
    let lease = Lease {
        by: "me".into(),
        until: NOW.plus(Duration::from_secs(300)),
        stamped: NOW,
    };
    let taken = store(couch).take(&addresses, &lease, &|_| false).await;
    let taken: Vec<bool> = taken.into_iter().map(|one| one.unwrap().is_some()).collect();
    assert_eq!(taken, [true, false, false, false]);
    let log = log.lock().unwrap();
    let requests = |what: &str| log.iter().filter(|(first, _)| first.contains(what)).count();
    // The entry that was refused is read once more.
    assert_eq!((requests("_all_docs"), requests("_bulk_docs")), (2, 1));
    let written = log.iter().find(|(first, _)| first.contains("_bulk_docs")).unwrap();
    let written: Value = serde_json::from_str(&written.1).unwrap();
    assert_eq!(written["docs"].as_array().unwrap().len(), 2, "{written}");
    assert_eq!(written["docs"][0]["lease"]["by"], "me");
}

/// A server with that vendor, and a month that has the index over fields, or that an older version of the worker made.
async fn with_a_month(vendor: &'static str, has_index: bool) -> (Couch, Log) {
    server(move |first, _| {
        let path = first.split(' ').nth(1).unwrap_or_default();
        let document = document(&[What::Commanded], "1-a");
        let row = json!({"id": document["_id"], "key": ["west", 1], "value": null, "doc": document});
        if path == "/" {
            (
                "200 OK",
                json!({"couchdb": "Welcome", "version": "3.4.3", "vendor": {"name": vendor}}),
            )
        } else if path.starts_with("/_all_dbs") {
            ("200 OK", json!(["kz_record_call-202611"]))
        } else if path.contains("_all_docs") && has_index {
            found(&json!({"_id": "_design/kz_record_call_fields", "_rev": "1-a"}))
        } else if path.contains("_all_docs") {
            ("200 OK", json!({"rows": [{"key": "x", "error": "not_found"}]}))
        } else if path.contains("/_view/") {
            ("200 OK", json!({"total_rows": 1, "offset": 0, "rows": [row]}))
        } else {
            welcome()
        }
    })
    .await
}

fn asked(log: &Log, part: &str) -> usize {
    let log = log.lock().unwrap();
    log.iter().filter(|(first, _)| first.contains(part)).count()
}

#[tokio::test]
async fn a_month_is_asked_in_the_form_that_it_has_and_no_index_is_built_while_a_query_waits() {
    for has_index in [true, false] {
        let (couch, log) = with_a_month("The Apache Software Foundation", has_index).await;
        let store = store(couch);
        assert_eq!(store.due("west", NOW, 10).await.unwrap().len(), 1);
        store.ensure(NOW.month()).await.unwrap();
        assert_eq!(store.due("west", NOW, 10).await.unwrap().len(), 1);
        assert_eq!(
            asked(&log, "PUT /kz_record_call-202611/_design/kz_record_call_fields"),
            0
        );
        assert_eq!(asked(&log, "_design/kz_record_call/_view") == 0, has_index);
        assert_eq!(store.of_fetch(&[NOW.month()], "f").await.unwrap().len(), 1);
        let key = if has_index { "%5B%22f%22%5D" } else { "%22f%22" };
        assert_eq!(asked(&log, &format!("_view/fetch?key={key}")), 1);
        assert_eq!(asked(&log, "_all_docs"), 1, "that is remembered");
    }
}

#[tokio::test]
async fn a_server_that_is_no_couchdb_gets_no_index_over_fields() {
    let (couch, log) = with_a_month("another", false).await;
    let store = store(couch);
    assert_eq!(store.due("west", NOW, 10).await.unwrap().len(), 1);
    store.ensure(NOW.month()).await.unwrap();
    assert_eq!(asked(&log, "kz_record_call_fields"), 0);
    assert_eq!(store.of_fetch(&[NOW.month()], "f").await.unwrap().len(), 1);
    assert_eq!(asked(&log, "kz_record_call/_view/fetch?key=%22f%22"), 1);
}
