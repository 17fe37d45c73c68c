//! What users and other programs do to a recording's document while no worker knows yet that it is stored.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use kz_record_call::destination::DeliveryError;
use kz_record_call::destination::couchdb_write::{self, Kept};
use serde_json::{Value, json};

use crate::promises;
use crate::support::{Case, Couchdb, Fault, Recording, TestResult, WAYS};

promises![
    a_transcript_and_an_edit_survive_a_worker_that_did_not_know_of_its_success,
    what_users_added_survives_the_writing_of_audio_that_was_missing,
    a_recording_that_a_user_deleted_stays_deleted_and_is_told,
    a_deleted_document_without_its_audio_is_not_filled_again,
    audio_that_a_server_mangled_does_not_count_as_found,
    what_is_found_is_known_in_full,
    a_rule_of_a_database_refuses_that_recording_alone,
];

const NAME: &str = "front-desk.mp3";

/// Attaches a text that sorts before the audio, as a transcription service does.
async fn transcribe(case: &Case, recording: &Recording) -> TestResult {
    let id = recording.id().as_str();
    case.world
        .edit(&recording.database(), id, |document| {
            document["description"] = json!("a user's words");
            document["transcribed"] = json!(true);
            let all = document["_attachments"].as_object_mut().map(std::mem::take);
            let mut all = all.unwrap_or_default();
            all.insert(
                "a-transcript.txt".into(),
                json!({"content_type": "text/plain", "data": "aGVsbG8="}),
            );
            document["_attachments"] = Value::Object(all);
        })
        .await?;
    Ok(())
}

fn has_all(document: &Value, recording: &Recording) -> TestResult {
    let stubs = &document["_attachments"];
    ensure!(stubs["a-transcript.txt"]["length"] == 5, "{document:#}");
    ensure!(
        stubs[NAME]["digest"] == recording.audio.digests.couch().context("a digest")?,
        "{document:#}"
    );
    ensure!(
        document["description"] == "a user's words" && document["transcribed"] == true,
        "{document:#}"
    );
    Ok(())
}

async fn a_transcript_and_an_edit_survive_a_worker_that_did_not_know_of_its_success(
    couchdb: Arc<Couchdb>,
) -> TestResult {
    for way in WAYS {
        let recording = Recording::of(30_000);
        let case = Case::new(&couchdb, way, &recording).await?;
        case.put(&recording).await?;
        transcribe(&case, &recording).await?;
        let before = case.world.document(&recording).await?;
        for failures in 0..4 {
            let stored = case.put_after(&recording, failures).await?;
            ensure!(stored.road.is_none() && !stored.deleted, "{way:?}: {stored:?}");
        }
        let after = case.world.document(&recording).await?;
        ensure!(after == before, "{way:?}: {after:#}");
        has_all(&after, &recording)?;
        case.finish().await?;
    }
    Ok(())
}

async fn what_users_added_survives_the_writing_of_audio_that_was_missing(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let recording = Recording::of(30_000);
        let case = Case::new(&couchdb, way, &recording).await?;
        case.put(&recording).await?;
        transcribe(&case, &recording).await?;
        // The server loses the audio, or has a part of it.
        case.world
            .edit(&recording.database(), recording.id().as_str(), |document| {
                document["_attachments"][NAME] = json!({"content_type": "audio/mpeg", "data": "AAAA"});
            })
            .await?;
        let stored = case.put_after(&recording, 1).await?;
        // Only the audio was written. The document says what it said.
        ensure!(stored.road.is_none() && !stored.below_quorum, "{way:?}: {stored:?}");
        has_all(&case.world.document(&recording).await?, &recording)?;
        case.finish().await?;
    }
    Ok(())
}

async fn a_recording_that_a_user_deleted_stays_deleted_and_is_told(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let recording = Recording::of(30_000);
        let case = Case::new(&couchdb, way, &recording).await?;
        let first = case.put(&recording).await?;
        let (database, id) = (recording.database(), recording.id().as_str());
        case.world
            .edit(&database, id, |document| document["pvt_deleted"] = json!(true))
            .await?;
        let before = case.world.document(&recording).await?;
        for failures in 0..4 {
            let stored = case.put_after(&recording, failures).await?;
            ensure!(stored.deleted && stored.id == first.id, "{way:?}: {stored:?}");
        }
        ensure!(case.world.document(&recording).await? == before, "{way:?}");
        ensure!(case.world.listed(&database).await?.is_empty(), "{way:?}: visible again");
        let found = couchdb_write::find(&case.couch, &database, recording.id(), recording.order.key, NAME).await?;
        ensure!(matches!(found, Kept::Whole { deleted: true, .. }), "{way:?}: {found:?}");
        let look = couchdb_write::read_back(
            &case.couch,
            &database,
            recording.id(),
            (recording.order.key, false),
            (NAME, &recording.audio),
        );
        ensure!(look.await? == couchdb_write::ReadBack::Deleted, "{way:?}");
        case.finish().await?;
    }
    Ok(())
}

async fn a_deleted_document_without_its_audio_is_not_filled_again(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let recording = Recording::of(30_000);
        let case = Case::new(&couchdb, way, &recording).await?;
        case.put(&recording).await?;
        let (database, id) = (recording.database(), recording.id().as_str());
        case.world
            .edit(&database, id, |document| {
                document["pvt_deleted"] = json!(true);
                document["_attachments"] = json!({});
            })
            .await?;
        let error = case.put_after(&recording, 1).await.err().context("stored")?;
        ensure!(matches!(error, DeliveryError::Recording(_)), "{way:?}: {error:?}");
        ensure!(error.to_string().contains("deleted"), "{way:?}: {error}");
        case.finish().await?;
    }
    Ok(())
}

async fn audio_that_a_server_mangled_does_not_count_as_found(couchdb: Arc<Couchdb>) -> TestResult {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 3] = [
        ("other bytes", |document| {
            document["_attachments"][NAME] = json!({"content_type": "audio/mpeg", "data": "AAAA"});
        }),
        ("no audio", |document| document["_attachments"] = json!({})),
        ("only another's attachment", |document| {
            document["_attachments"] = json!({"a.txt": {"content_type": "text/plain", "data": "aGVsbG8="}});
        }),
    ];
    for way in WAYS {
        for (what, change) in changes {
            let recording = Recording::of(30_000);
            let case = Case::new(&couchdb, way, &recording).await?;
            case.put(&recording).await?;
            let (database, id) = (recording.database(), recording.id().as_str());
            case.world.edit(&database, id, change).await?;
            let found = couchdb_write::find(&case.couch, &database, recording.id(), recording.order.key, NAME).await?;
            ensure!(matches!(found, Kept::Damaged(_)), "{way:?} {what}: {found:?}");
            case.finish().await?;
        }
    }
    Ok(())
}

async fn what_is_found_is_known_in_full(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let recording = Recording::of(30_000);
        let case = Case::new(&couchdb, way, &recording).await?;
        case.put(&recording).await?;
        transcribe(&case, &recording).await?;
        let database = recording.database();
        let found = couchdb_write::find(&case.couch, &database, recording.id(), recording.order.key, NAME).await?;
        let Kept::Whole { audio, deleted, .. } = found else {
            anyhow::bail!("{way:?}: {found:?}");
        };
        ensure!(*audio == recording.audio && !deleted, "{way:?}: {audio:?}");
        case.finish().await?;
    }
    Ok(())
}

async fn a_rule_of_a_database_refuses_that_recording_alone(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS {
        let recording = Recording::of(1000);
        let case = Case::new(&couchdb, way, &recording).await?;
        // Not every server that tests run against has `validate_doc_update`.
        case.front.rule(|seen, _| match seen.is_write() {
            true => Fault::Forbid("recordings need approval"),
            false => Fault::Pass,
        });
        let error = case.put(&recording).await.err().context("stored")?;
        ensure!(matches!(error, DeliveryError::Recording(_)), "{way:?}: {error:?}");
        ensure!(
            error.to_string().contains("recordings need approval"),
            "{way:?}: {error}"
        );
        ensure!(error.fault() == kz_record_call::destination::Fault::Recording);
        ensure!(case.world.listed(&recording.database()).await?.is_empty(), "{way:?}");
        case.finish().await?;
    }
    Ok(())
}
