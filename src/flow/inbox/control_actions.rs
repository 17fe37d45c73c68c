//! The action's other verbs: stop, mask and unmask the newest running recording of the call.
//!
//! Each of them is a state, not a message. A stop is repeated until the switch confirms it, and applied to a start that comes later. An
//! operator is alerted if it stays unconfirmed, because payment data may be recorded. The switch confirms no mask. Its command is repeated
//! until the broker has it, and sent again at each start. An operator is alerted if it cannot have been obeyed.
//!
//! If no worker remembers a recording of the call, only the ledger can say that there is none. While the ledger does not answer, the action
//! waits in a queue of its own. Its call is answered, and it takes no prefetch slot that starts need.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::amqp::{Delivery, QueueKind, QueueSpec};
use crate::flow::common::Common;
use crate::flow::journal::{self, Journal};
use crate::kazoo::dialplan::Control;
use crate::kazoo::time::{Moment, message_time};
use crate::recording::controls::Why;
use crate::recording::plan::Plan;
use crate::telemetry::events::ControlWaits;
use crate::telemetry::trace::{self, Stage};

use super::answers::Answers;
use super::dead_letters::Returns;
use super::request::{ActionReader, Request};

mod at_once;
mod carry_out;
mod find;
mod interrupted;

pub use at_once::AtOnce;
pub use carry_out::Carrier;
pub use find::Finder;
use find::{Found, Look};

/// The queue where actions wait for the ledger to find the recording that they are for.
pub const CONTROLS: &str = "kz_record_call.controls";

const MAX_BYTES: i64 = 64 << 20;
const PREFETCH: u16 = 200;

/// Delays before the memory is searched again, in milliseconds. A recording can have begun on another worker a moment ago, and that
/// worker's notice can be on its way.
const LOOKS: [u64; 4] = [100, 200, 400, 800];

/// The same if another recorder records the call, and the action is most likely for that recording: a mask must not come late.
const NAMED_LOOKS: &[u64] = &[100, 200];

/// How often an action that waited for the ledger is searched for before it counts that there is no recording, and for how long at least. In
/// this time a recording that only the journal knew is moved into the ledger. A worker that shuts down returns the action without a delay, so
/// the number alone says nothing about the time.
const ENOUGH: u32 = 5;
const LONG_ENOUGH: Duration = Duration::from_secs(15);

/// For this long after its start a worker does not believe that a call has no recording. It heard no notice of earlier recordings, and a
/// CouchDB node that was started with it may lag behind the others. The action is searched for again for some seconds, also by other workers.
pub(super) const MEMORY_GROWS: Duration = Duration::from_secs(900);

/// Why such an action waits.
const STARTED_LATELY: &str = "this worker started a moment ago";

/// The queue of the actions that wait.
pub fn controls(gate: tokio::sync::watch::Receiver<bool>, dead_letters: &str) -> QueueSpec {
    QueueSpec {
        name: CONTROLS.into(),
        kind: QueueKind::Shared {
            max_bytes: MAX_BYTES,
            dead_letters: dead_letters.to_owned(),
        },
        bindings: Vec::new(),
        prefetch: PREFETCH,
        gate: Some(gate),
    }
}

/// Whether an action was searched for often and long enough. `at`: when it was sent. A time after `now` is not believed.
fn is_searched(returns: u32, at: Option<Moment>, now: Moment) -> bool {
    let at = at.filter(|at| *at <= now);
    returns >= ENOUGH && at.is_none_or(|at| now.since(at) >= LONG_ENOUGH)
}

/// Stops, masks and unmasks recordings.
pub struct Controls {
    pub common: Arc<Common>,
    pub reader: Arc<ActionReader>,
    pub finder: Arc<Finder>,
    pub carrier: Carrier,
    pub journal: Arc<Journal>,
    pub answers: Arc<Answers>,
    pub returns: Arc<Returns>,
    /// When this worker started.
    pub begun: Instant,
}

impl Controls {
    /// Carries the action out. Returns the recording's id, if one is known, and whether the action is answered and durable.
    pub(super) async fn control(&self, request: &Request<'_>, what: Control, delivery: &Delivery) -> (String, bool) {
        self.answers.accept_request(request.reply_to).await;
        let mut look = self.finder.look(request).await;
        if let Look::Found(found) = look {
            return Box::pin(self.carry_out(request, *found, what)).await;
        }
        let named = self.finder.stranger(request);
        if let (Some(name), Look::None) = (named, &look) {
            look = self.look_at_memory_again(request, NAMED_LOOKS).await;
            if matches!(look, Look::None) {
                look = self.finder.look_further(request).await;
            }
            match look {
                Look::Found(found) => return Box::pin(self.carry_out(request, *found, what)).await,
                // A recording of ours may wait in the journal.
                Look::None if self.journal.may_have_more().await => {}
                Look::None => {
                    self.carrier.stranger(request, name, what).await;
                    return (String::new(), self.answers.result_of_request(request.reply_to).await);
                }
                Look::Untold(_) => {}
            }
        }
        let asked_by = request.at.unwrap_or_else(|| self.common.now());
        let answered = self.answers.result_of_request(request.reply_to).await;
        // What follows takes time, so the call got its answer before. The call has continued: the action is not for what the call's next action
        // starts.
        let late = Request {
            doubtful: true,
            at: Some(asked_by),
            ..*request
        };
        let request = &late;
        look = self.finder.look(request).await;
        let is_final = |look: &Look| match look {
            Look::Found(_) => true,
            Look::Untold(why) => find::is_final(request, why),
            Look::None => false,
        };
        if !is_final(&look) {
            // Untold, or none: its worker's word may be on its way.
            if let found @ Look::Found(_) = self.look_at_memory_again(request, &LOOKS).await {
                look = found;
            }
        }
        if !is_final(&look) {
            // Unless its worker could not tell, the ledger has it by now.
            look = self.finder.look_further(request).await;
        }
        if matches!(look, Look::None) {
            if self.journal.may_have_more().await {
                look = Look::Untold(journal::WAITING.to_owned());
            } else if self.finder.stranger(request).is_none() && self.begun.elapsed() < MEMORY_GROWS {
                look = Look::Untold(STARTED_LATELY.to_owned());
            }
        }
        match look {
            Look::Found(found) => {
                let (media_id, done) = Box::pin(self.carrier.carry_out(request, *found, what, async { true })).await;
                (media_id, answered && done)
            }
            Look::None => match self.none_of_ours(request, what).await {
                Ok(()) => (String::new(), answered),
                Err(why) => (
                    String::new(),
                    answered && self.wait(request, what, delivery, &why).await,
                ),
            },
            Look::Untold(why) => (
                String::new(),
                answered && self.wait(request, what, delivery, &why).await,
            ),
        }
    }

    /// Has an action wait in a queue of its own. `false` when the broker did not take it.
    async fn wait(&self, request: &Request<'_>, what: Control, delivery: &Delivery, why: &str) -> bool {
        let waits = self.returns.pass_on(delivery, CONTROLS, why).await;
        ControlWaits {
            call_id: &request.action.call_id,
            action: what.name(),
            why,
            result: waits.as_ref().copied().map_err(ToString::to_string),
        }
        .emit();
        waits.is_ok()
    }

    /// Searches what all workers remember, after each of these delays in milliseconds.
    async fn look_at_memory_again(&self, request: &Request<'_>, pauses: &[u64]) -> Look {
        for pause in pauses {
            tokio::time::sleep(Duration::from_millis(*pause)).await;
            if let Some(found) = self.finder.remembered(request) {
                return Look::Found(Box::new(found));
            }
        }
        Look::None
    }

    /// No recording of ours runs on the call. The action is for one that has ended while the action waited, for another recorder's
    /// recording, or for none. `Err`: that is not known yet, and why.
    async fn none_of_ours(&self, request: &Request<'_>, what: Control) -> Result<(), String> {
        if let Some(open) = self.finder.ended_since(request).await? {
            let written = self.carrier.too_late(request, &open, what, Why::Ended).await;
            return written.then_some(()).ok_or_else(|| "not written".to_owned());
        }
        if let Some(name) = self.finder.stranger(request) {
            self.carrier.stranger(request, name, what).await;
            return Ok(());
        }
        warn!(
            event = "no_recording_of_call",
            call_id = request.action.call_id,
            action = what.name(),
            "no recording of this call, nothing sent"
        );
        Ok(())
    }

    /// Handles an action that waited for the ledger, and is answered.
    pub async fn handle(&self, delivery: Delivery) {
        trace::within(Stage::Action, delivery.trace(), Box::pin(self.resume(delivery))).await;
    }

    async fn resume(&self, delivery: Delivery) {
        const QUEUE: &str = "controls";
        let read = self.common.now();
        let asked = match self.reader.read(&delivery).await {
            Ok((_, asked)) => asked.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let (action, what) = match asked {
            Ok(asked) => match asked.plan {
                Plan::Control(what) => (asked.action, what),
                _ => {
                    return self
                        .returns
                        .reject(delivery, QUEUE, &asked.action.call_id, "it is no stop, mask or unmask")
                        .await;
                }
            },
            Err(why) => return self.returns.reject(delivery, QUEUE, "", &why).await,
        };
        let at = delivery.timestamp().and_then(|at| message_time(at, read));
        let request = Request {
            action: &action,
            delivery: &delivery,
            reply_to: None,
            doubtful: true,
            repeated: true,
            waited: is_searched(delivery.returns(), at, read),
            at,
            read,
        };
        let mut look = self.finder.look(&request).await;
        if !matches!(look, Look::Found(_)) {
            look = self.finder.look_further(&request).await;
        }
        let done = match look {
            Look::Found(found) => Box::pin(self.carry_out(&request, *found, what)).await.1,
            Look::None if request.waited && !self.journal.may_have_more().await => {
                self.none_of_ours(&request, what).await.is_ok()
            }
            Look::None | Look::Untold(_) => false,
        };
        if done {
            delivery.ack().await;
        } else {
            self.returns.put_back(QUEUE, delivery).await;
        }
    }

    /// Sends the command to the switch, answers the action, and writes it down.
    async fn carry_out(&self, request: &Request<'_>, found: Found, what: Control) -> (String, bool) {
        Box::pin(
            self.carrier
                .carry_out(request, found, what, self.answers.result_of_request(request.reply_to)),
        )
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_of_workers_that_shut_down_do_not_end_the_search_for_a_recording() {
        let now = Moment::from_unix_seconds(1_795_947_400);
        let ago = |seconds| Some(now.minus(Duration::from_secs(seconds)));
        for (returns, at, is_enough) in [
            (ENOUGH, ago(1), false),
            (200, ago(14), false),
            (ENOUGH, ago(15), true),
            (ENOUGH - 1, ago(3600), false),
            (ENOUGH, None, true),
            (ENOUGH, Some(now.plus(Duration::from_secs(60))), true),
        ] {
            assert_eq!(is_searched(returns, at, now), is_enough, "{returns} {at:?}");
        }
    }
}
