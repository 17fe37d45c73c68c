//! Circuit breakers for delivery targets. One dead host must not use up the attempts of all recordings, and the operator must see it.
//!
//! A target's circuit breaker opens when two different recordings failed there with no delivery in between. When its open time is over, one
//! delivery is let through (half-open). If that delivery fails, the next open time is longer. Each worker has its own breakers, and learns
//! of a dead target by itself.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::kazoo::time::{Clock, Moment};
use crate::recording::identity::Key;
use crate::telemetry::events::{TargetPaused, TargetResumed};

/// Targets that are remembered. Users' URLs can name any number of hosts.
const MOST: usize = 1024;

/// An open breaker is remembered for this many times the longest open time, after its own open time.
const REMEMBERED: u32 = 12;

/// The circuit breakers of all targets.
pub struct CircuitBreakers {
    clock: Clock,
    pauses: Pauses,
    known: Mutex<HashMap<String, Target>>,
}

/// How long a circuit breaker stays open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pauses {
    /// The first open time. Each further one is twice as long.
    pub first: Duration,
    pub longest: Duration,
}

/// One target's state, without side effects.
#[derive(Debug, Clone, PartialEq)]
struct Target {
    /// The recording that failed last, and why.
    failed: Key,
    why: String,
    paused: Option<Pause>,
    at: Moment,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Pause {
    length: Duration,
    until: Moment,
    /// A delivery is in flight whose result closes or reopens the breaker.
    probing: bool,
}

impl CircuitBreakers {
    pub fn new(clock: Clock, pauses: Pauses) -> Self {
        Self {
            clock,
            pauses,
            known: Mutex::default(),
        }
    }

    /// Whether a delivery to `target` may start now.
    ///
    /// # Errors
    /// The end of the open time. After each open time one caller is let through, and must report the result.
    pub fn may_begin(&self, target: &str) -> Result<(), Moment> {
        let (now, mut known) = (self.clock.now(), self.lock());
        match known.get_mut(target).and_then(|known| known.paused.as_mut()) {
            Some(pause) if pause.until > now => Err(pause.until),
            Some(pause) if pause.probing => {
                // The last caller reported no result, and may never have started. The next caller is let through after one more open time.
                pause.until = now.plus(pause.length);
                pause.probing = false;
                Err(pause.until)
            }
            Some(pause) => {
                pause.probing = true;
                pause.until = now.plus(pause.length);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Until when the breaker of `target` is open. A worker asks this before it fetches audio for that target.
    pub fn rests(&self, target: &str) -> Option<Moment> {
        let (now, known) = (self.clock.now(), self.lock());
        let pause = known.get(target)?.paused?;
        (pause.until > now).then_some(pause.until)
    }

    /// Records a successful delivery.
    pub fn delivered(&self, target: &str) {
        if self.lock().remove(target).is_some_and(|known| known.paused.is_some()) {
            TargetResumed { target }.emit();
        }
    }

    /// Records a failure that says nothing about the target. If this delivery was the half-open probe, the next delivery becomes the probe.
    pub fn undecided(&self, target: &str) {
        let now = self.clock.now();
        if let Some(pause) = self.lock().get_mut(target).and_then(|known| known.paused.as_mut())
            && pause.probing
        {
            (pause.probing, pause.until) = (false, now);
        }
    }

    /// Records a failure that is the target's fault.
    pub fn failed(&self, target: &str, key: Key, why: &str) {
        let (now, mut known) = (self.clock.now(), self.lock());
        if known.len() >= MOST && !known.contains_key(target) {
            forget(&mut known);
        }
        let before = known.remove(target);
        let paused = before.as_ref().and_then(|before| before.paused);
        let after = next(before, key, why, now, self.pauses);
        if let Some(pause) = after.paused.filter(|pause| paused != Some(*pause)) {
            TargetPaused {
                target,
                why,
                pause_s: pause.length.as_secs(),
            }
            .emit();
        }
        known.insert(target.to_owned(), after);
    }

    /// The targets with an open breaker, and the reasons, for `/readyz` and the operator. A breaker without any recording since long after
    /// its open time is forgotten. The target may work again, and no delivery will ever show that.
    pub fn paused(&self) -> Vec<(String, String)> {
        let (now, mut known) = (self.clock.now(), self.lock());
        let long = self.pauses.longest.saturating_mul(REMEMBERED);
        known.retain(|_, target| target.paused.is_none_or(|pause| pause.until.plus(long) > now));
        let mut paused: Vec<(String, String)> = known
            .iter()
            .filter(|(_, known)| known.paused.is_some())
            .map(|(name, known)| (name.clone(), known.why.clone()))
            .collect();
        paused.sort();
        paused
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Target>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn next(before: Option<Target>, key: Key, why: &str, now: Moment, pauses: Pauses) -> Target {
    let length = match &before {
        None => None,
        // A single recording may fail for reasons of its own.
        Some(before) if before.paused.is_none() && before.failed == key => None,
        Some(before) => Some(
            before
                .paused
                .map_or(pauses.first, |pause| (pause.length * 2).min(pauses.longest)),
        ),
    };
    // Deliveries that were in flight when the breaker opened bring no new information.
    let running = before.and_then(|before| before.paused.filter(|pause| !pause.probing && pause.until > now));
    Target {
        failed: key,
        why: why.to_owned(),
        paused: running.or_else(|| {
            length.map(|length| Pause {
                length,
                until: now.plus(length),
                probing: false,
            })
        }),
        at: now,
    }
}

/// Makes room. Forgets the oldest failure with a closed breaker, or, if there is none, the oldest failure.
fn forget(known: &mut HashMap<String, Target>) {
    let oldest = known
        .iter()
        .min_by_key(|(_, target)| (target.paused.is_some(), target.at))
        .map(|(name, _)| name.clone());
    if let Some(oldest) = oldest {
        known.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Key {
        Key::of("call", &n.to_string())
    }

    const PAUSES: Pauses = Pauses {
        first: Duration::from_secs(5),
        longest: Duration::from_secs(300),
    };

    fn targets() -> (CircuitBreakers, Clock) {
        let clock = Clock::fixed(Moment::from_unix_seconds(1_795_386_262));
        (CircuitBreakers::new(clock.clone(), PAUSES), clock)
    }

    fn later(clock: &Clock, seconds: u64) {
        clock.set(clock.now().plus(Duration::from_secs(seconds)));
    }

    #[test]
    fn two_recordings_that_fail_alike_pause_a_target_and_one_alone_does_not() {
        let (targets, _) = targets();
        for _ in 0..5 {
            targets.failed("h", key(1), "answered 503");
            assert_eq!(targets.may_begin("h"), Ok(()));
        }
        targets.failed("h", key(2), "answered 503");
        assert!(targets.may_begin("h").is_err());
        assert_eq!(targets.may_begin("other"), Ok(()));
        assert_eq!(targets.paused(), [("h".to_owned(), "answered 503".to_owned())]);
    }

    #[test]
    fn a_success_in_between_forgives() {
        let (targets, _) = targets();
        targets.failed("h", key(1), "x");
        targets.delivered("h");
        targets.failed("h", key(2), "x");
        assert_eq!(targets.may_begin("h"), Ok(()));
    }

    #[test]
    fn after_a_pause_one_goes_ahead_and_pauses_grow_until_it_succeeds() {
        let (targets, clock) = targets();
        targets.failed("h", key(1), "x");
        targets.failed("h", key(2), "x");
        for pause in [5, 10, 20, 40, 80, 160, 300, 300] {
            // Deliveries that were in flight fail too, and change nothing.
            targets.failed("h", key(3), "x");
            assert!(targets.may_begin("h").is_err());
            later(&clock, pause - 1);
            assert!(targets.may_begin("h").is_err(), "{pause}");
            later(&clock, 1);
            assert_eq!(targets.may_begin("h"), Ok(()), "{pause}");
            assert!(targets.may_begin("h").is_err(), "only one");
            targets.failed("h", key(4), "x");
        }
        later(&clock, 300);
        assert_eq!(targets.may_begin("h"), Ok(()));
        targets.delivered("h");
        assert_eq!(targets.may_begin("h"), Ok(()));
        assert_eq!(targets.paused(), []);
    }

    #[test]
    fn one_that_never_tells_does_not_keep_a_target_paused_for_ever() {
        let (targets, clock) = targets();
        targets.failed("h", key(1), "x");
        targets.failed("h", key(2), "x");
        later(&clock, 5);
        assert_eq!(targets.may_begin("h"), Ok(()));
        later(&clock, 5);
        assert!(targets.may_begin("h").is_err());
        later(&clock, 5);
        assert_eq!(targets.may_begin("h"), Ok(()));
    }

    #[test]
    fn a_probe_that_failed_for_its_own_sake_lets_the_next_one_through_at_once() {
        let (targets, clock) = targets();
        targets.failed("h", key(1), "x");
        targets.failed("h", key(2), "x");
        targets.undecided("h");
        assert!(
            targets.may_begin("h").is_err(),
            "nothing was let through yet, so nothing is undone"
        );
        later(&clock, 5);
        assert_eq!(targets.may_begin("h"), Ok(()));
        targets.undecided("h");
        assert_eq!(targets.may_begin("h"), Ok(()));
        assert!(targets.may_begin("h").is_err(), "only one");
        targets.undecided("other");
        assert_eq!(targets.paused().len(), 1);
    }

    #[test]
    fn a_target_that_gets_no_more_recordings_is_not_told_of_for_ever() {
        let (targets, clock) = targets();
        targets.failed("h", key(1), "x");
        targets.failed("h", key(2), "x");
        later(&clock, 5 + 12 * 300 - 1);
        assert_eq!(targets.paused().len(), 1);
        later(&clock, 1);
        assert_eq!(targets.paused(), []);
        // The count starts again.
        targets.failed("h", key(3), "x");
        assert_eq!(targets.may_begin("h"), Ok(()));
    }

    #[test]
    fn a_thousand_hosts_are_remembered_and_the_paused_ones_longest() {
        let (targets, clock) = targets();
        targets.failed("paused", key(1), "x");
        targets.failed("paused", key(2), "x");
        for n in 0..2 * MOST {
            later(&clock, 1);
            targets.failed(&format!("h{n}"), key(n), "x");
        }
        assert!(targets.lock().len() <= MOST);
        assert_eq!(targets.paused().len(), 1);
    }
}
