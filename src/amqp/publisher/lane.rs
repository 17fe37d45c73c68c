//! One channel for the answers and commands of all callers. They never wait behind other work, and cost the broker less than on a channel
//! for each caller.
//!
//! lapin attaches a returned message to whichever confirmation completes next. The broker sends a returned message before its confirmation,
//! so the message is attached to a confirmation that is complete when its own is:
//!
//! ```text
//! broker   return(2)          ack(1)                     ack(2)
//! lapin    waits              1 complete, with 2 in it   2 complete
//! ```
//!
//! So a caller gets its results only after all confirmations were looked at once more since the last of its own was complete. lapin completes
//! the confirmations of one answer of the broker in any order, one returned message with each. So where another caller's returned message came
//! with a confirmation, the caller's own may still wait for an earlier confirmation, and the results wait until all earlier ones are complete. A
//! returned message is recognized by its id and its routing key, so no two messages in flight have the same.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::poll_fn;
use lapin::message::BasicReturnMessage;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use tokio::sync::{mpsc, oneshot};

use crate::telemetry::survive;

use super::{AmqpError, Encoded, NOT_ANY_MORE, PublishError, Publisher, Still};

/// Callers that may wait for the lane to take their messages. Each has a permit of the publisher.
pub(super) const WAITING: usize = 64;

/// The results of a caller's messages, in their order.
pub(super) type Results = Vec<Result<(), PublishError>>;

/// What a caller publishes.
pub(super) struct Bundle {
    pub messages: Messages,
    pub done: oneshot::Sender<Result<Results, NotHere>>,
}

/// The messages of one caller.
pub(super) type Messages = Arc<[Encoded<'static>]>;

/// Why the lane did not publish a bundle, or cannot say whether it did.
#[derive(Debug)]
pub(super) enum NotHere {
    /// The lane is gone, or a message in flight has the same id and routing key. Nothing was published.
    Untaken,
    Broken(AmqpError),
}

/// Publishes one message, and gets the broker's confirmation.
type Publishing = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>>;

/// A message in flight.
struct Sent {
    of: Messages,
    nth: usize,
    step: Step,
    /// The broker's reason for returning it.
    returned: Option<String>,
    /// Another message's return was attached to its confirmation. Its own may then wait for one of the earlier confirmations.
    has_anothers: bool,
}

/// How far a message is.
enum Step {
    Publishing(Publishing),
    Done { is_taken: bool },
}

/// A bundle in flight.
struct Flying {
    sent: Vec<Sent>,
    done: oneshot::Sender<Result<Results, NotHere>>,
    /// It was complete when the last look at all confirmations began.
    was_complete: bool,
}

impl Sent {
    /// Goes on as far as possible. `true` when it is complete by that.
    fn advance(&mut self, cx: &mut Context<'_>, returned: &mut Vec<BasicReturnMessage>) -> lapin::Result<bool> {
        let Step::Publishing(publishing) = &mut self.step else {
            return Ok(false);
        };
        let Poll::Ready(confirmed) = publishing.as_mut().poll(cx) else {
            return Ok(false);
        };
        let confirmed = confirmed?;
        let is_taken = matches!(confirmed, Confirmation::Ack(_));
        let message = confirmed.take_message();
        self.has_anothers = message.as_ref().is_some_and(|message| !self.is_of(message));
        returned.extend(message);
        self.step = Step::Done { is_taken };
        Ok(true)
    }

    fn is_of(&self, message: &BasicReturnMessage) -> bool {
        self.is(id_of(message), &message.routing_key)
    }

    fn is(&self, id: &str, key: &ShortString) -> bool {
        let message = &self.of[self.nth];
        message.id == id && message.key == *key
    }

    fn is_complete(&self) -> bool {
        matches!(self.step, Step::Done { .. })
    }

    fn result(self) -> Result<(), PublishError> {
        match (self.returned, self.step) {
            (Some(why), _) => Err(PublishError::Unroutable(why)),
            (None, Step::Done { is_taken: true }) => Ok(()),
            (None, _) => Err(PublishError::Refused),
        }
    }
}

fn id_of(message: &BasicReturnMessage) -> &str {
    message.properties.message_id().as_ref().map_or("", |id| id.as_str())
}

/// What is in flight on the channel.
#[derive(Default)]
struct Flight(Vec<Flying>);

impl Flight {
    /// Takes a bundle. The next look hands its messages to lapin in their order.
    fn begin(&mut self, bundle: Bundle, publish: impl Fn(&Messages, usize) -> Publishing) {
        let Bundle { messages, done } = bundle;
        if done.is_closed() {
            // The caller gave up before anything was published.
            return;
        }
        let mut all = self.0.iter().flat_map(|flying| &flying.sent);
        if all.any(|sent| messages.iter().any(|new| sent.is(&new.id, &new.key))) {
            let _ = done.send(Err(NotHere::Untaken));
            return;
        }
        let sent = (0..messages.len()).map(|nth| Sent {
            of: Arc::clone(&messages),
            nth,
            step: Step::Publishing(publish(&messages, nth)),
            returned: None,
            has_anothers: false,
        });
        self.0.push(Flying {
            sent: sent.collect(),
            done,
            was_complete: false,
        });
    }

    /// Looks at all confirmations, in the order of the messages, until nothing is new, and reports what is certain.
    fn look(&mut self, cx: &mut Context<'_>) -> Result<(), AmqpError> {
        loop {
            let (mut news, mut returned) = (false, Vec::new());
            for sent in self.0.iter_mut().flat_map(|flying| &mut flying.sent) {
                let is_new = sent.advance(cx, &mut returned);
                news |= is_new.map_err(|source| AmqpError::Broker {
                    what: "publishing",
                    source,
                })?;
            }
            for message in returned {
                self.give(&message)?;
            }
            let (mut ripens, mut earlier_are_complete) = (false, true);
            let mut nth = 0;
            while let Some(flying) = self.0.get_mut(nth) {
                let is_complete = flying.sent.iter().all(Sent::is_complete);
                let is_certain = earlier_are_complete || !flying.sent.iter().any(|sent| sent.has_anothers);
                if is_complete && flying.was_complete && is_certain {
                    let Flying { sent, done, .. } = self.0.remove(nth);
                    // A caller that gave up needs no results.
                    let _ = done.send(Ok(sent.into_iter().map(Sent::result).collect()));
                    continue;
                }
                ripens |= is_complete && !flying.was_complete;
                flying.was_complete = is_complete;
                earlier_are_complete &= is_complete;
                nth += 1;
            }
            if !news && !ripens {
                return Ok(());
            }
        }
    }

    /// Whether no caller waits for a result.
    fn is_given_up(&mut self, cx: &mut Context<'_>) -> bool {
        let mut all = self.0.iter_mut();
        all.all(|flying| flying.done.poll_closed(cx).is_ready())
    }

    /// Notes a returned message at its own.
    fn give(&mut self, message: &BasicReturnMessage) -> Result<(), AmqpError> {
        let mut all = self.0.iter_mut().flat_map(|flying| &mut flying.sent);
        let Some(sent) = all.find(|sent| sent.returned.is_none() && sent.is_of(message)) else {
            return Err(AmqpError::Ended("a returned message was not ours"));
        };
        sent.returned = Some(message.reply_text.as_str().to_owned());
        Ok(())
    }
}

/// Publishes bundles on a channel with confirms, until the channel breaks, or no publisher is left.
async fn run(channel: Channel, bundles: mpsc::Receiver<Bundle>) {
    let publish = |messages: &Messages, nth: usize| -> Publishing {
        let (messages, channel) = (Arc::clone(messages), channel.clone());
        Box::pin(async move { messages[nth].publish(&channel).await?.await })
    };
    publish_all(bundles, publish).await;
}

async fn publish_all(mut bundles: mpsc::Receiver<Bundle>, publish: impl Fn(&Messages, usize) -> Publishing) {
    let mut flight = Flight::default();
    let broken = poll_fn(|cx| {
        loop {
            if let Err(error) = flight.look(cx) {
                return Poll::Ready(Some(error));
            }
            match bundles.poll_recv(cx) {
                Poll::Ready(Some(bundle)) => flight.begin(bundle, &publish),
                // Also where the broker confirms no more, and all callers have given up: the channel must not stay open for ever.
                Poll::Ready(None) if flight.is_given_up(cx) => return Poll::Ready(None),
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    });
    let Some(error) = broken.await else { return };
    bundles.close();
    for flying in flight.0 {
        let _ = flying.done.send(Err(NotHere::Broken(error.clone())));
    }
    // Nothing of these was published. Their callers learn from the closed channel that the lane is gone.
}

/// Publishes messages to calls on the channel that all callers share, with one result for each.
pub(super) async fn by_lane(
    publisher: &Publisher,
    messages: Messages,
    still: Still<'_>,
) -> Vec<Result<(), PublishError>> {
    if messages.is_empty() {
        return Vec::new();
    }
    let publishing = on_the_lane(publisher, &messages, still);
    let error = match tokio::time::timeout(publisher.0.limit, publishing).await {
        Ok(Ok(results)) => return results,
        Ok(Err(NotHere::Broken(error))) if error.reply().is_none() => Some(error),
        // The message of one caller may have closed the channel of all. What arrives twice is harmless.
        Ok(Err(NotHere::Broken(_) | NotHere::Untaken)) => {
            return publisher.raw(&messages.iter().collect::<Vec<_>>(), still).await;
        }
        Err(_) => {
            // What follows does not wait for the same fault.
            if let Ok(mut lane) = publisher.0.lane.try_lock() {
                *lane = None;
            }
            None
        }
    };
    let mut results = Vec::new();
    publisher.give_up(error, messages.len(), &mut results);
    results
}

async fn on_the_lane(publisher: &Publisher, messages: &Messages, still: Still<'_>) -> Result<Results, NotHere> {
    let over = |_| NotHere::Broken(AmqpError::Ended("publishing is over"));
    // As in `on_a_channel`.
    let mut alarm = publisher.0.blocked.clone();
    let _ = alarm.wait_for(Option::is_none).await;
    let _permit = publisher.0.lane_permits.acquire().await.map_err(over)?;
    let lane = lane(publisher).await.map_err(NotHere::Broken)?;
    if !still() {
        return Err(NotHere::Broken(NOT_ANY_MORE));
    }
    let (done, results) = oneshot::channel();
    let messages = Arc::clone(messages);
    lane.send(Bundle { messages, done })
        .await
        .map_err(|_| NotHere::Untaken)?;
    results
        .await
        .unwrap_or(Err(NotHere::Untaken))
        .inspect_err(|_| publisher.0.lost.notify_one())
}

/// The lane of the present connection.
async fn lane(publisher: &Publisher) -> Result<mpsc::Sender<Bundle>, AmqpError> {
    let mut lane = publisher.0.lane.lock().await;
    let live = publisher.live().await?;
    if let Some((epoch, lane)) = lane.as_ref()
        && *epoch == live.epoch
        && !lane.is_closed()
    {
        return Ok(lane.clone());
    }
    let channel = publisher.confirming(&live).await?;
    let (sender, bundles) = mpsc::channel(WAITING);
    tokio::spawn(survive("publish_lane", run(channel, bundles)));
    *lane = Some((live.epoch, sender.clone()));
    Ok(sender)
}

#[cfg(test)]
mod tests;
