//! Recordings in flight: each has a task, which runs the driver with this worker's services, and reports what its steps bring about.

use std::sync::Arc;
use std::time::Duration;

use crate::entry::Entry;
use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::What;
use crate::kazoo::dialplan::Control;
use crate::ledger::{Address, Lease, Ledger, Receipt};
use crate::recording::controls::Why;
use crate::telemetry::events::{
    ControlNotObeyed, RecordingClosed, RecordingParked, RecordingsInHand, StopUnconfirmed, TaskPanicked,
};
use crate::telemetry::trace::{self, Stage, Trace};

use super::alerts::Kind;
use super::driver::{self, Effects, EntryStore, Host};
use super::hands::Mailbox;
use super::perform::{InHand, Parts};
use crate::lifecycle::{Answer, Case, Effect, Input};

/// Passes `input` to the task that has the recording in flight, or starts to drive it.
pub fn go_on(parts: &Arc<Parts>, entry: Entry, input: Input) {
    let key = entry.key;
    let Err(input) = parts.hands.tell(key, input) else {
        return;
    };
    let input = match parts.hands.take(key) {
        Some(mailbox) => return begin(parts, entry, input, mailbox),
        // Another task took the recording in the meantime.
        None => parts.hands.tell(key, input),
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
pub fn begin(parts: &Arc<Parts>, entry: Entry, input: Input, mailbox: Mailbox) {
    let (parts, tasks) = (Arc::clone(parts), parts.tasks.clone());
    tasks.spawn(async move { survive(&parts, entry, input, mailbox).await });
}

/// Drives a recording in its own trace.
async fn survive(parts: &Parts, entry: Entry, input: Input, mailbox: Mailbox) {
    let _counted = Counted::new();
    let trace = trace_of(&entry);
    // Boxed: otherwise each layer around it would hold it on the thread's stack while it is moved there.
    let driving = Box::pin(driver::survive(
        (parts, &parts.ledger, parts.host()),
        entry,
        input,
        mailbox,
    ));
    trace::within(Stage::Recording, trace, driving).await;
}

/// The trace of the action that asked for the recording.
pub fn trace_of(entry: &Entry) -> Option<Trace> {
    Trace::read(entry.order()?.trace.as_deref()?, None)
}

impl Parts {
    fn host(&self) -> Host<'_> {
        Host {
            policy: &self.common.policy,
            clock: &self.common.clock,
            stop: &self.common.stop,
            lease: self.common.config.ledger.lease,
            linger: self.common.config.ledger.linger,
        }
    }
}

impl Effects for Parts {
    type Upload = InHand;

    async fn perform(&self, case: &Case, effect: Effect, hand: &mut Option<InHand>) -> Option<Input> {
        Self::perform(self, case, effect, hand).await
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
        tell(self, before, after);
        if after.is_open() {
            // A handler that receives its end in this worker starts from what is remembered.
            self.registry.remember(after);
        }
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

/// Reports what a step brought about.
fn tell(parts: &Parts, before: &Entry, entry: &Entry) {
    let call_id = &entry.call_id;
    let account_id = entry.account_id().unwrap_or("");
    let media_id = entry.order().map_or("", |order| order.media_id.as_str());
    let alarmed = |entry: &Entry| entry.facts().iter().any(|fact| fact.what == What::StopUnconfirmed);
    if alarmed(entry) && !alarmed(before) {
        StopUnconfirmed {
            call_id,
            account_id,
            media_id,
        }
        .emit();
        parts
            .alerts
            .raise(entry, Kind::NotObeyed(Control::Stop, Why::Unconfirmed));
    }
    for fact in entry.facts().iter().filter(|fact| !before.facts().contains(fact)) {
        if let What::NotObeyed { what, why, .. } = fact.what {
            ControlNotObeyed {
                call_id,
                account_id,
                media_id,
                control: what.name(),
                why: why.name(),
            }
            .emit();
            parts.alerts.raise(entry, Kind::NotObeyed(what, why));
        }
    }
    if let (Some(cause), None) = (entry.parked(), before.parked()) {
        RecordingParked {
            call_id,
            account_id,
            media_id,
            cause: cause.name(),
        }
        .emit();
        parts.alerts.raise(entry, Kind::Ended(Outcome::Parked, cause));
    }
    if let (true, false, Some((outcome, cause))) = (entry.is_closed(), before.is_closed(), entry.outcome()) {
        parts.registry.close(entry.key);
        RecordingClosed {
            call_id,
            account_id,
            media_id,
            outcome: outcome.name(),
            cause: cause.name(),
            took: entry
                .ended_exactly_at()
                .map_or_else(Default::default, |at| parts.common.now().since(at)),
            alarming: is_alarming(outcome, cause),
        }
        .emit();
        if is_alarming(outcome, cause) {
            parts.alerts.raise(entry, Kind::Ended(outcome, cause));
        }
    }
}

/// Whether an outcome means that audio which should be there is not.
fn is_alarming(outcome: Outcome, cause: Cause) -> bool {
    // A call that was over before it could be recorded is no fault.
    outcome == Outcome::Failed && cause != Cause::CallGone
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
