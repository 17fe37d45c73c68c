//! The action's other verbs: stop, mask and unmask the newest recording of the call that runs.
//!
//! A stop is a state, not a message: it is repeated until the switch confirms it, applied to a start that comes later, and an operator is told
//! when it stays unconfirmed, for payment data may be recorded.

use std::time::Duration;

use tracing::warn;

use crate::entry::Entry;
use crate::entry::fact::{Fact, What};
use crate::kazoo::dialplan::Control;
use crate::recording::names;

use super::next::Input;
use super::registry::Open;
use super::start::Job;
use super::{drive, journal, notices};

/// How long the ledger has to tell a recording that no worker's memory knows.
const KNOWLEDGE: Duration = Duration::from_secs(1);

/// Does it; tells the recording's id, if one is known, and whether it is answered and durable.
pub(super) async fn control(job: &Job<'_>, what: Control) -> (String, bool) {
    let (parts, action) = (job.parts, job.action);
    job.accept().await;
    let Some(open) = find(job).await else {
        stranger(job, what).await;
        return (String::new(), job.result().await);
    };
    let sent = parts
        .send_control(&action.control, &action.call_id, &open.media_id, &open.file_name, what)
        .await;
    if what == Control::Stop {
        parts.registry.stopping(open.key);
        notices::stopping(parts, &open);
    }
    let answered = job.result().await;
    // The action's id tells its repeats from another stop.
    let id = action.msg_id.clone().unwrap_or_default();
    let mut facts = vec![match what {
        Control::Stop => What::StopAsked { action: id },
        Control::Mask => What::Masked { action: id, on: true },
        Control::Unmask => What::Masked { action: id, on: false },
    }];
    if what == Control::Stop && sent.is_ok() {
        facts.push(What::StopSent { n: 1 });
    }
    let mut entry = parts
        .registry
        .entry(open.key)
        .unwrap_or_else(|| Entry::new(open.key, &open.call_id));
    for what in &facts {
        entry.add(Fact {
            at: parts.now(),
            by: parts.policy.worker.clone(),
            what: what.clone(),
        });
    }
    parts.registry.remember(&entry);
    if entry.order().is_none() {
        // Only what another worker told is known: the ledger has the rest.
        let address = crate::ledger::Address {
            month: open.asked_at.month(),
            call_id: open.call_id.clone(),
            key: open.key,
        };
        match parts.ledger.load(&address).await {
            Ok(Some(record)) => entry = record.entry.merge(entry),
            Ok(None) | Err(_) => {
                warn!(
                    call_id = action.call_id,
                    media_id = open.media_id,
                    "the stop was sent, and cannot be followed up: the ledger does not know its recording yet"
                );
                return (open.media_id, answered);
            }
        }
    }
    let durable = journal::write(parts, &entry).await;
    for what in facts {
        // Whoever has the recording in hand takes it in; otherwise it is followed up from here.
        drive::go_on(parts, entry.clone(), Input::Fact(what));
    }
    (open.media_id, answered && durable)
}

/// The newest recording of the call that is open: in the memory of all workers, else in the ledger.
async fn find(job: &Job<'_>) -> Option<Open> {
    let (parts, action) = (job.parts, job.action);
    let fetch_id = action.call.fetch_id.as_deref();
    if let Some(open) = parts.registry.newest(fetch_id, &action.call_id) {
        return Some(open);
    }
    if !parts.ledger.is_up() {
        return None;
    }
    let looking = async {
        let mut records = match fetch_id {
            Some(fetch_id) => parts.ledger.of_fetch(fetch_id).await.unwrap_or_default(),
            None => Vec::new(),
        };
        if records.is_empty() {
            records = parts.ledger.of_call(&action.call_id).await.unwrap_or_default();
        }
        records
    };
    let records = tokio::time::timeout(KNOWLEDGE, looking).await.unwrap_or_default();
    let newest = records
        .into_iter()
        .filter(|record| record.entry.is_open() && record.entry.stop_asked_at().is_none())
        .max_by_key(|record| record.entry.order().map(|order| order.asked_at))?;
    let open = Open::of(&newest.entry)?;
    parts.registry.open(open.clone());
    parts.registry.remember(&newest.entry);
    Some(open)
}

/// No recording of ours is known: somebody else's, by the name that the call carries, is what Kazoo's own action would stop then.
async fn stranger(job: &Job<'_>, what: Control) {
    let (parts, action) = (job.parts, job.action);
    match &action.call.media_name {
        Some(name) if names::is_plain(name) => {
            // What it came to is told by the command's own event.
            let _ = parts
                .send_control(&action.control, &action.call_id, "", name, what)
                .await;
        }
        _ => warn!(
            call_id = action.call_id,
            action = what.name(),
            "no recording of this call is known; nothing is sent"
        ),
    }
}
