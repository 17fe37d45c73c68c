//! Publishing, each message confirmed by the broker.
//!
//! Answers and commands share a channel: see `lane`. Each of the other channels has the messages of at most one caller in flight. lapin
//! attaches a returned message to whichever confirmation comes next, so a returned message belongs to that caller, and its `message_id` says
//! which one it is. A pool of channels provides concurrency.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::try_join_all;
use lapin::options::ConfirmSelectOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation};
use serde_json::Value;
use thiserror::Error;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config;
use crate::kazoo::names::{CONTENT_TYPE, DELIVER_TO_PID, Exchange, TRACE_PARENT, TRACE_STATE};
use crate::kazoo::outgoing::Outgoing;
use crate::kazoo::routing_key::MAX_BYTES;
use crate::kazoo::time::Clock;
use crate::telemetry::Pulses;
use crate::telemetry::events::Published;
use crate::telemetry::trace::{self, Trace};

use super::brokers::Brokers;
use super::delivery::Delivery;
use super::link::Link;
use super::probe::Load;
use super::topology::{self, QueueSpec, Restored};
use super::{AmqpError, within};

mod encoded;
mod lane;
pub(super) mod letters;
mod looks;
mod session;

use encoded::Encoded;
use lane::Bundle;
use looks::Looks;
pub use looks::Unseen;
use session::Live;

/// Why a message was not published, or may not have been.
#[derive(Debug, Error)]
pub enum PublishError {
    #[error("no queue takes the message: {0}")]
    Unroutable(String),
    #[error("the broker refused the message")]
    Refused,
    #[error("a routing key or name is longer than {MAX_BYTES} bytes")]
    TooLong,
    #[error("not published within {0:?}")]
    TimedOut(Duration),
    #[error("the broker takes no messages: {0}")]
    Blocked(String),
    #[error(transparent)]
    Amqp(#[from] AmqpError),
}

impl PublishError {
    pub fn is_unroutable(&self) -> bool {
        matches!(self, Self::Unroutable(_))
    }

    /// Whether the broker raised an alarm, and blocks all publishers.
    pub fn is_alarm(&self) -> bool {
        matches!(self, Self::Blocked(_))
    }

    /// Whether the broker refused this message, and the connection works. A retry of the same message has the same result.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Unroutable(_) | Self::Refused | Self::TooLong => true,
            Self::Amqp(error) => error.reply().is_some(),
            Self::TimedOut(_) | Self::Blocked(_) => false,
        }
    }
}

/// The handler of a delivery lost it while its message waited.
const NOT_ANY_MORE: AmqpError = AmqpError::Ended("the message is not to be sent any more");

/// Whether messages that waited for a connection are still to be sent.
pub type Still<'a> = &'a (dyn Fn() -> bool + Sync);

/// Publishes messages; cheap to clone.
#[derive(Clone)]
pub struct Publisher(Arc<Inner>);

struct Inner {
    connection: watch::Receiver<Option<Live>>,
    permits: Semaphore,
    /// Answers and commands wait for no other messages.
    lane_permits: Semaphore,
    /// The broker's reason for blocking publishers now.
    blocked: watch::Receiver<Option<String>>,
    idle: Mutex<Vec<(u64, Channel)>>,
    /// The lane of a connection, for answers and commands.
    lane: tokio::sync::Mutex<Option<(u64, mpsc::Sender<Bundle>)>>,
    looks: Looks,
    lost: Arc<Notify>,
    limit: Duration,
    clock: Clock,
}

impl Publisher {
    /// Starts a supervised connection for publishing. `close` ends it.
    pub fn start(
        config: &config::Amqp,
        brokers: &Brokers,
        node: &str,
        clock: Clock,
        (tasks, pulses): (&TaskTracker, &Pulses),
        close: CancellationToken,
    ) -> Self {
        let (live, connection) = watch::channel(None);
        let (alarm, blocked) = watch::channel(None);
        let lost = Arc::new(Notify::new());
        let link = Link::new("publish", node, config.clone(), brokers, false);
        let side = session::Side {
            live,
            alarm,
            lost: Arc::clone(&lost),
            close,
        };
        tasks.spawn(pulses.beat("publish", side.supervise(link)));
        Self(Arc::new(Inner {
            connection,
            permits: Semaphore::new(usize::from(config.publish_window)),
            lane_permits: Semaphore::new(usize::from(config.publish_window)),
            blocked,
            idle: Mutex::new(Vec::new()),
            lane: tokio::sync::Mutex::default(),
            looks: Looks::default(),
            lost,
            limit: config.publish_timeout,
            clock,
        }))
    }

    /// Waits for a connection. `None` when the publisher has stopped for good.
    pub(super) async fn connected(&self) -> Option<Arc<lapin::Connection>> {
        let mut connection = self.0.connection.clone();
        let live = connection.wait_for(Option::is_some).await.ok()?;
        live.as_ref().map(|live| Arc::clone(&live.connection))
    }

    pub fn is_connected(&self) -> bool {
        self.0.connection.borrow().is_some()
    }

    /// The reason of the broker's present alarm, while it blocks publishers.
    pub fn alarm(&self) -> Option<String> {
        self.0.blocked.borrow().clone()
    }

    /// Follows the broker's alarm.
    pub fn watch_alarm(&self) -> watch::Receiver<Option<String>> {
        self.0.blocked.clone()
    }

    /// Publishes a message, and waits until the broker has confirmed it.
    ///
    /// # Errors
    /// `Unroutable` when the message is mandatory and no queue takes it. After any other error the broker may have the message or not.
    /// Publish again only what is harmless when it arrives twice.
    pub async fn publish(&self, message: &Outgoing) -> Result<(), PublishError> {
        let mut results = self.publish_all(&[message]).await;
        results.pop().unwrap_or(Err(PublishError::Refused))
    }

    /// Publishes messages in their order, and waits until the broker has confirmed all of them. One result for each message. The messages
    /// share a channel and one round trip, so this is cheaper than to publish one after the other. The broker routes them in their order.
    pub async fn publish_all(&self, messages: &[&Outgoing]) -> Vec<Result<(), PublishError>> {
        self.publish_all_if(messages, &|| true).await
    }

    /// As `publish_all`, but publishes nothing if `still` says no when there is a connection to publish on.
    pub async fn publish_all_if(&self, messages: &[&Outgoing], still: Still<'_>) -> Vec<Result<(), PublishError>> {
        let (mut sent, mut fits) = (Vec::with_capacity(messages.len()), Vec::with_capacity(messages.len()));
        for message in messages {
            let encoded = self.encode(message);
            fits.push(encoded.is_ok());
            sent.extend(encoded);
        }
        let of_calls = |message: &&Outgoing| matches!(message.exchange, Exchange::Targeted | Exchange::Callctl);
        let results = match messages.iter().all(of_calls) {
            true => lane::by_lane(self, sent.into(), still).await,
            false => self.raw(&sent.iter().collect::<Vec<_>>(), still).await,
        };
        let mut results = results.into_iter();
        let results = fits.into_iter().map(|fits| match fits {
            true => results.next().unwrap_or(Err(PublishError::Refused)),
            false => Err(PublishError::TooLong),
        });
        let results: Vec<Result<(), PublishError>> = results.collect();
        for (message, result) in messages.iter().zip(&results) {
            Published {
                exchange: message.exchange.name(),
                result: match result {
                    Ok(()) => "confirmed",
                    Err(error) if error.is_unroutable() => "unroutable",
                    Err(_) => "failed",
                },
            }
            .emit();
        }
        results
    }

    /// # Errors
    /// A name is too long for the protocol.
    fn encode(&self, message: &Outgoing) -> Result<Encoded<'static>, PublishError> {
        let id = property_id(message.body.get("Msg-ID").and_then(Value::as_str).unwrap_or_default());
        let mut properties = BasicProperties::default()
            .with_content_type(CONTENT_TYPE.into())
            .with_message_id(short(&id)?)
            .with_timestamp(u64::try_from(self.0.clock.now().unix_seconds()).unwrap_or(0));
        if message.persistent {
            properties = properties.with_delivery_mode(2);
        }
        let trace = trace::current();
        let headers = [
            (DELIVER_TO_PID, message.deliver_to_pid.as_deref()),
            (TRACE_PARENT, trace.as_ref().map(Trace::parent)),
            (TRACE_STATE, trace.as_ref().and_then(Trace::state)),
        ];
        if headers.iter().any(|(_, value)| value.is_some()) {
            let mut table = FieldTable::default();
            for (name, value) in headers {
                if let Some(value) = value {
                    table.insert(name.into(), AMQPValue::LongString(value.into()));
                }
            }
            properties = properties.with_headers(table);
        }
        Ok(Encoded {
            exchange: message.exchange.name(),
            key: short(&message.routing_key)?,
            mandatory: message.mandatory,
            body: message.body.to_string().into_bytes().into(),
            id: id.into_owned(),
            properties,
        })
    }

    /// Puts one of our own messages into one of our own queues. The message is persistent.
    ///
    /// # Errors
    /// As `publish`.
    pub async fn enqueue(&self, queue: &str, id: &str, body: &Value) -> Result<(), PublishError> {
        let id = property_id(id);
        let properties = BasicProperties::default()
            .with_content_type(CONTENT_TYPE.into())
            .with_message_id(short(&id)?)
            .with_delivery_mode(2);
        let body = body.to_string().into_bytes().into();
        self.to_queue(queue, body, id.into_owned(), properties).await
    }

    /// Number of ready messages in another client's queue. `None` when the number is unavailable.
    pub async fn depth(&self, queue: &str) -> Option<u32> {
        self.load(queue).await.ok().map(|load| load.messages)
    }

    /// Number of ready messages and of consumers of another client's queue.
    ///
    /// # Errors
    /// When the numbers are unavailable: for this user, or now.
    pub async fn load(&self, queue: &str) -> Result<Load, Unseen> {
        if self.alarm().is_some() {
            return Err(Unseen::Unanswered);
        }
        let name = short(queue).map_err(|_| Unseen::Refused)?;
        let live = self.0.connection.borrow().clone().ok_or(Unseen::Unanswered)?;
        self.0.looks.load(&live, name).await
    }

    /// Publishes a copy of a delivery to `queue`, with the reason in a header. The body is copied byte by byte. Only the properties that
    /// any client may set are copied.
    ///
    /// # Errors
    /// As `publish`; the delivery must then not be acknowledged.
    pub async fn pass_on(&self, delivery: &Delivery, queue: &str, reason: &str) -> Result<(), PublishError> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let now = u64::try_from(self.0.clock.now().unix_seconds()).unwrap_or(0);
        let properties = letters::properties(delivery, reason, now).with_message_id(short(&id)?);
        self.to_queue(queue, delivery.body().into(), id, properties).await
    }

    /// Declares one of our own queues if it is missing. Returns whether it was missing.
    ///
    /// # Errors
    /// When it cannot be declared now.
    pub async fn restore(&self, spec: &QueueSpec) -> Result<bool, PublishError> {
        let Some(live) = self.0.connection.borrow().clone() else {
            return Err(AmqpError::Ended("there is no connection to publish on").into());
        };
        Ok(topology::restore(&live.connection, spec).await? == Restored::Missing)
    }

    /// Puts a message into one of our own queues.
    async fn to_queue(
        &self,
        queue: &str,
        body: Cow<'_, [u8]>,
        id: String,
        properties: BasicProperties,
    ) -> Result<(), PublishError> {
        let message = Encoded {
            exchange: "",
            key: short(queue)?,
            mandatory: true,
            body,
            id,
            properties,
        };
        self.raw(&[&message], &|| true)
            .await
            .pop()
            .unwrap_or(Err(PublishError::Refused))
    }

    /// Publishes messages, with one result for each.
    async fn raw(&self, messages: &[&Encoded<'_>], still: Still<'_>) -> Vec<Result<(), PublishError>> {
        if messages.is_empty() {
            return Vec::new();
        }
        let mut confirmed = Vec::with_capacity(messages.len());
        let publishing = self.on_a_channel(messages, still, &mut confirmed);
        match tokio::time::timeout(self.0.limit, publishing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.give_up(Some(error), messages.len(), &mut confirmed),
            // The channel was dropped with the future.
            Err(_) => self.give_up(None, messages.len(), &mut confirmed),
        }
        confirmed
    }

    /// Completes the results of `count` messages after an error, or after the time limit. What was confirmed before is confirmed.
    fn give_up(&self, error: Option<AmqpError>, count: usize, confirmed: &mut Vec<Result<(), PublishError>>) {
        let limit = self.0.limit;
        let blocked = if error.is_none() { self.alarm() } else { None };
        if error.is_none() && blocked.is_none() {
            // The connection may be dead without an error.
            self.0.lost.notify_one();
        }
        let failed = || match (&error, &blocked) {
            (Some(error), _) => PublishError::Amqp(error.clone()),
            (None, Some(reason)) => PublishError::Blocked(reason.clone()),
            (None, None) => PublishError::TimedOut(limit),
        };
        let missing = count.saturating_sub(confirmed.len());
        confirmed.extend(std::iter::repeat_with(|| Err(failed())).take(missing));
    }

    /// Publishes messages on a channel that has no other messages in flight, so a returned message is one of these.
    async fn on_a_channel(
        &self,
        messages: &[&Encoded<'_>],
        still: Still<'_>,
        confirmed: &mut Vec<Result<(), PublishError>>,
    ) -> Result<(), AmqpError> {
        // A message written to a blocked connection stays in the connection's buffer. Each retry would then send one more copy.
        let mut alarm = self.0.blocked.clone();
        let _ = alarm.wait_for(Option::is_none).await;
        let _permit = self
            .0
            .permits
            .acquire()
            .await
            .map_err(|_| AmqpError::Ended("publishing is over"))?;
        let (epoch, channel) = self.channel().await?;
        if !still() {
            self.put_back(epoch, channel);
            return Err(NOT_ANY_MORE);
        }
        let broken = |source| {
            self.0.lost.notify_one();
            AmqpError::Broker {
                what: "publishing",
                source,
            }
        };
        let publishing = messages.iter().map(|message| message.publish(&channel));
        let waiting = try_join_all(publishing).await.map_err(broken)?;
        let mut returned = Vec::new();
        for confirm in waiting {
            let (result, message) = match confirm.await.map_err(broken)? {
                Confirmation::Ack(message) => (Ok(()), message),
                Confirmation::Nack(message) => (Err(PublishError::Refused), message),
                Confirmation::NotRequested => (Err(PublishError::Refused), None),
            };
            confirmed.push(result);
            returned.extend(message);
        }
        // lapin attaches a returned message to whichever confirmation comes next.
        for message in returned {
            let theirs = message.properties.message_id().as_ref().map_or("", |id| id.as_str());
            let is_it = |nth: &usize| messages[*nth].id == theirs && messages[*nth].key == message.routing_key;
            // Both answers to one action have the same id and go to the same queue.
            let is_new = |nth: &usize| !confirmed[*nth].as_ref().is_err_and(PublishError::is_unroutable);
            let Some(nth) = (0..messages.len()).filter(is_it).find(is_new) else {
                // This cannot happen with the messages of one caller in flight, so the channel is not reused.
                confirmed.clear();
                return Err(AmqpError::Ended("a returned message was not ours"));
            };
            confirmed[nth] = Err(PublishError::Unroutable(message.reply_text.as_str().to_owned()));
        }
        self.put_back(epoch, channel);
        Ok(())
    }

    /// An idle channel of the present connection, or a new one.
    async fn channel(&self) -> Result<(u64, Channel), AmqpError> {
        let live = self.live().await?;
        let epoch = live.epoch;
        let idle = self.0.idle.lock().ok().and_then(|mut idle| {
            idle.retain(|(of, channel)| *of == epoch && channel.status().connected());
            idle.pop()
        });
        if let Some(channel) = idle {
            return Ok(channel);
        }
        Ok((epoch, self.confirming(&live).await?))
    }

    /// The present connection, or the next one.
    async fn live(&self) -> Result<Live, AmqpError> {
        let mut watching = self.0.connection.clone();
        let live = match watching.wait_for(Option::is_some).await {
            Ok(live) => live.clone(),
            Err(_) => None,
        };
        live.ok_or(AmqpError::Ended("publishing is over"))
    }

    /// A new channel with confirms.
    async fn confirming(&self, live: &Live) -> Result<Channel, AmqpError> {
        let channel = within(self.0.limit, "opening a channel", live.connection.create_channel()).await?;
        let confirm = channel.confirm_select(ConfirmSelectOptions::default());
        within(self.0.limit, "asking for confirms", confirm).await?;
        Ok(channel)
    }

    fn put_back(&self, epoch: u64, channel: Channel) {
        if let Ok(mut idle) = self.0.idle.lock() {
            idle.push((epoch, channel));
        }
    }
}

/// Converts a text to the protocol's short string. lapin's own conversion panics when a text is too long, so text from outside must use
/// this function.
fn short(text: &str) -> Result<ShortString, PublishError> {
    ShortString::try_new(text).map_err(|_| PublishError::TooLong)
}

/// The property `message_id` for a `Msg-ID`: the same text, or an id derived from it when it is too long for a property. The body keeps the
/// whole text.
fn property_id(msg_id: &str) -> Cow<'_, str> {
    if msg_id.len() <= MAX_BYTES {
        return msg_id.into();
    }
    let derived = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, msg_id.as_bytes());
    derived.simple().to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_id_of_any_length_makes_a_property_and_the_same_one_each_time() {
        for length in [0, 1, 255, 256, 4096, 1 << 20] {
            for letter in ["m", "\u{e9}"] {
                let id = letter.repeat(length / letter.len());
                let property = property_id(&id);
                assert!(short(&property).is_ok(), "{length}");
                assert_eq!(property, property_id(&id));
                assert_eq!(property == id, id.len() <= MAX_BYTES);
            }
        }
        assert_ne!(property_id(&"a".repeat(300)), property_id(&"b".repeat(300)));
    }

    #[test]
    fn a_name_that_is_too_long_is_an_error_and_no_panic() {
        assert!(short(&"q".repeat(MAX_BYTES)).is_ok());
        assert!(matches!(short(&"q".repeat(MAX_BYTES + 1)), Err(PublishError::TooLong)));
    }
}
