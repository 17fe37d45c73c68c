//! A message to publish, and its destination.

use serde_json::Value;

use super::address::Address;
use super::names::Exchange;

/// One message for the broker. Content type is always `application/json`, without parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    pub exchange: Exchange,
    pub routing_key: String,
    /// Value of the header `Deliver-To-PID`.
    pub deliver_to_pid: Option<String>,
    /// Whether the broker returns the message when no queue takes it.
    pub mandatory: bool,
    /// Whether a durable queue keeps the message across a broker restart. Kazoo's own messages are not persistent.
    pub persistent: bool,
    pub body: Value,
}

impl Outgoing {
    /// A message to a queue, or to the process behind it, through a direct exchange. It is mandatory, so the broker reports an address
    /// without a queue.
    pub fn to(exchange: Exchange, address: &Address, body: Value) -> Self {
        Self {
            exchange,
            routing_key: address.queue().to_owned(),
            deliver_to_pid: address.pid().map(str::to_owned),
            mandatory: true,
            persistent: false,
            body,
        }
    }

    /// A message to all queues that are bound to `routing_key` of a topic exchange. A key without any bound queue is normal.
    pub fn topic(exchange: Exchange, routing_key: String, body: Value) -> Self {
        Self {
            exchange,
            routing_key,
            deliver_to_pid: None,
            mandatory: false,
            persistent: false,
            body,
        }
    }

    /// As `topic`, but the broker returns the message when no queue is bound.
    pub fn mandatory_topic(exchange: Exchange, routing_key: String, body: Value) -> Self {
        Self {
            mandatory: true,
            ..Self::topic(exchange, routing_key, body)
        }
    }
}
