//! What the switch records again under a name whose audio is safe becomes a recording of its own: see `entry::parts` and `entry::stray`.

use crate::entry::Entry;
use crate::entry::fact::What;
use crate::telemetry::events::RecordingContinued;

use super::journal;
use super::perform::Parts;
use super::registry::Open;
use crate::lifecycle::{Case, Input};

impl Parts {
    /// Hands on the events of a recording's continuation. It is done when they are durable, and the sweep resumes the continuation from
    /// there.
    pub(super) async fn hand_on(&self, case: &Case) -> Option<Input> {
        let (continuation, told) = case.entry.continuation(self.common.now(), &self.common.policy.worker)?;
        self.begin(&continuation).await?;
        for fact in continuation.facts() {
            // The continuation may be in flight here already, with fewer facts.
            if !matches!(fact.what, What::Asked(_) | What::Commanded) {
                let _ = self.hands.tell(continuation.key, Input::Fact(fact.what.clone()));
            }
        }
        match Open::of(&continuation).filter(|_| continuation.is_open()) {
            Some(open) => {
                self.registry.open(open);
                self.registry.remember(&continuation);
            }
            None => self.registry.close(continuation.key),
        }
        if !case.entry.facts().iter().any(|fact| fact.what.kind() == "continued") {
            let order = continuation.order();
            RecordingContinued {
                call_id: &continuation.call_id,
                media_id: order.map_or("", |order| order.media_id.as_str()),
                part: order
                    .and_then(|order| order.continues.as_ref())
                    .map_or(2, |continues| continues.part),
            }
            .emit();
        }
        Some(Input::Fact(What::Continued { told }))
    }

    /// Splits misattributed audio in the hold off into a recording of its own.
    pub(super) async fn separate(&self, case: &Case, name: String) -> Option<Input> {
        let separated = case
            .entry
            .separated(&name, self.common.now(), &self.common.policy.worker)?;
        self.begin(&separated).await?;
        Some(Input::Fact(What::Separated { name }))
    }

    /// Writes a new entry into the ledger, or into the journal.
    async fn begin(&self, entry: &Entry) -> Option<()> {
        while !journal::write(self, entry).await {
            self.common.rest().await?;
        }
        Some(())
    }
}
