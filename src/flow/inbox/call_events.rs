//! Events of calls: legs that move, ids that are replaced, and commands that the switch refused.

use std::sync::Arc;

use crate::amqp::Delivery;
use crate::entry::fact::What;
use crate::entry::legs::Leg;
use crate::flow::common::Common;
use crate::flow::drivers::Drivers;
use crate::flow::memory::{CallIds, OpenRecordings};
use crate::kazoo::dialplan::DialplanError;
use crate::kazoo::event::replaced_by;
use crate::kazoo::leg::{LegEvent, LegNews, leg_of_key};
use crate::ledger::Ledger;
use crate::lifecycle::Input;
use crate::telemetry::events::CommandRefused;

/// Events that are read for every call.
const EVERYBODYS: [&str; 3] = ["call.dialplan.", "call.CHANNEL_REPLACED.", "call.CHANNEL_DIRECT."];

/// Takes in the events of calls.
pub struct CallEvents {
    pub common: Arc<Common>,
    pub memory: Arc<OpenRecordings>,
    pub call_ids: Arc<CallIds>,
    pub drivers: Arc<Drivers>,
    pub ledger: Ledger,
}

impl CallEvents {
    /// Handles one event.
    pub fn handle(&self, delivery: &Delivery) {
        let key = delivery.routing_key();
        let is_followed = self.memory.follows(leg_of_key(key));
        // The events of every call arrive, and few of those calls are recorded. The call of an action can be replaced before the action
        // records it.
        if !is_followed && !EVERYBODYS.iter().any(|event| key.starts_with(event)) {
            return;
        }
        let Ok(envelope) = delivery.envelope() else { return };
        if let Some((old, new)) = replaced_by(&envelope) {
            self.call_ids.replace(&old, &new);
        }
        if let Some(news) = LegNews::of(&envelope) {
            return self.learn(&Leg::from(news));
        }
        if let Ok(error) = DialplanError::of(&envelope) {
            self.refused(error);
        }
    }

    fn refused(&self, error: DialplanError) {
        let Some(key) = self.memory.of_command(&error.msg_id) else {
            return;
        };
        let Some(entry) = self.memory.entry(key) else { return };
        let media_id = entry.order().map_or("", |order| order.media_id.as_str());
        CommandRefused {
            call_id: &entry.call_id,
            media_id,
            why: &error.message,
        }
        .emit();
        if entry.started().is_none() {
            let why = error.message;
            self.drivers
                .go_on(entry.clone(), Input::Fact(What::CommandRefused { why }));
        }
    }

    /// Handles what happened to a leg. The worker that knows the recording writes a move at once. An event that only names another leg is
    /// written with the next write or channel query. Until then every worker remembers it.
    fn learn(&self, leg: &Leg) {
        let moves = !matches!(leg.event, LegEvent::Bridged | LegEvent::Gone);
        let learned = self.memory.learn(leg, self.common.now(), &self.common.policy.worker);
        for key in learned {
            let what = What::Leg(Box::new(leg.clone()));
            if self.drivers.in_flight.tell(key, Input::Fact(what)).is_ok() {
                continue;
            }
            let entry = self.memory.entry(key);
            let Some(entry) = entry.filter(|entry| moves && entry.told_end().is_none()) else {
                continue;
            };
            let (ledger, linger) = (self.ledger.clone(), self.common.config.ledger.linger);
            let noting = async move { drop(ledger.note(&entry, None, linger).await) };
            self.common.tasks.spawn("leg", noting);
        }
    }
}
