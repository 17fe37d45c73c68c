//! Messages for this worker alone: notices of other workers about their recordings, errors of commands, and changes of the configuration.
//! Also the notices that this worker sends to the other workers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use serde_json::{Value, json};
use tracing::debug;

use crate::amqp::Delivery;
use crate::entry::Entry;
use crate::entry::fact::{Fact, What};
use crate::entry::legs::Leg;
use crate::kazoo::action::ReplyTo;
use crate::kazoo::call::clip;
use crate::kazoo::dialplan::DialplanError;
use crate::kazoo::envelope::{Envelope, check_ids};
use crate::kazoo::event::replaced_by;
use crate::kazoo::json::boolean_at;
use crate::kazoo::leg::{LegEvent, LegNews, leg_of_key};
use crate::kazoo::names::Exchange;
use crate::kazoo::outgoing::Outgoing;
use crate::recording::identity::Key;
use crate::recording::names;
use crate::telemetry::events::CommandRefused;
use crate::telemetry::survive;

use super::bounded::Bounded;
use super::drive;
use super::perform::Parts;
use super::registry::Open;
use crate::lifecycle::Input;

mod credentials;

pub use credentials::share;

/// The routing key, on our own exchange, of notices between workers.
pub const MEMORY_KEY: &str = "kz_record_call.memory";

const CATEGORY: &str = "kz_record_call";

/// Batch delay between two messages about open recordings.
const TOGETHER: Duration = Duration::from_millis(20);

/// The largest number of recordings in one message.
const MOST: usize = 500;

/// The largest number of notices that wait while the broker is away. Older recordings are looked up in the ledger.
const WAITING: usize = 5_000;

/// The largest number of recordings that one action can lead to: each bridge of a call can begin another one.
const FAMILY: usize = 8;

/// Notifies the other workers of an open recording, so that a `stop` finds it at any worker.
pub fn opened(parts: &Arc<Parts>, entry: &Entry) {
    if let Some(open) = Open::of(entry) {
        say(parts, News::Opened(open));
    }
}

pub fn stopping(parts: &Arc<Parts>, open: &Open) {
    let stopping = Open {
        stopping: true,
        ..open.clone()
    };
    say(parts, News::Opened(stopping));
}

pub fn closed(parts: &Arc<Parts>, entry: &Entry) {
    if let Some(open) = Open::of(entry) {
        say(parts, News::Closed(open));
    }
}

/// Notifies all workers of what was asked and sent of a stop, a mask or an unmask. The worker that gets the recording's end writes its
/// document. `orphan`: this worker does not know the order, and another worker must follow it up.
pub fn controlled(parts: &Arc<Parts>, entry: &Entry, facts: &[Fact], orphan: bool) {
    let body = json!({ "Key": entry.key, "Call-ID": entry.call_id, "Facts": facts, "Orphan": orphan });
    let parts = Arc::clone(parts);
    let tasks = parts.tasks.clone();
    tasks.spawn(async move { survive("controlled", send(&parts, "controlled", body)).await });
}

/// Notifies all workers, including this one, that the switch began to record again under a name that it had ended.
pub fn began_again(parts: &Arc<Parts>, key: Key, started: &Fact) {
    tell_family(parts, key, started);
    let (parts, body) = (Arc::clone(parts), json!({ "Key": key, "Fact": started }));
    let tasks = parts.tasks.clone();
    tasks.spawn(async move { survive("began_again", send(&parts, "began_again", body)).await });
}

/// Passes a start to the task of this worker that has the recording, or one of its continuations, in flight.
pub fn tell_hands(parts: &Parts, key: Key, started: &What) {
    for member in family(key) {
        // If no task has it in flight, the ledger supplies the start in time.
        let _ = parts.hands.tell(member, Input::Fact(started.clone()));
    }
}

/// The same, also for tasks that take the recording soon.
fn tell_family(parts: &Parts, key: Key, started: &Fact) {
    for member in family(key) {
        parts.registry.began_again(member, started.clone());
    }
    tell_hands(parts, key, &started.what);
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
    /// switch.
    pub fn of(envelope: &Envelope) -> Vec<Self> {
        let all = envelope.body.get("Recordings").and_then(Value::as_array);
        let mut read = Vec::new();
        for news in all.into_iter().flatten() {
            match Self::deserialize(news) {
                Ok(news) if names::is_plain(&news.open().file_name) => read.push(news),
                Ok(news) => {
                    debug!(event = "peer_news_ignored", key = %news.open().key, "news of an unknown file ignored")
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

/// What `began_again` contains: the recording's key, and its start.
pub fn restart_of(envelope: &Envelope) -> Option<(Key, Fact)> {
    let key = Key::deserialize(envelope.body.get("Key")?).ok()?;
    let started = Fact::deserialize(envelope.body.get("Fact")?).ok()?;
    matches!(started.what, What::Started(_)).then_some((key, started))
}

/// What `controlled` contains: the recording's key and call id, and what was asked and sent.
pub fn control_of(envelope: &Envelope) -> Option<(Key, String, Vec<Fact>)> {
    let key = Key::deserialize(envelope.body.get("Key")?).ok()?;
    let call_id = envelope.body.get("Call-ID")?.as_str()?.to_owned();
    check_ids(&[("Call-ID", Some(&call_id))]).ok()?;
    let facts: Vec<Fact> = Vec::deserialize(envelope.body.get("Facts")?).ok()?;
    let is_one = |fact: &Fact| {
        matches!(
            fact.what,
            What::StopAsked { .. }
                | What::StopSent { .. }
                | What::MaskAsked { .. }
                | What::Masked { .. }
                | What::NotObeyed { .. }
        )
    };
    (facts.len() <= MOST_CONTROLS && facts.iter().all(is_one)).then_some((key, call_id, facts))
}

/// The largest number of facts that one action on a running recording adds.
const MOST_CONTROLS: usize = 4;

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

/// The first notice goes out at once, because a stop may follow it on another worker. The notices after it go out together.
fn say(parts: &Arc<Parts>, news: News) {
    if !parts.outbox.put(news) {
        return;
    }
    let (parts, tasks) = (Arc::clone(parts), parts.tasks.clone());
    let sending = async move {
        loop {
            let news = parts.outbox.take();
            if news.is_empty() {
                return;
            }
            survive("recordings", send(&parts, "recordings", json!({ "Recordings": news }))).await;
            tokio::time::sleep(TOGETHER).await;
        }
    };
    tasks.spawn(survive("news", sending));
}

pub(super) async fn send(parts: &Parts, name: &'static str, body: Value) {
    let msg_id = uuid::Uuid::new_v4().simple().to_string();
    let body = parts.common.sender.message(CATEGORY, name, &msg_id, body);
    let message = Outgoing::topic(Exchange::Unrouted, MEMORY_KEY.to_owned(), body);
    // The memory of other workers saves reads, and nothing depends on it.
    if let Err(error) = parts.publisher.publish(&message).await {
        debug!(event = "peer_news_not_published", %error, "news not published");
    }
}

/// Handles one delivery of this worker's own queue of notices.
pub fn handle(parts: &Arc<Parts>, delivery: &Delivery) {
    tracing::trace!(
        event = "notice",
        exchange = delivery.exchange(),
        key = delivery.routing_key(),
        "notice"
    );
    match delivery.exchange() {
        "configuration" => {
            parts.accounts.forget();
            parts.system_config.notice();
        }
        "callevt" => event(parts, delivery),
        _ => memory(parts, delivery),
    }
}

fn memory(parts: &Arc<Parts>, delivery: &Delivery) {
    let Ok(envelope) = delivery.envelope() else { return };
    if envelope.name == "credentials" {
        return credentials::heard(&envelope);
    }
    if envelope.name == "controlled" {
        if let Some((key, call_id, facts)) = control_of(&envelope) {
            take_in(
                parts,
                key,
                &call_id,
                &facts,
                boolean_at(&envelope.body, "Orphan") == Some(true),
            );
        }
        return;
    }
    if envelope.name == "began_again" {
        if let Some((key, started)) = restart_of(&envelope) {
            tell_family(parts, key, &started);
        }
        return;
    }
    if envelope.name == "alive" {
        if let Some(worker) = envelope.body.get("Worker").and_then(Value::as_str) {
            parts.alive.heard(clip(worker, 256));
        }
        return;
    }
    for news in News::of(&envelope) {
        match news {
            News::Opened(open) => parts.registry.open(open),
            News::Closed(open) => parts.registry.heard_of_end(open.key),
        }
    }
}

/// Another worker stopped, masked or unmasked a recording.
fn take_in(parts: &Arc<Parts>, key: Key, call_id: &str, facts: &[Fact], orphan: bool) {
    // The entry before this notice: operators are alerted of what a driver learns by it.
    let entry = parts.registry.entry(key).filter(|entry| entry.order().is_some());
    parts.registry.hear(key, call_id, facts);
    for fact in facts {
        // A repeat of the action must not reach another recording.
        if let What::StopAsked { action, .. } | What::MaskAsked { action, .. } = &fact.what
            && !action.is_empty()
        {
            let media_id = entry
                .as_ref()
                .and_then(Entry::order)
                .map(|order| order.media_id.to_string());
            parts.registry.done(action, key, &media_id.unwrap_or_default());
        }
    }
    // With the times at which it happened, because a move may have come since.
    let mut news = Entry::new(key, call_id);
    for fact in facts {
        news.add(fact.clone());
    }
    let told = Input::Known(Box::new(news));
    match entry {
        Some(entry) if orphan => drive::go_on(parts, entry, told),
        // If no task has it in flight here, the worker that sent the command follows it up.
        _ => drop(parts.hands.tell(key, told)),
    }
}

fn event(parts: &Arc<Parts>, delivery: &Delivery) {
    let key = delivery.routing_key();
    let is_followed = parts.registry.follows(leg_of_key(key));
    // The events of every call arrive, and few of those calls are recorded. The call of an action can be replaced before the action records
    // it.
    if !is_followed && !EVERYBODYS.iter().any(|event| key.starts_with(event)) {
        return;
    }
    let Ok(envelope) = delivery.envelope() else { return };
    if let Some((old, new)) = replaced_by(&envelope) {
        parts.replaced.replace(&old, &new);
    }
    if let Some(news) = LegNews::of(&envelope) {
        return learn(parts, &Leg::from(news));
    }
    let Ok(error) = DialplanError::of(&envelope) else {
        return;
    };
    let Some(key) = parts.registry.of_command(&error.msg_id) else {
        return;
    };
    let Some(entry) = parts.registry.entry(key) else { return };
    let media_id = entry.order().map_or("", |order| order.media_id.as_str());
    CommandRefused {
        call_id: &entry.call_id,
        media_id,
        why: &error.message,
    }
    .emit();
    if entry.started().is_none() {
        drive::go_on(
            parts,
            entry.clone(),
            Input::Fact(What::CommandRefused { why: error.message }),
        );
    }
}

/// Events that are read for every call.
const EVERYBODYS: [&str; 3] = ["call.dialplan.", "call.CHANNEL_REPLACED.", "call.CHANNEL_DIRECT."];

/// Handles what happened to a leg. The worker that knows the recording writes a move at once. An event that only names another leg is
/// written with the next write or channel query. Until then every worker remembers it.
pub(super) fn learn(parts: &Arc<Parts>, leg: &Leg) {
    let moves = !matches!(leg.event, LegEvent::Bridged | LegEvent::Gone);
    for key in parts
        .registry
        .learn(leg, parts.common.now(), &parts.common.policy.worker)
    {
        let what = What::Leg(Box::new(leg.clone()));
        if parts.hands.tell(key, Input::Fact(what)).is_ok() {
            continue;
        }
        let Some(entry) = parts
            .registry
            .entry(key)
            .filter(|entry| moves && entry.told_end().is_none())
        else {
            continue;
        };
        let (parts, tasks) = (Arc::clone(parts), parts.tasks.clone());
        let noting = async move {
            drop(parts.ledger.note(&entry, None, parts.common.config.ledger.linger).await);
        };
        tasks.spawn(survive("leg", noting));
    }
}

/// Calls whose id was replaced lately: the callflow would ignore an answer under the old id.
#[derive(Debug, Default)]
pub struct Replaced(Mutex<Bounded<String, String>>);

/// The largest number of replacements that are remembered.
const REMEMBERED: usize = 10_000;

impl Replaced {
    fn replace(&self, old: &str, new: &str) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(old.to_owned(), new.to_owned(), REMEMBERED);
    }

    /// The call's present id.
    pub fn current(&self, call_id: &str) -> String {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = call_id;
        // A call can be replaced again. The limit ends a possible circle.
        for _ in 0..8 {
            match map.get(now) {
                Some(next) => now = next,
                None => break,
            }
        }
        now.to_owned()
    }
}

impl Parts {
    /// The same address, with the call's present id.
    pub fn current(&self, to: &ReplyTo) -> ReplyTo {
        ReplyTo {
            call_id: self.replaced.current(&to.call_id),
            ..to.clone()
        }
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
        ]);
        let message = |recordings: Value| {
            let body = json!({"Event-Category": CATEGORY, "Event-Name": "recordings", "Recordings": recordings});
            News::of(&Envelope::of(body).unwrap())
        };
        let read: Vec<String> = message(news).iter().map(|news| news.open().file_name.clone()).collect();
        assert_eq!(read, ["a.mp3", "b.mp3"]);
        for senseless in [json!(null), json!({"opened": open("a.mp3")}), json!("x")] {
            assert_eq!(message(senseless), []);
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
        };
        let outbox = Outbox::default();
        assert!(outbox.put(News::Opened(order(0))));
        for n in 1..=MOST {
            assert!(!outbox.put(News::Closed(order(n))), "somebody sends already");
        }
        assert_eq!(outbox.take().len(), MOST);
        assert_eq!(outbox.take(), [News::Closed(order(MOST))]);
        assert_eq!(outbox.take(), []);
        assert!(outbox.put(News::Opened(order(0))), "the next one sends anew");
    }

    #[test]
    fn a_call_is_followed_through_its_replacements() {
        let replaced = Replaced::default();
        replaced.replace("a", "b");
        replaced.replace("b", "c");
        assert_eq!(replaced.current("a"), "c");
        assert_eq!(replaced.current("x"), "x");
        replaced.replace("c", "a");
        let _ = replaced.current("a");
    }
}
