//! How long a delivery may take, and its share of a switch's places while the switch waits: no slow host, and no account whose hosts are slow, has all
//! of them.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use crate::destination::DeliveryError;
use crate::entry::fact::Destination;

use super::perform::{InHand, Parts};
use crate::lifecycle::Case;

/// How soon a recording comes back that found all slots of its host taken.
pub(super) const BUSY: Duration = Duration::from_secs(1);

impl Parts {
    /// How long an attempt may take.
    pub(super) fn limit(&self, destination: Destination, hand: Option<&InHand>) -> Duration {
        // Past this the switch has been told to keep its file.
        let told = self.config.ingest.delivery_timeout;
        match hand {
            None => self.config.destination.send_timeout,
            // The audio can wait elsewhere, and must be there before the switch is told otherwise: others want the switch's place.
            Some(_) if destination.is_held() && self.hold.is_there() => {
                (told / 2).min(self.config.destination.switch_waits)
            }
            Some(_) => told,
        }
    }

    /// The shares of a switch's places that a delivery takes while the switch waits; `None` when others have them.
    pub(super) async fn share(
        &self,
        case: &Case,
        destination: Destination,
        host: &str,
        hand: Option<&InHand>,
    ) -> Option<Vec<OwnedSemaphorePermit>> {
        if hand.is_none() || destination == Destination::Account {
            return Some(Vec::new());
        }
        let switch = case.entry.ended().and_then(|told| told.node.as_deref()).unwrap_or("");
        let account = case.entry.account_id().unwrap_or("");
        let taking = async {
            Some(vec![
                self.shares.slot(&format!("{switch} host {host}")).await?,
                self.shares.slot(&format!("{switch} account {account}")).await?,
                self.outward.slot(switch).await?,
            ])
        };
        // Most are through within that.
        tokio::time::timeout(BUSY, taking).await.ok().flatten()
    }
}

/// What comes of it within `limit`.
pub(super) async fn in_time<T>(
    limit: Duration,
    what: impl Future<Output = Result<T, DeliveryError>>,
) -> Result<T, DeliveryError> {
    let done = tokio::time::timeout(limit, what).await;
    done.unwrap_or_else(|_| Err(DeliveryError::Target(format!("not through within {limit:?}"))))
}
