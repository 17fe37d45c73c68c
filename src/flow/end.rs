//! ② Starts and ends, as the switches tell them. Acknowledged when the ledger has them.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use crate::amqp::Delivery;
use crate::entry::Entry;
use crate::entry::fact::{Fact, What};
use crate::kazoo::event::{EventName, RecordEvent};
use crate::kazoo::time::{Moment, Month};
use crate::ledger::{Noted, Receipt, address};
use crate::recording::carry::OpenError;
use crate::recording::ending::Told;
use crate::recording::format::Format;
use crate::recording::identity::{Key, MediaId};
use crate::recording::order::{Order, Url};
use crate::telemetry::events::{RecordingEnded, RecordingStarted};
use crate::telemetry::trace::{self, Stage};

use super::perform::Parts;
use super::registry::Open;
use super::returns::{put_back, reject};
use super::{drive, notices};
use crate::lifecycle::Input;

/// How long the ledger has to tell what it knows before what the recording carried must do.
const KNOWLEDGE: Duration = Duration::from_secs(3);

/// How old an event may be by its own clock, and how far ahead of ours.
const OLDEST: Duration = Duration::from_secs(62 * 86_400);
const AHEAD: Duration = Duration::from_secs(86_400);

/// Handles one delivery of the endings' queue.
pub async fn handle(parts: &Arc<Parts>, delivery: Delivery) {
    let room = parts.room.of(&delivery).await;
    // Whatever else is bound to the queue, such as the event of a later Kazoo, is not ours to judge.
    let event = delivery
        .envelope()
        .and_then(|envelope| match RecordEvent::is_one(&envelope) {
            Some(false) => Ok(None),
            _ => RecordEvent::of(&envelope).map(Some),
        });
    drop(room);
    let event = match event {
        Ok(Some(event)) => event,
        Ok(None) => return delivery.ack().await,
        Err(error) => return reject(parts, delivery, "endings", "", &error.to_string()).await,
    };
    if !event.recording.is_ours() {
        return delivery.ack().await;
    }
    let order = match parts.seal.open(event.recording.carry.as_deref()) {
        Ok(order) => order,
        Err(why) => match without_carry(parts, &event, why) {
            Some(order) => order,
            None => return reject(parts, delivery, "endings", &event.call_id, &why.to_string()).await,
        },
    };
    let told = Box::new(Told::of(&event, &order.file_name, parts.now()));
    let what = match event.name {
        EventName::RecordStart => What::Started(told),
        EventName::RecordStop => What::Ended(told),
    };
    if event.name == EventName::RecordStart {
        // At once, for somebody here may be about to let the switch's file go.
        notices::tell_hands(parts, order.key, &what);
    }
    let known = known(parts, order).await;
    let trace = drive::trace_of(&known.entry);
    trace::within(Stage::Recording, trace, take_in(parts, delivery, &event, known, what)).await;
}

/// What is known of a recording beside what it carried.
struct Known {
    entry: Entry,
    /// Whether that is enough to act on at once; else the sweep does, when the ledger tells.
    surely: bool,
}

/// Adds what was told to what is known, and acknowledges when that is written.
async fn take_in(parts: &Arc<Parts>, delivery: Delivery, event: &RecordEvent, known: Known, what: What) {
    let Known { mut entry, surely } = known;
    emit(event, &entry);
    let fact = Fact {
        at: parts.now(),
        by: parts.policy.worker.clone(),
        what: what.clone(),
    };
    let ended = event.name == EventName::RecordStop;
    let known = entry.started().is_some() || entry.ended().is_some();
    let again = entry.add(fact.clone()) && !ended && known;
    parts.registry.remember(&entry);
    // Lingers: a short recording's whole story becomes one write.
    let lease = (ended && surely).then(|| parts.ledger.lease(parts.config.ledger.lease));
    let receipt = parts.ledger.note(&entry, lease, parts.config.ledger.linger).await;
    if !entry.is_open() {
        parts.registry.close(entry.key);
        notices::closed(parts, &entry);
    } else if let Some(open) = Open::of(&entry) {
        // Also one that the switch began anew by itself, as at another bridge.
        if again {
            parts.registry.reopen(open);
        } else {
            parts.registry.open(open);
        }
    }
    if again {
        // Whoever is about to let the switch's file go must know that it is being written again.
        notices::began_again(parts, entry.key, &fact);
    }
    if !surely {
        // Whoever has it in hand is told all the same.
        let _ = parts.hands.tell(entry.key, Input::Fact(what));
    } else if ended || entry.stop_asked_at().is_some() || entry.is_masked() || entry.is_to_be_continued() {
        // A mask, and a stop, are applied to what begins now.
        drive::go_on(parts, entry, Input::Fact(what));
    }
    settle(parts, delivery, &event.call_id, receipt).await;
}

/// Acknowledges when it is durable; gives back what the ledger does not take, so that no delivery nears the broker's time-out.
async fn settle(parts: &Arc<Parts>, delivery: Delivery, call_id: &str, receipt: Receipt) {
    let going_down = async {
        parts.stop.cancelled().await;
        tokio::time::sleep(parts.config.ledger.linger * 2).await;
    };
    let noted = tokio::select! {
        noted = tokio::time::timeout(parts.config.ledger.patience, receipt.noted()) => noted.unwrap_or(Noted::Not),
        () = going_down => Noted::Not,
    };
    match noted {
        Noted::Durable => parts.crash.step(delivery.ack()).await,
        // It would come again for ever.
        Noted::TooLarge(why) => reject(parts, delivery, "endings", call_id, &why).await,
        Noted::Not => put_back(parts, "endings", delivery).await,
    }
}

/// This worker's memory, else the ledger.
async fn known(parts: &Parts, order: Order) -> Known {
    let remembered = parts.registry.entry(order.key);
    // Of a recording that this worker did not see begin, what others told of it: who stopped it, and when it was masked.
    let heard = remembered.clone().filter(|entry| entry.order().is_none());
    let (entry, surely) = match remembered.filter(|entry| entry.order().is_some()) {
        // Another worker may have met another part of it, and this one's memory be of the part before.
        Some(entry) if entry.order().is_some_and(Order::may_begin_again) => told_by_ledger(parts, entry).await,
        Some(entry) => (entry, true),
        None => told_by_ledger(parts, Entry::of_order(order, &parts.policy.worker)).await,
    };
    let entry = match heard {
        Some(heard) => entry.merge(heard),
        None => entry,
    };
    Known {
        entry: parts.registry.complete(entry),
        surely,
    }
}

fn is_carried(entry: &Entry) -> bool {
    entry.order().is_some_and(|order| order.command.is_none())
}

/// `entry`, with what the ledger knows of it in time, and whether it told.
async fn told_by_ledger(parts: &Parts, entry: Entry) -> (Entry, bool) {
    if !parts.ledger.is_up() {
        return (entry, false);
    }
    match tokio::time::timeout(KNOWLEDGE, parts.ledger.load(&address(&entry))).await {
        // What the recording carried is a part of what its action said.
        Ok(Ok(Some(record))) if record.entry.order().is_some() && is_carried(&entry) => (record.entry, true),
        Ok(Ok(Some(record))) => (record.entry.merge(entry), true),
        Ok(Ok(None)) => (entry, true),
        _ => (entry, false),
    }
}

/// What the recording carried cannot be read: made with another secret, or damaged. Its file's name still has its key, and nothing is lost; but
/// where its audio is to go only the ledger may know.
fn without_carry(parts: &Parts, event: &RecordEvent, why: OpenError) -> Option<Order> {
    let recording = &event.recording;
    let name = recording.name.as_deref()?;
    let (stem, _) = name.rsplit_once('.')?;
    let (key, format): (Key, Format) = (stem.parse().ok()?, Format::of_file(name)?);
    if let Some(order) = parts.registry.entry(key).and_then(|entry| entry.order().cloned()) {
        return Some(order);
    }
    warn!(event = "recording_context_unreadable", call_id = event.call_id, media_id = recording.id, %why, "recording context unreadable");
    let at = filed_at(event.at, parts.now());
    let media_id = recording.id.as_deref().and_then(|id| id.parse().ok());
    let media_id = media_id.filter(|id| may_be_of(id, parts.now()));
    Some(Order {
        key,
        media_id: media_id.unwrap_or_else(|| MediaId::derived(key, at)),
        call_id: event.call_id.clone(),
        account_id: event.account_id.clone(),
        zone: parts.config.kazoo.zone.clone(),
        file_name: name.to_owned(),
        media_name: name.to_owned(),
        format,
        origin: "callflow : unnamed".into(),
        method: crate::recording::settings::Method::Put,
        url: Url::Lost,
        min_sec: 0,
        asked_at: at,
        parties: event.parties.clone(),
        continues: None,
        trace: None,
        command: None,
    })
}

/// The time that a recording is filed under of which only an event tells. It chooses the month of the ledger, whose databases every worker reads
/// from then on: one that no event of a living recording has is not believed.
fn filed_at(told: Option<Moment>, now: Moment) -> Moment {
    told.filter(|at| (now.minus(OLDEST)..=now.plus(AHEAD)).contains(at))
        .unwrap_or(now)
}

/// The same of its id, whose month chooses the account's database.
fn may_be_of(media_id: &MediaId, now: Moment) -> bool {
    is_recent(media_id.month(), now)
}

/// Whether a recording that is worked on now can be of that month.
pub(super) fn is_recent(month: Month, now: Moment) -> bool {
    (now.minus(OLDEST).month()..=now.plus(AHEAD).month()).contains(&month)
}

fn emit(event: &RecordEvent, entry: &Entry) {
    let media_id = entry.order().map_or("", |order| order.media_id.as_str());
    match event.name {
        EventName::RecordStart => RecordingStarted {
            call_id: &event.call_id,
            media_id,
        }
        .emit(),
        EventName::RecordStop => RecordingEnded {
            call_id: &event.call_id,
            account_id: entry.account_id().unwrap_or(""),
            media_id,
            length_ms: event.length_ms.unwrap_or(0),
            completion_cause: event.recording.completion_cause.as_deref().unwrap_or(""),
        }
        .emit(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_recording_is_filed_under_a_month_that_it_can_be_of() {
        let now = Moment::from_unix_seconds(1_795_386_262);
        let days = |days: u64| Duration::from_secs(days * 86_400);
        for good in [now, now.minus(days(62)), now.plus(days(1)), now.minus(days(1))] {
            assert_eq!(filed_at(Some(good), now), good);
        }
        let second = Duration::from_secs(1);
        for bad in [
            now.minus(days(62)).minus(second),
            now.plus(days(1)).plus(second),
            now.plus(days(5 * 365)),
            Moment::from_unix_seconds(0),
        ] {
            assert_eq!(filed_at(Some(bad), now), now);
        }
        assert_eq!(filed_at(None, now), now);
        let may_be = |id: &str| may_be_of(&id.parse().unwrap(), now);
        assert!(may_be("202611-a") && may_be("202609-a"));
        assert!(!may_be("202608-a") && !may_be("202612-a") && !may_be("203501-a"));
    }
}
