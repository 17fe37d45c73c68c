//! The limit loop: the least program with a worker's durability. It consumes actions from a quorum
//! queue, publishes a command and two answers, waits for the confirmation of all three, writes one
//! document, and acknowledges the action. It decides nothing, and remembers nothing.
//!
//! Documents are written by group commit: one `_bulk_docs` request at a time, with all documents
//! that wait.

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::StreamExt as _;
use lapin::{
    BasicProperties, Channel,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
        QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use reqwest::{Client, StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{
    super::{
        report::say,
        wire::{Object, defaults, hex, merge, split_address, text},
    },
    calls::{self, KEY, connect},
};

/// As many as a worker has.
const PREFETCH: u16 = 256;
/// The most documents in one request.
const BATCH: usize = 500;

#[derive(Clone, Debug)]
pub struct LimitOptions {
    pub amqp_uri: String,
    /// The quorum queue. Several loops share it.
    pub queue: String,
    /// The routing key of the actions on `kapps`.
    pub key: String,
    /// Where one document for each action goes. `None`: the loop writes nothing, and sends no
    /// command.
    pub documents: Option<Documents>,
}

#[derive(Clone, Debug)]
pub struct Documents {
    /// The URL of a database, with credentials if the server needs them.
    pub database_url: String,
    /// What each document has besides its id.
    pub template: Object,
}

impl LimitOptions {
    /// A loop that only answers.
    pub fn answers_only(amqp_uri: &str, queue: &str) -> Self {
        Self {
            amqp_uri: amqp_uri.to_owned(),
            queue: queue.to_owned(),
            key: KEY.to_owned(),
            documents: None,
        }
    }
}

/// What the program prints when the loop consumes.
pub const READY: &str = "ready";

/// Runs the loop as a program, until it is killed.
pub async fn run(options: LimitOptions) -> anyhow::Result<bool> {
    let running = start(options).await?;
    say(READY);
    running.await?;
    Ok(true)
}

/// Starts the loop. It consumes when this returns.
pub async fn start(options: LimitOptions) -> anyhow::Result<JoinHandle<()>> {
    let (consuming, publishing) = (connect(&options.amqp_uri).await?, connect(&options.amqp_uri).await?);
    let channel = consuming.create_channel().await?;
    calls::declare_exchanges(&channel).await?;
    declare(&channel, &options).await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let mut deliveries = channel
        .basic_consume(
            options.queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let sending = publishing.create_channel().await?;
    sending.confirm_select(ConfirmSelectOptions::default()).await?;
    let writer = options.documents.map(Writer::start).transpose()?;
    let answering = async move {
        let (_consuming, _publishing) = (consuming, publishing);
        while let Some(Ok(delivery)) = deliveries.next().await {
            let (sending, writer) = (sending.clone(), writer.clone());
            tokio::spawn(async move {
                if handle(&sending, writer.as_ref(), &delivery).await.is_ok() {
                    let _ = delivery.acker.ack(BasicAckOptions::default()).await;
                }
            });
        }
    };
    Ok(tokio::spawn(answering))
}

async fn declare(channel: &Channel, options: &LimitOptions) -> anyhow::Result<()> {
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    quorum.insert("x-expires".into(), AMQPValue::LongInt(60_000));
    let (durable, bind) = (QueueDeclareOptions::durable(), QueueBindOptions::default());
    let (queue, key) = (options.queue.as_str(), options.key.as_str());
    channel.queue_declare(queue.into(), durable, quorum).await?;
    channel
        .queue_bind(queue.into(), "kapps".into(), key.into(), bind, FieldTable::default())
        .await?;
    Ok(())
}

/// Publishes, writes, and returns when all of it is confirmed.
async fn handle(channel: &Channel, writer: Option<&Writer>, delivery: &Delivery) -> anyhow::Result<()> {
    let action: Object = serde_json::from_slice(&delivery.data)?;
    let server = text(&action, "Server-ID").context("Server-ID")?;
    let mut confirms = Vec::with_capacity(3);
    if writer.is_some() {
        let call = action.get("Call").and_then(Value::as_object).context("Call")?;
        let control = text(call, "Control-Queue").context("Control-Queue")?;
        confirms.push(publish(channel, "callctl", control, &command(&action)).await?);
    }
    for (name, result) in [
        ("action.accepted", Value::Null),
        ("action.result", json!("g2QACGNvbnRpbnVl")),
    ] {
        let mut reply = defaults("callflow", name, "limit", "1.0.0", "limit@load.example.com");
        merge(
            &mut reply,
            json!({"Msg-ID": action.get("Msg-ID"), "Call-ID": action.get("Call-ID"), "Result": result}),
        );
        confirms.push(publish(channel, "targeted", server, &reply).await?);
    }
    let written = async {
        match writer {
            Some(writer) => writer.write().await,
            None => Ok(()),
        }
    };
    let confirmed = async {
        for confirm in confirms {
            ensure!(confirm.await?.is_ack(), "not confirmed");
        }
        Ok(())
    };
    tokio::try_join!(confirmed, written)?;
    Ok(())
}

/// A start command as large as a worker's.
fn command(action: &Object) -> Object {
    let mut command = defaults("call", "command", "limit", "1.0.0", "limit@load.example.com");
    let name = hex(32);
    merge(
        &mut command,
        json!({
            "Call-ID": action.get("Call-ID"),
            "Application-Name": "record_call",
            "Record-Action": "start",
            "Insert-At": "now",
            "Media-Name": format!("{name}.mp3"),
            "Media-Recorder": "limit",
            "Media-Recording-ID": format!("202601-{name}"),
            "Time-Limit": 10_800,
            "Follow-Transfer": true,
            "Recording-Variables": {"Carry": hex(700)},
        }),
    );
    command
}

async fn publish(
    channel: &Channel,
    exchange: &str,
    address: &str,
    body: &Object,
) -> anyhow::Result<lapin::PublisherConfirm> {
    let (to, queue) = split_address(address);
    let mut headers = FieldTable::default();
    headers.insert(
        "Deliver-To-PID".into(),
        AMQPValue::LongString(to.unwrap_or_default().into()),
    );
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_headers(headers);
    let (body, options) = (serde_json::to_vec(body)?, BasicPublishOptions::default());
    Ok(channel
        .basic_publish(exchange.into(), queue.into(), options, &body, properties)
        .await?)
}

/// Writes documents by group commit.
#[derive(Clone)]
struct Writer {
    template: Bytes,
    waiting: mpsc::Sender<(Bytes, oneshot::Sender<bool>)>,
}

impl Writer {
    fn start(documents: Documents) -> anyhow::Result<Self> {
        let mut template = documents.template;
        template.retain(|key, _| !key.starts_with('_'));
        let (waiting, taking) = mpsc::channel(4 * usize::from(PREFETCH));
        let http = Client::builder().build()?;
        tokio::spawn(commit(http, documents.database_url, taking));
        Ok(Self {
            template: serde_json::to_vec(&template)?.into(),
            waiting,
        })
    }

    /// Writes one document with an id of its own.
    async fn write(&self) -> anyhow::Result<()> {
        let mut document = format!("{{\"_id\":\"{}\"", hex(32)).into_bytes();
        // The template's own brace is replaced.
        let rest = self.template.get(1..).unwrap_or(b"}");
        document.extend_from_slice(if rest == b"}" { b"" } else { b"," });
        document.extend_from_slice(rest);
        let (done, written) = oneshot::channel();
        self.waiting.send((document.into(), done)).await?;
        ensure!(written.await?, "a document was not written");
        Ok(())
    }
}

async fn commit(http: Client, database_url: String, mut taking: mpsc::Receiver<(Bytes, oneshot::Sender<bool>)>) {
    let url = format!("{database_url}/_bulk_docs");
    let mut batch = Vec::new();
    while taking.recv_many(&mut batch, BATCH).await > 0 {
        let mut body = b"{\"docs\":[".to_vec();
        for (n, (document, _)) in batch.iter().enumerate() {
            body.extend_from_slice(if n > 0 { b"," } else { b"" });
            body.extend_from_slice(document);
        }
        body.extend_from_slice(b"]}");
        let written = bulk(&http, &url, body).await.is_ok();
        for (_, done) in batch.drain(..) {
            let _ = done.send(written);
        }
    }
}

async fn bulk(http: &Client, url: &str, body: Vec<u8>) -> anyhow::Result<()> {
    let request = http.post(url).header(CONTENT_TYPE, "application/json").body(body);
    let response = request.send().await?;
    ensure!(response.status() == StatusCode::CREATED, "{}", response.status());
    let rows: Vec<Value> = serde_json::from_slice(&response.bytes().await?)?;
    ensure!(rows.iter().all(|row| row["error"].is_null()), "a document was refused");
    Ok(())
}
