//! Each row of the table of endings: what leads to it, and its notice.

use crate::entry::fact::KazooCopy;
use crate::recording::audio::Finding;

use super::*;

#[test]
fn every_ending_of_the_table_is_reached_and_told() {
    for outcome in Outcome::ALL {
        for cause in outcome.causes() {
            let (case, then) = led_to(outcome, *cause);
            let reached = match outcome {
                Outcome::Parked => case.entry.parked().map(|cause| (Outcome::Parked, cause)),
                _ => case.entry.outcome(),
            };
            assert_eq!(reached, Some((outcome, *cause)), "{outcome}/{cause}");
            let told = Next::Do(announce(Announcement::Outcome(outcome)));
            assert!(then.contains(&told), "{outcome}/{cause}: {then:?}");
        }
    }
}

/// What happens to a recording that ends like this, and what is to be done then.
fn led_to(outcome: Outcome, cause: Cause) -> (Case, Vec<Next>) {
    match cause {
        Cause::Complete => kept(outcome, audio(5000)),
        Cause::SuspectAudio => {
            let findings = vec![Finding::HeaderOnly];
            kept(
                outcome,
                Audio {
                    findings,
                    ..audio(5000)
                },
            )
        }
        Cause::Deleted if outcome == Outcome::Discarded => {
            settled(watched::waiting(watched::kazoos()), What::Concluded { outcome, cause })
        }
        Cause::NotStoredByKazoo => {
            let mut case = watched::waiting(watched::kazoos());
            let then = step(&mut case, watched::sought(2, KazooCopy::Missing, true));
            (case, then)
        }
        Cause::Deleted => {
            let destination = match outcome {
                Outcome::Delivered => Destination::Url,
                _ => Destination::Account,
            };
            let mut case = ended_as(order(), destination);
            let What::Delivered(mut found) = delivered(destination) else {
                unreachable!()
            };
            (found.deleted, found.audio) = (true, Some(audio(5000)));
            let then = step(&mut case, Input::Fact(What::Delivered(found)));
            (case, then)
        }
        Cause::StoringDisabled
        | Cause::DiscardedByOperator
        | Cause::RetentionOver
        | Cause::AlreadyKept
        | Cause::StoredByKazoo => {
            let mut case = started(order());
            step(&mut case, Input::Fact(What::Ended(told(5000))));
            settled(case, What::Concluded { outcome, cause })
        }
        Cause::TooShort => {
            let order = Order { min_sec: 6, ..order() };
            let mut case = ended_as(order, Destination::Account);
            let then = step(&mut case, Input::Received(audio(5000)));
            (case, then)
        }
        Cause::NeverTriggered => {
            let mut order = order();
            order.command.as_mut().unwrap().trigger = Trigger::Answer;
            silent(order, &[])
        }
        Cause::NeverStarted => silent(order(), &[]),
        Cause::StartRefused => {
            let why = "no such application".into();
            silent(order(), &[What::CommandRefused { why }])
        }
        Cause::CallGone => {
            let why = "no route".into();
            let mut case = asked(order());
            step(&mut case, Input::Fact(What::CommandLost { why }));
            let then = step(&mut case, Input::Fact(What::ChannelSeen { n: 1, alive: false }));
            (case, then)
        }
        Cause::FileGone => {
            // The path where it should be is unknown.
            let mut case = asked(Order {
                command: None,
                ..order()
            });
            let mut end = told(5000);
            end.path = None;
            let then = step(&mut case, Input::Fact(What::Ended(end)));
            (case, then)
        }
        Cause::NoAccount => {
            let account_id = None;
            let mut case = started(Order { account_id, ..order() });
            let then = step(&mut case, Input::Fact(What::Ended(told(5000))));
            (case, then)
        }
        Cause::UnknownAccount => refused(Destination::Account, DeliveryFailure::NoAccount),
        Cause::Refused => refused(Destination::Account, DeliveryFailure::Refused),
        Cause::UnusableUrl => refused(Destination::Url, DeliveryFailure::Unusable),
        Cause::UrlExpired => refused(Destination::Url, DeliveryFailure::UrlExpired),
        Cause::SettingsLost => refused(Destination::Url, DeliveryFailure::Lost),
        Cause::NoStoreProxy => refused(Destination::StoragePlan, DeliveryFailure::NoProxy),
        Cause::Unreachable => failing(12, |attempt| {
            failed(attempt, Destination::ThirdParty, DeliveryFailure::Target)
        }),
        Cause::PlanRefused => failing(12, |attempt| {
            failed(attempt, Destination::StoragePlan, DeliveryFailure::Plan)
        }),
        Cause::NotCollected => failing(12, |attempt| collect_failed(attempt, CollectFailure::Unreachable)),
        Cause::ProgramFault => {
            let mut case = ended_as(order(), Destination::Account);
            let mut then = Vec::new();
            for n in 1..=12 {
                let what = What::Panicked { n, why: "x".into() };
                then = next(&mut case, Input::Fact(what), after(u64::from(n) * 100_000), &policy());
            }
            (case, then)
        }
        Cause::SharedName => {
            let mut case = started(shared());
            step(&mut case, Input::Fact(What::Ended(told(5000))));
            step(&mut case, Input::Received(audio(5000)));
            let digests = audio(5000).digests;
            let (place, name, size) = ("hold".into(), "a".into(), 7);
            let holding = Holding {
                place,
                name,
                size,
                digests,
            };
            settled(case, What::Held { n: 1, holding })
        }
        Cause::Undecided => undecided(),
    }
}

fn settled(mut case: Case, what: What) -> (Case, Vec<Next>) {
    let then = step(&mut case, Input::Fact(what));
    (case, then)
}

fn kept(outcome: Outcome, audio: Audio) -> (Case, Vec<Next>) {
    let destination = match outcome {
        Outcome::Delivered => Destination::Url,
        _ => Destination::Account,
    };
    let mut case = ended_as(order(), destination);
    step(&mut case, Input::Received(audio));
    settled(case, delivered(destination))
}

/// No other event arrives, however long the test waits. Its file is missing, and its channel is gone.
fn silent(order: Order, heard: &[What]) -> (Case, Vec<Next>) {
    let mut case = asked(order);
    step(&mut case, Input::Fact(What::Commanded));
    let mut then = Vec::new();
    for what in heard {
        then = step(&mut case, Input::Fact(what.clone()));
    }
    for minute in 1..240 {
        if case.entry.outcome().is_some() {
            break;
        }
        let now = after(60 * minute);
        then = next(&mut case, Input::Due, now, &policy());
        let what = match then.first() {
            Some(Next::Do(Effect::LookForChannel { n })) => What::ChannelSeen { n: *n, alive: false },
            Some(Next::Do(Effect::Probe { attempt, .. })) => collect_failed(*attempt, CollectFailure::Missing),
            _ => continue,
        };
        then = next(&mut case, Input::Fact(what), now, &policy());
    }
    (case, then)
}

/// This many attempts fail in this way.
fn failing(times: u32, failure: impl Fn(u32) -> What) -> (Case, Vec<Next>) {
    let mut case = ended_as(order(), Destination::ThirdParty);
    let mut then = Vec::new();
    for attempt in 1..=times {
        assert_eq!((case.entry.outcome(), case.entry.parked()), (None, None));
        then = next(
            &mut case,
            Input::Fact(failure(attempt)),
            after(u64::from(attempt)),
            &policy(),
        );
    }
    (case, then)
}

fn collect_failed(attempt: u32, failure: CollectFailure) -> What {
    let why = "x".into();
    What::CollectFailed { attempt, failure, why }
}

/// The destination refuses it, and the hold keeps it.
fn refused(destination: Destination, failure: DeliveryFailure) -> (Case, Vec<Next>) {
    let mut case = ended_as(order(), destination);
    step(&mut case, Input::Received(audio(5000)));
    let then = step(&mut case, Input::Fact(failed(1, destination, failure)));
    assert_eq!(then, [Effect::Hold], "{failure:?}");
    settled(case, holding())
}

/// Its destination stays undecided until the whole retry schedule has passed.
fn undecided() -> (Case, Vec<Next>) {
    let policy = Policy {
        hold: false,
        ..policy()
    };
    let mut case = started(order());
    step(&mut case, Input::Fact(What::Ended(told(5000))));
    let mut then = Vec::new();
    for n in 1..100 {
        if case.entry.parked().is_some() {
            break;
        }
        let (now, until) = (after(u64::from(n) * 10), after(u64::from(n) * 10 + 10));
        let why = "unread".into();
        then = next(&mut case, Input::Fact(What::Postponed { n, until, why }), now, &policy);
    }
    (case, then)
}
