use std::time::Duration;

use crate::entry::cause::Outcome;
use crate::entry::fact::{Announcement, CollectFailure, Delivery, DeliveryFailure, Destination, Document, Holding};
use crate::kazoo::call::Parties;
use crate::kazoo::dialplan::{Control, Trigger};
use crate::recording::adopt::Adopted;
use crate::recording::audio::Audio;
use crate::recording::digest::Digests;
use crate::recording::format::Format;
use crate::recording::identity::{Key, MediaId};
use crate::recording::order::{Command, Order, Url};
use crate::recording::settings::Method;

use super::*;

mod bounded;
mod clocks;
mod controls;
mod copies;
mod ended;
mod endings;
mod holds;
mod limbo;
mod masks;
mod resting;
mod running;
mod silence;
mod skews;
mod stops;
mod watched;

const NOW: Moment = Moment::from_unix_seconds(1_795_386_262);

fn after(seconds: u64) -> Moment {
    NOW.plus(Duration::from_secs(seconds))
}

pub(crate) fn policy() -> Policy {
    Policy {
        worker: "w".into(),
        retry: vec![Duration::from_secs(5), Duration::from_secs(30)],
        jitter: 20,
        max_attempts: 12,
        hold: true,
        hold_pause: Duration::from_secs(60),
        hold_retention: None,
        looks: [60, 300, 900, 3600].map(Duration::from_secs).to_vec(),
        start_timeout: Duration::from_secs(30),
        check_interval: Duration::from_secs(300),
        grace: Duration::from_secs(60),
        probe_gap: Duration::from_secs(60),
        stop_repeats: [2, 5, 15].map(Duration::from_secs).to_vec(),
        stop_alarm: Duration::from_secs(30),
        rescue: false,
        hooks: Hooks::default(),
    }
}

pub(crate) fn order() -> Order {
    let key = Key::of("call", "action");
    Order {
        key,
        media_id: MediaId::derived(key, NOW),
        call_id: "call".into(),
        account_id: Some("4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4".into()),
        zone: "local".into(),
        file_name: format!("{key}.mp3"),
        media_name: format!("{key}.mp3"),
        format: Format::Mp3,
        origin: "callflow : desk".into(),
        method: Method::Put,
        url: Url::None,
        min_sec: 0,
        asked_at: NOW,
        parties: Parties::default(),
        continues: None,
        trace: None,
        adopted: None,
        command: Some(Command {
            control: "q".into(),
            fetch_id: None,
            trigger: Trigger::Now,
            time_limit: 600,
            follow_transfer: true,
            sample_rate: None,
            silence: None,
            stereo: true,
            carry: "c".into(),
            node: Some("freeswitch@fs1".into()),
            path: format!("/tmp/{key}.mp3"),
        }),
    }
}

/// The order of Kazoo's own recording, whose file may have another call's audio.
fn shared() -> Order {
    let adopted = Adopted {
        endpoint_id: None,
        at_bridges: false,
        time_limit: None,
        shared_name: true,
        kazoo_4: false,
        wanted: None,
        bowed_out: false,
        media_db: None,
        retry_times: None,
    };
    Order {
        command: None,
        adopted: Some(adopted),
        ..order()
    }
}

/// Where the switch records.
fn path() -> String {
    format!("/tmp/{}", order().file_name)
}

pub(crate) fn told(length_ms: u64) -> Box<Told> {
    Box::new(Told {
        call_id: "call".into(),
        at: NOW,
        stamp: None,
        node: Some("freeswitch@fs1".into()),
        path: Some(path()),
        length_ms: Some(length_ms),
        completion_cause: None,
        hung_up: None,
        account_id: None,
        other_leg_call_id: None,
        parties: Parties::default(),
        variables: serde_json::Value::Null,
    })
}

pub(crate) fn audio(duration_ms: u64) -> Audio {
    Audio {
        size: 7,
        digests: Digests {
            md5: "0".into(),
            sha256: "1".into(),
        },
        duration_ms: Some(duration_ms),
        findings: vec![],
        as_written: None,
    }
}

fn asked(order: Order) -> Case {
    Case {
        entry: Entry::of_order(order, "w"),
        hand: Hand::Empty,
        informed: true,
    }
}

fn started(order: Order) -> Case {
    let mut case = asked(order);
    step(&mut case, Input::Fact(What::Commanded));
    step(&mut case, Input::Fact(What::Started(told(0))));
    case
}

fn decided(destination: Destination) -> Input {
    Input::Fact(What::Decided {
        n: 1,
        destination,
        attempts: None,
    })
}

fn ended_as(order: Order, destination: Destination) -> Case {
    let mut case = started(order);
    assert_eq!(step(&mut case, Input::Fact(What::Ended(told(5000)))), [Effect::Decide]);
    assert_eq!(step(&mut case, decided(destination)), [collect(1)]);
    case
}

fn step(case: &mut Case, input: Input) -> Vec<Next> {
    next(case, input, NOW, &policy())
}

/// What must be done, and what would follow it; a wait comes last.
fn next(case: &mut Case, input: Input, now: Moment, policy: &Policy) -> Vec<Next> {
    let first = super::step(case, input, now, policy);
    let is_settled = case.entry.outcome().is_some() || case.entry.parked().is_some();
    if matches!(first, Next::Idle) {
        return Vec::new();
    }
    let mut all = vec![first];
    if is_settled {
        for owed in settled::owed(case, now, policy) {
            if matches!(owed, Next::Do(_)) && !all.contains(&owed) {
                all.push(owed);
            }
        }
    }
    all
}

impl PartialEq<Effect> for Next {
    fn eq(&self, effect: &Effect) -> bool {
        matches!(self, Self::Do(own) if own == effect)
    }
}

fn collect(attempt: u32) -> Effect {
    Effect::Collect {
        attempt,
        node: "freeswitch@fs1".into(),
        path: path(),
    }
}

pub(crate) fn document() -> Document {
    Document {
        id: order().media_id,
        database: "db".into(),
        rev: "1-a".into(),
        created: NOW,
    }
}

fn delivered(destination: Destination) -> What {
    What::delivered(Delivery {
        destination,
        document: document(),
        sha256: Some("1".into()),
        below_quorum: false,
        audio: None,
        deleted: false,
        edit_told: false,
        controls: None,
        again: 0,
    })
}

fn failed(attempt: u32, destination: Destination, failure: DeliveryFailure) -> What {
    What::DeliveryFailed {
        attempt,
        destination,
        failure,
        why: "x".into(),
        retry_after_s: None,
    }
}

fn holding() -> What {
    What::Held {
        n: 1,
        holding: Holding {
            place: "hold".into(),
            name: "n".into(),
            size: 7,
            digests: Digests {
                md5: "0".into(),
                sha256: "1".into(),
            },
        },
    }
}

/// A read-back of a delivery that a server with too few copies took.
fn looked(n: u32, why: Option<&str>) -> What {
    What::Looked {
        n,
        why: why.map(str::to_owned),
        unanswered: false,
        deleted: false,
    }
}

fn announce(announcement: Announcement) -> Effect {
    Effect::Announce(announcement)
}
