//! The task that drives a recording, and what is left when it panics.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;

use crate::entry::Entry;
use crate::flow::dying;
use crate::flow::hands::Mailbox;
use crate::flow::perform::Parts;
use crate::lifecycle::Input;
use crate::telemetry::events::TaskPanicked;
use crate::telemetry::words;

use super::{NO_RETURN, drive, tell};

/// Drives a recording, in a task of its own.
pub fn begin(parts: &Arc<Parts>, entry: Entry, input: Input, mailbox: Mailbox) {
    let (parts, tasks) = (Arc::clone(parts), parts.tasks.clone());
    tasks.spawn(async move { survive(&parts, entry, input, mailbox).await });
}

/// What a driver that panics leaves behind.
#[derive(Debug)]
pub(super) struct Left {
    /// The entry after the last successful step.
    pub entry: Entry,
    /// The input that is being applied.
    pub taking: Option<Input>,
}

/// Drives the recording. A panic is a fault of the program, and must do no harm to the recording. The panic is noted, with all inputs
/// that arrived meanwhile, and the lease is given up. A recording that panics again and again is postponed for longer and longer, and
/// parked in the end.
async fn survive(parts: &Arc<Parts>, entry: Entry, input: Input, mut mailbox: Mailbox) {
    let left = Mutex::new(Left {
        entry: entry.clone(),
        taking: Some(input.clone()),
    });
    let driving = AssertUnwindSafe(Box::pin(drive(parts, entry, input, &mut mailbox, &left))).catch_unwind();
    let Err(panic) = driving.await else { return };
    let Left { mut entry, taking } = left.into_inner().unwrap_or_else(PoisonError::into_inner);
    let why = words(&*panic).to_owned();
    TaskPanicked {
        task: "recording",
        name: "driver",
        call_id: &entry.call_id,
        media_id: entry.order().map_or("", |order| order.media_id.as_str()),
        why: &why,
    }
    .emit();
    let before = entry.clone();
    let mut next_input = taking.or_else(|| mailbox.take_next());
    let mut panicked = Some(why);
    loop {
        while let Some(input) = next_input {
            match input {
                Input::Fact(what) => drop(entry.add(parts.fact(what))),
                Input::Known(known) => entry = entry.merge(*known),
                _ => {}
            }
            next_input = mailbox.take_next();
        }
        if let Some(why) = panicked.take() {
            dying::note(&mut entry, parts, why);
        }
        let noted = parts
            .ledger
            .note(&entry, Some(parts.ledger.no_lease()), Duration::ZERO)
            .await;
        // A longer wait gains nothing: the lease expires.
        noted.within(NO_RETURN).await;
        next_input = mailbox.let_go();
        if next_input.is_none() {
            break;
        }
    }
    // The report itself may be what panicked.
    let told = std::panic::catch_unwind(AssertUnwindSafe(|| tell(parts, &before, &entry)));
    if let Err(panic) = told {
        tracing::debug!(
            event = "outcome_not_logged",
            panic = words(&*panic),
            "outcome not logged"
        );
    }
}
