//! Once the end is known.

use super::*;

#[test]
fn the_way_of_a_recording_step_by_step() {
    let mut case = ended_as(order(), Destination::Account);
    let deliver = Effect::Deliver {
        attempt: 1,
        destination: Destination::Account,
    };
    assert_eq!(step(&mut case, Input::Received(audio(5000))), [deliver]);
    let stored = Announcement::Outcome(Outcome::Stored);
    assert_eq!(
        step(&mut case, Input::Fact(delivered(Destination::Account))),
        [
            Effect::Answer(Answer::Release),
            announce(Announcement::DocumentCreated),
            announce(stored)
        ]
    );
    step(&mut case, Input::Answered(Answer::Release));
    step(&mut case, Input::Fact(What::Announced(Announcement::DocumentCreated)));
    assert!(!case.entry.is_closed());
    assert!(step(&mut case, Input::Fact(What::Announced(stored))).is_empty());
    assert!(case.entry.is_closed());
    assert_eq!(case.entry.outcome(), Some((Outcome::Stored, Cause::Complete)));
    assert_eq!(due(&case.entry, after(1_000_000), &policy()), None);
}

#[test]
fn a_url_gets_its_document_first_and_it_is_completed_after() {
    let mut case = ended_as(order(), Destination::Url);
    let destination = Destination::Url;
    assert_eq!(
        step(&mut case, Input::Received(audio(5000))),
        [Effect::Document {
            attempt: 1,
            destination
        }]
    );
    let created = Announcement::DocumentCreated;
    assert_eq!(
        step(&mut case, Input::Fact(What::Documented(document()))),
        [announce(created)]
    );
    assert_eq!(
        step(&mut case, Input::Fact(What::Announced(created))),
        [Effect::Deliver {
            attempt: 1,
            destination
        }]
    );
    let uploaded = What::Uploaded {
        url: "https://h/x".into(),
        sha256: Some("1".into()),
    };
    assert_eq!(
        step(&mut case, Input::Fact(uploaded)),
        [Effect::Answer(Answer::Release)]
    );
    assert_eq!(
        step(&mut case, Input::Answered(Answer::Release)),
        [Effect::Complete {
            attempt: 1,
            destination
        }]
    );
    assert_eq!(
        step(&mut case, Input::Fact(delivered(destination))),
        [
            announce(Announcement::DocumentEdited),
            announce(Announcement::Outcome(Outcome::Delivered))
        ]
    );
}

#[test]
fn a_url_that_is_down_costs_no_audio_and_no_thread_of_the_switch() {
    let mut case = ended_as(order(), Destination::Url);
    step(&mut case, Input::Received(audio(5000)));
    step(&mut case, Input::Fact(What::Documented(document())));
    step(&mut case, Input::Fact(What::Announced(Announcement::DocumentCreated)));
    let down = failed(1, Destination::Url, DeliveryFailure::Target);
    assert_eq!(step(&mut case, Input::Fact(down)), [Effect::Hold]);
    assert_eq!(
        step(&mut case, Input::Fact(holding())),
        [Effect::Answer(Answer::Release)]
    );
    let waiting = step(&mut case, Input::Answered(Answer::Release));
    let [Next::Wait(until)] = waiting[..] else {
        panic!("{waiting:?}")
    };
    let again = next(&mut case, Input::Due, until, &policy());
    assert_eq!(
        again,
        [Effect::Deliver {
            attempt: 2,
            destination: Destination::Url
        }],
        "from the hold"
    );
    let uploaded = What::Uploaded {
        url: "https://h/x".into(),
        sha256: Some("1".into()),
    };
    next(&mut case, Input::Fact(uploaded), until, &policy());
    let settled = next(&mut case, Input::Fact(delivered(Destination::Url)), until, &policy());
    assert_eq!(settled.last(), Some(&Next::Do(Effect::Unhold)));
}

#[test]
fn a_hold_that_does_not_take_it_leaves_the_file_on_the_switch() {
    let mut case = ended_as(order(), Destination::ThirdParty);
    step(&mut case, Input::Received(audio(5000)));
    let down = failed(1, Destination::ThirdParty, DeliveryFailure::Target);
    assert_eq!(step(&mut case, Input::Fact(down)), [Effect::Hold]);
    assert_eq!(step(&mut case, Input::HoldRefused), [Effect::Answer(Answer::Keep)]);
    let waiting = step(&mut case, Input::Answered(Answer::Release));
    assert!(matches!(waiting[..], [Next::Wait(_)]), "{waiting:?}");
    assert_eq!(next(&mut case, Input::Due, after(60), &policy()), [collect(2)]);
}

#[test]
fn a_database_that_is_down_keeps_the_file_on_the_switch() {
    let mut case = ended_as(order(), Destination::Account);
    step(&mut case, Input::Received(audio(5000)));
    let down = failed(1, Destination::Account, DeliveryFailure::Target);
    assert_eq!(step(&mut case, Input::Fact(down)), [Effect::Answer(Answer::Keep)]);
    let waiting = step(&mut case, Input::Answered(Answer::Release));
    let [Next::Wait(until)] = waiting[..] else {
        panic!("{waiting:?}")
    };
    let pause = until.since(NOW).as_secs_f64();
    assert!((4.0..=6.0).contains(&pause), "{pause}");
    assert_eq!(next(&mut case, Input::Due, until, &policy()), [collect(2)]);
}

#[test]
fn a_target_that_refuses_parks_it_with_its_audio_held() {
    let mut case = ended_as(order(), Destination::Account);
    step(&mut case, Input::Received(audio(5000)));
    let refused = failed(1, Destination::Account, DeliveryFailure::Refused);
    assert_eq!(step(&mut case, Input::Fact(refused)), [Effect::Hold]);
    let settled = step(&mut case, Input::Fact(holding()));
    assert_eq!(case.entry.parked(), Some(Cause::Refused));
    assert_eq!(
        settled,
        [
            Effect::Answer(Answer::Release),
            announce(Announcement::Outcome(Outcome::Parked))
        ]
    );
    step(&mut case, Input::Answered(Answer::Release));
    assert!(
        step(
            &mut case,
            Input::Fact(What::Announced(Announcement::Outcome(Outcome::Parked)))
        )
        .is_empty()
    );
    assert!(!case.entry.is_closed());
    let retry = case.entry.retry();
    let moved_on = next(&mut case, Input::Fact(retry), after(9), &policy());
    assert_eq!(moved_on, [Effect::Decide]);
}

#[test]
fn attempts_end_at_their_number_and_begin_anew_when_somebody_says_so() {
    let mut case = ended_as(order(), Destination::Account);
    for attempt in 1..=12 {
        assert_eq!(case.entry.parked(), None, "{attempt}");
        let what = What::CollectFailed {
            attempt,
            failure: CollectFailure::Unreachable,
            why: "x".into(),
        };
        next(&mut case, Input::Fact(what), after(u64::from(attempt) * 100), &policy());
    }
    assert_eq!(case.entry.parked(), Some(Cause::NotCollected));
    let retry = case.entry.retry();
    let again = next(&mut case, Input::Fact(retry), after(5000), &policy());
    assert_eq!(again, [Effect::Decide]);
    assert_eq!(case.entry.next_attempt(), 13);
}

#[test]
fn a_pause_that_the_target_asks_for_is_kept() {
    let mut case = ended_as(order(), Destination::Url);
    step(&mut case, Input::Received(audio(5000)));
    step(&mut case, Input::Fact(What::Documented(document())));
    step(&mut case, Input::Fact(What::Announced(Announcement::DocumentCreated)));
    let busy = What::DeliveryFailed {
        attempt: 1,
        destination: Destination::Url,
        failure: DeliveryFailure::Target,
        why: "429".into(),
        retry_after_s: Some(900),
    };
    step(&mut case, Input::Fact(busy));
    step(&mut case, Input::Fact(holding()));
    assert_eq!(
        step(&mut case, Input::Answered(Answer::Release)),
        [Next::Wait(after(900))]
    );
}

#[test]
fn a_file_that_cannot_be_opened_is_asked_for_all_day_and_then_rests() {
    let mut case = ended_as(order(), Destination::Account);
    for attempt in 1..=12 {
        assert_eq!((case.entry.outcome(), case.entry.parked()), (None, None));
        let what = What::CollectFailed {
            attempt,
            failure: CollectFailure::Missing,
            why: "no file".into(),
        };
        next(&mut case, Input::Fact(what), after(u64::from(attempt) * 100), &policy());
    }
    assert_eq!(
        (case.entry.outcome(), case.entry.parked()),
        (None, Some(Cause::NotCollected))
    );
    // An operator who has repaired the switch retries it.
    let retried = case.entry.retry();
    assert_eq!(
        next(&mut case, Input::Fact(retried), after(9_000), &policy()),
        [Effect::Decide]
    );
}

#[test]
fn too_short_is_what_the_audio_says_not_what_a_channel_variable_says() {
    let short = Order { min_sec: 6, ..order() };
    // The switch reported 5 s, the audio has 7.
    let mut case = ended_as(short.clone(), Destination::Account);
    assert!(matches!(
        step(&mut case, Input::Received(audio(7000)))[..],
        [Next::Do(Effect::Deliver { .. })]
    ));
    let mut case = ended_as(short.clone(), Destination::Account);
    let settled = step(&mut case, Input::Received(audio(5000)));
    assert_eq!(case.entry.outcome(), Some((Outcome::Discarded, Cause::TooShort)));
    assert_eq!(settled[0], Effect::Answer(Answer::Release), "the switch may delete it");
    // A file that is shorter than the switch reported has lost audio: that is stored, with its finding.
    let mut case = started(short.clone());
    step(&mut case, Input::Fact(What::Ended(told(60_000))));
    step(&mut case, decided(Destination::Account));
    assert!(matches!(
        step(&mut case, Input::Received(audio(1000)))[..],
        [Next::Do(Effect::Deliver { .. })]
    ));
    // A switch that enforces the minimum itself has no file any more.
    let mut case = ended_as(short.clone(), Destination::Account);
    for attempt in 1..=3 {
        assert_eq!(
            case.entry.outcome(),
            None,
            "that a file cannot be opened can be so for now"
        );
        let missing = What::CollectFailed {
            attempt,
            failure: CollectFailure::Missing,
            why: "no file".into(),
        };
        step(&mut case, Input::Fact(missing));
    }
    assert_eq!(case.entry.outcome(), Some((Outcome::Discarded, Cause::TooShort)));
    // Audio that cannot be counted is kept: the reported length may belong to another recording.
    let mut case = ended_as(short.clone(), Destination::Account);
    let uncounted = Audio {
        duration_ms: None,
        ..audio(0)
    };
    assert!(matches!(
        step(&mut case, Input::Received(uncounted.clone()))[..],
        [Next::Do(Effect::Deliver { .. })]
    ));
    let mut case = ended_as(short, Destination::Account);
    step(&mut case, Input::Received(Audio { size: 0, ..uncounted }));
    assert_eq!(case.entry.outcome(), Some((Outcome::Discarded, Cause::TooShort)));
}

#[test]
fn storing_disabled_leaves_the_file_alone() {
    let mut case = started(order());
    step(&mut case, Input::Fact(What::Ended(told(5000))));
    let decision = What::Concluded {
        outcome: Outcome::Discarded,
        cause: Cause::StoringDisabled,
    };
    assert_eq!(
        step(&mut case, Input::Fact(decision)),
        [announce(Announcement::Outcome(Outcome::Discarded))]
    );
}

#[test]
fn an_ending_that_is_told_twice_changes_nothing() {
    let mut case = started(order());
    step(&mut case, Input::Fact(What::Ended(told(5000))));
    let before = case.clone();
    assert_eq!(
        next(&mut case, Input::Fact(What::Ended(told(5000))), after(9), &policy()),
        [Effect::Decide]
    );
    assert_eq!(case, before);
}

#[test]
fn what_other_workers_know_counts() {
    let mut stale = ended_as(order(), Destination::Account);
    let mut other = stale.clone();
    step(&mut other, Input::Received(audio(5000)));
    let missing = |attempt| {
        Input::Fact(What::CollectFailed {
            attempt,
            failure: CollectFailure::Missing,
            why: "no such file".into(),
        })
    };
    // The other worker released the switch's file.
    for attempt in 1..=12 {
        step(&mut stale, missing(attempt));
    }
    assert_eq!(stale.entry.parked(), Some(Cause::NotCollected));
    let announcing = [Effect::Announce(Announcement::Outcome(Outcome::Parked))];
    assert_eq!(step(&mut stale, Input::Due), announcing);
    step(&mut other, Input::Fact(delivered(Destination::Account)));
    let effects = step(&mut stale, Input::Known(Box::new(other.entry.clone())));
    assert_eq!(stale.entry.outcome(), Some((Outcome::Stored, Cause::Complete)));
    assert!(!effects.contains(&Next::Do(announcing[0].clone())), "{effects:?}");
}

#[test]
fn a_length_is_compared_with_what_is_told_when_the_audio_comes() {
    let mut case = ended_as(order(), Destination::Account);
    let mut long = audio(5000);
    long.findings = vec![crate::recording::audio::Finding::LongerThanTold];
    step(&mut case, Input::Received(long));
    assert_eq!(case.entry.audio().map(Audio::is_suspect), Some(false));
}

#[test]
fn a_file_that_is_written_again_stays_though_its_audio_is_safe() {
    let mut begins_again = order();
    if let Some(command) = &mut begins_again.command {
        command.trigger = Trigger::Bridge;
    }
    let mut case = ended_as(begins_again, Destination::Account);
    step(&mut case, Input::Received(audio(5000)));
    let mut again = told(0);
    (again.at, again.stamp) = (after(9), Some(after(9).unix_micros()));
    step(&mut case, Input::Fact(delivered(Destination::Account)));
    let effects = next(&mut case, Input::Fact(What::Started(again)), after(9), &policy());
    assert_eq!(effects[0], Effect::Answer(Answer::Keep));
    assert!(effects.contains(&Next::Do(Effect::Continue)), "{effects:?}");
}

#[test]
fn a_file_that_is_not_the_recordings_is_never_asked_for() {
    let with = |path: &str| {
        let mut told = told(5000);
        told.path = Some(path.to_owned());
        Input::Fact(What::Ended(told))
    };
    for forged in [
        "/etc/passwd",
        "/tmp/../etc/shadow",
        &format!("/x/../tmp/{}", order().file_name),
    ] {
        let mut case = asked(order());
        step(&mut case, Input::Fact(What::Commanded));
        step(&mut case, with(forged));
        let effects = step(&mut case, decided(Destination::Account));
        assert_eq!(effects, [collect(1)], "where it was ordered to be, not {forged}");

        // Nor if the ordered path is unknown.
        let mut case = asked(Order {
            command: None,
            ..order()
        });
        let effects = step(&mut case, with(forged));
        assert_eq!(case.entry.outcome(), Some((Outcome::Failed, Cause::FileGone)));
        assert!(!effects.iter().any(|effect| matches!(
            effect,
            Next::Do(Effect::Collect { .. } | Effect::Probe { .. } | Effect::Tidy { .. })
        )));

        // An order that is forged together with the path does not help the attacker.
        let mut order = order();
        order.file_name = "passwd".into();
        let mut case = asked(order);
        let effects = step(&mut case, with("/etc/passwd"));
        assert!(
            !effects
                .iter()
                .any(|effect| matches!(effect, Next::Do(Effect::Collect { .. })))
        );
    }
}

#[test]
fn a_continuation_asks_for_the_file_of_the_recording_that_it_goes_on_from() {
    let mut case = started(order().continuation());
    step(&mut case, Input::Fact(What::Ended(told(5000))));
    assert_ne!(case.entry.key, order().key);
    assert_eq!(super::source(&case.entry), Some(("freeswitch@fs1", path().as_str())));
}
