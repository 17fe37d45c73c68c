//! Answers to the callflow, which waits for the result without a time-out.
//!
//! If a callflow node's queue has no room for a result, the result waits in a queue of our own. Then actions of a node that reads slowly
//! take no prefetch slots that the actions of other nodes need. What such an action started is durable, and only its answer is owed.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, timeout};
use tracing::{error, warn};

use crate::amqp::{Delivery, Publisher, Room};
use crate::kazoo::action::{self, ReplyTo};
use crate::kazoo::call::shown;
use crate::kazoo::envelope::MessageError;
use crate::kazoo::time::Moment;
use crate::telemetry::trace;

use crate::flow::common::Common;
use crate::flow::crash;
use crate::flow::effects::calls::{Calls, First};
use crate::flow::memory::{CallIds, Pass};

use super::dead_letters::Returns;

/// The queue.
pub const ANSWERS: &str = "kz_record_call.answers";

/// The queue's name in logs and metrics.
const QUEUE: &str = "answers";

const CATEGORY: &str = "kz_record_call";
const NAME: &str = "answer_owed";

/// A result must get through. It is tried this often, and each try takes as long as a publish may take.
const RESULT_TRIES: u32 = 12;

/// During an alarm the broker accepts results from no worker. An action is kept here for this long, because no other worker can answer it
/// either.
pub(super) const ALARM_PATIENCE: Duration = Duration::from_secs(600);

/// An action waits here for this long until its callflow node has room for the answer. Then the answer waits in a queue of its own.
const ROOM_PATIENCE: Duration = Duration::from_millis(500);

/// One address may use one part in this many of the prefetched actions for answers that wait.
const SHARE: u16 = 8;

/// Kazoo reconnects after 1.5 to 5 s (`kz_amqp_connection`), and declares the queue by the same name. For this long the worker does not
/// query whether the call is over.
const SURELY_AWAY: Duration = Duration::from_secs(60);

/// A call is over when no ecallmgr has known it for this long. One ecallmgr alone proves nothing: it may have just started, or the one that
/// serves the call's switch may be cut off together with the callflow node.
const SURELY_OVER: Duration = Duration::from_secs(600);

/// No call waits longer than this.
const GIVEN_UP: Duration = Duration::from_secs(86_400);

/// Interval between two tries, before and after `SURELY_AWAY`.
const OFTEN: Duration = Duration::from_millis(500);
const SELDOM: Duration = Duration::from_secs(5);

/// A result is sent once more after this time, if its queue may have had no room for it. The callflow ignores a repeat, and needs it if the
/// first one was dropped.
const ONCE_MORE: Duration = Duration::from_secs(2);

/// What became of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Yes,
    /// No queue takes it. A callflow node that lost its connection declares its queue again by the same name, and its calls wait.
    Nowhere,
    No,
}

/// How long an answer has waited.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    since: Moment,
    /// Since when no ecallmgr knows its call.
    gone_since: Option<Moment>,
}

/// Answers actions.
pub struct Answers {
    pub common: Arc<Common>,
    pub calls: Arc<Calls>,
    pub publisher: Publisher,
    pub call_ids: Arc<CallIds>,
    pub returns: Arc<Returns>,
    /// The memory limit for decoding messages.
    pub room: Arc<Room>,
}

impl Answers {
    /// Answers an action for which nothing else can be done, if it has a reply address. `false` when its call still waits.
    pub async fn answer(self: &Arc<Self>, delivery: &Delivery) -> bool {
        let room = self.room.of(delivery).await;
        let to = delivery.envelope().map(|envelope| ReplyTo::of(&envelope));
        drop(room);
        match to {
            Ok(Ok(to)) => {
                self.accept(&to).await;
                // `result` logs what came of it.
                self.result(&to).await
            }
            _ => true,
        }
    }

    /// Sends `action.accepted`, if the action has a reply address.
    pub async fn accept_request(&self, reply_to: Option<&ReplyTo>) {
        if let Some(to) = reply_to {
            crash::step(self.accept(to)).await;
        }
    }

    /// `action.accepted`, for a caller that sends it together with what follows. `None` where there is no room for it at once.
    pub fn acceptance(&self, reply_to: Option<&ReplyTo>) -> Option<First> {
        let to = reply_to?;
        // Callflow only logs it, and what counts is the result. So it never waits.
        if self.publisher.alarm().is_some() {
            return None;
        }
        let pass = self.calls.pass_at_once(to.address.queue())?;
        let message = action::accepted(&self.common.sender, &self.call_ids.address(to));
        Some(First {
            message,
            pass,
            call_id: to.call_id.clone(),
        })
    }

    /// Sends `action.result`, likewise; `false` when it could not be delivered.
    pub async fn result_of_request(self: &Arc<Self>, reply_to: Option<&ReplyTo>) -> bool {
        match reply_to {
            Some(to) => crash::step(self.result(to)).await,
            None => true,
        }
    }

    /// Sends both.
    pub async fn at_once(self: &Arc<Self>, reply_to: Option<&ReplyTo>) -> bool {
        self.accept_request(reply_to).await;
        self.result_of_request(reply_to).await
    }

    /// Callflow only logs `action.accepted`, and what counts is the result. Without room at once it is left out.
    pub async fn accept(&self, to: &ReplyTo) {
        self.calls.send_first(self.acceptance(Some(to))).await;
    }

    /// Sends the result, or notes that it is owed if its callflow node has no room for it. `false` when neither is done.
    pub async fn result(self: &Arc<Self>, to: &ReplyTo) -> bool {
        let queue = to.address.queue();
        let share = usize::from((self.common.config.amqp.prefetch_actions / SHARE).max(1));
        let pass = if self.calls.waiting_for(queue) < share {
            timeout(ROOM_PATIENCE, self.calls.keep_pace(queue)).await.ok()
        } else {
            None
        };
        let sent = match pass {
            Some(pass) => self.send_result(to, pass).await,
            None if self.owe(to, None).await => return true,
            None => self.send_result(to, self.calls.keep_pace(queue).await).await,
        };
        match sent {
            Sent::Yes => true,
            Sent::Nowhere => {
                warn!(
                    event = "callflow_node_away",
                    call_id = shown(&to.call_id),
                    queue,
                    "no queue for action.result, answer owed"
                );
                self.owe(to, None).await
            }
            Sent::No => false,
        }
    }

    /// Sends the result until the broker has it.
    async fn send_result(self: &Arc<Self>, to: &ReplyTo, pass: Pass) -> Sent {
        let (begun, mut tries) = (Instant::now(), 0);
        while tries < RESULT_TRIES && begun.elapsed() < ALARM_PATIENCE {
            let message = action::continues(&self.common.sender, &self.call_ids.address(to));
            match self.publisher.publish(&message).await {
                Ok(()) => {
                    self.under_its_old_id(to).await;
                    if pass.is_unsure {
                        self.once_more(to);
                    }
                    return Sent::Yes;
                }
                Err(error) if error.is_unroutable() => {
                    pass.give_back();
                    return Sent::Nowhere;
                }
                // The broker's alarm itself is logged once.
                Err(error) if error.is_alarm() => {}
                Err(error) => {
                    tries += 1;
                    warn!(event = "result_not_published", call_id = shown(&to.call_id), %error, "action.result not published, retrying");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
                // This worker shuts down, so another worker answers sooner.
                () = self.common.stop().cancelled() => return Sent::No,
            }
        }
        error!(
            event = "result_undeliverable",
            call_id = shown(&to.call_id),
            "action.result undeliverable, returned to the queue"
        );
        Sent::No
    }

    /// The callflow ignores a result that does not have the id that it knows its call by. A callflow node that was cut off when the id was
    /// replaced knows the old one, so the result goes out under both.
    async fn under_its_old_id(&self, to: &ReplyTo) {
        if self.call_ids.current(&to.call_id) != to.call_id {
            let _ = self
                .publisher
                .publish(&action::continues(&self.common.sender, to))
                .await;
        }
    }

    fn once_more(self: &Arc<Self>, to: &ReplyTo) {
        let (answers, to) = (Arc::clone(self), to.clone());
        let repeating = async move {
            let _ = answers.common.unless_stopped(tokio::time::sleep(ONCE_MORE)).await;
            let _pass = answers.calls.keep_pace(to.address.queue()).await;
            // The first one was confirmed. This one is needed if the queue dropped the first.
            let message = action::continues(&answers.common.sender, &answers.call_ids.address(&to));
            let _ = answers.publisher.publish(&message).await;
        };
        let repeating = trace::carried(repeating);
        self.common.tasks.spawn("result_once_more", repeating);
    }

    /// Notes that an answer is owed, since then or else since now. `false` when the note is not durable.
    pub async fn owe(&self, to: &ReplyTo, waits: Option<Waits>) -> bool {
        let waits = waits.unwrap_or(Waits {
            since: self.common.now(),
            gone_since: None,
        });
        let mut body =
            json!({ "Call-ID": to.call_id, "Reply-To": to.address.to_string(), "Since": waits.since.unix_micros() });
        if let Some(gone) = waits.gone_since {
            body["Gone-Since"] = gone.unix_micros().into();
        }
        let message = self.common.sender.message(CATEGORY, NAME, &to.msg_id, body);
        match self.publisher.enqueue(ANSWERS, &to.msg_id, &message).await {
            Ok(()) => true,
            Err(error) => {
                warn!(event = "answer_not_queued", call_id = shown(&to.call_id), %error, "owed answer not queued");
                false
            }
        }
    }

    /// Sends an answer that is owed.
    pub async fn handle(self: &Arc<Self>, delivery: Delivery) {
        let to = delivery.envelope().and_then(|envelope| {
            if !envelope.is(CATEGORY, NAME) {
                return Err(envelope.unexpected());
            }
            ReplyTo::owed(&envelope).map_err(|why| MessageError::Unusable {
                header: "Reply-To",
                why,
            })
        });
        let to = match to {
            Ok(to) => to,
            Err(error) => return self.returns.reject(delivery, QUEUE, "", &error.to_string()).await,
        };
        let pass = self.calls.keep_pace(to.address.queue()).await;
        match self.send_result(&to, pass).await {
            Sent::Yes => delivery.ack().await,
            Sent::Nowhere => self.wait_for_node(delivery, &to).await,
            Sent::No => self.returns.put_back(QUEUE, delivery).await,
        }
    }

    /// An answer whose callflow node is away waits at the end of its queue, so that answers of other nodes do not wait for it. It waits until
    /// the node is back, or the call is over.
    async fn wait_for_node(self: &Arc<Self>, delivery: Delivery, to: &ReplyTo) {
        let envelope = delivery.envelope().ok();
        let moment = |key: &str| {
            let micros = envelope.as_ref()?.body.get(key)?.as_i64()?;
            Some(Moment::from_unix_micros(micros))
        };
        let now = self.common.now();
        let (since, gone_since) = (moment("Since").unwrap_or(now), moment("Gone-Since"));
        let waited = now.since(since);
        let is_gone =
            waited > SURELY_AWAY && self.calls.is_alive(&self.call_ids.current(&to.call_id)).await == Some(false);
        let gone_since = is_gone.then(|| gone_since.unwrap_or(now));
        let is_over = gone_since.is_some_and(|gone| now.since(gone) >= SURELY_OVER);
        if is_over || waited > GIVEN_UP {
            warn!(
                event = "answer_given_up",
                call_id = shown(&to.call_id),
                queue = to.address.queue(),
                waited_s = waited.as_secs(),
                call_is_over = is_over,
                "owed answer given up"
            );
            return delivery.ack().await;
        }
        let pause = if waited > SURELY_AWAY { SELDOM } else { OFTEN };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.common.stop().cancelled() => {}
        }
        if self.owe(to, Some(Waits { since, gone_since })).await {
            delivery.ack().await;
        } else {
            self.returns.put_back(QUEUE, delivery).await;
        }
    }
}
