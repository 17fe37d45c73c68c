//! When an entry's timer is due. The time is stored beside the facts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::entry::Entry;
use crate::kazoo::time::Moment;
use crate::lifecycle::{self, Policy};
use crate::telemetry::events::TaskPanicked;
use crate::telemetry::words;

/// The timer of an entry whose own timer cannot be computed.
const MUCH_LATER: Duration = Duration::from_secs(3600);

/// When an entry must be looked at again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timers {
    /// The recording's own timer. `None`: the entry waits for an event.
    pub due: Option<Moment>,
    /// The endpoints that must get a notice, and when.
    pub webhooks: Vec<(String, Moment)>,
}

impl From<Option<Moment>> for Timers {
    fn from(due: Option<Moment>) -> Self {
        Self {
            due,
            webhooks: Vec::new(),
        }
    }
}

/// The timers of an entry that no worker has in flight.
pub(super) fn timers(entry: &Entry, now: Moment, policy: &Policy) -> Timers {
    Timers {
        due: due(entry, now, policy),
        webhooks: webhooks(entry, policy),
    }
}

/// When endpoints must get their next notices.
pub(super) fn webhooks(entry: &Entry, policy: &Policy) -> Vec<(String, Moment)> {
    catch_unwind(AssertUnwindSafe(|| lifecycle::webhooks_due(entry, policy))).unwrap_or_default()
}

/// `None`: the entry waits for an event. An entry on which the code panics gets a later timer, so that its panic does not end the ledger's
/// writer.
pub(super) fn due(entry: &Entry, now: Moment, policy: &Policy) -> Option<Moment> {
    let due = catch_unwind(AssertUnwindSafe(|| lifecycle::due(entry, now, policy)));
    due.unwrap_or_else(|panic| {
        TaskPanicked {
            task: "recording",
            name: "due",
            call_id: &entry.call_id,
            media_id: "",
            why: words(&*panic),
        }
        .emit();
        Some(now.plus(MUCH_LATER))
    })
}
