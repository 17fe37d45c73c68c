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
