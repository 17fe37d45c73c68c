//! What Kazoo's own recorder has left of its recordings in a database.

use serde_json::Value;

use crate::couch::{Couch, CouchError, Held};
use crate::entry::fact::KazooCopy;
use crate::kazoo::json::owned_text;

/// What became of a recording of Kazoo's own recorder, by one database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copy {
    /// The document has its audio, here or where a storage plan or a URL puts it.
    Stored,
    /// The document is there, and a user deleted it in Crossbar (`pvt_deleted`).
    Deleted,
    Lacking(KazooCopy),
}

/// What the database has of recordings, each by its document's id and its file's name. One request for each hundred of them. A missing
/// database has none. `is_home`: the server is the cluster's own, and is believed only if it knows the databases that every cluster has.
///
/// # Errors
/// When the database does not answer, or the answer comes from a node that knows no databases yet.
pub async fn copies(
    couch: &Couch,
    is_home: bool,
    database: &str,
    recordings: &[(&str, &str)],
) -> Result<Vec<Copy>, CouchError> {
    let ids: Vec<&str> = recordings.iter().map(|(id, _)| *id).collect();
    match couch.held(database, &ids).await {
        Ok(held) => Ok(held
            .iter()
            .zip(recordings)
            .map(|(held, (_, name))| judge(held, name))
            .collect()),
        Err(CouchError::DatabaseMissing(_)) => {
            if is_home {
                couch.knows_databases().await?;
            }
            Ok(vec![Copy::Lacking(KazooCopy::Missing); ids.len()])
        }
        Err(error) => Err(error),
    }
}

fn judge(held: &Held, name: &str) -> Copy {
    let document = match held {
        // Crossbar keeps what users delete. media_mgr deletes its own document for good if the switch does not open the file.
        Held::Missing | Held::Deleted => return Copy::Lacking(KazooCopy::Missing),
        Held::Document(document) => document,
    };
    let length = |all: &str| document.get(all)?.get(name)?.get("length")?.as_u64();
    let has_audio = |all: &str| length(all).is_some_and(|length| length > 0);
    if document.get("pvt_deleted").and_then(Value::as_bool) == Some(true) {
        Copy::Deleted
    } else if has_audio("_attachments") || has_audio("pvt_attachments") {
        Copy::Stored
    } else if owned_text(document, "url").is_some() {
        Copy::Lacking(KazooCopy::NoAudioForUrl)
    } else {
        Copy::Lacking(KazooCopy::NoAudio)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::couch::testing;

    use super::*;

    #[test]
    fn a_document_alone_does_not_say_that_its_audio_is_there() {
        let judged = |document: Value| judge(&Held::Document(document), "a.mp3");
        for (document, copy) in [
            (json!({}), Copy::Lacking(KazooCopy::NoAudio)),
            (
                json!({"url": "https://example.com/in"}),
                Copy::Lacking(KazooCopy::NoAudioForUrl),
            ),
            (
                json!({"_attachments": {"a.mp3": {"length": 0}}}),
                Copy::Lacking(KazooCopy::NoAudio),
            ),
            (
                json!({"_attachments": {"b.mp3": {"length": 3}}}),
                Copy::Lacking(KazooCopy::NoAudio),
            ),
            (json!({"_attachments": {"a.mp3": {"length": 3}}}), Copy::Stored),
            (
                json!({"pvt_attachments": {"a.mp3": {"length": 3, "handler": {}}}}),
                Copy::Stored,
            ),
            (
                json!({"pvt_deleted": true, "_attachments": {"a.mp3": {"length": 3}}}),
                Copy::Deleted,
            ),
        ] {
            assert_eq!(judged(document.clone()), copy, "{document}");
        }
        assert_eq!(judge(&Held::Missing, "a.mp3"), Copy::Lacking(KazooCopy::Missing));
    }

    /// media_mgr deletes its document if the switch does not open the file. Crossbar keeps what users delete, with `pvt_deleted`.
    #[test]
    fn a_document_that_is_gone_for_good_was_not_deleted_by_a_user() {
        let missing = Copy::Lacking(KazooCopy::Missing);
        assert_eq!(judge(&Held::Deleted, "a.mp3"), missing);
        let soft = Held::Document(json!({"pvt_deleted": true}));
        assert_eq!(judge(&soft, "a.mp3"), Copy::Deleted);
    }

    #[tokio::test]
    async fn one_request_tells_of_all_recordings_of_a_database() {
        let rows = json!({"rows": [
            {"key": "1", "id": "1", "value": {"rev": "2-a"}, "doc": {"_attachments": {"1.mp3": {"length": 1}}}},
            {"key": "2", "id": "2", "value": {"rev": "3-a", "deleted": true}, "doc": null},
            {"key": "3", "error": "not_found"},
        ]});
        let (couch, log) = testing::couch(move |_| (200, rows.clone())).await;
        let asked = [("1", "1.mp3"), ("2", "2.mp3"), ("3", "3.mp3")];
        let found = copies(&couch, true, "db", &asked).await.unwrap();
        let missing = Copy::Lacking(KazooCopy::Missing);
        assert_eq!(found, [Copy::Stored, missing, missing]);
        assert_eq!(log.lock().unwrap().len(), 1);
        let (couch, _) = testing::couch(|_| testing::no_database()).await;
        let found = copies(&couch, false, "db", &asked).await.unwrap();
        assert_eq!(found, [Copy::Lacking(KazooCopy::Missing); 3]);
    }

    /// It has joined, or has just started, and answers so for every database.
    #[tokio::test]
    async fn a_node_that_knows_no_databases_says_nothing_about_a_recording() {
        let (couch, _) = testing::couch(|_| testing::no_database()).await;
        assert!(copies(&couch, true, "db", &[("1", "1.mp3")]).await.is_err());
    }

    /// A part of the cluster that does not answer says nothing about a recording.
    #[tokio::test]
    async fn a_row_that_cannot_be_read_is_no_missing_document() {
        for row in [
            json!({"key": "1", "error": "timeout"}),
            json!({"key": "1", "id": "1", "value": {"rev": "1-a"}, "doc": null}),
        ] {
            let rows = json!({"rows": [row]});
            let (couch, _) = testing::couch(move |_| (200, rows.clone())).await;
            assert!(copies(&couch, true, "db", &[("1", "1.mp3")]).await.is_err());
        }
    }
}
