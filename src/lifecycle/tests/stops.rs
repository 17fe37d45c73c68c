//! Stops that came to nothing, and are told though their recording ended soon after.

use crate::recording::controls::Why;

use super::controls::{at, moved};
use super::*;

#[test]
fn a_stop_whose_sender_had_not_heard_of_the_start_is_told() {
    let mut case = started(order());
    at(&mut case, 20, moved());
    let (action, start) = ("stop".to_owned(), None);
    at(&mut case, 25, Input::Fact(What::StopAsked { action, route: None }));
    at(&mut case, 25, Input::Fact(What::StopSent { n: 1, start }));
    let mut end = told(5000);
    (end.call_id, end.stamp) = ("other".into(), Some(after(26).unix_micros()));
    at(&mut case, 26, Input::Fact(What::Ended(end)));
    let told: Vec<Why> = case.entry.controls().not_obeyed.iter().map(|one| one.why).collect();
    assert_eq!(told, [Why::Moved]);
}

#[test]
fn a_recording_that_began_again_after_its_stop_is_told() {
    let mut order = order();
    order.command.as_mut().unwrap().trigger = Trigger::Bridge;
    let mut case = started(order);
    let stamped = |second: u64| {
        let mut told = told(5000);
        (told.at, told.stamp) = (after(second), Some(after(second).unix_micros()));
        told
    };
    let stop = |case: &mut Case, n: u32, second: u64| {
        let start = case.entry.newest_start();
        at(case, second, Input::Fact(What::StopSent { n, start }));
    };
    let action = "stop".to_owned();
    at(&mut case, 10, Input::Fact(What::StopAsked { action, route: None }));
    stop(&mut case, 1, 10);
    at(&mut case, 10, Input::Fact(What::Ended(stamped(10))));
    at(&mut case, 20, Input::Fact(What::Started(stamped(20))));
    stop(&mut case, 2, 24);
    at(&mut case, 26, Input::Fact(What::Ended(stamped(26))));
    let told: Vec<Why> = case.entry.controls().not_obeyed.iter().map(|one| one.why).collect();
    assert_eq!(told, [Why::Unconfirmed]);
}

/// Its audio is still on its switch, so the next part is its own.
#[test]
fn a_stop_that_was_obeyed_is_no_fault_when_the_recording_begins_again_much_later() {
    let mut order = order();
    order.command.as_mut().unwrap().trigger = Trigger::Bridge;
    let mut case = started(order);
    let stamped = |millis: u64| {
        let (mut told, moment) = (told(5000), NOW.plus(Duration::from_millis(millis)));
        (told.at, told.stamp) = (moment, Some(moment.unix_micros()));
        told
    };
    let action = "stop".to_owned();
    at(&mut case, 10, Input::Fact(What::StopAsked { action, route: None }));
    let start = case.entry.newest_start();
    at(&mut case, 10, Input::Fact(What::StopSent { n: 1, start }));
    at(&mut case, 10, Input::Fact(What::Ended(stamped(10_000))));
    let begun = at(&mut case, 60, Input::Fact(What::Started(stamped(60_000))));
    let again = Effect::Control {
        what: Control::Stop,
        n: 2,
    };
    assert_eq!(begun[0], again);
    let start = case.entry.newest_start();
    at(&mut case, 60, Input::Fact(What::StopSent { n: 2, start }));
    at(&mut case, 60, Input::Fact(What::Ended(stamped(60_050))));
    assert_eq!(case.entry.controls().not_obeyed, []);
    // The second stop was not obeyed: that is told.
    assert!(!case.entry.facts().any(|fact| fact.what == What::StopUnconfirmed));
}

/// No worker could carry it out earlier, as the ledger was away: the recording went on, and ended by itself.
#[test]
fn a_stop_that_is_carried_out_after_the_end_is_told_if_it_had_been_sent_well_before() {
    for (asked, expected) in [(20, vec![Why::Ended]), (38, vec![])] {
        let mut case = started(order());
        let mut end = told(5000);
        (end.at, end.stamp) = (after(40), Some(after(40).unix_micros()));
        at(&mut case, 40, Input::Fact(What::Ended(end)));
        let (action, start) = ("stop".to_owned(), case.entry.newest_start());
        let stop = What::StopAsked {
            action: action.clone(),
            route: None,
        };
        at(&mut case, 45, Input::Fact(stop));
        let delayed = What::StopDelayed {
            action,
            asked: after(asked),
        };
        at(&mut case, 45, Input::Fact(delayed));
        at(&mut case, 45, Input::Fact(What::StopSent { n: 1, start }));
        let not_obeyed = case.entry.controls().not_obeyed;
        let told: Vec<Why> = not_obeyed.iter().map(|one| one.why).collect();
        assert_eq!(told, expected);
        assert!(not_obeyed.iter().all(|one| one.asked_at == Some(after(asked))));
    }
}

/// Its worker noted it in time, and could not publish it before the end.
#[test]
fn a_stop_that_was_noted_in_time_and_sent_after_the_end_is_told() {
    let mut case = started(order());
    let (action, start) = ("stop".to_owned(), case.entry.newest_start());
    at(&mut case, 20, Input::Fact(What::StopAsked { action, route: None }));
    let mut end = told(5000);
    (end.at, end.stamp) = (after(40), Some(after(40).unix_micros()));
    at(&mut case, 40, Input::Fact(What::Ended(end)));
    at(&mut case, 45, Input::Fact(What::StopSent { n: 1, start }));
    let told: Vec<Why> = case.entry.controls().not_obeyed.iter().map(|one| one.why).collect();
    assert_eq!(told, [Why::Ended]);
}

fn noted(second: u64, what: What) -> Fact {
    let by = "w".to_owned();
    Fact {
        at: after(second),
        by,
        what,
    }
}

/// No worker ran for a while, or the ledger was away: nothing told that the stop was not confirmed while the recording ran.
#[test]
fn a_stop_that_the_switch_lost_is_told_although_the_recording_ran_on_for_long() {
    let mut case = started(order());
    let mut news = Entry::new(case.entry.key, &case.entry.call_id);
    let start = case.entry.newest_start();
    let action = "stop".to_owned();
    for what in [What::StopAsked { action, route: None }, What::StopSent { n: 1, start }] {
        news.add(noted(20, what));
    }
    let mut end = told(5000);
    (end.at, end.stamp) = (after(620), Some(after(620).unix_micros()));
    news.add(noted(620, What::Ended(end)));
    at(&mut case, 620, Input::Known(Box::new(news)));
    let told: Vec<Why> = case.entry.controls().not_obeyed.iter().map(|one| one.why).collect();
    assert_eq!(told, [Why::Unconfirmed]);
}

fn begins_at_bridges() -> Order {
    let mut order = order();
    order.command.as_mut().unwrap().trigger = Trigger::Bridge;
    order
}

/// Start and end, with the switch's stamps.
fn stamped(second: u64) -> Box<Told> {
    let mut told = told(5000);
    (told.at, told.stamp) = (after(second), Some(after(second).unix_micros()));
    told
}

/// It ended in the tenth second, its URL refused it, and its audio is on its switch alone: there is no hold, or the hold did not take it.
fn parked_on_its_switch(asked: &[What], policy: &Policy) -> Case {
    let mut case = super::asked(begins_at_bridges());
    let mut at = |second, input| next(&mut case, input, after(second), policy);
    at(0, Input::Fact(What::Commanded));
    at(1, Input::Fact(What::Started(stamped(1))));
    for what in asked {
        at(9, Input::Fact(what.clone()));
    }
    at(10, Input::Fact(What::Ended(stamped(10))));
    at(10, decided(Destination::Url));
    at(11, Input::Received(audio(5000)));
    at(12, Input::Fact(failed(1, Destination::Url, DeliveryFailure::Refused)));
    if policy.hold {
        at(12, Input::HoldRefused);
    }
    at(12, Input::Answered(Answer::Keep));
    let parked = Announcement::Outcome(Outcome::Parked);
    at(12, Input::Fact(What::Announced(parked)));
    assert_eq!(case.entry.parked(), Some(Cause::Refused));
    case
}

fn stop_of_the_first_part() -> [What; 2] {
    let (action, start) = ("stop".to_owned(), Some(after(1).unix_micros()));
    [What::StopAsked { action, route: None }, What::StopSent { n: 1, start }]
}

fn with_hold(hold: bool) -> Policy {
    Policy { hold, ..policy() }
}

#[test]
fn a_stop_and_a_mask_apply_to_what_the_switch_begins_again_while_the_recording_is_parked() {
    let (action, start) = ("mask".to_owned(), Some(after(1).unix_micros()));
    let mask = [
        What::MaskAsked {
            action: action.clone(),
            on: true,
            route: None,
            asked: None,
        },
        What::Masked {
            action,
            on: true,
            n: 0,
            start,
            sender: None,
        },
    ];
    for policy in [with_hold(false), with_hold(true)] {
        for (asked, what, n) in [
            (stop_of_the_first_part(), Control::Stop, 2),
            (mask.clone(), Control::Mask, 1),
        ] {
            let mut case = parked_on_its_switch(&asked, &policy);
            let again = next(&mut case, Input::Fact(What::Started(stamped(60))), after(60), &policy);
            assert_eq!(again.first(), Some(&Next::Do(Effect::Control { what, n })));
            assert_eq!(case.entry.parked(), Some(Cause::Refused));
        }
    }
}

#[test]
fn a_stop_of_a_parked_recording_that_runs_again_is_repeated_and_told_if_the_switch_does_not_obey() {
    let policy = with_hold(false);
    let mut case = parked_on_its_switch(&stop_of_the_first_part(), &policy);
    let (mut input, mut now) = (Input::Fact(What::Started(stamped(60))), after(60));
    let mut sent = Vec::new();
    while now < after(120) {
        let first = next(&mut case, input, now, &policy).into_iter().next();
        input = match first {
            Some(Next::Do(Effect::Control { what: Control::Stop, n })) => {
                sent.push(now.since(NOW).as_secs());
                let start = case.entry.newest_start();
                Input::Fact(What::StopSent { n, start })
            }
            Some(Next::Wait(until)) => {
                assert!(until > now, "it waits for a time that is over");
                now = until;
                Input::Due
            }
            // Its document says that it is parked.
            Some(Next::Do(Effect::Mark { n, .. })) => Input::Fact(What::Marked { n }),
            Some(other) => panic!("{other:?}"),
            None => break,
        };
    }
    assert_eq!(sent, [60, 65, 80]);
    let unconfirmed = case.entry.facts().find(|fact| fact.what == What::StopUnconfirmed);
    assert_eq!(unconfirmed.map(|fact| fact.at), Some(after(90)));
}

/// No worker ran meanwhile: the stop was sent to the part before.
#[test]
fn a_stop_that_was_never_sent_to_a_later_part_is_told_when_that_part_has_ended() {
    for (ended, expected) in [(61, vec![]), (620, vec![Why::Ended])] {
        let policy = with_hold(false);
        let mut case = parked_on_its_switch(&stop_of_the_first_part(), &policy);
        let mut news = Entry::new(case.entry.key, &case.entry.call_id);
        news.add(noted(60, What::Started(stamped(60))));
        news.add(noted(ended, What::Ended(stamped(ended))));
        next(&mut case, Input::Known(Box::new(news)), after(ended), &policy);
        let told: Vec<Why> = case.entry.controls().not_obeyed.iter().map(|one| one.why).collect();
        assert_eq!(told, expected, "{ended}");
    }
}

/// The later part is a recording of its own, with the stop: its own end tells what came of the stop.
#[test]
fn a_stop_that_was_obeyed_is_no_fault_of_the_recording_that_was_stored_before_the_next_part() {
    let mut case = started(begins_at_bridges());
    for what in stop_of_the_first_part() {
        at(&mut case, 1, Input::Fact(what));
    }
    at(&mut case, 10, Input::Fact(What::Ended(stamped(10))));
    at(&mut case, 10, decided(Destination::Account));
    at(&mut case, 11, Input::Received(audio(5000)));
    at(&mut case, 12, Input::Fact(delivered(Destination::Account)));
    at(&mut case, 13, Input::Answered(Answer::Release));
    at(&mut case, 60, Input::Fact(What::Started(stamped(60))));
    let mut end = stamped(620);
    end.length_ms = Some(560_000);
    at(&mut case, 620, Input::Fact(What::Ended(end)));
    assert!(case.entry.is_to_be_continued());
    assert!(!case.entry.controls().not_obeyed.iter().any(|one| one.why == Why::Ended));
}
