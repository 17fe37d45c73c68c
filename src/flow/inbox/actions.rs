//! Actions: the worker answers every action, whatever happens, because a call waits for the answer without a time-out.
//!
//! An action is acknowledged when what it started is durable. That means the ledger, or the journal if the ledger does not answer in
//! time. The answers wait for neither.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::warn;

use crate::amqp::Delivery;
use crate::destination::url::Target;
use crate::entry::fact::Route;
use crate::flow::common::Common;
use crate::flow::crash;
use crate::flow::memory::OpenRecordings;
use crate::kazoo::action::{ExecuteError, ReplyTo};
use crate::kazoo::time::message_time;
use crate::recording::order::Url;
use crate::recording::plan::Plan;
use crate::recording::settings::Correction;
use crate::telemetry::events::{ActionHandled, ActionRefused, SettingCorrected};
use crate::telemetry::trace::{self, Stage};

use super::answers::Answers;
use super::control_actions::Controls;
use super::dead_letters::Returns;
use super::request::{ActionReader, Asked, QUEUE, Request};
use super::starts::Starts;

/// Handles actions.
pub struct Actions {
    pub common: Arc<Common>,
    pub reader: Arc<ActionReader>,
    pub starts: Starts,
    pub controls: Arc<Controls>,
    pub answers: Arc<Answers>,
    pub returns: Arc<Returns>,
    pub memory: Arc<OpenRecordings>,
}

impl Actions {
    /// Handles one delivery of the actions' queue, in the trace that it came with.
    pub async fn handle(&self, delivery: Delivery) {
        let trace = delivery.trace();
        trace::within(Stage::Action, trace, Box::pin(self.act(delivery))).await;
    }

    async fn act(&self, delivery: Delivery) {
        let (begun, read) = (Instant::now(), self.common.now());
        let (reply_to, asked) = match self.reader.read(&delivery).await {
            Ok(read) => read,
            Err(error) => return self.returns.reject(delivery, QUEUE, "", &error.to_string()).await,
        };
        let done = match asked {
            Ok(asked) => {
                let now = self.common.now();
                let at = delivery.timestamp().and_then(|at| message_time(at, now));
                let is_stale = |at| now.since(at) > self.common.config.flow.stale_action;
                let request = Request {
                    delivery: &delivery,
                    action: &asked.action,
                    reply_to: reply_to.as_ref().ok(),
                    doubtful: delivery.redelivered() || delivery.is_lost() || at.is_some_and(is_stale),
                    repeated: delivery.redelivered(),
                    waited: false,
                    at,
                    read,
                };
                self.run(&request, &delivery, &asked, begun).await
            }
            Err(refusal) => {
                let answered = self.refuse(&reply_to, &refusal).await;
                if answered && refusal.is_too_long() {
                    let call_id = reply_to.as_ref().map_or("", |to| to.call_id.as_str());
                    let why = refusal.to_string();
                    return self.returns.reject(delivery, QUEUE, call_id, &why).await;
                }
                answered
            }
        };
        if done {
            crash::step(delivery.ack()).await;
        }
        // Otherwise the action is not durable, or not answered: `PanicGuard::watch` returns it to its queue.
    }

    /// Answers an action that cannot be carried out. `false` when its call still waits.
    async fn refuse(&self, reply_to: &Result<ReplyTo, String>, refusal: &ExecuteError) -> bool {
        let answered = match reply_to {
            Ok(to) => {
                self.answers.accept(to).await;
                self.answers.result(to).await
            }
            Err(_) => true,
        };
        ActionRefused {
            call_id: reply_to.as_ref().map_or("", |to| to.call_id.as_str()),
            why: &refusal.to_string(),
            answered: reply_to.is_ok() && answered,
        }
        .emit();
        answered
    }

    async fn run(&self, request: &Request<'_>, delivery: &Delivery, asked: &Asked, begun: Instant) -> bool {
        let (action, plan) = (request.action, &asked.plan);
        if request.reply_to.is_none() {
            let server_id = asked.server_id.as_deref().unwrap_or("");
            warn!(
                event = "no_reply_address",
                call_id = action.call_id,
                server_id,
                "action without a reply address"
            );
        }
        let route = Route {
            control: action.control.to_string(),
            call_id: action.call_id.clone(),
        };
        self.memory.controlled(self.common.now(), route);
        let (what, media_id, done) = match plan {
            Plan::Skip => ("skip", String::new(), self.answers.at_once(request.reply_to).await),
            Plan::Start(order) => (
                "start",
                order.media_id.to_string(),
                self.starts.start(request, order, delivery).await,
            ),
            Plan::Control(what) => {
                let controlling = Box::pin(self.controls.control(request, *what, delivery));
                let (media_id, done) = controlling.await;
                (what.name(), media_id, done)
            }
        };
        report(&action.call_id, &media_id, asked);
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
}

/// Reports what is wrong with an action's settings.
fn report(call_id: &str, media_id: &str, asked: &Asked) {
    for Correction { key, given, used, why } in &asked.corrections {
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
    if let Plan::Start(order) = &asked.plan
        && let Url::Given(url) = &order.url
        && let Err(why) = Target::parse(url)
    {
        warn!(event = "url_unusable",
            call_id,
            media_id, %why, "URL unusable, audio will be parked"
        );
    }
}
