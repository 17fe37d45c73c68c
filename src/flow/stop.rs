//! The action's other verbs: stop, mask and unmask the newest recording of the call that runs.
//!
//! Each is a state, not a message. A stop is repeated until the switch confirms it, and applied to a start that comes later; an operator is told when it
//! stays unconfirmed, for payment data may be recorded. The switch confirms no mask: its command is repeated until the broker has it, and sent again at each
//! start; an operator is told when it cannot have been obeyed.

use std::time::Duration;

use tracing::warn;

use crate::entry::Entry;
use crate::entry::fact::{Fact, Route, What};
use crate::kazoo::dialplan::Control;
use crate::recording::controls::Why;
use crate::recording::names;

use super::next::Input;
use super::registry::Open;
use super::start::Job;
use super::{drive, journal, notices};

/// How long the ledger has to tell a recording that no worker's memory knows.
const KNOWLEDGE: Duration = Duration::from_secs(1);

/// Does it; tells the recording's id, if one is known, and whether it is answered and durable.
pub(super) async fn control(job: &Job<'_>, what: Control) -> (String, bool) {
    job.accept().await;
    if let Some(open) = find(job).await {
        let facts = tell_switch(job, &open, what).await;
        let answered = job.result().await;
        let durable = write_down(job, &open, facts).await;
        return (open.media_id, answered && durable);
    }
    if let Some(name) = job.action.call.media_name.as_ref().filter(|name| names::is_plain(name)) {
        stranger(job, name, what).await;
        return (String::new(), job.result().await);
    }
    let known = known_here(job);
    let facts = match &known {
        Some(open) => Some(tell_switch(job, open, what).await),
        None => None,
    };
    let answered = job.result().await;
    // What follows takes its time, and the call waited for its answer.
    let moved = match known {
        Some(open) => Some(open),
        None => moved_here(job).await,
    };
    let Some(open) = moved else {
        warn!(
            event = "no_recording_of_call",
            call_id = job.action.call_id,
            action = what.name(),
            "no recording of this call is known; nothing is sent"
        );
        return (String::new(), answered);
    };
    let mut facts = match facts {
        Some(facts) => facts,
        None => tell_switch(job, &open, what).await,
    };
    if what != Control::Stop {
        // A stop shows by itself whether it was obeyed; of a mask nobody would ever hear.
        let moved = What::NotObeyed {
            action: job.action.msg_id.clone().unwrap_or_default(),
            what,
            why: Why::Moved,
        };
        facts.extend(stamped(job, &[moved]));
    }
    let durable = write_down(job, &open, facts).await;
    (open.media_id, answered && durable)
}

/// Sends the command; what is to be written down of it.
async fn tell_switch(job: &Job<'_>, open: &Open, what: Control) -> Vec<Fact> {
    let (parts, action) = (job.parts, job.action);
    let sent = parts
        .send_control(&action.control, &action.call_id, &open.media_id, &open.file_name, what)
        .await;
    if what == Control::Stop {
        parts.registry.stopping(open.key);
        notices::stopping(parts, open);
    }
    // The action's id tells its repeats from another action.
    let id = action.msg_id.clone().unwrap_or_default();
    let route = Some(Route {
        control: action.control.to_string(),
        call_id: action.call_id.clone(),
    });
    let on = what == Control::Mask;
    let asked = match what {
        Control::Stop => What::StopAsked {
            action: id.clone(),
            route,
        },
        Control::Mask | Control::Unmask => What::MaskAsked {
            action: id.clone(),
            on,
            route,
        },
    };
    let delivered = match what {
        Control::Stop => What::StopSent { n: 1 },
        Control::Mask | Control::Unmask => What::Masked { action: id, on, n: 0 },
    };
    let facts = match sent {
        Ok(()) => vec![asked, delivered],
        Err(_) => vec![asked],
    };
    // At once: the end may be on its way already, and whoever hears of it begins with what is remembered.
    let stamped = stamped(job, &facts);
    parts.registry.hear(open.key, &open.call_id, &stamped);
    stamped
}

fn stamped(job: &Job<'_>, facts: &[What]) -> Vec<Fact> {
    let stamp = |what: &What| Fact {
        at: job.parts.now(),
        by: job.parts.policy.worker.clone(),
        what: what.clone(),
    };
    facts.iter().map(stamp).collect()
}

/// Writes down what was asked and sent, tells the other workers, and follows it up.
async fn write_down(job: &Job<'_>, open: &Open, stamped: Vec<Fact>) -> bool {
    let (parts, action) = (job.parts, job.action);
    let mut entry = parts
        .registry
        .entry(open.key)
        .unwrap_or_else(|| Entry::new(open.key, &open.call_id));
    if entry.order().is_none() {
        // Only what another worker told is known. This says also which month of the ledger has the rest.
        entry.add(Fact {
            at: open.asked_at,
            by: parts.policy.worker.clone(),
            what: What::HeardOf {
                media_id: open.media_id.clone(),
            },
        });
    }
    // Operators are told of what the driver learns, so it is not to know these before.
    let mut unheeded = Entry::new(open.key, &open.call_id);
    for fact in &stamped {
        unheeded.add(fact.clone());
        if !matches!(fact.what, What::NotObeyed { .. }) {
            entry.add(fact.clone());
        }
    }
    parts.registry.remember(&entry);
    if entry.order().is_none()
        && parts.ledger.is_up()
        && let Ok(Ok(Some(record))) =
            tokio::time::timeout(KNOWLEDGE, parts.ledger.load(&crate::ledger::address(&entry))).await
    {
        entry = record.entry.merge(entry);
    }
    let is_known = entry.order().is_some();
    // Whoever writes the recording's document must know it; and whoever knows the order follows it up, if this worker does not.
    notices::controlled(parts, &entry, &stamped, !is_known);
    let durable = journal::write(parts, &entry.clone().merge(unheeded.clone())).await;
    if is_known {
        // Whoever has the recording in hand takes it in, with its times; otherwise it is followed up from here.
        drive::go_on(parts, entry, Input::Known(Box::new(unheeded)));
    } else {
        warn!(
            event = "control_of_unknown_order",
            call_id = action.call_id,
            media_id = open.media_id,
            durable,
            "the ledger does not tell the recording's order; whichever worker knows it follows the command up"
        );
    }
    durable
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

/// A recording of the same conversation that is known to have gone along to this leg.
fn known_here(job: &Job<'_>) -> Option<Open> {
    let interaction = job.action.call.parties.interaction_id.as_deref()?;
    let mut entries = remembered(job, interaction);
    entries.retain(|entry| is_to_be_controlled(entry) && entry.carried_by().call_id == job.action.call_id);
    let newest = entries
        .iter()
        .max_by_key(|entry| entry.order().map(|order| order.asked_at))?;
    Open::of(newest)
}

/// What this worker's memory has of the recordings of a conversation.
fn remembered(job: &Job<'_>, interaction: &str) -> Vec<Entry> {
    let registry = &job.parts.registry;
    let open = registry.of_interaction(interaction);
    let entries = open.iter().filter_map(|open| registry.entry(open.key));
    entries.filter(|entry| entry.order().is_some()).collect()
}

fn is_to_be_controlled(entry: &Entry) -> bool {
    entry.is_open() && entry.stop_asked_at().is_none()
}

/// The same, by what the ledger knows too, and where no event told of the move: the leg that it began on is gone, and it runs all the same.
async fn moved_here(job: &Job<'_>) -> Option<Open> {
    let (parts, action) = (job.parts, job.action);
    let interaction = action.call.parties.interaction_id.as_deref()?;
    let mut entries = remembered(job, interaction);
    if parts.ledger.is_up() {
        let looking = parts.ledger.of_interaction(interaction);
        let records = tokio::time::timeout(KNOWLEDGE, looking).await.ok()?.unwrap_or_default();
        entries.extend(records.into_iter().map(|record| parts.registry.complete(record.entry)));
    }
    // The newest first, as everywhere.
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.order().map(|order| order.asked_at)));
    for entry in entries {
        if !is_to_be_controlled(&entry) {
            continue;
        }
        let carrier = entry.carried_by();
        let is_here = carrier.call_id == action.call_id;
        let its_leg = parts.replaced.current(&carrier.call_id);
        if is_here || its_leg != action.call_id && parts.is_alive(&its_leg).await == Some(false) {
            parts.registry.remember(&entry);
            return Open::of(&entry);
        }
    }
    None
}

/// No recording of ours is known: another recorder's, by the name that the call carries, is what Kazoo's own action would stop then.
async fn stranger(job: &Job<'_>, name: &str, what: Control) {
    let (parts, action) = (job.parts, job.action);
    // What it came to is told by the command's own event.
    let _ = parts
        .send_control(&action.control, &action.call_id, "", name, what)
        .await;
}
