//! The second road, for servers whose multipart requests cannot be relied on: a document without `pvt_type`, which no view shows, that says
//! whose it is; the audio; when its digest is the right one, the document with the attachment's stub.
//!
//! Every step can be found half done, by a worker that died or another that is at it, and is gone on from there.

use serde_json::{Map, Value, json};

use crate::couch::CouchError;

use super::found::Found;
use super::{DeliveryError, Place, Put, Road};

/// Steps that may be taken over in vain, from others at the same recording.
const ROUNDS: usize = 8;
/// Uploads in one attempt: a server that mangles the audio is not fed for ever.
const UPLOADS: usize = 2;

pub(super) async fn put(place: &Place<'_>) -> Result<Put, DeliveryError> {
    let (mut begun, mut below_quorum, mut uploads) = (false, false, 0);
    for _ in 0..ROUNDS {
        let mut uploads_it = false;
        let step = match place.look_up().await? {
            Found::Taken => return Ok(Put::Taken),
            Found::Ours { rev, deleted } if !begun => return place.found(rev, deleted).await,
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
            Found::Incomplete {
                whole: true, present, ..
            } => show(place, present).await,
            Found::Incomplete { why, .. } if uploads == UPLOADS => return Err(DeliveryError::Corrupt(why)),
            Found::Incomplete { rev, .. } => {
                uploads_it = true;
                upload(place, &rev).await
            }
        };
        match step {
            Ok(saved) => {
                begun = true;
                uploads += usize::from(uploads_it);
                below_quorum |= saved.below_quorum;
            }
            // Others were faster, and the document, or the attachment that it was to keep, is another one: the next look tells.
            Err(Step::Couch(CouchError::Conflict | CouchError::Refused { status: 412, .. })) => {}
            Err(Step::Couch(error)) => return Err(place.told(error).await),
            Err(Step::Ours(error)) => return Err(error),
        }
    }
    Err(DeliveryError::Target(
        "others write the same document all the time".into(),
    ))
}

/// Why a step was not taken.
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

/// First: the document that says whose it is.
async fn mark(place: &Place<'_>) -> Taken {
    let mark = json!({"pvt_recording": {"key": place.key, "state": "pending"}});
    let saved = place.couch.put_document(place.database, place.id.as_str(), &mark).await;
    Ok(saved?)
}

/// Then: the audio.
async fn upload(place: &Place<'_>, rev: &str) -> Taken {
    let attachment = place.attachment().await.map_err(Step::Ours)?;
    let saved = place
        .couch
        .put_attachment(place.database, place.id.as_str(), Some(rev), attachment)
        .await;
    Ok(saved?)
}

/// At last: the document, with the audio that is there, and whatever others put there.
async fn show(place: &Place<'_>, present: Map<String, Value>) -> Taken {
    let document = shown(present, place.document);
    let saved = place
        .couch
        .put_document(place.database, place.id.as_str(), &Value::Object(document))
        .await;
    Ok(saved?)
}

/// What is known by now, in the document as it is: its revision and the stubs of all attachments stay, for a document that is written without a
/// stub loses that attachment; so does what others wrote. In one that views show already users may have changed what they read.
fn shown(mut present: Map<String, Value>, ours: &Map<String, Value>) -> Map<String, Value> {
    let was_visible = present.get("pvt_type").is_some();
    for (key, value) in ours {
        match present.get_mut(key) {
            Some(Value::Object(there)) if key == "pvt_recording" => {
                there.extend(value.as_object().cloned().unwrap_or_default());
            }
            Some(_) if was_visible && !key.starts_with("pvt_") && !OF_THE_AUDIO.contains(&key.as_str()) => {}
            Some(_) if key == "pvt_created" => {}
            _ => drop(present.insert(key.clone(), value.clone())),
        }
    }
    present
}

/// Public fields that follow from the audio, which is another one now.
const OF_THE_AUDIO: [&str; 3] = ["start", "duration", "duration_ms"];
