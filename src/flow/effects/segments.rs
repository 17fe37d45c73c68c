//! What the switch records again under a name whose audio is safe becomes a recording of its own: see `entry::parts` and `entry::stray`.

use std::sync::Arc;

use crate::amqp::Publisher;
use crate::entry::Entry;
use crate::entry::fact::What;
use crate::telemetry::events::RecordingContinued;

use crate::flow::common::{Common, Interrupted};
use crate::flow::in_flight::InFlight;
use crate::flow::journal::{Journal, Queues};
use crate::flow::memory::{Open, OpenRecordings};
use crate::lifecycle::{Case, Input};

/// Begins the recordings that follow from another one.
pub struct Segments<Q = Publisher> {
    pub common: Arc<Common>,
    pub journal: Arc<Journal<Q>>,
    pub memory: Arc<OpenRecordings>,
    pub in_flight: InFlight,
}

impl<Q: Queues> Segments<Q> {
    /// Hands on the events of a recording's continuation. It is done when they are durable, and the sweep resumes the continuation from
    /// there.
    ///
    /// # Errors
    /// When the worker is shutting down.
    pub async fn hand_on(&self, case: &Case) -> Result<Input, Interrupted> {
        let continuation = case.entry.continuation(self.common.now(), &self.common.policy.worker);
        let (continuation, told) = continuation.ok_or(Interrupted::Baseless)?;
        self.begin(&continuation).await?;
        for fact in continuation.facts() {
            // The continuation may be in flight here already, with fewer facts.
            if !matches!(fact.what, What::Asked(_) | What::Commanded) {
                let _ = self.in_flight.tell(continuation.key, Input::Fact(fact.what.clone()));
            }
        }
        match Open::of(&continuation).filter(|_| continuation.is_open()) {
            Some(open) => {
                self.memory.open(open);
                self.memory.remember(&continuation);
            }
            None => self.memory.close(continuation.key),
        }
        if !case.entry.facts().any(|fact| fact.what.kind() == "continued") {
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
        Ok(Input::Fact(What::Continued { told }))
    }

    /// Splits misattributed audio in the hold off into a recording of its own.
    ///
    /// # Errors
    /// When the worker is shutting down.
    pub async fn separate(&self, case: &Case, name: String) -> Result<Input, Interrupted> {
        let separated = case
            .entry
            .separated(&name, self.common.now(), &self.common.policy.worker)
            .ok_or(Interrupted::Baseless)?;
        self.begin(&separated).await?;
        Ok(Input::Fact(What::Separated { name }))
    }

    /// Writes a new entry into the ledger, or into the journal.
    async fn begin(&self, entry: &Entry) -> Result<(), Interrupted> {
        while !self.journal.write(entry).await {
            self.common.rest().await?;
        }
        Ok(())
    }
}
