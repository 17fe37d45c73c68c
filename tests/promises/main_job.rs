//! One recording the whole way.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use serde_json::json;

use crate::promises;
use crate::simulator::sim::{CallOptions, Size};
use crate::support::{SOON, Services, TestResult, World};

promises![
    an_mp3_recording_is_stored,
    a_wav_recording_is_stored,
    a_recording_of_20_megabytes_is_stored,
    the_answer_comes_before_the_recording_ends,
    two_calls_at_once_do_not_mix,
    a_hang_up_ends_a_recording_too,
    the_document_is_listed_where_kazoo_looks,
    storing_disabled_discards_and_tells,
    a_switch_that_uploads_twice_stores_once,
];

/// Start, talk, stop, stored.
async fn start_stop_stored(services: Arc<Services>, format: &str) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({"action": "start", "format": format}))
        .await?
        .continued(SOON)
        .await?;
    let recording = call.wait_recording_started(SOON).await?;
    ensure!(recording.name.ends_with(&format!(".{format}")), "{}", recording.name);
    call.execute(json!({"action": "stop"})).await?.continued(SOON).await?;
    let stored = world.stored(&recording).await?;
    let document = &stored.document;
    ensure!(document["call_id"] == call.id(), "{document:#}");
    ensure!(document["origin"] == "callflow : Main Number", "{document:#}");
    ensure!(document["media_type"] == format!(".{format}"), "{document:#}");
    ensure!(
        document["caller_id_number"] == "1000" && document["callee_id_number"] == "2000",
        "{document:#}"
    );
    ensure!(document["pvt_recording"]["size"] == stored.length, "{document:#}");
    ensure!(document["pvt_recording"]["findings"] == json!([]), "{document:#}");
    ensure!(worker.spooled().is_empty(), "the spool is not empty");
    world.finish().await
}

async fn an_mp3_recording_is_stored(services: Arc<Services>) -> TestResult {
    start_stop_stored(services, "mp3").await
}

async fn a_wav_recording_is_stored(services: Arc<Services>) -> TestResult {
    start_stop_stored(services, "wav").await
}

async fn a_recording_of_20_megabytes_is_stored(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let call = world
        .kazoo
        .new_call(CallOptions::talking().size(Size::Bytes(20_000_000)));
    call.execute(json!({"format": "wav"})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    let stored = world.stored(&recording).await?;
    ensure!(stored.length > 19_900_000, "{}", stored.length);
    world.finish().await
}

async fn the_answer_comes_before_the_recording_ends(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    let run = call.execute(json!({})).await?;
    run.accepted(SOON).await?;
    run.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    ensure!(
        recording.running(),
        "the flow went on, and the recording still runs: {:?}",
        recording.phase
    );
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

async fn two_calls_at_once_do_not_mix(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let calls = [
        world
            .kazoo
            .new_call(CallOptions::talking().parties(("Ann", "1001"), ("Bob", "2001"))),
        world
            .kazoo
            .new_call(CallOptions::talking().parties(("Cid", "1002"), ("Dan", "2002"))),
    ];
    let data = json!({"media_name": "the-same-name.mp3", "label": "desk"});
    let mut recordings = Vec::new();
    for call in &calls {
        call.execute(data.clone()).await?.continued(SOON).await?;
        recordings.push(call.wait_recording_started(SOON).await?);
    }
    ensure!(
        recordings[0].path != recordings[1].path,
        "two calls record into one file"
    );
    for call in &calls {
        call.hangup("NORMAL_CLEARING").await;
    }
    for (recording, number) in recordings.iter().zip(["1001", "1002"]) {
        let stored = world.stored(recording).await?;
        ensure!(stored.document["caller_id_number"] == number, "{:#}", stored.document);
        ensure!(stored.attachment == "the-same-name.mp3" && stored.document["name"] == "the-same-name.mp3");
        ensure!(stored.document["origin"] == "callflow : desk");
    }
    world.finish().await
}

async fn a_hang_up_ends_a_recording_too(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    for line in [
        "kz_record_call_recordings_closed_total{outcome=\"stored\",cause=\"complete\"} 1",
        "kz_record_call_actions_total{action=\"start\"} 1",
        "kz_record_call_recordings_started_total 1",
    ] {
        worker.counts(line).await?;
    }
    world.finish().await
}

async fn the_document_is_listed_where_kazoo_looks(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    let listed = world.couch.listed(&world.modb(&recording.id)).await?;
    ensure!(listed == [recording.id.clone()], "{listed:?}");
    world.finish().await
}

async fn storing_disabled_discards_and_tells(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    world
        .couch
        .edit("system_config", "media", |doc| {
            doc["default"]["store_recordings"] = json!(false)
        })
        .await?;
    let _worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "discarded" && outcome["Cause"] == "storing_disabled",
        "{outcome:#}"
    );
    ensure!(
        world
            .couch
            .get(&world.modb(&recording.id), &recording.id)
            .await?
            .is_none(),
        "it was stored"
    );
    ensure!(recording.path.exists(), "nobody told the switch to delete its file");
    world.finish().await
}

async fn a_switch_that_uploads_twice_stores_once(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    world.kazoo.faults(|faults| faults.send_http_twice = true);
    let call = world.kazoo.new_call(CallOptions::talking().size(Size::Bytes(400_000)));
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    let uploads = world
        .kazoo
        .wait_for("both uploads to end", Duration::from_secs(20), |s| {
            let uploads = s.uploads();
            (uploads.len() == 2 && uploads.iter().all(|upload| upload.finished)).then(|| uploads.to_vec())
        })
        .await?;
    // The second may have met a file that was gone already; neither is told a lie.
    ensure!(uploads.iter().any(|upload| upload.status == 200), "{uploads:?}");
    world.finish().await
}
