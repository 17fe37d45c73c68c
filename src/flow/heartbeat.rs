//! The heartbeats by which the other workers know that this one is alive.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::common::Common;
use super::in_flight::InFlight;
use super::peer_notices::PeerNotices;

/// Interval of a worker's heartbeats.
const BEAT: Duration = Duration::from_secs(5);

/// The interval while the worker shuts down.
const AT_THE_END: Duration = Duration::from_secs(1);

/// Sends this worker's heartbeats.
pub struct Heartbeat {
    pub common: Arc<Common>,
    pub notices: Arc<PeerNotices>,
    pub in_flight: InFlight,
}

impl Heartbeat {
    /// Sends heartbeats until the worker goes down.
    pub async fn run(self: Arc<Self>) {
        loop {
            let beat = json!({ "Worker": self.common.policy.worker });
            self.notices.send("alive", beat).await;
            if self.common.stop().is_cancelled() {
                // The worker shuts down. It finishes the recordings in flight, and no other worker may take them over until then.
                if self.in_flight.count() == 0 {
                    return;
                }
                tokio::time::sleep(AT_THE_END).await;
            } else {
                let _ = self.common.unless_stopped(tokio::time::sleep(BEAT)).await;
            }
        }
    }
}
