//! Sets each counter with known labels to 0 at start. `rate()` and `increase()` do not see the creation of a counter, so the first failure
//! would be invisible.

use metrics::{counter, gauge, histogram};

/// The possible values of labels, from the modules that define them.
pub struct Labels<'a> {
    /// Outcome and cause of closed recordings.
    pub closed: &'a [(&'static str, &'static str)],
    pub parked: &'a [&'static str],
    /// Keys of an action's data.
    pub keys: &'a [&'static str],
    pub commands: &'a [&'static str],
    pub findings: &'a [&'static str],
    pub destinations: &'a [&'static str],
    pub announcements: &'a [&'static str],
    pub exchanges: &'a [&'static str],
    pub hold_refusals: &'a [&'static str],
}

/// Actions, by their result.
const ACTIONS: [&str; 6] = ["start", "stop", "mask", "unmask", "skip", "refused"];
/// The status codes of our upload port.
const STATUSES: [&str; 11] = [
    "200", "400", "403", "404", "405", "408", "410", "413", "421", "503", "507",
];
/// Queues that may contain unreadable messages.
const QUEUES: [&str; 4] = ["actions", "endings", "journal", "answers"];
const CONNECTIONS: [&str; 2] = ["consume", "publish"];

/// Creates all these counters, and the gauges that are set only when they change.
pub fn begin_at_zero(labels: &Labels<'_>) {
    plain();
    for action in ACTIONS {
        counter!("kz_record_call_actions_total", "action" => action).absolute(0);
    }
    for key in labels.keys.iter().copied() {
        counter!("kz_record_call_corrections_total", "key" => key).absolute(0);
    }
    for command in labels.commands.iter().copied() {
        for result in ["sent", "unroutable", "failed"] {
            counter!("kz_record_call_commands_total", "command" => command, "result" => result).absolute(0);
        }
    }
    counter!("kz_record_call_commands_total", "command" => "start", "result" => "refused").absolute(0);
    for (outcome, cause) in labels.closed.iter().copied() {
        counter!("kz_record_call_recordings_closed_total", "outcome" => outcome, "cause" => cause).absolute(0);
    }
    for cause in labels.parked.iter().copied() {
        counter!("kz_record_call_recordings_parked_total", "cause" => cause).absolute(0);
    }
    for result in ["received", "failed"] {
        counter!("kz_record_call_collects_total", "result" => result).absolute(0);
    }
    for status in STATUSES {
        counter!("kz_record_call_uploads_total", "status" => status).absolute(0);
    }
    for limit in super::UploadTurnedAway::LIMITS {
        counter!("kz_record_call_uploads_turned_away_total", "limit" => limit).absolute(0);
    }
    for finding in labels.findings.iter().copied() {
        counter!("kz_record_call_findings_total", "finding" => finding).absolute(0);
    }
    for destination in labels.destinations.iter().copied() {
        for result in ["delivered", "failed"] {
            counter!("kz_record_call_deliveries_total", "destination" => destination, "result" => result).absolute(0);
        }
    }
    for handler in super::StoragePut::HANDLERS {
        for result in super::StoragePut::RESULTS {
            counter!("kz_record_call_storage_puts_total", "handler" => handler, "result" => result).absolute(0);
        }
        counter!("kz_record_call_storage_bytes_total", "handler" => handler).absolute(0);
    }
    counter!("kz_record_call_storage_unproved_total").absolute(0);
    for kind in labels.announcements.iter().copied() {
        counter!("kz_record_call_announcements_total", "kind" => kind).absolute(0);
        counter!("kz_record_call_announcements_refused_total", "kind" => kind).absolute(0);
    }
    for queue in QUEUES {
        counter!("kz_record_call_messages_rejected_total", "queue" => queue).absolute(0);
        counter!("kz_record_call_deliveries_returned_total", "queue" => queue).absolute(0);
    }
    counter!("kz_record_call_dead_letters_expired_total").absolute(0);
    for connection in CONNECTIONS {
        counter!("kz_record_call_amqp_sessions_total", "connection" => connection).absolute(0);
        gauge!("kz_record_call_amqp_connected", "connection" => connection).set(0.0);
    }
    for exchange in labels.exchanges.iter().copied() {
        for result in ["confirmed", "unroutable", "failed"] {
            counter!("kz_record_call_publishes_total", "exchange" => exchange, "result" => result).absolute(0);
        }
    }
    for reason in labels.hold_refusals.iter().copied() {
        counter!("kz_record_call_hold_refusals_total", "reason" => reason).absolute(0);
    }
}

/// Metrics without labels, or with labels that are known here.
fn plain() {
    for result in ["ok", "failed"] {
        counter!("kz_record_call_config_reads_total", "result" => result).absolute(0);
    }
    for result in ["reported", "refused"] {
        counter!("kz_record_call_addresses_total", "result" => result).absolute(0);
    }
    for result in ["ok", "failed"] {
        counter!("kz_record_call_certificate_reads_total", "result" => result).absolute(0);
    }
    for result in ["written", "failed"] {
        counter!("kz_record_call_ledger_writes_total", "result" => result).absolute(0);
        counter!("kz_record_call_ledger_batches_total", "result" => result).absolute(0);
        counter!("kz_record_call_journal_writes_total", "result" => result).absolute(0);
    }
    counter!("kz_record_call_months_unreadable_total").absolute(0);
    for result in ["put", "failed"] {
        counter!("kz_record_call_controls_waiting_total", "result" => result).absolute(0);
    }
    counter!("kz_record_call_recordings_started_total").absolute(0);
    counter!("kz_record_call_recordings_ended_total").absolute(0);
    counter!("kz_record_call_recordings_continued_total").absolute(0);
    counter!("kz_record_call_stops_unconfirmed_total").absolute(0);
    for control in ["stop", "mask", "unmask"] {
        counter!("kz_record_call_controls_not_obeyed_total", "control" => control).absolute(0);
    }
    counter!("kz_record_call_upload_bytes_total").absolute(0);
    counter!("kz_record_call_databases_created_total").absolute(0);
    counter!("kz_record_call_target_pauses_total").absolute(0);
    counter!("kz_record_call_read_backs_failed_total").absolute(0);
    counter!("kz_record_call_sweep_taken_total").absolute(0);
    counter!("kz_record_call_sweeps_full_total").absolute(0);
    counter!("kz_record_call_collects_put_off_total").absolute(0);
    counter!("kz_record_call_workers_gone_total").absolute(0);
    counter!("kz_record_call_ledger_below_quorum_total").absolute(0);
    for task in super::TASKS {
        counter!("kz_record_call_panics_total", "task" => task).absolute(0);
    }
    counter!("kz_record_call_credentials_refusals_total").absolute(0);
    // Histograms too, so that the first slow action is visible in their buckets.
    let _ = histogram!("kz_record_call_action_seconds");
    let _ = histogram!("kz_record_call_recording_seconds");
    let _ = histogram!("kz_record_call_ledger_batch_seconds");
    counter!("kz_record_call_amqp_alarms_total").absolute(0);
    gauge!("kz_record_call_amqp_blocked").set(0.0);
    gauge!("kz_record_call_uploads_in_progress").set(0.0);
    gauge!("kz_record_call_recordings_in_hand").set(0.0);
    gauge!("kz_record_call_targets_paused").set(0.0);
    gauge!("kz_record_call_credentials_refused").set(0.0);
    // The ledger's writer assumes that the ledger is up, until a request fails.
    gauge!("kz_record_call_ledger_up").set(1.0);
}
