//! What goes wrong at one switch, or with one worker, is not the others' trouble.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::places::HERE;
use crate::promises;
use crate::simulator::sim::{CallOptions, Size};
use crate::support::http::{Reply, Server};
use crate::support::{SOON, Services, TestResult, World};

promises![
    an_idle_worker_takes_over_from_a_killed_one_before_its_leases_run_out,
    a_switch_that_uploads_too_slowly_does_not_stop_what_else_is_due,
    a_step_that_panics_costs_its_recording_nothing,
];

/// The leases run for as long as they do by default.
const LEASE: (&str, &str) = ("LEDGER__LEASE_S", "300");

async fn an_idle_worker_takes_over_from_a_killed_one_before_its_leases_run_out(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let settings = [LEASE, ("INGEST__DELIVERY_TIMEOUT_S", "120")];
    let mut workers = [world.worker_with(&settings).await?, world.worker_with(&settings).await?];
    // So slow that its worker is killed in the middle.
    world.kazoo.faults(|faults| faults.bandwidth = Some(2_000));
    let call = world.kazoo.new_call(CallOptions::talking().size(Size::Bytes(50_000)));
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    // Both workers have heard each other by now, or do while this recording runs: a heartbeat comes every five seconds.
    let beats = |log: &str| log.matches("heartbeat of another worker").count();
    let begun = Instant::now();
    while !workers.iter().all(|worker| beats(&worker.log()) > 0) {
        ensure!(begun.elapsed() < SOON, "no heartbeats");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    call.hangup("NORMAL_CLEARING").await;
    let begun = Instant::now();
    let holder = loop {
        let entry = world.entry(&call.id()).await?.unwrap_or_default();
        if let Some(by) = entry["lease"]["by"].as_str().filter(|by| !by.is_empty()) {
            break by.to_owned();
        }
        ensure!(begun.elapsed() < SOON, "nobody has it in hand: {entry:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    // Seconds later: what told of the end is acknowledged by then, and does not come to the other worker.
    world.kazoo.wait_upload(0, 10_000, SOON).await?;
    let is_holder =
        |worker: &crate::support::Worker| holder.contains(&format!("#{}-", worker.id().unwrap_or_default()));
    let at = workers.iter().position(is_holder).context("the lease is no worker's")?;
    let killed = Instant::now();
    workers[at].kill().await?;
    world.kazoo.faults(|faults| faults.bandwidth = None);
    let outcome = world.outcome_within(&recording.id, Duration::from_secs(150)).await?;
    ensure!(outcome["Outcome"] == "stored", "{outcome:#}");
    let took = killed.elapsed();
    ensure!(
        took > Duration::from_secs(10),
        "it was not the killed worker's: {took:?}"
    );
    world.stored(&recording).await?;
    workers[1 - at].counts("kz_record_call_workers_gone_total 1").await?;
    world.finish().await
}

/// As many recordings as a worker may have in flight, and more, wait for their switch; one delivery of another recording is due.
async fn a_switch_that_uploads_too_slowly_does_not_stop_what_else_is_due(services: Arc<Services>) -> TestResult {
    const MANY: usize = 600;
    let world = World::new(&services).await?;
    let is_well = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&is_well);
    let server =
        Server::with(move |_, _, _| Reply::Status(if switch.load(Ordering::SeqCst) { 200 } else { 503 })).await;
    let own = |media: &mut Value| {
        if let Some(section) = media["default"]["call_recording"].as_object_mut() {
            section.remove("storage_retry_times");
        }
    };
    world.couch.edit("system_config", "media", own).await?;
    let settings = [
        HERE,
        ("FLOW__RETRY_MS", "10000"),
        ("FLOW__MAX_ATTEMPTS", "28"),
        ("DESTINATION__FIRST_PAUSE_MS", "100"),
    ];
    let worker = world.worker_with(&settings).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({"url": server.url("/in")}))
        .await?
        .continued(SOON)
        .await?;
    let held = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.state(&call.id(), "held", SOON).await?;
    // From here on an upload takes minutes.
    world.kazoo.faults(|faults| faults.bandwidth = Some(200));
    let kazoo = &world.kazoo;
    let recorded = async |_| {
        let call = kazoo.new_call(CallOptions::talking().size(Size::Bytes(20_000)));
        call.execute(json!({}))
            .await?
            .continued(Duration::from_secs(60))
            .await?;
        call.wait_recording_started(Duration::from_secs(60)).await?;
        call.hangup("NORMAL_CLEARING").await;
        anyhow::Ok(())
    };
    let mut calls = futures_util::stream::iter((0..MANY).map(recorded)).buffer_unordered(40);
    while let Some(ended) = calls.next().await {
        ended?;
    }
    drop(calls);
    let begun = Instant::now();
    loop {
        let entries = world.entries().await?;
        let ended = entries.iter().filter(|entry| entry["state"] == "ended").count();
        if ended == MANY {
            break;
        }
        ensure!(begun.elapsed() < Duration::from_secs(90), "only {ended} have ended");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    is_well.store(true, Ordering::SeqCst);
    let outcome = world.outcome_within(&held.id, Duration::from_secs(60)).await?;
    ensure!(outcome["Outcome"] == "delivered", "{outcome:#}");
    // Most of them rest in the ledger, and not in the worker's memory.
    let metrics = worker.metrics().await?;
    let in_hand = metrics
        .lines()
        .find_map(|line| line.strip_prefix("kz_record_call_recordings_in_hand "));
    let in_hand: f64 = in_hand.context("no such gauge")?.parse()?;
    ensure!(in_hand < 200.0, "{in_hand} recordings in the worker's hands");
    world.finish().await
}

/// A fault of the program, at one step after another: it is logged and counted, the recording is tried again, and ends as ever.
async fn a_step_that_panics_costs_its_recording_nothing(services: Arc<Services>) -> TestResult {
    let mut of_drivers = 0;
    // The first steps are the action's; the recording's begin about here. Which ones they are depends on what comes first.
    for n in 4.. {
        if n > 14 && of_drivers >= 3 {
            break;
        }
        ensure!(n < 24, "only {of_drivers} of the steps were a recording's");
        let world = World::new(&services).await?;
        world.kazoo.tolerate("order");
        let crash = format!("panic:{n}");
        let worker = world.worker_with(&[("KZ_RECORD_CALL_TEST_CRASH", &crash)]).await?;
        let call = world.kazoo.new_call(CallOptions::talking());
        call.execute(json!({})).await?.continued(SOON).await?;
        let recording = call.wait_recording_started(SOON).await?;
        call.hangup("NORMAL_CLEARING").await;
        world.stored(&recording).await.with_context(|| crash.clone())?;
        let panicked = |line: &Value| line["event"] == "task_panicked";
        let lines = worker.lines();
        let told: Vec<&Value> = lines.iter().filter(|line| panicked(line)).collect();
        ensure!(told.iter().all(|line| line["level"] == "ERROR"), "{told:#?}");
        if told.iter().any(|line| line["task"] == "recording") {
            of_drivers += 1;
            worker
                .counts("kz_record_call_panics_total{task=\"recording\"} 1")
                .await?;
            let entry = world.entry(&call.id()).await?.unwrap_or_default();
            let noted = entry["facts"].as_array().into_iter().flatten();
            let noted = noted.filter(|fact| fact["fact"] == "panicked").count();
            ensure!(noted == 1, "{entry:#}");
        }
        world.finish().await?;
    }
    Ok(())
}
