//! The log lines of an outage: each reason once, then one line at growing intervals. The attempts between them are counted.

use std::time::{Duration, Instant};

/// The first interval between two lines of the same reason, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// How many reasons of one outage get a line at once.
const MOST_REASONS: usize = 8;

/// The lines of the present outage of one connection.
#[derive(Debug, Default)]
pub(super) struct Outage {
    reasons: Vec<String>,
    next: Option<(Instant, Duration)>,
    unsaid: u64,
}

impl Outage {
    /// An attempt failed. Returns how many attempts failed since the last line, this one included; `None`: no line is due.
    pub(super) fn failed(&mut self, reason: &str, now: Instant) -> Option<u64> {
        self.unsaid += 1;
        let is_new = self.reasons.len() < MOST_REASONS && !self.reasons.iter().any(|known| known == reason);
        if is_new {
            self.reasons.push(reason.to_owned());
        }
        let pause = match self.next {
            Some((at, pause)) if now >= at => (pause * 2).min(PAUSES.1),
            Some((_, pause)) if is_new => pause,
            Some(_) => return None,
            None => PAUSES.0,
        };
        self.next = Some((now + pause, pause));
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_logged_at_once_and_then_at_growing_intervals() {
        let begun = Instant::now();
        let mut outage = Outage::default();
        // Two reasons in turn, four attempts a second, for an hour.
        let lines: Vec<(u64, u64)> = (0..4 * 3600)
            .filter_map(|quarter| {
                let reason = ["refused", "aborted"][usize::from(quarter % 3 == 1)];
                let attempts = outage.failed(reason, begun + Duration::from_millis(quarter * 250))?;
                Some((quarter / 4, attempts))
            })
            .collect();
        assert_eq!(lines[..4], [(0, 1), (0, 1), (10, 40), (30, 80)]);
        assert!(lines.len() < 25, "{lines:?}");
        assert!(lines.windows(2).all(|two| two[1].0 - two[0].0 <= 300), "{lines:?}");
        let mut flapping = Outage::default();
        let reasons = (0..1000).filter(|n| flapping.failed(&n.to_string(), begun).is_some());
        assert_eq!(reasons.count(), MOST_REASONS);
    }
}
