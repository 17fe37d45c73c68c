use std::sync::LazyLock;

use crate::kazoo::dialplan::Trigger;
use crate::kazoo::envelope::Envelope;
use crate::kazoo::event::RecordEvent;
use crate::kazoo::time::Month;
use crate::recording::digest::Digests;
use crate::recording::format::Format;
use crate::recording::identity::Key;
use crate::recording::order::Command;
use crate::recording::settings::Method;

use super::*;

const ACCOUNT: &str = "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4";

fn told() -> Told {
    let stop = include_bytes!("../../../tests/fixtures/call_events/02-record-stop.json");
    let event = RecordEvent::of(&Envelope::read(stop).unwrap()).unwrap();
    Told::of(
        &event,
        "9f8e7d6c5b4a39281706f5e4d3c2b1a0.mp3",
        Moment::from_unix_seconds(0),
    )
}

fn order(call_id: &str) -> Order {
    let key = Key::of(call_id, "action");
    Order {
        key,
        media_id: MediaId::derived(key, Moment::from_gregorian_seconds(63_962_610_331)),
        call_id: call_id.into(),
        account_id: Some(ACCOUNT.into()),
        zone: "local".into(),
        file_name: format!("{key}.mp3"),
        media_name: "desk.mp3".into(),
        format: Format::Mp3,
        origin: "callflow : desk".into(),
        method: Method::Put,
        url: Url::None,
        min_sec: 0,
        asked_at: Moment::from_gregorian_seconds(63_962_610_330),
        parties: crate::kazoo::call::Parties {
            callee_id_number: Some("*97".into()),
            ..Default::default()
        },
        continues: None,
        trace: None,
        command: None,
        adopted: None,
    }
}

fn document(order: &Order, started: Option<&Told>, ended: &Told) -> Value {
    document_of(order, started, ended, |_| {})
}

fn document_of<'a>(
    order: &'a Order,
    started: Option<&'a Told>,
    ended: &'a Told,
    change: impl FnOnce(&mut Subject<'a>),
) -> Value {
    static AUDIO: LazyLock<Audio> = LazyLock::new(|| Audio {
        size: 7,
        digests: Digests {
            md5: "00".into(),
            sha256: "11".into(),
        },
        duration_ms: Some(59_000),
        findings: vec![],
        as_written: None,
    });
    let mut subject = Subject {
        order,
        id: &order.media_id,
        account_id: ACCOUNT,
        started,
        ended,
        presumed: false,
        first_peer: None,
        told_ms: ended.length_ms,
        audio: Some(&AUDIO),
        destination: "ours",
        node: "kz_record_call@rec1",
        url_credentials: false,
        now: Moment::from_gregorian_seconds(63_962_610_400),
        controls: Controls::default(),
    };
    change(&mut subject);
    Value::Object(subject.document())
}

#[test]
fn a_peer_that_came_after_another_is_not_told_as_the_callee() {
    let mut order = order("a");
    order.command = Some(Command {
        control: "q".into(),
        fetch_id: None,
        trigger: Trigger::Now,
        time_limit: 600,
        follow_transfer: true,
        sample_rate: None,
        silence: None,
        stereo: true,
        carry: "c".into(),
        node: None,
        path: "/tmp/a.mp3".into(),
    });
    let started = Told {
        call_id: "a".into(),
        other_leg_call_id: None,
        parties: Default::default(),
        ..told()
    };
    let mut ended = Told {
        call_id: "a".into(),
        other_leg_call_id: Some("c".into()),
        ..told()
    };
    ended.parties.callee_id_number = Some("carol".into());
    // The recording began before its leg was bridged with B, and B's place was taken by C.
    let of = |peer| {
        let doc = document_of(&order, Some(&started), &ended, |subject| subject.first_peer = peer);
        let right = doc["pvt_recording"]["channels"][0]["right_call_id"].clone();
        (doc["callee_id_number"].clone(), right)
    };
    assert_eq!(of(Some("b")), (json!("*97"), json!("b")));
    assert_eq!(of(Some("c")), (json!("carol"), json!("c")));
    assert_eq!(of(None), (json!("carol"), Value::Null));
}

/// The switch leaves the time on hold out of the length. Of several parts, the lengths are added.
#[test]
fn the_start_of_what_was_on_hold_or_has_parts_is_the_first_start() {
    let (order, ended) = (order("a"), told());
    let computed = ended.at.gregorian_seconds() - 59;
    let of = |start: i64, stamp: Option<i64>| {
        let at = Moment::from_gregorian_seconds(computed + start);
        let started = Told { at, stamp, ..told() };
        let doc = document_of(&order, Some(&started), &ended, |subject| subject.told_ms = Some(59_000));
        doc["start"].as_i64().unwrap() - computed
    };
    assert_eq!(of(-600, Some(1)), -600);
    assert_eq!(of(-600, None), 0, "the time of its command");
    assert_eq!((of(-2, Some(1)), of(1, Some(1))), (0, 0), "rounded");
    let mut adopted = order.clone();
    adopted.adopted = Some(serde_json::from_value(json!({})).unwrap());
    let started = Told {
        at: Moment::from_gregorian_seconds(computed - 600),
        stamp: Some(1),
        ..told()
    };
    let doc = document_of(&adopted, Some(&started), &ended, |subject| {
        subject.told_ms = Some(59_000)
    });
    assert_eq!(doc["start"], computed, "as media_mgr computes it");
}

#[test]
fn a_presumed_end_is_told_as_presumed() {
    let (order, ended) = (order("a"), told());
    let of = |presumed| document_of(&order, None, &ended, |subject| subject.presumed = presumed);
    assert_eq!(of(true)["pvt_recording"]["end_presumed"], true);
    assert!(of(false)["pvt_recording"].get("end_presumed").is_none());
}

#[test]
fn the_document_has_kazoos_fields() {
    let ended = told();
    let doc = document(&order(&ended.call_id), None, &ended);
    assert_eq!(doc["start"], 63_962_610_391_i64 - 59);
    assert_eq!((&doc["duration"], &doc["duration_ms"]), (&json!(59), &json!(59_840)));
    assert_eq!(doc["media_type"], ".mp3");
    assert_eq!(doc["content_type"], "audio/mpeg");
    assert_eq!(
        (&doc["callee_id_name"], &doc["callee_id_number"]),
        (&json!("Extension 2000"), &json!("2000"))
    );
    assert_eq!(doc["owner_id"], "9d8c7b6a5f4e3d2c1b0a998877665544");
    assert_eq!(doc["cdr_id"], "202508-8dfb1e20-6a3e-4b0c-8d7e-1d0f5a6b7c02");
    assert_eq!(doc["interaction_id"], "63923845331-9f3ad9cd");
    assert_eq!(
        doc["pvt_account_db"],
        "account%2F4b%2Fa1%2Ff7d5a1c54a0fb0d9c9d3e1a2b3c4-202611"
    );
    assert_eq!(doc["pvt_type"], "call_recording");
    assert!(doc.get("url").is_none() && doc.get("_attachments").is_none());
}

#[test]
fn a_recording_that_moved_is_told_from_the_callers_side() {
    let started = Told {
        call_id: "caller".into(),
        ..told()
    };
    let mut ended = Told {
        call_id: "other-leg".into(),
        ..told()
    };
    ended.parties.caller_id_number = Some("999".into());
    ended.parties.owner_id = Some("somebody-else".into());
    let doc = document(&order("caller"), Some(&started), &ended);
    assert_eq!(
        (&doc["call_id"], &doc["caller_id_number"]),
        (&json!("caller"), &json!("1000"))
    );
    assert_eq!(doc["owner_id"], "9d8c7b6a5f4e3d2c1b0a998877665544");
    assert_eq!(doc["pvt_recording"]["ended_call_id"], "other-leg");
}

#[test]
fn an_end_after_the_turn_of_the_month_stays_in_the_ids_month() {
    let mut ended = told();
    ended.at = Month::of_id("202612-x")
        .unwrap()
        .start()
        .plus(std::time::Duration::from_secs(100));
    let mut doc = document(&order(&ended.call_id), None, &ended);
    assert!(
        doc["cdr_id"].as_str().unwrap().starts_with("202508-"),
        "as the conversation began"
    );
    // Without a named conversation, the CDR gets the moment of its end.
    ended.parties.interaction_id = None;
    doc["cdr_id"] = document(&order(&ended.call_id), None, &ended)["cdr_id"].clone();
    let december = Month::of_id("202612-x").unwrap().start().gregorian_seconds();
    assert_eq!(doc["pvt_created"], december - 1);
    assert!(doc["pvt_account_db"].as_str().unwrap().ends_with("-202611"));
    assert!(doc["cdr_id"].as_str().unwrap().starts_with("202612-"));
}

/// The event of a start, as stock Kazoo sends it before any bridge: no SIP parties, no callee.
fn early() -> Told {
    let mut told = told();
    told.other_leg_call_id = None;
    let parties = &mut told.parties;
    (parties.from, parties.to, parties.request) = (None, None, None);
    (parties.callee_id_name, parties.callee_id_number) = (None, None);
    told
}

#[test]
fn what_the_end_says_of_the_parties_does_not_overrule_the_start() {
    let mut order = order("call");
    order.parties = crate::kazoo::call::Parties {
        from: Some("1000@acme".into()),
        to: Some("2000@acme".into()),
        ..order.parties
    };
    // The leg was put on hold: from and to are swapped, and the callee is the caller.
    let mut ended = told();
    ended.parties.from = Some("2000@acme".into());
    ended.parties.to = Some("1000@acme".into());
    ended.parties.callee_id_number = Some("1000".into());
    let doc = document(&order, Some(&early()), &ended);
    assert_eq!((&doc["from"], &doc["to"]), (&json!("1000@acme"), &json!("2000@acme")));
    assert_eq!(doc["callee_id_number"], "*97");
    // Only the end shows who answered.
    let doc = document(&order, Some(&early()), &told());
    assert_eq!(
        (&doc["callee_id_name"], &doc["callee_id_number"]),
        (&json!("Extension 2000"), &json!("2000"))
    );
    // The leg was bridged when the recording began, and was bridged to another leg since.
    let mut ended = told();
    ended.parties.callee_id_number = Some("3000".into());
    let doc = document(&order, Some(&told()), &ended);
    assert_eq!(doc["callee_id_number"], "2000");
}

#[test]
fn a_callee_that_no_event_named_is_left_out_as_kazoo_does() {
    let doc = document(&order("call"), Some(&early()), &early());
    assert!(
        doc.get("callee_id_number").is_none() && doc.get("callee_id_name").is_none(),
        "{doc}"
    );
}

#[test]
fn an_end_by_silence_is_told_from_a_hang_up_that_has_the_same_cause() {
    for (cause, hung_up, by_silence) in [
        ("success-silence", Some(false), true),
        ("no-input-timeout", Some(false), true),
        ("success-silence", Some(true), false),
        ("no-input-timeout", Some(true), false),
        ("success-maxtime", Some(false), false),
        ("success-silence", None, false),
    ] {
        let ended = Told {
            completion_cause: Some(cause.into()),
            hung_up,
            ..told()
        };
        let doc = document(&order("call"), None, &ended);
        let ended_by = doc["pvt_recording"].get("ended_by");
        assert_eq!(
            ended_by.is_some_and(|by| by == "silence"),
            by_silence,
            "{cause} {hung_up:?}"
        );
        assert_eq!(doc["pvt_recording"]["completion_cause"], cause);
    }
}

#[test]
fn the_document_says_which_channel_is_whose_and_that_they_swap_at_a_move() {
    let mut order = order("caller");
    let channels = |order: &Order, ended: &Told| {
        let started = Told {
            call_id: "caller".into(),
            other_leg_call_id: Some("peer".into()),
            ..told()
        };
        document(order, Some(&started), ended)["pvt_recording"]["channels"].clone()
    };
    let ended = Told {
        call_id: "caller".into(),
        ..told()
    };
    assert_eq!(channels(&order, &ended), Value::Null, "how many there are is not known");
    let command = json!({"control": "q", "trigger": "now", "time_limit": 5, "follow_transfer": true, "carry": "A"});
    order.command = serde_json::from_value(command).unwrap();
    let first = json!({"left": "caller", "right": "callee", "left_call_id": "caller", "right_call_id": "peer"});
    assert_eq!(channels(&order, &ended), json!([first]));
    let moved = Told {
        call_id: "peer".into(),
        other_leg_call_id: None,
        ..told()
    };
    let then = json!({"left": "callee", "right": "other", "left_call_id": "peer"});
    assert_eq!(channels(&order, &moved), json!([first, then]));
    order.command.as_mut().unwrap().stereo = false;
    assert_eq!(channels(&order, &ended), Value::Null, "one channel has both");
}

#[test]
fn an_id_of_the_last_month_that_there_is_makes_a_document_too() {
    let ended = told();
    for id in ["999912-frontdesk", "000001-frontdesk"] {
        let mut order = order(&ended.call_id);
        order.media_id = id.parse().unwrap();
        assert_eq!(document(&order, None, &ended)["_id"], id);
    }
}

#[test]
fn credentials_of_a_url_are_not_in_its_documents_public_field() {
    for (given, shown) in [
        ("https://h/in?a=1#x", "https://h/in?a=1#x"),
        ("https://u:p%40@h/in?a=1", "https://h/in?a=1"),
        ("https://u@h", "https://h/"),
        (
            "https://h/k?X-Amz-Date=1&X-Amz-Signature=00ff&b",
            "https://h/k?X-Amz-Date=1&X-Amz-Signature=***&b",
        ),
        ("https://h/k?se=1&sig=a%2B", "https://h/k?se=1&sig=***"),
        ("ftp://u:p@h/x", "ftp://h/x"),
        ("u:p@h:99999999/x", "***@h:99999999/x"),
    ] {
        assert_eq!(public(given), shown, "{given}");
    }
}
