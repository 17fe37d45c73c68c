//! When the audio was masked and unmasked, and which actions an earlier one undid.

use crate::kazoo::dialplan::Control;
use crate::kazoo::time::Moment;
use crate::recording::controls::{Mask, Why};

use super::{Action, ON_ITS_WAY, Place};
use crate::entry::Entry;
use crate::entry::controls::CLOCKS_DIFFER;
use crate::entry::fact::{Fact, What};
use crate::entry::union::{KEPT_FIRST, KEPT_LAST};

/// What is known of masks.
#[derive(Default)]
pub(super) struct Masks<'a> {
    pub(super) told: Vec<Mask>,
    /// The actions whose commands all came before the command of an earlier action. While the recording runs, a worker sends them again.
    pub(super) undone: Vec<&'a str>,
}

/// One part of a recording, while the actions are gone through in their order.
#[derive(Default)]
struct Part<'a> {
    masked: bool,
    /// When the audio was masked or unmasked last, and by which command.
    changed: Option<(Moment, &'a Fact)>,
    /// The last command that unmasks.
    unmasked: Option<&'a Fact>,
}

impl<'a> Part<'a> {
    /// The command of an action that came after the commands of the earlier actions. `None`: the switch obeyed an earlier action last.
    fn in_order(&self, on: bool, sent: &[&'a Fact]) -> Option<&'a Fact> {
        let is_in_order = |fact: &&&Fact| match on {
            true => self.unmasked.is_none_or(|unmasked| fact.at >= unmasked.at),
            false => self.changed.is_none_or(|(at, _)| fact.at.plus(ON_ITS_WAY) >= at),
        };
        let before = if on {
            self.unmasked
        } else {
            self.changed.map(|(_, by)| by)
        };
        // The sender of a repeat knew of the command between, unless it repeated because of a later start. Only the clocks of two workers can put
        // the repeat before that command.
        let start_of = |fact: &Fact| match fact.what {
            What::Masked { start, .. } => start,
            _ => None,
        };
        let is_repeat = |fact: &&&Fact| {
            let repeats = matches!(fact.what, What::Masked { n: 1.., .. });
            let is_again = sent
                .iter()
                .any(|sent| sent.at < fact.at && start_of(sent) == start_of(fact));
            repeats
                && is_again
                && before.is_some_and(|before| before.by != fact.by && before.at < fact.at.plus(CLOCKS_DIFFER))
        };
        let found = sent.iter().find(is_in_order);
        found.or_else(|| sent.last().filter(is_repeat)).copied()
    }
}

impl Entry {
    /// When the audio was masked and unmasked. The order is that of the actions: two workers can send commands at the same time, and a command
    /// can be sent twice. The audio is not told as masked where a command of an earlier unmask may have come between.
    pub(super) fn masks(&self) -> Masks<'_> {
        let actions = self.actions();
        // Each later start begins unmasked. The switch can have obeyed a mask of the first part before a worker heard of its start.
        let starts: Vec<Moment> = self.starts_heard().into_iter().skip(1).collect();
        let mut masks = Masks::default();
        for nth in 0..=starts.len() {
            let (from, until) = (nth.checked_sub(1).map(|before| starts[before]), starts.get(nth));
            let is_of_part = |at: Moment| from.is_none_or(|from| at >= from) && until.is_none_or(|until| at < *until);
            let mut part = Part::default();
            for action in &actions {
                self.apply(action, is_of_part, &mut part, &mut masks);
            }
        }
        masks
    }

    /// What an action did to one part.
    fn apply<'a>(
        &'a self,
        action: &Action<'a>,
        is_of_part: impl Fn(Moment) -> bool,
        part: &mut Part<'a>,
        masks: &mut Masks<'a>,
    ) {
        let met = |fact: &&Fact| is_of_part(fact.at) && matches!(self.place(fact), Place::Here);
        let is_it = |fact: &&Fact| matches!(fact.what, What::Masked { on, .. } if on == action.on);
        let sent: Vec<&Fact> = self.sent(action.id).filter(is_it).filter(met).collect();
        let Some(last) = sent.last().filter(|_| !self.is_refused(action.id)) else {
            return;
        };
        let command = part.in_order(action.on, &sent);
        if !action.on && part.unmasked.is_none_or(|unmasked| last.at > unmasked.at) {
            part.unmasked = Some(last);
        }
        masks.undone.retain(|undone| *undone != action.id);
        if part.masked == action.on {
            return;
        }
        let Some(command) = command else {
            if !self.may_lack_commands(action.id) {
                masks.undone.push(action.id);
            }
            return;
        };
        let at = part.changed.map_or(command.at, |(changed, _)| command.at.max(changed));
        let perhaps = self.intended(action.id).filter(|intended| {
            let is_of_another = intended.by != command.by || intended.at.plus(ON_ITS_WAY) < at;
            is_of_another && intended.at < at && met(intended) && !self.is_returned(action.id)
        });
        masks.told.push(Mask {
            at,
            on: action.on,
            asked_at: action.asked_at,
            perhaps_at: perhaps.map(|intended| intended.at),
        });
        (part.masked, part.changed) = (action.on, Some((at, command)));
    }

    /// Whether commands of this action are perhaps kept no more: an entry keeps the first few and the last facts of each kind.
    pub(super) fn may_lack_commands(&self, action: &str) -> bool {
        let asked = self.asked(action);
        asked.is_some_and(|asked| self.may_lack(asked, |what| matches!(what, What::Masked { .. })))
    }

    /// Whether such a fact of that time is perhaps kept no more.
    pub(super) fn may_lack(&self, at: Moment, is: impl Fn(&What) -> bool) -> bool {
        let kept = self.facts().filter(|fact| is(&fact.what)).map(|fact| fact.at);
        let is_full = kept.clone().count() >= KEPT_FIRST + KEPT_LAST;
        is_full && kept.clone().nth(KEPT_FIRST).is_some_and(|oldest| at <= oldest)
    }

    /// A mask or unmask that an earlier action undid, of a recording that ended before a worker could send it again.
    pub(super) fn undone_mask(&self) -> Option<What> {
        self.told_end()?;
        // A later part needs the mask again.
        self.order().filter(|order| !order.may_begin_again())?;
        let is_told = |of: &str| self.has(|what| matches!(what, What::NotObeyed { action, .. } if action == of));
        let is_to_be_told =
            |of: &&str| !is_told(of) && !self.asked(of).is_some_and(|asked| self.may_lack_verdict(asked));
        let undone = self.masks().undone.into_iter().find(is_to_be_told)?;
        let on = self.actions().into_iter().find(|action| action.id == undone)?.on;
        Some(What::NotObeyed {
            action: undone.to_owned(),
            what: if on { Control::Mask } else { Control::Unmask },
            why: Why::Unconfirmed,
        })
    }
}
