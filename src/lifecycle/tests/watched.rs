//! Recordings that Kazoo's own recorder is to store, and that a worker watches.

use crate::entry::fact::KazooCopy;
use crate::lifecycle::watched::unanswered;

use super::*;

const DUE: u64 = 12_300;

/// The order of one of Kazoo's own recordings.
pub(super) fn kazoos() -> Order {
    let mut order = shared();
    order.adopted.as_mut().unwrap().shared_name = false;
    order
}

/// Not stored at the first look.
pub(super) fn waiting(order: Order) -> Case {
    let mut case = asked(order);
    let facts = [
        What::Ended(told(5000)),
        What::Watched { due: after(DUE) },
        What::Sought {
            n: 1,
            found: KazooCopy::Missing,
            last: false,
        },
    ];
    for what in facts {
        case.entry.add(Fact {
            at: NOW,
            by: "w".into(),
            what,
        });
    }
    assert_eq!(State::of(&case.entry), State::Watched);
    case
}

pub(super) fn sought(n: u32, found: KazooCopy, last: bool) -> Input {
    Input::Fact(What::Sought { n, found, last })
}

fn rescuing() -> Policy {
    Policy {
        rescue: true,
        ..policy()
    }
}

/// Lost, as far as `found` tells, by a worker that stores what is lost.
fn lost(order: Order, found: KazooCopy) -> (Case, Vec<Next>) {
    let mut case = waiting(order);
    let then = next(&mut case, sought(2, found, true), after(DUE), &rescuing());
    (case, then)
}

#[test]
fn a_recording_is_looked_for_again_until_kazoo_tries_no_more() {
    let mut case = waiting(kazoos());
    let mut times = Vec::new();
    let mut now = NOW;
    for n in 2.. {
        let wait = super::super::step(&mut case, Input::Due, now, &rescuing());
        let Next::Wait(until) = wait else { panic!("{wait:?}") };
        times.push(until.since(NOW).as_secs() / 60);
        now = until;
        let last = now >= after(DUE);
        let look = super::super::step(&mut case, Input::Due, now, &rescuing());
        assert_eq!(look, Next::Do(Effect::SeekCopy { n, last }));
        assert_eq!(due(&case.entry, now, &rescuing()), Some(now));
        if last {
            break;
        }
        let then = super::super::step(&mut case, sought(n, KazooCopy::Missing, false), now, &rescuing());
        assert!(matches!(then, Next::Wait(_)), "{then:?}");
        assert_eq!(State::of(&case.entry), State::Watched);
    }
    assert_eq!(times, [5, 15, 25, 60, 120, 180, 205]);
}

#[test]
fn a_database_that_does_not_answer_says_nothing_about_a_recording() {
    let mut case = waiting(kazoos());
    let until = after(DUE + 60);
    let why = "no answer".into();
    let what = What::Postponed { n: 1, until, why };
    assert_eq!(
        next(&mut case, Input::Fact(what), after(DUE), &rescuing()),
        [Next::Wait(until)]
    );
    let then = next(&mut case, Input::Due, until, &rescuing());
    assert_eq!(then, [Effect::SeekCopy { n: 2, last: true }]);
}

/// For example the plan of an account names a server that no worker may ask.
#[test]
fn looks_that_are_never_answered_end_as_lost_and_never_as_a_rescue() {
    let mut case = waiting(kazoos());
    for n in 1..=5 {
        assert_eq!(unanswered(&case.entry, 2, true), None, "{n}");
        let (until, why) = (after(DUE), "no answer".into());
        next(
            &mut case,
            Input::Fact(What::Postponed { n, until, why }),
            after(60),
            &rescuing(),
        );
    }
    assert_eq!(
        unanswered(&case.entry, 2, false),
        None,
        "Kazoo's own recorder still tries"
    );
    let what = unanswered(&case.entry, 2, true).unwrap();
    let then = next(&mut case, Input::Fact(what), after(DUE), &rescuing());
    assert_eq!(case.entry.parked(), Some(Cause::NotStoredByKazoo));
    assert_eq!(State::of(&case.entry), State::Lost);
    assert_eq!(then, [announce(Announcement::Outcome(Outcome::Parked))]);
}

/// They were looks at Kazoo's database, and not attempts to store.
#[test]
fn postponements_of_looks_do_not_park_a_rescue_before_its_first_attempt() {
    let mut case = waiting(kazoos());
    let long_ago = after(60);
    for n in [1, 2] {
        let (until, why) = (long_ago, "no answer".into());
        next(
            &mut case,
            Input::Fact(What::Postponed { n, until, why }),
            long_ago,
            &rescuing(),
        );
    }
    let now = long_ago.plus(rescuing().whole()).plus(Duration::from_secs(86_400));
    let then = next(&mut case, sought(2, KazooCopy::Missing, true), now, &rescuing());
    assert_eq!(then, [Effect::Decide]);
    assert_eq!(case.entry.parked(), None);
}

/// media_mgr writes into the database of the month of the end, and the worker into the one of the id.
#[test]
fn a_document_of_kazoos_in_another_database_is_not_the_one_that_is_announced() {
    let (mut case, then) = lost(kazoos(), KazooCopy::NoAudioElsewhere);
    assert_eq!(then, [Effect::Decide]);
    next(&mut case, decided(Destination::Account), after(DUE), &rescuing());
    next(&mut case, Input::Received(audio(5000)), after(DUE), &rescuing());
    let what = delivered(Destination::Account);
    next(&mut case, Input::Fact(what), after(DUE), &rescuing());
    let open: Vec<Announcement> = case.entry.open_announcements().collect();
    let told = [Announcement::DocumentCreated, Announcement::Outcome(Outcome::Stored)];
    assert_eq!(open, told);
}

#[test]
fn a_lost_recording_is_reported_and_its_file_is_not_asked_for() {
    let mut case = waiting(kazoos());
    let then = next(&mut case, sought(2, KazooCopy::NoAudio, true), after(DUE), &policy());
    assert_eq!(case.entry.parked(), Some(Cause::NotStoredByKazoo));
    assert_eq!(State::of(&case.entry), State::Lost);
    assert_eq!(then, [announce(Announcement::Outcome(Outcome::Parked))]);
    // An operator has it stored.
    let retried = case.entry.retry();
    let then = next(&mut case, Input::Fact(retried), after(DUE), &policy());
    assert_eq!(then, [Effect::Decide]);
}

#[test]
fn a_lost_recording_is_rescued_as_if_it_were_our_own() {
    for found in [KazooCopy::Missing, KazooCopy::NoAudio] {
        let (mut case, then) = lost(kazoos(), found);
        assert_eq!(then, [Effect::Decide]);
        assert_eq!(
            next(&mut case, decided(Destination::Account), after(DUE), &rescuing()),
            [collect(1)]
        );
        next(&mut case, Input::Received(audio(5000)), after(DUE), &rescuing());
        next(
            &mut case,
            Input::Fact(delivered(Destination::Account)),
            after(DUE),
            &rescuing(),
        );
        // Views and caches know Kazoo's own document already.
        let told = match found {
            KazooCopy::Missing => Announcement::DocumentCreated,
            _ => Announcement::DocumentEdited,
        };
        let open: Vec<Announcement> = case.entry.open_announcements().collect();
        assert_eq!(open, [told, Announcement::Outcome(Outcome::Stored)]);
    }
}

#[test]
fn what_cannot_be_rescued_safely_is_reported_and_never_fetched() {
    let lost_url = |order: Order| Order {
        url: Url::Lost,
        ..order
    };
    for (order, found, cause) in [
        (shared(), KazooCopy::Missing, Cause::SharedName),
        (shared(), KazooCopy::NoAudio, Cause::SharedName),
        (lost_url(kazoos()), KazooCopy::Missing, Cause::SettingsLost),
        (lost_url(kazoos()), KazooCopy::NoAudioForUrl, Cause::SettingsLost),
    ] {
        let (case, then) = lost(order, found);
        assert_eq!(case.entry.parked(), Some(cause));
        assert_eq!(State::of(&case.entry), State::Lost, "{cause}");
        assert_eq!(then, [announce(Announcement::Outcome(Outcome::Parked))], "{cause}");
    }
    let account_id = None;
    let (case, _) = lost(Order { account_id, ..kazoos() }, KazooCopy::Missing);
    assert_eq!(case.entry.parked(), Some(Cause::NoAccount));
    // Kazoo's document shows that its audio belongs into the database.
    let (_, then) = lost(lost_url(kazoos()), KazooCopy::NoAudio);
    assert_eq!(then, [Effect::Decide]);
}

/// The worker would write a document of its own beside Kazoo's.
#[test]
fn a_document_of_kazoos_whose_audio_goes_elsewhere_is_reported() {
    for destination in [Destination::Url, Destination::StoragePlan] {
        let (mut case, _) = lost(kazoos(), KazooCopy::NoAudioForUrl);
        next(&mut case, decided(destination), after(DUE), &rescuing());
        assert_eq!(case.entry.parked(), Some(Cause::NotStoredByKazoo), "{destination:?}");
        let (mut case, _) = lost(kazoos(), KazooCopy::Missing);
        assert_eq!(
            next(&mut case, decided(destination), after(DUE), &rescuing()),
            [collect(1)]
        );
    }
}

/// The operator changes `adopt.mode` while a worker stores a recording in place of Kazoo's own recorder.
#[test]
fn a_recording_whose_audio_a_worker_has_is_not_left_to_kazoo() {
    let mut case = started(kazoos());
    step(&mut case, Input::Fact(What::Ended(told(5000))));
    step(&mut case, decided(Destination::Account));
    step(&mut case, Input::Received(audio(5000)));
    let until = after(10);
    step(
        &mut case,
        Input::Fact(failed(1, Destination::Account, DeliveryFailure::Target)),
    );
    step(&mut case, Input::Answered(Answer::Keep));
    case.entry.add(Fact {
        at: NOW,
        by: "w".into(),
        what: What::Watched { due: after(DUE) },
    });
    let then = next(&mut case, Input::Due, until.plus(Duration::from_secs(3600)), &policy());
    assert_eq!(then, [collect(2)]);
    assert_eq!(case.entry.parked(), None);
}
