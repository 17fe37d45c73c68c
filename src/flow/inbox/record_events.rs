//! ② Starts and ends, as the switches report them. They are acknowledged when the ledger has them.

use std::sync::Arc;
use std::time::Duration;

use crate::amqp::{Delivery, Room};
use crate::entry::Entry;
use crate::entry::fact::{Fact, What};
use crate::kazoo::event::{EventName, RecordEvent};
use crate::ledger::{Ledger, Noted, Receipt, address};
use crate::recording::ending::Told;
use crate::recording::order::Order;
use crate::telemetry::events::{RecordingEnded, RecordingStarted};
use crate::telemetry::trace::{self, Stage};

use super::dead_letters::Returns;
use super::event_orders::{EventOrders, Found};
use crate::flow::common::Common;
use crate::flow::crash;
use crate::flow::drivers::{self, Drivers};
use crate::flow::memory::{Open, OpenRecordings};
use crate::flow::peer_notices::PeerNotices;
use crate::lifecycle::Input;

/// Time limit for the ledger's answer. After that the recording context must suffice.
const KNOWLEDGE: Duration = Duration::from_secs(3);

/// Takes in the events of the switches' recordings.
pub struct RecordEvents {
    pub common: Arc<Common>,
    pub orders: EventOrders,
    pub memory: Arc<OpenRecordings>,
    pub ledger: Ledger,
    pub notices: Arc<PeerNotices>,
    pub drivers: Arc<Drivers>,
    pub returns: Arc<Returns>,
    /// The memory limit for decoding messages.
    pub room: Arc<Room>,
}

impl RecordEvents {
    /// Handles one delivery of the endings' queue.
    pub async fn handle(&self, delivery: Delivery) {
        let room = self.room.of(&delivery).await;
        // Other messages that are bound to the queue, such as the event of a later Kazoo, are not ours to judge.
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
            Err(error) => return self.returns.reject(delivery, "endings", "", &error.to_string()).await,
        };
        let order = match self.orders.of(&event).await {
            Found::Order(order) => *order,
            Found::Foreign => return delivery.ack().await,
            Found::NotNow => return self.returns.put_back("endings", delivery).await,
            Found::Unreadable(why) => return self.returns.reject(delivery, "endings", &event.call_id, &why).await,
        };
        let told = Box::new(Told::of_order(&event, &order, self.common.now()));
        let what = match event.name {
            EventName::RecordStart => What::Started(told),
            EventName::RecordStop => What::Ended(told),
        };
        if event.name == EventName::RecordStart {
            // At once, because a task of this worker may be about to release the switch's file.
            self.notices.tell_driver(order.key, &what);
        }
        let known = self.known(order).await;
        let trace = drivers::trace_of(&known.entry);
        trace::within(Stage::Recording, trace, self.take_in(delivery, &event, known, what)).await;
    }

    /// Adds the event to what is known, and acknowledges it when that is written.
    async fn take_in(&self, delivery: Delivery, event: &RecordEvent, known: Known, what: What) {
        let Known { mut entry, surely } = known;
        emit(event, &entry);
        let fact = Fact {
            at: self.common.now(),
            by: self.common.policy.worker.clone(),
            what: what.clone(),
        };
        let ended = event.name == EventName::RecordStop;
        let known = entry.started().is_some() || entry.ended().is_some();
        let again = entry.add(fact.clone()) && !ended && known;
        self.memory.remember(&entry);
        // With a batch delay, so that all facts of a short recording become one write.
        let lease = (ended && surely).then(|| self.ledger.lease(self.common.config.ledger.lease));
        let receipt = self.ledger.note(&entry, lease, self.common.config.ledger.linger).await;
        if !entry.is_open() {
            self.memory.close(entry.key);
            self.notices.closed(&entry);
        } else if entry.is_adopted() {
            self.memory.follow(&entry, again);
        } else if let Some(open) = Open::of(&entry) {
            // Also a recording that the switch began anew by itself, for example at another bridge.
            if again {
                self.memory.reopen(open);
            } else {
                self.memory.open(open);
            }
        }
        if again {
            // A task that is about to release the switch's file must know that the switch writes it again.
            self.notices.began_again(&entry, &fact);
        }
        if !surely {
            // A task that has the recording in flight gets the event in any case.
            let _ = self.drivers.in_flight.tell(entry.key, Input::Fact(what));
        } else if ended || entry.stop_asked_at().is_some() || entry.is_masked() || entry.is_to_be_continued() {
            // A mask and a stop apply to what begins now.
            self.drivers.go_on(entry, Input::Fact(what));
        }
        self.settle(delivery, &event.call_id, receipt).await;
    }

    /// Acknowledges when the fact is durable. If the ledger does not take it, the delivery is returned, so that no delivery reaches the
    /// broker's time-out.
    async fn settle(&self, delivery: Delivery, call_id: &str, receipt: Receipt) {
        let going_down = async {
            self.common.stop().cancelled().await;
            tokio::time::sleep(self.common.config.ledger.linger * 2).await;
        };
        let noted = tokio::select! {
            noted = tokio::time::timeout(self.common.config.ledger.patience, receipt.noted()) => noted.unwrap_or(Noted::Not),
            () = going_down => Noted::Not,
        };
        match noted {
            Noted::Durable => crash::step(delivery.ack()).await,
            // A returned delivery would come again for ever.
            Noted::TooLarge(why) => self.returns.reject(delivery, "endings", call_id, &why).await,
            Noted::Not => self.returns.put_back("endings", delivery).await,
        }
    }

    /// This worker's memory, else the ledger.
    async fn known(&self, order: Order) -> Known {
        let remembered = self.memory.entry(order.key);
        // If this worker did not see the recording begin, other workers' notices about it: who stopped it, and when it was masked.
        let heard = remembered.clone().filter(|entry| entry.order().is_none());
        let (entry, surely) = match remembered.filter(|entry| entry.order().is_some()) {
            // Another worker may have received another part of it. Then this worker remembers the part before.
            Some(entry) if entry.order().is_some_and(Order::may_begin_again) => self.told_by_ledger(entry).await,
            Some(entry) => (entry, true),
            None => {
                self.told_by_ledger(Entry::of_order(order, &self.common.policy.worker))
                    .await
            }
        };
        let entry = match heard {
            Some(heard) => entry.merge(heard),
            None => entry,
        };
        Known {
            entry: self.memory.complete(entry),
            surely,
        }
    }

    /// `entry`, with what the ledger knows of it in time, and whether the ledger answered.
    async fn told_by_ledger(&self, entry: Entry) -> (Entry, bool) {
        if !self.ledger.is_up() {
            return (entry, false);
        }
        match tokio::time::timeout(KNOWLEDGE, self.ledger.load(&address(&entry))).await {
            // The recording context is a part of what the action said.
            Ok(Ok(Some(record))) if record.entry.order().is_some() && is_carried(&entry) => (record.entry, true),
            Ok(Ok(Some(record))) => (record.entry.merge(entry), true),
            Ok(Ok(None)) => (entry, true),
            _ => (entry, false),
        }
    }
}

/// What is known of a recording besides its recording context.
struct Known {
    entry: Entry,
    /// Whether that is enough to act on at once. Otherwise the sweep acts when the ledger answers.
    surely: bool,
}

fn is_carried(entry: &Entry) -> bool {
    entry.order().is_some_and(|order| order.command.is_none())
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
