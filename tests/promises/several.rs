//! Several workers on one broker, under load: they share the work, and take each other's places.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use serde_json::{Value, json};

use crate::places::HERE;
use crate::promises;
use crate::simulator::sim::{CallOptions, Observed, Recording, Size};
use crate::support::http::{Reply, Server};
use crate::support::{Mode, Proxy, SOON, Services, TestResult, Worker, World, machine};

promises![
    two_then_four_workers_share_the_work,
    a_rolling_restart_under_load_loses_nothing,
    sigterm_under_load_loses_nothing,
    the_next_attempt_comes_at_its_time_though_the_worker_was_killed,
    workers_with_different_secrets_lose_nothing,
    a_worker_that_stood_still_starts_nothing_that_another_worker_has_started,
    a_worker_that_stood_still_masks_nothing_that_another_worker_has_unmasked,
];

/// Between two calls of a load.
const GAP: Duration = Duration::from_millis(100);

/// What callers bear until their flow goes on.
const AT_MOST: Duration = Duration::from_secs(10);

async fn two_then_four_workers_share_the_work(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let mut workers = vec![world.worker().await?, world.worker().await?];
    load(&world, 30).await?;
    shared(&world, &workers).await?;
    workers.extend([world.worker().await?, world.worker().await?]);
    load(&world, 60).await?;
    shared(&world, &workers).await?;
    world.finish().await
}

/// One worker after another is replaced while calls come in, as in an upgrade.
async fn a_rolling_restart_under_load_loses_nothing(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    // An action that comes back from a worker which ended is answered before anything is looked up.
    world.kazoo.tolerate("order");
    let mut workers = Vec::new();
    for _ in 0..4 {
        workers.push(world.worker().await?);
    }
    let (rolled, begun) = (AtomicBool::new(false), AtomicUsize::new(0));
    let loading = async {
        // Until the last one stands, and a moment more.
        while !rolled.load(Ordering::SeqCst) {
            let before = begun.fetch_add(10, Ordering::SeqCst);
            load(&world, 10)
                .await
                .with_context(|| format!("after {before} calls"))?;
        }
        load(&world, 10).await
    };
    let rolling = async {
        let mut new = Vec::new();
        for mut old in workers {
            // It is in the middle of something.
            let before = begun.load(Ordering::SeqCst);
            while begun.load(Ordering::SeqCst) == before {
                tokio::time::sleep(GAP).await;
            }
            let status = old.terminate(SOON).await?;
            ensure!(status.success(), "{status}\n{}", old.tail());
            new.push(world.worker().await?);
        }
        rolled.store(true, Ordering::SeqCst);
        anyhow::Ok(new)
    };
    let ((), new) = tokio::try_join!(loading, rolling)?;
    shared(&world, &new).await?;
    world.finish().await
}

/// The only worker ends with calls in every state of theirs; the next one comes a moment later.
async fn sigterm_under_load_loses_nothing(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    world.kazoo.tolerate("order");
    let mut first = world.worker_with(&[("FLOW__DRAIN_S", "2")]).await?;
    // So slow that uploads are on their way when it ends.
    world.kazoo.faults(|faults| faults.bandwidth = Some(50_000));
    let (asked, second) = (AtomicUsize::new(0), AtomicBool::new(false));
    let calls = (0..40).map(|n| {
        let (world, asked, second) = (&world, &asked, &second);
        async move {
            tokio::time::sleep(GAP * n).await;
            asked.fetch_add(1, Ordering::SeqCst);
            let recording = recorded(world, n % 3 == 0, second).await?;
            world.stored(&recording).await.with_context(|| format!("call {n}"))
        }
    });
    let replacing = async {
        world.kazoo.wait_upload(0, 10_000, SOON).await?;
        while asked.load(Ordering::SeqCst) < 20 {
            tokio::time::sleep(GAP).await;
        }
        let status = first.terminate(SOON).await?;
        ensure!(status.success(), "{status}\n{}", first.tail());
        world.kazoo.faults(|faults| faults.bandwidth = None);
        let worker = world.worker().await?;
        second.store(true, Ordering::SeqCst);
        Ok(worker)
    };
    let (_, _second) = tokio::try_join!(try_join_all(calls), replacing)?;
    world.finish().await
}

/// The time of the next attempt is in the ledger, not in a worker's memory: nothing makes it earlier, and later only by a lease and a look.
async fn the_next_attempt_comes_at_its_time_though_the_worker_was_killed(services: Arc<Services>) -> TestResult {
    const PAUSE: Duration = Duration::from_secs(8);
    const LEASE: Duration = Duration::from_secs(2);
    let world = World::new(&services).await?;
    let settings = [
        HERE,
        ("FLOW__RETRY_MS", "8000"),
        ("LEDGER__LEASE_S", "2"),
        ("DESTINATION__FIRST_PAUSE_MS", "100"),
    ];
    // The schedule is our own, not that of an account.
    let own = |media: &mut Value| {
        if let Some(section) = media["default"]["call_recording"].as_object_mut() {
            section.remove("storage_retry_times");
        }
    };
    world.couch.edit("system_config", "media", own).await?;
    let arrivals = Arc::new(std::sync::Mutex::new(Vec::new()));
    let book = Arc::clone(&arrivals);
    let server = Server::with(move |_, _, before| {
        book.lock().unwrap().push(Instant::now());
        Reply::Status(if before == 0 { 503 } else { 200 })
    })
    .await;
    let mut first = world.worker_with(&settings).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({"url": server.url("/in")}))
        .await?
        .continued(SOON)
        .await?;
    call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    let id = call.wait_recording_ended(SOON).await?.id;
    // Killed as soon as its failure is written down.
    let begun = Instant::now();
    let failed = |entry: &Value| facts(entry).any(|fact| fact["fact"] == "delivery_failed");
    while !world.entry(&call.id()).await?.as_ref().is_some_and(failed) {
        ensure!(begun.elapsed() < SOON, "{:#?}", world.entry(&call.id()).await?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    first.kill().await?;
    let second = world.worker_with(&settings).await?;
    let outcome = world.outcome(&id).await?;
    ensure!(outcome["Outcome"] == "delivered", "{outcome:#}");
    let arrivals = arrivals.lock().unwrap().clone();
    let [one, two] = arrivals.as_slice() else {
        anyhow::bail!("{} attempts", arrivals.len());
    };
    let after = two.duration_since(*one);
    // Two seconds for a new worker to start.
    let latest = machine::allows(PAUSE.mul_f64(1.2) + LEASE + Duration::from_secs(2), *one);
    if after < PAUSE.mul_f64(0.8) || after > latest {
        let (_, story) = world.command(&["explain", &id]).await?;
        anyhow::bail!("{after:?}\n{story}\n{}\n{}", first.tail(), second.tail());
    }
    world.finish().await
}

/// So many calls, one after another begun, each recorded, answered in time, and stored with every byte.
async fn load(world: &World<'_>, calls: u32) -> TestResult {
    let never = AtomicBool::new(false);
    let calls = (0..calls).map(|n| {
        let never = &never;
        async move {
            tokio::time::sleep(GAP * n).await;
            let recording = recorded(world, false, never).await?;
            world.stored(&recording).await.with_context(|| format!("call {n}"))
        }
    });
    try_join_all(calls).await?;
    Ok(())
}

/// A call that is recorded and over; one that is `long` lasts until it is allowed to end.
async fn recorded(world: &World<'_>, long: bool, may_end: &AtomicBool) -> anyhow::Result<Recording> {
    let call = world.kazoo.new_call(CallOptions::talking().size(Size::Bytes(50_000)));
    let asked = Instant::now();
    let run = call.execute(json!({})).await?;
    let waited = run.continued(SOON).await?;
    ensure!(
        waited < machine::allows(AT_MOST, asked),
        "a caller waited for {waited:?}"
    );
    let recording = call.wait_recording_started(SOON).await?;
    while long && !may_end.load(Ordering::SeqCst) {
        tokio::time::sleep(GAP).await;
    }
    // Of different lengths: workers that take turns would otherwise get all starts, or all ends.
    tokio::time::sleep(GAP.mul_f64(fastrand::f64() * 10.0)).await;
    call.hangup("NORMAL_CLEARING").await;
    Ok(recording)
}

fn facts(entry: &Value) -> impl Iterator<Item = &Value> {
    entry["facts"].as_array().into_iter().flatten()
}

/// Each of these workers has taken actions, and has brought audio to its place.
async fn shared(world: &World<'_>, workers: &[Worker]) -> TestResult {
    let mut done: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in world.entries().await? {
        for fact in facts(&entry) {
            let (by, what) = (fact["by"].as_str().unwrap_or_default(), fact["fact"].as_str());
            done.entry(by.to_owned())
                .or_default()
                .insert(what.unwrap_or_default().to_owned());
        }
    }
    for worker in workers {
        let name = format!("#{}-", worker.id()?);
        let part = done.iter().find(|(by, _)| by.contains(&name)).map(|(_, part)| part);
        for what in ["asked", "ended", "collected", "delivered"] {
            ensure!(
                part.is_some_and(|part| part.contains(what)),
                "worker {name} had no part in {what}: {done:?}"
            );
        }
    }
    Ok(())
}

/// A mistake of whoever set them up: neither reads what the other's recordings carry, and the ledger knows it.
async fn workers_with_different_secrets_lose_nothing(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _one = world.worker().await?;
    let _other = world.worker_with(&[("SECRET", "not the secret of the tests")]).await?;
    let calls = (0..16).map(|n| {
        let world = &world;
        async move {
            tokio::time::sleep(GAP * n).await;
            let call = world.kazoo.new_call(CallOptions::talking());
            call.execute(json!({"label": "desk"})).await?.continued(SOON).await?;
            let recording = call.wait_recording_started(SOON).await?;
            // Some end before anything is written of them.
            tokio::time::sleep(GAP * (n % 8)).await;
            call.hangup("NORMAL_CLEARING").await;
            let stored = world.stored(&recording).await?;
            ensure!(stored.document["origin"] == "callflow : desk", "{:#}", stored.document);
            anyhow::Ok(())
        }
    });
    try_join_all(calls).await?;
    world.finish().await
}

/// A worker that stood still, and whose broker was away, goes on with both.
async fn back(worker: &Worker, broker: &Proxy) -> TestResult {
    broker.set(Mode::Pass);
    worker.thaw()?;
    // It handles the action that it had, unless it notices first that the connection is gone.
    let consuming = |line: &&Value| line["event"] == "consuming";
    let begun = Instant::now();
    while worker.lines().iter().filter(consuming).count() < 2 {
        ensure!(begun.elapsed() < SOON, "it does not consume again: {}", worker.tail());
        tokio::time::sleep(GAP).await;
    }
    worker.ready(SOON).await
}

/// A machine was suspended with an action in its worker's hands. The broker gave the action to another worker, and that recording is over
/// when the machine goes on.
async fn a_worker_that_stood_still_starts_nothing_that_another_worker_has_started(
    services: Arc<Services>,
) -> TestResult {
    let world = World::new(&services).await?;
    world.kazoo.tolerate("order");
    let (proxy, (key, uri)) = world.broker_proxy().await?;
    let first = world.worker_with(&[(key, &uri)]).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    first.freeze()?;
    let execution = call.execute(json!({})).await?;
    proxy.set(Mode::Refuse);
    let _second = world.worker().await?;
    execution.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.execute(json!({"action": "stop"})).await?.continued(SOON).await?;
    world.stored(&recording).await?;
    back(&first, &proxy).await?;
    let messages = world.kazoo.tap().messages();
    let is_start = |m: &&Observed| m.exchange == "callctl" && m.header("Record-Action") == "start";
    let starts = messages.iter().filter(is_start).count();
    ensure!(starts == 1, "{starts} start commands");
    world.finish().await
}

/// The same with a mask. The other worker has masked and unmasked when the machine goes on.
async fn a_worker_that_stood_still_masks_nothing_that_another_worker_has_unmasked(
    services: Arc<Services>,
) -> TestResult {
    let world = World::new(&services).await?;
    world.kazoo.tolerate("order");
    let (proxy, (key, uri)) = world.broker_proxy().await?;
    let first = world.worker_with(&[(key, &uri)]).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    world.state(&call.id(), "recording", SOON).await?;
    first.freeze()?;
    let mask = call.execute(json!({"action": "mask"})).await?;
    proxy.set(Mode::Refuse);
    let _second = world.worker().await?;
    mask.continued(SOON).await?;
    let masks = |many: u32| {
        move |state: &crate::simulator::sim::State| {
            let recording = state.recordings().first()?;
            (recording.masks == many).then_some(())
        }
    };
    world.kazoo.wait_for("a mask", SOON, masks(1)).await?;
    call.execute(json!({"action": "unmask"})).await?.continued(SOON).await?;
    back(&first, &proxy).await?;
    call.hangup("NORMAL_CLEARING").await;
    let document = world.stored(&recording).await?.document;
    let messages = world.kazoo.tap().messages();
    let commands: Vec<&str> = messages
        .iter()
        .filter(|message| message.exchange == "callctl")
        .map(|message| message.header("Record-Action"))
        .filter(|action| !action.is_empty())
        .collect();
    ensure!(commands == ["start", "mask", "unmask"], "{commands:?}");
    let told: Vec<&Value> = document["pvt_recording"]["masks"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    ensure!(
        told.len() == 2 && told[0]["masked"] == true && told[1]["masked"] == false,
        "{document:#}"
    );
    world.finish().await
}
