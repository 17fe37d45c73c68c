//! What the worker tells the rest of the cluster.

use serde_json::Value;

use super::{
    super::{
        amqp::Received,
        wire::{GREGORIAN_OFFSET, Object, encode, text},
    },
    Findings, found, kind,
};

/// Document notices and its own completion events.
pub fn announcement(message: &Received, body: &Object) -> Findings {
    let mut findings = Findings::new();
    match message.exchange.as_str() {
        "configuration" => document_notice(message, body, &mut findings),
        "kapps" => completion(message, body, &mut findings),
        _ => {}
    }
    findings
}

fn document_notice(message: &Received, body: &Object, findings: &mut Findings) {
    let name = text(body, "Event-Name").unwrap_or_default();
    let names = ["doc_created", "doc_edited", "doc_deleted", "db_created"];
    findings.extend(kind(message, body, "configuration", "configuration", &names));
    let of = |k: &str| text(body, k).unwrap_or_default();
    for key in ["ID", "Database", "Type"] {
        if text(body, key).is_none() {
            found(
                findings,
                "kazoo-validator",
                format!("{name}: {key} is missing or not a string"),
            );
        }
    }
    if of("Database").contains('/') {
        found(findings, "doc-notice", "Database is not in its encoded form");
    }
    let key = format!("{name}.{}.{}.{}", of("Database"), of("Type"), encode(of("ID")));
    if message.key != key {
        found(
            findings,
            "routing-key",
            format!("routing key {:?} should be {key:?}", message.key),
        );
    }
    if body.contains_key("Origin-Cache") {
        found(findings, "doc-notice", "Origin-Cache would keep Kazoo's caches stale");
    }
    if body.get("Is-Soft-Deleted").is_some_and(|v| !v.is_boolean()) {
        found(findings, "kazoo-validator", "Is-Soft-Deleted is not a boolean");
    }
    if name.starts_with("doc_") && text(body, "Rev").is_none() {
        found(findings, "doc-notice", "Rev is missing");
    }
    for key in ["Date-Created", "Date-Modified"] {
        if body
            .get(key)
            .is_some_and(|v| v.as_u64().is_none_or(|n| n < GREGORIAN_OFFSET))
        {
            found(findings, "doc-notice", format!("{key} is not in Gregorian seconds"));
        }
    }
}

fn completion(message: &Received, body: &Object, findings: &mut Findings) {
    const OUTCOMES: [&str; 5] = ["stored", "delivered", "discarded", "failed", "parked"];
    findings.extend(kind(message, body, "kapps", "recording", &OUTCOMES));
    let name = text(body, "Event-Name").unwrap_or_default();
    let account = text(body, "Account-ID").unwrap_or_default();
    let key = format!("recording.{name}.{account}");
    if message.key != key {
        found(
            findings,
            "routing-key",
            format!("routing key {:?} should be {key:?}", message.key),
        );
    }
}
