//! When a recording has really ended: a leg on hold writes nothing, and its time limit does not run.

use crate::entry::legs::Leg;
use crate::kazoo::leg::LegEvent;

use super::*;

fn seen(case: &Case, alive: bool) -> Input {
    let n = case.entry.next_number("channel_seen");
    Input::Fact(What::ChannelSeen { n, alive })
}

fn probed(case: &Case, md5: &str, open: bool) -> Input {
    Input::Fact(What::Probed {
        n: case.entry.next_number("probed"),
        size: 4096,
        md5: md5.into(),
        open,
    })
}

/// Runs a recording for that long. Every channel query and every probe gives this answer. Returns what was done, and
/// stops when the end is known.
fn live(
    case: &mut Case,
    from: u64,
    to: u64,
    alive: bool,
    file: impl Fn(u64) -> (&'static str, bool),
) -> Vec<(u64, Effect)> {
    let mut done = Vec::new();
    let mut now = from;
    let mut effects = next(case, Input::Due, after(now), &policy());
    while now < to && case.entry.ended().is_none() {
        let effect = match effects.first().cloned() {
            Some(Next::Do(effect)) => effect,
            Some(Next::Wait(until)) => {
                now = until.since(NOW).as_secs().max(now + 1);
                effects = next(case, Input::Due, after(now), &policy());
                continue;
            }
            Some(Next::Idle | Next::Ask) | None => break,
        };
        effects = match &effect {
            Effect::LookForChannel { .. } => {
                let input = seen(case, alive);
                next(case, input, after(now), &policy())
            }
            Effect::Probe { .. } => {
                let (md5, open) = file(now);
                now += 1;
                let input = probed(case, md5, open);
                next(case, input, after(now), &policy())
            }
            other => panic!("{other:?} while it runs"),
        };
        done.push((now, effect));
    }
    done
}

#[test]
fn while_a_leg_lives_a_recording_on_hold_is_never_over() {
    // Its limit is 600 s. It is on hold for half a day, and its file is unchanged.
    let mut case = started(order());
    let done = live(&mut case, 0, 43_200, true, |_| ("a", true));
    assert!(case.entry.ended().is_none());
    let looks = done
        .iter()
        .filter(|(_, effect)| matches!(effect, Effect::LookForChannel { .. }));
    assert!(looks.count() > 100, "it is looked after all the time");
    // Its end is reported at last, with all that was recorded.
    let ended = next(
        &mut case,
        Input::Fact(What::Ended(told(5000))),
        after(43_300),
        &policy(),
    );
    assert_eq!(ended, [Effect::Decide]);
}

#[test]
fn a_closed_file_beyond_the_limit_is_whole_though_its_call_lives_on() {
    let mut case = started(order());
    live(&mut case, 0, 3_000, true, |_| ("a", false));
    assert!(case.entry.ended().is_some() && case.entry.told_end().is_none());
    // Not for a recording that begins again by itself: the next part may be on hold.
    let mut bridged = order();
    bridged.command.as_mut().unwrap().trigger = Trigger::Bridge;
    let mut case = started(bridged);
    live(&mut case, 0, 3_000, true, |_| ("a", false));
    assert!(case.entry.ended().is_none());
}

#[test]
fn the_file_of_a_switch_that_was_killed_is_taken_when_it_rested_long_and_its_call_is_gone() {
    let mut case = started(order());
    let done = live(&mut case, 0, 7_200, false, |_| ("a", true));
    assert!(case.entry.ended().is_some(), "{done:?}");
    let probes: Vec<u64> = done
        .iter()
        .filter(|(_, effect)| matches!(effect, Effect::Probe { .. }))
        .map(|(at, _)| *at)
        .collect();
    let (first, last) = (probes[0], probes[probes.len() - 1]);
    assert!(last - first >= 15 * 60 - 90, "a hold lasts minutes: {probes:?}");
    assert!(
        probes.len() <= 5,
        "and the file need not be read all the time: {probes:?}"
    );
    // Before each probe, and after the first, its call was queried again.
    for pair in probes.windows(2) {
        let mut looks = done
            .iter()
            .filter(|(_, effect)| matches!(effect, Effect::LookForChannel { .. }));
        assert!(looks.any(|(at, _)| (pair[0]..=pair[1]).contains(at)), "{done:?}");
    }
}

#[test]
fn a_presumed_end_is_on_the_leg_that_the_recording_had_moved_to() {
    let mut case = started(order());
    let moved = Leg {
        call_id: "call".into(),
        event: LegEvent::Transferor,
        other: Some("other-leg".into()),
        control: None,
        was_answered: None,
        stamp: Some(after(5).unix_micros()),
    };
    next(&mut case, Input::Fact(What::Leg(Box::new(moved))), after(5), &policy());
    live(&mut case, 5, 7_200, false, |_| ("a", true));
    let ended = case.entry.ended().unwrap();
    assert_eq!(ended.call_id, "other-leg");
    assert_eq!(ended.other_leg_call_id, None, "it is not known whom that leg had then");
}

#[test]
fn an_open_file_that_grows_or_whose_call_is_found_again_is_left() {
    let mut case = started(order());
    // The file is written now and then, as if its leg is on hold now and then.
    live(&mut case, 0, 7_200, false, |now| {
        if now / 600 % 2 == 0 { ("a", true) } else { ("b", true) }
    });
    assert!(case.entry.ended().is_none());
    let mut case = started(order());
    live(&mut case, 0, 900, false, |_| ("a", true));
    assert!(case.entry.ended().is_none());
    live(&mut case, 900, 20_000, true, |_| ("a", true));
    assert!(
        case.entry.ended().is_none(),
        "an ecallmgr was away, and knows the call again"
    );
}

#[test]
fn a_start_that_came_to_nothing_is_told_by_when_its_call_was_gone() {
    let gone = |second: u64, behind: u64| Leg {
        call_id: "call".into(),
        event: LegEvent::Gone,
        other: None,
        control: None,
        was_answered: None,
        stamp: Some(after(second).minus(Duration::from_secs(behind)).unix_micros()),
    };
    let missing = || What::CollectFailed {
        attempt: 1,
        failure: CollectFailure::Missing,
        why: "no file".into(),
    };
    for (ended, cause) in [
        (Some((0, 0)), Cause::CallGone),
        // The call lasted, and was not recorded.
        (Some((20, 0)), Cause::NeverStarted),
        // The same on a switch whose clock is behind.
        (Some((20, 300)), Cause::NeverStarted),
        (None, Cause::NeverStarted),
    ] {
        let mut case = asked(order());
        step(&mut case, Input::Fact(What::Commanded));
        if let Some((second, behind)) = ended {
            let leg = What::Leg(Box::new(gone(second, behind)));
            next(&mut case, Input::Fact(leg), after(second), &policy());
        }
        next(&mut case, Input::Fact(missing()), after(31), &policy());
        assert_eq!(case.entry.outcome(), Some((Outcome::Failed, cause)));
    }
}

#[test]
fn a_recording_whose_file_was_not_to_be_had_goes_on_when_its_end_is_told() {
    let mut case = started(order());
    let missing = |attempt| {
        Input::Fact(What::CollectFailed {
            attempt,
            failure: CollectFailure::Missing,
            why: "-ERR error opening file".into(),
        })
    };
    for attempt in 1..=12 {
        assert_eq!(case.entry.parked(), None);
        next(&mut case, missing(attempt), after(u64::from(attempt) * 7200), &policy());
    }
    assert_eq!(
        (case.entry.parked(), case.entry.outcome()),
        (Some(Cause::NotCollected), None)
    );
    let effects = next(
        &mut case,
        Input::Fact(What::Ended(told(5000))),
        after(90_000),
        &policy(),
    );
    assert_eq!((case.entry.parked(), effects), (None, vec![Next::Do(Effect::Decide)]));
}
