//! An example of each kind of fact.

use crate::entry::webhooks::{Attempted, Given, Owed, Refused};

use super::*;

fn notice(n: u32) -> Given {
    Given {
        endpoint: "a".into(),
        n,
        id: format!("x{n}"),
    }
}

/// A fact of the kind at this position in the list of kinds.
pub(super) fn what(kind: usize, n: u32, on: bool) -> What {
    let why = || format!("x{n}");
    let destination = Destination::ALL[n as usize % 4];
    let (outcome, cause) = [
        (Outcome::Failed, Cause::FileGone),
        (Outcome::Discarded, Cause::TooShort),
    ][usize::from(on)];
    match What::KINDS[kind] {
        "asked" => What::Asked(order()),
        "commanded" => What::Commanded,
        "command_lost" => What::CommandLost { why: why() },
        "command_refused" => What::CommandRefused { why: why() },
        "started" => What::Started(told(n)),
        "stop_asked" => What::StopAsked {
            action: why(),
            route: on.then(route),
        },
        "stop_delayed" => What::StopDelayed {
            action: why(),
            asked: Moment::from_unix_micros(1_000_000 * i64::from(n)),
        },
        "stop_sent" => What::StopSent { n, start: None },
        "stop_unconfirmed" => What::StopUnconfirmed,
        "heard_of" => What::HeardOf { media_id: why() },
        "mask_asked" => What::MaskAsked {
            action: why(),
            on,
            route: (n.is_multiple_of(2)).then(route),
            asked: None,
        },
        "masked" => What::Masked {
            action: why(),
            on,
            n,
            start: None,
            sender: None,
        },
        "not_obeyed" => What::NotObeyed {
            action: why(),
            what: [Control::Stop, Control::Mask][usize::from(on)],
            why: Why::ALL[n as usize % Why::ALL.len()],
        },
        "intended" => What::Intended {
            action: why(),
            on,
            asked: None,
        },
        "returned" => What::Returned {
            what: [Control::Stop, Control::Mask][usize::from(on)],
            action: why(),
            n,
        },
        "amended" => What::Amended {
            n,
            controls: why(),
            unsaid: on.then(why),
        },
        "channel_seen" => What::ChannelSeen { n, alive: on },
        "leg" => What::Leg(Box::new(Leg {
            call_id: (n % 5).to_string(),
            event: [LegEvent::Action, LegEvent::Bridged][usize::from(on)],
            other: on.then(|| (n % 4).to_string()),
            control: None,
            was_answered: on.then_some(n.is_multiple_of(2)),
            stamp: on.then(|| at(i64::from(n)).unix_micros()),
        })),
        "probed" => What::Probed {
            n,
            size: u64::from(n % 3),
            md5: (n % 3).to_string(),
            open: on,
        },
        "watched" => What::Watched { due: at(i64::from(n)) },
        "sought" => What::Sought {
            n,
            found: KazooCopy::ALL[n as usize % KazooCopy::ALL.len()],
            last: on,
        },
        "ended" => What::Ended(told(n)),
        "presumed_ended" => What::PresumedEnded(told(n)),
        "decided" => What::Decided {
            n,
            destination,
            attempts: on.then_some(n),
        },
        "postponed" => What::Postponed {
            n,
            until: at(i64::from(n)),
            why: why(),
        },
        "collect_failed" => What::CollectFailed {
            attempt: n,
            failure: [CollectFailure::Broken, CollectFailure::Missing][usize::from(on)],
            why: why(),
        },
        "collected" => What::Collected(Audio {
            size: u64::from(n),
            digests: digests(n % 4),
            duration_ms: on.then_some(u64::from(n) * 500),
            findings: vec![],
            as_written: on.then(|| digests(n % 2)),
        }),
        "held" => What::Held {
            n,
            holding: Holding {
                place: "hold".into(),
                name: (n % 3).to_string(),
                size: u64::from(n),
                digests: digests(n % 4),
            },
        },
        "documented" => What::Documented(document(n)),
        "uploaded" => What::Uploaded {
            url: "https://h/".into(),
            sha256: on.then(|| (n % 4).to_string()),
        },
        "object_stored" => What::ObjectStored(Box::new(StoredObject::example(n, why()))),
        "delivery_failed" => What::DeliveryFailed {
            attempt: n,
            destination,
            failure: [DeliveryFailure::Target, DeliveryFailure::Refused][usize::from(on)],
            why: why(),
            retry_after_s: on.then_some(u64::MAX),
        },
        "delivered" => What::delivered(Delivery {
            destination,
            document: document(n % 2),
            sha256: Some((n % 4).to_string()),
            below_quorum: on,
            audio: None,
            deleted: false,
            edit_told: false,
            controls: on.then(why),
            again: 0,
        }),
        "looked" => What::Looked {
            n,
            why: on.then(why),
            unanswered: false,
            deleted: false,
        },
        "parked" => What::Parked {
            n,
            cause: Cause::Refused,
            ends: Some(2),
        },
        "marked" => What::Marked { n },
        "retried" => What::Retried {
            n,
            since: on.then_some(Since {
                attempt: n,
                postponed: n,
                panicked: n,
            }),
        },
        "panicked" => What::Panicked { n, why: why() },
        "concluded" => What::Concluded { outcome, cause },
        "announced" => {
            What::Announced([Announcement::DocumentCreated, Announcement::Outcome(outcome)][usize::from(on)])
        }
        "rest_announced" => What::RestAnnounced { n },
        "cause_announced" => What::CauseAnnounced { cause: Cause::TooShort },
        "unheld" => What::Unheld { n },
        "released" => What::Released { n },
        "tidied" => What::Tidied {
            n,
            left: on.then(why),
            missing: n.is_multiple_of(3),
        },
        "separated" => What::Separated {
            name: (n % 3).to_string(),
        },
        "continued" => What::Continued { told: n },
        "webhooks_owed" => What::WebhooksOwed(Box::new(Owed {
            n,
            id: why(),
            outcome,
            cause,
            endpoints: vec![notice(n).endpoint, "b".into()],
        })),
        "webhook_sent" => What::WebhookSent(notice(n)),
        "webhook_failed" => What::WebhookFailed(Refused {
            notice: notice(1),
            attempt: n,
            why: why(),
            retry_after_s: on.then_some(30),
        }),
        "webhook_parked" => What::WebhookParked(Attempted {
            notice: notice(1),
            attempt: n,
        }),
        "webhook_retried" => What::WebhookRetried(Attempted {
            notice: notice(1),
            attempt: n,
        }),
        "closed" => What::Closed,
        other => panic!("{other} is not drawn"),
    }
}
