//! What an entry tells of the attempts to bring its audio where it belongs.

use crate::kazoo::time::Moment;
use crate::recording::digest::Digests;
use crate::recording::order::Order;

use super::cause::{Cause, Outcome};
use super::fact::{Destination, Fact, Since, What};
use super::{Entry, TIDIES};

impl Entry {
    /// Where the audio goes, as decided when the recording ended, or when an operator last moved it on.
    pub fn destination(&self) -> Option<Destination> {
        self.decided().map(|(destination, _)| destination)
    }

    /// Where the audio goes, and how many attempts it has if that was said.
    pub fn decided(&self) -> Option<(Destination, Option<u32>)> {
        let current = self.next_number("retried");
        self.first(|what| match what {
            What::Decided {
                n,
                destination,
                attempts,
            } if *n == current => Some((*destination, *attempts)),
            _ => None,
        })
    }

    /// The postponements since an operator last moved it on, in order: when, and until when.
    pub fn postponed(&self) -> impl DoubleEndedIterator<Item = (Moment, Moment)> {
        let retried = self.retried();
        let mut all: Vec<(u32, Moment, Moment)> = self
            .facts
            .iter()
            .filter_map(|fact| match fact.what {
                What::Postponed { n, until, .. } if Self::counts(retried, fact) => Some((n, fact.at, until)),
                _ => None,
            })
            .collect();
        all.sort_by_key(|(n, ..)| *n);
        all.into_iter().map(|(_, at, until)| (at, until))
    }

    /// How often something was put off since the audio was brought: what is left then concerns its document alone.
    pub fn postponed_since_delivery(&self) -> usize {
        let delivered = self.at_of_last(|what| matches!(what, What::Delivered(_)));
        self.postponed()
            .filter(|(at, _)| delivered.is_some_and(|delivered| *at >= delivered))
            .count()
    }

    /// Looks at a delivery that a server with too few copies had taken, and whether it was there. A server that did not tell was not looked at.
    pub fn looks(&self) -> impl DoubleEndedIterator<Item = bool> {
        self.facts.iter().filter_map(|fact| match &fact.what {
            What::Looked {
                why, unanswered: false, ..
            } => Some(why.is_none()),
            _ => None,
        })
    }

    /// When it was last tried to look at it, or to bring it there.
    pub fn last_looked_at(&self) -> Option<Moment> {
        let mut tried = self
            .facts
            .iter()
            .filter(|fact| matches!(fact.what, What::Looked { .. } | What::Delivered(_)));
        tried.next_back().map(|fact| fact.at)
    }

    /// Whether what was delivered is still to be read back: the server had too few copies when it took it. Until a look has found it, nothing proves
    /// that there is a copy.
    pub fn is_unverified(&self) -> bool {
        let below = self.delivery().is_some_and(|delivery| delivery.below_quorum);
        below && !self.looks().any(|there| there)
    }

    /// Whether the last look did not find what was delivered, and nothing was brought there since.
    pub fn is_lost(&self) -> bool {
        let brought = self.facts.iter().filter_map(|fact| match &fact.what {
            What::Delivered(delivery) => Some(delivery.again),
            _ => None,
        });
        // By numbers: two workers' clocks may differ.
        self.is_unverified() && brought.max().is_some_and(|again| self.vain_looks() > again)
    }

    /// How many looks did not find what was delivered.
    pub fn vain_looks(&self) -> u32 {
        u32::try_from(self.looks().filter(|there| !there).count()).unwrap_or(u32::MAX)
    }

    /// Whether a user deleted it where it was delivered.
    pub(super) fn is_deleted(&self) -> bool {
        self.delivery().is_some_and(|delivery| delivery.deleted)
            || self.has(|what| matches!(what, What::Looked { deleted: true, .. }))
    }

    /// Whether the rest is still to be written into the document that came before the audio.
    pub fn is_unmarked(&self) -> bool {
        self.parked().is_some()
            && self.documented().is_some()
            && self.next_number("marked") < self.next_number("parked")
    }

    /// Whether the switch may still have a file that nobody needs there any more: whoever brought the audio to safety died before it could
    /// say so.
    pub fn owes_release(&self) -> bool {
        let too_short = self.outcome() == Some((Outcome::Discarded, Cause::TooShort));
        let safe = too_short || self.audio_is_safe();
        let collected = self.has(|what| matches!(what, What::Collected(_)));
        let owes = !self.is_let_go() || self.owes_last_look();
        safe && collected && owes && self.tidied().count() < TIDIES
    }

    /// Whether the switch was told to delete the file that passed through our hands last: not an earlier one, for it may have recorded again.
    pub fn is_let_go(&self) -> bool {
        self.comes_after_collecting(|what| matches!(what, What::Released { .. } | What::Tidied { left: None, .. }))
    }

    /// Whether the switch may have made the file anew, at another bridge of which nobody was told: a look when the call is over tells.
    pub fn owes_last_look(&self) -> bool {
        let again = self.order().is_some_and(Order::begins_at_bridges);
        again && !self.comes_after_collecting(|what| matches!(what, What::Tidied { left: None, .. }))
    }

    /// Whether such a fact came after the audio passed through our hands last.
    fn comes_after_collecting(&self, is: impl Fn(&What) -> bool) -> bool {
        let last = |is: &dyn Fn(&What) -> bool| self.facts.iter().rposition(|fact| is(&fact.what));
        let collected = last(&|what| matches!(what, What::Collected(_)));
        last(&is).is_some_and(|at| collected.is_none_or(|collected| collected <= at))
    }

    /// Whether the audio that passed through our hands last is off its switch for good: that very audio, for the switch may have recorded again.
    pub fn audio_is_safe(&self) -> bool {
        self.last_audio().is_some_and(|audio| self.is_safe(&audio.digests))
    }

    /// Whether its audio turned out to be that of the recording which it goes on from.
    pub fn is_already_kept(&self) -> bool {
        self.outcome() == Some((Outcome::Discarded, Cause::AlreadyKept))
    }

    /// Whether nobody wants its audio, on the switch or anywhere.
    pub fn is_unwanted(&self) -> bool {
        matches!(
            self.outcome(),
            Some((Outcome::Discarded, Cause::TooShort | Cause::DiscardedByOperator))
        )
    }

    /// Whether audio with these digests is at its destination, or in the hold.
    pub fn is_safe(&self, digests: &Digests) -> bool {
        let held = self
            .held()
            .into_iter()
            .chain(self.strays())
            .any(|holding| holding.digests == *digests);
        let is = |sha256: &Option<String>| sha256.as_ref() == Some(&digests.sha256);
        held || self.has(|what| match what {
            What::Uploaded { sha256, .. } => is(sha256),
            What::Delivered(delivery) => is(&delivery.sha256) && (!delivery.below_quorum || !self.is_unverified()),
            _ => false,
        })
    }

    /// Looks for a file that should be gone: when.
    pub fn tidied(&self) -> impl DoubleEndedIterator<Item = Moment> {
        self.facts
            .iter()
            .filter(|fact| matches!(fact.what, What::Tidied { .. }))
            .map(|fact| fact.at)
    }

    /// The operator's last retry.
    fn retried(&self) -> Option<&Fact> {
        let retries = self.facts.iter().filter(|fact| fact.what.kind() == "retried");
        retries.max_by_key(|fact| fact.what.number())
    }

    /// Whether it came after the operator's last retry. By numbers: the operator's host has another clock than the worker's.
    fn counts(retried: Option<&Fact>, fact: &Fact) -> bool {
        let Some(retried) = retried else { return true };
        let since = match (&retried.what, &fact.what) {
            (What::Retried { since: Some(since), .. }, What::Postponed { .. }) => since.postponed,
            (What::Retried { since: Some(since), .. }, What::Panicked { .. }) => since.panicked,
            (What::Retried { since: Some(since), .. }, _) => since.attempt,
            // An older version's, which had nothing but the time.
            _ => return fact.at > retried.at,
        };
        fact.what.number().is_some_and(|number| number >= since)
    }

    /// What an operator does to move it on.
    pub fn retry(&self) -> What {
        What::Retried {
            n: self.next_retry(),
            since: Some(Since {
                attempt: self.next_attempt(),
                postponed: self.next_number("postponed"),
                panicked: self.next_number("panicked"),
            }),
        }
    }

    /// The failures to collect or deliver since an operator last moved it on, by their numbers.
    pub fn failures(&self) -> impl DoubleEndedIterator<Item = &Fact> {
        let retried = self.retried();
        let failed = self.facts.iter().filter(|fact| fact.what.attempt().is_some());
        let mut all: Vec<&Fact> = failed.filter(|fact| Self::counts(retried, fact)).collect();
        all.sort_by_key(|fact| fact.what.attempt());
        all.into_iter()
    }

    /// When the program failed on it, since an operator last moved it on.
    pub fn panics(&self) -> impl DoubleEndedIterator<Item = Moment> {
        let retried = self.retried();
        let panics = self.facts.iter().filter(|fact| fact.what.kind() == "panicked");
        let mut all: Vec<&Fact> = panics.filter(|fact| Self::counts(retried, fact)).collect();
        all.sort_by_key(|fact| fact.what.number());
        all.into_iter().map(|fact| fact.at)
    }

    /// The number of the next attempt to bring the audio to its destination; counts from 1, and goes on over everything.
    pub fn next_attempt(&self) -> u32 {
        self.facts
            .iter()
            .filter_map(|fact| fact.what.attempt())
            .max()
            .unwrap_or(0)
            .saturating_add(1)
    }

    /// The number of the rest it is in, if it rested before, and was moved on.
    pub fn later_rest(&self) -> Option<u32> {
        self.parked()?;
        let rests = self.facts.iter().filter(|fact| fact.what.kind() == "parked");
        let newest = rests.filter_map(|fact| fact.what.number()).max();
        newest.filter(|_| self.has(|what| matches!(what, What::Retried { .. })))
    }

    /// Why it rests, if it does.
    pub fn parked(&self) -> Option<Cause> {
        let highest = |kind| self.next_number(kind);
        if highest("parked") <= highest("retried") {
            return None;
        }
        let rests = self.facts.iter().filter_map(|fact| match fact.what {
            What::Parked { n, cause } => Some((n, cause)),
            _ => None,
        });
        rests.max_by_key(|(n, _)| *n).map(|(_, cause)| cause)
    }
}
