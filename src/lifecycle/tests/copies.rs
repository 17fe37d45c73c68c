//! No copy of the audio is given up before another copy is proved.

use super::*;

/// A server with too few copies (202) stored it: a third party, from the hold.
fn below_quorum_from_the_hold() -> Case {
    let mut case = ended_as(order(), Destination::ThirdParty);
    step(&mut case, Input::Received(audio(5000)));
    step(
        &mut case,
        Input::Fact(failed(1, Destination::ThirdParty, DeliveryFailure::Target)),
    );
    step(&mut case, Input::Fact(holding()));
    step(&mut case, Input::Answered(Answer::Release));
    step(&mut case, Input::Fact(below(Destination::ThirdParty, "1-a")));
    step(
        &mut case,
        Input::Fact(What::Announced(Announcement::Outcome(Outcome::Stored))),
    );
    case
}

fn below(destination: Destination, rev: &str) -> What {
    let What::Delivered(mut delivery) = delivered(destination) else {
        unreachable!()
    };
    delivery.below_quorum = true;
    delivery.document.rev = rev.into();
    What::Delivered(delivery)
}

fn unanswered(n: u32) -> What {
    What::Looked {
        n,
        why: Some("no answer".into()),
        unanswered: true,
        deleted: false,
    }
}

/// What is done when the next timer is due, and when that is.
fn next_due(case: &mut Case, now: Moment) -> (Vec<Next>, Moment) {
    let at = due(&case.entry, now, &policy())
        .expect("nobody comes back to it")
        .max(now);
    (next(case, Input::Due, at, &policy()), at)
}

#[test]
fn the_hold_keeps_audio_until_a_look_has_found_the_copy_however_many_did_not() {
    let mut case = below_quorum_from_the_hold();
    let mut now = after(10_000);
    for n in 1..=40 {
        let effects = next(&mut case, Input::Fact(looked(n, Some("not there"))), now, &policy());
        assert!(!effects.contains(&Next::Do(Effect::Unhold)), "{n}: {effects:?}");
        assert!(case.entry.is_unverified() && case.entry.held().is_some());
        now = now.plus(Duration::from_secs(4000));
    }
    let effects = next(&mut case, Input::Fact(looked(41, None)), now, &policy());
    assert_eq!(effects, [Effect::Unhold]);
}

#[test]
fn what_a_server_lost_is_delivered_again_from_the_hold() {
    let mut case = below_quorum_from_the_hold();
    let lost = Input::Fact(looked(1, Some("not there")));
    let again = Effect::Deliver {
        attempt: 2,
        destination: Destination::ThirdParty,
    };
    assert_eq!(
        next(&mut case, lost, after(10_000), &policy()),
        std::slice::from_ref(&again)
    );
    // The server is unreachable: it is tried later, as often as needed.
    let mut now = after(10_000);
    for attempt in 2..40 {
        let failure = Input::Fact(failed(attempt, Destination::ThirdParty, DeliveryFailure::Target));
        let effects = next(&mut case, failure, now, &policy());
        assert!(!effects.contains(&Next::Do(Effect::Unhold)), "{effects:?}");
        let (_, later) = next_due(&mut case, now);
        now = later.plus(Duration::from_secs(3600));
    }
    assert_eq!(case.entry.parked(), None);
    let once_more = next(&mut case, Input::Due, now, &policy());
    assert!(
        matches!(once_more[..], [Next::Do(Effect::Deliver { .. })]),
        "{once_more:?}"
    );
    // A server with too few copies took it again: it is read back again.
    let effects = next(
        &mut case,
        Input::Fact(below(Destination::ThirdParty, "1-b")),
        now,
        &policy(),
    );
    assert!(matches!(effects[..], [Next::Wait(_)]), "{effects:?}");
    assert_eq!(case.entry.delivery().unwrap().document.rev, "1-b");
    let (effects, now) = next_due(&mut case, now);
    assert!(
        matches!(effects[..], [Next::Do(Effect::ReadBack { .. })]),
        "{effects:?}"
    );
    // And once more, with all copies.
    next(&mut case, Input::Fact(looked(2, Some("not there"))), now, &policy());
    let What::Delivered(mut delivery) = below(Destination::ThirdParty, "1-c") else {
        unreachable!()
    };
    delivery.below_quorum = false;
    let effects = next(
        &mut case,
        Input::Fact(What::Delivered(delivery)),
        now.plus(Duration::from_secs(1)),
        &policy(),
    );
    assert_eq!(effects, [Effect::Unhold]);
}

#[test]
fn a_server_that_does_not_answer_is_no_look() {
    let mut case = below_quorum_from_the_hold();
    let mut now = after(100);
    for n in 1..40 {
        let effects = next(&mut case, Input::Fact(unanswered(n)), now, &policy());
        assert!(matches!(effects[..], [Next::Wait(_)]), "{n}: {effects:?}");
        let (effects, later) = next_due(&mut case, now);
        assert_eq!(effects, [Effect::ReadBack { n: n + 1 }]);
        now = later;
    }
    assert_eq!(case.entry.looks().count(), 0);
    assert!(case.entry.held().is_some() && !case.entry.is_closed());
}

#[test]
fn a_switch_keeps_its_file_until_a_copy_below_the_quorum_is_found() {
    // No hold: the switch has the other copy.
    let policy = Policy {
        hold: false,
        ..policy()
    };
    let mut case = ended_as(order(), Destination::Account);
    step(&mut case, Input::Received(audio(5000)));
    let effects = next(&mut case, Input::Fact(below(Destination::Account, "1-a")), NOW, &policy);
    assert_eq!(effects.first(), Some(&Next::Do(Effect::Answer(Answer::Keep))));
    next(&mut case, Input::Answered(Answer::Keep), NOW, &policy);
    for announcement in [Announcement::DocumentCreated, Announcement::Outcome(Outcome::Stored)] {
        next(&mut case, Input::Fact(What::Announced(announcement)), NOW, &policy);
    }
    // The read-back does not find it: it is collected again from the switch.
    let effects = next(
        &mut case,
        Input::Fact(looked(1, Some("not there"))),
        after(100),
        &policy,
    );
    assert_eq!(effects, [collect(1)]);
    let effects = next(&mut case, Input::Received(audio(5000)), after(101), &policy);
    assert!(matches!(effects[..], [Next::Do(Effect::Deliver { .. })]), "{effects:?}");
    let effects = next(
        &mut case,
        Input::Fact(below(Destination::Account, "1-b")),
        after(102),
        &policy,
    );
    assert_eq!(effects.first(), Some(&Next::Do(Effect::Answer(Answer::Keep))));
    next(&mut case, Input::Answered(Answer::Keep), after(102), &policy);
    // The read-back finds it: now the worker releases the switch's file.
    let effects = next(&mut case, Input::Fact(looked(2, None)), after(1000), &policy);
    assert!(matches!(effects[..], [Next::Do(Effect::Tidy { .. })]), "{effects:?}");
}

#[test]
fn audio_below_the_quorum_goes_into_the_hold_before_its_switch_lets_it_go() {
    let mut case = ended_as(order(), Destination::ThirdParty);
    step(&mut case, Input::Received(audio(5000)));
    assert_eq!(
        step(&mut case, Input::Fact(below(Destination::ThirdParty, "1-a"))),
        [Effect::Hold]
    );
    let effects = step(&mut case, Input::Fact(holding()));
    assert_eq!(effects.first(), Some(&Next::Do(Effect::Answer(Answer::Release))));
}

#[test]
fn what_was_found_instead_of_brought_is_known_in_full() {
    let mut case = ended_as(order(), Destination::Account);
    let What::Delivered(mut found) = delivered(Destination::Account) else {
        unreachable!()
    };
    found.audio = Some(audio(5000));
    step(&mut case, Input::Fact(What::Delivered(found.clone())));
    assert_eq!(case.entry.judged_audio(), Some(audio(5000)));
    assert_eq!(case.entry.outcome(), Some((Outcome::Stored, Cause::Complete)));
    // Less than the switch reported: the ending must not say that it is complete.
    let mut case = ended_as(order(), Destination::Account);
    found.audio = Some(audio(1000));
    step(&mut case, Input::Fact(What::Delivered(found)));
    assert_eq!(case.entry.outcome(), Some((Outcome::Stored, Cause::SuspectAudio)));
}

/// Read-backs that find nothing, each with one more delivery, and so many without an answer before each.
fn lost_often(times: u32, unanswered_each: u32) -> Case {
    let mut case = below_quorum_from_the_hold();
    let (mut n, mut now) = (0, after(10_000));
    let mut look = |case: &mut Case, now: &mut Moment, why: bool| {
        n += 1;
        *now = now.plus(Duration::from_secs(4000));
        let what = if why {
            looked(n, Some("not there"))
        } else {
            unanswered(n)
        };
        next(case, Input::Fact(what), *now, &policy());
    };
    for time in 0..times {
        for _ in 0..unanswered_each {
            look(&mut case, &mut now, false);
        }
        look(&mut case, &mut now, true);
        assert!(case.entry.is_lost(), "{time}");
        // So many answers are missing again before it is brought again.
        for _ in 0..unanswered_each {
            look(&mut case, &mut now, false);
        }
        assert!(case.entry.is_lost(), "{time}: no answer says nothing");
        now = now.plus(Duration::from_secs(1));
        let again = below(Destination::ThirdParty, &format!("{}-b", time + 2));
        next(&mut case, Input::Fact(again), now, &policy());
        assert!(!case.entry.is_lost(), "{time}: it was brought again");
    }
    case
}

#[test]
fn what_a_server_loses_more_often_than_facts_are_kept_is_brought_again_each_time() {
    assert!(lost_often(40, 0).entry.is_unverified());
    assert!(lost_often(3, 33).entry.is_unverified());
}

/// While the cluster was parted, one side delivered the first part. The other side received the file when it had both parts, and one node
/// took that.
#[test]
fn the_first_delivery_does_not_vouch_for_other_audio_that_too_few_copies_took() {
    let mut bridges = order();
    bridges.command.as_mut().unwrap().trigger = Trigger::Bridge;
    let event = |second: u64, length_ms: u64| {
        let mut told = told(length_ms);
        (told.at, told.stamp) = (after(second), Some(after(second).unix_micros()));
        told
    };
    let both = Audio {
        digests: Digests {
            md5: "both".into(),
            sha256: "both".into(),
        },
        ..audio(20_000)
    };
    let What::Delivered(mut below) = below(Destination::Account, "1-b") else {
        unreachable!()
    };
    below.sha256 = Some("both".into());
    let What::Held { holding, .. } = holding() else {
        unreachable!()
    };
    let held = Holding {
        name: "both".into(),
        digests: both.digests.clone(),
        ..holding
    };
    for in_hold in [true, false] {
        let mut case = asked(bridges.clone());
        let mut news = Entry::new(case.entry.key, "call");
        let decided = What::Decided {
            n: 1,
            destination: Destination::Account,
            attempts: None,
        };
        let mut facts = vec![
            ("x", 0, What::Commanded),
            ("x", 1, What::Started(event(1, 0))),
            ("x", 11, What::Ended(event(11, 10_000))),
            ("x", 11, decided),
            ("x", 12, What::Collected(audio(10_000))),
            ("x", 13, delivered(Destination::Account)),
            ("y", 20, What::Started(event(20, 0))),
            ("y", 30, What::Ended(event(30, 10_000))),
            ("y", 31, What::Collected(both.clone())),
            ("y", 32, What::Delivered(below.clone())),
        ];
        if in_hold {
            let (n, holding) = (1, held.clone());
            facts.push(("y", 33, What::Held { n, holding }));
        }
        for (by, second, what) in facts {
            let (at, by) = (after(second), by.to_owned());
            news.add(Fact { at, by, what });
        }
        let owed = next(&mut case, Input::Known(Box::new(news)), after(40), &policy());
        assert!(!owed.contains(&Next::Do(Effect::Unhold)), "{owed:?}");
        assert!(
            owed.contains(&Next::Do(Effect::Continue)),
            "the second part is delivered on its own: {owed:?}"
        );
        let entry = &case.entry;
        assert_eq!(entry.is_safe(&both.digests), in_hold);
        assert_eq!(entry.may_let_go(&both.digests), in_hold);
        assert_eq!(
            entry.stray().map(|stray| stray.name.as_str()),
            in_hold.then_some("both")
        );
        let (continuation, _) = entry.continuation(after(40), "y").unwrap();
        assert!(continuation.delivery().is_none(), "too few copies took that");
    }
}
