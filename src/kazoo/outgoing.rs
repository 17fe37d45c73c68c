//! A message on its way out: what is published, and where.

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
    /// Whether the broker gives the message back when no queue takes it.
    pub mandatory: bool,
    /// Whether a durable queue keeps it over a restart of the broker. Kazoo's own messages are not.
    pub persistent: bool,
    pub body: Value,
}

impl Outgoing {
    /// A message to a queue, or the process behind it, through a direct exchange. Mandatory: an address whose queue is gone is told.
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

    /// A message to whoever is bound to `routing_key` of a topic exchange. Nobody listening is normal.
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

    /// As `topic`, given back when nobody listens.
    pub fn mandatory_topic(exchange: Exchange, routing_key: String, body: Value) -> Self {
        Self {
            mandatory: true,
            ..Self::topic(exchange, routing_key, body)
        }
    }
}
