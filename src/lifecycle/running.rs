//! Decisions about a recording that has not ended: whether it is confirmed, whether it must be stopped, whether its call is alive.

use std::time::Duration;

use crate::entry::Entry;
use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::{CollectFailure, Fact, What};
use crate::kazoo::dialplan::{Control, Trigger};
use crate::kazoo::time::Moment;
use crate::recording::ending::Told;

use super::evidence::{gone_for_good, is_over_limit, limit, presumed_end, probe, unreported_end};
use super::schedule::{earliest, wait_or};
use super::{Effect, Next, Policy, guess, source};

/// How long after the command a call must have lived for its recording to have begun.
const STARTS_WITHIN: Duration = Duration::from_secs(1);

/// What follows while no event has reported an end.
pub(super) fn follows(entry: &Entry, now: Moment, policy: &Policy) -> Option<What> {
    let conclude = |outcome, cause| Some(What::Concluded { outcome, cause });
    if entry.started().is_none() {
        let answered = missing(entry) > 0 || guess(entry).is_none();
        let looked = answered || exhausted(entry, policy);
        if let Some(cause) = came_to_nothing(entry, now, policy)
            && !is_call_unknown(entry, now)
            && (looked || !may_have_come_twice(entry, cause))
        {
            return conclude(Outcome::Failed, cause);
        }
        if let (Some(probe), Some((node, path))) = (entry.probes().next(), guess(entry)) {
            // The switch does record, and only the start event was lost. The start is the command's time, not the probe's: the end may be
            // on the way, and must not belong to an earlier part.
            let since = entry.facts().find(|fact| fact.what == What::Commanded);
            let at = since
                .filter(|_| trigger(entry) == Trigger::Now)
                .map_or(probe.at, |fact| fact.at);
            return Some(What::Started(Box::new(Told::presumed(&entry.call_id, at, node, path))));
        }
        let overdue = entry.is_commanded() && confirm_by(entry, policy).is_some_and(|by| by <= now);
        let gone = gone_for_good(entry, policy);
        let unstarted = match trigger(entry) {
            // The answer or bridge may come as long as the call is alive.
            // A late command that came just before the call's end says nothing of the time before it. The call may have been answered, and
            // was not recorded.
            Trigger::Answer | Trigger::Bridge if overdue && gone && looked && was_late(entry) => {
                conclude(Outcome::Failed, Cause::CallGone)
            }
            Trigger::Bridge if overdue && gone && looked && entry.is_bridged_since_command() => {
                conclude(Outcome::Failed, unstarted(entry))
            }
            // The time since the command says nothing here: the recording would have begun at the answer.
            Trigger::Answer if overdue && gone && looked && entry.was_answered() => {
                conclude(Outcome::Failed, Cause::NeverStarted)
            }
            Trigger::Answer | Trigger::Bridge if overdue && gone && looked => {
                conclude(Outcome::Discarded, Cause::NeverTriggered)
            }
            Trigger::Now if overdue && looked => conclude(Outcome::Failed, unstarted(entry)),
            // It is too late for the command: by now the call may be over, and a wrong command disturbs a call that is not.
            // Nor is it certain that no command was sent: a worker may have died before it wrote that down. The file tells.
            _ if !entry.is_commanded() && gone && looked => conclude(Outcome::Failed, Cause::CallGone),
            _ => None,
        };
        // A switch that said nothing through the whole retry schedule may have a file. A late event, or an operator, resumes the recording.
        return unstarted.map(|what| {
            if answered {
                what
            } else {
                entry.park(Cause::NotCollected)
            }
        });
    }
    if exhausted(entry, policy) {
        // Through the whole retry schedule the switch did not upload what it began. A later end event resumes the recording.
        return Some(entry.park(Cause::NotCollected));
    }
    if source(entry).is_none() && gone_for_good(entry, policy) {
        // The recording is over, and no event named its switch: there is no switch to ask.
        let end = unreported_end(entry, entry.latest_start()?);
        return Some(What::PresumedEnded(Box::new(end)));
    }
    if let Some(end) = presumed_end(entry, now, policy) {
        return Some(What::PresumedEnded(Box::new(end)));
    }
    unconfirmed(entry, now, policy)
}

/// What follows when a recording that runs was not stopped in time.
pub(super) fn unconfirmed(entry: &Entry, now: Moment, policy: &Policy) -> Option<What> {
    let alarm = stop_alarm(entry, stop_asked(entry, policy)?, policy);
    let alarmed = entry.facts().any(|fact| fact.what == What::StopUnconfirmed);
    (!alarmed && alarm <= now).then_some(What::StopUnconfirmed)
}

/// When a stop that is not confirmed alerts an operator. A recording that began again after its stop is stopped anew.
fn stop_alarm(entry: &Entry, asked: Moment, policy: &Policy) -> Moment {
    let began = entry.latest_began_by(&policy.worker);
    began.map_or(asked, |began| began.max(asked)).plus(policy.stop_alarm)
}

/// What must be done while no event has reported an end.
pub(super) fn next(entry: &Entry, now: Moment, policy: &Policy) -> Next {
    let Some(order) = entry.order() else { return Next::Idle };
    let look = || {
        Next::Do(Effect::LookForChannel {
            n: entry.next_number("channel_seen"),
        })
    };
    let looked = entry.channel_seen();
    if entry.started().is_none() {
        if is_call_unknown(entry, now) {
            return look();
        }
        if !entry.is_commanded() {
            // Only the action's own handler commands at once. A worker that finds an uncommanded order later queries the call first,
            // because a command to a missing call disturbs other calls.
            if order.command.is_none() {
                return Next::Idle;
            }
            if came_to_nothing(entry, now, policy).is_some() || gone_for_good(entry, policy) {
                return probe(entry, now, policy);
            }
            if let Some(lost) = lost(entry, now) {
                if entry.stop_asked_at().is_some() {
                    // It is not to begin any more.
                    return Next::Wait(lost.plus(policy.grace));
                }
                // Its control process may be back in a moment, or the call over by now.
                let is_old = looked.is_none_or(|(at, _)| !is_within(LOOK_AGAIN, at, now));
                return if is_old { look() } else { Next::Do(Effect::Command) };
            }
            // One that is to be stopped already is not begun any more: perhaps it was begun and stopped, and no event reported it yet.
            let wanted = entry.stop_asked_at().is_none();
            return match looked {
                Some((at, true)) if wanted && is_within(policy.start_timeout, at, now) => Next::Do(Effect::Command),
                Some((at, true)) if !wanted => wait_or(Some(at.plus(policy.check_interval)), now, look),
                Some((at, false)) => wait_or(Some(at.plus(policy.grace)), now, look),
                _ => look(),
            };
        }
        let by = confirm_by(entry, policy).unwrap_or(now);
        if by > now && came_to_nothing(entry, now, policy).is_none() {
            return Next::Wait(by);
        }
        // Events can be lost. Before a start counts as failed, a worker probes for its file. A delayed start may come as long as its call
        // is alive.
        if trigger(entry) == Trigger::Now || gone_for_good(entry, policy) {
            return probe(entry, now, policy);
        }
        return match looked {
            Some((at, alive)) => {
                let pause = if alive { policy.check_interval } else { policy.grace };
                wait_or(Some(at.plus(pause)), now, look)
            }
            None => look(),
        };
    }
    let mut moments = Vec::new();
    for control in controls(entry, now, policy) {
        match control {
            Next::Wait(until) => moments.push(Some(until)),
            first => return first,
        }
    }
    if gone_for_good(entry, policy) {
        return probe(entry, now, policy);
    }
    // The channel is queried at intervals, and again once it has been gone for long enough.
    let started = entry.latest_began_by(&policy.worker).unwrap_or(order.asked_at);
    let next_look = match looked {
        Some((at, true)) => at.plus(policy.check_interval),
        // This worker's own queries alone show how long the channel has been gone, because two workers' clocks may differ.
        Some((_, false)) => entry
            .gone_since_by(&policy.worker)
            .map_or(now, |since| since.plus(policy.grace)),
        None => started.plus(policy.check_interval),
    };
    if next_look <= now {
        return look();
    }
    moments.push(Some(next_look));
    if is_over_limit(entry, now, policy) {
        match probe(entry, now, policy) {
            Next::Wait(until) => moments.push(Some(until)),
            Next::Idle => {}
            first => return first,
        }
    } else {
        moments.push(limit(entry, policy));
    }
    earliest(moments, now)
}

/// What must be done about the stop and the mask of a recording that runs: a command now, or the times at which something is due.
pub(super) fn controls(entry: &Entry, now: Moment, policy: &Policy) -> Vec<Next> {
    let asked = stop_asked(entry, policy);
    let stop = asked.and_then(|_| next_stop(entry, now, policy));
    // A mask that met no queue does not delay the stop that came after it.
    if let Some((action, what, n)) = entry.mask_to_send()
        && !(stop.is_some() && entry.is_returned(action))
    {
        return vec![Next::Do(Effect::Control { what, n })];
    }
    let Some(asked) = asked else { return Vec::new() };
    let mut moments = Vec::new();
    match stop {
        Some((n, at)) if at <= now => {
            let what = Control::Stop;
            return vec![Next::Do(Effect::Control { what, n })];
        }
        Some((_, at)) => moments.push(at),
        None => {}
    }
    moments.push(stop_alarm(entry, asked, policy));
    moments.retain(|at| *at > now);
    moments.into_iter().map(Next::Wait).collect()
}

/// Why a start that was commanded was never reported, and left no file.
fn unstarted(entry: &Entry) -> Cause {
    let commanded = entry.facts().find(|fact| fact.what == What::Commanded);
    // The time at which the call ended decides. A call that lasted and was not recorded is a fault that must be reported.
    match commanded {
        Some(commanded) if was_over_at_once(entry, commanded) => Cause::CallGone,
        _ => Cause::NeverStarted,
    }
}

/// Whether the call was over within a moment of the command, by the clock of the worker that sent the command. If that clock is not known, it may
/// be ahead: a call that seems to have ended well before its command may have lasted.
fn was_over_at_once(entry: &Entry, commanded: &Fact) -> bool {
    let latest = commanded.at.plus(STARTS_WITHIN);
    match entry.gone_at_by(&entry.call_id, &commanded.by) {
        Some(gone) => gone <= latest,
        None => {
            let gone = entry.gone_at(&entry.call_id);
            gone.is_some_and(|gone| gone <= latest && gone.plus(CLOCKS_DIFFER) >= commanded.at)
        }
    }
}

/// Whether the command was sent long after the action, when the call was almost over.
fn was_late(entry: &Entry) -> bool {
    let commanded = entry.facts().find(|fact| fact.what == What::Commanded);
    let Some((commanded, order)) = commanded.zip(entry.order()) else {
        return false;
    };
    let gone = entry.gone_at_by(&entry.call_id, &commanded.by);
    let is_all_but_over = match gone.or(entry.gone_at(&entry.call_id)) {
        Some(gone) => gone <= commanded.at.plus(STARTS_WITHIN),
        // No event reported the end: no look saw the call alive after the command.
        None => !entry
            .facts()
            .any(|fact| fact.at >= commanded.at && matches!(fact.what, What::ChannelSeen { alive: true, .. })),
    };
    commanded.at.since(order.asked_at) > STARTS_WITHIN && is_all_but_over
}

/// Why a start command came to nothing, as the broker or call control said.
fn came_to_nothing(entry: &Entry, now: Moment, policy: &Policy) -> Option<Cause> {
    entry.facts().find_map(|fact| match fact.what {
        // It was sent once more, and taken.
        What::CommandLost { .. } if commanded_since(entry, fact, now) => None,
        // The control process was gone, or only its queue: an ecallmgr that lost its connection declares its queues again when it is back.
        What::CommandLost { .. } => {
            let lost = lost_at(entry, fact, now);
            match seen_since(entry, lost) {
                Some(true) if entry.is_commanded() || lost.plus(policy.grace) <= now => Some(Cause::NeverStarted),
                Some(true) => None,
                Some(false) | None => Some(Cause::CallGone),
            }
        }
        What::CommandRefused { .. } => Some(Cause::StartRefused),
        _ => None,
    })
}

/// While a control queue is missing, the worker looks for the call so often.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

const CLOCKS_DIFFER: Duration = Duration::from_secs(5);

/// Whether the call lives, as was seen since then.
fn seen_since(entry: &Entry, since: Moment) -> Option<bool> {
    let (at, alive) = entry.channel_seen()?;
    // Another worker may have looked, whose clock is a little behind.
    (at.plus(CLOCKS_DIFFER) >= since).then_some(alive)
}

/// When a start command met no queue, if no later one was taken.
fn lost(entry: &Entry, now: Moment) -> Option<Moment> {
    let mut facts = entry.facts();
    let lost = facts.find(|fact| matches!(fact.what, What::CommandLost { .. }))?;
    (!commanded_since(entry, lost, now)).then(|| lost_at(entry, lost, now))
}

/// When a start command met no queue. By a clock that is ahead, nothing tells more than that it was after the action.
fn lost_at(entry: &Entry, lost: &Fact, now: Moment) -> Moment {
    let asked = entry.order().map_or(now, |order| order.asked_at.min(now));
    if is_ahead(lost.at, now) { asked } else { lost.at }
}

/// Whether a fact's time is still ahead: the clock of its worker is.
fn is_ahead(at: Moment, now: Moment) -> bool {
    at > now.plus(CLOCKS_DIFFER)
}

/// Whether a fact is so old at most. By a clock that is ahead, nothing tells how old it is.
fn is_within(age: Duration, at: Moment, now: Moment) -> bool {
    !is_ahead(at, now) && now.since(at) <= age
}

/// Whether a queue took a start command after one that met none. A command of another worker counts in any case: the clocks of two workers
/// do not tell which one came first, and a recording that was commanded is judged by what is heard of it.
fn commanded_since(entry: &Entry, lost: &Fact, now: Moment) -> bool {
    let since = lost_at(entry, lost, now);
    let mut facts = entry.facts();
    facts.any(|fact| fact.what == What::Commanded && (fact.by != lost.by || fact.at > since))
}

/// The start command met no queue, and no worker looked for the call since.
fn is_call_unknown(entry: &Entry, now: Moment) -> bool {
    lost(entry, now).is_some_and(|lost| seen_since(entry, lost).is_none())
}

/// Two workers may have sent the command, for example if an action is delivered twice. The failure of one command says nothing about the
/// other one. The file does.
fn may_have_come_twice(entry: &Entry, cause: Cause) -> bool {
    (entry.is_commanded() || cause == Cause::StartRefused) && trigger(entry) == Trigger::Now
}

/// How often the switch said that it has no such file.
fn missing(entry: &Entry) -> usize {
    let is_missing = |what: &What| {
        matches!(
            what,
            What::CollectFailed {
                failure: CollectFailure::Missing,
                ..
            }
        )
    };
    entry.failures().filter(|fact| is_missing(&fact.what)).count()
}

fn exhausted(entry: &Entry, policy: &Policy) -> bool {
    u32::try_from(entry.failures().count()).unwrap_or(u32::MAX) >= policy.max_attempts
}

fn trigger(entry: &Entry) -> Trigger {
    entry
        .order()
        .and_then(|order| order.command.as_ref())
        .map_or(Trigger::Now, |command| command.trigger)
}

/// By when the switch should have confirmed the start.
fn confirm_by(entry: &Entry, policy: &Policy) -> Option<Moment> {
    let commanded = entry.facts().find(|fact| fact.what == What::Commanded)?;
    Some(commanded.at.plus(policy.start_timeout))
}

/// When a stop was asked for, as far as this worker's clock tells: before the first stop that this worker sent. The clock of the worker that
/// noted the action may be ahead.
fn stop_asked(entry: &Entry, policy: &Policy) -> Option<Moment> {
    let asked = entry.stop_asked_at()?;
    let is_own = |fact: &&Fact| fact.by == policy.worker && matches!(fact.what, What::StopSent { .. });
    let own = entry.facts().find(is_own);
    Some(own.map_or(asked, |own| own.at.min(asked)))
}

/// The next stop command: its number, and its due time.
fn next_stop(entry: &Entry, now: Moment, policy: &Policy) -> Option<(u32, Moment)> {
    let (sent, last) = entry.stops_sent();
    // The start came after the stop: the stop applies to it at once.
    let Some(last) = last.filter(|_| entry.is_newest_start_stopped()) else {
        return Some((sent + 1, now));
    };
    let pause = policy.stop_repeats.get(usize::try_from(sent).ok()?.checked_sub(1)?)?;
    // By a clock that is ahead, nothing tells when its worker sent it, nor that the recording had begun then.
    let is_ahead = last.by != policy.worker && is_ahead(last.at, now);
    Some((sent + 1, if is_ahead { now } else { last.at.plus(*pause) }))
}
