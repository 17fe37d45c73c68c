//! ⑤ Announce: publishes each notice that must go out, until the broker has confirmed it.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::amqp::Publisher;

use crate::entry::Entry;
use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::{Announcement, Destination};
use crate::kazoo::change::{self, Change, DocumentChange};
use crate::kazoo::names::KAZOO_RECORDER;
use crate::kazoo::outgoing::Outgoing;
use crate::recording::document::DOCUMENT_TYPE;
use crate::recording::names;
use crate::telemetry::events::Announced;

use crate::flow::common::{Common, Interrupted};
use crate::lifecycle::{Case, Input};

/// Publishes notices.
pub struct Announcer {
    pub common: Arc<Common>,
    pub publisher: Publisher,
}

impl Announcer {
    /// Publishes a notice until the broker has confirmed it.
    pub(super) async fn announce(&self, case: &Case, announcement: Announcement) -> Result<Input, Interrupted> {
        let Some(message) = self.notice(case, announcement) else {
            return Ok(Input::Fact(case.entry.announced(announcement)));
        };
        loop {
            match self.publisher.publish(&message).await {
                Ok(()) => {
                    let media_id = case.entry.order().map_or("", |order| order.media_id.as_str());
                    Announced {
                        media_id,
                        kind: announcement.name(),
                    }
                    .emit();
                    return Ok(Input::Fact(case.entry.announced(announcement)));
                }
                Err(error) => {
                    tracing::warn!(event = "notification_not_published", call_id = case.entry.call_id, %error, "notification not published, retrying")
                }
            }
            self.common.rest().await?;
        }
    }

    fn notice(&self, case: &Case, announcement: Announcement) -> Option<Outgoing> {
        let entry = &case.entry;
        let order = entry.order()?;
        let other = other_document(entry, announcement);
        // Always the same id, so that a consumer can drop a repeat. What went into another document is no repeat: a worker that died may have
        // told of the document that everyone expects, and of less audio.
        let msg_id = |what: &str| match &other {
            Some(id) => order.key.derived(&format!("{what} {id}")),
            None => order.key.derived(what),
        };
        let changed = match announcement {
            Announcement::Outcome(outcome) => {
                let body = outcome_body(entry, outcome);
                let rest = entry.later_rest().filter(|_| outcome == Outcome::Parked);
                let id = match (rest, entry.later_cause(outcome)) {
                    (Some(n), _) => msg_id(&format!("outcome {outcome} {n}")),
                    (None, Some(cause)) => msg_id(&format!("outcome {outcome} {}", cause.name())),
                    (None, None) => msg_id(&format!("outcome {outcome}")),
                };
                return Some(change::recording_outcome(
                    &self.common.sender,
                    &id,
                    outcome.name(),
                    entry.account_id(),
                    body,
                ));
            }
            Announcement::DocumentCreated => Change::Created,
            Announcement::DocumentEdited => Change::Edited,
        };
        let document = match changed {
            // The document as it was when it was created.
            Change::Created => entry
                .documented()
                .or_else(|| entry.delivery().map(|delivery| &delivery.document))?,
            Change::Edited => entry.delivery().map(|delivery| &delivery.document)?,
        };
        let modified = match changed {
            Change::Created => document.created,
            Change::Edited => self.common.now().max(document.created),
        };
        let notice = DocumentChange {
            change: changed,
            database: &names::encoded(&document.database),
            document_type: DOCUMENT_TYPE,
            id: document.id.as_str(),
            rev: &document.rev,
            account_id: entry.account_id()?,
            created: document.created,
            modified,
        };
        Some(change::document_change(
            &self.common.sender,
            &msg_id(announcement.name()),
            &notice,
        ))
    }
}

/// The document that a notice tells of, unless it is the one that the recording's action names.
fn other_document(entry: &Entry, announcement: Announcement) -> Option<&str> {
    let delivered = entry.delivery().map(|delivery| &delivery.document);
    let document = match announcement {
        Announcement::DocumentCreated => entry.documented().or(delivered),
        Announcement::DocumentEdited | Announcement::Outcome(Outcome::Stored | Outcome::Delivered) => delivered,
        Announcement::Outcome(_) => None,
    }?;
    let is_expected = entry.order().is_some_and(|order| order.media_id == document.id);
    (!is_expected).then(|| document.id.as_str())
}

/// The body of our own event.
fn outcome_body(entry: &Entry, outcome: Outcome) -> Value {
    let order = entry.order();
    let cause = match outcome {
        Outcome::Parked => entry.parked(),
        _ => entry.outcome().map(|(_, cause)| cause),
    };
    let (judged, ended) = (entry.judged_audio(), entry.ended());
    let audio = judged.as_ref();
    let document = entry
        .delivery()
        .map(|delivery| &delivery.document)
        .or(entry.documented());
    // Another worker may have decided otherwise. What counts is where the audio is.
    let delivered = entry.delivery().map(|delivery| delivery.destination);
    let ordered = order.map(|order| order.media_id.as_str());
    json!({
        "Outcome": outcome.name(),
        "Cause": cause.map(Cause::name),
        "Call-ID": entry.call_id,
        "Account-ID": entry.account_id(),
        "Media-ID": document.map(|document| document.id.as_str()).or(ordered),
        "Media-Name": order.map(|order| order.media_name.as_str()),
        "Recording-Key": entry.key,
        "Continues": order.and_then(|order| order.continues.as_ref()).map(|continues| continues.media_id.as_str()),
        "Part": order.and_then(|order| order.continues.as_ref()).map(|continues| continues.part),
        "Recorder": entry.is_adopted().then_some(KAZOO_RECORDER),
        "Origin": order.map(|order| order.origin.as_str()),
        "Destination": delivered.or(entry.destination()).map(Destination::name),
        "Database": document.map(|document| names::encoded(&document.database)),
        "Rev": document.map(|document| document.rev.as_str()),
        "Size": audio.map(|audio| audio.size),
        "MD5": audio.map(|audio| audio.digests.md5.as_str()),
        "SHA256": audio.map(|audio| audio.digests.sha256.as_str()),
        "Findings": audio.filter(|audio| audio.is_suspect()).map(|audio| json!(audio.findings)),
        "Duration-MS": entry.told_ms().or_else(|| audio.and_then(|audio| audio.duration_ms)),
        "Completion-Cause": ended.and_then(|told| told.completion_cause.as_deref()),
        "Ended-By": ended.filter(|told| order.is_some_and(|order| order.ends_by_silence(told))).map(|_| "silence"),
        "Ended-At": ended.map(|told| told.at.gregorian_seconds()),
        "End-Presumed": ended.is_some().then(|| entry.told_end().is_none()).filter(|presumed| *presumed),
    })
}
