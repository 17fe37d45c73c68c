//! Reconciles open recordings when a new session with the broker begins.

use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use crate::amqp::Consumers;
use crate::ledger::Ledger;
use crate::lifecycle::Input;

use super::common::Common;
use super::drivers::Drivers;
use super::effects::calls::Calls;
use super::sweep::Sweep;

/// Delays between two queries whether an ecallmgr answers.
const ANSWER_PAUSES_S: [u64; 10] = [1, 1, 2, 2, 4, 8, 15, 30, 60, 60];

/// Recordings that are reconciled together, and the delay after them: each one's call is queried.
const TOGETHER: usize = 16;
const RECONCILE_STEP: Duration = Duration::from_millis(320);

/// Reconciles open recordings.
pub struct Reconcile {
    pub common: Arc<Common>,
    pub consumers: Consumers,
    pub ledger: Ledger,
    pub calls: Arc<Calls>,
    pub sweep: Arc<Sweep<Drivers>>,
}

impl Reconcile {
    /// Reconciles every open recording of the zone when a new session begins: events that were published while no queue was bound are lost.
    pub async fn run(self: Arc<Self>) {
        let mut sessions = self.consumers.watch();
        let mut seen = 0;
        loop {
            let changed = tokio::select! {
                changed = sessions.wait_for(|state| state.consuming && state.epoch > seen) => changed.map(|state| state.epoch),
                () = self.common.stop().cancelled() => return,
            };
            let Ok(epoch) = changed else { return };
            seen = epoch;
            // First the ecallmgrs come back, and the workers handle what waits in the queues.
            let calm = self.common.config.flow.grace.min(Duration::from_secs(5));
            tokio::select! {
                () = tokio::time::sleep(calm) => {}
                () = self.common.stop().cancelled() => return,
            }
            let mut was_away = false;
            let mut open = loop {
                match self.ledger.open(&self.common.config.kazoo.zone).await {
                    Ok(open) if !was_away => break open,
                    Ok(_) => {
                        // The events that came while the ledger was away wait in their queue. Without them a recording that is over seems not to
                        // have begun, and would be begun again.
                        was_away = false;
                        let behind = tokio::time::sleep(self.common.config.flow.start_timeout);
                        if self.common.unless_stopped(behind).await.is_err() {
                            return;
                        }
                        continue;
                    }
                    Err(error) => debug!(event = "reconcile_waits", %error, "open recordings not read, retrying"),
                }
                was_away = true;
                if self.common.rest().await.is_err() {
                    return;
                }
            };
            // After a broker restart ecallmgrs may be back later than this worker. A call for which no ecallmgr answers counts as alive until
            // the next channel query, minutes later.
            if !open.is_empty() && !self.ecallmgr_answers().await {
                return;
            }
            fastrand::shuffle(&mut open);
            debug!(
                event = "reconcile",
                recordings = open.len(),
                epoch,
                "reconciling open recordings"
            );
            for some in open.chunks(TOGETHER) {
                if self.common.stop().is_cancelled() {
                    return;
                }
                let wanted = some.iter().map(|address| (address.clone(), None));
                self.sweep.take(wanted.collect(), &Input::Doubt, false).await;
                tokio::time::sleep(RECONCILE_STEP).await;
            }
        }
    }

    /// Waits until an ecallmgr answers, but not for ever; `false` when the worker shuts down meanwhile. Each ecallmgr answers for every call,
    /// also for one that does not exist.
    async fn ecallmgr_answers(&self) -> bool {
        let no_call = format!("kz-record-call-{}", uuid::Uuid::new_v4().simple());
        for pause in ANSWER_PAUSES_S.map(Duration::from_secs) {
            if self.calls.is_alive(&no_call).await.is_some() {
                return true;
            }
            debug!(
                event = "ecallmgr_silent",
                pause_s = pause.as_secs(),
                "no answer from ecallmgr yet"
            );
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.common.stop().cancelled() => return false,
            }
        }
        true
    }
}
