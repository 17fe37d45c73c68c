//! What actions asked of a running recording (stop, mask, unmask), and what must be sent. `obeyed` says what came of it.

use std::time::Duration;

use crate::kazoo::dialplan::Control;
use crate::kazoo::time::Moment;
use crate::recording::controls::Why;

use super::Entry;
use super::fact::{BEFORE_ANY_START, Fact, Route, What};

/// A mask, or an unmask, is sent so often at most because a command of an earlier action came after it, whatever clocks say.
const MOST_REPEATS: usize = 4;

/// The clocks of two workers differ by less than this. If they may differ by more, a mask is sent once more, which is harmless.
pub(super) const CLOCKS_DIFFER: Duration = Duration::from_secs(5);

/// The last mask or unmask that an action asked for.
struct Wanted<'a> {
    action: &'a str,
    on: bool,
}

impl Entry {
    /// Whether the audio must be masked now, according to the actions.
    pub fn is_masked(&self) -> bool {
        self.wanted().is_some_and(|wanted| wanted.on)
    }

    fn wanted(&self) -> Option<Wanted<'_>> {
        let mut newest: Option<(Moment, Wanted<'_>)> = None;
        for fact in self.facts() {
            let (at, action, on) = match &fact.what {
                What::MaskAsked { action, on, asked, .. } => (asked.unwrap_or(fact.at), action, *on),
                // An earlier version wrote this entry, and noted no more than this.
                What::Masked { action, on, .. } if self.asked(action).is_none() => (fact.at, action, *on),
                _ => continue,
            };
            if newest.as_ref().is_none_or(|(known, _)| at >= *known) {
                newest = Some((at, Wanted { action, on }));
            }
        }
        newest.map(|(_, wanted)| wanted)
    }

    /// When an action that masks or unmasks was sent, by its sender's clock where that is known.
    pub(super) fn wanted_at(&self, of: &str) -> Option<Moment> {
        self.facts().find_map(|fact| match &fact.what {
            What::MaskAsked { action, asked, .. } if action == of => Some(asked.unwrap_or(fact.at)),
            _ => None,
        })
    }

    /// When the newest known mask or unmask was sent.
    pub fn newest_mask_asked(&self) -> Option<Moment> {
        let asked = self.facts().filter_map(|fact| match &fact.what {
            What::MaskAsked { asked, .. } => Some(asked.unwrap_or(fact.at)),
            _ => None,
        });
        asked.max()
    }

    /// Whether an action that was sent after that moment asked for a mask or an unmask. An older action that arrives late is void.
    pub fn is_overtaken(&self, sent: Moment) -> bool {
        self.facts().any(|fact| match &fact.what {
            What::MaskAsked { asked, .. } => asked.unwrap_or(fact.at) > sent,
            _ => false,
        })
    }

    /// The newest known start, in the switch's order.
    pub fn newest_start(&self) -> Option<i64> {
        let starts = self.facts().filter_map(|fact| match &fact.what {
            What::Started(told) => Some(told.order()),
            _ => None,
        });
        starts.max()
    }

    /// The mask or unmask that must still be sent to the switch, with the number of its command.
    pub fn mask_to_send(&self) -> Option<(&str, Control, u32)> {
        let Wanted { action, on } = self.wanted()?;
        let begun = self.heard_of_start()?;
        if !self.is_open() || self.is_refused(action) || self.was_given_up(action, begun) {
            return None;
        }
        let sent = || {
            self.facts().filter_map(|fact| match &fact.what {
                What::Masked {
                    action: of, n, start, ..
                } if of == action => Some((fact, *n, *start)),
                _ => None,
            })
        };
        // The switch ignores a command that arrives before the recording begins, and each start begins unmasked. The sender of a command
        // notes which start it knew; earlier versions did not.
        let newest = self.newest_start();
        let reached = |(fact, _, start): (&Fact, u32, Option<i64>)| match start {
            // The sender knew no start, but another worker may have heard of one before. A command well after the start met the recording.
            Some(BEFORE_ANY_START) => self.came_after_start(fact, action),
            Some(_) => start >= newest,
            None => fact.at >= begun,
        };
        // Each part begins unmasked, and so does a continuation.
        let is_new = self.order().is_some_and(|order| order.continues.is_some());
        let is_undone = || {
            // A command of an earlier action, which another task or worker was about to send, came after this one.
            let last = sent().map(|(fact, ..)| fact.at).max();
            let wanted_at = self.wanted_at(action);
            let is_later = |fact: &Fact| match &fact.what {
                What::Masked { action, on: other, .. } => {
                    *other != on && Some(fact.at) > last && self.wanted_at(action) < wanted_at
                }
                _ => false,
            };
            sent().count() < MOST_REPEATS && self.facts().any(is_later)
        };
        let due = sent().next().is_none() && (on || !is_new) || on && !sent().any(reached) || is_undone();
        let n = sent().map(|(_, n, _)| n.saturating_add(1)).max().unwrap_or(0);
        due.then_some((action, if on { Control::Mask } else { Control::Unmask }, n))
    }

    /// Whether the command of a mask whose sender knew no start came well after the newest start. The clock of the sender tells that, if the sender
    /// heard events of the switch. Otherwise the clocks of the callflow, of both workers and of the switch must agree.
    fn came_after_start(&self, sent: &Fact, action: &str) -> bool {
        let starts = self.facts().filter_map(|fact| match &fact.what {
            What::Started(told) => Some((fact, told)),
            _ => None,
        });
        let Some((heard, told)) = starts.max_by_key(|(_, told)| told.order()) else {
            return false;
        };
        let by_its_clock = told.stamp.and_then(|stamp| self.by_clock_of(&sent.by, stamp));
        match by_its_clock.or((heard.by == sent.by).then_some(heard.at)) {
            Some(began) => sent.at >= began.plus(CLOCKS_DIFFER),
            None => {
                let began = heard.at.max(told.at).plus(CLOCKS_DIFFER);
                sent.at >= began && self.asked_by_callflow(action).is_some_and(|asked| asked >= began)
            }
        }
    }

    /// Whether a mask whose sender knew no start was asked for before this start, by the callflow's clock, and the sender's clock does not tell that the
    /// command came later.
    pub(super) fn was_asked_before(&self, began: Moment, command: &Fact) -> bool {
        let What::Masked {
            action,
            on: true,
            start: Some(BEFORE_ANY_START),
            ..
        } = &command.what
        else {
            return false;
        };
        let stamp = self.started().and_then(|told| told.stamp);
        let by_its_clock = stamp.and_then(|stamp| self.by_clock_of(&command.by, stamp));
        by_its_clock.is_none_or(|began| command.at < began)
            && self.asked_by_callflow(action).is_some_and(|asked| asked < began)
    }

    /// When the callflow sent the action of a mask or unmask, by its own clock.
    fn asked_by_callflow(&self, of: &str) -> Option<Moment> {
        self.facts().find_map(|fact| match &fact.what {
            What::MaskAsked { action, asked, .. } if action == of => *asked,
            _ => None,
        })
    }

    /// Whether this is the last mask or unmask that an action asked for.
    pub(super) fn is_wanted(&self, action: &str) -> bool {
        self.wanted().is_some_and(|wanted| wanted.action == action)
    }

    /// The commands of a mask or unmask that the broker had.
    pub(super) fn sent(&self, of: &str) -> impl Iterator<Item = &Fact> {
        let is_one = move |fact: &&Fact| matches!(&fact.what, What::Masked { action, .. } if action == of);
        self.facts().filter(is_one)
    }

    /// Whether the mask or unmask of an action is known to have had no effect.
    pub(super) fn is_refused(&self, of: &str) -> bool {
        self.has(|what| match what {
            What::NotObeyed { action, why, .. } => action == of && !self.is_void(action, *why),
            _ => false,
        })
    }

    /// Whether no queue took the command of this mask or unmask for so long that a worker gave it up, after the latest start. An earlier command
    /// of the action may have met the recording all the same.
    fn was_given_up(&self, of: &str, begun: Moment) -> bool {
        let is_it = |what: &What| match what {
            What::NotObeyed { action, why, .. } => action == of && *why == Why::Undelivered,
            _ => false,
        };
        self.facts().any(|fact| fact.at >= begun && is_it(&fact.what))
    }

    /// When a worker heard of the latest start.
    fn heard_of_start(&self) -> Option<Moment> {
        self.at_of_last(|what| matches!(what, What::Started(_)))
    }

    /// The control address that the newest action on the recording named, and when.
    pub fn route(&self) -> Option<(Moment, &Route)> {
        self.facts().rev().find_map(|fact| match &fact.what {
            What::StopAsked { route: Some(route), .. } | What::MaskAsked { route: Some(route), .. } => {
                Some((fact.at, route))
            }
            _ => None,
        })
    }

    /// When an action asked for this mask or unmask.
    pub(super) fn asked(&self, of: &str) -> Option<Moment> {
        let mut facts = self.facts();
        let asked = facts.find(|fact| matches!(&fact.what, What::MaskAsked { action, .. } if action == of));
        asked.map(|fact| fact.at)
    }

    /// Whether more is known of stops and masks than the document says. Another worker can have sent them, and noted that after the
    /// document was written.
    pub fn is_to_be_amended(&self) -> bool {
        let written = self.delivery().and_then(|delivery| delivery.controls.as_deref());
        let Some(written) = written.filter(|_| self.delivery().is_some_and(|delivery| !delivery.deleted)) else {
            return false;
        };
        let amendments = self.facts().filter_map(|fact| match &fact.what {
            What::Amended { n, controls, .. } => Some((*n, controls.as_str())),
            _ => None,
        });
        // Compared by numbers, because two workers' clocks may differ.
        let amended = amendments.max_by_key(|(n, _)| *n).map(|(_, controls)| controls);
        self.controls().fingerprint() != amended.unwrap_or(written)
    }
}
