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
mod stray;

use cause::{Cause, Outcome};
use fact::{Announcement, Delivery, Destination, Document, Fact, Holding, What};

/// One recording's entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub key: Key,
    /// The call's id when the action ran: with the key, the entry's address.
    pub call_id: String,
    facts: Vec<Fact>,
}

/// Facts of one kind that are kept: the first of them and the last.
const KEPT_FIRST: usize = 4;
const KEPT_LAST: usize = 28;

/// Looks at what a server with too few copies had taken, before somebody else must look.
pub const LOOKS: usize = 6;

/// Looks for a file that should be gone from its switch, before it is left to whoever cleans its disk.
pub const TIDIES: usize = 6;

impl Entry {
    pub fn new(key: Key, call_id: &str) -> Self {
        Self {
            key,
            call_id: call_id.to_owned(),
            facts: Vec::new(),
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

    /// Adds a fact; `false` when the same is known already, whoever saw it and when.
    pub fn add(&mut self, fact: Fact) -> bool {
        let news = !self.facts.iter().any(|known| known.what == fact.what);
        self.facts.push(fact);
        self.normalise();
        news
    }

    /// The union of two versions of the same entry. Commutative, associative and idempotent.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.facts.extend(other.facts);
        self.normalise();
        self
    }

    /// Sorted; of facts that say the same the earliest; of each kind the first few and the last.
    fn normalise(&mut self) {
        self.facts.sort_by(Fact::order);
        let mut kept: Vec<Fact> = Vec::with_capacity(self.facts.len());
        for fact in self.facts.drain(..) {
            if !kept.iter().any(|known| known.what == fact.what) {
                kept.push(fact);
            }
        }
        let count = |kind: &str| kept.iter().filter(|f| f.what.kind() == kind).count();
        let long: Vec<&'static str> = {
            let mut kinds: Vec<&'static str> = kept.iter().map(|f| f.what.kind()).collect();
            kinds.sort_unstable();
            kinds.dedup();
            kinds
                .into_iter()
                .filter(|kind| count(kind) > KEPT_FIRST + KEPT_LAST)
                .collect()
        };
        for kind in long {
            let total = count_of(&kept, kind);
            let mut seen = 0;
            kept.retain(|fact| {
                if fact.what.kind() != kind {
                    return true;
                }
                seen += 1;
                seen <= KEPT_FIRST || seen > total - KEPT_LAST
            });
        }
        self.facts = kept;
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
        self.facts
            .iter()
            .filter(|fact| fact.what.kind() == kind)
            .map(|fact| match fact.what {
                What::ChannelSeen { n, .. }
                | What::Probed { n, .. }
                | What::StopSent { n }
                | What::Amended { n, .. }
                | What::Held { n, .. }
                | What::Unheld { n }
                | What::Parked { n, .. }
                | What::Decided { n, .. }
                | What::Postponed { n, .. }
                | What::Looked { n, .. }
                | What::Marked { n }
                | What::Released { n }
                | What::Tidied { n, .. }
                | What::Retried { n } => n,
                _ => 0,
            })
            .max()
            .unwrap_or(0)
            + 1
    }

    /// The number that a rest gets which begins now: higher than every rest and every retry before.
    pub fn next_rest(&self) -> u32 {
        self.next_number("parked").max(self.next_number("retried"))
    }

    /// The number of a retry that ends the present rest, if there is one.
    pub fn next_retry(&self) -> u32 {
        (self.next_number("parked") - 1).max(self.next_number("retried"))
    }

    /// The last probes, newest first: when, size and MD5.
    pub fn probes(&self) -> impl Iterator<Item = (Moment, u64, &str)> {
        self.facts.iter().rev().filter_map(|fact| match &fact.what {
            What::Probed { size, md5, .. } => Some((fact.at, *size, md5.as_str())),
            _ => None,
        })
    }

    /// The audio that is safe, else as it last passed through our hands.
    pub fn audio(&self) -> Option<&Audio> {
        let safe = self.safe_sha256();
        let is_safe = |audio: &&Audio| safe.is_some_and(|sha256| audio.digests.sha256 == sha256);
        let found = self.last(|what| collected(what).filter(is_safe));
        found.or_else(|| self.last_audio())
    }

    /// The audio as it last passed through our hands.
    pub fn last_audio(&self) -> Option<&Audio> {
        self.last(collected)
    }

    /// The audio that is safe, with what is wrong with it by all that is told by now: when it came, less may have been known.
    pub fn judged_audio(&self) -> Option<Audio> {
        // Asked first: without audio nothing is sealed, and then the question would lead back here.
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
        self.first(|what| match what {
            What::Delivered(delivery) => Some(delivery.as_ref()),
            _ => None,
        })
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
            return Some((outcome, if suspect { Cause::SuspectAudio } else { Cause::Complete }));
        }
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
        self.has(|what| matches!(what, What::Announced(known) if *known == announcement))
    }

    /// The notices that are still owed, in order.
    pub fn open_announcements(&self) -> impl Iterator<Item = Announcement> {
        let here = self
            .delivery()
            .map(|delivery| delivery.destination)
            .or_else(|| self.documented().and(self.destination()));
        let here = here.filter(|destination| destination.is_documented_here());
        let edited = self.delivery().is_some() && here.is_some_and(Destination::documents_first);
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

    /// Where the recording stands, for lists and metrics.
    pub fn state(&self) -> &'static str {
        match self.outcome() {
            Some((outcome, _)) if self.is_closed() => outcome.name(),
            Some(_) if self.open_announcements().next().is_some() => "announcing",
            Some(_) if self.is_unverified() => "unverified",
            Some(_) => "closing",
            None if self.parked().is_some() => "parked",
            None if self.held().is_some() => "held",
            None if self.ended().is_some() => "ended",
            None if self.started().is_some() => "recording",
            None => "asked",
        }
    }
}

fn collected(what: &What) -> Option<&Audio> {
    match what {
        What::Collected(audio) => Some(audio),
        _ => None,
    }
}

fn count_of(facts: &[Fact], kind: &str) -> usize {
    facts.iter().filter(|fact| fact.what.kind() == kind).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_what() -> impl Strategy<Value = What> {
        prop_oneof![
            Just(What::Commanded),
            Just(What::Closed),
            prop::sample::select(vec![
                Announcement::DocumentCreated,
                Announcement::Outcome(Outcome::Failed)
            ])
            .prop_map(What::Announced),
            (1u32..80).prop_map(|attempt| What::CollectFailed {
                attempt,
                failure: fact::CollectFailure::Broken,
                why: "x".into(),
            }),
            prop::sample::select(vec![
                (Outcome::Failed, Cause::FileGone),
                (Outcome::Discarded, Cause::TooShort)
            ])
            .prop_map(|(outcome, cause)| What::Concluded { outcome, cause }),
        ]
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let fact = (0i64..50, "[ab]", any_what()).prop_map(|(at, by, what)| Fact {
            at: Moment::from_unix_seconds(at),
            by,
            what,
        });
        prop::collection::vec(fact, 0..60).prop_map(|facts| {
            let mut entry = Entry::new(Key::of("call", "action"), "call");
            for fact in facts {
                entry.add(fact);
            }
            entry
        })
    }

    proptest! {
        #[test]
        fn merging_does_not_depend_on_order_or_repetition(a in any_entry(), b in any_entry(), c in any_entry()) {
            prop_assert_eq!(a.clone().merge(b.clone()), b.clone().merge(a.clone()));
            prop_assert_eq!(a.clone().merge(a.clone()), a.clone());
            prop_assert_eq!(a.clone().merge(b.clone()).merge(c.clone()), a.merge(b.merge(c)));
        }

        #[test]
        fn an_entry_survives_the_ledger(entry in any_entry()) {
            let json = serde_json::to_vec(&entry).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Entry>(&json).unwrap(), entry);
        }

        #[test]
        fn an_entry_is_bounded(entry in any_entry()) {
            prop_assert!(entry.failures().count() <= KEPT_FIRST + KEPT_LAST && entry.next_attempt() <= 80);
        }
    }
}
