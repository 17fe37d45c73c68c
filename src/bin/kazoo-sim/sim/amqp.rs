//! One connection of one role of the cluster: declares, consumes, publishes, and comes back after a break as Kazoo does.
//!
//! Publishing is fire and forget: [`Link::send`] never waits, order is kept, and what is sent while the broker is away is
//! lost, as it is in Kazoo. Only `action.execute` waits for the broker's verdict, because it is `mandatory`.

mod topology;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use futures_util::{StreamExt as _, stream};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
    message::Delivery,
    options::{
        BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use topology::{consume, declare_exchanges, rebind};

use super::{
    options::QueueStyle,
    wire::{Clock, Object},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A queue to consume from.
#[derive(Clone, Debug)]
pub struct QueueSpec {
    pub name: String,
    /// Of this connection only, without Kazoo's limits: the observer's.
    pub private: bool,
    /// Several consumers may share it.
    pub shared: bool,
    pub binds: Vec<(&'static str, String)>,
}

/// A message from the broker.
#[derive(Clone, Debug)]
pub struct Received {
    pub at: Instant,
    pub queue: Arc<str>,
    pub exchange: String,
    pub key: String,
    pub to_pid: Option<String>,
    /// The header of W3C's trace context.
    pub traceparent: Option<String>,
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    pub body: Vec<u8>,
}

/// A message to the broker.
#[derive(Clone, Debug)]
pub struct Out {
    pub exchange: &'static str,
    pub key: String,
    pub body: Vec<u8>,
    pub properties: BasicProperties,
}

impl Out {
    /// As Kazoo publishes: JSON, its own idea of a timestamp, nothing else.
    pub fn json(exchange: &'static str, key: impl Into<String>, body: &Object, clock: Clock) -> Self {
        Self {
            exchange,
            key: key.into(),
            body: serde_json::to_vec(body).unwrap_or_default(),
            properties: BasicProperties::default()
                .with_content_type("application/json".into())
                .with_timestamp(clock.gregorian_micros()),
        }
    }

    #[must_use]
    pub fn header(mut self, key: &str, value: &str) -> Self {
        let mut table = self.properties.headers().clone().unwrap_or_default();
        // Kazoo's `binary` headers are byte arrays on the wire, not strings.
        table.insert(key.into(), AMQPValue::ByteArray(value.as_bytes().to_vec().into()));
        self.properties = self.properties.with_headers(table);
        self
    }
}

enum Op {
    Publish(Box<Out>),
    Bind(bool, String, &'static str, String, oneshot::Sender<()>),
    Pause(oneshot::Sender<()>),
    Resume,
}

/// The sending half of a role; cheap to clone.
#[derive(Clone)]
pub struct Link {
    ops: mpsc::UnboundedSender<Op>,
    mandatory: mpsc::UnboundedSender<(Out, oneshot::Sender<bool>)>,
    up: watch::Receiver<bool>,
}

impl Link {
    pub fn new(name: String, uri: String, declare: bool, style: QueueStyle, reconnect: Duration) -> (Self, Runner) {
        let (ops, ops_rx) = mpsc::unbounded_channel();
        let (mandatory, mandatory_rx) = mpsc::unbounded_channel();
        let (up_tx, up) = watch::channel(false);
        let runner = Runner {
            name,
            uri,
            declare,
            style,
            reconnect,
            ops: ops_rx,
            mandatory: mandatory_rx,
            up: up_tx,
        };
        (Self { ops, mandatory, up }, runner)
    }

    pub fn send(&self, out: Out) {
        let _ = self.ops.send(Op::Publish(Box::new(out)));
    }

    /// Publishes `mandatory` and waits for the broker: `false` when nobody is bound.
    pub async fn send_mandatory(&self, out: Out) -> anyhow::Result<bool> {
        let (done, wait) = oneshot::channel();
        self.mandatory
            .send((out, done))
            .map_err(|_| anyhow!("the simulator has stopped"))?;
        timeout(PATIENCE, wait)
            .await
            .context("the broker did not answer")?
            .context("the connection broke")
    }

    /// Binds or unbinds one of this role's queues.
    pub async fn bind(&self, on: bool, queue: &str, exchange: &'static str, key: &str) -> anyhow::Result<()> {
        let (done, wait) = oneshot::channel();
        let op = Op::Bind(on, queue.into(), exchange, key.into(), done);
        self.ops.send(op).map_err(|_| anyhow!("the simulator has stopped"))?;
        timeout(PATIENCE, wait)
            .await
            .context("the broker did not answer")?
            .context("the connection broke")
    }

    /// Closes the connection and stays away until [`Link::resume`].
    pub async fn pause(&self) {
        let (done, wait) = oneshot::channel();
        if self.ops.send(Op::Pause(done)).is_ok() {
            let _ = timeout(PATIENCE, wait).await;
        }
    }

    pub async fn resume(&self) -> anyhow::Result<()> {
        let _ = self.ops.send(Op::Resume);
        self.ready(PATIENCE).await
    }

    /// Waits until all queues are declared, bound and consumed.
    pub async fn ready(&self, patience: Duration) -> anyhow::Result<()> {
        let mut up = self.up.clone();
        timeout(patience, up.wait_for(|up| *up))
            .await
            .context("no session with the broker")??;
        Ok(())
    }
}

enum Ended {
    Stopped,
    Paused,
}

/// The receiving half; [`Runner::run`] is the role's task.
pub struct Runner {
    name: String,
    uri: String,
    declare: bool,
    style: QueueStyle,
    reconnect: Duration,
    ops: mpsc::UnboundedReceiver<Op>,
    mandatory: mpsc::UnboundedReceiver<(Out, oneshot::Sender<bool>)>,
    up: watch::Sender<bool>,
}

impl Runner {
    pub async fn run(
        mut self,
        queues: Vec<QueueSpec>,
        on: impl Fn(Received) + Send + Sync,
        broke: impl Fn(String) + Send,
    ) {
        let mut paused = false;
        loop {
            let ended = if paused {
                Ok(Ended::Paused)
            } else {
                self.session(&queues, &on).await
            };
            self.up.send_replace(false);
            match ended {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Paused) => loop {
                    match self.ops.recv().await {
                        None => return,
                        Some(Op::Resume) => break,
                        Some(Op::Pause(done)) => drop(done.send(())),
                        Some(Op::Publish(_) | Op::Bind(..)) => {}
                    }
                },
                Err(e) => {
                    broke(format!("{} lost the broker: {e:#}", self.name));
                    tokio::time::sleep(self.reconnect).await;
                }
            }
            let (lost, pause) = self.discard();
            paused = pause;
            if lost > 0 {
                broke(format!("{} could not send {lost} message(s): they are lost", self.name));
            }
        }
    }

    /// Forgets what was to be sent while the broker was away.
    fn discard(&mut self) -> (usize, bool) {
        let (mut lost, mut pause) = (0, false);
        while let Ok(op) = self.ops.try_recv() {
            match op {
                Op::Publish(_) => lost += 1,
                Op::Pause(done) => {
                    pause = true;
                    let _ = done.send(());
                }
                Op::Resume => pause = false,
                Op::Bind(..) => {}
            }
        }
        (lost, pause)
    }

    async fn session(&mut self, queues: &[QueueSpec], on: &(impl Fn(Received) + Sync)) -> anyhow::Result<Ended> {
        let properties = ConnectionProperties::default().with_connection_name(self.name.as_str().into());
        let connection = timeout(PATIENCE, Connection::connect(&self.uri, properties)).await??;
        let consuming = connection.create_channel().await?;
        if self.declare {
            declare_exchanges(&consuming).await?;
        }
        let mut streams = Vec::new();
        for queue in queues {
            let name: Arc<str> = queue.name.as_str().into();
            let consumer = consume(&consuming, queue, self.style).await?;
            let ended = stream::once(async { None });
            streams.push(consumer.map(move |d| Some((name.clone(), d))).chain(ended).boxed());
        }
        let mut deliveries = stream::select_all(streams);
        let publishing = connection.create_channel().await?;
        let confirming = connection.create_channel().await?;
        confirming.confirm_select(ConfirmSelectOptions::default()).await?;
        self.up.send_replace(true);
        let executes = confirmed(&confirming, &mut self.mandatory);
        tokio::pin!(executes);
        loop {
            tokio::select! {
                delivery = deliveries.next(), if !queues.is_empty() => match delivery {
                    Some(Some((queue, delivery))) => on(received(queue, delivery?)),
                    _ => bail!("a consumer ended"),
                },
                op = self.ops.recv() => match op {
                    None => {
                        let _ = connection.close(200, "bye".into()).await;
                        return Ok(Ended::Stopped);
                    }
                    // No broker takes such a key; in Kazoo the publisher crashes and the message is gone.
                    Some(Op::Publish(out)) if out.key.len() > 255 => {}
                    Some(Op::Publish(out)) => publish(&publishing, *out, false).await.map(drop)?,
                    Some(Op::Bind(on, queue, exchange, key, done)) => {
                        rebind(&connection, on, &queue, exchange, &key).await?;
                        let _ = done.send(());
                    }
                    Some(Op::Pause(done)) => {
                        let _ = connection.close(200, "bye".into()).await;
                        let _ = done.send(());
                        return Ok(Ended::Paused);
                    }
                    Some(Op::Resume) => {}
                },
                end = &mut executes => return end.map(|()| Ended::Stopped),
            }
        }
    }
}

/// One mandatory message in flight: lapin hands a return to whichever confirmation comes next.
async fn confirmed(
    channel: &Channel,
    outs: &mut mpsc::UnboundedReceiver<(Out, oneshot::Sender<bool>)>,
) -> anyhow::Result<()> {
    while let Some((out, done)) = outs.recv().await {
        let routed = match timeout(PATIENCE, publish(channel, out, true).await?).await?? {
            Confirmation::Ack(returned) => returned.is_none(),
            Confirmation::Nack(_) | Confirmation::NotRequested => false,
        };
        let _ = done.send(routed);
    }
    Ok(())
}

async fn publish(channel: &Channel, out: Out, mandatory: bool) -> anyhow::Result<lapin::PublisherConfirm> {
    let options = BasicPublishOptions {
        mandatory,
        ..BasicPublishOptions::default()
    };
    let key = short(&out.key)?;
    let sent = channel.basic_publish(out.exchange.into(), key, options, &out.body, out.properties);
    Ok(timeout(PATIENCE, sent).await??)
}

fn received(queue: Arc<str>, delivery: Delivery) -> Received {
    let properties = &delivery.properties;
    let header = |name: &str| {
        let value = properties.headers().as_ref()?.inner().get(name)?;
        Some(match value {
            AMQPValue::LongString(s) => String::from_utf8_lossy(s.as_bytes()).into_owned(),
            AMQPValue::ByteArray(b) => String::from_utf8_lossy(b.as_slice()).into_owned(),
            other => format!("{other:?}"),
        })
    };
    let (to_pid, traceparent) = (header("Deliver-To-PID"), header("traceparent"));
    Received {
        at: Instant::now(),
        queue,
        exchange: delivery.exchange.to_string(),
        key: delivery.routing_key.to_string(),
        to_pid,
        traceparent,
        content_type: properties.content_type().as_ref().map(ToString::to_string),
        content_encoding: properties.content_encoding().as_ref().map(ToString::to_string),
        body: delivery.data,
    }
}

fn short(text: &str) -> anyhow::Result<ShortString> {
    ShortString::try_new(text).map_err(|e| anyhow!("{e}: {text}"))
}
