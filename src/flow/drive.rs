//! Drives one recording. An input goes into `step`, and the effect that `step` asks for is performed, until nothing must be done now. Every
//! step is noted in the ledger.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::entry::Entry;
use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::{Announcement, Destination, What};
use crate::kazoo::dialplan::Control;
use crate::ledger::{Lease, Noted, address};
use crate::recording::audio::Audio;
use crate::recording::controls::Why;
use crate::recording::ending::Told;
use crate::telemetry::events::{ControlNotObeyed, RecordingClosed, RecordingParked, RecordingsInHand, StopUnconfirmed};
use crate::telemetry::trace::{self, Stage, Trace};

use super::alerts::Kind;
use super::hands::Mailbox;
use super::perform::{InHand, Parts};
use crate::lifecycle::{Answer, Case, Effect, Hand, Input, Next, step};

mod survive;

use survive::Left;
pub use survive::begin;

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

/// Drives the recording from `input` until nothing must be done now, or the worker shuts down.
async fn drive(parts: &Parts, entry: Entry, input: Input, mailbox: &mut Mailbox, left: &Mutex<Left>) {
    let trace = trace_of(&entry);
    // Boxed: otherwise each layer around it would hold it on the thread's stack while it is moved there.
    let driving = Box::pin(drive_on(parts, entry, input, mailbox, left));
    trace::within(Stage::Recording, trace, driving).await;
}

/// The trace of the action that asked for the recording.
pub fn trace_of(entry: &Entry) -> Option<Trace> {
    Trace::read(entry.order()?.trace.as_deref()?, None)
}

async fn drive_on(parts: &Parts, entry: Entry, input: Input, mailbox: &mut Mailbox, left: &Mutex<Left>) {
    let _counted = Counted::new();
    let mut driver = Driver {
        parts,
        case: Case {
            entry,
            hand: Hand::Empty,
        },
        lease: None,
        left,
    };
    let mut hand: Option<InHand> = None;
    let mut next = driver.step(input).await;
    loop {
        while let Some(input) = mailbox.take_next() {
            next = driver.step(input).await;
        }
        match next {
            Next::Wait(_) | Next::Idle => {
                if !driver.rest(next == Next::Idle).await {
                    return;
                }
                match mailbox.let_go() {
                    None => return,
                    Some(input) => next = driver.step(input).await,
                }
            }
            Next::Do(effect) => {
                if driver.is_bad_news(&effect) {
                    match driver.learn().await {
                        Some(Next::Do(news)) if news == effect => {}
                        Some(news) => {
                            next = news;
                            continue;
                        }
                        None => {
                            driver.give_back().await;
                            return;
                        }
                    }
                }
                if effect == Effect::Command {
                    // The action was perhaps handled before. Another worker may have stopped what it began: that must not begin again.
                    match driver.learn_now().await {
                        Some(news) if news != Next::Do(Effect::Command) => {
                            next = news;
                            continue;
                        }
                        _ => {}
                    }
                    if driver.heard(mailbox).await {
                        next = driver.step(Input::Due).await;
                        continue;
                    }
                }
                let end = driver.end();
                let lets_go = effect == Effect::Answer(Answer::Release);
                let input = match driver.safe(effect).await {
                    Some(_) if lets_go && driver.heard(mailbox).await => {
                        next = driver.step(Input::Due).await;
                        continue;
                    }
                    Some(effect) => driver.perform(effect, &mut hand).await,
                    None => None,
                };
                match input {
                    Some(Input::Received(audio)) => {
                        next = driver.receive(audio, end, mailbox, &mut hand).await;
                    }
                    Some(input) => next = driver.step(input).await,
                    None => {
                        driver.give_back().await;
                        return;
                    }
                }
            }
        }
    }
}

/// Time limit for the ledger to confirm. After that the switch gets the answer to keep its file.
const NO_RETURN: Duration = Duration::from_secs(5);

/// Time limit for the ledger's answer to what other workers know.
const KNOWLEDGE: Duration = Duration::from_secs(2);

struct Driver<'a> {
    parts: &'a Parts,
    case: Case,
    lease: Option<Lease>,
    left: &'a Mutex<Left>,
}

impl Driver<'_> {
    /// Applies an input, reports what came of it, and notes it.
    async fn step(&mut self, input: Input) -> Next {
        let (parts, before) = (self.parts, self.case.entry.clone());
        self.leave(Some(input.clone()));
        let next = step(&mut self.case, input, parts.now(), &parts.policy);
        let entry = &self.case.entry;
        if *entry != before {
            tell(parts, &before, entry);
            if entry.is_open() {
                // A handler that receives its end in this worker starts from what is remembered.
                parts.registry.remember(entry);
            }
        }
        self.leave(None);
        let now = parts.now();
        let held = self
            .lease
            .as_ref()
            .is_some_and(|lease| lease.until.since(now) > parts.config.ledger.lease / 2);
        if *entry != before || !held {
            self.lease = Some(parts.ledger.lease(parts.config.ledger.lease));
            // This write is not awaited: `rest` notes everything that counts once more.
            drop(
                parts
                    .ledger
                    .note(entry, self.lease.clone(), parts.config.ledger.linger)
                    .await,
            );
        }
        next
    }

    /// What is left behind if the next step panics.
    fn leave(&self, taking: Option<Input>) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if taking.is_none() && left.entry != self.case.entry {
            left.entry = self.case.entry.clone();
        }
        left.taking = taking;
    }

    /// Whether the effect says that audio is not at its destination, or that more audio must exist. Another worker may have delivered the
    /// audio without this worker knowing.
    fn is_bad_news(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Announce(Announcement::Outcome(_)) => self.case.entry.delivery().is_none(),
            Effect::Continue => true,
            _ => false,
        }
    }

    /// Merges what the ledger knows. `None`: the worker is shutting down.
    async fn learn(&mut self) -> Option<Next> {
        loop {
            if let Some(next) = self.learn_now().await {
                return Some(next);
            }
            self.parts.rest().await?;
        }
    }

    /// The same, if the ledger answers now.
    async fn learn_now(&mut self) -> Option<Next> {
        let address = address(&self.case.entry);
        let known = tokio::time::timeout(KNOWLEDGE, self.parts.ledger.load(&address));
        let input = match known.await.ok()?.ok()? {
            Some(record) => Input::Known(Box::new(record.entry)),
            None => Input::Due,
        };
        Some(self.step(input).await)
    }

    /// The end that is known now, by its position among the events.
    fn end(&self) -> Option<i64> {
        self.case.entry.ended().map(Told::order)
    }

    /// Applies the inputs that arrived from other tasks meanwhile. Returns whether there were any.
    async fn heard(&mut self, mailbox: &mut Mailbox) -> bool {
        let mut heard = false;
        while let Some(input) = mailbox.take_next() {
            self.step(input).await;
            heard = true;
        }
        heard
    }

    /// Applies an upload that was asked for when this `end` was known. What the switch recorded into the file since then may be missing in
    /// it. Then the file is left on the switch, and asked for again.
    async fn receive(
        &mut self,
        audio: Audio,
        end: Option<i64>,
        mailbox: &mut Mailbox,
        hand: &mut Option<InHand>,
    ) -> Next {
        self.heard(mailbox).await;
        if audio.disagrees() {
            // Another worker may have received the end of one of its parts.
            self.learn_now().await;
        }
        if self.end() == end {
            return self.step(Input::Received(audio)).await;
        }
        if let Some(held) = hand.take() {
            held.upload.answer(Answer::Keep);
        }
        self.step(Input::Due).await
    }

    /// Performs `effect`. Meanwhile it renews the lease, so that other workers see that the recording is in flight.
    async fn perform(&self, effect: Effect, hand: &mut Option<InHand>) -> Option<Input> {
        let parts = self.parts;
        let lease = parts.config.ledger.lease;
        // Boxed, because this future is the largest of all, and a thread's stack must hold what is moved.
        let mut performed = Box::pin(parts.perform(&self.case, effect, hand));
        loop {
            tokio::select! {
                input = &mut performed => return input,
                () = tokio::time::sleep(lease / 3) => {
                    let lease = Some(parts.ledger.lease(lease));
                    drop(parts.ledger.note(&self.case.entry, lease, parts.config.ledger.linger).await);
                }
            }
        }
    }

    /// The switch's deletion of its file is the point of no return. If only the ledger can say what became of the audio, the ledger must
    /// know it before. If the destination can say it too, the worker does not wait. `None`: the worker is shutting down.
    async fn safe(&self, effect: Effect) -> Option<Effect> {
        let entry = &self.case.entry;
        // A third party may be removed from the settings, and then no worker can check there. A name that is recorded again at every bridge
        // is another case: the next worker must know which audio was released.
        let once = || entry.order().is_some_and(|order| !order.may_begin_again());
        let plain = entry
            .delivery()
            .is_some_and(|delivery| delivery.destination == Destination::Account && !delivery.below_quorum && once());
        let elsewhere = entry
            .delivery()
            .is_some_and(|delivery| delivery.destination == Destination::ThirdParty);
        let lets_go = match effect {
            Effect::Answer(Answer::Release) | Effect::Tidy { .. } => true,
            Effect::Announce(Announcement::Outcome(_)) => elsewhere,
            _ => false,
        };
        if !lets_go || plain {
            return Some(effect);
        }
        let receipt = self.parts.ledger.note(entry, self.lease.clone(), Duration::ZERO).await;
        if let Effect::Tidy { .. } | Effect::Announce(_) = effect {
            // No switch waits for this effect, so there is no time limit.
            let durable = tokio::select! {
                durable = receipt.durable() => durable,
                () = self.parts.stop.cancelled() => false,
            };
            return durable.then_some(effect);
        }
        if receipt.within(NO_RETURN).await {
            Some(effect)
        } else {
            Some(Effect::Answer(Answer::Keep))
        }
    }

    /// Writes everything into the ledger before this task lets the recording go. `false` when the worker shuts down before that.
    async fn rest(&self, nothing_to_wait_for: bool) -> bool {
        let parts = self.parts;
        let mut linger = if nothing_to_wait_for {
            parts.config.ledger.linger
        } else {
            Duration::ZERO
        };
        loop {
            let lease = Some(parts.ledger.no_lease());
            let receipt = parts.ledger.note(&self.case.entry, lease, linger).await;
            let noted = tokio::select! {
                noted = receipt.noted() => noted,
                // The ledger's writer writes what it has before it ends.
                () = parts.stop.cancelled() => return false,
            };
            match noted {
                // An entry that the ledger will never take is no reason to keep it in flight. The ledger's writer logs it.
                Noted::Durable | Noted::TooLarge(_) => return true,
                Noted::Not => linger = Duration::ZERO,
            }
            if parts.rest().await.is_none() {
                return false;
            }
        }
    }

    /// The worker is shutting down: other workers may resume the recording at once.
    async fn give_back(&self) {
        let note = self
            .parts
            .ledger
            .note(&self.case.entry, Some(self.parts.ledger.no_lease()), Duration::ZERO);
        note.await.within(Duration::from_secs(2)).await;
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
                .map_or_else(Default::default, |at| parts.now().since(at)),
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
