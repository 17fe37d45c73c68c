//! Workers test credentials one after the other. `couch` asks for the lock, and the broker keeps which worker holds
//! it.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::amqp::{self, Publisher};
use crate::couch;

/// Time limit for a connection. A worker without a broker has nothing to record, but it must report what it knows of
/// its database.
const CONNECTING: Duration = Duration::from_secs(3);
/// Time limit for the lock. Each worker before this one may wait for a database that does not answer.
const WAITING: Duration = Duration::from_secs(60);

struct Turn(amqp::Turn);

impl couch::Turn for Turn {
    fn is_refused(&self) -> bool {
        self.0.is_noted()
    }

    fn end(self: Box<Self>, verdict: couch::Verdict) -> BoxFuture<'static, ()> {
        let note = match verdict {
            couch::Verdict::Unasked => amqp::Note::Keep,
            couch::Verdict::Taken => amqp::Note::Remove,
            couch::Verdict::Refused(lasts) => amqp::Note::Leave(lasts),
        };
        self.0.end(note).boxed()
    }
}

/// Locks that are taken over this publisher's connection.
pub(super) fn turns(publisher: &Publisher) -> couch::Turns {
    let publisher = publisher.clone();
    Box::new(move |mark| {
        let publisher = publisher.clone();
        let taking = async move {
            let turn = publisher.turn(&mark, (CONNECTING, WAITING)).await?;
            Some(Box::new(Turn(turn)) as Box<dyn couch::Turn>)
        };
        taking.boxed()
    })
}
