//! Recordings of Kazoo's own recorder, which the worker stores in its place.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};

use crate::ledger::FAST;
use crate::moves;
use crate::places::HERE;
use crate::promises;
use crate::simulator::sim::wire::Object;
use crate::simulator::sim::{Call, CallOptions, EventFault, Mistreat, Observed, Recording, Size, recorder};
use crate::support::http::{Reply, Server};
use crate::support::{SOON, Services, TestResult, Worker, World};
use crate::turns::act;

promises![
    kazoos_own_recordings_are_stored_as_media_mgr_stores_them,
    nothing_is_done_about_kazoos_own_recordings_by_default,
    kazoos_own_recordings_are_left_to_kazoo_while_its_recorder_runs,
    what_kazoos_recorder_has_stored_is_not_stored_again,
    a_document_of_kazoos_recorder_without_audio_is_completed,
    every_bridge_of_kazoos_own_recording_is_kept,
    a_file_that_two_calls_may_share_is_told_and_kept,
    a_lost_end_of_kazoos_own_recording_is_noticed,
    the_url_of_kazoos_own_recording_decides_and_its_password_is_not_told,
    a_leg_on_hold_after_a_transfer_is_no_end_of_kazoos_own_recording,
    a_recording_of_kazoos_that_moved_to_a_leg_that_no_worker_knows_is_stored_once,
    a_stop_of_ours_does_not_end_kazoos_own_recording,
    a_thousand_ends_in_one_second_are_all_stored,
    a_killed_worker_loses_none_of_kazoos_own_recordings,
];

const STORE: (&str, &str) = ("ADOPT__MODE", "store");

/// Settings as Kazoo writes them for an endpoint.
fn of_an_endpoint() -> Value {
    json!({
        "enabled": true, "format": "mp3", "time_limit": 600, "origin": "inbound from onnet to endpoint",
        "endpoint_id": "8307edc8068584cbdd205e7f4c486d1b",
    })
}

/// A call that Kazoo records.
async fn recorded(world: &World<'_>, settings: Value) -> anyhow::Result<(Call, Recording)> {
    let call = world.kazoo.new_call(CallOptions::talking());
    call.record_as_kazoo(settings);
    let recording = call.wait_recording_started(SOON).await?;
    Ok((call, recording))
}

/// A worker that has seen that Kazoo's own recorder does not run.
async fn adopting(world: &World<'_>, more: &[(&str, &str)]) -> anyhow::Result<Worker> {
    let worker = world.worker_with(&[&[STORE], more].concat()).await?;
    worker
        .logged("adopting", |line| line["event"] == "adopting", SOON)
        .await?;
    Ok(worker)
}

/// media_mgr, as far as the broker sees it: the queue, with one consumer.
async fn media_mgr(world: &World<'_>) -> anyhow::Result<Connection> {
    let connection = Connection::connect(&world.setting("AMQP__URI"), ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions {
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare("recordings".into(), options, FieldTable::default())
        .await?;
    let binding = QueueBindOptions::default();
    channel
        .queue_bind(
            "recordings".into(),
            "callevt".into(),
            "call.RECORD_STOP.*".into(),
            binding,
            FieldTable::default(),
        )
        .await?;
    let consuming = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let consumer = channel
        .basic_consume(
            "recordings".into(),
            "media_mgr".into(),
            consuming,
            FieldTable::default(),
        )
        .await?;
    tokio::spawn(consumer.for_each(|_| async {}));
    Ok(connection)
}

/// An event of a recording, as the switch told it.
fn event(world: &World<'_>, name: &str, recording: &Recording) -> anyhow::Result<Object> {
    let is_it = |body: &Object| body.get("Recording").is_some_and(|told| told["ID"] == recording.id);
    let mut told = world.kazoo.timeline().into_iter().filter(|entry| entry.name == name);
    let body = told.find_map(|entry| entry.body.filter(|body| is_it(body)));
    Ok((*body.with_context(|| format!("no {name}"))?).clone())
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

async fn kazoos_own_recordings_are_stored_as_media_mgr_stores_them(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = adopting(&world, &[]).await?;
    let account =
        json!({"enabled": true, "format": "wav", "origin": "inbound from onnet to account", "time_limit": 600});
    let bare = json!({"format": "mp3"});
    for settings in [of_an_endpoint(), account, bare] {
        let (call, recording) = recorded(&world, settings.clone()).await?;
        call.hangup("NORMAL_CLEARING").await;
        let stored = world.stored(&recording).await?;
        let stop = event(&world, "RECORD_STOP", &recording)?;
        let kazoos = recorder::document(&stop, &settings, &world.modb(&recording.id));
        ensure!(
            common(&stored.document) == kazoos,
            "{:#}\n{kazoos:#}",
            common(&stored.document)
        );
        ensure!(stored.attachment == recording.name, "{}", stored.attachment);
        let outcome = world.outcome(&recording.id).await?;
        ensure!(outcome["Recorder"] == "kz_media_recording", "{outcome:#}");
        let listed = world.couch.listed(&world.modb(&recording.id)).await?;
        ensure!(listed.contains(&recording.id), "Crossbar does not list it: {listed:?}");
        world.state(&call.id(), "stored", SOON).await?;
        let (good, story) = world.command(&["explain", &recording.id]).await?;
        ensure!(good && story.contains("Kazoo's own recording"), "{story}");
    }
    worker
        .counts("kz_record_call_adopted_events_total{result=\"adopted\"} 6")
        .await?;
    world.finish().await
}

async fn nothing_is_done_about_kazoos_own_recordings_by_default(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker().await?;
    let (call, kazoos) = recorded(&world, of_an_endpoint()).await?;
    call.execute(json!({})).await?.continued(SOON).await?;
    let own = call.wait_recordings(2, SOON).await?.pop().context("no second")?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&own).await?;
    // The end of Kazoo's own came before, on the same queue.
    let entries = world.entries().await?;
    ensure!(entries.iter().all(|entry| entry["media_id"] == own.id), "{entries:#?}");
    let kept = world.kazoo.recordings().into_iter().find(|r| r.id == kazoos.id);
    ensure!(kept.is_some_and(|kept| !kept.deleted), "its file was asked for");
    ensure!(world.couch.get(&world.modb(&kazoos.id), &kazoos.id).await?.is_none());
    let metrics = worker.metrics().await?;
    ensure!(!metrics.contains("kz_record_call_adopting "), "{metrics}");
    world.finish().await
}

/// Both would store. When Kazoo's own recorder ends, the worker begins by itself.
async fn kazoos_own_recordings_are_left_to_kazoo_while_its_recorder_runs(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let media_mgr = media_mgr(&world).await?;
    let worker = world.worker_with(&[STORE]).await?;
    let refused = |line: &Value| line["event"] == "adopt_refused";
    let line = worker.logged("the refusal", refused, SOON).await?;
    ensure!(
        line["why"].as_str().is_some_and(|why| why.contains("1 consumers")),
        "{line}"
    );
    worker.counts("kz_record_call_kazoo_recorder_consumers 1").await?;
    let (call, left) = recorded(&world, of_an_endpoint()).await?;
    call.hangup("NORMAL_CLEARING").await;
    // Its start, and its end.
    worker
        .counts("kz_record_call_adopted_events_total{result=\"left\"} 2")
        .await?;
    ensure!(world.entries().await?.is_empty(), "the worker took it");
    let output = world.command_with(&["check", "--json"], &[STORE]).await?;
    let rows: Value = serde_json::from_slice(&output.stdout)?;
    let fails = |row: &&Value| row["name"] == "Kazoo's own recorder" && row["level"] == "failure";
    let row = rows["rows"].as_array().into_iter().flatten().find(fails);
    ensure!(row.is_some(), "{rows:#}");
    // An end that comes just when Kazoo's own recorder has gone is stored, too.
    let (call, stored) = recorded(&world, of_an_endpoint()).await?;
    media_mgr.close(200, "done".into()).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&stored).await?;
    worker.counts("kz_record_call_adopting 1").await?;
    ensure!(world.couch.get(&world.modb(&left.id), &left.id).await?.is_none());
    world.finish().await
}

async fn what_kazoos_recorder_has_stored_is_not_stored_again(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = adopting(&world, &[]).await?;
    let (call, recording) = recorded(&world, of_an_endpoint()).await?;
    // media_mgr was started a moment ago: it has stored, and the worker has not looked since.
    let modb = world.modb(&recording.id);
    let document = json!({
        "_id": recording.id, "pvt_type": "call_recording", "source_type": "media_recording", "name": recording.name,
        "_attachments": {recording.name.clone(): {"content_type": "audio/mpeg", "data": "b3RoZXI="}},
    });
    world.couch.create(&modb, &recording.id, &document).await?;
    let before = world.couch.get(&modb, &recording.id).await?.context("no document")?;
    call.hangup("NORMAL_CLEARING").await;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "discarded" && outcome["Cause"] == "stored_by_kazoo",
        "{outcome:#}"
    );
    let after = world.couch.get(&modb, &recording.id).await?.context("no document")?;
    ensure!(before == after, "{after:#}");
    ensure!(world.couch.listed(&modb).await?.len() <= 1, "a second document");
    let kept = world.kazoo.recordings().into_iter().find(|r| r.id == recording.id);
    ensure!(kept.is_some_and(|kept| !kept.deleted), "Kazoo's file was let go");
    world.couch.delete_database(&modb).await?;
    world.couch.create_database(&modb).await?;
    world.finish().await
}

/// media_mgr died between the document and the audio.
async fn a_document_of_kazoos_recorder_without_audio_is_completed(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = adopting(&world, &[]).await?;
    let settings = of_an_endpoint();
    let (call, recording) = recorded(&world, settings.clone()).await?;
    let modb = world.modb(&recording.id);
    // As media_mgr writes it; here before the end, so that the worker surely finds it.
    let mut stop = event(&world, "RECORD_START", &recording)?;
    stop.insert("Length".into(), json!("1000"));
    let mut document = recorder::document(&stop, &settings, &modb);
    // In this month, or Crossbar does not list it.
    let created = stop["Timestamp"].clone();
    document["pvt_created"] = created.clone();
    document["pvt_modified"] = created;
    document["pvt_node"] = json!("kazoo_apps@kz1.example.com");
    document["user_note"] = json!("kept");
    world.couch.create(&modb, &recording.id, &document).await?;
    call.hangup("NORMAL_CLEARING").await;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "stored" && outcome["Media-ID"] == recording.id,
        "{outcome:#}"
    );
    let whole = world.ended(&recording).await?;
    let stored = world.couch.stored(&modb, &recording.id, &whole.audio).await?;
    ensure!(stored.difference.is_none(), "{:?}", stored.difference);
    ensure!(stored.document["user_note"] == "kept", "{:#}", stored.document);
    ensure!(stored.document["pvt_created"] == document["pvt_created"]);
    let listed = world.couch.listed(&modb).await?;
    ensure!(listed == [recording.id.clone()], "{listed:?}");
    world.released(&recording).await?;
    world.couch.delete_database(&modb).await?;
    world.couch.create_database(&modb).await?;
    world.finish().await
}

async fn every_bridge_of_kazoos_own_recording_is_kept(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = adopting(&world, &[]).await?;
    let call = world.kazoo.new_call(CallOptions::ringing());
    call.record_as_kazoo_at_bridges(json!({"format": "mp3", "record_on_bridge": true, "origin": "callflow : desk"}));
    call.bridge();
    let first = call.wait_recording_started(SOON).await?;
    call.unbridge();
    world.kazoo.end_recordings(&call).await;
    world.stored(&first).await?;
    call.set_size(Size::Millis(7_000));
    call.bridge();
    let second = call.wait_recordings(2, SOON).await?.pop().context("no second")?;
    ensure!(second.path == first.path && second.id == first.id);
    world.kazoo.end_recordings(&call).await;
    let second = call.wait_recording_ended(SOON).await?;
    let continues = |m: &Observed| m.category == "recording" && m.header("Continues") == first.id;
    let continued = world.kazoo.tap().wait(continues, SOON).await?;
    ensure!(continued.header("Outcome") == "stored", "{continued:?}");
    let id = continued.header("Media-ID").to_owned();
    let stored = world.couch.stored(&world.modb(&id), &id, &second.audio).await?;
    ensure!(stored.difference.is_none(), "{:?}", stored.difference);
    ensure!(
        stored.document["source_type"] == "media_recording",
        "{:#}",
        stored.document
    );
    call.hangup("NORMAL_CLEARING").await;
    world.finish().await
}

async fn a_file_that_two_calls_may_share_is_told_and_kept(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = adopting(&world, &[]).await?;
    let chosen = |name: &str| json!({"format": "mp3", "media_name": name, "origin": "callflow : desk"});
    let (call, recording) = recorded(&world, chosen("front-desk.mp3")).await?;
    call.hangup("NORMAL_CLEARING").await;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "parked" && outcome["Cause"] == "shared_name",
        "{outcome:#}"
    );
    // It is safe, and the next call of that name begins a file of its own.
    world.released(&recording).await?;
    let (next, second) = recorded(&world, chosen("front-desk.mp3")).await?;
    next.hangup("NORMAL_CLEARING").await;
    let parked = world.outcome(&second.id).await?;
    ensure!(parked["Cause"] == "shared_name", "{parked:#}");
    let (good, said) = world.command(&["retry", &recording.id]).await?;
    ensure!(good, "{said}");
    let stored = |m: &Observed| m.name == "stored" && m.header("Media-ID") == recording.id;
    world.kazoo.tap().wait(stored, SOON).await?;
    let whole = world.kazoo.recordings().into_iter().find(|r| r.id == recording.id);
    let whole = whole.context("no recording")?;
    let stored = world
        .couch
        .stored(&world.modb(&recording.id), &recording.id, &whole.audio)
        .await?;
    ensure!(stored.difference.is_none(), "{:?}", stored.difference);
    drop(worker);
    // Where the operator accepts it, it is stored at once.
    let _worker = adopting(&world, &[("ADOPT__SHARED_NAMES", "true")]).await?;
    let (call, recording) = recorded(&world, chosen("other-desk.mp3")).await?;
    call.hangup("NORMAL_CLEARING").await;
    let stored = world.stored(&recording).await?;
    ensure!(stored.document["name"] == "other-desk.mp3", "{:#}", stored.document);
    world.finish().await
}

async fn a_lost_end_of_kazoos_own_recording_is_noticed(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = adopting(&world, &FAST).await?;
    let (call, recording) = recorded(&world, of_an_endpoint()).await?;
    world
        .kazoo
        .faults(|faults| faults.events = vec![EventFault::new("RECORD_STOP", Mistreat::Drop)]);
    call.hangup("NORMAL_CLEARING").await;
    let stored = world.stored(&recording).await?;
    ensure!(stored.document["endpoint_id"] == "8307edc8068584cbdd205e7f4c486d1b");
    let outcome = world.outcome(&recording.id).await?;
    ensure!(outcome["End-Presumed"] == true, "{outcome:#}");
    world.finish().await
}

async fn the_url_of_kazoos_own_recording_decides_and_its_password_is_not_told(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let server = Server::with(move |_, _, _| Reply::Status(200)).await;
    let worker = adopting(&world, &[HERE]).await?;
    let url = server.url("/in").replacen("http://", "http://user:hunter2@", 1);
    let (call, recording) = recorded(
        &world,
        json!({"format": "mp3", "url": url, "origin": "callflow : desk"}),
    )
    .await?;
    call.hangup("NORMAL_CLEARING").await;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "delivered" && outcome["Destination"] == "url",
        "{outcome:#}"
    );
    let document = world.couch.get(&world.modb(&recording.id), &recording.id).await?;
    let document = document.context("no document")?;
    ensure!(document["source_type"] == "media_recording", "{document:#}");
    ensure!(document["pvt_attachments"][&recording.name].is_object(), "{document:#}");
    world.state(&call.id(), "delivered", SOON).await?;
    let (good, story) = world.command(&["explain", &recording.id]).await?;
    ensure!(good, "{story}");
    // Kazoo fetches the audio by the private field.
    for said in [worker.log(), story, document["url"].to_string(), outcome.to_string()] {
        ensure!(!said.contains("hunter2"), "a password is told: {said}");
    }
    world.finish().await
}

/// As for our own: the leg that carries the recording is on hold, and its file does not grow.
async fn a_leg_on_hold_after_a_transfer_is_no_end_of_kazoos_own_recording(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = adopting(&world, &moves::FAST).await?;
    let call = world.kazoo.new_call(moves::lasting());
    call.record_as_kazoo(json!({"format": "wav", "origin": "callflow : desk"}));
    let recording = call.wait_recording_started(SOON).await?;
    moves::written(&recording, 8_192).await?;
    let onward = call.refer_away().await?;
    onward.hold();
    moves::looked(&world, &worker, &call, 12).await?;
    let entry = world.state(&call.id(), "recording", SOON).await?;
    ensure!(!entry.to_string().contains("presumed_ended"), "{entry:#}");
    onward.unhold();
    onward.hangup("NORMAL_CLEARING").await;
    let stored = world.stored(&recording).await?;
    // As Kazoo's own recorder says it.
    ensure!(
        stored.document["call_id"] == json!(onward.id()),
        "{:#}",
        stored.document
    );
    world.finish().await
}

/// Its start came to a worker that is dead, and its end, on another leg, comes to another worker.
async fn a_recording_of_kazoos_that_moved_to_a_leg_that_no_worker_knows_is_stored_once(
    services: Arc<Services>,
) -> TestResult {
    let world = World::new(&services).await?;
    let mut first = adopting(&world, &moves::FAST).await?;
    let call = world.kazoo.new_call(moves::lasting());
    call.record_as_kazoo(json!({"format": "wav", "origin": "callflow : desk"}));
    let recording = call.wait_recording_started(SOON).await?;
    world.state(&call.id(), "recording", SOON).await?;
    first.kill().await?;
    let onward = call.refer_away().await?;
    onward.hangup("NORMAL_CLEARING").await;
    let _second = adopting(&world, &moves::FAST).await?;
    world.stored(&recording).await?;
    // What the first worker noted ends too.
    let begun = Instant::now();
    loop {
        let entries = world.entries().await?;
        if entries.iter().all(|entry| entry["state"] == "stored") {
            break;
        }
        ensure!(begun.elapsed() < SOON, "{entries:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let listed = world.couch.listed(&world.modb(&recording.id)).await?;
    ensure!(listed == [recording.id.clone()], "{listed:?}");
    world.finish().await
}

async fn a_stop_of_ours_does_not_end_kazoos_own_recording(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = adopting(&world, &[]).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let own = call.wait_recording_started(SOON).await?;
    // Kazoo's is the newer one.
    call.record_as_kazoo(of_an_endpoint());
    let kazoos = call.wait_recordings(2, SOON).await?.pop().context("no second")?;
    let known = |entry: &Value| entry["media_id"] == kazoos.id;
    let begun = Instant::now();
    while !world.entries().await?.iter().any(known) {
        ensure!(begun.elapsed() < SOON, "its start was not noted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    act(&call, json!({"action": "stop"})).await?;
    world.stored(&own).await?;
    let running = world.kazoo.recordings().into_iter().find(|r| r.id == kazoos.id);
    ensure!(
        running.is_some_and(|running| !running.ended()),
        "Kazoo's own was stopped"
    );
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&kazoos).await?;
    world.finish().await
}

/// Kazoo's own queue keeps a hundred of them.
async fn a_thousand_ends_in_one_second_are_all_stored(services: Arc<Services>) -> TestResult {
    const MANY: usize = 1_000;
    let world = World::new(&services).await?;
    // As by default: all of them are on their way at once, on a machine with few cores, and the last ones wait for their switch until then.
    let settings = [
        ("LEDGER__LEASE_S", "300"),
        ("INGEST__DELIVERY_TIMEOUT_S", "120"),
        ("FLOW__RETRY_MS", "10000,20000,40000,80000,160000,300000"),
        ("FLOW__MAX_ATTEMPTS", "28"),
    ];
    let own = |media: &mut Value| {
        if let Some(section) = media["default"]["call_recording"].as_object_mut() {
            section.remove("storage_retry_times");
        }
    };
    world.couch.edit("system_config", "media", own).await?;
    let worker = adopting(&world, &settings).await?;
    let kazoo = &world.kazoo;
    let begin = async |_| {
        let call = kazoo.new_call(CallOptions::talking().size(Size::Bytes(2_000)));
        call.record_as_kazoo(of_an_endpoint());
        let recording = call.wait_recording_started(Duration::from_secs(120)).await?;
        anyhow::Ok((call, recording))
    };
    let mut begun = futures_util::stream::iter((0..MANY).map(begin)).buffer_unordered(50);
    let mut calls = Vec::new();
    while let Some(call) = begun.next().await {
        calls.push(call?);
    }
    drop(begun);
    let at = Instant::now();
    futures_util::future::join_all(calls.iter().map(|(call, _)| call.hangup("NORMAL_CLEARING"))).await;
    println!("{MANY} recordings ended within {:?}", at.elapsed());
    for (_, recording) in &calls {
        let outcome = world.outcome_within(&recording.id, Duration::from_secs(240)).await?;
        if outcome["Outcome"] != "stored" {
            let (_, story) = world.command(&["explain", &recording.id]).await?;
            anyhow::bail!("{outcome:#}\n{story}\n{}", worker.tail());
        }
    }
    println!("all stored {:?} after the first end", at.elapsed());
    let (_, first) = &calls[0];
    let ids = world.couch.ids(&world.modb(&first.id)).await?;
    for (_, recording) in &calls {
        ensure!(ids.contains(&recording.id), "{} is not stored", recording.id);
    }
    let recordings = ids.iter().filter(|id| !id.starts_with('_')).count();
    ensure!(recordings == MANY, "{recordings} documents");
    world.finish().await
}

async fn a_killed_worker_loses_none_of_kazoos_own_recordings(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let mut worker = adopting(&world, &[]).await?;
    let mut calls = Vec::new();
    for _ in 0..10 {
        calls.push(recorded(&world, of_an_endpoint()).await?);
    }
    world.kazoo.faults(|faults| faults.bandwidth = Some(20_000));
    futures_util::future::join_all(calls.iter().map(|(call, _)| call.hangup("NORMAL_CLEARING"))).await;
    world.kazoo.wait_upload(0, 1, SOON).await?;
    worker.kill().await?;
    world.kazoo.faults(|faults| faults.bandwidth = None);
    let _worker = adopting(&world, &[]).await?;
    for (_, recording) in &calls {
        world.stored(recording).await?;
    }
    let (_, first) = &calls[0];
    let listed = world.couch.listed(&world.modb(&first.id)).await?;
    ensure!(listed.len() == calls.len(), "{listed:?}");
    world.finish().await
}
