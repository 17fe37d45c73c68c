//! A handler that panics takes neither its delivery nor its queue's consumer with it: the message is explained and put aside.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tracing::error;

use crate::amqp::{Delivery, Spare};

use super::perform::Parts;
use super::start;

/// Why its message is in the dead letters.
const WHY: &str = "handler panicked";

/// Runs the handler of one delivery. When it panics before it has settled that, the call is answered if it was an action, and the message goes
/// to the dead letters.
pub async fn watched(parts: &Arc<Parts>, queue: &'static str, spare: Spare, work: impl Future<Output = ()>) {
    // What a handler shares with others is locks, which are taken over from whoever died holding them, and channels.
    let Err(panic) = AssertUnwindSafe(work).catch_unwind().await else {
        return;
    };
    tell(queue, &*panic);
    let Some(delivery) = spare.unsettled() else { return };
    if queue == start::QUEUE {
        // It may die of the same; the message is put aside all the same.
        let answering = AssertUnwindSafe(start::answer(parts, &delivery)).catch_unwind();
        if let Err(panic) = answering.await {
            tell(queue, &*panic);
        }
    }
    start::reject(parts, delivery, queue, "", WHY).await;
}

/// As `watched`, for what is acknowledged before it is handled: the next one is handled all the same.
pub fn survived(queue: &'static str, delivery: Delivery, handle: impl Fn(Delivery)) {
    if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| handle(delivery))) {
        tell(queue, &*panic);
    }
}

fn tell(queue: &'static str, panic: &(dyn Any + Send)) {
    error!(
        queue,
        panic = words(panic),
        "a handler panicked: this is a fault of the program"
    );
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    crate::kazoo::call::clip(text.unwrap_or("of something that is no text"), 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_handler_died_of_is_told_in_words() {
        let died = |panic: fn()| std::panic::catch_unwind(panic).unwrap_err();
        assert_eq!(words(&*died(|| panic!("plain"))), "plain");
        assert_eq!(
            words(&*died(|| panic!("number {}", std::hint::black_box(7)))),
            "number 7"
        );
        assert_eq!(
            words(&*died(|| std::panic::panic_any(7))),
            "of something that is no text"
        );
    }
}
