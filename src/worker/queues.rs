//! The queues that a worker consumes, and when it stops consuming some of them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::amqp::{Binding, Delivery, QueueKind, QueueSpec};
use crate::config::Config;
use crate::flow::inbox::{Inbox, answers, control_actions, dead_letters, kazoo_ends};
use crate::flow::journal::{self, Moves};
use crate::flow::peer_notices;
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
const WATCH_MAX_BYTES: i64 = 1 << 30;
const JOURNAL_MAX_BYTES: i64 = 1 << 30;
/// Ends that a worker holds until their first look: some seventy in a second, of a few kilobytes each.
const WATCH_PREFETCH: u16 = 2048;
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
    /// Follows the state of the ledger from now on. `moves`: what is on its way from the journal into the ledger.
    pub(super) fn open(
        self,
        ledger: &Ledger,
        moves: Arc<Moves>,
        patience: Duration,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) {
        let mut up = ledger.watch();
        let following = async move {
            loop {
                let is_up = *up.borrow_and_update();
                if is_up && !*self.journal.borrow() {
                    // Before the actions that wait for the ledger: what waits in the journal concerns them.
                    moves.all_begin();
                }
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

/// A queue, and what handles its deliveries.
pub(super) struct Queue {
    /// Its name in logs and metrics.
    pub name: &'static str,
    pub spec: QueueSpec,
    pub handle: Handle,
}

/// How deliveries are handled.
#[derive(Clone, Copy)]
pub(super) enum Handle {
    /// Each in a task of its own, so that a delivery that waits blocks no other one. The prefetch limits the number of tasks.
    Each(fn(Arc<Inbox>, Delivery) -> BoxFuture<'static, ()>),
    /// One after the other. They are acknowledged before.
    InOrder(fn(&Inbox, &Delivery)),
    /// No worker consumes the queue.
    Declared,
}

/// The queues that a worker with this configuration declares and consumes.
pub fn topology(config: &Config) -> Vec<QueueSpec> {
    let queues = queues(config, &Gates::default());
    queues.into_iter().map(|queue| queue.spec).collect()
}

/// The queues, the most urgent first.
pub(super) fn queues(config: &Config, gates: &Gates) -> Vec<Queue> {
    let mut queues = always(config, gates);
    if config.adopt.mode.watches() {
        queues.push(watch(gates));
    }
    queues
}

fn shared(max_bytes: i64) -> QueueKind {
    QueueKind::Shared {
        max_bytes,
        dead_letters: dead_letters::DEAD_LETTERS.to_owned(),
    }
}

/// The ends of recordings that Kazoo's own recorder is to store.
fn watch(gates: &Gates) -> Queue {
    Queue {
        name: "watch",
        spec: QueueSpec {
            name: kazoo_ends::WATCH.into(),
            kind: shared(WATCH_MAX_BYTES),
            bindings: vec![bound(Exchange::Callevt, "call.RECORD_STOP.*")],
            prefetch: WATCH_PREFETCH,
            // What the database cannot tell stays in the queue.
            gate: Some(gates.journal.subscribe()),
        },
        handle: Handle::Each(|inbox, delivery| {
            async move {
                match &inbox.ends.kazoos {
                    Some(kazoos) => kazoos.handle(delivery).await,
                    None => delivery.give_back().await,
                }
            }
            .boxed()
        }),
    }
}

/// The queues that each worker has.
fn always(config: &Config, gates: &Gates) -> Vec<Queue> {
    vec![
        Queue {
            name: "actions",
            spec: QueueSpec {
                name: ACTIONS.into(),
                kind: shared(ACTIONS_MAX_BYTES),
                bindings: [Exchange::Kapps, Exchange::Unrouted]
                    .map(|exchange| bound(exchange, ACTION_KEY))
                    .to_vec(),
                prefetch: config.amqp.prefetch_actions,
                gate: None,
            },
            handle: Handle::Each(|inbox, delivery| async move { inbox.actions.handle(delivery).await }.boxed()),
        },
        Queue {
            name: "endings",
            spec: QueueSpec {
                name: ENDINGS.into(),
                kind: shared(ENDINGS_MAX_BYTES),
                bindings: ["RECORD_START", "RECORD_STOP"]
                    .map(|event| bound(Exchange::Callevt, &format!("call.{event}.*")))
                    .to_vec(),
                prefetch: config.amqp.prefetch_endings,
                gate: Some(gates.endings.subscribe()),
            },
            handle: Handle::Each(|inbox, delivery| async move { inbox.ends.own.handle(delivery).await }.boxed()),
        },
        Queue {
            name: "replies",
            spec: QueueSpec {
                name: "kz_record_call.replies".into(),
                kind: QueueKind::Exclusive,
                bindings: vec![Binding {
                    exchange: Exchange::Targeted,
                    key: None,
                }],
                prefetch: 256,
                gate: None,
            },
            handle: Handle::InOrder(|inbox, delivery| {
                if let Ok(envelope) = delivery.envelope() {
                    inbox.requests.reply(envelope);
                }
            }),
        },
        Queue {
            name: "notices",
            spec: QueueSpec {
                name: "kz_record_call.notices".into(),
                kind: QueueKind::Exclusive,
                bindings: of_notices(),
                prefetch: 256,
                gate: None,
            },
            handle: Handle::InOrder(|inbox, delivery| inbox.notices.handle(delivery)),
        },
        Queue {
            name: "journal",
            spec: QueueSpec {
                name: journal::JOURNAL.into(),
                kind: shared(JOURNAL_MAX_BYTES),
                bindings: Vec::new(),
                prefetch: 200,
                gate: Some(gates.journal.subscribe()),
            },
            handle: Handle::Each(|inbox, delivery| async move { inbox.journal.handle(delivery).await }.boxed()),
        },
        Queue {
            name: "answers",
            spec: QueueSpec {
                name: answers::ANSWERS.into(),
                kind: shared(ANSWERS_MAX_BYTES),
                bindings: Vec::new(),
                prefetch: config.amqp.prefetch_actions,
                gate: None,
            },
            handle: Handle::Each(|inbox, delivery| async move { inbox.answers.handle(delivery).await }.boxed()),
        },
        Queue {
            name: "controls",
            spec: control_actions::controls(gates.journal.subscribe(), dead_letters::DEAD_LETTERS),
            handle: Handle::Each(|inbox, delivery| async move { inbox.controls.handle(delivery).await }.boxed()),
        },
        Queue {
            name: "dead",
            spec: dead_letters::dead_letters(),
            handle: Handle::Declared,
        },
    ]
}

fn bound(exchange: Exchange, key: &str) -> Binding {
    Binding {
        exchange,
        key: Some(key.to_owned()),
    }
}

/// What a worker's own queue is bound to.
fn of_notices() -> Vec<Binding> {
    let of_configuration = MEDIA_CONFIG_KEYS.iter().map(|key| bound(Exchange::Configuration, key));
    let of_legs = LegEvent::NAMES.map(|event| bound(Exchange::Callevt, &format!("call.{event}.*")));
    of_configuration
        .chain([
            bound(Exchange::Callevt, "call.dialplan.*"),
            bound(Exchange::Unrouted, peer_notices::MEMORY_KEY),
        ])
        .chain(of_legs)
        .collect()
}
