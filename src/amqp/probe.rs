//! A look at a broker that leaves nothing behind and takes nothing away, for `kz-record-call check`.
//!
//! What exists is compared by declaring it once more as it must be, which changes nothing; what does not exist is never declared. Everything
//! else happens in a mailbox, a queue that is gone with the connection, and under keys that nobody else is bound to.

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

/// One step must be through in this time.
const LIMIT: Duration = Duration::from_secs(5);

/// How something is found that must have one form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    Missing,
    Right,
    /// It exists in another form; the broker's words.
    Other(String),
    /// We may not use it; the broker's words.
    Forbidden(String),
}

/// What is in a queue, and who takes it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    pub messages: u32,
    pub consumers: u32,
}

/// What became of a message that must be routed or come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    Routed,
    Returned,
}

/// A connection to look around on.
pub struct Probe {
    connection: Connection,
    /// A word that nobody else uses. Without dots, so that no pattern of Kazoo's with several words fits it.
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

    /// Whether the length of a queue of Kazoo's may be looked at. One that is gone, or somebody's own, may.
    ///
    /// # Errors
    /// When it may not.
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

    /// Whether an exchange is as Kazoo declares it (`kz_amqp_util:new_exchange`), or as we do ours.
    ///
    /// # Errors
    /// When the broker does not tell.
    pub async fn exchange(&self, exchange: Exchange) -> Result<Form, AmqpError> {
        let declare = |passive| async move {
            let channel = self.channel().await?;
            let (kind, options) = (topology::kind(exchange), topology::options(exchange));
            let options = ExchangeDeclareOptions { passive, ..options };
            let declaring = channel.exchange_declare(exchange.name().into(), kind, options, FieldTable::default());
            within(LIMIT, "looking up an exchange", declaring).await
        };
        match form(declare(true).await)? {
            // A passive look tells the name only.
            (Form::Right, _) => Ok(form(declare(false).await)?.0),
            (other, _) => Ok(other),
        }
    }

    /// Whether a queue is as we declare it, and what is in it.
    ///
    /// # Errors
    /// When the broker does not tell.
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

    /// Whether we may publish to an exchange that exists. The broker looks at permissions when a message comes, and routes it when its transaction
    /// is through: this one is rolled back, so nobody ever gets the message.
    ///
    /// # Errors
    /// When we may not.
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

    /// Publishes a message that comes back if no queue takes it.
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

    /// Opens a queue of our own, and consumes it.
    ///
    /// # Errors
    /// When we may not have one.
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

    /// Whether we may declare queues with dead letters, as all workers share: the broker wants write permission on `amq.default` for them, and read
    /// permission on the queue. The one declared here is this connection's, and deleted at once.
    ///
    /// # Errors
    /// When we may not.
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

    /// A word that nobody else uses, for routing keys.
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

/// A queue of our own that is gone with the connection.
pub struct Mailbox<'a> {
    probe: &'a Probe,
    name: String,
    consumer: lapin::Consumer,
    _channel: Channel,
}

impl Mailbox<'_> {
    /// The queue's name; bound to `targeted` under it, it takes replies.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Binds it. `key` must be one that nobody else uses.
    ///
    /// # Errors
    /// When the exchange is missing, or we may not read from it.
    pub async fn bind(&self, exchange: Exchange, key: &str) -> Result<(), AmqpError> {
        // Of its own: a refusal on a channel that consumes can take the connection with it.
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

    /// The next message that can be read, until `until`.
    pub async fn next(&mut self, until: Instant) -> Option<Envelope> {
        loop {
            let delivery = tokio::time::timeout_at(until, self.consumer.next()).await.ok()??.ok()?;
            if let Ok(envelope) = Envelope::read(&delivery.data) {
                return Some(envelope);
            }
        }
    }
}

/// The form that a declaration's answer tells, with the answer if it was good.
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
