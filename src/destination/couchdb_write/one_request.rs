//! Single-request write: one `multipart/related` request. No document without its audio ever exists.

use crate::couch::CouchError;

use super::existing::Found;
use super::{DeliveryError, Place, Put, Road, attachment_first};

/// Single-request write, for a recording without a document. If a document exists, the attachment-first write resumes from it, and
/// keeps the fields that other programs wrote there.
///
/// The request creates, and never replaces. So the first attempt of a recording whose id no other program can have looks for nothing
/// before: a document that is there all the same makes the request fail.
pub(super) async fn put(place: &Place<'_>) -> Result<Put, DeliveryError> {
    if place.failures > 0 || place.adopted {
        match place.look_up().await? {
            Found::Nothing => {}
            _ => return attachment_first::put(place).await,
        }
    }
    let document = place.document.clone();
    let sent = place
        .couch
        .create_with_attachment(place.database, place.id.as_str(), document, place.attachment().await?)
        .await;
    let (below_quorum, failed) = match sent {
        // The server has compared the bytes with their digest, and a quorum of its nodes has them.
        Ok(saved) if place.couch.has_compared_digests(&saved).await => {
            return Ok(Put::Stored {
                rev: saved.rev,
                below_quorum: false,
                road: Some(Road::First),
                deleted: false,
            });
        }
        Ok(saved) => (saved.below_quorum, None),
        // The server may have stored it all the same. Only the existing-document check can show that.
        Err(
            error @ (CouchError::Conflict
            | CouchError::NoAnswer(_)
            | CouchError::Failed { .. }
            | CouchError::Refused {
                status: 400 | 413 | 415,
                ..
            }),
        ) => (false, Some(error)),
        Err(error) => return Err(place.told(error).await),
    };
    match place.look_up().await? {
        Found::Ours { rev, deleted } if failed.is_none() => Ok(Put::Stored {
            rev,
            below_quorum,
            road: Some(Road::First),
            deleted,
        }),
        Found::Ours { rev, deleted } => place.found(rev, deleted, below_quorum).await,
        Found::Taken => Ok(Put::Taken),
        Found::Deleted(why) => Err(DeliveryError::Recording(why)),
        Found::Nothing => match failed {
            // These errors may come from the server's multipart parser, and not from the recording.
            Some(CouchError::Refused { .. }) => attachment_first::put(place).await,
            Some(error) => Err(place.told(error).await),
            None => Err(DeliveryError::Corrupt("the document is missing".into())),
        },
        // The server mangled the audio. The upload is not repeated without end.
        Found::Incomplete { why, whole: false, .. } if failed.is_none() => Err(DeliveryError::Corrupt(why)),
        Found::Incomplete { .. } => attachment_first::put(place).await,
    }
}
