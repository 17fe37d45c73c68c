//! The turns that a call can take while it is recorded.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::promises;
use crate::simulator::sim::{Call, CallOptions, Observed, Recording, Size};
use crate::support::{SOON, Services, TestResult, World};

promises![
    a_stop_ends_the_newest_recording_and_the_next_stop_the_one_before,
    a_stop_of_somebody_elses_recording_uses_the_name_that_the_call_carries,
    a_stop_with_nothing_known_sends_nothing_and_the_flow_goes_on,
    a_stop_finds_its_recording_after_the_calls_id_was_replaced,
    a_stop_before_a_delayed_start_is_applied_to_it,
    a_recording_begins_at_the_answer,
    a_call_that_is_answered_already_is_recorded_at_once,
    answer_wins_when_both_are_asked_for,
    a_recording_that_moves_to_another_leg_is_whole_and_the_callers,
    a_transfer_does_not_lose_the_recording,
    a_call_that_was_replaced_is_answered_under_its_new_id,
    too_short_is_discarded_and_taken_off_the_switch,
    audio_that_a_full_disk_cut_is_stored_and_told_as_such,
    the_audio_is_masked_and_the_document_tells_when,
    a_mask_that_another_worker_sent_is_in_the_document,
    a_mask_after_a_move_is_told_as_not_obeyed,
    a_stop_on_the_leg_that_carries_a_moved_recording_is_told,
    the_same_id_and_name_on_many_calls_mix_nothing,
    several_recordings_of_one_call_are_kept_apart,
    an_end_that_is_told_late_and_is_longer_is_kept_too,
    a_recording_over_the_turn_of_the_month_is_filed_where_its_id_says,
];

/// Executes an action and waits for the flow to go on.
pub async fn act(call: &Call, data: Value) -> TestResult {
    let run = call.execute(data).await?;
    run.continued(SOON).await?;
    // The observer's queue may be behind the flow's; what was sent before the result it has seen by then.
    run.observed(SOON).await
}

/// The commands of this kind that were sent for a call, in order.
fn commands(world: &World<'_>, action: &str) -> Vec<Observed> {
    let all = world.kazoo.tap().messages().into_iter();
    all.filter(|m| m.exchange == "callctl" && m.header("Record-Action") == action)
        .collect()
}

async fn ended(world: &World<'_>, recording: &Recording) -> anyhow::Result<Recording> {
    world.ended(recording).await
}

async fn a_stop_ends_the_newest_recording_and_the_next_stop_the_one_before(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    act(&call, json!({"label": "first"})).await?;
    let first = call.wait_recording_started(SOON).await?;
    act(&call, json!({"label": "second", "format": "wav"})).await?;
    let second = call.wait_recordings(2, SOON).await?.pop().context("no second")?;
    act(&call, json!({"action": "stop"})).await?;
    ended(&world, &second).await?;
    let now = call.recordings();
    ensure!(now[0].running(), "the first was ended too: {:?}", now[0].phase);
    act(&call, json!({"action": "stop"})).await?;
    ended(&world, &first).await?;
    for (recording, origin) in [(&first, "callflow : first"), (&second, "callflow : second")] {
        let stored = world.stored(recording).await?;
        ensure!(stored.document["origin"] == origin, "{:#}", stored.document);
    }
    world.finish().await
}

async fn a_stop_of_somebody_elses_recording_uses_the_name_that_the_call_carries(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let mut options = CallOptions::talking();
    options
        .ccvs
        .insert("Media-Name".into(), json!("5a0f1b2c3d4e5f60718293a4b5c6d7e8.mp3"));
    let call = world.kazoo.new_call(options);
    act(&call, json!({"action": "stop"})).await?;
    let stops = commands(&world, "stop");
    ensure!(
        stops.len() == 1 && stops[0].header("Media-Name") == "5a0f1b2c3d4e5f60718293a4b5c6d7e8.mp3",
        "{stops:?}"
    );
    // One that would reach the switch's shell is not sent on.
    let mut options = CallOptions::talking();
    options.ccvs.insert("Media-Name".into(), json!("${system id}.mp3"));
    let call = world.kazoo.new_call(options);
    act(&call, json!({"action": "stop"})).await?;
    ensure!(commands(&world, "stop").len() == 1, "it was sent");
    world.finish().await
}

async fn a_stop_with_nothing_known_sends_nothing_and_the_flow_goes_on(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    for action in ["stop", "mask", "unmask"] {
        act(&call, json!({ "action": action })).await?;
        ensure!(commands(&world, action).is_empty(), "{action} was sent");
    }
    world.finish().await
}

async fn a_stop_finds_its_recording_after_the_calls_id_was_replaced(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    act(&call, json!({})).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.replace("4e1f0c77-0000-4111-8222-333344445555").await;
    act(&call, json!({"action": "stop"})).await?;
    let stop = commands(&world, "stop").pop().context("no stop was sent")?;
    ensure!(
        stop.header("Call-ID") == call.id() && stop.header("Media-Name") == recording.name,
        "{stop:?}"
    );
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

async fn a_stop_before_a_delayed_start_is_applied_to_it(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::ringing());
    act(&call, json!({"record_on_answer": true})).await?;
    act(&call, json!({"action": "stop"})).await?;
    ensure!(call.recordings().is_empty(), "it records already");
    call.answer();
    let recording = call.wait_recording_ended(SOON).await?;
    world.stored(&recording).await?;
    world.finish().await
}

async fn a_recording_begins_at_the_answer(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let settings = [("FLOW__START_TIMEOUT_MS", "500"), ("FLOW__CHECK_INTERVAL_MS", "300")];
    let _worker = world.worker_with(&settings).await?;
    let call = world.kazoo.new_call(CallOptions::ringing());
    act(&call, json!({"record_on_answer": "true"})).await?;
    // As long as the channel lives it is not overdue, however long that takes.
    let looked = |m: &Observed| m.name == "channel_status_req";
    world.kazoo.tap().wait(looked, SOON).await?;
    let entry = world.state(&call.id(), "asked", SOON).await?;
    ensure!(entry["cause"].is_null(), "{entry:#}");
    ensure!(call.recordings().is_empty(), "it records while it rings");
    call.answer();
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

async fn a_call_that_is_answered_already_is_recorded_at_once(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    for data in [json!({"record_on_answer": true}), json!({"record_on_bridge": true})] {
        let call = world.kazoo.new_call(CallOptions::talking());
        act(&call, data).await?;
        let recording = call.wait_recording_started(SOON).await?;
        call.hangup("NORMAL_CLEARING").await;
        world.stored(&recording).await?;
        ensure!(call.recordings().len() == 1, "{:?}", call.recordings());
    }
    // One that waits for a bridge is not begun by an answer.
    let mut options = CallOptions::ringing();
    options.answered = true;
    let call = world.kazoo.new_call(options);
    act(&call, json!({"record_on_bridge": true})).await?;
    let id = call.id();
    let asked = |m: &Observed| m.name == "query_channels_req" && m.header("Call-ID") == id;
    world.kazoo.tap().wait(asked, SOON).await?;
    call.bridge();
    let recording = call.wait_recording_started(SOON).await?;
    ensure!(recording.starts == 1, "{} starts", recording.starts);
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

async fn answer_wins_when_both_are_asked_for(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::ringing());
    act(&call, json!({"record_on_answer": true, "record_on_bridge": true})).await?;
    let delayed = |m: &Observed| m.header("Application-Name") == "event_actions";
    let sent = world.kazoo.tap().wait(delayed, SOON).await?;
    let events: Vec<&String> = sent.body["Event-Actions"]
        .as_object()
        .context("Event-Actions")?
        .keys()
        .collect();
    ensure!(events == ["Execute-On-Answer"], "{events:?}");
    call.answer();
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

async fn a_recording_that_moves_to_another_leg_is_whole_and_the_callers(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let settings = [
        ("FLOW__CHECK_INTERVAL_MS", "200"),
        ("FLOW__GRACE_MS", "300"),
        ("FLOW__PROBE_GAP_MS", "300"),
    ];
    let _worker = world.worker_with(&settings).await?;
    let call = world
        .kazoo
        .new_call(CallOptions::talking().parties(("Ann", "1001"), ("Bob", "2001")));
    act(&call, json!({})).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.move_recordings();
    let looked = |m: &Observed| m.name == "channel_status_req";
    world.kazoo.tap().wait(looked, SOON).await?;
    let now = call.recordings();
    ensure!(now[0].running() && now[0].call_id != call.id(), "{:?}", now[0]);
    call.hangup("NORMAL_CLEARING").await;
    let stored = world.stored(&recording).await?;
    let document = &stored.document;
    ensure!(
        document["call_id"] == call.id() && document["caller_id_number"] == "1001",
        "{document:#}"
    );
    ensure!(document["pvt_recording"]["ended_call_id"] != call.id(), "{document:#}");
    ensure!(
        document["owner_id"] == "9d8c7b6a5f4e3d2c1b0a998877665544",
        "{document:#}"
    );
    world.finish().await
}

async fn a_transfer_does_not_lose_the_recording(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let settings = [("FLOW__STOP_REPEATS_MS", "100,200"), ("FLOW__STOP_ALARM_MS", "600")];
    let worker = world.worker_with(&settings).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    act(&call, json!({})).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.transfer();
    // Commands vanish from now on; that is told.
    act(&call, json!({"action": "stop"})).await?;
    let told = |line: &Value| line["event"] == "stop_unconfirmed";
    worker.logged("the alarm", told, SOON).await?;
    let unconfirmed = "kz_record_call_stops_unconfirmed_total 1";
    worker.counts(unconfirmed).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

async fn a_call_that_was_replaced_is_answered_under_its_new_id(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world
        .worker_with(&[("LOG__LEVEL", "info,kz_record_call=trace")])
        .await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    let run = call.execute(json!({})).await?;
    run.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    let old = call.id();
    const NEW: &str = "0a0b0c0d-0000-4111-8222-999988887777";
    call.replace(NEW).await;
    let heard = |line: &Value| {
        line["message"].as_str() == Some("notice")
            && line["key"]
                .as_str()
                .is_some_and(|key| key.starts_with("call.CHANNEL_REPLACED"))
    };
    // What comes again, as after a worker's death, is answered under the id that the call has by then.
    worker.logged("the replacement", heard, SOON).await?;
    run.again().await?;
    run.results(2, SOON).await?;
    // A callflow node that was cut off at that time knows the old id.
    let under = |id: &'static str| move |m: &Observed| m.name == "action.result" && m.header("Call-ID") == id;
    world.kazoo.tap().wait(under(NEW), SOON).await?;
    let first = move |m: &Observed| m.name == "action.result" && m.header("Call-ID") == old;
    let begun = std::time::Instant::now();
    while world.kazoo.tap().messages().iter().filter(|m| first(m)).count() < 2 {
        ensure!(begun.elapsed() < SOON, "no result under the old id");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

/// The switch notices a full disk only at the end of a WAV file, and never in an MP3 file.
async fn audio_that_a_full_disk_cut_is_stored_and_told_as_such(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    world.kazoo.faults(|faults| faults.disk_full = Some(20_000));
    for format in ["wav", "mp3"] {
        let call = world.kazoo.new_call(CallOptions::talking().size(Size::Millis(9_000)));
        act(&call, json!({"format": format, "record_min_sec": "5"})).await?;
        let recording = call.wait_recording_started(SOON).await?;
        call.hangup("NORMAL_CLEARING").await;
        let outcome = world.outcome(&recording.id).await?;
        ensure!(
            outcome["Outcome"] == "stored" && outcome["Cause"] == "suspect_audio",
            "{format}: {outcome:#}"
        );
        let findings = outcome["Findings"].to_string();
        ensure!(
            findings.contains("truncated") || findings.contains("shorter_than_told"),
            "{format}: {outcome:#}"
        );
    }
    world.finish().await
}

async fn too_short_is_discarded_and_taken_off_the_switch(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking().size(Size::Millis(2_000)));
    act(&call, json!({"record_min_sec": "3"})).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "discarded" && outcome["Cause"] == "too_short",
        "{outcome:#}"
    );
    call.wait_file_deleted(SOON).await?;
    let document = world.couch.get(&world.modb(&recording.id), &recording.id).await?;
    ensure!(document.is_none(), "{document:?}");
    let call = world.kazoo.new_call(CallOptions::talking().size(Size::Millis(3_100)));
    act(&call, json!({"record_min_sec": 3})).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

async fn the_audio_is_masked_and_the_document_tells_when(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    act(&call, json!({})).await?;
    let recording = call.wait_recording_started(SOON).await?;
    for (action, masked) in [("mask", true), ("unmask", false), ("mask", true)] {
        act(&call, json!({ "action": action })).await?;
        world
            .kazoo
            .wait_for(action, SOON, |s| {
                let now = s.recordings().iter().find(|r| r.path == recording.path);
                now.filter(|r| r.masked == masked).map(drop)
            })
            .await?;
    }
    ensure!(call.recordings()[0].running(), "a mask ended it");
    call.hangup("NORMAL_CLEARING").await;
    // The last mask and the end came together: a document that was written before the mask was known is amended.
    masked_as(&world, &recording, &[true, false, true]).await?;
    world.finish().await
}

/// Actions go round among the workers, and the switch's events too: often the one that writes the document did not send the mask.
async fn a_mask_that_another_worker_sent_is_in_the_document(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _workers = [world.worker().await?, world.worker().await?];
    let mut recordings = Vec::new();
    for _ in 0..12 {
        let call = world.kazoo.new_call(CallOptions::talking());
        act(&call, json!({})).await?;
        let recording = call.wait_recording_started(SOON).await?;
        act(&call, json!({"action": "mask"})).await?;
        // A worker that heard nothing of the recording yet answers first, and masks then.
        let is_masked = |state: &crate::simulator::sim::State| {
            let all = state.recordings();
            let masked = |r: &&Recording| r.path == recording.path && r.masks > 0;
            all.iter().find(masked).map(|_| ())
        };
        world.kazoo.wait_for("the mask", SOON, is_masked).await?;
        // The end follows at once.
        call.hangup("NORMAL_CLEARING").await;
        recordings.push(recording);
    }
    for recording in &recordings {
        masked_as(&world, recording, &[true]).await?;
    }
    world.finish().await
}

/// Waits until the document says that the audio was masked and unmasked so.
async fn masked_as(world: &World<'_>, recording: &Recording, wanted: &[bool]) -> TestResult {
    let said = async {
        loop {
            let document = world.stored(recording).await?.document;
            let masks = document["pvt_recording"]["masks"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let said: Vec<bool> = masks.iter().filter_map(|mask| mask["masked"].as_bool()).collect();
            if said == wanted {
                return anyhow::Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    match tokio::time::timeout(SOON, said).await {
        Ok(said) => said,
        Err(_) => {
            let entry = world.entry(&recording.call_id).await?;
            anyhow::bail!("no document of {:?} says {wanted:?}: {entry:#?}", recording.path)
        }
    }
}

/// Its own party transfers the call away; the recording goes along to the other leg.
async fn a_mask_after_a_move_is_told_as_not_obeyed(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker_with(&[("KAZOO__SYSTEM_ALERTS", "true")]).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    act(&call, json!({})).await?;
    let recording = call.wait_recording_started(SOON).await?;
    act(&call, json!({"action": "mask"})).await?;
    // Closer together nobody can tell which came first: stamps tick, and there are two clocks.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let onward = call.refer_away().await?;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    act(&onward, json!({"action": "unmask"})).await?;
    let told = |line: &Value| line["event"] == json!("control_not_obeyed");
    worker.logged("the unmask that was not obeyed", told, SOON).await?;
    worker
        .counts("kz_record_call_controls_not_obeyed_total{control=\"unmask\"} 1")
        .await?;
    operators_are_alerted(&world).await?;
    onward.hangup("NORMAL_CLEARING").await;
    let document = world.stored(&recording).await?.document;
    let private = &document["pvt_recording"];
    ensure!(
        private["masks"].as_array().is_some_and(|masks| masks.len() == 1),
        "{private:#}"
    );
    ensure!(
        private["not_obeyed"][0]["action"] == "unmask" && private["not_obeyed"][0]["why"] == "moved",
        "{private:#}"
    );
    world.finish().await
}

/// Waits for the mail to the operators that the switch did not obey.
async fn operators_are_alerted(world: &World<'_>) -> TestResult {
    let is_alert = |m: &Observed| m.exchange == "notifications" && m.body["Details"]["Not-Obeyed"].is_string();
    world.kazoo.tap().wait(is_alert, SOON).await.context("no alert")?;
    Ok(())
}

async fn a_stop_on_the_leg_that_carries_a_moved_recording_is_told(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let settings = [
        ("FLOW__STOP_REPEATS_MS", "100,200"),
        ("FLOW__STOP_ALARM_MS", "600"),
        ("KAZOO__SYSTEM_ALERTS", "true"),
    ];
    let worker = world.worker_with(&settings).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    act(&call, json!({})).await?;
    let recording = call.wait_recording_started(SOON).await?;
    let onward = call.refer_away().await?;
    act(&onward, json!({"action": "stop"})).await?;
    let told = |line: &Value| line["event"] == json!("stop_unconfirmed");
    worker.logged("the alarm", told, SOON).await?;
    operators_are_alerted(&world).await?;
    onward.hangup("NORMAL_CLEARING").await;
    let private = world.stored(&recording).await?.document["pvt_recording"].clone();
    ensure!(
        private["not_obeyed"][0]["action"] == "stop" && private["not_obeyed"][0]["why"] == "unconfirmed",
        "{private:#}"
    );
    world.finish().await
}

/// `SAME_NAME_CALLS=1000` for more of them.
async fn the_same_id_and_name_on_many_calls_mix_nothing(services: Arc<Services>) -> TestResult {
    let more = std::env::var("SAME_NAME_CALLS").ok();
    let calls_in_all: usize = more.map_or(Ok(100), |n| n.parse())?;
    let world = World::new(&services).await?;
    let workers = [world.worker().await?, world.worker().await?];
    let chosen = format!("{}-always-the-same", world.month());
    let data = json!({"media_id": chosen, "media_name": "the same.mp3"});
    let mut calls = Vec::new();
    for _ in 0..calls_in_all {
        let call = world.kazoo.new_call(CallOptions::talking().size(Size::Millis(1_000)));
        let run = call.execute(data.clone()).await?;
        calls.push((call, run));
    }
    for (call, run) in &calls {
        run.continued(SOON).await?;
        call.wait_recording_started(SOON).await?;
    }
    for (call, _) in &calls {
        call.hangup("NORMAL_CLEARING").await;
    }
    let mut ids = BTreeSet::new();
    for (call, _) in &calls {
        let call_id = call.id();
        let of_call = |m: &Observed| m.category == "recording" && m.header("Call-ID") == call_id;
        let told = world.kazoo.tap().wait(of_call, Duration::from_secs(60)).await?;
        ensure!(told.header("Outcome") == "stored", "{told:?}");
        let id = told.header("Media-ID").to_owned();
        let recording = call.recordings().pop().context("no recording")?;
        let whole = world.ended(&recording).await?;
        let stored = world.couch.stored(&world.modb(&id), &id, &whole.audio).await?;
        ensure!(stored.difference.is_none(), "{:?}", stored.difference);
        ensure!(
            stored.document["call_id"] == call_id && stored.document["name"] == "the_same.mp3",
            "{:#}",
            stored.document
        );
        ids.insert(id);
    }
    ensure!(
        ids.len() == calls_in_all && ids.contains(&chosen),
        "{} documents",
        ids.len()
    );
    drop(workers);
    world.finish().await
}

async fn several_recordings_of_one_call_are_kept_apart(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    for n in 0..5 {
        call.set_size(Size::Millis(1_000 + n * 500));
        act(
            &call,
            json!({"format": if n % 2 == 0 { "mp3" } else { "wav" }, "media_name": "one"}),
        )
        .await?;
    }
    let recordings = call.wait_recordings(5, SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    for recording in &recordings {
        world.stored(recording).await?;
    }
    world.finish().await
}

/// The end was presumed, the audio brought; then the switch tells of a later end, and has more.
async fn an_end_that_is_told_late_and_is_longer_is_kept_too(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let settings = [
        ("FLOW__CHECK_INTERVAL_MS", "200"),
        ("FLOW__GRACE_MS", "200"),
        ("FLOW__PROBE_GAP_MS", "200"),
    ];
    let _worker = world.worker_with(&settings).await?;
    // Ecallmgr does not know the channel any more, and the switch keeps its files.
    world.kazoo.faults(|faults| {
        faults.blind_ecallmgrs = vec![0];
        faults.keep_files = true;
    });
    // While its leg is on hold its file does not grow: no worker believes in the end of one that grows.
    let call = world.kazoo.new_call(CallOptions::talking().size(Size::Lasting));
    act(&call, json!({})).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hold();
    let presumed = world.outcome(&recording.id).await?;
    ensure!(
        presumed["End-Presumed"] == true && presumed["Outcome"] == "stored",
        "{presumed:#}"
    );
    // What is recorded afterwards takes its time.
    call.unhold();
    tokio::time::sleep(Duration::from_secs(6)).await;
    call.hangup("NORMAL_CLEARING").await;
    let whole = world.ended(&recording).await?;
    let continued = |m: &Observed| m.category == "recording" && m.header("Continues") == recording.id;
    let told = world.kazoo.tap().wait(continued, SOON).await?;
    ensure!(told.header("Outcome") == "stored", "{told:?}");
    let id = told.header("Media-ID").to_owned();
    let stored = world.couch.stored(&world.modb(&id), &id, &whole.audio).await?;
    ensure!(stored.difference.is_none(), "{:?}", stored.difference);
    world.finish().await
}

/// Asked for in one month, ended in the next: id, database and listing are the first month's, also when the action comes again after the turn.
async fn a_recording_over_the_turn_of_the_month_is_filed_where_its_id_says(services: Arc<Services>) -> TestResult {
    use crate::simulator::sim::wire::Clock;
    // The worker's clock and Kazoo's stand before the turn, by more than a worker needs to start.
    let real = Clock::default();
    let now = i64::try_from(real.unix_micros() / 1_000_000)?;
    let turn = turn_after(now);
    let clock = Clock {
        offset_secs: turn - now - 25,
    };
    let world = World::with(&services, |options| options.clock = clock).await?;
    let (before, after) = (
        clock.month(),
        Clock {
            offset_secs: turn - now + 60,
        }
        .month(),
    );
    ensure!(before != after, "{before} {after}");
    let forward = clock.offset_secs.to_string();
    let _worker = world
        .worker_with(&[("KZ_RECORD_CALL_TEST_CLOCK_FORWARD_S", &forward)])
        .await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    let run = call.execute(json!({})).await?;
    run.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    ensure!(recording.id.starts_with(&before), "{} was made too late", recording.id);
    while clock.month() == before {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    run.again().await?;
    run.results(2, SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    let stored = world.stored(&recording).await?;
    ensure!(call.recordings().len() == 1, "{:?}", call.recordings());
    let document = &stored.document;
    ensure!(
        document["pvt_account_db"]
            .as_str()
            .is_some_and(|db| db.ends_with(&format!("-{before}"))),
        "{document:#}"
    );
    ensure!(
        document["cdr_id"].as_str().is_some_and(|id| id.starts_with(&before)),
        "the CDR is of the month in which the conversation began: {document:#}"
    );
    let listed = world.couch.listed(&world.modb(&recording.id)).await?;
    ensure!(listed == [recording.id.clone()], "{listed:?}");
    world.finish().await
}

/// The first second of the month after, in UTC.
fn turn_after(now: i64) -> i64 {
    let month = |at: i64| {
        let offset_secs = at - now;
        crate::simulator::sim::wire::Clock { offset_secs }.month()
    };
    let (mut low, mut high) = (now, now + 32 * 86_400);
    let this = month(now);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if month(middle) == this {
            low = middle
        } else {
            high = middle
        }
    }
    high
}
