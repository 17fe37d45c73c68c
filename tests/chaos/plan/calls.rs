//! The calls of a plan.

use std::time::Duration;

use fastrand::Rng;

use super::{Account, CallPlan, End, Fate, SERVERS, StartPlan, Step, UrlPlan, When, millis, pick};

/// What a call is about.
#[derive(Clone, Copy)]
enum Kind {
    Plain,
    Several,
    OnAnswer,
    NeverAnswered,
    OnBridge,
    Moved,
    Replaced,
    Transferred,
    SameId,
    TooShort,
    Masked,
    Repeated,
    Vanishing,
    FileLost,
}

const KINDS: &[(u32, Kind)] = &[
    (34, Kind::Plain),
    (10, Kind::Several),
    (6, Kind::OnAnswer),
    (2, Kind::NeverAnswered),
    (10, Kind::OnBridge),
    (8, Kind::Moved),
    (5, Kind::Replaced),
    (4, Kind::Transferred),
    (8, Kind::SameId),
    (4, Kind::TooShort),
    (3, Kind::Masked),
    (7, Kind::Repeated),
    (2, Kind::Vanishing),
    (2, Kind::FileLost),
];

/// Calls that ask for `recordings` in all, beginning within `length`.
pub(super) fn plan(random: &mut Rng, recordings: usize, length: Duration) -> Vec<CallPlan> {
    let mut maker = Maker {
        random,
        starts: 0,
        said: 0,
    };
    let mut calls = Vec::new();
    // The first of each kind, so that none is missing in a short plan; then as it comes.
    let mut deck: Vec<Kind> = KINDS.iter().map(|(_, kind)| *kind).collect();
    maker.random.shuffle(&mut deck);
    while maker.starts < recordings {
        let kind = deck.pop().unwrap_or_else(|| pick(maker.random, KINDS));
        calls.push(maker.call(calls.len(), kind));
    }
    for call in &mut calls {
        call.at = length.mul_f64(maker.random.f64());
    }
    calls.sort_by_key(|call| call.at);
    calls
}

/// Calls that Kazoo records by itself: `recordings` in all, after the plan's others.
pub(super) fn kazoos(
    random: &mut Rng,
    (calls, starts): (usize, usize),
    recordings: usize,
    length: Duration,
) -> Vec<CallPlan> {
    let said = starts as u64;
    // More than `starts` were asked for where a call asks for several.
    let starts = starts + 10;
    let mut maker = Maker { random, starts, said };
    let calls = (calls..calls + recordings).map(|n| maker.kazoos(n, length));
    calls.collect()
}

/// Gives a part of the calls without a URL to the account with an object store. Drawn apart, so that the rest stays what it is for a seed.
pub(super) fn into_object_store(random: &mut Rng, calls: &mut [CallPlan]) {
    let without_url = |call: &&mut CallPlan| call.starts.iter().all(|start| start.url.is_none());
    for call in calls.iter_mut().filter(without_url) {
        let share = if call.account == Account::Planned { 0.4 } else { 0.25 };
        if random.f64() < share {
            call.account = Account::Native;
        }
    }
}

struct Maker<'a> {
    random: &'a mut Rng,
    starts: usize,
    /// Lengths given out.
    said: u64,
}

impl Maker<'_> {
    fn call(&mut self, n: usize, kind: Kind) -> CallPlan {
        let mut call = CallPlan {
            n,
            at: Duration::ZERO,
            account: pick(self.random, &[(4, Account::Plain), (1, Account::Planned)]),
            ringing: matches!(kind, Kind::OnAnswer | Kind::NeverAnswered | Kind::OnBridge),
            start_event: self.fate(),
            stop_event: self.fate(),
            starts: Vec::new(),
            steps: vec![Step::Start(0)],
            end: End::HangUp,
        };
        let url = call.account == Account::Plain && self.random.f64() < 0.45;
        let mut start = self.start(n, url);
        match kind {
            Kind::Plain => self.end_or_stop(&mut call),
            Kind::Several => {
                let mut second = self.start(n, url);
                second.wav = !start.wav;
                call.starts = vec![start, second];
                let talk = self.talk();
                call.steps.extend([talk, Step::Start(1), self.talk(), Step::Stop]);
                self.end_or_stop(&mut call);
                return call;
            }
            Kind::OnAnswer => {
                start.when = When::Answer;
                call.steps.extend([self.talk(), Step::Answer]);
                self.end_or_stop(&mut call);
            }
            Kind::NeverAnswered => {
                start.when = When::Answer;
                call.steps.push(self.talk());
            }
            Kind::OnBridge => {
                start.when = When::Bridge;
                for _ in 0..self.random.usize(1..4) {
                    let said = self.said();
                    call.steps
                        .extend([self.talk(), Step::Bridge(said), self.talk(), Step::EndParts]);
                }
            }
            Kind::Moved => {
                call.steps.extend([self.talk(), Step::Move]);
                self.end_or_stop(&mut call);
            }
            Kind::Replaced => {
                call.steps.extend([self.talk(), Step::Replace]);
                self.end_or_stop(&mut call);
            }
            Kind::Transferred => {
                call.steps.extend([self.talk(), Step::Transfer]);
                self.end_or_stop(&mut call);
            }
            Kind::SameId => {
                start.same_id = true;
                self.end_or_stop(&mut call);
            }
            Kind::TooShort => {
                start.min_s = start.millis / 1000 + 1;
                self.end_or_stop(&mut call);
            }
            Kind::Masked => {
                let talk = self.talk();
                call.steps
                    .extend([talk, Step::Mask, self.talk(), Step::Unmask, self.talk()]);
            }
            Kind::Repeated => {
                call.steps.extend([Step::Again(0), self.talk(), Step::Again(0)]);
                self.end_or_stop(&mut call);
            }
            Kind::Vanishing => {
                call.steps.push(self.talk());
                call.end = End::Vanish;
            }
            Kind::FileLost => {
                call.steps.push(self.talk());
                call.end = End::LoseFile;
            }
        }
        call.starts.push(start);
        call
    }

    /// A call that Kazoo records by itself, some with a recording of an action beside.
    fn kazoos(&mut self, n: usize, length: Duration) -> CallPlan {
        let mut call = CallPlan {
            n,
            at: length.mul_f64(self.random.f64()),
            account: Account::Plain,
            ringing: false,
            start_event: self.fate(),
            stop_event: self.fate(),
            starts: Vec::new(),
            steps: Vec::new(),
            end: pick(self.random, &[(8, End::HangUp), (1, End::Vanish), (1, End::LoseFile)]),
        };
        // Nobody can know of a recording that no event told of.
        if call.end == End::Vanish || call.stop_event == Fate::Lost {
            call.start_event = Fate::Arrives;
        }
        call.starts.push(StartPlan {
            kazoos: true,
            ..self.start(n, false)
        });
        call.steps.extend([Step::Kazoos(0), self.talk()]);
        if self.random.f64() < 0.3 {
            let beside = self.start(n, false);
            call.starts.push(beside);
            call.steps.extend([Step::Start(1), self.talk()]);
        }
        if self.random.f64() < 0.2 {
            call.steps.extend([Step::Move, self.talk()]);
        }
        call
    }

    fn start(&mut self, call: usize, url: bool) -> StartPlan {
        self.starts += 1;
        let n = self.starts;
        StartPlan {
            label: format!("call-{call}-start-{n}"),
            limit_s: 1000 + n as u64,
            millis: self.said(),
            wav: self.random.f64() < 0.3,
            url: url.then(|| UrlPlan {
                server: self.random.usize(..SERVERS),
                post: self.random.bool(),
            }),
            when: When::Now,
            same_id: false,
            min_s: 0,
            kazoos: false,
        }
    }

    /// A length that no other recording has, for the first four hundred: in steps of more than an MP3 frame, up to thirteen seconds.
    fn said(&mut self) -> u64 {
        self.said += 1;
        500 + self.said * 149 % 401 * 31
    }

    fn talk(&mut self) -> Step {
        Step::Talk(millis(self.random, 50, 900))
    }

    /// It ends by an action, or only by the hang-up.
    fn end_or_stop(&mut self, call: &mut CallPlan) {
        let talk = self.talk();
        call.steps.push(talk);
        if self.random.f64() < 0.4 {
            let talk = self.talk();
            call.steps.extend([Step::Stop, talk]);
        }
    }

    fn fate(&mut self) -> Fate {
        let (late, repeats) = (millis(self.random, 50, 2_500), self.random.u32(1..4));
        pick(
            self.random,
            &[
                (14, Fate::Arrives),
                (2, Fate::Lost),
                (3, Fate::Repeated(repeats)),
                (4, Fate::Late(late)),
            ],
        )
    }
}
