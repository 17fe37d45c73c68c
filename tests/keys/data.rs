//! Data that is nothing like data, and words that a shell would obey: the call goes on, with what it would have had without them.

use kz_record_call::kazoo::dialplan;
use kz_record_call::recording::plan::Defaults;
use serde_json::{Value, json};

use crate::kazoo;
use crate::wire::{Outcome, check, kazoos, message, run};

const EVIL: &str = "${system touch /tmp/owned}";

fn of(data: Value) -> Outcome {
    run(message(Some(&data)).to_string().as_bytes(), &kazoos())
}

/// The message with this text as its data, whatever it is.
fn written(data: &str) -> String {
    const HOLE: &str = "\"the data\"";
    message(Some(&json!("the data"))).to_string().replace(HOLE, data)
}

#[test]
fn missing_empty_and_senseless_data_records_as_if_nothing_had_been_said() {
    let plain = run(message(None).to_string().as_bytes(), &kazoos());
    assert_eq!(
        (plain.command["Record-Action"].as_str(), plain.corrections.len()),
        (Some("start"), 0)
    );
    let nonsense: String = (0..1_000_000u32).map(|n| char::from(b' ' + (n % 90) as u8)).collect();
    let many: serde_json::Map<String, Value> = (0..60_000).map(|n| (format!("key {n}"), json!(n))).collect();
    for (data, told) in [
        (json!({}), 0),
        (json!(null), 0),
        (json!([]), 1),
        (json!(["action", "stop"]), 1),
        (json!("start"), 1),
        (json!(7), 1),
        (json!(true), 1),
        (json!(nonsense), 1),
        (Value::Object(many), 0),
    ] {
        let outcome = of(data);
        assert_eq!(outcome.command, plain.command);
        let keys: Vec<&str> = outcome.corrections.iter().map(|correction| correction.key).collect();
        assert_eq!(keys, vec!["data"; told]);
    }
}

#[test]
fn unknown_keys_are_ignored() {
    let known = json!({"format": "wav", "time_limit": 600, "record_on_answer": true});
    let mut more = known.clone();
    for key in [
        "Action",
        "timeLimit",
        "should_store_recording",
        "",
        "pvt_x",
        "recorder",
        "data",
    ] {
        more[key] = json!({"action": "stop", "time_limit": 5});
    }
    let (known, more) = (of(known), of(more));
    assert_eq!(known.sent, more.sent);
    assert_eq!(more.corrections, []);
}

/// Erlang writes them, and many a JSON reader does not take them: then the call would wait for its answer for ever.
#[test]
fn data_that_is_too_deep_or_too_great_to_be_read_spoils_no_more_than_itself() {
    let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
    let digits = "9".repeat(500);
    for data in [
        format!("{open}{close}"),
        format!(r#"{{"x": {open}{close}, "time_limit": 600}}"#),
        format!(r#"{{"x": {digits}, "time_limit": 600}}"#),
        format!(r#"{{"x": {{"y": {{"z": {{"deeper": {open}{close}}}}}}}, "time_limit": 600}}"#),
    ] {
        let outcome = run(written(&data).as_bytes(), &kazoos());
        let limit = if data.starts_with('[') { 3600 } else { 600 };
        assert_eq!(outcome.seen("Time-Limit"), limit, "{}", &data[..40]);
    }
    let outcome = run(written(&format!(r#"{{"time_limit": {digits}}}"#)).as_bytes(), &kazoos());
    assert_eq!(
        (outcome.seen("Time-Limit"), outcome.corrections.len()),
        (json!(10_800), 1)
    );
    let outcome = run(
        written(&format!(r#"{{"record_min_sec": -{digits}, "url": "http://h/"}}"#)).as_bytes(),
        &kazoos(),
    );
    assert_eq!(
        (outcome.seen("Record-Min-Sec"), outcome.seen("url")),
        (json!("0"), json!("http://h/"))
    );
}

/// The recordings of one action are the same whatever is said in it, but of no two actions or calls.
#[test]
fn identity_comes_from_the_call_and_the_action_and_from_nothing_else() {
    let key = |message: &Value| {
        run(message.to_string().as_bytes(), &kazoos())
            .order
            .expect("an order")
            .key
    };
    let message = message(Some(&json!({})));
    let changed = |pointer: &str, value: Value| {
        let mut message = message.clone();
        *message.pointer_mut(pointer).expect("a place") = value;
        key(&message)
    };
    assert_eq!(
        changed("/Data", json!({"media_id": "202611-a", "label": "x"})),
        key(&message)
    );
    assert_eq!(changed("/Node", json!("elsewhere")), key(&message));
    assert_ne!(changed("/Msg-ID", json!("another")), key(&message));
    assert_ne!(changed("/Call-ID", json!("another")), key(&message));
}

#[test]
fn nothing_that_a_tenant_or_caller_wrote_reaches_an_applications_argument() {
    let keys = [
        ("media_id", format!("202611-{EVIL}")),
        ("media_id", EVIL.into()),
        ("media_name", EVIL.into()),
        ("media_name", format!("a.mp3{EVIL}")),
        ("label", EVIL.into()),
        ("origin", EVIL.into()),
        ("url", format!("http://h/{EVIL}")),
        ("url", EVIL.into()),
        ("format", EVIL.into()),
        ("method", EVIL.into()),
        ("action", EVIL.into()),
        ("time_limit", EVIL.into()),
        ("record_min_sec", EVIL.into()),
        ("record_sample_rate", EVIL.into()),
    ];
    for (key, evil) in keys {
        for more in [
            json!({}),
            json!({"record_on_answer": true}),
            json!({"record_on_bridge": true}),
        ] {
            let mut data = more;
            data[key] = json!(evil);
            harmless(&of(data), key);
        }
    }
    for pointer in [
        "/Call-ID",
        "/Msg-ID",
        "/Call/Caller-ID-Name",
        "/Call/Key-Value-Store/cf_flow_name",
        "/Call/Account-ID",
        "/Call/Owner-ID",
        "/Call/Fetch-ID",
        "/Call/Switch-Nodename",
        "/Call/Custom-Channel-Vars/Owner-ID",
    ] {
        let mut message = message(Some(&json!({})));
        *message.pointer_mut(pointer).expect("a place") = json!(EVIL);
        harmless(&run(message.to_string().as_bytes(), &kazoos()), pointer);
    }
}

fn harmless(outcome: &Outcome, what: &str) {
    let sent = outcome.sent.as_ref().expect("a start");
    let arguments = kazoo::arguments(sent);
    assert!(arguments.len() > 10, "{what}: {arguments:?}");
    for argument in arguments {
        assert!(kazoo::is_harmless(argument), "{what}: {argument}");
    }
    // The id of the call is for ecallmgr alone; in nothing else are there the words.
    let mut rest = sent.clone();
    rest["Call-ID"] = json!("");
    for event in ["Execute-On-Answer", "Execute-On-Bridge"] {
        if let Some(inner) = rest.pointer_mut(&format!("/Event-Actions/{event}/Record-Call/Call-ID")) {
            *inner = json!("");
        }
    }
    assert!(!rest.to_string().contains("system"), "{what}: {rest:#}");
}

#[test]
fn a_control_names_its_file_and_nothing_more() {
    for (action, what) in [
        ("stop", dialplan::Control::Stop),
        ("mask", dialplan::Control::Mask),
        ("unmask", dialplan::Control::Unmask),
    ] {
        // A start's settings are nothing to it.
        let outcome = of(
            json!({"action": action, "media_name": EVIL, "media_id": EVIL, "format": "wav", "record_on_answer": true}),
        );
        assert_eq!(outcome.command["Record-Action"], what.name());
        let headers: Vec<&str> = outcome
            .command
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        let own = [
            "Application-Name",
            "Call-ID",
            "Insert-At",
            "Media-Name",
            "Record-Action",
        ];
        assert_eq!(headers.iter().filter(|header| own.contains(header)).count(), own.len());
        assert_eq!(headers.len(), own.len() + 6, "{headers:?}");
        check(&outcome.command);
    }
}

#[test]
fn nonsense_of_the_configuration_breaks_no_command() {
    for max_time_limit in [0, 1, 4, 5, u32::MAX] {
        for min_sec in [0, u32::MAX] {
            let defaults = Defaults {
                max_time_limit,
                min_sec,
                ..kazoos()
            };
            for data in [json!({}), json!({"time_limit": u64::MAX}), json!({"time_limit": 1})] {
                run(message(Some(&data)).to_string().as_bytes(), &defaults);
            }
        }
    }
}
