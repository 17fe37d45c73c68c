//! What people do with a call that is recorded, and what a switch does: hold, transfers, silence, a kill.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::promises;
use crate::simulator::sim::{Call, CallOptions, Recording, Size};
use crate::support::{SOON, Services, TestResult, Worker, World};
use crate::turns::act;

promises![
    a_hold_after_a_transfer_is_no_end,
    an_attended_transfer_keeps_both_recordings,
    a_recording_that_does_not_follow_ends_at_the_transfer,
    what_a_killed_switch_left_is_kept_and_plays_in_full,
    an_end_by_silence_is_told_as_such,
    one_channel_is_recorded_where_it_is_asked_for,
];

/// Looks and presumptions that a test can wait for.
pub const FAST: [(&str, &str); 3] = [
    ("FLOW__CHECK_INTERVAL_MS", "200"),
    ("FLOW__GRACE_MS", "200"),
    ("FLOW__PROBE_GAP_MS", "200"),
];

pub fn lasting() -> CallOptions {
    let options = CallOptions {
        bridged: true,
        ..CallOptions::talking()
    };
    options.size(Size::Lasting)
}

/// Waits until the switch has written so much of a recording.
pub async fn written(recording: &Recording, bytes: u64) -> TestResult {
    let begun = Instant::now();
    while std::fs::metadata(&recording.path).map_or(0, |file| file.len()) < bytes {
        ensure!(
            begun.elapsed() < SOON,
            "the switch does not write {}",
            recording.path.display()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Waits until the worker has looked for the call so often.
pub async fn looked(world: &World<'_>, worker: &Worker, call: &Call, times: usize) -> TestResult {
    let begun = Instant::now();
    loop {
        let entry = world.entry(&call.id()).await?.unwrap_or_default();
        let facts = entry["facts"].as_array().into_iter().flatten();
        let looks = facts.filter_map(|fact| fact["of"]["n"].as_u64().filter(|_| fact["fact"] == "channel_seen"));
        if looks.max().unwrap_or(0) >= u64::try_from(times)? {
            return Ok(());
        }
        ensure!(begun.elapsed() < SOON, "{entry:#}\n{}", worker.tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Seconds after which the switch ends a recording, unless its leg is on hold then: as soon as it is not.
const LIMIT_S: u64 = 6;

/// The leg that carries the recording is on hold: its file does not grow and its time limit does not run. Nothing is taken for its end, whatever is looked
/// at meanwhile, and what is said afterwards is kept.
async fn a_hold_after_a_transfer_is_no_end(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker_with(&FAST).await?;
    for format in ["wav", "mp3"] {
        let call = world.kazoo.new_call(lasting());
        // What comes before the hold takes less, on a busy machine too.
        act(&call, json!({"format": format, "time_limit": LIMIT_S})).await?;
        let recording = call.wait_recording_started(SOON).await?;
        written(&recording, 8_192).await?;
        let onward = call.refer_away().await?;
        onward.hold();
        // Longer than the limit and all patience: each look sees that the call lives.
        let begun = Instant::now();
        let mut looks = 10;
        while begun.elapsed() < Duration::from_secs(LIMIT_S) {
            looked(&world, &worker, &call, looks).await?;
            looks += 10;
        }
        let entry = world.state(&call.id(), "recording", SOON).await?;
        ensure!(!entry.to_string().contains("presumed_ended"), "{entry:#}");
        onward.unhold();
        // Its time was over while it was on hold.
        world.ended(&recording).await?;
        onward.hangup("NORMAL_CLEARING").await;
        let stored = world.stored(&recording).await?;
        let private = &stored.document["pvt_recording"];
        ensure!(private["findings"] == json!([]), "{private:#}");
        ensure!(private["ended_call_id"] == json!(onward.id()), "{private:#}");
    }
    world.finish().await
}

async fn an_attended_transfer_keeps_both_recordings(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker_with(&FAST).await?;
    let (first, second) = (world.kazoo.new_call(lasting()), world.kazoo.new_call(lasting()));
    let mut recordings = Vec::new();
    for call in [&first, &second] {
        act(call, json!({})).await?;
        let recording = call.wait_recording_started(SOON).await?;
        written(&recording, 4_096).await?;
        recordings.push(recording);
    }
    let both = first.attended_transfer(&second).await?;
    let so_far = std::fs::metadata(&recordings[0].path)?.len();
    written(&recordings[0], so_far + 4_096).await?;
    both.hangup("NORMAL_CLEARING").await;
    for recording in &recordings {
        let stored = world.stored(recording).await?;
        let private = &stored.document["pvt_recording"];
        ensure!(private["findings"] == json!([]), "{private:#}");
    }
    world.finish().await
}

async fn a_recording_that_does_not_follow_ends_at_the_transfer(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    for follows in [false, true] {
        let call = world.kazoo.new_call(lasting());
        act(&call, json!({"should_follow_transfer": follows})).await?;
        let recording = call.wait_recording_started(SOON).await?;
        written(&recording, 4_096).await?;
        let onward = call.refer_away().await?;
        let runs = onward.id();
        let carried_by = if follows { runs } else { call.id() };
        if follows {
            let so_far = std::fs::metadata(&recording.path)?.len();
            written(&recording, so_far + 4_096).await?;
            onward.hangup("NORMAL_CLEARING").await;
        }
        // Where it does not follow, the call goes on, and its audio is stored all the same.
        let stored = world.stored(&recording).await?;
        let private = &stored.document["pvt_recording"];
        let ended_on = private["ended_call_id"].as_str().map_or(call.id(), str::to_owned);
        ensure!(ended_on == carried_by, "{private:#}");
        onward.hangup("NORMAL_CLEARING").await;
    }
    world.finish().await
}

/// No event tells the end, the header says that nothing was recorded, and the bytes are there.
async fn what_a_killed_switch_left_is_kept_and_plays_in_full(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker_with(&FAST).await?;
    let call = world.kazoo.new_call(lasting());
    act(&call, json!({"format": "wav"})).await?;
    let recording = call.wait_recording_started(SOON).await?;
    written(&recording, 8_192).await?;
    world.kazoo.kill_switch().await?;
    world.kazoo.start_switch().await?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "stored" && outcome["Cause"] == "suspect_audio",
        "{outcome:#}"
    );
    let findings = outcome["Findings"].to_string();
    ensure!(findings.contains("unfinished"), "{outcome:#}");
    let left = world.ended(&recording).await?.audio;
    ensure!(left.is_open() && left.millis() > 0, "{} ms", left.millis());
    let stored = world
        .couch
        .stored(&world.modb(&recording.id), &recording.id, &left.mended())
        .await?;
    ensure!(stored.difference.is_none(), "{:?}", stored.difference);
    let told = stored.document["duration_ms"].as_u64().unwrap_or_default();
    ensure!(
        told.abs_diff(left.millis()) < 100,
        "{told} ms, and {} ms were written",
        left.millis()
    );
    world.finish().await
}

async fn an_end_by_silence_is_told_as_such(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    // Ended by silence; silence that is not asked for; asked for, and hung up before.
    for (asks, hangs_up) in [(true, false), (false, true), (true, true)] {
        let call = world.kazoo.new_call(lasting());
        let silence = json!({
            "silence_detection": true, "silence_initial_timeout": 60_000,
            "silence_final_timeout": 500, "silence_threshold": 200
        });
        act(&call, if asks { silence } else { json!({}) }).await?;
        let recording = call.wait_recording_started(SOON).await?;
        written(&recording, 4_096).await?;
        if !(asks && hangs_up) {
            call.quiet(true);
        }
        if hangs_up {
            // It goes on to the call's end.
            let so_far = std::fs::metadata(&recording.path)?.len();
            written(&recording, so_far + 8_192).await?;
            call.hangup("NORMAL_CLEARING").await;
        }
        let outcome = world.outcome(&recording.id).await?;
        let stored = world.stored(&recording).await?;
        let private = &stored.document["pvt_recording"];
        let by = if hangs_up { Value::Null } else { json!("silence") };
        ensure!(
            outcome["Ended-By"] == by && private["ended_by"] == by,
            "{outcome:#}\n{private:#}"
        );
        ensure!(outcome["Cause"] == "complete", "{outcome:#}");
        call.hangup("NORMAL_CLEARING").await;
    }
    world.finish().await
}

async fn one_channel_is_recorded_where_it_is_asked_for(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    for (stereo, channels) in [(json!(false), 1), (Value::Null, 2)] {
        let call = world.kazoo.new_call(CallOptions::talking());
        act(&call, json!({"format": "wav", "stereo": stereo})).await?;
        let recording = call.wait_recording_started(SOON).await?;
        call.hangup("NORMAL_CLEARING").await;
        let stored = world.stored(&recording).await?;
        let told = world.ended(&recording).await?.audio.format.channels();
        ensure!(told == channels, "{told} channels for {stereo}");
        let sides = stored.document["pvt_recording"]["channels"].is_array();
        ensure!(sides == (channels == 2), "{:#}", stored.document);
    }
    world.finish().await
}
