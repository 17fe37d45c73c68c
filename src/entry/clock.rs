//! Two clocks: the switch stamps its events, and workers stamp what they do. An order of both needs one clock.

use std::time::Duration;

use crate::kazoo::time::Moment;

use super::Entry;
use super::fact::{Fact, What};

/// Clocks that differ by less count as equal: an event takes some time until a worker hears of it.
const EQUAL: Duration = Duration::from_secs(2);

impl Entry {
    /// The time of a switch's stamp, in microseconds, by the clock of the workers.
    pub fn by_our_clock(&self, stamp: i64) -> Moment {
        Moment::from_unix_micros(stamp.saturating_add(self.switch_lag(|_| true).unwrap_or(0)))
    }

    /// The time of a switch's stamp by the clock of one worker. `None` if that worker heard no event of the switch: the clock of another worker
    /// says nothing about it.
    pub fn by_clock_of(&self, worker: &str, stamp: i64) -> Option<Moment> {
        let lag = self.switch_lag(|by| by == worker)?;
        Some(Moment::from_unix_micros(stamp.saturating_add(lag)))
    }

    /// When the latest part began, by the clock of one worker as far as its facts tell that clock. The start's own time is by the switch's clock.
    pub fn latest_began_by(&self, worker: &str) -> Option<Moment> {
        let start = self.latest_start()?;
        let Some(stamp) = start.stamp else {
            return Some(start.at);
        };
        let by_its_clock = self.by_clock_of(worker, stamp);
        Some(by_its_clock.unwrap_or_else(|| self.by_our_clock(stamp)))
    }

    /// By how much the clock of the recording's switch is behind the clocks of these workers, in microseconds. An event is stamped by the switch
    /// and heard by a worker, never before it happened. The event that was heard soonest tells it best. Other legs of the call may be on other
    /// switches.
    fn switch_lag(&self, of: impl Fn(&str) -> bool) -> Option<i64> {
        let of_recording = |fact: &Fact| match &fact.what {
            What::Started(told) | What::Ended(told) => Some((told.call_id.clone(), told.stamp)),
            _ => None,
        };
        let mut carriers: Vec<String> = self.facts().filter_map(of_recording).map(|(leg, _)| leg).collect();
        if carriers.is_empty() {
            carriers.push(self.call_id.clone());
        }
        let heard = self.facts().filter(|fact| of(&fact.by));
        let heard_after = heard.filter_map(|fact| {
            let stamp = match &fact.what {
                What::Leg(leg) if carriers.contains(&leg.call_id) => leg.stamp,
                _ => of_recording(fact).and_then(|(_, stamp)| stamp),
            };
            Some(fact.at.unix_micros().saturating_sub(stamp?))
        });
        let lag = heard_after.min()?;
        let is_equal = u128::from(lag.unsigned_abs()) < EQUAL.as_micros();
        Some(if is_equal { 0 } else { lag })
    }
}

#[cfg(test)]
mod tests {
    use crate::entry::legs::Leg;
    use crate::kazoo::leg::LegEvent;
    use crate::recording::ending::Told;
    use crate::recording::identity::Key;

    use super::*;

    /// Events of a switch whose clock is `behind` seconds behind, each heard after so many seconds.
    fn entry(behind: i64, heard_after: &[i64]) -> Entry {
        let mut entry = Entry::new(Key::of("call", "action"), "call");
        for (nth, after) in (0..).zip(heard_after) {
            let happened = 1_795_386_262 + nth * 60;
            let stamp = Moment::from_unix_seconds(happened - behind);
            let mut told = Told::presumed("call", stamp, "fs1", "/tmp/a.mp3");
            told.stamp = Some(stamp.unix_micros());
            let what = match nth {
                0 => What::Started(Box::new(told)),
                _ => What::Ended(Box::new(told)),
            };
            entry.add(Fact {
                at: Moment::from_unix_seconds(happened + after),
                by: "w".into(),
                what,
            });
        }
        entry
    }

    #[test]
    fn what_a_switch_stamps_is_read_by_the_workers_clock() {
        let stamp = 1_795_386_300_000_000;
        for (behind, heard_after, lag) in [
            (0, vec![0, 1], 0),
            (0, vec![], 0),
            (1, vec![0], 0),
            (30, vec![0, 5], 30),
            (-30, vec![0, 5], -30),
            // The start was heard late, after an outage.
            (30, vec![90, 0], 30),
            (0, vec![90, 0], 0),
        ] {
            let read = entry(behind, &heard_after).by_our_clock(stamp);
            assert_eq!(read.unix_micros() - stamp, lag * 1_000_000, "{behind} {heard_after:?}");
        }
    }

    #[test]
    fn the_clock_of_one_worker_says_nothing_about_another_workers() {
        let stamp = 1_795_386_300_000_000;
        let entry = entry(30, &[0]);
        let of = |worker| entry.by_clock_of(worker, stamp).map(|at| at.unix_micros() - stamp);
        assert_eq!((of("w"), of("v")), (Some(30_000_000), None));
    }

    #[test]
    fn legs_on_other_switches_tell_nothing_of_this_ones_clock() {
        let mut entry = entry(30, &[0]);
        for (call_id, ahead) in [("call", -30), ("another leg", 30)] {
            entry.add(Fact {
                at: Moment::from_unix_seconds(1_795_386_270),
                by: "w".into(),
                what: What::Leg(Box::new(Leg {
                    call_id: call_id.into(),
                    event: LegEvent::Gone,
                    other: None,
                    control: None,
                    was_answered: None,
                    stamp: Some(Moment::from_unix_seconds(1_795_386_270 + ahead).unix_micros()),
                })),
            });
        }
        let stamp = 1_795_386_300_000_000;
        assert_eq!(entry.by_our_clock(stamp).unix_micros() - stamp, 30_000_000);
    }
}
