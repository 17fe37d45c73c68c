//! The order of the recording that an event is about: it is sealed in the event, or made from what Kazoo's own recorder put there.

use std::sync::Arc;

use tracing::warn;

use crate::flow::common::{AHEAD, Common, OLDEST, is_recent};

use crate::flow::kazoo_recorder::{KazooRecorder, Verdict};
use crate::flow::memory::OpenRecordings;
use crate::kazoo::event::{EventName, RecordEvent};
use crate::kazoo::time::Moment;
use crate::recording::adopt::{self, Circumstances};
use crate::recording::carry::{OpenError, Seal};
use crate::recording::format::Format;
use crate::recording::identity::{Key, MediaId};
use crate::recording::order::{Order, Url};
use crate::recording::settings::Method;
use crate::telemetry::events::{AdoptedDataUnreadable, AdoptedEvent};

/// Whose recording an event is about.
pub(super) enum Found {
    /// Ours to store, by this order.
    Order(Box<Order>),
    /// Another program's.
    Foreign,
    /// It is not known now who stores the recording.
    NotNow,
    /// It should be ours, and the event does not say enough.
    Unreadable(String),
}

/// Finds the orders of events.
pub struct EventOrders {
    pub common: Arc<Common>,
    /// Opens the recording context that an event carries.
    pub seal: Arc<Seal>,
    pub memory: Arc<OpenRecordings>,
    /// Set if it counts whether Kazoo's own recorder runs.
    pub kazoo_recorder: Option<Arc<KazooRecorder>>,
}

impl EventOrders {
    /// The order of the event's recording.
    pub(super) async fn of(&self, event: &RecordEvent) -> Found {
        if event.recording.is_kazoos()
            && let Some(kazoo_recorder) = self.kazoo_recorder.as_ref().filter(|it| !it.watches())
        {
            return self.adopted(event, kazoo_recorder).await;
        }
        if !event.recording.is_ours() {
            return Found::Foreign;
        }
        match self.seal.open(event.recording.carry.as_deref()) {
            Ok(order) => Found::Order(Box::new(order)),
            Err(why) => match self.without_carry(event, why) {
                Some(order) => Found::Order(Box::new(order)),
                None => Found::Unreadable(why.to_string()),
            },
        }
    }

    /// The recording is Kazoo's own. If Kazoo's own recorder does not run, the worker stores the recording in its place.
    async fn adopted(&self, event: &RecordEvent, kazoo_recorder: &KazooRecorder) -> Found {
        let verdict = match event.name {
            EventName::RecordStart => kazoo_recorder.of_start().await,
            EventName::RecordStop => kazoo_recorder.of_stop().await,
        };
        let result = match verdict {
            Verdict::Adopt => "adopted",
            Verdict::Leave => "left",
            Verdict::Unknown => "unknown",
        };
        AdoptedEvent { result }.emit();
        match verdict {
            Verdict::Adopt => {}
            Verdict::Leave => return Found::Foreign,
            // The end decides. A start only helps to notice a lost end.
            Verdict::Unknown if event.name == EventName::RecordStart => return Found::Foreign,
            Verdict::Unknown => return Found::NotNow,
        }
        let now = self.common.now();
        let circumstances = Circumstances {
            zone: &self.common.config.kazoo.zone,
            shared_names: self.common.config.adopt.shared_names,
            months: now.minus(OLDEST).month()..=now.plus(AHEAD).month(),
            at: filed_at(event.at, now),
        };
        match adopt::order(event, &circumstances) {
            Ok((order, unreadable)) => {
                if let Some(why) = unreadable {
                    AdoptedDataUnreadable {
                        call_id: &event.call_id,
                        media_id: order.media_id.as_str(),
                        why: &why.to_string(),
                    }
                    .emit();
                }
                Found::Order(Box::new(order))
            }
            Err(why) => Found::Unreadable(why.to_string()),
        }
    }

    /// The recording context cannot be read: it was made with another secret, or is damaged. The file's name still has the key, so nothing is
    /// lost. But only the ledger may know where the audio must go.
    fn without_carry(&self, event: &RecordEvent, why: OpenError) -> Option<Order> {
        let recording = &event.recording;
        let name = recording.name.as_deref()?;
        let (stem, _) = name.rsplit_once('.')?;
        let (key, format): (Key, Format) = (stem.parse().ok()?, Format::of_file(name)?);
        if let Some(order) = self.memory.entry(key).and_then(|entry| entry.order().cloned()) {
            return Some(order);
        }
        warn!(event = "recording_context_unreadable", call_id = event.call_id, media_id = recording.id, %why, "recording context unreadable");
        let at = filed_at(event.at, self.common.now());
        let media_id = recording.id.as_deref().and_then(|id| id.parse().ok());
        let media_id = media_id.filter(|id| may_be_of(id, self.common.now()));
        Some(Order {
            key,
            media_id: media_id.unwrap_or_else(|| MediaId::derived(key, at)),
            call_id: event.call_id.clone(),
            account_id: event.account_id.clone(),
            zone: self.common.config.kazoo.zone.clone(),
            file_name: name.to_owned(),
            media_name: name.to_owned(),
            format,
            origin: "callflow : unnamed".into(),
            method: Method::Put,
            url: Url::Lost,
            min_sec: 0,
            asked_at: at,
            parties: event.parties.clone(),
            continues: None,
            trace: None,
            command: None,
            adopted: None,
        })
    }
}

/// The time that a recording is filed under if only an event makes it known. This time chooses the month of the ledger, whose databases
/// every worker reads from then on. A time that no event of a live recording can have is not believed.
pub(super) fn filed_at(told: Option<Moment>, now: Moment) -> Moment {
    told.filter(|at| (now.minus(OLDEST)..=now.plus(AHEAD)).contains(at))
        .unwrap_or(now)
}

/// The same check for the recording's id, whose month chooses the account's database.
fn may_be_of(media_id: &MediaId, now: Moment) -> bool {
    is_recent(media_id.month(), now)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
