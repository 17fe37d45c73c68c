//! The delivery state in a recording's document: pending until the audio is delivered, then its place.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::kazoo::time::Moment;

use super::document::Subject;

/// State of a document's audio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not yet delivered to the URL, or to the place of a storage plan.
    Pending,
    /// Delivered.
    Complete,
    /// Delivery has stopped, and the audio is kept elsewhere. An operator must retry or discard it.
    Parked,
    /// The recording ended without a delivery: an operator or the configuration discarded it, for example.
    Discarded,
    /// The recording ended without a delivery, and its audio is lost.
    Failed,
}

impl State {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Complete => "complete",
            Self::Parked => "parked",
            Self::Discarded => "discarded",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The delivery state for `pvt_recording`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    pub state: State,
    /// Deliveries started so far, including this one.
    pub attempts: u32,
    /// A cause from the table of causes. None while the outcome is unknown.
    pub cause: Option<&'a str>,
}

/// Audio outside the document's database, in the form that Crossbar fetches (`kzs_attachments:attachment_from_handler`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elsewhere<'a> {
    /// The attachment's name.
    pub name: &'a str,
    /// The URL after redirects, exactly as it was requested.
    pub url: &'a str,
    pub content_type: &'a str,
    /// Bytes.
    pub length: u64,
}

impl Subject<'_> {
    /// The document without attachments, with its delivery state.
    pub fn document_at(&self, progress: &Progress<'_>) -> Map<String, Value> {
        let mut document = self.document();
        mark(&mut document, progress);
        document
    }
}

/// Writes the delivery state into a document.
pub fn mark(document: &mut Map<String, Value>, progress: &Progress<'_>) {
    let private = document.entry("pvt_recording").or_insert_with(|| json!({}));
    if let Some(private) = private.as_object_mut() {
        private.insert("state".into(), json!(progress.state));
        private.insert("attempts".into(), json!(progress.attempts));
        match progress.cause {
            Some(cause) => private.insert("cause".into(), json!(cause)),
            None => private.remove("cause"),
        };
    }
}

/// As `mark`, for a stored document. Also updates it with `known`, because the audio that arrives may be longer than when the document was
/// created. Fields of other programs stay.
pub fn edited(
    mut document: Map<String, Value>,
    known: Map<String, Value>,
    progress: &Progress<'_>,
    now: Moment,
) -> Map<String, Value> {
    for (key, value) in known {
        match (document.get_mut(&key), value) {
            (Some(_), _) if KEPT.contains(&key.as_str()) => {}
            (Some(Value::Object(there)), Value::Object(more)) if key == "pvt_recording" => there.extend(more),
            (_, value) => drop(document.insert(key, value)),
        }
    }
    mark(&mut document, progress);
    let created = document.get("pvt_created").and_then(Value::as_i64).unwrap_or(0);
    // Times of events are rounded up, so the end may be in the future.
    document.insert("pvt_modified".into(), json!(now.gregorian_seconds().max(created)));
    document
}

/// Fields that are known from the beginning. A user may have changed them since.
const KEPT: [&str; 4] = ["_id", "pvt_created", "name", "description"];

/// The document of a recording whose audio has arrived at a URL.
pub fn completed(
    document: Map<String, Value>,
    known: Map<String, Value>,
    at: &Elsewhere<'_>,
    progress: &Progress<'_>,
    now: Moment,
) -> Map<String, Value> {
    let stub = json!({
        "content_type": at.content_type,
        "length": at.length,
        "stub": false,
        "handler": handler(at.url),
    });
    attached(edited(document, known, progress, now), at.name, stub)
}

/// The document with an entry for audio that is outside its database. Attachments with other names belong to other programs.
pub fn attached(mut document: Map<String, Value>, name: &str, entry: Value) -> Map<String, Value> {
    match document.get_mut("pvt_attachments").and_then(Value::as_object_mut) {
        Some(attachments) => drop(attachments.insert(name.to_owned(), entry)),
        None => drop(document.insert("pvt_attachments".into(), json!({ name: entry }))),
    }
    document
}

/// Kazoo's attachment handler for a URL. It has none for ftps and sftp, and its own for ftp cannot fetch: any of them answers that the audio
/// cannot be fetched.
fn handler(url: &str) -> Value {
    if url.starts_with("http") {
        json!({"kz_att_http": {"url": fetchable(url)}})
    } else {
        json!({"kz_att_ftp": {"url": url}})
    }
}

/// The same URL in a form that Kazoo can fetch. `kz_att_http:fetch_attachment` appends ids and a name to the URL. That would address
/// another file, or damage the last value of the query. After a `#` the additions are part of a fragment, which is never sent.
fn fetchable(url: &str) -> String {
    if url.contains('#') {
        url.to_owned()
    } else {
        format!("{url}#")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending() -> Map<String, Value> {
        let document = json!({
            "_id": "202611-a", "_rev": "1-x", "pvt_created": 63_962_610_391_i64, "pvt_modified": 63_962_610_391_i64,
            "pvt_recording": {"key": "k", "state": "pending", "attempts": 1, "sha256": "of a part"}, "duration_ms": 4000,
            "noted_by_others": 1,
        });
        document.as_object().unwrap().clone()
    }

    /// The document of the same recording, built after its whole audio was reported.
    fn known() -> Map<String, Value> {
        let document = json!({
            "_id": "202611-a", "pvt_created": 63_962_610_395_i64, "pvt_modified": 63_962_610_395_i64, "duration_ms": 9000,
            "pvt_recording": {"key": "k", "sha256": "of the whole"},
        });
        document.as_object().unwrap().clone()
    }

    #[test]
    fn a_completed_document_tells_kazoo_where_the_audio_is() {
        let at = Elsewhere {
            name: "desk.mp3",
            url: "https://h/in/call_recording_a.mp3?from=1",
            content_type: "audio/mpeg",
            length: 7,
        };
        let progress = Progress {
            state: State::Complete,
            attempts: 3,
            cause: Some("complete"),
        };
        let now = Moment::from_gregorian_seconds(63_962_610_500);
        let done = Value::Object(completed(pending(), known(), &at, &progress, now));
        assert_eq!(
            done["pvt_attachments"],
            json!({"desk.mp3": {
                "content_type": "audio/mpeg", "length": 7, "stub": false,
                "handler": {"kz_att_http": {"url": "https://h/in/call_recording_a.mp3?from=1#"}},
            }})
        );
        assert_eq!(
            done["pvt_recording"],
            json!({"key": "k", "state": "complete", "attempts": 3, "cause": "complete", "sha256": "of the whole"})
        );
        assert_eq!(
            (&done["duration_ms"], &done["noted_by_others"]),
            (&json!(9000), &json!(1))
        );
        assert_eq!(
            (&done["_id"], &done["pvt_created"]),
            (&json!("202611-a"), &json!(63_962_610_391_i64))
        );
        assert_eq!(
            (&done["_rev"], &done["pvt_modified"]),
            (&json!("1-x"), &json!(63_962_610_500_i64))
        );
    }

    #[test]
    fn a_document_is_never_modified_before_it_was_created() {
        let progress = Progress {
            state: State::Parked,
            attempts: 12,
            cause: Some("url_refuses"),
        };
        let early = Moment::from_gregorian_seconds(63_962_610_000);
        let parked = edited(pending(), known(), &progress, early);
        assert_eq!(parked["pvt_modified"], json!(63_962_610_391_i64));
        assert_eq!(parked["pvt_recording"]["cause"], "url_refuses");
        let again = Progress {
            state: State::Pending,
            attempts: 13,
            cause: None,
        };
        assert!(
            edited(parked, known(), &again, early)["pvt_recording"]
                .get("cause")
                .is_none()
        );
    }
}
