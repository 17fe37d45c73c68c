//! A rate limit for each queue of Kazoo's. These queues hold 100 messages and drop the oldest without an error, so we must not send faster
//! than the queue is read.
//!
//! Each query of a queue's length says how many more messages may go into it. The next query follows when half of those are used up, so
//! that messages need not wait for its answer. If a queue's length cannot be queried, messages go out at a fixed rate.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Messages that may go to a queue before its first query.
const UNSEEN: u32 = 20;

/// The largest number of queues that are remembered. A queue without messages in flight may be forgotten.
const ADDRESSES: usize = 2_000;

/// Messages that may wait in a queue of Kazoo's. The other half is for other senders.
const ROOM: u32 = 50;

/// Interval between two queries of a queue that is full. It begins with `BRIEFLY` and doubles.
const AGAIN: Duration = Duration::from_millis(20);
const BRIEFLY: Duration = Duration::from_millis(2);

/// A queue that stays full this long has no reader, or does not drop messages. The time counts for the queue, not for each message. After
/// it the messages go out at the fixed rate, until a query finds room again.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known of each queue.
#[derive(Debug)]
pub struct RateLimit {
    step: Duration,
    known: Mutex<HashMap<String, Arc<Address>>>,
}

#[derive(Debug)]
struct Address {
    room: tokio::sync::Mutex<Room>,
    /// Messages that wait for room.
    waiting: AtomicUsize,
    /// Messages that were let through and are not in the queue yet, as far as we know. No query counts them.
    under_way: AtomicU32,
    /// Messages that no queue took, since the last query began.
    given_back: AtomicU32,
    /// A query ahead of time is in flight.
    asking: AtomicBool,
    /// The result of such a query.
    seen: Mutex<Option<Seen>>,
    /// Such a query ended.
    asked: Notify,
    /// A message that was let through is in the queue.
    arrived: Notify,
}

/// What a query ahead of time said, and what was known when it began.
#[derive(Debug)]
struct Seen {
    depth: u32,
    under_way: u32,
    let_through: u32,
}

impl Address {
    /// Waits until at most `most` messages are under way, for at most `AGAIN`.
    async fn has_arrived(&self, most: u32) {
        let arrived = async {
            while self.under_way.load(Ordering::Acquire) > most {
                self.arrived.notified().await;
            }
        };
        let _ = tokio::time::timeout(AGAIN, arrived).await;
    }

    fn take_back(&self, room: &mut Room) {
        if let Some(seen) = self.seen.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // What was let through since counts as if it were in the queue.
            let since = room.let_through.wrapping_sub(seen.let_through);
            let taken = seen.depth.saturating_add(seen.under_way).saturating_add(since);
            room.left = room.left.max(ROOM.saturating_sub(taken));
        }
        room.left += self.given_back.swap(0, Ordering::AcqRel);
    }
}

/// A query ahead of time, until it ends or is given up. No message waits for it.
#[derive(Debug)]
pub struct Ahead {
    address: Arc<Address>,
    /// What was known when it began.
    under_way: u32,
    let_through: u32,
}

impl Ahead {
    /// The query's answer: how many messages are in the queue, if that is known.
    pub fn end(self, depth: Option<u32>) {
        let Some(depth) = depth else { return };
        let seen = Seen {
            depth,
            under_way: self.under_way,
            let_through: self.let_through,
        };
        *self.address.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.address.asking.store(false, Ordering::Release);
        self.address.asked.notify_waiters();
    }
}

#[derive(Debug)]
struct Room {
    /// Messages that may still go out after the last query.
    left: u32,
    /// Since when no query has found any room.
    full_since: Option<Instant>,
    /// Messages that were let through, with overflow.
    let_through: u32,
    /// With no more than this left, a query ahead of time begins. 0 before the first query, and when a query had no answer.
    ahead_at: u32,
}

impl Room {
    /// Lets one message through, and returns how many are under way with it.
    fn let_through(&mut self, address: &Address) -> u32 {
        self.left = self.left.saturating_sub(1);
        self.let_through = self.let_through.wrapping_add(1);
        address.under_way.fetch_add(1, Ordering::AcqRel) + 1
    }
}

/// Counts a message that waits, as long as this value lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A message that was let through. It counts as in flight until this value is dropped.
#[derive(Debug)]
pub struct Pass {
    address: Arc<Address>,
    /// The queue was full a moment ago, or could not be queried. An important message should be repeated.
    pub is_unsure: bool,
}

impl Pass {
    /// No queue took the message, so it used up none of the room.
    pub fn give_back(self) {
        self.address.given_back.fetch_add(1, Ordering::AcqRel);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.address.under_way.fetch_sub(1, Ordering::AcqRel);
        self.address.arrived.notify_one();
    }
}

impl RateLimit {
    pub fn new(per_second: u32) -> Self {
        Self {
            step: Duration::from_secs(1) / per_second.max(1),
            known: Mutex::default(),
        }
    }

    /// Waits until a message may go to `queue`. `depth` returns how many messages are in it, if that is known. If a query ahead of time is
    /// due, the caller must perform it beside its message.
    pub async fn keep<F>(&self, queue: &str, depth: impl Fn() -> F) -> (Pass, Option<Ahead>)
    where
        F: Future<Output = Option<u32>>,
    {
        let address = self.address(queue);
        let waiting = Waiting::new(&address.waiting);
        // One task queries. The other tasks wait behind it, and continue in their order.
        let mut room = address.room.lock().await;
        let (mut is_unsure, mut pause) = (false, BRIEFLY);
        address.take_back(&mut room);
        while room.left == 0 {
            let asked = address.asked.notified();
            if address.asking.load(Ordering::Acquire) {
                asked.await;
                address.take_back(&mut room);
                if room.left > 0 {
                    break;
                }
            }
            // Read before the query: a message that is confirmed meanwhile counts twice rather than not at all.
            let under_way = address.under_way.load(Ordering::Acquire);
            let depth = if under_way < ROOM {
                depth().await
            } else {
                // Without room for what is in flight alone, a query says nothing new.
                address.has_arrived(ROOM / 2).await;
                if address.under_way.load(Ordering::Acquire) < ROOM {
                    continue;
                }
                Some(0)
            };
            match depth {
                Some(depth) if depth.saturating_add(under_way) < ROOM => {
                    room.left = ROOM - depth - under_way;
                    room.full_since = None;
                    room.ahead_at = ROOM / 2;
                }
                Some(_) if room.full_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE => {
                    is_unsure = true;
                    room.ahead_at = 0;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(AGAIN);
                }
                // The queue has no reader, or its length is unknown.
                Some(_) | None => {
                    is_unsure = true;
                    room.ahead_at = 0;
                    tokio::time::sleep(self.step).await;
                    room.left = 1;
                }
            }
            address.take_back(&mut room);
        }
        let under_way = room.let_through(&address);
        let begins = room.ahead_at > 0 && room.left <= room.ahead_at && !address.asking.swap(true, Ordering::AcqRel);
        let let_through = room.let_through;
        drop(room);
        drop(waiting);
        let ahead = begins.then(|| Ahead {
            address: Arc::clone(&address),
            under_way,
            let_through,
        });
        (Pass { address, is_unsure }, ahead)
    }

    /// Lets a message through if there is room for it now, without a query.
    pub fn at_once(&self, queue: &str) -> Option<Pass> {
        let address = self.address(queue);
        {
            let mut room = address.room.try_lock().ok()?;
            address.take_back(&mut room);
            if room.left == 0 {
                return None;
            }
            room.let_through(&address);
        }
        Some(Pass {
            address,
            is_unsure: false,
        })
    }

    /// Messages that wait for room in `queue`.
    pub fn waiting(&self, queue: &str) -> usize {
        self.address(queue).waiting.load(Ordering::Acquire)
    }

    fn address(&self, queue: &str) -> Arc<Address> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= ADDRESSES && !known.contains_key(queue) {
            known.retain(|_, address| Arc::strong_count(address) > 1);
        }
        let address = known.entry(queue.to_owned()).or_insert_with(|| {
            Arc::new(Address {
                room: tokio::sync::Mutex::new(Room {
                    left: UNSEEN,
                    full_since: None,
                    let_through: 0,
                    ahead_at: 0,
                }),
                waiting: AtomicUsize::new(0),
                under_way: AtomicU32::new(0),
                given_back: AtomicU32::new(0),
                asking: AtomicBool::new(false),
                seen: Mutex::default(),
                asked: Notify::new(),
                arrived: Notify::new(),
            })
        });
        Arc::clone(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message that waits for the query ahead of time too.
    async fn keep<F: Future<Output = Option<u32>>>(pace: &RateLimit, queue: &str, depth: impl Fn() -> F) -> Pass {
        let (pass, ahead) = pace.keep(queue, &depth).await;
        if let Some(ahead) = ahead {
            ahead.end(depth().await);
        }
        pass
    }

    #[tokio::test(start_paused = true)]
    async fn where_nobody_can_look_the_first_go_at_once_and_the_rest_at_a_pace() {
        let (pace, begun) = (RateLimit::new(100), Instant::now());
        let mut unsure = 0;
        for _ in 0..UNSEEN + 100 {
            unsure += u32::from(keep(&pace, "q", async || None).await.is_unsure);
        }
        assert_eq!(unsure, 100);
        assert!(begun.elapsed() >= Duration::from_millis(990), "{:?}", begun.elapsed());
        let another = keep(&pace, "another", async || None).await;
        assert!(!another.is_unsure, "each address has its own");
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_is_read_slowly_is_never_filled() {
        // The queue is read 20 times a second.
        let (pace, begun) = (RateLimit::new(200), Instant::now());
        let sent = AtomicU32::new(0);
        let depth = || {
            let read = u32::try_from(begun.elapsed().as_millis() / 50).unwrap();
            sent.load(Ordering::Relaxed).saturating_sub(read)
        };
        for _ in 0..400 {
            keep(&pace, "q", async || Some(depth())).await;
            sent.fetch_add(1, Ordering::Relaxed);
            assert!(depth() <= ROOM, "{}", depth());
        }
        assert!(begun.elapsed() > Duration::from_secs(15), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_takes_room_too() {
        let pace = RateLimit::new(200);
        let mut under_way = Vec::new();
        // The broker is slow: nothing arrives, and each query shows an empty queue.
        while let Ok(pass) = tokio::time::timeout(PATIENCE / 2, keep(&pace, "q", async || Some(0))).await {
            under_way.push(pass);
            assert!(under_way.len() <= 2 * ROOM as usize);
        }
        assert_eq!(under_way.len(), ROOM as usize);
        under_way.pop();
        let next = tokio::time::timeout(PATIENCE / 2, keep(&pace, "q", async || Some(0))).await;
        assert!(next.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_queue_took_costs_no_query() {
        let pace = RateLimit::new(200);
        let queries = AtomicU32::new(0);
        for _ in 0..400 {
            let counted = async || {
                queries.fetch_add(1, Ordering::Relaxed);
                Some(0)
            };
            keep(&pace, "q", counted).await.give_back();
        }
        assert_eq!(queries.into_inner(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_back_while_a_query_runs_is_counted() {
        let pace = RateLimit::new(200);
        let mut under_way = Vec::new();
        for _ in 0..UNSEEN {
            under_way.push(keep(&pace, "q", async || Some(0)).await);
        }
        let returning = std::cell::RefCell::new(under_way);
        let queries = AtomicU32::new(0);
        let all_come_back = async || {
            queries.fetch_add(1, Ordering::Relaxed);
            returning.take().into_iter().for_each(Pass::give_back);
            Some(0)
        };
        // With half of the room left, the next query would begin.
        for _ in 1..ROOM / 2 {
            // What is let through stays in flight.
            std::mem::forget(keep(&pace, "q", all_come_back).await);
        }
        assert_eq!(queries.into_inner(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_is_read_at_once_holds_nobody_up() {
        let (pace, begun) = (RateLimit::new(200), Instant::now());
        for _ in 0..5_000 {
            assert!(!keep(&pace, "q", async || Some(0)).await.is_unsure);
        }
        assert!(begun.elapsed() < Duration::from_millis(10), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_nobody_reads_uses_up_one_patience_and_not_one_for_each_message() {
        let (pace, begun) = (RateLimit::new(200), Instant::now());
        for _ in 0..UNSEEN + 100 {
            keep(&pace, "q", async || Some(100)).await;
        }
        let took = begun.elapsed();
        assert!(took <= PATIENCE + Duration::from_secs(2), "{took:?}");
        // A query found room once, so messages wait for room again.
        keep(&pace, "q", async || Some(ROOM - 1)).await;
        let waits = tokio::time::timeout(PATIENCE / 2, keep(&pace, "q", async || Some(100))).await;
        assert!(waits.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_counted_for_each_queue_and_what_need_not_go_does_not_wait() {
        let pace = RateLimit::new(200);
        for _ in 0..UNSEEN {
            assert!(pace.at_once("q").is_some());
        }
        assert!(pace.at_once("q").is_none() && pace.at_once("another").is_some());
        let full = async || Some(100);
        let waits = [keep(&pace, "q", full), keep(&pace, "q", full)];
        let waits = waits.map(|wait| Box::pin(tokio::time::timeout(Duration::from_secs(1), wait)));
        let counts = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            (pace.waiting("q"), pace.waiting("another"))
        };
        let (waited, counts) = tokio::join!(futures_util::future::join_all(waits), counts);
        assert!(waited.iter().all(Result::is_err));
        assert_eq!((counts, pace.waiting("q")), ((2, 0), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_nobody_reads_does_not_hold_an_answer_for_ever() {
        let (pace, begun) = (RateLimit::new(1000), Instant::now());
        for _ in 0..=UNSEEN {
            keep(&pace, "q", async || Some(100)).await;
        }
        assert!(
            begun.elapsed() <= PATIENCE + Duration::from_secs(1),
            "{:?}",
            begun.elapsed()
        );
    }
}
