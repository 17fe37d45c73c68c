//! A lock that one worker of a vhost holds at a time, with a note about the last holder's result. The broker keeps both. The lock is an
//! exclusive queue, which ends with its connection in any case. The note is a message with a TTL in a queue without consumers. Reading the
//! note does not extend its TTL.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection};
use tokio::time::Instant;

use super::publisher::Publisher;
use super::{AmqpError, topology, within};

/// Time limit of one step at the broker.
const STEP: Duration = Duration::from_secs(5);

/// The lock's queue expires after this time. The worker may fail to delete the queue, for example when the broker was slow to create it.
const LONGEST: Duration = Duration::from_secs(90);

/// The note's queue outlives its message by this much.
const AFTERWARDS: Duration = Duration::from_secs(60);

/// Interval at which the worker retries a lock that another worker holds.
const AGAIN: Duration = Duration::from_millis(100);

/// A lock that this worker holds.
#[derive(Debug)]
pub struct Turn {
    connection: Arc<Connection>,
    turn: String,
    note: String,
    noted: bool,
}

impl Publisher {
    /// Takes the lock `name`, which no other worker holds until it ends. `None` when there is no connection within `connecting`, when
    /// another worker holds the lock for all of `waiting`, or when the broker refuses the lock.
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
                // RESOURCE_LOCKED: another connection owns the queue.
                Err(error) if matches!(error.reply(), Some((405, _))) && begun.elapsed() < waiting => {}
                Err(error) => {
                    tracing::debug!(event = "credential_turn_unavailable", turn = turn.turn, %error, "credential turn unavailable");
                    return None;
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
        let noted = turn.look().await;
        Some(Turn { noted, ..turn })
    }
}

/// What happens to the note when the lock ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// The note stays unchanged.
    Keep,
    Remove,
    /// A note is left with this TTL.
    Leave(Duration),
}

impl Turn {
    /// Whether an earlier holder of the lock left a note.
    pub const fn is_noted(&self) -> bool {
        self.noted
    }

    /// Releases the lock.
    pub async fn end(self, note: Note) {
        let noting = async {
            let channel = self.channel().await?;
            match note {
                Note::Leave(lasts) => leave(&channel, &self.note, lasts).await?,
                Note::Remove if self.noted => delete(&channel, &self.note).await?,
                Note::Remove | Note::Keep => {}
            }
            topology::close(&channel).await;
            Ok::<(), AmqpError>(())
        };
        if let Err(error) = noting.await {
            tracing::debug!(event = "credential_note_failed", note = self.note, %error, "credential note not published");
        }
        let ending = async {
            let channel = self.channel().await?;
            delete(&channel, &self.turn).await?;
            topology::close(&channel).await;
            Ok::<(), AmqpError>(())
        };
        if let Err(error) = ending.await {
            tracing::debug!(event = "credential_turn_release_failed", turn = self.turn, %error, "credential turn not released");
        }
    }

    async fn take(&self) -> Result<(), AmqpError> {
        let channel = self.channel().await?;
        declare(&channel, &self.turn, true, &[("x-expires", LONGEST)]).await?;
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
        match within(STEP, "looking for a note", looking).await {
            Ok(queue) => {
                topology::close(&channel).await;
                queue.message_count() > 0
            }
            Err(_) => false,
        }
    }

    async fn channel(&self) -> Result<Channel, AmqpError> {
        within(STEP, "opening a channel", self.connection.create_channel()).await
    }
}

async fn leave(channel: &Channel, name: &str, lasts: Duration) -> Result<(), AmqpError> {
    let ends = [("x-message-ttl", lasts), ("x-expires", lasts + AFTERWARDS)];
    declare(channel, name, false, &ends).await?;
    let properties = BasicProperties::default().with_delivery_mode(2);
    let publishing = channel.basic_publish("".into(), name.into(), BasicPublishOptions::default(), &[], properties);
    within(STEP, "leaving a note", publishing).await.map(drop)
}

async fn declare(channel: &Channel, name: &str, exclusive: bool, ends: &[(&str, Duration)]) -> Result<(), AmqpError> {
    let options = QueueDeclareOptions {
        exclusive,
        durable: !exclusive,
        ..QueueDeclareOptions::default()
    };
    let mut arguments = FieldTable::default();
    for (name, after) in ends {
        let ms = i64::try_from(after.as_millis()).unwrap_or(i64::MAX);
        arguments.insert((*name).into(), AMQPValue::LongLongInt(ms));
    }
    let declaring = channel.queue_declare(name.into(), options, arguments);
    within(STEP, "declaring a queue", declaring).await.map(drop)
}

async fn delete(channel: &Channel, name: &str) -> Result<(), AmqpError> {
    let deleting = channel.queue_delete(name.into(), QueueDeleteOptions::default());
    within(STEP, "deleting a queue", deleting).await.map(drop)
}
