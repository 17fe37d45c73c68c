//! One struct per event, whose `emit` logs and counts. Only this module contains metric names.
//!
//! Labels come from closed sets. A call, an account or a URL is never a label.
#![allow(clippy::disallowed_macros)] // the one place

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

mod action;
mod adopt;
mod destination;
mod gauges;
mod outage;
mod recording;
mod retention;
mod storage;
mod survival;
mod transport;
mod webhook;
mod zero;

pub use action::*;
pub use adopt::*;
pub use destination::*;
pub use gauges::*;
pub use recording::*;
pub use retention::*;
pub use storage::*;
pub use survival::*;
pub use transport::*;
pub use webhook::*;
pub use zero::{Labels, begin_at_zero};

/// All metrics, with help text and unit. A test of the docs reads this list.
pub const METRICS: &[(&str, &str)] = &[
    (
        "kz_record_call_actions_total",
        "Callflow actions received, by what was done: start, stop, mask, unmask, skip, refused.",
    ),
    (
        "kz_record_call_action_seconds",
        "From receiving an action to its result being confirmed by the broker.",
    ),
    (
        "kz_record_call_corrections_total",
        "Values of an action's data that were corrected, by key.",
    ),
    (
        "kz_record_call_commands_total",
        "Dialplan commands, by command and result: sent, unroutable, failed, refused.",
    ),
    (
        "kz_record_call_recordings_started_total",
        "RECORD_START events of own recordings.",
    ),
    (
        "kz_record_call_recordings_ended_total",
        "RECORD_STOP events of own recordings, repeats included.",
    ),
    (
        "kz_record_call_recordings_closed_total",
        "Recordings closed, by outcome and cause.",
    ),
    (
        "kz_record_call_recording_seconds",
        "From a recording's end to its being closed.",
    ),
    (
        "kz_record_call_adopting",
        "1 while the worker stores the recordings of Kazoo's own recorder, 0 while it leaves them to Kazoo. Absent with adopt.mode off.",
    ),
    (
        "kz_record_call_adopted_events_total",
        "Events of Kazoo's own recorder, by result: adopted, left (to Kazoo), unknown (returned to the queue).",
    ),
    (
        "kz_record_call_kazoo_recorder_consumers",
        "Consumers of the queue of Kazoo's own recorder, as last seen. Absent with adopt.mode off.",
    ),
    (
        "kz_record_call_kazoo_recorder_absent",
        "1 while no process consumes the queue of Kazoo's own recorder. Present with adopt.mode watch and rescue.",
    ),
    (
        "kz_record_call_kazoo_recorder_unseen",
        "1 while RabbitMQ does not report the consumers of the queue of Kazoo's own recorder. Absent with adopt.mode off.",
    ),
    (
        "kz_record_call_kazoo_looks_total",
        "Looks whether Kazoo's own recorder has stored a recording, by look (first, later) and result: stored, deleted, not_wanted, missing, no_audio, unanswered, unreadable.",
    ),
    (
        "kz_record_call_recordings_lost_total",
        "Recordings that Kazoo's own recorder did not store, by cause. With adopt.mode rescue: those that the worker did not store either.",
    ),
    (
        "kz_record_call_kazoo_recorder_messages",
        "Messages in the queue of Kazoo's own recorder, as last seen. Absent with adopt.mode off.",
    ),
    ("kz_record_call_collects_total", "Uploads asked of switches, by result."),
    ("kz_record_call_uploads_total", "Uploads received, by HTTP status."),
    ("kz_record_call_upload_bytes_total", "Bytes of audio received."),
    ("kz_record_call_uploads_in_progress", "Uploads under way now."),
    (
        "kz_record_call_uploads_turned_away_total",
        "Uploads and connections of switches that a limit turned away, by limit: uploads, connections.",
    ),
    (
        "kz_record_call_findings_total",
        "Things found wrong with audio, by finding.",
    ),
    (
        "kz_record_call_deliveries_total",
        "Attempts to deliver audio, by destination and result.",
    ),
    (
        "kz_record_call_storage_puts_total",
        "Attempts to put audio into an object store of a storage plan, by handler and result: stored, found, failed, plan_refused.",
    ),
    (
        "kz_record_call_storage_put_seconds",
        "Duration of successful uploads to an object store, by handler.",
    ),
    (
        "kz_record_call_storage_bytes_total",
        "Bytes of audio put into object stores, by handler.",
    ),
    (
        "kz_record_call_storage_unproved_total",
        "Objects that a store took, and whose digest it does not give.",
    ),
    (
        "kz_record_call_delivery_seconds",
        "Duration of successful deliveries, by destination.",
    ),
    (
        "kz_record_call_announcements_refused_total",
        "Notices that a queue refused until the worker gave them up, by kind.",
    ),
    ("kz_record_call_announcements_total", "Notices published, by kind."),
    (
        "kz_record_call_webhooks_total",
        "Attempts to send a webhook, by endpoint and result: sent, failed, parked. Absent without endpoints.",
    ),
    (
        "kz_record_call_webhook_seconds",
        "Duration of successful requests to an endpoint, by endpoint. Absent without endpoints.",
    ),
    (
        "kz_record_call_webhooks",
        "Webhooks of this worker's zone that endpoints have not accepted, by endpoint and state: owed, parked. Absent without endpoints.",
    ),
    (
        "kz_record_call_messages_rejected_total",
        "Messages that could not be read, by queue.",
    ),
    (
        "kz_record_call_dead_letters_expired_total",
        "Dead letters that were removed because they were older than the configuration keeps them.",
    ),
    (
        "kz_record_call_credentials_refused",
        "Users of CouchDB servers that the servers refuse now.",
    ),
    (
        "kz_record_call_credentials_refusals_total",
        "Times that a CouchDB server refused our credentials.",
    ),
    (
        "kz_record_call_amqp_connected",
        "1 while consuming or publishing is connected, by connection.",
    ),
    (
        "kz_record_call_amqp_blocked",
        "1 while the broker takes no messages of this worker because of an alarm (connection.blocked).",
    ),
    (
        "kz_record_call_amqp_alarms_total",
        "Times that the broker took no messages because of an alarm.",
    ),
    (
        "kz_record_call_deliveries_returned_total",
        "Messages that were not finished and went back to their queue, by queue.",
    ),
    (
        "kz_record_call_amqp_sessions_total",
        "AMQP sessions begun, by connection.",
    ),
    (
        "kz_record_call_publishes_total",
        "Messages published, by exchange and result.",
    ),
    (
        "kz_record_call_config_reads_total",
        "Reads of system_config/media, by result.",
    ),
    (
        "kz_record_call_certificate_reads_total",
        "Reads of a changed certificate for uploads, by result.",
    ),
    (
        "kz_record_call_addresses_total",
        "Addresses that recordings' URLs led to and that are no public ones, by result: reported, refused.",
    ),
    (
        "kz_record_call_databases_created_total",
        "Monthly databases that were missing and were created.",
    ),
    (
        "kz_record_call_target_pauses_total",
        "Times that the circuit breaker of a target opened because different recordings failed there alike.",
    ),
    (
        "kz_record_call_read_backs_failed_total",
        "Looks at recordings stored with too few copies (202) that did not find them whole.",
    ),
    (
        "kz_record_call_recordings_in_hand",
        "Recordings that this worker is working on now.",
    ),
    (
        "kz_record_call_ready",
        "1 while what this worker needs is there, by check, as in /readyz.",
    ),
    (
        "kz_record_call_recordings",
        "Recordings of this worker's zone that the ledger has, by state. The same from every worker of a zone.",
    ),
    (
        "kz_record_call_oldest_seconds",
        "Seconds since the oldest recording in a state was asked for, by state: ended, held, parked, announcing. 0: there is none.",
    ),
    (
        "kz_record_call_hold_bytes",
        "Bytes in the hold, which workers of a cluster share.",
    ),
    ("kz_record_call_hold_max_bytes", "The most that the hold takes."),
    (
        "kz_record_call_hold_refusals_total",
        "Times that the hold did not take audio, by reason: full, none, database, folder, source, corrupt, late.",
    ),
    ("kz_record_call_spool_free_bytes", "What the spool's disk has free."),
    (
        "kz_record_call_spool_min_free_bytes",
        "With less than this free no upload is asked for.",
    ),
    (
        "kz_record_call_targets_paused",
        "Targets whose circuit breaker is open; /readyz names them.",
    ),
    (
        "kz_record_call_last_look_timestamp_seconds",
        "When the gauges that come from a database were read last, as Unix time, by what they are of: recordings, hold.",
    ),
    ("kz_record_call_build_info", "1, with the version of the program."),
    (
        "kz_record_call_recordings_continued_total",
        "Recordings that the switch began again when their audio was safe already.",
    ),
    ("kz_record_call_recordings_parked_total", "Recordings parked, by cause."),
    (
        "kz_record_call_stops_unconfirmed_total",
        "Stops that the switch had not confirmed in time.",
    ),
    (
        "kz_record_call_controls_not_obeyed_total",
        "Stops, masks and unmasks that the switch did not obey, by control. A stop counts here when its recording is over.",
    ),
    ("kz_record_call_ledger_up", "1 while the ledger takes what is written."),
    (
        "kz_record_call_ledger_writes_total",
        "Entries written to the ledger, by result.",
    ),
    (
        "kz_record_call_ledger_batches_total",
        "Requests with entries to the ledger, by result.",
    ),
    ("kz_record_call_ledger_batch_seconds", "Duration of such a request."),
    (
        "kz_record_call_journal_writes_total",
        "Starts written to the journal because the ledger did not take them in time, by result.",
    ),
    (
        "kz_record_call_months_unreadable_total",
        "Looks at a month of the ledger that could not be read, while others could.",
    ),
    (
        "kz_record_call_controls_waiting_total",
        "Stops, masks and unmasks put where they wait for the ledger to tell their recording, by result.",
    ),
    (
        "kz_record_call_ledger_below_quorum_total",
        "Entries that count as written although fewer nodes than the quorum have them.",
    ),
    (
        "kz_record_call_panics_total",
        "Faults of the program that were caught, by task: recording, handler, background.",
    ),
    (
        "kz_record_call_sweeps_full_total",
        "Sweeps that took nothing because this worker had as many recordings in flight as it may have.",
    ),
    (
        "kz_record_call_collects_put_off_total",
        "Uploads put off because too many recordings waited for a slot of their switch.",
    ),
    (
        "kz_record_call_workers_gone_total",
        "Other workers whose heartbeat stopped, and whose recordings were taken over.",
    ),
    (
        "kz_record_call_sweep_taken_total",
        "Recordings whose timer was due, and that the worker took.",
    ),
];

/// All other metrics that end in `_seconds` are histograms.
const GAUGES_IN_SECONDS: [&str; 2] = [
    "kz_record_call_oldest_seconds",
    "kz_record_call_last_look_timestamp_seconds",
];

/// Registers the help texts.
pub fn describe() {
    for (name, help) in METRICS {
        if GAUGES_IN_SECONDS.contains(name) {
            describe_gauge!(*name, Unit::Seconds, *help);
        } else if name.ends_with("_seconds") {
            describe_histogram!(*name, Unit::Seconds, *help);
        } else if name.ends_with("_total") {
            describe_counter!(*name, *help);
        } else {
            describe_gauge!(*name, *help);
        }
    }
}

/// An id from outside, shortened for a log line.
fn shown(text: &str) -> &str {
    let end = text.char_indices().nth(256).map(|(end, _)| end);
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}
