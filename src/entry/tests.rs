use proptest::prelude::*;
use serde_json::{Value, json};

use crate::kazoo::dialplan::Control;
use crate::kazoo::leg::LegEvent;
use crate::recording::controls::Why;
use crate::recording::digest::Digests;
use crate::recording::identity::MediaId;

use super::fact::{CollectFailure, DeliveryFailure, KazooCopy, Route, Since, StoredObject};
use super::legs::Leg;
use super::union::{KEPT_FIRST, KEPT_LAST};
use super::*;

mod examples;

use examples::what;

const KEY: &str = "5a0f1b2c3d4e5f60718293a4b5c6d7e8";

fn at(second: i64) -> Moment {
    Moment::from_unix_seconds(second)
}

fn order() -> Box<Order> {
    let order = json!({
        "key": KEY, "media_id": "202611-a", "call_id": "call", "account_id": "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4", "zone": "local",
        "file_name": format!("{KEY}.mp3"), "media_name": "a b.mp3", "format": "mp3", "origin": "callflow : x", "method": "put",
        "url": "none", "min_sec": 0, "asked_at": 1_795_386_200_000_000_i64, "parties": {},
        "command": {"control": "q", "trigger": "bridge", "time_limit": 5, "follow_transfer": true, "carry": "AbC-_9"},
    });
    Box::new(serde_json::from_value(order).unwrap())
}

fn told(n: u32) -> Box<Told> {
    let mut told = Told::presumed("call", at(i64::from(n)), "freeswitch@fs1", "/tmp/a.mp3");
    told.stamp = (!n.is_multiple_of(3)).then(|| at(i64::from(n)).unix_micros());
    told.length_ms = (n.is_multiple_of(2)).then_some(u64::from(n) * 500);
    Box::new(told)
}

fn route() -> Route {
    Route {
        control: "q".into(),
        call_id: "call".into(),
    }
}

fn digests(n: u32) -> Digests {
    Digests {
        md5: n.to_string(),
        sha256: n.to_string(),
    }
}

fn document(n: u32) -> Document {
    Document {
        id: MediaId::derived(Key::of("call", "action"), at(0)),
        database: "db".into(),
        rev: format!("{n}-a"),
        created: at(0),
    }
}

/// A fact as another version writes it: of an unknown kind, or with an unknown field or word.
fn strange(which: u8, at: i64, n: u32) -> Value {
    match which {
        0 => json!({"at": at, "by": "w2", "fact": "of_the_next_version", "of": {"n": n}}),
        1 => json!({"at": at, "by": "w2", "fact": "probed", "of": {"n": n, "size": 1, "md5": "1", "sha256": "new"}}),
        2 => {
            json!({"at": at, "by": "w2", "fact": "concluded", "of": {"outcome": "stored", "cause": "of_the_next_version"}})
        }
        3 => {
            json!({"at": at, "by": "w2", "fact": "collect_failed", "of": {"attempt": n, "failure": "of_the_next_version", "why": "x"}})
        }
        4 => json!({"at": at, "by": "w2", "fact": "commanded", "signed": n}),
        _ => json!({"at": at, "by": "w2", "fact": ["no", "word"], "of": n}),
    }
}

fn with(entry: &Entry, more: impl IntoIterator<Item = Value>) -> Entry {
    let mut written = serde_json::to_value(entry).unwrap();
    written["facts"].as_array_mut().unwrap().extend(more);
    serde_json::from_value(written).unwrap()
}

fn any_entry_of(numbers: u32, most: usize) -> impl Strategy<Value = Entry> {
    let known = (0i64..50, "[ab]", 0..What::KINDS.len(), 0..numbers, any::<bool>());
    let other = (0u8..6, 0i64..50, 0..numbers);
    (
        prop::collection::vec(known, 0..most),
        prop::collection::vec(other, 0..8),
    )
        .prop_map(|(known, other)| {
            let mut entry = Entry::new(Key::of("call", "action"), "call");
            for (second, by, kind, n, on) in known {
                let what = what(kind, n, on);
                entry.add(Fact {
                    at: at(second),
                    by,
                    what,
                });
            }
            with(&entry, other.into_iter().map(|(which, at, n)| strange(which, at, n)))
        })
}

fn any_entry() -> impl Strategy<Value = Entry> {
    any_entry_of(80, 60)
}

/// More facts of one kind than are kept.
fn any_long_story() -> impl Strategy<Value = Entry> {
    let kind = prop::sample::select(vec!["collect_failed", "channel_seen", "probed", "postponed"]);
    kind.prop_flat_map(|kind| {
        let kind = What::KINDS.iter().position(|known| *known == kind).unwrap();
        prop::collection::vec((0i64..50, 1u32..80), 20..50).prop_map(move |facts| {
            let mut entry = Entry::new(Key::of("call", "action"), "call");
            for (second, n) in facts {
                let (by, what) = ("a".to_owned(), what(kind, n, n % 2 == 0));
                entry.add(Fact {
                    at: at(second),
                    by,
                    what,
                });
            }
            entry
        })
    })
}

/// A kind that is missing in the list has no limit, and these tests do not draw it.
#[test]
fn every_kind_of_fact_is_in_the_list_of_kinds() {
    let source = include_str!("fact.rs");
    let (_, named) = source.split_once("pub const fn kind(&self)").unwrap();
    let (named, _) = named.split_once("\n    }\n").unwrap();
    let named: Vec<&str> = named.split('"').skip(1).step_by(2).collect();
    assert!(named.len() > 30);
    for kind in named {
        assert!(What::KINDS.contains(&kind), "{kind}");
    }
}

#[test]
fn every_kind_of_fact_is_drawn_and_known_by_its_name() {
    for (kind, name) in What::KINDS.iter().enumerate() {
        for on in [true, false] {
            assert_eq!(what(kind, 7, on).kind(), *name);
        }
    }
}

proptest! {
    #[test]
    fn merging_does_not_depend_on_order_or_repetition(a in any_entry(), b in any_entry(), c in any_entry()) {
        prop_assert_eq!(a.clone().merge(b.clone()), b.clone().merge(a.clone()));
        prop_assert_eq!(a.clone().merge(a.clone()), a.clone());
        prop_assert_eq!(a.clone().merge(b.clone()).merge(c.clone()), a.merge(b.merge(c)));
    }

    #[test]
    fn merging_long_stories_does_not_depend_on_order(a in any_long_story(), b in any_long_story(), c in any_long_story()) {
        prop_assert_eq!(a.clone().merge(b.clone()), b.clone().merge(a.clone()));
        prop_assert_eq!(a.clone().merge(b.clone()).merge(c.clone()), a.merge(b.merge(c)));
    }

    #[test]
    fn an_entry_survives_the_ledger(entry in any_entry()) {
        let json = serde_json::to_vec(&entry).unwrap();
        prop_assert_eq!(serde_json::from_slice::<Entry>(&json).unwrap(), entry);
    }

    #[test]
    fn an_entry_is_bounded(entry in any_entry()) {
        prop_assert!(entry.failures().count() <= 2 * (KEPT_FIRST + KEPT_LAST) && entry.next_attempt() <= 80);
    }

    #[test]
    fn whatever_facts_an_entry_has_every_question_about_it_is_answered(entry in any_entry_of(u32::MAX, 60)) {
        let _ = (entry.outcome(), entry.is_closed(), entry.parts().len(), entry.told_ms(), entry.judged_audio());
        let _ = (entry.next_attempt(), entry.next_retry(), entry.next_rest(), entry.next_hold(), entry.untold_start());
        let _ = (entry.continuation(at(100), "w"), entry.stray().cloned(), entry.retry(), entry.webhooks());
    }

    #[test]
    fn what_another_version_wrote_goes_back_unharmed(entry in any_entry(), which in 0u8..6, second in 0i64..50, n in 1u32..80) {
        let fact = strange(which, second, n);
        let whole = with(&Entry::new(entry.key, &entry.call_id), [fact.clone()]);
        let merged = entry.merge(whole);
        let written = serde_json::to_value(&merged).unwrap();
        prop_assert!(written["facts"].as_array().unwrap().contains(&fact), "{}", written);
    }
}

#[test]
fn a_newer_versions_facts_are_kept_and_the_readable_part_of_them_counts() {
    let entry = Entry::new(Key::of("call", "action"), "call");
    let read = with(&entry, [strange(1, 5, 3), strange(0, 1, 1)]);
    assert_eq!(read.probes().count(), 1);
    assert_eq!(read.of_other_versions(), 2);
    assert_eq!(read.unreadable().count(), 0, "no decision is among them");
    let decided = with(&read, [strange(2, 6, 0)]);
    assert_eq!(decided.unreadable().collect::<Vec<_>>(), ["concluded"]);
    assert!(!read.knows(&decided) && decided.knows(&read));
    // A failure with an unknown word is a failure all the same.
    assert_eq!(with(&entry, [strange(3, 5, 2)]).failures().count(), 1);
    // What an older version wrote, with fewer fields, is read whole.
    let old = json!({"at": 1, "by": "w", "fact": "retried", "of": {"n": 1}});
    assert_eq!(with(&entry, [old]).of_other_versions(), 0);
}

/// Parked after `failures`, then retried by a host whose clock differs by so many seconds.
fn retried(failures: u32, skew: i64) -> Entry {
    let mut entry = Entry::new(Key::of("call", "action"), "call");
    let mut add = |second: i64, what| {
        entry.add(Fact {
            at: at(second),
            by: "w".into(),
            what,
        });
        entry.clone()
    };
    for attempt in 1..=failures {
        let (failure, why) = (CollectFailure::Broken, "x".to_owned());
        add(
            10_000 + i64::from(attempt),
            What::CollectFailed { attempt, failure, why },
        );
    }
    let parked = add(
        10_100,
        What::Parked {
            n: 1,
            cause: Cause::NotCollected,
            ends: None,
        },
    );
    let retried = add(10_200 + skew, parked.retry());
    assert_eq!(retried.parked(), None);
    retried
}

#[test]
fn an_operators_clock_does_not_decide_which_failures_count() {
    for skew in [-3600, 0, 3600] {
        let mut entry = retried(12, skew);
        assert_eq!(entry.failures().count(), 0, "{skew}");
        let (failure, why) = (CollectFailure::Broken, "x".to_owned());
        let what = What::CollectFailed {
            attempt: entry.next_attempt(),
            failure,
            why,
        };
        entry.add(Fact {
            at: at(10_300),
            by: "w".into(),
            what,
        });
        assert_eq!(entry.failures().count(), 1, "{skew}");
    }
}

/// The outcome that had the mark is void: audio that was lost came into the hold after all. What the document then must say has a number
/// of its own.
#[test]
fn a_parking_after_a_mark_has_a_higher_number_than_the_mark() {
    let fact = |second: i64, what: What| Fact {
        at: at(second),
        by: "w".into(),
        what,
    };
    let mut entry = Entry::new(KEY.parse().unwrap(), "call");
    entry.add(fact(1, What::Documented(document(1))));
    entry.add(fact(2, What::Marked { n: 1 }));
    let (n, cause) = (entry.next_rest(), Cause::NotCollected);
    assert_eq!(n, 2);
    entry.add(fact(3, What::Parked { n, cause, ends: None }));
    assert_eq!(entry.owes_mark(), Some((2, cause)));
}
