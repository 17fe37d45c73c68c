//! What the configuration gives to decisions: the attempts, and the delays between them.

use std::time::Duration;

use crate::config::{AdoptMode, Config, Endpoint, HoldKind, Webhooks};
use crate::entry::Entry;
use crate::entry::fact::What;
use crate::kazoo::time::Moment;

use super::Next;
use super::webhooks::{Hook, Hooks};

/// What decisions depend on besides the recording.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The name of this worker in facts.
    pub worker: String,
    /// Retry backoff after the first, second … failure; the last delay repeats.
    pub retry: Vec<Duration>,
    /// Delays vary by up to this share, in per cent.
    pub jitter: u8,
    /// After so many failures the recording is parked.
    pub max_attempts: u32,
    /// There is a hold.
    pub hold: bool,
    /// How long a recording waits after the hold did not take its audio.
    pub hold_pause: Duration,
    /// How long the hold keeps the audio of a parked recording. `None`: until an operator retries or discards it.
    pub hold_retention: Option<Duration>,
    /// Delays before the first, second … read-back of a delivery that a server with too few copies took; the last repeats.
    pub looks: Vec<Duration>,
    /// How long the switch has to confirm a start.
    pub start_timeout: Duration,
    /// Interval at which the channel of a running recording is queried.
    pub check_interval: Duration,
    /// How long a channel must be gone, and how long after its time limit a recording must be over, before its end is presumed.
    pub grace: Duration,
    /// Interval between two probes that must be equal.
    pub probe_gap: Duration,
    /// Delays between stop commands.
    pub stop_repeats: Vec<Duration>,
    /// A stop that is not confirmed within this time alerts an operator.
    pub stop_alarm: Duration,
    /// Whether recordings that Kazoo's own recorder lost are stored.
    pub rescue: bool,
    /// Endpoints that get outcomes.
    pub hooks: Hooks,
}

/// Until when the last failure, or the last postponement, delays the recording. The recording's key varies the delay, so that a thousand
/// recordings that failed together do not resume together.
pub(super) fn paused(entry: &Entry, policy: &Policy) -> Option<Moment> {
    failed(entry, policy).into_iter().chain(entry.postponed_until()).max()
}

/// Until when the last failure delays the recording.
fn failed(entry: &Entry, policy: &Policy) -> Option<Moment> {
    let last = entry.failures().next_back()?;
    let pause = policy.pause(
        entry.failures().count(),
        entry.decided().and_then(|(_, attempts)| attempts),
    );
    let factor = spread(entry, last.what.attempt().unwrap_or(1), policy);
    let asked = match last.what {
        What::DeliveryFailed {
            retry_after_s: Some(seconds),
            ..
        } => Duration::from_secs(seconds),
        _ => Duration::ZERO,
    };
    Some(last.at.plus(pause.mul_f64(factor).max(asked)))
}

/// The factor that varies a delay: from -jitter to +jitter per cent, changing with the attempts.
pub(super) fn spread(entry: &Entry, attempt: u32, policy: &Policy) -> f64 {
    let bytes = entry.key.bytes();
    let spread = u64::from(bytes[0]) * 256 + u64::from(bytes[1]);
    let turn = (spread + u64::from(attempt) * 7919) % 2001;
    #[allow(clippy::cast_precision_loss)] // at most 2000
    let factor = 1.0 + (turn as f64 / 1000.0 - 1.0) * f64::from(policy.jitter) / 100.0;
    factor.max(0.0)
}

impl Policy {
    /// What decisions depend on, from the configuration. `worker` is the name of the worker that decides.
    pub fn of(config: &Config, worker: String) -> Self {
        let flow = &config.flow;
        Self {
            worker,
            retry: flow.retry.clone(),
            jitter: flow.retry_jitter,
            max_attempts: flow.max_attempts,
            hold: config.hold.kind != HoldKind::None,
            hold_pause: config.hold.pause,
            hold_retention: config.hold.retention,
            looks: [1, 5, 15, 60]
                .map(|times| config.destination.read_back_after * times)
                .to_vec(),
            start_timeout: flow.start_timeout,
            check_interval: flow.check_interval,
            grace: flow.grace,
            probe_gap: flow.probe_gap,
            stop_repeats: flow.stop_repeats.clone(),
            stop_alarm: flow.stop_alarm,
            rescue: config.adopt.mode == AdoptMode::Rescue,
            hooks: hooks(&config.webhooks),
        }
    }

    /// Attempts that a recording has before it is parked.
    pub(super) fn attempts(&self, said: Option<u32>) -> usize {
        let attempts = said.unwrap_or(self.max_attempts).clamp(1, MOST_ATTEMPTS);
        usize::try_from(attempts).unwrap_or(1)
    }

    /// The delay after failure number `failures`, counted from 1. If the account allows fewer or more attempts than the schedule has, they
    /// are spread over the same time. Few attempts begin with the usual first delay: most faults are short.
    pub(super) fn pause(&self, failures: usize, said: Option<u32>) -> Duration {
        let usual = |n: usize| {
            let last = self.retry.last().copied().unwrap_or(Duration::from_secs(5));
            self.retry.get(n).copied().unwrap_or(last)
        };
        let index = failures.saturating_sub(1);
        let Some(_) = said else { return usual(index) };
        // Steps of the account's schedule and of the usual schedule. Both take the same time in all.
        let (mine, theirs) = (
            self.attempts(said).saturating_sub(1).max(1),
            self.attempts(None).saturating_sub(1),
        );
        let total = |steps: usize| (0..steps).map(usual).sum::<Duration>();
        if (2..theirs).contains(&mine) {
            return growing(usual(0), total(theirs), mine, index);
        }
        let at = |n: usize| {
            let (whole, part) = (n * theirs / mine, n * theirs % mine);
            #[allow(clippy::cast_precision_loss)] // at most 28
            let share = part as f64 / mine as f64;
            total(whole) + usual(whole).mul_f64(share)
        };
        at(index + 1).saturating_sub(at(index))
    }

    /// The time that the schedule takes in all.
    pub(super) fn whole(&self) -> Duration {
        (0..self.attempts(None)).map(|n| self.pause(n + 1, None)).sum()
    }
}

fn hooks(config: &Webhooks) -> Hooks {
    let hook = |endpoint: &Endpoint| Hook {
        name: endpoint.name.clone(),
        outcomes: endpoint.outcomes.clone(),
        accounts: endpoint.accounts.clone(),
    };
    Hooks {
        endpoints: config.endpoints.iter().map(hook).collect(),
        retry: config.retry.clone(),
        head_start: config.timeout * 2 + Duration::from_secs(5),
    }
}

/// The delay number `index` of so many delays, each longer than the one before by the same factor, which take `total` together.
fn growing(first: Duration, total: Duration, count: usize, index: usize) -> Duration {
    let steps = i32::try_from(count).unwrap_or(i32::MAX);
    let (first, total) = (first.as_secs_f64(), total.as_secs_f64());
    let sum = |factor: f64| (0..steps).map(|n| first * factor.powi(n)).sum::<f64>();
    let (mut low, mut high) = (1.0, (total / first.max(0.001)).max(1.0));
    for _ in 0..64 {
        let middle = f64::midpoint(low, high);
        if sum(middle) < total {
            low = middle;
        } else {
            high = middle;
        }
    }
    let nth = i32::try_from(index).unwrap_or(i32::MAX).min(steps - 1);
    Duration::try_from_secs_f64(first * high.powi(nth)).unwrap_or(Duration::MAX)
}

/// The entry would not keep all facts of more attempts.
const MOST_ATTEMPTS: u32 = 28;

/// The first of these moments, or now.
pub(super) fn earliest(candidates: impl IntoIterator<Item = Option<Moment>>, now: Moment) -> Next {
    let until = candidates.into_iter().flatten().map(|at| at.max(now)).min();
    until.map_or(Next::Idle, Next::Wait)
}

/// Waits until then, and does `otherwise` when that time has come.
pub(super) fn wait_or(until: Option<Moment>, now: Moment, otherwise: impl FnOnce() -> Next) -> Next {
    match until.filter(|until| *until > now) {
        Some(until) => Next::Wait(until),
        None => otherwise(),
    }
}
