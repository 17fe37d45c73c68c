//! What those who watch a worker are told: numbers, the service manager, the log.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::promises;
use crate::simulator::sim::CallOptions;
use crate::support::{Mode, SOON, Services, TestResult, Worker, World};

promises![
    every_counter_is_there_before_its_first_event,
    what_waits_is_told_in_numbers,
    the_service_manager_is_told_ready_when_the_worker_is_bound_and_not_before,
    the_log_level_is_changed_while_the_worker_runs,
    kazoos_operators_are_alerted_when_they_want_to_be_and_not_in_a_storm,
];

/// The value of one metric with its labels, as it stands in the text.
fn value(metrics: &str, name: &str) -> Option<f64> {
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Waits until a metric has a value that fits.
async fn told(worker: &Worker, name: &str, fits: impl Fn(f64) -> bool) -> anyhow::Result<f64> {
    let begun = Instant::now();
    loop {
        let metrics = worker.metrics().await?;
        if let Some(found) = value(&metrics, name).filter(|found| fits(*found)) {
            return Ok(found);
        }
        ensure!(begun.elapsed() < SOON, "{name} is not told in\n{metrics}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn every_counter_is_there_before_its_first_event(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker().await?;
    let metrics = worker.metrics().await?;
    for zero in [
        "kz_record_call_recordings_closed_total{outcome=\"failed\",cause=\"file_gone\"}",
        "kz_record_call_recordings_closed_total{outcome=\"stored\",cause=\"complete\"}",
        "kz_record_call_recordings_parked_total{cause=\"unreachable\"}",
        "kz_record_call_commands_total{command=\"start\",result=\"refused\"}",
        "kz_record_call_deliveries_total{destination=\"url\",result=\"failed\"}",
        "kz_record_call_collects_total{result=\"failed\"}",
        "kz_record_call_hold_refusals_total{reason=\"full\"}",
        "kz_record_call_stops_unconfirmed_total",
        "kz_record_call_targets_paused",
    ] {
        ensure!(value(&metrics, zero) == Some(0.0), "{zero} is not 0 in\n{metrics}");
    }
    for one in [
        "kz_record_call_ledger_up",
        "kz_record_call_amqp_connected{connection=\"consume\"}",
    ] {
        ensure!(value(&metrics, one) == Some(1.0), "{one} is not 1 in\n{metrics}");
    }
    let version = concat!("kz_record_call_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
    ensure!(value(&metrics, version) == Some(1.0), "{metrics}");
    for process in [
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
    ] {
        ensure!(
            value(&metrics, process).is_some_and(|told| told > 0.0),
            "{process}\n{metrics}"
        );
    }
    // Whatever name of ours is given must have its help.
    for line in metrics.lines().filter(|line| line.starts_with("kz_record_call_")) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let name = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(name);
        ensure!(metrics.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
    world.finish().await
}

async fn what_waits_is_told_in_numbers(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let (proxy, (key, url)) = world.database_proxy().await?;
    let worker = world.worker_with(&[("ADMIN__COUNT_EVERY_S", "1"), (key, &url)]).await?;
    let recordings = |state: &str| format!("kz_record_call_recordings{{state=\"{state}\"}}");
    told(&worker, &recordings("parked"), |count| count == 0.0).await?;
    told(&worker, "kz_record_call_hold_bytes", |bytes| bytes == 0.0).await?;
    told(&worker, "kz_record_call_spool_free_bytes", |bytes| bytes > 1_048_576.0).await?;
    let running = world.kazoo.new_call(CallOptions::talking());
    running.execute(json!({})).await?.continued(SOON).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({"url": "s3://recordings.example.com/in"}))
        .await?
        .continued(SOON)
        .await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(outcome["Outcome"] == "parked", "{outcome:#}");
    told(&worker, &recordings("parked"), |count| count == 1.0).await?;
    told(&worker, &recordings("recording"), |count| count == 1.0).await?;
    told(&worker, "kz_record_call_oldest_seconds{state=\"parked\"}", |age| {
        age > 0.0
    })
    .await?;
    told(&worker, "kz_record_call_hold_bytes", |bytes| bytes > 0.0).await?;
    told(&worker, "kz_record_call_ready{check=\"database\"}", |ready| {
        ready == 1.0
    })
    .await?;
    // A database that is away leaves the numbers as they were, and how old they are is told.
    let look = "kz_record_call_last_look_timestamp_seconds{of=\"recordings\"}";
    told(&worker, look, |at| at > 1e9).await?;
    proxy.set(Mode::Refuse);
    told(&worker, "kz_record_call_ready{check=\"database\"}", |ready| {
        ready == 0.0
    })
    .await?;
    let stale = |line: &Value| line["event"] == "gauges_stale";
    worker.logged("that the numbers are old", stale, SOON).await?;
    told(&worker, &recordings("parked"), |count| count == 1.0).await?;
    proxy.set(Mode::Pass);
    told(&worker, "kz_record_call_ready{check=\"database\"}", |ready| {
        ready == 1.0
    })
    .await?;
    running.hangup("NORMAL_CLEARING").await;
    told(&worker, &recordings("stored"), |count| count == 1.0).await?;
    told(&worker, &recordings("recording"), |count| count == 0.0).await?;
    world.finish().await
}

/// What a service manager hears.
struct Manager {
    socket: UnixDatagram,
    path: std::path::PathBuf,
    heard: Vec<String>,
}

impl Manager {
    fn listen() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("kz-record-call-{}.notify", uuid::Uuid::new_v4().simple()));
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            path,
            heard: Vec::new(),
        })
    }

    /// Takes in what came.
    fn hear(&mut self) {
        let mut bytes = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut bytes) {
            let text = String::from_utf8_lossy(&bytes[..length]);
            self.heard.extend(text.lines().map(str::to_owned));
        }
    }

    fn count(&self, start: &str) -> usize {
        self.heard.iter().filter(|line| line.starts_with(start)).count()
    }

    /// Waits until as many lines that begin like this were heard; returns the last.
    async fn until(&mut self, start: &str, count: usize) -> anyhow::Result<String> {
        let begun = Instant::now();
        loop {
            self.hear();
            if self.count(start) >= count {
                let last = self.heard.iter().rfind(|line| line.starts_with(start));
                return last.cloned().context("nothing was heard");
            }
            if begun.elapsed() > SOON {
                bail!("{start} was not heard {count} times: {:#?}", self.heard);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn the_service_manager_is_told_ready_when_the_worker_is_bound_and_not_before(
    services: Arc<Services>,
) -> TestResult {
    let world = World::new(&services).await?;
    let (proxy, (key, uri)) = world.broker_proxy().await?;
    proxy.set(Mode::Refuse);
    let mut manager = Manager::listen()?;
    let path = manager.path.display().to_string();
    let mut worker = world.start_worker(&[
        (key, &uri),
        ("NOTIFY_SOCKET", &path),
        ("WATCHDOG_USEC", "1000000"),
        ("FLOW__DRAIN_S", "7"),
    ])?;
    let waiting = manager.until("STATUS=waiting for the broker", 1).await?;
    // It lives, and is not ready: its ports are open long before.
    manager.until("WATCHDOG=1", 3).await?;
    reqwest::get(format!("{}/livez", worker.admin().await?))
        .await?
        .error_for_status()?;
    ensure!(
        manager.count("READY=1") == 0,
        "ready without a broker: {:#?}",
        manager.heard
    );
    ensure!(waiting.contains("bound"), "{waiting}");
    proxy.set(Mode::Pass);
    manager.until("READY=1", 1).await?;
    // Nobody else is bound here: an action that is published now is one that this worker takes.
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    manager.until("STATUS=at work", 1).await?;
    proxy.set(Mode::Refuse);
    manager.until("STATUS=waiting for the broker", 2).await?;
    proxy.set(Mode::Pass);
    manager.until("STATUS=at work", 2).await?;
    ensure!(
        manager.count("READY=1") == 1,
        "ready is told once: {:#?}",
        manager.heard
    );
    worker.terminate(SOON).await?;
    manager.until("STOPPING=1", 1).await?;
    let limit = manager.until("EXTEND_TIMEOUT_USEC=", 1).await?;
    let limit: u64 = limit.trim_start_matches("EXTEND_TIMEOUT_USEC=").parse()?;
    ensure!((7_000_000 + 5_000_000..60_000_000).contains(&limit), "{limit}");
    world.finish().await
}

async fn the_log_level_is_changed_while_the_worker_runs(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world
        .worker_with(&[(
            "LOG__LEVEL",
            "warn,kz_record_call::worker=info,kz_record_call::telemetry=info",
        )])
        .await?;
    let url = format!("{}/log-level", worker.admin().await?);
    let client = reqwest::Client::new();
    let present = client.get(&url).send().await?.text().await?;
    ensure!(present.trim().starts_with("warn,"), "{present}");
    let debug = |line: &&Value| line["level"] == "DEBUG";
    ensure!(worker.lines().iter().find(debug).is_none(), "{}", worker.tail());
    for (bad, why) in [
        ("", "empty"),
        ("inof", "neither a level"),
        ("kz_record_call=loud", "not a filter"),
        (&*"a=info,".repeat(1000), "longer than"),
    ] {
        let answer = client.put(&url).body(bad.to_owned()).send().await?;
        let (status, text) = (answer.status().as_u16(), answer.text().await?);
        ensure!(status == 400 && text.contains(why), "{bad:?}: {status} {text}");
    }
    // Refused before it is read to its end; the client may not even see the answer.
    let huge = reqwest::Client::new().put(&url).body("x".repeat(100_000)).send().await;
    ensure!(
        !huge.is_ok_and(|answer| answer.status().is_success()),
        "a huge body was taken"
    );
    ensure!(client.post(&url).body("info").send().await?.status().as_u16() == 405);
    ensure!(
        client.get(&url).send().await?.text().await? == present,
        "a bad filter changed it"
    );
    let answer = client.put(&url).body("info,kz_record_call=debug\n").send().await?;
    ensure!(answer.status().is_success() && answer.text().await?.trim() == "info,kz_record_call=debug");
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    worker
        .logged("a command, at debug", |line| line["message"] == "command sent", SOON)
        .await?;
    call.hangup("NORMAL_CLEARING").await;
    world.finish().await
}

async fn kazoos_operators_are_alerted_when_they_want_to_be_and_not_in_a_storm(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let alerts = || {
        let seen = world.kazoo.tap().messages();
        let alerts = seen.into_iter().filter(|message| message.exchange == "notifications");
        alerts.collect::<Vec<_>>()
    };
    let parked = async |count: usize| {
        for _ in 0..count {
            let call = world.kazoo.new_call(CallOptions::talking());
            call.execute(json!({"url": "s3://recordings.example.com/in"}))
                .await?
                .continued(SOON)
                .await?;
            let recording = call.wait_recording_started(SOON).await?;
            call.hangup("NORMAL_CLEARING").await;
            ensure!(world.outcome(&recording.id).await?["Outcome"] == "parked");
            // Told before its outcome is announced, so all of it is known here.
            world.state(&call.id(), "parked", SOON).await?;
        }
        Ok(())
    };
    let mut silent = world.worker().await?;
    parked(1).await?;
    silent.terminate(SOON).await?;
    ensure!(alerts().is_empty(), "alerts that nobody wants: {:#?}", alerts());
    let mut worker = world.worker_with(&[("KAZOO__SYSTEM_ALERTS", "true")]).await?;
    parked(3).await?;
    let is_alert = |message: &crate::simulator::sim::Observed| message.exchange == "notifications";
    let alert = world.kazoo.tap().wait(is_alert, SOON).await?;
    ensure!(alert.key == "notifications.system.alert", "{}", alert.key);
    ensure!(alert.body["Details"]["Cause"] == "unusable_url", "{:#?}", alert.body);
    ensure!(alerts().len() == 1, "a storm: {:#?}", alerts());
    // What was not told yet is told at the latest when the worker ends.
    worker.terminate(SOON).await?;
    let counts = |message: &crate::simulator::sim::Observed| is_alert(message) && message.body["Details"]["Count"] == 2;
    world.kazoo.tap().wait(counts, SOON).await?;
    world.finish().await
}
