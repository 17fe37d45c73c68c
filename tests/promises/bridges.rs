//! Calls that record at several bridges: the switch appends to its file while that is there, and what it tells may be late, or lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::ledger::FAST;
use crate::promises;
use crate::simulator::sim::{Call, CallOptions, EventFault, Mistreat, Observed, Recording, Size, State};
use crate::support::{SOON, Services, TestResult, World};
use crate::turns::act;

promises![
    every_bridge_of_a_call_is_kept,
    a_stop_between_two_bridges_holds_for_the_next,
    a_bridge_that_follows_at_once_goes_on_in_the_same_recording,
    a_file_that_grows_is_brought_when_it_is_whole,
    a_stretch_that_nobody_told_of_is_kept,
    what_is_kept_already_is_not_kept_twice,
];

/// A call that records at its bridges, from its first one on.
async fn at_the_first_bridge(world: &World<'_>) -> anyhow::Result<(Call, Recording)> {
    let call = world.kazoo.new_call(CallOptions::ringing());
    act(&call, json!({"record_on_bridge": true})).await?;
    call.bridge();
    let first = call.wait_recording_started(SOON).await?;
    Ok((call, first))
}

/// Its recording ends, and nobody brings the file yet.
async fn ends_and_is_not_brought(world: &World<'_>, call: &Call) -> TestResult {
    world.kazoo.serve_switch(false).await?;
    world.kazoo.end_recordings(call).await;
    world.state(&call.id(), "ended", SOON).await?;
    Ok(())
}

/// The outcomes that were told of this call's recordings, by their ids.
fn outcomes(world: &World<'_>, call: &Call) -> Vec<Observed> {
    let all = world.kazoo.tap().messages().into_iter();
    all.filter(|m| m.category == "recording" && m.header("Call-ID") == call.id())
        .collect()
}

/// The switch records at every bridge under the same name: when the audio of the first is safe, the second is a recording of its own.
async fn every_bridge_of_a_call_is_kept(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let (call, first) = at_the_first_bridge(&world).await?;
    act(&call, json!({"action": "mask"})).await?;
    call.unbridge();
    world.kazoo.end_recordings(&call).await;
    let first_stored = world.stored(&first).await?;
    call.set_size(Size::Millis(7_000));
    call.bridge();
    let second = call.wait_recordings(2, SOON).await?.pop().context("no second")?;
    ensure!(
        second.path == first.path && second.id == first.id,
        "the switch knows one name"
    );
    let masked = |state: &State| {
        let second = state.recordings().get(1)?;
        (second.masks > 0).then_some(())
    };
    world
        .kazoo
        .wait_for("the mask of the second stretch", SOON, masked)
        .await?;
    world.kazoo.end_recordings(&call).await;
    let second = call.wait_recording_ended(SOON).await?;
    let continues = |m: &Observed| m.category == "recording" && m.header("Continues") == first.id;
    let continued = world.kazoo.tap().wait(continues, SOON).await?;
    ensure!(
        continued.header("Outcome") == "stored" && continued.body["Part"] == 2,
        "{continued:?}"
    );
    let id = continued.header("Media-ID").to_owned();
    let stored = world.couch.stored(&world.modb(&id), &id, &second.audio).await?;
    ensure!(stored.difference.is_none(), "{:?}", stored.difference);
    ensure!(
        stored.document["pvt_recording"]["continues"] == first.id,
        "{:#}",
        stored.document
    );
    ensure!(
        stored.document["duration_ms"] == second.length_ms,
        "{:#}",
        stored.document
    );
    ensure!(first_stored.document["_id"] != stored.document["_id"]);
    let listed = world.couch.listed(&world.modb(&id)).await?;
    ensure!(listed.len() == 2, "{listed:?}");
    call.hangup("NORMAL_CLEARING").await;
    world.finish().await
}

/// Between its bridges nothing of a call is recorded, and it is stopped all the same.
async fn a_stop_between_two_bridges_holds_for_the_next(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let (call, first) = at_the_first_bridge(&world).await?;
    call.unbridge();
    world.kazoo.end_recordings(&call).await;
    world.stored(&first).await?;
    act(&call, json!({"action": "stop"})).await?;
    let asked = |entry: &serde_json::Value| {
        let mut facts = entry["facts"].as_array().into_iter().flatten();
        facts.any(|fact| fact["fact"] == "stop_asked")
    };
    let begun = Instant::now();
    while !world.entry(&call.id()).await?.as_ref().is_some_and(asked) {
        ensure!(begun.elapsed() < SOON, "the stop was not written down");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    call.bridge();
    // It is bridged: nothing but the stop ends what begins now.
    let second = call.wait_recordings(2, SOON).await?.pop().context("no second")?;
    let ended = |state: &State| state.recordings().get(1)?.ended_at.map(drop);
    world
        .kazoo
        .wait_for("the end of the second stretch", SOON, ended)
        .await?;
    call.hangup("NORMAL_CLEARING").await;
    let continues = |m: &Observed| m.category == "recording" && m.header("Continues") == first.id;
    let continued = world.kazoo.tap().wait(continues, SOON).await?;
    ensure!(continued.header("Outcome") == "stored", "{continued:?}, {second:?}");
    world.finish().await
}

/// A bridge that follows before the file was brought: the switch goes on in the same file, and it is brought once, whole.
async fn a_bridge_that_follows_at_once_goes_on_in_the_same_recording(services: Arc<Services>) -> TestResult {
    let world = World::with(&services, |options| options.files_grow = true).await?;
    let _worker = world.worker_with(&FAST).await?;
    let (call, first) = at_the_first_bridge(&world).await?;
    ends_and_is_not_brought(&world, &call).await?;
    call.set_size(Size::Millis(7_000));
    call.bridge();
    second_stretch(&world, &first).await?;
    world.state(&call.id(), "recording", SOON).await?;
    world.kazoo.serve_switch(true).await?;
    // As long as the call is bridged its file may be recorded into: it is stored, and stays.
    world.kazoo.end_recordings(&call).await;
    world.state(&call.id(), "closing", SOON).await?;
    ensure!(
        !world.ended(&first).await?.deleted,
        "the file of a bridged call was let go"
    );
    call.hangup("NORMAL_CLEARING").await;
    let stored = world.stored(&first).await?;
    let length = stored.document["duration_ms"].as_u64().context("duration_ms")?;
    ensure!((9_000..9_000 + MP3_ADDS).contains(&length), "{:#}", stored.document);
    ensure!(outcomes(&world, &call).len() == 1, "{:?}", outcomes(&world, &call));
    world.finish().await
}

/// Brought while the switch records into it again, and that was told to nobody: it is not taken for whole.
async fn a_file_that_grows_is_brought_when_it_is_whole(services: Arc<Services>) -> TestResult {
    let world = World::with(&services, |options| options.files_grow = true).await?;
    let _worker = world.worker_with(&FAST).await?;
    let (call, first) = at_the_first_bridge(&world).await?;
    ends_and_is_not_brought(&world, &call).await?;
    untold(&world, "RECORD_START");
    call.set_size(Size::Millis(60_000));
    call.bridge();
    second_stretch(&world, &first).await?;
    world.kazoo.serve_switch(true).await?;
    let twice = |s: &State| (s.uploads().iter().filter(|u| u.finished).count() >= 2).then_some(());
    world.kazoo.wait_for("two uploads", SOON, twice).await?;
    world.kazoo.end_recordings(&call).await;
    call.hangup("NORMAL_CLEARING").await;
    let stored = world.stored(&first).await?;
    let length = stored.document["duration_ms"].as_u64().context("duration_ms")?;
    ensure!((62_000..62_100).contains(&length), "{:#}", stored.document);
    ensure!(outcomes(&world, &call).len() == 1, "{:?}", outcomes(&world, &call));
    world.finish().await
}

/// The file of a bridged call is safe, and stays; what is recorded into it then is found when the call is over, though nobody told of it.
async fn a_stretch_that_nobody_told_of_is_kept(services: Arc<Services>) -> TestResult {
    let world = World::with(&services, |options| options.files_grow = true).await?;
    let _worker = world.worker_with(&FAST).await?;
    let (call, first) = at_the_first_bridge(&world).await?;
    world.kazoo.end_recordings(&call).await;
    let told = world.outcome(&first.id).await?;
    ensure!(told["Outcome"] == "stored", "{told:#}");
    untold(&world, "RECORD_START");
    untold(&world, "RECORD_STOP");
    call.set_size(Size::Millis(7_000));
    call.bridge();
    second_stretch(&world, &first).await?;
    call.hangup("NORMAL_CLEARING").await;
    let continues = |m: &Observed| m.category == "recording" && m.header("Continues") == first.id;
    let continued = world.kazoo.tap().wait(continues, CALLS_END).await?;
    ensure!(continued.header("Outcome") == "stored", "{continued:?}");
    let id = continued.header("Media-ID").to_owned();
    let whole = world.ended(&first).await?;
    let stored = world.couch.stored(&world.modb(&id), &id, &whole.audio).await?;
    ensure!(stored.difference.is_none(), "{:?}", stored.difference);
    let length = stored.document["duration_ms"].as_u64().context("duration_ms")?;
    ensure!((9_000..9_000 + MP3_ADDS).contains(&length), "{:#}", stored.document);
    world
        .kazoo
        .wait_for("the deletion", CALLS_END, |s| {
            let file = s.recordings().iter().find(|r| r.path == first.path);
            file.filter(|r| r.deleted).map(drop)
        })
        .await?;
    world.finish().await
}

/// The events of a stretch that is kept already come late: they make no second copy, and no alarm.
async fn what_is_kept_already_is_not_kept_twice(services: Arc<Services>) -> TestResult {
    let world = World::with(&services, |options| options.files_grow = true).await?;
    let _worker = world.worker_with(&FAST).await?;
    let (call, first) = at_the_first_bridge(&world).await?;
    ends_and_is_not_brought(&world, &call).await?;
    for (event, seconds) in [("RECORD_START", 2), ("RECORD_STOP", 7)] {
        let late = EventFault::new(event, Mistreat::Delay(Duration::from_secs(seconds)));
        world.kazoo.faults(|faults| faults.events.push(late));
    }
    call.set_size(Size::Millis(7_000));
    call.bridge();
    second_stretch(&world, &first).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.kazoo.serve_switch(true).await?;
    let stored = world.stored(&first).await?;
    let length = stored.document["pvt_recording"]["audio_ms"]
        .as_u64()
        .context("audio_ms")?;
    ensure!((9_000..9_000 + MP3_ADDS).contains(&length), "{:#}", stored.document);
    let continues = |m: &Observed| m.category == "recording" && m.header("Continues") == first.id;
    let continued = world.kazoo.tap().wait(continues, CALLS_END).await?;
    ensure!(
        (continued.header("Outcome"), continued.header("Cause")) == ("discarded", "already_kept"),
        "{continued:?}"
    );
    // It is announced before it is written down.
    let place = format!("in the recording that this one continues, {}", first.id);
    let begun = Instant::now();
    loop {
        let (_, story) = world.command(&["explain", continued.header("Media-ID")]).await?;
        if story.contains(&place) {
            break;
        }
        ensure!(begun.elapsed() < SOON, "{story}");
    }
    world.finish().await
}

/// Milliseconds by which an MP3 of the switch is longer than what was told, at most: 100 to 600 were seen of a real one.
const MP3_ADDS: u64 = 600;

/// That a call is over is believed when nobody has known it for a while, and each question takes seconds.
const CALLS_END: Duration = Duration::from_secs(60);

/// Waits until the switch goes on in the same file.
async fn second_stretch(world: &World<'_>, first: &Recording) -> TestResult {
    let again = |s: &State| {
        let file = s.recordings().iter().find(|r| r.path == first.path);
        file.filter(|r| r.starts == 2 && r.running()).map(drop)
    };
    world.kazoo.wait_for("the second stretch", SOON, again).await
}

/// This event is lost from now on.
fn untold(world: &World<'_>, event: &str) {
    let fault = EventFault::new(event, Mistreat::Drop);
    world.kazoo.faults(|faults| faults.events.push(fault));
}
