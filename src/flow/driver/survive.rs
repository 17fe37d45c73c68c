//! What happens when the program panics on a recording: that is a fault of the program, and must do no harm to the recording.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;

use crate::entry::Entry;
use crate::entry::cause::Cause;
use crate::entry::fact::{Fact, What};
use crate::faults::{self, is_back};
use crate::flow::in_flight::Mailbox;
use crate::lifecycle::Input;
use crate::telemetry::words;

use super::{Effects, EntryStore, Host, Left, NO_RETURN, drive};

/// Drives the recording. A panic is noted, with all inputs that arrived meanwhile, and the lease is given up. A recording that panics again
/// and again is postponed for longer and longer, and parked in the end.
pub async fn survive<E: Effects, L: EntryStore>(
    (effects, ledger, host): (&E, &L, Host<'_>),
    entry: Entry,
    input: Input,
    mut mailbox: Mailbox,
) {
    let left = Mutex::new(Left {
        entry: entry.clone(),
        taking: Some(input.clone()),
    });
    let driving = Box::pin(drive((effects, ledger, host), entry, input, &mut mailbox, &left));
    let Err(panic) = AssertUnwindSafe(driving).catch_unwind().await else {
        return;
    };
    if is_back(faults::Fault::PanicUnnoticed) {
        return;
    }
    let Left { mut entry, taking } = left.into_inner().unwrap_or_else(PoisonError::into_inner);
    let why = words(&*panic).to_owned();
    effects.panicked(&entry, &why);
    let before = entry.clone();
    let mut next_input = taking.or_else(|| mailbox.take_next());
    let mut panicked = Some(why);
    loop {
        while let Some(input) = next_input {
            match input {
                // Webhooks owed for it are noted by the step that panicked. Announced once more, it has the same id.
                Input::Fact(What::Announced(_) | What::RestAnnounced { .. } | What::CauseAnnounced { .. }) => {}
                Input::Fact(what) => drop(entry.add(fact(host, what))),
                Input::Known(known) => entry = entry.merge(*known),
                _ => {}
            }
            next_input = mailbox.take_next();
        }
        if let Some(why) = panicked.take() {
            note(&mut entry, host, why);
        }
        let noted = ledger.note(&entry, Some(ledger.no_lease()), Duration::ZERO).await;
        // A longer wait gains nothing: the lease expires.
        noted.within(NO_RETURN).await;
        next_input = mailbox.let_go();
        if next_input.is_none() {
            break;
        }
    }
    // The report itself may be what panicked.
    let told = catch_unwind(AssertUnwindSafe(|| effects.stepped(&before, &entry)));
    if let Err(panic) = told {
        tracing::debug!(
            event = "outcome_not_logged",
            panic = words(&*panic),
            "outcome not logged"
        );
    }
}

fn fact(host: Host<'_>, what: What) -> Fact {
    Fact {
        at: host.now(),
        by: host.policy.worker.clone(),
        what,
    }
}

/// Notes on its entry that the program panicked on a recording. If even its decisions panic, the recording is parked here.
fn note(entry: &mut Entry, host: Host<'_>, why: String) {
    let n = entry.next_number("panicked");
    entry.add(fact(host, What::Panicked { n, why }));
    let often = usize::try_from(host.policy.max_attempts).unwrap_or(usize::MAX);
    if entry.panics().count() <= often {
        // `lifecycle` decides what follows from that.
        return;
    }
    let is_open = || entry.outcome().is_none() && entry.parked().is_none();
    if catch_unwind(AssertUnwindSafe(is_open)).unwrap_or(true) {
        let (n, cause) = (entry.next_rest(), Cause::ProgramFault);
        entry.add(fact(host, What::Parked { n, cause, ends: None }));
    }
}
