//! Faults of the program itself: panicked tasks, and recordings that had to wait.

use metrics::counter;
use tracing::error;

use super::shown;

/// The kinds of tasks: the label of the metric.
pub const TASKS: [&str; 3] = ["recording", "handler", "background"];

/// A task panicked, and its panic was caught.
pub struct TaskPanicked<'a> {
    /// One of `TASKS`.
    pub task: &'static str,
    /// The name of the task within its kind.
    pub name: &'a str,
    pub call_id: &'a str,
    pub media_id: &'a str,
    pub why: &'a str,
}

impl TaskPanicked<'_> {
    pub fn emit(self) {
        error!(
            event = "task_panicked",
            task = self.task,
            name = self.name,
            call_id = shown(self.call_id),
            media_id = self.media_id,
            panic = self.why,
            "task panicked"
        );
        counter!("kz_record_call_panics_total", "task" => self.task).increment(1);
    }
}

/// The sweep takes no recording, because this worker has as many recordings in flight as it may.
pub struct SweepFull {
    pub in_flight: usize,
    /// Whether this is the first time since the sweep took a recording.
    pub first: bool,
}

impl SweepFull {
    pub fn emit(self) {
        if self.first {
            tracing::warn!(event = "sweep_full", in_flight = self.in_flight, "sweep full");
        }
        counter!("kz_record_call_sweeps_full_total").increment(1);
    }
}

/// A recording was deferred, because too many wait for an upload slot of its switch already.
pub struct CollectPutOff<'a> {
    pub call_id: &'a str,
    pub switch: &'a str,
    /// Whether this is the first one since a slot of that switch was free.
    pub first: bool,
}

impl CollectPutOff<'_> {
    pub fn emit(self) {
        if self.first {
            tracing::warn!(
                event = "switch_queue_full",
                switch = self.switch,
                call_id = shown(self.call_id),
                "upload slots of a switch full"
            );
        }
        counter!("kz_record_call_collects_put_off_total").increment(1);
    }
}

/// Another worker is gone. This worker takes over its recordings in flight.
pub struct WorkerGone<'a> {
    pub worker: &'a str,
    pub recordings: usize,
}

impl WorkerGone<'_> {
    pub fn emit(self) {
        tracing::warn!(
            event = "worker_gone",
            worker = shown(self.worker),
            recordings = self.recordings,
            "worker gone, taking over its recordings"
        );
        counter!("kz_record_call_workers_gone_total").increment(1);
    }
}
