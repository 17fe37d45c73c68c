//! A message in the form that the broker gets.

use std::borrow::Cow;

use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, PublisherConfirm};

/// A message as the broker gets it.
pub(super) struct Encoded<'a> {
    pub(super) exchange: &'static str,
    pub(super) key: ShortString,
    pub(super) mandatory: bool,
    pub(super) body: Cow<'a, [u8]>,
    /// The property `message_id`.
    pub(super) id: String,
    pub(super) properties: BasicProperties,
}

impl Encoded<'_> {
    /// Hands the message to the channel when it is polled first, so several messages keep their order without waiting for each other.
    pub(super) async fn publish(&self, channel: &Channel) -> lapin::Result<PublisherConfirm> {
        let options = BasicPublishOptions {
            mandatory: self.mandatory,
            ..BasicPublishOptions::default()
        };
        let (exchange, key) = (self.exchange.into(), self.key.clone());
        channel
            .basic_publish(exchange, key, options, &self.body, self.properties.clone())
            .await
    }
}
