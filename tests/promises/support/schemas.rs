//! Every message that the worker publishes, and every document that it writes, is held against `schemas/`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use anyhow::{Context as _, bail};
use jsonschema::Validator;
use serde_json::Value;

use crate::simulator::sim::Observed;

use super::schema_files;

static SCHEMAS: LazyLock<BTreeMap<String, Validator>> = LazyLock::new(schema_files::all);

/// Which schema a message must fit.
fn schema_of(body: &Value) -> anyhow::Result<&'static str> {
    let header = |name: &str| body[name].as_str().unwrap_or_default();
    let application = header("Application-Name");
    Ok(match (header("Event-Category"), header("Event-Name")) {
        ("callflow", "action.accepted") => "action.accepted",
        ("callflow", "action.result") => "action.result",
        ("call", "command") if application == "event_actions" => "event_actions",
        ("call", "command") if application == "set" => "set",
        ("call", "command") if header("Record-Action") == "start" => "record_call.start",
        ("call", "command") => "record_call.control",
        ("switch_event", "command") => "send_http",
        ("configuration", "doc_created" | "doc_edited") => "doc_change",
        ("configuration", "db_created") => "db_created",
        ("call_event", "channel_status_req") => "channel_status_req",
        ("call_event", "query_channels_req") => "query_channels_req",
        ("notification", "system_alert") => "system_alert",
        ("recording", _) => "recording.outcome",
        ("kz_record_call", "recordings") => "recordings",
        ("kz_record_call", "began_again") => "began_again",
        ("kz_record_call", "alive") => "alive",
        ("kz_record_call", "credentials") => "credentials",
        ("kz_record_call", "controlled") => "controlled",
        ("kz_record_call", "check") => "check",
        (category, name) => bail!("a message that no schema is for: {category}/{name}"),
    })
}

/// Holds a value against a schema.
pub fn check(schema: &str, value: &Value) -> anyhow::Result<()> {
    let validator = SCHEMAS
        .get(schema)
        .with_context(|| format!("there is no schema {schema}"))?;
    let faults: Vec<String> = validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{schema} is not kept: {}\n{value:#}", faults.join("; "))
}

/// Holds a message against its schema; returns which that is.
pub fn check_message(body: &Value) -> anyhow::Result<&'static str> {
    let schema = schema_of(body)?;
    check(schema, body)?;
    Ok(schema)
}

/// Which schema a document must fit; `None` for those that are not the worker's.
fn schema_of_document(database: &str, document: &Value) -> Option<&'static str> {
    if document["_id"].as_str().is_none_or(|id| id.starts_with("_design/")) {
        return None;
    }
    if database.starts_with("kz_record_call-") {
        if document["_id"].as_str().is_some_and(|id| id.starts_with("place-")) {
            return Some("ledger_place");
        }
        return Some("ledger_entry");
    }
    if database.starts_with("kz_record_call_hold-") {
        return Some("held");
    }
    (document["source_type"] == "kz_record_call").then_some("call_recording")
}

/// Holds everything that the worker wrote into a database against its schema.
pub fn check_documents<'a>(database: &str, documents: impl IntoIterator<Item = &'a Value>) -> anyhow::Result<()> {
    for document in documents {
        if let Some(schema) = schema_of_document(database, document) {
            check(schema, document).with_context(|| format!("in {database}"))?;
        }
    }
    Ok(())
}

/// Also appends each to the file that `TEST_MESSAGES` names, a line with its schema and itself, to be held against other validators.
pub fn check_messages(messages: &[Observed]) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut file = match std::env::var_os("TEST_MESSAGES") {
        Some(path) => Some(std::fs::File::options().append(true).create(true).open(path)?),
        None => None,
    };
    for message in messages {
        let body = Value::Object((*message.body).clone());
        let schema = check_message(&body)?;
        if let Some(file) = &mut file {
            writeln!(file, "{schema} {body}")?;
        }
    }
    Ok(())
}
