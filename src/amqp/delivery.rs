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

/// A delivery. It carries its acknowledgement until what was promised is durable; one that is dropped stays with the broker, which
/// delivers it again. The acknowledgement belongs to the channel that the delivery came by, and is never sent on another.
#[derive(Debug)]
pub struct Delivery {
    inner: Arc<lapin::message::Delivery>,
    needs_ack: bool,
    /// Acknowledged, or given back.
    settled: Arc<AtomicBool>,
}

/// A hold on a delivery that somebody else handles, for when that one dies of it.
#[derive(Debug)]
pub struct Spare(Delivery);

impl Spare {
    /// The delivery, unless it was acknowledged or given back. Only for whoever knows that its handler is gone.
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

    /// A hold on it that outlives the handler.
    pub fn spare(&self) -> Spare {
        Spare(Self {
            inner: Arc::clone(&self.inner),
            needs_ack: self.needs_ack,
            settled: Arc::clone(&self.settled),
        })
    }

    /// The message. It may take many times the room of the body: see `Room`.
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

    pub fn redelivered(&self) -> bool {
        self.inner.redelivered
    }

    pub fn body(&self) -> &[u8] {
        &self.inner.data
    }

    pub(super) fn properties(&self) -> &lapin::BasicProperties {
        &self.inner.properties
    }

    /// The promise is kept: the broker may forget the message.
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

    /// How often it was delivered and came back, as far as the broker tells (quorum queues do).
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
        // RabbitMQ 4.3 counts what is returned on purpose by the second alone.
        let counted = ["x-delivery-count", "x-acquired-count"].map(number);
        counted.into_iter().flatten().max().unwrap_or(0)
    }

    /// Gives the message back at once, for another worker.
    pub async fn give_back(self) {
        self.nack(true).await;
    }

    /// Leaves the message to the broker's own dead-lettering, which asks for nothing but that its queue is there.
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
