//! Events of delivery destinations.

use metrics::counter;
use tracing::{error, info, warn};

/// A user's URL led to an address that the policy allows and reports.
pub struct AddressReported<'a> {
    pub host: &'a str,
    pub address: &'a str,
    pub kind: &'static str,
}

impl AddressReported<'_> {
    pub fn emit(self) {
        warn!(
            event = "private_address_used",
            host = self.host,
            address = self.address,
            kind = self.kind,
            "URL leads into a private network"
        );
        counter!("kz_record_call_addresses_total", "result" => "reported").increment(1);
    }
}

/// A user's URL led to an address that the SSRF filter refuses.
pub struct AddressRefused<'a> {
    pub host: &'a str,
    pub address: &'a str,
    pub kind: &'static str,
}

impl AddressRefused<'_> {
    pub fn emit(self) {
        warn!(
            event = "address_refused",
            host = self.host,
            address = self.address,
            kind = self.kind,
            "URL refused by the SSRF filter"
        );
        counter!("kz_record_call_addresses_total", "result" => "refused").increment(1);
    }
}

/// A monthly database was missing, and was created with its views.
pub struct DatabaseCreated<'a> {
    pub account_id: &'a str,
    pub database: &'a str,
    pub views: usize,
}

impl DatabaseCreated<'_> {
    pub fn emit(self) {
        info!(
            event = "monthly_database_created",
            account_id = self.account_id,
            database = self.database,
            views = self.views,
            "monthly database created"
        );
        counter!("kz_record_call_databases_created_total").increment(1);
    }
}

/// A server with too few copies had accepted a recording, and the read-back found it missing or incomplete.
pub struct ReadBackFailed<'a> {
    pub call_id: &'a str,
    pub media_id: &'a str,
    pub why: &'a str,
    /// The operator must know now.
    pub last: bool,
}

impl ReadBackFailed<'_> {
    pub fn emit(self) {
        let (call_id, media_id, why) = (self.call_id, self.media_id, self.why);
        if self.last {
            error!(
                event = "read_back_failed",
                call_id, media_id, why, "stored recording missing after all read-backs"
            );
        } else {
            warn!(
                event = "read_back_failed",
                call_id, media_id, why, "stored recording missing in a read-back"
            );
        }
        counter!("kz_record_call_read_backs_failed_total").increment(1);
    }
}

/// The hold did not accept audio.
pub struct HoldRefused<'a> {
    pub call_id: &'a str,
    pub media_id: &'a str,
    pub reason: &'static str,
    pub why: &'a str,
}

impl HoldRefused<'_> {
    pub fn emit(self) {
        error!(
            event = "hold_refused",
            call_id = self.call_id,
            media_id = self.media_id,
            reason = self.reason,
            why = self.why,
            "hold refused the audio"
        );
        counter!("kz_record_call_hold_refusals_total", "reason" => self.reason).increment(1);
    }
}

/// Two different recordings failed at a target alike: its circuit breaker opened.
pub struct TargetPaused<'a> {
    pub target: &'a str,
    pub why: &'a str,
    pub pause_s: u64,
}

impl TargetPaused<'_> {
    pub fn emit(self) {
        error!(
            event = "target_paused",
            target_name = self.target,
            why = self.why,
            pause_s = self.pause_s,
            "circuit breaker open for a target"
        );
        counter!("kz_record_call_target_pauses_total").increment(1);
    }
}

/// A target accepts recordings again: its circuit breaker closed.
pub struct TargetResumed<'a> {
    pub target: &'a str,
}

impl TargetResumed<'_> {
    pub fn emit(self) {
        info!(
            event = "target_resumed",
            target_name = self.target,
            "circuit breaker closed for a target"
        );
    }
}
