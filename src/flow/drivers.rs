//! Recordings in flight: each has a task, which runs the driver with this worker's services, and reports what its steps bring about.

use std::sync::Arc;
use std::time::Duration;

use crate::amqp::Consumers;
use crate::entry::Entry;
use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::{Fact, What};
use crate::kazoo::dialplan::Control;
use crate::kazoo::time::Moment;
use crate::ledger::{Address, Lease, Ledger, Receipt};
use crate::telemetry::events::{
    ControlNotObeyed, RecordingClosed, RecordingLost, RecordingParked, RecordingsInHand, StopUnconfirmed, TaskPanicked,
};
use crate::telemetry::trace::{self, Stage, Trace};

use super::common::{Common, Interrupted};
use super::driver::{self, Effects, EntryStore, Host};
use super::effects::Performer;
use super::effects::collect::InHand;
use super::in_flight::{InFlight, Mailbox};
use super::memory::alerts::Kind;
use super::memory::{Alerts, OpenRecordings};
use super::webhooks::Outcomes;
use crate::lifecycle::{Answer, Case, Effect, Input};

/// Drives recordings, each in a task of its own.
pub struct Drivers {
    pub common: Arc<Common>,
    pub performer: Performer,
    pub ledger: Ledger,
    pub in_flight: InFlight,
    pub memory: Arc<OpenRecordings>,
    /// Alerts for Kazoo's operators.
    pub alerts: Alerts,
    /// Passes outcomes to endpoints of operators.
    pub outcomes: Outcomes,
    pub consumers: Consumers,
}

impl Drivers {
    /// Passes `input` to the task that has the recording in flight, or starts to drive it.
    pub fn go_on(self: &Arc<Self>, entry: Entry, input: Input) {
        let key = entry.key;
        let Err(input) = self.in_flight.tell(key, input) else {
            return;
        };
        let input = match self.in_flight.take(key) {
            Some(mailbox) => return self.begin(entry, input, mailbox),
            // Another task took the recording in the meantime.
            None => self.in_flight.tell(key, input),
        };
        if input.is_err() {
            tracing::warn!(
                event = "recording_told_too_much",
                call_id = entry.call_id,
                "mailbox of a recording full"
            );
        }
    }

    /// Drives a recording, in a task of its own.
    pub fn begin(self: &Arc<Self>, entry: Entry, input: Input, mailbox: Mailbox) {
        let drivers = Arc::clone(self);
        let driving = async move { drivers.drive(entry, input, mailbox).await };
        self.common.tasks.spawn("recording", driving);
    }

    /// Drives a recording in its own trace.
    async fn drive(&self, entry: Entry, input: Input, mailbox: Mailbox) {
        let _counted = Counted::new();
        let trace = trace_of(&entry);
        // Boxed: otherwise each layer around it would hold it on the thread's stack while it is moved there.
        let driving = Box::pin(driver::survive(
            (self, &self.ledger, self.host()),
            entry,
            input,
            mailbox,
        ));
        trace::within(Stage::Recording, trace, driving).await;
    }

    fn host(&self) -> Host<'_> {
        Host {
            policy: &self.common.policy,
            clock: &self.common.clock,
            stop: self.common.stop(),
            lease: self.common.config.ledger.lease,
            linger: self.common.config.ledger.linger,
        }
    }

    /// Reports what a step brought about.
    fn report(&self, before: &Entry, entry: &Entry) {
        let call_id = &entry.call_id;
        let account_id = entry.account_id().unwrap_or("");
        let media_id = entry.order().map_or("", |order| order.media_id.as_str());
        // Every worker that learns of a fault logs it. The worker that noted it alerts the operators, so that they get one mail.
        let worker = &self.common.policy.worker;
        let noted = |is: fn(&What) -> bool| noted_by(worker, before, entry).any(|fact| is(&fact.what));
        let alarmed = |entry: &Entry| entry.facts().any(|fact| fact.what == What::StopUnconfirmed);
        if alarmed(entry) && !alarmed(before) {
            StopUnconfirmed {
                call_id,
                account_id,
                media_id,
            }
            .emit();
            if noted(|what| *what == What::StopUnconfirmed) {
                let kind = Kind::NotObeyed(Control::Stop, entry.why_not_stopped());
                self.alerts.raise(entry, kind);
            }
        }
        for fact in entry.facts().filter(|fact| !before.facts().any(|known| known == *fact)) {
            if let What::NotObeyed { what, why, .. } = fact.what {
                ControlNotObeyed {
                    call_id,
                    account_id,
                    media_id,
                    control: what.name(),
                    why: why.name(),
                }
                .emit();
                if fact.by == *worker {
                    self.alerts.raise(entry, Kind::NotObeyed(what, why));
                }
            }
        }
        if let (Some(parked), None) = (entry.parked(), before.parked()) {
            let cause = parked.name();
            if entry.is_lost_by_kazoo() {
                RecordingLost {
                    call_id,
                    account_id,
                    media_id,
                    cause,
                }
                .emit();
            } else {
                RecordingParked {
                    call_id,
                    account_id,
                    media_id,
                    cause,
                }
                .emit();
            }
            if noted(|what| matches!(what, What::Parked { .. })) {
                self.alerts.raise(entry, Kind::Ended(Outcome::Parked, parked));
            }
        }
        if let (true, false, Some((outcome, cause))) = (entry.is_closed(), before.is_closed(), entry.outcome()) {
            self.memory.close(entry.key);
            RecordingClosed {
                call_id,
                account_id,
                media_id,
                outcome: outcome.name(),
                cause: cause.name(),
                took: entry
                    .ended_exactly_at()
                    .map_or_else(Default::default, |at| self.common.now().since(at)),
                alarming: is_alarming(outcome, cause),
            }
            .emit();
            if is_alarming(outcome, cause) && noted(|_| true) {
                self.alerts.raise(entry, Kind::Ended(outcome, cause));
            }
        }
    }
}

/// The trace of the action that asked for the recording.
pub fn trace_of(entry: &Entry) -> Option<Trace> {
    Trace::read(entry.order()?.trace.as_deref()?, None)
}

impl Effects for Drivers {
    type Upload = InHand;

    async fn perform(&self, case: &Case, effect: Effect, hand: &mut Option<InHand>) -> Result<Input, Interrupted> {
        self.performer.perform(case, effect, hand).await
    }

    fn keep(&self, upload: InHand) {
        upload.upload.answer(Answer::Keep);
    }

    fn panicked(&self, entry: &Entry, why: &str) {
        TaskPanicked {
            task: "recording",
            name: "driver",
            call_id: &entry.call_id,
            media_id: entry.order().map_or("", |order| order.media_id.as_str()),
            why,
        }
        .emit();
    }

    fn stepped(&self, before: &Entry, after: &Entry) {
        self.report(before, after);
        self.outcomes.owed(&self.common.policy.worker, before, after);
        if after.is_open() {
            // A handler that receives its end in this worker starts from what is remembered.
            self.memory.remember(after);
        }
    }

    fn receives_since(&self) -> Option<Moment> {
        let since = self.consumers.state().since?;
        Some(self.common.now().minus(since.elapsed()))
    }
}

/// Time limit for the ledger's answer to what other workers know.
const KNOWLEDGE: Duration = Duration::from_secs(2);

impl EntryStore for Ledger {
    async fn known(&self, address: &Address) -> Option<Option<Entry>> {
        let known = tokio::time::timeout(KNOWLEDGE, self.load(address)).await;
        Some(known.ok()?.ok()?.map(|record| record.entry))
    }

    async fn note(&self, entry: &Entry, lease: Option<Lease>, linger: Duration) -> Receipt {
        Self::note(self, entry, lease, linger).await
    }

    fn lease(&self, duration: Duration) -> Lease {
        Self::lease(self, duration)
    }

    fn no_lease(&self) -> Lease {
        Self::no_lease(self)
    }
}

/// Whether an outcome means that audio which should be there is not.
fn is_alarming(outcome: Outcome, cause: Cause) -> bool {
    // A call that was over before it could be recorded is no fault.
    outcome == Outcome::Failed && cause != Cause::CallGone
}

/// The facts of a step that a worker noted itself.
fn noted_by<'a>(worker: &'a str, before: &'a Entry, after: &'a Entry) -> impl Iterator<Item = &'a Fact> {
    let news = after.facts().filter(|fact| !before.facts().any(|known| known == *fact));
    news.filter(move |fact| fact.by == worker)
}

/// A recording that is counted while this worker has it in flight.
struct Counted;

impl Counted {
    fn new() -> Self {
        RecordingsInHand { by: 1 }.emit();
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        RecordingsInHand { by: -1 }.emit();
    }
}

#[cfg(test)]
mod tests {
    use crate::recording::controls::Why;

    use super::*;

    /// Two workers that have one recording in flight hear of each other's facts.
    #[test]
    fn the_worker_that_notes_a_fault_alerts_the_operators_and_no_other_does() {
        let before = Entry::of_order(crate::lifecycle::tests::order(), "w");
        let mut after = before.clone();
        after.add(Fact {
            at: crate::lifecycle::tests::order().asked_at,
            by: "w".into(),
            what: What::NotObeyed {
                action: "a".into(),
                what: Control::Mask,
                why: Why::Moved,
            },
        });
        let kinds = |worker| {
            let news = noted_by(worker, &before, &after);
            news.map(|fact| fact.what.kind()).collect::<Vec<_>>()
        };
        assert_eq!(kinds("w"), ["not_obeyed"]);
        assert_eq!(kinds("v"), [""; 0]);
        assert_eq!(noted_by("w", &after, &after).count(), 0);
    }
}
