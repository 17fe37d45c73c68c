//! Every decision about a recording, as a pure function. The input is what is known and what just happened. The output is what must be
//! done.
//!
//! The decision depends on the entry alone, and on whether this worker has the audio in flight. So it does not matter which worker resumes
//! a recording, or how often.

use crate::entry::Entry;
use crate::entry::cause::Cause;
use crate::entry::fact::{Fact, What};
use crate::kazoo::time::Moment;
use crate::recording::ending::Told;

mod ended;
mod evidence;
mod model;
mod running;
mod schedule;
mod settled;
mod state;
mod watched;
mod webhooks;

#[cfg(test)]
pub(crate) mod tests;

pub use evidence::is_left_open;
pub use model::{Answer, Case, Effect, Hand, Input, Next};
pub use schedule::Policy;
pub use state::{STATES, State};
pub use watched::unanswered;
pub use webhooks::{Hook, Hooks, due_at, refused, retried, webhooks_due};

/// The largest number of facts that follow from one input. More of them follow from the next input: a decision must end.
const MOST_FOLLOW: usize = 256;

/// Applies what happened, and returns what must be done next.
pub fn step(case: &mut Case, input: Input, now: Moment, policy: &Policy) -> Next {
    let doubt = input == Input::Doubt;
    // In release builds nothing of this is computed.
    let was = (cfg!(debug_assertions) && !matches!(input, Input::Known(_))).then(|| State::of(&case.entry));
    take(case, input, now, policy);
    let mut judges = true;
    for _ in 0..MOST_FOLLOW {
        // Alerts come first, and what else follows does not depend on them.
        let verdict = judges.then(|| case.entry.unheeded()).flatten();
        let is_verdict = verdict.is_some();
        let Some(what) = verdict.or_else(|| follows(case, now, policy)) else {
            break;
        };
        if !case.informed && is_from_silence(&case.entry, &what) {
            return Next::Ask;
        }
        let is_news = add(&mut case.entry, what, now, policy);
        if !is_news && !is_verdict {
            break;
        }
        // A verdict that is not kept would follow again and again.
        judges &= is_news;
    }
    if let Some(was) = was {
        let is = State::of(&case.entry);
        debug_assert!(
            is == was || was.next().contains(&is),
            "{} after {}",
            is.name(),
            was.name()
        );
    }
    if doubt
        && case.entry.is_open()
        && case.entry.order().is_some()
        && left_alone(&case.entry, now, policy).is_none_or(|until| until <= now)
    {
        return Next::Do(Effect::LookForChannel {
            n: case.entry.next_number("channel_seen"),
        });
    }
    to_do(case, now, policy)
}

/// The timer of an entry that no task has in flight: when something must be done about it. `None`: not before something happens.
pub fn due(entry: &Entry, now: Moment, policy: &Policy) -> Option<Moment> {
    let mut case = Case {
        entry: entry.clone(),
        hand: Hand::Empty,
        informed: false,
    };
    let next = step(&mut case, Input::Due, now, policy);
    if case.entry != *entry {
        // The facts that follow by now must be written, and announced.
        return Some(now);
    }
    match next {
        Next::Wait(until) => Some(until),
        Next::Do(_) | Next::Ask => Some(now),
        Next::Idle => None,
    }
}

/// Whether the hold keeps the audio of a parked recording no longer, if the clock is right.
pub fn is_outlived(entry: &Entry, now: Moment, policy: &Policy) -> bool {
    let case = Case {
        entry: entry.clone(),
        hand: Hand::Empty,
        informed: false,
    };
    settled::outlived(&case, now, policy).is_some()
}

fn is_from_silence(entry: &Entry, what: &What) -> bool {
    match what {
        What::Concluded { cause, .. } => cause.is_silence(),
        What::Parked { .. } => entry.started().is_none() && entry.ended().is_none(),
        _ => false,
    }
}

fn add(entry: &mut Entry, what: What, now: Moment, policy: &Policy) -> bool {
    entry.add(Fact {
        at: now,
        by: policy.worker.clone(),
        what,
    })
}

fn take(case: &mut Case, input: Input, now: Moment, policy: &Policy) {
    let what = match input {
        Input::Fact(What::Started(told)) if case.entry.is_of_one_before(&told) => return,
        Input::Fact(mut what) => {
            if let What::Delivered(delivery) = &mut what {
                delivery.again = case.entry.last_vain_look();
            }
            let not_now = matches!(what, What::DeliveryFailed { .. } | What::Postponed { .. });
            if not_now && case.hand == Hand::Received {
                case.hand = Hand::Tried;
            }
            what
        }
        Input::Received(audio) => {
            case.hand = Hand::Received;
            What::Collected(case.entry.judged(audio))
        }
        Input::Answered(answer) => {
            case.hand = Hand::Empty;
            if answer == Answer::Keep {
                return;
            }
            What::Released {
                n: case.entry.next_number("released"),
            }
        }
        Input::HoldRefused => {
            case.hand = Hand::HoldRefused;
            // The switch keeps its file. An immediate second request would only collect the file in vain.
            What::Postponed {
                n: case.entry.next_number("postponed"),
                until: now.plus(policy.hold_pause),
                why: "the hold does not take the audio".into(),
            }
        }
        Input::Known(known) => {
            case.entry = case.entry.clone().merge(*known);
            return;
        }
        Input::Outlived => match settled::outlived(case, now, policy) {
            Some(what) => what,
            None => return,
        },
        Input::Due | Input::Doubt => return,
    };
    let owed = webhooks::owed(&case.entry, &what, policy);
    add(&mut case.entry, what, now, policy);
    if let Some(owed) = owed {
        add(&mut case.entry, owed, now, policy);
    }
}

/// A fact that follows from the other facts.
fn follows(case: &Case, now: Moment, policy: &Policy) -> Option<What> {
    let entry = &case.entry;
    if entry.outcome().is_some() {
        return None;
    }
    if entry.unreadable().next().is_some() {
        return None;
    }
    if entry.parked().is_some() {
        return settled::follows(entry, now, policy);
    }
    if entry.awaits_kazoo() {
        return None;
    }
    if entry.ended().is_some() {
        if let Some(lost) = watched::follows(entry, policy) {
            return Some(lost);
        }
        if entry.panics().count() >= policy.attempts(None) {
            // The audio is kept where it is. A running recording continues, because its end must still be heard.
            return Some(entry.park(Cause::ProgramFault));
        }
        ended::follows(case, now, policy)
    } else {
        running::follows(entry, now, policy)
    }
}

/// The switch that has the file, and its path there.
fn source(entry: &Entry) -> Option<(&str, &str)> {
    let told: Vec<&Told> = [entry.ended(), entry.latest_start()].into_iter().flatten().collect();
    let node = told.iter().find_map(|told| told.node.as_deref());
    // Facts come from other sources too: the ledger, the journal and notices. So each path is checked again before it is used.
    let mut paths = told.iter().filter_map(|told| told.path.as_deref());
    let path = paths.find(|path| is_file_of(entry, path));
    // A switch that reports its recording without a path has the file where the command ordered it.
    node.zip(path.or_else(|| ordered_path(entry))).or_else(|| guess(entry))
}

/// Where the file should be, if the switch created it and reported nothing.
fn guess(entry: &Entry) -> Option<(&str, &str)> {
    let command = entry.order()?.command.as_ref()?;
    command.node.as_deref().zip(ordered_path(entry))
}

/// The path that our command ordered.
fn ordered_path(entry: &Entry) -> Option<&str> {
    let command = entry.order()?.command.as_ref()?;
    Some(command.path.as_str()).filter(|path| is_file_of(entry, path))
}

fn is_file_of(entry: &Entry, path: &str) -> bool {
    entry.order().is_some_and(|order| order.is_path(path))
}

fn to_do(case: &Case, now: Moment, policy: &Policy) -> Next {
    let entry = &case.entry;
    if case.hand == Hand::Empty
        && let Some(until) = left_alone(entry, now, policy).filter(|until| *until > now)
    {
        return Next::Wait(until);
    }
    if let (Some(stray), Hand::Empty) = (entry.stray(), case.hand) {
        let name = stray.name.clone();
        return Next::Do(Effect::Separate { name });
    }
    if entry.outcome().is_some() || entry.parked().is_some() {
        return settled::next(case, now, policy);
    }
    if let (Hand::Empty, Some(next)) = (case.hand, watched::next(entry, now, policy)) {
        return next;
    }
    if entry.ended().is_some() {
        return ended::next(case, now, policy);
    }
    if case.hand != Hand::Empty {
        // The switch records again into the file that it has just uploaded.
        return Next::Do(Effect::Answer(Answer::Keep));
    }
    running::next(entry, now, policy)
}

/// Until when nothing at all is done about a recording. The program panicked on it, or a newer version decided something that this one
/// cannot judge, and that version handles it.
fn left_alone(entry: &Entry, now: Moment, policy: &Policy) -> Option<Moment> {
    let mut facts = entry.facts().rev();
    let parked = facts.find(|fact| matches!(fact.what, What::Parked { .. }));
    // Once the recording is parked for that reason, its notices are published. If publishing panics too, the notices wait like all else.
    let panicked = entry.panics().next_back();
    let panicked = panicked.filter(|at| parked.is_none_or(|parked| *at > parked.at));
    let panicked = panicked.map(|at| at.plus(policy.pause(entry.panics().count(), None)));
    let newer = entry.unreadable().next().map(|_| now.plus(policy.check_interval));
    panicked.into_iter().chain(newer).max()
}
