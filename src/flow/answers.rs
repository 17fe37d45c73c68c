//! Answers to the callflow, which waits for the result without a time-out.
//!
//! If a callflow node's queue has no room for a result, the result waits in a queue of our own. Then actions of a node that reads slowly
//! take no prefetch slots that the actions of other nodes need. What such an action started is durable, and only its answer is owed.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, timeout};
use tracing::{error, warn};

use crate::amqp::Delivery;
use crate::kazoo::action::{self, ReplyTo};
use crate::kazoo::call::shown;
use crate::kazoo::envelope::MessageError;
use crate::kazoo::time::Moment;
use crate::telemetry::{survive, trace};

use super::pace::Pass;
use super::perform::Parts;
use super::returns::{put_back, reject};

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

/// `action.accepted` may delay the result for this long. Callflow only logs it.
const ACCEPTED_PATIENCE: Duration = Duration::from_secs(1);

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

/// Answers an action for which nothing else can be done, if it has a reply address. `false` when its call still waits.
pub async fn answer(parts: &Arc<Parts>, delivery: &Delivery) -> bool {
    let room = parts.room.of(delivery).await;
    let to = delivery.envelope().map(|envelope| ReplyTo::of(&envelope));
    drop(room);
    match to {
        Ok(Ok(to)) => {
            accept(parts, &to).await;
            // `result` logs what came of it.
            result(parts, &to).await
        }
        _ => true,
    }
}

/// Callflow only logs `action.accepted`, and what counts is the result. Without room at once it is left out.
pub(super) async fn accept(parts: &Parts, to: &ReplyTo) {
    if parts.publisher.alarm().is_some() {
        return;
    }
    let Some(pass) = parts.pass_at_once(to.address.queue()) else {
        return;
    };
    let message = action::accepted(&parts.common.sender, &parts.current(to));
    match timeout(ACCEPTED_PATIENCE, parts.publisher.publish(&message)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            if error.is_unroutable() {
                pass.give_back();
            }
            warn!(event = "accepted_not_published", call_id = shown(&to.call_id), %error, "action.accepted not published")
        }
        Err(_) => warn!(
            event = "accepted_not_published",
            call_id = shown(&to.call_id),
            "action.accepted not published in time"
        ),
    }
}

/// Sends the result, or notes that it is owed if its callflow node has no room for it. `false` when neither is done.
pub(super) async fn result(parts: &Arc<Parts>, to: &ReplyTo) -> bool {
    let queue = to.address.queue();
    let share = usize::from((parts.common.config.amqp.prefetch_actions / SHARE).max(1));
    let pass = if parts.pace.waiting(queue) < share {
        timeout(ROOM_PATIENCE, parts.keep_pace(queue)).await.ok()
    } else {
        None
    };
    let sent = match pass {
        Some(pass) => send_result(parts, to, pass).await,
        None if owe(parts, to, None).await => return true,
        None => send_result(parts, to, parts.keep_pace(queue).await).await,
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
            owe(parts, to, None).await
        }
        Sent::No => false,
    }
}

/// What became of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Yes,
    /// No queue takes it. A callflow node that lost its connection declares its queue again by the same name, and its calls wait.
    Nowhere,
    No,
}

/// Sends the result until the broker has it.
async fn send_result(parts: &Arc<Parts>, to: &ReplyTo, pass: Pass) -> Sent {
    let (begun, mut tries) = (Instant::now(), 0);
    while tries < RESULT_TRIES && begun.elapsed() < ALARM_PATIENCE {
        let message = action::continues(&parts.common.sender, &parts.current(to));
        match parts.publisher.publish(&message).await {
            Ok(()) => {
                under_its_old_id(parts, to).await;
                if pass.is_unsure {
                    once_more(parts, to);
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
            () = parts.common.stop.cancelled() => return Sent::No,
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
async fn under_its_old_id(parts: &Parts, to: &ReplyTo) {
    if parts.replaced.current(&to.call_id) != to.call_id {
        let _ = parts
            .publisher
            .publish(&action::continues(&parts.common.sender, to))
            .await;
    }
}

fn once_more(parts: &Arc<Parts>, to: &ReplyTo) {
    let (parts, to, tasks) = (Arc::clone(parts), to.clone(), parts.tasks.clone());
    let repeating = async move {
        tokio::select! {
            () = tokio::time::sleep(ONCE_MORE) => {}
            () = parts.common.stop.cancelled() => {}
        }
        let _pass = parts.keep_pace(to.address.queue()).await;
        // The first one was confirmed. This one is needed if the queue dropped the first.
        let _ = parts
            .publisher
            .publish(&action::continues(&parts.common.sender, &parts.current(&to)))
            .await;
    };
    tasks.spawn(trace::carried(survive("result_once_more", repeating)));
}

/// How long an answer has waited.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    since: Moment,
    /// Since when no ecallmgr knows its call.
    gone_since: Option<Moment>,
}

/// Notes that an answer is owed, since then or else since now. `false` when the note is not durable.
pub(super) async fn owe(parts: &Parts, to: &ReplyTo, waits: Option<Waits>) -> bool {
    let waits = waits.unwrap_or(Waits {
        since: parts.common.now(),
        gone_since: None,
    });
    let mut body =
        json!({ "Call-ID": to.call_id, "Reply-To": to.address.to_string(), "Since": waits.since.unix_micros() });
    if let Some(gone) = waits.gone_since {
        body["Gone-Since"] = gone.unix_micros().into();
    }
    let message = parts.common.sender.message(CATEGORY, NAME, &to.msg_id, body);
    match parts.publisher.enqueue(ANSWERS, &to.msg_id, &message).await {
        Ok(()) => true,
        Err(error) => {
            warn!(event = "answer_not_queued", call_id = shown(&to.call_id), %error, "owed answer not queued");
            false
        }
    }
}

/// Sends an answer that is owed.
pub async fn handle(parts: &Arc<Parts>, delivery: Delivery) {
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
        Err(error) => return reject(parts, delivery, QUEUE, "", &error.to_string()).await,
    };
    let pass = parts.keep_pace(to.address.queue()).await;
    match send_result(parts, &to, pass).await {
        Sent::Yes => delivery.ack().await,
        Sent::Nowhere => wait_for_node(parts, delivery, &to).await,
        Sent::No => put_back(parts, QUEUE, delivery).await,
    }
}

/// An answer whose callflow node is away waits at the end of its queue, so that answers of other nodes do not wait for it. It waits until
/// the node is back, or the call is over.
async fn wait_for_node(parts: &Arc<Parts>, delivery: Delivery, to: &ReplyTo) {
    let envelope = delivery.envelope().ok();
    let moment = |key: &str| {
        let micros = envelope.as_ref()?.body.get(key)?.as_i64()?;
        Some(Moment::from_unix_micros(micros))
    };
    let now = parts.common.now();
    let (since, gone_since) = (moment("Since").unwrap_or(now), moment("Gone-Since"));
    let waited = now.since(since);
    let is_gone = waited > SURELY_AWAY && parts.is_alive(&parts.replaced.current(&to.call_id)).await == Some(false);
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
        () = parts.common.stop.cancelled() => {}
    }
    if owe(parts, to, Some(Waits { since, gone_since })).await {
        delivery.ack().await;
    } else {
        put_back(parts, QUEUE, delivery).await;
    }
}
