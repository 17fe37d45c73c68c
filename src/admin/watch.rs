//! Measures the gauges in the background. This never delays a recording, and every step has a time limit.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::lifecycle::{STATES, State};
use crate::telemetry::events::{
    HoldMeasured, LookFailed, LookSucceeded, ReadinessChecked, RecordingsCounted, SpoolMeasured, TargetsCounted,
    WebhooksCounted,
};
use crate::telemetry::survive_for_ever;

use super::{Check, Readiness};

/// Interval at which readiness, spool and targets are measured.
const EVERY: Duration = Duration::from_secs(5);

/// Time limit for a database to count.
const PATIENCE: Duration = Duration::from_secs(30);

/// Gauges that were not refreshed for this many intervals mislead, so the worker logs that.
const STALE_LOOKS: u32 = 5;

/// States that a recording should leave soon.
const OLDEST: [State; 4] = [State::Ended, State::Held, State::Parked, State::Announcing];

/// The results of the last checks; empty at first.
pub type Checks = watch::Receiver<Vec<Check>>;

/// Starts to measure. The checks run until `close`. Counting, which costs the database work, ends when the worker
/// stops.
pub fn start(readiness: &Readiness, tasks: &TaskTracker, close: CancellationToken) -> Checks {
    let (sender, checks) = watch::channel(Vec::new());
    let (looking, sender) = (readiness.clone(), Arc::new(sender));
    let check = move || check(looking.clone(), Arc::clone(&sender), close.clone());
    tasks.spawn(survive_for_ever("checks", check));
    let looking = readiness.clone();
    tasks.spawn(survive_for_ever("counts", move || count(looking.clone())));
    checks
}

async fn check(readiness: Readiness, seen: Arc<watch::Sender<Vec<Check>>>, close: CancellationToken) {
    let watched = &readiness.watched;
    // A lost or restored broker session is published at once.
    let mut sessions = watched.consumers.watch();
    let mut alarm = watched.publisher.watch_alarm();
    loop {
        let stopping = watched.common.stop().is_cancelled();
        let checks = readiness.checks().await;
        for check in &checks {
            ReadinessChecked {
                check: check.name,
                good: check.fault.is_none(),
            }
            .emit();
        }
        seen.send_replace(checks);
        TargetsCounted {
            paused: watched.targets.paused().len(),
        }
        .emit();
        measure_spool(&readiness).await;
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            Ok(()) = sessions.changed() => {}
            Ok(()) = alarm.changed() => {}
            () = watched.common.stop().cancelled(), if !stopping => {}
            () = close.cancelled() => return,
        }
    }
}

async fn measure_spool(readiness: &Readiness) {
    // Skipped while another check uses the disk: the disk may hang.
    let Ok(permit) = readiness.looking.clone().try_acquire_owned() else {
        return;
    };
    let watched = readiness.watched.clone();
    let look = tokio::task::spawn_blocking(move || {
        let spool = watched.ingest.spool();
        if let Some(free_bytes) = spool.free_bytes() {
            SpoolMeasured {
                free_bytes,
                min_free_bytes: spool.min_free_bytes(),
            }
            .emit();
        }
        drop(permit);
    });
    // The next check reports a disk that hangs.
    let _ = tokio::time::timeout(super::PATIENCE, look).await;
}

async fn count(readiness: Readiness) {
    let watched = &readiness.watched;
    let every = watched.common.config.admin.count_every;
    let (mut recordings, mut hold) = (Look::new("recordings", every), Look::new("hold", every));
    let mut webhooks = Look::new("webhooks", every);
    loop {
        let counted = tokio::time::timeout(PATIENCE, count_recordings(&readiness)).await;
        recordings.ended(&readiness, counted.unwrap_or_else(|_| Err(late())));
        if watched.hold.is_there() {
            let measured = tokio::time::timeout(PATIENCE, measure_hold(&readiness)).await;
            hold.ended(&readiness, measured.unwrap_or_else(|_| Err(late())));
        }
        if !watched.common.config.webhooks.endpoints.is_empty() && watched.ledger.is_up() {
            let counted = tokio::time::timeout(PATIENCE, count_webhooks(&readiness)).await;
            webhooks.ended(&readiness, counted.unwrap_or_else(|_| Err(late())));
        }
        // Jitter, so that the workers do not count at the same time.
        tokio::select! {
            () = tokio::time::sleep(every.mul_f64(0.9 + fastrand::f64() * 0.2)) => {}
            () = watched.common.stop().cancelled() => return,
        }
    }
}

fn late() -> String {
    format!("no answer within {PATIENCE:?}")
}

async fn count_recordings(readiness: &Readiness) -> Result<(), String> {
    let watched = &readiness.watched;
    if !watched.ledger.is_up() {
        return Err("the ledger is down".into());
    }
    let counts = watched.ledger.counts(&watched.common.config.kazoo.zone).await;
    let counts = counts.map_err(|error| error.to_string())?;
    for state in STATES {
        let counted = counts.get(state.name());
        let age = || counted.map_or(Duration::ZERO, |counted| watched.common.now().since(counted.oldest));
        RecordingsCounted {
            state: state.name(),
            count: counted.map_or(0, |counted| counted.count),
            oldest: OLDEST.contains(&state).then(age),
        }
        .emit();
    }
    Ok(())
}

async fn count_webhooks(readiness: &Readiness) -> Result<(), String> {
    let watched = &readiness.watched;
    let config = &watched.common.config;
    let counts = watched.ledger.webhook_counts(&config.kazoo.zone).await;
    let counts = counts.map_err(|error| error.to_string())?;
    for endpoint in &config.webhooks.endpoints {
        let owing = counts.get(&endpoint.name).copied().unwrap_or_default();
        WebhooksCounted {
            endpoint: &endpoint.name,
            owed: owing.owed,
            parked: owing.parked,
        }
        .emit();
    }
    Ok(())
}

async fn measure_hold(readiness: &Readiness) -> Result<(), String> {
    let hold = &readiness.watched.hold;
    let bytes = hold.bytes().await.map_err(|error| error.to_string())?;
    HoldMeasured {
        bytes,
        max_bytes: hold.max_bytes(),
    }
    .emit();
    Ok(())
}

/// How fresh a group of gauges is.
struct Look {
    of: &'static str,
    stale_after: Duration,
    good: Instant,
    told: bool,
}

impl Look {
    fn new(of: &'static str, every: Duration) -> Self {
        Self {
            of,
            stale_after: every * STALE_LOOKS,
            good: Instant::now(),
            told: false,
        }
    }

    fn ended(&mut self, readiness: &Readiness, result: Result<(), String>) {
        match result {
            Ok(()) => {
                LookSucceeded {
                    of: self.of,
                    at_seconds: readiness.watched.common.now().unix_seconds(),
                    was_told: std::mem::take(&mut self.told),
                }
                .emit();
                self.good = Instant::now();
            }
            Err(why) if !self.told && self.good.elapsed() > self.stale_after => {
                self.told = true;
                LookFailed {
                    of: self.of,
                    why: &why,
                    old: self.good.elapsed(),
                }
                .emit();
            }
            Err(_) => {}
        }
    }
}
