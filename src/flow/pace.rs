//! A pace for each address of Kazoo's: its queues hold 100 messages and drop the oldest without a word, so what we answer after an outage
//! must not come faster than it is read.
//!
//! Two things hold a burst back: so many messages a second, and the room that is left in the queue itself, which is looked at every so many
//! messages. What is no burst passes at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Messages that may go out at once.
const BURST: u32 = 40;

/// Addresses that are remembered; one that was idle begins anew.
const ADDRESSES: usize = 2_000;

/// Messages that may wait in a queue of Kazoo's: the other half is for what others send.
const ROOM: u32 = 50;

/// Between two looks at a queue that is full.
const AGAIN: Duration = Duration::from_millis(50);

/// A queue that stays full this long is read by nobody; or it is one that does not drop.
const PATIENCE: Duration = Duration::from_secs(10);

/// Token buckets, and the room that is left, for each queue.
#[derive(Debug)]
pub struct Pace {
    step: Duration,
    next: Mutex<HashMap<String, Address>>,
}

#[derive(Debug)]
struct Address {
    turn: Instant,
    room: Arc<tokio::sync::Mutex<u32>>,
}

impl Pace {
    pub fn new(per_second: u32) -> Self {
        Self {
            step: Duration::from_secs(1) / per_second.max(1),
            next: Mutex::default(),
        }
    }

    /// Waits until a message may go to `queue`. `true` when it had to wait: it is part of a burst. `depth` tells how many messages are in the
    /// queue, if that is to be had.
    pub async fn keep<F>(&self, queue: &str, depth: impl Fn() -> F) -> bool
    where
        F: Future<Output = Option<u32>>,
    {
        let now = Instant::now();
        let (turn, room) = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            if next.len() > ADDRESSES {
                next.retain(|_, address| address.turn > now);
            }
            // The bucket is full when nothing went out for as long as a burst takes.
            let full = now.checked_sub(self.step * BURST).unwrap_or(now);
            let address = next.entry(queue.to_owned()).or_insert_with(|| Address {
                turn: full,
                room: Arc::default(),
            });
            address.turn = address.turn.max(full) + self.step;
            (address.turn, Arc::clone(&address.room))
        };
        if turn <= now {
            return false;
        }
        tokio::time::sleep_until(turn).await;
        // One looks, the others wait behind it.
        let mut room = room.lock().await;
        let end = Instant::now() + PATIENCE;
        while *room == 0 {
            match depth().await {
                Some(depth) if depth < ROOM => *room = ROOM - depth,
                Some(_) if Instant::now() < end => tokio::time::sleep(AGAIN).await,
                // Nobody can tell, or nobody reads: the pace alone must do.
                Some(_) | None => *room = 1,
            }
        }
        *room -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    async fn keep(pace: &Pace, queue: &str) -> bool {
        pace.keep(queue, async || None).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_goes_at_once_and_the_rest_at_its_pace() {
        let pace = Pace::new(100);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let begun = Instant::now();
        let mut waited = 0;
        for _ in 0..140 {
            waited += u32::from(keep(&pace, "q").await);
        }
        assert_eq!(waited, 100);
        assert!(
            (990..=1010).contains(&begun.elapsed().as_millis()),
            "{:?}",
            begun.elapsed()
        );
        assert!(!keep(&pace, "another").await, "each address has its own");
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_is_read_slowly_is_never_filled() {
        // Read 20 times a second, offered 200 a second.
        let (pace, begun) = (Pace::new(200), Instant::now());
        let sent = AtomicU32::new(0);
        let depth = || {
            let read = u32::try_from(begun.elapsed().as_millis() / 50).unwrap();
            sent.load(Ordering::Relaxed).saturating_sub(read)
        };
        for _ in 0..400 {
            pace.keep("q", async || Some(depth())).await;
            sent.fetch_add(1, Ordering::Relaxed);
            assert!(depth() <= ROOM + BURST, "{}", depth());
        }
        assert!(begun.elapsed() > Duration::from_secs(15), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_nobody_reads_does_not_hold_an_answer_for_ever() {
        let (pace, begun) = (Pace::new(1000), Instant::now());
        for _ in 0..=BURST {
            pace.keep("q", async || Some(100)).await;
        }
        assert!(
            begun.elapsed() <= PATIENCE + Duration::from_secs(1),
            "{:?}",
            begun.elapsed()
        );
    }
}
