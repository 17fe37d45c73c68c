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
