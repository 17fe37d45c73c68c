//! Exchanges, queues and bindings, declared on short-lived channels.
//!
//! The exchanges are Kazoo's, and are declared exactly as Kazoo declares them. Kazoo's exchanges are not durable. After a broker restart
//! nothing is routed to us until a client declares them and we bind again.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};
use tokio::sync::watch;
use tracing::{trace, warn};

use crate::kazoo::names::{self, Exchange};

use super::{AmqpError, within};

const LIMIT: Duration = Duration::from_secs(10);

/// `x-delivery-limit` of our quorum queues. Without the argument the limit is 20 from RabbitMQ 4.0 on; -1 deletes messages on 3.10.
const DELIVERY_LIMIT: i64 = 1_000_000;

/// A queue that we consume, and what it is bound to.
#[derive(Debug, Clone)]
pub struct QueueSpec {
    /// The queue's name. For an exclusive queue it is the prefix, because each session gets a new name.
    pub name: String,
    pub kind: QueueKind,
    pub bindings: Vec<Binding>,
    pub prefetch: u16,
    /// The queue is consumed only while this is true, and collects messages otherwise. `None`: always consumed.
    pub gate: Option<watch::Receiver<bool>>,
}

/// What a queue is bound to.
#[derive(Debug, Clone)]
pub struct Binding {
    pub exchange: Exchange,
    /// `None` means the queue's own name, which makes the queue a reply queue.
    pub key: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueKind {
    /// Shared by all workers. A quorum queue that survives restarts of the broker and of all workers, bounded in bytes, with
    /// dead-lettering. Handlers acknowledge explicitly.
    Shared { max_bytes: i64, dead_letters: String },
    /// The dead-letter queue. The worker never consumes it.
    DeadLetters { max_bytes: i64 },
    /// Exclusive to this worker, and deleted with its connection. A delivery is acknowledged on receipt.
    Exclusive,
}

impl QueueSpec {
    /// The queue's name for one session.
    pub fn session_name(&self) -> String {
        match self.kind {
            QueueKind::Exclusive => format!("{}-{}", self.name, uuid::Uuid::new_v4().simple()),
            _ => self.name.clone(),
        }
    }
}

/// Declares and binds `spec` under `name`.
pub async fn establish(connection: &Connection, spec: &QueueSpec, name: &str) -> Result<(), AmqpError> {
    let (options, arguments) = declaration(&spec.kind);
    let channel = channel(connection).await?;
    let declared = within(
        LIMIT,
        "declaring a queue",
        channel.queue_declare(name.into(), options, arguments),
    )
    .await;
    let channel = match declared {
        Ok(_) => channel,
        Err(error) if error.is_refusal() => {
            // The queue exists with arguments of an operator or of an older version, or the user may use it and not declare it. It is
            // better to use the queue as it is than to leave calls unanswered.
            if error.is_forbidden() {
                warn!(event = "queue_not_declared",
                    queue = name,
                    %error,
                    "queue declaration refused"
                );
            } else {
                warn!(event = "queue_differs", queue = name, %error, "queue exists with other arguments");
            }
            let channel = self::channel(connection).await?;
            let passive = QueueDeclareOptions {
                passive: true,
                ..options
            };
            let looked = within(
                LIMIT,
                "looking up a queue",
                channel.queue_declare(name.into(), passive, FieldTable::default()),
            )
            .await;
            match looked {
                Ok(_) => channel,
                // The refused declaration is the cause of the missing queue, and the error that the operator can act on.
                Err(_) if error.is_forbidden() => return Err(error),
                Err(error) => return Err(error),
            }
        }
        Err(error) => return Err(error),
    };
    for binding in &spec.bindings {
        let key = binding.key.as_deref().unwrap_or(name);
        exchange(connection, binding.exchange).await?;
        let options = QueueBindOptions::default();
        let binding = channel.queue_bind(
            name.into(),
            binding.exchange.name().into(),
            key.into(),
            options,
            FieldTable::default(),
        );
        within(LIMIT, "binding a queue", binding).await?;
    }
    close(&channel).await;
    Ok(())
}

/// The state of a queue without consumers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    There,
    OtherForm,
    /// It was missing, and is declared now.
    Missing,
}

/// Declares a queue without consumers again. A declaration also keeps the queue where a policy expires unused queues.
pub async fn restore(connection: &Connection, spec: &QueueSpec) -> Result<Restored, AmqpError> {
    let (options, arguments) = declaration(&spec.kind);
    let name = spec.name.as_str();
    let looking = channel(connection).await?;
    let passive = QueueDeclareOptions {
        passive: true,
        ..options
    };
    let look = looking.queue_declare(name.into(), passive, FieldTable::default());
    let (found, declaring) = match within(LIMIT, "looking up a queue", look).await {
        Ok(_) => (Restored::There, looking),
        Err(error) if matches!(error.reply(), Some((404, _))) => (Restored::Missing, channel(connection).await?),
        Err(error) => return Err(error),
    };
    let declare = declaring.queue_declare(name.into(), options, arguments);
    match within(LIMIT, "declaring a queue", declare).await {
        Ok(_) => {
            close(&declaring).await;
            Ok(found)
        }
        Err(error) if found == Restored::There && error.is_refusal() => Ok(Restored::OtherForm),
        Err(error) => Err(error),
    }
}

/// Binds a shared queue that an earlier session declared, with as few steps as possible. After a broker restart the broker returns each
/// message to its sender until the queue is bound. Looking up a quorum queue then takes as long as an election. A missing queue is no
/// error.
pub async fn bind_early(connection: &Connection, spec: &QueueSpec) -> Result<(), AmqpError> {
    let channel = channel(connection).await?;
    for binding in &spec.bindings {
        let Some(key) = &binding.key else { continue };
        let (exchange, options) = (binding.exchange, options(binding.exchange));
        let declare = channel.exchange_declare(exchange.name().into(), kind(exchange), options, FieldTable::default());
        let bind = channel.queue_bind(
            spec.name.as_str().into(),
            exchange.name().into(),
            key.as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        let both = async {
            within(LIMIT, "declaring an exchange", declare).await?;
            within(LIMIT, "binding a queue", bind).await
        };
        match both.await {
            Ok(()) => trace!(event = "queue_bound", queue = spec.name, key, "queue bound"),
            Err(error) if error.is_refusal() => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    close(&channel).await;
    Ok(())
}

pub(super) fn options(exchange: Exchange) -> ExchangeDeclareOptions {
    ExchangeDeclareOptions {
        durable: exchange.is_durable(),
        ..ExchangeDeclareOptions::default()
    }
}

pub(super) fn kind(exchange: Exchange) -> ExchangeKind {
    match exchange.kind() {
        names::ExchangeKind::Topic => ExchangeKind::Topic,
        names::ExchangeKind::Direct => ExchangeKind::Direct,
    }
}

/// Declares one of Kazoo's exchanges.
pub async fn exchange(connection: &Connection, exchange: Exchange) -> Result<(), AmqpError> {
    let channel = channel(connection).await?;
    let (kind, options) = (kind(exchange), options(exchange));
    let declaring = channel.exchange_declare(exchange.name().into(), kind, options, FieldTable::default());
    match within(LIMIT, "declaring an exchange", declaring).await {
        Ok(()) => {
            close(&channel).await;
            Ok(())
        }
        Err(error) if error.is_refusal() => {
            if error.is_forbidden() {
                warn!(event = "exchange_not_declared",
                    exchange = exchange.name(),
                    %error,
                    "exchange declaration refused"
                );
            } else {
                warn!(event = "exchange_differs", exchange = exchange.name(), %error, "exchange exists with another type");
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

async fn channel(connection: &Connection) -> Result<Channel, AmqpError> {
    within(LIMIT, "opening a channel", connection.create_channel()).await
}

pub(super) async fn close(channel: &Channel) {
    let _ = within(LIMIT, "closing a channel", channel.close(200, "done".into())).await;
}

pub(super) fn declaration(kind: &QueueKind) -> (QueueDeclareOptions, FieldTable) {
    let mut arguments = FieldTable::default();
    let text = |text: &str| AMQPValue::LongString(text.into());
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    match kind {
        QueueKind::Exclusive => (
            QueueDeclareOptions {
                exclusive: true,
                auto_delete: true,
                ..QueueDeclareOptions::default()
            },
            arguments,
        ),
        QueueKind::Shared {
            max_bytes,
            dead_letters,
        } => {
            arguments.insert("x-queue-type".into(), text("quorum"));
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
            arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(*max_bytes));
            for (name, value) in dead_lettering(dead_letters).inner() {
                arguments.insert(name.clone(), value.clone());
            }
            (durable, arguments)
        }
        QueueKind::DeadLetters { max_bytes } => {
            arguments.insert("x-queue-type".into(), text("quorum"));
            // Reading a dead letter counts as a delivery, and RabbitMQ drops a dead letter that exceeds the limit.
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
            arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(*max_bytes));
            (durable, arguments)
        }
    }
}

/// Arguments of a queue that dead-letters to the queue `to`.
pub(super) fn dead_lettering(to: &str) -> FieldTable {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut arguments = FieldTable::default();
    arguments.insert("x-dead-letter-exchange".into(), text(""));
    arguments.insert("x-dead-letter-routing-key".into(), text(to));
    arguments
}
