//! Selects one of several brokers. Both connections of a worker use the same broker. The brokers of a list need not form one cluster, so a
//! reply to a request published on one broker never arrives on another.

use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::config;
use crate::telemetry::{survive, survive_for_ever};

use super::link;

/// How often the worker tries the first broker while it uses another one.
const LOOK: Duration = Duration::from_secs(10);

/// Successful attempts in a row before the worker returns to the first broker.
const GOOD_LOOKS: u32 = 2;

/// Longest interval between attempts. The interval doubles when the worker leaves the first broker again soon after a return.
const LONGEST: Duration = Duration::from_secs(600);

/// A return that lasted this long resets the interval.
const LASTING: Duration = Duration::from_secs(300);

/// The choice, shared by the connections of a worker.
#[derive(Debug, Clone)]
pub struct Brokers {
    chosen: Arc<watch::Sender<usize>>,
    count: usize,
}

impl Brokers {
    /// The first of them is the first choice.
    pub fn new(config: &config::Amqp) -> Self {
        Self {
            chosen: Arc::new(watch::channel(0).0),
            count: config.uris.len().max(1),
        }
    }

    pub(super) fn chosen(&self) -> usize {
        *self.chosen.borrow()
    }

    /// Selects the broker after `from`, unless another one is selected already.
    pub(super) fn move_on(&self, from: usize) {
        let next = (from + 1) % self.count;
        self.chosen.send_if_modified(|chosen| {
            let moves = *chosen == from && next != from;
            if moves {
                *chosen = next;
            }
            moves
        });
    }

    pub(super) async fn moved(&self, from: usize) {
        let mut watching = self.chosen.subscribe();
        if watching.wait_for(|chosen| *chosen != from).await.is_err() {
            // The sender lives in `self`.
            std::future::pending::<()>().await;
        }
    }

    /// Returns to the first broker when it accepts connections again, because the first broker is also Kazoo's first choice.
    pub fn prefer_the_first(&self, config: &config::Amqp, node: &str, tasks: &TaskTracker, stop: CancellationToken) {
        if self.count < 2 {
            return;
        }
        let (brokers, config, name) = (self.clone(), config.clone(), format!("{node} look"));
        let looking = async move {
            let look = || brokers.look(&config, &name);
            tokio::select! {
                () = survive_for_ever("first_broker", look) => {}
                () = stop.cancelled() => {}
            }
        };
        tasks.spawn(survive("first_broker", looking));
    }

    async fn look(&self, config: &config::Amqp, name: &str) {
        let (mut every, mut good, mut returned) = (LOOK, 0, None::<Instant>);
        loop {
            if self.chosen() == 0 {
                self.moved(0).await;
                good = 0;
                every = match returned.take() {
                    Some(at) if at.elapsed() < LASTING => (every * 2).min(LONGEST),
                    _ => LOOK,
                };
            }
            tokio::time::sleep(every).await;
            let Some(uri) = config.uris.first() else { return };
            match link::connect(config, uri, name).await {
                Ok(connection) => {
                    link::close(&connection).await;
                    good += 1;
                }
                Err(_) => good = 0,
            }
            if good >= GOOD_LOOKS && self.chosen() != 0 {
                let broker = config::broker(uri.expose_secret()).map_or_else(
                    |error| error.to_string(),
                    |uri| format!("{}/{}", config::authority(&uri), uri.vhost.trim_start_matches('/')),
                );
                warn!(
                    event = "amqp_first_broker",
                    broker, "the first broker takes connections again, and is used again"
                );
                returned = Some(Instant::now());
                self.chosen.send_replace(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brokers(count: usize) -> Brokers {
        Brokers {
            chosen: Arc::new(watch::channel(0).0),
            count,
        }
    }

    #[tokio::test]
    async fn both_connections_use_the_broker_that_was_chosen_last() {
        let one = brokers(3);
        let two = one.clone();
        one.move_on(0);
        assert_eq!(two.chosen(), 1);
        // The second connection failed on the same broker, but reports the failure late.
        two.move_on(0);
        assert_eq!((one.chosen(), two.chosen()), (1, 1));
        two.moved(0).await;
        one.move_on(1);
        one.move_on(2);
        assert_eq!(two.chosen(), 0);
        let alone = brokers(1);
        alone.move_on(0);
        assert_eq!(alone.chosen(), 0);
    }
}
