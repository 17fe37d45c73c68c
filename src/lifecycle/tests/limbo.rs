//! No recording is forgotten: a timer is due, or an outside event is awaited, or all is done.

use super::*;

/// Whether a worker resumes it without an outside event.
fn is_taken_up(case: &Case, now: Moment) -> bool {
    due(&case.entry, now, &policy()).is_some()
}

/// An entry whose effects are all done, or all fail, at whichever worker resumes it, until no timer is due.
fn lived_out(mut case: Case, mut now: Moment) -> Case {
    for _ in 0..200 {
        let Some(at) = due(&case.entry, now, &policy()) else {
            break;
        };
        now = now.max(at).plus(Duration::from_secs(1));
        let effects = next(&mut case, Input::Due, now, &policy());
        let what = match effects.first() {
            Some(Next::Do(Effect::LookForChannel { n })) => What::ChannelSeen { n: *n, alive: false },
            Some(Next::Do(Effect::Probe { attempt, .. } | Effect::Collect { attempt, .. })) => What::CollectFailed {
                attempt: *attempt,
                failure: CollectFailure::Missing,
                why: "x".into(),
            },
            Some(Next::Do(Effect::Decide)) => What::Decided {
                n: case.entry.next_number("retried"),
                destination: Destination::Account,
                attempts: None,
            },
            Some(Next::Do(Effect::Control { n, .. })) => What::StopSent { n: *n, start: None },
            Some(Next::Do(Effect::Deliver { attempt, destination } | Effect::Complete { attempt, destination })) => {
                failed(*attempt, *destination, DeliveryFailure::Target)
            }
            Some(Next::Do(Effect::Document { .. })) => What::Documented(document()),
            Some(Next::Do(Effect::Announce(announcement))) => What::Announced(*announcement),
            Some(Next::Do(Effect::Mark { n, .. })) => What::Marked { n: *n },
            Some(Next::Do(Effect::Unhold)) => What::Unheld {
                n: case.entry.next_number("held") - 1,
            },
            Some(Next::Do(Effect::ReadBack { n })) => looked(*n, None),
            Some(Next::Do(Effect::Tidy { n, .. })) => What::Tidied {
                n: *n,
                left: None,
                missing: false,
            },
            Some(Next::Do(Effect::Command)) => What::Commanded,
            _ => continue,
        };
        next(&mut case, Input::Fact(what), now, &policy());
    }
    case
}

#[test]
fn a_retry_never_leaves_a_recording_in_limbo() {
    for cause in Outcome::Parked.causes() {
        for held in [false, true] {
            let account_id = order().account_id.filter(|_| *cause != Cause::NoAccount);
            let mut entry = Entry::of_order(Order { account_id, ..order() }, "w");
            let mut second = 0;
            let mut add = |entry: &mut Entry, what| {
                second += 1;
                super::super::add(entry, what, after(second), &policy());
            };
            add(&mut entry, What::Commanded);
            add(&mut entry, What::Started(told(0)));
            add(&mut entry, What::Ended(told(5000)));
            if held {
                add(&mut entry, holding());
            }
            let parked = What::Parked {
                n: 1,
                cause: *cause,
                ends: None,
            };
            add(&mut entry, parked);
            add(&mut entry, What::Announced(Announcement::Outcome(Outcome::Parked)));
            let retry = entry.retry();
            add(&mut entry, retry);
            let mut case = Case {
                entry,
                hand: Hand::Empty,
                informed: true,
            };
            assert_eq!(
                State::of(&case.entry).name(),
                if held { "held" } else { "ended" },
                "{cause}"
            );
            assert!(is_taken_up(&case, after(100)), "{cause}: nobody takes it up");
            next(&mut case, Input::Due, after(100), &policy());
            let rests = case.entry.parked().is_some();
            assert!(rests || is_taken_up(&case, after(100)), "{cause}");
            assert_eq!(rests, *cause == Cause::NoAccount, "{cause}");
        }
    }
}

#[test]
fn an_entry_that_is_not_settled_is_always_due() {
    let nowhere = || Told {
        node: None,
        path: None,
        ..*told(0)
    };
    let elsewhere = || {
        let command = order().command.map(|command| Command { node: None, ..command });
        Order { command, ..order() }
    };
    let triggered = |trigger| {
        let command = order().command.map(|command| Command { trigger, ..command });
        Order { command, ..order() }
    };
    let carried = || Order {
        command: None,
        ..order()
    };
    let nobodys = || Order {
        account_id: None,
        ..order()
    };
    let orders = [
        order(),
        elsewhere(),
        triggered(Trigger::Answer),
        triggered(Trigger::Bridge),
        nobodys(),
        carried(),
    ];
    let below = || {
        let What::Delivered(mut delivery) = delivered(Destination::Account) else {
            unreachable!()
        };
        delivery.below_quorum = true;
        What::Delivered(delivery)
    };
    let started = || What::Started(told(0));
    let ended = || What::Ended(told(5000));
    let of = |destination| What::Decided {
        n: 1,
        destination,
        attempts: None,
    };
    let stories: Vec<Vec<What>> = vec![
        vec![],
        vec![What::Commanded],
        vec![What::Commanded, What::CommandRefused { why: "x".into() }],
        vec![What::Commanded, What::CommandLost { why: "x".into() }],
        vec![
            What::Commanded,
            What::StopAsked {
                action: "x".into(),
                route: None,
            },
        ],
        vec![started()],
        vec![What::Started(Box::new(nowhere()))],
        vec![
            started(),
            What::StopAsked {
                action: "x".into(),
                route: None,
            },
        ],
        vec![started(), ended()],
        vec![What::Started(Box::new(nowhere())), What::Ended(Box::new(nowhere()))],
        vec![started(), ended(), of(Destination::Account)],
        vec![started(), ended(), of(Destination::Url)],
        vec![started(), ended(), of(Destination::StoragePlan), holding()],
        vec![started(), ended(), holding()],
        vec![
            started(),
            ended(),
            of(Destination::Account),
            What::Documented(document()),
        ],
        vec![started(), ended(), of(Destination::Account), below()],
        vec![
            started(),
            ended(),
            of(Destination::Account),
            delivered(Destination::Account),
        ],
    ];
    for order in &orders {
        for story in &stories {
            let mut case = asked(order.clone());
            for (second, what) in (1..).zip(story) {
                next(&mut case, Input::Fact(what.clone()), after(second), &policy());
            }
            // If an order comes from a recording context, the event that made it known is its first fact.
            if order.command.is_none() && case.entry.started().is_none() {
                continue;
            }
            let told = format!("{:?} {story:?}", order.command);
            let case = lived_out(case, after(60));
            let settled = case.entry.parked().is_some() || case.entry.is_closed();
            assert!(
                settled,
                "{} and nobody comes back: {told}",
                State::of(&case.entry).name()
            );
        }
    }
}
