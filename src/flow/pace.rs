//! A pace for each address of Kazoo's: its queues hold 100 messages and drop the oldest without a word, so what we answer after an outage
//! must not come faster than it is read.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Messages that may go out at once.
const BURST: u32 = 40;

/// Addresses that are remembered; one that was idle begins anew.
const ADDRESSES: usize = 2_000;

/// Token buckets, one for each queue.
#[derive(Debug)]
pub struct Pace {
    step: Duration,
    next: Mutex<HashMap<String, Instant>>,
}

impl Pace {
    pub fn new(per_second: u32) -> Self {
        Self {
            step: Duration::from_secs(1) / per_second.max(1),
            next: Mutex::default(),
        }
    }

    /// Waits until a message may go to `queue`. `true` when it had to wait: it is part of a burst.
    pub async fn keep(&self, queue: &str) -> bool {
        let now = Instant::now();
        let turn = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            if next.len() > ADDRESSES {
                next.retain(|_, at| *at > now);
            }
            // The bucket is full when nothing went out for as long as a burst takes.
            let full = now.checked_sub(self.step * BURST).unwrap_or(now);
            let turn = next.get(queue).copied().unwrap_or(full).max(full) + self.step;
            next.insert(queue.to_owned(), turn);
            turn
        };
        if turn <= now {
            return false;
        }
        tokio::time::sleep_until(turn).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_goes_at_once_and_the_rest_at_its_pace() {
        let pace = Pace::new(100);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let begun = Instant::now();
        let mut waited = 0;
        for _ in 0..140 {
            waited += u32::from(pace.keep("q").await);
        }
        assert_eq!(waited, 100);
        assert!(
            (990..=1010).contains(&begun.elapsed().as_millis()),
            "{:?}",
            begun.elapsed()
        );
        assert!(!pace.keep("another").await, "each address has its own");
    }
}
