//! What stands in a database under a recording's id.

use serde_json::Value;

use crate::couch::Couch;
use crate::recording::audio::Audio;
use crate::recording::document::DOCUMENT_TYPE;
use crate::recording::identity::{Key, MediaId};

use super::DeliveryError;

/// What is found under a document's id.
pub(super) enum Found {
    Nothing,
    /// Our recording, visible, with its audio whole.
    Ours {
        rev: String,
    },
    /// Our recording's document, but not, or not yet, as it should be.
    Incomplete {
        rev: String,
        /// Whether its audio is ours, byte by byte.
        whole: bool,
        why: String,
    },
    /// Somebody else's, or of our own recording with other audio: neither is ever overwritten.
    Taken,
}

/// What a stored recording looks like some time later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadBack {
    /// It is there, its digest compared.
    Whole { rev: String },
    /// It is not there, or not whole: to be stored again, and told.
    Lost(String),
}

/// Reads a stored recording back, which is due after a `202`.
///
/// # Errors
/// When the database does not tell.
pub async fn read_back(
    couch: &Couch,
    database: &str,
    id: &MediaId,
    key: Key,
    audio: &Audio,
) -> Result<ReadBack, DeliveryError> {
    Ok(match look_up(couch, database, id, key, audio).await? {
        Found::Ours { rev } => ReadBack::Whole { rev },
        Found::Nothing => ReadBack::Lost("the document is not there any more".into()),
        Found::Taken => ReadBack::Lost("another recording's document is there".into()),
        Found::Incomplete { why, .. } => ReadBack::Lost(why),
    })
}

/// Whether the recording is stored already, whoever stored it, without its audio at hand: the revision, and the audio's SHA-256 as the document
/// tells it.
///
/// # Errors
/// When the database does not tell.
pub async fn find(
    couch: &Couch,
    database: &str,
    id: &MediaId,
    key: Key,
) -> Result<Option<(String, Option<String>)>, DeliveryError> {
    let Some(document) = couch.get(database, id.as_str()).await? else {
        return Ok(None);
    };
    let has_audio = attachment(&document).is_some();
    let proof = document.pointer("/pvt_recording/sha256").and_then(Value::as_str);
    let is_there = is_of(&document, key) && is_visible(&document) && has_audio;
    Ok(is_there.then(|| (rev(&document), proof.map(str::to_owned))))
}

pub(super) async fn look_up(
    couch: &Couch,
    database: &str,
    id: &MediaId,
    key: Key,
    audio: &Audio,
) -> Result<Found, DeliveryError> {
    Ok(match couch.get(database, id.as_str()).await? {
        Some(document) => judge(&document, key, audio),
        None => Found::Nothing,
    })
}

fn judge(document: &Value, key: Key, audio: &Audio) -> Found {
    if !is_of(document, key) {
        return Found::Taken;
    }
    let (rev, visible, meant) = (rev(document), is_visible(document), tells(document, audio));
    let incomplete = |whole, why: String| Found::Incomplete {
        rev: rev.clone(),
        whole,
        why,
    };
    let Some(stub) = attachment(document) else {
        return incomplete(false, "the document has no audio".into());
    };
    let length = stub.get("length").and_then(Value::as_u64);
    let digest = stub.get("digest").and_then(Value::as_str);
    let whole = digest.is_some() && digest == audio.digests.couch().as_deref() && length == Some(audio.size);
    if visible && !whole && !meant {
        return Found::Taken;
    }
    match (whole, visible && meant) {
        (true, true) => Found::Ours { rev },
        (true, false) => incomplete(true, "the document has its audio, but does not tell so yet".into()),
        (false, _) => {
            let (bytes, digest) = (length.unwrap_or(0), digest.unwrap_or("none"));
            let why = format!("{bytes} bytes with digest {digest} are stored");
            incomplete(false, why)
        }
    }
}

/// The one attachment.
fn attachment(document: &Value) -> Option<&Value> {
    document.get("_attachments")?.as_object()?.values().next()
}

pub(in crate::destination) fn is_of(document: &Value, key: Key) -> bool {
    let stored = document.pointer("/pvt_recording/key").and_then(Value::as_str);
    stored == Some(key.to_string().as_str())
}

/// Whether the proof that the document has is this audio's.
fn tells(document: &Value, audio: &Audio) -> bool {
    let proof = document.pointer("/pvt_recording/sha256").and_then(Value::as_str);
    proof.is_none_or(|proof| proof == audio.digests.sha256)
}

/// Whether views show it.
fn is_visible(document: &Value) -> bool {
    document.get("pvt_type").and_then(Value::as_str) == Some(DOCUMENT_TYPE)
}

pub(in crate::destination) fn rev(document: &Value) -> String {
    document
        .get("_rev")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::recording::digest::Hasher;

    use super::*;

    fn audio() -> Audio {
        let mut hasher = Hasher::default();
        hasher.update(b"abc");
        Audio {
            size: 3,
            digests: hasher.finish(),
            duration_ms: None,
            findings: vec![],
            as_written: None,
        }
    }

    fn judged(document: &Value) -> String {
        let key = Key::of("call", "action");
        match judge(document, key, &audio()) {
            Found::Nothing => "nothing".into(),
            Found::Ours { rev } => format!("ours {rev}"),
            Found::Taken => "taken".into(),
            Found::Incomplete { whole, .. } => format!("incomplete {whole}"),
        }
    }

    #[test]
    fn only_our_own_whole_and_visible_document_counts_as_stored() {
        let key = Key::of("call", "action").to_string();
        let stub = json!({"length": 3, "digest": "md5-kAFQmDzST7DWlj99KOF/cg=="});
        let document = |key: &str, stub: &Value, kind: &str| json!({"_rev": "1-a", "pvt_type": kind, "pvt_recording": {"key": key}, "_attachments": {"a.mp3": stub}});
        assert_eq!(judged(&document(&key, &stub, "call_recording")), "ours 1-a");
        assert_eq!(judged(&document("other", &stub, "call_recording")), "taken");
        assert_eq!(judged(&json!({"_rev": "1-a"})), "taken");
        assert_eq!(judged(&document(&key, &stub, "")), "incomplete true");
        let other = json!({"length": 3, "digest": "md5-x"});
        assert_eq!(judged(&document(&key, &other, "call_recording")), "incomplete false");
        let mut of_other_audio = document(&key, &other, "call_recording");
        of_other_audio["pvt_recording"]["sha256"] = json!("of other audio");
        assert_eq!(judged(&of_other_audio), "taken");
        let short = json!({"length": 2, "digest": "md5-kAFQmDzST7DWlj99KOF/cg=="});
        assert_eq!(judged(&document(&key, &short, "call_recording")), "incomplete false");
        let mut before = document(&key, &stub, "call_recording");
        before["pvt_recording"]["sha256"] = json!("of less audio");
        assert_eq!(judged(&before), "incomplete true");
        let bare = json!({"_rev": "1-a", "pvt_type": "call_recording", "pvt_recording": {"key": key}});
        assert_eq!(judged(&bare), "incomplete false");
    }
}
