//! Events of recordings of Kazoo's own recorder.

use metrics::{counter, gauge};
use tracing::{error, info, warn};

/// Consumers and messages of the queue of Kazoo's own recorder, as the broker reports them.
pub struct KazooRecorderSeen {
    pub consumers: u32,
    pub messages: u32,
}

impl KazooRecorderSeen {
    pub fn emit(self) {
        gauge!("kz_record_call_kazoo_recorder_consumers").set(f64::from(self.consumers));
        gauge!("kz_record_call_kazoo_recorder_messages").set(f64::from(self.messages));
    }
}

/// The worker stores the recordings of Kazoo's own recorder from now on, or leaves them to Kazoo and why. `None`: it does not know yet.
pub struct Adopting<'a> {
    pub by_worker: Option<Result<(), &'a str>>,
}

impl Adopting<'_> {
    pub fn emit(self) {
        let adopting = match self.by_worker {
            None => {
                for result in RESULTS {
                    counter!("kz_record_call_adopted_events_total", "result" => result).absolute(0);
                }
                0.0
            }
            Some(Ok(())) => {
                info!(
                    event = "adopting",
                    "no consumer of Kazoo's queue recordings, the worker stores Kazoo's own recordings"
                );
                1.0
            }
            Some(Err(why)) => {
                error!(
                    event = "adopt_refused",
                    why,
                    "Kazoo's own recordings are left to Kazoo; set call_recording.workers to 0 in system_config/media, and restart media_mgr"
                );
                0.0
            }
        };
        gauge!("kz_record_call_adopting").set(adopting);
    }
}

/// What happened to an event of Kazoo's own recorder: `adopted`, `left`, or `unknown`.
pub struct AdoptedEvent {
    pub result: &'static str,
}

const RESULTS: [&str; 3] = ["adopted", "left", "unknown"];

impl AdoptedEvent {
    pub fn emit(self) {
        counter!("kz_record_call_adopted_events_total", "result" => self.result).increment(1);
    }
}

/// A look whether Kazoo's own recorder has stored a recording.
pub struct KazooLook {
    pub first: bool,
    /// `stored`, `deleted`, `not_wanted`, `missing`, `no_audio`, or `unanswered`.
    pub result: &'static str,
}

impl KazooLook {
    pub fn emit(self) {
        let look = if self.first { "first" } else { "later" };
        counter!("kz_record_call_kazoo_looks_total", "look" => look, "result" => self.result).increment(1);
    }
}

/// Kazoo's own recorder had not stored a recording at the first look.
pub struct KazooRecordingDoubtful<'a> {
    pub call_id: &'a str,
    pub account_id: &'a str,
    pub media_id: &'a str,
    pub found: &'static str,
}

impl KazooRecordingDoubtful<'_> {
    pub fn emit(self) {
        warn!(
            event = "kazoo_recording_doubtful",
            call_id = super::shown(self.call_id),
            account_id = self.account_id,
            media_id = self.media_id,
            found = self.found,
            "Kazoo's own recording not stored at the first look"
        );
    }
}

/// Kazoo's own recorder did not store a recording, and tries no more.
pub struct RecordingLost<'a> {
    pub call_id: &'a str,
    pub account_id: &'a str,
    pub media_id: &'a str,
    pub cause: &'static str,
}

impl RecordingLost<'_> {
    pub fn emit(self) {
        error!(
            event = "recording_lost",
            call_id = super::shown(self.call_id),
            account_id = self.account_id,
            media_id = self.media_id,
            cause = self.cause,
            "Kazoo's own recorder did not store the recording"
        );
        counter!("kz_record_call_recordings_lost_total", "cause" => self.cause).increment(1);
    }
}

/// An end of Kazoo's own recording names no file that the worker could look for.
pub struct KazooRecordingUnreadable<'a> {
    pub call_id: &'a str,
    pub media_id: &'a str,
    pub why: &'a str,
}

impl KazooRecordingUnreadable<'_> {
    pub fn emit(self) {
        warn!(
            event = "kazoo_recording_unreadable",
            call_id = super::shown(self.call_id),
            media_id = super::shown(self.media_id),
            why = self.why,
            "Kazoo's own recording not watched"
        );
        counter!("kz_record_call_kazoo_looks_total", "look" => "first", "result" => "unreadable").increment(1);
    }
}

/// No process consumes the queue of Kazoo's own recorder, or one does again.
pub struct KazooRecorderAbsent<'a> {
    pub why: Option<&'a str>,
}

impl KazooRecorderAbsent<'_> {
    pub fn emit(self) {
        match self.why {
            Some(why) => error!(
                event = "kazoo_recorder_absent",
                why, "Kazoo's own recorder does not run: no program stores Kazoo's own recordings; start media_mgr"
            ),
            None => info!(event = "kazoo_recorder_present", "Kazoo's own recorder runs"),
        }
        gauge!("kz_record_call_kazoo_recorder_absent").set(if self.why.is_some() { 1.0 } else { 0.0 });
    }
}

/// Looks at the queue of Kazoo's own recorder give no answer, and why; or they do again.
pub struct KazooRecorderUnseen<'a> {
    pub why: Option<&'a str>,
}

impl KazooRecorderUnseen<'_> {
    /// The worker has begun to look.
    pub fn begin() {
        gauge!("kz_record_call_kazoo_recorder_unseen").set(0.0);
    }

    pub fn emit(self) {
        match self.why {
            Some(why) => error!(
                event = "kazoo_recorder_unseen",
                why, "whether Kazoo's own recorder runs is unknown, the last known state counts"
            ),
            None => info!(
                event = "kazoo_recorder_seen",
                "whether Kazoo's own recorder runs is known again"
            ),
        }
        gauge!("kz_record_call_kazoo_recorder_unseen").set(if self.why.is_some() { 1.0 } else { 0.0 });
    }
}

/// The settings of Kazoo's own recording cannot be read, so its URL is unknown.
pub struct AdoptedDataUnreadable<'a> {
    pub call_id: &'a str,
    pub media_id: &'a str,
    pub why: &'a str,
}

impl AdoptedDataUnreadable<'_> {
    pub fn emit(self) {
        warn!(
            event = "adopted_settings_unreadable",
            call_id = super::shown(self.call_id),
            media_id = self.media_id,
            why = self.why,
            "Recording.Data of Kazoo's own recording unreadable"
        );
    }
}
