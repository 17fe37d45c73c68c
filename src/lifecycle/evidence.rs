//! What proves that a recording is over if no event reported its end: probes of its file, and channel queries.

use std::time::Duration;

use crate::entry::{Entry, Probe, longest};
use crate::kazoo::time::Moment;
use crate::recording::ending::Told;

use super::schedule::{paused, wait_or};
use super::{Effect, Next, Policy, source};

/// A file that was not closed must be unchanged for this many times the grace, with its call gone all that time. Then its switch counts as
/// crashed. A shorter time proves nothing, because a file is also unchanged while a leg is on hold.
const OPEN_RESTS: u32 = 15;

/// Interval between two probes of such a file, in multiples of the grace.
const OPEN_GAP: u32 = 5;

/// When the time limit, and the grace after it, have passed.
pub(super) fn limit(entry: &Entry, policy: &Policy) -> Option<Moment> {
    let seconds = entry.order()?.time_limit().unwrap_or(10_800);
    let began = entry.latest_began_by(&policy.worker)?;
    Some(began.plus(Duration::from_secs(u64::from(seconds))).plus(policy.grace))
}

/// Whether the channel has been gone for the grace time, according to at least two channel queries.
pub(super) fn gone_for_good(entry: &Entry, policy: &Policy) -> bool {
    entry.gone_for() >= policy.grace
}

/// Whether the channel has been gone for so long that a file which was not closed counts as left by its switch.
pub fn is_left_open(entry: &Entry, policy: &Policy) -> bool {
    entry.gone_for() >= (policy.grace * OPEN_RESTS).mul_f64(0.9)
}

/// Whether its time limit has passed. That proves nothing, because the limit does not run while the recorded leg is on hold.
pub(super) fn is_over_limit(entry: &Entry, now: Moment, policy: &Policy) -> bool {
    limit(entry, policy).is_some_and(|at| at <= now)
}

/// Probes the file. `presumed_end` decides what the probes must show for the recording to be over.
pub(super) fn probe(entry: &Entry, now: Moment, policy: &Policy) -> Next {
    let Some((node, path)) = source(entry) else {
        return Next::Idle;
    };
    let rested = paused(entry, policy);
    let last = entry.probes().next();
    let gone = entry.started().is_none() || gone_for_good(entry, policy);
    let gap = match last {
        // Its call is alive beyond its limit. The file is probed at intervals, because the event of its end may be lost.
        _ if !gone => policy.check_interval.max(policy.probe_gap),
        Some(probe) if probe.open => (policy.grace * OPEN_GAP).max(policy.probe_gap),
        _ => policy.probe_gap,
    };
    // After a probe that found the file closed, one gap is long enough for the second of two equal probes.
    let gap = match last {
        Some(probe) if !probe.open => policy.probe_gap,
        _ => gap,
    };
    let next = last.map(|probe| probe.at.plus(gap));
    wait_or(rested.into_iter().chain(next).max(), now, || {
        let looked = entry.channel_seen().map(|(at, _)| at);
        let is_fresh = |probe: &Probe<'_>| looked.is_some_and(|looked| looked > probe.at);
        if entry.started().is_some() && last.is_some_and(|probe| probe.open && !is_fresh(&probe)) {
            // Its call may be known again by now, for example if an ecallmgr was away.
            return Next::Do(Effect::LookForChannel {
                n: entry.next_number("channel_seen"),
            });
        }
        Next::Do(Effect::Probe {
            n: entry.next_number("probed"),
            attempt: entry.next_attempt(),
            node: node.to_owned(),
            path: path.to_owned(),
        })
    })
}

/// The end that the probes of the file prove.
///
/// | call | file | |
/// |---|---|---|
/// | a leg lives, within the limit | any | nothing is presumed |
/// | a leg lives, beyond the limit | not closed | nothing is presumed: it is on hold |
/// | a leg lives, beyond the limit | closed, twice the same | its end was lost |
/// | gone for the grace | closed, twice the same | its end was lost |
/// | gone for the grace | not closed, the same for `OPEN_RESTS` times the grace | its switch crashed |
/// | gone for the grace | grows, or changes | nothing is presumed |
pub(super) fn presumed_end(entry: &Entry, now: Moment, policy: &Policy) -> Option<Told> {
    let started = entry.latest_start()?;
    // The switch's clock may differ from those of workers.
    let is_of_part = |probe: &Probe<'_>| entry.latest_began_by(probe.by).is_none_or(|began| probe.at >= began);
    let probes: Vec<Probe<'_>> = entry.probes().take_while(is_of_part).collect();
    let (last, before) = (probes.first()?, probes.get(1)?);
    let same: Vec<&Probe<'_>> = probes.iter().take_while(|probe| probe.saw_same_as(last)).collect();
    let first = same.last()?;
    // One worker must have seen both. Between two workers whose clocks differ, moments can look like a quarter of an hour.
    let seen: Vec<(&str, Moment)> = same.iter().map(|probe| (probe.by, probe.at)).collect();
    // A tolerance for clocks that count in other steps than ours.
    let rested = |long: Duration| longest(&seen) >= long.mul_f64(0.9);
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
    // The time of the end is unknown. It was no later than the first channel query that found the channel gone, or than its limit.
    let limit = limit(entry, policy).map(|at| at.minus(policy.grace));
    let at = [entry.gone_since(), limit, Some(before.at)]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(before.at);
    Some(Told {
        at: at.max(started.at),
        ..unreported_end(entry, started)
    })
}

/// An end that no event reported: what the start told, on the leg that the recording was on at last. What a start tells of lengths and
/// causes is left from the recording before it.
pub(super) fn unreported_end(entry: &Entry, started: &Told) -> Told {
    let carrier = entry.carried_by();
    let other_leg_call_id = started.other_leg_call_id.clone().filter(|_| !carrier.moved);
    Told {
        call_id: carrier.call_id,
        other_leg_call_id,
        length_ms: None,
        completion_cause: None,
        hung_up: None,
        ..started.clone()
    }
}
