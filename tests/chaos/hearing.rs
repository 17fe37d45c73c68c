//! Hears what is announced of recordings, over the broker's restarts too. A bystander: nothing in a cluster depends on it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const QUEUE: &str = "chaos.heard";

/// Ours, and the product's that outlive a broker's restart.
pub const QUEUES: &[&str] = &[
    QUEUE,
    "kz_record_call.actions",
    "kz_record_call.endings",
    "kz_record_call.dead",
    "kz_record_call.journal",
    "kz_record_call.controls",
];

/// The product's, and whether it leaves anything there when all is done.
pub const EMPTY_AT_THE_END: &[&str] = &[
    "kz_record_call.actions",
    "kz_record_call.endings",
    "kz_record_call.dead",
    "kz_record_call.journal",
    "kz_record_call.controls",
];

const AGAIN: Duration = Duration::from_millis(50);

/// What was told of a recording: `recording.<outcome>.<account>`.
#[derive(Debug, Clone)]
pub struct Told {
    pub at: Instant,
    pub body: Value,
}

impl Told {
    pub fn text(&self, key: &str) -> &str {
        self.body[key].as_str().unwrap_or_default()
    }
}

pub struct Hearing {
    uri: String,
    heard: Arc<Mutex<Vec<Told>>>,
    /// How many were heard.
    count: watch::Receiver<usize>,
    hearing: JoinHandle<()>,
}

impl Drop for Hearing {
    fn drop(&mut self) {
        self.hearing.abort();
    }
}

impl Hearing {
    pub fn start(uri: String) -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (sender, count) = watch::channel(0);
        let (own, into) = (uri.clone(), Arc::clone(&heard));
        let hearing = tokio::spawn(async move {
            loop {
                // When the broker goes it is looked for again, for ever.
                let _ = session(&own, &into, &sender).await;
                tokio::time::sleep(AGAIN).await;
            }
        });
        Self {
            uri,
            heard,
            count,
            hearing,
        }
    }

    pub fn told(&self) -> Vec<Told> {
        self.heard.lock().unwrap().clone()
    }

    /// Waits until more was heard, or for so long.
    pub async fn more(&self, patience: Duration) {
        let mut count = self.count.clone();
        count.mark_unchanged();
        let _ = tokio::time::timeout(patience, count.changed()).await;
    }

    /// What rests in the product's queues now.
    pub async fn left_over(&self) -> anyhow::Result<Vec<(&'static str, u32)>> {
        let connection = Connection::connect(&self.uri, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let mut found = Vec::new();
        for name in EMPTY_AT_THE_END {
            let passive = QueueDeclareOptions {
                passive: true,
                ..QueueDeclareOptions::default()
            };
            let queue = channel.queue_declare((*name).into(), passive, FieldTable::default());
            found.push((*name, queue.await?.message_count()));
        }
        let _ = connection.close(200, "bye".into()).await;
        Ok(found)
    }
}

async fn session(uri: &str, heard: &Mutex<Vec<Told>>, count: &watch::Sender<usize>) -> anyhow::Result<()> {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel.queue_declare(QUEUE.into(), durable, arguments).await?;
    // What is announced while nobody is bound to Kazoo's exchange goes to the alternate one.
    for (exchange, durable) in [("kapps", false), ("kz_record_call.unrouted", true)] {
        let options = ExchangeDeclareOptions {
            durable,
            ..ExchangeDeclareOptions::default()
        };
        channel
            .exchange_declare(exchange.into(), ExchangeKind::Topic, options, FieldTable::default())
            .await?;
        let bind = QueueBindOptions::default();
        channel
            .queue_bind(
                QUEUE.into(),
                exchange.into(),
                "recording.#".into(),
                bind,
                FieldTable::default(),
            )
            .await?;
    }
    let mut deliveries = channel
        .basic_consume(
            QUEUE.into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery?;
        let body = serde_json::from_slice(&delivery.data).context("what was announced is no JSON")?;
        heard.lock().unwrap().push(Told {
            at: Instant::now(),
            body,
        });
        delivery.ack(BasicAckOptions::default()).await?;
        count.send_modify(|count| *count += 1);
    }
    Ok(())
}
