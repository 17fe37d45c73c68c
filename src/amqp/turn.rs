//! What only one worker of a vhost may do at a time, and what the last one came to. The broker keeps both: an exclusive queue is the turn, which ends with
//! its connection in any case; a queue that nobody uses, and that expires, is the note.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection};
use tokio::time::Instant;

use super::publisher::Publisher;
use super::{AmqpError, topology, within};

/// How long the broker has for one step of it.
const STEP: Duration = Duration::from_secs(5);

/// A turn that another worker has is asked for again after that.
const AGAIN: Duration = Duration::from_millis(100);

/// This worker's turn.
#[derive(Debug)]
pub struct Turn {
    connection: Arc<Connection>,
    turn: String,
    note: String,
    noted: bool,
}

impl Publisher {
    /// Takes a turn: no other worker has that one until it ends. `None` when there is no connection within `connecting`, or the turn is not to be had within
    /// `waiting`, or at all.
    pub async fn turn(&self, name: &str, (connecting, waiting): (Duration, Duration)) -> Option<Turn> {
        let begun = Instant::now();
        let connection = tokio::time::timeout(connecting, self.connected()).await.ok()??;
        let turn = Turn {
            connection,
            turn: format!("kz_record_call.turn-{name}"),
            note: format!("kz_record_call.note-{name}"),
            noted: false,
        };
        loop {
            match turn.take().await {
                Ok(()) => break,
                // RESOURCE_LOCKED: it is another connection's.
                Err(error) if matches!(error.reply(), Some((405, _))) && begun.elapsed() < waiting => {}
                Err(error) => {
                    tracing::debug!(turn = turn.turn, %error, "the turn is not to be had");
                    return None;
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
        let noted = turn.look().await;
        Some(Turn { noted, ..turn })
    }
}

impl Turn {
    /// Whether the note is there that another turn left.
    pub const fn is_noted(&self) -> bool {
        self.noted
    }

    /// Ends it. The note is left for so long, or taken away.
    pub async fn end(self, note: Option<Duration>) {
        let noting = async {
            let channel = self.channel().await?;
            match note {
                Some(lasts) => declare(&channel, &self.note, false, Some(lasts)).await?,
                None if self.noted => delete(&channel, &self.note).await?,
                None => {}
            }
            topology::close(&channel).await;
            Ok::<(), AmqpError>(())
        };
        if let Err(error) = noting.await {
            tracing::debug!(note = self.note, %error, "other workers are not left a note");
        }
        let ending = async {
            let channel = self.channel().await?;
            delete(&channel, &self.turn).await?;
            topology::close(&channel).await;
            Ok::<(), AmqpError>(())
        };
        if let Err(error) = ending.await {
            tracing::debug!(turn = self.turn, %error, "the turn ends with its connection");
        }
    }

    async fn take(&self) -> Result<(), AmqpError> {
        let channel = self.channel().await?;
        declare(&channel, &self.turn, true, None).await?;
        topology::close(&channel).await;
        Ok(())
    }

    async fn look(&self) -> bool {
        let Ok(channel) = self.channel().await else {
            return false;
        };
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let looking = channel.queue_declare(self.note.as_str().into(), passive, FieldTable::default());
        let found = within(STEP, "looking for a note", looking).await.is_ok();
        if found {
            topology::close(&channel).await;
        }
        found
    }

    async fn channel(&self) -> Result<Channel, AmqpError> {
        within(STEP, "opening a channel", self.connection.create_channel()).await
    }
}

async fn declare(channel: &Channel, name: &str, exclusive: bool, expires: Option<Duration>) -> Result<(), AmqpError> {
    let options = QueueDeclareOptions {
        exclusive,
        durable: !exclusive,
        ..QueueDeclareOptions::default()
    };
    let mut arguments = FieldTable::default();
    if let Some(expires) = expires {
        let ms = i64::try_from(expires.as_millis()).unwrap_or(i64::MAX);
        arguments.insert("x-expires".into(), AMQPValue::LongLongInt(ms));
    }
    let declaring = channel.queue_declare(name.into(), options, arguments);
    within(STEP, "declaring a queue", declaring).await.map(drop)
}

async fn delete(channel: &Channel, name: &str) -> Result<(), AmqpError> {
    let deleting = channel.queue_delete(name.into(), QueueDeleteOptions::default());
    within(STEP, "deleting a queue", deleting).await.map(drop)
}
