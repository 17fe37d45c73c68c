//! What comes to this worker alone: what other workers tell of their recordings, errors of commands, and changes of the configuration; and
//! what it tells them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tracing::debug;

use crate::amqp::Delivery;
use crate::entry::Entry;
use crate::entry::fact::{Fact, What};
use crate::kazoo::action::ReplyTo;
use crate::kazoo::dialplan::DialplanError;
use crate::kazoo::event::replaced_by;
use crate::kazoo::names::Exchange;
use crate::kazoo::outgoing::Outgoing;
use crate::recording::identity::Key;
use crate::telemetry::events::CommandRefused;

use super::drive;
use super::next::Input;
use super::perform::Parts;
use super::registry::Open;

/// The key, on our own exchange, of what workers tell each other.
pub const MEMORY_KEY: &str = "kz_record_call.memory";

const CATEGORY: &str = "kz_record_call";

/// Recordings that one action is followed through: each bridge of a call can begin another one.
const FAMILY: usize = 8;

/// Tells the other workers of a recording that is open, so that a `stop` finds it wherever it comes.
pub fn opened(parts: &Arc<Parts>, entry: &Entry) {
    if let Some(open) = Open::of(entry) {
        publish(parts, "opened", &open);
    }
}

pub fn stopping(parts: &Arc<Parts>, open: &Open) {
    publish(
        parts,
        "opened",
        &Open {
            stopping: true,
            ..open.clone()
        },
    );
}

pub fn closed(parts: &Arc<Parts>, entry: &Entry) {
    if let Some(open) = Open::of(entry) {
        publish(parts, "closed", &open);
    }
}

/// Tells everybody, this worker included, that the switch began to record again under a name that it had ended.
pub fn began_again(parts: &Arc<Parts>, key: Key, started: &Fact) {
    tell_family(parts, key, started);
    send(parts, "began_again", json!({ "Key": key, "Fact": started }));
}

/// Tells whoever has the recording, or one of its continuations, in hand here.
pub fn tell_hands(parts: &Parts, key: Key, started: &What) {
    for member in family(key) {
        // Where nobody has it in hand the ledger tells in time.
        let _ = parts.hands.tell(member, Input::Fact(started.clone()));
    }
}

/// The same for those who take it in hand soon.
fn tell_family(parts: &Parts, key: Key, started: &Fact) {
    for member in family(key) {
        parts.registry.began_again(member, started.clone());
    }
    tell_hands(parts, key, &started.what);
}

/// A recording and its continuations, as many as there can be.
fn family(key: Key) -> impl Iterator<Item = Key> {
    std::iter::successors(Some(key), |member| Some(member.continuation())).take(FAMILY)
}

fn publish(parts: &Arc<Parts>, name: &'static str, open: &Open) {
    send(parts, name, json!({ "Recording": open }));
}

fn send(parts: &Arc<Parts>, name: &'static str, body: Value) {
    let msg_id = uuid::Uuid::new_v4().simple().to_string();
    let body = parts.sender.message(CATEGORY, name, &msg_id, body);
    let message = Outgoing::topic(Exchange::Unrouted, MEMORY_KEY.to_owned(), body);
    let parts = Arc::clone(parts);
    parts.tasks.clone().spawn(async move {
        // Memory spares reads; nothing depends on it.
        if let Err(error) = parts.publisher.publish(&message).await {
            debug!(%error, "the other workers were not told");
        }
    });
}

/// Handles one delivery of this worker's own queue of notices.
pub fn handle(parts: &Arc<Parts>, delivery: &Delivery) {
    tracing::trace!(exchange = delivery.exchange(), key = delivery.routing_key(), "notice");
    match delivery.exchange() {
        "configuration" => {
            parts.accounts.forget();
            parts.system_config.notice();
        }
        "callevt" => event(parts, delivery),
        _ => memory(parts, delivery),
    }
}

fn memory(parts: &Parts, delivery: &Delivery) {
    let Ok(envelope) = delivery.envelope() else { return };
    if envelope.name == "began_again" {
        let part = |name: &str| envelope.body.get(name).cloned().unwrap_or(Value::Null);
        let started = serde_json::from_value::<Fact>(part("Fact"));
        let started = started.ok().filter(|fact| matches!(fact.what, What::Started(_)));
        if let (Ok(key), Some(started)) = (serde_json::from_value(part("Key")), started) {
            tell_family(parts, key, &started);
        }
        return;
    }
    let recording = envelope.body.get("Recording").cloned().unwrap_or(Value::Null);
    let Ok(open) = serde_json::from_value::<Open>(recording) else {
        return;
    };
    match envelope.name.as_str() {
        "opened" => parts.registry.open(open),
        "closed" => parts.registry.close(open.key),
        _ => {}
    }
}

fn event(parts: &Arc<Parts>, delivery: &Delivery) {
    let Ok(envelope) = delivery.envelope() else { return };
    if let Some((old, new)) = replaced_by(&envelope) {
        parts.replaced.replace(&old, &new);
        return;
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

/// Calls whose id was replaced lately: an answer under the old id would be ignored.
#[derive(Debug, Default)]
pub struct Replaced(Mutex<HashMap<String, String>>);

/// Replacements that are remembered.
const REMEMBERED: usize = 10_000;

impl Replaced {
    fn replace(&self, old: &str, new: &str) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= REMEMBERED {
            map.clear();
        }
        map.insert(old.to_owned(), new.to_owned());
    }

    /// The call's id as it is now.
    pub fn current(&self, call_id: &str) -> String {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = call_id;
        // A call can be replaced again; a circle cannot be excluded.
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
    /// The same address, with the call's id as it is now.
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
