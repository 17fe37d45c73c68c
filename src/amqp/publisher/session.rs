//! The publishing connection, and the broker's alarms. A supervisor starts a new session after each loss.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::{Connection, Event};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::kazoo::names::Exchange;
use crate::telemetry::events::{AmqpAlarm, AmqpConnection};

use super::super::link::{self, Link};
use super::super::{AmqpError, topology};

/// The present connection.
#[derive(Clone)]
pub(super) struct Live {
    pub epoch: u64,
    pub connection: Arc<Connection>,
}

pub(super) struct Side {
    pub live: watch::Sender<Option<Live>>,
    pub alarm: watch::Sender<Option<String>>,
    /// A message was not published: the session checks the connection now.
    pub lost: Arc<Notify>,
    pub close: CancellationToken,
}

impl Side {
    pub async fn supervise(self, mut link: Link) {
        let (mut epoch, mut told) = (0, String::new());
        while !self.close.is_cancelled() {
            let ended = match link.connect().await {
                Ok(connection) => {
                    epoch += 1;
                    let ended = self.session(Arc::new(connection), epoch, &mut link).await;
                    told.clear();
                    ended
                }
                Err(error) => error,
            };
            if self.close.is_cancelled() {
                break;
            }
            let why = ended.to_string();
            if why != told {
                AmqpConnection {
                    connection: link.name(),
                    broker: link.broker(),
                    state: Err(&why),
                }
                .emit();
                told = why;
            }
            tokio::select! {
                () = link.pause(&ended) => {}
                () = self.close.cancelled() => {}
            }
        }
    }

    async fn session(&self, connection: Arc<Connection>, epoch: u64, link: &mut Link) -> AmqpError {
        let mut events = Box::pin(connection.events_listener());
        // A message to a missing exchange closes its channel. The broker merely returns a message to an exchange without bindings.
        for exchange in Exchange::ALL {
            if let Err(error) = topology::exchange(&connection, exchange).await {
                link.failed();
                return error;
            }
        }
        AmqpConnection {
            connection: link.name(),
            broker: link.broker(),
            state: Ok(()),
        }
        .emit();
        link.succeeded();
        self.live.send_replace(Some(Live {
            epoch,
            connection: Arc::clone(&connection),
        }));
        let mut why = "the connection is gone";
        let mut blocked = None;
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        while connection.status().connected() && !self.close.is_cancelled() {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.lost.notified() => {}
                Some(event) = events.next() => self.hear(event, &mut blocked),
                () = link.moved() => {
                    why = "another broker is used from now on";
                    break;
                }
                () = self.close.cancelled() => {}
            }
        }
        self.live.send_replace(None);
        // The broker reports its alarm again on the next connection, as soon as that connection publishes.
        self.unblocked(&mut blocked);
        link::close(&connection).await;
        AmqpError::Ended(why)
    }

    fn hear(&self, event: Event, blocked: &mut Option<Instant>) {
        match event {
            Event::ConnectionBlocked(reason) => {
                if blocked.is_none() {
                    AmqpAlarm::Began { reason: &reason }.emit();
                }
                blocked.get_or_insert_with(Instant::now);
                self.alarm.send_replace(Some(reason));
            }
            Event::ConnectionUnblocked => self.unblocked(blocked),
            _ => {}
        }
    }

    fn unblocked(&self, blocked: &mut Option<Instant>) {
        self.alarm.send_replace(None);
        if let Some(since) = blocked.take() {
            AmqpAlarm::Ended {
                lasted: since.elapsed(),
            }
            .emit();
        }
    }
}
