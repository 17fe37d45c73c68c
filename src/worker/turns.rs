//! Workers prove credentials one after the other: the database's side of it asks, the broker keeps whose turn it is.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::amqp::{self, Publisher};
use crate::couch;

/// A worker without a broker has nothing to record, but it is to show what it knows of its database.
const CONNECTING: Duration = Duration::from_secs(3);
/// Each of those before may wait for a database that does not answer.
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

/// Turns by this publisher's connection.
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
