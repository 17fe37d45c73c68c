//! Checks a broker for `kz-record-call check`. The check leaves nothing behind on the broker and consumes no message of a real queue.
//!
//! The check compares an existing exchange or queue by declaring it again with the expected arguments, which changes nothing. The check
//! never declares one that is missing. Messages go only through a mailbox, which is a queue that ends with the connection. Their routing
//! keys are random, so no other client is bound to them.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use secrecy::SecretString;
use serde_json::Value;
use tokio::time::Instant;

use crate::config;
use crate::kazoo::envelope::Envelope;
use crate::kazoo::names::{CONTENT_TYPE, Exchange};

use super::topology::{self, QueueKind, QueueSpec};
use super::{AmqpError, link, within};

/// Time limit of one step.
const LIMIT: Duration = Duration::from_secs(5);

/// Result of comparing an exchange or queue with its expected arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    Missing,
    Right,
    /// It exists with other arguments. Holds the broker's text.
    Other(String),
    /// The broker user may not use it. Holds the broker's text.
    Forbidden(String),
}

/// How many messages and consumers a queue has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    pub messages: u32,
    pub consumers: u32,
}

/// Whether RabbitMQ routed or returned a mandatory message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    Routed,
    Returned,
}

/// A connection for checks.
pub struct Probe {
    connection: Connection,
    /// A random word that no other client uses. It contains no dots, so that no multi-word binding pattern of Kazoo matches it.
    mark: String,
}

impl Probe {
    /// Connects, within the configured time and at most five seconds.
    ///
    /// # Errors
    /// As for a worker.
    pub async fn connect(config: &config::Amqp, uri: &SecretString, node: &str) -> Result<Self, AmqpError> {
        let config = config::Amqp {
            connect_timeout: config.connect_timeout.min(LIMIT),
            ..config.clone()
        };
        Ok(Self {
            connection: link::connect(&config, uri, &format!("{node} check")).await?,
            mark: format!("kz_record_call_check_{}", uuid::Uuid::new_v4().simple()),
        })
    }

    /// Whether the broker user may read the length of one of Kazoo's queues. A queue that is missing, or exclusive to another connection,
    /// counts as readable.
    ///
    /// # Errors
    /// When the user may not.
    pub async fn may_look(&self, queue: &str) -> Result<(), AmqpError> {
        let channel = self.channel().await?;
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let looking = channel.queue_declare(queue.into(), passive, FieldTable::default());
        match within(LIMIT, "looking at a queue", looking).await {
            Ok(_) => {
                topology::close(&channel).await;
                Ok(())
            }
            Err(error) if error.is_refusal() && !error.is_forbidden() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether an exchange has the arguments that Kazoo declares (`kz_amqp_util:new_exchange`), or those that we declare for our own.
    ///
    /// # Errors
    /// When the broker does not answer the question.
    pub async fn exchange(&self, exchange: Exchange) -> Result<Form, AmqpError> {
        let declare = |passive| async move {
            let channel = self.channel().await?;
            let (kind, options) = (topology::kind(exchange), topology::options(exchange));
            let options = ExchangeDeclareOptions { passive, ..options };
            let declaring = channel.exchange_declare(exchange.name().into(), kind, options, FieldTable::default());
            within(LIMIT, "looking up an exchange", declaring).await
        };
        match form(declare(true).await)? {
            // A passive declaration compares only the name.
            (Form::Right, _) => Ok(form(declare(false).await)?.0),
            (other, _) => Ok(other),
        }
    }

    /// Whether a queue has the arguments that we declare, and how many messages and consumers the queue has.
    ///
    /// # Errors
    /// When the broker does not answer the question.
    pub async fn queue(&self, spec: &QueueSpec) -> Result<(Form, Option<Load>), AmqpError> {
        let declare = |passive| async move {
            let channel = self.channel().await?;
            let (options, arguments) = topology::declaration(&spec.kind);
            let options = QueueDeclareOptions { passive, ..options };
            let declaring = channel.queue_declare(spec.name.as_str().into(), options, arguments);
            within(LIMIT, "looking up a queue", declaring).await
        };
        let (found, queue) = form(declare(true).await)?;
        let load = queue.map(|queue| Load {
            messages: queue.message_count(),
            consumers: queue.consumer_count(),
        });
        match found {
            Form::Right => Ok((form(declare(false).await)?.0, load)),
            other => Ok((other, load)),
        }
    }

    /// How many messages and consumers another program's queue has; `None` if it does not exist.
    ///
    /// # Errors
    /// When the broker does not answer the question, or refuses to.
    pub async fn load(&self, queue: &str) -> Result<Option<Load>, AmqpError> {
        let channel = self.channel().await?;
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let looking = channel.queue_declare(queue.into(), passive, FieldTable::default());
        match form(within(LIMIT, "looking up a queue", looking).await)? {
            (Form::Missing, _) => Ok(None),
            (Form::Right, Some(queue)) => Ok(Some(Load {
                messages: queue.message_count(),
                consumers: queue.consumer_count(),
            })),
            _ => Err(AmqpError::Ended("the broker does not tell of that queue")),
        }
    }

    /// Whether the broker user may publish to an existing exchange. The broker checks permissions when a message arrives, and routes the
    /// message only when its transaction commits. This transaction is rolled back, so no client receives the message.
    ///
    /// # Errors
    /// When the user may not.
    pub async fn may_publish(&self, exchange: Exchange) -> Result<(), AmqpError> {
        let channel = self.channel().await?;
        within(LIMIT, "beginning a transaction", channel.tx_select()).await?;
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default().with_content_type(CONTENT_TYPE.into());
        let publish = channel.basic_publish(
            exchange.name().into(),
            self.mark.as_str().into(),
            options,
            b"{}",
            properties,
        );
        within(LIMIT, "publishing", async { publish.await.map(drop) }).await?;
        within(LIMIT, "rolling back a transaction", channel.tx_rollback()).await?;
        topology::close(&channel).await;
        Ok(())
    }

    /// Publishes a mandatory message, which the broker returns if no queue takes it.
    ///
    /// # Errors
    /// When the broker refuses it, or does not confirm it in time.
    pub async fn publish(&self, exchange: Exchange, key: &str, body: &Value) -> Result<Sent, AmqpError> {
        let channel = self.channel().await?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        within(LIMIT, "asking for confirms", confirms).await?;
        let body = body.to_string();
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let properties = BasicProperties::default().with_content_type(CONTENT_TYPE.into());
        let publishing = async {
            let sent = channel.basic_publish(exchange.name().into(), key.into(), options, body.as_bytes(), properties);
            sent.await?.await
        };
        let sent = match within(LIMIT, "publishing", publishing).await? {
            Confirmation::Ack(None) => Ok(Sent::Routed),
            Confirmation::Ack(Some(_)) => Ok(Sent::Returned),
            _ => Err(AmqpError::Ended("the broker refused a message")),
        };
        topology::close(&channel).await;
        sent
    }

    /// Declares an exclusive queue and consumes from it.
    ///
    /// # Errors
    /// When the user may not declare one.
    pub async fn mailbox(&self) -> Result<Mailbox<'_>, AmqpError> {
        let (channel, name) = (
            self.channel().await?,
            format!("kz_record_call.check-{}", uuid::Uuid::new_v4().simple()),
        );
        let options = QueueDeclareOptions {
            exclusive: true,
            auto_delete: true,
            ..QueueDeclareOptions::default()
        };
        let declaring = channel.queue_declare(name.as_str().into(), options, FieldTable::default());
        within(LIMIT, "declaring a queue", declaring).await?;
        let consuming = BasicConsumeOptions {
            no_ack: true,
            exclusive: true,
            ..BasicConsumeOptions::default()
        };
        let consume = channel.basic_consume(
            name.as_str().into(),
            name.as_str().into(),
            consuming,
            FieldTable::default(),
        );
        let consumer = within(LIMIT, "consuming", consume).await?;
        Ok(Mailbox {
            probe: self,
            name,
            consumer,
            _channel: channel,
        })
    }

    /// Whether the user may declare queues with dead-lettering, such as the queues that all workers share. The broker requires write
    /// permission on `amq.default` for them, and read permission on the queue. The queue declared here is exclusive, and deleted at once.
    ///
    /// # Errors
    /// When the user may not.
    pub async fn dead_letters(&self, to: &str) -> Result<(), AmqpError> {
        let channel = self.channel().await?;
        let name = format!("kz_record_call.check-{}", uuid::Uuid::new_v4().simple());
        let (options, _) = topology::declaration(&QueueKind::Exclusive);
        let declare = channel.queue_declare(name.as_str().into(), options, topology::dead_lettering(to));
        within(LIMIT, "declaring a queue", declare).await?;
        let delete = channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default());
        within(LIMIT, "deleting a queue", delete).await?;
        topology::close(&channel).await;
        Ok(())
    }

    /// A random word for routing keys that no other client uses.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    pub async fn close(self) {
        link::close(&self.connection).await;
    }

    async fn channel(&self) -> Result<Channel, AmqpError> {
        within(LIMIT, "opening a channel", self.connection.create_channel()).await
    }
}

/// An exclusive queue that ends with the connection.
pub struct Mailbox<'a> {
    probe: &'a Probe,
    name: String,
    consumer: lapin::Consumer,
    _channel: Channel,
}

impl Mailbox<'_> {
    /// The queue's name. Bound to the exchange `targeted` under this name, the queue receives replies.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Binds the queue to `exchange`. No other client may use `key`.
    ///
    /// # Errors
    /// When the exchange is missing, or the user may not read from it.
    pub async fn bind(&self, exchange: Exchange, key: &str) -> Result<(), AmqpError> {
        // Uses a channel of its own: a refusal on a channel that consumes can close the whole connection.
        let channel = self.probe.channel().await?;
        let binding = channel.queue_bind(
            self.name.as_str().into(),
            exchange.name().into(),
            key.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        within(LIMIT, "binding a queue", binding).await?;
        topology::close(&channel).await;
        Ok(())
    }

    /// The next message that can be decoded, until `until`.
    pub async fn next(&mut self, until: Instant) -> Option<Envelope> {
        loop {
            let delivery = tokio::time::timeout_at(until, self.consumer.next()).await.ok()??.ok()?;
            if let Ok(envelope) = Envelope::read(&delivery.data) {
                return Some(envelope);
            }
        }
    }
}

/// The form that the answer to a declaration shows, together with the answer if the declaration succeeded.
fn form<T>(declared: Result<T, AmqpError>) -> Result<(Form, Option<T>), AmqpError> {
    const ACCESS_REFUSED: u16 = 403;
    const NOT_FOUND: u16 = 404;
    const RESOURCE_LOCKED: u16 = 405;
    const PRECONDITION_FAILED: u16 = 406;
    match declared {
        Ok(answer) => Ok((Form::Right, Some(answer))),
        Err(error) => match error.reply() {
            Some((NOT_FOUND, _)) => Ok((Form::Missing, None)),
            Some((PRECONDITION_FAILED | RESOURCE_LOCKED, words)) => Ok((Form::Other(words), None)),
            Some((ACCESS_REFUSED, words)) => Ok((Form::Forbidden(words), None)),
            _ => Err(error),
        },
    }
}
