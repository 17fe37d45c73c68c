//! What actions wanted of a recording that runs, stop, mask and unmask, and what came of it.
//!
//! The switch tells nothing of a mask: its command counts as obeyed when the broker had it while the recording ran on the leg where it began. After a move to
//! another leg the switch looks for the recording in vain and answers as if it had found it; what was masked before stays so to the end.

use std::time::Duration;

use crate::kazoo::dialplan::Control;
use crate::kazoo::time::Moment;
use crate::recording::controls::{Controls, NotObeyed, Why};

use super::Entry;
use super::fact::{BEFORE_ANY_START, Fact, Route, What};

/// A command and a move this close together: the switch's stamps tick in 20 ms, its clock is not ours, and the command was on its way.
const UNSURE: Duration = Duration::from_millis(100);

/// By less than that the clocks of two workers differ; where they may not, a mask is sent once more, which harms nobody.
const CLOCKS_DIFFER: Duration = Duration::from_secs(5);

/// Where a recording is, when a command came.
enum Place {
    /// It had not begun.
    Before,
    Here,
    /// Not where the switch looks for it: on another leg, or over.
    Elsewhere(Why),
}

/// A command is on its way for that long at most, and clocks of hosts that are kept alike differ by less.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// The last that an action wanted of the audio.
struct Wanted<'a> {
    action: &'a str,
    on: bool,
}

impl Entry {
    /// Whether the audio is to be masked now, as actions say.
    pub fn is_masked(&self) -> bool {
        self.wanted().is_some_and(|wanted| wanted.on)
    }

    fn wanted(&self) -> Option<Wanted<'_>> {
        let mut newest: Option<(Moment, Wanted<'_>)> = None;
        for fact in &self.facts {
            let (at, action, on) = match &fact.what {
                What::MaskAsked { action, on, asked, .. } => (asked.unwrap_or(fact.at), action, *on),
                // Of entries that know no more, written by an earlier version.
                What::Masked { action, on, .. } if self.asked(action).is_none() => (fact.at, action, *on),
                _ => continue,
            };
            if newest.as_ref().is_none_or(|(known, _)| at >= *known) {
                newest = Some((at, Wanted { action, on }));
            }
        }
        newest.map(|(_, wanted)| wanted)
    }

    /// Whether an action that was sent after that moment wants the audio masked, or unmasked: an older one that comes late is void.
    pub fn is_overtaken(&self, sent: Moment) -> bool {
        self.facts.iter().any(|fact| match &fact.what {
            What::MaskAsked { asked, .. } => asked.unwrap_or(fact.at) > sent,
            _ => false,
        })
    }

    /// The newest start that is known, by the switch's order.
    pub fn newest_start(&self) -> Option<i64> {
        let starts = self.facts.iter().filter_map(|fact| match &fact.what {
            What::Started(told) => Some(told.order()),
            _ => None,
        });
        starts.max()
    }

    /// The mask, or unmask, that the switch is still to be told, with the number of its command.
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
        // The switch knows nothing of what it was told before it began; and each start begins unmasked. Who sent a command says which start it knew;
        // earlier versions did not.
        let newest = self.newest_start();
        let reached = |(at, _, start): (Moment, u32, Option<i64>)| match start {
            // Another worker heard of the start, and perhaps before: well after it the command met the recording.
            Some(BEFORE_ANY_START) => at >= begun.plus(CLOCKS_DIFFER),
            Some(_) => start >= newest,
            None => at >= begun,
        };
        // Each part begins unmasked, a continuation too.
        let is_new = self.order().is_some_and(|order| order.continues.is_some());
        let due = sent().next().is_none() && (on || !is_new) || on && !sent().any(reached);
        let n = sent().map(|(_, n, _)| n.saturating_add(1)).max().unwrap_or(0);
        due.then_some((action, if on { Control::Mask } else { Control::Unmask }, n))
    }

    /// The commands of a mask, or unmask, that the broker had.
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

    /// A leg that was gone looked like a move, and its recording's end on that very leg came late.
    fn is_void(&self, why: Why) -> bool {
        let stayed = || {
            self.started()
                .zip(self.told_end())
                .is_some_and(|(start, end)| start.call_id == end.call_id)
        };
        matches!(why, Why::Moved | Why::PerhapsMoved) && stayed()
    }

    /// When we heard of the latest start.
    fn heard_of_start(&self) -> Option<Moment> {
        self.at_of_last(|what| matches!(what, What::Started(_)))
    }

    /// Where the newest action on it said that its call is controlled, and when.
    pub fn route(&self) -> Option<(Moment, &Route)> {
        self.facts.iter().rev().find_map(|fact| match &fact.what {
            What::StopAsked { route: Some(route), .. } | What::MaskAsked { route: Some(route), .. } => {
                Some((fact.at, route))
            }
            _ => None,
        })
    }

    /// A mask, or unmask, of which it is known by now that it had no effect, and nobody was told.
    pub fn unheeded(&self) -> Option<What> {
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
            let end = self.told_end().map(|told| Moment::from_unix_micros(told.order()));
            if why == Why::Ended && (!on || sent.is_none() && end.is_none_or(|end| at > end)) {
                return None;
            }
            Some(What::NotObeyed {
                action: action.clone(),
                what: if on { Control::Mask } else { Control::Unmask },
                why,
            })
        })
    }

    /// Where the recording was when a command came.
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

    /// Whether the recording was over when a command was sent: its sender knew the end, or its clock was well past it.
    fn was_over(&self, command: &Fact) -> bool {
        let Some(end) = self.told_end() else { return false };
        let begins_once = self.order().is_none_or(|order| !order.may_begin_again());
        let knew = |fact: &Fact| {
            let tells = matches!(fact.what, What::Ended(_) | What::Decided { .. } | What::Collected(_));
            tells && fact.by == command.by && fact.at < command.at
        };
        let stamped = end.stamp.map(Moment::from_unix_micros);
        begins_once && self.facts.iter().any(knew) || stamped.is_some_and(|end| end.plus(ON_ITS_WAY) < command.at)
    }

    /// When it began: by the switch's own stamp, for a command can reach it before we hear of the start.
    fn began(&self) -> Option<Moment> {
        let starts = self.facts.iter().filter_map(|fact| match &fact.what {
            What::Started(told) => {
                // One that was presumed, for its event was lost, bears no stamp, and the time of the command.
                let at = told.stamp.map_or(told.at, Moment::from_unix_micros);
                Some(at.min(fact.at))
            }
            _ => None,
        });
        starts.min()
    }

    /// Whether it went to another leg than the one on which it began, and when, if that was told.
    pub fn moved(&self) -> Option<Option<Moment>> {
        self.started()?;
        let carrier = self.carried_by();
        carrier.moved.then_some(carrier.since)
    }

    /// What the document says of them.
    pub fn controls(&self) -> Controls {
        let mut controls = Controls::default();
        let (mut masked, mut begun) = (false, false);
        for fact in &self.facts {
            match &fact.what {
                // Each later start begins unmasked; of the first one a mask can have been obeyed before we heard of it.
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
                    let at = self.asked(action).unwrap_or(fact.at);
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
        controls
    }

    /// When an action wanted a mask, or an unmask.
    fn asked(&self, of: &str) -> Option<Moment> {
        let mut facts = self.facts.iter();
        let asked = facts.find(|fact| matches!(&fact.what, What::MaskAsked { action, .. } if action == of));
        asked.map(|fact| fact.at)
    }

    /// Whether more is known of stops and masks than the document says: another worker sent them, and wrote that down when the document was there already.
    pub fn is_to_be_amended(&self) -> bool {
        let written = self.delivery().and_then(|delivery| delivery.controls.as_deref());
        let Some(written) = written.filter(|_| self.delivery().is_some_and(|delivery| !delivery.deleted)) else {
            return false;
        };
        let amendments = self.facts.iter().filter_map(|fact| match &fact.what {
            What::Amended { n, controls, .. } => Some((*n, controls.as_str())),
            _ => None,
        });
        // By their numbers: two workers' clocks may differ.
        let amended = amendments.max_by_key(|(n, _)| *n).map(|(_, controls)| controls);
        self.controls().fingerprint() != amended.unwrap_or(written)
    }
}
