//! Puts audio into the hold, and takes it out again.

use std::sync::Arc;

use crate::entry::fact::What;
use crate::hold::Hold;
use crate::ledger::address;
use crate::lifecycle::{Case, Input};
use crate::telemetry::events::HoldRefused;

use super::collect::InHand;
use crate::flow::common::Common;

/// Keeps audio in the hold while its destination is unavailable.
pub struct Holder {
    pub common: Arc<Common>,
    pub hold: Hold,
}

impl Holder {
    /// Puts the audio of an upload into the hold.
    pub async fn put(&self, case: &Case, hand: Option<&InHand>) -> Input {
        let Some(hand) = hand else { return Input::HoldRefused };
        let (audio, file) = (&hand.upload.audio, &hand.upload.file);
        match self
            .hold
            .put(&address(&case.entry), self.common.now(), audio, file)
            .await
        {
            Ok(holding) => Input::Fact(What::Held {
                n: case.entry.next_hold(),
                holding,
            }),
            Err(error) => {
                HoldRefused {
                    call_id: &case.entry.call_id,
                    media_id: case.entry.order().map_or("", |order| order.media_id.as_str()),
                    reason: error.reason(),
                    why: &error.to_string(),
                }
                .emit();
                Input::HoldRefused
            }
        }
    }

    /// Removes the audio from the hold. What cannot be removed now is dropped with the database of its day.
    pub async fn remove(&self, case: &Case) -> Input {
        if let Some(holding) = case.entry.held()
            && let Err(error) = self.hold.remove(holding).await
        {
            // Then the copy is dropped with the database of its day.
            tracing::warn!(event = "hold_not_cleared", call_id = case.entry.call_id, %error, "copy not removed from the hold");
        }
        Input::Fact(What::Unheld {
            n: case.entry.next_number("held") - 1,
        })
    }
}
