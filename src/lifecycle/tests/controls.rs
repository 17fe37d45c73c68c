//! Masks, unmasks and stops: what is sent, and what the document says of it.

use crate::entry::fact::Route;
use crate::entry::legs::Leg;
use crate::kazoo::leg::LegEvent;
use crate::recording::controls::{Controls, NotObeyed, Why};

use super::*;

fn asked(action: &str, on: bool) -> Input {
    Input::Fact(What::MaskAsked {
        action: action.into(),
        on,
        route: None,
        asked: None,
    })
}

fn sent(action: &str, on: bool, n: u32) -> Input {
    Input::Fact(What::Masked {
        action: action.into(),
        on,
        n,
        start: None,
        sender: None,
    })
}

pub(super) fn moved() -> Input {
    Input::Fact(What::Leg(Box::new(Leg {
        call_id: "call".into(),
        event: LegEvent::Transferor,
        other: Some("other".into()),
        control: None,
        was_answered: None,
        stamp: Some(after(20).unix_micros()),
    })))
}

/// What the document says of masks: when, and whether the audio is masked from then on.
fn masks(controls: &Controls) -> Vec<(Moment, bool)> {
    controls.masks.iter().map(|mask| (mask.at, mask.on)).collect()
}

pub(super) fn at(case: &mut Case, second: u64, input: Input) -> Vec<Next> {
    next(case, input, after(second), &policy())
}

const MASK: Effect = Effect::Control {
    what: Control::Mask,
    n: 0,
};

#[test]
fn a_mask_that_the_broker_did_not_take_is_sent_again_and_not_documented_before() {
    let mut case = started(order());
    assert_eq!(at(&mut case, 10, asked("a", true)), [MASK]);
    assert_eq!(at(&mut case, 11, Input::Due), [MASK], "until the broker has it");
    assert_eq!(
        masks(&case.entry.controls()),
        [],
        "nothing is said of what was not sent"
    );
    at(&mut case, 12, sent("a", true, 0));
    assert_eq!(masks(&case.entry.controls()), [(after(12), true)]);
    assert!(matches!(at(&mut case, 13, Input::Due)[..], [Next::Wait(_)]), "once");
}

#[test]
fn a_mask_from_before_the_start_is_sent_when_it_starts_and_at_each_start_after() {
    let mut case = super::asked(order());
    step(&mut case, Input::Fact(What::Commanded));
    at(&mut case, 1, asked("a", true));
    // The switch knew no such recording then.
    at(&mut case, 1, sent("a", true, 0));
    let mut started = told(0);
    started.at = after(3);
    let start = Input::Fact(What::Started(started));
    let again = |n| Effect::Control { what: Control::Mask, n };
    assert_eq!(at(&mut case, 3, start), [again(1)]);
    assert_eq!(masks(&case.entry.controls()), []);
    at(&mut case, 4, sent("a", true, 1));
    assert_eq!(masks(&case.entry.controls()), [(after(4), true)]);
    // Begun again at another bridge: unmasked, as every recording begins.
    let mut next_start = told(0);
    next_start.stamp = Some(after(9).unix_micros());
    assert_eq!(at(&mut case, 9, Input::Fact(What::Started(next_start))), [again(2)]);
}

#[test]
fn a_mask_that_met_the_recording_is_not_told_as_late_because_it_was_sent_again() {
    let by_notice = |n, start| {
        Input::Fact(What::Masked {
            action: "a".into(),
            on: true,
            n,
            start: Some(start),
            sender: None,
        })
    };
    for (first, is_met) in [(12, true), (1, false)] {
        let mut case = super::asked(order());
        step(&mut case, Input::Fact(What::Commanded));
        let mut started = told(0);
        started.stamp = Some(after(10).unix_micros());
        at(&mut case, 10, Input::Fact(What::Started(started)));
        at(&mut case, first, asked("a", true));
        // Its worker knew the recording by another worker's notice alone.
        at(&mut case, first, by_notice(0, crate::entry::fact::BEFORE_ANY_START));
        let mut ended = told(3_000);
        ended.stamp = Some(after(13).unix_micros());
        at(&mut case, 13, Input::Fact(What::Ended(ended)));
        at(&mut case, 14, by_notice(1, after(10).unix_micros()));
        let controls = case.entry.controls();
        assert_eq!(controls.not_obeyed.is_empty(), is_met, "{controls:?}");
        assert_eq!(!controls.masks.is_empty(), is_met, "{controls:?}");
    }
}

#[test]
fn a_mask_and_an_unmask_after_a_move_are_told_as_not_obeyed() {
    let mut case = started(order());
    at(&mut case, 5, asked("before", true));
    at(&mut case, 5, sent("before", true, 0));
    at(&mut case, 20, moved());
    let effects = at(&mut case, 25, asked("after", false));
    assert!(
        matches!(effects[..], [Next::Wait(_)]),
        "nothing is sent in vain: {effects:?}"
    );
    let controls = case.entry.controls();
    assert_eq!(masks(&controls), [(after(5), true)], "it stays masked to its end");
    let not_obeyed = NotObeyed {
        at: after(25),
        what: Control::Unmask,
        why: Why::Moved,
        asked_at: None,
    };
    assert_eq!(controls.not_obeyed, [not_obeyed]);
    let told_once = case.entry.facts().filter(|fact| fact.what.kind() == "not_obeyed");
    assert_eq!(told_once.count(), 1);
}

#[test]
fn a_mask_of_a_recording_that_moved_unheard_is_not_told_as_done() {
    let mut case = started(order());
    at(&mut case, 5, asked("a", true));
    at(&mut case, 5, sent("a", true, 0));
    let mut end = told(5000);
    end.call_id = "other".into();
    at(&mut case, 30, Input::Fact(What::Ended(end)));
    let controls = case.entry.controls();
    assert_eq!(masks(&controls), []);
    assert_eq!(controls.not_obeyed[0].why, Why::PerhapsMoved);
}

#[test]
fn a_mask_that_was_obeyed_before_a_move_is_not_told_as_moved_because_it_was_sent_again() {
    let mut case = started(order());
    at(&mut case, 5, asked("a", true));
    at(&mut case, 5, sent("a", true, 0));
    at(&mut case, 20, moved());
    // A worker that had not heard of the start sends it once more.
    at(&mut case, 21, sent("a", true, 1));
    let controls = case.entry.controls();
    assert_eq!(
        (masks(&controls), controls.not_obeyed),
        (vec![(after(5), true)], vec![])
    );
}

/// A stop at the fifth second, after `before`, and the end that the switch reports.
fn stopped(before: Option<Input>, end_of: &str, second: u64) -> Vec<NotObeyed> {
    let mut case = started(order());
    if let Some(before) = before {
        at(&mut case, 20, before);
    }
    let (action, start) = ("stop".to_owned(), case.entry.newest_start());
    at(&mut case, 25, Input::Fact(What::StopAsked { action, route: None }));
    at(&mut case, 25, Input::Fact(What::StopSent { n: 1, start }));
    let mut end = told(5000);
    end.call_id = end_of.into();
    end.stamp = Some(after(second).unix_micros());
    at(&mut case, second, Input::Fact(What::Ended(end)));
    let told = case
        .entry
        .facts()
        .filter(|fact| fact.what.kind() == "not_obeyed")
        .count();
    let not_obeyed = case.entry.controls().not_obeyed;
    assert_eq!(told, not_obeyed.len(), "it is told once");
    not_obeyed
}

#[test]
fn a_stop_that_was_not_obeyed_is_told_though_the_call_ends_soon_after() {
    let of_stop = |why| {
        vec![NotObeyed {
            at: after(25),
            what: Control::Stop,
            why,
            asked_at: None,
        }]
    };
    assert_eq!(stopped(None, "call", 25), [], "obeyed at once");
    assert_eq!(stopped(None, "call", 28), [], "clocks may differ by so much");
    assert_eq!(stopped(None, "call", 31), of_stop(Why::Unconfirmed));
    assert_eq!(stopped(Some(moved()), "other", 26), of_stop(Why::Moved));
}

#[test]
fn a_mask_just_before_the_hang_up_is_told_as_done() {
    let mut case = started(order());
    at(&mut case, 5, asked("a", true));
    at(&mut case, 5, sent("a", true, 0));
    // This looks like a move until the end is reported: the leg is gone, and its peer is not yet.
    let gone = Leg {
        call_id: "call".into(),
        event: LegEvent::Gone,
        other: Some("other".into()),
        control: None,
        was_answered: None,
        stamp: Some(after(4).unix_micros()),
    };
    at(&mut case, 6, Input::Fact(What::Leg(Box::new(gone))));
    at(&mut case, 7, Input::Fact(What::Ended(told(5000))));
    let controls = case.entry.controls();
    assert_eq!(
        (masks(&controls), controls.not_obeyed),
        (vec![(after(5), true)], vec![])
    );
}

#[test]
fn a_mask_that_could_be_sent_only_when_the_recording_was_over_is_told_as_not_obeyed() {
    let mut end = told(5000);
    end.stamp = Some(after(20).unix_micros());
    let late = |by: &str, second: u64| {
        let mut case = started(order());
        at(&mut case, 20, Input::Fact(What::Ended(end.clone())));
        let mut theirs = case.entry.clone();
        for input in [asked("a", true), sent("a", true, 0)] {
            let Input::Fact(what) = input else { unreachable!() };
            theirs.add(Fact {
                at: after(second),
                by: by.into(),
                what,
            });
        }
        at(&mut case, second, Input::Known(Box::new(theirs)));
        let controls = case.entry.controls();
        let why: Vec<Why> = controls.not_obeyed.iter().map(|one| one.why).collect();
        (masks(&controls), why)
    };
    assert_eq!(late("w", 25), (vec![], vec![Why::Ended]));
    // By the clock of a worker that had not heard of the end.
    assert_eq!(late("other", 25), (vec![], vec![Why::Ended]));
    assert_eq!(late("other", 19), (vec![(after(19), true)], vec![]));
}

#[test]
fn a_mask_of_a_recording_whose_start_was_only_presumed_later_stands_in_the_document() {
    let mut case = super::asked(order());
    at(&mut case, 1, Input::Fact(What::Commanded));
    for (second, action, on) in [(2, "a", true), (4, "b", false)] {
        at(&mut case, second, asked(action, on));
        at(&mut case, second, sent(action, on, 0));
    }
    // No event arrived. Its file exists: the recording began when it was commanded.
    let probed = What::Probed {
        n: 1,
        size: 7,
        md5: "0".into(),
        open: true,
    };
    at(&mut case, 40, Input::Fact(probed));
    assert!(case.entry.started().is_some());
    assert_eq!(masks(&case.entry.controls()), [(after(2), true), (after(4), false)]);
}

#[test]
fn a_stop_that_was_not_obeyed_stands_in_the_document() {
    let mut case = started(order());
    let stop = What::StopAsked {
        action: "s".into(),
        route: None,
    };
    at(&mut case, 10, Input::Fact(stop));
    for n in 1..=4 {
        at(&mut case, 10, Input::Fact(What::StopSent { n, start: None }));
    }
    assert_eq!(case.entry.controls().not_obeyed, []);
    at(&mut case, 41, Input::Due);
    let not_obeyed = NotObeyed {
        at: after(10),
        what: Control::Stop,
        why: Why::Unconfirmed,
        asked_at: None,
    };
    assert_eq!(case.entry.controls().not_obeyed, [not_obeyed]);
}

#[test]
fn the_newest_action_tells_where_its_call_is_controlled() {
    let mut case = started(order());
    assert_eq!(case.entry.route(), None);
    let route = |control: &str| Route {
        control: control.into(),
        call_id: "call".into(),
    };
    for (second, control) in [(10, "first"), (20, "second")] {
        let stop = What::StopAsked {
            action: control.into(),
            route: Some(route(control)),
        };
        at(&mut case, second, Input::Fact(stop));
    }
    assert_eq!(case.entry.route(), Some((after(20), &route("second"))));
}

/// A worker that had not heard of the mask wrote the document.
#[test]
fn a_document_without_the_mask_of_another_worker_is_amended() {
    let mut case = ended_as(order(), Destination::Account);
    let written = case.entry.controls().fingerprint();
    step(&mut case, Input::Received(audio(5000)));
    let What::Delivered(mut delivery) = delivered(Destination::Account) else {
        panic!("a delivery")
    };
    delivery.controls = Some(written);
    step(&mut case, Input::Fact(What::Delivered(delivery)));
    assert!(!case.entry.is_to_be_amended());
    let mut theirs = Entry::new(case.entry.key, "call");
    for (second, what) in [asked("a", true), sent("a", true, 0)].into_iter().enumerate() {
        let Input::Fact(what) = what else { continue };
        theirs.add(Fact {
            at: after(second as u64),
            by: "another".into(),
            what,
        });
    }
    let effects = step(&mut case, Input::Known(Box::new(theirs)));
    assert!(effects.contains(&Next::Do(Effect::Amend { n: 1 })), "{effects:?}");
    assert!(!case.entry.is_closed());
    let controls = case.entry.controls().fingerprint();
    step(
        &mut case,
        Input::Fact(What::Amended {
            n: 1,
            controls,
            unsaid: None,
        }),
    );
    assert!(!case.entry.is_to_be_amended());
}

#[test]
fn a_document_of_an_earlier_version_is_left_as_it_is() {
    let mut case = ended_as(order(), Destination::Account);
    step(&mut case, sent("a", true, 0));
    step(&mut case, Input::Received(audio(5000)));
    step(&mut case, Input::Fact(delivered(Destination::Account)));
    assert!(!case.entry.is_to_be_amended());
}

fn sent_for(action: &str, n: u32, start: Option<i64>) -> Input {
    Input::Fact(What::Masked {
        action: action.into(),
        on: true,
        n,
        start,
        sender: None,
    })
}

#[test]
fn a_mask_is_sent_once_for_a_start_whatever_the_clocks_of_two_workers_say() {
    let mut case = started(order());
    let start = case.entry.newest_start();
    assert!(start.is_some());
    // A worker whose clock is far ahead heard the start, so the time of each command is before it.
    let early = |case: &mut Case, input| next(case, input, Moment::from_unix_seconds(1), &policy());
    assert_eq!(early(&mut case, asked("a", true)), [MASK]);
    let again = early(&mut case, sent_for("a", 0, None));
    let once_more = Effect::Control {
        what: Control::Mask,
        n: 1,
    };
    assert_eq!(again, [once_more], "who sent it knew no start");
    let done = early(&mut case, sent_for("a", 1, start));
    assert!(!matches!(done[..], [Next::Do(Effect::Control { .. }), ..]), "{done:?}");
}

#[test]
fn of_masks_that_waited_the_one_that_was_sent_last_counts() {
    let mut case = started(order());
    let late = |action: &str, on, second| {
        Input::Fact(What::MaskAsked {
            action: action.into(),
            on,
            asked: Some(after(second)),
            route: None,
        })
    };
    at(&mut case, 30, asked("second", true));
    at(&mut case, 31, sent("second", true, 0));
    at(&mut case, 60, late("first", false, 10));
    assert!(case.entry.is_masked(), "an unmask that waited undoes no later mask");
    assert!(case.entry.is_overtaken(after(10)) && !case.entry.is_overtaken(after(40)));
    at(&mut case, 61, late("third", false, 50));
    assert!(!case.entry.is_masked());
}
