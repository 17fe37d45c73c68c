//! Events of notices to operators' endpoints.

use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tracing::{error, info, warn};

/// The results of attempts.
const RESULTS: [&str; 3] = ["sent", "failed", "parked"];

/// An endpoint of the settings.
pub struct WebhookKnown<'a> {
    pub endpoint: &'a str,
}

impl WebhookKnown<'_> {
    /// Creates the endpoint's metrics.
    pub fn emit(self) {
        for result in RESULTS {
            counter!("kz_record_call_webhooks_total", "endpoint" => self.endpoint.to_owned(), "result" => result)
                .absolute(0);
        }
        let _ = histogram!("kz_record_call_webhook_seconds", "endpoint" => self.endpoint.to_owned());
        WebhooksCounted {
            endpoint: self.endpoint,
            owed: 0,
            parked: 0,
        }
        .emit();
    }
}

/// An endpoint accepted a notice.
pub struct WebhookSent<'a> {
    pub endpoint: &'a str,
    pub media_id: &'a str,
    pub outcome: &'static str,
    pub status: u16,
    pub took: Duration,
}

impl WebhookSent<'_> {
    pub fn emit(self) {
        info!(
            event = "webhook_sent",
            endpoint = self.endpoint,
            media_id = self.media_id,
            outcome = self.outcome,
            status = self.status,
            took_ms = self.took.as_millis(),
            "webhook sent"
        );
        counted(self.endpoint, "sent");
        histogram!("kz_record_call_webhook_seconds", "endpoint" => self.endpoint.to_owned())
            .record(self.took.as_secs_f64());
    }
}

/// An endpoint did not accept a notice. The worker retries.
pub struct WebhookRefused<'a> {
    pub endpoint: &'a str,
    pub media_id: &'a str,
    pub attempt: u32,
    pub why: &'a str,
}

impl WebhookRefused<'_> {
    pub fn emit(self) {
        warn!(
            event = "webhook_failed",
            endpoint = self.endpoint,
            media_id = self.media_id,
            attempt = self.attempt,
            why = self.why,
            "webhook not accepted, retrying"
        );
        counted(self.endpoint, "failed");
    }
}

/// An endpoint did not accept a notice in any attempt.
pub struct WebhookParked<'a> {
    pub endpoint: &'a str,
    pub media_id: &'a str,
    pub attempt: u32,
    pub why: &'a str,
}

impl WebhookParked<'_> {
    pub fn emit(self) {
        error!(
            event = "webhook_parked",
            endpoint = self.endpoint,
            media_id = self.media_id,
            attempt = self.attempt,
            why = self.why,
            "webhook parked"
        );
        counted(self.endpoint, "failed");
        counted(self.endpoint, "parked");
    }
}

/// The notices of this zone that an endpoint has not accepted, by the ledger.
pub struct WebhooksCounted<'a> {
    pub endpoint: &'a str,
    pub owed: u64,
    pub parked: u64,
}

impl WebhooksCounted<'_> {
    pub fn emit(self) {
        for (state, count) in [("owed", self.owed), ("parked", self.parked)] {
            #[allow(clippy::cast_precision_loss)] // a gauge
            gauge!("kz_record_call_webhooks", "endpoint" => self.endpoint.to_owned(), "state" => state)
                .set(count as f64);
        }
    }
}

fn counted(endpoint: &str, result: &'static str) {
    counter!("kz_record_call_webhooks_total", "endpoint" => endpoint.to_owned(), "result" => result).increment(1);
}
