//! Transport over RabbitMQ: supervised sessions, addresses, confirmed publishing, consuming, request and reply.
//!
//! lapin's own recovery is off, because it left consumers that received nothing. Any error ends the session, and the supervisor starts a
//! new one: connect, bind, then everything else. Publishing and consuming use one connection each. A broker that blocks publishers then
//! does not stop acknowledgements. Every await on lapin has a time-out. A channel that consumes never declares or binds anything.

use std::time::Duration;

use thiserror::Error;

use crate::config::{NoBroker, TlsFault};

mod brokers;
mod consumer;
mod delivery;
mod erase;
mod link;
mod probe;
mod publisher;
mod requests;
mod room;
mod topology;
mod turn;

pub use brokers::Brokers;
pub use consumer::{Consumers, SessionState};
pub use delivery::{Delivery, Spare};
pub use erase::{Letter, Removed, remove_from};
pub use probe::{Form, Load, Mailbox, Probe, Sent};
pub use publisher::{PublishError, Publisher, Still, Unseen};
pub use requests::{Pending, Requests};
pub use room::{Room, Taken};
pub use topology::{Binding, QueueKind, QueueSpec};
pub use turn::{Note, Turn};

/// An error of an awaited lapin call.
#[derive(Debug, Clone, Error)]
pub enum AmqpError {
    #[error("{what} took longer than {limit:?}")]
    TimedOut { what: &'static str, limit: Duration },
    #[error("{what}: {source}")]
    Broker { what: &'static str, source: lapin::Error },
    #[error("the session ended: {0}")]
    Ended(&'static str),
    #[error("amqp.uri is {0}")]
    Uri(#[from] NoBroker),
    #[error("{what}: {}", .fault.words("amqp.ca_file"))]
    Tls { what: &'static str, fault: TlsFault },
}

impl AmqpError {
    /// The broker's reply code and text, if the broker sent them. 403: refused. 404: missing. 406: exists with other arguments. 530: no
    /// such vhost.
    pub fn reply(&self) -> Option<(u16, String)> {
        match self {
            Self::Broker { source, .. } => match source.kind() {
                lapin::ErrorKind::ProtocolError(error) => Some((error.get_id(), error.get_message().to_string())),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the broker refused because the user lacks a permission (`ACCESS_REFUSED`).
    fn is_forbidden(&self) -> bool {
        matches!(self.reply(), Some((403, _)))
    }

    /// Whether a broker answered and refused the connection.
    fn is_refused_by_broker(&self) -> bool {
        matches!(self, Self::Broker { source, .. } if source.is_amqp_error())
    }

    /// Whether the broker refused because something is missing or exists with other arguments. The refusal closes the channel and not the
    /// connection.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Broker { source, .. } if source.is_amqp_soft_error())
    }
}

/// Awaits `future` for at most `limit`.
async fn within<T>(
    limit: Duration,
    what: &'static str,
    future: impl Future<Output = lapin::Result<T>>,
) -> Result<T, AmqpError> {
    match tokio::time::timeout(limit, future).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(match tls_fault(&source) {
            Some(fault) => AmqpError::Tls { what, fault },
            None => AmqpError::Broker { what, source },
        }),
        Err(_) => Err(AmqpError::TimedOut { what, limit }),
    }
}

/// lapin wraps the inner error in an `Arc`, so the error's source chain does not show it.
fn tls_fault(error: &lapin::Error) -> Option<TlsFault> {
    match error.kind() {
        lapin::ErrorKind::IOError(error) => TlsFault::of(&**error),
        _ => None,
    }
}
