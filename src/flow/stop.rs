//! The action's other verbs: stop, mask and unmask the newest running recording of the call.
//!
//! Each of them is a state, not a message. A stop is repeated until the switch confirms it, and applied to a start that comes later. An
//! operator is alerted if it stays unconfirmed, because payment data may be recorded. The switch confirms no mask. Its command is repeated
//! until the broker has it, and sent again at each start. An operator is alerted if it cannot have been obeyed.
//!
//! If no worker remembers a recording of the call, only the ledger can say that there is none. While the ledger does not answer, the action
//! waits in a queue of its own. Its call is answered, and it takes no prefetch slot that starts need.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use crate::amqp::{Delivery, QueueKind, QueueSpec};
use crate::entry::Entry;
use crate::entry::fact::{BEFORE_ANY_START, Fact, Route, What};
use crate::kazoo::dialplan::Control;
use crate::kazoo::time::Moment;
use crate::kazoo::time::message_time;
use crate::recording::controls::Why;
use crate::recording::plan::Plan;
use crate::telemetry::events::ControlWaits;
use crate::telemetry::trace::{self, Stage};

use super::find::{self, Found, Look};
use super::perform::Parts;
use super::registry::Open;
use super::returns::{put_back, reject};
use super::start::{Job, read};
use super::{at_once, drive, journal, notices};
use crate::lifecycle::Input;

/// The queue where actions wait for the ledger to find the recording that they are for.
pub const CONTROLS: &str = "kz_record_call.controls";

const MAX_BYTES: i64 = 64 << 20;
const PREFETCH: u16 = 200;

/// Time limit for the ledger to load a recording's order.
const KNOWLEDGE: Duration = Duration::from_secs(1);

/// Delays before the memory is searched again, in milliseconds. A recording can have begun on another worker a moment ago, and that
/// worker's notice can be on its way.
const LOOKS: [u64; 4] = [100, 200, 400, 800];

/// The same if another recorder records the call, and the action is most likely for that recording: a mask must not come late.
const NAMED_LOOKS: &[u64] = &[100, 200];

/// How often an action that waited for the ledger is searched for before it counts that there is no recording. In the same time a recording
/// that only the journal knew is moved into the ledger.
const ENOUGH: u32 = 5;

/// For this long after its start a worker does not believe that a call has no recording. It heard no notice of earlier recordings, and a
/// CouchDB node that was started with it may lag behind the others. The action is searched for again for some seconds, also by other workers.
pub(super) const MEMORY_GROWS: Duration = Duration::from_secs(900);

/// Why such an action waits.
const STARTED_LATELY: &str = "this worker started a moment ago";

/// The queue of the actions that wait.
pub fn controls(gate: tokio::sync::watch::Receiver<bool>, dead_letters: &str) -> QueueSpec {
    QueueSpec {
        name: CONTROLS.into(),
        kind: QueueKind::Shared {
            max_bytes: MAX_BYTES,
            dead_letters: dead_letters.to_owned(),
        },
        bindings: Vec::new(),
        prefetch: PREFETCH,
        gate: Some(gate),
    }
}

/// Carries the action out. Returns the recording's id, if one is known, and whether the action is answered and durable.
pub(super) async fn control(job: &Job<'_>, what: Control, delivery: &Delivery) -> (String, bool) {
    job.accept().await;
    let mut look = find::look(job).await;
    if let Look::Found(found) = look {
        return Box::pin(carry_out(job, *found, what)).await;
    }
    let named = find::stranger(job);
    if let (Some(name), Look::None) = (named, &look) {
        look = look_at_memory_again(job, NAMED_LOOKS).await;
        if matches!(look, Look::None) {
            look = find::look_further(job).await;
        }
        match look {
            Look::Found(found) => return Box::pin(carry_out(job, *found, what)).await,
            // A recording of ours may wait in the journal.
            Look::None if journal::has_more(job.parts).await => {}
            Look::None => {
                stranger(job, name, what).await;
                return (String::new(), job.result().await);
            }
            Look::Untold(_) => {}
        }
    }
    let asked_by = job.at.unwrap_or_else(|| job.parts.common.now());
    let answered = job.result().await;
    // What follows takes time, so the call got its answer before. The call has continued: the action is not for what the call's next action
    // starts.
    let late = Job {
        doubtful: true,
        at: Some(asked_by),
        ..*job
    };
    let job = &late;
    look = find::look(job).await;
    let is_final = |look: &Look| match look {
        Look::Found(_) => true,
        Look::Untold(why) => find::is_final(job, why),
        Look::None => false,
    };
    if !is_final(&look) {
        // Untold, or none: its worker's word may be on its way.
        if let found @ Look::Found(_) = look_at_memory_again(job, &LOOKS).await {
            look = found;
        }
    }
    if !is_final(&look) {
        // Unless its worker could not tell, the ledger has it by now.
        look = find::look_further(job).await;
    }
    if matches!(look, Look::None) {
        if journal::has_more(job.parts).await {
            look = Look::Untold(journal::WAITING.to_owned());
        } else if find::stranger(job).is_none() && job.parts.begun.elapsed() < MEMORY_GROWS {
            look = Look::Untold(STARTED_LATELY.to_owned());
        }
    }
    match look {
        Look::Found(found) => {
            let (media_id, done) = Box::pin(tell_and_write(job, *found, what, async { true })).await;
            (media_id, answered && done)
        }
        Look::None => {
            none_of_ours(job, what).await;
            (String::new(), answered)
        }
        Look::Untold(why) => {
            let waits = job.parts.publisher.pass_on(delivery, CONTROLS, &why).await;
            ControlWaits {
                call_id: &job.action.call_id,
                action: what.name(),
                why: &why,
                result: waits.as_ref().copied().map_err(ToString::to_string),
            }
            .emit();
            (String::new(), answered && waits.is_ok())
        }
    }
}

/// Searches what all workers remember, after each of these delays in milliseconds.
async fn look_at_memory_again(job: &Job<'_>, pauses: &[u64]) -> Look {
    for pause in pauses {
        tokio::time::sleep(Duration::from_millis(*pause)).await;
        if let Some(found) = find::remembered(job) {
            return Look::Found(Box::new(found));
        }
    }
    Look::None
}

/// No recording of ours runs on the call. The action is for another recorder's recording, or for none.
async fn none_of_ours(job: &Job<'_>, what: Control) {
    if let Some(name) = find::stranger(job) {
        return stranger(job, name, what).await;
    }
    warn!(
        event = "no_recording_of_call",
        call_id = job.action.call_id,
        action = what.name(),
        "no recording of this call, nothing sent"
    );
}

/// Handles an action that waited for the ledger, and is answered.
pub async fn handle(parts: &Arc<Parts>, delivery: Delivery) {
    trace::within(Stage::Action, delivery.trace(), Box::pin(resume(parts, delivery))).await;
}

async fn resume(parts: &Arc<Parts>, delivery: Delivery) {
    const QUEUE: &str = "controls";
    let room = parts.room.of(&delivery).await;
    let asked = delivery
        .envelope()
        .map_err(|error| error.to_string())
        .and_then(|envelope| read(parts, &delivery, &envelope).1.map_err(|error| error.to_string()));
    drop(room);
    let (action, what) = match asked {
        Ok(asked) => match asked.plan {
            Plan::Control(what) => (asked.action, what),
            _ => {
                return reject(
                    parts,
                    delivery,
                    QUEUE,
                    &asked.action.call_id,
                    "it is no stop, mask or unmask",
                )
                .await;
            }
        },
        Err(why) => return reject(parts, delivery, QUEUE, "", &why).await,
    };
    let job = Job {
        parts,
        action: &action,
        reply_to: None,
        doubtful: true,
        repeated: true,
        waited: delivery.returns() >= ENOUGH,
        at: delivery.timestamp().and_then(|at| message_time(at, parts.common.now())),
    };
    let mut look = find::look(&job).await;
    if !matches!(look, Look::Found(_)) {
        look = find::look_further(&job).await;
    }
    let done = match look {
        Look::Found(found) => Box::pin(carry_out(&job, *found, what)).await.1,
        Look::None if delivery.returns() >= ENOUGH && !journal::has_more(parts).await => {
            none_of_ours(&job, what).await;
            true
        }
        Look::None | Look::Untold(_) => false,
    };
    if done {
        delivery.ack().await;
    } else {
        put_back(parts, QUEUE, delivery).await;
    }
}

/// Sends the command to the switch, answers the action, and writes it down.
async fn carry_out(job: &Job<'_>, found: Found, what: Control) -> (String, bool) {
    Box::pin(tell_and_write(job, found, what, job.result())).await
}

async fn tell_and_write(
    job: &Job<'_>,
    found: Found,
    what: Control,
    answering: impl Future<Output = bool>,
) -> (String, bool) {
    let kind = match found {
        Found::Between(_) => Meant::Next,
        _ => Meant::Running,
    };
    let (open, has_moved) = match found {
        Found::Here(open) | Found::Between(open) => (open, false),
        Found::Moved(open) => (open, true),
        Found::Done { media_id, unwritten } => {
            // A repeat must not reach a recording that began since, nor undo what was asked since.
            let answered = answering.await;
            let written = match unwritten {
                Some((open, facts)) => write_down(job, &open, facts).await,
                None => true,
            };
            return (media_id, answered && written);
        }
    };
    let mut facts = tell_switch(job, &open, what, kind).await;
    if has_moved && what != Control::Stop {
        // A stop shows by itself whether it was obeyed. A mask never does.
        let moved = What::NotObeyed {
            action: job.action.msg_id.clone().unwrap_or_default(),
            what,
            why: Why::Moved,
        };
        facts.extend(stamped(job, &[moved]));
    }
    let is_first = what == Control::Stop && !job.doubtful && !has_moved && kind == Meant::Running;
    let asked = facts.first().cloned();
    // Side by side: the answer waits for nothing, and a worker that dies before its answer is out has told the others.
    let (answered, mut durable) = tokio::join!(answering, write_down(job, &open, facts));
    let mut media_id = open.media_id.clone();
    if let Some(asked) = asked.filter(|_| is_first)
        && let Some(others) = at_once::the_one_before(job, &open, &asked).await
    {
        durable &= write_down(job, &others, tell_switch(job, &others, what, kind).await).await;
        media_id = others.media_id;
    }
    (media_id, answered && durable)
}

/// Which recording an action is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meant {
    Running,
    /// The recording that the next bridge begins: no command is sent before.
    Next,
}

/// Sends the command. Returns the facts that must be written.
async fn tell_switch(job: &Job<'_>, open: &Open, what: Control, meant: Meant) -> Vec<Fact> {
    let (parts, action) = (job.parts, job.action);
    let known = parts.registry.entry(open.key);
    // Of the first look this is not asked: the clocks of two callflow nodes may differ.
    let late = job.at.filter(|_| job.doubtful);
    let overtaken =
        what != Control::Stop && late.is_some_and(|at| known.as_ref().is_some_and(|entry| entry.is_overtaken(at)));
    let sending = parts.send_control(&action.control, &action.call_id, &open.media_id, &open.file_name, what);
    let is_sent = if overtaken {
        warn!(
            event = "control_overtaken",
            call_id = action.call_id,
            media_id = open.media_id,
            action = what.name(),
            "control overtaken by a later action, not sent"
        );
        false
    } else {
        meant == Meant::Running && sending.await.is_ok()
    };
    if what == Control::Stop {
        parts.registry.stopping(open.key);
        notices::stopping(parts, open);
    }
    // The action's id distinguishes its repeats from another action.
    let id = action.msg_id.clone().unwrap_or_default();
    if !id.is_empty() {
        parts.registry.done(&id, open.key, &open.media_id);
    }
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
            asked: asked_after(job, known.as_ref()),
            route,
        },
    };
    let start = known.as_ref().and_then(Entry::newest_start);
    // A worker that knows the recording only by a notice knows of no start. Then the command is repeated rather than taken for obeyed.
    let known_start = Some(known.as_ref().and_then(Entry::newest_start).unwrap_or(BEFORE_ANY_START));
    let delivered = match what {
        Control::Stop => What::StopSent { n: 1, start },
        Control::Mask | Control::Unmask => What::Masked {
            action: id,
            on,
            n: 0,
            start: known_start,
        },
    };
    let facts = if is_sent { vec![asked, delivered] } else { vec![asked] };
    // At once: the end may be on its way already, and its handler starts from what is remembered.
    let stamped = stamped(job, &facts);
    parts.registry.hear(open.key, &open.call_id, &stamped);
    stamped
}

/// When a mask or unmask was sent, by its sender's clock. A fresh one is the newest, though the clock of its callflow node may be behind the
/// clock of the node that sent the one before.
fn asked_after(job: &Job<'_>, known: Option<&Entry>) -> Option<Moment> {
    let before = known.and_then(Entry::newest_mask_asked).filter(|_| !job.doubtful);
    match (job.at, before) {
        (Some(at), Some(before)) if before >= at => Some(before.plus(Duration::from_micros(1))),
        (at, _) => at,
    }
}

fn stamped(job: &Job<'_>, facts: &[What]) -> Vec<Fact> {
    let stamp = |what: &What| Fact {
        at: job.parts.common.now(),
        by: job.parts.common.policy.worker.clone(),
        what: what.clone(),
    };
    facts.iter().map(stamp).collect()
}

/// Writes down what was asked and sent, notifies the other workers, and follows it up.
async fn write_down(job: &Job<'_>, open: &Open, stamped: Vec<Fact>) -> bool {
    let (parts, action) = (job.parts, job.action);
    let mut entry = parts
        .registry
        .entry(open.key)
        .unwrap_or_else(|| Entry::new(open.key, &open.call_id));
    if entry.order().is_none() {
        // Only the notice of another worker is known. This fact also says which month of the ledger has the rest.
        entry.add(Fact {
            at: open.asked_at,
            by: parts.common.policy.worker.clone(),
            what: What::HeardOf {
                media_id: open.media_id.clone(),
            },
        });
    }
    // Operators are alerted of what the driver learns, so the driver must not know these facts before.
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
    // The worker that writes the recording's document must know this. If this worker does not know the order, a worker that knows it
    // follows the action up.
    notices::controlled(parts, &entry, &stamped, !is_known);
    let durable = journal::write(parts, &entry.clone().merge(unheeded.clone())).await;
    if is_known {
        // The task that has the recording in flight gets the facts with their times. Without such a task the action is followed up from
        // here.
        drive::go_on(parts, entry, Input::Known(Box::new(unheeded)));
    } else {
        warn!(
            event = "control_of_unknown_order",
            call_id = action.call_id,
            media_id = open.media_id,
            durable,
            "order of the controlled recording unknown"
        );
    }
    durable
}

/// No recording of ours is known. The call names another recorder's recording, and Kazoo's own action would stop that one.
async fn stranger(job: &Job<'_>, name: &str, what: Control) {
    let (parts, action) = (job.parts, job.action);
    // The event of the command reports what came of it.
    let _ = parts
        .send_control(&action.control, &action.call_id, "", name, what)
        .await;
}
