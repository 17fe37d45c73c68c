//! A message received, and its acknowledgement.

use std::io::Read as _;
use std::time::Duration;

use flate2::read::GzDecoder;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::types::AMQPValue;
use tracing::warn;

use crate::kazoo::envelope::{Envelope, MessageError};
use crate::kazoo::names::{CONTENT_TYPE, TRACE_PARENT, TRACE_STATE};
use crate::telemetry::trace::Trace;

use super::within;

/// Bodies longer than this, inflated, are refused.
pub const MAX_BODY_BYTES: usize = 8 << 20;

const ACK_LIMIT: Duration = Duration::from_secs(5);

/// A delivery. It carries its acknowledgement until what was promised is durable; one that is dropped stays with the broker, which
/// delivers it again. The acknowledgement belongs to the channel that the delivery came by, and is never sent on another.
#[derive(Debug)]
pub struct Delivery {
    inner: lapin::message::Delivery,
    needs_ack: bool,
}

impl Delivery {
    pub(super) fn new(inner: lapin::message::Delivery, needs_ack: bool) -> Self {
        Self { inner, needs_ack }
    }

    /// The message, as Kazoo's listeners would read it (`gen_listener:decode`): JSON, perhaps gzipped.
    ///
    /// # Errors
    /// Another content type, a body that does not inflate or is too long, and what `Envelope::read` refuses.
    pub fn envelope(&self) -> Result<Envelope, MessageError> {
        let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(|v| v.as_str().to_owned());
        let properties = &self.inner.properties;
        let kind = text(properties.content_type()).unwrap_or_default();
        let encoding = text(properties.content_encoding()).unwrap_or_default();
        // Kazoo always sets a type; a missing one, or one with a parameter, is read all the same.
        let is_json = kind.is_empty()
            || kind
                .split(';')
                .next()
                .is_some_and(|k| k.trim().eq_ignore_ascii_case(CONTENT_TYPE));
        match (is_json, encoding.as_str()) {
            (true, "") => {
                if self.inner.data.len() > MAX_BODY_BYTES {
                    return Err(MessageError::TooLarge(MAX_BODY_BYTES));
                }
                Envelope::read(&self.inner.data)
            }
            (true, "gzip") => Envelope::read(&inflate(&self.inner.data)?),
            _ => Err(MessageError::ContentType(kind, encoding)),
        }
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
        if !self.needs_ack {
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
            Ok(false) => warn!("an acknowledgement was not sent: its channel is gone, the message will come again"),
            Err(error) => warn!(%error, "an acknowledgement was not sent, the message will come again"),
        }
    }

    /// Gives the message back at once, for another worker.
    pub async fn give_back(self) {
        if !self.needs_ack {
            return;
        }
        let options = BasicNackOptions {
            requeue: true,
            ..BasicNackOptions::default()
        };
        if let Err(error) = within(ACK_LIMIT, "giving back", self.inner.acker.nack(options)).await {
            warn!(%error, "a message could not be given back; it comes again when the connection ends");
        }
    }
}

fn inflate(bytes: &[u8]) -> Result<Vec<u8>, MessageError> {
    let mut out = Vec::new();
    let limit = MAX_BODY_BYTES as u64 + 1;
    GzDecoder::new(bytes)
        .take(limit)
        .read_to_end(&mut out)
        .map_err(|error| MessageError::NotJson(format!("gzip: {error}")))?;
    if out.len() > MAX_BODY_BYTES {
        return Err(MessageError::TooLarge(MAX_BODY_BYTES));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn delivery(body: Vec<u8>, kind: Option<&str>, encoding: Option<&str>) -> Delivery {
        let mut inner = lapin::message::Delivery::mock(1, "kapps".into(), "k".into(), false, body);
        let mut properties = lapin::BasicProperties::default();
        if let Some(kind) = kind {
            properties = properties.with_content_type(kind.into());
        }
        if let Some(encoding) = encoding {
            properties = properties.with_content_encoding(encoding.into());
        }
        inner.properties = properties;
        Delivery::new(inner, false)
    }

    fn gzipped(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    const BODY: &[u8] = br#"{"Event-Category":"callflow","Event-Name":"action.execute"}"#;

    #[test]
    fn json_is_read_plain_and_gzipped() {
        assert!(
            delivery(BODY.to_vec(), Some("application/json"), None)
                .envelope()
                .is_ok()
        );
        assert!(
            delivery(gzipped(BODY), Some("application/json"), Some("gzip"))
                .envelope()
                .is_ok()
        );
        assert!(delivery(BODY.to_vec(), None, None).envelope().is_ok());
    }

    #[test]
    fn other_types_broken_and_swollen_bodies_are_refused() {
        let refused = |body: Vec<u8>, kind, encoding| delivery(body, kind, encoding).envelope().unwrap_err();
        assert!(matches!(
            refused(BODY.to_vec(), Some("application/erlang"), None),
            MessageError::ContentType(..)
        ));
        assert!(matches!(
            refused(BODY.to_vec(), Some("application/json"), Some("br")),
            MessageError::ContentType(..)
        ));
        assert!(matches!(
            refused(BODY.to_vec(), None, Some("gzip")),
            MessageError::NotJson(_)
        ));
        let bomb = gzipped(&vec![b' '; MAX_BODY_BYTES + 10]);
        assert!(bomb.len() < 1 << 20);
        assert_eq!(
            refused(bomb, None, Some("gzip")),
            MessageError::TooLarge(MAX_BODY_BYTES)
        );
    }
}
