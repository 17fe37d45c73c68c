//! Time limits of deliveries, and their share of a switch's slots while the switch waits. A slow host must not take all slots, nor must an
//! account with slow hosts.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use crate::destination::DeliveryError;
use crate::entry::fact::Destination;

use super::deliveries::Parts;
use super::effects::collect::InHand;
use crate::lifecycle::Case;

/// Delay of a recording that found all slots of its host taken.
pub(super) const BUSY: Duration = Duration::from_secs(1);

impl Parts {
    /// Time limit of an attempt.
    pub(super) fn limit(&self, destination: Destination, hand: Option<&InHand>) -> Duration {
        // By this time the switch has got the answer to keep its file.
        let told = self.common.config.ingest.delivery_timeout;
        match hand {
            None => self.common.config.destination.send_timeout,
            // The audio can wait in the hold, and must be there before the switch gets the answer to keep its file. Other recordings need
            // the switch's slot.
            Some(_) if destination.is_held() && self.hold.is_there() => {
                (told / 2).min(self.common.config.destination.switch_waits)
            }
            Some(_) => told,
        }
    }

    /// Takes the shares of a switch's slots that a delivery needs while the switch waits; `None` when other deliveries have them.
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
        // Most deliveries end within this time.
        tokio::time::timeout(BUSY, taking).await.ok().flatten()
    }
}

/// The result of `what`, if it comes within `limit`.
pub(super) async fn in_time<T>(
    limit: Duration,
    what: impl Future<Output = Result<T, DeliveryError>>,
) -> Result<T, DeliveryError> {
    let done = tokio::time::timeout(limit, what).await;
    done.unwrap_or_else(|_| Err(DeliveryError::Target(format!("not through within {limit:?}"))))
}
