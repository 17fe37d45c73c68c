//! A message received, and its acknowledgement.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::types::AMQPValue;
use tracing::warn;

use crate::kazoo::envelope::{Envelope, MessageError};
use crate::kazoo::names::{TRACE_PARENT, TRACE_STATE};
use crate::telemetry::trace::Trace;

use super::within;

const ACK_LIMIT: Duration = Duration::from_secs(5);

/// A delivery from RabbitMQ. Its handler acknowledges it when the promised result is durable. RabbitMQ keeps a delivery that is dropped
/// without an acknowledgement, and delivers it again. The acknowledgement belongs to the channel of the delivery, and is never sent on
/// another channel.
#[derive(Debug)]
pub struct Delivery {
    inner: Arc<lapin::message::Delivery>,
    needs_ack: bool,
    /// Acknowledged, or given back.
    settled: Arc<AtomicBool>,
}

/// A second handle on a delivery that another task handles. The worker uses this handle when that task panics.
#[derive(Debug)]
pub struct Spare(Delivery);

impl Spare {
    /// The delivery, unless its handler acknowledged or returned it. Call this only when the handler has ended.
    pub fn unsettled(self) -> Option<Delivery> {
        (!self.0.settled.load(Ordering::Acquire)).then_some(self.0)
    }
}

impl Delivery {
    pub(super) fn new(inner: lapin::message::Delivery, needs_ack: bool) -> Self {
        Self {
            inner: Arc::new(inner),
            needs_ack,
            settled: Arc::default(),
        }
    }

    /// A second handle on this delivery, which outlives the handler.
    pub fn spare(&self) -> Spare {
        Spare(Self {
            inner: Arc::clone(&self.inner),
            needs_ack: self.needs_ack,
            settled: Arc::clone(&self.settled),
        })
    }

    /// The decoded message. It may take many times the memory of the body: see `Room`.
    ///
    /// # Errors
    /// As `Envelope::decode`.
    pub fn envelope(&self) -> Result<Envelope, MessageError> {
        let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(|v| v.as_str().to_owned());
        let properties = &self.inner.properties;
        let kind = text(properties.content_type()).unwrap_or_default();
        Envelope::decode(&kind, self.encoding(), &self.inner.data)
    }

    /// The AMQP `content_encoding` property; empty without one.
    pub fn encoding(&self) -> &str {
        let encoding = self.inner.properties.content_encoding().as_ref();
        encoding.map_or("", |encoding| encoding.as_str())
    }

    /// The AMQP `timestamp` property, in whatever unit the publisher wrote it.
    pub fn timestamp(&self) -> Option<u64> {
        *self.inner.properties.timestamp()
    }

    /// The trace that the message belongs to, if its headers name one.
    pub fn trace(&self) -> Option<Trace> {
        let headers = self.inner.properties.headers().as_ref()?;
        let text = |name: &str| match headers.inner().get(name)? {
            AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
            AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
            // Erlang's `binary` headers.
            AMQPValue::ByteArray(bytes) => Some(String::from_utf8_lossy(bytes.as_slice()).into_owned()),
            _ => None,
        };
        Trace::read(&text(TRACE_PARENT)?, text(TRACE_STATE).as_deref())
    }

    pub fn exchange(&self) -> &str {
        self.inner.exchange.as_str()
    }

    pub fn routing_key(&self) -> &str {
        self.inner.routing_key.as_str()
    }

    /// Whether the channel of the delivery is gone. Then the broker delivers the message again, perhaps to another worker.
    pub fn is_lost(&self) -> bool {
        self.needs_ack && self.inner.acker.poisoned()
    }

    pub fn redelivered(&self) -> bool {
        self.inner.redelivered
    }

    pub fn body(&self) -> &[u8] {
        &self.inner.data
    }

    pub(super) fn properties(&self) -> &lapin::BasicProperties {
        &self.inner.properties
    }

    /// Acknowledges the message: the promised result is durable, and the broker may delete the message.
    pub async fn ack(self) {
        if self.settled.swap(true, Ordering::AcqRel) || !self.needs_ack {
            return;
        }
        match within(
            ACK_LIMIT,
            "acknowledging",
            self.inner.acker.ack(BasicAckOptions::default()),
        )
        .await
        {
            Ok(true) => {}
            Ok(false) => warn!(event = "ack_lost", "acknowledgement not sent: channel closed"),
            Err(error) => warn!(event = "ack_lost", %error, "acknowledgement not sent"),
        }
    }

    /// How often the message was delivered and returned, as far as the broker reports the count. Quorum queues do.
    pub fn returns(&self) -> u32 {
        let headers = self.inner.properties.headers().as_ref();
        let number = |name: &str| match headers?.inner().get(name)? {
            AMQPValue::LongLongInt(number) => u32::try_from(*number).ok(),
            AMQPValue::LongInt(number) => u32::try_from(*number).ok(),
            AMQPValue::LongUInt(number) => Some(*number),
            AMQPValue::ShortInt(number) => u32::try_from(*number).ok(),
            AMQPValue::ShortShortInt(number) => u32::try_from(*number).ok(),
            AMQPValue::ShortShortUInt(number) => Some(u32::from(*number)),
            _ => None,
        };
        // RabbitMQ 4.3 counts returns on purpose only in `x-acquired-count`.
        let counted = ["x-delivery-count", "x-acquired-count"].map(number);
        counted.into_iter().flatten().max().unwrap_or(0)
    }

    /// Returns the message to its queue at once, for another worker.
    pub async fn give_back(self) {
        self.nack(true).await;
    }

    /// Rejects the message, so that the broker dead-letters it. The dead-letter queue must exist.
    pub async fn refuse(self) {
        self.nack(false).await;
    }

    async fn nack(self, requeue: bool) {
        if self.settled.swap(true, Ordering::AcqRel) || !self.needs_ack {
            return;
        }
        let options = BasicNackOptions {
            requeue,
            ..BasicNackOptions::default()
        };
        if let Err(error) = within(ACK_LIMIT, "giving back", self.inner.acker.nack(options)).await {
            warn!(event = "nack_lost", %error, "message not returned to its queue");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery() -> Delivery {
        Delivery::new(
            lapin::message::Delivery::mock(1, "".into(), "q".into(), false, b"{}".to_vec()),
            false,
        )
    }

    #[tokio::test]
    async fn a_delivery_is_left_over_only_when_its_handler_did_not_settle_it() {
        let one = delivery();
        let spare = one.spare();
        drop(one);
        let left = spare.unsettled().unwrap();
        assert_eq!(left.body(), b"{}");
        let spare = left.spare();
        left.ack().await;
        assert!(spare.unsettled().is_none());
        let two = delivery();
        let spare = two.spare();
        two.give_back().await;
        assert!(spare.unsettled().is_none());
    }
}
