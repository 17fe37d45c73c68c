//! What every service of the flow shares. It is kept small: what only some services need is a field of those services.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::entry::fact::{Fact, What};
use crate::kazoo::envelope::Sender;
use crate::kazoo::time::{Clock, Moment, Month};
use crate::lifecycle::{Case, Input, Policy};
use crate::telemetry::survive;

/// Delay between two tries of an effect that must succeed.
pub const AGAIN: Duration = Duration::from_secs(1);

/// How old an event may be by its own clock, and how far ahead of ours.
pub const OLDEST: Duration = Duration::from_secs(62 * 86_400);
pub const AHEAD: Duration = Duration::from_secs(86_400);

/// Postponed recordings resume within this time of each other, so that they do not all resume at once.
const SPREAD: Duration = Duration::from_secs(2);

/// Whether a recording that is handled now can be of that month.
pub fn is_recent(month: Month, now: Moment) -> bool {
    (now.minus(OLDEST).month()..=now.plus(AHEAD).month()).contains(&month)
}

/// Why an effect was left undone. The driver gives the recording back, and a worker resumes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupted {
    /// The worker is shutting down.
    ShuttingDown,
    /// The entry lacks what the effect is about, such as an order. No decision asks for such an effect.
    Baseless,
}

/// What every service of the flow shares.
pub struct Common {
    pub config: Config,
    /// This worker's name on the wire.
    pub sender: Sender,
    pub clock: Clock,
    pub policy: Policy,
    pub tasks: Tasks,
}

/// The tasks that a worker finishes, or gives back, before it ends. Cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Tasks that are counted by `tracker`, until `stop`.
    pub fn new(tracker: TaskTracker, stop: CancellationToken) -> Self {
        Self { tracker, stop }
    }

    /// The worker is shutting down: nothing new begins, and no task waits for a later time.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Spawns a task that survives a panic.
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(survive(name, work));
    }
}

impl Common {
    /// The worker is shutting down: nothing new begins, and no task waits for a later time.
    pub fn stop(&self) -> &CancellationToken {
        self.tasks.stop()
    }

    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    /// A fact that this worker saw now.
    pub fn fact(&self, what: What) -> Fact {
        Fact {
            at: self.now(),
            by: self.policy.worker.clone(),
            what,
        }
    }

    /// Delay before something that must succeed is tried again.
    ///
    /// # Errors
    /// When the worker is shutting down.
    pub async fn rest(&self) -> Result<(), Interrupted> {
        self.unless_stopped(tokio::time::sleep(AGAIN)).await
    }

    /// The result of `what`.
    ///
    /// # Errors
    /// When the worker is shutting down.
    pub async fn unless_stopped<T>(&self, what: impl Future<Output = T>) -> Result<T, Interrupted> {
        tokio::select! {
            done = what => Ok(done),
            () = self.stop().cancelled() => Err(Interrupted::ShuttingDown),
        }
    }

    /// Nothing is attempted before `until`.
    pub fn postponed(&self, case: &Case, until: Moment, why: String) -> Input {
        let bytes = case.entry.key.bytes();
        let share = f64::from(u16::from_be_bytes([bytes[0], bytes[1]])) / f64::from(u16::MAX);
        Input::Fact(What::Postponed {
            n: case.entry.next_number("postponed"),
            until: until.plus(SPREAD.mul_f64(share)),
            why,
        })
    }

    /// Nothing is attempted before the retry schedule's next delay is over; `before` attempts were postponed already.
    pub fn postponed_by_schedule(&self, case: &Case, before: usize, why: String) -> Input {
        let pause = self.policy.retry.get(before).or(self.policy.retry.last());
        let until = self.now().plus(pause.copied().unwrap_or(AGAIN));
        self.postponed(case, until, why)
    }
}
