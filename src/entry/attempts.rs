//! What an entry says of the attempts to deliver its audio.

use crate::faults::{self, is_back};
use crate::kazoo::time::Moment;
use crate::recording::digest::Digests;
use crate::recording::order::Order;

use super::cause::{Cause, Outcome};
use super::fact::{Delivery, Destination, Fact, Since, What};
use super::union::{KEPT_FIRST, KEPT_LAST};
use super::{Entry, LOOKS, TIDIES};

/// Why a notice waits: of the queues that it is routed to, one refuses it.
pub const NOTICE_REFUSED: &str = "a queue refuses the event";

impl Entry {
    /// Until when notices that a queue refuses are not published again, the last delay last.
    pub fn notices_refused(&self) -> impl DoubleEndedIterator<Item = Moment> {
        self.facts().filter_map(|fact| match &fact.what {
            What::Postponed { until, why, .. } if why == NOTICE_REFUSED => Some(*until),
            _ => None,
        })
    }

    /// Where the audio goes, as decided when the recording ended, or when an operator last retried it.
    pub fn destination(&self) -> Option<Destination> {
        self.decided().map(|(destination, _)| destination)
    }

    /// Where the audio goes, and how many attempts it has, if the decision limits them.
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

    /// The postponements since an operator's last retry, in order: when they were, and until when. Those of the time in which a worker
    /// watched Kazoo's own recorder concern the looks, and count no more.
    pub fn postponed(&self) -> impl DoubleEndedIterator<Item = (Moment, Moment)> {
        let retried = self.retried();
        let given_up = self.given_up_at();
        let mut all: Vec<(u32, Moment, Moment)> = self
            .facts()
            .filter_map(|fact| match fact.what {
                What::Postponed { n, until, .. } if Self::delays_attempts(retried, fact) => Some((n, fact.at, until)),
                _ => None,
            })
            .filter(|(_, at, _)| given_up.is_none_or(|given_up| *at >= given_up))
            .collect();
        all.sort_by_key(|(n, ..)| *n);
        all.into_iter().map(|(_, at, until)| (at, until))
    }

    /// Until when nothing is attempted, according to the last postponement since an operator's last retry. One from the time in which a worker watched
    /// Kazoo's own recorder counts too: two workers' clocks may differ, and a recording that is not postponed is attempted without a pause.
    pub fn postponed_until(&self) -> Option<Moment> {
        let retried = self.retried();
        let postponed = self.facts().filter_map(|fact| match fact.what {
            What::Postponed { n, until, .. } if Self::delays_attempts(retried, fact) => Some((n, until)),
            _ => None,
        });
        postponed.max_by_key(|(n, _)| *n).map(|(_, until)| until)
    }

    /// Whether this postponement delays attempts. A queue that refuses a notice delays that notice alone.
    fn delays_attempts(retried: Option<&Fact>, fact: &Fact) -> bool {
        let is_of_notice = matches!(&fact.what, What::Postponed { why, .. } if why == NOTICE_REFUSED);
        !is_of_notice && Self::counts(retried, fact)
    }

    /// When a worker last heard, or presumed, that the recording is over.
    pub fn last_end_at(&self) -> Option<Moment> {
        self.at_of_last(|what| matches!(what, What::Ended(_) | What::PresumedEnded(_)))
    }

    /// How many postponements there were since the delivery. What is left since then concerns the document alone.
    pub fn postponed_since_delivery(&self) -> usize {
        let delivered = self.at_of_last(|what| matches!(what, What::Delivered(_)));
        self.postponed()
            .filter(|(at, _)| delivered.is_some_and(|delivered| *at >= delivered))
            .count()
    }

    /// The read-backs of a delivery that a server with too few copies took: whether each one found it. An attempt without an answer is no
    /// read-back.
    pub fn looks(&self) -> impl DoubleEndedIterator<Item = bool> {
        self.facts().filter_map(|fact| match &fact.what {
            What::Looked {
                why, unanswered: false, ..
            } => Some(why.is_none()),
            _ => None,
        })
    }

    /// When a read-back or a delivery was last tried.
    pub fn last_looked_at(&self) -> Option<Moment> {
        let mut tried = self
            .facts()
            .filter(|fact| matches!(fact.what, What::Looked { .. } | What::Delivered(_)));
        tried.next_back().map(|fact| fact.at)
    }

    /// Whether the delivery must still be read back, because the server had too few copies when it took the audio. Until a read-back has
    /// found it, nothing proves that a copy exists.
    pub fn is_unverified(&self) -> bool {
        let below = self.delivery().is_some_and(|delivery| delivery.below_quorum);
        let is_over = || self.looks().count() >= LOOKS && is_back(faults::Fault::LooksEnd);
        below && !self.looks().any(|there| there) && !is_over()
    }

    /// Whether the last read-back did not find the delivery, and no worker has delivered it again since.
    pub fn is_lost(&self) -> bool {
        let brought = self.facts().filter_map(|fact| match &fact.what {
            What::Delivered(delivery) => Some(delivery.again),
            _ => None,
        });
        // Compared by numbers, because two workers' clocks may differ. Where an earlier version wrote a count, the recording may be delivered once
        // more than needed, which is harmless.
        self.is_unverified() && brought.max().is_some_and(|again| self.last_vain_look() > again)
    }

    /// The number of the last read-back that did not find the delivery; 0: none. Not how many there were, because the first few and the last of
    /// many are kept.
    pub fn last_vain_look(&self) -> u32 {
        let vain = self.facts().filter_map(|fact| match &fact.what {
            What::Looked {
                n,
                why: Some(_),
                unanswered: false,
                ..
            } => Some(*n),
            _ => None,
        });
        vain.max().unwrap_or(0)
    }

    /// Whether a user deleted the recording at its destination.
    pub(super) fn is_deleted(&self) -> bool {
        self.delivery().is_some_and(|delivery| delivery.deleted)
            || self.has(|what| matches!(what, What::Looked { deleted: true, .. }))
    }

    /// What the document that came before the audio must still say: that the recording is parked, or that it ended without a delivery. Each
    /// parking has its number. The end has the number after the last parking's.
    pub fn owes_mark(&self) -> Option<(u32, Cause)> {
        self.documented()?;
        let next = self.next_number("parked");
        let (n, cause) = match self.outcome() {
            None => (next - 1, self.parked()?),
            Some((_, cause)) if self.delivery().is_none() => (next, cause),
            // The delivery completed the document.
            Some(_) => return None,
        };
        (self.next_number("marked") <= n).then_some((n, cause))
    }

    /// Whether the switch may still have a file that is not needed there any more. The worker that made the audio safe may have crashed
    /// before it released the file.
    pub fn owes_release(&self) -> bool {
        // What was discarded leaves the hold in any case. That does not settle the file. Which audio a worker received last is uncertain if
        // the workers' clocks differ, and the answer to the switch compares the audio in any case.
        let safe = self.is_unwanted() || self.audio_is_safe() || self.delivery().is_some() && !self.is_unverified();
        let collected = self.has(|what| matches!(what, What::Collected(_)));
        let owes = !self.is_let_go() || self.owes_last_look();
        safe && collected && owes && self.tidied().count() < TIDIES
    }

    /// Whether a worker released the file that a worker received last. An earlier file does not count, because the switch may have recorded
    /// again.
    pub fn is_let_go(&self) -> bool {
        self.comes_after_collecting(|what| matches!(what, What::Released { .. } | What::Tidied { left: None, .. }))
    }

    /// Whether the switch may have created the file anew at another bridge, and no event reported it. A request for the file after the end
    /// of the call shows that.
    pub fn owes_last_look(&self) -> bool {
        let again = self.order().is_some_and(Order::begins_at_bridges);
        again && !self.comes_after_collecting(|what| matches!(what, What::Tidied { left: None, .. }))
    }

    /// Whether such a fact came after the last audio that a worker received.
    fn comes_after_collecting(&self, is: impl Fn(&What) -> bool) -> bool {
        let last = |is: &dyn Fn(&What) -> bool| self.facts().rposition(|fact| is(&fact.what));
        let collected = last(&|what| matches!(what, What::Collected(_)));
        last(&is).is_some_and(|at| collected.is_none_or(|collected| collected <= at))
    }

    /// Whether the audio that a worker received last is safe off its switch. It must be exactly that audio, because the switch may have
    /// recorded again.
    pub fn audio_is_safe(&self) -> bool {
        self.last_audio().is_some_and(|audio| self.is_safe(&audio.digests))
    }

    /// Whether a file with these bytes may go from its switch. Of a recording that is not wanted any more, only the audio that a worker
    /// received may go: the switch may have recorded something else into the file.
    pub fn may_let_go(&self, there: &Digests) -> bool {
        let is_known = || self.has(|what| matches!(what, What::Collected(audio) if audio.digests == *there));
        self.is_safe(there) || self.is_unwanted() && is_known()
    }

    /// Whether these bytes are this recording's own audio, verified or not, so that they show no part of which no event told.
    pub fn has_had(&self, there: &Digests) -> bool {
        self.audio().is_some_and(|own| own.digests == *there)
            || self.has(
                |what| matches!(what, What::Delivered(delivery) if delivery.sha256.as_ref() == Some(&there.sha256)),
            )
    }

    /// Whether its audio turned out to be in the recording that this one continues.
    pub fn is_already_kept(&self) -> bool {
        self.outcome() == Some((Outcome::Discarded, Cause::AlreadyKept))
    }

    /// Whether the audio is not to be kept any more, on the switch or elsewhere.
    pub fn is_unwanted(&self) -> bool {
        matches!(
            self.outcome(),
            Some((
                Outcome::Discarded,
                Cause::TooShort | Cause::DiscardedByOperator | Cause::RetentionOver
            ))
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
            What::Delivered(delivery) => {
                is(&delivery.sha256) && (!delivery.below_quorum || self.has_verified(delivery))
            }
            _ => false,
        })
    }

    /// Whether a read-back found this delivery. Read-backs are of the first delivery, and of the same audio alone.
    fn has_verified(&self, delivery: &Delivery) -> bool {
        let is_own = self.delivery().is_some_and(|own| own.sha256 == delivery.sha256);
        is_own && !self.is_unverified()
    }

    /// Whether a worker found that the audio is in the recording that this one continues. Then nothing is left to be brought.
    pub fn was_found_kept(&self) -> bool {
        self.has(|what| {
            matches!(
                what,
                What::Concluded {
                    cause: Cause::AlreadyKept,
                    ..
                }
            )
        })
    }

    /// When a worker asked for a file that should be gone.
    pub fn tidied(&self) -> impl DoubleEndedIterator<Item = Moment> {
        self.facts()
            .filter(|fact| matches!(fact.what, What::Tidied { .. }))
            .map(|fact| fact.at)
    }

    /// How often in a row, up to now, the switch could not open a file that should be gone.
    pub fn misses(&self) -> usize {
        let since = self.facts().rev();
        let since = since.take_while(|fact| !matches!(fact.what, What::Collected(_)));
        let asked = since.filter_map(|fact| match fact.what {
            What::Tidied { missing, .. } => Some(missing),
            _ => None,
        });
        asked.take_while(|missing| *missing).count()
    }

    /// The operator's last retry.
    fn retried(&self) -> Option<&Fact> {
        let retries = self.facts().filter(|fact| fact.what.kind() == "retried");
        retries.max_by_key(|fact| fact.what.number())
    }

    /// Whether a fact came after the operator's last retry. Compared by numbers, because the operator's host has another clock than the
    /// worker's.
    fn counts(retried: Option<&Fact>, fact: &Fact) -> bool {
        let Some(retried) = retried else { return true };
        if is_back(faults::Fault::RetryByTime) {
            return fact.at > retried.at;
        }
        let since = match (&retried.what, &fact.what) {
            (What::Retried { since: Some(since), .. }, What::Postponed { .. }) => since.postponed,
            (What::Retried { since: Some(since), .. }, What::Panicked { .. }) => since.panicked,
            (What::Retried { since: Some(since), .. }, _) => since.attempt,
            // An older version wrote the retry, and noted only the time.
            _ => return fact.at > retried.at,
        };
        fact.what.number().is_some_and(|number| number >= since)
    }

    /// The fact that an operator's retry adds.
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

    /// The fact that the recording is parked.
    pub fn park(&self, cause: Cause) -> What {
        What::Parked {
            n: self.next_rest(),
            cause,
            ends: (cause == Cause::NotCollected).then(|| self.told_ends()),
        }
    }

    /// Whether the recording is parked because its file was missing, and the switch has reported an end since. Compared by numbers, because two
    /// workers' clocks may differ.
    pub fn is_woken(&self) -> bool {
        let newest = self.next_number("parked") - 1;
        let parked = self.facts().filter_map(|fact| match fact.what {
            What::Parked { n, cause, ends } if n == newest => Some((fact.at, cause, ends)),
            _ => None,
        });
        let Some((since, ..)) = parked.clone().find(|(_, cause, _)| *cause == Cause::NotCollected) else {
            return false;
        };
        // Of two workers that parked it at once, one may have known more.
        let known = parked.filter_map(|(.., ends)| ends).max();
        let is_full = self.told_ends() as usize >= KEPT_FIRST + KEPT_LAST;
        match known.filter(|_| !is_full) {
            Some(known) => self.told_ends() > known,
            // An older version wrote it, and noted only the time.
            None => {
                let mut ends = self.facts().filter(|fact| matches!(fact.what, What::Ended(_)));
                ends.any(|end| end.at > since)
            }
        }
    }

    /// The failures to collect or deliver since an operator's last retry, by their numbers.
    pub fn failures(&self) -> impl DoubleEndedIterator<Item = &Fact> {
        let retried = self.retried();
        let failed = self.facts().filter(|fact| fact.what.attempt().is_some());
        let mut all: Vec<&Fact> = failed.filter(|fact| Self::counts(retried, fact)).collect();
        all.sort_by_key(|fact| fact.what.attempt());
        all.into_iter()
    }

    /// When the program panicked on the recording, since an operator's last retry.
    pub fn panics(&self) -> impl DoubleEndedIterator<Item = Moment> {
        let retried = self.retried();
        let panics = self.facts().filter(|fact| fact.what.kind() == "panicked");
        let mut all: Vec<&Fact> = panics.filter(|fact| Self::counts(retried, fact)).collect();
        all.sort_by_key(|fact| fact.what.number());
        all.into_iter().map(|fact| fact.at)
    }

    /// The number of the next attempt to deliver the audio. It counts from 1, and a retry does not reset it.
    pub fn next_attempt(&self) -> u32 {
        self.facts()
            .filter_map(|fact| fact.what.attempt())
            .max()
            .unwrap_or(0)
            .saturating_add(1)
    }

    /// The number of the present parking, if the recording was parked and retried before.
    pub fn later_rest(&self) -> Option<u32> {
        self.parked()?;
        let rests = self.facts().filter(|fact| fact.what.kind() == "parked");
        let newest = rests.filter_map(|fact| fact.what.number()).max();
        newest.filter(|_| self.has(|what| matches!(what, What::Retried { .. })))
    }

    /// Why the recording is parked, if it is.
    pub fn parked(&self) -> Option<Cause> {
        let highest = |kind| self.next_number(kind);
        if highest("parked") <= highest("retried") {
            return None;
        }
        let rests = self.facts().filter_map(|fact| match fact.what {
            What::Parked { n, cause, .. } => Some((n, cause)),
            _ => None,
        });
        rests.max_by_key(|(n, _)| *n).map(|(_, cause)| cause)
    }
}

#[cfg(test)]
mod tests {
    use crate::recording::audio::Audio;
    use crate::recording::identity::Key;

    use super::*;

    fn entry(facts: impl IntoIterator<Item = What>) -> Entry {
        let mut entry = Entry::new(Key::of("call", "action"), "call");
        for (second, what) in (1_795_386_300..).zip(facts) {
            entry.add(Fact {
                at: Moment::from_unix_seconds(second),
                by: "w".into(),
                what,
            });
        }
        entry
    }

    fn digests(of: &str) -> Digests {
        Digests {
            md5: of.into(),
            sha256: of.into(),
        }
    }

    /// The switch may have recorded another call, or another part, into the file since.
    #[test]
    fn of_a_discarded_recording_only_the_audio_that_a_worker_received_may_go() {
        let collected = || {
            What::Collected(Audio {
                size: 1,
                digests: digests("own"),
                duration_ms: None,
                findings: Vec::new(),
                as_written: None,
            })
        };
        for cause in [Cause::TooShort, Cause::DiscardedByOperator, Cause::RetentionOver] {
            let outcome = Outcome::Discarded;
            let discarded = entry([collected(), What::Concluded { outcome, cause }]);
            assert!(
                discarded.owes_release() && discarded.may_let_go(&digests("own")),
                "{cause}"
            );
            assert!(!discarded.may_let_go(&digests("other")), "{cause}");
        }
        assert!(!entry([collected()]).may_let_go(&digests("own")), "it is nowhere else");
    }

    #[test]
    fn requests_for_a_file_that_should_be_gone_prove_it_only_in_a_row() {
        let collected = |size| {
            What::Collected(Audio {
                size,
                digests: Digests {
                    md5: "1".into(),
                    sha256: "1".into(),
                },
                duration_ms: None,
                findings: Vec::new(),
                as_written: None,
            })
        };
        let tidied = |n, missing: bool| What::Tidied {
            n,
            left: Some("why".into()),
            missing,
        };
        let misses = |facts: &[What]| {
            let mut entry = Entry::new(Key::of("call", "action"), "call");
            for (second, what) in (1_795_386_300..).zip(facts) {
                entry.add(Fact {
                    at: Moment::from_unix_seconds(second),
                    by: "w".into(),
                    what: what.clone(),
                });
            }
            entry.misses()
        };
        assert_eq!(misses(&[collected(1)]), 0);
        assert_eq!(misses(&[collected(1), tidied(1, true), tidied(2, true)]), 2);
        let answered = [collected(1), tidied(1, true), tidied(2, false), tidied(3, true)];
        assert_eq!(
            misses(&answered),
            1,
            "the switch had the file meanwhile, or did not answer"
        );
        let again = [collected(1), tidied(1, true), collected(2), tidied(2, true)];
        assert_eq!(misses(&again), 1, "it is another file since");
    }
}
