//! What is known of one recording: its event log, and the state that follows from it.
//!
//! The log is a grow-only set of facts (a state-based CRDT), and the state is a fold over it. Only exact repeats and the middle of very
//! long logs are removed. So two versions of an entry, written by two workers that did not see each other's, merge to their union. Pure: no
//! I/O, no clock.

use std::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::kazoo::time::Moment;
use crate::recording::audio::{Audio, Finding};
use crate::recording::ending::Told;
use crate::recording::identity::Key;
use crate::recording::order::Order;

mod announced;
mod attempts;
pub mod cause;
mod clock;
mod controls;
pub mod fact;
mod failure;
pub mod legs;
mod obeyed;
mod object;
mod observed;
mod outcome_event;
pub mod parts;
mod places;
mod shared;
mod stray;
mod union;
mod untold;
mod watched;
pub mod webhooks;

pub use attempts::NOTICE_REFUSED;
pub use observed::{Probe, longest};

use cause::{Cause, Outcome};
use shared::SharedFact;

use fact::{Announcement, Delivery, Destination, Document, Fact, Holding, What};

/// One recording's entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "union::Written", into = "union::Written")]
pub struct Entry {
    pub key: Key,
    /// The call's id when the action ran. Together with the key it is the entry's address.
    pub call_id: String,
    facts: Vec<SharedFact>,
    /// Facts of other program versions that this version cannot read completely.
    opaque: Vec<union::Opaque>,
}

/// Read-backs of a delivery that a server with too few copies took. After these an operator must check it.
pub const LOOKS: usize = 6;

/// How often a worker asks for a file that should be gone from its switch. After that the operator who cleans the switch's disk must remove
/// it.
pub const TIDIES: usize = 12;

/// How often in a row a switch must say that it cannot open such a file. The switch says the same while it has no descriptors left, or its disk
/// does not answer.
pub const MISSES_PROVE: usize = 4;

impl Entry {
    pub fn new(key: Key, call_id: &str) -> Self {
        Self {
            key,
            call_id: call_id.to_owned(),
            facts: Vec::new(),
            opaque: Vec::new(),
        }
    }

    /// The entry of an order, as if its action had just been read.
    pub fn of_order(order: Order, by: &str) -> Self {
        let mut entry = Self::new(order.key, &order.call_id);
        entry.add(Fact {
            at: order.asked_at,
            by: by.to_owned(),
            what: What::Asked(Box::new(order)),
        });
        entry
    }

    /// In the order in which they happened.
    pub fn facts(&self) -> impl DoubleEndedIterator<Item = &Fact> + ExactSizeIterator + Clone {
        self.facts.iter().map(Deref::deref)
    }

    fn first<'a, T>(&'a self, pick: impl Fn(&'a What) -> Option<T>) -> Option<T> {
        self.facts().find_map(|fact| pick(&fact.what))
    }

    fn last<'a, T>(&'a self, pick: impl Fn(&'a What) -> Option<T>) -> Option<T> {
        self.facts().rev().find_map(|fact| pick(&fact.what))
    }

    fn has(&self, is: impl Fn(&What) -> bool) -> bool {
        self.facts().any(|fact| is(&fact.what))
    }

    /// The order. An entry that only an event made known may have none.
    pub fn order(&self) -> Option<&Order> {
        // An order that was read from the action itself contains the command.
        let mut asked = self.facts().filter_map(|fact| match &fact.what {
            What::Asked(order) => Some(order.as_ref()),
            _ => None,
        });
        let first = asked.clone().next();
        asked.find(|order| order.command.is_some()).or(first)
    }

    /// Whether Kazoo's own recorder would have stored the recording.
    pub fn is_adopted(&self) -> bool {
        self.order().is_some_and(|order| order.adopted.is_some())
    }

    /// Whether the switch may have appended the audio of another call to the recording's file, and no operator has accepted that.
    pub fn may_be_shared(&self) -> bool {
        let adopted = self.order().and_then(|order| order.adopted.as_ref());
        adopted.is_some_and(|adopted| adopted.shared_name) && self.next_number("retried") == 1
    }

    /// Whether a start command met no queue.
    pub fn has_lost_command(&self) -> bool {
        self.has(|what| matches!(what, What::CommandLost { .. }))
    }

    pub fn is_commanded(&self) -> bool {
        self.has(|what| matches!(what, What::Commanded))
    }

    pub fn started(&self) -> Option<&Told> {
        self.first(|what| match what {
            What::Started(told) => Some(told.as_ref()),
            _ => None,
        })
    }

    /// The end: as the switch reported it, else the presumed one. `None` while the switch records again into the same file.
    pub fn ended(&self) -> Option<&Told> {
        let part = self.own_parts().pop()?;
        let begun = part.begun_at();
        part.ended.or_else(|| {
            self.last(|what| match what {
                What::PresumedEnded(told) if begun.is_none_or(|begun| told.order() >= begun) => Some(told.as_ref()),
                _ => None,
            })
        })
    }

    /// The end as the switch reported it.
    pub fn told_end(&self) -> Option<&Told> {
        self.own_parts().pop()?.ended
    }

    /// When the recording ended.
    pub fn ended_at(&self) -> Option<Moment> {
        self.ended().map(|told| told.at)
    }

    /// When the recording ended, by the event's own stamp if it has one. The event's time counts whole seconds, rounded up.
    pub fn ended_exactly_at(&self) -> Option<Moment> {
        let stamped = self.told_end().map(|told| Moment::from_unix_micros(told.order()));
        stamped.or_else(|| self.ended_at())
    }

    /// When an action first asked to stop the recording.
    pub fn stop_asked_at(&self) -> Option<Moment> {
        self.facts()
            .find(|fact| matches!(fact.what, What::StopAsked { .. }))
            .map(|fact| fact.at)
    }

    /// Whether a stop was sent for the newest known start. The sender of a stop notes which start it knew; earlier versions did not.
    pub fn is_newest_start_stopped(&self) -> bool {
        let newest = self.newest_start();
        let heard = self.at_of_last(|what| matches!(what, What::Started(_)));
        self.facts().any(|fact| match fact.what {
            What::StopSent { start: Some(start), .. } => newest.is_none_or(|newest| start >= newest),
            What::StopSent { start: None, .. } => heard.is_none_or(|heard| fact.at >= heard),
            _ => false,
        })
    }

    /// How many stop commands were sent, and the last one by its number: two workers' clocks may differ.
    pub fn stops_sent(&self) -> (u32, Option<&Fact>) {
        let sent = self.facts().filter(|fact| matches!(fact.what, What::StopSent { .. }));
        (
            u32::try_from(sent.clone().count()).unwrap_or(u32::MAX),
            sent.max_by_key(|fact| fact.what.number()),
        )
    }

    /// The number of the next channel query, probe, or other counted fact of this kind.
    pub fn next_number(&self, kind: &str) -> u32 {
        let numbers = self.facts().filter(|fact| fact.what.kind() == kind);
        numbers
            .filter_map(|fact| fact.what.number())
            .max()
            .unwrap_or(0)
            .saturating_add(1)
    }

    /// The number of a parking that begins now: higher than that of every parking, retry and mark before.
    pub fn next_rest(&self) -> u32 {
        let numbers = ["parked", "retried", "marked"].map(|kind| self.next_number(kind));
        numbers.into_iter().max().unwrap_or(1)
    }

    /// The number of a retry that ends the present parking, if the recording is parked.
    pub fn next_retry(&self) -> u32 {
        (self.next_number("parked") - 1).max(self.next_number("retried"))
    }

    /// The audio that is safe (delivered or held), else the audio that a worker received last.
    pub fn audio(&self) -> Option<&Audio> {
        let safe = self.safe_sha256();
        let is_safe = |audio: &&Audio| safe.is_some_and(|sha256| audio.digests.sha256 == sha256);
        let brought = self.last(|what| collected(what).filter(is_safe));
        let found = || self.last(|what| found(what).filter(is_safe));
        brought.or_else(found).or_else(|| self.last_audio())
    }

    /// The audio that a worker received last.
    pub fn last_audio(&self) -> Option<&Audio> {
        self.last(collected)
    }

    /// The safe audio, with what is wrong with it by all that is known now. When the audio arrived, less may have been known.
    pub fn judged_audio(&self) -> Option<Audio> {
        let audio = self.audio()?.clone();
        Some(self.judged(audio))
    }

    /// Audio of this recording, with what is wrong with it.
    pub fn judged(&self, audio: Audio) -> Audio {
        let mut audio = audio.compared_with(self.told_ms());
        if self.order().is_none_or(Order::may_begin_again) {
            // The recording has parts, and the switch may not have reported all of them yet.
            audio.findings.retain(|finding| *finding != Finding::LongerThanTold);
        }
        if self.told_end().is_some_and(Told::is_write_failure) && !audio.findings.contains(&Finding::Truncated) {
            audio.findings.push(Finding::Truncated);
        }
        audio
    }

    /// The digest of the safe audio, if a fact has it.
    fn safe_sha256(&self) -> Option<&str> {
        fn uploaded(what: &What) -> Option<&str> {
            match what {
                What::Uploaded { sha256, .. } => sha256.as_deref(),
                _ => None,
            }
        }
        let delivered = self.delivery().and_then(|delivery| delivery.sha256.as_deref());
        let held = || self.held().map(|holding| holding.digests.sha256.as_str());
        delivered.or_else(|| self.first(uploaded)).or_else(held)
    }

    /// The audio's copy in the hold, while it exists.
    pub fn held(&self) -> Option<&Holding> {
        let last = self.next_number("held") - 1;
        if last < self.next_number("unheld") {
            return None;
        }
        self.first(|what| match what {
            What::Held { n, holding } if *n == last && !self.is_strange(holding) => Some(holding),
            _ => None,
        })
    }

    /// The number of the next copy that is put into the hold, and of the next one that is removed from it.
    pub fn next_hold(&self) -> u32 {
        self.next_number("held").max(self.next_number("unheld"))
    }

    /// The document that was written before the audio was delivered.
    pub fn documented(&self) -> Option<&Document> {
        self.first(|what| match what {
            What::Documented(document) => Some(document),
            _ => None,
        })
    }

    /// The URL that the audio was uploaded to.
    pub fn uploaded(&self) -> Option<&str> {
        self.first(|what| match what {
            What::Uploaded { url, .. } => Some(url.as_str()),
            _ => None,
        })
    }

    pub fn delivery(&self) -> Option<&Delivery> {
        fn delivered(what: &What) -> Option<&Delivery> {
            match what {
                What::Delivered(delivery) => Some(delivery),
                _ => None,
            }
        }
        let first: &Delivery = self.first(delivered)?;
        // It was delivered once more, because a read-back did not find it. It may have another id now.
        let brought = self.facts().filter_map(|fact| delivered(&fact.what));
        let again = brought.filter(|again| again.again > 0 && again.sha256.is_some() && again.sha256 == first.sha256);
        again.max_by_key(|again| again.again).or(Some(first))
    }

    /// The outcome of the recording, if it has one. A delivery beats every other conclusion, because the audio is at its destination. A
    /// conclusion from silence is void once something is heard of the recording. A conclusion from a missing file is void once a copy of
    /// the audio is known.
    pub fn outcome(&self) -> Option<(Outcome, Cause)> {
        if let Some(delivery) = self.delivery() {
            let outcome = delivery.destination.describe().outcome;
            let suspect = self.judged_audio().is_some_and(|audio| audio.is_suspect());
            let cause = match suspect {
                true => Cause::SuspectAudio,
                false if self.is_deleted() => Cause::Deleted,
                false => Cause::Complete,
            };
            return Some((outcome, cause));
        }
        self.conclusion()
    }

    /// The conclusion without a delivery that is not void.
    pub(super) fn conclusion(&self) -> Option<(Outcome, Cause)> {
        let heard_of = self.has(|what| matches!(what, What::Started(_) | What::Ended(_)));
        let kept = self.held().is_some() || self.uploaded().is_some();
        let void = |cause: Cause| heard_of && cause.is_silence() || kept && cause == Cause::FileGone;
        let conclusions = self.facts().filter_map(|fact| match fact.what {
            What::Concluded { outcome, cause } if !void(cause) => Some((outcome, cause)),
            _ => None,
        });
        // Two workers can conclude without knowing of each other. The conclusion of the worker that knows more counts: a file that one
        // worker had released is missing for the other worker.
        conclusions.min_by_key(|(_, cause)| *cause == Cause::FileGone)
    }

    pub fn is_announced(&self, announcement: Announcement) -> bool {
        let announced = self.announced(announcement);
        self.has(|what| *what == announced)
    }

    /// The fact to note when the broker has confirmed a notice.
    pub fn announced(&self, announcement: Announcement) -> What {
        let rest = match announcement {
            Announcement::Outcome(Outcome::Parked) => self.later_rest(),
            _ => None,
        };
        let cause = match announcement {
            Announcement::Outcome(outcome) => self.later_cause(outcome),
            _ => None,
        };
        match (rest, cause) {
            (Some(n), _) => What::RestAnnounced { n },
            (None, Some(cause)) => What::CauseAnnounced { cause },
            (None, None) => What::Announced(announcement),
        }
    }

    /// The cause of this outcome, if an earlier conclusion of the same outcome had another cause and is void. That one may have been
    /// announced.
    pub fn later_cause(&self, outcome: Outcome) -> Option<Cause> {
        let (present, cause) = self.outcome().filter(|_| self.delivery().is_none())?;
        let other = |what: &What| match what {
            What::Concluded { outcome, cause: other } => *outcome == present && *other != cause,
            _ => false,
        };
        (present == outcome && self.has(other) && !self.has_told(outcome, cause)).then_some(cause)
    }

    /// The notices that must still be published, in order.
    pub fn open_announcements(&self) -> impl Iterator<Item = Announcement> {
        let here = self
            .delivery()
            .map(|delivery| delivery.destination)
            .or_else(|| self.documented().and(self.destination()));
        // A user has deleted the document, so its arrival is not announced.
        let deleted = self.delivery().is_some_and(|delivery| delivery.deleted);
        let here = here.filter(|destination| destination.is_documented_here() && !deleted);
        // The destination can have changed after the document was written: a storage plan that was removed, for example.
        let was_told_before = here.is_some_and(Destination::documents_first) || self.documented().is_some();
        let edited = self.delivery().is_some_and(|delivery| !delivery.edit_told) && here.is_some() && was_told_before;
        let outcome = self
            .outcome()
            .map(|(outcome, _)| outcome)
            .or_else(|| self.parked().map(|_| Outcome::Parked));
        [
            here.filter(|_| !self.completes_kazoos())
                .map(|_| Announcement::DocumentCreated),
            (edited || here.is_some() && self.completes_kazoos()).then_some(Announcement::DocumentEdited),
            outcome.map(Announcement::Outcome),
        ]
        .into_iter()
        .flatten()
        .filter(|announcement| !self.is_announced(*announcement))
    }

    /// Nothing is left to do: the recording has an outcome, and the broker has confirmed all notices.
    pub fn is_closed(&self) -> bool {
        self.outcome().is_some()
            && self.open_announcements().next().is_none()
            && self.held().is_none()
            && !self.is_unverified()
            && !self.owes_release()
            && self.owes_mark().is_none()
            && !self.is_to_be_continued()
            && !self.is_to_be_amended()
            && self.stray().is_none()
    }

    /// The recording runs, as far as is known.
    pub fn is_open(&self) -> bool {
        self.outcome().is_none() && self.ended().is_none()
    }

    /// The account that the recording belongs to: the order's, else the one that an event named.
    pub fn account_id(&self) -> Option<&str> {
        let told = || {
            let mut told = [self.started(), self.ended()].into_iter().flatten();
            told.find_map(|told| told.account_id.as_deref())
        };
        self.order().and_then(|order| order.account_id.as_deref()).or_else(told)
    }
}

fn collected(what: &What) -> Option<&Audio> {
    match what {
        What::Collected(audio) => Some(audio),
        _ => None,
    }
}

/// The audio of a recording that was found at its destination, not delivered there.
fn found(what: &What) -> Option<&Audio> {
    match what {
        What::Delivered(delivery) => delivery.audio.as_ref(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
