//! Transport over RabbitMQ: supervised sessions, addresses, confirmed publishing, consuming, request and reply.
//!
//! lapin's own recovery is off: it left dead consumers behind. Here any error ends the session, and the supervisor begins a new one:
//! connect, bind first, then everything else. Publishing and consuming have a connection each, so that a broker which blocks publishers
//! does not stop acknowledgements. Every await on lapin is under a time-out. Nothing is declared or bound on a channel that consumes.

use std::time::Duration;

use thiserror::Error;

use crate::config::{NoBroker, TlsFault};

mod brokers;
mod consumer;
mod delivery;
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
pub use probe::{Form, Load, Mailbox, Probe, Sent};
pub use publisher::{PublishError, Publisher};
pub use requests::{Pending, Requests};
pub use room::{Room, Taken};
pub use topology::{Binding, QueueKind, QueueSpec};
pub use turn::{Note, Turn};

/// A lapin await that ended badly.
#[derive(Debug, Error)]
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
    /// The broker's own code and words, if it said any: 403 refused, 404 missing, 406 exists in another form, 530 no such vhost.
    pub fn reply(&self) -> Option<(u16, String)> {
        match self {
            Self::Broker { source, .. } => match source.kind() {
                lapin::ErrorKind::ProtocolError(error) => Some((error.get_id(), error.get_message().to_string())),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the user's permissions are what it fails of (`ACCESS_REFUSED`).
    fn is_forbidden(&self) -> bool {
        matches!(self.reply(), Some((403, _)))
    }

    /// Whether a broker answered, and would not have the connection.
    fn is_refused_by_broker(&self) -> bool {
        matches!(self, Self::Broker { source, .. } if source.is_amqp_error())
    }

    /// Whether the broker refused because something exists in another form, or is missing: the channel is gone, the connection lives.
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

/// lapin keeps what came from below behind an `Arc`, where an error's causes are not looked for.
fn tls_fault(error: &lapin::Error) -> Option<TlsFault> {
    match error.kind() {
        lapin::ErrorKind::IOError(error) => TlsFault::of(&**error),
        _ => None,
    }
}
