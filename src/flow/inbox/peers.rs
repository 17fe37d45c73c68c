//! Notices of other workers about their recordings.

use std::sync::Arc;

use serde_json::Value;

use crate::amqp::Delivery;
use crate::entry::Entry;
use crate::entry::fact::{Fact, What};
use crate::flow::drivers::Drivers;
use crate::flow::memory::{OpenRecordings, Peers};
use crate::flow::peer_notices::{self, News, PeerNotices};
use crate::kazoo::call::clip;
use crate::kazoo::json::boolean_at;
use crate::lifecycle::Input;
use crate::recording::ending::Told;
use crate::recording::identity::Key;

/// Takes in the notices of other workers.
pub struct PeerMessages {
    pub memory: Arc<OpenRecordings>,
    /// The other workers, according to their heartbeats.
    pub peers: Arc<Peers>,
    pub notices: Arc<PeerNotices>,
    pub drivers: Arc<Drivers>,
}

impl PeerMessages {
    /// Handles one notice.
    pub fn handle(&self, delivery: &Delivery) {
        let Ok(envelope) = delivery.envelope() else { return };
        match envelope.name.as_str() {
            "credentials" => peer_notices::credentials_heard(&envelope),
            "controlled" => {
                if let Some((key, call_id, facts)) = peer_notices::control_of(&envelope) {
                    let orphan = boolean_at(&envelope.body, "Orphan") == Some(true);
                    self.take_in(key, &call_id, &facts, orphan);
                }
            }
            "began_again" => {
                let now = self.notices.common.now();
                if let Some((key, started, open)) = peer_notices::restart_of(&envelope, now) {
                    self.notices.tell_family(key, &started);
                    // The worker that heard the start may have been slow.
                    let is_over = |start: &Told| self.memory.ended_after(key, start.order());
                    if let Some(open) = open
                        && !matches!(&started.what, What::Started(start) if is_over(start))
                    {
                        self.memory.reopen(open);
                    }
                }
            }
            "alive" => {
                if let Some(worker) = envelope.body.get("Worker").and_then(Value::as_str) {
                    self.peers.heard(clip(worker, 256));
                }
            }
            _ => {
                for news in News::of(&envelope, self.notices.common.now()) {
                    match news {
                        News::Opened(open) => self.memory.open(open),
                        News::Closed(open) => self.memory.heard_of_end(open.key, open.ended),
                    }
                }
            }
        }
    }

    /// Another worker stopped, masked or unmasked a recording.
    fn take_in(&self, key: Key, call_id: &str, facts: &[Fact], orphan: bool) {
        // The entry before this notice: operators are alerted of what a driver learns by it.
        let entry = self.memory.entry(key).filter(|entry| entry.order().is_some());
        self.memory.hear(key, call_id, facts);
        for fact in facts {
            // A repeat of the action must not reach another recording.
            if let What::StopAsked { action, .. } | What::MaskAsked { action, .. } = &fact.what
                && !action.is_empty()
            {
                let media_id = entry
                    .as_ref()
                    .and_then(Entry::order)
                    .map(|order| order.media_id.to_string());
                self.memory.done(action, key, &media_id.unwrap_or_default());
            }
        }
        // With the times at which it happened, because a move may have come since.
        let mut news = Entry::new(key, call_id);
        for fact in facts {
            let mut fact = fact.clone();
            if orphan && matches!(fact.what, What::NotObeyed { .. }) {
                // The worker that notes it alerts the operators, and the sender of an orphan cannot.
                fact.by.clone_from(&self.drivers.common.policy.worker);
            }
            news.add(fact);
        }
        let told = Input::Known(Box::new(news));
        match entry {
            Some(entry) if orphan => self.drivers.go_on(entry, told),
            // If no task has it in flight here, the worker that sent the command follows it up.
            _ => drop(self.drivers.in_flight.tell(key, told)),
        }
    }
}
