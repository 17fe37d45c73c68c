//! What came of stops, masks and unmasks.
//!
//! The switch reports nothing about a mask. A command counts as obeyed when the broker had it while the recording ran on the leg where it
//! began. After a move to another leg the switch does not find the recording, and answers as if it had. Audio that was masked before the
//! move stays masked to the end.

use std::time::Duration;

use crate::kazoo::dialplan::Control;
use crate::kazoo::time::Moment;
use crate::recording::controls::{Controls, NotObeyed, Why};
use crate::recording::ending::Told;
use crate::recording::order::Order;

use super::Entry;
use super::controls::CLOCKS_DIFFER;
use super::fact::{BEFORE_ANY_START, Fact, What};
use super::union::{KEPT_FIRST, KEPT_LAST};

mod masks;

/// A command and a move this close together have no certain order. The switch's stamps tick in 20 ms, its clock differs from ours, and the
/// command takes time.
const UNSURE: Duration = Duration::from_millis(100);

/// A recording that ran on for longer than this after a stop: rather the clocks of two hosts differ. While a recording runs, `StopUnconfirmed`
/// tells of a stop after half a minute, unless no worker could note it.
const LATE_END: Duration = Duration::from_secs(1800);

/// A command takes at most this long to arrive, and the clocks of synchronised hosts differ by less.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// A stop that no queue took, of a call that ends within this time, is no fault: the control process ends with its call.
const ENDING: Duration = Duration::from_secs(2);

/// Where a recording was when a command arrived.
enum Place {
    /// The recording had not begun.
    Before,
    Here,
    /// Not where the switch searches for the recording: on another leg, or over.
    Elsewhere(Why),
}

/// An action that masks or unmasks.
struct Action<'a> {
    id: &'a str,
    on: bool,
    /// When it was sent, by its sender's clock, and when a worker noted it.
    order: (Moment, Moment),
    asked_at: Option<Moment>,
}

impl Entry {
    /// A stop, mask or unmask that is known by now to have had no effect, and was not reported yet.
    pub fn unheeded(&self) -> Option<What> {
        self.unheeded_mask()
            .or_else(|| self.undone_mask())
            .or_else(|| self.unheeded_stop())
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
        let (stop, action) = self.facts().find_map(|fact| match &fact.what {
            What::StopAsked { action, .. } => Some((fact, action)),
            _ => None,
        })?;
        let asked = stop.at;
        if self.may_lack_verdict(asked) {
            return None;
        }
        let (newest, began) = (self.newest_start(), self.latest_began());
        // Its sender may not have heard of the start that the command met.
        let of_newest = |fact: &&Fact| match fact.what {
            What::StopSent { start: None, .. } => newest.is_none() || began.is_some_and(|began| fact.at >= began),
            What::StopSent { start, .. } => start == newest,
            _ => false,
        };
        let sent = self.facts().filter(of_newest);
        let arrived = sent.clone().find(|fact| !self.is_stop_returned(&fact.what));
        let ended = end.stamp.map(|stamp| self.by_our_clock(stamp));
        let ran_on = || {
            let since = self.latest_began().map_or(asked, |began| asked.max(began));
            ended.is_some_and(|ended| ended > since.plus(ENDING))
        };
        let why = match arrived.map(|sent| (sent, self.place(sent))) {
            Some((_, Place::Elsewhere(why @ (Why::Moved | Why::PerhapsMoved)))) => why,
            // The recording had been stopped, and began again at the next bridge. The switch's own clock tells for how long.
            Some((sent, Place::Here))
                if began.is_some_and(|began| began > asked.plus(CLOCKS_DIFFER)) && !was_sent_at_once(stop, sent) =>
            {
                ran_on().then_some(Why::Unconfirmed)?
            }
            Some((sent, Place::Here)) => {
                // A stop ends a recording at once. Clocks that differ by much more than this are no evidence. By the clock of another worker
                // than the stop's sender the stop can seem to be early. Then a hang-up alone shows that something else ended the recording.
                let by_its_clock = end.stamp.and_then(|stamp| self.by_senders_clock(sent, stamp));
                let ended = by_its_clock.or(ended.filter(|_| end.hung_up == Some(true)));
                let went_on = ended.filter(|ended| *ended > sent.at)?.since(sent.at);
                (CLOCKS_DIFFER..=LATE_END)
                    .contains(&went_on)
                    .then_some(Why::Unconfirmed)?
            }
            // It was too late because no worker could carry it out earlier.
            Some((_, Place::Elsewhere(why @ Why::Ended))) => {
                let asked = self.stop_delayed().map_or(asked, |sent| sent.min(asked));
                (ended? > asked.plus(ENDING)).then_some(why)?
            }
            Some(_) => return None,
            None if sent.count() > 0 => ran_on().then_some(Why::Undelivered)?,
            // No worker could send it before the end, other than to an earlier part.
            None => (self.is_latest_part_unstopped() && ran_on()).then_some(Why::Ended)?,
        };
        Some(What::NotObeyed {
            action: action.clone(),
            what: Control::Stop,
            why,
        })
    }

    /// Whether no stop was sent to the latest part: the sender of each one knew no later start than that of an earlier part, and sent it before
    /// the latest part began. Starts of a continuation do not count.
    fn is_latest_part_unstopped(&self) -> bool {
        let latest = self.latest_start().map(Told::order);
        let began = self.latest_began();
        let mut sent = self.facts().filter_map(|fact| match fact.what {
            What::StopSent { start, .. } => Some((fact, start)),
            _ => None,
        });
        sent.all(|(sent, start)| knew_start(sent) && start < latest && began.is_some_and(|began| sent.at < began))
    }

    /// When the first stop had been sent, by its sender's clock, if a worker carried it out a while later.
    fn stop_delayed(&self) -> Option<Moment> {
        let first = self.facts().find_map(|fact| match &fact.what {
            What::StopAsked { action, .. } => Some(action),
            _ => None,
        })?;
        self.facts().find_map(|fact| match &fact.what {
            What::StopDelayed { action, asked } if action == first => Some(*asked),
            _ => None,
        })
    }

    /// Whether this is a stop command that the broker returned.
    pub fn is_stop_returned(&self, sent: &What) -> bool {
        let What::StopSent { n, .. } = sent else { return false };
        self.has(|what| matches!(what, What::Returned { what: Control::Stop, n: of, .. } if of == n))
    }

    /// Why a stop was not confirmed: no command of it reached a queue, or the switch did not obey.
    pub fn why_not_stopped(&self) -> Why {
        let is_stop = |fact: &&Fact| matches!(fact.what, What::StopSent { .. });
        let mut sent = self.facts().filter(is_stop);
        match sent.all(|fact| self.is_stop_returned(&fact.what)) {
            true => Why::Undelivered,
            false => Why::Unconfirmed,
        }
    }

    fn unheeded_mask(&self) -> Option<What> {
        let mut asked = self.facts().filter_map(|fact| match &fact.what {
            What::MaskAsked { action, on, asked, .. } => Some((fact, action, *on, asked.unwrap_or(fact.at))),
            _ => None,
        });
        asked.find_map(|(asked, action, on, at)| {
            if self.is_refused(action) || self.may_lack_verdict(asked.at) {
                return None;
            }
            let sent = self.sent(action).last();
            if sent.is_none() && self.may_lack_commands(action) {
                return None;
            }
            let why = match self.place(sent.unwrap_or(asked)) {
                Place::Elsewhere(why) => {
                    // An unmask is not missed then, nor a mask that was asked for when the recording was over.
                    let is_late = || sent.is_none() && self.over_at().is_none_or(|end| at > end);
                    if why == Why::Ended && (!on || is_late()) {
                        return None;
                    }
                    why
                }
                Place::Before | Place::Here if sent.is_none() => self.unsent(action, on, (at, asked.at))?,
                // The switch ignored it, as far as is known, and no worker could send it once more before the end.
                Place::Before if on && self.ran_on_without(action) => Why::Unconfirmed,
                Place::Before | Place::Here => return None,
            };
            // Sent again, because its sender knew of no start, and too late by then. The first command had met the recording.
            if self.sent(action).any(|sent| self.met_the_latest_part(sent)) {
                return None;
            }
            Some(What::NotObeyed {
                action: action.clone(),
                what: if on { Control::Mask } else { Control::Unmask },
                why: match why {
                    Why::Moved if self.may_have_met(action) => Why::PerhapsMoved,
                    Why::Ended if self.may_have_met(action) => Why::Unconfirmed,
                    why => why,
                },
            })
        })
    }

    /// Whether the recording went on for a while, and has ended, without a mask that is in force still.
    fn ran_on_without(&self, action: &str) -> bool {
        let ran = self.latest_began().zip(self.over_at());
        let is_long = ran.is_some_and(|(began, end)| end > began.plus(ON_ITS_WAY));
        is_long && self.is_wanted(action) && !self.may_lack_commands(action)
    }

    /// Whether what came of an action is perhaps kept no more, when a worker noted the action then: an entry keeps the first few and the last
    /// facts of each kind. Only an action after all that are known to be judged is judged then. Otherwise one verdict would displace another,
    /// which would follow again, for ever.
    fn may_lack_verdict(&self, asked: Moment) -> bool {
        let judged = self.facts().filter_map(|fact| match &fact.what {
            What::NotObeyed { what, action, .. } => Some((what, action)),
            _ => None,
        });
        if judged.clone().count() < KEPT_FIRST + KEPT_LAST {
            return false;
        }
        let asked_at = |(what, action): (&Control, &String)| match what {
            Control::Stop => self.stop_asked_at(),
            Control::Mask | Control::Unmask => self.asked(action),
        };
        judged.filter_map(asked_at).max().is_some_and(|last| asked <= last)
    }

    /// Why a mask or unmask came to nothing of which no command was delivered: a later action overtook it, or the recording ended.
    fn unsent(&self, action: &str, on: bool, order: (Moment, Moment)) -> Option<Why> {
        let (began, end) = (self.latest_began()?, self.over_at());
        let (at, returned) = (order.0, self.is_returned(action));
        if !on && !returned || end.is_some_and(|end| end <= at.max(began).plus(ON_ITS_WAY)) {
            return None;
        }
        let later = self.actions().into_iter().filter(|later| later.order > order);
        let overtaken = later.map(|later| later.order.0).find(|later| *later > began);
        match self.may_have_met(action) {
            _ if overtaken.is_none() && end.is_none() => None,
            true => Some(Why::Unconfirmed),
            false if overtaken.is_some() || returned && !self.may_need_again() => Some(Why::Undelivered),
            false => Some(Why::Ended),
        }
    }

    /// Whether a mask may be sent to a later part of the recording. One that no queue ever takes is not sent again.
    fn may_need_again(&self) -> bool {
        self.order().is_some_and(Order::may_begin_again)
    }

    /// Whether the broker returned a command of this mask or unmask.
    pub fn is_returned(&self, of: &str) -> bool {
        self.has(|what| matches!(what, What::Returned { what, action, .. } if *what != Control::Stop && action == of))
    }

    /// When a worker was about to send this mask or unmask for the first time.
    pub fn intended(&self, of: &str) -> Option<&Fact> {
        let is_it = |fact: &&Fact| matches!(&fact.what, What::Intended { action, .. } if action == of);
        self.facts().find(is_it)
    }

    /// Whether a worker was about to send this mask or unmask while the recording was where the switch finds it. The command may have met it,
    /// whatever came of the command that was sent later.
    pub fn may_have_met(&self, action: &str) -> bool {
        let intended = self.intended(action).filter(|_| !self.is_returned(action));
        intended.is_some_and(|intended| matches!(self.place(intended), Place::Here))
    }

    /// When the latest part began, by our clock.
    fn latest_began(&self) -> Option<Moment> {
        let start = self.latest_start()?;
        Some(start.stamp.map_or(start.at, |stamp| self.by_our_clock(stamp)))
    }

    /// When the switch ended the recording, by our clock.
    fn over_at(&self) -> Option<Moment> {
        let end = self.told_end()?;
        Some(end.stamp.map_or(end.at, |stamp| self.by_our_clock(stamp)))
    }

    /// A leg that was gone looked like a move. Then the recording's end on that very leg arrived late. Or another worker's command of that
    /// action had met the recording.
    pub(super) fn is_void(&self, action: &str, why: Why) -> bool {
        match why {
            Why::Moved | Why::PerhapsMoved => self
                .started()
                .zip(self.told_end())
                .is_some_and(|(start, end)| start.call_id == end.call_id),
            // The recording began again: what came too late for one part is to be sent to the next one.
            Why::Unconfirmed | Why::Ended if self.told_end().is_none() && self.is_wanted(action) => true,
            Why::Undelivered | Why::Unconfirmed | Why::Ended => {
                self.sent(action).any(|sent| self.met_the_latest_part(sent))
            }
        }
    }

    /// Where the recording was when a command arrived.
    fn place(&self, command: &Fact) -> Place {
        let at = command.at;
        // The clock of a sender that knew a start may be behind.
        let is_before = |began| at < began || self.was_asked_before(began, command);
        if !knew_start(command) && self.began().is_some_and(is_before) {
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
        let stamp = self.latest_start().and_then(|told| told.stamp);
        let began = stamp.map(|stamp| self.by_our_clock(stamp));
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
        // If its sender heard no event of the switch, or one that seems late, its clock may be ahead of the clocks of other workers. Audio is not
        // told as masked because of that: an unmask counts then. At worst it is told of a time after the end.
        let by_its_clock = |stamp| match command.what {
            What::Masked { on: false, .. } => self.by_clock_of(&command.by, stamp),
            _ => Some(
                self.by_senders_clock(command, stamp)
                    .unwrap_or_else(|| self.by_our_clock(stamp)),
            ),
        };
        let stamped = end.stamp.and_then(by_its_clock);
        begins_once && self.facts().any(knew) || stamped.is_some_and(|end| end.plus(ON_ITS_WAY) < command.at)
    }

    /// The time of a switch's stamp by the clock of a command's sender. `None` if the sender heard no event of the switch. What it heard late makes
    /// its clock seem to be ahead: if it is much later than by the clocks of all, these decide.
    fn by_senders_clock(&self, command: &Fact, stamp: i64) -> Option<Moment> {
        let (its, ours) = (self.by_clock_of(&command.by, stamp)?, self.by_our_clock(stamp));
        Some(if its > ours.plus(CLOCKS_DIFFER) { ours } else { its })
    }

    /// When the recording began, by the switch's own stamp: a command can reach the switch before a worker hears of the start.
    fn began(&self) -> Option<Moment> {
        let starts = self.facts().filter_map(|fact| match &fact.what {
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
        let masks = self.masks();
        Controls {
            not_obeyed: self.not_obeyed(&masks.undone),
            masks: masks.told,
        }
    }

    /// The masks and unmasks, in the order in which actions were sent.
    fn actions(&self) -> Vec<Action<'_>> {
        let mut actions: Vec<Action<'_>> = Vec::new();
        for fact in self.facts() {
            let (id, on, asked_at) = match &fact.what {
                What::MaskAsked { action, on, asked, .. } => (action, *on, *asked),
                // An earlier version wrote this entry, and noted no more than this.
                What::Masked { action, on, .. } if self.asked(action).is_none() => (action, *on, None),
                _ => continue,
            };
            if !actions.iter().any(|known| known.id == id && known.on == on) {
                let order = (asked_at.unwrap_or(fact.at), fact.at);
                actions.push(Action {
                    id,
                    on,
                    order,
                    asked_at,
                });
            }
        }
        actions.sort_by_key(|action| action.order);
        actions
    }

    /// What had no effect, each action once: two workers can have noted different reasons. `undone`: see `Masks`.
    fn not_obeyed(&self, undone: &[&str]) -> Vec<NotObeyed> {
        let is_over = self.told_end().is_some();
        let is_mask_asked = |what: &What| matches!(what, What::MaskAsked { .. });
        let mut told: Vec<(&str, NotObeyed)> = Vec::new();
        for fact in self.facts() {
            let (action, what, why) = match &fact.what {
                What::NotObeyed { what, why, .. } if *what == Control::Stop => ("", *what, *why),
                What::NotObeyed { action, what, why } if !self.is_void(action, *why) => (action.as_str(), *what, *why),
                What::StopUnconfirmed => ("", Control::Stop, self.why_not_stopped()),
                What::MaskAsked { action, on, .. } if is_over && undone.contains(&action.as_str()) => {
                    let what = if *on { Control::Mask } else { Control::Unmask };
                    (action.as_str(), what, Why::Unconfirmed)
                }
                What::Intended { action, on, .. }
                    if is_over && self.asked(action).is_none() && !self.may_lack(fact.at, is_mask_asked) =>
                {
                    let what = if *on { Control::Mask } else { Control::Unmask };
                    (action.as_str(), what, Why::Unconfirmed)
                }
                _ => continue,
            };
            let (at, asked_at) = match what {
                Control::Stop => (self.stop_asked_at(), self.stop_delayed()),
                Control::Mask | Control::Unmask => {
                    let mut actions = self.actions().into_iter();
                    let asked = actions.find(|known| known.id == action);
                    (self.asked(action), asked.and_then(|asked| asked.asked_at))
                }
            };
            let one = NotObeyed {
                at: at.unwrap_or(fact.at),
                what,
                why,
                asked_at,
            };
            match told.iter_mut().find(|(of, known)| *of == action && known.what == what) {
                Some((_, known)) if known.why.rank() <= why.rank() => {}
                Some((_, known)) => *known = one,
                None => told.push((action, one)),
            }
        }
        let mut not_obeyed: Vec<NotObeyed> = told.into_iter().map(|(_, one)| one).collect();
        not_obeyed.sort_by_key(|one| one.at);
        not_obeyed
    }
}

/// Whether a stop was sent as soon as it was asked for, by a worker that knew a start. Whatever its clock says, that start was before.
fn was_sent_at_once(asked: &Fact, sent: &Fact) -> bool {
    knew_start(sent) && sent.by == asked.by && sent.at <= asked.at.plus(ON_ITS_WAY)
}

/// Whether the sender of a command knew a start.
const fn knew_start(command: &Fact) -> bool {
    matches!(
        command.what,
        What::StopSent { start: Some(start), .. } | What::Masked { start: Some(start), .. } if start != BEFORE_ANY_START
    )
}
