//! Answers to the callflow, which waits for the result without a time-out.
//!
//! A result that a callflow node has no room for yet waits in a queue of our own. Actions of a node that reads slowly then take no place that
//! the actions of other nodes need: what such an action started is durable, and only its answer is still owed.

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

/// What it is called in logs and metrics.
const QUEUE: &str = "answers";

const CATEGORY: &str = "kz_record_call";
const NAME: &str = "answer_owed";

/// A result must get through: so often it is tried, each try as long as a publish may take.
const RESULT_TRIES: u32 = 12;

/// With an alarm the broker takes results of nobody: so long an action is kept here, as no other worker can answer it either.
pub(super) const ALARM_PATIENCE: Duration = Duration::from_secs(600);

/// So long `action.accepted` may keep the rest waiting. Callflow only logs it.
const ACCEPTED_PATIENCE: Duration = Duration::from_secs(1);

/// So long an action waits here until its callflow node has room for the answer. Then the answer waits in a queue of its own.
const ROOM_PATIENCE: Duration = Duration::from_millis(500);

/// One address may have this share of the actions that are taken at once in waiting.
const SHARE: u16 = 8;

/// Kazoo connects again after 1.5 to 5 s (`kz_amqp_connection`), and declares the queue by the same name. So long nobody asks whether its call is over.
const SURELY_AWAY: Duration = Duration::from_secs(60);

/// No call waits for longer.
const GIVEN_UP: Duration = Duration::from_secs(86_400);

/// Between two tries, before and after that.
const OFTEN: Duration = Duration::from_millis(500);
const SELDOM: Duration = Duration::from_secs(5);

/// A result that its queue may not have had room for is sent once more after this: a repeat is ignored, one that was dropped is not missed.
const ONCE_MORE: Duration = Duration::from_secs(2);

/// Answers an action that nothing else can be done about, if it says whom to answer. `false` when its call still waits.
pub async fn answer(parts: &Arc<Parts>, delivery: &Delivery) -> bool {
    let room = parts.room.of(delivery).await;
    let to = delivery.envelope().map(|envelope| ReplyTo::of(&envelope));
    drop(room);
    match to {
        Ok(Ok(to)) => {
            accept(parts, &to).await;
            // What it came to is told there.
            result(parts, &to).await
        }
        _ => true,
    }
}

/// The callflow only logs it, and what counts is the result: where there is no room for it at once, it is left out.
pub(super) async fn accept(parts: &Parts, to: &ReplyTo) {
    if parts.publisher.alarm().is_some() {
        return;
    }
    let Some(_pass) = parts.pass_at_once(to.address.queue()) else {
        return;
    };
    let message = action::accepted(&parts.sender, &parts.current(to));
    match timeout(ACCEPTED_PATIENCE, parts.publisher.publish(&message)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            warn!(event = "accepted_not_published", call_id = shown(&to.call_id), %error, "action.accepted not published")
        }
        Err(_) => warn!(
            event = "accepted_not_published",
            call_id = shown(&to.call_id),
            "action.accepted not published in time"
        ),
    }
}

/// Sends the result, or writes down that it is owed where its callflow node has no room for it. `false` when neither is done.
pub(super) async fn result(parts: &Arc<Parts>, to: &ReplyTo) -> bool {
    let queue = to.address.queue();
    let share = usize::from((parts.config.amqp.prefetch_actions / SHARE).max(1));
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
    /// No queue takes it. A callflow node that lost its connection declares its queue again, by the same name; its calls wait.
    Nowhere,
    No,
}

/// Sends the result until the broker has it.
async fn send_result(parts: &Arc<Parts>, to: &ReplyTo, pass: Pass) -> Sent {
    let (begun, mut tries) = (Instant::now(), 0);
    while tries < RESULT_TRIES && begun.elapsed() < ALARM_PATIENCE {
        let message = action::continues(&parts.sender, &parts.current(to));
        match parts.publisher.publish(&message).await {
            Ok(()) => {
                if pass.is_unsure {
                    once_more(parts, to);
                }
                return Sent::Yes;
            }
            Err(error) if error.is_unroutable() => return Sent::Nowhere,
            // The alarm itself is told once.
            Err(error) if error.is_alarm() => {}
            Err(error) => {
                tries += 1;
                warn!(event = "result_not_published", call_id = shown(&to.call_id), %error, "action.result not published, retrying");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
            // Another worker answers it sooner than this one, which goes down.
            () = parts.stop.cancelled() => return Sent::No,
        }
    }
    error!(
        event = "result_undeliverable",
        call_id = shown(&to.call_id),
        "action.result undeliverable, returned to the queue"
    );
    Sent::No
}

fn once_more(parts: &Arc<Parts>, to: &ReplyTo) {
    let (parts, to, tasks) = (Arc::clone(parts), to.clone(), parts.tasks.clone());
    let repeating = async move {
        tokio::select! {
            () = tokio::time::sleep(ONCE_MORE) => {}
            () = parts.stop.cancelled() => {}
        }
        let _pass = parts.keep_pace(to.address.queue()).await;
        // The first one was confirmed; this one is for a queue that dropped it.
        let _ = parts
            .publisher
            .publish(&action::continues(&parts.sender, &parts.current(&to)))
            .await;
    };
    tasks.spawn(trace::carried(survive("result_once_more", repeating)));
}

/// Writes down that an answer is owed, `since` then, else since now. `false` when it is not durable.
pub(super) async fn owe(parts: &Parts, to: &ReplyTo, since: Option<Moment>) -> bool {
    let since = since.unwrap_or_else(|| parts.now());
    let body = json!({ "Call-ID": to.call_id, "Reply-To": to.address.to_string(), "Since": since.unix_micros() });
    let message = parts.sender.message(CATEGORY, NAME, &to.msg_id, body);
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

/// An answer whose callflow node is away waits at the end of its queue, so that those of other nodes do not wait for it; until the node is back, or the call
/// is over.
async fn wait_for_node(parts: &Arc<Parts>, delivery: Delivery, to: &ReplyTo) {
    let since = delivery
        .envelope()
        .ok()
        .and_then(|envelope| envelope.body.get("Since")?.as_i64());
    let since = since.map_or_else(|| parts.now(), Moment::from_unix_micros);
    let waited = parts.now().since(since);
    let is_over = waited > SURELY_AWAY && parts.is_alive(&parts.replaced.current(&to.call_id)).await == Some(false);
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
        () = parts.stop.cancelled() => {}
    }
    if owe(parts, to, Some(since)).await {
        delivery.ack().await;
    } else {
        put_back(parts, QUEUE, delivery).await;
    }
}
