//! Drives one recording: what happened goes into `next`, what it asks for is performed, until nothing is to be done now. Every step is noted
//! in the ledger.

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

/// Hands `input` to the task that has the recording in hand, or begins to drive it.
pub fn go_on(parts: &Arc<Parts>, entry: Entry, input: Input) {
    let key = entry.key;
    let Err(input) = parts.hands.tell(key, input) else {
        return;
    };
    let input = match parts.hands.take(key) {
        Some(mailbox) => return begin(parts, entry, input, mailbox),
        // Another task took it in between.
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

/// Drives the recording on from `input` until nothing is to be done now, or the worker is going down.
async fn drive(parts: &Parts, entry: Entry, input: Input, mailbox: &mut Mailbox, left: &Mutex<Left>) {
    let trace = trace_of(&entry);
    // Boxed: each layer around it would hold it on the thread's stack while it is moved there.
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

/// How long the ledger has before the switch is told to keep its file.
const NO_RETURN: Duration = Duration::from_secs(5);

/// How long the ledger has to tell what other workers know.
const KNOWLEDGE: Duration = Duration::from_secs(2);

struct Driver<'a> {
    parts: &'a Parts,
    case: Case,
    lease: Option<Lease>,
    left: &'a Mutex<Left>,
}

impl Driver<'_> {
    /// Takes in what happened, tells what came of it, and notes it.
    async fn step(&mut self, input: Input) -> Next {
        let (parts, before) = (self.parts, self.case.entry.clone());
        self.leave(Some(input.clone()));
        let next = step(&mut self.case, input, parts.now(), &parts.policy);
        let entry = &self.case.entry;
        if *entry != before {
            tell(parts, &before, entry);
            if entry.is_open() {
                // Whoever hears of its end here begins with what is remembered.
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
            // Nobody waits for this: what counts is noted once more at the rest.
            drop(
                parts
                    .ledger
                    .note(entry, self.lease.clone(), parts.config.ledger.linger)
                    .await,
            );
        }
        next
    }

    /// What is left behind, should the next thing panic.
    fn leave(&self, taking: Option<Input>) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if taking.is_none() && left.entry != self.case.entry {
            left.entry = self.case.entry.clone();
        }
        left.taking = taking;
    }

    /// Whether it says that audio is not where it belongs, or that there must be more of it. Another worker may have brought it there, and this one
    /// not heard of it.
    fn is_bad_news(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Announce(Announcement::Outcome(_)) => self.case.entry.delivery().is_none(),
            Effect::Continue => true,
            _ => false,
        }
    }

    /// Takes in what the ledger knows. `None`: the worker is going down.
    async fn learn(&mut self) -> Option<Next> {
        loop {
            if let Some(next) = self.learn_now().await {
                return Some(next);
            }
            self.parts.rest().await?;
        }
    }

    /// The same, if the ledger tells it now.
    async fn learn_now(&mut self) -> Option<Next> {
        let address = address(&self.case.entry);
        let known = tokio::time::timeout(KNOWLEDGE, self.parts.ledger.load(&address));
        let input = match known.await.ok()?.ok()? {
            Some(record) => Input::Known(Box::new(record.entry)),
            None => Input::Due,
        };
        Some(self.step(input).await)
    }

    /// The end that is known now, by its place among the events.
    fn end(&self) -> Option<i64> {
        self.case.entry.ended().map(Told::order)
    }

    /// Takes in what others learnt meanwhile; whether there was something.
    async fn heard(&mut self, mailbox: &mut Mailbox) -> bool {
        let mut heard = false;
        while let Some(input) = mailbox.take_next() {
            self.step(input).await;
            heard = true;
        }
        heard
    }

    /// Takes in an upload that was asked for when this `end` was known. What the switch recorded into the file since then is perhaps not in
    /// it: then the file is left there, and asked for again.
    async fn receive(
        &mut self,
        audio: Audio,
        end: Option<i64>,
        mailbox: &mut Mailbox,
        hand: &mut Option<InHand>,
    ) -> Next {
        self.heard(mailbox).await;
        if audio.disagrees() {
            // Perhaps others were told of a part of it.
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

    /// Performs `effect`; while that takes its time, others are told that the recording is in hand.
    async fn perform(&self, effect: Effect, hand: &mut Option<InHand>) -> Option<Input> {
        let parts = self.parts;
        let lease = parts.config.ledger.lease;
        // Of all effects the largest: boxed, for a thread's stack must hold what is moved about.
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

    /// The point of no return is the switch's deleting its file. Where only the ledger would tell what became of the audio, it must know
    /// before; where a look at the destination tells it too, nobody waits. `None`: the worker is going down.
    async fn safe(&self, effect: Effect) -> Option<Effect> {
        let entry = &self.case.entry;
        // A third party may be taken away, and then nobody can look there; and of a name that is recorded under again, at every bridge, the next
        // worker must know what was let go.
        let once = || entry.order().is_some_and(|order| !order.may_begin_again());
        let plain = entry
            .delivery()
            .is_some_and(|delivery| delivery.destination == Destination::Account && once());
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
            // Nobody waits for that.
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

    /// Lets the ledger have everything before the recording is let go. `false` when the worker is going down before.
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
                // The writer writes what it has before it ends.
                () = parts.stop.cancelled() => return false,
            };
            match noted {
                // What the ledger will never have is no reason to keep it in hand: its writer logs it.
                Noted::Durable | Noted::TooLarge(_) => return true,
                Noted::Not => linger = Duration::ZERO,
            }
            if parts.rest().await.is_none() {
                return false;
            }
        }
    }

    /// The worker is going down: others may go on at once.
    async fn give_back(&self) {
        let note = self
            .parts
            .ledger
            .note(&self.case.entry, Some(self.parts.ledger.no_lease()), Duration::ZERO);
        note.await.within(Duration::from_secs(2)).await;
    }
}

/// Tells what a step brought about.
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
    // A call that was over before it could be recorded is nobody's fault.
    outcome == Outcome::Failed && cause != Cause::CallGone
}

/// A recording that is counted while this worker has it in hand.
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
