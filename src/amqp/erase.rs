//! Removes messages from a queue that no worker consumes, for `kz-record-call erase` and for the retention of dead letters.

use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use secrecy::SecretString;

use crate::config;

use super::publisher::letters;
use super::{AmqpError, link, topology, within};

/// Time limit of one step.
const LIMIT: Duration = Duration::from_secs(5);

/// How many messages were read, and how many of them were removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    pub removed: usize,
    pub read: usize,
}

/// A message of the queue.
#[derive(Debug, Clone, Copy)]
pub struct Letter<'a> {
    pub body: &'a [u8],
    pub content_type: &'a str,
    pub content_encoding: &'a str,
    /// When it came into the dead letters, in Unix seconds. `None`: an older version moved it.
    pub dead_at: Option<u64>,
}

/// Removes the messages that `is_wanted` says of. All other messages return to the queue, in their order. Reads as many messages as there are
/// at the beginning. `name` is the name of the connection.
///
/// # Errors
/// When the broker does not answer. A missing queue has no messages.
pub async fn remove_from(
    config: &config::Amqp,
    uri: &SecretString,
    name: &str,
    queue: &str,
    is_wanted: &(dyn Fn(&Letter<'_>) -> bool + Sync),
) -> Result<Removed, AmqpError> {
    let connection = link::connect(config, uri, name).await?;
    let removed = remove(&connection, queue, is_wanted).await;
    link::close(&connection).await;
    removed
}

async fn remove(
    connection: &lapin::Connection,
    queue: &str,
    is_wanted: &(dyn Fn(&Letter<'_>) -> bool + Sync),
) -> Result<Removed, AmqpError> {
    let channel = within(LIMIT, "opening a channel", connection.create_channel()).await?;
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let looking = channel.queue_declare(queue.into(), passive, FieldTable::default());
    let waiting = match within(LIMIT, "looking at a queue", looking).await {
        Ok(queue) => queue.message_count(),
        Err(error) if error.is_refusal() && !error.is_forbidden() => return Ok(Removed::default()),
        Err(error) => return Err(error),
    };
    let (mut done, mut last_kept) = (Removed::default(), None);
    for _ in 0..waiting {
        let getting = channel.basic_get(queue.into(), BasicGetOptions::default());
        let Some(message) = within(LIMIT, "reading a message", getting).await? else {
            break;
        };
        done.read += 1;
        let properties = &message.properties;
        let letter = Letter {
            body: &message.data,
            content_type: properties.content_type().as_ref().map_or("", |kind| kind.as_str()),
            content_encoding: properties.content_encoding().as_ref().map_or("", |kind| kind.as_str()),
            dead_at: letters::dead_at(properties),
        };
        if is_wanted(&letter) {
            let acknowledging = message.acker.ack(BasicAckOptions::default());
            within(LIMIT, "removing a message", async { acknowledging.await.map(drop) }).await?;
            done.removed += 1;
        } else {
            last_kept = Some(message.delivery_tag);
        }
    }
    // An explicit return does not count as a failed delivery (RabbitMQ 4.3); the end of the channel would.
    if let Some(tag) = last_kept {
        let options = BasicNackOptions {
            multiple: true,
            requeue: true,
        };
        within(LIMIT, "returning messages", async {
            channel.basic_nack(tag, options).await.map(drop)
        })
        .await?;
    }
    topology::close(&channel).await;
    Ok(done)
}
