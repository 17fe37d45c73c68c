//! Entries with more facts of a kind than an entry keeps. What follows from them must come to an end.

use crate::entry::legs::Leg;
use crate::kazoo::leg::LegEvent;
use crate::recording::controls::Why;

use super::*;

fn moved(second: u64) -> What {
    What::Leg(Box::new(Leg {
        call_id: "call".into(),
        event: LegEvent::Transferor,
        other: Some("other".into()),
        control: None,
        was_answered: None,
        stamp: Some(after(second).unix_micros()),
    }))
}

fn add(case: &mut Case, by: &str, second: u64, what: What) {
    let (at, by) = (after(second), by.to_owned());
    case.entry.add(Fact { at, by, what });
}

fn stamped(length_ms: u64, second: u64, leg: &str) -> Box<Told> {
    let mut told = told(length_ms);
    (told.at, told.stamp, told.call_id) = (after(second), Some(after(second).unix_micros()), leg.into());
    told
}

/// An action that masks or unmasks, and its command.
fn masked(case: &mut Case, n: u64, second: u64) -> String {
    let (action, on) = (format!("a{n:02}"), n.is_multiple_of(2));
    let asked = What::MaskAsked {
        action: action.clone(),
        on,
        asked: None,
        route: None,
    };
    add(case, "w", second, asked);
    let sent = What::Masked {
        action: action.clone(),
        on,
        n: 0,
        start: case.entry.newest_start(),
        sender: None,
    };
    add(case, "w", second, sent);
    action
}

fn stop(case: &mut Case, second: u64) {
    let (action, start) = ("stop".to_owned(), case.entry.newest_start());
    add(case, "w", second, What::StopAsked { action, route: None });
    add(case, "w", second, What::StopSent { n: 1, start });
}

/// A recording that moved, with more masks than verdicts are kept. `noted`: the workers that carried them out noted at once what came of them.
fn moved_with_masks(masks: u64, noted: bool) -> Case {
    let mut case = started(order());
    add(&mut case, "w", 1, What::Started(stamped(0, 1, "call")));
    add(&mut case, "w", 5, moved(5));
    for n in 0..masks {
        let action = masked(&mut case, n, 10 + n);
        let what = if n.is_multiple_of(2) {
            Control::Mask
        } else {
            Control::Unmask
        };
        let why = Why::Moved;
        if noted {
            add(&mut case, "w", 10 + n, What::NotObeyed { action, what, why });
        }
    }
    stop(&mut case, 100);
    add(&mut case, "w", 105, What::Ended(stamped(5000, 105, "other")));
    case
}

#[test]
fn a_recording_with_more_faults_than_are_kept_goes_its_way() {
    for noted in [true, false] {
        let mut case = moved_with_masks(40, noted);
        let effects = next(&mut case, Input::Due, after(106), &policy());
        assert_eq!(effects, [Effect::Decide], "{noted}");
        let before = case.entry.clone();
        next(&mut case, Input::Due, after(107), &policy());
        assert_eq!(case.entry, before, "{noted}: it goes round");
        let stops = case.entry.controls().not_obeyed;
        let stops = stops.iter().filter(|one| one.what == Control::Stop).count();
        assert_eq!(stops, 1, "{noted}: the stop came last");
    }
}
