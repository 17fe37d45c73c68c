//! Notices between workers: which recordings are open, what was asked of them, and which credentials a server rejected.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::debug;

use crate::amqp::Publisher;
use crate::couch;
use crate::entry::Entry;
use crate::entry::fact::{Fact, What};
use crate::kazoo::envelope::{Envelope, check_ids};
use crate::kazoo::names::Exchange;
use crate::kazoo::outgoing::Outgoing;
use crate::kazoo::time::Moment;
use crate::recording::ending::Told;
use crate::recording::identity::Key;
use crate::recording::names;
use crate::telemetry::survive;

use super::common::{Common, is_recent};
use super::in_flight::InFlight;
use super::memory::{Open, OpenRecordings};
use crate::lifecycle::Input;

/// The routing key, on our own exchange, of notices between workers.
pub const MEMORY_KEY: &str = "kz_record_call.memory";

/// The category of notices.
pub const CATEGORY: &str = "kz_record_call";

/// Identifies the process that sent a notice. Workers of one host have the same node name.
static INSTANCE: LazyLock<String> = LazyLock::new(|| uuid::Uuid::new_v4().simple().to_string());

/// Batch delay between two messages about open recordings.
const TOGETHER: Duration = Duration::from_millis(20);

/// The largest number of recordings in one message.
const MOST: usize = 500;

/// The largest number of notices that wait while the broker is away. Older recordings are looked up in the ledger.
const WAITING: usize = 5_000;

/// The largest number of recordings that one action can lead to: each bridge of a call can begin another one.
const FAMILY: usize = 8;

/// Sends notices to the other workers, and passes on what concerns recordings in flight here. The memory of other workers saves reads, and
/// nothing depends on it.
pub struct PeerNotices {
    pub common: Arc<Common>,
    pub publisher: Publisher,
    pub memory: Arc<OpenRecordings>,
    pub in_flight: InFlight,
    pub outbox: Outbox,
}

impl PeerNotices {
    /// Notifies the other workers of an open recording, so that a `stop` finds it at any worker.
    pub fn opened(self: &Arc<Self>, entry: &Entry) {
        if let Some(open) = Open::of(entry) {
            self.say(News::Opened(open));
        }
    }

    /// Notifies the other workers of a stop that was sent.
    pub fn stopping(self: &Arc<Self>, open: &Open) {
        let stopping = Open {
            stopping: true,
            ..open.clone()
        };
        self.say(News::Opened(stopping));
    }

    /// Notifies the other workers of an end.
    pub fn closed(self: &Arc<Self>, entry: &Entry) {
        if let Some(open) = Open::of(entry) {
            let ended = entry.ended().map(Told::order);
            self.say(News::Closed(Open { ended, ..open }));
        }
    }

    /// Notifies all workers of what was asked and sent of a stop, a mask or an unmask. The worker that gets the recording's end writes its
    /// document. `orphan`: this worker does not know the order, and another worker must follow it up.
    pub fn controlled(self: &Arc<Self>, entry: &Entry, facts: &[Fact], orphan: bool) {
        // An earlier version ignores a message with a fact that it does not know. The ledger has those.
        let facts: Vec<&Fact> = facts.iter().filter(|fact| is_control(fact)).collect();
        let body = json!({ "Key": entry.key, "Call-ID": entry.call_id, "Facts": facts, "Orphan": orphan });
        self.send_soon("controlled", body);
    }

    /// Notifies all workers, including this one, that the switch began to record again under a name that it had ended. Earlier versions do not
    /// read from it that the recording is open again.
    pub fn began_again(self: &Arc<Self>, entry: &Entry, started: &Fact) {
        self.tell_family(entry.key, started);
        let mut body = json!({ "Key": entry.key, "Fact": started });
        let open = Open::of(entry).filter(|_| entry.is_open());
        if let Some(open) = open.and_then(|open| serde_json::to_value(open).ok()) {
            body["Recording"] = open;
        }
        self.send_soon("began_again", body);
    }

    /// Passes a start to the task of this worker that has the recording, or one of its continuations, in flight.
    pub fn tell_driver(&self, key: Key, started: &What) {
        for member in family(key) {
            // If no task has it in flight, the ledger supplies the start in time.
            let _ = self.in_flight.tell(member, Input::Fact(started.clone()));
        }
    }

    /// The same, also for tasks that take the recording soon.
    pub fn tell_family(&self, key: Key, started: &Fact) {
        for member in family(key) {
            self.memory.began_again(member, started.clone());
        }
        self.tell_driver(key, &started.what);
    }

    /// The first notice goes out at once, because a stop may follow it on another worker. The notices after it go out together.
    fn say(self: &Arc<Self>, news: News) {
        if !self.outbox.put(news) {
            return;
        }
        let notices = Arc::clone(self);
        let sending = async move {
            loop {
                let news = notices.outbox.take();
                if news.is_empty() {
                    return;
                }
                let sent = notices.send("recordings", json!({ "Recordings": news }));
                survive("recordings", sent).await;
                tokio::time::sleep(TOGETHER).await;
            }
        };
        self.common.tasks.spawn("news", sending);
    }

    fn send_soon(self: &Arc<Self>, name: &'static str, body: Value) {
        let notices = Arc::clone(self);
        let sending = async move { notices.send(name, body).await };
        self.common.tasks.spawn(name, sending);
    }

    /// Publishes a message to all workers.
    pub async fn send(&self, name: &'static str, body: Value) {
        let msg_id = uuid::Uuid::new_v4().simple().to_string();
        let body = self.common.sender.message(CATEGORY, name, &msg_id, body);
        let message = Outgoing::topic(Exchange::Unrouted, MEMORY_KEY.to_owned(), body);
        if let Err(error) = self.publisher.publish(&message).await {
            debug!(event = "peer_news_not_published", %error, "news not published");
        }
    }

    /// Publishes notices about credentials, until the worker ends.
    pub async fn share_credentials(&self, mut news: mpsc::Receiver<couch::News>) {
        while let Ok(Some(news)) = self.common.unless_stopped(news.recv()).await {
            let body = json!({"Mark": news.mark, "Accepted": news.accepted, "Instance": *INSTANCE});
            self.send("credentials", body).await;
        }
    }
}

/// A recording and its possible continuations.
fn family(key: Key) -> impl Iterator<Item = Key> {
    std::iter::successors(Some(key), |member| Some(member.continuation())).take(FAMILY)
}

/// What a notice says of one recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    Opened(Open),
    Closed(Open),
}

impl News {
    /// The notices in another worker's message. A file name that no file of ours has is rejected, because a stop would send it to the
    /// switch. So is a month that no recording of today can belong to, because every worker would read its database from then on.
    pub fn of(envelope: &Envelope, now: Moment) -> Vec<Self> {
        let all = envelope.body.get("Recordings").and_then(Value::as_array);
        let mut read = Vec::new();
        for news in all.into_iter().flatten() {
            match Self::deserialize(news) {
                Ok(news) if is_plausible(news.open(), now) => read.push(news),
                Ok(news) => {
                    debug!(event = "peer_news_ignored", key = %news.open().key, "news of an unknown file or month ignored")
                }
                // Another version wrote it.
                Err(error) => debug!(event = "peer_news_unreadable", %error, "news unreadable"),
            }
        }
        read
    }

    pub const fn open(&self) -> &Open {
        match self {
            Self::Opened(open) | Self::Closed(open) => open,
        }
    }
}

/// Whether a recording of today can have this name and this time.
fn is_plausible(open: &Open, now: Moment) -> bool {
    names::is_plain(&open.file_name) && is_recent(open.asked_at.month(), now)
}

/// What `began_again` contains: the recording's key, its start, and the recording, if an action can be for it.
pub fn restart_of(envelope: &Envelope, now: Moment) -> Option<(Key, Fact, Option<Open>)> {
    let key = Key::deserialize(envelope.body.get("Key")?).ok()?;
    let started = Fact::deserialize(envelope.body.get("Fact")?).ok()?;
    let open = envelope
        .body
        .get("Recording")
        .and_then(|open| Open::deserialize(open).ok());
    let open = open.filter(|open| open.key == key && is_plausible(open, now));
    matches!(started.what, What::Started(_)).then_some((key, started, open))
}

/// What `controlled` contains: the recording's key and call id, and what was asked and sent.
pub fn control_of(envelope: &Envelope) -> Option<(Key, String, Vec<Fact>)> {
    let key = Key::deserialize(envelope.body.get("Key")?).ok()?;
    let call_id = envelope.body.get("Call-ID")?.as_str()?.to_owned();
    check_ids(&[("Call-ID", Some(&call_id))]).ok()?;
    let facts: Vec<Fact> = Vec::deserialize(envelope.body.get("Facts")?).ok()?;
    (facts.len() <= MOST_CONTROLS && facts.iter().all(is_control)).then_some((key, call_id, facts))
}

/// Whether a `controlled` message may have this fact.
fn is_control(fact: &Fact) -> bool {
    matches!(
        fact.what,
        What::StopAsked { .. }
            | What::StopSent { .. }
            | What::MaskAsked { .. }
            | What::Masked { .. }
            | What::NotObeyed { .. }
    )
}

/// The largest number of facts that one action on a running recording adds.
const MOST_CONTROLS: usize = 4;

/// Handles another worker's notice about credentials.
pub fn credentials_heard(envelope: &Envelope) {
    let text = |key: &str| envelope.body.get(key).and_then(Value::as_str);
    let accepted = envelope.body.get("Accepted").and_then(Value::as_bool);
    if let (Some(mark), Some(accepted), Some(instance)) = (text("Mark"), accepted, text("Instance"))
        && instance != *INSTANCE
    {
        couch::heard(&couch::News {
            mark: mark.to_owned(),
            accepted,
        });
    }
}

/// Notices that wait to be sent, in their order.
#[derive(Debug, Default)]
pub struct Outbox(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    news: Vec<News>,
    /// A task is sending.
    busy: bool,
}

impl Outbox {
    /// `true` when no task is sending yet. Then the caller must send.
    fn put(&self, news: News) -> bool {
        let mut waiting = self.lock();
        if waiting.news.len() < WAITING {
            waiting.news.push(news);
        }
        !std::mem::replace(&mut waiting.busy, true)
    }

    /// The notices of the next message. If there are none, the sending task is done.
    fn take(&self) -> Vec<News> {
        let mut waiting = self.lock();
        let most = waiting.news.len().min(MOST);
        waiting.busy = most > 0;
        waiting.news.drain(..most).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_believed_one_by_one() {
        let key = Key::of("call", "action");
        let open = |file_name: &str| json!({"key": key, "call_id": "c", "media_id": "m", "file_name": file_name, "asked_at": 1});
        let news = json!([
            {"opened": open("a.mp3")}, {"opened": open("${system id}.mp3")}, {"opened": {}}, {"unheard": open("a.mp3")}, 7,
            {"closed": open("b.mp3")},
            {"opened": {"key": key, "call_id": "c", "media_id": "m", "file_name": "c.mp3", "asked_at": 253_000_000_000_000_000_i64}},
        ]);
        let message = |recordings: Value| {
            let body = json!({"Event-Category": CATEGORY, "Event-Name": "recordings", "Recordings": recordings});
            News::of(&Envelope::of(body).unwrap(), Moment::from_unix_seconds(1))
        };
        let read: Vec<String> = message(news).iter().map(|news| news.open().file_name.clone()).collect();
        assert_eq!(read, ["a.mp3", "b.mp3"]);
        for senseless in [json!(null), json!({"opened": open("a.mp3")}), json!("x")] {
            assert_eq!(message(senseless), []);
        }
    }

    #[test]
    fn a_restart_names_its_recording_if_that_can_be_one_of_ours() {
        let key = Key::of("call", "action");
        let open = |key: Key, file_name: &str| json!({"key": key, "call_id": "c", "media_id": "m", "file_name": file_name, "asked_at": 1});
        let told = Told::presumed("c", Moment::from_unix_seconds(1), "fs", "/tmp/a.mp3");
        let started = Fact {
            at: Moment::from_unix_seconds(1),
            by: "w".into(),
            what: What::Started(Box::new(told)),
        };
        let named = |recording: Value| {
            let body = json!({"Event-Category": CATEGORY, "Event-Name": "began_again", "Key": key, "Fact": started, "Recording": recording});
            let read = restart_of(&Envelope::of(body).unwrap(), Moment::from_unix_seconds(1));
            read.expect("the start itself is read").2.map(|open| open.file_name)
        };
        assert_eq!(named(open(key, "a.mp3")), Some("a.mp3".to_owned()));
        let other = Key::of("call", "other");
        for wrong in [
            Value::Null,
            open(other, "a.mp3"),
            open(key, "${system id}.mp3"),
            json!({"key": key}),
        ] {
            assert_eq!(named(wrong), None);
        }
    }

    #[test]
    fn news_go_out_in_their_order_and_one_sends_for_all() {
        let order = |n: usize| Open {
            key: Key::of("call", &n.to_string()),
            call_id: "call".into(),
            fetch_id: None,
            media_id: "202611-a".into(),
            file_name: "a.mp3".into(),
            interaction: None,
            asked_at: crate::kazoo::time::Moment::from_unix_seconds(1),
            stopping: false,
            stays: false,
            ended: None,
        };
        let outbox = Outbox::default();
        assert!(outbox.put(News::Opened(order(0))));
        for n in 1..=MOST {
            assert!(!outbox.put(News::Closed(order(n))), "a task sends already");
        }
        assert_eq!(outbox.take().len(), MOST);
        assert_eq!(outbox.take(), [News::Closed(order(MOST))]);
        assert_eq!(outbox.take(), []);
        assert!(outbox.put(News::Opened(order(0))), "the next one sends anew");
    }
}
