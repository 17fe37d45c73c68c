//! Limits of deliveries at a time: to each host, and their share of a switch's slots while the switch waits. A slow host must not take all
//! slots, nor must an account with slow hosts.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use crate::config::Config;
use crate::entry::fact::Destination;
use crate::flow::slots::Slots;
use crate::lifecycle::Case;

/// Delay of a recording that found all slots of its host taken.
pub(super) const BUSY: Duration = Duration::from_secs(1);

/// Slots for deliveries. Touches nothing else.
pub struct Shares {
    /// Slots for uploads to each host.
    hosts: Slots,
    /// Slots for uploads of a switch that go on to a host other than the cluster's own database while the switch waits. `outward` limits
    /// all of them, and `shares` those for one host, or one account. What exceeds a limit goes into the hold, so that no slow host takes
    /// all slots of a switch.
    outward: Slots,
    shares: Slots,
}

impl Shares {
    pub fn new(config: &Config) -> Self {
        let per_switch = config.ingest.per_switch;
        Self {
            hosts: Slots::new(config.destination.per_host),
            outward: Slots::new(per_switch.saturating_sub(1).max(1)),
            shares: Slots::new((per_switch / 2).max(1)),
        }
    }

    /// A slot of a host, if one is free now.
    pub(super) fn of_host(&self, host: &str) -> Option<OwnedSemaphorePermit> {
        self.hosts.free_slot(host)
    }

    /// Takes the shares of a switch's slots that a delivery needs while the switch waits; `None` when other deliveries have them.
    pub async fn of_switch(
        &self,
        case: &Case,
        destination: Destination,
        host: &str,
        waits: bool,
    ) -> Option<Vec<OwnedSemaphorePermit>> {
        if !waits || !destination.is_held() {
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
