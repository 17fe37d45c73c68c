//! A handler that panics takes neither its delivery nor its queue's consumer with it. The message gets a reason, and goes to the dead
//! letters.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;

use crate::amqp::{Delivery, Room, Spare};
use crate::telemetry::events::TaskPanicked;
use crate::telemetry::words;

use super::answers::Answers;
use super::dead_letters::Returns;
use super::request::QUEUE;

/// The reason for which its message is in the dead letters.
const WHY: &str = "handler panicked";

/// Watches the handlers of deliveries.
pub struct PanicGuard {
    pub answers: Arc<Answers>,
    pub returns: Arc<Returns>,
    /// The memory limit for decoding messages.
    pub room: Arc<Room>,
}

impl PanicGuard {
    /// Like `watch`, for messages that are acknowledged before they are handled: the next message is handled in any case.
    pub async fn in_order(&self, queue: &'static str, delivery: &Delivery, handle: impl FnOnce(&Delivery)) {
        let _room = self.room.of(delivery).await;
        if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| handle(delivery))) {
            tell(queue, &*panic);
        }
    }

    /// Runs the handler of one delivery. If it panics before it has settled the delivery, the call is answered if the message was an action.
    /// The message goes to the dead letters. A delivery that a handler leaves unsettled goes back to its queue, because it would take a
    /// prefetch slot for good.
    pub async fn watch(&self, queue: &'static str, spare: Spare, work: impl Future<Output = ()>) {
        // A handler shares only locks and channels with other handlers. A lock is taken over from a handler that panicked with it.
        let ended = AssertUnwindSafe(work).catch_unwind().await;
        if let Err(panic) = &ended {
            tell(queue, &**panic);
        }
        let Some(delivery) = spare.unsettled() else { return };
        if ended.is_ok() {
            return self.returns.put_back(queue, delivery).await;
        }
        if queue == QUEUE {
            // The answer may panic for the same reason. The message goes to the dead letters all the same.
            let answering = AssertUnwindSafe(self.answers.answer(&delivery)).catch_unwind();
            match answering.await {
                Ok(true) => {}
                // The call waits: the next delivery of the message may bring an answer.
                Ok(false) => return self.returns.put_back(queue, delivery).await,
                Err(panic) => tell(queue, &*panic),
            }
        }
        self.returns.reject(delivery, queue, "", WHY).await;
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
