//! For how long Kazoo's own recorder tries to store a recording (`kz_storage`, `media_recording`). Pure functions.

use std::time::Duration;

use serde_json::Value;

use crate::kazoo::json::integer;

/// Rounds after the first one (`call_recording.storage_retry_times`).
pub const ROUNDS: u32 = 5;

/// Between two tries of a round.
const PAUSE: Duration = Duration::from_secs(5);
/// The longest wait between two rounds. Kazoo draws it, up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// A message rests so long in Kazoo's queue, and the database may take so long to answer.
const BEFORE: Duration = Duration::from_secs(60 + 120);

/// The applications that store recordings: of Kazoo 5 media_mgr, of Kazoo 4 the one that runs the flow.
const APPLICATIONS: [&str; 2] = ["media_mgr", "callflow"];

/// Kazoo's defaults.
const RETRIES: u32 = 5;
const SAVE_TIMEOUT_MS: u32 = 300_000;

/// The tries of one round (`system_config/call_command`, `store_file`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tries {
    pub number: u32,
    /// For so long a try waits for the switch.
    pub limit: Duration,
}

impl Tries {
    /// Reads the document. `kz_storage` reads its section `default` alone, whatever the zone. Each application of Kazoo can have values of its
    /// own, and Kazoo's default applies to one without. The longest of them count.
    pub fn read(document: &Value) -> Self {
        let applications = document.pointer("/default/store_file").and_then(Value::as_object);
        let number = |one: &Value, key: &str| integer(one.get(key)?).and_then(|number| u32::try_from(number).ok());
        let longest = |key: &str, default: u32| {
            let present = applications.into_iter().flat_map(|all| all.values());
            let present = present.filter_map(|one| number(one, key));
            let of = |name: &str| applications.and_then(|all| number(all.get(name)?, key));
            let own = APPLICATIONS.iter().map(|name| of(name).unwrap_or(default));
            present.chain(own).max().unwrap_or(default)
        };
        Self {
            number: longest("retries", RETRIES).max(1),
            limit: Duration::from_millis(u64::from(longest("save_timeout_ms", SAVE_TIMEOUT_MS))),
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
        let longest = |document: Value, rounds| Tries::read(&document).longest(rounds).as_secs();
        assert_eq!(longest(json!({}), ROUNDS), 12_300);
        let both = |tries: Value| json!({"default": {"store_file": {"media_mgr": tries, "callflow": {"retries": "3", "save_timeout_ms": 10_000}}}});
        let short = json!({"retries": 2, "save_timeout_ms": 10_000});
        assert_eq!(longest(both(short), 1), 2 * (3 * 10 + 2 * 5) + 600 + 180);
        let none = json!({"retries": 0, "save_timeout_ms": 1});
        assert_eq!(longest(both(none), 0), 3 * 10 + 2 * 5 + 180);
        let most = json!({"default": {"store_file": {"a": {"retries": u32::MAX, "save_timeout_ms": u32::MAX}}}});
        assert!(longest(most, u32::MAX) > 0, "no overflow");
    }

    #[test]
    fn a_section_that_kazoo_does_not_read_says_nothing() {
        let own = json!({"media_mgr": {"retries": 9}});
        let zones = json!({"callflow": {"retries": 1}, "media_mgr": {"retries": 1, "save_timeout_ms": 1}});
        let document = json!({"default": {"store_file": own}, "west": {"store_file": zones}});
        assert_eq!(Tries::read(&document).number, 9);
        let zone_alone = json!({"west": {"store_file": zones}});
        assert_eq!(Tries::read(&zone_alone), Tries::read(&json!({})));
    }

    /// media_mgr has no value, so it makes as many tries as by default.
    #[test]
    fn an_application_without_values_has_kazoos_defaults() {
        let document = json!({"default": {"store_file": {"callflow": {"retries": 2, "save_timeout_ms": 10}}}});
        assert_eq!(Tries::read(&document), Tries::read(&json!({})));
    }
}
