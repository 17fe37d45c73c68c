//! Decisions about a recording that has ended: where its audio goes, and what is still owed once it is there.

use std::time::Duration;

use super::{
    Answer, Case, Cause, CollectFailure, DeliveryFailure, Destination, Effect, Entry, Fact, Hand, Moment, Outcome,
    Policy, What, account, paused, running, source,
};

/// After so many postponements of the decision the audio is taken off the switch.
const UNDECIDED_IS_LONG: usize = 3;

/// No call is waited for longer than that, whatever is said of it.
const LONGEST_CALL: Duration = Duration::from_secs(86_400);

/// What follows once the end is known.
pub(super) fn follows(case: &Case, now: Moment, policy: &Policy) -> Option<What> {
    let entry = &case.entry;
    let order = entry.order()?;
    let conclude = |outcome, cause| Some(What::Concluded { outcome, cause });
    let park = |cause| {
        Some(What::Parked {
            n: entry.next_rest(),
            cause,
        })
    };
    if account(entry).is_none() {
        return park(Cause::NoAccount);
    }
    if source(entry).is_none() {
        return conclude(Outcome::Failed, Cause::FileGone);
    }
    let min_ms = u64::from(order.min_sec) * 1000;
    let told_short = min_ms > 0 && entry.told_ms().is_some_and(|ms| ms < min_ms);
    if min_ms > 0 && case.hand == Hand::Holding {
        // The length that the switch told is a channel's variable and may be another recording's: the audio decides.
        let counted = entry.last_audio().and_then(|audio| audio.duration_ms);
        if counted.map_or(told_short, |ms| ms < min_ms) {
            return conclude(Outcome::Discarded, Cause::TooShort);
        }
    }
    let missing = entry
        .failures()
        .filter(|fact| {
            matches!(
                fact.what,
                What::CollectFailed {
                    failure: CollectFailure::Missing,
                    ..
                }
            )
        })
        .count();
    if missing > 0 && told_short {
        // Switches that enforce the minimum themselves delete what is shorter.
        return conclude(Outcome::Discarded, Cause::TooShort);
    }
    // A file that cannot be opened may only be so for now: the switch says the same of one that is gone, and where it has no descriptor left, or
    // its disk does not answer. So that runs the whole schedule too.
    // Before it rests the audio goes into the hold, if there is one: the switch's disk is not ours.
    let in_hand = matches!(case.hand, Hand::Holding | Hand::Tried);
    if in_hand && policy.hold && entry.held().is_none() {
        return None;
    }
    if let Some(cause) = entry.failures().find_map(parks) {
        return park(cause);
    }
    let decided = entry.decided();
    let worn_out = |last: Option<&What>| match (decided, last) {
        (None, _) => Cause::Undecided,
        (_, Some(What::CollectFailed { .. })) => Cause::NotCollected,
        (Some((Destination::StoragePlan, _)), _) => Cause::NoStoreProxy,
        _ => Cause::Unreachable,
    };
    let last = || entry.failures().next_back().map(|fact| &fact.what);
    let attempts = policy.attempts(decided.and_then(|(_, attempts)| attempts));
    if entry.failures().count() >= attempts {
        return park(worn_out(last()));
    }
    // Nothing was even tried all that time.
    let since = entry.postponed().next().map(|(at, _)| at)?;
    (now.since(since) >= policy.whole()).then(|| What::Parked {
        n: entry.next_rest(),
        cause: worn_out(last()),
    })
}

/// A recording that rested because its file was not to be had, with an end that was only presumed, goes on when the switch tells its end after all.
pub(super) fn woken(entry: &Entry) -> Option<What> {
    let rested = entry.facts().iter().rev().find_map(|fact| match fact.what {
        What::Parked { cause, .. } => Some((fact.at, cause)),
        _ => None,
    });
    let (since, _) = rested.filter(|(_, cause)| *cause == Cause::NotCollected)?;
    let mut ends = entry.facts().iter().filter(|fact| matches!(fact.what, What::Ended(_)));
    let first = ends.next()?;
    (first.at > since).then(|| entry.retry())
}

/// The cause for which this failure lets a recording rest at once.
fn parks(fact: &Fact) -> Option<Cause> {
    match fact.what {
        What::DeliveryFailed { failure, .. } => failure.parks(),
        _ => None,
    }
}

/// What is to be done once the end is known, and nothing is concluded.
pub(super) fn to_do(case: &Case, now: Moment, policy: &Policy) -> Vec<Effect> {
    let entry = &case.entry;
    let Some((node, path)) = source(entry) else {
        return Vec::new();
    };
    let attempt = entry.next_attempt();
    let collect = || Effect::Collect {
        attempt,
        node: node.to_owned(),
        path: path.to_owned(),
    };
    let Some(destination) = entry.destination() else {
        let held = entry.held().is_some();
        return match case.hand {
            // Where it goes may long be open; the switch's disk is not ours.
            Hand::Holding | Hand::Tried if policy.hold && !held => vec![Effect::Hold],
            Hand::Holding | Hand::Tried if entry.audio_is_safe() => vec![Effect::Answer(Answer::Release)],
            Hand::Holding | Hand::Tried | Hand::NotHeld => vec![Effect::Answer(Answer::Keep)],
            Hand::Empty => rested(entry, now, policy, || {
                let open_for_long = entry.postponed().count() >= UNDECIDED_IS_LONG;
                // Once it could not be brought, or kept, that is left for later.
                let tried = entry.failures().next().is_some();
                if open_for_long && policy.hold && !held && !tried {
                    collect()
                } else {
                    Effect::Decide
                }
            }),
        };
    };
    if entry.uploaded().is_some() {
        // The audio is where it belongs; whatever is left concerns its document.
        if case.hand != Hand::Empty {
            return vec![Effect::Answer(answer(entry))];
        }
        return rested(entry, now, policy, || Effect::Complete { attempt, destination });
    }
    match case.hand {
        Hand::Holding => vec![deliver(entry, attempt, destination)],
        Hand::Tried => {
            let rests = entry.failures().next_back().is_some_and(|fact| parks(fact).is_some());
            let keep = policy.hold && (destination.is_held() || rests);
            let lost = entry.failures().next_back().is_some_and(|fact| {
                matches!(
                    fact.what,
                    What::DeliveryFailed {
                        failure: DeliveryFailure::Source,
                        ..
                    }
                )
            });
            match entry.held() {
                Some(_) => vec![Effect::Answer(answer(entry))],
                // Our copy cannot be read; the switch's still can.
                None if lost => vec![Effect::Answer(Answer::Keep)],
                None if keep => vec![Effect::Hold],
                None => vec![Effect::Answer(Answer::Keep)],
            }
        }
        Hand::NotHeld => vec![Effect::Answer(Answer::Keep)],
        Hand::Empty if entry.held().is_some() => rested(entry, now, policy, || deliver(entry, attempt, destination)),
        Hand::Empty => rested(entry, now, policy, collect),
    }
}

/// What the switch is told of the audio in hand.
fn answer(entry: &Entry) -> Answer {
    // What began again while this upload was under way is in the same file.
    if entry.audio_is_safe() && !entry.goes_on() {
        Answer::Release
    } else {
        Answer::Keep
    }
}

/// The next step of a delivery. Where the document comes first, as in Kazoo, it is written, and told, before the audio moves.
fn deliver(entry: &Entry, attempt: u32, destination: Destination) -> Effect {
    if destination.documents_first() {
        if entry.documented().is_none() {
            return Effect::Document { attempt, destination };
        }
        if let Some(announcement) = entry.open_announcements().next() {
            return Effect::Announce(announcement);
        }
    }
    Effect::Deliver { attempt, destination }
}

fn rested(entry: &Entry, now: Moment, policy: &Policy, act: impl FnOnce() -> Effect) -> Vec<Effect> {
    match paused(entry, policy).filter(|until| *until > now) {
        Some(until) => vec![Effect::Wait { until }],
        None => vec![act()],
    }
}

/// What is owed when an outcome is certain, or the recording rests.
pub(super) fn settle(case: &Case, now: Moment, policy: &Policy) -> Vec<Effect> {
    let entry = &case.entry;
    let mut effects = Vec::new();
    if let Some(effect) = bring_again(case, now, policy) {
        return vec![effect];
    }
    if case.hand != Hand::Empty {
        // The switch first: it holds a thread, and a call's file on a disk that fills, until it is answered.
        let answer = if entry.is_unwanted() {
            Answer::Release
        } else {
            answer(entry)
        };
        effects.push(Effect::Answer(answer));
    }
    effects.extend(entry.open_announcements().map(Effect::Announce));
    let mut later = Vec::new();
    let mut now_or_later = |effect: Effect| match effect {
        Effect::Wait { until } => later.push(until),
        now => effects.push(now),
    };
    if entry.is_to_be_continued() {
        now_or_later(Effect::Continue);
    }
    // A document that another worker completed meanwhile is not marked as resting.
    let rests = entry
        .parked()
        .filter(|_| entry.outcome().is_none() && entry.is_unmarked());
    if let Some(cause) = rests {
        let n = entry.next_number("parked") - 1;
        now_or_later(Effect::Mark { n, cause });
    }
    if case.hand == Hand::Empty && entry.owes_release() {
        now_or_later(tidy(entry, now, policy));
    }
    if entry.is_to_be_amended() {
        now_or_later(amend(entry, now, policy));
    }
    if entry.is_unverified() {
        // The hold's copy stays until then.
        now_or_later(read_back(entry, now, policy));
    } else if entry.outcome().is_some() && entry.held().is_some() {
        now_or_later(Effect::Unhold);
    }
    effects.extend(later.into_iter().min().map(|until| Effect::Wait { until }));
    effects
}

/// What a server took with too few copies is safe only when a look has found it, or the hold has it too. And what it lost is brought there again,
/// from the hold, or from the switch, which keeps its file until then.
fn bring_again(case: &Case, now: Moment, policy: &Policy) -> Option<Effect> {
    let entry = &case.entry;
    let delivery = entry.delivery().filter(|_| entry.is_unverified())?;
    let in_hand = matches!(case.hand, Hand::Holding | Hand::Tried);
    let (held, attempt) = (entry.held().is_some(), entry.next_attempt());
    let tried = case.hand == Hand::Tried || paused(entry, policy).is_some_and(|until| until > now);
    if entry.is_lost() && !tried {
        let destination = delivery.destination;
        if case.hand == Hand::Holding || held && case.hand == Hand::Empty {
            return Some(Effect::Deliver { attempt, destination });
        }
        if case.hand == Hand::Empty && !entry.is_let_go() {
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

/// The document does not say yet what is known of stops and masks. A failure to write it postpones it.
fn amend(entry: &Entry, now: Moment, policy: &Policy) -> Effect {
    match paused(entry, policy).filter(|until| *until > now) {
        Some(until) => Effect::Wait { until },
        None => Effect::Amend {
            n: entry.next_number("amended"),
        },
    }
}

/// What a server with too few copies had taken is to be looked at again.
fn read_back(entry: &Entry, now: Moment, policy: &Policy) -> Effect {
    let index = entry.looks().count().min(policy.looks.len().saturating_sub(1));
    let pause = policy.looks.get(index).copied().unwrap_or_default();
    let until = entry.last_looked_at().unwrap_or(now).plus(pause);
    if until > now {
        return Effect::Wait { until };
    }
    Effect::ReadBack {
        n: entry.next_number("looked"),
    }
}

/// The file should be gone from its switch, and is perhaps not.
fn tidy(entry: &Entry, now: Moment, policy: &Policy) -> Effect {
    if let Some(first) = await_end_of_call(entry, now, policy) {
        return first;
    }
    let tried = entry.tidied().count();
    let rested = entry.tidied().next_back().map(|at| at.plus(policy.pause(tried, None)));
    let put_off = entry.postponed().next_back().map(|(_, until)| until);
    if let Some(until) = rested.into_iter().chain(put_off).max().filter(|until| *until > now) {
        return Effect::Wait { until };
    }
    let (node, path) = source(entry).unwrap_or_default();
    Effect::Tidy {
        n: entry.next_number("tidied"),
        node: node.to_owned(),
        path: path.to_owned(),
    }
}

/// As long as its call lives the switch may go on with the file of a recording that begins at bridges.
fn await_end_of_call(entry: &Entry, now: Moment, policy: &Policy) -> Option<Effect> {
    entry.order().filter(|order| order.may_begin_again())?;
    let longest = entry.ended_at()?.plus(LONGEST_CALL);
    if longest <= now || running::gone_for_good(entry, policy) {
        return None;
    }
    let next = entry.channel_seen().map(|(at, alive)| {
        let pause = if alive { policy.check_interval } else { policy.grace };
        at.plus(pause).min(longest)
    });
    Some(match next.filter(|next| *next > now) {
        Some(until) => Effect::Wait { until },
        None => Effect::LookForChannel {
            n: entry.next_number("channel_seen"),
        },
    })
}
