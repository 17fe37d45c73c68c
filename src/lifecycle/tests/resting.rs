//! Recordings that wait: for a decision, for a target, for an operator.

use super::*;

#[test]
fn what_cannot_be_decided_is_taken_off_the_switch_and_waits_in_the_hold() {
    let mut case = started(order());
    assert_eq!(step(&mut case, Input::Fact(What::Ended(told(5000)))), [Effect::Decide]);
    let postponed = |n: u32, until: u64| {
        Input::Fact(What::Postponed {
            n,
            until: after(until),
            why: "unread".into(),
        })
    };
    let at = |case: &mut Case, input: Input, seconds: u64| next(case, input, after(seconds), &policy());
    assert_eq!(at(&mut case, postponed(1, 10), 1), [Next::Wait(after(10))]);
    assert_eq!(at(&mut case, Input::Due, 10), [Effect::Decide]);
    at(&mut case, postponed(2, 20), 11);
    at(&mut case, postponed(3, 30), 21);
    assert_eq!(at(&mut case, Input::Due, 30), [collect(1)]);
    assert_eq!(at(&mut case, Input::Received(audio(5000)), 31), [Effect::Hold]);
    let held = at(&mut case, Input::Fact(holding()), 32);
    assert_eq!(held, [Effect::Answer(Answer::Release)]);
    assert_eq!(at(&mut case, Input::Answered(Answer::Release), 33), [Effect::Decide]);
    let delivers = at(&mut case, decided(Destination::ThirdParty), 34);
    let wanted = Effect::Deliver {
        attempt: 1,
        destination: Destination::ThirdParty,
    };
    assert_eq!(delivers, [wanted]);
}

#[test]
fn what_is_never_decided_is_parked_with_its_cause() {
    let mut case = started(order());
    let mut now = 1;
    next(&mut case, Input::Fact(What::Ended(told(5000))), after(now), &policy());
    while case.entry.parked().is_none() {
        assert!(now < 10_000, "it is never parked");
        let n = case.entry.next_number("postponed");
        let until = after(now + 10);
        let why = "unread".into();
        next(
            &mut case,
            Input::Fact(What::Postponed { n, until, why }),
            after(now),
            &policy(),
        );
        if case.hand == Hand::Empty && case.entry.held().is_none() && n > 3 {
            next(&mut case, Input::Received(audio(5000)), after(now), &policy());
            next(&mut case, Input::Fact(holding()), after(now), &policy());
            next(&mut case, Input::Answered(Answer::Release), after(now), &policy());
        }
        now += 10;
    }
    assert_eq!(case.entry.parked(), Some(Cause::Undecided));
    assert!(case.entry.held().is_some());
}

#[test]
fn a_paused_target_costs_no_attempt() {
    let mut case = ended_as(order(), Destination::ThirdParty);
    step(&mut case, Input::Received(audio(5000)));
    let paused = What::Postponed {
        n: 1,
        until: after(100),
        why: "paused".into(),
    };
    assert_eq!(step(&mut case, Input::Fact(paused)), [Effect::Hold]);
    assert_eq!(
        step(&mut case, Input::Fact(holding())),
        [Effect::Answer(Answer::Release)]
    );
    assert_eq!(
        step(&mut case, Input::Answered(Answer::Release)),
        [Next::Wait(after(100))]
    );
    assert_eq!(case.entry.next_attempt(), 1);
}

#[test]
fn a_url_that_cannot_be_served_is_parked_and_its_document_says_so() {
    let mut case = ended_as(order(), Destination::Url);
    step(&mut case, Input::Received(audio(5000)));
    step(&mut case, Input::Fact(What::Documented(document())));
    step(&mut case, Input::Fact(What::Announced(Announcement::DocumentCreated)));
    let unusable = failed(1, Destination::Url, DeliveryFailure::Unusable);
    assert_eq!(step(&mut case, Input::Fact(unusable)), [Effect::Hold]);
    let effects = step(&mut case, Input::Fact(holding()));
    assert_eq!(case.entry.parked(), Some(Cause::UnusableUrl));
    let mark = Effect::Mark {
        n: 1,
        cause: Cause::UnusableUrl,
    };
    assert!(effects.contains(&Next::Do(mark.clone())), "{effects:?}");
    let effects = step(&mut case, Input::Fact(What::Marked { n: 1 }));
    assert!(!effects.contains(&Next::Do(mark.clone())), "{effects:?}");
}

#[test]
fn a_document_does_not_say_parked_for_ever_when_its_recording_is_discarded() {
    for cause in [Cause::RetentionOver, Cause::DiscardedByOperator] {
        let mut case = ended_as(order(), Destination::Url);
        let mark = |n| Next::Do(Effect::Mark { n, cause });
        step(&mut case, Input::Received(audio(5000)));
        step(&mut case, Input::Fact(What::Documented(document())));
        for announcement in [Announcement::DocumentCreated, Announcement::Outcome(Outcome::Parked)] {
            step(&mut case, Input::Fact(What::Announced(announcement)));
        }
        step(
            &mut case,
            Input::Fact(failed(1, Destination::Url, DeliveryFailure::Unusable)),
        );
        step(&mut case, Input::Fact(holding()));
        step(&mut case, Input::Answered(Answer::Release));
        step(&mut case, Input::Fact(What::Marked { n: 1 }));
        let outcome = Outcome::Discarded;
        let owed = step(&mut case, Input::Fact(What::Concluded { outcome, cause }));
        assert!(owed.contains(&mark(2)), "{owed:?}");
        step(&mut case, Input::Fact(What::Announced(Announcement::Outcome(outcome))));
        step(&mut case, Input::Fact(What::Unheld { n: 1 }));
        assert!(!case.entry.is_closed());
        let owed = step(&mut case, Input::Fact(What::Marked { n: 2 }));
        assert!(owed.is_empty() && case.entry.is_closed(), "{owed:?}");
    }
}

#[test]
fn a_discarded_recordings_file_is_asked_for_until_it_is_gone_or_told() {
    for cause in [Cause::RetentionOver, Cause::DiscardedByOperator] {
        let mut case = ended_as(order(), Destination::ThirdParty);
        step(&mut case, Input::Received(audio(5000)));
        let refused = failed(1, Destination::ThirdParty, DeliveryFailure::Refused);
        step(&mut case, Input::Fact(refused));
        step(&mut case, Input::Fact(holding()));
        // The switch waited no longer for its answer.
        step(&mut case, Input::Answered(Answer::Keep));
        let outcome = Outcome::Discarded;
        step(&mut case, Input::Fact(What::Concluded { outcome, cause }));
        for outcome in [Outcome::Parked, outcome] {
            step(&mut case, Input::Fact(What::Announced(Announcement::Outcome(outcome))));
        }
        let left = |n| What::Tidied {
            n,
            left: Some("no answer".into()),
            missing: false,
        };
        let owed = step(&mut case, Input::Fact(left(1)));
        assert_eq!(owed, [Effect::Unhold], "the file waits for its next request");
        step(&mut case, Input::Fact(What::Unheld { n: 1 }));
        assert!(!case.entry.is_closed(), "{cause}");
        let owed = next(&mut case, Input::Due, after(4000), &policy());
        assert!(matches!(owed[0], Next::Do(Effect::Tidy { n: 2, .. })), "{owed:?}");
        for n in 2..=u32::try_from(crate::entry::TIDIES).unwrap() {
            next(&mut case, Input::Fact(left(n)), after(4000), &policy());
        }
        assert!(case.entry.is_closed(), "the log tells of the file");
    }
}

#[test]
fn an_operators_retry_decides_anew() {
    let mut case = ended_as(order(), Destination::ThirdParty);
    step(&mut case, Input::Received(audio(5000)));
    step(
        &mut case,
        Input::Fact(failed(1, Destination::ThirdParty, DeliveryFailure::Refused)),
    );
    step(&mut case, Input::Fact(holding()));
    assert_eq!(case.entry.parked(), Some(Cause::Refused));
    step(&mut case, Input::Answered(Answer::Release));
    let retry = case.entry.retry();
    assert_eq!(case.entry.destination(), Some(Destination::ThirdParty));
    let effects = next(&mut case, Input::Fact(retry), after(50), &policy());
    assert_eq!(case.entry.destination(), None);
    assert_eq!(effects, [Effect::Decide]);
}

#[test]
fn what_a_server_with_too_few_copies_took_is_read_back_before_the_story_ends() {
    let mut case = ended_as(order(), Destination::Account);
    step(&mut case, Input::Received(audio(5000)));
    let What::Delivered(mut delivery) = delivered(Destination::Account) else {
        unreachable!()
    };
    delivery.below_quorum = true;
    step(&mut case, Input::Fact(What::Delivered(delivery)));
    step(&mut case, Input::Answered(Answer::Release));
    for announcement in [Announcement::DocumentCreated, Announcement::Outcome(Outcome::Stored)] {
        step(&mut case, Input::Fact(What::Announced(announcement)));
    }
    assert!(!case.entry.is_closed());
    assert_eq!(State::of(&case.entry).name(), "unverified");
    let due = due(&case.entry, after(0), &policy()).expect("it is due");
    assert_eq!(next(&mut case, Input::Due, due, &policy()), [Effect::ReadBack { n: 1 }]);
    let lost = looked(1, Some("not there"));
    let waits = next(&mut case, Input::Fact(lost), due, &policy());
    assert!(matches!(waits[..], [Next::Wait(_)]), "{waits:?}");
    next(
        &mut case,
        Input::Fact(looked(2, None)),
        due.plus(Duration::from_secs(300)),
        &policy(),
    );
    assert!(case.entry.is_closed());
}

#[test]
fn fewer_attempts_are_spread_over_the_same_time() {
    let policy = policy();
    let total = |said: Option<u32>| -> Duration {
        let attempts = policy.attempts(said);
        (1..attempts).map(|n| policy.pause(n, said)).sum()
    };
    for said in [2, 5, 20, 28] {
        let (ours, usual) = (total(Some(said)).as_secs_f64(), total(None).as_secs_f64());
        assert!((ours - usual).abs() < 1.0, "{said}: {ours} {usual}");
    }
    assert_eq!(policy.attempts(Some(0)), 1);
    assert_eq!(policy.attempts(Some(1000)), 28);
}

#[test]
fn what_may_share_its_file_goes_into_the_hold_and_waits_for_an_operator() {
    let mut case = started(shared());
    assert_eq!(step(&mut case, Input::Fact(What::Ended(told(5000)))), [collect(1)]);
    assert_eq!(step(&mut case, Input::Received(audio(5000))), [Effect::Hold]);
    let holding = Holding {
        place: "hold".into(),
        name: "a".into(),
        size: 7,
        digests: audio(5000).digests,
    };
    // The file is released: the next call of that name must begin a file of its own.
    let effects = step(&mut case, Input::Fact(What::Held { n: 1, holding }));
    assert_eq!(effects[0], Effect::Answer(Answer::Release));
    assert_eq!(case.entry.parked(), Some(Cause::SharedName));
    step(&mut case, Input::Answered(Answer::Release));
    let retried = case.entry.retry();
    assert_eq!(step(&mut case, Input::Fact(retried)), [Effect::Decide]);
    // Without a hold, the file stays on the switch.
    let bare = Policy {
        hold: false,
        ..policy()
    };
    let mut case = started(shared());
    next(&mut case, Input::Fact(What::Ended(told(5000))), NOW, &bare);
    assert_eq!(case.entry.parked(), Some(Cause::SharedName));
    // Any other name is the recording's own.
    let mut own = shared();
    own.adopted.as_mut().unwrap().shared_name = false;
    let mut case = started(own);
    assert_eq!(step(&mut case, Input::Fact(What::Ended(told(5000)))), [Effect::Decide]);
}

/// The recording of a bridge that began again was postponed for hours, because the switch recorded into its file.
#[test]
fn a_recording_that_began_again_has_all_its_time_after_its_last_end() {
    let mut case = ended_as(order(), Destination::Account);
    let at = |case: &mut Case, input: Input, seconds: u64| next(case, input, after(seconds), &policy());
    let stamped = |seconds: u64| {
        let mut told = told(5000);
        (told.at, told.stamp) = (after(seconds), Some(after(seconds).unix_micros()));
        told
    };
    for n in 1..=3 {
        let (began, put_off) = (u64::from(n) * 3600, u64::from(n) * 3600 + 60);
        at(&mut case, Input::Fact(What::Started(stamped(began))), began);
        let until = after(put_off + 60);
        let why = "the switch records into the file".into();
        at(&mut case, Input::Fact(What::Postponed { n, until, why }), put_off);
    }
    let then = at(&mut case, Input::Fact(What::Ended(stamped(20_000))), 20_000);
    assert_eq!(case.entry.parked(), None);
    assert_eq!(then, [collect(1)]);
}

#[test]
fn held_audio_of_a_parked_recording_outlives_its_retention_only_with_an_outcome() {
    let day = 86_400;
    let keeps = |days: u64| Policy {
        hold_retention: Some(Duration::from_secs(days * day)),
        ..policy()
    };
    let parked = |told: bool| {
        let mut case = ended_as(order(), Destination::ThirdParty);
        step(&mut case, Input::Received(audio(5000)));
        step(&mut case, Input::Fact(holding()));
        step(&mut case, Input::Answered(Answer::Release));
        let cause = Cause::Unreachable;
        step(
            &mut case,
            Input::Fact(What::Parked {
                n: 1,
                cause,
                ends: None,
            }),
        );
        if told {
            let announced = What::Announced(Announcement::Outcome(Outcome::Parked));
            step(&mut case, Input::Fact(announced));
        }
        assert!(case.entry.held().is_some());
        case
    };
    let at = |case: &mut Case, seconds: u64, policy: &Policy| next(case, Input::Outlived, after(seconds), policy);
    // Without the setting, and before the time, the copy stays.
    let mut case = parked(true);
    assert!(at(&mut case, 1000 * day, &policy()).is_empty());
    assert!(at(&mut case, 29 * day, &keeps(30)).is_empty());
    assert_eq!(case.entry.outcome(), None);
    // The operator does not know yet that it is parked.
    let mut unknown = parked(false);
    at(&mut unknown, 40 * day, &keeps(30));
    assert_eq!(unknown.entry.outcome(), None);
    // A retry starts the count again.
    let mut retried = case.clone();
    let retry = retried.entry.retry();
    next(&mut retried, Input::Fact(retry), after(29 * day), &keeps(30));
    at(&mut retried, 31 * day, &keeps(30));
    assert_eq!(retried.entry.outcome(), None);
    // Only what has compared the clocks says that it is over.
    for input in [Input::Due, Input::Doubt, Input::Known(Box::new(case.entry.clone()))] {
        assert!(next(&mut case, input, after(400 * day), &keeps(30)).is_empty());
        assert_eq!(case.entry.outcome(), None);
    }
    assert!(!crate::lifecycle::is_outlived(&case.entry, after(29 * day), &keeps(30)));
    assert!(crate::lifecycle::is_outlived(&case.entry, after(31 * day), &keeps(30)));
    // The outcome is published before the copy is removed.
    let discarded = Announcement::Outcome(Outcome::Discarded);
    assert_eq!(
        at(&mut case, 31 * day, &keeps(30)),
        [Effect::Announce(discarded), Effect::Unhold]
    );
    assert_eq!(case.entry.outcome(), Some((Outcome::Discarded, Cause::RetentionOver)));
    let then = next(
        &mut case,
        Input::Fact(What::Announced(discarded)),
        after(31 * day),
        &keeps(30),
    );
    assert_eq!(then, [Effect::Unhold]);
}

#[test]
fn a_parked_recording_whose_audio_is_not_in_the_hold_does_not_expire() {
    let keeps = Policy {
        hold_retention: Some(Duration::from_secs(86_400)),
        ..policy()
    };
    let mut case = ended_as(order(), Destination::Account);
    let cause = Cause::NotCollected;
    step(
        &mut case,
        Input::Fact(What::Parked {
            n: 1,
            cause,
            ends: None,
        }),
    );
    let announced = What::Announced(Announcement::Outcome(Outcome::Parked));
    step(&mut case, Input::Fact(announced));
    next(&mut case, Input::Outlived, after(1000 * 86_400), &keeps);
    assert_eq!(case.entry.outcome(), None);
}

/// A queue that an operator bound to the events is full, and refuses them. The broker gives each of them to all other queues again.
#[test]
fn an_event_that_a_queue_refuses_waits_for_the_retry_schedule() {
    let mut case = ended_as(order(), Destination::Account);
    step(&mut case, Input::Received(audio(5000)));
    let stored = step(&mut case, Input::Fact(delivered(Destination::Account)));
    assert_eq!(stored[0], Effect::Answer(Answer::Release));
    let announced = step(&mut case, Input::Answered(Answer::Release));
    assert!(matches!(announced[0], Next::Do(Effect::Announce(_))), "{announced:?}");
    let until = after(100);
    let refused = What::Postponed {
        n: 1,
        until,
        why: crate::entry::NOTICE_REFUSED.into(),
    };
    let waits = next(&mut case, Input::Fact(refused), after(40), &policy());
    assert_eq!(waits, [Next::Wait(until)]);
    assert_eq!(due(&case.entry, after(40), &policy()), Some(until));
    let again = next(&mut case, Input::Due, until, &policy());
    assert!(matches!(again[0], Next::Do(Effect::Announce(_))), "{again:?}");
    assert_eq!(case.entry.postponed_until(), None, "the recording itself does not wait");
}
