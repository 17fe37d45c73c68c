//! Ends of the recordings that Kazoo's own recorder is to store (`adopt.mode` `watch` and `rescue`). A delivery waits unacknowledged until the
//! first look, so a worker that is killed loses none. What is stored by then is acknowledged, and nothing is written anywhere.

use std::sync::Arc;
use std::time::Duration;

use crate::amqp::{Delivery, Room};
use crate::entry::Entry;
use crate::entry::fact::{KazooCopy, What};
use crate::flow::common::{AHEAD, Common, OLDEST};
use crate::flow::crash;
use crate::flow::deliveries::Seen;
use crate::kazoo::event::{EventName, RecordEvent};
use crate::kazoo::time::Moment;
use crate::ledger::{Ledger, Noted};
use crate::recording::adopt::{self, Circumstances};
use crate::recording::ending::Told;
use crate::telemetry::events::{KazooLook, KazooRecordingDoubtful, KazooRecordingUnreadable};

use super::dead_letters::Returns;
use super::event_orders::filed_at;
use super::first_looks::FirstLooks;

/// After so many returns without an answer of the databases the ledger notes a recording, and its schedule repeats the look.
const RETURNS: u32 = 3;

/// While Kazoo's settings cannot be read: Kazoo's own recorder has given up by then.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Its queue. It exists while a worker watches.
pub const WATCH: &str = "kz_record_call.watch";

/// Takes in the ends of Kazoo's own recordings.
pub struct KazooEnds {
    pub common: Arc<Common>,
    pub looks: Arc<FirstLooks>,
    pub ledger: Ledger,
    pub returns: Arc<Returns>,
    /// The memory limit for decoding messages.
    pub room: Arc<Room>,
}

/// The end with its id. Of Kazoo 4 several recordings can have one name on a channel: then with the id of each of them.
fn possible(event: RecordEvent) -> Vec<RecordEvent> {
    if event.recording.candidates.is_empty() {
        return vec![event];
    }
    let with = |id: &String| {
        let mut event = event.clone();
        event.recording.id = Some(id.clone());
        event
    };
    event.recording.candidates.iter().map(with).collect()
}

impl KazooEnds {
    /// Handles one delivery of the watch queue.
    pub async fn handle(&self, delivery: Delivery) {
        let room = self.room.of(&delivery).await;
        let event = delivery
            .envelope()
            .ok()
            .and_then(|envelope| RecordEvent::of_kazoos(&envelope).ok().flatten())
            .filter(|event| event.name == EventName::RecordStop);
        drop(room);
        // The queue of ends judges what cannot be read.
        let Some(event) = event else {
            return delivery.ack().await;
        };
        let entries: Result<Vec<Entry>, String> =
            possible(event.clone()).iter().map(|event| self.entry(event)).collect();
        let entries = match entries {
            Ok(entries) => entries,
            Err(why) => return self.returns.reject(delivery, "watch", &event.call_id, &why).await,
        };
        let Some((entry, seen)) = self.first_lacking(entries).await else {
            return delivery.give_back().await;
        };
        KazooLook {
            first: true,
            result: seen.name(),
        }
        .emit();
        // Ends that come back without limit would take all prefetch slots from the ends of other accounts.
        let is_late = delivery.returns() >= RETURNS;
        let noted = match &seen {
            Seen::Stored | Seen::Deleted | Seen::NotWanted => true,
            Seen::Unknown(_) if !is_late => false,
            Seen::Unknown(_) => self.note(entry, KazooCopy::Unanswered, is_late).await,
            Seen::Lacking(found) => self.note(entry, *found, is_late).await,
        };
        match noted {
            true => crash::step(delivery.ack()).await,
            false => self.returns.put_back("watch", delivery).await,
        }
    }

    /// Looks for each recording that the end may be of, until one is not stored. `None`: the worker shuts down.
    async fn first_lacking(&self, entries: Vec<Entry>) -> Option<(Entry, Seen)> {
        let mut last = None;
        for entry in entries {
            self.common.unless_stopped(self.matured(&entry)).await.ok()?;
            let seen = self.common.unless_stopped(self.looks.look(&entry)).await.ok()??;
            let is_settled = matches!(seen, Seen::Stored | Seen::Deleted | Seen::NotWanted);
            last = Some((entry, seen));
            if !is_settled {
                break;
            }
        }
        last
    }

    /// The recording, as if it were the worker's own.
    fn entry(&self, event: &RecordEvent) -> Result<Entry, String> {
        let now = self.common.now();
        let circumstances = Circumstances {
            zone: &self.common.config.kazoo.zone,
            shared_names: self.common.config.adopt.shared_names,
            months: now.minus(OLDEST).month()..=now.plus(AHEAD).month(),
            at: filed_at(event.at, now),
        };
        let order = match adopt::order(event, &circumstances) {
            Ok((order, _)) => order,
            Err(why) => {
                let why = why.to_string();
                KazooRecordingUnreadable {
                    call_id: &event.call_id,
                    media_id: event.recording.id.as_deref().unwrap_or_default(),
                    why: &why,
                }
                .emit();
                return Err(why);
            }
        };
        let ended = What::Ended(Box::new(Told::of_order(event, &order, now)));
        let mut entry = Entry::of_order(order, &self.common.policy.worker);
        entry.add(self.common.fact(ended));
        Ok(entry)
    }

    /// Waits until it is time for the first look. An end that waited in its queue has waited long enough.
    async fn matured(&self, entry: &Entry) {
        let (whole, now) = (self.common.config.adopt.first_look, self.common.now());
        let waited = entry
            .ended_at()
            .map_or(Duration::ZERO, |ended: Moment| now.since(ended));
        tokio::time::sleep(whole.saturating_sub(waited)).await;
    }

    /// Notes a recording that is not stored, as far as is known. `is_late`: its end must not come back. Whether the note is durable.
    async fn note(&self, mut entry: Entry, found: KazooCopy, is_late: bool) -> bool {
        let watched = match self.looks.copies.watched(&entry).await {
            Ok(watched) => watched,
            Err(_) if is_late => What::Watched {
                due: self.common.now().plus(LONGEST),
            },
            Err(why) => {
                tracing::debug!(
                    event = "kazoo_patience_unknown",
                    call_id = entry.call_id,
                    why,
                    "settings of Kazoo's own recorder unreadable"
                );
                return false;
            }
        };
        let sought = What::Sought {
            n: 1,
            found,
            last: false,
        };
        for what in [watched, sought] {
            entry.add(self.common.fact(what));
        }
        KazooRecordingDoubtful {
            call_id: &entry.call_id,
            account_id: entry.account_id().unwrap_or_default(),
            media_id: entry.order().map_or("", |order| order.media_id.as_str()),
            found: found.words(),
        }
        .emit();
        let receipt = self.ledger.note(&entry, None, self.common.config.ledger.linger).await;
        let noted = tokio::time::timeout(self.common.config.ledger.patience, receipt.noted());
        // A note that no ledger takes would come again for ever.
        matches!(noted.await, Ok(Noted::Durable | Noted::TooLarge(_)))
    }
}
