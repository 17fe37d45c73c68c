//! Existing-document check: what a database holds under a recording's id.

use serde_json::{Map, Value};

use crate::couch::{Couch, Present};
use crate::recording::audio::{Audio, Finding};
use crate::recording::digest::Digests;
use crate::recording::document::DOCUMENT_TYPE;
use crate::recording::identity::{Key, MediaId};
use crate::recording::progress::State;

use super::{DeliveryError, Place};

/// What a document id holds.
pub(super) enum Found {
    Nothing,
    /// Our recording, visible, with complete audio.
    Ours {
        rev: String,
        /// A user deleted it (`pvt_deleted`).
        deleted: bool,
    },
    /// Our recording's document, but not yet in its final form.
    Incomplete {
        rev: String,
        /// Whether the audio is ours, byte by byte.
        whole: bool,
        why: String,
        /// The present document. Fields of other programs are kept.
        present: Map<String, Value>,
    },
    /// Our recording's document was deleted there before it had the audio. It is not created again.
    Deleted(String),
    /// A document of another recording, or of our recording with other audio. Neither is ever overwritten.
    Taken,
}

/// State of a stored recording at a later read-back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadBack {
    /// It is complete, and its digest was compared.
    Whole { rev: String },
    /// It was stored, and was deleted since.
    Deleted,
    /// It is missing or incomplete. The worker must store it again, and report that.
    Lost(String),
}

/// Result of looking for a recording without its audio at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// It is missing.
    Not,
    /// It exists, and its attachment has the length and the digest that the document states.
    Whole {
        rev: String,
        audio: Box<Audio>,
        deleted: bool,
    },
    /// Its document exists, and its attachment differs from what the document states.
    Damaged(String),
}

/// Reads a stored recording back. This is required after a `202`. Where the server does not list its nodes, the document is saved once more,
/// unchanged. `untouched`: the document can be Kazoo's own, with the audio added.
///
/// # Errors
/// When the database does not answer. A server that does not know the database says nothing about the document.
pub async fn read_back(
    couch: &Couch,
    database: &str,
    id: &MediaId,
    (key, untouched): (Key, bool),
    (name, audio): (&str, &Audio),
) -> Result<ReadBack, DeliveryError> {
    let document = match couch.present(database, id.as_str()).await? {
        Present::Document(document) => document,
        Present::Missing => return Ok(ReadBack::Lost("the document is not there any more".into())),
        Present::NoDatabase => return Err(DeliveryError::NoDatabase(database.to_owned())),
    };
    Ok(match judge(document, (key, untouched), name, audio) {
        Found::Ours { deleted: false, rev } => whole(couch, database, id, rev).await?,
        // Kazoo's own document has the audio, and nothing else of ours.
        Found::Incomplete { whole: true, rev, .. } if untouched => whole(couch, database, id, rev).await?,
        Found::Ours { deleted: true, .. } | Found::Deleted(_) => ReadBack::Deleted,
        Found::Nothing => ReadBack::Lost("the document is not there any more".into()),
        Found::Taken => ReadBack::Lost("another recording's document is there".into()),
        Found::Incomplete { why, .. } => ReadBack::Lost(why),
    })
}

async fn whole(couch: &Couch, database: &str, id: &MediaId, rev: String) -> Result<ReadBack, DeliveryError> {
    // A copy on the only remaining node proves no more than the 202 did.
    if !couch.keeps(database, id.as_str()).await? {
        let why = "fewer of the document's nodes than the quorum are there";
        return Err(DeliveryError::Target(why.into()));
    }
    Ok(ReadBack::Whole { rev })
}

/// Whether any worker stored the recording already, checked without its audio at hand. The document alone is not enough: the attachment
/// must have the length and the digest that the document states.
///
/// # Errors
/// When the database does not answer.
pub async fn find(couch: &Couch, database: &str, id: &MediaId, key: Key, name: &str) -> Result<Kept, DeliveryError> {
    Ok(match couch.get(database, id.as_str()).await? {
        Some(document) if is_of(&document, key) && is_visible(&document) => kept(&document, name),
        _ => Kept::Not,
    })
}

/// Whether Kazoo's own recorder has stored a recording: its document has an attachment of that name, here or where a storage plan or a URL
/// puts it. A document that a user deleted counts too: the audio was there.
///
/// Of a recording that begins again at each bridge the document has the audio of one stretch only. `stretch`: the length of the wanted one in
/// milliseconds, which Kazoo's recorder takes from the same event.
///
/// # Errors
/// When the database does not answer. A missing database has no document.
pub async fn is_stored_by_kazoo(
    couch: &Couch,
    database: &str,
    id: &MediaId,
    name: &str,
    stretch: Option<u64>,
) -> Result<bool, DeliveryError> {
    let document = match couch.present(database, id.as_str()).await? {
        Present::Document(document) => document,
        Present::Missing | Present::NoDatabase => return Ok(false),
    };
    Ok(is_kazoos_own(&document, name, stretch))
}

fn is_kazoos_own(document: &Value, name: &str, stretch: Option<u64>) -> bool {
    let length = |all: &str| document.get(all)?.get(name)?.get("length")?.as_u64();
    let has_audio = ["_attachments", "pvt_attachments"]
        .iter()
        .any(|all| length(all).is_some_and(|length| length > 0));
    let is_wanted = stretch.is_none_or(|stretch| document.get("duration_ms").and_then(Value::as_u64) == Some(stretch));
    // What this worker or another one wrote has its key.
    document.get("pvt_recording").is_none() && is_wanted && (has_audio || is_deleted(document))
}

fn kept(document: &Value, name: &str) -> Kept {
    let Some(audio) = told_audio(document) else {
        return Kept::Damaged("its document does not tell size and digests of the audio".into());
    };
    match attachment(document, name, &audio) {
        Some(stub) if is_whole(stub, &audio) => Kept::Whole {
            rev: rev(document),
            audio: Box::new(audio),
            deleted: is_deleted(document),
        },
        Some(stub) => Kept::Damaged(format!(
            "{}, and its document tells of {} bytes",
            of_stub(stub),
            audio.size
        )),
        None => Kept::Damaged("its document has no audio".into()),
    }
}

/// The audio as its document describes it.
pub(in crate::destination) fn told_audio(document: &Value) -> Option<Audio> {
    let told = document.get("pvt_recording")?;
    let text = |name: &str| told.get(name).and_then(Value::as_str).map(str::to_owned);
    let findings = told.get("findings").and_then(Value::as_array).into_iter().flatten();
    Some(Audio {
        size: told.get("size").and_then(Value::as_u64)?,
        digests: Digests {
            md5: text("md5")?,
            sha256: text("sha256")?,
        },
        duration_ms: told.get("audio_ms").and_then(Value::as_u64),
        // Findings of a later version of this program are unknown here.
        findings: findings
            .filter_map(|finding| serde_json::from_value::<Finding>(finding.clone()).ok())
            .collect(),
        as_written: told.get("repaired").and_then(|repaired| {
            let text = |name: &str| repaired.get(name).and_then(Value::as_str).map(str::to_owned);
            Some(Digests {
                md5: text("md5")?,
                sha256: text("sha256")?,
            })
        }),
    })
}

pub(super) async fn look_up(place: &Place<'_>) -> Result<Found, DeliveryError> {
    Ok(match place.couch.present(place.database, place.id.as_str()).await? {
        Present::Document(document) => judge(document, (place.key, place.adopted), place.name, place.audio),
        Present::Missing => Found::Nothing,
        Present::NoDatabase => return Err(DeliveryError::NoDatabase(place.database.to_owned())),
    })
}

/// `adopted`: Kazoo's own recorder may have written the document, because the recording has the id that Kazoo chose for it.
fn judge(document: Value, (key, adopted): (Key, bool), name: &str, audio: &Audio) -> Found {
    let is_its = is_of(&document, key) || adopted && is_kazoos(&document, name, audio);
    if !is_its {
        return Found::Taken;
    }
    let (visible, meant, deleted) = (is_visible(&document), tells(&document, audio), is_deleted(&document));
    let stub = attachment(&document, name, audio);
    let whole = stub.is_some_and(|stub| is_whole(stub, audio));
    if visible && !whole && !meant && stub.is_some() {
        return Found::Taken;
    }
    let (rev, why) = (rev(&document), stub.map(of_stub));
    if whole && visible && meant && is_through(&document) && is_of(&document, key) {
        return Found::Ours { rev, deleted };
    }
    if deleted && !whole {
        return Found::Deleted("its document was deleted there, without this audio".into());
    }
    Found::Incomplete {
        rev,
        whole,
        why: match why {
            None => "the document has no audio".into(),
            Some(_) if whole => "the document has its audio, but does not tell so yet".into(),
            Some(why) => why,
        },
        present: match document {
            Value::Object(present) => present,
            _ => Map::new(),
        },
    }
}

/// Whether Kazoo's own recorder wrote the document, and the document lacks its audio, or has exactly this audio. Other audio under that id
/// is kept: the worker takes another id then.
fn is_kazoos(document: &Value, name: &str, audio: &Audio) -> bool {
    let is_foreign = document.get("pvt_recording").is_none() && is_visible(document);
    let elsewhere = document.pointer("/pvt_attachments").and_then(Value::as_object);
    let is_empty = || {
        document
            .get("_attachments")
            .and_then(|all| all.as_object())
            .is_none_or(|all| all.values().all(is_without_bytes))
    };
    let has_this = || attachment(document, name, audio).is_some_and(|stub| is_whole(stub, audio));
    is_foreign && elsewhere.is_none_or(Map::is_empty) && (is_empty() || has_this())
}

/// Whether the document says that its audio was delivered. A document that was written before its audio says `pending` or `parked` until
/// it is written again.
fn is_through(document: &Value) -> bool {
    let state = document.pointer("/pvt_recording/state").and_then(Value::as_str);
    state.is_none_or(|state| state == State::Complete.name())
}

/// The audio among a document's attachments, identified by its bytes, else by its name. Attachments of other programs are ignored.
fn attachment<'a>(document: &'a Value, name: &str, audio: &Audio) -> Option<&'a Value> {
    let all = document.get("_attachments")?.as_object()?;
    let named = all.get(name);
    named
        .filter(|stub| is_whole(stub, audio))
        .or_else(|| all.values().find(|stub| is_whole(stub, audio)))
        .or(named)
}

fn is_whole(stub: &Value, audio: &Audio) -> bool {
    let digest = stub.get("digest").and_then(Value::as_str);
    let length = stub.get("length").and_then(Value::as_u64);
    digest.is_some() && digest == audio.digests.couch().as_deref() && length == Some(audio.size)
}

/// Kazoo's own recorder can leave such an attachment if its upload broke.
fn is_without_bytes(stub: &Value) -> bool {
    stub.get("length").and_then(Value::as_u64) == Some(0)
}

fn of_stub(stub: &Value) -> String {
    let length = stub.get("length").and_then(Value::as_u64).unwrap_or(0);
    let digest = stub.get("digest").and_then(Value::as_str).unwrap_or("none");
    format!("{length} bytes with digest {digest} are stored")
}

/// Whether a user deleted the document in Crossbar. Crossbar keeps the document, and no view shows it.
fn is_deleted(document: &Value) -> bool {
    document.get("pvt_deleted").and_then(Value::as_bool) == Some(true)
}

pub(in crate::destination) fn is_of(document: &Value, key: Key) -> bool {
    let stored = document.pointer("/pvt_recording/key").and_then(Value::as_str);
    stored == Some(key.to_string().as_str())
}

/// Whether the digest in the document is this audio's, or the document has none.
fn tells(document: &Value, audio: &Audio) -> bool {
    let proof = document.pointer("/pvt_recording/sha256").and_then(Value::as_str);
    proof.is_none_or(|proof| proof == audio.digests.sha256)
}

/// Whether views show the document.
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

    use crate::couch::testing;
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

    /// The document can be on the only node that has not failed. `_membership` is for admins, and the proxy of a third party hides it.
    #[tokio::test]
    async fn a_read_back_counts_only_when_nodes_are_known_or_a_write_has_enough_copies() {
        const HIDES: (u16, &str, &str) = (404, "not_found", "missing");
        const REFUSES: (u16, &str, &str) = (401, "unauthorized", "You are not a server admin.");
        let key = Key::of("call", "action");
        let stub = json!({"stub": true, "length": 3, "digest": "md5-kAFQmDzST7DWlj99KOF/cg=="});
        let document = json!({
            "_id": "x", "_rev": "2-a", "pvt_type": "call_recording", "pvt_recording": {"key": key},
            "_attachments": {"a.mp3": stub}
        });
        let id: MediaId = "202611-x".to_owned().try_into().unwrap();
        for (hidden, again, counts) in [
            (HIDES, 202, false),
            (REFUSES, 202, false),
            (HIDES, 201, true),
            (REFUSES, 201, true),
        ] {
            let there = document.clone();
            let (couch, log) = testing::couch(move |asked| match asked.method.as_str() {
                _ if asked.path.contains("_membership") => (hidden.0, json!({"error": hidden.1, "reason": hidden.2})),
                "PUT" => (again, json!({"ok": true, "id": "x", "rev": "3-b"})),
                _ => (200, there.clone()),
            })
            .await;
            let read = read_back(&couch, "db", &id, (key, false), ("a.mp3", &audio())).await;
            assert_eq!(
                read.is_ok_and(|read| matches!(read, ReadBack::Whole { .. })),
                counts,
                "{hidden:?} {again}"
            );
            let log = log.lock().unwrap();
            let saved: Vec<_> = log.iter().filter(|asked| asked.method == "PUT").collect();
            let saved: Vec<Value> = saved
                .iter()
                .map(|asked| serde_json::from_str(&asked.body).unwrap())
                .collect();
            assert_eq!(
                saved,
                std::slice::from_ref(&document),
                "unchanged, with the stub of its audio"
            );
        }
    }

    fn judged(document: &Value) -> String {
        let key = Key::of("call", "action");
        match judge(document.clone(), (key, false), "a.mp3", &audio()) {
            Found::Nothing => "nothing".into(),
            Found::Ours { rev, deleted } => format!("ours {rev}{}", if deleted { " deleted" } else { "" }),
            Found::Deleted(_) => "deleted".into(),
            Found::Taken => "taken".into(),
            Found::Incomplete { whole, .. } => format!("incomplete {whole}"),
        }
    }

    #[test]
    fn what_kazoos_recorder_stored_of_one_bridge_says_nothing_of_another() {
        let stored = json!({"_id": "x", "duration_ms": 10_000, "_attachments": {"a.mp3": {"length": 9}}});
        let deleted = json!({"_id": "x", "duration_ms": 10_000, "pvt_deleted": true});
        for document in [&stored, &deleted] {
            assert!(is_kazoos_own(document, "a.mp3", Some(10_000)));
            assert!(!is_kazoos_own(document, "a.mp3", Some(7_000)), "{document}");
            assert!(is_kazoos_own(document, "a.mp3", None), "it is recorded once");
        }
        let without = json!({"_id": "x", "_attachments": {"a.mp3": {"length": 9}}});
        assert!(
            !is_kazoos_own(&without, "a.mp3", Some(10_000)),
            "which stretch it has is unknown"
        );
    }

    #[test]
    fn a_document_of_kazoos_recorder_is_completed_only_where_it_lacks_this_audio() {
        let judged = |document: &Value| {
            let key = Key::of("call", "action");
            match judge(document.clone(), (key, true), "a.mp3", &audio()) {
                Found::Taken => "taken".to_owned(),
                Found::Incomplete { whole, .. } => format!("incomplete {whole}"),
                Found::Deleted(_) => "deleted".into(),
                Found::Nothing | Found::Ours { .. } => "ours".into(),
            }
        };
        let bare = json!({"_rev": "1-a", "pvt_type": "call_recording", "source_type": "media_recording"});
        assert_eq!(judged(&bare), "incomplete false");
        let with = |key: &str, value: Value| {
            let mut document = bare.clone();
            document[key] = value;
            judged(&document)
        };
        let this = json!({"a.mp3": {"length": 3, "digest": "md5-kAFQmDzST7DWlj99KOF/cg=="}});
        let other = json!({"a.mp3": {"length": 3, "digest": "md5-x"}});
        assert_eq!(
            with("_attachments", this),
            "incomplete true",
            "it lacks only our fields"
        );
        assert_eq!(
            with("_attachments", other.clone()),
            "taken",
            "other audio is never replaced"
        );
        let empty = json!({"a.mp3": {"length": 0, "digest": "md5-1B2M2Y8AsgTpgAmY7PhCfg=="}});
        assert_eq!(with("_attachments", empty), "incomplete false", "an upload broke");
        assert_eq!(with("pvt_attachments", other), "taken", "its audio is elsewhere");
        assert_eq!(with("pvt_deleted", json!(true)), "deleted", "a user deleted it");
        assert_eq!(with("pvt_recording", json!({"key": "other"})), "taken");
        assert_eq!(with("pvt_type", json!("fax")), "taken");
    }

    /// As for a storage plan: the document comes first, and says so until it is written again.
    #[test]
    fn a_document_that_was_written_before_its_audio_is_written_again() {
        let key = Key::of("call", "action").to_string();
        let stub = json!({"length": 3, "digest": "md5-kAFQmDzST7DWlj99KOF/cg=="});
        for (state, told) in [
            ("pending", "incomplete true"),
            ("parked", "incomplete true"),
            ("complete", "ours 1-a"),
        ] {
            let document = json!({
                "_rev": "1-a", "pvt_type": "call_recording", "pvt_recording": {"key": key, "state": state},
                "_attachments": {"a.mp3": stub}
            });
            assert_eq!(judged(&document), told, "{state}");
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
