//! The shared heart of one simulated cluster: its state behind one lock, a bell that rings at every change (tests wait
//! on it instead of sleeping), and the roles' links to the broker.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::anyhow;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use super::{
    amqp::{Link, Out},
    options::KazooOptions,
    record::{Direction, Entry, Role, Violation},
    state::State,
    wire::{Clock, Object, uuid},
};

/// The shared heart of one simulated cluster.
pub struct World {
    pub(super) options: KazooOptions,
    pub(super) folder: PathBuf,
    pub(super) flow_queue: String,
    /// Five per ecallmgr.
    pub(super) control_queues: Vec<Vec<String>>,
    pub(super) callflow: Link,
    pub(super) ecallmgrs: Vec<Link>,
    pub(super) observer: Option<Link>,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    /// Counts the switch's deaths.
    pub(super) deaths: watch::Sender<u64>,
    /// Rung in place of `changed` when a crowd is waiting; see [`World::ring`].
    crowded: Notify,
}

/// From so many waiting tests on, changes are told together.
const CROWD: usize = 32;
const CROWD_PAUSE: Duration = Duration::from_millis(10);

impl World {
    pub(super) fn new(
        options: KazooOptions,
        folder: PathBuf,
        flow_queue: String,
        control_queues: Vec<Vec<String>>,
        (callflow, ecallmgrs, observer): (Link, Vec<Link>, Option<Link>),
    ) -> Arc<Self> {
        Arc::new(Self {
            options,
            folder,
            flow_queue,
            control_queues,
            callflow,
            ecallmgrs,
            observer,
            state: Mutex::new(State {
                core_uuid: uuid(),
                ..State::default()
            }),
            deaths: watch::channel(0).0,
            changed: watch::channel(0).0,
            crowded: Notify::new(),
        })
    }

    pub(super) fn clock(&self) -> Clock {
        self.options.clock
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panicking test thread must not hide what the simulator saw.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and rings the bell.
    pub fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        if self.changed.receiver_count() < CROWD {
            self.changed.send_modify(|n| *n += 1);
        } else {
            self.crowded.notify_one();
        }
        result
    }

    /// Wakes a crowd at most a hundred times a second: a thousand waiting calls woken at each of a thousand changes
    /// would leave the simulated cluster no time to empty its queues, which hold a hundred messages.
    pub(super) async fn ring(self: Arc<Self>) {
        loop {
            self.crowded.notified().await;
            tokio::time::sleep(CROWD_PAUSE).await;
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Changes what no test waits for.
    pub(super) fn quietly<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.lock())
    }

    /// So long the switch takes for what lasts so long on the real one.
    pub(super) fn lasting(&self, switch: Duration) -> Duration {
        switch.mul_f64(self.options.time_scale)
    }

    pub fn look<T>(&self, see: impl FnOnce(&State) -> T) -> T {
        see(&self.lock())
    }

    /// Waits until `see` finds something.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        patience: Duration,
        see: impl Fn(&State) -> Option<T>,
    ) -> anyhow::Result<T> {
        let mut bell = self.changed.subscribe();
        let found = async {
            loop {
                bell.borrow_and_update();
                if let Some(found) = see(&self.lock()) {
                    return found;
                }
                if bell.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        timeout(patience, found)
            .await
            .map_err(|_| anyhow!("{what}: not within {patience:?}"))
    }

    pub(super) fn log(&self, entry: Entry) {
        self.with(|s| {
            if s.timeline.len() >= self.options.timeline_limit {
                s.timeline.pop_front();
            }
            s.timeline.push_back(entry);
        });
    }

    pub(super) fn note(&self, role: Role, call_id: Option<&str>, summary: impl Into<String>) {
        self.log(Entry::note(role, call_id, summary));
    }

    pub(super) fn violate(&self, rule: &'static str, message: impl Into<String>, detail: impl Into<String>) {
        let violation = Violation {
            rule,
            message: message.into(),
            detail: detail.into(),
            at: Instant::now(),
        };
        self.with(|s| {
            if s.tolerated.iter().any(|t| t == rule) {
                return;
            }
            if self.options.loud {
                eprintln!("VIOLATION {violation}");
            }
            s.violations.push(violation);
        });
    }

    /// Sends a message of the cluster and writes it down.
    pub(super) fn publish(&self, role: Role, link: &Link, exchange: &'static str, key: &str, body: Object) {
        self.publish_to(role, link, exchange, key, body, &[]);
    }

    pub(super) fn publish_to(
        &self,
        role: Role,
        link: &Link,
        exchange: &'static str,
        key: &str,
        body: Object,
        headers: &[(&str, &str)],
    ) {
        let mut out = Out::json(exchange, key, &body, self.clock());
        for (name, value) in headers {
            out = out.header(name, value);
        }
        self.log(Entry::message(role, Direction::Sent, exchange, key, Arc::new(body)));
        link.send(out);
    }
}
