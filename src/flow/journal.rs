//! The journal, where a start is written if the ledger does not take it in time. It is a quorum queue of our own, with persistent and
//! confirmed messages. They are moved into the ledger when the ledger is back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::amqp::{PublishError, Publisher};
use crate::entry::Entry;
use crate::entry::fact::What;
use crate::faults::{Fault, is_back};
use crate::kazoo::envelope::{MAX_BODY_BYTES, MessageError, check_ids};
use crate::kazoo::time::Moment;
use crate::ledger::{Lease, Ledger, address};
use crate::telemetry::events::Journalled;

use super::common::{Common, is_recent};

/// The reason for which no search can exclude a recording as long as starts wait there.
pub const WAITING: &str = "starts wait in the journal";

/// The queue.
pub const JOURNAL: &str = "kz_record_call.journal";

/// Batch delay of starts. Their calls have their answers already, and only the acknowledgement of the action waits. The same for what is
/// moved from the journal into the ledger: until it is there, no search finds it.
pub const TOGETHER: Duration = Duration::from_millis(25);

/// For this long after a move, and after the ledger came back, more may be on its way from the journal into the ledger: all workers move at
/// the same time, and the queue reports nothing of what a worker has taken out.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

/// How many quarters of the prefetched actions may wait for a slow ledger.
const QUARTERS: usize = 3;

/// Counts an entry that waits, as long as this value lives.
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

/// What is on its way from the journal into the ledger. The depth of the queue does not count it.
#[derive(Debug, Default)]
pub struct Moves(Mutex<Moving>);

#[derive(Debug, Default)]
struct Moving {
    /// Messages that this worker has taken out, and that the ledger does not have yet.
    taken: usize,
    /// When the last of them was written, or when all workers began to move.
    last: Option<Instant>,
}

/// One message on its way, as long as this value lives.
pub struct Move<'a>(&'a Moves);

impl Moves {
    /// This worker has taken a message out of the journal.
    pub fn begin(&self) -> Move<'_> {
        self.lock().taken += 1;
        Move(self)
    }

    /// The ledger came back: every worker begins to move what waits.
    pub fn all_begin(&self) {
        self.lock().last = Some(Instant::now());
    }

    /// Whether something may be on its way.
    fn any(&self) -> bool {
        let moving = self.lock();
        moving.taken > 0 || moving.last.is_some_and(|last| last.elapsed() < ON_ITS_WAY)
    }

    fn lock(&self) -> MutexGuard<'_, Moving> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Move<'_> {
    /// The message has no start that the ledger lacks.
    pub fn is_none(self) {
        let mut moving = self.0.lock();
        moving.taken = moving.taken.saturating_sub(1);
        drop(moving);
        std::mem::forget(self);
    }
}

impl Drop for Move<'_> {
    fn drop(&mut self) {
        let mut moving = self.0.lock();
        moving.taken = moving.taken.saturating_sub(1);
        moving.last = Some(Instant::now());
    }
}

/// The broker's queues. `tests/simulation` has simulated ones.
pub trait Queues: Send + Sync {
    /// Puts a message into a queue, and waits until the broker confirms it.
    fn enqueue(&self, queue: &str, id: &str, body: &Value) -> impl Future<Output = Result<(), PublishError>> + Send;

    /// Number of ready messages in a queue. `None` when the number is unavailable.
    fn depth(&self, queue: &str) -> impl Future<Output = Option<u32>> + Send;
}

impl Queues for Publisher {
    async fn enqueue(&self, queue: &str, id: &str, body: &Value) -> Result<(), PublishError> {
        Self::enqueue(self, queue, id, body).await
    }

    async fn depth(&self, queue: &str) -> Option<u32> {
        Self::depth(self, queue).await
    }
}

/// Writes entries to durable storage.
pub struct Journal<Q = Publisher> {
    pub common: Arc<Common>,
    pub ledger: Ledger,
    pub publisher: Q,
    /// Entries that wait for the ledger.
    waiting: AtomicUsize,
    moves: Arc<Moves>,
}

impl<Q: Queues> Journal<Q> {
    /// A worker's journal, which nothing waits for yet.
    pub fn new(common: &Arc<Common>, ledger: &Ledger, publisher: Q, moves: &Arc<Moves>) -> Self {
        Self {
            common: Arc::clone(common),
            ledger: ledger.clone(),
            publisher,
            waiting: AtomicUsize::new(0),
            moves: Arc::clone(moves),
        }
    }

    /// Writes what is known of a recording to durable storage: the ledger, else the journal. `false` when neither took it.
    pub async fn write(&self, entry: &Entry) -> bool {
        self.write_leased(entry, None).await
    }

    /// The same, with a lease, so that no sweep takes the recording before the task that drives it has noted its own lease.
    pub async fn write_leased(&self, entry: &Entry, lease: Option<Lease>) -> bool {
        if self.ledger.is_up() && self.in_ledger(entry, lease).await {
            return true;
        }
        self.in_journal(entry).await
    }

    /// The same for what cannot wait: a ledger that does not take it within `patience` counts as slow.
    pub async fn write_soon(&self, entry: &Entry, patience: Duration) -> bool {
        if self.ledger.is_up() && tokio::time::timeout(patience, self.in_ledger(entry, None)).await == Ok(true) {
            return true;
        }
        self.in_journal(entry).await
    }

    async fn in_journal(&self, entry: &Entry) -> bool {
        if is_back(Fault::AcknowledgedEarly) {
            return true;
        }
        let Ok(body) = serde_json::to_value(entry) else {
            return false;
        };
        let written = self.publisher.enqueue(JOURNAL, &entry.key.to_string(), &body).await;
        let why = written.as_ref().err().map(ToString::to_string);
        let media_id = entry.order().map_or("", |order| order.media_id.as_str());
        Journalled {
            call_id: &entry.call_id,
            media_id,
            result: why.as_deref().map_or(Ok(()), Err),
        }
        .emit();
        written.is_ok()
    }

    /// Writes the entry into the ledger. `false` when the ledger is down, or slow while too many entries wait for it already: those that
    /// wait take the room of new actions. As long as there is room, a second copy in the journal would only be more work for a host that
    /// has too much of it.
    async fn in_ledger(&self, entry: &Entry, lease: Option<Lease>) -> bool {
        let _waiting = Waiting::new(&self.waiting);
        let budget = self.common.config.ledger.budget;
        let most = usize::from(self.common.config.amqp.prefetch_actions) * QUARTERS / 4;
        let mut up = self.ledger.watch();
        let noting = async { self.ledger.note(entry, lease, TOGETHER).await.durable().await };
        tokio::pin!(noting);
        loop {
            tokio::select! {
                biased;
                durable = &mut noting => return durable,
                _ = up.wait_for(|up| !*up) => return false,
                () = tokio::time::sleep(budget) => if self.waiting.load(Ordering::Acquire) > most {
                    return false;
                },
            }
        }
    }

    /// Whether starts wait in the journal that the ledger does not know yet, as far as the broker reports, or are on their way from there. For
    /// decisions that can do without: in an alarm the broker reports nothing, perhaps for hours.
    pub async fn has_more(&self) -> bool {
        let depth = self.publisher.depth(JOURNAL).await;
        // After the depth: what left the queue meanwhile is on its way.
        depth.is_some_and(|depth| depth > 0) || self.moves.any()
    }

    /// Whether such starts may wait there: the broker reports them, or does not report. For decisions that no later start could undo.
    pub async fn may_have_more(&self) -> bool {
        let depth = self.publisher.depth(JOURNAL).await;
        depth.is_none_or(|depth| depth > 0) || self.moves.any()
    }
}

/// Reads one message of the journal. Every client that may publish can put a message there, and a switch gets what it orders. So words that
/// we never write are rejected. A month that no recording of today can belong to is rejected too, because every worker would read its
/// database from then on.
///
/// # Errors
/// What is wrong with it, in words for the log.
pub fn read(body: &[u8], now: Moment) -> Result<Entry, String> {
    if body.len() > MAX_BODY_BYTES {
        return Err(MessageError::TooLarge(MAX_BODY_BYTES).to_string());
    }
    let entry: Entry = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    check_ids(&[("Call-ID", Some(&entry.call_id))]).map_err(|error| error.to_string())?;
    for fact in entry.facts() {
        if let What::Asked(order) = &fact.what
            && !order.is_harmless()
        {
            return Err("it orders a recording whose words are not ours".to_owned());
        }
    }
    if entry.unreadable().any(|kind| kind == "asked") {
        // Its words cannot be checked, and every worker would get them from the ledger.
        return Err("it orders a recording in words that cannot be read".to_owned());
    }
    let month = address(&entry).month;
    if !is_recent(month, now) {
        return Err(format!("it is of {month}, and nothing of then is recorded now"));
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use crate::config::{Config, Layers};
    use crate::couch::Couch;
    use crate::flow::common::Tasks;
    use crate::kazoo::envelope::Sender;
    use crate::kazoo::time::Clock;
    use crate::lifecycle::tests::{order, policy};

    use super::*;

    const NOW: Moment = Moment::from_unix_seconds(1_795_386_262);

    /// A broker whose journal has so many messages ready. `None`: it does not tell.
    struct Broker {
        ready: Option<u32>,
        enqueued: AtomicUsize,
    }

    impl Queues for Broker {
        async fn enqueue(&self, _: &str, _: &str, _: &Value) -> Result<(), PublishError> {
            self.enqueued.fetch_add(1, Ordering::AcqRel);
            Ok(())
        }

        async fn depth(&self, _: &str) -> Option<u32> {
            self.ready
        }
    }

    /// The journal of a worker whose ledger counts as up, and answers nothing as long as the second value lives.
    fn journal(ready: impl Into<Option<u32>>) -> (Journal<Broker>, impl Future<Output = ()>) {
        let config = Config::of(Layers::load(None, std::iter::empty()).unwrap()).unwrap();
        let couch = Couch::new(&config.couchdb).unwrap();
        let (stop, clock) = (CancellationToken::new(), Clock::fixed(NOW));
        let (ledger, writing) = Ledger::over(Arc::new(couch), clock.clone(), &policy(), stop.clone());
        let node = "kz_record_call@test".to_owned();
        let common = Common {
            config,
            sender: Sender { node },
            clock,
            policy: policy(),
            tasks: Tasks::new(TaskTracker::new(), stop),
        };
        let enqueued = AtomicUsize::new(0);
        let journal = Journal::new(
            &Arc::new(common),
            &ledger,
            Broker {
                ready: ready.into(),
                enqueued,
            },
            &Arc::default(),
        );
        (journal, writing)
    }

    /// The audio must not stay unmasked for a slow ledger.
    #[tokio::test(start_paused = true)]
    async fn what_cannot_wait_goes_into_the_journal_while_the_ledger_is_slow() {
        let (journal, _writing) = journal(0);
        let entry = Entry::of_order(order(), "w");
        let begun = Instant::now();
        let writing = journal.write_soon(&entry, Duration::from_millis(200));
        let written = tokio::time::timeout(Duration::from_secs(60), writing).await;
        assert_eq!(written, Ok(true));
        let enqueued = journal.publisher.enqueued.load(Ordering::Acquire);
        assert_eq!((begun.elapsed(), enqueued), (Duration::from_millis(200), 1));
        let waiting = tokio::time::timeout(Duration::from_secs(60), journal.write(&entry)).await;
        assert!(waiting.is_err(), "a start waits for a ledger that is up");
    }

    /// The broker is in an alarm, or its queue elects a leader. The start of the recording that a stop is for may wait there.
    #[tokio::test(start_paused = true)]
    async fn starts_may_wait_in_a_journal_of_which_the_broker_reports_nothing() {
        for (ready, has, may_have) in [(Some(0), false, false), (Some(1), true, true), (None, false, true)] {
            let (journal, _writing) = journal(ready);
            assert_eq!(
                (journal.has_more().await, journal.may_have_more().await),
                (has, may_have),
                "{ready:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_queue_does_not_show_that_the_ledger_has_all_starts() {
        let (waits, _writing) = journal(1);
        assert!(waits.has_more().await);
        let (empty, _writing) = journal(0);
        assert!(!empty.has_more().await);
        empty.moves.begin().is_none();
        assert!(!empty.has_more().await, "the note of a mask is no start");
        let moving = empty.moves.begin();
        assert!(empty.has_more().await, "this worker has not written what it took");
        drop(moving);
        assert!(empty.has_more().await, "nor has, perhaps, another worker");
        tokio::time::advance(ON_ITS_WAY).await;
        assert!(!empty.has_more().await);
    }

    /// The queue is empty as soon as a worker has taken all messages out. The ledger has them later.
    #[tokio::test(start_paused = true)]
    async fn what_a_worker_took_out_of_the_journal_counts_as_waiting_until_the_ledger_has_it() {
        let moves = Moves::default();
        assert!(!moves.any(), "a worker that begins waits for no move");
        let (one, other) = (moves.begin(), moves.begin());
        drop(one);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(moves.any(), "the ledger is slow");
        drop(other);
        // Another worker took its part at the same time.
        tokio::time::advance(Duration::from_millis(1900)).await;
        assert!(moves.any());
        tokio::time::advance(Duration::from_millis(200)).await;
        assert!(!moves.any());
        // This worker may get none of what waits, and another worker all of it.
        moves.all_begin();
        assert!(moves.any());
        tokio::time::advance(ON_ITS_WAY).await;
        assert!(!moves.any());
    }

    fn journalled(change: impl FnOnce(&mut Value)) -> Result<Entry, String> {
        let mut entry = json!({"key": "5a0f1b2c3d4e5f60718293a4b5c6d7e8", "call_id": "c", "facts": [{"at": 1, "by": "w", "fact": "asked", "of": {
            "key": "5a0f1b2c3d4e5f60718293a4b5c6d7e8", "media_id": "202611-a", "call_id": "c", "account_id": null, "zone": "local",
            "file_name": "5a0f1b2c3d4e5f60718293a4b5c6d7e8.mp3", "media_name": "a b.mp3", "format": "mp3", "origin": "callflow : ${system id}",
            "method": "put", "url": "none", "min_sec": 0, "asked_at": 1_795_386_200_000_000_i64, "parties": {},
            "command": {"control": "q", "trigger": "now", "time_limit": 5, "follow_transfer": true, "carry": "AbC-_9"},
        }}]});
        change(&mut entry["facts"][0]["of"]);
        read(entry.to_string().as_bytes(), NOW)
    }

    #[test]
    fn an_order_whose_words_would_reach_the_switchs_shell_is_not_taken_from_the_journal() {
        assert_eq!(journalled(|_| {}).map(|entry| entry.facts().count()), Ok(1));
        for (pointer, evil) in [
            ("/file_name", json!("${system id}.mp3")),
            ("/file_name", json!("")),
            ("/command/carry", json!("~x='${system id}'")),
            ("/command/carry", json!("x".repeat(1025))),
            ("/media_id", json!("${system id}")),
        ] {
            let read = journalled(|order| *order.pointer_mut(pointer).unwrap() = evil.clone());
            assert!(read.is_err(), "{pointer}: {evil}");
        }
        // An order from a recording context has no command, whatever its file is called.
        let stray = journalled(|order| {
            order["command"] = Value::Null;
            order["file_name"] = json!("call 1.mp3");
        });
        assert!(stray.is_ok(), "{stray:?}");
        // An order with words of another origin is rejected beside readable facts too.
        let mut evil = json!({"key": "5a0f1b2c3d4e5f60718293a4b5c6d7e8", "call_id": "c", "facts": [
            {"at": NOW, "by": "w", "fact": "commanded"}, {"at": NOW, "by": "w", "fact": "asked", "of": {"file_name": "${system id}.mp3"}},
        ]});
        assert!(read(evil.to_string().as_bytes(), NOW).is_err());
        evil["facts"][1] = json!({"at": NOW, "by": "w", "fact": "of_the_next_version", "of": 1});
        let newer = read(evil.to_string().as_bytes(), NOW).map(|entry| entry.of_other_versions());
        assert_eq!(newer, Ok(1), "another version's facts are moved on");
        let long = json!({"key": "5a0f1b2c3d4e5f60718293a4b5c6d7e8", "call_id": "c".repeat(1025), "facts": []});
        assert!(read(long.to_string().as_bytes(), NOW).unwrap_err().contains("Call-ID"));
        assert!(read(b"{", NOW).is_err() && read(b"[]", NOW).is_err());
        for month in ["1", "4_102_444_800_000_000", "1_790_000_000_000_000"] {
            let asked_at: i64 = month.replace('_', "").parse().unwrap();
            let read = journalled(|order| order["asked_at"] = json!(asked_at));
            assert_eq!(read.is_ok(), month.starts_with("1_7"), "{read:?}");
        }
    }
}
