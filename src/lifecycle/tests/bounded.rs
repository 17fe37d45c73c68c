//! Entries with more facts of a kind than an entry keeps. What follows from them must come to an end.

use proptest::prelude::*;

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

/// How often something follows at once, until nothing does.
fn settles(case: &mut Case, now: Moment) -> usize {
    let rounds = 16;
    for round in 0..rounds {
        let before = case.entry.clone();
        // Not `Due`: a debug build checks then that what was there before is possible.
        let nothing = Entry::new(before.key, &before.call_id);
        super::next(case, Input::Known(Box::new(nothing)), now, &policy());
        if case.entry == before {
            return round;
        }
    }
    rounds
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

/// The other facts of which many can follow, or from which others follow.
fn any_fact() -> impl Strategy<Value = (u8, u32, u64, bool)> {
    (0..18_u8, 1..90_u32, 0..400_u64, any::<bool>())
}

fn what(case: &Case, (kind, n, second, flag): (u8, u32, u64, bool)) -> What {
    let action = format!("a{n:02}");
    let leg = if flag { "call" } else { "other" };
    let control = if n.is_multiple_of(2) {
        Control::Mask
    } else {
        Control::Unmask
    };
    match kind {
        0 => What::Started(stamped(0, second, "call")),
        1 => What::Ended(stamped(5000, second, leg)),
        2 => moved(second),
        3 => What::MaskAsked {
            action,
            on: n.is_multiple_of(2),
            asked: flag.then(|| after(second)),
            route: None,
        },
        4 => What::Masked {
            action,
            on: n.is_multiple_of(2),
            n: u32::from(flag),
            start: case.entry.newest_start(),
            sender: None,
        },
        5 => What::Intended {
            action,
            on: n.is_multiple_of(2),
            asked: None,
        },
        6 => What::Returned {
            what: control,
            action,
            n: 0,
        },
        7 => What::NotObeyed {
            action,
            what: control,
            why: if flag { Why::Moved } else { Why::Ended },
        },
        8 => What::StopAsked {
            action: format!("s{n}"),
            route: None,
        },
        9 => What::StopSent {
            n,
            start: case.entry.newest_start().filter(|_| flag),
        },
        10 => What::Returned {
            what: Control::Stop,
            action: String::new(),
            n,
        },
        11 => What::Parked {
            n,
            cause: Cause::NotCollected,
            ends: flag.then_some(n % 3),
        },
        12 => What::CollectFailed {
            attempt: n,
            failure: CollectFailure::Missing,
            why: "x".into(),
        },
        13 => What::Postponed {
            n,
            until: after(second),
            why: "x".into(),
        },
        14 => What::Panicked { n, why: "x".into() },
        15 => What::PresumedEnded(stamped(5000, second, leg)),
        16 => What::ChannelSeen { n, alive: flag },
        _ => What::Looked {
            n,
            why: Some("x".into()),
            unanswered: flag,
            deleted: false,
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever two workers noted, in whatever order, by clocks that differ.
    #[test]
    fn what_follows_comes_to_an_end(facts in prop::collection::vec(any_fact(), 1..160), many in 0..18_u8) {
        let mut case = asked(order());
        for fact in facts {
            // Half of them are of one kind.
            let fact = if fact.1.is_multiple_of(2) { (many, fact.1, fact.2, fact.3) } else { fact };
            let what = what(&case, fact);
            add(&mut case, if fact.3 { "w" } else { "v" }, fact.2, what);
        }
        let rounds = settles(&mut case, after(200));
        prop_assert!(rounds < 4, "{rounds} rounds: {:?}", case.entry);
        let rounds = settles(&mut case, after(500));
        prop_assert!(rounds < 4, "{rounds} rounds: {:?}", case.entry);
    }
}
