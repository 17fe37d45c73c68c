//! The journal, where a start is written if the ledger does not take it in time. It is a quorum queue of our own, with persistent and
//! confirmed messages. They are moved into the ledger when the ledger is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::amqp::{PublishError, Publisher};
use crate::entry::Entry;
use crate::entry::fact::What;
use crate::faults::{Fault, is_back};
use crate::kazoo::envelope::{MAX_BODY_BYTES, MessageError, check_ids};
use crate::kazoo::time::Moment;
use crate::ledger::{Ledger, address};
use crate::telemetry::events::Journalled;

use super::common::{Common, is_recent};

/// The reason for which no search can exclude a recording as long as starts wait there.
pub const WAITING: &str = "starts wait in the journal";

/// The queue.
pub const JOURNAL: &str = "kz_record_call.journal";

/// Batch delay of starts. Their calls have their answers already, and only the acknowledgement of the action waits.
const TOGETHER: Duration = Duration::from_millis(25);

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
    pub waiting: AtomicUsize,
}

impl<Q: Queues> Journal<Q> {
    /// Writes what is known of a recording to durable storage: the ledger, else the journal. `false` when neither took it.
    pub async fn write(&self, entry: &Entry) -> bool {
        if self.ledger.is_up() && self.in_ledger(entry).await {
            return true;
        }
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
    async fn in_ledger(&self, entry: &Entry) -> bool {
        let _waiting = Waiting::new(&self.waiting);
        let budget = self.common.config.ledger.budget;
        let most = usize::from(self.common.config.amqp.prefetch_actions) * QUARTERS / 4;
        let mut up = self.ledger.watch();
        let noting = async { self.ledger.note(entry, None, TOGETHER).await.durable().await };
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

    /// Whether the broker reports that starts wait in the journal which the ledger does not know yet. For decisions that can do without: in an
    /// alarm the broker reports nothing, perhaps for hours.
    pub async fn has_more(&self) -> bool {
        self.publisher.depth(JOURNAL).await.is_some_and(|depth| depth > 0)
    }

    /// Whether such starts may wait there: the broker reports them, or does not report. For decisions that no later start could undo.
    pub async fn may_have_more(&self) -> bool {
        self.publisher.depth(JOURNAL).await.is_none_or(|depth| depth > 0)
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
    use crate::flow::common::Tasks;
    use crate::kazoo::envelope::Sender;
    use crate::kazoo::time::Clock;
    use crate::ledger::testing::{policy, server, welcome};

    use super::*;

    /// A broker that reports this depth.
    struct Deep(Option<u32>);

    impl Queues for Deep {
        async fn enqueue(&self, _: &str, _: &str, _: &Value) -> Result<(), PublishError> {
            Ok(())
        }

        async fn depth(&self, _: &str) -> Option<u32> {
            self.0
        }
    }

    /// The broker is in an alarm, or its queue elects a leader. The start of the recording that a stop is for may wait there.
    #[tokio::test]
    async fn starts_may_wait_in_a_journal_of_which_the_broker_reports_nothing() {
        let (couch, _) = server(|_, _| welcome()).await;
        let (clock, stop) = (Clock::system(), CancellationToken::new());
        let (ledger, _writer) = Ledger::over(Arc::new(couch), clock.clone(), &policy(), stop.clone());
        let common = Arc::new(Common {
            config: Config::of(Layers::load(None, std::iter::empty()).unwrap()).unwrap(),
            sender: Sender { node: "w".into() },
            clock,
            policy: policy(),
            tasks: Tasks::new(TaskTracker::new(), stop),
        });
        for (depth, has, may_have) in [(Some(0), false, false), (Some(1), true, true), (None, false, true)] {
            let journal = Journal {
                common: Arc::clone(&common),
                ledger: ledger.clone(),
                publisher: Deep(depth),
                waiting: AtomicUsize::new(0),
            };
            assert_eq!(
                (journal.has_more().await, journal.may_have_more().await),
                (has, may_have),
                "{depth:?}"
            );
        }
    }

    const NOW: Moment = Moment::from_unix_seconds(1_795_386_262);

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
