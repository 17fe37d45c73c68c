//! Every message that the worker publishes, and every document that it writes, is held against `schemas/`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use anyhow::{Context as _, bail};
use jsonschema::Validator;
use serde_json::Value;

use crate::simulator::sim::Observed;

static SCHEMAS: LazyLock<BTreeMap<String, Validator>> = LazyLock::new(|| {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas");
    let mut all = BTreeMap::new();
    for folder in ["", "/messages", "/documents"] {
        for entry in std::fs::read_dir(format!("{root}{folder}")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "json") {
                let schema: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
                let validator = jsonschema::validator_for(&schema).unwrap();
                all.insert(path.file_stem().unwrap().to_str().unwrap().to_owned(), validator);
            }
        }
    }
    all
});

/// Which schema a message must fit.
fn schema_of(message: &Observed) -> anyhow::Result<&'static str> {
    let application = message.header("Application-Name");
    Ok(match (message.category.as_str(), message.name.as_str()) {
        ("callflow", "action.accepted") => "action.accepted",
        ("callflow", "action.result") => "action.result",
        ("call", "command") if application == "event_actions" => "event_actions",
        ("call", "command") if message.header("Record-Action") == "start" => "record_call.start",
        ("call", "command") => "record_call.control",
        ("switch_event", "command") => "send_http",
        ("configuration", "doc_created" | "doc_edited") => "doc_change",
        ("configuration", "db_created") => "db_created",
        ("call_event", "channel_status_req") => "channel_status_req",
        ("call_event", "query_channels_req") => "query_channels_req",
        ("notification", "system_alert") => "system_alert",
        ("recording", _) => "recording.outcome",
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

/// Also appends each to the file that `TEST_MESSAGES` names, a line with its schema and itself, to be held against other validators.
pub fn check_messages(messages: &[Observed]) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut file = match std::env::var_os("TEST_MESSAGES") {
        Some(path) => Some(std::fs::File::options().append(true).create(true).open(path)?),
        None => None,
    };
    for message in messages {
        let (schema, body) = (schema_of(message)?, Value::Object((*message.body).clone()));
        check(schema, &body)?;
        if let Some(file) = &mut file {
            writeln!(file, "{schema} {body}")?;
        }
    }
    Ok(())
}
