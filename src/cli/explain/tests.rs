use super::*;
use crate::entry::cause::Cause;
use crate::entry::cause::Outcome;
use crate::entry::fact::{DeliveryFailure, Destination, Document, Holding};
use crate::kazoo::call::Parties;
use crate::recording::audio::Audio;
use crate::recording::digest::Digests;
use crate::recording::ending::Told;
use crate::recording::identity::{Key, MediaId};

const NOW: Moment = Moment::from_unix_seconds(1_795_386_262);

#[test]
fn no_credential_is_shown() {
    assert_eq!(without_secrets("https://u:p@h/in?token=abc"), "https://h/in?token=***");
    assert_eq!(without_secrets("https://h/in#access_token=abc"), "https://h/in");
    assert_eq!(without_secrets("nonsense"), "(not a url)");
}

/// A recording that ended on a switch, and what happened to it then.
fn ended(facts: Vec<What>) -> Entry {
    let mut entry = Entry::new(Key::of("call", "action"), "call");
    let told = Told {
        call_id: "call".into(),
        at: NOW,
        stamp: None,
        node: Some("freeswitch@fs1".into()),
        path: Some("/tmp/a.mp3".into()),
        length_ms: Some(5000),
        completion_cause: None,
        hung_up: None,
        account_id: None,
        other_leg_call_id: None,
        parties: Parties::default(),
        variables: serde_json::Value::Null,
    };
    for (n, what) in [What::Ended(Box::new(told))].into_iter().chain(facts).enumerate() {
        entry.add(Fact {
            at: NOW.plus(std::time::Duration::from_secs(n as u64)),
            by: "w".into(),
            what,
        });
    }
    entry
}

fn collected() -> What {
    What::Collected(Audio {
        size: 7,
        digests: Digests {
            md5: "0".into(),
            sha256: "1".into(),
        },
        duration_ms: None,
        findings: Vec::new(),
        as_written: None,
    })
}

fn held() -> What {
    let digests = Digests {
        md5: "0".into(),
        sha256: "1".into(),
    };
    What::Held {
        n: 1,
        holding: Holding {
            place: "kz_record_call_hold-20260701".into(),
            name: "a".into(),
            size: 7,
            digests,
        },
    }
}

fn concluded(outcome: Outcome, cause: Cause) -> What {
    What::Concluded { outcome, cause }
}

#[test]
fn a_file_that_the_switch_deleted_or_never_had_is_not_said_to_be_there() {
    assert_eq!(
        places(&ended(vec![])),
        ["on the switch freeswitch@fs1: /tmp/a.mp3, unless it was deleted there"]
    );
    let discarded = concluded(Outcome::Discarded, Cause::DiscardedByOperator);
    for facts in [
        vec![What::Released { n: 1 }],
        vec![What::Tidied {
            n: 1,
            left: None,
            missing: false,
        }],
        vec![held(), What::Released { n: 1 }, discarded, What::Unheld { n: 1 }],
    ] {
        let places = places(&ended(facts));
        assert_eq!(
            places,
            ["none left: the switch freeswitch@fs1 was told to delete its file /tmp/a.mp3"]
        );
    }
    assert_eq!(
        places(&ended(vec![concluded(Outcome::Failed, Cause::FileGone)])),
        ["none left: the switch freeswitch@fs1 has no file /tmp/a.mp3"]
    );
    let left = What::Tidied {
        n: 1,
        left: Some("no answer".into()),
        missing: false,
    };
    assert!(places(&ended(vec![left]))[0].starts_with("on the switch"));
}

#[test]
fn whoever_discards_is_told_what_stays() {
    let document = Document {
        id: MediaId::derived(Key::of("call", "action"), NOW),
        database: "account/4b/a1/rest-202607".into(),
        rev: "1-a".into(),
        created: NOW,
    };
    let stays = what_stays(&ended(vec![What::Documented(document)]));
    assert_eq!(stays[0], "not removed: file /tmp/a.mp3 on the switch freeswitch@fs1");
    assert!(stays[1].ends_with("in account/4b/a1/rest-202607"), "{stays:?}");
    assert!(what_stays(&ended(vec![held(), What::Released { n: 1 }])).is_empty());
    let (outcome, cause) = (Outcome::Discarded, Cause::DiscardedByOperator);
    let told = |mut facts: Vec<What>| {
        facts.push(What::Concluded { outcome, cause });
        after_discarding(&ended(facts))
    };
    assert!(
        told(vec![])[0].starts_with("not removed: file"),
        "no worker has its audio"
    );
    assert!(told(vec![held(), collected()])[0].starts_with("removed by a worker: file"));
    assert!(told(vec![held(), collected(), What::Released { n: 1 }]).is_empty());
}

#[test]
fn what_a_target_answered_last_stands_beside_the_cause() {
    let failed = |attempt, why: &str| What::DeliveryFailed {
        attempt,
        destination: Destination::Url,
        failure: DeliveryFailure::Target,
        why: why.into(),
        retry_after_s: None,
    };
    let parked = What::Parked {
        n: 1,
        cause: Cause::Unreachable,
        ends: None,
    };
    let entry = ended(vec![
        failed(1, "answered 500"),
        failed(2, "answered 403: expired"),
        parked,
    ]);
    assert_eq!(
        verdict(&entry),
        "parked (unreachable): no attempt at the target succeeded; the last answer: answered 403: expired"
    );
}

#[test]
fn a_file_of_a_recording_that_nobody_heard_of_is_only_asked_about() {
    let mut entry = Entry::new(Key::of("call", "action"), "call");
    let at = Moment::from_unix_seconds;
    let mut add = |seconds: i64, what| {
        entry.add(Fact {
            at: at(seconds),
            by: "w".into(),
            what,
        });
    };
    let failed = |attempt, failure| What::CollectFailed {
        attempt,
        failure,
        why: "x".into(),
    };
    add(1, What::Commanded);
    add(2, failed(1, CollectFailure::Unreachable));
    add(3, failed(2, CollectFailure::Missing));
    let told = Told::presumed("call", at(4), "fs1", "/tmp/a.mp3");
    add(4, What::Started(Box::new(told)));
    add(5, failed(3, CollectFailure::Unreachable));
    let said: Vec<String> = entry.facts().map(|fact| words(&entry, fact)).collect();
    assert_eq!(said[1], "the switch could not be asked for a file: x");
    assert_eq!(said[2], "the switch was asked for a file: x");
    assert_eq!(said[4], "attempt 3: upload from the switch failed: x");
}
