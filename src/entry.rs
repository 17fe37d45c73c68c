//! What is known of one recording: a set of stamped facts, and the state that follows from them.
//!
//! Nothing is ever taken out of the set but exact repeats and the middle of very long stories, so two versions of an entry, written by two
//! workers that did not see each other, merge to their union. Pure: no I/O, no clock.

use serde::{Deserialize, Serialize};

use crate::kazoo::time::Moment;
use crate::recording::audio::{Audio, Finding};
use crate::recording::ending::Told;
use crate::recording::identity::Key;
use crate::recording::order::Order;

mod attempts;
pub mod cause;
mod controls;
pub mod fact;
pub mod legs;
pub mod parts;
mod places;
mod stray;
mod union;

use cause::{Cause, Outcome};
use fact::{Announcement, Delivery, Destination, Document, Fact, Holding, What};

/// One recording's entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "union::Written", into = "union::Written")]
pub struct Entry {
    pub key: Key,
    /// The call's id when the action ran: with the key, the entry's address.
    pub call_id: String,
    facts: Vec<Fact>,
    /// What other versions of the program wrote, and this one cannot read whole.
    opaque: Vec<union::Opaque>,
}

/// A look at the file on its switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe<'a> {
    pub at: Moment,
    pub size: u64,
    pub md5: &'a str,
    /// Its form said that its writer had not closed it.
    pub open: bool,
}

impl Probe<'_> {
    /// Whether both saw the same bytes.
    pub fn saw_same_as(&self, other: &Self) -> bool {
        (self.size, self.md5) == (other.size, other.md5)
    }
}

/// Looks at what a server with too few copies had taken, before an operator must look.
pub const LOOKS: usize = 6;

/// Looks for a file that should be gone from its switch, before it is left to whoever cleans its disk.
pub const TIDIES: usize = 6;

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
    pub fn facts(&self) -> &[Fact] {
        &self.facts
    }

    fn first<'a, T>(&'a self, pick: impl Fn(&'a What) -> Option<T>) -> Option<T> {
        self.facts.iter().find_map(|fact| pick(&fact.what))
    }

    fn last<'a, T>(&'a self, pick: impl Fn(&'a What) -> Option<T>) -> Option<T> {
        self.facts.iter().rev().find_map(|fact| pick(&fact.what))
    }

    fn has(&self, is: impl Fn(&What) -> bool) -> bool {
        self.facts.iter().any(|fact| is(&fact.what))
    }

    /// The order; an entry that only an event made known may have none.
    pub fn order(&self) -> Option<&Order> {
        // One that came from the action itself knows how it was commanded.
        let mut asked = self.facts.iter().filter_map(|fact| match &fact.what {
            What::Asked(order) => Some(order.as_ref()),
            _ => None,
        });
        let first = asked.clone().next();
        asked.find(|order| order.command.is_some()).or(first)
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

    /// The end: the switch's word, else the presumed one. None while the switch records again into the same file.
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

    /// The end, as the switch told it.
    pub fn told_end(&self) -> Option<&Told> {
        self.own_parts().pop()?.ended
    }

    /// When the recording ended.
    pub fn ended_at(&self) -> Option<Moment> {
        self.ended().map(|told| told.at)
    }

    /// The same, by the event's own stamp if it has one: its time counts whole seconds, rounded up.
    pub fn ended_exactly_at(&self) -> Option<Moment> {
        let stamped = self.told_end().map(|told| Moment::from_unix_micros(told.order()));
        stamped.or_else(|| self.ended_at())
    }

    /// When an action first wanted it ended.
    pub fn stop_asked_at(&self) -> Option<Moment> {
        self.facts
            .iter()
            .find(|fact| matches!(fact.what, What::StopAsked { .. }))
            .map(|fact| fact.at)
    }

    /// Whether a stop was sent since the newest start was heard of. Who sent it says which start it knew; earlier versions did not.
    pub fn is_newest_start_stopped(&self) -> bool {
        let newest = self.newest_start();
        let heard = self.at_of_last(|what| matches!(what, What::Started(_)));
        self.facts.iter().any(|fact| match fact.what {
            What::StopSent { start: Some(start), .. } => newest.is_none_or(|newest| start >= newest),
            What::StopSent { start: None, .. } => heard.is_none_or(|heard| fact.at >= heard),
            _ => false,
        })
    }

    /// The stop commands that were sent, and when the last was.
    pub fn stops_sent(&self) -> (u32, Option<Moment>) {
        let mut sent = self
            .facts
            .iter()
            .filter(|fact| matches!(fact.what, What::StopSent { .. }));
        (
            u32::try_from(sent.clone().count()).unwrap_or(u32::MAX),
            sent.next_back().map(|fact| fact.at),
        )
    }

    /// The last look for the channel, and when.
    pub fn channel_seen(&self) -> Option<(Moment, bool)> {
        self.facts.iter().rev().find_map(|fact| match fact.what {
            What::ChannelSeen { alive, .. } => Some((fact.at, alive)),
            _ => None,
        })
    }

    /// Since when every look for the channel found it gone.
    pub fn gone_since(&self) -> Option<Moment> {
        let looks = self.facts.iter().rev().filter_map(|fact| match fact.what {
            What::ChannelSeen { alive, .. } => Some((fact.at, alive)),
            _ => None,
        });
        looks.take_while(|(_, alive)| !alive).last().map(|(at, _)| at)
    }

    /// The number of the next look, probe, or whatever else counts.
    pub fn next_number(&self, kind: &str) -> u32 {
        let numbers = self.facts.iter().filter(|fact| fact.what.kind() == kind);
        numbers
            .filter_map(|fact| fact.what.number())
            .max()
            .unwrap_or(0)
            .saturating_add(1)
    }

    /// The number that a rest gets which begins now: higher than every rest and every retry before.
    pub fn next_rest(&self) -> u32 {
        self.next_number("parked").max(self.next_number("retried"))
    }

    /// The number of a retry that ends the present rest, if there is one.
    pub fn next_retry(&self) -> u32 {
        (self.next_number("parked") - 1).max(self.next_number("retried"))
    }

    /// The last probes, newest first.
    pub fn probes(&self) -> impl Iterator<Item = Probe<'_>> {
        self.facts.iter().rev().filter_map(|fact| match &fact.what {
            What::Probed { size, md5, open, .. } => Some(Probe {
                at: fact.at,
                size: *size,
                md5,
                open: *open,
            }),
            _ => None,
        })
    }

    /// The audio that is safe, else as it last passed through our hands.
    pub fn audio(&self) -> Option<&Audio> {
        let safe = self.safe_sha256();
        let is_safe = |audio: &&Audio| safe.is_some_and(|sha256| audio.digests.sha256 == sha256);
        let brought = self.last(|what| collected(what).filter(is_safe));
        let found = || self.last(|what| found(what).filter(is_safe));
        brought.or_else(found).or_else(|| self.last_audio())
    }

    /// The audio as it last passed through our hands.
    pub fn last_audio(&self) -> Option<&Audio> {
        self.last(collected)
    }

    /// The audio that is safe, with what is wrong with it by all that is told by now: when it came, less may have been known.
    pub fn judged_audio(&self) -> Option<Audio> {
        let audio = self.audio()?.clone();
        Some(self.judged(audio))
    }

    /// Audio of this recording, with what is wrong with it.
    pub fn judged(&self, audio: Audio) -> Audio {
        let mut audio = audio.compared_with(self.told_ms());
        if self.order().is_none_or(Order::may_begin_again) {
            // It has parts, and not all of them may have been told of yet.
            audio.findings.retain(|finding| *finding != Finding::LongerThanTold);
        }
        audio
    }

    /// The digest of the audio that is out of reach of harm, as far as it was written down.
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

    /// The audio's copy in the hold, while it is there.
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

    /// The number of the copy that is put into the hold next, and of the one that is taken out of it.
    pub fn next_hold(&self) -> u32 {
        self.next_number("held").max(self.next_number("unheld"))
    }

    /// The document that came before the audio.
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
        // Brought once more, because a look did not find it: perhaps under another id.
        let brought = self.facts.iter().filter_map(|fact| delivered(&fact.what));
        let again = brought.filter(|again| again.again > 0 && again.sha256.is_some() && again.sha256 == first.sha256);
        again.max_by_key(|again| again.again).or(Some(first))
    }

    /// How the recording ended up, if it did. A delivery beats every other conclusion: the audio is where it belongs. And what was concluded
    /// because nothing was heard of a recording, or because its file was not to be found, is void when it is known better after all.
    pub fn outcome(&self) -> Option<(Outcome, Cause)> {
        if let Some(delivery) = self.delivery() {
            let outcome = match delivery.destination {
                Destination::Url => Outcome::Delivered,
                _ => Outcome::Stored,
            };
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

    /// What was concluded without a delivery, and is not void.
    pub(super) fn conclusion(&self) -> Option<(Outcome, Cause)> {
        let heard_of = self.has(|what| matches!(what, What::Started(_) | What::Ended(_)));
        let kept = self.held().is_some() || self.uploaded().is_some();
        let void = |cause: Cause| heard_of && cause.is_silence() || kept && cause == Cause::FileGone;
        let conclusions = self.facts.iter().filter_map(|fact| match fact.what {
            What::Concluded { outcome, cause } if !void(cause) => Some((outcome, cause)),
            _ => None,
        });
        // Of two that workers came to without knowing of each other, the one that knows more: a file that one of them had deleted is gone
        // for the other.
        conclusions.min_by_key(|(_, cause)| *cause == Cause::FileGone)
    }

    pub fn is_announced(&self, announcement: Announcement) -> bool {
        let announced = self.announced(announcement);
        self.has(|what| *what == announced)
    }

    /// What is noted when the broker has confirmed a notice.
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

    /// The cause of this outcome, where another one was concluded for the same outcome before, and is void: that may have been announced.
    pub fn later_cause(&self, outcome: Outcome) -> Option<Cause> {
        let (present, cause) = self.outcome().filter(|_| self.delivery().is_none())?;
        let other = |what: &What| match what {
            What::Concluded { outcome, cause: other } => *outcome == present && *other != cause,
            _ => false,
        };
        (present == outcome && self.has(other)).then_some(cause)
    }

    /// The notices that are still owed, in order.
    pub fn open_announcements(&self) -> impl Iterator<Item = Announcement> {
        let here = self
            .delivery()
            .map(|delivery| delivery.destination)
            .or_else(|| self.documented().and(self.destination()));
        // Of a document that a user has deleted nobody is told that it came.
        let deleted = self.delivery().is_some_and(|delivery| delivery.deleted);
        let here = here.filter(|destination| destination.is_documented_here() && !deleted);
        let edited = self.delivery().is_some_and(|delivery| !delivery.edit_told)
            && here.is_some_and(Destination::documents_first);
        let outcome = self
            .outcome()
            .map(|(outcome, _)| outcome)
            .or_else(|| self.parked().map(|_| Outcome::Parked));
        [
            here.map(|_| Announcement::DocumentCreated),
            edited.then_some(Announcement::DocumentEdited),
            outcome.map(Announcement::Outcome),
        ]
        .into_iter()
        .flatten()
        .filter(|announcement| !self.is_announced(*announcement))
    }

    /// Nothing is left to do: it has an outcome, and everybody who must know was told.
    pub fn is_closed(&self) -> bool {
        self.outcome().is_some()
            && self.open_announcements().next().is_none()
            && self.held().is_none()
            && !self.is_unverified()
            && !self.owes_release()
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

/// The audio of a recording that was found at its destination, not brought there.
fn found(what: &What) -> Option<&Audio> {
    match what {
        What::Delivered(delivery) => delivery.audio.as_ref(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
