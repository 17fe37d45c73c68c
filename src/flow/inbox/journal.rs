//! Moves what waits in the journal into the ledger.

use std::sync::Arc;

use crate::amqp::{Delivery, Room};
use crate::entry::fact::What;
use crate::flow::common::Common;
use crate::flow::journal::{Moves, TOGETHER, read};
use crate::ledger::{Ledger, Noted};

use super::dead_letters::Returns;

/// Reads the journal's queue.
pub struct JournalMessages {
    pub common: Arc<Common>,
    pub ledger: Ledger,
    /// What is on its way into the ledger, which a search of the ledger does not find.
    pub moves: Arc<Moves>,
    pub returns: Arc<Returns>,
    /// The memory limit for decoding messages.
    pub room: Arc<Room>,
}

impl JournalMessages {
    /// Moves one message of the journal into the ledger.
    pub async fn handle(&self, delivery: Delivery) {
        let mut moving = Some(self.moves.begin());
        let room = self.room.of(&delivery).await;
        let entry = read(delivery.body(), self.common.now());
        drop(room);
        let entry = match entry {
            Ok(entry) => entry,
            Err(why) => return self.returns.reject(delivery, "journal", "", &why).await,
        };
        // A mask or unmask is noted of a recording that the ledger knows.
        if entry.facts().any(|fact| matches!(fact.what, What::Intended { .. }))
            && let Some(moving) = moving.take()
        {
            moving.is_none();
        }
        let limits = &self.common.config.ledger;
        let noted = async { self.ledger.note(&entry, None, TOGETHER).await.noted().await };
        let noted = tokio::time::timeout(limits.patience, noted).await;
        drop(moving);
        match noted {
            Ok(Noted::Durable) => delivery.ack().await,
            Ok(Noted::TooLarge(why)) => self.returns.reject(delivery, "journal", &entry.call_id, &why).await,
            _ => self.returns.put_back("journal", delivery).await,
        }
    }
}
