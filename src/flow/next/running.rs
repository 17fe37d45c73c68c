//! Decisions about a recording that has not ended: is it confirmed, is it to be stopped, does its call still live.

use std::time::Duration;

use super::{Cause, Control, Effect, Entry, Moment, Outcome, Policy, Probe, Told, Trigger, What, source, wait};

/// How long after the command a call must have lived for its recording to have begun.
const STARTS_WITHIN: Duration = Duration::from_secs(1);

/// A file that was not closed is taken for that of a switch that died when it rested for so many times the grace, and its call was gone all that
/// time: it rests as well while a leg is on hold.
const OPEN_RESTS: u32 = 15;

/// Between two looks at such a file, in times the grace.
const OPEN_GAP: u32 = 5;

/// What follows while nobody told of an end.
pub(super) fn follows(entry: &Entry, now: Moment, policy: &Policy) -> Option<What> {
    let conclude = |outcome, cause| Some(What::Concluded { outcome, cause });
    if entry.started().is_none() {
        let looked = missing(entry) > 0 || super::guess(entry).is_none() || exhausted(entry, policy);
        if let Some(cause) = came_to_nothing(entry)
            && (looked || !may_have_come_twice(entry, cause))
        {
            return conclude(Outcome::Failed, cause);
        }
        if let (Some(probe), Some((node, path))) = (entry.probes().next(), super::guess(entry)) {
            // It does record, and only the event that would have told so is lost. Not since the probe: its end may be on the way, and would then
            // be that of a part before.
            let since = entry.facts().iter().find(|fact| fact.what == What::Commanded);
            let at = since
                .filter(|_| trigger(entry) == Trigger::Now)
                .map_or(probe.at, |fact| fact.at);
            return Some(What::Started(Box::new(Told::presumed(&entry.call_id, at, node, path))));
        }
        let overdue = entry.is_commanded() && confirm_by(entry, policy).is_some_and(|by| by <= now);
        let gone = gone_for_good(entry, policy);
        return match trigger(entry) {
            // The answer or bridge may come as long as the call lives.
            Trigger::Answer | Trigger::Bridge if overdue && gone && looked => {
                conclude(Outcome::Discarded, Cause::NeverTriggered)
            }
            Trigger::Now if overdue && looked => conclude(Outcome::Failed, unstarted(entry)),
            // Too late to command it: by now the call may be over, and a wrong command disturbs one that is not.
            _ if !entry.is_commanded() && gone => conclude(Outcome::Failed, Cause::CallGone),
            _ => None,
        };
    }
    if exhausted(entry, policy) {
        // All day the switch did not bring what it began. Its end, should it be told, wakes it.
        let cause = Cause::NotCollected;
        let n = entry.next_rest();
        return Some(What::Parked { n, cause });
    }
    if source(entry).is_none() && gone_for_good(entry, policy) {
        // It is over, and nobody told on which switch it was: there is nothing to ask.
        let end = entry.latest_start()?.clone();
        return Some(What::PresumedEnded(Box::new(end)));
    }
    if let Some(end) = presumed_end(entry, now, policy) {
        return Some(What::PresumedEnded(Box::new(end)));
    }
    let asked = entry.stop_asked_at()?;
    let alarmed = entry.facts().iter().any(|fact| fact.what == What::StopUnconfirmed);
    (!alarmed && asked.plus(policy.stop_alarm) <= now).then_some(What::StopUnconfirmed)
}

/// What is to be done while nobody told of an end.
pub(super) fn to_do(entry: &Entry, now: Moment, policy: &Policy) -> Vec<Effect> {
    let Some(order) = entry.order() else { return Vec::new() };
    let look = || {
        vec![Effect::LookForChannel {
            n: entry.next_number("channel_seen"),
        }]
    };
    let looked = entry.channel_seen();
    if entry.started().is_none() {
        if !entry.is_commanded() {
            // Only the action's own handler commands at once. Whoever finds an uncommanded order later makes sure of the call first: a
            // command that meets a call which is not there disturbs others.
            if order.command.is_none() {
                return Vec::new();
            }
            if came_to_nothing(entry).is_some() {
                return probe(entry, now, policy);
            }
            // One that is to be stopped already is not begun any more: perhaps it was begun and stopped, and nobody told so yet.
            let wanted = entry.stop_asked_at().is_none();
            return match looked {
                Some((at, true)) if wanted && now.since(at) <= policy.start_timeout => vec![Effect::Command],
                Some((at, true)) if !wanted => wait_or(at.plus(policy.check_interval), now, look),
                Some((at, false)) => wait_or(at.plus(policy.grace), now, look),
                _ => look(),
            };
        }
        let by = confirm_by(entry, policy).unwrap_or(now);
        if by > now && came_to_nothing(entry).is_none() {
            return vec![Effect::Wait { until: by }];
        }
        // Events can be lost. Before a start counts as failed its file is looked for; a delayed one may come as long as its call lives.
        if trigger(entry) == Trigger::Now || gone_for_good(entry, policy) {
            return probe(entry, now, policy);
        }
        return match looked {
            Some((at, alive)) => {
                let pause = if alive { policy.check_interval } else { policy.grace };
                wait_or(at.plus(pause), now, look)
            }
            None => look(),
        };
    }
    if let Some((_, what, n)) = entry.mask_to_send() {
        return vec![Effect::Control { what, n }];
    }
    let mut moments = Vec::new();
    if let Some(asked) = entry.stop_asked_at() {
        match next_stop(entry, asked, policy) {
            Some((n, at)) if at <= now => return vec![Effect::Control { what: Control::Stop, n }],
            Some((_, at)) => moments.push(Some(at)),
            None => {}
        }
        let alarm = asked.plus(policy.stop_alarm);
        if alarm > now {
            moments.push(Some(alarm));
        }
    }
    if gone_for_good(entry, policy) {
        return probe(entry, now, policy);
    }
    // Looked for every now and then, and again once it has been gone for long enough.
    let started = entry.latest_start().map_or(order.asked_at, |told| told.at);
    let next_look = match looked {
        Some((at, true)) => at.plus(policy.check_interval),
        Some((at, false)) => entry.gone_since().unwrap_or(at).plus(policy.grace).max(at),
        None => started.plus(policy.check_interval),
    };
    if next_look <= now {
        return look();
    }
    moments.push(Some(next_look));
    if is_over_limit(entry, now, policy) {
        match probe(entry, now, policy).first() {
            Some(Effect::Wait { until }) => moments.push(Some(*until)),
            Some(effect) => return vec![effect.clone()],
            None => {}
        }
    } else {
        moments.push(limit(entry, policy));
    }
    wait(moments, now)
}

/// Why nothing was heard of a start that was commanded, and no file is there.
fn unstarted(entry: &Entry) -> Cause {
    let commanded = entry.facts().iter().find(|fact| fact.what == What::Commanded);
    let gone = entry.gone_at(&entry.call_id);
    // Not just gone by now: a call that was not recorded while it lasted is a fault that must be told.
    match commanded.zip(gone) {
        Some((commanded, gone)) if gone <= commanded.at.plus(STARTS_WITHIN) => Cause::CallGone,
        _ => Cause::NeverStarted,
    }
}

/// Why a start command came to nothing, if anybody said so.
fn came_to_nothing(entry: &Entry) -> Option<Cause> {
    entry.facts().iter().find_map(|fact| match fact.what {
        What::CommandLost { .. } => Some(Cause::CallGone),
        What::CommandRefused { .. } => Some(Cause::StartRefused),
        _ => None,
    })
}

/// Two workers may have sent the command, as when an action is delivered twice: what is said of one tells nothing of the other. Its file does.
fn may_have_come_twice(entry: &Entry, cause: Cause) -> bool {
    (entry.is_commanded() || cause == Cause::StartRefused) && trigger(entry) == Trigger::Now
}

/// How often the switch said that it has no such file.
fn missing(entry: &Entry) -> usize {
    let is_missing = |what: &What| {
        matches!(
            what,
            What::CollectFailed {
                failure: super::CollectFailure::Missing,
                ..
            }
        )
    };
    entry.failures().filter(|fact| is_missing(&fact.what)).count()
}

fn exhausted(entry: &Entry, policy: &Policy) -> bool {
    u32::try_from(entry.failures().count()).unwrap_or(u32::MAX) >= policy.max_attempts
}

fn wait_or(until: Moment, now: Moment, otherwise: impl FnOnce() -> Vec<Effect>) -> Vec<Effect> {
    if until > now {
        vec![Effect::Wait { until }]
    } else {
        otherwise()
    }
}

fn trigger(entry: &Entry) -> Trigger {
    entry
        .order()
        .and_then(|order| order.command.as_ref())
        .map_or(Trigger::Now, |command| command.trigger)
}

/// By when the switch should have confirmed the start.
fn confirm_by(entry: &Entry, policy: &Policy) -> Option<Moment> {
    let commanded = entry.facts().iter().find(|fact| fact.what == What::Commanded)?;
    Some(commanded.at.plus(policy.start_timeout))
}

/// The next stop command: its number, and when it is due.
fn next_stop(entry: &Entry, asked: Moment, policy: &Policy) -> Option<(u32, Moment)> {
    let (sent, last) = entry.stops_sent();
    // A start that came after the stop: the stop is applied to it at once.
    match last.filter(|_| entry.is_newest_start_stopped()) {
        None if sent > 0 => Some((sent + 1, asked)),
        None => Some((sent + 1, asked)),
        Some(at) => {
            let pause = policy.stop_repeats.get(usize::try_from(sent).ok()?.checked_sub(1)?)?;
            Some((sent + 1, at.plus(*pause)))
        }
    }
}

/// When the time limit, and the grace after it, have passed.
fn limit(entry: &Entry, policy: &Policy) -> Option<Moment> {
    let seconds = entry
        .order()?
        .command
        .as_ref()
        .map_or(10_800, |command| command.time_limit);
    Some(
        entry
            .latest_start()?
            .at
            .plus(Duration::from_secs(u64::from(seconds)))
            .plus(policy.grace),
    )
}

/// The channel has been gone for the grace time, as at least two looks say.
pub(super) fn gone_for_good(entry: &Entry, policy: &Policy) -> bool {
    let (Some(since), Some((last, false))) = (entry.gone_since(), entry.channel_seen()) else {
        return false;
    };
    last.since(since) >= policy.grace
}

/// Its time has passed. That proves nothing: the limit does not run while the recorded leg is on hold.
fn is_over_limit(entry: &Entry, now: Moment, policy: &Policy) -> bool {
    limit(entry, policy).is_some_and(|at| at <= now)
}

/// Looks at the file; what must be seen of it for the recording to be over, `presumed_end` says.
fn probe(entry: &Entry, now: Moment, policy: &Policy) -> Vec<Effect> {
    let Some((node, path)) = source(entry) else {
        return Vec::new();
    };
    let rested = super::paused(entry, policy).filter(|until| *until > now);
    let last = entry.probes().next();
    let gone = entry.started().is_none() || gone_for_good(entry, policy);
    let gap = match last {
        // Its call lives, beyond its limit. It is looked at every now and then, for the event of its end may be lost.
        _ if !gone => policy.check_interval.max(policy.probe_gap),
        Some(probe) if probe.open => (policy.grace * OPEN_GAP).max(policy.probe_gap),
        _ => policy.probe_gap,
    };
    // The second of two equal looks that say it is closed is soon enough after a gap.
    let gap = match last {
        Some(probe) if !probe.open => policy.probe_gap,
        _ => gap,
    };
    let next = last.map(|probe| probe.at.plus(gap));
    if let Some(until) = rested.into_iter().chain(next).max().filter(|until| *until > now) {
        return vec![Effect::Wait { until }];
    }
    let looked = entry.channel_seen().map(|(at, _)| at);
    let is_fresh = |probe: &Probe<'_>| looked.is_some_and(|looked| looked > probe.at);
    if entry.started().is_some() && last.is_some_and(|probe| probe.open && !is_fresh(&probe)) {
        // Its call may be known again by now, as when an ecallmgr was away.
        return vec![Effect::LookForChannel {
            n: entry.next_number("channel_seen"),
        }];
    }
    vec![Effect::Probe {
        n: entry.next_number("probed"),
        attempt: entry.next_attempt(),
        node: node.to_owned(),
        path: path.to_owned(),
    }]
}

/// The end that looks at the file prove.
///
/// | call | file | |
/// |---|---|---|
/// | a leg lives, within the limit | any | nothing is presumed |
/// | a leg lives, beyond the limit | not closed | nothing is presumed: it is on hold |
/// | a leg lives, beyond the limit | closed, twice the same | its end was lost |
/// | gone for the grace | closed, twice the same | its end was lost |
/// | gone for the grace | not closed, the same for `OPEN_RESTS` times the grace | its switch died |
/// | gone for the grace | grows, or changes | nothing is presumed |
fn presumed_end(entry: &Entry, now: Moment, policy: &Policy) -> Option<Told> {
    let started = entry.latest_start()?;
    let probes: Vec<Probe<'_>> = entry.probes().take_while(|probe| probe.at >= started.at).collect();
    let (last, before) = (probes.first()?, probes.get(1)?);
    let first = probes.iter().take_while(|probe| probe.saw_same_as(last)).last()?;
    // A little patience with clocks that count in other steps than ours.
    let rested = |long: Duration| last.at.since(first.at) >= long.mul_f64(0.9);
    let gone = gone_for_good(entry, policy);
    let proved = if last.open || first.open {
        gone && rested((policy.grace * OPEN_RESTS).max(policy.probe_gap))
    } else {
        let once = entry.order().is_some_and(|order| !order.may_begin_again());
        rested(policy.probe_gap) && (gone || once && is_over_limit(entry, now, policy))
    };
    if !proved {
        return None;
    }
    // When it ended nobody knows: no later than the channel was first found gone, or its limit.
    let limit = limit(entry, policy).map(|at| at.minus(policy.grace));
    let at = [entry.gone_since(), limit, Some(before.at)]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(before.at);
    Some(Told {
        at: at.max(started.at),
        length_ms: None,
        completion_cause: None,
        ..started.clone()
    })
}
