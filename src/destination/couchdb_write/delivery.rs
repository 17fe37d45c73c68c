//! Deliveries into databases, as the ledger notes them.

use crate::couch::Couch;
use crate::entry::fact::{Delivery, Destination as Kind, Document, What};
use crate::recording::audio::Finding;
use crate::recording::names;

use super::super::{Attempt, DeliveryError, Search};
use super::{Job, Kept, find, put};

/// Stores document and audio together. `create_database`: a missing database may be created there.
///
/// # Errors
/// As `put`.
pub async fn deliver(couch: &Couch, attempt: &Attempt<'_>, create_database: bool) -> Result<Delivery, DeliveryError> {
    let parcel = &attempt.parcel;
    let ids = parcel.ids();
    let job = Job {
        audio: &parcel.audio,
        source: &attempt.source,
        ids: &ids,
        subject: |id| parcel.subject(id),
        progress: Some(attempt.progress()),
        failures: parcel.failures_there(),
        untouched: parcel.entry.watched().is_some(),
        create_database,
    };
    let stored = put(couch, &job).await?;
    let document = Document {
        id: stored.id,
        database: stored.database,
        rev: stored.rev,
        created: stored.created,
    };
    Ok(Delivery {
        below_quorum: stored.below_quorum,
        deleted: stored.deleted,
        // A document that existed already is read again.
        controls: Some(match stored.road {
            Some(_) => parcel.entry.controls().fingerprint(),
            // No command of ours stops or masks one of Kazoo's own recordings.
            None if job.untouched => parcel.entry.controls().fingerprint(),
            None => String::new(),
        }),
        ..parcel.delivery(document)
    })
}

/// Looks for document and audio of a recording in the databases of its possible ids.
///
/// # Errors
/// When a database does not answer, a copy is damaged, or no database of any id exists.
pub async fn search(couch: &Couch, to: Kind, sought: &Search<'_>) -> Result<Option<What>, DeliveryError> {
    let (entry, order) = (sought.entry, sought.order);
    let (mut damaged, mut missing, mut answered) = (None, None, false);
    for id in sought.ids() {
        let database = names::modb(sought.account_id, id.month());
        let kept = match find(couch, &database, &id, order.key, &order.media_name).await {
            // The document is then under the next id, as the month of its first one has no database.
            Err(error @ DeliveryError::NoDatabase(_)) => {
                missing = Some(error);
                continue;
            }
            kept => kept?,
        };
        answered = true;
        match kept {
            Kept::Not => {}
            Kept::Damaged(why) => damaged = Some(why),
            Kept::Whole { rev, audio, deleted } => {
                let below_quorum = !deleted && !couch.has_quorum(&database, id.as_str()).await?;
                let mut audio = *audio;
                if entry.last_audio().is_some_and(|seen| seen.size > audio.size) {
                    // A worker received more from the switch, and that is nowhere.
                    audio.findings.push(Finding::Truncated);
                }
                let created = id.month().clamp(entry.ended_at().unwrap_or(sought.now));
                return Ok(Some(What::delivered(Delivery {
                    destination: to,
                    document: Document {
                        id,
                        database,
                        rev,
                        created,
                    },
                    sha256: Some(audio.digests.sha256.clone()),
                    below_quorum,
                    audio: Some(audio),
                    deleted,
                    edit_told: false,
                    // Another worker wrote the document: it is read again.
                    controls: Some(String::new()),
                    again: 0,
                })));
            }
        }
    }
    match damaged {
        // A damaged copy counts as not stored.
        Some(why) => Err(DeliveryError::Corrupt(why)),
        None => missing.filter(|_| !answered).map_or(Ok(None), Err),
    }
}
