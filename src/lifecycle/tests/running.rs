//! While no event has reported an end.

use crate::entry::legs::Leg;
use crate::kazoo::leg::LegEvent;

use super::*;

#[test]
fn a_start_that_is_never_confirmed_fails_and_is_taken_up_if_it_starts_after_all() {
    let mut case = asked(order());
    assert_eq!(step(&mut case, Input::Fact(What::Commanded)), [Next::Wait(after(30))]);
    let probe = Effect::Probe {
        n: 1,
        attempt: 1,
        node: "freeswitch@fs1".into(),
        path: path(),
    };
    assert_eq!(
        next(&mut case, Input::Due, after(30), &policy()),
        [probe],
        "events can be lost: its file is looked for"
    );
    let missing = What::CollectFailed {
        attempt: 1,
        failure: CollectFailure::Missing,
        why: "no file".into(),
    };
    let failed = announce(Announcement::Outcome(Outcome::Failed));
    assert_eq!(next(&mut case, Input::Fact(missing), after(30), &policy()), [failed]);
    assert_eq!(case.entry.outcome(), Some((Outcome::Failed, Cause::NeverStarted)));
    next(
        &mut case,
        Input::Fact(What::Announced(Announcement::Outcome(Outcome::Failed))),
        after(30),
        &policy(),
    );
    assert!(case.entry.is_closed());
    let again = next(&mut case, Input::Fact(What::Ended(told(5000))), after(90), &policy());
    assert_eq!(again, [Effect::Decide]);
    assert!(!case.entry.is_closed());
}

/// A worker died after it sent the command and before it wrote that down, and the call ended while the broker was away.
#[test]
fn a_start_of_which_no_command_is_written_is_looked_for_before_its_call_counts_as_gone() {
    let gone = |n| Input::Fact(What::ChannelSeen { n, alive: false });
    for (found, outcome) in [(true, None), (false, Some((Outcome::Failed, Cause::CallGone)))] {
        let mut case = asked(order());
        next(&mut case, gone(1), after(10), &policy());
        let probe = Effect::Probe {
            n: 1,
            attempt: 1,
            node: "freeswitch@fs1".into(),
            path: path(),
        };
        assert_eq!(next(&mut case, gone(2), after(100), &policy()), [probe]);
        let seen = match found {
            true => What::Probed {
                n: 1,
                size: 7,
                md5: "a".into(),
                open: false,
            },
            false => What::CollectFailed {
                attempt: 1,
                failure: CollectFailure::Missing,
                why: "no file".into(),
            },
        };
        next(&mut case, Input::Fact(seen), after(101), &policy());
        assert_eq!((case.entry.outcome(), case.entry.started().is_some()), (outcome, found));
    }
}

#[test]
fn a_start_that_nobody_told_is_found_by_its_file() {
    let mut case = asked(order());
    step(&mut case, Input::Fact(What::Commanded));
    next(&mut case, Input::Due, after(30), &policy());
    next(
        &mut case,
        Input::Fact(What::Probed {
            n: 1,
            size: 7,
            md5: "a".into(),
            open: false,
        }),
        after(31),
        &policy(),
    );
    assert!(case.entry.started().is_some() && case.entry.outcome().is_none());
}

#[test]
fn a_refused_or_lost_start_has_its_cause() {
    for (alive, cause) in [(false, Cause::CallGone), (true, Cause::NeverStarted)] {
        let mut lost = asked(order());
        let look = step(&mut lost, Input::Fact(What::CommandLost { why: "gone".into() }));
        assert_eq!(
            look,
            [Effect::LookForChannel { n: 1 }],
            "an ecallmgr that is back has another queue"
        );
        let then = step(&mut lost, Input::Fact(What::ChannelSeen { n: 1, alive }));
        if alive {
            assert_eq!(then, [Effect::Command], "its control process may be back in a moment");
            let mut taken = lost.clone();
            next(&mut taken, Input::Fact(What::Commanded), after(3), &policy());
            assert_eq!(taken.entry.outcome(), None);
            assert_eq!(next(&mut lost, Input::Due, after(4), &policy()), [Effect::Command]);
            let mut stopped = lost.clone();
            let stop = What::StopAsked {
                action: "s".into(),
                route: None,
            };
            let waits = next(&mut stopped, Input::Fact(stop), after(4), &policy());
            assert_eq!(waits, [Next::Wait(after(60))], "it is not to begin any more");
            let look = next(&mut lost, Input::Due, after(20), &policy());
            assert_eq!(look, [Effect::LookForChannel { n: 2 }], "or the call be over");
            next(
                &mut lost,
                Input::Fact(What::ChannelSeen { n: 2, alive }),
                after(61),
                &policy(),
            );
        }
        assert_eq!(lost.entry.outcome(), Some((Outcome::Failed, cause)));
    }
    let mut refused = asked(order());
    step(&mut refused, Input::Fact(What::CommandRefused { why: "throw".into() }));
    step(&mut refused, no_such_file());
    assert_eq!(refused.entry.outcome(), Some((Outcome::Failed, Cause::StartRefused)));
}

/// An action that is delivered twice at once is commanded twice, by two workers. The failure of one command says nothing about the other
/// one.
#[test]
fn the_file_tells_whether_a_command_that_came_twice_came_to_nothing() {
    for (what, cause) in [
        (What::CommandRefused { why: "throw".into() }, Cause::StartRefused),
        (What::CommandLost { why: "gone".into() }, Cause::CallGone),
    ] {
        let mut case = asked(order());
        step(&mut case, Input::Fact(What::Commanded));
        let mut probing = step(&mut case, Input::Fact(what));
        if cause == Cause::CallGone {
            probing = step(&mut case, Input::Fact(What::ChannelSeen { n: 1, alive: false }));
        }
        assert!(matches!(probing[..], [Next::Do(Effect::Probe { .. })]), "{probing:?}");
        let mut nothing = case.clone();
        step(&mut nothing, no_such_file());
        assert_eq!(nothing.entry.outcome(), Some((Outcome::Failed, cause)));
        let there = What::Probed {
            n: 1,
            size: 1000,
            md5: "0".into(),
            open: false,
        };
        step(&mut case, Input::Fact(there));
        assert!(case.entry.outcome().is_none() && case.entry.started().is_some());
    }
}

fn no_such_file() -> Input {
    Input::Fact(What::CollectFailed {
        attempt: 1,
        failure: CollectFailure::Missing,
        why: "no file".into(),
    })
}

/// What becomes of a delayed start that was commanded so many seconds after its action. The call was gone at 5.5 s; `bridged`: it was
/// bridged for a moment before; `was_answered`: what the end of the call's leg said.
fn delayed_until(
    commanded: u64,
    trigger: Trigger,
    bridged: bool,
    was_answered: Option<bool>,
) -> Option<(Outcome, Cause)> {
    let leg = |event| Leg {
        call_id: "call".into(),
        event,
        other: None,
        control: None,
        was_answered: None,
        stamp: Some(after(5).unix_micros()),
    };
    let mut delayed = order();
    if let Some(command) = &mut delayed.command {
        command.trigger = trigger;
    }
    let mut case = asked(delayed);
    next(&mut case, Input::Fact(What::Commanded), after(commanded), &policy());
    if bridged {
        let what = What::Leg(Box::new(leg(LegEvent::Bridged)));
        next(&mut case, Input::Fact(what), after(5), &policy());
    }
    let what = What::Leg(Box::new(Leg {
        was_answered,
        ..leg(LegEvent::Gone)
    }));
    next(&mut case, Input::Fact(what), after(5), &policy());
    for (n, second) in [(1, 40), (2, 101)] {
        next(
            &mut case,
            Input::Fact(What::ChannelSeen { n, alive: false }),
            after(second),
            &policy(),
        );
    }
    next(&mut case, no_such_file(), after(102), &policy());
    case.entry.outcome()
}

#[test]
fn a_call_whose_command_came_late_or_whose_trigger_came_is_not_told_as_never_triggered() {
    let (nothing, late) = (
        (Outcome::Discarded, Cause::NeverTriggered),
        (Outcome::Failed, Cause::CallGone),
    );
    let lost = (Outcome::Failed, Cause::NeverStarted);
    for (commanded, trigger, bridged, was_answered, outcome) in [
        (0, Trigger::Answer, false, None, nothing),
        (0, Trigger::Answer, false, Some(false), nothing),
        (0, Trigger::Answer, false, Some(true), lost),
        (0, Trigger::Answer, true, None, lost),
        // Early media was bridged, and the call was never answered.
        (0, Trigger::Answer, true, Some(false), nothing),
        (5, Trigger::Answer, false, None, late),
        (0, Trigger::Bridge, false, None, nothing),
        (0, Trigger::Bridge, false, Some(true), nothing),
        (0, Trigger::Bridge, true, Some(true), lost),
    ] {
        let came_to = delayed_until(commanded, trigger, bridged, was_answered);
        assert_eq!(
            came_to,
            Some(outcome),
            "{commanded} {trigger:?} {bridged} {was_answered:?}"
        );
    }
}

#[test]
fn a_delayed_start_is_not_overdue_while_its_channel_lives() {
    let mut delayed = order();
    if let Some(command) = &mut delayed.command {
        command.trigger = Trigger::Answer;
    }
    let mut case = asked(delayed);
    step(&mut case, Input::Fact(What::Commanded));
    assert_eq!(
        next(&mut case, Input::Due, after(30), &policy()),
        [Effect::LookForChannel { n: 1 }]
    );
    let alive = What::ChannelSeen { n: 1, alive: true };
    assert_eq!(
        next(&mut case, Input::Fact(alive), after(30), &policy()),
        [Next::Wait(after(330))]
    );
    let gone = What::ChannelSeen { n: 2, alive: false };
    assert_eq!(
        next(&mut case, Input::Fact(gone), after(330), &policy()),
        [Next::Wait(after(390))]
    );
    assert_eq!(
        next(&mut case, Input::Due, after(390), &policy()),
        [Effect::LookForChannel { n: 3 }]
    );
    let gone = What::ChannelSeen { n: 3, alive: false };
    let probing = next(&mut case, Input::Fact(gone), after(390), &policy());
    assert!(matches!(probing[..], [Next::Do(Effect::Probe { .. })]), "{probing:?}");
    let missing = What::CollectFailed {
        attempt: 1,
        failure: CollectFailure::Missing,
        why: "no file".into(),
    };
    next(&mut case, Input::Fact(missing), after(390), &policy());
    assert_eq!(case.entry.outcome(), Some((Outcome::Discarded, Cause::NeverTriggered)));
}

#[test]
fn an_order_that_was_never_commanded_makes_sure_of_its_call_first() {
    let mut case = asked(order());
    assert_eq!(
        next(&mut case, Input::Due, after(60), &policy()),
        [Effect::LookForChannel { n: 1 }]
    );
    let alive = What::ChannelSeen { n: 1, alive: true };
    assert_eq!(
        next(&mut case, Input::Fact(alive), after(60), &policy()),
        [Effect::Command]
    );
}

#[test]
fn a_stop_is_repeated_until_the_recording_ends_and_told_when_it_does_not() {
    let mut case = started(order());
    let stop = |n| Effect::Control { what: Control::Stop, n };
    let asked = What::StopAsked {
        action: "a".into(),
        route: None,
    };
    assert_eq!(step(&mut case, Input::Fact(asked)), [stop(1)]);
    assert_eq!(
        step(&mut case, Input::Fact(What::StopSent { n: 1, start: None })),
        [Next::Wait(after(2))]
    );
    assert_eq!(next(&mut case, Input::Due, after(2), &policy()), [stop(2)]);
    next(
        &mut case,
        Input::Fact(What::StopSent { n: 2, start: None }),
        after(2),
        &policy(),
    );
    assert_eq!(next(&mut case, Input::Due, after(7), &policy()), [stop(3)]);
    next(
        &mut case,
        Input::Fact(What::StopSent { n: 3, start: None }),
        after(7),
        &policy(),
    );
    assert_eq!(next(&mut case, Input::Due, after(22), &policy()), [stop(4)]);
    next(
        &mut case,
        Input::Fact(What::StopSent { n: 4, start: None }),
        after(22),
        &policy(),
    );
    next(&mut case, Input::Due, after(30), &policy());
    assert!(case.entry.facts().any(|fact| fact.what == What::StopUnconfirmed));
}

#[test]
fn a_stop_that_comes_before_the_start_is_applied_to_it() {
    let mut case = asked(order());
    step(&mut case, Input::Fact(What::Commanded));
    let waiting = step(
        &mut case,
        Input::Fact(What::StopAsked {
            action: "a".into(),
            route: None,
        }),
    );
    assert!(matches!(waiting[..], [Next::Wait(_)]), "{waiting:?}");
    let stop = next(&mut case, Input::Fact(What::Started(told(0))), after(3), &policy());
    assert_eq!(
        stop,
        [Effect::Control {
            what: Control::Stop,
            n: 1
        }]
    );
}

#[test]
fn an_end_that_nobody_told_is_presumed_when_the_channel_is_gone_and_the_file_rests() {
    let mut case = started(order());
    let look = |n| Effect::LookForChannel { n };
    assert_eq!(next(&mut case, Input::Doubt, after(10), &policy()), [look(1)]);
    let seen = |n, alive| Input::Fact(What::ChannelSeen { n, alive });
    let waiting = next(&mut case, seen(1, false), after(10), &policy());
    assert_eq!(waiting, [Next::Wait(after(70))]);
    assert_eq!(next(&mut case, Input::Due, after(70), &policy()), [look(2)]);
    let probe = |n| Effect::Probe {
        n,
        attempt: 1,
        node: "freeswitch@fs1".into(),
        path: path(),
    };
    assert_eq!(next(&mut case, seen(2, false), after(70), &policy()), [probe(1)]);
    let probed = |n, md5: &str| {
        Input::Fact(What::Probed {
            n,
            size: 7,
            md5: md5.into(),
            open: false,
        })
    };
    let waiting = next(&mut case, probed(1, "a"), after(71), &policy());
    assert_eq!(waiting, [Next::Wait(after(131))]);
    assert_eq!(next(&mut case, Input::Due, after(131), &policy()), [probe(2)]);
    // The file has grown, so the recording still runs on another leg.
    next(&mut case, probed(2, "b"), after(132), &policy());
    assert!(case.entry.ended().is_none());
    assert_eq!(next(&mut case, Input::Due, after(192), &policy()), [probe(3)]);
    assert_eq!(next(&mut case, probed(3, "b"), after(193), &policy()), [Effect::Decide]);
    assert!(case.entry.ended().is_some() && case.entry.told_end().is_none());
}

#[test]
fn a_channel_that_lives_is_not_presumed_dead() {
    let mut case = started(order());
    let seen = |n, alive| Input::Fact(What::ChannelSeen { n, alive });
    next(&mut case, seen(1, false), after(10), &policy());
    let waiting = next(&mut case, seen(2, true), after(70), &policy());
    assert_eq!(waiting, [Next::Wait(after(370))]);
}

#[test]
fn a_recording_over_its_limit_is_probed_too() {
    let mut case = started(order());
    let seen = Input::Fact(What::ChannelSeen { n: 1, alive: true });
    let waiting = next(&mut case, seen, after(500), &policy());
    assert_eq!(waiting, [Next::Wait(after(660))]);
    assert!(matches!(
        next(&mut case, Input::Due, after(660), &policy())[..],
        [Next::Do(Effect::Probe { .. })]
    ));
}

#[test]
fn an_end_that_was_told_before_the_probe_came_back_is_no_part_of_its_own() {
    let mut case = asked(order());
    step(&mut case, Input::Fact(What::Commanded));
    // No event arrived, and the file exists.
    let probed = Input::Fact(What::Probed {
        n: 1,
        size: 7,
        md5: "a".into(),
        open: false,
    });
    next(&mut case, probed, after(31), &policy());
    assert_eq!(case.entry.started().map(|told| told.at), Some(NOW));
    // Its end was on the way.
    let mut end = told(20_000);
    (end.at, end.stamp) = (after(25), Some(after(25).unix_micros()));
    next(&mut case, Input::Fact(What::Ended(end)), after(32), &policy());
    assert_eq!(case.entry.parts().len(), 1);
    assert_eq!(case.entry.ended_at(), Some(after(25)));
}
