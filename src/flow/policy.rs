//! What the configuration says to decisions.

use crate::config::{Config, HoldKind};

use super::next::Policy;

impl Policy {
    /// What decisions depend on, from the configuration.
    pub fn of(config: &Config) -> Self {
        let flow = &config.flow;
        Self {
            worker: worker(&config.kazoo.host),
            retry: flow.retry.clone(),
            jitter: flow.retry_jitter,
            max_attempts: flow.max_attempts,
            hold: config.hold.kind != HoldKind::None,
            hold_pause: config.hold.pause,
            looks: [1, 5, 15, 60]
                .map(|times| config.destination.read_back_after * times)
                .to_vec(),
            start_timeout: flow.start_timeout,
            check_interval: flow.check_interval,
            grace: flow.grace,
            probe_gap: flow.probe_gap,
            stop_repeats: flow.stop_repeats.clone(),
            stop_alarm: flow.stop_alarm,
        }
    }
}

/// This process' name in leases and facts, another one at every start: in containers the process id is always 1, and two workers of one name
/// would take each other's leases for their own.
fn worker(host: &str) -> String {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    format!("{host}#{}-{}", std::process::id(), &unique[..6])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_workers_of_one_host_and_process_id_have_two_names() {
        let (one, other) = (worker("rec1"), worker("rec1"));
        assert_ne!(one, other);
        let begin = format!("rec1#{}-", std::process::id());
        assert!(one.starts_with(&begin) && one.len() == begin.len() + 6, "{one}");
    }
}
