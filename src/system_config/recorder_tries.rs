//! For how long Kazoo's own recorder tries to store a recording (`kz_storage`, `media_recording`). Pure functions.

use std::time::Duration;

use serde_json::Value;

use crate::kazoo::json::integer;

use super::media::Sections;

/// Rounds after the first one (`call_recording.storage_retry_times`).
pub const ROUNDS: u32 = 5;

/// Between two tries of a round.
const PAUSE: Duration = Duration::from_secs(5);
/// The longest wait between two rounds. Kazoo draws it, up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// A message rests so long in Kazoo's queue, and the database may take so long to answer.
const BEFORE: Duration = Duration::from_secs(60 + 120);

/// The tries of one round (`system_config/call_command`, `store_file`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tries {
    pub number: u32,
    /// For so long a try waits for the switch.
    pub limit: Duration,
}

impl Tries {
    /// Reads the document's sections. Each application of Kazoo can have values of its own; the longest of them count.
    pub fn read(document: &Value, zone: &str) -> Self {
        let sections = Sections::of(document, zone);
        let applications = sections.find(&["store_file"]).and_then(Value::as_object);
        let longest = |key: &str| {
            let all = applications.into_iter().flat_map(|all| all.values());
            let numbers = all.filter_map(|one| integer(one.get(key)?).and_then(|number| u32::try_from(number).ok()));
            numbers.max()
        };
        Self {
            number: longest("retries").unwrap_or(5).max(1),
            limit: Duration::from_millis(u64::from(longest("save_timeout_ms").unwrap_or(300_000))),
        }
    }

    /// The longest time from a recording's end until Kazoo's own recorder tries no more.
    pub fn longest(self, rounds: u32) -> Duration {
        let (rounds, pauses) = (rounds.min(1_000), self.number.min(1_000) - 1);
        let round = self.limit * (pauses + 1) + PAUSE * pauses;
        round * (rounds + 1) + LONGEST_WAIT * rounds + BEFORE
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kazoos_patience_follows_from_its_settings() {
        let longest = |document: Value, rounds| Tries::read(&document, "west").longest(rounds).as_secs();
        assert_eq!(longest(json!({}), ROUNDS), 12_300);
        let document = json!({
            "default": {"store_file": {"media_mgr": {"retries": 9}}},
            "west": {"store_file": {"media_mgr": {"retries": 2, "save_timeout_ms": 10_000}, "callflow": {"retries": "3"}}},
        });
        assert_eq!(longest(document, 1), 2 * (3 * 10 + 2 * 5) + 600 + 180);
        assert_eq!(
            longest(json!({"default": {"store_file": {"media_mgr": {"retries": 0}}}}), 0),
            300 + 180
        );
        let most = json!({"default": {"store_file": {"a": {"retries": u32::MAX, "save_timeout_ms": u32::MAX}}}});
        assert!(longest(most, u32::MAX) > 0, "no overflow");
    }
}
