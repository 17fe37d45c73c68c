//! Large files, and disks that go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::future::join_all;
use serde_json::json;

use crate::places::HERE;
use crate::promises;
use crate::simulator::sim::{CallOptions, Size};
use crate::support::http::{Reply, Server};
use crate::support::{SOON, Services, TestResult, World};

promises![
    three_hours_of_stereo_need_little_memory,
    a_hundred_uploads_at_once_are_stored,
    a_spool_that_is_destroyed_loses_nothing,
];

/// The size of a WAV of three hours, 16 bit, two channels at 8 kHz.
const THREE_HOURS: u64 = 345_600_044;

async fn three_hours_of_stereo_need_little_memory(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world
        .worker_with(&[HERE, ("INGEST__DELIVERY_TIMEOUT_S", "120"), ("LEDGER__LEASE_S", "130")])
        .await?;
    let server = Server::always(Reply::Status(200)).await;
    for data in [
        json!({"format": "wav", "url": server.url("/in")}),
        json!({"format": "wav"}),
    ] {
        let call = world
            .kazoo
            .new_call(CallOptions::talking().size(Size::Bytes(THREE_HOURS)));
        call.execute(data).await?.continued(SOON).await?;
        let recording = call.wait_recording_started(SOON).await?;
        call.hangup("NORMAL_CLEARING").await;
        let outcome = world.outcome_within(&recording.id, Duration::from_secs(120)).await?;
        ensure!(
            outcome["Size"] == THREE_HOURS && outcome["Findings"].is_null(),
            "{outcome:#}"
        );
        ensure!(
            matches!(outcome["Outcome"].as_str(), Some("stored" | "delivered")),
            "{outcome:#}"
        );
    }
    ensure!(server.received()[0].length == THREE_HOURS);
    let peak = worker.peak_memory()?;
    println!("345 MB to a URL, and to a database: {peak} KiB at most");
    ensure!(peak < 64 << 10, "{peak} KiB");
    world.finish().await
}

/// Uploads that are under way at once.
const CROWD: usize = 100;

/// All calls of a crowd end together, and their switch is let to bring all files together: each arrives slowly until all are under way.
async fn a_hundred_uploads_at_once_are_stored(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let crowd = CROWD.to_string();
    let worker = world
        .worker_with(&[
            ("INGEST__PER_SWITCH", &crowd),
            ("INGEST__IN_ALL", &crowd),
            ("INGEST__DELIVERY_TIMEOUT_S", "60"),
            ("LEDGER__LEASE_S", "70"),
        ])
        .await?;
    world.kazoo.faults(|faults| faults.bandwidth = Some(100_000));
    let mut recordings = Vec::new();
    for _ in 0..CROWD {
        let call = world
            .kazoo
            .new_call(CallOptions::talking().size(Size::Bytes(1_000_000)));
        call.execute(json!({})).await?.continued(SOON).await?;
        recordings.push((call.wait_recording_started(SOON).await?, call));
    }
    // Together: one after the other may take longer than an upload.
    join_all(recordings.iter().map(|(_, call)| call.hangup("NORMAL_CLEARING"))).await;
    let all = format!("kz_record_call_uploads_in_progress {CROWD}");
    let begun = Instant::now();
    while !worker.metrics().await?.lines().any(|line| line == all) {
        ensure!(begun.elapsed() < SOON, "they are not all under way\n{}", worker.tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.kazoo.faults(|faults| faults.bandwidth = None);
    for (recording, _) in &recordings {
        world.stored(recording).await?;
    }
    let peak = worker.peak_memory()?;
    println!(
        "{CROWD} uploads at once: {peak} KiB at most, {:?} from the last hang-up",
        begun.elapsed()
    );
    ensure!(peak < 128 << 10, "{peak} KiB");
    world.finish().await
}

async fn a_spool_that_is_destroyed_loses_nothing(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker_with(&[HERE]).await?;
    let server = Server::always(Reply::Status(200)).await;
    for (bytes, url) in [(100_000, false), (1_500_000, false), (100_000, true), (1_500_000, true)] {
        world.kazoo.faults(|faults| faults.bandwidth = Some(1_000_000));
        let call = world
            .kazoo
            .new_call(CallOptions::talking().size(Size::Bytes(2_000_000)));
        let before = world
            .kazoo
            .wait_for("a look", SOON, |s| Some(s.uploads().len()))
            .await?;
        let data = if url {
            json!({"url": server.url("/in")})
        } else {
            json!({})
        };
        call.execute(data).await?.continued(SOON).await?;
        let recording = call.wait_recording_started(SOON).await?;
        call.hangup("NORMAL_CLEARING").await;
        world.kazoo.wait_upload(before, bytes, SOON).await?;
        worker.lose_spool()?;
        world.kazoo.faults(|faults| faults.bandwidth = None);
        let whole = world.ended(&recording).await?;
        let outcome = world.outcome(&recording.id).await?;
        let expected = if url { "delivered" } else { "stored" };
        ensure!(outcome["Outcome"] == expected, "{outcome:#}");
        if url {
            let received = server.received();
            let last = received.last().context("nothing arrived")?;
            ensure!(last.digests.couch() == Some(format!("md5-{}", whole.audio.md5())));
        } else {
            world.stored(&recording).await?;
        }
    }
    world.finish().await
}
