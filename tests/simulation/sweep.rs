//! The sweep of a worker: what is due and not in flight, what a dead worker had, and every open recording after a lost session.

use std::sync::Arc;
use std::time::Duration;

use kz_record_call::entry::Entry;
use kz_record_call::flow::hands::Mailbox;
use kz_record_call::ledger::{Address, Record};
use kz_record_call::lifecycle::Input;
use tokio::time::Instant;

use crate::faults::{Fault, is_back};
use crate::worker::{LEASE, Worker};

const POLL: u64 = 24_000;
const TAKE: usize = 64;
/// Few, so that a life of ten recordings can fill it.
const IN_FLIGHT: usize = 6;
const ZONE: &str = "local";

/// Sweeps until the worker dies.
pub async fn run(worker: Arc<Worker>) {
    let mut behind_until: Option<Instant> = None;
    let mut was_up = true;
    loop {
        tokio::time::sleep(worker.world.between(POLL / 2, POLL)).await;
        let is_up = worker.ledger.is_up();
        if is_up && !was_up {
            behind_until = Some(Instant::now() + worker.policy.start_timeout);
        }
        was_up = is_up;
        let busy = if is_back(Fault::WaitingCounts) {
            worker.hands.count()
        } else {
            worker.hands.busy()
        };
        if !is_up || busy >= IN_FLIGHT {
            continue;
        }
        let behind = behind_until.is_some_and(|until| Instant::now() < until);
        if let Ok(due) = worker.ledger.due(ZONE, TAKE).await {
            take_some(&worker, due, IN_FLIGHT - busy, behind).await;
        }
        for gone in worker.gone() {
            match worker.ledger.leased_by(&gone, ZONE, LEASE, TAKE).await {
                Ok(leased) if leased.is_empty() => worker.forget_worker(&gone),
                Ok(leased) => take_some(&worker, leased, IN_FLIGHT, false).await,
                Err(_) => {}
            }
        }
    }
}

async fn take_some(worker: &Arc<Worker>, mut found: Vec<(Address, Record)>, room: usize, behind: bool) {
    found = worker.world.shuffled(found);
    for (address, record) in found.into_iter().take(room) {
        take(worker, &address, Some(record.entry), Input::Due, behind).await;
    }
}

async fn take(worker: &Arc<Worker>, address: &Address, seen: Option<Entry>, input: Input, behind: bool) {
    let seen = seen.map(|entry| worker.completed(entry));
    let is_silent = |entry: &Entry| entry.started().is_none() && entry.ended().is_none();
    if behind && seen.as_ref().is_none_or(is_silent) {
        return;
    }
    let Some(mailbox) = worker.hands.take(address.key) else {
        return;
    };
    let is_gone = |name: &str| worker.is_gone(name);
    let taken = worker.ledger.take(std::slice::from_ref(address), LEASE, &is_gone).await;
    match taken.into_iter().next().unwrap() {
        Ok(Some(record)) => {
            worker.note(|| format!("takes up {}", address.key));
            worker.drive(worker.completed(record.entry), input, mailbox);
        }
        Ok(None) => leave(worker, address, seen, mailbox),
        Err(_) => {
            if let Some(entry) = &seen {
                give_back(worker, entry.clone());
            }
            leave(worker, address, seen, mailbox);
        }
    }
}

fn give_back(worker: &Arc<Worker>, entry: Entry) {
    let giver = Arc::clone(worker);
    worker.spawn(async move {
        let lease = Some(giver.ledger.no_lease());
        giver
            .ledger
            .note(&entry, lease, Duration::ZERO)
            .await
            .within(LEASE)
            .await;
    });
}

/// What arrived meanwhile went to this task alone.
fn leave(worker: &Arc<Worker>, address: &Address, seen: Option<Entry>, mut mailbox: Mailbox) {
    if is_back(Fault::MailboxDropped) {
        return;
    }
    let Some(input) = mailbox.let_go() else { return };
    match seen.or_else(|| worker.remembered(address.key)) {
        Some(entry) => worker.drive(worker.completed(entry), input, mailbox),
        None => {
            let (goer, address) = (Arc::clone(worker), address.clone());
            worker.spawn(async move {
                let entry = loop {
                    if let Ok(record) = goer.ledger.load(&address).await {
                        break record.map(|record| record.entry);
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                };
                if let Some(entry) = entry {
                    goer.drive(goer.completed(entry), input, mailbox);
                }
            });
        }
    }
}

/// Events that were published while no queue was bound are lost: every open recording is looked at.
pub async fn reconcile(worker: Arc<Worker>) {
    let mut sessions = worker.session.subscribe();
    sessions.mark_changed();
    while sessions.changed().await.is_ok() {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let open = loop {
            if let Ok(open) = worker.ledger.open(ZONE).await {
                break open;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        for address in worker.world.shuffled(open) {
            take(&worker, &address, None, Input::Doubt, false).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Merges what a parted cluster wrote twice.
pub async fn mend(worker: Arc<Worker>) {
    loop {
        tokio::time::sleep(worker.world.between(45_000, 75_000)).await;
        if worker.ledger.is_up() {
            let _ = worker.ledger.mend().await;
        }
    }
}
