//! Which workers are alive, according to their heartbeats. A worker that was killed leaves leases that run for minutes, and an idle worker
//! need not wait for that. A wrong guess costs work and nothing else: a lease is no lock.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A worker that is silent for this long is gone, if this worker heard its own heartbeats all that time. Otherwise the broker is silent.
const GONE: Duration = Duration::from_secs(30);

/// The longest gap between this worker's own heartbeats that does not count as silence of the broker.
const STEADY: Duration = Duration::from_secs(15);

/// How many workers are remembered, and for how long: no lease that matters is older.
const MOST: usize = 1024;
const REMEMBERED: Duration = Duration::from_secs(86_400);

/// The workers whose heartbeats were received.
#[derive(Debug)]
pub struct Peers {
    me: String,
    heard: Mutex<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    /// The last heartbeat of each other worker.
    others: HashMap<String, Instant>,
    /// Since when this worker's own heartbeats come without a gap, and the last of them.
    own: Option<(Instant, Instant)>,
}

impl Peers {
    pub fn new(me: &str) -> Self {
        Self {
            me: me.to_owned(),
            heard: Mutex::default(),
        }
    }

    /// A heartbeat arrived.
    pub fn heard(&self, worker: &str) {
        self.heard_at(worker, Instant::now());
    }

    fn heard_at(&self, worker: &str, now: Instant) {
        let mut heard = self.lock();
        if worker == self.me {
            let since = match heard.own {
                Some((since, last)) if now.duration_since(last) <= STEADY => since,
                _ => now,
            };
            heard.own = Some((since, now));
            return;
        }
        if !heard.others.contains_key(worker) {
            tracing::debug!(event = "worker_heartbeat", worker, "heartbeat of another worker");
        }
        heard.others.retain(|_, last| now.duration_since(*last) < REMEMBERED);
        if heard.others.len() < MOST || heard.others.contains_key(worker) {
            heard.others.insert(worker.to_owned(), now);
        }
    }

    /// Whether a worker that was alive is gone. A worker without any heartbeat may be of a version that sends none.
    pub fn is_gone(&self, worker: &str) -> bool {
        self.gone_at(Instant::now()).iter().any(|gone| gone == worker)
    }

    /// Every worker that is gone.
    pub fn gone(&self) -> Vec<String> {
        self.gone_at(Instant::now())
    }

    fn gone_at(&self, now: Instant) -> Vec<String> {
        let heard = self.lock();
        let Some((since, last)) = heard.own else {
            return Vec::new();
        };
        if now.duration_since(last) > STEADY {
            return Vec::new();
        }
        let is_gone = |heard: &Instant| now.duration_since(since.max(*heard)) > GONE;
        let gone = heard.others.iter().filter(|(_, last)| is_gone(last));
        let mut gone: Vec<String> = gone.map(|(worker, _)| worker.clone()).collect();
        gone.sort_unstable();
        gone
    }

    /// The worker left no leases any more.
    pub fn forget(&self, worker: &str) {
        self.lock().others.remove(worker);
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_silent_while_this_one_hears_itself_is_gone() {
        let alive = Peers::new("me");
        let begun = Instant::now();
        let at = |second| begun + Duration::from_secs(second);
        for second in (0..=60).step_by(5) {
            alive.heard_at("me", at(second));
            if second <= 20 {
                alive.heard_at("dead", at(second));
            }
            alive.heard_at("living", at(second));
        }
        assert_eq!(alive.gone_at(at(50)), [""; 0], "not for a while");
        assert_eq!(alive.gone_at(at(60)), ["dead"]);
        alive.forget("dead");
        assert_eq!(alive.gone_at(at(60)), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_was_away_makes_no_worker_gone() {
        let alive = Peers::new("me");
        let begun = Instant::now();
        let at = |second| begun + Duration::from_secs(second);
        alive.heard_at("me", at(0));
        alive.heard_at("other", at(0));
        assert_eq!(alive.gone_at(at(100)), [""; 0], "nothing comes at all");
        alive.heard_at("me", at(100));
        assert_eq!(alive.gone_at(at(101)), [""; 0], "it has its time to be heard again");
        for second in (105..=140).step_by(5) {
            alive.heard_at("me", at(second));
        }
        assert_eq!(alive.gone_at(at(140)), ["other"]);
    }
}
