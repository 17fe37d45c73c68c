//! Does one effect, and tells what came of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::amqp::{Consumers, Publisher, Requests};
use crate::config::Config;
use crate::couch::Couch;
use crate::destination;
use crate::destination::hold::Hold;
use crate::entry::fact::What;
use crate::ingest::{Answer, Ingest, Upload};
use crate::kazoo::envelope::Sender;
use crate::kazoo::time::{Clock, Moment};
use crate::ledger::{Ledger, address};
use crate::recording::carry::Seal;
use crate::system_config::SystemConfig;

use super::hands::Hands;
use super::next::{Case, Effect, Input, Policy};
use super::notices::Replaced;
use super::pace::Pace;
use super::registry::Registry;

/// What the flow works with. Made once, shared by all.
pub struct Parts {
    pub config: Config,
    pub sender: Sender,
    pub clock: Clock,
    pub seal: Seal,
    pub policy: Policy,
    pub publisher: Publisher,
    pub consumers: Consumers,
    pub requests: Requests,
    pub couch: Couch,
    pub system_config: SystemConfig,
    pub ingest: Ingest,
    pub ledger: Ledger,
    pub hold: Hold,
    pub registry: Registry,
    pub replaced: Replaced,
    pub hands: Hands,
    pub pace: Pace,
    pub switches: Switches,
    /// Tasks that have a recording in hand.
    pub tasks: TaskTracker,
    /// Going down: nothing new is begun, and nobody waits for later.
    pub stop: CancellationToken,
}

/// The slots of each switch: every upload holds a thread of a live media server.
pub struct Switches {
    per_switch: usize,
    gates: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Switches {
    pub fn new(per_switch: usize) -> Self {
        Self {
            per_switch,
            gates: Mutex::default(),
        }
    }

    pub async fn slot(&self, node: &str) -> Option<OwnedSemaphorePermit> {
        let gate = {
            let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(
                gates
                    .entry(node.to_owned())
                    .or_insert_with(|| Arc::new(Semaphore::new(self.per_switch))),
            )
        };
        gate.acquire_owned().await.ok()
    }
}

/// An upload in hand, and the switch's slot that it holds.
pub struct InHand {
    pub upload: Upload,
    _slot: OwnedSemaphorePermit,
}

impl InHand {
    pub fn new(upload: Upload, slot: OwnedSemaphorePermit) -> Self {
        Self { upload, _slot: slot }
    }
}

/// How long an effect that must succeed rests between tries.
pub const AGAIN: Duration = Duration::from_secs(1);

impl Parts {
    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Does `effect`. `None`: the worker is going down, and it was left undone.
    pub async fn perform(&self, case: &Case, effect: Effect, hand: &mut Option<InHand>) -> Option<Input> {
        match effect {
            Effect::Command => self.command(&case.entry).await,
            Effect::Control { what, n } => self.control(&case.entry, what, n).await,
            Effect::LookForChannel { n } => self.look_for_channel(&case.entry, n).await,
            Effect::Probe { n, attempt, node, path } => self.probe(case, n, attempt, &node, &path).await,
            Effect::Decide => self.decide(case).await,
            Effect::Collect { attempt, node, path } => self.collect(case, attempt, &node, &path, hand).await,
            Effect::Document { attempt, destination } => Some(self.document(case, attempt, destination).await),
            Effect::Deliver { attempt, destination } => {
                Some(self.deliver(case, attempt, destination, hand.as_ref()).await)
            }
            Effect::Complete { attempt, destination } => Some(self.complete(case, attempt, destination).await),
            Effect::Hold => Some(self.put_into_hold(case, hand.as_ref()).await),
            Effect::Unhold => Some(self.take_out_of_hold(case).await),
            Effect::Answer(answer) => {
                if answer == Answer::Release {
                    self.ingest.remember_safe(case.entry.key);
                }
                if let Some(held) = hand.take() {
                    held.upload.answer(answer);
                }
                Some(Input::Answered)
            }
            Effect::Announce(announcement) => self.announce(case, announcement).await,
            // Whoever drives rests instead, and lets others go on.
            Effect::Wait { .. } => None,
        }
    }

    async fn decide(&self, case: &Case) -> Option<Input> {
        let order = case.entry.order()?;
        loop {
            // What nobody has told is not decided: the default would throw the recording away.
            if let Some(media) = self.system_config.current() {
                return Some(Input::Decided(destination::decide(order, &media)));
            }
            self.rest().await?;
        }
    }

    async fn put_into_hold(&self, case: &Case, hand: Option<&InHand>) -> Input {
        let Some(hand) = hand else { return Input::NotHeld };
        match self.hold.put(&address(&case.entry), self.now(), &hand.upload).await {
            Ok(holding) => Input::Fact(What::Held {
                n: case.entry.next_hold(),
                holding,
            }),
            Err(error) => {
                tracing::error!(call_id = case.entry.call_id, %error, "the hold does not take the audio; it stays on the switch");
                Input::NotHeld
            }
        }
    }

    async fn take_out_of_hold(&self, case: &Case) -> Input {
        if let Some(holding) = case.entry.held()
            && let Err(error) = self.hold.remove(holding).await
        {
            // It goes with the day's database then.
            tracing::warn!(call_id = case.entry.call_id, %error, "the hold does not let the audio go");
        }
        Input::Fact(What::Unheld {
            n: case.entry.next_number("held") - 1,
        })
    }

    /// A pause before something that must succeed is tried again; `None` when the worker is going down.
    pub async fn rest(&self) -> Option<()> {
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => Some(()),
            () = self.stop.cancelled() => None,
        }
    }
}
