//! ① Actions: the worker answers every action, whatever happens, because a call waits for the answer without a time-out.
//!
//! An action is acknowledged when what it started is durable. That means the ledger, or the journal if the ledger does not answer in
//! time. The answers wait for neither.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use tracing::warn;

use crate::amqp::Delivery;
use crate::destination::url::Target;
use crate::entry::Entry;
use crate::entry::fact::{Fact, Route, What};
use crate::kazoo::action::{Execute, ExecuteError, ReplyTo};
use crate::kazoo::dialplan::Trigger;
use crate::kazoo::envelope::Envelope;
use crate::kazoo::time::{Moment, message_time};
use crate::ledger::address;
use crate::recording::order::{Order, Url};
use crate::recording::plan::{Circumstances, Plan, plan};
use crate::recording::settings::Correction;
use crate::telemetry::events::{ActionHandled, ActionRefused, SettingCorrected};
use crate::telemetry::survive;
use crate::telemetry::trace::{self, Stage};

use super::answers::{ALARM_PATIENCE, accept, result};
use super::perform::Parts;
use super::registry::Open;
use super::{drive, journal, notices};
use crate::lifecycle::Input;

pub use super::returns::{DEAD_LETTERS, reject};

/// The name of the actions' queue in logs and metrics.
pub const QUEUE: &str = "actions";

/// Time limit for the ledger's answer to what it knows of a repeated action.
const KNOWLEDGE: Duration = Duration::from_secs(2);

/// An action in flight.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub parts: &'a Arc<Parts>,
    pub action: &'a Execute,
    /// The reply address, if the action has one.
    pub reply_to: Option<&'a ReplyTo>,
    /// The action may have been handled before, or its call may be over: the message was redelivered, or is old.
    pub doubtful: bool,
    /// The broker delivered it before.
    pub repeated: bool,
    /// The action waited in a queue of ours, long enough for the journal to be moved into the ledger.
    pub waited: bool,
    /// When it was sent, by its sender's clock.
    pub at: Option<Moment>,
}

/// Handles one delivery of the actions' queue, in the trace that it came with.
pub async fn handle(parts: &Arc<Parts>, delivery: Delivery) {
    trace::within(Stage::Action, delivery.trace(), Box::pin(act(parts, delivery))).await;
}

async fn act(parts: &Arc<Parts>, delivery: Delivery) {
    let begun = Instant::now();
    let room = parts.room.of(&delivery).await;
    let read = delivery.envelope().map(|envelope| read(parts, &delivery, &envelope));
    drop(room);
    let (reply_to, asked) = match read {
        Ok(read) => read,
        Err(error) => return reject(parts, delivery, QUEUE, "", &error.to_string()).await,
    };
    let done = match asked {
        Ok(asked) => {
            let action = &asked.action;
            let at = delivery.timestamp().and_then(|t| message_time(t, parts.common.now()));
            let age = at.map(|at| parts.common.now().since(at));
            let job = Job {
                parts,
                action,
                reply_to: reply_to.as_ref().ok(),
                doubtful: delivery.redelivered() || age.is_some_and(|age| age > parts.common.config.flow.stale_action),
                repeated: delivery.redelivered(),
                waited: false,
                at,
            };
            run(&job, &delivery, &asked, begun).await
        }
        Err(refusal) => {
            let answered = match &reply_to {
                Ok(to) => {
                    accept(parts, to).await;
                    result(parts, to).await
                }
                Err(_) => true,
            };
            let call_id = reply_to.as_ref().map_or("", |to| to.call_id.as_str());
            ActionRefused {
                call_id,
                why: &refusal.to_string(),
                answered: reply_to.is_ok() && answered,
            }
            .emit();
            if answered && refusal.is_too_long() {
                return reject(parts, delivery, QUEUE, call_id, &refusal.to_string()).await;
            }
            answered
        }
    };
    if done {
        parts.crash.step(delivery.ack()).await;
    }
    // Otherwise the action is not durable, or not answered: `dying::watched` returns it to its queue.
}

/// What an action asks for. Its data, of any size, is dropped after it was read.
pub(super) struct Asked {
    pub action: Execute,
    server_id: Option<String>,
    pub plan: Plan,
    corrections: Vec<Correction>,
}

/// Reads the reply address, and what is asked for. This must not wait, because it uses the memory limit for decoding.
pub(super) fn read(
    parts: &Parts,
    delivery: &Delivery,
    envelope: &Envelope,
) -> (Result<ReplyTo, String>, Result<Asked, ExecuteError>) {
    let reply_to = ReplyTo::of(envelope);
    let mut action = match Execute::of(envelope) {
        Ok(action) => action,
        Err(refusal) => return (reply_to, Err(refusal)),
    };
    let defaults = parts.system_config.defaults();
    let (mut plan, corrections) = plan(
        &action,
        &Circumstances {
            defaults: &defaults,
            seal: &parts.seal,
            zone: &parts.common.config.kazoo.zone,
            recordings: &parts.common.config.kazoo.recordings,
            timestamp: delivery.timestamp(),
            now: parts.common.now(),
        },
    );
    if let Plan::Start(order) = &mut plan {
        // The sender's own trace, so that a repeat has the same one. Else the trace that began here.
        let trace = delivery.trace().or_else(trace::current);
        order.trace = trace.map(|trace| trace.parent().to_owned());
    }
    action.data = Value::Null;
    let asked = Asked {
        action,
        server_id: envelope.server_id.clone(),
        plan,
        corrections,
    };
    (reply_to, Ok(asked))
}

async fn run(job: &Job<'_>, delivery: &Delivery, asked: &Asked, begun: Instant) -> bool {
    let (action, plan) = (job.action, &asked.plan);
    if job.reply_to.is_none() {
        let server_id = asked.server_id.as_deref().unwrap_or("");
        warn!(
            event = "no_reply_address",
            call_id = action.call_id,
            server_id,
            "action without a reply address"
        );
    }
    job.parts.registry.controlled(
        job.parts.common.now(),
        Route {
            control: action.control.to_string(),
            call_id: action.call_id.clone(),
        },
    );
    let (what, media_id, done) = match plan {
        Plan::Skip => ("skip", String::new(), job.answer_at_once().await),
        Plan::Start(order) => ("start", order.media_id.to_string(), start(job, order).await),
        Plan::Control(what) => {
            let (media_id, done) = Box::pin(super::stop::control(job, *what, delivery)).await;
            (what.name(), media_id, done)
        }
    };
    tell(&action.call_id, &media_id, &asked.corrections);
    if let Plan::Start(order) = plan
        && let Url::Given(url) = &order.url
        && let Err(why) = Target::parse(url)
    {
        warn!(event = "url_unusable",
            call_id = action.call_id,
            media_id, %why, "URL unusable, audio will be parked"
        );
    }
    ActionHandled {
        call_id: &action.call_id,
        account_id: action.call.account_id.as_deref().unwrap_or(""),
        media_id: &media_id,
        what,
        redelivered: delivery.redelivered(),
        took: begun.elapsed(),
    }
    .emit();
    done
}

impl Job<'_> {
    /// Sends `action.accepted`, if the action has a reply address.
    pub async fn accept(&self) {
        if let Some(to) = self.reply_to {
            self.parts.crash.step(accept(self.parts, to)).await;
        }
    }

    /// Sends `action.result`, likewise; `false` when it could not be delivered.
    pub async fn result(&self) -> bool {
        match self.reply_to {
            Some(to) => self.parts.crash.step(result(self.parts, to)).await,
            None => true,
        }
    }

    pub async fn answer_at_once(&self) -> bool {
        self.accept().await;
        self.result().await
    }
}

/// Starts a recording. `true` when it is answered, and durable.
async fn start(job: &Job<'_>, order: &Order) -> bool {
    let (parts, action) = (job.parts, job.action);
    // What is known only by the switch's events lacks a part of the order.
    let is_whole = |entry: &Entry| entry.order().is_some_and(|order| order.command.is_some());
    if let Some(entry) = parts.registry.entry(order.key).filter(is_whole) {
        // This worker has the recording already, and did not get to acknowledge the action.
        let answered = job.answer_at_once().await;
        return journal::write(parts, &entry).await && answered;
    }
    let mut entry = Entry::of_order(order.clone(), &parts.common.policy.worker);
    if job.doubtful || parts.registry.is_commanded(order.key) {
        let answered = job.answer_at_once().await;
        return start_in_doubt(parts, entry).await && answered;
    }
    let trigger = order.command.as_ref().map_or(Trigger::Now, |command| command.trigger);
    if let Some(open) = Open::of(&entry) {
        parts.registry.open(open);
    }
    // Before the command goes out, because its error may arrive before its confirmation.
    parts.registry.remember(&entry);
    notices::opened(parts, &entry);
    job.accept().await;
    let begun = Instant::now();
    let sent = loop {
        let sending = parts.send_start(order, &action.call_id, trigger);
        match parts.crash.step(sending).await {
            // The result waits for the end of the alarm too. It must not come first, because the call would continue before it is
            // recorded.
            Err(error) if error.is_alarm() && begun.elapsed() < ALARM_PATIENCE && !parts.common.stop.is_cancelled() => {
            }
            sent => break sent,
        }
    };
    let answered = job.result().await;
    let mut add = |what| {
        entry.add(Fact {
            at: parts.common.now(),
            by: parts.common.policy.worker.clone(),
            what,
        })
    };
    match sent {
        Ok(()) => drop(add(What::Commanded)),
        Err(error) if error.is_unroutable() => drop(add(What::CommandLost { why: error.to_string() })),
        // The entry stays uncommanded. The task that resumes it queries the call first.
        Err(_) => {}
    }
    parts.registry.remember(&entry);
    let durable = parts.crash.step(journal::write(parts, &entry)).await;
    if !entry.is_commanded() {
        drive::go_on(parts, entry, Input::Due);
    } else if trigger != Trigger::Now {
        let (parts, order, call_id) = (Arc::clone(parts), order.clone(), action.call_id.clone());
        let tasks = parts.tasks.clone();
        let starting = async move { parts.start_if_so_already(&order, &call_id).await };
        tasks.spawn(trace::carried(survive("start_if_so_already", starting)));
    }
    answered && durable
}

/// An action that may have been handled before, or whose call may be over. It is answered, and what is known of the recording decides
/// what follows.
async fn start_in_doubt(parts: &Arc<Parts>, mut entry: Entry) -> bool {
    let is_over = parts.registry.was_closed(entry.key);
    if let Some(heard) = parts.registry.entry(entry.key) {
        // For example another worker's stop of it.
        entry = entry.merge(heard);
    }
    let known = match parts.ledger.is_up() {
        true => tokio::time::timeout(KNOWLEDGE, parts.ledger.load(&address(&entry))).await,
        false => Ok(Ok(None)),
    };
    if let Ok(Ok(Some(record))) = known {
        // The ledger may know the recording by events or by a stop alone. Then only this action has its whole order.
        let is_whole = record.entry.order().is_some_and(|order| order.command.is_some());
        let known = match is_whole {
            true => record.entry,
            false => record.entry.merge(entry),
        };
        if let Some(open) = Open::of(&known).filter(|_| known.is_open()) {
            parts.registry.open(open);
        }
        parts.registry.remember(&known);
        let durable = is_whole || journal::write(parts, &known).await;
        if !known.is_commanded() {
            drive::go_on(parts, known, Input::Due);
        }
        return durable;
    }
    if is_over {
        // It ran, and its end was heard. The worker that carried it out has written that, or this write does so when the ledger is
        // back.
        return journal::write(parts, &entry).await;
    }
    if let Some(open) = Open::of(&entry) {
        parts.registry.open(open);
    }
    let durable = journal::write(parts, &entry).await;
    notices::opened(parts, &entry);
    // The entry is uncommanded, so its call is queried first.
    drive::go_on(parts, entry, Input::Due);
    durable
}

fn tell(call_id: &str, media_id: &str, corrections: &[Correction]) {
    for Correction { key, given, used, why } in corrections {
        SettingCorrected {
            call_id,
            media_id,
            key,
            given,
            used,
            why,
        }
        .emit();
    }
}
