//! Documents are held against `schemas/`.

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// Holds a `call_recording` document against its schema.
pub fn check(document: &Value) -> anyhow::Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/documents/call_recording.json");
    let schema: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let validator = jsonschema::validator_for(&schema).ok().context("the schema")?;
    let faults: Vec<String> = validator
        .iter_errors(document)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    ensure!(faults.is_empty(), "{}\n{document:#}", faults.join("; "));
    Ok(())
}
