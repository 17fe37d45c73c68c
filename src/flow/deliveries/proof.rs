//! Existing-document checks and read-backs: is a recording stored already, is it still there, would a collect of its file be in vain.

use std::sync::Arc;
use std::time::Duration;

use crate::destination::circuit_breaker::CircuitBreakers;
use crate::destination::couchdb_write::{self, ReadBack};
use crate::destination::{DeliveryError, Destinations, Registry, find};
use crate::entry::LOOKS;
use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::What;
use crate::flow::common::Common;
use crate::kazoo::time::Month;
use crate::lifecycle::{Case, Input};
use crate::recording::names;
use crate::recording::order::Order;
use crate::telemetry::events::ReadBackFailed;

use super::{failure, in_time};

/// By this much the local time of a host differs from ours at most.
const TIME_ZONES: Duration = Duration::from_secs(14 * 3600);

/// Time limit of a look. A tenant's server may answer without end, and the file's slot at the switch is taken meanwhile.
const LOOK: Duration = Duration::from_secs(60);

/// Looks for recordings at their destinations. May touch: documents there, to read them, and a monthly database that is missing.
pub struct Proof {
    pub common: Arc<Common>,
    pub destinations: Arc<Destinations>,
    pub breakers: Arc<CircuitBreakers>,
}

/// What a collector asks before and after it asks a switch.
pub trait Proofs: Send + Sync {
    /// The delivery that an earlier attempt, or another worker, has made already.
    ///
    /// Fails when it is not known whether there is one, or its copy is damaged.
    fn stored_already(
        &self,
        case: &Case,
        order: &Order,
    ) -> impl Future<Output = Result<Option<What>, DeliveryError>> + Send;

    /// Whether a collect of the file would be in vain now. Returns what must be noted then.
    fn in_vain(&self, case: &Case, attempt: u32) -> impl Future<Output = Option<Input>> + Send;

    /// The conclusion for a recording that Kazoo's own recorder has stored already. `None`: there is no such document, or the database
    /// does not tell.
    fn stored_by_kazoo(&self, case: &Case) -> impl Future<Output = Option<Input>> + Send;
}

impl Proof {
    /// Kazoo's own recorder ran when the recording ended, or an operator has started it since.
    async fn is_stored_by_kazoo(&self, case: &Case) -> Option<Input> {
        let entry = &case.entry;
        let order = entry
            .order()
            .filter(|order| order.adopted.is_some() && order.continues.is_none())?;
        // An end that no event told has no length. Then only a comparison of the audio tells.
        let stretch = match order.may_begin_again() {
            true => Some(entry.ended()?.length_ms?),
            false => None,
        };
        let couch = self.destinations.of_document(entry).documents(entry).await.ok()?;
        // Kazoo stores in the month of the end, by the clock of its host's time zone.
        let ended = Month::around(entry.ended_at().unwrap_or(order.asked_at), TIME_ZONES);
        let months = [order.media_id.month()].into_iter().chain(ended);
        let mut seen = Vec::new();
        for month in months {
            if seen.contains(&month) {
                continue;
            }
            seen.push(month);
            let database = names::modb(entry.account_id()?, month);
            let (id, name) = (&order.media_id, &order.media_name);
            let stored = couchdb_write::is_stored_by_kazoo(&couch, &database, id, name, stretch).await;
            if stored.unwrap_or(false) {
                return Some(Input::Fact(What::Concluded {
                    outcome: Outcome::Discarded,
                    cause: Cause::StoredByKazoo,
                }));
            }
        }
        None
    }

    /// Reads back a delivery that a server with too few copies took.
    pub async fn read_back(&self, case: &Case, n: u32) -> Input {
        let (why, unanswered, deleted) = match self.look_at(case).await {
            Ok(ReadBack::Whole { .. }) => (None, false, false),
            Ok(ReadBack::Deleted) => (None, false, true),
            Ok(ReadBack::Lost(why)) => (Some(why), false, false),
            // That is no read-back: whether the copy is there is not known.
            Err(error) => (Some(error.to_string()), true, false),
        };
        if let Some(why) = &why {
            ReadBackFailed {
                call_id: &case.entry.call_id,
                media_id: case.entry.order().map_or("", |order| order.media_id.as_str()),
                why,
                last: !unanswered && case.entry.looks().count() + 1 == LOOKS,
            }
            .emit();
        }
        Input::Fact(What::Looked {
            n,
            why,
            unanswered,
            deleted,
        })
    }

    async fn look_at(&self, case: &Case) -> Result<ReadBack, DeliveryError> {
        let entry = &case.entry;
        let unknown = || DeliveryError::Target("the stored document is unknown".into());
        let delivery = entry.delivery().ok_or_else(unknown)?;
        let audio = entry.audio().ok_or_else(unknown)?;
        let couch = self.destinations.of(delivery.destination).documents(entry).await?;
        let document = &delivery.document;
        let name = entry.order().map_or("", |order| order.media_name.as_str());
        couchdb_write::read_back(
            &couch,
            &document.database,
            &document.id,
            (entry.key, entry.watched().is_some()),
            (name, audio),
        )
        .await
    }

    async fn is_in_vain(&self, case: &Case, attempt: u32) -> Option<Input> {
        let entry = &case.entry;
        // Other audio can wait in the hold.
        let destination = entry.destination().filter(|to| !to.is_held())?;
        let to = self.destinations.of(destination);
        let error = match to.resolve(entry).await {
            Ok(route) => {
                let names = [route.handler_breaker(), Some(route.host.as_str())];
                if let Some(until) = names.into_iter().flatten().find_map(|name| self.breakers.rests(name)) {
                    let why = format!("{} takes nothing now", route.host);
                    return Some(self.common.postponed(case, until, why));
                }
                to.is_ready(entry).await.err()?
            }
            Err(error) => error,
        };
        Some(Input::Fact(failure(attempt, destination, &error)))
    }

    /// The cluster's own database answers again.
    pub fn home_is_back(&self) {
        self.breakers.delivered(self.destinations.home());
    }
}

impl Proofs for Proof {
    async fn stored_already(&self, case: &Case, order: &Order) -> Result<Option<What>, DeliveryError> {
        in_time(LOOK, find(&*self.destinations, &case.entry, order, self.common.now())).await
    }

    async fn in_vain(&self, case: &Case, attempt: u32) -> Option<Input> {
        self.is_in_vain(case, attempt).await
    }

    async fn stored_by_kazoo(&self, case: &Case) -> Option<Input> {
        let looked = tokio::time::timeout(LOOK, self.is_stored_by_kazoo(case)).await;
        looked.ok().flatten()
    }
}
