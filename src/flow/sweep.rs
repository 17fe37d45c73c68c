//! ⑥ Sweep: what is due and in nobody's hand is taken up again; and after a connection was lost every open recording is looked after.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use crate::destination::hold::HoldError;
use crate::entry::Entry;
use crate::ledger::{Address, retention};
use crate::telemetry::events::SweepEnded;

use super::drive;
use super::next::Input;
use super::perform::Parts;

/// Recordings that one sweep takes at most, and that a worker has in hand before it takes no more.
const TAKE: usize = 64;
const IN_HAND: usize = 512;

/// How often old months are looked at.
const RETENTION: Duration = Duration::from_secs(6 * 3600);

/// Between two recordings that a reconcile looks after.
const RECONCILE_STEP: Duration = Duration::from_millis(20);

/// Sweeps until the worker goes down.
pub async fn run(parts: Arc<Parts>) {
    // Events that came while the ledger was away wait in their queue, and are read only now.
    let mut behind_until: Option<Instant> = None;
    let mut was_up = true;
    loop {
        // Not all workers at once.
        let poll = parts.config.ledger.poll;
        let pause = poll.mul_f64(0.75 + fastrand::f64() * 0.5);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = parts.stop.cancelled() => return,
        }
        let is_up = parts.ledger.is_up();
        if is_up && !was_up {
            behind_until = Some(Instant::now() + parts.config.flow.start_timeout);
            parts.targets.delivered(&parts.home().host);
        }
        was_up = is_up;
        if !is_up || parts.hands.count() >= IN_HAND {
            continue;
        }
        let behind = behind_until.is_some_and(|until| Instant::now() < until);
        match parts.ledger.due(&parts.config.kazoo.zone, TAKE * 2).await {
            Ok(mut due) => {
                fastrand::shuffle(&mut due);
                let mut taken = 0;
                for address in due.iter().take(TAKE) {
                    taken += usize::from(take(&parts, address, Input::Due, behind).await);
                }
                SweepEnded { due: due.len(), taken }.emit();
            }
            Err(error) => debug!(%error, "the ledger does not say what is due"),
        }
    }
}

/// Takes a recording in hand, if nobody has it; one that nothing was heard of yet not while events are `behind`.
async fn take(parts: &Arc<Parts>, address: &Address, input: Input, behind: bool) -> bool {
    let Some(mailbox) = parts.hands.take(address.key) else {
        return false;
    };
    match parts.ledger.take(address, parts.config.ledger.lease).await {
        Ok(Some(record)) => {
            // What this worker heard lately may not be written yet.
            let known = parts.registry.entry(address.key);
            let entry = known.map_or_else(|| record.entry.clone(), |known| record.entry.clone().merge(known));
            let entry = parts.registry.complete(entry);
            if behind && entry.started().is_none() && entry.ended().is_none() {
                return false;
            }
            let parts = Arc::clone(parts);
            parts
                .tasks
                .clone()
                .spawn(async move { drive::drive(&parts, entry, input, mailbox).await });
            true
        }
        Ok(None) => false,
        Err(error) => {
            debug!(%error, "a recording that is due could not be taken");
            false
        }
    }
}

/// Looks after every open recording of the zone whenever a new session begins: events that were published while nobody was bound are lost.
pub async fn reconcile(parts: Arc<Parts>) {
    let mut sessions = parts.consumers.watch();
    let mut seen = 0;
    loop {
        let changed = tokio::select! {
            changed = sessions.wait_for(|state| state.consuming && state.epoch > seen) => changed.map(|state| state.epoch),
            () = parts.stop.cancelled() => return,
        };
        let Ok(epoch) = changed else { return };
        seen = epoch;
        // Ecallmgrs and what waits in the queues first.
        let calm = parts.config.flow.grace.min(Duration::from_secs(5));
        tokio::select! {
            () = tokio::time::sleep(calm) => {}
            () = parts.stop.cancelled() => return,
        }
        let mut open = loop {
            match parts.ledger.open(&parts.config.kazoo.zone).await {
                Ok(open) => break open,
                Err(error) => debug!(%error, "the ledger does not tell the open recordings yet"),
            }
            if parts.rest().await.is_none() {
                return;
            }
        };
        fastrand::shuffle(&mut open);
        debug!(recordings = open.len(), epoch, "looking after the open recordings");
        for address in open {
            if parts.stop.is_cancelled() {
                return;
            }
            take(&parts, &address, Input::Doubt, false).await;
            tokio::time::sleep(RECONCILE_STEP).await;
        }
    }
}

/// Drops what is past its retention, every few hours.
pub async fn retain(parts: Arc<Parts>) {
    loop {
        if let Err(error) = retention::sweep(&parts.ledger, parts.now(), parts.config.ledger.retention).await {
            debug!(%error, "old months are not looked at");
        }
        if let Err(error) = tidy_hold(&parts).await {
            debug!(%error, "old days of the hold are not looked at");
        }
        tokio::select! {
            () = tokio::time::sleep(RETENTION) => {}
            () = parts.stop.cancelled() => return,
        }
    }
}

/// The entry that a copy in the hold belongs to; audio that the ledger does not know, or cannot tell of, is nobody's to throw away.
async fn needs_hold(parts: &Parts, address: &Address) -> Option<Entry> {
    parts
        .ledger
        .load(address)
        .await
        .ok()
        .flatten()
        .map(|record| record.entry)
}

/// Takes out of the hold what belongs to closed recordings: two workers that did not see each other may have put it there twice.
async fn tidy_hold(parts: &Parts) -> Result<(), HoldError> {
    for (address, place, name) in parts.hold.older(parts.now()).await? {
        let needed = needs_hold(parts, &address).await;
        let separated = needed.as_ref().and_then(|entry| {
            let separated = entry.separated(&name, parts.now(), &parts.policy.worker)?;
            Some(crate::ledger::address(&separated))
        });
        let needed = match (needed, separated) {
            (Some(_), Some(separated)) => needs_hold(parts, &separated)
                .await
                .is_none_or(|entry| !entry.is_closed()),
            (entry, _) => entry.is_none_or(|entry| !entry.is_closed()),
        };
        if !needed {
            parts.hold.remove_named(&place, &name).await?;
        }
    }
    parts.hold.drop_empty_days(parts.now()).await
}
