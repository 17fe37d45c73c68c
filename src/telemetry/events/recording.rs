//! Events in the life of recordings.

use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tracing::{debug, error, info, warn};

/// The switch confirmed a start.
pub struct RecordingStarted<'a> {
    pub call_id: &'a str,
    pub media_id: &'a str,
}

impl RecordingStarted<'_> {
    pub fn emit(self) {
        info!(
            event = "recording_started",
            call_id = self.call_id,
            media_id = self.media_id,
            "recording started"
        );
        counter!("kz_record_call_recordings_started_total").increment(1);
    }
}

/// The switch started again to record under a name whose audio was safe already.
pub struct RecordingContinued<'a> {
    pub call_id: &'a str,
    pub media_id: &'a str,
    pub part: u32,
}

impl RecordingContinued<'_> {
    pub fn emit(self) {
        info!(
            event = "recording_continued",
            call_id = self.call_id,
            media_id = self.media_id,
            part = self.part,
            "recording continued as a recording of its own"
        );
        counter!("kz_record_call_recordings_continued_total").increment(1);
    }
}

/// The switch ended a recording.
pub struct RecordingEnded<'a> {
    pub call_id: &'a str,
    pub account_id: &'a str,
    pub media_id: &'a str,
    pub length_ms: u64,
    pub completion_cause: &'a str,
}

impl RecordingEnded<'_> {
    pub fn emit(self) {
        info!(
            event = "recording_ended",
            call_id = self.call_id,
            account_id = self.account_id,
            media_id = self.media_id,
            length_ms = self.length_ms,
            completion_cause = self.completion_cause,
            "recording ended"
        );
        counter!("kz_record_call_recordings_ended_total").increment(1);
    }
}

/// A recording is closed: its outcome is final, and published.
pub struct RecordingClosed<'a> {
    pub call_id: &'a str,
    pub account_id: &'a str,
    pub media_id: &'a str,
    pub outcome: &'static str,
    pub cause: &'static str,
    /// Time since the end of the recording.
    pub took: Duration,
    /// Whether an operator should check: audio was lost or never recorded.
    pub alarming: bool,
}

impl RecordingClosed<'_> {
    pub fn emit(self) {
        let (call_id, account_id, media_id) = (self.call_id, self.account_id, self.media_id);
        let (outcome, cause, took_s) = (self.outcome, self.cause, self.took.as_secs_f64());
        if self.alarming {
            error!(
                event = "recording_closed",
                call_id, account_id, media_id, outcome, cause, took_s, "recording closed without its audio"
            );
        } else {
            info!(
                event = "recording_closed",
                call_id, account_id, media_id, outcome, cause, took_s, "recording closed"
            );
        }
        counter!("kz_record_call_recordings_closed_total", "outcome" => outcome, "cause" => cause).increment(1);
        histogram!("kz_record_call_recording_seconds").record(self.took);
    }
}

/// The request to a switch for a file ended.
pub struct CollectEnded<'a> {
    pub call_id: &'a str,
    pub media_id: &'a str,
    pub switch: &'a str,
    pub result: Result<u64, &'a str>,
}

impl CollectEnded<'_> {
    pub fn emit(self) {
        let (call_id, media_id, switch) = (self.call_id, self.media_id, self.switch);
        let result = match self.result {
            Ok(bytes) => {
                debug!(
                    event = "audio_received",
                    call_id, media_id, switch, bytes, "audio received"
                );
                "received"
            }
            Err(why) => {
                warn!(
                    event = "audio_not_received",
                    call_id, media_id, switch, why, "audio not received, file stays on the switch"
                );
                "failed"
            }
        };
        counter!("kz_record_call_collects_total", "result" => result).increment(1);
    }
}

/// An upload to our ingest was answered.
pub struct UploadAnswered<'a> {
    pub media_id: &'a str,
    pub status: u16,
    pub bytes: u64,
    pub why: &'a str,
}

impl UploadAnswered<'_> {
    pub fn emit(self) {
        if self.status < 300 {
            debug!(
                event = "upload_answered",
                media_id = self.media_id,
                status = self.status,
                bytes = self.bytes,
                why = self.why,
                "upload answered"
            );
        } else {
            info!(
                event = "upload_refused",
                media_id = self.media_id,
                status = self.status,
                bytes = self.bytes,
                why = self.why,
                "upload refused"
            );
        }
        counter!("kz_record_call_uploads_total", "status" => self.status.to_string()).increment(1);
        counter!("kz_record_call_upload_bytes_total").increment(self.bytes);
    }
}

/// A limit turned away an upload (`ingest.in_all`), or a connection. The switch keeps its file, and is asked for it again later.
pub struct UploadTurnedAway {
    /// One of `LIMITS`.
    pub limit: &'static str,
}

impl UploadTurnedAway {
    pub const UPLOADS: &'static str = "uploads";
    pub const CONNECTIONS: &'static str = "connections";
    pub const LIMITS: [&'static str; 2] = [Self::UPLOADS, Self::CONNECTIONS];

    pub fn emit(self) {
        counter!("kz_record_call_uploads_turned_away_total", "limit" => self.limit).increment(1);
    }
}

/// The number of uploads in flight changed by `by`.
pub struct UploadsInProgress {
    pub by: i32,
}

impl UploadsInProgress {
    pub fn emit(self) {
        gauge!("kz_record_call_uploads_in_progress").increment(f64::from(self.by));
    }
}

/// The number of recordings in this worker's in-flight registry changed by `by`.
pub struct RecordingsInHand {
    pub by: i32,
}

impl RecordingsInHand {
    pub fn emit(self) {
        gauge!("kz_record_call_recordings_in_hand").increment(f64::from(self.by));
    }
}

/// Received audio has a fault.
pub struct AudioSuspect<'a> {
    pub call_id: &'a str,
    pub media_id: &'a str,
    pub finding: &'static str,
    pub size: u64,
}

impl AudioSuspect<'_> {
    pub fn emit(self) {
        warn!(
            event = "audio_suspect",
            call_id = self.call_id,
            media_id = self.media_id,
            finding = self.finding,
            size = self.size,
            "suspect audio, kept as received"
        );
        counter!("kz_record_call_findings_total", "finding" => self.finding).increment(1);
    }
}

/// A delivery attempt ended.
pub struct DeliveryEnded<'a> {
    pub call_id: &'a str,
    pub media_id: &'a str,
    pub destination: &'static str,
    /// The server's host. Empty when the route to it is unknown.
    pub host: &'a str,
    pub result: Result<(), &'a str>,
    pub took: Duration,
}

impl DeliveryEnded<'_> {
    pub fn emit(self) {
        let (call_id, media_id) = (self.call_id, self.media_id);
        let (destination, host) = (self.destination, self.host);
        let result = match self.result {
            Ok(()) => {
                info!(
                    event = "delivered",
                    call_id,
                    media_id,
                    destination,
                    host,
                    took_s = self.took.as_secs_f64(),
                    "delivered"
                );
                histogram!("kz_record_call_delivery_seconds", "destination" => destination).record(self.took);
                "delivered"
            }
            Err(why) => {
                warn!(
                    event = "not_delivered",
                    call_id, media_id, destination, host, why, "not delivered, retrying"
                );
                "failed"
            }
        };
        counter!("kz_record_call_deliveries_total", "destination" => destination, "result" => result).increment(1);
    }
}

/// A notice was published and confirmed.
pub struct Announced<'a> {
    pub media_id: &'a str,
    pub kind: &'static str,
}

impl Announced<'_> {
    pub fn emit(self) {
        debug!(
            event = "notification_published",
            media_id = self.media_id,
            kind = self.kind,
            "notification published"
        );
        counter!("kz_record_call_announcements_total", "kind" => self.kind).increment(1);
    }
}

/// A queue that an event is routed to refuses the event for good. The other queues have it.
pub struct NoticeGivenUp<'a> {
    pub call_id: &'a str,
    pub media_id: &'a str,
    pub kind: &'static str,
}

impl NoticeGivenUp<'_> {
    pub fn emit(self) {
        warn!(
            event = "notification_given_up",
            call_id = self.call_id,
            media_id = self.media_id,
            kind = self.kind,
            "notification refused by a queue, given up"
        );
        counter!("kz_record_call_announcements_refused_total", "kind" => self.kind).increment(1);
    }
}

/// Attempts are over: the recording is parked, and its audio is kept. An operator must retry or discard it.
pub struct RecordingParked<'a> {
    pub call_id: &'a str,
    pub account_id: &'a str,
    pub media_id: &'a str,
    pub cause: &'static str,
}

impl RecordingParked<'_> {
    pub fn emit(self) {
        error!(
            event = "recording_parked",
            call_id = self.call_id,
            account_id = self.account_id,
            media_id = self.media_id,
            cause = self.cause,
            "recording parked"
        );
        counter!("kz_record_call_recordings_parked_total", "cause" => self.cause).increment(1);
    }
}

/// A mask or unmask command had no effect, as far as is known. Speech may have been recorded, or lost.
pub struct ControlNotObeyed<'a> {
    pub call_id: &'a str,
    pub account_id: &'a str,
    pub media_id: &'a str,
    /// `stop`, `mask` or `unmask`.
    pub control: &'static str,
    pub why: &'static str,
}

impl ControlNotObeyed<'_> {
    pub fn emit(self) {
        error!(
            event = "control_not_obeyed",
            call_id = self.call_id,
            account_id = self.account_id,
            media_id = self.media_id,
            control = self.control,
            why = self.why,
            "control not obeyed"
        );
        counter!("kz_record_call_controls_not_obeyed_total", "control" => self.control).increment(1);
    }
}

/// The switch did not confirm that a recording was stopped. Speech may still be recorded.
pub struct StopUnconfirmed<'a> {
    pub call_id: &'a str,
    pub account_id: &'a str,
    pub media_id: &'a str,
}

impl StopUnconfirmed<'_> {
    pub fn emit(self) {
        error!(
            call_id = self.call_id,
            account_id = self.account_id,
            media_id = self.media_id,
            event = "stop_unconfirmed",
            "stop not confirmed by the switch"
        );
        counter!("kz_record_call_stops_unconfirmed_total").increment(1);
    }
}
