//! Dialplan commands: what Kazoo's validators ask for, and what this worker promised on top.

use serde_json::Value;

use super::{
    super::wire::{Object, encode, text},
    Findings, found,
    start::{harmless, start},
};

/// Whether ecallmgr would execute it at all.
pub fn is_valid_record_call(body: &Object) -> bool {
    record_call_validator(body).is_empty()
}

/// What Kazoo's own validator refuses.
fn record_call_validator(body: &Object) -> Findings {
    let mut findings = Findings::new();
    let mut bad = |message: String| found(&mut findings, "kazoo-validator", message);
    for key in [
        "Application-Name",
        "Call-ID",
        "Record-Action",
        "App-Name",
        "App-Version",
        "Event-Category",
        "Event-Name",
        "Msg-ID",
    ] {
        if !body.contains_key(key) {
            bad(format!("{key} is missing"));
        }
    }
    let one_of = |key: &str, allowed: &[&str]| match body.get(key) {
        Some(value) if !allowed.iter().any(|a| value == a) => Some(format!("{key} is {value}")),
        _ => None,
    };
    let wrong = [
        one_of("Application-Name", &["record_call"]),
        one_of("Record-Action", &["start", "stop", "mask", "unmask"]),
        one_of("Insert-At", &["head", "tail", "flush", "now"]),
        one_of("Event-Category", &["call"]),
        one_of("Event-Name", &["command"]),
    ];
    wrong.into_iter().flatten().for_each(&mut bad);
    if body
        .get("Record-Sample-Rate")
        .is_some_and(|v| !v.is_i64() && !v.is_u64())
    {
        bad("Record-Sample-Rate is not a JSON integer".into());
    }
    findings
}

/// A `record_call` command; `delayed` when it comes inside an `event_actions`.
pub fn record_call(body: &Object, worker_app: &str, delayed: bool) -> Findings {
    let mut findings = record_call_validator(body);
    if !delayed && text(body, "Insert-At") != Some("now") {
        let at = body.get("Insert-At");
        found(
            &mut findings,
            "insert-at",
            format!("Insert-At is {at:?}: the command waits behind a running bridge"),
        );
    }
    if delayed {
        super::default_headers(body, worker_app, &mut findings);
    }
    let name = text(body, "Media-Name");
    match name {
        None => found(
            &mut findings,
            "media-name",
            "Media-Name is missing: nothing can be matched without it",
        ),
        Some(n) if n.starts_with('/') || n.contains("..") || n.starts_with("local_stream://") => {
            found(
                &mut findings,
                "media-name",
                format!("Media-Name {n:?} chooses its own folder"),
            );
        }
        Some(_) => {}
    }
    for key in [
        "Media-Transfer-Destination",
        "Media-Transfer-Method",
        "Transfer-Destination",
    ] {
        if body.contains_key(key) {
            found(
                &mut findings,
                "transfer-destination",
                format!("{key} makes ecallmgr try to store by itself"),
            );
        }
    }
    if text(body, "Record-Action") == Some("start") {
        start(body, &mut findings);
    }
    if let Some(n) = name
        && !harmless(&encode(n))
    {
        found(&mut findings, "command-line-injection", format!("Media-Name {n:?}"));
    }
    findings
}

/// Channel variables that Kazoo 5.0 lets a `set` command write under their own names.
pub const FOLLOW_VARIABLES: [&str; 2] = ["recording_follow_transfer", "recording_follow_attxfer"];

/// A `set` command: this worker sets nothing but whether recordings follow a transfer.
pub fn set(body: &Object) -> Findings {
    let mut findings = Findings::new();
    if text(body, "Insert-At") != Some("now") {
        found(
            &mut findings,
            "insert-at",
            format!("Insert-At is {:?}", body.get("Insert-At")),
        );
    }
    if text(body, "Call-ID").is_none() {
        found(&mut findings, "kazoo-validator", "Call-ID is missing");
    }
    let Some(Value::Object(vars)) = body.get("Custom-Channel-Vars") else {
        found(
            &mut findings,
            "kazoo-validator",
            "Custom-Channel-Vars is missing or not an object",
        );
        return findings;
    };
    for (key, value) in vars {
        let says = [Value::Bool(true), Value::Bool(false), "true".into(), "false".into()];
        if !FOLLOW_VARIABLES.contains(&key.as_str()) || !says.contains(value) {
            found(&mut findings, "set", format!("{key} is set to {value}"));
        }
    }
    for key in ["Custom-Call-Vars", "Custom-Application-Vars"] {
        if body
            .get(key)
            .is_some_and(|v| v.as_object().is_none_or(|o| !o.is_empty()))
        {
            found(&mut findings, "set", format!("{key} is set"));
        }
    }
    findings
}

/// An `event_actions` command with delayed starts in it.
pub fn event_actions(body: &Object, worker_app: &str) -> Findings {
    let mut findings = Findings::new();
    if text(body, "Insert-At") != Some("now") {
        found(
            &mut findings,
            "insert-at",
            format!("Insert-At is {:?}", body.get("Insert-At")),
        );
    }
    let Some(Value::Object(events)) = body.get("Event-Actions") else {
        found(
            &mut findings,
            "kazoo-validator",
            "Event-Actions is missing or not an object",
        );
        return findings;
    };
    if events.is_empty() {
        found(&mut findings, "event-actions", "Event-Actions is empty");
    }
    for (event, actions) in events {
        if !["Execute-On-Answer", "Execute-On-Bridge"].contains(&event.as_str()) {
            found(&mut findings, "event-actions", format!("{event:?} is no event of ours"));
        }
        let Some(Value::Object(inner)) = actions.get("Record-Call") else {
            found(&mut findings, "event-actions", format!("{event} has no Record-Call"));
            continue;
        };
        if text(inner, "Record-Action") != Some("start") {
            found(
                &mut findings,
                "event-actions",
                format!("{event} does not start a recording"),
            );
        }
        if inner.get("Call-ID") != body.get("Call-ID") {
            found(
                &mut findings,
                "event-actions",
                format!("{event}: the inner Call-ID differs"),
            );
        }
        findings.extend(record_call(inner, worker_app, true));
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        let (name, id) = (
            "9d1f0c3b5e7a4b6c8d0e1f2a3b4c5d6e.mp3",
            "202506-7c9e6679f4a14b0f9c3ad2e8b5f1a007",
        );
        json!({"Event-Category": "call", "Event-Name": "command", "App-Name": "w", "App-Version": "1", "Node": "w@h",
            "Msg-ID": "0f3c9a7be1d24c5d8a6b7c8d9e0f1a2b", "Application-Name": "record_call", "Record-Action": "start",
            "Insert-At": "now", "Call-ID": "a84b", "Media-Name": name, "Media-Recording-ID": id,
            "Media-Recorder": "w", "Time-Limit": 600, "Follow-Transfer": true, "Record-Min-Sec": "0",
            "Recording-Variables": {"Recorder": "w", "Name": name, "ID": id, "Seal": "abc_-"}})
    }

    fn rules(body: &Value) -> Vec<&'static str> {
        let mut rules: Vec<_> = record_call(body.as_object().unwrap(), "w", false)
            .into_iter()
            .map(|(rule, _)| rule)
            .collect();
        rules.dedup();
        rules
    }

    #[test]
    fn a_right_start_breaks_nothing() {
        assert!(rules(&good()).is_empty());
        let events = json!({"Call-ID": "a84b", "Insert-At": "now",
            "Event-Actions": {"Execute-On-Answer": {"Record-Call": good()}}});
        assert!(event_actions(events.as_object().unwrap(), "w").is_empty());
    }

    #[test]
    fn each_break_of_a_start_has_its_rule() {
        let table: [(&str, Value, &[&str]); 13] = [
            ("Insert-At", json!("tail"), &["insert-at"]),
            ("Insert-At", json!("NOW"), &["kazoo-validator", "insert-at"]),
            ("Record-Min-Sec", json!(0), &["record-min-sec"]),
            ("Record-Sample-Rate", json!("16000"), &["kazoo-validator"]),
            ("Time-Limit", json!("600"), &["integer-type"]),
            ("Follow-Transfer", json!("true"), &["follow-transfer"]),
            ("Media-Recorder", json!("kz_media_recording"), &["recorder"]),
            (
                "Media-Recording-ID",
                json!("2025-1"),
                &["media-recording-id", "recording-variables"],
            ),
            (
                "Media-Name",
                json!("/etc/passwd.mp3"),
                &["media-name", "recording-variables"],
            ),
            (
                "Media-Transfer-Destination",
                json!("http://x"),
                &["transfer-destination"],
            ),
            ("Media-Recording-Origin", json!("callflow : x"), &["tenant-text"]),
            (
                "Record-Silence-Detection",
                json!({"Threshold": "200"}),
                &["integer-type"],
            ),
            ("Recording-Variables", json!("x"), &["recorder", "recording-variables"]),
        ];
        for (key, value, expected) in table {
            let mut body = good();
            body[key] = value.clone();
            assert_eq!(rules(&body), expected, "{key}={value}");
        }
    }

    #[test]
    fn an_expansion_in_a_variable_is_an_injection() {
        let mut body = good();
        body["Recording-Variables"]["Seal"] = json!("${system touch /tmp/x}");
        assert_eq!(rules(&body), ["recording-variables", "command-line-injection"]);
    }
}
