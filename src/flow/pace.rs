//! A pace for each address of Kazoo's: its queues hold 100 messages and drop the oldest without a word, so what we answer must not come faster
//! than it is read.
//!
//! What comes now and then passes at once. A crowd is let through as the queue itself has room, which is looked at every so many messages;
//! where that is not to be had, at so many messages a second.

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
const AGAIN: Duration = Duration::from_millis(20);

/// A queue that stays full this long is read by nobody; or it is one that does not drop.
const PATIENCE: Duration = Duration::from_secs(10);

/// Token buckets, and the room that is left, for each queue.
#[derive(Debug)]
pub struct Pace {
    step: Duration,
    known: Mutex<HashMap<String, Address>>,
}

#[derive(Debug)]
struct Address {
    /// When the bucket was, or will be, empty.
    empty: Instant,
    room: Arc<tokio::sync::Mutex<u32>>,
}

/// How a message was let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// There was room for it.
    Sure,
    /// The queue was full a moment ago, or could not be looked at: what matters is worth a repeat.
    Unsure,
}

impl Pace {
    pub fn new(per_second: u32) -> Self {
        Self {
            step: Duration::from_secs(1) / per_second.max(1),
            known: Mutex::default(),
        }
    }

    /// Waits until a message may go to `queue`. `depth` tells how many messages are in it, if that is to be had.
    pub async fn keep<F>(&self, queue: &str, depth: impl Fn() -> F) -> Passage
    where
        F: Future<Output = Option<u32>>,
    {
        let Some(room) = self.take_token(queue) else {
            return Passage::Sure;
        };
        // One looks, the others wait behind it.
        let mut room = room.lock().await;
        let (end, mut passage) = (Instant::now() + PATIENCE, Passage::Sure);
        while *room == 0 {
            match depth().await {
                Some(depth) if depth < ROOM => *room = ROOM - depth,
                Some(_) if Instant::now() < end => {
                    passage = Passage::Unsure;
                    tokio::time::sleep(AGAIN).await;
                }
                // Nobody reads, or nobody can tell.
                Some(_) | None => {
                    tokio::time::sleep(self.step).await;
                    *room = 1;
                    passage = Passage::Unsure;
                }
            }
        }
        *room -= 1;
        passage
    }

    /// Takes a token; where there is none, gives what else may let a message through.
    fn take_token(&self, queue: &str) -> Option<Arc<tokio::sync::Mutex<u32>>> {
        let now = Instant::now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > ADDRESSES {
            known.retain(|_, address| address.empty > now);
        }
        // The bucket is full when nothing went out for as long as a burst takes.
        let full = now.checked_sub(self.step * BURST).unwrap_or(now);
        let address = known.entry(queue.to_owned()).or_insert_with(|| Address {
            empty: full,
            room: Arc::default(),
        });
        let taken = address.empty.max(full) + self.step;
        if taken > now {
            return Some(Arc::clone(&address.room));
        }
        address.empty = taken;
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_goes_at_once_and_the_rest_at_its_pace_where_nobody_can_look() {
        let pace = Pace::new(100);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let begun = Instant::now();
        let mut unsure = 0;
        for _ in 0..140 {
            unsure += u32::from(pace.keep("q", async || None).await == Passage::Unsure);
        }
        assert!((45..=100).contains(&unsure), "{unsure}");
        assert!(begun.elapsed() >= Duration::from_millis(490), "{:?}", begun.elapsed());
        let another = pace.keep("another", async || None).await;
        assert_eq!(another, Passage::Sure, "each address has its own");
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_is_read_slowly_is_never_filled() {
        // Read 20 times a second.
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
    async fn a_queue_that_is_read_at_once_holds_nobody_up() {
        let (pace, begun) = (Pace::new(200), Instant::now());
        for _ in 0..5_000 {
            assert_eq!(pace.keep("q", async || Some(0)).await, Passage::Sure);
        }
        assert!(begun.elapsed() < Duration::from_millis(10), "{:?}", begun.elapsed());
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
