//! What actions asked of a running recording (stop, mask, unmask), and what came of it.
//!
//! The switch reports nothing about a mask. A command counts as obeyed when the broker had it while the recording ran on the leg where it
//! began. After a move to another leg the switch does not find the recording, and answers as if it had. Audio that was masked before the
//! move stays masked to the end.

use std::time::Duration;

use crate::kazoo::dialplan::Control;
use crate::kazoo::time::Moment;
use crate::recording::controls::{Controls, NotObeyed, Why};

use super::Entry;
use super::fact::{BEFORE_ANY_START, Fact, Route, What};

/// A command and a move this close together have no certain order. The switch's stamps tick in 20 ms, its clock differs from ours, and the
/// command takes time.
const UNSURE: Duration = Duration::from_millis(100);

/// An unmask is sent so often at most, whatever clocks say.
const MOST_UNMASKS: usize = 4;

/// The clocks of two workers differ by less than this. If they may differ by more, a mask is sent once more, which is harmless.
const CLOCKS_DIFFER: Duration = Duration::from_secs(5);

/// A recording that runs on for longer after a stop has been told while it ran.
const LATE_END: Duration = Duration::from_secs(120);

/// Where a recording was when a command arrived.
enum Place {
    /// The recording had not begun.
    Before,
    Here,
    /// Not where the switch searches for the recording: on another leg, or over.
    Elsewhere(Why),
}

/// A command takes at most this long to arrive, and the clocks of synchronised hosts differ by less.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

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
        for fact in &self.facts {
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
    fn wanted_at(&self, of: &str) -> Option<Moment> {
        self.facts.iter().find_map(|fact| match &fact.what {
            What::MaskAsked { action, asked, .. } if action == of => Some(asked.unwrap_or(fact.at)),
            _ => None,
        })
    }

    /// When the newest known mask or unmask was sent.
    pub fn newest_mask_asked(&self) -> Option<Moment> {
        let asked = self.facts.iter().filter_map(|fact| match &fact.what {
            What::MaskAsked { asked, .. } => Some(asked.unwrap_or(fact.at)),
            _ => None,
        });
        asked.max()
    }

    /// Whether an action that was sent after that moment asked for a mask or an unmask. An older action that arrives late is void.
    pub fn is_overtaken(&self, sent: Moment) -> bool {
        self.facts.iter().any(|fact| match &fact.what {
            What::MaskAsked { asked, .. } => asked.unwrap_or(fact.at) > sent,
            _ => false,
        })
    }

    /// The newest known start, in the switch's order.
    pub fn newest_start(&self) -> Option<i64> {
        let starts = self.facts.iter().filter_map(|fact| match &fact.what {
            What::Started(told) => Some(told.order()),
            _ => None,
        });
        starts.max()
    }

    /// The mask or unmask that must still be sent to the switch, with the number of its command.
    pub fn mask_to_send(&self) -> Option<(&str, Control, u32)> {
        let Wanted { action, on } = self.wanted()?;
        let begun = self.heard_of_start()?;
        if !self.is_open() || self.is_refused(action) {
            return None;
        }
        let sent = || {
            self.facts.iter().filter_map(|fact| match &fact.what {
                What::Masked {
                    action: of, n, start, ..
                } if of == action => Some((fact.at, *n, *start)),
                _ => None,
            })
        };
        // The switch ignores a command that arrives before the recording begins, and each start begins unmasked. The sender of a command
        // notes which start it knew; earlier versions did not.
        let newest = self.newest_start();
        let reached = |(at, _, start): (Moment, u32, Option<i64>)| match start {
            // The sender knew no start, but another worker may have heard of one before. A command well after the start met the recording.
            Some(BEFORE_ANY_START) => at >= begun.plus(CLOCKS_DIFFER),
            Some(_) => start >= newest,
            None => at >= begun,
        };
        // Each part begins unmasked, and so does a continuation.
        let is_new = self.order().is_some_and(|order| order.continues.is_some());
        let is_undone = || {
            // A mask that another task or worker was about to send came after this unmask.
            let last = sent().map(|(at, ..)| at).max();
            let wanted_at = self.wanted_at(action);
            let is_later = |fact: &Fact| match &fact.what {
                What::Masked { action, on: true, .. } => Some(fact.at) > last && self.wanted_at(action) < wanted_at,
                _ => false,
            };
            !on && sent().count() < MOST_UNMASKS && self.facts.iter().any(is_later)
        };
        let due = sent().next().is_none() && (on || !is_new) || on && !sent().any(reached) || is_undone();
        let n = sent().map(|(_, n, _)| n.saturating_add(1)).max().unwrap_or(0);
        due.then_some((action, if on { Control::Mask } else { Control::Unmask }, n))
    }

    /// The commands of a mask or unmask that the broker had.
    fn sent(&self, of: &str) -> impl Iterator<Item = &Fact> {
        let is_one = move |fact: &&Fact| matches!(&fact.what, What::Masked { action, .. } if action == of);
        self.facts.iter().filter(is_one)
    }

    fn is_refused(&self, of: &str) -> bool {
        self.has(|what| match what {
            What::NotObeyed { action, why, .. } => action == of && !self.is_void(*why),
            _ => false,
        })
    }

    /// A leg that was gone looked like a move. Then the recording's end on that very leg arrived late.
    fn is_void(&self, why: Why) -> bool {
        let stayed = || {
            self.started()
                .zip(self.told_end())
                .is_some_and(|(start, end)| start.call_id == end.call_id)
        };
        matches!(why, Why::Moved | Why::PerhapsMoved) && stayed()
    }

    /// When a worker heard of the latest start.
    fn heard_of_start(&self) -> Option<Moment> {
        self.at_of_last(|what| matches!(what, What::Started(_)))
    }

    /// The control address that the newest action on the recording named, and when.
    pub fn route(&self) -> Option<(Moment, &Route)> {
        self.facts.iter().rev().find_map(|fact| match &fact.what {
            What::StopAsked { route: Some(route), .. } | What::MaskAsked { route: Some(route), .. } => {
                Some((fact.at, route))
            }
            _ => None,
        })
    }

    /// A stop, mask or unmask that is known by now to have had no effect, and was not reported yet.
    pub fn unheeded(&self) -> Option<What> {
        self.unheeded_mask().or_else(|| self.unheeded_stop())
    }

    /// A stop that the switch did not obey, of a recording that has ended by itself. While it runs, `StopUnconfirmed` tells it.
    fn unheeded_stop(&self) -> Option<What> {
        let end = self.told_end()?;
        let is_told = |what: &What| match what {
            What::NotObeyed { what, .. } => *what == Control::Stop,
            what => *what == What::StopUnconfirmed,
        };
        if self.has(is_told) {
            return None;
        }
        let newest = self.newest_start();
        let sent = self.facts.iter().find(|fact| match fact.what {
            What::StopSent { start, .. } => start == newest,
            _ => false,
        })?;
        let why = match self.place(sent) {
            Place::Elsewhere(why @ (Why::Moved | Why::PerhapsMoved)) => why,
            Place::Here => {
                // A stop ends a recording at once. Clocks that differ by much more than this are no evidence.
                let ended = self.by_our_clock(end.stamp?);
                let went_on = (ended > sent.at).then(|| ended.since(sent.at));
                went_on.filter(|on| (CLOCKS_DIFFER..=LATE_END).contains(on))?;
                Why::Unconfirmed
            }
            _ => return None,
        };
        let action = self.facts.iter().find_map(|fact| match &fact.what {
            What::StopAsked { action, .. } => Some(action.clone()),
            _ => None,
        })?;
        Some(What::NotObeyed {
            action,
            what: Control::Stop,
            why,
        })
    }

    fn unheeded_mask(&self) -> Option<What> {
        let mut asked = self.facts.iter().filter_map(|fact| match &fact.what {
            What::MaskAsked { action, on, .. } => Some((fact, action, *on)),
            _ => None,
        });
        asked.find_map(|(asked, action, on)| {
            if self.is_refused(action) {
                return None;
            }
            let sent = self.sent(action).last();
            let Place::Elsewhere(why) = self.place(sent.unwrap_or(asked)) else {
                return None;
            };
            // An unmask is not missed then, nor a mask that was asked for when the recording was over.
            let at = match &asked.what {
                What::MaskAsked { asked: Some(at), .. } => *at,
                _ => asked.at,
            };
            let end = self
                .told_end()
                .map(|told| told.stamp.map_or(told.at, |stamp| self.by_our_clock(stamp)));
            if why == Why::Ended && (!on || sent.is_none() && end.is_none_or(|end| at > end)) {
                return None;
            }
            // Sent again, because its sender knew of no start, and too late by then. The first command had met the recording.
            if self.sent(action).any(|sent| self.met_the_latest_part(sent)) {
                return None;
            }
            Some(What::NotObeyed {
                action: action.clone(),
                what: if on { Control::Mask } else { Control::Unmask },
                why,
            })
        })
    }

    /// Where the recording was when a command arrived.
    fn place(&self, command: &Fact) -> Place {
        let at = command.at;
        if self.began().is_some_and(|began| at < began) {
            return Place::Before;
        }
        if self.was_over(command) {
            return Place::Elsewhere(Why::Ended);
        }
        match self.moved() {
            None => Place::Here,
            Some(Some(moved)) if at.plus(UNSURE) < moved => Place::Here,
            Some(Some(moved)) if at > moved.plus(UNSURE) => Place::Elsewhere(Why::Moved),
            Some(Some(_)) => Place::Elsewhere(Why::PerhapsMoved),
            Some(None) => Place::Elsewhere(Why::PerhapsMoved),
        }
    }

    /// Whether a command was sent to the recording while its latest part ran on the leg where it began.
    fn met_the_latest_part(&self, command: &Fact) -> bool {
        let began = self
            .latest_start()
            .and_then(|told| told.stamp)
            .map(|stamp| self.by_our_clock(stamp));
        matches!(self.place(command), Place::Here) && began.is_none_or(|began| command.at >= began)
    }

    /// Whether the recording was over when a command was sent: its sender knew the end, or its clock was well past the end.
    fn was_over(&self, command: &Fact) -> bool {
        let Some(end) = self.told_end() else { return false };
        let begins_once = self.order().is_none_or(|order| !order.may_begin_again());
        let knew = |fact: &Fact| {
            let tells = matches!(fact.what, What::Ended(_) | What::Decided { .. } | What::Collected(_));
            tells && fact.by == command.by && fact.at < command.at
        };
        let stamped = end.stamp.map(|stamp| self.by_our_clock(stamp));
        begins_once && self.facts.iter().any(knew) || stamped.is_some_and(|end| end.plus(ON_ITS_WAY) < command.at)
    }

    /// When the recording began, by the switch's own stamp: a command can reach the switch before a worker hears of the start.
    fn began(&self) -> Option<Moment> {
        let starts = self.facts.iter().filter_map(|fact| match &fact.what {
            What::Started(told) => {
                // A start is presumed when its event was lost. It has no stamp, and its time is that of the command.
                let at = told.stamp.map_or(told.at, |stamp| self.by_our_clock(stamp));
                Some(at.min(fact.at))
            }
            _ => None,
        });
        starts.min()
    }

    /// Whether the recording moved to another leg than the one on which it began, and when, if an event reported that.
    pub fn moved(&self) -> Option<Option<Moment>> {
        self.started()?;
        let carrier = self.carried_by();
        carrier.moved.then_some(carrier.since)
    }

    /// What the document says of stops and masks.
    pub fn controls(&self) -> Controls {
        let mut controls = Controls::default();
        let (mut masked, mut begun) = (false, false);
        for fact in &self.facts {
            match &fact.what {
                // Each later start begins unmasked. The switch can have obeyed a mask of the first part before a worker heard of its start.
                What::Started(_) if begun => masked = false,
                What::Started(_) => begun = true,
                What::Masked { action, on, .. } if !self.is_refused(action) => {
                    let here = matches!(self.place(fact), Place::Here);
                    if here && masked != *on {
                        controls.masks.push((fact.at, *on));
                        masked = *on;
                    }
                }
                What::NotObeyed { action, what, why } if !self.is_void(*why) => {
                    let asked = match what {
                        Control::Stop => self.stop_asked_at(),
                        Control::Mask | Control::Unmask => self.asked(action),
                    };
                    let at = asked.unwrap_or(fact.at);
                    controls.not_obeyed.push(NotObeyed {
                        at,
                        what: *what,
                        why: *why,
                    });
                }
                What::StopUnconfirmed => {
                    let at = self.stop_asked_at().unwrap_or(fact.at);
                    let (what, why) = (Control::Stop, Why::Unconfirmed);
                    controls.not_obeyed.push(NotObeyed { at, what, why });
                }
                _ => {}
            }
        }
        controls.not_obeyed.sort_by_key(|one| one.at);
        controls
    }

    /// When an action asked for this mask or unmask.
    fn asked(&self, of: &str) -> Option<Moment> {
        let mut facts = self.facts.iter();
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
        let amendments = self.facts.iter().filter_map(|fact| match &fact.what {
            What::Amended { n, controls, .. } => Some((*n, controls.as_str())),
            _ => None,
        });
        // Compared by numbers, because two workers' clocks may differ.
        let amended = amendments.max_by_key(|(n, _)| *n).map(|(_, controls)| controls);
        self.controls().fingerprint() != amended.unwrap_or(written)
    }
}
