//! Gauges that a background task reads every few seconds: readiness, waiting entries of the ledger, disks and holds.

use std::time::Duration;

use metrics::gauge;
use tracing::{info, warn};

/// The version of this program; always 1.
pub struct Built;

impl Built {
    pub fn emit(self) {
        gauge!("kz_record_call_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    }
}

/// Whether one of the conditions for readiness holds.
pub struct ReadinessChecked {
    pub check: &'static str,
    pub good: bool,
}

impl ReadinessChecked {
    pub fn emit(self) {
        gauge!("kz_record_call_ready", "check" => self.check).set(if self.good { 1.0 } else { 0.0 });
    }
}

/// How many recordings of this zone are in a state, by the ledger, and since when the oldest of them was requested.
pub struct RecordingsCounted {
    pub state: &'static str,
    pub count: u64,
    /// Set only for states that recordings should leave.
    pub oldest: Option<Duration>,
}

impl RecordingsCounted {
    pub fn emit(self) {
        gauge!("kz_record_call_recordings", "state" => self.state).set(number(self.count));
        if let Some(oldest) = self.oldest {
            gauge!("kz_record_call_oldest_seconds", "state" => self.state).set(oldest.as_secs_f64());
        }
    }
}

/// Bytes in the hold.
pub struct HoldMeasured {
    pub bytes: u64,
    pub max_bytes: u64,
}

impl HoldMeasured {
    pub fn emit(self) {
        gauge!("kz_record_call_hold_bytes").set(number(self.bytes));
        gauge!("kz_record_call_hold_max_bytes").set(number(self.max_bytes));
    }
}

/// Free space on the spool's disk.
pub struct SpoolMeasured {
    pub free_bytes: u64,
    pub min_free_bytes: u64,
}

impl SpoolMeasured {
    pub fn emit(self) {
        gauge!("kz_record_call_spool_free_bytes").set(number(self.free_bytes));
        gauge!("kz_record_call_spool_min_free_bytes").set(number(self.min_free_bytes));
    }
}

/// How many targets have an open circuit breaker.
pub struct TargetsCounted {
    pub paused: usize,
}

impl TargetsCounted {
    pub fn emit(self) {
        gauge!("kz_record_call_targets_paused").set(number(self.paused as u64));
    }
}

/// Gauges were read from their source: `recordings` or `hold`.
pub struct LookSucceeded {
    pub of: &'static str,
    /// Unix time.
    pub at_seconds: i64,
    /// The log had reported them as stale.
    pub was_told: bool,
}

impl LookSucceeded {
    pub fn emit(self) {
        if self.was_told {
            info!(event = "gauges_fresh", of = self.of, "gauges fresh");
        }
        #[allow(clippy::cast_precision_loss)] // exact for the next two hundred million years
        gauge!("kz_record_call_last_look_timestamp_seconds", "of" => self.of).set(self.at_seconds as f64);
    }
}

/// Gauges could not be read for so long that they are misleading. They keep their last values.
pub struct LookFailed<'a> {
    pub of: &'static str,
    pub why: &'a str,
    pub old: Duration,
}

impl LookFailed<'_> {
    pub fn emit(self) {
        warn!(
            event = "gauges_stale",
            of = self.of,
            why = self.why,
            old_s = self.old.as_secs(),
            "gauges stale"
        );
    }
}

#[allow(clippy::cast_precision_loss)] // bytes beyond 2^53 need no last digit
fn number(count: u64) -> f64 {
    count as f64
}
