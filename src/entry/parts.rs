//! A recording that the switch ended and began again under the same name. A start at every bridge does that, and so does a recording whose
//! end was presumed too early. Each stretch is a part.
//!
//! The switch appends to its file while the file exists. So all parts that ended before the audio was made safe are in that audio. Later
//! parts are in a new file, and become a recording of their own, the continuation. Nothing here is decided by the order of arrival alone,
//! nor by the stamps alone: both can mislead.

use crate::kazoo::time::Moment;
use crate::recording::audio::{Audio, Finding, compare_lengths};
use crate::recording::ending::Told;

use super::Entry;
use super::fact::{Fact, What};

mod events;

pub use events::Part;
use events::{Event, Seen, end_of, place, start_of};

/// Milliseconds by which counted audio differs from what the switch reports: the frames of an encoder.
const FITS: u64 = 300;

impl Entry {
    /// How many ends the switch reported, as far as is known.
    pub(super) fn told_ends(&self) -> u32 {
        u32::try_from(self.events(end_of).len()).unwrap_or(u32::MAX)
    }

    /// When workers heard of the starts, without those that were only presumed where an event tells more.
    pub(super) fn starts_heard(&self) -> Vec<Moment> {
        let starts = self.starts(&self.events(end_of)).into_iter();
        let mut heard: Vec<Moment> = starts.map(|start| start.heard).collect();
        heard.sort_unstable();
        heard
    }

    fn starts(&self, ends: &[Event<'_>]) -> Vec<Event<'_>> {
        let mut starts = self.events(start_of);
        // A presumed start says only that the recording did begin. The events say when. A worker can presume a start from its own command,
        // which was sent a second time. That is no second start.
        if starts.iter().any(|start| start.told.stamp.is_some()) {
            starts.retain(|start| start.told.stamp.is_some());
        } else if let Some(first) = ends.iter().filter_map(|end| end.told.stamp).min() {
            starts.retain(|start| start.told.order() <= first);
        }
        starts
    }

    /// The ends that were presumed, each by the place of its start among the events.
    fn presumed_ends(&self) -> Vec<i64> {
        let presumed = self.facts().filter_map(|fact| match &fact.what {
            What::PresumedEnded(told) => Some(told.order()),
            _ => None,
        });
        presumed.collect()
    }

    /// Every known part.
    pub fn parts(&self) -> Vec<Part<'_>> {
        let ends = self.events(end_of);
        let starts = self.starts(&ends);
        let mut begun: Vec<Vec<Event<'_>>> = vec![Vec::new()];
        let presumed = self.presumed_ends();
        let sealed = self.sealed().filter(|_| !presumed.is_empty());
        for start in starts {
            // No start is known before the first one. An end with its stamp is its own, whatever length was reported.
            let has_earlier = begun.len() > 1;
            let restarted = begun.last().and_then(|part| part.first()).is_none_or(|first| {
                let is_behind = |end: &Event<'_>| match has_earlier {
                    true => first.begins_after(end),
                    false => first.is_after(end),
                };
                ends.iter().any(|end| start.begins_after(end) && !is_behind(end))
            });
            // A start after an end whose own start was not heard.
            let unheard = begun.len() == 1 && begun[0].is_empty() && ends.iter().any(|end| start.is_after(end));
            // No event reported the end before. It was presumed, the audio made safe, and then the switch began again.
            let is_after_seal = sealed.is_some_and(|sealed| start.seen().is_by(sealed) != Some(true));
            let resumed = is_after_seal
                && begun.last().and_then(|part| part.first()).is_some_and(|first| {
                    let of_part = first.told.order()..start.told.order();
                    presumed.iter().any(|end| of_part.contains(end))
                });
            let restarted = restarted || resumed;
            match begun.last_mut() {
                Some(part) if !restarted || (part.is_empty() && !unheard) => part.push(start),
                _ => begun.push(vec![start]),
            }
        }
        let mut parts: Vec<Part<'_>> = begun
            .iter()
            .map(|starts| Part {
                started: starts.last().map(|start| start.told),
                begun: starts.first().copied(),
                ended: None,
                end_heard: None,
            })
            .collect();
        for end in ends {
            place(&mut parts, end);
        }
        parts
    }

    /// The parts that are, or will be, in this recording's own audio.
    pub(super) fn own_parts(&self) -> Vec<Part<'_>> {
        let mut parts = self.parts();
        if parts.len() > 1 {
            let covered = self.covered(&parts);
            parts.truncate(covered.max(1));
        }
        parts
    }

    /// Whether the part that began then has its end, and is in this recording's audio.
    pub fn has_whole_part(&self, begun: i64) -> bool {
        let parts = self.own_parts();
        parts.len() > 1 && parts.iter().any(|part| part.ended.is_some() && part.began_at(begun))
    }

    /// The events of parts that are not in this recording's audio. The continuation begins at the first of these parts.
    fn left_over(&self) -> Vec<What> {
        let mut told = self.left_over_parts();
        told.extend(self.delivered_beside());
        told
    }

    fn left_over_parts(&self) -> Vec<What> {
        let parts = self.parts();
        if parts.len() == 1 && !self.has(|what| matches!(what, What::PresumedEnded(_))) {
            return Vec::new();
        }
        let covered = self.covered(&parts);
        // The last part in our audio may be incomplete there.
        let from = covered - usize::from(self.is_outgrown(&parts, covered));
        let told = parts.into_iter().skip(from).flat_map(|part| {
            let started = part.started.map(|told| What::Started(Box::new(told.clone())));
            let ended = part.ended.map(|told| What::Ended(Box::new(told.clone())));
            [started, ended]
        });
        told.flatten().collect()
    }

    /// Whether events are known that belong to this recording's continuation, and were not handed on yet.
    pub fn is_to_be_continued(&self) -> bool {
        let told = u32::try_from(self.left_over().len()).unwrap_or(u32::MAX);
        told > 0 && !self.has(|what| matches!(what, What::Continued { told: known } if *known >= told))
    }

    /// Whether a start belongs to the recording that this one continues: a start is reported to a recording and all its continuations.
    pub fn is_of_one_before(&self, start: &Told) -> bool {
        let is_continuation = self.order().is_some_and(|order| order.continues.is_some());
        is_continuation && self.started().is_some_and(|own| start.order() < own.order())
    }

    /// Whether only what was handed to `after` is known to be missing in this recording's audio.
    pub fn is_all_left_to(&self, after: &Self) -> bool {
        let stretches = |parts: Vec<Part<'_>>| parts.len();
        stretches(self.parts()).saturating_sub(stretches(self.own_parts())) <= stretches(after.parts())
    }

    /// Whether parts are known that are not in this recording's audio. Its file on the switch may contain them by now.
    pub fn goes_on(&self) -> bool {
        !self.left_over_parts().is_empty()
    }

    /// This recording's continuation: a recording of its own, with its events so far, and their number. The same rules apply to it, and it
    /// can have a continuation too.
    pub fn continuation(&self, now: Moment, by: &str) -> Option<(Self, u32)> {
        let left_over = self.left_over();
        let told = u32::try_from(left_over.len()).ok().filter(|told| *told > 0)?;
        let mut order = self.order()?.continuation();
        if let Some(continues) = &mut order.continues {
            continues.before_ms = self.audio().and_then(|audio| audio.duration_ms);
        }
        let mut entry = Self::of_order(order, by);
        // Stop and mask are states: they also apply to what the switch begins by itself later.
        let is_masked = self.is_masked();
        let controls = self.facts().filter_map(|fact| match &fact.what {
            stop @ What::StopAsked { .. } => Some(stop.clone()),
            What::MaskAsked {
                action,
                on,
                route,
                asked,
            } if is_masked => Some(What::MaskAsked {
                action: action.clone(),
                on: *on,
                route: route.clone(),
                asked: Some(asked.unwrap_or(fact.at)),
            }),
            _ => None,
        });
        for what in [What::Commanded].into_iter().chain(controls).chain(left_over) {
            entry.add(Fact {
                at: now,
                by: by.to_owned(),
                what,
            });
        }
        Some((entry, told))
    }

    /// The last start that belongs to this recording's own audio.
    pub fn latest_start(&self) -> Option<&Told> {
        self.own_parts()
            .into_iter()
            .rev()
            .find_map(|part| part.started)
            .or(self.started())
    }

    /// Milliseconds that the switch reported for this recording's own parts; `None` if it did not report all of them.
    pub fn told_ms(&self) -> Option<u64> {
        let parts = self.own_parts();
        let mut lengths = parts.iter().map(|part| part.ended.and_then(|told| told.length_ms));
        lengths.try_fold(0u64, |all, length| Some(all.saturating_add(length?)))
    }

    /// Whether the audio was not brought from the switch for this delivery, but found at its destination. Another worker had delivered it, and
    /// what that worker knew is lost.
    fn is_found(&self) -> bool {
        let Some(audio) = self.delivery().and_then(|delivery| delivery.audio.as_ref()) else {
            return false;
        };
        !self.has(|what| matches!(what, What::Collected(known) if known.digests == audio.digests))
    }

    /// Since when nothing more comes into this recording's audio: the audio is safe, or there is none.
    fn sealed(&self) -> Option<Seen<'_>> {
        let safe = self.delivery().is_some() || self.uploaded().is_some() || self.held().is_some();
        // Another worker may have received other audio of that name.
        let audio = self.audio();
        let is_it = |known: &Audio| audio.is_some_and(|audio| audio.digests == known.digests);
        let collected = || self.last_seen(|what| matches!(what, What::Collected(known) if is_it(known)));
        if safe && let Some(seen) = collected() {
            return Some(seen);
        }
        let concluded = || self.last_seen(|what| matches!(what, What::Concluded { .. } | What::Delivered(_)));
        // Not the outcome, because the outcome depends on what is in the audio.
        let is_over = self.delivery().is_some() || self.conclusion().is_some();
        is_over.then(concluded).flatten()
    }

    /// How many of the parts are in this recording's own audio; all of them as long as it is not sealed.
    fn covered(&self, parts: &[Part<'_>]) -> usize {
        let Some(sealed) = self.sealed() else {
            return parts.len();
        };
        let counted = self.audio().and_then(|audio| audio.duration_ms);
        // Audio that was found at its destination was collected at a time that is not known.
        let is_found = self.is_found();
        // One worker knows whether it heard an end before it collected the file.
        let is_uncertain = |part: &Part<'_>| {
            let heard = part.end_heard;
            heard.is_some_and(|heard| is_found || heard.is_by(sealed).is_none())
        };
        if parts.iter().any(is_uncertain)
            && let Some(covered) = counted.and_then(|counted| self.covered_by_length(parts, counted))
        {
            return covered;
        }
        // A continuation's file may begin with what its recording had before. Then its length says nothing about later parts.
        let begins_with_it = self.order().is_none_or(|order| order.continues.is_none());
        let mut before = begins_with_it.then_some(0u64);
        let in_it = parts.iter().take_while(|part| {
            let length = part.ended.and_then(|end| end.length_ms);
            // Half of a part must be there. The tolerance of `is_as_long_as` is longer than a short part, and no worker searches again for
            // a part that counts as included.
            let wanted = before
                .zip(length)
                .map(|(before, length)| before.saturating_add(length / 2));
            let reached = counted.zip(wanted).map(|(counted, wanted)| counted > wanted);
            // What the lost ends would report is in the audio too, and must not count as a later part.
            before = before
                .zip(length)
                .filter(|_| !part.has_lost_ends())
                .map(|(before, length)| before.saturating_add(length));
            // If the lengths decide, the clocks of two workers do not.
            let heard_before = part.end_heard.is_some_and(|heard| {
                let by_one_clock = heard.is_by(sealed).filter(|_| !is_found);
                by_one_clock.unwrap_or(reached.is_none() && heard.at <= sealed.at)
            });
            let is_presumed = || !is_found && self.is_presumed_over(part, sealed.at);
            heard_before || reached == Some(true) || is_presumed()
        });
        in_it.count().max(1)
    }

    /// How many parts of a continuation its audio has by its length, whether the file begins with the audio of the recording before or not.
    /// `None` if several numbers fit, or none.
    fn covered_by_length(&self, parts: &[Part<'_>], counted: u64) -> Option<usize> {
        let before = self.order()?.continues.as_ref()?.before_ms?;
        let mut own = 0u64;
        let mut fit = Vec::new();
        for (part, n) in parts.iter().zip(1..) {
            // A part that still runs changes nothing of what the parts before it have.
            let Some(end) = part.ended else { break };
            own = own.saturating_add(Some(end).filter(|_| !part.has_lost_ends())?.length_ms?);
            let fits = |told: u64| counted.abs_diff(told) <= FITS.max(told / 100);
            if fits(own) || fits(own.saturating_add(before)) {
                fit.push(n);
            }
        }
        match fit[..] {
            [only] => Some(only),
            _ => None,
        }
    }

    /// Whether no event reported this part's end, and the end was proved before the audio was made safe.
    fn is_presumed_over(&self, part: &Part<'_>, sealed: Moment) -> bool {
        let ended = |fact: &Fact| match &fact.what {
            What::PresumedEnded(told) => fact.at <= sealed && part.begun_at().is_none_or(|begun| told.order() >= begun),
            _ => false,
        };
        part.ended.is_none() && self.facts().any(ended)
    }

    /// Whether the audio has at least this many milliseconds, as far as can be determined.
    fn is_as_long_as(&self, told_ms: u64) -> bool {
        let counted = self.audio().and_then(|audio| audio.duration_ms);
        counted.is_some_and(|counted| compare_lengths(counted, told_ms) != Some(Finding::ShorterThanTold))
    }

    /// Whether the end was presumed, the audio made safe, and only then the switch reported an end that is later than that audio.
    fn is_outgrown(&self, parts: &[Part<'_>], covered: usize) -> bool {
        let (Some(sealed), Some(part)) = (self.sealed(), parts.get(covered.saturating_sub(1))) else {
            return false;
        };
        let presumed = self.has(|what| matches!(what, What::PresumedEnded(_)));
        let told = part.ended.and_then(|end| end.length_ms);
        let late = part.end_heard.is_some_and(|heard| heard.is_by(sealed) != Some(true));
        // An empty file has no length that can be counted, and contains nothing of what was reported.
        let counted = self
            .audio()
            .is_some_and(|audio| audio.duration_ms.is_some() || audio.size == 0);
        presumed && late && counted && told.is_some_and(|told| !self.is_as_long_as(told))
    }

    /// Sorted in the switch's own order.
    fn events<'a>(&'a self, pick: impl Fn(&'a What) -> Option<&'a Told>) -> Vec<Event<'a>> {
        let mut events: Vec<Event<'a>> = self
            .facts()
            .filter_map(|fact| {
                let (heard, by) = (fact.at, fact.by.as_str());
                pick(&fact.what).map(|told| Event { heard, by, told })
            })
            .collect();
        events.sort_by_key(|event| (event.told.order(), event.heard));
        // Copies of one event can differ in fields that do not matter.
        events.dedup_by(|copy, first| copy.is_copy_of(first));
        events
    }

    fn last_seen(&self, is: impl Fn(&What) -> bool) -> Option<Seen<'_>> {
        let fact = self.facts().rev().find(|fact| is(&fact.what))?;
        let (at, by) = (fact.at, fact.by.as_str());
        Some(Seen { at, by })
    }

    pub(super) fn at_of_last(&self, is: impl Fn(&What) -> bool) -> Option<Moment> {
        self.facts().rev().find(|fact| is(&fact.what)).map(|fact| fact.at)
    }
}

#[cfg(test)]
mod tests;
