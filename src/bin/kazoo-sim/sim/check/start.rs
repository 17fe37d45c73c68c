//! A start: what its headers and variables may say.

use serde_json::Value;

use super::{
    super::wire::{Object, is_hex32, text},
    Findings, found,
};

/// `YYYYMM-` and 1 to 64 safe characters: the only form that Kazoo's API can reach.
fn is_month_id(id: &str) -> bool {
    id.split_once('-').is_some_and(|(month, rest)| {
        month.len() == 6
            && month.bytes().all(|b| b.is_ascii_digit())
            && (1..=64).contains(&rest.len())
            && rest
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    })
}

/// 32 hex digits and an extension that the switch keeps.
fn is_own_name(name: &str) -> bool {
    name.split_once('.')
        .is_some_and(|(stem, ext)| is_hex32(stem) && ["mp3", "wav", "mp4"].contains(&ext))
}

/// Whether every character is harmless inside an application's argument.
pub fn harmless(value: &str) -> bool {
    !value.contains("${")
        && value
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._:,{}=^~#%+'/ @-".contains(&b))
}

/// The headers of a start.
pub fn start(body: &Object, findings: &mut Findings) {
    let name = text(body, "Media-Name").unwrap_or_default();
    if !is_own_name(name) {
        found(
            findings,
            "media-name",
            format!("Media-Name {name:?} is not unique to this recording"),
        );
    }
    match text(body, "Media-Recording-ID") {
        None => found(
            findings,
            "media-recording-id",
            "Media-Recording-ID is missing: ecallmgr crashes",
        ),
        Some(id) => {
            if !is_month_id(id) {
                found(findings, "media-recording-id", format!("Media-Recording-ID {id:?}"));
            }
            if !harmless(id) {
                found(findings, "command-line-injection", format!("Media-Recording-ID {id:?}"));
            }
        }
    }
    match body.get("Record-Min-Sec") {
        Some(Value::String(s)) if !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()) => {}
        other => found(
            findings,
            "record-min-sec",
            format!("Record-Min-Sec is {other:?}, not a string of digits"),
        ),
    }
    match body.get("Time-Limit").map(Value::as_u64) {
        Some(Some(5..=10_800)) => {}
        _ => found(
            findings,
            "integer-type",
            format!("Time-Limit is {:?}", body.get("Time-Limit")),
        ),
    }
    if !body.get("Follow-Transfer").is_some_and(Value::is_boolean) {
        found(
            findings,
            "follow-transfer",
            "Follow-Transfer is not given as a boolean: its default differs by version",
        );
    }
    if body.get("Channels-As-Stereo").is_some_and(|v| !v.is_boolean()) {
        found(findings, "integer-type", "Channels-As-Stereo is not a boolean");
    }
    for key in ["Media-Recording-Origin", "Media-Recording-Endpoint-ID"] {
        if body.contains_key(key) {
            found(
                findings,
                "tenant-text",
                format!("{key} carries a tenant's text onto the command line"),
            );
        }
    }
    if let Some(silence) = body.get("Record-Silence-Detection") {
        let integers = silence.as_object().is_some_and(|s| {
            s.iter()
                .all(|(k, v)| ["Threshold", "Initial-Timeout", "Final-Timeout"].contains(&k.as_str()) && v.is_u64())
        });
        if !integers {
            found(
                findings,
                "integer-type",
                format!("Record-Silence-Detection is {silence}"),
            );
        }
    }
    recorder(body, findings);
    variables(body, findings);
}

/// The recorder decides who stores: Kazoo's own must never think that it is he.
fn recorder(body: &Object, findings: &mut Findings) {
    let header = text(body, "Media-Recorder");
    let variable = body
        .get("Recording-Variables")
        .and_then(|v| v.get("Recorder"))
        .and_then(Value::as_str);
    if header.is_none() || header != variable {
        found(
            findings,
            "recorder",
            format!("Media-Recorder {header:?} and Recording-Variables.Recorder {variable:?}"),
        );
    }
    if [header, variable].contains(&Some("kz_media_recording")) {
        found(
            findings,
            "recorder",
            "kz_media_recording would be stored by Kazoo as well",
        );
    }
}

fn variables(body: &Object, findings: &mut Findings) {
    let Some(Value::Object(vars)) = body.get("Recording-Variables") else {
        found(
            findings,
            "recording-variables",
            "Recording-Variables is missing or not an object",
        );
        return;
    };
    for (key, header) in [("Name", "Media-Name"), ("ID", "Media-Recording-ID")] {
        if vars.get(key) != body.get(header) {
            found(findings, "recording-variables", format!("{key} is not {header}"));
        }
    }
    // Beside ours: settings that the switch reads from a recording's own variables.
    let settings = vars.keys().filter(|key| key.starts_with("RECORD_")).count();
    if vars.len() - settings > 4 {
        found(
            findings,
            "recording-variables",
            format!("{} variables, at most four", vars.len()),
        );
    }
    for (key, value) in vars {
        if ["Transfer-Destination", "Transfer-Method"].contains(&key.as_str()) {
            found(findings, "transfer-destination", format!("Recording-Variables.{key}"));
        }
        let Value::String(value) = value else {
            found(
                findings,
                "recording-variables",
                format!("{key} is {value}, not a string"),
            );
            continue;
        };
        let plain = |s: &str| s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !plain(key) || !plain(value) {
            found(
                findings,
                "recording-variables",
                format!("{key}={value:?} has characters outside A-Za-z0-9._-"),
            );
        }
        if !harmless(key) || !harmless(value) {
            found(
                findings,
                "command-line-injection",
                format!("recording variable {key}={value:?}"),
            );
        }
        if value.len() > 1_024 {
            found(
                findings,
                "recording-variables",
                format!("{key} has {} bytes", value.len()),
            );
        }
    }
}
