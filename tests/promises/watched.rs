//! Recordings that Kazoo's own recorder stores, and that the worker watches: what it reports, and what it rescues.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::promises;
use crate::simulator::sim::media_mgr::{QUEUE, QUEUE_OF_4, in_the_form_of_4};
use crate::simulator::sim::wire::Object;
use crate::simulator::sim::{
    Call, CallOptions, EventFault, Fate, MediaMgr, Mistreat, Observed, Recording, Size, recorder,
};
use crate::support::{Mode, SOON, Services, TestResult, Worker, World};

promises![
    what_kazoo_has_stored_leaves_no_trace_in_the_ledger,
    what_kazoo_did_not_store_is_reported_and_left_where_it_is,
    what_kazoo_did_not_store_is_rescued_as_kazoo_would_have_stored_it,
    of_a_burst_beyond_kazoos_queue_exactly_what_it_dropped_is_rescued,
    a_document_that_kazoo_left_without_audio_gets_its_audio_and_nothing_else,
    a_recorder_that_stores_late_is_not_overtaken,
    whenever_kazoo_stores_after_all_there_is_one_document_with_one_audio,
    a_killed_worker_rescues_nothing_twice,
    nothing_is_reported_of_looks_that_the_database_did_not_answer,
    looks_that_can_never_be_answered_are_watched_and_end_as_lost,
    what_later_versions_of_kazoo_leave_on_purpose_is_not_lost,
    a_deleted_document_is_left_deleted_and_its_file_is_not_asked_for,
    a_document_that_kazoo_removed_itself_is_rescued,
    what_kazoo_does_not_want_to_store_is_not_lost,
    a_file_that_can_be_another_calls_is_reported_and_never_fetched,
    a_missing_recorder_is_reported_within_a_minute,
    a_recording_of_kazoo_4_is_watched_by_the_place_of_its_name,
    an_end_that_names_no_account_is_reported,
];

/// Settings as Kazoo writes them for an endpoint.
fn of_an_endpoint() -> Value {
    json!({
        "enabled": true, "format": "mp3", "time_limit": 600, "origin": "inbound from onnet to endpoint",
        "endpoint_id": "8307edc8068584cbdd205e7f4c486d1b",
    })
}

/// A worker that watches, and holds a recording for lost after so many seconds.
async fn watching(world: &World<'_>, mode: &str, give_up: &str) -> anyhow::Result<Worker> {
    watching_with(world, mode, give_up, &[]).await
}

async fn watching_with(world: &World<'_>, mode: &str, give_up: &str, more: &[(&str, &str)]) -> anyhow::Result<Worker> {
    let settings = [
        ("ADOPT__MODE", mode),
        ("ADOPT__FIRST_LOOK_S", "1"),
        ("ADOPT__BATCH_S", "1"),
        ("ADOPT__GIVE_UP_S", give_up),
    ];
    world.worker_with(&[&settings, more].concat()).await
}

/// A short call that Kazoo records.
async fn recorded(world: &World<'_>, settings: Value) -> anyhow::Result<(Call, Recording)> {
    let call = world.kazoo.new_call(CallOptions::talking().size(Size::Bytes(2_000)));
    call.record_as_kazoo(settings);
    let recording = call.wait_recording_started(Duration::from_secs(120)).await?;
    Ok((call, recording))
}

/// The same, many times.
async fn many(world: &World<'_>, count: usize) -> anyhow::Result<Vec<(Call, Recording)>> {
    let mut begun =
        futures_util::stream::iter((0..count).map(|_| recorded(world, of_an_endpoint()))).buffer_unordered(50);
    let mut calls = Vec::new();
    while let Some(call) = begun.next().await {
        calls.push(call?);
    }
    Ok(calls)
}

async fn hang_up(calls: &[(Call, Recording)]) {
    futures_util::future::join_all(calls.iter().map(|(call, _)| call.hangup("NORMAL_CLEARING"))).await;
}

/// A recording's end, as the switch told it.
fn stop(world: &World<'_>, recording: &Recording) -> anyhow::Result<Object> {
    let is_it = |body: &Object| body.get("Recording").is_some_and(|told| told["ID"] == recording.id);
    let mut told = world
        .kazoo
        .timeline()
        .into_iter()
        .filter(|entry| entry.name == "RECORD_STOP");
    let body = told.find_map(|entry| entry.body.filter(|body| is_it(body)));
    Ok((*body.context("no RECORD_STOP")?).clone())
}

/// Waits until the counter of looks with this result is at least `count`.
async fn looked(worker: &Worker, look: &str, result: &str, count: usize) -> anyhow::Result<()> {
    let series = format!("kz_record_call_kazoo_looks_total{{look=\"{look}\",result=\"{result}\"}} ");
    let begun = Instant::now();
    loop {
        let metrics = worker.metrics().await?;
        let seen = metrics
            .lines()
            .find_map(|line| line.strip_prefix(&series)?.parse::<usize>().ok());
        if seen.unwrap_or(0) >= count {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(300),
            "{seen:?} of {count} {result}\n{}",
            worker.tail()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether the switch was ever asked for this recording's file.
fn is_fetched(world: &World<'_>, recording: &Recording) -> bool {
    world.kazoo.uploads().iter().any(|upload| upload.file == recording.path)
}

/// Kazoo's own documents are no business of the check at a test's end.
async fn forget_documents(world: &World<'_>, recording: &Recording) -> anyhow::Result<()> {
    world.couch.delete_database(&world.modb(&recording.id)).await?;
    world.couch.create_database(&world.modb(&recording.id)).await
}

/// One document, with the audio of the switch, and no other of that recording.
async fn is_whole(world: &World<'_>, recording: &Recording) -> anyhow::Result<Value> {
    let whole = world.ended(recording).await?;
    let stored = world
        .couch
        .stored(&world.modb(&recording.id), &recording.id, &whole.audio)
        .await?;
    ensure!(stored.difference.is_none(), "{:?}", stored.difference);
    Ok(stored.document)
}

/// By hand with `WATCHED=10000`.
async fn what_kazoo_has_stored_leaves_no_trace_in_the_ledger(services: Arc<Services>) -> TestResult {
    let count = std::env::var("WATCHED")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(200);
    let world = World::new(&services).await?;
    let media_mgr = MediaMgr::start(&world.kazoo, &world.couch, of_an_endpoint()).await?;
    // As by default: Kazoo's own recorder has so much time.
    let first_look = [("ADOPT__FIRST_LOOK_S", "30"), ("ADOPT__BATCH_S", "5")];
    let worker = watching_with(&world, "watch", "0", &first_look).await?;
    let mut first = None;
    let begun = Instant::now();
    for left in (0..count).step_by(500) {
        let calls = many(&world, 500.min(count - left)).await?;
        hang_up(&calls).await;
        first = first.or_else(|| calls.into_iter().next());
    }
    looked(&worker, "first", "stored", count).await?;
    println!(
        "{count} recordings were begun, ended, stored and looked for within {:?}",
        begun.elapsed()
    );
    ensure!(media_mgr.received() == count, "{} received", media_mgr.received());
    let entries = world.entries().await?;
    ensure!(entries.is_empty(), "{entries:#?}");
    let metrics = worker.metrics().await?;
    let looks: Vec<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("kz_record_call_kazoo_looks"))
        .collect();
    ensure!(looks.len() == 1, "{looks:?}");
    world.consumed_by("kz_record_call.watch", 1).await?;
    let (_, recording) = first.context("none")?;
    let documents = world.couch.ids(&world.modb(&recording.id)).await?.len();
    ensure!(documents == count, "{documents} documents");
    forget_documents(&world, &recording).await?;
    media_mgr.stop().await?;
    world.finish().await
}

async fn what_kazoo_did_not_store_is_reported_and_left_where_it_is(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = watching(&world, "watch", "3").await?;
    let (call, recording) = recorded(&world, of_an_endpoint()).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.state(&call.id(), "watched", SOON).await?;
    let (good, story) = world.command(&["explain", &recording.id]).await?;
    ensure!(
        good && story.contains("no document") && story.contains("watched"),
        "{story}"
    );
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "parked" && outcome["Cause"] == "not_stored_by_kazoo",
        "{outcome:#}"
    );
    ensure!(outcome["Recorder"] == "kz_media_recording", "{outcome:#}");
    world.state(&call.id(), "lost", SOON).await?;
    let (good, listed) = world.command(&["list", "--state", "lost"]).await?;
    ensure!(good && listed.contains(&recording.id), "{listed}");
    worker
        .counts("kz_record_call_recordings_lost_total{cause=\"not_stored_by_kazoo\"} 1")
        .await?;
    ensure!(!is_fetched(&world, &recording), "its file was asked for");
    ensure!(
        world
            .couch
            .get(&world.modb(&recording.id), &recording.id)
            .await?
            .is_none()
    );
    // An operator has it stored.
    let (good, said) = world.command(&["retry", &recording.id]).await?;
    ensure!(good, "{said}");
    let stored = |m: &Observed| m.name == "stored" && m.header("Media-ID") == recording.id;
    world.kazoo.tap().wait(stored, SOON).await?;
    is_whole(&world, &recording).await?;
    world.released(&recording).await?;
    world.finish().await
}

/// What both have, and no writer can write as another one does.
fn common(document: &Value) -> Value {
    let mut document = document.clone();
    if let Some(map) = document.as_object_mut() {
        let own = |key: &str| {
            key.starts_with("pvt_") && !["pvt_type", "pvt_account_id", "pvt_account_db"].contains(&key)
                || key == "_rev"
                || key == "_attachments"
        };
        map.retain(|key, _| !own(key));
    }
    document
}

async fn what_kazoo_did_not_store_is_rescued_as_kazoo_would_have_stored_it(services: Arc<Services>) -> TestResult {
    const MANY: usize = 20;
    let world = World::new(&services).await?;
    let _worker = watching(&world, "rescue", "2").await?;
    let calls = many(&world, MANY).await?;
    hang_up(&calls).await;
    for (_, recording) in &calls {
        let stored = world.stored(recording).await?;
        let stop = stop(&world, recording)?;
        let kazoos = recorder::document(&stop, &of_an_endpoint(), &world.modb(&recording.id));
        ensure!(
            common(&stored.document) == kazoos,
            "{:#}\n{kazoos:#}",
            common(&stored.document)
        );
    }
    let (_, first) = &calls[0];
    let documents = world.couch.ids(&world.modb(&first.id)).await?.len();
    ensure!(documents == MANY, "{documents} documents");
    world.finish().await
}

/// Kazoo's queue keeps a hundred, and drops the oldest.
async fn of_a_burst_beyond_kazoos_queue_exactly_what_it_dropped_is_rescued(services: Arc<Services>) -> TestResult {
    const MANY: usize = 130;
    let world = World::new(&services).await?;
    const KEPT: usize = 100;
    let media_mgr = MediaMgr::declare(&world.kazoo, &world.couch, QUEUE, of_an_endpoint()).await?;
    let worker = watching(&world, "rescue", "15").await?;
    let calls = many(&world, MANY).await?;
    hang_up(&calls).await;
    // It is back when all have ended, and none was found: too late for some.
    let missed = |line: &&Value| line["event"] == "kazoo_recording_doubtful";
    let begun = Instant::now();
    while worker.lines().iter().filter(missed).count() < MANY {
        ensure!(begun.elapsed() < SOON, "not all have ended: {}", worker.tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    media_mgr.consume().await?;
    let rescued = || {
        let messages = world.kazoo.tap().messages();
        let ours = messages.iter().filter(|m| m.category == "recording");
        let ids = ours.map(|m| (m.header("Media-ID").to_owned(), m.name.clone()));
        ids.collect::<std::collections::BTreeMap<String, String>>()
    };
    let begun = Instant::now();
    while rescued().values().filter(|name| *name == "stored").count() < MANY - KEPT {
        let received = media_mgr.received();
        ensure!(
            begun.elapsed() < Duration::from_secs(60),
            "{received} received, rescued {:#?}",
            rescued()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(media_mgr.received() == KEPT, "{} received", media_mgr.received());
    for (_, recording) in &calls {
        is_whole(&world, recording).await?;
        world.released(recording).await?;
    }
    let stored = rescued().values().filter(|name| *name == "stored").count();
    ensure!(stored == MANY - KEPT, "{:#?}", rescued());
    let (_, first) = &calls[0];
    let documents = world.couch.ids(&world.modb(&first.id)).await?.len();
    ensure!(documents == MANY, "{documents} documents");
    forget_documents(&world, first).await?;
    media_mgr.stop().await?;
    world.finish().await
}

async fn a_document_that_kazoo_left_without_audio_gets_its_audio_and_nothing_else(
    services: Arc<Services>,
) -> TestResult {
    let world = World::new(&services).await?;
    let media_mgr = MediaMgr::start(&world.kazoo, &world.couch, of_an_endpoint()).await?;
    media_mgr.faults(|faults| faults.all = Fate::NoAudio);
    let _worker = watching(&world, "rescue", "4").await?;
    let (call, recording) = recorded(&world, of_an_endpoint()).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.state(&call.id(), "watched", SOON).await?;
    let modb = world.modb(&recording.id);
    let before = world.couch.get(&modb, &recording.id).await?.context("no document")?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "stored" && outcome["Media-ID"] == recording.id,
        "{outcome:#}"
    );
    let mut after = is_whole(&world, &recording).await?;
    for key in ["_rev", "_attachments"] {
        after[key] = before[key].clone();
    }
    let mut expected = before.clone();
    expected["_attachments"] = before["_attachments"].clone();
    ensure!(after == expected, "{after:#}\n{before:#}");
    let of_it = |m: &Observed| m.header("ID") == recording.id;
    let told: Vec<String> = world
        .kazoo
        .tap()
        .messages()
        .into_iter()
        .filter(of_it)
        .map(|m| m.name)
        .collect();
    ensure!(told == ["doc_edited"], "{told:?}");
    world.released(&recording).await?;
    forget_documents(&world, &recording).await?;
    media_mgr.stop().await?;
    world.finish().await
}

async fn a_recorder_that_stores_late_is_not_overtaken(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let media_mgr = MediaMgr::start(&world.kazoo, &world.couch, of_an_endpoint()).await?;
    media_mgr.faults(|faults| faults.all = Fate::Late(Duration::from_secs(4)));
    let worker = watching(&world, "rescue", "6").await?;
    let (call, recording) = recorded(&world, of_an_endpoint()).await?;
    call.hangup("NORMAL_CLEARING").await;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "discarded" && outcome["Cause"] == "stored_by_kazoo",
        "{outcome:#}"
    );
    looked(&worker, "later", "stored", 1).await?;
    ensure!(!is_fetched(&world, &recording), "its file was asked for");
    is_whole(&world, &recording).await?;
    forget_documents(&world, &recording).await?;
    media_mgr.stop().await?;
    world.finish().await
}

/// media_mgr stores a little later for each recording: before the last look, between any two steps of the rescue, and after it.
async fn whenever_kazoo_stores_after_all_there_is_one_document_with_one_audio(services: Arc<Services>) -> TestResult {
    const MANY: usize = 24;
    const EACH: Duration = Duration::from_millis(120);
    let world = World::new(&services).await?;
    let media_mgr = MediaMgr::start(&world.kazoo, &world.couch, of_an_endpoint()).await?;
    let _worker = watching(&world, "rescue", "2").await?;
    let calls = many(&world, MANY).await?;
    media_mgr.faults(|faults| {
        for (nth, (_, recording)) in (0..).zip(&calls) {
            let fate = Fate::Late(Duration::from_millis(2_500) + EACH * nth);
            faults.of.insert(recording.id.clone(), fate);
        }
    });
    hang_up(&calls).await;
    for (_, recording) in &calls {
        let outcome = world.outcome(&recording.id).await?;
        let (outcome, cause) = (outcome["Outcome"].as_str(), outcome["Cause"].as_str());
        let good = [
            (Some("stored"), Some("complete")),
            (Some("discarded"), Some("stored_by_kazoo")),
        ];
        ensure!(good.contains(&(outcome, cause)), "{outcome:?} {cause:?}");
        world.released(recording).await?;
    }
    // The last of media_mgr's attempts is over.
    tokio::time::sleep(EACH * 30).await;
    for (_, recording) in &calls {
        is_whole(&world, recording).await?;
    }
    let (_, first) = &calls[0];
    let documents = world.couch.ids(&world.modb(&first.id)).await?.len();
    ensure!(documents == MANY, "{documents} documents");
    forget_documents(&world, first).await?;
    media_mgr.stop().await?;
    world.finish().await
}

async fn a_killed_worker_rescues_nothing_twice(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let mut worker = watching(&world, "rescue", "2").await?;
    let calls = many(&world, 10).await?;
    world.kazoo.faults(|faults| faults.bandwidth = Some(2_000));
    hang_up(&calls).await;
    let mut begun = 0;
    for _ in 0..3 {
        // One that began since: what the killed worker received moves no more.
        let moves = |state: &crate::simulator::sim::State| {
            let uploads = state.uploads();
            let moving = uploads
                .iter()
                .skip(begun)
                .any(|upload| upload.sent > 0 && upload.total > 0);
            moving.then_some(())
        };
        world.kazoo.wait_for("an upload that moves", SOON, moves).await?;
        worker.kill().await?;
        let so_far = |state: &crate::simulator::sim::State| Some(state.uploads().len());
        begun = world.kazoo.wait_for("the uploads", SOON, so_far).await?;
        worker = watching(&world, "rescue", "2").await?;
    }
    world.kazoo.faults(|faults| faults.bandwidth = None);
    for (_, recording) in &calls {
        let outcome = world.outcome(&recording.id).await?;
        let cause = outcome["Cause"].as_str().unwrap_or_default().to_owned();
        ensure!(["complete", "stored_by_kazoo"].contains(&cause.as_str()), "{outcome:#}");
        is_whole(&world, recording).await?;
    }
    let (_, first) = &calls[0];
    let documents = world.couch.ids(&world.modb(&first.id)).await?.len();
    ensure!(documents == calls.len(), "{documents} documents");
    world.finish().await
}

async fn nothing_is_reported_of_looks_that_the_database_did_not_answer(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let media_mgr = MediaMgr::start(&world.kazoo, &world.couch, of_an_endpoint()).await?;
    let (proxy, (key, url)) = world.database_proxy().await?;
    let worker = watching_with(&world, "rescue", "2", &[(key, &url)]).await?;
    let calls = many(&world, 20).await?;
    proxy.set(Mode::Refuse);
    hang_up(&calls).await;
    for (_, recording) in &calls {
        world.released(recording).await?;
    }
    // Kazoo has stored all of them, and the worker could not see any.
    tokio::time::sleep(Duration::from_secs(5)).await;
    proxy.set(Mode::Pass);
    looked(&worker, "first", "stored", calls.len()).await?;
    let entries = world.entries().await?;
    ensure!(entries.is_empty(), "{entries:#?}");
    let (_, first) = &calls[0];
    forget_documents(&world, first).await?;
    media_mgr.stop().await?;
    world.finish().await
}

/// The account's plan names a connection that it does not describe. So no worker can look there.
async fn looks_that_can_never_be_answered_are_watched_and_end_as_lost(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let plan = json!({
        "_id": world.account(), "pvt_type": "storage", "plan": {"modb": {"connection": "c1"}},
    });
    world.couch.create("system_data", world.account(), &plan).await?;
    let worker = watching(&world, "rescue", "3").await?;
    let (call, recording) = recorded(&world, of_an_endpoint()).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.state(&call.id(), "watched", SOON).await?;
    looked(&worker, "first", "unanswered", 4).await?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "parked" && outcome["Cause"] == "not_stored_by_kazoo",
        "{outcome:#}"
    );
    world.state(&call.id(), "lost", SOON).await?;
    let (good, story) = world.command(&["explain", &recording.id]).await?;
    ensure!(good && story.contains("a database did not answer"), "{story}");
    // Kazoo's own recorder may have stored it.
    ensure!(!is_fetched(&world, &recording));
    world.consumed_by("kz_record_call.watch", 1).await?;
    world.finish().await
}

/// The call goes on without the loopback leg, and another leg is recorded.
async fn what_later_versions_of_kazoo_leave_on_purpose_is_not_lost(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = watching(&world, "rescue", "3").await?;
    let stops = vec![EventFault::new("RECORD_STOP", Mistreat::Drop)];
    world.kazoo.faults(|faults| faults.events = stops);
    let calls = many(&world, 1).await?;
    hang_up(&calls).await;
    let (call, recording) = &calls[0];
    world.ended(recording).await?;
    world.kazoo.faults(|faults| faults.events.clear());
    let mut body = told(&world, call, recording)?;
    for flag in ["Channel-Is-Loopback", "Channel-Loopback-Bowout"] {
        body.insert(flag.into(), json!(true));
    }
    let key = format!("call.RECORD_STOP.{}", call.id());
    world.kazoo.publish("callevt", &key, body);
    looked(&worker, "first", "not_wanted", 1).await?;
    let entries = world.entries().await?;
    ensure!(entries.is_empty(), "{entries:#?}");
    ensure!(!is_fetched(&world, recording));
    world.finish().await
}

async fn a_deleted_document_is_left_deleted_and_its_file_is_not_asked_for(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let media_mgr = MediaMgr::start(&world.kazoo, &world.couch, of_an_endpoint()).await?;
    media_mgr.faults(|faults| faults.all = Fate::NoAudio);
    let worker = watching(&world, "rescue", "4").await?;
    let calls = many(&world, 3).await?;
    let modb = world.modb(&calls[0].1.id);
    // As Crossbar deletes.
    let delete = async |recording: &Recording| {
        let soft = |document: &mut Value| document["pvt_deleted"] = json!(true);
        world.couch.edit(&modb, &recording.id, soft).await
    };
    let documented = async |recording: &Recording| {
        let begun = Instant::now();
        while world.couch.get(&modb, &recording.id).await?.is_none() {
            ensure!(begun.elapsed() < SOON, "no document");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    };
    // Before the first look, which comes a second after the end.
    hang_up(&calls[..1]).await;
    documented(&calls[0].1).await?;
    delete(&calls[0].1).await?;
    looked(&worker, "first", "deleted", 1).await?;
    ensure!(world.entries().await?.is_empty(), "the ledger has them");
    // While the worker waits for Kazoo.
    hang_up(&calls[1..]).await;
    for (call, recording) in &calls[1..] {
        world.state(&call.id(), "watched", SOON).await?;
        delete(recording).await?;
    }
    for (_, recording) in &calls[1..] {
        let outcome = world.outcome(&recording.id).await?;
        ensure!(
            outcome["Outcome"] == "discarded" && outcome["Cause"] == "deleted",
            "{outcome:#}"
        );
    }
    for (_, recording) in &calls {
        ensure!(!is_fetched(&world, recording), "its file was asked for");
    }
    forget_documents(&world, &calls[0].1).await?;
    media_mgr.stop().await?;
    world.finish().await
}

/// A later version of media_mgr deletes its document for good if the switch does not open the file.
async fn a_document_that_kazoo_removed_itself_is_rescued(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let media_mgr = MediaMgr::start(&world.kazoo, &world.couch, of_an_endpoint()).await?;
    media_mgr.faults(|faults| faults.all = Fate::NoAudio);
    let _worker = watching(&world, "rescue", "4").await?;
    let calls = many(&world, 1).await?;
    let (call, recording) = &calls[0];
    let modb = world.modb(&recording.id);
    hang_up(&calls).await;
    world.state(&call.id(), "watched", SOON).await?;
    let document = world.couch.get(&modb, &recording.id).await?.context("no document")?;
    let rev = document["_rev"].as_str().unwrap_or_default();
    world.couch.delete(&modb, &recording.id, rev).await?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(outcome["Outcome"] == "stored", "{outcome:#}");
    ensure!(world.couch.get(&modb, &recording.id).await?.is_some(), "it is nowhere");
    media_mgr.stop().await?;
    world.finish().await
}

async fn what_kazoo_does_not_want_to_store_is_not_lost(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let off = |media: &mut Value| media["default"]["store_recordings"] = json!(false);
    world.couch.edit("system_config", "media", off).await?;
    let worker = watching(&world, "rescue", "2").await?;
    worker
        .logged(
            "the settings",
            |line| line["event"] == "media_config_read" && line["store_recordings"] == false,
            SOON,
        )
        .await?;
    let (call, recording) = recorded(&world, of_an_endpoint()).await?;
    // What is recorded for a URL is wanted all the same.
    let url = "https://storage.example.com/in";
    let (other, to_url) = recorded(&world, json!({"format": "mp3", "url": url})).await?;
    call.hangup("NORMAL_CLEARING").await;
    looked(&worker, "first", "not_wanted", 1).await?;
    ensure!(world.entries().await?.is_empty(), "the ledger has it");
    ensure!(!is_fetched(&world, &recording), "its file was asked for");
    other.hangup("NORMAL_CLEARING").await;
    looked(&worker, "first", "missing", 1).await?;
    world.state(&other.id(), "watched", SOON).await?;
    ensure!(to_url.id != recording.id);
    world.finish().await
}

async fn a_file_that_can_be_another_calls_is_reported_and_never_fetched(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let media_mgr = MediaMgr::start(&world.kazoo, &world.couch, of_an_endpoint()).await?;
    let _worker = watching(&world, "rescue", "2").await?;
    let chosen = || json!({"format": "mp3", "media_name": "front-desk.mp3", "origin": "callflow : desk"});
    let (first, lost) = recorded(&world, chosen()).await?;
    media_mgr.faults(|faults| {
        faults.of.insert(lost.id.clone(), Fate::Nothing);
    });
    first.hangup("NORMAL_CLEARING").await;
    world.state(&first.id(), "watched", SOON).await?;
    // The next call of that name is in the same file.
    let second = world.kazoo.new_call(CallOptions::talking());
    second.record_as_kazoo(chosen());
    let outcome = world.outcome(&lost.id).await?;
    ensure!(
        outcome["Outcome"] == "parked" && outcome["Cause"] == "shared_name",
        "{outcome:#}"
    );
    world.state(&first.id(), "lost", SOON).await?;
    ensure!(!is_fetched(&world, &lost), "the file was asked for");
    ensure!(world.couch.get(&world.modb(&lost.id), &lost.id).await?.is_none());
    second.hangup("NORMAL_CLEARING").await;
    forget_documents(&world, &lost).await?;
    media_mgr.stop().await?;
    world.finish().await
}

async fn a_missing_recorder_is_reported_within_a_minute(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let media_mgr = MediaMgr::start(&world.kazoo, &world.couch, of_an_endpoint()).await?;
    let worker = watching(&world, "watch", "0").await?;
    worker.counts("kz_record_call_kazoo_recorder_absent 0").await?;
    let row = async || {
        let output = world
            .command_with(&["check", "--json"], &[("ADOPT__MODE", "watch")])
            .await?;
        let rows: Value = serde_json::from_slice(&output.stdout)?;
        let is_it = |row: &&Value| row["name"] == "Kazoo's own recorder";
        let row = rows["rows"].as_array().into_iter().flatten().find(is_it).cloned();
        row.with_context(|| format!("{rows:#}"))
    };
    ensure!(row().await?["level"] == "good");
    media_mgr.stop().await?;
    let absent = |line: &Value| line["event"] == "kazoo_recorder_absent";
    worker
        .logged("the missing recorder", absent, Duration::from_secs(60))
        .await?;
    worker.counts("kz_record_call_kazoo_recorder_absent 1").await?;
    ensure!(row().await?["level"] == "failure");
    // Kazoo 4 has another queue.
    let of_4 = MediaMgr::declare(&world.kazoo, &world.couch, QUEUE_OF_4, of_an_endpoint()).await?;
    of_4.consume().await?;
    let present = |line: &Value| line["event"] == "kazoo_recorder_present";
    let begun = Instant::now();
    while worker.lines().iter().filter(|line| present(line)).count() < 2 {
        ensure!(begun.elapsed() < SOON, "Kazoo 4's recorder is not seen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(row().await?["level"] == "good");
    of_4.stop().await?;
    world.finish().await
}

async fn a_recording_of_kazoo_4_is_watched_by_the_place_of_its_name(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = watching(&world, "rescue", "3").await?;
    let stops = |mistreat| vec![EventFault::new("RECORD_STOP", mistreat)];
    world.kazoo.faults(|faults| faults.events = stops(Mistreat::Drop));
    let calls = many(&world, 3).await?;
    hang_up(&calls).await;
    let [(_, stored), (_, bare), (_, lost)] = &calls[..] else {
        unreachable!()
    };
    // As their processes left them.
    let modb = world.modb(&stored.id);
    for (recording, audio) in [(stored, true), (bare, false)] {
        world.ended(recording).await?;
        let attachments = json!({recording.name.clone(): {"content_type": "audio/mpeg", "data": "b3RoZXI="}});
        let document = json!({
            "_id": recording.id, "pvt_type": "call_recording", "source_type": "kzc_recording", "name": recording.name,
            "_attachments": if audio { attachments } else { json!({}) },
        });
        world.couch.create(&modb, &recording.id, &document).await?;
    }
    world.kazoo.faults(|faults| faults.events.clear());
    for ((call, recording), position) in calls.iter().zip(0..) {
        let newer = [("newer.mp3", "202611-newer"), ("newest.mp3", "202611-newest")];
        let body = told(&world, call, recording)?;
        let body = in_the_form_of_4(&body, &newer[..position]);
        let key = format!("call.RECORD_STOP.{}", call.id());
        world.kazoo.publish("callevt", &key, body);
    }
    looked(&worker, "first", "stored", 1).await?;
    // A callflow gave its name to a later recording too, which is stored as well.
    let later = format!("{}-later", stored.id);
    let document = json!({
        "_id": later, "pvt_type": "call_recording", "source_type": "kzc_recording", "name": stored.name,
        "_attachments": {stored.name.clone(): {"content_type": "audio/mpeg", "data": "b3RoZXI="}},
    });
    world.couch.create(&modb, &later, &document).await?;
    let (call, _) = &calls[0];
    let body = in_the_form_of_4(&told(&world, call, stored)?, &[(&stored.name, &later)]);
    let key = format!("call.RECORD_STOP.{}", call.id());
    world.kazoo.publish("callevt", &key, body);
    looked(&worker, "first", "stored", 2).await?;
    let outcome = world.outcome(&bare.id).await?;
    ensure!(outcome["Outcome"] == "stored", "{outcome:#}");
    is_whole(&world, bare).await?;
    // Its URL is in no event of Kazoo 4.
    let outcome = world.outcome(&lost.id).await?;
    ensure!(
        outcome["Outcome"] == "parked" && outcome["Cause"] == "settings_lost",
        "{outcome:#}"
    );
    ensure!(!is_fetched(&world, lost) && !is_fetched(&world, stored));
    forget_documents(&world, stored).await?;
    world.finish().await
}

/// media_mgr fails on such an end.
async fn an_end_that_names_no_account_is_reported(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = watching(&world, "rescue", "0").await?;
    let lost = EventFault::new("RECORD_STOP", Mistreat::Drop);
    world.kazoo.faults(|faults| faults.events = vec![lost]);
    let (call, recording) = recorded(&world, of_an_endpoint()).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.ended(&recording).await?;
    let mut body = told(&world, &call, &recording)?;
    if let Some(Value::Object(variables)) = body.get_mut("Custom-Channel-Vars") {
        variables.remove("Account-ID");
    }
    world
        .kazoo
        .publish("callevt", &format!("call.RECORD_STOP.{}", call.id()), body);
    looked(&worker, "first", "missing", 1).await?;
    let entry = world.state(&call.id(), "watched", SOON).await?;
    // By Kazoo's settings: five tries of five minutes in each of six rounds, and the waits between.
    let watched = entry["facts"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|fact| fact["fact"] == "watched");
    let watched = watched.with_context(|| format!("{entry:#}"))?;
    let patience = watched["of"]["due"]
        .as_i64()
        .zip(watched["at"].as_i64())
        .map(|(due, at)| due - at);
    let seconds = patience.context("no time")? / 1_000_000;
    ensure!((12_299..=12_301).contains(&seconds), "{seconds}");
    world.finish().await
}

/// The end that a fault kept back, from the recording's start.
fn told(world: &World<'_>, call: &Call, recording: &Recording) -> anyhow::Result<Object> {
    let is_it = |body: &Object| body.get("Recording").is_some_and(|told| told["ID"] == recording.id);
    let mut told = world
        .kazoo
        .timeline()
        .into_iter()
        .filter(|entry| entry.name == "RECORD_START");
    let body = told.find_map(|entry| entry.body.filter(|body| is_it(body)));
    let mut body = (*body.context("no RECORD_START")?).clone();
    body.insert("Event-Name".into(), json!("RECORD_STOP"));
    body.insert("Length".into(), json!("1000"));
    body.insert("Call-ID".into(), json!(call.id()));
    Ok(body)
}
