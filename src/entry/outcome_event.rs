//! Our own event of a recording's outcome, as RabbitMQ and webhooks get it.

use serde_json::{Value, json};

use crate::kazoo::names::KAZOO_RECORDER;
use crate::recording::names;

use super::Entry;
use super::cause::{Cause, Outcome};
use super::fact::{Announcement, Destination};

impl Entry {
    /// The id of a notice. It is the same in each repeat, so that a consumer can drop repeats. What went into another document is no repeat: a
    /// worker that died may have told of the document that everyone expects, and of less audio. `None` without an order.
    pub fn notice_id(&self, announcement: Announcement) -> Option<String> {
        let what = match announcement {
            Announcement::Outcome(outcome) => {
                let rest = self.later_rest().filter(|_| outcome == Outcome::Parked);
                match (rest, self.later_cause(outcome)) {
                    (Some(n), _) => format!("outcome {outcome} {n}"),
                    (None, Some(cause)) => format!("outcome {outcome} {}", cause.name()),
                    (None, None) => format!("outcome {outcome}"),
                }
            }
            _ => announcement.name().to_owned(),
        };
        let key = self.order()?.key;
        Some(match self.other_document(announcement) {
            Some(id) => key.derived(&format!("{what} {id}")),
            None => key.derived(&what),
        })
    }

    /// The document that a notice tells of, unless it is the one that the recording's action names.
    fn other_document(&self, announcement: Announcement) -> Option<&str> {
        let delivered = self.delivery().map(|delivery| &delivery.document);
        let document = match announcement {
            Announcement::DocumentCreated => self.documented().or(delivered),
            Announcement::DocumentEdited | Announcement::Outcome(Outcome::Stored | Outcome::Delivered) => delivered,
            Announcement::Outcome(_) => None,
        }?;
        let is_expected = self.order().is_some_and(|order| order.media_id == document.id);
        (!is_expected).then(|| document.id.as_str())
    }

    /// Why the recording has this outcome.
    pub fn cause_of(&self, outcome: Outcome) -> Option<Cause> {
        match outcome {
            Outcome::Parked => self.parked(),
            _ => self.outcome().map(|(_, cause)| cause),
        }
    }

    /// The body of the event, with what is known now.
    pub fn outcome_event(&self, outcome: Outcome, cause: Option<Cause>) -> Value {
        let order = self.order();
        let (judged, ended) = (self.judged_audio(), self.ended());
        let audio = judged.as_ref();
        let document = self.delivery().map(|delivery| &delivery.document).or(self.documented());
        // Another worker may have decided otherwise. What counts is where the audio is.
        let delivered = self.delivery().map(|delivery| delivery.destination);
        let ordered = order.map(|order| order.media_id.as_str());
        json!({
            "Outcome": outcome.name(),
            "Cause": cause.map(Cause::name),
            "Call-ID": self.call_id,
            "Account-ID": self.account_id(),
            "Media-ID": document.map(|document| document.id.as_str()).or(ordered),
            "Media-Name": order.map(|order| order.media_name.as_str()),
            "Recording-Key": self.key,
            "Continues": order.and_then(|order| order.continues.as_ref()).map(|continues| continues.media_id.as_str()),
            "Part": order.and_then(|order| order.continues.as_ref()).map(|continues| continues.part),
            "Recorder": self.is_adopted().then_some(KAZOO_RECORDER),
            "Origin": order.map(|order| order.origin.as_str()),
            "Destination": delivered.or(self.destination()).map(Destination::name),
            "Database": document.map(|document| names::encoded(&document.database)),
            "Rev": document.map(|document| document.rev.as_str()),
            "Size": audio.map(|audio| audio.size),
            "MD5": audio.map(|audio| audio.digests.md5.as_str()),
            "SHA256": audio.map(|audio| audio.digests.sha256.as_str()),
            "Findings": audio.filter(|audio| audio.is_suspect()).map(|audio| json!(audio.findings)),
            "Duration-MS": self.told_ms().or_else(|| audio.and_then(|audio| audio.duration_ms)),
            "Completion-Cause": ended.and_then(|told| told.completion_cause.as_deref()),
            "Ended-By": ended.filter(|told| order.is_some_and(|order| order.ends_by_silence(told))).map(|_| "silence"),
            "Ended-At": ended.map(|told| told.at.gregorian_seconds()),
            "End-Presumed": ended.is_some().then(|| self.told_end().is_none()).filter(|presumed| *presumed),
        })
    }
}
