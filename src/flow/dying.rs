//! A handler that panics takes neither its delivery nor its queue's consumer with it: the message is explained and put aside. And a recording
//! that the program fails on is not lost.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures_util::FutureExt as _;

use crate::amqp::{Delivery, Spare};
use crate::entry::Entry;
use crate::entry::cause::Cause;
use crate::entry::fact::What;
use crate::telemetry::events::TaskPanicked;
use crate::telemetry::words;

use super::perform::Parts;
use super::returns::{put_back, reject};
use super::{answers, start};

/// Why its message is in the dead letters.
const WHY: &str = "handler panicked";

/// Runs the handler of one delivery. When it panics before it has settled that, the call is answered if it was an action, and the message goes
/// to the dead letters. What a handler leaves unsettled goes back to its queue: nothing stays here, where it would take a place for good.
pub async fn watched(parts: &Arc<Parts>, queue: &'static str, spare: Spare, work: impl Future<Output = ()>) {
    // What a handler shares with others is locks, which are taken over from whoever died holding them, and channels.
    let ended = AssertUnwindSafe(work).catch_unwind().await;
    if let Err(panic) = &ended {
        tell(queue, &**panic);
    }
    let Some(delivery) = spare.unsettled() else { return };
    if ended.is_ok() {
        return put_back(parts, queue, delivery).await;
    }
    if queue == start::QUEUE {
        // It may die of the same; the message is put aside all the same.
        let answering = AssertUnwindSafe(answers::answer(parts, &delivery)).catch_unwind();
        match answering.await {
            Ok(true) => {}
            // Its call waits: the next one may get through to it.
            Ok(false) => return put_back(parts, queue, delivery).await,
            Err(panic) => tell(queue, &*panic),
        }
    }
    reject(parts, delivery, queue, "", WHY).await;
}

/// As `watched`, for what is acknowledged before it is handled: the next one is handled all the same.
pub fn survived(queue: &'static str, delivery: Delivery, handle: impl Fn(Delivery)) {
    if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| handle(delivery))) {
        tell(queue, &*panic);
    }
}

fn tell(queue: &'static str, panic: &(dyn Any + Send)) {
    TaskPanicked {
        task: "handler",
        name: queue,
        call_id: "",
        media_id: "",
        why: words(panic),
    }
    .emit();
}

/// Notes on its entry that the program failed on a recording. Where even its decisions fail it is parked here.
pub(super) fn note(entry: &mut Entry, parts: &Parts, why: String) {
    let n = entry.next_number("panicked");
    entry.add(parts.fact(What::Panicked { n, why }));
    let often = usize::try_from(parts.policy.max_attempts).unwrap_or(usize::MAX);
    if entry.panics().count() <= often {
        // What follows from that is decided where everything is.
        return;
    }
    let is_open = || entry.outcome().is_none() && entry.parked().is_none();
    if catch_unwind(AssertUnwindSafe(is_open)).unwrap_or(true) {
        let (n, cause) = (entry.next_rest(), Cause::ProgramFault);
        entry.add(parts.fact(What::Parked { n, cause }));
    }
}
