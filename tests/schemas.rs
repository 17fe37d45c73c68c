//! Compares `schemas/` with what the code writes and reads, as far as that needs no server.
//! `tests/promises` compares the schemas with messages on the wire and with stored documents.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use jsonschema::Validator;
use kz_record_call::entry::Entry;
use kz_record_call::entry::cause::{Cause, Outcome};
use kz_record_call::entry::fact::{
    Announcement, CollectFailure, Delivery, DeliveryFailure, Destination, Document, Fact, Holding, KazooCopy, Route,
    Since, StoredObject, What,
};
use kz_record_call::entry::legs::Leg;
use kz_record_call::entry::webhooks::{Attempted, Given, Owed, Refused};
use kz_record_call::kazoo::action::Execute;
use kz_record_call::kazoo::channel::{StatusReply, channel_state};
use kz_record_call::kazoo::dialplan::{Control, DialplanError, Silence, Trigger};
use kz_record_call::kazoo::envelope::Envelope;
use kz_record_call::kazoo::event::{RecordEvent, replaced_by};
use kz_record_call::kazoo::leg::{LegEvent, LegNews};
use kz_record_call::kazoo::switch::SendHttpReply;
use kz_record_call::kazoo::time::Moment;
use kz_record_call::ledger::{Address, Lease, Record};
use kz_record_call::lifecycle::{STATES, State};
use kz_record_call::recording::adopt::Adopted;
use kz_record_call::recording::audio::{Audio, Finding};
use kz_record_call::recording::controls::Why;
use kz_record_call::recording::digest::Digests;
use kz_record_call::recording::ending::Told;
use kz_record_call::recording::format::Format;
use kz_record_call::recording::identity::{Key, MediaId};
use kz_record_call::recording::order::{Command, Continues, Order, Url};
use kz_record_call::recording::settings::Method;
use serde_json::{Value, json};

#[path = "promises/support/schema_files.rs"]
mod schema_files;

const ACCOUNT: &str = "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4";

fn validators() -> BTreeMap<String, Validator> {
    schema_files::all()
}

fn check(validator: &Validator, value: &Value) -> Result<(), String> {
    let faults: Vec<String> = validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    if faults.is_empty() {
        return Ok(());
    }
    Err(format!("{}\n{value:#}", faults.join("; ")))
}

fn at(second: i64) -> Moment {
    Moment::from_unix_seconds(1_790_000_000 + second)
}

fn fixture(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)).unwrap()
}

fn digests() -> Digests {
    Digests {
        md5: "0".repeat(32),
        sha256: "1".repeat(64),
    }
}

/// One that came from an action, with all that an action can bring.
fn order() -> Order {
    let key = Key::of("call", "action");
    let media_id = MediaId::derived(key, at(0));
    Order {
        key,
        media_id: media_id.clone(),
        call_id: "call".into(),
        account_id: Some(ACCOUNT.into()),
        zone: "local".into(),
        file_name: format!("{key}.mp3"),
        media_name: "desk.mp3".into(),
        format: Format::Mp3,
        origin: "callflow : desk".into(),
        method: Method::Post,
        url: Url::Given("https://user:password@example.com/in".into()),
        min_sec: 3,
        asked_at: at(0),
        parties: told().parties,
        continues: Some(Continues {
            key,
            media_id,
            part: 2,
            before_ms: None,
        }),
        trace: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        adopted: None,
        command: Some(Command {
            control: "pid://<0.9.0>/ecallmgr@kz1".into(),
            fetch_id: Some("fetch".into()),
            trigger: Trigger::Bridge,
            time_limit: 600,
            follow_transfer: true,
            sample_rate: Some(16_000),
            silence: Some(Silence {
                threshold: 200,
                initial_timeout_ms: 0,
                final_timeout_ms: 5_000,
            }),
            stereo: false,
            carry: "AQ".into(),
            node: Some("freeswitch@fs1.example.com".into()),
            path: "/tmp/x.mp3".into(),
        }),
    }
}

/// As a true event says it.
fn told() -> Told {
    let envelope = Envelope::read(&fixture("call_events/02-record-stop.json")).unwrap();
    Told::of(
        &RecordEvent::of(&envelope).unwrap(),
        "9f8e7d6c5b4a39281706f5e4d3c2b1a0.mp3",
        at(0),
    )
}

fn document() -> Document {
    Document {
        id: MediaId::derived(Key::of("call", "action"), at(0)),
        database: "account/4b/a1/f7d5a1c54a0fb0d9c9d3e1a2b3c4-202609".into(),
        rev: "1-a".into(),
        created: at(10),
    }
}

fn causes() -> BTreeSet<&'static str> {
    let all = Outcome::ALL.iter().flat_map(|outcome| outcome.causes());
    all.map(|cause| cause.name()).collect()
}

/// Every fact that there is, with all its forms.
#[allow(clippy::too_many_lines)] // one a kind
fn notice() -> Given {
    Given {
        endpoint: "archive".into(),
        n: 1,
        id: "5a0f5a0f5a0f5a0f5a0f5a0f5a0f5a0f".into(),
    }
}

fn every_fact() -> Vec<What> {
    let told = || Box::new(told());
    let mut all = vec![
        What::Asked(Box::new(order())),
        What::Asked(Box::new(Order {
            account_id: None,
            url: Url::Lost,
            continues: None,
            trace: None,
            command: None,
            adopted: None,
            ..order()
        })),
        What::Asked(Box::new(Order {
            url: Url::None,
            ..order()
        })),
        What::Asked(Box::new(Order {
            command: None,
            file_name: "desk+one.wav".into(),
            media_name: "desk+one.wav".into(),
            adopted: Some(Adopted {
                endpoint_id: Some("8307edc8068584cbdd205e7f4c486d1b".into()),
                at_bridges: true,
                time_limit: Some(600),
                shared_name: true,
                kazoo_4: true,
                wanted: Some(true),
                bowed_out: true,
                media_db: Some("account/4b/a1/f7d5a1c54a0fb0d9c9d3e1a2b3c4-202611".into()),
                retry_times: Some(20),
            }),
            ..order()
        })),
        What::Watched { due: at(12_300) },
        What::Sought {
            n: 1,
            found: KazooCopy::NoAudio,
            last: false,
        },
        What::Sought {
            n: 2,
            found: KazooCopy::NoAudioForUrl,
            last: false,
        },
        What::Sought {
            n: 3,
            found: KazooCopy::Missing,
            last: true,
        },
        What::Commanded,
        What::CommandLost { why: "why".into() },
        What::CommandRefused { why: "why".into() },
        What::Started(told()),
        What::Started(Box::new(Told::presumed("call", at(1), "node", "/tmp/x.mp3"))),
        What::StopAsked {
            action: "id".into(),
            route: None,
        },
        What::StopSent { n: 1, start: None },
        What::StopUnconfirmed,
        What::StopAsked {
            action: "id".into(),
            route: Some(Route {
                control: "pid://<0.9.0>/ecallmgr@kz1".into(),
                call_id: "other-leg".into(),
            }),
        },
        What::StopDelayed {
            action: "id".into(),
            asked: at(1),
        },
        What::HeardOf {
            media_id: "202611-a".into(),
        },
        What::MaskAsked {
            action: "id".into(),
            on: true,
            route: None,
            asked: None,
        },
        What::Masked {
            action: "id".into(),
            on: true,
            n: 0,
            start: None,
            sender: None,
        },
        What::Masked {
            action: "id".into(),
            on: true,
            n: 1,
            start: None,
            sender: None,
        },
        What::Intended {
            action: "id".into(),
            on: true,
            asked: Some(at(1)),
        },
        What::Intended {
            action: "id".into(),
            on: false,
            asked: None,
        },
        What::Returned {
            what: Control::Stop,
            action: String::new(),
            n: 1,
        },
        What::Returned {
            what: Control::Mask,
            action: "id".into(),
            n: 0,
        },
        What::Amended {
            n: 1,
            controls: "0123456789ab".into(),
            unsaid: None,
        },
        What::Amended {
            n: 2,
            controls: "0123456789ab".into(),
            unsaid: Some("third_party_bigcouch_host is not set any more".into()),
        },
        What::ChannelSeen { n: 1, alive: false },
        What::Leg(Box::new(Leg {
            call_id: "call".into(),
            event: LegEvent::Transferor,
            other: Some("other".into()),
            control: None,
            was_answered: Some(true),
            stamp: Some(1_795_945_164_876_700),
        })),
        What::Leg(Box::new(Leg {
            call_id: "call".into(),
            event: LegEvent::Action,
            other: None,
            control: Some("pid://<0.1.0>/queue".into()),
            was_answered: None,
            stamp: None,
        })),
        What::Probed {
            n: 1,
            size: 0,
            md5: digests().md5,
            open: false,
        },
        What::Ended(told()),
        What::PresumedEnded(told()),
        What::Postponed {
            n: 1,
            until: at(5),
            why: "why".into(),
        },
        What::Collected(Audio {
            size: 7,
            digests: digests(),
            duration_ms: Some(2),
            findings: Finding::ALL.to_vec(),
            as_written: None,
        }),
        What::Collected(Audio {
            size: 0,
            digests: digests(),
            duration_ms: None,
            findings: vec![],
            as_written: None,
        }),
        What::Held {
            n: 1,
            holding: Holding {
                place: "kz_record_call_hold-20260921".into(),
                name: "name".into(),
                size: 7,
                digests: digests(),
            },
        },
        What::Documented(document()),
        What::Uploaded {
            url: "https://example.com/in/x.mp3".into(),
            sha256: Some(digests().sha256),
        },
        What::ObjectStored(Box::new(StoredObject {
            attempt: 1,
            handler: "9b1c".into(),
            place: digests().sha256,
            sha256: digests().sha256,
            proof: "digest".into(),
            metadata: std::collections::BTreeMap::from([("etag".to_owned(), digests().md5)]),
        })),
        What::Looked {
            n: 1,
            why: None,
            unanswered: false,
            deleted: true,
        },
        What::Looked {
            n: 2,
            why: Some("why".into()),
            unanswered: true,
            deleted: false,
        },
        What::Marked { n: 1 },
        What::Retried { n: 1, since: None },
        What::Retried {
            n: 2,
            since: Some(Since {
                attempt: 3,
                postponed: 1,
                panicked: 2,
            }),
        },
        What::Panicked {
            n: 1,
            why: "index out of bounds".into(),
        },
        What::Announced(Announcement::DocumentCreated),
        What::Announced(Announcement::DocumentEdited),
        What::RestAnnounced { n: 2 },
        What::CauseAnnounced { cause: Cause::TooShort },
        What::Unheld { n: 1 },
        What::Released { n: 1 },
        What::Tidied {
            n: 1,
            left: None,
            missing: false,
        },
        What::Tidied {
            n: 2,
            left: Some("why".into()),
            missing: true,
        },
        What::Separated { name: "name".into() },
        What::Continued { told: 2 },
        What::WebhooksOwed(Box::new(Owed {
            n: 1,
            id: notice().id,
            outcome: Outcome::Stored,
            cause: Cause::Complete,
            endpoints: vec![notice().endpoint],
        })),
        What::WebhookSent(notice()),
        What::WebhookFailed(Refused {
            notice: notice(),
            attempt: 1,
            why: "answered 503".into(),
            retry_after_s: Some(30),
        }),
        What::WebhookParked(Attempted {
            notice: notice(),
            attempt: 10,
        }),
        What::WebhookRetried(Attempted {
            notice: notice(),
            attempt: 10,
        }),
        What::Closed,
    ];
    for destination in Destination::ALL {
        all.push(What::Decided {
            n: 1,
            destination,
            attempts: Some(5),
        });
        all.push(What::Decided {
            n: 2,
            destination,
            attempts: None,
        });
        all.push(What::delivered(Delivery {
            destination,
            document: document(),
            sha256: Some(digests().sha256),
            below_quorum: destination == Destination::Account,
            audio: None,
            deleted: destination == Destination::ThirdParty,
            edit_told: false,
            controls: None,
            again: 0,
        }));
    }
    for (what, why) in [Control::Stop, Control::Mask, Control::Unmask, Control::Mask]
        .into_iter()
        .zip(Why::ALL)
    {
        all.push(What::NotObeyed {
            action: "id".into(),
            what,
            why,
        });
    }
    for failure in [
        CollectFailure::Unreachable,
        CollectFailure::Missing,
        CollectFailure::Broken,
        CollectFailure::NotNow,
    ] {
        all.push(What::CollectFailed {
            attempt: 1,
            failure,
            why: "why".into(),
        });
    }
    for failure in [
        DeliveryFailure::Refused,
        DeliveryFailure::Target,
        DeliveryFailure::Source,
        DeliveryFailure::Database,
        DeliveryFailure::NoAccount,
        DeliveryFailure::Unusable,
        DeliveryFailure::UrlExpired,
        DeliveryFailure::Lost,
        DeliveryFailure::NoProxy,
    ] {
        all.push(What::DeliveryFailed {
            attempt: 1,
            destination: Destination::Url,
            failure,
            why: "why".into(),
            retry_after_s: (failure == DeliveryFailure::Target).then_some(60),
        });
    }
    for outcome in Outcome::ALL {
        all.push(What::Announced(Announcement::Outcome(outcome)));
        for cause in outcome.causes() {
            all.push(if outcome == Outcome::Parked {
                What::Parked {
                    n: 1,
                    cause: *cause,
                    ends: (*cause == Cause::NotCollected).then_some(2),
                }
            } else {
                What::Concluded { outcome, cause: *cause }
            });
        }
    }
    all
}

fn entry(facts: impl IntoIterator<Item = What>) -> Entry {
    let order = order();
    let mut entry = Entry::new(order.key, &order.call_id);
    for (n, what) in (0..).zip(facts) {
        entry.add(Fact {
            at: at(n),
            by: "rec1#1-abcdef".into(),
            what,
        });
    }
    entry
}

fn as_document(entry: Entry, lease: Option<Lease>) -> Value {
    let address = Address {
        month: at(0).month(),
        call_id: entry.call_id.clone(),
        key: entry.key,
    };
    let record = Record {
        entry,
        lease,
        rev: Some("1-a".into()),
    };
    record.document(&address.id(), Some(at(1)))
}

#[test]
fn schemas_are_schemas() {
    let files = schema_files::files();
    assert!(files.len() > 20, "{files:?}");
    for file in &files {
        let schema = schema_files::read(file);
        assert!(jsonschema::meta::is_valid(&schema), "{}", file.display());
        for key in ["$schema", "title", "description"] {
            assert!(schema[key].is_string(), "{} has no {key}", file.display());
        }
    }
    assert_eq!(validators().len(), files.len(), "two have one name");
}

#[test]
fn every_fact_of_the_ledger_is_in_its_schema_and_nothing_else_is() {
    let schema = schema_files::read(Path::new("documents/ledger_entry.json"));
    let listed = schema["properties"]["facts"]["items"]["oneOf"].as_array().unwrap();
    let listed: BTreeSet<&str> = listed
        .iter()
        .map(|form| form["properties"]["fact"]["const"].as_str().unwrap())
        .collect();
    let all = every_fact();
    let tried: BTreeSet<&str> = all.iter().map(What::kind).collect();
    // The code's own list: a fact that is added there is added here, and to the schema.
    let source = include_str!("../src/entry/fact.rs");
    let kinds = source.split("pub const fn kind").nth(1).unwrap();
    let kinds = kinds.split("\n    }\n").next().unwrap();
    let known: BTreeSet<&str> = kinds
        .lines()
        .filter_map(|line| line.split_once("=> \"")?.1.split('"').next())
        .collect();
    assert_eq!(tried, known);
    assert_eq!(listed, known);

    let validator = &validators()["ledger_entry"];
    for what in all {
        let kind = what.kind();
        let document = as_document(entry([what]), None);
        check(validator, &document).unwrap_or_else(|faults| panic!("{kind}: {faults}"));
        // A fact of another form is refused: without something that it always has, of another type, of no known kind.
        let of = document["facts"][0]["of"].as_object().cloned().unwrap_or_default();
        for key in of.keys() {
            let mut wrong = document.clone();
            wrong["facts"][0]["of"][key.as_str()] = json!([{}]);
            let open = ["variables"].contains(&key.as_str());
            assert!(open || check(validator, &wrong).is_err(), "{kind} takes any {key}");
        }
        let mut wrong = document.clone();
        wrong["facts"][0]["fact"] = json!("nonsense");
        assert!(check(validator, &wrong).is_err());
        if !of.is_empty() {
            let mut wrong = document.clone();
            wrong["facts"][0].as_object_mut().unwrap().remove("of");
            assert!(check(validator, &wrong).is_err(), "{kind} may say nothing");
        }
    }
}

#[test]
fn an_entry_is_what_its_schema_says_in_each_state() {
    let validators = validators();
    let schema = schema_files::read(Path::new("documents/ledger_entry.json"));
    let listed: Vec<&str> = schema["properties"]["state"]["enum"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(listed, STATES.map(State::name));
    let lease = Lease {
        by: "rec1#1-abcdef".into(),
        until: at(300),
        stamped: at(0),
    };
    let whole = entry(every_fact());
    let document = as_document(whole.clone(), Some(lease));
    check(&validators["ledger_entry"], &document).unwrap();
    for key in ["_id", "key", "call_id", "facts", "zone", "state", "open"] {
        let mut wrong = document.clone();
        wrong.as_object_mut().unwrap().remove(key);
        assert!(
            check(&validators["ledger_entry"], &wrong).is_err(),
            "{key} may be missing"
        );
    }
    for key in document.as_object().unwrap().keys() {
        let mut wrong = document.clone();
        wrong[key.as_str()] = json!({"nonsense": []});
        assert!(
            check(&validators["ledger_entry"], &wrong).is_err(),
            "{key} may be anything"
        );
    }
    let mut wrong = document.clone();
    wrong["nonsense"] = json!(1);
    assert!(check(&validators["ledger_entry"], &wrong).is_err());
    // The journal has the same without what is made for the views.
    check(&validators["journal"], &serde_json::to_value(&whole).unwrap()).unwrap();
    assert!(check(&validators["journal"], &document).is_err());
    // A long call's id is shortened.
    let long = Entry::of_order(
        Order {
            call_id: "x".repeat(900),
            ..order()
        },
        "w",
    );
    check(&validators["ledger_entry"], &as_document(long, None)).unwrap();
}

#[test]
fn the_causes_of_every_schema_are_the_codes() {
    fn walk<'a>(value: &'a Value, found: &mut Vec<Vec<&'a str>>) {
        match value {
            Value::Object(map) => {
                if let Some(all) = map.get("enum").and_then(Value::as_array) {
                    let all: Vec<&str> = all.iter().filter_map(Value::as_str).collect();
                    if all.contains(&Cause::TooShort.name()) {
                        found.push(all);
                    }
                }
                map.values().for_each(|value| walk(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| walk(value, found)),
            _ => {}
        }
    }
    let mut lists = 0;
    for file in schema_files::files() {
        let schema = schema_files::read(&file);
        let mut found = Vec::new();
        walk(&schema, &mut found);
        for listed in found {
            let listed: BTreeSet<&str> = listed.into_iter().collect();
            assert_eq!(listed, causes(), "{}", file.display());
            lists += 1;
        }
    }
    assert_eq!(lists, 7);
}

/// Whether the code can read a message as what its schema says that it is.
fn is_read(schema: &str, body: &[u8]) -> bool {
    let Ok(envelope) = Envelope::read(body) else {
        return false;
    };
    match schema {
        "action.execute" => Execute::of(&envelope).is_ok(),
        "record_event" => RecordEvent::of(&envelope).is_ok(),
        "call_leg" => LegNews::of(&envelope).is_some(),
        "call_replaced" => replaced_by(&envelope).is_some(),
        "channel_status_resp" => StatusReply::of(&envelope).is_ok(),
        "query_channels_resp" => channel_state(&envelope, "").is_ok(),
        "dialplan_error" => DialplanError::of(&envelope).is_ok(),
        "send_http_reply" => SendHttpReply::of(&envelope).is_ok(),
        other => panic!("nothing reads {other}"),
    }
}

#[test]
fn what_is_consumed_is_read_as_its_schema_says() {
    let validators = validators();
    let mut tried: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for file in schema_files::files() {
        if file.parent() == Some(Path::new("messages/consumed")) {
            let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
            let schema = schema_files::read(&file);
            let examples = schema["examples"].as_array().expect("examples").clone();
            assert!(!examples.is_empty(), "{name}");
            tried.insert(name, examples);
        }
    }
    assert_eq!(tried.len(), 8);
    // Messages that Kazoo's own encoders made.
    for (schema, path) in [
        ("action.execute", "action_execute/01-start-minimal.json"),
        ("action.execute", "action_execute/02-start-all-keys.json"),
        ("action.execute", "action_execute/03-stop.json"),
        ("action.execute", "action_execute/05-unicode.json"),
        ("record_event", "call_events/01-record-start.json"),
        ("record_event", "call_events/02-record-stop.json"),
        ("record_event", "call_events/06-record-stop-foreign-recorder.json"),
    ] {
        let body = serde_json::from_slice(&fixture(path)).unwrap();
        tried.get_mut(schema).unwrap().push(body);
    }
    // Messages as the broker of a real cluster had them.
    for (schema, file) in [
        ("action.execute", "kapps-action-execute"),
        ("record_event", "callevt-RECORD-START"),
        ("record_event", "callevt-RECORD-STOP"),
        ("call_leg", "callevt-CHANNEL-BRIDGE"),
        ("call_leg", "callevt-CHANNEL-DESTROY"),
        ("channel_status_resp", "targeted-channel-status-resp"),
        ("query_channels_resp", "targeted-query-channels-resp"),
        ("send_http_reply", "targeted-reply"),
    ] {
        let all: Vec<Value> = serde_json::from_slice(&fixture(&format!("real/{file}.json"))).unwrap();
        assert!(!all.is_empty(), "{file}");
        let bodies = all.into_iter().map(|message| message["body"].clone());
        tried.get_mut(schema).unwrap().extend(bodies);
    }
    for (name, bodies) in tried {
        let required = schema_files::read(&Path::new("messages/consumed").join(format!("{name}.json")));
        let required: Vec<String> = required["required"]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| key.as_str().unwrap().to_owned())
            .collect();
        for body in bodies {
            check(&validators[&name], &body).unwrap_or_else(|faults| panic!("{name}: {faults}"));
            assert!(is_read(&name, body.to_string().as_bytes()), "{name}: {body:#}");
            for key in &required {
                let mut wrong = body.clone();
                wrong.as_object_mut().unwrap().remove(key);
                assert!(
                    check(&validators[&name], &wrong).is_err(),
                    "{name}: {key} may be missing"
                );
            }
            // Other events are none of these.
            let mut wrong = body.clone();
            wrong["Event-Name"] = json!("CHANNEL_UNBRIDGE");
            assert!(check(&validators[&name], &wrong).is_err() && !is_read(&name, wrong.to_string().as_bytes()));
        }
    }
}

#[test]
fn moments_are_unix_microseconds() {
    // Moments in documents are Unix microseconds, as the schemas say.
    assert_eq!(serde_json::to_value(at(0)).unwrap(), json!(at(0).unix_micros()));
    assert_eq!(
        at(0).plus(Duration::from_secs(1)).unix_micros() - at(0).unix_micros(),
        1_000_000
    );
}
