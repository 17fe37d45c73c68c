//! What the configuration says to decisions.

use crate::config::{Config, HoldKind};

use super::next::Policy;

impl Policy {
    /// What decisions depend on, from the configuration.
    pub fn of(config: &Config) -> Self {
        let flow = &config.flow;
        Self {
            worker: format!("{}#{}", config.kazoo.host, std::process::id()),
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
