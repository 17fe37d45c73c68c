//! Performs one effect, and returns what came of it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::amqp::{Consumers, Publisher, Requests, Room};
use crate::couch::Couch;
use crate::destination::Source;
use crate::destination::decide::{Decision, Ending, Undecided, decide};
use crate::destination::hold::Hold;
use crate::destination::http::Http;
use crate::destination::modb;
use crate::destination::servers::Servers;
use crate::destination::targets::Targets;
use crate::entry::Entry;
use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::{Destination, Fact, What};
use crate::ingest::{Ingest, Upload};
use crate::kazoo::time::Moment;
use crate::ledger::{Ledger, address};
use crate::recording::carry::Seal;
use crate::recording::order::Url;
use crate::system_config::{Accounts, Plan, SystemConfig};
use crate::telemetry::events::HoldRefused;
use crate::telemetry::trace::{self, Stage};

use super::alerts::Alerts;
use super::alive::Alive;
use super::common::Common;
use super::crash::Crash;
use super::hands::Hands;
use super::notices::{Outbox, Replaced};
use super::pace::{Pace, Pass};
use super::registry::Registry;
use super::still::Look;
use crate::lifecycle::{Answer, Case, Effect, Input};

/// What the flow works with. It is built once, and shared by all tasks.
pub struct Parts {
    pub common: Arc<Common>,
    pub seal: Seal,
    pub publisher: Publisher,
    pub consumers: Consumers,
    pub requests: Requests,
    /// The memory limit for decoding messages.
    pub room: Room,
    pub couch: Couch,
    pub system_config: SystemConfig,
    pub ingest: Ingest,
    pub ledger: Ledger,
    pub hold: Hold,
    pub registry: Registry,
    pub replaced: Replaced,
    pub outbox: Outbox,
    pub hands: Hands,
    /// The other workers, according to their heartbeats.
    pub alive: Alive,
    pub pace: Pace,
    /// When this worker started.
    pub begun: tokio::time::Instant,
    /// Slots for uploads from each switch: every upload holds a thread of a live media server.
    pub switches: Slots,
    /// Slots for uploads to each host.
    pub hosts: Slots,
    /// Slots for uploads of a switch that go on to a host other than the cluster's own database while the switch waits. `outward` limits
    /// all of them, and `shares` those for one host, or one account. What exceeds a limit goes into the hold, so that no slow host takes
    /// all slots of a switch.
    pub outward: Slots,
    pub shares: Slots,
    /// Uploads to users' URLs, through the SSRF filter.
    pub users: Http,
    /// Uploads to servers that the operator named.
    pub cluster: Http,
    pub accounts: Accounts,
    pub servers: Servers,
    pub targets: Targets,
    pub whole: modb::Whole,
    /// Alerts for Kazoo's operators.
    pub alerts: Alerts,
    pub crash: Crash,
    /// Tasks that have a recording in flight.
    pub tasks: TaskTracker,
}

/// A limited number of slots for each name.
pub struct Slots {
    each: usize,
    gates: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Names for which too many tasks waited, until no task waits for them.
    crowded: Mutex<HashSet<String>>,
}

/// Whether too many tasks wait for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crowded {
    No,
    Newly,
    Still,
}

/// Recordings that wait in this worker for a slot of one switch. Further ones wait in the ledger.
const WAITING_EACH: usize = 64;

/// The largest number of names that are remembered: users' URLs can name any number of hosts.
const MOST_NAMES: usize = 1024;

impl Slots {
    pub fn new(each: usize) -> Self {
        Self {
            each,
            gates: Mutex::default(),
            crowded: Mutex::default(),
        }
    }

    /// Waits for a slot.
    pub async fn slot(&self, name: &str) -> Option<OwnedSemaphorePermit> {
        self.gate(name).acquire_owned().await.ok()
    }

    /// Whether as many tasks as may wait for a slot of that name wait for one already.
    pub fn crowded(&self, name: &str) -> Crowded {
        let waiting = self.waiting(name);
        let mut crowded = self.crowded.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting < WAITING_EACH {
            if waiting == 0 {
                crowded.remove(name);
            }
            return Crowded::No;
        }
        if crowded.len() < MOST_NAMES && crowded.insert(name.to_owned()) {
            return Crowded::Newly;
        }
        Crowded::Still
    }

    fn waiting(&self, name: &str) -> usize {
        // The map and this function have one reference each. Further references belong to tasks that have a slot, or wait for one.
        Arc::strong_count(&self.gate(name)).saturating_sub(2 + self.each)
    }

    /// A slot, if one is free now.
    pub fn free_slot(&self, name: &str) -> Option<OwnedSemaphorePermit> {
        self.gate(name).try_acquire_owned().ok()
    }

    fn gate(&self, name: &str) -> Arc<Semaphore> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if gates.len() >= MOST_NAMES && !gates.contains_key(name) {
            // Keeps the gates that a task uses or waits for.
            gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        }
        Arc::clone(
            gates
                .entry(name.to_owned())
                .or_insert_with(|| Arc::new(Semaphore::new(self.each))),
        )
    }
}

/// An upload in flight, and the switch's slot that it holds.
pub struct InHand {
    pub upload: Upload,
    /// The state of the call before this file was asked for.
    look: Look,
    _slot: OwnedSemaphorePermit,
}

impl InHand {
    pub fn new(upload: Upload, look: Look, slot: OwnedSemaphorePermit) -> Self {
        Self {
            upload,
            look,
            _slot: slot,
        }
    }
}

/// Time limit for the ledger's answer to what it knows of an order.
const KNOWLEDGE: Duration = Duration::from_secs(3);

/// How often the ledger is asked again for an order that it does not know, before its settings count as lost.
const LOOKS_FOR_ORDER: usize = 3;

impl Parts {
    pub fn now(&self) -> Moment {
        self.common.clock.now()
    }

    /// A fact that this worker saw now.
    pub fn fact(&self, what: What) -> Fact {
        Fact {
            at: self.common.now(),
            by: self.common.policy.worker.clone(),
            what,
        }
    }

    /// Performs `effect`. `None`: the worker is shutting down, and left the effect undone.
    pub async fn perform(&self, case: &Case, effect: Effect, hand: &mut Option<InHand>) -> Option<Input> {
        self.crash.step(Box::pin(self.act(case, effect, hand))).await
    }

    async fn act(&self, case: &Case, effect: Effect, hand: &mut Option<InHand>) -> Option<Input> {
        match effect {
            Effect::Command => Box::pin(self.command(&case.entry)).await,
            Effect::Control { what, n } => Box::pin(self.control(&case.entry, what, n)).await,
            Effect::LookForChannel { n } => Box::pin(self.look_for_channel(&case.entry, n)).await,
            Effect::Probe { n, attempt, node, path } => Box::pin(self.probe(case, n, attempt, &node, &path)).await,
            Effect::Decide => Box::pin(self.decide(case)).await,
            Effect::Collect { attempt, node, path } => {
                let collecting = Box::pin(self.collect(case, attempt, &node, &path, hand));
                trace::within(Stage::Collect, trace::current(), collecting).await
            }
            Effect::Document { attempt, destination } => {
                Some(Box::pin(self.document(case, attempt, destination)).await)
            }
            Effect::Deliver { attempt, destination } => {
                let delivering = Box::pin(self.deliver(case, attempt, destination, hand.as_ref()));
                Some(trace::within(Stage::Delivery, trace::current(), delivering).await)
            }
            Effect::Complete { attempt, destination } => {
                Some(Box::pin(self.complete(case, attempt, destination)).await)
            }
            Effect::ReadBack { n } => Some(Box::pin(self.read_back(case, n)).await),
            Effect::Amend { n } => Some(Box::pin(self.amend(case, n)).await),
            Effect::Mark { n, cause } => Some(Box::pin(self.mark(case, n, cause)).await),
            Effect::Hold => Some(Box::pin(self.put_into_hold(case, hand.as_ref())).await),
            Effect::Unhold => Some(Box::pin(self.take_out_of_hold(case)).await),
            Effect::Answer(answer) => {
                if let Some(held) = hand.take() {
                    // The point of no return: exactly this audio must be safe, whatever else is known of the recording.
                    let entry = &case.entry;
                    let safe = entry.is_safe(&held.upload.audio.digests) || entry.is_unwanted();
                    let answer = match answer {
                        Answer::Release if safe && self.is_still(entry, &held.look, &held.upload.audio).await => {
                            Answer::Release
                        }
                        _ => Answer::Keep,
                    };
                    if answer == Answer::Release {
                        self.ingest.remember_safe(case.entry.key, held.upload.audio.written());
                    }
                    if !held.upload.answer(answer) {
                        // The switch has given up, or got the answer to keep its file. The audio is safe, and a worker asks for the file
                        // once more to release it.
                        return Some(Input::Answered(Answer::Keep));
                    }
                    return Some(Input::Answered(answer));
                }
                Some(Input::Answered(answer))
            }
            Effect::Tidy { n, node, path } => Box::pin(self.tidy(case, n, &node, &path)).await,
            Effect::Continue => Box::pin(self.hand_on(case)).await,
            Effect::Separate { name } => Box::pin(self.separate(case, name)).await,
            Effect::Announce(announcement) => Box::pin(self.announce(case, announcement)).await,
        }
    }

    async fn decide(&self, case: &Case) -> Option<Input> {
        let entry = &case.entry;
        let mut order = entry.order()?.clone();
        let account_id = entry.account_id().unwrap_or_default();
        let n = entry.next_number("retried");
        if order.url == Url::Lost {
            match self.known_order(case).await {
                Ok(Some(known)) => return Some(known),
                // The worker that began the recording writes its order within moments, or the order is on its way in the journal.
                Ok(None) if n == 1 && entry.postponed().count() < LOOKS_FOR_ORDER => {
                    return Some(self.undecided(case, &Undecided::Ledger));
                }
                Ok(None) => {}
                Err(undecided) => return Some(self.undecided(case, &undecided)),
            }
        }
        if n > 1 && order.url == Url::Lost {
            // An operator who knows that the URL is lost retried the recording. It goes where it would have gone without a URL.
            order.url = Url::None;
        }
        let media = self.system_config.current();
        let plan = match order.url {
            Url::None => self.accounts.plan(account_id).await,
            Url::Given(_) | Url::Lost => Plan::None,
        };
        let destination = match decide(&order, media.as_ref(), &plan) {
            Ok(Decision::Account) => Destination::Account,
            Ok(Decision::ThirdParty(_)) => Destination::ThirdParty,
            Ok(Decision::StoragePlan(_)) => Destination::StoragePlan,
            // A URL that cannot be served is refused when it is tried: its audio is kept by then.
            Ok(Decision::Url(_) | Decision::Conclude(Ending::UnusableUrl(_) | Ending::UrlLost)) => Destination::Url,
            // The file on the switch is released, so the copy in the hold is the only one. Only an operator may discard it.
            // So it may be where no worker wrote the release down.
            Ok(Decision::Conclude(Ending::StoringDisabled)) if entry.held().is_some() => {
                return Some(Input::Fact(What::Parked {
                    n: entry.next_rest(),
                    cause: Cause::Undecided,
                }));
            }
            Ok(Decision::Conclude(Ending::StoringDisabled)) => {
                return Some(Input::Fact(What::Concluded {
                    outcome: Outcome::Discarded,
                    cause: Cause::StoringDisabled,
                }));
            }
            Err(undecided) => return Some(self.undecided(case, &undecided)),
        };
        // Kazoo would not count an attempt while our own database is down.
        let attempts = match (destination, &media) {
            (Destination::Account, _) | (_, None) => None,
            (_, Some(media)) => self.accounts.storage_retry_times(account_id, media).await,
        };
        Some(Input::Fact(What::Decided {
            n,
            destination,
            attempts,
        }))
    }

    /// What the ledger knows of a recording whose order is uncertain here, if the ledger's order is better. The worker that began the
    /// recording may have written it since.
    async fn known_order(&self, case: &Case) -> Result<Option<Input>, Undecided> {
        let address = address(&case.entry);
        let known = tokio::time::timeout(KNOWLEDGE, self.ledger.load(&address)).await;
        let Ok(Ok(record)) = known else {
            return Err(Undecided::Ledger);
        };
        let known = record.map(|record| record.entry);
        let is_better = |known: &Entry| {
            let all = case.entry.clone().merge(known.clone());
            all.order().is_some_and(|order| order.url != Url::Lost)
        };
        Ok(known.filter(is_better).map(|known| Input::Known(Box::new(known))))
    }

    /// A setting that is unknown is not replaced by its default. The default could throw the recording away, or put it where it must not
    /// go.
    fn undecided(&self, case: &Case, why: &Undecided) -> Input {
        tracing::warn!(event = "destination_undecided", call_id = case.entry.call_id, %why, "destination undecided, retrying");
        let before = case.entry.postponed().count();
        self.common.postponed_by_schedule(case, before, why.to_string())
    }

    async fn put_into_hold(&self, case: &Case, hand: Option<&InHand>) -> Input {
        let Some(hand) = hand else { return Input::HoldRefused };
        let (audio, source) = (&hand.upload.audio, Source::spooled(hand.upload.file.clone()));
        match self
            .hold
            .put(&address(&case.entry), self.common.now(), audio, &source)
            .await
        {
            Ok(holding) => Input::Fact(What::Held {
                n: case.entry.next_hold(),
                holding,
            }),
            Err(error) => {
                HoldRefused {
                    call_id: &case.entry.call_id,
                    media_id: case.entry.order().map_or("", |order| order.media_id.as_str()),
                    reason: error.reason(),
                    why: &error.to_string(),
                }
                .emit();
                Input::HoldRefused
            }
        }
    }

    async fn take_out_of_hold(&self, case: &Case) -> Input {
        if let Some(holding) = case.entry.held()
            && let Err(error) = self.hold.remove(holding).await
        {
            // Then the copy is dropped with the database of its day.
            tracing::warn!(event = "hold_not_cleared", call_id = case.entry.call_id, %error, "copy not removed from the hold");
        }
        Input::Fact(What::Unheld {
            n: case.entry.next_number("held") - 1,
        })
    }

    /// Waits until a message may go to a queue of Kazoo's. The caller must keep the returned value until the message is there.
    pub async fn keep_pace(&self, queue: &str) -> Pass {
        self.pace.keep(queue, || self.publisher.depth(queue)).await
    }

    /// The same without waiting: `None` when there is no room at once.
    pub fn pass_at_once(&self, queue: &str) -> Option<Pass> {
        self.pace.at_once(queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn so_many_wait_for_a_slot_of_a_switch_and_the_others_rest_elsewhere() {
        let slots = Arc::new(Slots::new(2));
        let held = [slots.slot("fs1").await, slots.slot("fs1").await];
        assert_eq!(slots.crowded("fs1"), Crowded::No, "all slots are taken, and none waits");
        let wait = |slots: Arc<Slots>| async move { drop(slots.slot("fs1").await) };
        let waiting: Vec<_> = (0..WAITING_EACH)
            .map(|_| tokio::spawn(wait(Arc::clone(&slots))))
            .collect();
        while slots.waiting("fs1") < WAITING_EACH {
            tokio::task::yield_now().await;
        }
        assert_eq!(slots.crowded("fs1"), Crowded::Newly);
        assert_eq!(slots.crowded("fs1"), Crowded::Still, "that is logged once");
        assert_eq!(slots.crowded("fs2"), Crowded::No, "and is nothing to another switch");
        drop(held);
        for one in waiting {
            one.await.unwrap();
        }
        assert_eq!(slots.crowded("fs1"), Crowded::No);
    }
}
