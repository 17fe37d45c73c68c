//! What follows where the clocks of workers, or of the switch, differ by much.

use crate::entry::fact::BEFORE_ANY_START;
use crate::entry::legs::Leg;
use crate::kazoo::leg::LegEvent;
use crate::recording::controls::Why;

use super::*;

/// What a worker noted at a second of its own clock.
fn add(case: &mut Case, by: &str, second: u64, what: What) {
    let (at, by) = (after(second), by.to_owned());
    case.entry.add(Fact { at, by, what });
}

/// What the switch reports, with its stamp.
fn event(second: u64) -> Box<Told> {
    let mut told = told(5000);
    (told.at, told.stamp) = (after(second), Some(after(second).unix_micros()));
    told
}

fn due_at(case: &mut Case, second: u64) -> Vec<Next> {
    next(case, Input::Due, after(second), &policy())
}

fn control(what: Control, n: u32) -> Effect {
    Effect::Control { what, n }
}

/// A mask that worker "x" sent at second `at` of its clock, knowing no start. Worker "w" heard of the start at the tenth second. `asked`: when the
/// callflow sent the action.
fn masked_before_start(at: u64, asked: Option<u64>) -> Case {
    let mut case = asked_and_commanded();
    let action = "m".to_owned();
    let what = What::MaskAsked {
        action: action.clone(),
        on: true,
        asked: asked.map(after),
        route: None,
    };
    add(&mut case, "x", at, what);
    let what = What::Masked {
        action,
        on: true,
        n: 0,
        start: Some(BEFORE_ANY_START),
        sender: Some("x".into()),
    };
    add(&mut case, "x", at, what);
    add(&mut case, "w", 10, What::Started(event(10)));
    case
}

fn asked_and_commanded() -> Case {
    let mut case = asked(order());
    step(&mut case, Input::Fact(What::Commanded));
    case
}

/// The switch ignores a mask of a recording that has not begun.
#[test]
fn a_mask_from_before_the_start_is_sent_again_though_the_clock_of_its_sender_is_ahead() {
    for asked in [None, Some(5)] {
        let mut case = masked_before_start(60, asked);
        assert_eq!(case.entry.mask_to_send(), Some(("m", Control::Mask, 1)), "{asked:?}");
        assert_eq!(due_at(&mut case, 11), [control(Control::Mask, 1)]);
    }
    // The clocks of the callflow, of both workers and of the switch agree that it came after the start.
    assert_eq!(masked_before_start(60, Some(60)).entry.mask_to_send(), None);
}

#[test]
fn a_mask_that_came_before_the_start_by_the_callflows_clock_is_not_told_as_obeyed() {
    let told = |asked| {
        let mut case = masked_before_start(60, Some(asked));
        add(&mut case, "w", 500, What::Ended(event(500)));
        due_at(&mut case, 501);
        let controls = case.entry.controls();
        let masks: Vec<bool> = controls.masks.iter().map(|mask| mask.on).collect();
        let why: Vec<Why> = controls.not_obeyed.iter().map(|one| one.why).collect();
        (masks, why)
    };
    assert_eq!(told(5), (vec![], vec![Why::Unconfirmed]));
    assert_eq!(told(60), (vec![true], vec![]));
}

/// Worker "x" sent a stop while the call rang, and its clock is an hour ahead. The switch ignored the stop. Worker "w" heard of the start.
fn stopped_before_start() -> Case {
    let mut case = asked_and_commanded();
    let action = "s".to_owned();
    add(&mut case, "w", 10, What::Started(event(10)));
    add(&mut case, "x", 3600, What::StopAsked { action, route: None });
    add(&mut case, "x", 3600, What::StopSent { n: 1, start: None });
    case
}

#[test]
fn a_stop_is_repeated_and_its_alarm_comes_though_the_clock_of_its_sender_is_ahead() {
    let mut case = stopped_before_start();
    let mut now = 11;
    for (n, pause) in [(2, 5), (3, 15)] {
        assert_eq!(due_at(&mut case, now), [control(Control::Stop, n)]);
        let start = case.entry.newest_start();
        let sent = Input::Fact(What::StopSent { n, start });
        let then = next(&mut case, sent, after(now), &policy());
        now += pause;
        assert_eq!(then, [Next::Wait(after(now))], "as often as with clocks that agree");
    }
    assert_eq!(due_at(&mut case, now), [control(Control::Stop, 4)]);
    let alarmed = |case: &Case| case.entry.facts().any(|fact| fact.what == What::StopUnconfirmed);
    assert!(!alarmed(&case));
    due_at(&mut case, 11 + 30);
    assert!(alarmed(&case));
}

/// Its worker could not send it.
#[test]
fn a_stop_that_was_not_sent_is_sent_at_once_though_the_clock_of_its_worker_is_ahead() {
    let mut case = asked_and_commanded();
    let action = "s".to_owned();
    add(&mut case, "w", 10, What::Started(event(10)));
    add(&mut case, "x", 3600, What::StopAsked { action, route: None });
    assert_eq!(due_at(&mut case, 11), [control(Control::Stop, 1)]);
}

/// No worker sent the stop once more. The callflow's clock tells that the recording ran on after it.
#[test]
fn a_stop_from_before_the_start_is_told_though_the_clock_of_its_sender_is_ahead() {
    let mut case = stopped_before_start();
    let action = "s".to_owned();
    let asked = after(5);
    add(&mut case, "x", 3600, What::StopDelayed { action, asked });
    add(&mut case, "w", 500, What::Ended(event(500)));
    due_at(&mut case, 501);
    let told: Vec<Why> = case.entry.controls().not_obeyed.iter().map(|one| one.why).collect();
    assert_eq!(told, [Why::Ended]);
}

/// A recording that begins at each bridge. A mask was asked for at the end of its first part, and no worker could send it in time.
#[test]
fn a_mask_that_came_too_late_for_one_part_is_sent_to_the_next_one() {
    for (intended, returned) in [(false, false), (true, false), (false, true)] {
        let mut order = order();
        order.command.as_mut().unwrap().trigger = Trigger::Bridge;
        let mut case = asked(order);
        step(&mut case, Input::Fact(What::Commanded));
        add(&mut case, "w", 1, What::Started(event(1)));
        let (action, on, asked) = ("m".to_owned(), true, Some(after(36)));
        if intended {
            let action = action.clone();
            add(&mut case, "x", 37, What::Intended { action, on, asked });
        }
        add(&mut case, "w", 40, What::Ended(event(40)));
        let mask = What::MaskAsked {
            action,
            on,
            asked,
            route: None,
        };
        let noted = if returned { 37 } else { 45 };
        add(&mut case, "w", noted, mask);
        if returned {
            let (what, action) = (Control::Mask, "m".to_owned());
            add(&mut case, "w", noted, What::Returned { what, action, n: 0 });
        }
        due_at(&mut case, 45);
        let why = if intended { Why::Unconfirmed } else { Why::Ended };
        let told: Vec<Why> = case.entry.controls().not_obeyed.iter().map(|one| one.why).collect();
        assert_eq!(told, [why]);
        let then = next(&mut case, Input::Fact(What::Started(event(60))), after(60), &policy());
        assert_eq!(then, [control(Control::Mask, 0)], "{why:?} {returned}");
    }
}

fn probed(n: u32, md5: &str) -> What {
    What::Probed {
        n,
        size: 4096,
        md5: md5.into(),
        open: false,
    }
}

/// A recording whose switch's clock differs from the workers'. Worker "w" heard of its start at second 4000.
fn on_a_switch_that_says(second: u64) -> Case {
    let mut case = asked_and_commanded();
    add(&mut case, "w", 4000, What::Started(event(second)));
    case
}

#[test]
fn a_lost_end_is_presumed_though_the_clock_of_the_switch_is_ahead() {
    let mut case = on_a_switch_that_says(4000 + 3600);
    for (n, second) in [(1, 4300), (2, 4390)] {
        add(&mut case, "w", second, What::ChannelSeen { n, alive: false });
    }
    for (n, second) in [(1, 4400), (2, 4470)] {
        add(&mut case, "w", second, probed(n, "1"));
    }
    due_at(&mut case, 4471);
    assert!(case.entry.ended().is_some());
}

#[test]
fn the_channel_is_queried_in_time_though_the_clock_of_the_switch_is_ahead() {
    let mut case = on_a_switch_that_says(4000 + 3600);
    let until = after(4000).plus(policy().check_interval);
    assert_eq!(due_at(&mut case, 4001), [Next::Wait(until)]);
}

/// Its leg is on hold, or its file's format shows no writer.
#[test]
fn no_end_is_presumed_within_the_limit_because_the_clock_of_the_switch_is_behind() {
    let mut case = on_a_switch_that_says(4000 - 3600);
    add(&mut case, "w", 4300, What::ChannelSeen { n: 1, alive: true });
    for (n, second) in [(1, 4310), (2, 4380)] {
        add(&mut case, "w", second, probed(n, "1"));
    }
    due_at(&mut case, 4390);
    assert!(case.entry.ended().is_none());
    // Beyond it the end counts as lost.
    for (n, second) in [(3, 4700), (4, 4770)] {
        add(&mut case, "w", second, probed(n, "1"));
    }
    due_at(&mut case, 4771);
    assert!(case.entry.ended().is_some());
}

/// The start command of worker "x", at second `commanded` of its clock, came to nothing. The call ended at the sixtieth second, as worker `hears`
/// heard at second `heard` of its own clock.
fn unstarted(commanded: u64, hears: &str, heard: u64) -> Option<Cause> {
    let mut case = asked(order());
    add(&mut case, "x", commanded, What::Commanded);
    let gone = What::Leg(Box::new(Leg {
        call_id: "call".into(),
        event: LegEvent::Gone,
        other: None,
        control: None,
        was_answered: None,
        stamp: Some(after(60).unix_micros()),
    }));
    add(&mut case, hears, heard, gone);
    for (n, second) in [(1, 200), (2, 261)] {
        add(&mut case, "w", second, What::ChannelSeen { n, alive: false });
    }
    let missing = What::CollectFailed {
        attempt: 1,
        failure: CollectFailure::Missing,
        why: "no file".into(),
    };
    add(&mut case, "w", 262, missing);
    due_at(&mut case, 263);
    case.entry.outcome().map(|(_, cause)| cause)
}

/// `never_started` alerts operators, and `call_gone` does not.
#[test]
fn a_start_that_came_to_nothing_is_told_though_the_clock_of_its_commander_is_ahead() {
    // The call lasted for twenty seconds after the command.
    assert_eq!(unstarted(40, "w", 60), Some(Cause::NeverStarted));
    assert_eq!(unstarted(40 + 80, "w", 60), Some(Cause::NeverStarted));
    assert_eq!(unstarted(40 + 80, "x", 60 + 80), Some(Cause::NeverStarted));
    // The caller hung up at once.
    assert_eq!(unstarted(60, "w", 60), Some(Cause::CallGone));
    assert_eq!(unstarted(60, "x", 60), Some(Cause::CallGone));
    assert_eq!(unstarted(60 + 80, "x", 60 + 80), Some(Cause::CallGone));
}

/// Worker "x", whose clock is an hour ahead, made the last look. The driver of worker "w" is to wait.
#[test]
fn a_rescue_is_postponed_though_the_clock_of_the_worker_that_looked_last_is_ahead() {
    let rescuing = Policy {
        rescue: true,
        ..policy()
    };
    let mut case = watched::waiting(watched::kazoos());
    let last = What::Sought {
        n: 2,
        found: crate::entry::fact::KazooCopy::Missing,
        last: true,
    };
    add(&mut case, "x", 3600, last);
    next(&mut case, decided(Destination::Account), after(100), &rescuing);
    let postponed = What::Postponed {
        n: 1,
        until: after(200),
        why: "busy".into(),
    };
    let then = next(&mut case, Input::Fact(postponed), after(100), &rescuing);
    assert_eq!(then, [Next::Wait(after(200))]);
    assert_eq!(next(&mut case, Input::Due, after(200), &rescuing), [collect(1)]);
}

/// An order whose command met no queue. Worker "x", whose clock is an hour ahead, noted that, and worker "w" goes on.
fn command_lost() -> Case {
    let mut case = asked(order());
    let why = "no queue".to_owned();
    add(&mut case, "x", 3600, What::CommandLost { why });
    case
}

const LOOK: Effect = Effect::LookForChannel { n: 1 };

#[test]
fn a_lost_command_is_followed_by_one_look_though_the_clock_of_its_worker_is_ahead() {
    let mut case = command_lost();
    assert_eq!(due_at(&mut case, 10), [LOOK]);
    let seen = Input::Fact(What::ChannelSeen { n: 1, alive: true });
    let then = next(&mut case, seen, after(10), &policy());
    assert_eq!(then, [Effect::Command], "the call lives");
    // A queue takes the command, and the switch has its time to confirm the start.
    let then = next(&mut case, Input::Fact(What::Commanded), after(11), &policy());
    assert_eq!(then, [Next::Wait(after(11).plus(policy().start_timeout))]);
}

/// A command to a call that is gone disturbs other calls.
#[test]
fn no_command_follows_a_look_of_a_worker_whose_clock_is_ahead() {
    let mut case = asked(order());
    add(&mut case, "x", 3600, What::ChannelSeen { n: 1, alive: true });
    assert_eq!(due_at(&mut case, 600), [Effect::LookForChannel { n: 2 }]);
    let seen = Input::Fact(What::ChannelSeen { n: 2, alive: false });
    let then = next(&mut case, seen, after(600), &policy());
    assert_eq!(
        then,
        [Next::Wait(after(600).plus(policy().grace))],
        "its own look counts"
    );
}

#[test]
fn a_command_that_a_queue_took_stays_taken_when_the_other_workers_clock_has_been_reached() {
    let mut delayed = order();
    if let Some(command) = &mut delayed.command {
        command.trigger = Trigger::Bridge;
    }
    let mut case = asked(delayed);
    let add = |case: &mut Case, by: &str, second: u64, what: What| {
        let (at, by) = (after(second), by.to_owned());
        case.entry.add(Fact { at, by, what });
    };
    add(&mut case, "x", 60, What::CommandLost { why: "no queue".into() });
    add(&mut case, "w", 5, What::ChannelSeen { n: 1, alive: true });
    add(&mut case, "w", 6, What::Commanded);
    let mut now = after(305);
    for n in 2..5 {
        let first = next(&mut case, Input::Due, now, &policy());
        match first.first() {
            Some(Next::Do(Effect::LookForChannel { .. })) => {
                next(
                    &mut case,
                    Input::Fact(What::ChannelSeen { n, alive: true }),
                    now,
                    &policy(),
                );
            }
            Some(Next::Wait(until)) => now = *until,
            other => panic!("{other:?}"),
        }
        assert_eq!(case.entry.outcome(), None, "its call waits for the bridge");
    }
}

/// A continuation's file begins with the audio before, and its events can come from a worker whose clock is an hour behind.
#[test]
fn a_part_that_the_length_of_the_audio_excludes_is_a_recording_of_its_own_whatever_the_clocks_say() {
    let followed = |counted: u64| {
        let mut order = order().continuation();
        order.continues.as_mut().unwrap().before_ms = Some(77_796);
        let mut case = asked(order);
        let add = |case: &mut Case, by: &str, second: u64, what: What| {
            let (at, by) = (after(second), by.to_owned());
            case.entry.add(Fact { at, by, what });
        };
        for (second, length_ms) in [(100, None), (250, Some(149_462)), (260, None), (360, Some(99_880))] {
            let mut told = told(0);
            (told.at, told.stamp, told.length_ms) = (after(second), Some(after(second).unix_micros()), length_ms);
            let what = if length_ms.is_some() {
                What::Ended(told)
            } else {
                What::Started(told)
            };
            add(&mut case, "behind", 400, what);
        }
        let audio = Audio {
            duration_ms: Some(counted),
            ..audio(5000)
        };
        add(&mut case, "w", 3_850, What::Collected(audio));
        add(&mut case, "w", 3_851, delivered(Destination::Account));
        if !case.entry.is_to_be_continued() {
            return false;
        }
        // What was handed on says nothing of a part that begins later.
        add(&mut case, "w", 3_860, What::Continued { told: 2 });
        let mut third = told(0);
        (third.at, third.stamp, third.length_ms) = (after(3_870), Some(after(3_870).unix_micros()), None);
        add(&mut case, "w", 3_871, What::Started(third));
        case.entry.is_to_be_continued()
    };
    assert!(followed(77_796 + 149_462), "the second of its parts is not there");
    assert!(followed(149_462), "nor if the file was begun anew");
    assert!(!followed(77_796 + 149_462 + 99_880));
    assert!(!followed(149_462 + 99_880));
}
