//! The queues that a worker consumes: bytes in, facts out.

use std::sync::Arc;

use crate::amqp::Requests;

pub mod actions;
pub mod answers;
pub mod call_events;
pub mod control_actions;
pub mod dead_letters;
pub mod event_orders;
pub mod first_looks;
pub mod journal;
pub mod kazoo_ends;
pub mod notices;
pub mod panic_guard;
pub mod peers;
pub mod record_events;
pub mod request;
pub mod starts;

/// The handlers of recordings' events.
pub struct Ends {
    /// Of those that the worker stores.
    pub own: record_events::RecordEvents,
    /// Of those that Kazoo's own recorder stores, if the worker watches them.
    pub kazoos: Option<kazoo_ends::KazooEnds>,
}

/// The handlers of the queues: see `worker::queues`.
pub struct Inbox {
    pub actions: actions::Actions,
    pub controls: Arc<control_actions::Controls>,
    pub answers: Arc<answers::Answers>,
    pub ends: Ends,
    pub journal: journal::JournalMessages,
    pub notices: notices::Notices,
    /// Requests that wait for replies.
    pub requests: Requests,
    pub guard: panic_guard::PanicGuard,
}
