//! What a driver does to the world.

use std::sync::Arc;
use std::time::Duration;

use kz_record_call::entry::Entry;
use kz_record_call::entry::cause::{Cause, Outcome};
use kz_record_call::entry::fact::{Announcement, Delivery, DeliveryFailure, Destination, Document, Holding, What};
use kz_record_call::flow::common::Interrupted;
use kz_record_call::flow::driver::Effects;
use kz_record_call::flow::effects::collect::Received as _;
use kz_record_call::kazoo::dialplan::Control;
use kz_record_call::kazoo::time::Moment;
use kz_record_call::lifecycle::{Answer, Case, Effect, Input};
use kz_record_call::recording::identity::{Key, MediaId};

use crate::broker::Unconfirmed;
use crate::collect::Hand;
use crate::faults::{Fault, is_back};
use crate::plan::Beside;
use crate::switch::Content;
use crate::worker::Worker;
use crate::world::BEGIN;

/// How long a slow server takes, and how long a switch waits for one.
const SLOW: Duration = Duration::from_secs(120);
const SWITCH_WAITS: Duration = Duration::from_secs(15);

pub struct Services(pub Arc<Worker>);

impl Effects for Services {
    type Upload = Hand;

    async fn perform(&self, case: &Case, effect: Effect, hand: &mut Option<Hand>) -> Result<Input, Interrupted> {
        let (entry, world) = (&case.entry, &self.0.world);
        tokio::time::sleep(world.between(1, 40)).await;
        let input = match effect {
            Effect::Command => self.command(entry).await,
            Effect::Control { what, n } => self.control(entry, what, n).await,
            Effect::LookForChannel { n } => {
                let alive = self.is_alive(entry.key);
                Input::Fact(What::ChannelSeen { n, alive })
            }
            Effect::Decide => self.decide(entry).await,
            Effect::Probe { n, attempt, node, path } => {
                let case = self.with_legs(case);
                self.0.collector.probe(&case, n, attempt, &node, &path).await?
            }
            Effect::Collect { attempt, node, path } => {
                let case = self.with_legs(case);
                self.0.collector.collect(&case, attempt, &node, &path, hand).await?
            }
            Effect::Tidy { n, node, path } => {
                let case = self.with_legs(case);
                self.0.collector.tidy(&case, n, &node, &path).await?
            }
            Effect::Separate { name } => {
                if let Some(separated) = entry.separated(&name, self.0.now(), &self.0.policy.worker) {
                    world.roots.lock().unwrap().insert(separated.key, entry.key);
                }
                self.0.segments.separate(case, name).await?
            }
            Effect::Continue => {
                let part = entry.key.continuation();
                world.roots.lock().unwrap().insert(part, entry.key);
                self.0.segments.hand_on(case).await?
            }
            Effect::Document { attempt, destination } => {
                if world.trouble().target_down {
                    failed(attempt, destination, DeliveryFailure::Target)
                } else {
                    world.places.lock().unwrap().documents.insert(entry.key);
                    Input::Fact(What::Documented(document(entry.key)))
                }
            }
            Effect::Deliver { attempt, destination } => self.deliver(case, attempt, destination, hand.as_ref()).await,
            Effect::Complete { attempt, destination } => {
                if world.trouble().target_down {
                    failed(attempt, destination, DeliveryFailure::Target)
                } else {
                    let stored = world.places.lock().unwrap().found(entry.key, world.now()).cloned();
                    match stored {
                        Some(stored) => {
                            let mut places = world.places.lock().unwrap();
                            places.completed.insert(entry.key, stored.content.clone());
                            drop(places);
                            self.delivered(entry, destination, &stored.content, false)
                        }
                        None => failed(attempt, destination, DeliveryFailure::Target),
                    }
                }
            }
            Effect::ReadBack { n } => self.read_back(entry, n),
            Effect::SeekCopy { .. } => return Err(Interrupted::Baseless),
            Effect::Amend { n } => {
                self.say(entry);
                let controls = entry.controls().fingerprint();
                Input::Fact(What::Amended {
                    n,
                    controls,
                    unsaid: None,
                })
            }
            Effect::Mark { n, .. } => Input::Fact(What::Marked { n }),
            Effect::Hold => self.hold(entry, hand.as_ref()).await,
            Effect::Unhold => {
                let name = entry.held().ok_or(Interrupted::Baseless)?.name.clone();
                world.places.lock().unwrap().held.remove(&name);
                let n = entry.next_number("held") - 1;
                Input::Fact(What::Unheld { n })
            }
            Effect::Answer(answer) => {
                let (case, hand) = (self.with_legs(case), hand.take());
                Input::Answered(self.0.collector.answer(&case, answer, hand).await)
            }
            Effect::Announce(announcement) => self.announce(entry, announcement).await,
        };
        Ok(input)
    }

    fn keep(&self, upload: Hand) {
        upload.upload.answer(Answer::Keep);
    }

    fn panicked(&self, entry: &Entry, _: &str) {
        self.0.note(|| format!("notes its panic at {}", entry.key));
    }

    fn stepped(&self, _: &Entry, after: &Entry) {
        if after.is_open() {
            self.0.memory.remember(after);
        } else if after.is_closed() {
            self.0.memory.close(after.key);
        }
    }

    /// Connections of simulated workers never end before the worker does.
    fn receives_since(&self) -> Option<Moment> {
        Some(Moment::from_unix_seconds(0))
    }
}

impl Services {
    async fn command(&self, entry: &Entry) -> Input {
        match self.0.send_start(entry.key).await {
            Ok(()) => Input::Fact(What::Commanded),
            Err(Unconfirmed::Unroutable) => Input::Fact(What::CommandLost { why: "x".into() }),
            Err(Unconfirmed::Late) => Input::Due,
        }
    }

    async fn control(&self, entry: &Entry, what: Control, n: u32) -> Input {
        let action = entry
            .mask_to_send()
            .map(|(action, ..)| action.to_owned())
            .unwrap_or_default();
        let start = entry.newest_start();
        let on = what == Control::Mask;
        let sent = self.0.send_control(entry.key, what == Control::Stop).await;
        match (what, sent) {
            (Control::Stop, Ok(()) | Err(Unconfirmed::Unroutable)) => Input::Fact(What::StopSent { n, start }),
            (_, Ok(())) => Input::Fact(What::Masked {
                action,
                on,
                n,
                start,
                sender: Some(self.0.name.clone()),
            }),
            (_, Err(Unconfirmed::Unroutable)) => Input::Fact(What::NotObeyed {
                action,
                what,
                why: kz_record_call::recording::controls::Why::Undelivered,
            }),
            (_, Err(Unconfirmed::Late)) => Input::Due,
        }
    }

    /// Whether a leg that is known lives, as ecallmgrs say.
    fn is_alive(&self, key: Key) -> bool {
        let (world, root) = (&self.0.world, self.0.world.root(key));
        let at = world.asked[&root].switch;
        let call = world.switch.lock().unwrap().calls[&root].clone();
        if world.trouble().unlearned[at] {
            return false;
        }
        world.trouble().cut[at] || call.alive || call.other_alive && call.other_known
    }

    async fn decide(&self, entry: &Entry) -> Input {
        let world = &self.0.world;
        // The settings are in CouchDB, too.
        match world.home_answers(self.0.n) {
            Some(true) => {}
            Some(false) if is_back(Fault::MissingDatabaseTrusted) => {
                return Input::Fact(What::Concluded {
                    outcome: Outcome::Discarded,
                    cause: Cause::StoringDisabled,
                });
            }
            _ => return self.postponed(entry, Duration::from_secs(10)),
        }
        Input::Fact(What::Decided {
            n: entry.next_number("retried"),
            destination: world.asked[&world.root(entry.key)].destination,
            attempts: None,
        })
    }

    pub fn postponed(&self, entry: &Entry, pause: Duration) -> Input {
        Input::Fact(What::Postponed {
            n: entry.next_number("postponed"),
            until: self.0.now().plus(pause),
            why: "x".into(),
        })
    }

    async fn deliver(&self, case: &Case, attempt: u32, destination: Destination, hand: Option<&Hand>) -> Input {
        let (entry, world) = (&case.entry, &self.0.world);
        let held = || {
            let name = &entry.held()?.name;
            world.places.lock().unwrap().held.get(name).cloned()
        };
        let Some(content) = hand.map(|hand| hand.upload.content.clone()).or_else(held) else {
            return failed(attempt, destination, DeliveryFailure::Source);
        };
        let host = if destination == Destination::Url { "h" } else { "couch" };
        let share = self.0.shares.of_switch(case, destination, host, hand.is_some());
        let share = if is_back(Fault::SlotKept) {
            Some(Vec::new())
        } else {
            share.await
        };
        let Some(_share) = share else {
            return self.postponed(entry, Duration::from_secs(1));
        };
        tokio::time::sleep(world.between(20, 1500)).await;
        if world.asked[&world.root(entry.key)].refused {
            return failed(attempt, destination, DeliveryFailure::Refused);
        }
        if world.trouble().target_down {
            return failed(attempt, destination, DeliveryFailure::Target);
        }
        if world.beside == Beside::Firewall && attempt == 1 && !world.asked[&world.root(entry.key)].crowd {
            // Its next attempt needs the sweep.
            return failed(attempt, destination, DeliveryFailure::Target);
        }
        if world.trouble().target_slow && destination == Destination::Url {
            let waits = hand.is_some() && !is_back(Fault::SlotKept);
            tokio::time::sleep(if waits { SWITCH_WAITS } else { SLOW }).await;
            return failed(attempt, destination, DeliveryFailure::Target);
        }
        if world.mishap(40) {
            return self.postponed(entry, Duration::from_secs(10));
        }
        if destination == Destination::Url {
            let completed = world.places.lock().unwrap().completed.get(&entry.key).cloned();
            if completed.is_some_and(|completed| completed == content) {
                // Its document says that it arrived.
                return self.delivered(entry, destination, &content, false);
            }
        }
        let below = world.store(entry.key, destination, &content);
        if world.mishap(40) {
            // Its answer is lost.
            return failed(attempt, destination, DeliveryFailure::Target);
        }
        if destination == Destination::Url {
            let sha256 = Some(content.audio().digests.sha256);
            return Input::Fact(What::Uploaded {
                url: "https://h/".into(),
                sha256,
            });
        }
        self.delivered(entry, destination, &content, below)
    }

    pub fn delivered(&self, entry: &Entry, destination: Destination, content: &Content, below_quorum: bool) -> Input {
        self.say(entry);
        Input::Fact(What::delivered(Delivery {
            destination,
            document: document(entry.key),
            sha256: Some(content.audio().digests.sha256),
            below_quorum,
            audio: None,
            deleted: false,
            edit_told: destination == Destination::StoragePlan,
            controls: Some(entry.controls().fingerprint()),
            again: 0,
        }))
    }

    /// The document says what is known of masks.
    fn say(&self, entry: &Entry) {
        let masked = entry.controls().masks.last().is_some_and(|mask| mask.on);
        self.0.world.places.lock().unwrap().masked.insert(entry.key, masked);
    }

    fn read_back(&self, entry: &Entry, n: u32) -> Input {
        let world = &self.0.world;
        let unanswered = world.trouble().target_down;
        // The audio that was delivered last. A copy of other audio, as an earlier delivery left it, proves nothing.
        let sha256 = entry.delivery().and_then(|delivery| delivery.sha256.clone());
        let there = {
            let places = world.places.lock().unwrap();
            let is_it = |content: &Content| {
                sha256
                    .as_ref()
                    .is_none_or(|sha256| content.audio().digests.sha256 == *sha256)
            };
            places.found_as(entry.key, world.now(), is_it).is_some()
        };
        let why = (unanswered || !there).then(|| "not there".to_owned());
        Input::Fact(What::Looked {
            n,
            why,
            unanswered,
            deleted: false,
        })
    }

    async fn hold(&self, entry: &Entry, hand: Option<&Hand>) -> Input {
        let world = &self.0.world;
        let Some(hand) = hand.filter(|_| !world.trouble().hold_down) else {
            return Input::HoldRefused;
        };
        tokio::time::sleep(world.between(10, 300)).await;
        let (content, audio) = (hand.upload.content.clone(), hand.upload.audio.clone());
        let root = world.root(entry.key);
        let name = match is_back(Fault::HoldOverwrites) {
            true => format!("{root}"),
            false => format!("{root} {}", audio.digests.sha256),
        };
        world.places.lock().unwrap().held.insert(name.clone(), content);
        Input::Fact(What::Held {
            n: entry.next_hold(),
            holding: Holding {
                place: "hold".into(),
                name,
                size: audio.size,
                digests: audio.digests,
            },
        })
    }

    async fn announce(&self, entry: &Entry, announcement: Announcement) -> Input {
        let world = &self.0.world;
        let what = match announcement {
            Announcement::Outcome(outcome) => outcome.name(),
            other => other.name(),
        };
        let done = || {
            world.announce(entry.key, what);
            true
        };
        match world.confirmed(done).await {
            Ok(()) => Input::Fact(entry.announced(announcement)),
            Err(_) => Input::Due,
        }
    }
}

pub fn document(key: Key) -> Document {
    Document {
        id: MediaId::derived(key, BEGIN),
        database: "db".into(),
        rev: "1-a".into(),
        created: BEGIN,
    }
}

fn failed(attempt: u32, destination: Destination, failure: DeliveryFailure) -> Input {
    Input::Fact(What::DeliveryFailed {
        attempt,
        destination,
        failure,
        why: "x".into(),
        retry_after_s: None,
    })
}
