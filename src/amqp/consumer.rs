//! The consuming connection. Each session binds its queues before anything else.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config;
use crate::telemetry::Pulses;
use crate::telemetry::events::{AmqpConnection, DeadLettersDeclared};

use super::brokers::Brokers;
use super::delivery::Delivery;
use super::link::{self, Link};
use super::topology::{self, QueueKind, QueueSpec, Restored};
use super::{AmqpError, within};

const LIMIT: Duration = Duration::from_secs(10);

/// How often the worker checks that the dead-letter queue exists. RabbitMQ drops dead letters while the queue is missing.
const DEAD_LETTERS_EVERY: Duration = Duration::from_secs(10);

/// The state of the present session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionState {
    /// Counts the sessions.
    pub epoch: u64,
    /// Every queue is bound and consumed.
    pub consuming: bool,
    /// Since when, in the present session. RabbitMQ has given what an earlier session did not acknowledge to another worker.
    pub since: Option<Instant>,
    /// The queue that replies to this worker go to; another one in each session.
    pub reply_queue: Option<String>,
}

/// The handle on the consuming side.
#[derive(Debug, Clone)]
pub struct Consumers {
    state: watch::Receiver<SessionState>,
}

/// The two steps of a shutdown.
#[derive(Debug, Clone, Default)]
struct Stop {
    /// The worker receives no new deliveries.
    consuming: CancellationToken,
    /// The connection may close.
    connection: CancellationToken,
}

impl Consumers {
    /// Begins to consume `specs` in their order, the most urgent first. Deliveries come by the receivers, one for each spec.
    ///
    /// `stop` cancels the consumers and keeps the connection for acknowledgements; `close` ends it.
    pub fn start(
        config: &config::Amqp,
        brokers: &Brokers,
        node: &str,
        specs: Vec<QueueSpec>,
        (tasks, pulses): (&TaskTracker, &Pulses),
        stop: CancellationToken,
        close: CancellationToken,
    ) -> (Self, Vec<mpsc::Receiver<Delivery>>) {
        let (state_sender, state) = watch::channel(SessionState::default());
        let (senders, receivers): (Vec<_>, Vec<_>) = specs
            .iter()
            .map(|spec| mpsc::channel(usize::from(spec.prefetch).max(1)))
            .unzip();
        let side = Side {
            specs: specs.into_iter().zip(senders).collect(),
            state: state_sender,
            stop: Stop {
                consuming: stop,
                connection: close,
            },
        };
        let supervisor = side.supervise(Link::new("consume", node, config.clone(), brokers, true));
        tasks.spawn(pulses.beat("consume", supervisor));
        (Self { state }, receivers)
    }

    pub fn state(&self) -> SessionState {
        self.state.borrow().clone()
    }

    /// Follows the sessions.
    pub fn watch(&self) -> watch::Receiver<SessionState> {
        self.state.clone()
    }

    /// The present reply queue, waiting up to `limit` for a session that has one.
    pub async fn reply_queue(&self, limit: Duration) -> Option<String> {
        let mut state = self.state.clone();
        let found = tokio::time::timeout(limit, state.wait_for(|state| state.reply_queue.is_some())).await;
        found.ok()?.ok()?.reply_queue.clone()
    }
}

struct Side {
    specs: Vec<(QueueSpec, mpsc::Sender<Delivery>)>,
    state: watch::Sender<SessionState>,
    stop: Stop,
}

impl Side {
    async fn supervise(self, mut link: Link) {
        let mut told = String::new();
        while !self.stop.consuming.is_cancelled() {
            let ended = match link.connect().await {
                Ok(connection) => {
                    let ended = self.session(&connection, &mut link).await;
                    self.state.send_modify(|state| {
                        state.consuming = false;
                        state.since = None;
                        state.reply_queue = None;
                    });
                    link::close(&connection).await;
                    told.clear();
                    ended
                }
                Err(error) => error,
            };
            if self.stop.consuming.is_cancelled() {
                break;
            }
            // The reconnect loop can fail ten times a second. Repeats of one reason would bury all other log lines.
            let why = ended.to_string();
            if why != told {
                AmqpConnection {
                    connection: link.name(),
                    broker: link.broker(),
                    state: Err(&why),
                }
                .emit();
                told = why;
            }
            tokio::select! {
                () = link.pause(&ended) => {}
                () = self.stop.consuming.cancelled() => {}
            }
        }
    }

    /// Runs one session until it ends, and returns the reason.
    async fn session(&self, connection: &Connection, link: &mut Link) -> AmqpError {
        let begun = Instant::now();
        let mut consuming: JoinSet<&'static str> = JoinSet::new();
        let mut channels = Vec::new();
        let mut reply_queue = None;
        if let Some((first, _)) = self.specs.first()
            && let Err(error) = topology::bind_early(connection, first).await
        {
            link.failed();
            return error;
        }
        for (spec, sender) in own_first(&self.specs) {
            let name = spec.session_name();
            match self.begin(connection, spec, &name, sender, &mut consuming).await {
                Ok(channel) => channels.extend(channel),
                Err(error) => {
                    link.failed();
                    return error;
                }
            }
            if spec.bindings.iter().any(|binding| binding.key.is_none()) {
                reply_queue = Some(name);
            }
        }
        AmqpConnection {
            connection: link.name(),
            broker: link.broker(),
            state: Ok(()),
        }
        .emit();
        link.succeeded();
        self.state.send_modify(|state| {
            state.epoch += 1;
            state.consuming = true;
            state.since = Some(begun);
            tracing::info!(event = "consuming", "bound and consuming");
            state.reply_queue = reply_queue;
        });
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let dead_letters = self.keep_dead_letters(connection);
        tokio::pin!(dead_letters);
        loop {
            tokio::select! {
                // First, because the consumers end by this too. The connection must stay for the acknowledgements.
                biased;
                () = self.stop.consuming.cancelled() => break,
                ended = consuming.join_next() => {
                    return AmqpError::Ended(ended.and_then(Result::ok).unwrap_or("a consumer stopped"));
                }
                () = &mut dead_letters => {}
                () = link.moved() => return AmqpError::Ended("another broker is used from now on"),
                _ = tick.tick() => if !connection.status().connected() {
                    return AmqpError::Ended("the connection is gone");
                },
            }
        }
        self.state.send_modify(|state| state.consuming = false);
        for (channel, tag) in &channels {
            let cancel = channel.basic_cancel(tag.as_str().into(), BasicCancelOptions::default());
            let _ = within(LIMIT, "cancelling a consumer", cancel).await;
        }
        self.stop.connection.cancelled().await;
        AmqpError::Ended("stopped")
    }

    /// Declares the dead-letter queue again whenever it is missing.
    async fn keep_dead_letters(&self, connection: &Connection) {
        let is_dead_letters = |spec: &&QueueSpec| matches!(spec.kind, QueueKind::DeadLetters { .. });
        let specs = self.specs.iter().map(|(spec, _)| spec).filter(is_dead_letters);
        let mut specs: Vec<&QueueSpec> = specs.collect();
        while !specs.is_empty() {
            tokio::time::sleep(DEAD_LETTERS_EVERY).await;
            let mut right = Vec::new();
            for spec in specs {
                match topology::restore(connection, spec).await {
                    Ok(Restored::Missing) => DeadLettersDeclared { queue: &spec.name }.emit(),
                    Ok(Restored::There) | Err(_) => {}
                    // The difference was logged when the session started. Each further attempt would cost a channel.
                    Ok(Restored::OtherForm) => continue,
                }
                right.push(spec);
            }
            specs = right;
        }
        std::future::pending::<()>().await;
    }

    /// Binds a queue and begins to consume it. Each consumer has a channel of its own.
    async fn begin(
        &self,
        connection: &Connection,
        spec: &QueueSpec,
        name: &str,
        sender: &mpsc::Sender<Delivery>,
        consuming: &mut JoinSet<&'static str>,
    ) -> Result<Option<(Channel, String)>, AmqpError> {
        topology::establish(connection, spec, name).await?;
        if matches!(spec.kind, QueueKind::DeadLetters { .. }) {
            return Ok(None);
        }
        let channel = within(LIMIT, "opening a channel", connection.create_channel()).await?;
        let qos = channel.basic_qos(spec.prefetch, BasicQosOptions::default());
        within(LIMIT, "setting the prefetch", qos).await?;
        let tag = format!("{name}-{}", uuid::Uuid::new_v4().simple());
        let consumer = Consumer {
            channel: channel.clone(),
            queue: name.to_owned(),
            tag: tag.clone(),
            sender: sender.clone(),
            by_hand: spec.kind != QueueKind::Exclusive,
            gate: spec.gate.clone(),
            stop: self.stop.consuming.clone(),
        };
        // The consumer starts before the session counts as ready, unless the gate is closed.
        let stream = if consumer.is_open() {
            Some(consumer.consume().await?)
        } else {
            None
        };
        consuming.spawn(consumer.run(stream));
        Ok(Some((channel, tag)))
    }
}

/// The queues in the order in which a session binds and consumes them: the worker's own ones first. An action that arrives before the queue of
/// the notices is bound would be carried out without what other workers do meanwhile. After a broker restart a shared queue can need seconds,
/// and an own one needs milliseconds.
fn own_first<T>(specs: &[(QueueSpec, T)]) -> impl Iterator<Item = &(QueueSpec, T)> {
    let is_own = |one: &&(QueueSpec, T)| one.0.kind == QueueKind::Exclusive;
    let shared = specs.iter().filter(move |one| !is_own(one));
    specs.iter().filter(is_own).chain(shared)
}

/// One consumer of a session.
struct Consumer {
    channel: Channel,
    queue: String,
    tag: String,
    sender: mpsc::Sender<Delivery>,
    /// Whether handlers acknowledge each delivery themselves, once its result is durable.
    by_hand: bool,
    gate: Option<watch::Receiver<bool>>,
    /// The worker receives no new deliveries.
    stop: CancellationToken,
}

/// Why a consumer stopped.
enum Stopped {
    Gate,
    Worker,
    Session(&'static str),
}

/// The task that opens and closes a gate has ended.
const GATE_GONE: &str = "a gate is gone";

/// The worker shuts down.
const WORKER_STOPS: &str = "the worker stops";

/// Waits until a gate is open, or is not. A queue without a gate is always open. `None`: the gate is gone, and its last state says nothing.
async fn turned(gate: Option<&mut watch::Receiver<bool>>, open: bool) -> Option<()> {
    let Some(gate) = gate else {
        return match open {
            true => Some(()),
            false => std::future::pending().await,
        };
    };
    // `wait_for` looks at the last value first.
    gate.has_changed().ok()?;
    gate.wait_for(|is_open| *is_open == open).await.ok().map(drop)
}

impl Consumer {
    fn is_open(&self) -> bool {
        self.gate.as_ref().is_none_or(|gate| *gate.borrow())
    }

    async fn consume(&self) -> Result<lapin::Consumer, AmqpError> {
        let consume = self.channel.basic_consume(
            self.queue.as_str().into(),
            self.tag.as_str().into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        within(LIMIT, "consuming", consume).await
    }

    async fn run(mut self, mut stream: Option<lapin::Consumer>) -> &'static str {
        loop {
            if stream.is_none() {
                let opened = tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return WORKER_STOPS,
                    opened = turned(self.gate.as_mut(), true) => opened,
                };
                if opened.is_none() {
                    return GATE_GONE;
                }
                stream = match self.consume().await {
                    Ok(stream) => Some(stream),
                    Err(_) => return "a queue cannot be consumed again",
                };
            }
            let Some(mut consuming) = stream.take() else { continue };
            match self.forward(&mut consuming).await {
                Stopped::Session(why) => return why,
                Stopped::Gate => {
                    if !self.cancel(consuming).await {
                        return "a consumer could not be cancelled";
                    }
                }
                Stopped::Worker => {
                    self.cancel(consuming).await;
                    return WORKER_STOPS;
                }
            }
        }
    }

    /// Cancels the consumer, and returns what was delivered meanwhile. Otherwise such deliveries would stay unacknowledged on this channel. What
    /// is returned before RabbitMQ has cancelled the consumer would come again at once. Whether RabbitMQ has cancelled the consumer.
    async fn cancel(&self, mut stream: lapin::Consumer) -> bool {
        let cancel = self
            .channel
            .basic_cancel(self.tag.as_str().into(), BasicCancelOptions::default());
        if within(LIMIT, "cancelling a consumer", cancel).await.is_err() {
            return false;
        }
        while let Some(Ok(delivery)) = stream.next().await {
            Delivery::new(delivery, true).give_back().await;
        }
        true
    }

    async fn forward(&mut self, stream: &mut lapin::Consumer) -> Stopped {
        loop {
            let next = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Stopped::Worker,
                closed = turned(self.gate.as_mut(), false) => return match closed {
                    Some(()) => Stopped::Gate,
                    None => Stopped::Session(GATE_GONE),
                },
                next = stream.next() => next,
            };
            let delivery = match next {
                Some(Ok(delivery)) => delivery,
                Some(Err(error)) => {
                    // RabbitMQ closed the channel.
                    tracing::warn!(event = "consumer_failed", queue = self.queue, %error, "consumer failed");
                    return Stopped::Session("a consumer failed");
                }
                // lapin reports a deleted queue the same way.
                None => return Stopped::Session("a consumer was cancelled"),
            };
            let acker = (!self.by_hand).then(|| delivery.acker.clone());
            if self.sender.send(Delivery::new(delivery, self.by_hand)).await.is_err() {
                return Stopped::Session("the receiver of deliveries is gone");
            }
            if let Some(acker) = acker {
                let _ = within(LIMIT, "acknowledging", acker.ack(BasicAckOptions::default())).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_queue_whose_gate_is_gone_is_neither_consumed_nor_cancelled_again_and_again() {
        for last in [true, false] {
            let (keeper, mut gate) = watch::channel(last);
            drop(keeper);
            for open in [true, false] {
                let turned = turned(Some(&mut gate), open).now_or_never();
                assert_eq!(turned, Some(None), "{last} {open}");
            }
        }
    }

    #[test]
    fn a_queue_is_consumed_while_its_gate_is_open() {
        let (keeper, mut gate) = watch::channel(true);
        for is_open in [true, false, true] {
            keeper.send_replace(is_open);
            for open in [true, false] {
                let turned = turned(Some(&mut gate), open).now_or_never();
                assert_eq!(turned, (open == is_open).then_some(Some(())), "{is_open} {open}");
            }
        }
        assert_eq!(turned(None, true).now_or_never(), Some(Some(())), "no gate");
        assert_eq!(turned(None, false).now_or_never(), None, "no gate");
    }

    #[test]
    fn no_action_is_consumed_before_the_notices_of_other_workers() {
        let spec = |name: &str, kind: QueueKind| QueueSpec {
            name: name.to_owned(),
            kind,
            bindings: Vec::new(),
            prefetch: 1,
            gate: None,
        };
        let shared = || QueueKind::Shared {
            max_bytes: 1,
            dead_letters: "dead".to_owned(),
        };
        let specs = [
            (spec("actions", shared()), ()),
            (spec("replies", QueueKind::Exclusive), ()),
            (spec("journal", shared()), ()),
            (spec("notices", QueueKind::Exclusive), ()),
        ];
        let names: Vec<&str> = own_first(&specs).map(|(spec, ())| spec.name.as_str()).collect();
        assert_eq!(names, ["replies", "notices", "actions", "journal"]);
    }
}
