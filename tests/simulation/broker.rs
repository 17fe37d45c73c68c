//! The broker: queues whose messages come late, in any order, twice, and again after their worker died.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kz_record_call::amqp::PublishError;
use kz_record_call::entry::fact::Fact;
use kz_record_call::flow::journal::{JOURNAL, Queues};
use kz_record_call::recording::ending::Told;
use kz_record_call::recording::identity::Key;
use serde_json::Value;
use tokio::sync::Notify;

use crate::faults::{Fault, is_back};
use crate::world::{WORLD, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Queue {
    Actions,
    Events,
    Journal,
}

pub const QUEUES: [Queue; 3] = [Queue::Actions, Queue::Events, Queue::Journal];

#[derive(Debug, Clone)]
pub enum Body {
    Start(Key),
    Stop(Key),
    Mask(Key),
    Started(Box<Told>, Key),
    Ended(Box<Told>, Key),
    Journalled(Value),
}

#[derive(Debug, Clone)]
pub struct Message {
    pub queue: Queue,
    pub body: Body,
    pub redelivered: bool,
    pub returns: u32,
}

/// What workers tell each other.
#[derive(Debug, Clone)]
pub enum Notice {
    BeganAgain(Key, Fact),
    /// A recording is to be stopped, or masked.
    Asked(Key, Vec<Fact>),
}

/// Deliveries that one worker may have unacknowledged, of one queue.
const PREFETCH: usize = 3;

/// How long a worker waits for a confirm.
const CONFIRM: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Inner {
    ready: Vec<Message>,
    unacked: BTreeMap<u64, (String, Message)>,
    tags: u64,
    /// Messages on their way.
    coming: usize,
}

#[derive(Debug, Default)]
pub struct Broker {
    inner: Mutex<Inner>,
    changed: Notify,
}

/// A message that a worker has, and must acknowledge.
#[derive(Debug)]
pub struct Delivery {
    pub message: Message,
    tag: u64,
}

/// Why the broker did not take a message, as far as its sender knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unconfirmed {
    /// The queue does not exist.
    Unroutable,
    /// No confirm came.
    Late,
}

/// The broker as a worker publishes into its queues.
pub struct Confirming(pub Arc<World>);

impl Queues for Confirming {
    async fn enqueue(&self, queue: &str, _: &str, body: &Value) -> Result<(), PublishError> {
        assert_eq!(queue, JOURNAL);
        let (world, body) = (Arc::clone(&self.0), Body::Journalled(body.clone()));
        let put = || {
            world.publish(Queue::Journal, body);
            true
        };
        let confirmed = self.0.confirmed(put).await;
        confirmed.map_err(|_| PublishError::TimedOut(CONFIRM))
    }

    async fn depth(&self, _: &str) -> Option<u32> {
        Some(u32::from(self.0.broker.has(Queue::Journal)))
    }
}

impl Broker {
    /// The next message of a queue. They come in any order.
    pub async fn take(&self, world: &World, owner: &str, queue: Queue) -> Delivery {
        loop {
            let changed = self.changed.notified();
            if let Some(delivery) = self.try_take(world, owner, queue) {
                return delivery;
            }
            changed.await;
            // RabbitMQ shares the messages out. Otherwise the worker that was woken first would get almost all of them.
            tokio::time::sleep(world.between(0, 5)).await;
        }
    }

    fn try_take(&self, world: &World, owner: &str, queue: Queue) -> Option<Delivery> {
        let mut inner = self.inner.lock().unwrap();
        let has = inner
            .unacked
            .values()
            .filter(|(by, message)| by == owner && message.queue == queue)
            .count();
        if has >= PREFETCH {
            return None;
        }
        let ready: Vec<usize> = (0..inner.ready.len())
            .filter(|n| inner.ready[*n].queue == queue)
            .collect();
        let nth = world.pick(&ready)?;
        let message = inner.ready.swap_remove(nth);
        inner.tags += 1;
        let tag = inner.tags;
        inner.unacked.insert(tag, (owner.to_owned(), message.clone()));
        Some(Delivery { message, tag })
    }

    pub fn ack(&self, delivery: &Delivery) {
        self.inner.lock().unwrap().unacked.remove(&delivery.tag);
        self.changed.notify_waiters();
    }

    /// Whether the delivery is still this worker's.
    fn take_back(&self, delivery: &Delivery) -> Option<Message> {
        let (_, mut message) = self.inner.lock().unwrap().unacked.remove(&delivery.tag)?;
        message.redelivered = true;
        message.returns += 1;
        Some(message)
    }

    /// A session is over: what it has not acknowledged comes again.
    pub fn lose(&self, owner: &str) {
        let mut inner = self.inner.lock().unwrap();
        let lost: Vec<u64> = inner
            .unacked
            .iter()
            .filter(|(_, (by, _))| by == owner)
            .map(|(tag, _)| *tag)
            .collect();
        for tag in lost {
            let (_, mut message) = inner.unacked.remove(&tag).unwrap();
            message.redelivered = true;
            inner.ready.push(message);
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    pub fn is_empty(&self) -> bool {
        let inner = self.inner.lock().unwrap();
        inner.ready.is_empty() && inner.unacked.is_empty() && inner.coming == 0
    }

    pub fn has(&self, queue: Queue) -> bool {
        let inner = self.inner.lock().unwrap();
        let unacked = inner.unacked.values().map(|(_, message)| message);
        inner.ready.iter().chain(unacked).any(|message| message.queue == queue)
    }

    pub fn left(&self) -> String {
        let inner = self.inner.lock().unwrap();
        format!("ready {:?}, unacknowledged {:?}", inner.ready, inner.unacked)
    }
}

impl World {
    /// A message is on its way into a queue.
    pub fn publish(self: &World, queue: Queue, body: Body) {
        let message = Message {
            queue,
            body,
            redelivered: false,
            returns: 0,
        };
        if self.mishap(80) {
            self.send(message.clone(), self.between(1, 60_000));
        }
        let long = if self.mishap(50) { 120_000 } else { 200 };
        self.send(message, self.between(1, long));
    }

    /// A message that is in its queue within milliseconds.
    pub fn publish_at_once(&self, queue: Queue, body: Body) {
        let (redelivered, returns) = (false, 0);
        let message = Message {
            queue,
            body,
            redelivered,
            returns,
        };
        self.send(message, self.between(1, 15));
    }

    fn send(&self, message: Message, pause: Duration) {
        self.broker.inner.lock().unwrap().coming += 1;
        let world = self.me();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            world.after_alarm().await;
            let mut inner = world.broker.inner.lock().unwrap();
            inner.coming -= 1;
            inner.ready.push(message);
            drop(inner);
            world.broker.changed.notify_waiters();
        });
    }

    /// Nobody publishes while the broker is short of memory.
    async fn after_alarm(&self) {
        while self.trouble().alarm {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Gives a delivery back. It comes again after a pause.
    pub fn give_back(&self, delivery: &Delivery) {
        if let Some(message) = self.broker.take_back(delivery) {
            self.send(message, self.between(500, 2_000));
        }
        self.broker.changed.notify_waiters();
    }

    /// A worker publishes, and waits for the confirm. `done` happens when the broker takes the message.
    pub async fn confirmed(&self, done: impl FnOnce() -> bool + Send) -> Result<(), Unconfirmed> {
        tokio::time::sleep(self.between(1, 30)).await;
        let taken = tokio::time::timeout(CONFIRM, self.after_alarm()).await;
        if taken.is_err() {
            return Err(Unconfirmed::Late);
        }
        if self.mishap(25) {
            // The connection was lost before the broker had it.
            tokio::time::sleep(CONFIRM).await;
            return Err(Unconfirmed::Late);
        }
        if !done() {
            return Err(Unconfirmed::Unroutable);
        }
        if self.trouble().confirms_lost && self.chance(200) {
            tokio::time::sleep(CONFIRM).await;
            return Err(Unconfirmed::Late);
        }
        Ok(())
    }

    /// Tells all other workers.
    pub fn notify(&self, from: usize, notice: &Notice) {
        let workers = self.workers.lock().unwrap().clone();
        for (n, worker) in workers.into_iter().enumerate() {
            let Some(worker) = worker.filter(|_| n != from && !self.mishap(20)) else {
                continue;
            };
            let (world, notice) = (self.me(), notice.clone());
            tokio::spawn(async move {
                tokio::time::sleep(world.between(1, 80)).await;
                world.after_alarm().await;
                worker.hear(&notice);
            });
        }
    }

    /// As `confirmed`, for the result of an action: tried for a minute.
    pub async fn result(&self, key: Key) -> bool {
        for _ in 0..6 {
            if self.confirmed(|| true).await.is_ok() {
                return true;
            }
        }
        self.note(WORLD, || format!("the callflow of {key} gets no answer yet"));
        false
    }

    /// What happens to an action that is not answered, or not durable.
    pub fn undone(&self, delivery: &Delivery) {
        if !is_back(Fault::ActionForgotten) {
            self.give_back(delivery);
        }
    }

    pub fn me(&self) -> Arc<Self> {
        self.myself.upgrade().unwrap()
    }
}
