//! Hosts whose clocks differ, workers of other versions, and a program that panics.

use crate::recording::controls::Why;

use super::*;

/// Held, parked because its target refuses it, and retried by a host whose clock differs by so many seconds.
fn moved_on(skew: i64) -> Case {
    let mut case = ended_as(order(), Destination::ThirdParty);
    step(&mut case, Input::Received(audio(5000)));
    step(
        &mut case,
        Input::Fact(failed(1, Destination::ThirdParty, DeliveryFailure::Refused)),
    );
    step(&mut case, Input::Fact(holding()));
    step(&mut case, Input::Answered(Answer::Release));
    assert_eq!(case.entry.parked(), Some(Cause::Refused));
    let at = Moment::from_unix_micros(after(1800).unix_micros() + skew * 1_000_000);
    let (by, what) = ("operator@laptop".to_owned(), case.entry.retry());
    case.entry.add(Fact { at, by, what });
    case
}

#[test]
fn a_retry_from_a_host_with_another_clock_makes_an_attempt() {
    for skew in [-7200, -3600, 0, 3600] {
        let mut case = moved_on(skew);
        let effects = next(&mut case, Input::Due, after(1800), &policy());
        assert_eq!(
            (case.entry.parked(), effects),
            (None, vec![Next::Do(Effect::Decide)]),
            "{skew}"
        );
    }
}

/// A worker postponed the recording, and the operator's retry does not know of that.
#[test]
fn a_retry_makes_an_attempt_though_a_worker_postponed_the_recording_just_before() {
    let mut case = moved_on(0);
    let postponed = What::Postponed {
        n: case.entry.next_number("postponed"),
        until: after(1700).plus(policy().whole()),
        why: "busy".into(),
    };
    case.entry.add(Fact {
        at: after(1700),
        by: "another".into(),
        what: postponed,
    });
    let due = after(1700).plus(policy().whole());
    let effects = next(&mut case, Input::Due, due, &policy());
    assert_eq!((case.entry.parked(), effects), (None, vec![Next::Do(Effect::Decide)]));
}

#[test]
fn after_a_retry_from_a_host_with_another_clock_there_are_pauses_and_an_end() {
    for skew in [-3600, 0, 3600] {
        let mut case = moved_on(skew);
        let decided = What::Decided {
            n: 2,
            destination: Destination::ThirdParty,
            attempts: None,
        };
        let mut effects = next(&mut case, Input::Fact(decided), after(1800), &policy());
        let mut now = after(1800);
        let mut attempts = 0;
        while let Some(Next::Do(Effect::Deliver { attempt, destination })) = effects.first().cloned() {
            attempts += 1;
            let begun = now;
            let what = failed(attempt, destination, DeliveryFailure::Target);
            effects = next(&mut case, Input::Fact(what), now, &policy());
            if let Some(Next::Wait(until)) = effects.first() {
                now = *until;
                effects = next(&mut case, Input::Due, now, &policy());
                assert!(now.since(begun) >= Duration::from_secs(4), "{skew}: no pause");
            }
            assert!(attempts <= 12, "{skew}: it never ends");
        }
        assert_eq!(
            (attempts, case.entry.parked()),
            (12, Some(Cause::Unreachable)),
            "{skew}"
        );
    }
}

#[test]
fn what_the_program_fails_on_is_put_off_for_longer_and_longer_and_parked_in_the_end() {
    let mut case = ended_as(order(), Destination::Account);
    let mut now = NOW;
    for n in 1..12 {
        let why = "index out of bounds".to_owned();
        let effects = next(&mut case, Input::Fact(What::Panicked { n, why }), now, &policy());
        let [Next::Wait(until)] = effects[..] else {
            panic!("{n}: {effects:?}")
        };
        assert!(until.since(now) >= Duration::from_secs(5), "{n}");
        now = until;
        assert_eq!(due(&case.entry, now, &policy()), Some(now), "{n}: it is taken up again");
    }
    let why = "index out of bounds".to_owned();
    let effects = next(&mut case, Input::Fact(What::Panicked { n: 12, why }), now, &policy());
    assert_eq!(case.entry.parked(), Some(Cause::ProgramFault));
    assert!(
        effects.contains(&Next::Do(announce(Announcement::Outcome(Outcome::Parked)))),
        "{effects:?}"
    );
    // An operator retries it, with a corrected program.
    let retry = case.entry.retry();
    assert_eq!(next(&mut case, Input::Fact(retry), now, &policy()), [Effect::Decide]);
}

#[test]
fn a_recording_that_runs_is_not_parked_because_the_program_fails_on_it() {
    let mut case = started(order());
    for n in 1..=20 {
        let what = What::Panicked { n, why: "x".into() };
        next(&mut case, Input::Fact(what), after(u64::from(n) * 10), &policy());
    }
    assert_eq!(case.entry.parked(), None);
}

#[test]
fn what_only_a_newer_version_can_judge_is_left_to_it() {
    let case = ended_as(order(), Destination::Account);
    let mut written = serde_json::to_value(&case.entry).unwrap();
    let concluded = serde_json::json!({"at": 1, "by": "w2", "fact": "concluded", "of": {"outcome": "stored", "cause": "of_the_next_version"}});
    written["facts"].as_array_mut().unwrap().push(concluded);
    let mut case = Case {
        entry: serde_json::from_value(written).unwrap(),
        hand: Hand::Empty,
        informed: true,
    };
    let effects = next(&mut case, Input::Due, NOW, &policy());
    assert_eq!(effects, [Next::Wait(NOW.plus(policy().check_interval))]);
    assert_eq!(case.entry.outcome(), None);
}

/// Worker "w2" has a clock that is half an hour ahead. It reads an unfinished file some seconds after worker "w", and finds it unchanged.
#[test]
fn two_workers_whose_clocks_differ_prove_no_end() {
    let mut case = started(order());
    let seen = |n: u32, by: &str, at: u64, case: &mut Case| {
        let facts = [
            What::ChannelSeen { n, alive: false },
            What::Probed {
                n,
                size: 4096,
                md5: "1".into(),
                open: true,
            },
        ];
        for what in facts {
            case.entry.add(Fact {
                at: after(at),
                by: by.into(),
                what,
            });
        }
    };
    seen(1, "w", 400, &mut case);
    seen(2, "w2", 404 + 1800, &mut case);
    seen(3, "w2", 408 + 1800, &mut case);
    next(&mut case, Input::Due, after(412), &policy());
    assert!(case.entry.ended().is_none());
    // One worker sees it unchanged for a quarter of an hour.
    seen(4, "w", 400 + 900, &mut case);
    next(&mut case, Input::Due, after(400 + 901), &policy());
    assert!(case.entry.ended().is_some());
}

/// A stop of worker "a", whose clock is behind by so many seconds. It was taken at the tenth second, and the recording ended `after_ms`
/// later. Worker "b" heard of the start and of the end. Tells what is reported of the stop.
fn stopped_by_another(behind: u64, after_ms: u64, hung_up: Option<bool>) -> Option<Why> {
    let mut entry = Entry::of_order(order(), "a");
    let event = |at: Moment| {
        let mut told = told(5000);
        (told.at, told.stamp, told.hung_up) = (at, Some(at.unix_micros()), hung_up);
        told
    };
    let mut add = |by: &str, at: Moment, what| {
        entry.add(Fact {
            at,
            by: by.into(),
            what,
        })
    };
    add("b", after(100), What::Started(event(after(100))));
    let (action, start) = ("stop".to_owned(), Some(after(100).unix_micros()));
    add("a", after(110 - behind), What::StopAsked { action, route: None });
    add("a", after(110 - behind), What::StopSent { n: 1, start });
    let ended = after(110).plus(Duration::from_millis(after_ms));
    add("b", ended, What::Ended(event(ended)));
    match entry.unheeded()? {
        What::NotObeyed { why, .. } => Some(why),
        what => panic!("{what:?}"),
    }
}

#[test]
fn a_stop_that_was_obeyed_is_not_told_because_the_clock_of_its_worker_is_behind() {
    for behind in [0, 6, 60] {
        assert_eq!(stopped_by_another(behind, 30, Some(false)), None, "{behind}");
        assert_eq!(stopped_by_another(behind, 30, None), None, "{behind}");
    }
    // A hang-up ended it, and not the stop.
    for behind in [0, 6] {
        assert_eq!(
            stopped_by_another(behind, 20_000, Some(true)),
            Some(Why::Unconfirmed),
            "{behind}"
        );
    }
}

/// Told as masked to the end, the audio would be taken for silent where it is not.
#[test]
fn an_unmask_counts_though_the_clock_of_its_worker_is_ahead() {
    let masks = |ahead: u64, hears_end: &str| {
        let mut entry = Entry::of_order(order(), "a");
        let event = |second: u64| {
            let mut told = told(5000);
            (told.at, told.stamp) = (after(second), Some(after(second).unix_micros()));
            told
        };
        let mut add = |by: &str, second: u64, what| {
            let (at, by) = (after(second), by.to_owned());
            entry.add(Fact { at, by, what })
        };
        add("b", 100, What::Started(event(100)));
        for (by, action, on, second) in [("b", "m", true, 105), ("a", "u", false, 110 + ahead)] {
            let (route, asked, action) = (None, None, action.to_owned());
            let masked = What::Masked {
                action: action.clone(),
                on,
                n: 0,
                start: Some(after(100).unix_micros()),
                sender: Some(by.into()),
            };
            let asked = What::MaskAsked {
                action,
                on,
                asked,
                route,
            };
            add(by, second, asked);
            add(by, second, masked);
        }
        let heard = if hears_end == "a" { 112 + ahead } else { 112 };
        add(hears_end, heard, What::Ended(event(112)));
        let controls = entry.controls();
        assert_eq!(controls.not_obeyed, []);
        controls.masks.iter().map(|mask| mask.on).collect::<Vec<bool>>()
    };
    for ahead in [0, 4, 60] {
        for hears_end in ["a", "b"] {
            assert_eq!(masks(ahead, hears_end), [true, false], "{ahead} {hears_end}");
        }
    }
}

/// Worker "x" parked it because the switch does not upload its file. The clock of "x" is an hour ahead of the clock of "y", which hears of an
/// end. `known`: the ends that were reported before.
fn parked_ahead(known: u64, of_earlier_version: bool) -> Case {
    let mut case = started(order());
    let end = |second: u64| {
        let mut told = told(1000 * second);
        (told.at, told.stamp) = (after(second), Some(after(second).unix_micros()));
        What::Ended(told)
    };
    let add = |case: &mut Case, by: &str, second: u64, what| {
        let (at, by) = (after(second), by.to_owned());
        case.entry.add(Fact { at, by, what });
    };
    for second in 0..known {
        add(&mut case, "y", 30 + second, end(30 + second));
    }
    let parked = match case.entry.park(Cause::NotCollected) {
        What::Parked { n, cause, .. } if of_earlier_version => What::Parked { n, cause, ends: None },
        parked => parked,
    };
    add(&mut case, "x", 3600, parked);
    assert_eq!(case.entry.parked(), Some(Cause::NotCollected));
    step(&mut case, Input::Due);
    assert_eq!(case.entry.parked(), Some(Cause::NotCollected), "no end came since");
    add(&mut case, "y", 60, end(60));
    step(&mut case, Input::Due);
    case
}

#[test]
fn a_late_end_resumes_a_parked_recording_though_clocks_differ() {
    for known in [0, 1] {
        let case = parked_ahead(known, false);
        assert_eq!(case.entry.parked(), None, "{known}");
    }
    // An earlier version noted no number: its times decide, as before.
    assert_eq!(parked_ahead(0, true).entry.parked(), Some(Cause::NotCollected));
}

/// The clock of the worker that heard of the end is ahead of the clock of the worker that parks.
#[test]
fn a_recording_that_is_parked_again_waits_for_another_end() {
    let mut case = started(order());
    let mut told = told(5000);
    (told.at, told.stamp) = (after(60), Some(after(60).unix_micros()));
    let park = case.entry.park(Cause::NotCollected);
    step(&mut case, Input::Fact(park));
    let (at, by) = (after(3600), "y".to_owned());
    case.entry.add(Fact {
        at,
        by,
        what: What::Ended(told),
    });
    next(&mut case, Input::Due, after(61), &policy());
    assert_eq!(case.entry.parked(), None);
    let park = case.entry.park(Cause::NotCollected);
    next(&mut case, Input::Fact(park), after(62), &policy());
    assert_eq!(case.entry.parked(), Some(Cause::NotCollected));
}

/// A recording whose start a worker heard at once.
fn begun() -> Case {
    let mut case = asked(order());
    let mut told = told(0);
    told.stamp = Some(after(0).unix_micros());
    step(&mut case, Input::Fact(What::Commanded));
    step(&mut case, Input::Fact(What::Started(told)));
    case
}

/// The facts of a recording that worker "w" heard begin. Worker "x" did `did` at a second, and heard later of an end that was earlier or later.
fn controlled_by_late_hearer(did: &[What], at: u64, end: u64, heard: u64) -> Case {
    let mut case = begun();
    let mut told = told(1000 * end);
    (told.at, told.stamp) = (after(end), Some(after(end).unix_micros()));
    let did = did.iter().map(|what| (at, what.clone()));
    for (second, what) in did.chain([(heard, What::Ended(told))]) {
        let (at, by) = (after(second), "x".to_owned());
        case.entry.add(Fact { at, by, what });
    }
    case
}

/// All workers were away: the end waited in its queue, and a mask that was asked for before was sent after it.
#[test]
fn a_mask_that_came_after_the_end_is_told_though_its_worker_heard_of_the_end_late() {
    let start = begun().entry.newest_start();
    let (action, on) = ("a".to_owned(), true);
    let did = [
        What::MaskAsked {
            action: action.clone(),
            on,
            asked: Some(after(60)),
            route: None,
        },
        What::Masked {
            action,
            on,
            n: 0,
            start,
            sender: Some("x".into()),
        },
    ];
    let case = controlled_by_late_hearer(&did, 100, 80, 101);
    let controls = case.entry.controls();
    assert!(controls.masks.is_empty(), "{controls:?}");
    assert!(case.entry.unheeded().is_some());
}

/// The ends wait in their queue while the ledger is away.
#[test]
fn a_stop_that_was_obeyed_is_not_told_because_its_worker_heard_of_the_end_late() {
    let start = begun().entry.newest_start();
    let action = "a".to_owned();
    let did = [What::StopAsked { action, route: None }, What::StopSent { n: 1, start }];
    let case = controlled_by_late_hearer(&did, 100, 101, 120);
    assert_eq!(case.entry.unheeded(), None);
}
