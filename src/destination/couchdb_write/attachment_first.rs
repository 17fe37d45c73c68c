//! Attachment-first write, for servers with unreliable multipart requests. First comes a document with the recording's key and without
//! `pvt_type`, so no view shows it. Then comes the audio. When its digest is right, the document is written with the attachment's stub.
//!
//! A worker may find each step half done, by a worker that was killed or by one that is still working. It resumes from there.

use serde_json::{Map, Value, json};

use crate::couch::CouchError;

use super::existing::Found;
use super::{DeliveryError, Place, Put, Road};

/// Steps that may fail because other workers write the same recording.
const ROUNDS: usize = 8;
/// Uploads per attempt, so that audio is not sent without end to a server that mangles it.
const UPLOADS: usize = 2;

pub(super) async fn put(place: &Place<'_>) -> Result<Put, DeliveryError> {
    // Unless this worker wrote the document's last form, another one did, and its controls are read from it.
    let (mut has_shown, mut below_quorum, mut uploads) = (false, false, 0);
    for _ in 0..ROUNDS {
        let mut uploads_it = false;
        let mut shows_it = false;
        let step = match place.look_up().await? {
            Found::Taken => return Ok(Put::Taken),
            Found::Ours { rev, deleted } if !has_shown => return place.found(rev, deleted, below_quorum).await,
            Found::Ours { rev, deleted } => {
                return Ok(Put::Stored {
                    rev,
                    below_quorum,
                    road: Some(Road::Second),
                    deleted,
                });
            }
            Found::Deleted(why) => return Err(DeliveryError::Recording(why)),
            Found::Nothing => mark(place).await,
            // Kazoo's own document has its audio, and keeps its fields as they are.
            Found::Incomplete {
                whole: true,
                rev,
                present,
                ..
            } if place.untouched && !present.contains_key("pvt_recording") => {
                return place.found(rev, false, below_quorum).await;
            }
            Found::Incomplete {
                whole: true, present, ..
            } => {
                shows_it = true;
                show(place, present).await
            }
            Found::Incomplete { why, .. } if uploads == UPLOADS => return Err(DeliveryError::Corrupt(why)),
            Found::Incomplete { rev, .. } => {
                uploads_it = true;
                upload(place, &rev).await
            }
        };
        match step {
            Ok(saved) => {
                has_shown |= shows_it;
                uploads += usize::from(uploads_it);
                below_quorum |= saved.below_quorum;
            }
            // Another worker changed the document, or the attachment that this write was to keep. The next check shows what exists now.
            Err(Step::Couch(CouchError::Conflict | CouchError::Refused { status: 412, .. })) => {}
            Err(Step::Couch(error)) => return Err(place.told(error).await),
            Err(Step::Ours(error)) => return Err(error),
        }
    }
    Err(DeliveryError::Target(
        "others write the same document all the time".into(),
    ))
}

/// Why a step failed.
enum Step {
    Couch(CouchError),
    Ours(DeliveryError),
}

impl From<CouchError> for Step {
    fn from(error: CouchError) -> Self {
        Self::Couch(error)
    }
}

type Taken = Result<crate::couch::Saved, Step>;

/// Step 1: the document with the recording's key.
async fn mark(place: &Place<'_>) -> Taken {
    let mark = json!({"pvt_recording": {"key": place.key, "state": "pending"}});
    let saved = place.couch.put_document(place.database, place.id.as_str(), &mark).await;
    Ok(saved?)
}

/// Step 2: the audio.
async fn upload(place: &Place<'_>, rev: &str) -> Taken {
    let attachment = place.attachment().await.map_err(Step::Ours)?;
    let saved = place
        .couch
        .put_attachment(place.database, place.id.as_str(), Some(rev), attachment)
        .await;
    Ok(saved?)
}

/// Step 3: the document with its attachments. Fields of other programs are kept.
async fn show(place: &Place<'_>, present: Map<String, Value>) -> Taken {
    let document = shown(present, place.document);
    let saved = place
        .couch
        .put_document(place.database, place.id.as_str(), &Value::Object(document))
        .await;
    Ok(saved?)
}

/// Merges our fields into the present document. Its revision and the stubs of all attachments stay, because CouchDB drops an attachment
/// whose stub is missing. Fields of other programs stay as well. In a document that views show already, users may have changed the public
/// fields.
fn shown(mut present: Map<String, Value>, ours: &Map<String, Value>) -> Map<String, Value> {
    let was_visible = present.get("pvt_type").is_some();
    for (key, value) in ours {
        match present.get_mut(key) {
            Some(Value::Object(there)) if key == "pvt_recording" => {
                // It says `pending` or `parked` of the time before the audio.
                there.remove("state");
                there.extend(value.as_object().cloned().unwrap_or_default());
            }
            Some(_) if was_visible && !key.starts_with("pvt_") && !OF_THE_AUDIO.contains(&key.as_str()) => {}
            Some(_) if key == "pvt_created" => {}
            _ => drop(present.insert(key.clone(), value.clone())),
        }
    }
    present
}

/// Public fields that follow from the audio. They are overwritten, because the audio has changed.
const OF_THE_AUDIO: [&str; 3] = ["start", "duration", "duration_ms"];
