//! Silence proves little: a switch that does not answer may have a file, and an ecallmgr that has just started knows no call.

use super::*;

fn armed() -> Order {
    let mut order = order();
    if let Some(command) = &mut order.command {
        command.trigger = Trigger::Bridge;
    }
    order
}

/// It is stored, and its switch keeps the file.
fn stored_and_left() -> Case {
    let mut case = ended_as(armed(), Destination::ThirdParty);
    step(&mut case, Input::Received(audio(5000)));
    step(&mut case, Input::Fact(delivered(Destination::ThirdParty)));
    step(&mut case, Input::Answered(Answer::Keep));
    step(
        &mut case,
        Input::Fact(What::Announced(Announcement::Outcome(Outcome::Stored))),
    );
    case
}

fn not_reached(attempt: u32, failure: CollectFailure) -> What {
    What::CollectFailed {
        attempt,
        failure,
        why: "x".into(),
    }
}

#[test]
fn a_start_of_which_nothing_was_heard_and_whose_switch_never_answers_is_not_settled() {
    for (failure, settled) in [
        (CollectFailure::Unreachable, None),
        (CollectFailure::Broken, None),
        (
            CollectFailure::Missing,
            Some((Outcome::Discarded, Cause::NeverTriggered)),
        ),
    ] {
        let mut case = asked(armed());
        step(&mut case, Input::Fact(What::Commanded));
        let mut now = after(40);
        for _ in 0..80 {
            if case.entry.outcome().is_some() || case.entry.parked().is_some() {
                break;
            }
            let what = match next(&mut case, Input::Due, now, &policy()).first() {
                Some(Next::Do(Effect::LookForChannel { n })) => What::ChannelSeen { n: *n, alive: false },
                Some(Next::Do(Effect::Probe { attempt, .. })) => not_reached(*attempt, failure),
                Some(Next::Wait(until)) => {
                    now = *until;
                    continue;
                }
                other => panic!("{other:?}"),
            };
            next(&mut case, Input::Fact(what), now, &policy());
        }
        assert_eq!(case.entry.outcome(), settled, "{failure:?}");
        let parked = settled.is_none().then_some(Cause::NotCollected);
        assert_eq!(case.entry.parked(), parked, "{failure:?}");
    }
}

#[test]
fn a_parked_start_goes_on_when_its_end_is_told_or_an_operator_retries() {
    let parked = || {
        let mut case = asked(armed());
        step(&mut case, Input::Fact(What::Commanded));
        let parked = case.entry.park(Cause::NotCollected);
        next(&mut case, Input::Fact(parked), after(4000), &policy());
        assert_eq!(State::of(&case.entry).name(), "parked");
        case
    };
    let mut case = parked();
    let told = next(&mut case, Input::Fact(What::Ended(told(5000))), after(4100), &policy());
    assert_eq!(told, [Effect::Decide]);
    let mut case = parked();
    let retry = case.entry.retry();
    let looks = next(&mut case, Input::Fact(retry), after(4100), &policy());
    assert_eq!(looks, [Effect::LookForChannel { n: 1 }]);
}

#[test]
fn the_call_is_looked_for_again_before_each_further_request_for_a_file_that_stayed() {
    let mut case = stored_and_left();
    let mut now = after(10);
    let mut asked = Vec::new();
    while asked.iter().filter(|what| **what == "file").count() < 3 {
        let what = match next(&mut case, Input::Due, now, &policy()).first() {
            Some(Next::Do(Effect::LookForChannel { n })) => {
                asked.push("call");
                What::ChannelSeen { n: *n, alive: false }
            }
            Some(Next::Do(Effect::Tidy { n, .. })) => {
                asked.push("file");
                What::Tidied {
                    n: *n,
                    left: Some("the switch may be recording into it".into()),
                    missing: false,
                }
            }
            Some(Next::Wait(until)) => {
                now = *until;
                continue;
            }
            other => panic!("{other:?}"),
        };
        next(&mut case, Input::Fact(what), now, &policy());
    }
    assert_eq!(asked, ["call", "call", "file", "call", "file", "call", "file"]);
    assert!(case.entry.gone_for() > policy().grace);
}

#[test]
fn a_file_that_was_not_closed_counts_as_left_only_when_its_call_was_gone_for_long() {
    let seen = |gone: &[u64]| {
        let mut case = ended_as(armed(), Destination::ThirdParty);
        for (n, second) in (1..).zip(gone) {
            let what = What::ChannelSeen { n, alive: false };
            next(&mut case, Input::Fact(what), after(*second), &policy());
        }
        is_left_open(&case.entry, &policy())
    };
    assert!(!seen(&[]));
    assert!(!seen(&[10, 72]), "an ecallmgr that has just started says so too");
    assert!(!seen(&[10, 72, 600]));
    assert!(seen(&[10, 72, 600, 910]));
}

#[test]
fn the_file_of_a_stored_recording_is_asked_for_whichever_workers_clock_is_ahead() {
    let mut case = ended_as(armed(), Destination::ThirdParty);
    let audio_of = |md5: &str| Audio {
        digests: Digests {
            md5: md5.into(),
            sha256: md5.into(),
        },
        ..audio(5000)
    };
    let add = |case: &mut Case, by: &str, second: u64, what: What| {
        let (at, by) = (after(second), by.to_owned());
        case.entry.add(Fact { at, by, what });
    };
    // The worker that received the shorter audio first is an hour ahead.
    add(&mut case, "x", 3600, What::Collected(audio_of("short")));
    add(&mut case, "w", 60, What::Collected(audio_of("whole")));
    let What::Delivered(mut delivery) = delivered(Destination::ThirdParty) else {
        unreachable!()
    };
    delivery.sha256 = Some("whole".into());
    add(&mut case, "w", 61, What::Delivered(delivery));
    assert!(case.entry.owes_release());
    assert!(!case.entry.is_closed());
}

/// A channel that ecallmgr never forgets must not keep a worker busy.
#[test]
fn a_day_after_the_end_the_file_is_asked_for_whatever_ecallmgrs_say() {
    let mut case = stored_and_left();
    let mut now = after(10);
    let mut looks = 0;
    loop {
        match next(&mut case, Input::Due, now, &policy()).first() {
            Some(Next::Do(Effect::LookForChannel { n })) => {
                looks += 1;
                let alive = What::ChannelSeen { n: *n, alive: true };
                next(&mut case, Input::Fact(alive), now, &policy());
            }
            Some(Next::Wait(until)) => {
                assert!(*until > now);
                now = *until;
            }
            Some(Next::Do(Effect::Tidy { n: 1, .. })) => break,
            other => panic!("{other:?}"),
        }
        assert!(looks < 400, "it looks for the channel without a pause");
    }
    assert!(now >= after(86_000));
}

/// What a server with too few copies took is no reason to delete the switch's file, nor to ask for it.
#[test]
fn the_file_of_an_unverified_delivery_is_not_asked_for() {
    let mut case = ended_as(armed(), Destination::Account);
    step(&mut case, Input::Received(audio(5000)));
    let What::Delivered(mut delivery) = delivered(Destination::Account) else {
        unreachable!()
    };
    delivery.below_quorum = true;
    step(&mut case, Input::Fact(What::Delivered(delivery)));
    step(&mut case, Input::HoldRefused);
    step(&mut case, Input::Answered(Answer::Keep));
    assert!(!case.entry.owes_release());
    step(&mut case, Input::Fact(looked(1, None)));
    assert!(case.entry.owes_release());
    assert!(
        case.entry.has_had(&audio(5000).digests),
        "they show no part that no event told of"
    );
}

/// The queries find the channel gone only after that day, for example because the destination was down.
#[test]
fn a_day_after_the_end_the_channel_is_looked_for_before_each_request_unless_it_is_alive() {
    let mut case = stored_and_left();
    let (mut now, mut requests) = (after(90_000), 0);
    while requests < 11 {
        let what = match next(&mut case, Input::Due, now, &policy()).first() {
            Some(Next::Do(Effect::LookForChannel { n })) => What::ChannelSeen { n: *n, alive: false },
            Some(Next::Do(Effect::Tidy { n, .. })) => {
                requests += 1;
                let left = Some("the switch may be recording into it".into());
                What::Tidied {
                    n: *n,
                    left,
                    missing: false,
                }
            }
            Some(Next::Wait(until)) => {
                now = *until;
                continue;
            }
            other => panic!("{other:?}"),
        };
        next(&mut case, Input::Fact(what), now, &policy());
    }
    assert_eq!(case.entry.seen_gone(), 2 + 10, "one before each further request");
}

#[test]
fn bytes_that_were_received_and_stored_nowhere_may_be_a_part_that_no_event_told_of() {
    let mut case = ended_as(armed(), Destination::ThirdParty);
    let audio_of = |sha256: &str, ms: u64| Audio {
        digests: Digests {
            md5: sha256.into(),
            sha256: sha256.into(),
        },
        ..audio(ms)
    };
    let What::Delivered(mut delivery) = delivered(Destination::ThirdParty) else {
        unreachable!()
    };
    delivery.sha256 = Some("own".into());
    for what in [
        What::Collected(audio_of("own", 5000)),
        What::Collected(audio_of("longer", 9000)),
        What::Delivered(delivery),
    ] {
        step(&mut case, Input::Fact(what));
    }
    assert!(case.entry.has_had(&audio_of("own", 5000).digests));
    assert!(!case.entry.has_had(&audio_of("longer", 9000).digests));
}

/// Otherwise the file would be asked for without a pause.
#[test]
fn a_start_that_no_event_told_is_noted_only_if_a_part_follows_from_it() {
    let mut case = asked(armed());
    let add = |case: &mut Case, second: u64, what: What| {
        let (at, by) = (after(second), "w".to_owned());
        case.entry.add(Fact { at, by, what });
    };
    let at = |second: u64, length_ms: Option<u64>| {
        let mut told = told(0);
        (told.at, told.stamp, told.length_ms) = (after(second), Some(after(second).unix_micros()), length_ms);
        told
    };
    add(&mut case, 10, What::Started(at(10, None)));
    add(&mut case, 30, What::Ended(at(30, Some(20_000))));
    let mut one = case.clone();
    add(&mut one, 31, What::Collected(audio(20_000)));
    add(&mut one, 32, delivered(Destination::ThirdParty));
    assert!(
        one.entry.untold_part().is_some(),
        "a later bridge of which no event told"
    );
    add(&mut case, 40, What::Started(at(40, None)));
    add(&mut case, 300, What::PresumedEnded(at(40, None)));
    add(&mut case, 310, What::Collected(audio(25_000)));
    add(&mut case, 311, delivered(Destination::ThirdParty));
    assert!(case.entry.untold_start().is_some());
    assert!(
        case.entry.untold_part().is_none(),
        "it would begin before the part that is known"
    );
}
