//! The effects, on a switch and targets that live in memory.

use std::time::Duration;

use kz_record_call::entry::Entry;
use kz_record_call::entry::cause::{Cause, Outcome};
use kz_record_call::entry::fact::{
    Announcement, CollectFailure, Delivery, DeliveryFailure, Destination, Document, Holding, What,
};
use kz_record_call::lifecycle::{Answer, Effect, Input};
use kz_record_call::recording::audio::Audio;
use kz_record_call::recording::digest::Digests;
use kz_record_call::recording::identity::{Key, MediaId};

use crate::world::*;

impl World {
    pub fn perform(&mut self, entry: &Entry, effect: &Effect, hand: &mut Option<Content>) -> Input {
        let key = entry.key;
        let root = self.root(key);
        let destination = self.orders[&root].1;
        let collect_failed = |attempt, failure| {
            Input::Fact(What::CollectFailed {
                attempt,
                failure,
                why: "x".into(),
            })
        };
        match effect {
            Effect::Command => {
                self.command(key);
                Input::Fact(What::Commanded)
            }
            Effect::Control { n, .. } => Input::Fact(What::StopSent {
                n: *n,
                start: entry.newest_start(),
            }),
            Effect::LookForChannel { n } => {
                let lives = |file: &File| file.alive || file.running;
                let alive = self.switch_down || self.files.get(&root).is_some_and(lives);
                Input::Fact(What::ChannelSeen { n: *n, alive })
            }
            Effect::Decide if self.chance(150) => self.postponed(entry),
            Effect::Decide => Input::Fact(What::Decided {
                n: entry.next_number("retried"),
                destination,
                attempts: None,
            }),
            Effect::Probe { attempt, .. } | Effect::Collect { attempt, .. } if self.switch_down => {
                collect_failed(*attempt, CollectFailure::Unreachable)
            }
            Effect::Probe { attempt, .. } | Effect::Collect { attempt, .. } if self.chance(80) => {
                collect_failed(*attempt, CollectFailure::Broken)
            }
            Effect::Probe { n, attempt, .. } => match self.looked_at(root) {
                Some(content) => Input::Fact(What::Probed {
                    n: *n,
                    size: size_of(&content),
                    md5: format!("{content:?}"),
                    open: false,
                }),
                None => self.missing(entry, *attempt),
            },
            // It grows while it is looked at.
            Effect::Collect { .. } if self.is_written(root) => self.postponed(entry),
            Effect::Collect { attempt, .. } => match self.there(root) {
                Some(content) => {
                    *hand = Some(content.clone());
                    Input::Received(self.audio(content))
                }
                None => self.missing(entry, *attempt),
            },
            Effect::Tidy { n, .. } => {
                let left = if self.switch_down || self.is_written(root) || self.chance(80) {
                    Some("not now".to_owned())
                } else {
                    let there = self.there(root).map(|content| self.audio(content).digests);
                    let short = entry.outcome() == Some((Outcome::Discarded, Cause::TooShort));
                    let seen = entry.audio().map(|audio| audio.digests.clone());
                    match there {
                        Some(there) if entry.is_safe(&there) || short && seen == Some(there.clone()) => {
                            self.release(entry);
                            None
                        }
                        Some(_) => match entry.untold_start() {
                            Some(told) => return Input::Fact(What::Started(Box::new(told))),
                            None => Some("another one".to_owned()),
                        },
                        None => None,
                    }
                };
                Input::Fact(What::Tidied { n: *n, left })
            }
            Effect::Separate { name } => {
                let separated = entry.separated(name, self.now, "w").unwrap();
                if !self.write(0, &separated, None) {
                    return Input::Due;
                }
                self.roots.insert(separated.key, key);
                self.write(1, &separated, None);
                Input::Fact(What::Separated { name: name.clone() })
            }
            Effect::Continue => {
                let (continuation, told) = entry.continuation(self.now, "w").unwrap();
                // Durable, or not done.
                if !self.write(0, &continuation, None) {
                    return Input::Due;
                }
                self.roots.insert(continuation.key, key);
                self.write(1, &continuation, None);
                Input::Fact(What::Continued { told })
            }
            Effect::Document { attempt, destination } => {
                if self.store_down {
                    return Self::failed(*attempt, *destination, DeliveryFailure::Target);
                }
                self.documents.insert(key, 1);
                Input::Fact(What::Documented(Self::document(key)))
            }
            Effect::Deliver { attempt, destination } => {
                let held = || entry.held().and_then(|holding| self.held.get(&holding.name)).cloned();
                let content = hand.clone().or_else(held);
                if self.refuses.contains(&key) {
                    return Self::failed(*attempt, *destination, DeliveryFailure::Refused);
                }
                let down = if *destination == Destination::Account {
                    self.store_down
                } else {
                    self.target_down
                };
                if self.chance(50) {
                    return self.postponed(entry);
                }
                let Some(content) = content.filter(|_| !down) else {
                    return Self::failed(*attempt, *destination, DeliveryFailure::Target);
                };
                let sha256 = Some(format!("{content:?}"));
                let there = self.delivered.entry(key).or_default();
                if !there.contains(&content) {
                    there.push(content);
                }
                if destination.documents_first() {
                    return Input::Fact(What::Uploaded {
                        url: "https://h/".into(),
                        sha256,
                    });
                }
                self.documents.insert(key, 1);
                let below = self.chance(100);
                Self::done_with(key, *destination, sha256, below)
            }
            Effect::ReadBack { n } => {
                let why = (self.store_down || self.chance(100)).then(|| "not there".to_owned());
                Input::Fact(What::Looked {
                    n: *n,
                    why,
                    unanswered: self.store_down,
                    deleted: false,
                })
            }
            Effect::Amend { n } => Input::Fact(What::Amended {
                n: *n,
                controls: entry.controls().fingerprint(),
                unsaid: None,
            }),
            Effect::Mark { n, .. } => Input::Fact(What::Marked { n: *n }),
            Effect::Complete { attempt, destination } => {
                if self.store_down {
                    return Self::failed(*attempt, *destination, DeliveryFailure::Target);
                }
                self.done(key, *destination)
            }
            Effect::Hold => {
                if self.hold_down {
                    return Input::HoldRefused;
                }
                let Some(content) = hand.clone() else {
                    return Input::HoldRefused;
                };
                let name = format!("{root} {content:?}");
                self.held.insert(name.clone(), content.clone());
                let Audio { digests, size, .. } = self.audio(content);
                Input::Fact(What::Held {
                    n: entry.next_hold(),
                    holding: Holding {
                        place: "hold".into(),
                        name,
                        size,
                        digests,
                    },
                })
            }
            Effect::Unhold => {
                self.held.remove(&entry.held().unwrap().name);
                Input::Fact(What::Unheld {
                    n: entry.next_number("held") - 1,
                })
            }
            Effect::Answer(answer) => {
                let Some(content) = hand.take() else {
                    return Input::Answered(*answer);
                };
                // As the worker does: exactly this audio must be safe, and nothing be written into its file.
                let digests = self.audio(content).digests;
                let safe = entry.is_safe(&digests) || entry.is_unwanted();
                if *answer == Answer::Keep || !safe || self.is_written(root) {
                    return Input::Answered(Answer::Keep);
                }
                self.release(entry);
                Input::Answered(Answer::Release)
            }
            Effect::Announce(announcement) => {
                if let Announcement::Outcome(outcome) = announcement {
                    self.announced.entry(key).or_default().insert(outcome.name());
                }
                Input::Fact(entry.announced(*announcement))
            }
        }
    }

    pub fn audio(&mut self, content: Content) -> Audio {
        let (digest, size) = (format!("{content:?}"), size_of(&content));
        self.seen.insert(digest.clone(), content);
        Audio {
            size,
            digests: Digests {
                md5: digest.clone(),
                sha256: digest,
            },
            duration_ms: Some(size),
            findings: vec![],
            as_written: None,
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

    pub fn failed(attempt: u32, destination: Destination, failure: DeliveryFailure) -> Input {
        let why = "x".into();
        Input::Fact(What::DeliveryFailed {
            attempt,
            destination,
            failure,
            why,
            retry_after_s: None,
        })
    }

    pub fn postponed(&self, entry: &Entry) -> Input {
        Input::Fact(What::Postponed {
            n: entry.next_number("postponed"),
            until: self.now.plus(Duration::from_secs(10)),
            why: "x".into(),
        })
    }

    /// What the document tells that is there.
    pub fn done(&self, key: Key, destination: Destination) -> Input {
        let first = self.delivered.get(&key).and_then(|all| all.first());
        Self::done_with(key, destination, first.map(|content| format!("{content:?}")), false)
    }

    pub fn done_with(key: Key, destination: Destination, sha256: Option<String>, below_quorum: bool) -> Input {
        let document = Self::document(key);
        Input::Fact(What::delivered(Delivery {
            destination,
            document,
            sha256,
            below_quorum,
            audio: None,
            deleted: false,
            edit_told: false,
            controls: None,
            again: 0,
        }))
    }
}
