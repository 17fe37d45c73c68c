//! Decisions about a recording whose outcome is certain, or that is parked: what must still be done.

use std::time::Duration;

use crate::entry::Entry;
use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::What;
use crate::kazoo::time::Moment;
use crate::recording::order::Order;

use super::ended::answer;
use super::schedule::{paused, wait_or};
use super::{Answer, Case, Effect, Hand, Next, Policy, evidence, running, source};

/// No recording waits longer than this for the end of its call, whatever ecallmgrs answer.
const LONGEST_CALL: Duration = Duration::from_secs(86_400);

/// What follows while a recording is parked.
pub(super) fn follows(entry: &Entry, now: Moment, policy: &Policy) -> Option<What> {
    woken(entry).or_else(|| runs(entry).then(|| running::unconfirmed(entry, now, policy)).flatten())
}

/// Whether the switch records into the file of this recording. A recording that begins at bridges can be parked after its first part, with its
/// audio on its switch alone: then the next part is its own, and what actions asked for applies to that part too.
fn runs(entry: &Entry) -> bool {
    entry.started().is_some() && entry.is_open()
}

/// A recording was parked because its file was missing, and its end was only presumed. It resumes when the switch reports its end after
/// all.
fn woken(entry: &Entry) -> Option<What> {
    entry.is_woken().then(|| entry.retry())
}

/// When the recording was parked last, and why.
fn last_parked(entry: &Entry) -> Option<(Moment, Cause)> {
    entry.facts().rev().find_map(|fact| match fact.what {
        What::Parked { cause, .. } => Some((fact.at, cause)),
        _ => None,
    })
}

/// A recording is parked with its audio in the hold for as long as the configuration keeps such audio. The copy may be the only one, so the
/// recording gets its outcome first, which the ledger, an event and the log tell. The copy is removed after that.
/// A clock that is wrong would make every copy look old, so this follows from no other input than `Outlived`.
pub(super) fn outlived(case: &Case, now: Moment, policy: &Policy) -> Option<What> {
    let (keep, entry) = (policy.hold_retention?, &case.entry);
    entry.parked()?;
    let (since, _) = last_parked(entry)?;
    let is_settled = entry.outcome().is_some() || entry.unreadable().next().is_some() || woken(entry).is_some();
    let is_over = entry.held().is_some() && since.plus(keep) <= now;
    let is_told = entry.open_announcements().next().is_none();
    (is_over && is_told && !is_settled && case.hand == Hand::Empty).then_some(What::Concluded {
        outcome: Outcome::Discarded,
        cause: Cause::RetentionOver,
    })
}

/// The first thing that must be done.
pub(super) fn next(case: &Case, now: Moment, policy: &Policy) -> Next {
    let owed = owed(case, now, policy);
    let waits = || {
        owed.iter().filter_map(|owed| match owed {
            Next::Wait(until) => Some(*until),
            _ => None,
        })
    };
    let first = owed.iter().find(|owed| matches!(owed, Next::Do(_)));
    first
        .cloned()
        .unwrap_or_else(|| waits().min().map_or(Next::Idle, Next::Wait))
}

/// What must still be done when an outcome is certain, or the recording is parked.
pub(super) fn owed(case: &Case, now: Moment, policy: &Policy) -> Vec<Next> {
    let entry = &case.entry;
    if let Some(effect) = bring_again(case, now, policy) {
        return vec![Next::Do(effect)];
    }
    let mut owed = Vec::new();
    if case.hand != Hand::Empty {
        // The switch comes first. Until the switch has its answer, it holds a thread, and a call's file on a disk that fills.
        let answer = if entry.is_unwanted() {
            Answer::Release
        } else {
            answer(entry)
        };
        owed.push(Next::Do(Effect::Answer(answer)));
    }
    if runs(entry) {
        owed.extend(running::controls(entry, now, policy));
    }
    let refused_until = entry.notices_refused().next_back();
    let announce = |one| wait_or(refused_until, now, || Next::Do(Effect::Announce(one)));
    owed.extend(entry.open_announcements().map(announce));
    if entry.is_to_be_continued() {
        owed.push(Next::Do(Effect::Continue));
    }
    if let Some((n, cause)) = entry.owes_mark() {
        owed.push(Next::Do(Effect::Mark { n, cause }));
    }
    if case.hand == Hand::Empty && entry.owes_release() {
        owed.push(tidy(entry, now, policy));
    }
    if entry.is_to_be_amended() {
        owed.push(amend(entry, now, policy));
    }
    if entry.is_unverified() {
        // The hold keeps its copy until then.
        owed.push(read_back(entry, now, policy));
    } else if entry.outcome().is_some() && entry.held().is_some() {
        owed.push(Next::Do(Effect::Unhold));
    }
    owed
}

/// A delivery that a server with too few copies took is safe only when a read-back has found it, or the hold has it too. If the server lost
/// it, it is delivered again, from the hold or from the switch. The switch keeps its file until then.
fn bring_again(case: &Case, now: Moment, policy: &Policy) -> Option<Effect> {
    let entry = &case.entry;
    let delivery = entry.delivery().filter(|_| entry.is_unverified())?;
    let in_hand = matches!(case.hand, Hand::Received | Hand::Tried);
    let (held, attempt) = (entry.held().is_some(), entry.next_attempt());
    let tried = case.hand == Hand::Tried || paused(entry, policy).is_some_and(|until| until > now);
    if entry.is_lost() && !tried {
        let destination = delivery.destination;
        if case.hand == Hand::Received || held && case.hand == Hand::Empty {
            return Some(Effect::Deliver { attempt, destination });
        }
        if case.hand == Hand::Empty && !entry.is_let_go() && !entry.was_found_kept() {
            let (node, path) = source(entry)?;
            return Some(Effect::Collect {
                attempt,
                node: node.to_owned(),
                path: path.to_owned(),
            });
        }
    }
    (in_hand && policy.hold && !held).then_some(Effect::Hold)
}

/// The document does not say yet what is known of stops and masks. A failure to write it postpones the next try.
fn amend(entry: &Entry, now: Moment, policy: &Policy) -> Next {
    wait_or(paused(entry, policy), now, || {
        Next::Do(Effect::Amend {
            n: entry.next_number("amended"),
        })
    })
}

/// A delivery that a server with too few copies took must be read back again.
fn read_back(entry: &Entry, now: Moment, policy: &Policy) -> Next {
    let index = entry.looks().count().min(policy.looks.len().saturating_sub(1));
    let pause = policy.looks.get(index).copied().unwrap_or_default();
    let until = entry.last_looked_at().unwrap_or(now).plus(pause);
    wait_or(Some(until), now, || {
        Next::Do(Effect::ReadBack {
            n: entry.next_number("looked"),
        })
    })
}

/// Channel queries that found the call gone before the switch is asked for a file that should be gone. One more follows each vain request.
const LOOKS_BEFORE: usize = 2;

/// The file should be gone from its switch, and may still be there.
fn tidy(entry: &Entry, now: Moment, policy: &Policy) -> Next {
    if let Some(first) = await_end_of_call(entry, now, policy) {
        return first;
    }
    let tried = entry.tidied().count();
    let rested = entry.tidied().next_back().map(|at| at.plus(policy.pause(tried, None)));
    wait_or(rested.into_iter().chain(entry.postponed_until()).max(), now, || {
        // A day after the end, a channel that an ecallmgr never forgets decides nothing any more.
        let is_forgotten = entry.channel_seen().is_none_or(|(_, alive)| !alive);
        let may_go_on = entry.order().is_some_and(Order::may_begin_again)
            && (is_forgotten || entry.ended_at().is_some_and(|at| at.plus(LONGEST_CALL) > now));
        if may_go_on && entry.seen_gone() < LOOKS_BEFORE + tried {
            // How long its call has been gone decides whether a file may go that was not closed.
            return Next::Do(Effect::LookForChannel {
                n: entry.next_number("channel_seen"),
            });
        }
        let (node, path) = source(entry).unwrap_or_default();
        Next::Do(Effect::Tidy {
            n: entry.next_number("tidied"),
            node: node.to_owned(),
            path: path.to_owned(),
        })
    })
}

/// As long as its call is alive, the switch may append to the file of a recording that begins at bridges.
fn await_end_of_call(entry: &Entry, now: Moment, policy: &Policy) -> Option<Next> {
    entry.order().filter(|order| order.may_begin_again())?;
    let longest = entry.ended_at()?.plus(LONGEST_CALL);
    if longest <= now || evidence::gone_for_good(entry, policy) {
        return None;
    }
    let next = entry.channel_seen().map(|(at, alive)| {
        let pause = if alive { policy.check_interval } else { policy.grace };
        at.plus(pause).min(longest)
    });
    Some(wait_or(next, now, || {
        Next::Do(Effect::LookForChannel {
            n: entry.next_number("channel_seen"),
        })
    }))
}
