//! Messages for this worker alone: notices of other workers, events of calls, and changes of Kazoo's configuration.

use crate::amqp::Delivery;
use crate::system_config::{Accounts, SystemConfig};

use super::call_events::CallEvents;
use super::peers::PeerMessages;

/// Takes in the messages of this worker's own queue.
pub struct Notices {
    pub call_events: CallEvents,
    pub peers: PeerMessages,
    pub accounts: Accounts,
    pub system_config: SystemConfig,
}

impl Notices {
    /// Handles one message.
    pub fn handle(&self, delivery: &Delivery) {
        let (exchange, key) = (delivery.exchange(), delivery.routing_key());
        tracing::trace!(event = "notice", exchange, key, "notice");
        match exchange {
            "configuration" => {
                self.accounts.forget();
                self.system_config.notice();
            }
            "callevt" => self.call_events.handle(delivery),
            _ => self.peers.handle(delivery),
        }
    }
}
