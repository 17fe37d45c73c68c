//! Events of the broker, its messages, the database and the configuration.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::{counter, gauge, histogram};
use tracing::{debug, error, info, warn};

use super::outage::Outage;

/// A message could not be decoded. It is in the dead-letter queue, with the reason.
pub struct MessageRejected<'a> {
    pub queue: &'static str,
    pub call_id: &'a str,
    pub why: &'a str,
}

impl MessageRejected<'_> {
    pub fn emit(self) {
        error!(
            event = "message_rejected",
            queue = self.queue,
            call_id = super::shown(self.call_id),
            why = self.why,
            "message unreadable, dead-lettered"
        );
        counter!("kz_record_call_messages_rejected_total", "queue" => self.queue).increment(1);
    }
}

/// An AMQP connection came up or went down.
pub struct AmqpConnection<'a> {
    pub connection: &'static str,
    /// Host, port and vhost. A worker with several brokers tries one after the other.
    pub broker: &'a str,
    /// `Err` holds the reason why the connection went down.
    pub state: Result<(), &'a str>,
}

impl AmqpConnection<'_> {
    pub fn emit(self) {
        static OUTAGES: Mutex<BTreeMap<&str, Outage>> = Mutex::new(BTreeMap::new());
        let (connection, broker) = (self.connection, self.broker);
        let mut outages = OUTAGES.lock().unwrap_or_else(PoisonError::into_inner);
        match self.state {
            Ok(()) => {
                outages.remove(connection);
                info!(event = "amqp_connected", connection, broker, "AMQP connected");
                counter!("kz_record_call_amqp_sessions_total", "connection" => connection).increment(1);
                gauge!("kz_record_call_amqp_connected", "connection" => connection).set(1.0);
            }
            Err(why) => {
                let outage = outages.entry(connection).or_default();
                if let Some(attempts) = outage.failed(&format!("{broker} {why}"), Instant::now()) {
                    warn!(
                        event = "amqp_not_connected",
                        connection, broker, why, attempts, "AMQP not connected"
                    );
                }
                gauge!("kz_record_call_amqp_connected", "connection" => connection).set(0.0);
            }
        }
    }
}

/// The broker blocks our publishing (`connection.blocked`), because of a memory or disk alarm. The alarm began, or is over.
pub enum AmqpAlarm<'a> {
    Began { reason: &'a str },
    Ended { lasted: Duration },
}

impl AmqpAlarm<'_> {
    pub fn emit(self) {
        let blocked = match self {
            Self::Began { reason } => {
                error!(event = "amqp_blocked", reason, "RabbitMQ blocks publishing");
                counter!("kz_record_call_amqp_alarms_total").increment(1);
                1.0
            }
            Self::Ended { lasted } => {
                warn!(
                    event = "amqp_unblocked",
                    lasted_ms = u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX),
                    "RabbitMQ takes messages again"
                );
                0.0
            }
        };
        gauge!("kz_record_call_amqp_blocked").set(blocked);
    }
}

/// The broker refuses to report on Kazoo's queues on this connection. RabbitMQ 4.2.6 and later require a permission for that.
pub struct LooksRefused<'a> {
    pub queue: &'a str,
    /// It is a queue of Kazoo's own recorder, whose consumers the worker counts.
    pub of_recorder: bool,
    pub why: &'a str,
}

impl LooksRefused<'_> {
    pub fn emit(self) {
        let means = match self.of_recorder {
            true => "queue of Kazoo's own recorder unreadable",
            false => "queue depth unreadable, fixed rate limit in force",
        };
        warn!(
            event = "queue_look_refused",
            queue = self.queue,
            why = self.why,
            "{means}"
        );
    }
}

/// The dead-letter queue was missing, and was declared again.
pub struct DeadLettersDeclared<'a> {
    pub queue: &'a str,
}

impl DeadLettersDeclared<'_> {
    pub fn emit(self) {
        warn!(
            event = "dead_letter_queue_declared",
            queue = self.queue,
            "dead-letter queue missing, declared again"
        );
    }
}

/// A delivery was not completed, and returns to its queue.
pub struct DeliveryReturned {
    pub queue: &'static str,
}

impl DeliveryReturned {
    pub fn emit(self) {
        warn!(
            event = "delivery_returned",
            queue = self.queue,
            "message returned to its queue"
        );
        counter!("kz_record_call_deliveries_returned_total", "queue" => self.queue).increment(1);
    }
}

/// A message was published, or could not be published.
pub struct Published {
    pub exchange: &'static str,
    /// `confirmed`, `unroutable` or `failed`.
    pub result: &'static str,
}

impl Published {
    pub fn emit(self) {
        counter!("kz_record_call_publishes_total", "exchange" => self.exchange, "result" => self.result).increment(1);
    }
}

/// No ecallmgr's queue took a request to a switch. The message is also counted as published.
pub struct NoEcallmgr<'a> {
    pub switch: &'a str,
}

/// Minimum interval between two such log lines, over all switches.
const SAID_ONCE_IN: Duration = Duration::from_secs(60);

impl NoEcallmgr<'_> {
    pub fn emit(self) {
        static SAID: Mutex<Option<Instant>> = Mutex::new(None);
        let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_some_and(|at| at.elapsed() < SAID_ONCE_IN) {
            return;
        }
        *said = Some(Instant::now());
        warn!(
            event = "no_ecallmgr",
            switch = self.switch,
            "no ecallmgr serves the switch"
        );
    }
}

/// The certificate files of the upload port were read, because they changed or an operator requested it.
pub struct CertificateRead<'a> {
    /// `Err` holds the reason why they are unusable. The certificate before them stays in use.
    pub result: Result<(), &'a str>,
}

impl CertificateRead<'_> {
    pub fn emit(self) {
        let result = match self.result {
            Ok(()) => {
                info!(event = "upload_certificate_read", "upload certificate read");
                "ok"
            }
            Err(why) => {
                error!(
                    event = "upload_certificate_unreadable",
                    why, "upload certificate unreadable, previous one stays in use"
                );
                "failed"
            }
        };
        counter!("kz_record_call_certificate_reads_total", "result" => result).increment(1);
    }
}

/// `system_config/media` was read, or could not be read.
pub struct ConfigRead<'a> {
    /// `Err` holds the reason, whether the settings were read before, and whether to log this.
    pub result: Result<(), (&'a str, bool, bool)>,
}

impl ConfigRead<'_> {
    pub fn emit(self) {
        let result = match self.result {
            Ok(()) => "ok",
            Err((_, _, false)) => "failed",
            Err((why, true, true)) => {
                warn!(
                    event = "media_config_unreadable",
                    why, "system_config/media unreadable, previous values stay in force"
                );
                "failed"
            }
            Err((why, false, true)) => {
                warn!(
                    event = "media_config_unreadable",
                    why, "system_config/media unreadable, no values yet"
                );
                "failed"
            }
        };
        counter!("kz_record_call_config_reads_total", "result" => result).increment(1);
    }
}

/// A request with entries was sent to the ledger.
pub struct LedgerBatch {
    pub entries: usize,
    pub took: Duration,
    pub good: bool,
}

impl LedgerBatch {
    pub fn emit(self) {
        let result = if self.good { "written" } else { "failed" };
        let entries = u64::try_from(self.entries).unwrap_or(u64::MAX);
        counter!("kz_record_call_ledger_writes_total", "result" => result).increment(entries);
        counter!("kz_record_call_ledger_batches_total", "result" => result).increment(1);
        histogram!("kz_record_call_ledger_batch_seconds").record(self.took);
    }
}

/// An entry was written several times, and the cluster still has fewer copies than its quorum. The entry counts as written all the same.
pub struct LedgerBelowQuorum<'a> {
    pub call_id: &'a str,
    pub writes: u32,
}

impl LedgerBelowQuorum<'_> {
    pub fn emit(self) {
        warn!(
            event = "ledger_below_quorum",
            call_id = self.call_id,
            writes = self.writes,
            "ledger entry below quorum"
        );
        counter!("kz_record_call_ledger_below_quorum_total").increment(1);
    }
}

/// The ledger went down, or came back.
pub struct LedgerState<'a> {
    pub state: Result<(), &'a str>,
}

impl LedgerState<'_> {
    pub fn emit(self) {
        match self.state {
            Ok(()) => info!(event = "ledger_up", "ledger up"),
            Err(why) => error!(event = "ledger_down", why, "ledger down"),
        }
        gauge!("kz_record_call_ledger_up").set(if self.state.is_ok() { 1.0 } else { 0.0 });
    }
}

/// A start that the ledger did not accept in time went to the journal.
pub struct Journalled<'a> {
    pub call_id: &'a str,
    pub media_id: &'a str,
    pub result: Result<(), &'a str>,
}

impl Journalled<'_> {
    pub fn emit(self) {
        let (call_id, media_id) = (self.call_id, self.media_id);
        let result = match self.result {
            Ok(()) => {
                debug!(
                    event = "journal_written",
                    call_id, media_id, "start written to the journal"
                );
                "written"
            }
            Err(why) => {
                error!(
                    event = "journal_failed",
                    call_id, media_id, why, "start not written, action stays in its queue"
                );
                "failed"
            }
        };
        counter!("kz_record_call_journal_writes_total", "result" => result).increment(1);
    }
}

/// A stop, mask or unmask was put into the queue where it waits for the ledger. Only the ledger can name the recording, and it does not
/// answer.
pub struct ControlWaits<'a> {
    pub call_id: &'a str,
    pub action: &'a str,
    pub why: &'a str,
    pub result: Result<(), String>,
}

impl ControlWaits<'_> {
    pub fn emit(self) {
        let (call_id, action, why) = (self.call_id, self.action, self.why);
        let result = match self.result {
            Ok(()) => {
                warn!(event = "control_waits", call_id, action, why, "control waits");
                "put"
            }
            Err(error) => {
                error!(
                    event = "control_waits",
                    call_id, action, why, error, "control waits in the actions' queue"
                );
                "failed"
            }
        };
        counter!("kz_record_call_controls_waiting_total", "result" => result).increment(1);
    }
}

/// A month of the ledger could not be read.
pub struct MonthUnreadable<'a> {
    pub database: &'a str,
    pub why: &'a str,
    /// Whether this is the first unreadable month in this pass over all months.
    pub first: bool,
}

impl MonthUnreadable<'_> {
    pub fn emit(self) {
        counter!("kz_record_call_months_unreadable_total").increment(1);
        if self.first {
            let (database, why) = (self.database, self.why);
            warn!(
                event = "ledger_month_unreadable",
                database, why, "ledger month unreadable"
            );
        }
    }
}

/// A sweep for due timers ended.
pub struct SweepEnded {
    pub due: usize,
    pub taken: usize,
}

impl SweepEnded {
    pub fn emit(self) {
        if self.due > 0 {
            debug!(event = "sweep_done", due = self.due, taken = self.taken, "sweep done");
        }
        let taken = u64::try_from(self.taken).unwrap_or(u64::MAX);
        counter!("kz_record_call_sweep_taken_total").increment(taken);
    }
}

/// A CouchDB server refuses our credentials, or accepts them again.
pub struct CredentialsRefused<'a> {
    /// User and server.
    pub login: &'a str,
    /// `Err` holds the reason, and for how long the worker sends no request there.
    pub state: Result<(), (&'a str, Duration)>,
}

impl CredentialsRefused<'_> {
    pub fn emit(self) {
        match self.state {
            Ok(()) => info!(
                event = "credentials_accepted",
                login = self.login,
                "CouchDB accepts the credentials again"
            ),
            Err((why, pause)) => {
                error!(
                    event = "credentials_refused",
                    login = self.login,
                    why,
                    pause_s = pause.as_secs(),
                    "CouchDB refuses the credentials"
                );
                counter!("kz_record_call_credentials_refusals_total").increment(1);
            }
        }
    }
}

/// The number of credentials that are refused now.
pub struct CredentialsJudged {
    pub refused: usize,
}

impl CredentialsJudged {
    pub fn emit(self) {
        #[allow(clippy::cast_precision_loss)] // a few
        gauge!("kz_record_call_credentials_refused").set(self.refused as f64);
    }
}

/// Environment variables name proxies, which the worker does not use.
pub struct ProxiesIgnored<'a> {
    pub variables: &'a [&'static str],
}

impl ProxiesIgnored<'_> {
    pub fn emit(self) {
        if !self.variables.is_empty() {
            info!(
                event = "proxies_ignored",
                variables = self.variables.join(", "),
                "proxy variables ignored"
            );
        }
    }
}
