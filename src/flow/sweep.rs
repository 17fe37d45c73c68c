//! ⑥ Sweep: resumes what is due and not in flight. After a lost connection it reconciles every open recording.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use crate::destination::hold::HoldError;
use crate::entry::Entry;
use crate::ledger::{Address, Record, retention};
use crate::telemetry::events::{SweepEnded, SweepFull, WorkerGone};
use crate::telemetry::survive;

use super::drive;
use super::hands::Mailbox;
use super::perform::Parts;
use crate::lifecycle::Input;

/// The largest number of recordings that one sweep takes, and that a worker has in flight before it takes no more. Recordings that wait for
/// a slot of their switch do not count. One switch that uploads nothing must not stop the sweep for all other switches.
const TAKE: usize = 64;
const IN_FLIGHT: usize = 512;

/// Interval at which old months are examined.
const RETENTION: Duration = Duration::from_secs(6 * 3600);

/// How long ahead the databases of the next day and month are created: longer than the longest interval between two runs.
const AHEAD: Duration = Duration::from_secs(12 * 3600);

/// Delays between two queries whether an ecallmgr answers.
const ANSWER_PAUSES_S: [u64; 10] = [1, 1, 2, 2, 4, 8, 15, 30, 60, 60];

/// Delay between two recordings of a reconcile.
const RECONCILE_STEP: Duration = Duration::from_millis(20);

/// Sweeps until the worker goes down.
pub async fn run(parts: Arc<Parts>) {
    // Events that came while the ledger was down wait in their queue, and are read only now.
    let mut behind_until: Option<Instant> = None;
    let (mut was_up, mut was_full) = (true, false);
    loop {
        // Jitter, so that the workers do not sweep at the same time.
        let poll = parts.common.config.ledger.poll;
        let pause = poll.mul_f64(0.75 + fastrand::f64() * 0.5);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = parts.common.stop.cancelled() => return,
        }
        let is_up = parts.ledger.is_up();
        if is_up && !was_up {
            behind_until = Some(Instant::now() + parts.common.config.flow.start_timeout);
            parts.targets.delivered(&parts.home().host);
        }
        was_up = is_up;
        let in_flight = parts.hands.busy();
        let is_full = in_flight >= IN_FLIGHT;
        if is_full {
            let first = !was_full;
            SweepFull { in_flight, first }.emit();
        }
        was_full = is_full;
        if !is_up || is_full {
            continue;
        }
        let behind = behind_until.is_some_and(|until| Instant::now() < until);
        match parts.ledger.due(&parts.common.config.kazoo.zone, TAKE * 2).await {
            Ok(due) => {
                let (count, room) = (due.len(), TAKE.min(IN_FLIGHT - in_flight));
                let taken = take_some(&parts, due, room, behind).await;
                SweepEnded { due: count, taken }.emit();
            }
            Err(error) => debug!(event = "sweep_failed", %error, "due recordings not read"),
        }
        take_over(&parts, TAKE.min(IN_FLIGHT.saturating_sub(parts.hands.busy()))).await;
    }
}

/// Takes over what a worker that is gone had in flight, without waiting until its leases expire.
async fn take_over(parts: &Arc<Parts>, room: usize) {
    for worker in parts.alive.gone() {
        let (zone, lease) = (&parts.common.config.kazoo.zone, parts.common.config.ledger.lease);
        match parts.ledger.leased_by(&worker, zone, lease, TAKE * 2).await {
            Ok(leased) if leased.is_empty() => parts.alive.forget(&worker),
            Ok(leased) => {
                let recordings = leased.len();
                let taken = take_some(parts, leased, room, false).await;
                debug!(event = "takeover", worker, recordings, taken, "taking over recordings");
                if taken > 0 {
                    WorkerGone {
                        worker: &worker,
                        recordings: taken,
                    }
                    .emit();
                }
            }
            Err(error) => debug!(event = "takeover_failed", %error, "in-flight recordings of a dead worker not read"),
        }
    }
}

/// Takes some of them, at most as many as there is `room` for.
async fn take_some(parts: &Arc<Parts>, mut found: Vec<(Address, Record)>, room: usize, behind: bool) -> usize {
    fastrand::shuffle(&mut found);
    let mut taken = 0;
    for (address, record) in found.into_iter().take(room) {
        taken += usize::from(take(parts, &address, Some(record.entry), Input::Due, behind).await);
    }
    taken
}

/// Takes a recording, if no other worker has it. While events are `behind`, a recording of which nothing was heard yet is not taken. `seen`
/// is the entry as it was found.
async fn take(parts: &Arc<Parts>, address: &Address, seen: Option<Entry>, input: Input, behind: bool) -> bool {
    let seen = seen.map(|entry| known(parts, entry));
    let is_silent = |entry: &Entry| entry.started().is_none() && entry.ended().is_none();
    if behind && seen.as_ref().is_none_or(is_silent) {
        // Before its lease is taken: otherwise an uncommanded start would wait until the lease expires.
        return false;
    }
    let Some(mailbox) = parts.hands.take(address.key) else {
        return false;
    };
    let is_gone = |worker: &str| parts.alive.is_gone(worker);
    let taken = parts
        .ledger
        .take(address, parts.common.config.ledger.lease, &is_gone)
        .await;
    match taken {
        Ok(Some(record)) => {
            drive::begin(parts, known(parts, record.entry), input, mailbox);
            true
        }
        Ok(None) => {
            leave(parts, address, seen, mailbox);
            false
        }
        Err(error) => {
            debug!(event = "lease_not_taken", %error, "lease not taken");
            if let Some(entry) = &seen {
                give_back(parts, entry.clone());
            }
            leave(parts, address, seen, mailbox);
            false
        }
    }
}

/// The lease may be written although its answer was lost. Then no worker would have the recording in flight until the lease expires.
fn give_back(parts: &Arc<Parts>, entry: Entry) {
    let (parts, tasks) = (Arc::clone(parts), parts.tasks.clone());
    let giving = async move {
        let lease = Some(parts.ledger.no_lease());
        let receipt = parts.ledger.note(&entry, lease, Duration::ZERO).await;
        let written = receipt.within(parts.common.config.ledger.lease);
        tokio::select! {
            _ = written => {}
            () = parts.common.stop.cancelled() => {}
        }
    };
    tasks.spawn(survive("give_back", giving));
}

/// The ledger's version of a recording, with what this worker heard lately and the ledger may not have yet.
fn known(parts: &Parts, entry: Entry) -> Entry {
    parts.registry.completed(entry)
}

/// Lets go of a recording that was not taken. Inputs that arrived meanwhile went to this task alone, so it drives the recording with them.
fn leave(parts: &Arc<Parts>, address: &Address, seen: Option<Entry>, mut mailbox: Mailbox) {
    let Some(input) = mailbox.let_go() else { return };
    match seen.or_else(|| parts.registry.entry(address.key)) {
        Some(entry) => drive::begin(parts, known(parts, entry), input, mailbox),
        None => {
            let (parts, address, tasks) = (Arc::clone(parts), address.clone(), parts.tasks.clone());
            let going_on = async move {
                let entry = loop {
                    match parts.ledger.load(&address).await {
                        Ok(record) => break record.map(|record| record.entry),
                        Err(error) => debug!(event = "input_waits", %error, "input waits for the ledger"),
                    }
                    if parts.common.rest().await.is_none() {
                        break None;
                    }
                };
                if let Some(entry) = entry {
                    drive::begin(&parts, known(&parts, entry), input, mailbox);
                }
            };
            tasks.spawn(async move { survive("left", going_on).await });
        }
    }
}

/// Reconciles every open recording of the zone when a new session begins: events that were published while no queue was bound are lost.
pub async fn reconcile(parts: Arc<Parts>) {
    let mut sessions = parts.consumers.watch();
    let mut seen = 0;
    loop {
        let changed = tokio::select! {
            changed = sessions.wait_for(|state| state.consuming && state.epoch > seen) => changed.map(|state| state.epoch),
            () = parts.common.stop.cancelled() => return,
        };
        let Ok(epoch) = changed else { return };
        seen = epoch;
        // First the ecallmgrs come back, and the workers handle what waits in the queues.
        let calm = parts.common.config.flow.grace.min(Duration::from_secs(5));
        tokio::select! {
            () = tokio::time::sleep(calm) => {}
            () = parts.common.stop.cancelled() => return,
        }
        let mut open = loop {
            match parts.ledger.open(&parts.common.config.kazoo.zone).await {
                Ok(open) => break open,
                Err(error) => debug!(event = "reconcile_waits", %error, "open recordings not read, retrying"),
            }
            if parts.common.rest().await.is_none() {
                return;
            }
        };
        // After a broker restart ecallmgrs may be back later than this worker. A call for which no ecallmgr answers counts as alive until
        // the next channel query, minutes later.
        if !open.is_empty() && !ecallmgr_answers(&parts).await {
            return;
        }
        fastrand::shuffle(&mut open);
        debug!(
            event = "reconcile",
            recordings = open.len(),
            epoch,
            "reconciling open recordings"
        );
        for address in open {
            if parts.common.stop.is_cancelled() {
                return;
            }
            take(&parts, &address, None, Input::Doubt, false).await;
            tokio::time::sleep(RECONCILE_STEP).await;
        }
    }
}

/// Waits until an ecallmgr answers, but not for ever; `false` when the worker shuts down meanwhile. Each ecallmgr answers for every call,
/// also for one that does not exist.
async fn ecallmgr_answers(parts: &Arc<Parts>) -> bool {
    let no_call = format!("kz-record-call-{}", uuid::Uuid::new_v4().simple());
    for pause in ANSWER_PAUSES_S.map(Duration::from_secs) {
        if parts.is_alive(&no_call).await.is_some() {
            return true;
        }
        debug!(
            event = "ecallmgr_silent",
            pause_s = pause.as_secs(),
            "no answer from ecallmgr yet"
        );
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = parts.common.stop.cancelled() => return false,
        }
    }
    true
}

/// Interval between two searches for entries that were written on both sides of a partitioned cluster.
const MEND: Duration = Duration::from_secs(60);

/// Merges what a partitioned cluster wrote twice, every minute.
pub async fn mend(parts: Arc<Parts>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(MEND.mul_f64(0.75 + fastrand::f64() * 0.5)) => {}
            () = parts.common.stop.cancelled() => return,
        }
        if !parts.ledger.is_up() {
            continue;
        }
        match parts.ledger.mend().await {
            Ok(0) => {}
            Ok(entries) => debug!(
                event = "ledger_conflicts_merged",
                entries, "conflicting ledger entries merged"
            ),
            Err(error) => debug!(event = "ledger_conflicts_unread", %error, "ledger not searched for conflicts"),
        }
    }
}

/// Drops what is past its retention, and prepares what comes next, every few hours.
pub async fn retain(parts: Arc<Parts>) {
    loop {
        if let Err(error) =
            retention::sweep(&parts.ledger, parts.common.now(), parts.common.config.ledger.retention).await
        {
            debug!(event = "retention_failed", %error, "old months not examined");
        }
        if let Err(error) = tidy_hold(&parts).await {
            debug!(event = "hold_retention_failed", %error, "old days of the hold not examined");
        }
        prepare(&parts).await;
        tokio::select! {
            // Not all workers at the same moment, also where all were started together.
            () = tokio::time::sleep(RETENTION.mul_f64(0.75 + fastrand::f64() * 0.5)) => {}
            () = parts.common.stop.cancelled() => return,
        }
    }
}

/// Creates the databases of the next day and the next month before they are needed.
async fn prepare(parts: &Parts) {
    let now = parts.common.now();
    let soon = now.plus(AHEAD);
    if soon.month() != now.month()
        && let Err(error) = parts.ledger.prepare(soon.month()).await
    {
        debug!(event = "ledger_not_prepared", %error, "next month's database not created ahead");
    }
    if let Err(error) = parts.hold.prepare(now, soon).await {
        debug!(event = "hold_not_prepared", %error, "next day's database not created ahead");
    }
}

/// The entry that a copy in the hold belongs to. A copy must not be thrown away if the ledger does not know its recording, or does not
/// answer.
async fn needs_hold(parts: &Parts, address: &Address) -> Option<Entry> {
    parts
        .ledger
        .load(address)
        .await
        .ok()
        .flatten()
        .map(|record| record.entry)
}

/// Removes copies of closed recordings from the hold: two workers that did not see each other may have put a recording there twice.
async fn tidy_hold(parts: &Parts) -> Result<(), HoldError> {
    let mut after = None;
    loop {
        let (older, more) = parts.hold.older(parts.common.now(), after).await?;
        for (address, place, name) in older {
            if !is_needed(parts, &address, &name).await {
                parts.hold.remove_named(&place, &name).await?;
            }
        }
        match more {
            Some(more) => after = Some(more),
            None => return parts.hold.drop_empty_days(parts.common.now()).await,
        }
    }
}

async fn is_needed(parts: &Parts, address: &Address, name: &str) -> bool {
    let needed = needs_hold(parts, address).await;
    let separated = needed.as_ref().and_then(|entry| {
        let separated = entry.separated(name, parts.common.now(), &parts.common.policy.worker)?;
        Some(crate::ledger::address(&separated))
    });
    let entry = match separated {
        Some(separated) => needs_hold(parts, &separated).await,
        None => needed,
    };
    entry.is_none_or(|entry| !entry.is_closed())
}
