//! The driver of a recording: an input goes into `lifecycle::step`, and the effect that it asks for is performed, until nothing must be done
//! now. Every step is noted in the ledger, and the point of no return is here.
//!
//! The driver does no I/O of its own. The worker gives it real services; `tests/simulation` gives it a simulated world.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::entry::Entry;
use crate::entry::fact::{Announcement, Fact, What};
use crate::faults::{Fault, is_back};
use crate::kazoo::dialplan::Control;
use crate::kazoo::time::{Clock, Moment};
use crate::ledger::{Address, Lease, Noted, Receipt, address};
use crate::lifecycle::{Answer, Case, Effect, Hand, Input, Next, Policy, step};
use crate::recording::audio::Audio;
use crate::recording::ending::Told;

use super::common::Interrupted;
use super::in_flight::Mailbox;

mod survive;

pub use survive::survive;

/// What a driver does to the world. Every effect is harmless when it is performed twice.
pub trait Effects: Sync {
    /// An upload whose switch waits for an answer.
    type Upload: Send;

    /// Performs an effect, and returns what came of it, unless it was left undone.
    fn perform(
        &self,
        case: &Case,
        effect: Effect,
        hand: &mut Option<Self::Upload>,
    ) -> impl Future<Output = Result<Input, Interrupted>> + Send;

    /// Answers an upload: the switch must keep its file.
    fn keep(&self, upload: Self::Upload);

    /// Reports that the program panicked on a recording.
    fn panicked(&self, entry: &Entry, why: &str);

    /// Reports what a step brought about.
    fn stepped(&self, before: &Entry, after: &Entry);

    /// Since when this worker receives actions without a break, by its own clock. `None`: it does not now.
    fn receives_since(&self) -> Option<Moment>;
}

/// Where a driver notes what it knows.
pub trait EntryStore: Sync {
    /// The entry as all workers know it. `None`: the ledger does not answer in time.
    fn known(&self, address: &Address) -> impl Future<Output = Option<Option<Entry>>> + Send;

    /// Notes an entry. It is written within `linger`, together with the other notes that arrive meanwhile.
    fn note(&self, entry: &Entry, lease: Option<Lease>, linger: Duration) -> impl Future<Output = Receipt> + Send;

    /// A lease of this worker that starts now.
    fn lease(&self, duration: Duration) -> Lease;

    /// A lease of no worker, which ends any earlier lease.
    fn no_lease(&self) -> Lease;
}

/// What a driver knows of its worker.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    pub policy: &'a Policy,
    pub clock: &'a Clock,
    /// The worker is shutting down.
    pub stop: &'a CancellationToken,
    /// How long a lease lasts.
    pub lease: Duration,
    /// Batch delay of writes that nothing waits for.
    pub linger: Duration,
}

impl Host<'_> {
    fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Waits before another try, unless the worker is shutting down.
    async fn rest(&self) -> Result<(), Interrupted> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Interrupted::ShuttingDown),
            () = tokio::time::sleep(AGAIN) => Ok(()),
        }
    }
}

/// Delay between two tries of what must succeed.
const AGAIN: Duration = Duration::from_secs(1);

/// What a driver that panics leaves behind.
#[derive(Debug)]
struct Left {
    /// The entry after the last successful step.
    entry: Entry,
    /// The input that is being applied.
    taking: Option<Input>,
}

/// Drives the recording from `input` until nothing must be done now, or the worker shuts down.
async fn drive<E: Effects, L: EntryStore>(
    (effects, ledger, host): (&E, &L, Host<'_>),
    entry: Entry,
    input: Input,
    mailbox: &mut Mailbox,
    left: &Mutex<Left>,
) {
    let mut driver = Driver {
        effects,
        ledger,
        host,
        case: Case {
            entry,
            hand: Hand::Empty,
            informed: is_back(Fault::BadNewsUnasked),
        },
        lease: None,
        left,
    };
    let mut hand: Option<E::Upload> = None;
    let mut last: Option<(Effect, usize)> = None;
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
            Next::Ask => match driver.learn_now().await {
                Some(news) => next = news,
                // Until the ledger answers, news from other tasks may come.
                None if driver.host.rest().await.is_ok() => {}
                None => {
                    driver.give_back().await;
                    return;
                }
            },
            Next::Do(effect) => {
                // What came of an effect must change something. Otherwise it would be performed again at once, and without end.
                let about = (effect.clone(), driver.case.entry.facts().count());
                if last.replace(about.clone()) == Some(about) && driver.host.rest().await.is_err() {
                    driver.give_back().await;
                    return;
                }
                if driver.is_bad_news(&effect) {
                    match driver.learn().await {
                        Ok(Next::Do(news)) if news == effect => {}
                        Ok(news) => {
                            next = news;
                            continue;
                        }
                        Err(_) => {
                            driver.give_back().await;
                            return;
                        }
                    }
                }
                if let Some(is_ours) = driver.perhaps_carried_out(&effect) {
                    // The action was perhaps handled before, and what it asks for was undone by a later one: another worker may have stopped
                    // what it began, or unmasked.
                    match driver.learn_now().await {
                        Some(Next::Do(news)) if news == effect => {}
                        Some(news) => {
                            next = news;
                            continue;
                        }
                        None if is_ours => {}
                        None if driver.host.rest().await.is_ok() => {
                            next = driver.step(Input::Due).await;
                            continue;
                        }
                        None => {
                            driver.give_back().await;
                            return;
                        }
                    }
                    if driver.heard(mailbox).await {
                        next = driver.step(Input::Due).await;
                        continue;
                    }
                }
                let end = driver.end();
                let lets_go = effect == Effect::Answer(Answer::Release);
                let input = match driver.safe(effect).await {
                    Ok(_) if lets_go && driver.heard(mailbox).await => {
                        next = driver.step(Input::Due).await;
                        continue;
                    }
                    Ok(effect) => driver.perform(effect, &mut hand).await,
                    Err(interrupted) => Err(interrupted),
                };
                match input {
                    Ok(Input::Received(audio)) => {
                        next = driver.receive(audio, end, mailbox, &mut hand).await;
                    }
                    Ok(input) => next = driver.step(input).await,
                    Err(_) => {
                        driver.give_back().await;
                        return;
                    }
                }
            }
        }
    }
}

/// RabbitMQ gives the actions of a worker that it does not hear of to another worker after twenty seconds or more. So a worker whose ledger does not
/// answer either is still the only one that has an action, if it got the action less than this long ago. If the connection was closed since,
/// RabbitMQ has given the action to another worker at once.
const SURELY_OURS: Duration = Duration::from_secs(15);

/// The clocks of the nodes of a cluster differ by less than this, as a rule.
const CLOCKS_DIFFER: Duration = Duration::from_secs(5);

/// Time limit for the ledger to confirm. After that the switch gets the answer to keep its file.
const NO_RETURN: Duration = Duration::from_secs(5);

/// Whether a start command is to be sent, as far as is known.
fn awaits_command(entry: &Entry) -> bool {
    let has_command = entry.order().is_some_and(|order| order.command.is_some());
    has_command && !entry.is_commanded() && entry.started().is_none()
}

struct Driver<'a, E, L> {
    effects: &'a E,
    ledger: &'a L,
    host: Host<'a>,
    case: Case,
    lease: Option<Lease>,
    left: &'a Mutex<Left>,
}

impl<E: Effects, L: EntryStore> Driver<'_, E, L> {
    /// Applies an input, reports what came of it, and notes it.
    async fn step(&mut self, input: Input) -> Next {
        let (host, before) = (self.host, self.case.entry.clone());
        self.leave(Some(input.clone()));
        let next = step(&mut self.case, input, host.now(), host.policy);
        let entry = &self.case.entry;
        if *entry != before {
            self.effects.stepped(&before, entry);
        }
        self.leave(None);
        let now = host.now();
        let held = self
            .lease
            .as_ref()
            .is_some_and(|lease| lease.until.since(now) > host.lease / 2);
        if *entry != before || !held {
            self.lease = Some(self.ledger.lease(host.lease));
            // A sweep of another worker must not find a start whose command is about to go out, or has just gone out.
            let is_start = awaits_command(&before) || awaits_command(entry);
            let linger = if is_start { Duration::ZERO } else { host.linger };
            // This write is not awaited: `rest` notes everything that counts once more.
            drop(self.ledger.note(entry, self.lease.clone(), linger).await);
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
            _ if is_back(Fault::BadNewsUnasked) => false,
            Effect::Announce(Announcement::Outcome(_)) => self.case.entry.delivery().is_none(),
            Effect::Continue => true,
            _ => false,
        }
    }

    /// Whether this worker is surely the only one that has the action which this command carries out. `None`: the command does no harm when
    /// another worker has sent it, and more, meanwhile.
    fn perhaps_carried_out(&self, effect: &Effect) -> Option<bool> {
        let is_it = |what: &What| match effect {
            Effect::Command => matches!(what, What::Asked(_)),
            Effect::Control {
                what: Control::Stop, ..
            } => false,
            Effect::Control { .. } => matches!(what, What::MaskAsked { .. }),
            _ => false,
        };
        let mut facts = self.case.entry.facts().rev();
        let asked = facts.find(|fact| is_it(&fact.what))?;
        // Another worker's stamp is of another clock, and says that this worker did not get the action first.
        let is_its_own = |fact: &Fact| fact.by == self.host.policy.worker;
        // A start that this worker just heard of shows that RabbitMQ hears this worker, and tells it what other workers do. A mask that was
        // asked for earlier is sent again for this start.
        let begun = self.case.entry.facts().filter(|fact| {
            matches!(fact.what, What::Started { .. }) && !matches!(effect, Effect::Command) && is_its_own(fact)
        });
        let heard = begun.map(|fact| fact.at).max();
        let is_new = heard
            .max(Some(asked.at))
            .is_some_and(|at| at.plus(SURELY_OURS) > self.host.now());
        // The action that begins a recording has the time of its callflow node.
        let differ = match effect {
            Effect::Command => CLOCKS_DIFFER,
            _ => Duration::ZERO,
        };
        let is_held = |since: Moment| since.plus(differ) <= asked.at && asked.at <= self.host.now().plus(differ);
        Some(is_its_own(asked) && is_new && self.effects.receives_since().is_some_and(is_held))
    }

    /// Merges what the ledger knows, unless the worker is shutting down.
    async fn learn(&mut self) -> Result<Next, Interrupted> {
        loop {
            if let Some(next) = self.learn_now().await {
                return Ok(next);
            }
            self.host.rest().await?;
        }
    }

    /// The same, if the ledger answers now.
    async fn learn_now(&mut self) -> Option<Next> {
        let address = address(&self.case.entry);
        let input = match self.ledger.known(&address).await? {
            Some(entry) => Input::Known(Box::new(entry)),
            None => Input::Due,
        };
        let before = std::mem::replace(&mut self.case.informed, true);
        let next = self.step(input).await;
        self.case.informed = before;
        Some(next)
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
        hand: &mut Option<E::Upload>,
    ) -> Next {
        self.heard(mailbox).await;
        if audio.disagrees() {
            // Another worker may have received the end of one of its parts.
            self.learn_now().await;
        }
        if self.end() == end || is_back(Fault::EndNotCompared) {
            return self.step(Input::Received(audio)).await;
        }
        if let Some(upload) = hand.take() {
            self.effects.keep(upload);
        }
        self.step(Input::Due).await
    }

    /// Performs `effect`. Meanwhile it renews the lease, so that other workers see that the recording is in flight.
    async fn perform(&self, effect: Effect, hand: &mut Option<E::Upload>) -> Result<Input, Interrupted> {
        let Host { lease, linger, .. } = self.host;
        // Boxed, because this future is the largest of all, and a thread's stack must hold what is moved.
        let mut performed = Box::pin(self.effects.perform(&self.case, effect, hand));
        loop {
            tokio::select! {
                biased;
                input = &mut performed => return input,
                () = tokio::time::sleep(lease / 3) => {
                    let lease = Some(self.ledger.lease(lease));
                    drop(self.ledger.note(&self.case.entry, lease, linger).await);
                }
            }
        }
    }

    /// The switch's deletion of its file is the point of no return. If only the ledger can say what became of the audio, the ledger must
    /// know it before. If the destination can say it too, the worker does not wait.
    async fn safe(&self, effect: Effect) -> Result<Effect, Interrupted> {
        let entry = &self.case.entry;
        // A server outside of the cluster may be removed from the settings, and then no worker can check there. A name that is recorded
        // again at every bridge is another case: the next worker must know which audio was released.
        let once = || entry.order().is_some_and(|order| !order.may_begin_again());
        let plain = entry
            .delivery()
            .is_some_and(|delivery| delivery.destination.is_own() && !delivery.below_quorum && once());
        let elsewhere = entry
            .delivery()
            .is_some_and(|delivery| !delivery.destination.is_documented_here());
        let lets_go = match effect {
            Effect::Answer(Answer::Release) | Effect::Tidy { .. } | Effect::Unhold => true,
            Effect::Announce(Announcement::Outcome(_)) => elsewhere,
            _ => false,
        };
        // A worker that finds neither the copy in the hold nor this delivery can only park the recording.
        let plain = plain && effect != Effect::Unhold;
        if !lets_go || plain || is_back(Fault::AlwaysSafe) {
            return Ok(effect);
        }
        let receipt = self.ledger.note(entry, self.lease.clone(), Duration::ZERO).await;
        if let Effect::Tidy { .. } | Effect::Unhold | Effect::Announce(_) = effect {
            // No switch waits for this effect, so there is no time limit.
            let durable = tokio::select! {
                biased;
                durable = receipt.durable() => durable,
                () = self.host.stop.cancelled() => false,
            };
            return if durable {
                Ok(effect)
            } else {
                Err(Interrupted::ShuttingDown)
            };
        }
        if receipt.within(NO_RETURN).await {
            Ok(effect)
        } else {
            Ok(Effect::Answer(Answer::Keep))
        }
    }

    /// Writes everything into the ledger before this task lets the recording go. `false` when the worker shuts down before that.
    async fn rest(&self, nothing_to_wait_for: bool) -> bool {
        let mut linger = if nothing_to_wait_for {
            self.host.linger
        } else {
            Duration::ZERO
        };
        loop {
            let lease = Some(self.ledger.no_lease());
            let receipt = self.ledger.note(&self.case.entry, lease, linger).await;
            let noted = tokio::select! {
                biased;
                noted = receipt.noted() => noted,
                // The ledger's writer writes what it has before it ends.
                () = self.host.stop.cancelled() => return false,
            };
            match noted {
                // An entry that the ledger will never take is no reason to keep it in flight. The ledger's writer logs it.
                Noted::Durable | Noted::TooLarge(_) => return true,
                Noted::Not => linger = Duration::ZERO,
            }
            if self.host.rest().await.is_err() {
                return false;
            }
        }
    }

    /// The worker is shutting down: other workers may resume the recording at once.
    async fn give_back(&self) {
        let lease = Some(self.ledger.no_lease());
        let receipt = self.ledger.note(&self.case.entry, lease, Duration::ZERO).await;
        receipt.within(Duration::from_secs(2)).await;
    }
}

#[cfg(test)]
mod tests;
