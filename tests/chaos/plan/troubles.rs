//! The troubles of a plan.

use std::time::Duration;

use fastrand::Rng;

use super::{Cut, Mood, Odd, SERVERS, StoreMood, Trouble, What, millis, pick};

/// Everything is well until then.
const QUIET: Duration = Duration::from_millis(1_500);

/// A broker that was killed needs its time to come back: too much of a short plan.
const LONG: Duration = Duration::from_secs(45);

/// What a trouble strikes: only one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Target {
    Worker(usize),
    Broker,
    Database,
    ThirdParty,
    Configuration,
    Server(usize),
    StoreProxy,
    ObjectStore,
    Endpoint,
    Switch,
    Uploads,
    Calls,
}

/// Draws a trouble, and how long it lasts, for so many workers.
type Draw = fn(&mut Rng, usize) -> (What, Duration);

/// Each kind comes up once before any comes up again.
const DECK: &[Draw] = &[
    |random, workers| (What::Kill(random.usize(..workers)), millis(random, 10, 3_000)),
    |random, workers| (What::Kill(random.usize(..workers)), millis(random, 10, 300)),
    |random, workers| (What::Renew(random.usize(..workers)), Duration::from_millis(10)),
    |random, workers| (What::Freeze(random.usize(..workers)), millis(random, 3_500, 6_000)),
    |random, workers| (What::LoseSpool(random.usize(..workers)), Duration::from_millis(10)),
    |random, _| {
        let killed = random.bool();
        (What::RestartBroker { killed }, millis(random, 10, 2_000))
    },
    |random, _| (What::CutBroker, millis(random, 300, 3_000)),
    |random, _| {
        let killed = random.bool();
        (What::StopDatabase { killed }, millis(random, 500, 4_000))
    },
    |random, _| (What::Database(cut(random)), millis(random, 500, 4_500)),
    |random, _| (What::Database(cut(random)), millis(random, 300, 2_000)),
    |random, _| (What::ThirdParty(cut(random)), millis(random, 1_000, 5_000)),
    |random, _| (What::UseThirdParty, millis(random, 3_000, 9_000)),
    |random, _| (What::UseThirdParty, millis(random, 3_000, 9_000)),
    |random, _| {
        let server = random.usize(..SERVERS);
        (What::Server(server, mood(random)), millis(random, 1_000, 7_000))
    },
    |random, _| {
        let server = random.usize(..SERVERS);
        (What::Server(server, mood(random)), millis(random, 1_000, 7_000))
    },
    |random, _| (What::StoreProxy(mood(random)), millis(random, 1_000, 6_000)),
    |random, _| (What::NoEcallmgr, millis(random, 500, 3_000)),
    |random, _| (What::Uploads(random.u32(2..8)), Duration::from_millis(10)),
    |random, _| (What::SlowUploads, millis(random, 1_000, 4_000)),
    |random, _| (What::LoseReplies(random.u32(2..10)), Duration::from_millis(10)),
    |random, _| (What::TwoZones, millis(random, 2_000, 6_000)),
    |_, _| (What::IgnoreStarts(1), Duration::from_millis(10)),
    |_, _| (What::Refuse(1), Duration::from_millis(10)),
];

pub(super) fn plan(random: &mut Rng, length: Duration, workers: usize) -> Vec<Trouble> {
    let mut busy: Vec<(Target, Duration)> = Vec::new();
    let (mut troubles, mut deck) = (Vec::new(), Vec::new());
    let mut at = QUIET;
    while at < length {
        if deck.is_empty() {
            deck = DECK.to_vec();
            random.shuffle(&mut deck);
        }
        let Some(draw) = deck.pop() else { break };
        let (mut what, lasts) = draw(random, workers);
        if let What::RestartBroker { killed } = &mut what {
            *killed &= length >= LONG;
        }
        let target = target(what);
        // The one before on the same target is over, and a moment more.
        let free = busy.iter().filter(|(of, _)| *of == target).map(|(_, until)| *until);
        let begins = free.max().map_or(at, |free| free.max(at));
        busy.push((target, begins + lasts + settling(what)));
        troubles.push(Trouble {
            at: begins,
            length: lasts,
            what,
        });
        at += millis(random, 300, 2_200);
    }
    troubles.sort_by_key(|trouble| trouble.at);
    troubles
}

/// Databases that answer oddly, between the other troubles of theirs. Drawn apart, so that these stay what they are for a seed.
pub(super) fn odd_ones(random: &mut Rng, length: Duration, troubles: &mut Vec<Trouble>) {
    let mut deck = Vec::new();
    for _ in 0..(length.as_secs() / 8).max(2) {
        if deck.is_empty() {
            let odd = [Odd::Errors, Odd::NoDatabases, Odd::FewCopies, Odd::Conflicts];
            deck.extend(odd.map(What::OddDatabase));
            deck.extend(odd.map(What::OddThirdParty));
            random.shuffle(&mut deck);
        }
        let Some(what) = deck.pop() else { break };
        let lasts = millis(random, 500, 3_000);
        between(random, length, (what, lasts), troubles);
    }
    troubles.sort_by_key(|trouble| trouble.at);
}

/// The object store, its plan, and the endpoint of webhooks. Drawn apart as well.
pub(super) fn of_stores(random: &mut Rng, length: Duration, troubles: &mut Vec<Trouble>) {
    let mut deck = Vec::new();
    for _ in 0..(length.as_secs() / 4).max(4) {
        if deck.is_empty() {
            let at = random.u64(0..60_000);
            deck.extend([
                What::ObjectStore(StoreMood::Refuses(503, "SlowDown")),
                What::ObjectStore(StoreMood::RefusesEarly(403, "AccessDenied")),
                What::ObjectStore(StoreMood::ClosesAt(at)),
                What::ObjectStore(StoreMood::LosesAnswer),
                What::ObjectStore(StoreMood::StoresLess),
                What::ObjectStore(StoreMood::Silent),
                What::WrongPlan,
            ]);
            deck.extend((0..3).map(|_| What::Endpoint(mood(random))));
            random.shuffle(&mut deck);
        }
        let Some(what) = deck.pop() else { break };
        let lasts = millis(random, 1_000, 5_000);
        between(random, length, (what, lasts), troubles);
    }
    troubles.sort_by_key(|trouble| trouble.at);
}

/// Puts a trouble where none strikes the same target.
fn between(random: &mut Rng, length: Duration, (what, lasts): (What, Duration), troubles: &mut Vec<Trouble>) {
    let at = free(what, QUIET.max(length.mul_f64(random.f64())), lasts, troubles);
    if at < length {
        troubles.push(Trouble {
            at,
            length: lasts,
            what,
        });
    }
}

/// When this trouble can strike, from `at` on: those on the same target are over, and a moment more; the next one is far enough.
fn free(what: What, mut at: Duration, lasts: Duration, troubles: &[Trouble]) -> Duration {
    while let Some(other) = troubles.iter().find(|other| {
        let until = other.at + other.length + settling(other.what);
        target(other.what) == target(what) && at < until && other.at < at + lasts + settling(what)
    }) {
        at = other.at + other.length + settling(other.what) + Duration::from_millis(1);
    }
    at
}

/// Each worker is replaced by this version, in the middle third of the plan. Nothing is drawn: the other troubles stay what they are for a seed.
pub(super) fn upgrade(workers: usize, length: Duration, troubles: &mut Vec<Trouble>) {
    let step = length / 3 / u32::try_from(workers).unwrap_or(1).max(1);
    for (place, nth) in (0..workers).zip(0_u32..) {
        let (what, lasts) = (What::Upgrade(place), Duration::from_secs(2));
        let at = free(what, length / 3 + step * nth, lasts, troubles);
        troubles.push(Trouble {
            at,
            length: lasts,
            what,
        });
    }
    troubles.sort_by_key(|trouble| trouble.at);
}

fn target(what: What) -> Target {
    match what {
        What::Kill(n) | What::Renew(n) | What::Upgrade(n) | What::Freeze(n) | What::LoseSpool(n) => Target::Worker(n),
        What::RestartBroker { .. } | What::CutBroker => Target::Broker,
        What::StopDatabase { .. } | What::Database(_) | What::OddDatabase(_) => Target::Database,
        What::ThirdParty(_) | What::OddThirdParty(_) => Target::ThirdParty,
        What::UseThirdParty => Target::Configuration,
        What::Server(n, _) => Target::Server(n),
        What::StoreProxy(_) => Target::StoreProxy,
        What::ObjectStore(_) | What::WrongPlan => Target::ObjectStore,
        What::Endpoint(_) => Target::Endpoint,
        What::NoEcallmgr => Target::Switch,
        What::Uploads(_) | What::SlowUploads | What::LoseReplies(_) | What::TwoZones => Target::Uploads,
        What::IgnoreStarts(_) | What::Refuse(_) => Target::Calls,
    }
}

/// How long what it struck needs to stand again.
fn settling(what: What) -> Duration {
    Duration::from_millis(match what {
        What::RestartBroker { .. } => 8_000,
        What::StopDatabase { .. } => 3_000,
        _ => 500,
    })
}

fn cut(random: &mut Rng) -> Cut {
    let after = random.u64(200..60_000);
    pick(random, &[(2, Cut::Refuse), (2, Cut::Hang), (2, Cut::After(after))])
}

fn mood(random: &mut Rng) -> Mood {
    let cut = Mood::Cut(cut(random));
    pick(
        random,
        &[
            (3, Mood::Status(500)),
            (2, Mood::Status(503)),
            (3, Mood::Status(429)),
            (1, Mood::Status(404)),
            // Its audio is kept, until somebody says `retry`.
            (1, Mood::Status(410)),
            (3, Mood::Hang),
            (3, cut),
        ],
    )
}
