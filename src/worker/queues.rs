//! The queues that a worker consumes, and when it stops consuming some of them.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::amqp::{Binding, QueueKind, QueueSpec};
use crate::config::Config;
use crate::flow::{answers, journal, notices, returns, stop};
use crate::kazoo::change::MEDIA_CONFIG_KEYS;
use crate::kazoo::leg::LegEvent;
use crate::kazoo::names::{ACTION_KEY, Exchange};
use crate::ledger::Ledger;
use crate::telemetry::survive;

/// The queues that all workers share.
pub const ACTIONS: &str = "kz_record_call.actions";
pub const ENDINGS: &str = "kz_record_call.endings";

/// Bounds of the shared queues, in bytes.
const ACTIONS_MAX_BYTES: i64 = 256 << 20;
const ENDINGS_MAX_BYTES: i64 = 1 << 30;
const JOURNAL_MAX_BYTES: i64 = 1 << 30;
const ANSWERS_MAX_BYTES: i64 = 64 << 20;

/// Queues that the worker does not consume while the ledger is down: the journal at once, the endings
/// after a while.
pub(super) struct Gates {
    journal: watch::Sender<bool>,
    endings: watch::Sender<bool>,
}

impl Default for Gates {
    fn default() -> Self {
        Self {
            journal: watch::channel(true).0,
            endings: watch::channel(true).0,
        }
    }
}

impl Gates {
    /// Follows the state of the ledger from now on.
    pub(super) fn open(self, ledger: &Ledger, patience: Duration, tasks: &TaskTracker, stop: CancellationToken) {
        let mut up = ledger.watch();
        let following = async move {
            loop {
                let is_up = *up.borrow_and_update();
                self.journal.send_replace(is_up);
                if is_up {
                    self.endings.send_replace(true);
                }
                tokio::select! {
                    changed = up.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(patience), if !is_up && *self.endings.borrow() => {
                        warn!(event = "endings_gate_closed", "ledger down, ends stay in their queue");
                        self.endings.send_replace(false);
                    }
                    () = stop.cancelled() => return,
                }
            }
        };
        tasks.spawn(survive("gates", following));
    }
}

/// The queues that a worker with this configuration declares and consumes.
pub fn topology(config: &Config) -> Vec<QueueSpec> {
    queues(config, &Gates::default())
}

/// The queues, the most urgent first. `consume` takes their receivers in this order.
pub(super) fn queues(config: &Config, gates: &Gates) -> Vec<QueueSpec> {
    let bound = |exchange, key: &str| Binding {
        exchange,
        key: Some(key.to_owned()),
    };
    let shared = |max_bytes| QueueKind::Shared {
        max_bytes,
        dead_letters: returns::DEAD_LETTERS.to_owned(),
    };
    let notices = MEDIA_CONFIG_KEYS
        .iter()
        .map(|key| bound(Exchange::Configuration, key))
        .chain([
            bound(Exchange::Callevt, "call.dialplan.*"),
            bound(Exchange::Unrouted, notices::MEMORY_KEY),
        ])
        .chain(LegEvent::NAMES.map(|event| bound(Exchange::Callevt, &format!("call.{event}.*"))));
    vec![
        QueueSpec {
            name: ACTIONS.into(),
            kind: shared(ACTIONS_MAX_BYTES),
            bindings: vec![
                bound(Exchange::Kapps, ACTION_KEY),
                bound(Exchange::Unrouted, ACTION_KEY),
            ],
            prefetch: config.amqp.prefetch_actions,
            gate: None,
        },
        QueueSpec {
            name: ENDINGS.into(),
            kind: shared(ENDINGS_MAX_BYTES),
            bindings: ["RECORD_START", "RECORD_STOP"]
                .map(|event| bound(Exchange::Callevt, &format!("call.{event}.*")))
                .to_vec(),
            prefetch: config.amqp.prefetch_endings,
            gate: Some(gates.endings.subscribe()),
        },
        QueueSpec {
            name: "kz_record_call.replies".into(),
            kind: QueueKind::Exclusive,
            bindings: vec![Binding {
                exchange: Exchange::Targeted,
                key: None,
            }],
            prefetch: 256,
            gate: None,
        },
        QueueSpec {
            name: "kz_record_call.notices".into(),
            kind: QueueKind::Exclusive,
            bindings: notices.collect(),
            prefetch: 256,
            gate: None,
        },
        QueueSpec {
            name: journal::JOURNAL.into(),
            kind: shared(JOURNAL_MAX_BYTES),
            bindings: Vec::new(),
            prefetch: 200,
            gate: Some(gates.journal.subscribe()),
        },
        QueueSpec {
            name: answers::ANSWERS.into(),
            kind: shared(ANSWERS_MAX_BYTES),
            bindings: Vec::new(),
            prefetch: config.amqp.prefetch_actions,
            gate: None,
        },
        stop::controls(gates.journal.subscribe(), returns::DEAD_LETTERS),
        returns::dead_letters(),
    ]
}
