//! How many actions a worker answers in a second, and how fast; beside it the same messages through a loop that does nothing but answer, which is
//! what the broker and this machine allow.
//!
//! No switch takes part: the commands are taken off the control queue and dropped, so that what is measured is the way from `action.execute`
//! to `action.result`.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
        ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};

use super::{
    report::say,
    wire::{Clock, Object, address, defaults, hex, merge, pid, text, uuid},
};

const KEY: &str = "callflow.action.record_call";
/// Kazoo's own queues hold so many.
const KAZOO_LENGTH: i32 = 100;

#[derive(Clone, Debug)]
pub struct LoadOptions {
    pub amqp_uri: String,
    pub account: String,
    pub actions: u64,
    /// Actions that wait for their answers at once: calls that reach the node together.
    pub window: usize,
    /// Do not use a worker: answer here, with as little work as can be.
    pub bare: bool,
    pub patience: Duration,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Measured {
    pub answered: u64,
    pub took: Duration,
    /// Sorted.
    pub latencies: Vec<Duration>,
    pub commands: u64,
}

impl Measured {
    pub fn rate(&self) -> f64 {
        self.answered as f64 / self.took.as_secs_f64().max(1e-9)
    }

    pub fn quantile(&self, q: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let at = ((last as f64) * q).round() as usize;
        self.latencies.get(at).copied().unwrap_or_default()
    }
}

type Waiting = Arc<Mutex<HashMap<String, (Instant, oneshot::Sender<Duration>)>>>;

/// Runs, and tells.
pub async fn run(options: LoadOptions) -> anyhow::Result<bool> {
    let measured = measure(&options).await?;
    let ms = |q| measured.quantile(q).as_secs_f64() * 1000.0;
    say(format!(
        "{}: {} of {} actions answered in {:.2} s, {:.0} a second, {} at once; {} commands; ms: p50 {:.1}, p95 {:.1}, p99 {:.1}, max {:.1}",
        if options.bare { "bare loop" } else { "worker" },
        measured.answered,
        options.actions,
        measured.took.as_secs_f64(),
        measured.rate(),
        options.window,
        measured.commands,
        ms(0.5),
        ms(0.95),
        ms(0.99),
        ms(1.0),
    ));
    Ok(measured.answered == options.actions)
}

/// Sends the actions and waits for their answers.
pub async fn measure(options: &LoadOptions) -> anyhow::Result<Measured> {
    let connect = || Connection::connect(&options.amqp_uri, ConnectionProperties::default());
    let (sending, hearing) = (connect().await?, connect().await?);
    let (replies, control) = (
        format!("callflow_route_{}", hex(32)),
        format!("ecallmgr@load-{}-{}", pid(), hex(8)),
    );
    let waiting: Waiting = Arc::default();
    let commands = Arc::new(AtomicU64::new(0));
    let channel = hearing.create_channel().await?;
    for (exchange, kind) in [
        ("kapps", ExchangeKind::Topic),
        ("targeted", ExchangeKind::Direct),
        ("callctl", ExchangeKind::Direct),
    ] {
        let options = ExchangeDeclareOptions::default();
        channel
            .exchange_declare(exchange.into(), kind, options, FieldTable::default())
            .await?;
    }
    let heard = waiting.clone();
    consume(&hearing, &replies, "targeted", move |body| answered(&heard, body)).await?;
    let counted = commands.clone();
    consume(&hearing, &control, "callctl", move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    })
    .await?;
    let stop = Arc::new(AtomicBool::new(false));
    let loops = if options.bare {
        Some(bare(&options.amqp_uri, stop.clone()).await?)
    } else {
        None
    };

    let channel = Arc::new(sending.create_channel().await?);
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let window = Arc::new(Semaphore::new(options.window));
    let latencies = Arc::new(Mutex::new(Vec::with_capacity(options.actions as usize)));
    let begun = Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..options.actions {
        let permit = window.clone().acquire_owned().await?;
        let (msg_id, body) = action(&options.account, &replies, &control);
        let (done, answer) = oneshot::channel();
        if let Ok(mut waiting) = waiting.lock() {
            waiting.insert(msg_id, (Instant::now(), done));
        }
        send(&channel, &body).await?;
        let (latencies, patience) = (latencies.clone(), options.patience);
        calls.spawn(async move {
            let _permit = permit;
            if let Ok(Ok(after)) = tokio::time::timeout(patience, answer).await
                && let Ok(mut latencies) = latencies.lock()
            {
                latencies.push(after);
            }
        });
        while calls.try_join_next().is_some() {}
    }
    while calls.join_next().await.is_some() {}
    let took = begun.elapsed();
    stop.store(true, Ordering::Relaxed);
    if let Some(loops) = loops {
        loops.abort();
    }
    let mut latencies = latencies.lock().map(|all| all.clone()).unwrap_or_default();
    latencies.sort_unstable();
    let _ = sending.close(200, "done".into()).await;
    let _ = hearing.close(200, "done".into()).await;
    Ok(Measured {
        answered: latencies.len() as u64,
        took,
        latencies,
        commands: commands.load(Ordering::Relaxed),
    })
}

fn answered(waiting: &Waiting, body: &[u8]) {
    let Ok(body) = serde_json::from_slice::<Object>(body) else {
        return;
    };
    if text(&body, "Event-Name") != Some("action.result") {
        return;
    }
    let id = text(&body, "Msg-ID").unwrap_or_default();
    let found = waiting.lock().ok().and_then(|mut waiting| waiting.remove(id));
    if let Some((sent, done)) = found {
        let _ = done.send(sent.elapsed());
    }
}

/// A queue with Kazoo's limits, consumed as Kazoo does.
async fn consume(
    connection: &Connection,
    queue: &str,
    exchange: &'static str,
    on: impl Fn(&[u8]) + Send + 'static,
) -> anyhow::Result<()> {
    let channel = connection.create_channel().await?;
    let mut limits = FieldTable::default();
    limits.insert("x-max-length".into(), AMQPValue::LongInt(KAZOO_LENGTH));
    limits.insert("x-message-ttl".into(), AMQPValue::LongInt(60_000));
    let declare = QueueDeclareOptions {
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    channel.queue_declare(queue.into(), declare, limits).await?;
    let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
    channel
        .queue_bind(queue.into(), exchange.into(), queue.into(), bind, none)
        .await?;
    let options = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let mut deliveries = channel
        .basic_consume(queue.into(), "".into(), options, FieldTable::default())
        .await?;
    tokio::spawn(async move {
        let _channel = channel;
        while let Some(Ok(delivery)) = deliveries.next().await {
            on(&delivery.data);
        }
    });
    Ok(())
}

/// One `action.execute` of a call of its own, as callflow sends it.
fn action(account: &str, replies: &str, control: &str) -> (String, Vec<u8>) {
    let (call_id, flow) = (uuid(), pid());
    let mut body = defaults(
        "callflow",
        "action.execute",
        "callflow",
        "4.0.0",
        "kazoo_apps@load.example.com",
    );
    let server = address(&flow, replies);
    merge(
        &mut body,
        json!({
            "Call-ID": call_id,
            "Server-ID": server,
            "Data": {"action": "start", "format": "mp3", "label": "load"},
            "Call": {
                "Account-ID": account,
                "Call-ID": call_id,
                "Call-Direction": "inbound",
                "Caller-ID-Name": "Extension 1000",
                "Caller-ID-Number": "1000",
                "Callee-ID-Number": "2000",
                "Control-Queue": address(&pid(), control),
                "Controller-Queue": server,
                "Fetch-ID": uuid(),
                "From": "1000@acme.sip.example.com",
                "To": "2000@acme.sip.example.com",
                "Request": "2000@acme.sip.example.com",
                "Switch-Nodename": "freeswitch@load.example.com",
                "Key-Value-Store": {"cf_flow_name": "Main Number", "remote-action": "record_call"},
                "Custom-Channel-Vars": {
                    "Account-ID": account,
                    "Authorizing-ID": "7e1c0f2ab6f94b41b0e2a3ffb8f0a111",
                    "Authorizing-Type": "device",
                    "Call-Interaction-ID": "63923845331-9f3ad9cd",
                    "Ecallmgr-Node": "ecallmgr@load.example.com",
                    "Owner-ID": "9d8c7b6a5f4e3d2c1b0a998877665544",
                    "Realm": "acme.sip.example.com",
                    "Username": "user_a1b2c3",
                },
            },
        }),
    );
    let msg_id = text(&body, "Msg-ID").unwrap_or_default().to_owned();
    (msg_id, serde_json::to_vec(&body).unwrap_or_default())
}

async fn send(channel: &Channel, body: &[u8]) -> anyhow::Result<()> {
    let mandatory = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_timestamp(Clock::default().gregorian_micros());
    let confirm = channel
        .basic_publish("kapps".into(), KEY.into(), mandatory, body, properties)
        .await?;
    tokio::spawn(async move {
        if let Ok(confirmation) = confirm.await
            && confirmation.take_message().is_some()
        {
            say("an action came back: nobody is bound");
        }
    });
    Ok(())
}

/// The loop that does nothing but answer, as a worker must: from a quorum queue, accepted and result confirmed, then acknowledged.
async fn bare(uri: &str, stop: Arc<AtomicBool>) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let connect = || Connection::connect(uri, ConnectionProperties::default());
    let (consuming, publishing) = (connect().await?, connect().await?);
    let channel = consuming.create_channel().await?;
    let queue = format!("kazoo-sim-bare-{}", hex(8));
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    quorum.insert("x-expires".into(), AMQPValue::LongInt(60_000));
    let (durable, bind) = (QueueDeclareOptions::durable(), QueueBindOptions::default());
    channel.queue_declare(queue.as_str().into(), durable, quorum).await?;
    channel
        .queue_bind(
            queue.as_str().into(),
            "kapps".into(),
            KEY.into(),
            bind,
            FieldTable::default(),
        )
        .await?;
    channel.basic_qos(256, BasicQosOptions::default()).await?;
    let mut deliveries = channel
        .basic_consume(
            queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let answers = publishing.create_channel().await?;
    answers.confirm_select(ConfirmSelectOptions::default()).await?;
    let answering = async move {
        let (_consuming, _publishing) = (consuming, publishing);
        while let Some(Ok(delivery)) = deliveries.next().await {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let answers = answers.clone();
            tokio::spawn(async move {
                if answer(&answers, &delivery.data).await.is_ok() {
                    let _ = delivery.acker.ack(BasicAckOptions::default()).await;
                }
            });
        }
    };
    Ok(tokio::spawn(answering))
}

async fn answer(channel: &Channel, body: &[u8]) -> anyhow::Result<()> {
    let action: Object = serde_json::from_slice(body)?;
    let server = text(&action, "Server-ID").context("Server-ID")?;
    let (to, queue) = super::wire::split_address(server);
    for (name, result) in [
        ("action.accepted", Value::Null),
        ("action.result", json!("g2QACGNvbnRpbnVl")),
    ] {
        let mut reply = defaults("callflow", name, "bare", "1.0.0", "bare@load.example.com");
        merge(
            &mut reply,
            json!({"Msg-ID": action.get("Msg-ID"), "Call-ID": action.get("Call-ID"), "Result": result}),
        );
        let mut headers = FieldTable::default();
        headers.insert(
            "Deliver-To-PID".into(),
            AMQPValue::LongString(to.unwrap_or_default().into()),
        );
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_headers(headers);
        let confirmed = channel
            .basic_publish(
                "targeted".into(),
                queue.into(),
                BasicPublishOptions::default(),
                &serde_json::to_vec(&reply)?,
                properties,
            )
            .await?
            .await?;
        ensure!(confirmed.is_ack(), "not confirmed");
    }
    Ok(())
}
