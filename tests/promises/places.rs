//! Every place that a recording can go to, the whole way: ordered by an action, collected from the switch, delivered, documented, told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::put;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::promises;
use crate::simulator::sim::couch::Couch;
use crate::simulator::sim::{CallOptions, Observed, Recording};
use crate::support::http::{Reply, Server};
use crate::support::{SOON, Services, TestResult, World, schemas};

promises![
    a_users_url_gets_the_audio_and_the_account_its_document,
    two_recordings_with_one_id_are_told_apart_by_a_users_server,
    recordings_of_one_call_do_not_replace_each_other_at_a_url,
    a_signed_url_that_every_call_has_keeps_the_audio_of_the_first,
    a_signed_url_whose_time_is_over_is_parked_at_once_with_its_audio,
    parked_audio_can_be_fetched_whole_from_the_hold,
    slow_servers_of_users_leave_a_switchs_other_recordings_their_places,
    a_url_that_is_down_is_delivered_when_it_is_back_though_the_switch_lost_its_file,
    a_url_that_cannot_be_served_is_parked_with_its_audio,
    a_url_into_our_own_network_is_never_connected_to,
    a_third_party_gets_document_and_audio_and_nobody_else_is_told,
    a_third_party_that_is_set_while_running_takes_the_next_recording,
    a_storage_plan_goes_through_the_store_proxy,
    a_storage_plan_without_a_proxy_is_parked_and_moved_on,
    a_storage_plan_that_is_removed_leaves_a_document_that_tells_the_truth,
    a_missing_monthly_database_is_created_and_told,
    an_account_that_does_not_exist_is_a_cause,
];

/// The test's own server is on this host.
pub const HERE: (&str, &str) = ("DESTINATION__ALLOW", "127.0.0.1");

/// Records a call whose action has this data, to its end.
pub async fn record(world: &World<'_>, data: Value) -> anyhow::Result<Recording> {
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(data).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.ended(&recording).await
}

pub async fn media(world: &World<'_>, key: &str, value: Value) -> anyhow::Result<()> {
    let change = |doc: &mut Value| doc["default"][key] = value;
    world.couch.edit("system_config", "media", change).await
}

pub async fn document(world: &World<'_>, id: &str) -> anyhow::Result<Value> {
    let found = world.couch.get(&world.modb(id), id).await?;
    let document = found.with_context(|| format!("{id} is not there"))?;
    schemas::check("call_recording", &document)?;
    Ok(document)
}

pub fn changes(world: &World<'_>, id: &str) -> Vec<String> {
    let all = world.kazoo.tap().messages();
    let ours = all
        .iter()
        .filter(|m| m.header("ID") == id && m.category == "configuration");
    ours.map(|m| m.name.clone()).collect()
}

async fn a_users_url_gets_the_audio_and_the_account_its_document(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker_with(&[HERE]).await?;
    let server = Server::always(Reply::Status(201)).await;
    let recording = record(&world, json!({"url": server.url("/in?customer=7"), "method": "post"})).await?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "delivered" && outcome["Destination"] == "url",
        "{outcome:#}"
    );
    let received = server.received();
    ensure!(received.len() == 1, "{received:?}");
    let upload = &received[0];
    ensure!(upload.method == "POST", "{upload:?}");
    ensure!(
        upload.digests.couch() == Some(format!("md5-{}", recording.audio.md5())),
        "the audio is not the switch's"
    );
    ensure!(upload.header("idempotency-key") == recording.id, "{upload:?}");
    ensure!(
        upload.path.starts_with("/in") && upload.path.contains("customer=7"),
        "{}",
        upload.path
    );
    let document = document(&world, &recording.id).await?;
    let stubs = document["pvt_attachments"].as_object().context("no attachments")?;
    ensure!(stubs.len() == 1, "{document:#}");
    let url = stubs.values().next().context("none")?["handler"]["kz_att_http"]["url"].clone();
    ensure!(
        url.as_str().is_some_and(|url| url.starts_with(&server.url("/in"))),
        "{url}"
    );
    ensure!(
        document["pvt_recording"]["state"] == "complete" && document["_attachments"].is_null(),
        "{document:#}"
    );
    let told = changes(&world, &recording.id);
    ensure!(told == ["doc_created", "doc_edited"], "{told:?}");
    world.released(&recording).await?;
    world.finish().await
}

async fn two_recordings_with_one_id_are_told_apart_by_a_users_server(services: Arc<Services>) -> TestResult {
    let server = Server::always(Reply::Status(201)).await;
    let id = "always-the-same";
    // Each in a world of its own, as another account's.
    for n in 1..=2 {
        let world = World::new(&services).await?;
        let _worker = world.worker_with(&[HERE]).await?;
        let media_id = format!("{}-{id}", world.month());
        let recording = record(&world, json!({"url": server.url("/in"), "media_id": media_id})).await?;
        ensure!(recording.id == media_id, "{}", recording.id);
        world.outcome(&recording.id).await?;
        ensure!(server.received().len() == n, "{:?}", server.received());
        world.finish().await?;
    }
    let received = server.received();
    let keys: Vec<&str> = received.iter().map(|upload| upload.header("idempotency-key")).collect();
    ensure!(
        keys[0] != keys[1] && keys.iter().all(|key| key.contains(id)),
        "{keys:?}"
    );
    Ok(())
}

/// A server that stores by path, as a WebDAV server or a bucket does. And a signed URL, which names one object.
async fn recordings_of_one_call_do_not_replace_each_other_at_a_url(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker_with(&[HERE]).await?;
    let server = Server::always(Reply::Status(201)).await;
    for (path, second) in [("/in", "delivered"), ("/object?X-Amz-Signature=00ff", "parked")] {
        let call = world.kazoo.new_call(CallOptions::talking());
        let before = server.received().len();
        for (nth, outcome) in ["delivered", second].into_iter().enumerate() {
            let run = call.execute(json!({"url": server.url(path), "format": "wav"})).await?;
            run.continued(SOON).await?;
            let recording = call.wait_recordings(nth + 1, SOON).await?.swap_remove(nth);
            call.execute(json!({"action": "stop"})).await?.continued(SOON).await?;
            let told = world.outcome(&recording.id).await?;
            ensure!(told["Outcome"] == outcome, "{told:#}");
        }
        let all = server.received();
        let paths: Vec<&str> = all[before..]
            .iter()
            .filter_map(|it| it.path.split('?').next())
            .collect();
        let named = format!("call_recording_{}", call.id());
        match second {
            "delivered" => {
                ensure!(paths.len() == 2 && paths[0] == format!("/in/{named}.wav"), "{paths:?}");
                ensure!(
                    paths[1] != paths[0] && paths[1].starts_with(&format!("/in/{named}-")),
                    "{paths:?}"
                );
            }
            _ => ensure!(paths == ["/object"], "{paths:?}"),
        }
        call.hangup("NORMAL_CLEARING").await;
    }
    world.finish().await
}

/// A flow that has a signed URL for all its calls; and a node of CouchDB that came back lists no earlier recording of the call.
async fn a_signed_url_that_every_call_has_keeps_the_audio_of_the_first(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker_with(&[HERE]).await?;
    let server = Server::always(Reply::Status(201)).await;
    let url = server.url("/object?sv=2024-11-04&sr=b&sig=a%2Bb%3D");
    for outcome in ["delivered", "parked"] {
        let recording = record(&world, json!({"url": url})).await?;
        let told = world.outcome(&recording.id).await?;
        ensure!(told["Outcome"] == outcome, "{told:#}");
    }
    ensure!(server.received().len() == 1, "{:?}", server.received().len());
    // Another parameter of that name signs nothing: the server gets a file of each call.
    let url = server.url("/in?sig=token");
    for _ in 0..2 {
        let recording = record(&world, json!({"url": url})).await?;
        let told = world.outcome(&recording.id).await?;
        ensure!(told["Outcome"] == "delivered", "{told:#}");
    }
    let call = world.kazoo.new_call(CallOptions::talking());
    let mut names = Vec::new();
    for nth in 0..2 {
        let before = server.received().len();
        call.execute(json!({"url": server.url("/in"), "format": "wav"}))
            .await?
            .continued(SOON)
            .await?;
        let recording = call.wait_recordings(nth + 1, SOON).await?.swap_remove(nth);
        call.execute(json!({"action": "stop"})).await?.continued(SOON).await?;
        let told = world.outcome(&recording.id).await?;
        ensure!(told["Outcome"] == "delivered", "{told:#}");
        names.extend(server.received()[before..].iter().map(|it| it.path.clone()));
        // The last thing that is written of it: then it is not in the list of the call any more.
        let is_told = |entry: &Value| {
            let mut facts = entry["facts"].as_array().into_iter().flatten();
            facts.any(|fact| fact["fact"] == "announced" && fact["of"]["outcome"].is_string())
        };
        let begun = std::time::Instant::now();
        let entry = loop {
            match world.entry(&call.id()).await?.filter(is_told) {
                Some(entry) => break entry,
                None => ensure!(begun.elapsed() < SOON, "not told"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let id = entry["_id"].as_str().context("an id")?;
        let month = format!("kz_record_call-{}", world.month());
        world
            .couch
            .edit(&month, id, |entry| entry["_deleted"] = json!(true))
            .await?;
    }
    let files: Vec<&str> = names.iter().filter_map(|path| path.split('?').next()).collect();
    ensure!(files.len() == 2 && files[0] != files[1], "{files:?}");
    call.hangup("NORMAL_CLEARING").await;
    world.finish().await
}

async fn parked_audio_can_be_fetched_whole_from_the_hold(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker_with(&[HERE]).await?;
    let server = Server::always(Reply::Status(413)).await;
    let recording = record(&world, json!({"url": server.url("/in?token=secret"), "format": "wav"})).await?;
    let told = world.outcome(&recording.id).await?;
    ensure!(told["Outcome"] == "parked" && told["Cause"] == "refused", "{told:#}");
    world.state(&recording.call_id, "parked", SOON).await?;
    let (_, story) = world.command(&["explain", &recording.id]).await?;
    ensure!(
        story.contains("the last answer: ") && story.contains("answered 413"),
        "{story}"
    );
    ensure!(story.contains("token=***") && !story.contains("secret"), "{story}");
    let folder = std::env::temp_dir().join(format!("kz-record-call-fetched-{}", recording.id));
    std::fs::create_dir_all(&folder)?;
    let file = folder.join("audio.wav");
    let output = file.display().to_string();
    let fetch = ["fetch", &recording.id, "--output", &output];
    let (good, said) = world.command(&fetch).await?;
    ensure!(good && said.contains("complete"), "{said}");
    let whole = world.ended(&recording).await?;
    ensure!(std::fs::read(&file)?.len() as u64 == whole.audio.len(), "{said}");
    // Nothing is overwritten.
    let (good, said) = world.command(&fetch).await?;
    ensure!(!good && said.contains("cannot be created"), "{said}");
    // What is stored is not in the hold, and the command says where it is.
    let stored = record(&world, json!({})).await?;
    world.stored(&stored).await?;
    world.state(&stored.call_id, "stored", SOON).await?;
    let (good, said) = world
        .command(&["fetch", &stored.id, "--output", &format!("{output}.2")])
        .await?;
    ensure!(!good && said.contains("monthly database"), "{said}");
    std::fs::remove_dir_all(&folder)?;
    world.finish().await
}

async fn slow_servers_of_users_leave_a_switchs_other_recordings_their_places(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let wait = ("DESTINATION__SWITCH_WAITS_MS", "4000");
    let pause = ("DESTINATION__FIRST_PAUSE_MS", "60000");
    let told = ("INGEST__DELIVERY_TIMEOUT_S", "50");
    let lease = ("LEDGER__LEASE_S", "60");
    let worker = world.worker_with(&[HERE, wait, pause, told, lease]).await?;
    let mut slow = Vec::new();
    for _ in 0..4 {
        slow.push(Server::always(Reply::Never).await);
    }
    // As many as a switch has places, each to a host of its own.
    let mut calls = Vec::new();
    for server in &slow {
        let call = world.kazoo.new_call(CallOptions::talking());
        call.execute(json!({"url": server.url("/in")}))
            .await?
            .continued(SOON)
            .await?;
        calls.push((call.wait_recording_started(SOON).await?, call));
    }
    for (_, call) in &calls {
        call.hangup("NORMAL_CLEARING").await;
    }
    let asked = std::time::Instant::now();
    while !slow.iter().any(|server| !server.received().is_empty()) {
        ensure!(
            asked.elapsed() < SOON,
            "no server of a user was asked: {}",
            worker.tail()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let begun = std::time::Instant::now();
    let recording = record(&world, json!({})).await?;
    world.outcome(&recording.id).await?;
    // Without a share of its own it would wait for ingest.delivery_timeout_s.
    ensure!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    // The audio that nobody takes is off the switch, in the hold.
    for (recording, call) in &calls {
        world.state(&call.id(), "held", Duration::from_secs(60)).await?;
        // The ledger knows before the switch is told.
        let held = std::time::Instant::now();
        while recording.path.exists() {
            ensure!(
                held.elapsed() < SOON,
                "{} is left: {}",
                recording.path.display(),
                worker.tail()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    drop(worker);
    world.finish().await
}

async fn a_url_that_is_down_is_delivered_when_it_is_back_though_the_switch_lost_its_file(
    services: Arc<Services>,
) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world
        .worker_with(&[
            HERE,
            ("FLOW__MAX_ATTEMPTS", "28"),
            ("DESTINATION__FIRST_PAUSE_MS", "200"),
        ])
        .await?;
    media(&world, "call_recording", json!({"storage_retry_times": 28})).await?;
    let up = Arc::new(AtomicBool::new(false));
    let is_up = Arc::clone(&up);
    let server = Server::with(move |_, _, _| Reply::Status(if is_up.load(Ordering::SeqCst) { 200 } else { 503 })).await;
    let mut recordings = Vec::new();
    for n in 0..3 {
        let recording = record(&world, json!({"url": server.url(&format!("/{n}"))})).await?;
        // The switch is told to delete its file once the audio is in the hold.
        let path = recording.path.clone();
        let deleted = move |s: &crate::simulator::sim::State| {
            let file = s.recordings().iter().find(|r| r.path == path);
            file.filter(|file| file.deleted).map(drop)
        };
        world.kazoo.wait_for("the file to be deleted", SOON, deleted).await?;
        let pending = document(&world, &recording.id).await?;
        ensure!(pending["pvt_recording"]["state"] == "pending", "{pending:#}");
        recordings.push(recording);
    }
    up.store(true, Ordering::SeqCst);
    for recording in &recordings {
        let outcome = world.outcome(&recording.id).await?;
        ensure!(outcome["Outcome"] == "delivered", "{outcome:#}");
        let arrived = server.received().iter().any(|upload| {
            upload.header("idempotency-key") == recording.id
                && upload.digests.couch() == Some(format!("md5-{}", recording.audio.md5()))
        });
        ensure!(arrived, "{} never arrived whole", recording.id);
        let document = document(&world, &recording.id).await?;
        ensure!(document["pvt_recording"]["state"] == "complete", "{document:#}");
    }
    world.finish().await
}

async fn a_url_that_cannot_be_served_is_parked_with_its_audio(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    for url in ["s3://example.com/in", "no url at all"] {
        let recording = record(&world, json!({"url": url})).await?;
        let outcome = world.outcome(&recording.id).await?;
        ensure!(
            outcome["Outcome"] == "parked" && outcome["Cause"] == "unusable_url",
            "{outcome:#}"
        );
        let entry = world.state(&recording.call_id, "parked", SOON).await?;
        ensure!(
            entry.to_string().contains("kz_record_call_hold-"),
            "it is not held: {entry:#}"
        );
        let document = marked(&world, &recording.id).await?;
        ensure!(document["pvt_recording"]["cause"] == "unusable_url", "{document:#}");
    }
    world.finish().await
}

async fn a_signed_url_whose_time_is_over_is_parked_at_once_with_its_audio(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker_with(&[HERE]).await?;
    let expired = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>";
    let server = Server::with(move |_, _, _| Reply::Says(403, Vec::new(), expired)).await;
    for (path, asked) in [
        // The URL says so, and the store does.
        ("/a?AWSAccessKeyId=AK&Signature=5ecre7&Expires=1", 0),
        ("/b?X-Amz-Signature=5ecre7", 1),
    ] {
        let recording = record(&world, json!({"url": server.url(path)})).await?;
        let outcome = world.outcome(&recording.id).await?;
        ensure!(
            outcome["Outcome"] == "parked" && outcome["Cause"] == "url_expired",
            "{outcome:#}"
        );
        let entry = world.state(&recording.call_id, "parked", SOON).await?;
        ensure!(
            entry.to_string().contains("kz_record_call_hold-"),
            "not held: {entry:#}"
        );
        let document = marked(&world, &recording.id).await?;
        ensure!(document["pvt_recording"]["cause"] == "url_expired", "{document:#}");
        ensure!(
            document["url"].as_str().is_some_and(|url| !url.contains("5ecre7")),
            "{document:#}"
        );
        ensure!(server.asked() == asked, "{} requests", server.asked());
        let (_, story) = world.command(&["explain", &recording.id]).await?;
        ensure!(!story.contains("5ecre7"), "{story}");
        ensure!(
            asked == 0 || story.contains("answered 403: AccessDenied Request has expired"),
            "{story}"
        );
    }
    world.finish().await
}

/// The document, once it says that its recording rests.
pub async fn marked(world: &World<'_>, id: &str) -> anyhow::Result<Value> {
    let begun = std::time::Instant::now();
    loop {
        let document = document(world, id).await?;
        if document["pvt_recording"]["state"] == "parked" {
            return Ok(document);
        }
        ensure!(begun.elapsed() < SOON, "{document:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn a_url_into_our_own_network_is_never_connected_to(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let server = Server::always(Reply::Status(200)).await;
    let recording = record(&world, json!({"url": server.url("/in")})).await?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "parked" && outcome["Cause"] == "refused",
        "{outcome:#}"
    );
    ensure!(server.asked() == 0, "it was connected to");
    world.finish().await
}

async fn a_third_party_gets_document_and_audio_and_nobody_else_is_told(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let (_proxy, (_, url)) = world.database_proxy().await?;
    // Its database is created there.
    let modb = world.modb(&format!("{}-x", world.month()));
    world.couch.delete_database(&modb).await?;
    media(&world, "third_party_bigcouch_host", json!(url)).await?;
    let _worker = world.worker().await?;
    let recording = record(&world, json!({})).await?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "stored" && outcome["Destination"] == "third_party",
        "{outcome:#}"
    );
    let stored = world.couch.stored(&modb, &recording.id, &recording.audio).await?;
    ensure!(stored.difference.is_none(), "{:?}", stored.difference);
    ensure!(stored.document["pvt_recording"]["destination"] == "third_party");
    let told = changes(&world, &recording.id);
    ensure!(told.is_empty(), "{told:?}");
    world.finish().await
}

async fn a_third_party_that_is_set_while_running_takes_the_next_recording(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let (_proxy, (_, url)) = world.database_proxy().await?;
    let worker = world.worker().await?;
    for nothing in [json!(null), json!(""), json!("undefined")] {
        media(&world, "third_party_bigcouch_host", nothing).await?;
        let recording = record(&world, json!({})).await?;
        world.stored(&recording).await?;
    }
    let reads = |line: &Value| line["message"] == "system_config/media read" && line["third_party"] != "none";
    media(&world, "third_party_bigcouch_host", json!(url)).await?;
    worker.logged("the changed configuration", reads, SOON).await?;
    let recording = record(&world, json!({})).await?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(outcome["Destination"] == "third_party", "{outcome:#}");
    world.finish().await
}

/// Kazoo's store proxy: it takes the audio and writes into the document where it is.
pub async fn store_proxy(couch: Couch, modb: String) -> anyhow::Result<(u16, tokio::task::JoinHandle<()>)> {
    store_proxy_of(couch, modb, false).await
}

/// As `store_proxy`. `stub`: of a plan with that setting, with which the audio becomes an attachment, and nothing of the handler is written.
pub async fn store_proxy_of(
    couch: Couch,
    modb: String,
    stub: bool,
) -> anyhow::Result<(u16, tokio::task::JoinHandle<()>)> {
    type Shared = State<Arc<(Couch, String, bool)>>;
    async fn take(State(shared): Shared, Path((_, name)): Path<(String, String)>, body: Bytes) -> StatusCode {
        let (couch, modb, stub) = shared.as_ref();
        for id in couch.ids(modb).await.unwrap() {
            let named = couch.get(modb, &id).await.unwrap().unwrap();
            if named["name"] == name.as_str() {
                let entry = json!({"length": body.len(), "content_type": "audio/mpeg", "stub": false, "handler": {"kz_att_s3": {"key": name}}});
                let attachment = json!({"content_type": "audio/mpeg", "data": STANDARD.encode(&body)});
                let change = |doc: &mut Value| match stub {
                    false => doc["pvt_attachments"] = json!({ &name: entry }),
                    true => doc["_attachments"] = json!({ &name: attachment }),
                };
                couch.edit(modb, &id, change).await.unwrap();
                return StatusCode::OK;
            }
        }
        StatusCode::NOT_FOUND
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let router = Router::new()
        .route("/store/{blob}/{name}", put(take))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(Arc::new((couch, modb, stub)));
    Ok((
        port,
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }),
    ))
}

/// A plan that puts recordings on S3.
pub async fn plan(world: &World<'_>) -> anyhow::Result<()> {
    let plan = json!({
        "plan": {"modb": {"types": {"call_recording": {"attachments": {"handler": "9b1c"}}}}},
        "attachments": {"9b1c": {"handler": "s3", "settings": {"bucket": "b"}}},
    });
    world.couch.create("system_data", world.account(), &plan).await
}

async fn a_storage_plan_goes_through_the_store_proxy(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let modb = world.modb(&format!("{}-x", world.month()));
    let (port, serving) = store_proxy(world.couch.clone(), modb).await?;
    plan(&world).await?;
    media(&world, "proxy_hostname", json!("127.0.0.1")).await?;
    media(&world, "proxy_port", json!(port)).await?;
    // A plan wins over it.
    media(&world, "store_recordings", json!(false)).await?;
    let _worker = world.worker().await?;
    let recording = record(&world, json!({})).await?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "stored" && outcome["Destination"] == "storage_plan",
        "{outcome:#}"
    );
    let document = document(&world, &recording.id).await?;
    let stub = &document["pvt_attachments"][document["name"].as_str().context("name")?];
    ensure!(stub["length"] == recording.audio.len(), "{document:#}");
    ensure!(document["pvt_recording"]["state"] == "complete", "{document:#}");
    let told = changes(&world, &recording.id);
    // The edit is told by the store proxy, which a real Kazoo 5.0 has (`kzs_attachments`): not twice.
    ensure!(told == ["doc_created"], "{told:?}");
    serving.abort();
    world.finish().await
}

async fn a_storage_plan_without_a_proxy_is_parked_and_moved_on(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    plan(&world).await?;
    let _worker = world.worker().await?;
    let recording = record(&world, json!({})).await?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "parked" && outcome["Cause"] == "no_store_proxy",
        "{outcome:#}"
    );
    marked(&world, &recording.id).await?;
    let modb = world.modb(&recording.id);
    let (port, serving) = store_proxy(world.couch.clone(), modb).await?;
    media(&world, "proxy_hostname", json!("127.0.0.1")).await?;
    media(&world, "proxy_port", json!(port)).await?;
    // Until the worker has read it, a retry would only be parked again.
    let begun = std::time::Instant::now();
    loop {
        let (good, said) = world.command(&["retry", &recording.id]).await?;
        ensure!(good, "{said}");
        if world
            .state(&recording.call_id, "stored", Duration::from_secs(3))
            .await
            .is_ok()
        {
            break;
        }
        ensure!(
            begun.elapsed() < SOON,
            "{}",
            world.command(&["explain", &recording.id]).await?.1
        );
    }
    let document = document(&world, &recording.id).await?;
    ensure!(document["pvt_recording"]["state"] == "complete", "{document:#}");
    serving.abort();
    world.finish().await
}

/// Its document was written first, and says that the recording is parked. The retry goes to the account's database, to the same document.
async fn a_storage_plan_that_is_removed_leaves_a_document_that_tells_the_truth(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    plan(&world).await?;
    let mut before = world.worker().await?;
    let recording = record(&world, json!({})).await?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(outcome["Cause"] == "no_store_proxy", "{outcome:#}");
    marked(&world, &recording.id).await?;
    let removed = |document: &mut Value| document["pvt_deleted"] = json!(true);
    world.couch.edit("system_data", world.account(), removed).await?;
    // A worker remembers a plan for a minute.
    before.terminate(SOON).await?;
    let _after = world.worker().await?;
    let (good, said) = world.command(&["retry", &recording.id]).await?;
    ensure!(good, "{said}");
    world.state(&recording.call_id, "stored", SOON).await?;
    let document = document(&world, &recording.id).await?;
    ensure!(document["pvt_recording"]["state"] == "complete", "{document:#}");
    ensure!(
        document["_attachments"].as_object().is_some_and(|all| all.len() == 1),
        "{document:#}"
    );
    let edited = |m: &Observed| m.name == "doc_edited" && m.header("ID") == recording.id;
    world.kazoo.tap().wait(edited, SOON).await.context("no doc_edited")?;
    world.finish().await
}

async fn a_missing_monthly_database_is_created_and_told(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let modb = world.modb(&format!("{}-x", world.month()));
    world.couch.delete_database(&modb).await?;
    let _worker = world
        .worker_with(&[("DESTINATION__CREATE_DATABASES_AFTER_S", "1")])
        .await?;
    let recording = record(&world, json!({})).await?;
    world.stored(&recording).await?;
    let listed = world.couch.listed(&modb).await?;
    ensure!(listed == [recording.id.clone()], "{listed:?}");
    let all = world.kazoo.tap().messages();
    let created = all.iter().filter(|m| m.name == "db_created").count();
    ensure!(created == 1, "{created} times db_created");
    world.finish().await
}

async fn an_account_that_does_not_exist_is_a_cause(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let modb = world.modb(&format!("{}-x", world.month()));
    world.couch.delete_database(&modb).await?;
    let gone = |doc: &mut Value| doc["pvt_deleted"] = json!(true);
    world.couch.edit("accounts", world.account(), gone).await?;
    let _worker = world.worker().await?;
    let recording = record(&world, json!({})).await?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "parked" && outcome["Cause"] == "unknown_account",
        "{outcome:#}"
    );
    world.finish().await
}
