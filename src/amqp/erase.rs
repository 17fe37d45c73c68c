//! Removes messages from a queue that no worker consumes, for `kz-record-call erase`.

use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use secrecy::SecretString;

use crate::config;

use super::{AmqpError, link, topology, within};

/// Time limit of one step.
const LIMIT: Duration = Duration::from_secs(5);

/// How many messages were read, and how many of them were removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    pub removed: usize,
    pub read: usize,
}

/// Removes the messages that `is_wanted` says of, by their body, content type and content encoding. All other messages return to the queue,
/// in their order. Reads as many messages as there are at the beginning.
///
/// # Errors
/// When the broker does not answer. A missing queue has no messages.
pub async fn remove_from(
    config: &config::Amqp,
    uri: &SecretString,
    node: &str,
    queue: &str,
    is_wanted: &(dyn Fn(&[u8], &str, &str) -> bool + Sync),
) -> Result<Removed, AmqpError> {
    let connection = link::connect(config, uri, &format!("{node} erase")).await?;
    let removed = remove(&connection, queue, is_wanted).await;
    link::close(&connection).await;
    removed
}

async fn remove(
    connection: &lapin::Connection,
    queue: &str,
    is_wanted: &(dyn Fn(&[u8], &str, &str) -> bool + Sync),
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
        let text = |text: Option<&lapin::types::ShortString>| text.map(ToString::to_string).unwrap_or_default();
        let kind = text(message.properties.content_type().as_ref());
        let encoding = text(message.properties.content_encoding().as_ref());
        if is_wanted(&message.data, &kind, &encoding) {
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
