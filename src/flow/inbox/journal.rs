//! Moves what waits in the journal into the ledger.

use std::sync::Arc;

use crate::amqp::{Delivery, Room};
use crate::flow::common::Common;
use crate::flow::journal::read;
use crate::ledger::{Ledger, Noted};

use super::dead_letters::Returns;

/// Reads the journal's queue.
pub struct JournalMessages {
    pub common: Arc<Common>,
    pub ledger: Ledger,
    pub returns: Arc<Returns>,
    /// The memory limit for decoding messages.
    pub room: Arc<Room>,
}

impl JournalMessages {
    /// Moves one message of the journal into the ledger.
    pub async fn handle(&self, delivery: Delivery) {
        let room = self.room.of(&delivery).await;
        let entry = read(delivery.body(), self.common.now());
        drop(room);
        let entry = match entry {
            Ok(entry) => entry,
            Err(why) => return self.returns.reject(delivery, "journal", "", &why).await,
        };
        let limits = &self.common.config.ledger;
        let noted = async { self.ledger.note(&entry, None, limits.budget).await.noted().await };
        match tokio::time::timeout(limits.patience, noted).await {
            Ok(Noted::Durable) => delivery.ack().await,
            Ok(Noted::TooLarge(why)) => self.returns.reject(delivery, "journal", &entry.call_id, &why).await,
            _ => self.returns.put_back("journal", delivery).await,
        }
    }
}
