//! When something is to be done about an entry, written beside it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::entry::Entry;
use crate::kazoo::time::Moment;
use crate::lifecycle::{self, Policy};
use crate::telemetry::events::TaskPanicked;
use crate::telemetry::words;

/// When an entry is looked at again of which cannot even be told when it is due.
const MUCH_LATER: Duration = Duration::from_secs(3600);

/// `None`: not before something happens. An entry that the program fails on is looked at again later: its panic must not become the ledger's.
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
