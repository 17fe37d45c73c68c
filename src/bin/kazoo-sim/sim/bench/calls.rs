//! Callflow's side of a measurement: sends actions, and measures the time until their results.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use serde_json::json;
use tokio::sync::{Semaphore, oneshot};

use super::super::{
    report::say,
    wire::{Clock, Object, address, defaults, hex, merge, pid, text, uuid},
};

/// The routing key of a worker's actions.
pub const KEY: &str = "callflow.action.record_call";
/// Kazoo's own queues hold this many messages.
const KAZOO_LENGTH: i32 = 100;

#[derive(Clone, Debug)]
pub struct CallsOptions {
    pub amqp_uri: String,
    pub account: String,
    /// The routing key of the actions on `kapps`.
    pub key: String,
    pub format: &'static str,
    /// The control queue of a simulated switch. `None`: the commands are counted, and dropped.
    pub control: Option<String>,
    /// The number of media switches that the calls are on.
    pub switches: usize,
    /// How many messages the queues of the replies and of the dropped commands hold.
    pub replies: Length,
}

/// How many messages a queue holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// As Kazoo's own queues: the broker drops the oldest of more than a hundred.
    Kazoo,
    /// Any number, for a program that sends faster than Kazoo's queues can be emptied.
    Any,
}

impl CallsOptions {
    /// Calls whose commands are dropped.
    pub fn new(amqp_uri: &str, account: &str) -> Self {
        Self {
            amqp_uri: amqp_uri.to_owned(),
            account: account.to_owned(),
            key: KEY.to_owned(),
            format: "mp3",
            control: None,
            switches: 1,
            replies: Length::Kazoo,
        }
    }
}

/// How many actions are sent, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub actions: u64,
    /// Actions that wait for their results at once: calls that reach the node together.
    pub window: usize,
    /// Actions a second at most.
    pub rate: Option<f64>,
    /// The time limit of one action's result.
    pub patience: Duration,
}

/// The results of one run.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub answered: u64,
    /// From the first action to the last result.
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

    pub fn ms(&self, q: f64) -> f64 {
        self.quantile(q).as_secs_f64() * 1000.0
    }
}

type Waiting = Arc<Mutex<HashMap<String, (Instant, oneshot::Sender<Duration>)>>>;

/// The connections of one callflow server. All actions of a run share one reply queue, as in Kazoo.
pub struct Calls {
    options: CallsOptions,
    replies: String,
    control: String,
    sending: Connection,
    hearing: Connection,
    channel: Channel,
    waiting: Waiting,
    commands: Arc<AtomicU64>,
}

impl Calls {
    pub async fn connect(options: CallsOptions) -> anyhow::Result<Self> {
        let (sending, hearing) = (connect(&options.amqp_uri).await?, connect(&options.amqp_uri).await?);
        declare_exchanges(&hearing.create_channel().await?).await?;
        let (replies, waiting) = (format!("callflow_route_{}", hex(32)), Waiting::default());
        let heard = waiting.clone();
        let binding = [("targeted", replies.clone())];
        consume(&hearing, &replies, options.replies, &binding, move |body| {
            answered(&heard, &body)
        })
        .await?;
        let commands = Arc::new(AtomicU64::new(0));
        let control = match &options.control {
            Some(control) => control.clone(),
            None => {
                let control = format!("ecallmgr@load-{}-{}", pid(), hex(8));
                let counted = commands.clone();
                let count = move |_| {
                    counted.fetch_add(1, Ordering::Relaxed);
                };
                consume(
                    &hearing,
                    &control,
                    options.replies,
                    &[("callctl", control.clone())],
                    count,
                )
                .await?;
                control
            }
        };
        let channel = sending.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self {
            options,
            replies,
            control,
            sending,
            hearing,
            channel,
            waiting,
            commands,
        })
    }

    /// Sends one action of a call. The receiver gets the time until the result.
    pub async fn act(&self, call_id: &str) -> anyhow::Result<oneshot::Receiver<Duration>> {
        let (msg_id, body) = action(&self.options, call_id, &self.replies, &self.control);
        let (done, answer) = oneshot::channel();
        if let Ok(mut waiting) = self.waiting.lock() {
            waiting.insert(msg_id, (Instant::now(), done));
        }
        send(&self.channel, &self.options.key, &body).await?;
        Ok(answer)
    }

    /// Sends the actions of a plan, each of a call of its own, and waits for their results.
    pub async fn run(&self, plan: &Plan) -> anyhow::Result<Measured> {
        let window = Arc::new(Semaphore::new(plan.window.max(1)));
        let results = Arc::new(Mutex::new(Vec::with_capacity(plan.actions as usize)));
        let mut pace = plan
            .rate
            .map(|rate| tokio::time::interval(Duration::from_secs_f64(1.0 / rate.max(0.01))));
        let (begun, patience) = (Instant::now(), plan.patience);
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..plan.actions {
            if let Some(pace) = &mut pace {
                pace.tick().await;
            }
            let permit = window.clone().acquire_owned().await?;
            let answer = self.act(&uuid()).await?;
            let results = results.clone();
            calls.spawn(async move {
                let _permit = permit;
                if let Ok(Ok(after)) = tokio::time::timeout(patience, answer).await
                    && let Ok(mut results) = results.lock()
                {
                    results.push((after, begun.elapsed()));
                }
            });
            while calls.try_join_next().is_some() {}
        }
        while calls.join_next().await.is_some() {}
        let results = results.lock().map(|all| all.clone()).unwrap_or_default();
        let mut latencies: Vec<Duration> = results.iter().map(|(after, _)| *after).collect();
        latencies.sort_unstable();
        Ok(Measured {
            answered: latencies.len() as u64,
            // An action without a result does not count, and neither does the wait for it.
            took: results.iter().map(|(_, at)| *at).max().unwrap_or_default(),
            latencies,
            commands: self.commands.load(Ordering::Relaxed),
        })
    }

    pub async fn close(self) {
        close(&self.sending).await;
        close(&self.hearing).await;
    }
}

/// Closes a connection. The library sometimes waits for ever for the broker's answer.
pub async fn close(connection: &Connection) {
    let _ = tokio::time::timeout(Duration::from_secs(5), connection.close(200, "done".into())).await;
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

pub async fn connect(uri: &str) -> anyhow::Result<Connection> {
    Ok(Connection::connect(uri, ConnectionProperties::default()).await?)
}

/// Kazoo's exchanges that a measurement uses.
pub async fn declare_exchanges(channel: &Channel) -> anyhow::Result<()> {
    for (exchange, kind) in [
        ("kapps", ExchangeKind::Topic),
        ("targeted", ExchangeKind::Direct),
        ("callctl", ExchangeKind::Direct),
        ("callevt", ExchangeKind::Topic),
        ("switch", ExchangeKind::Topic),
    ] {
        let options = ExchangeDeclareOptions::default();
        channel
            .exchange_declare(exchange.into(), kind, options, FieldTable::default())
            .await?;
    }
    Ok(())
}

/// A queue with Kazoo's other limits, consumed as Kazoo does.
pub async fn consume(
    connection: &Connection,
    queue: &str,
    length: Length,
    bindings: &[(&'static str, String)],
    on: impl Fn(Vec<u8>) + Send + 'static,
) -> anyhow::Result<()> {
    let channel = connection.create_channel().await?;
    let mut limits = FieldTable::default();
    if length == Length::Kazoo {
        limits.insert("x-max-length".into(), AMQPValue::LongInt(KAZOO_LENGTH));
    }
    limits.insert("x-message-ttl".into(), AMQPValue::LongInt(60_000));
    let declare = QueueDeclareOptions {
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    channel.queue_declare(queue.into(), declare, limits).await?;
    for (exchange, key) in bindings {
        let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
        channel
            .queue_bind(queue.into(), (*exchange).into(), key.as_str().into(), bind, none)
            .await?;
    }
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
            on(delivery.data);
        }
    });
    Ok(())
}

/// The media switch that a call is on, one of so many.
pub fn switch_of(call_id: &str, switches: usize) -> String {
    let sum: usize = call_id.bytes().map(usize::from).sum();
    switch_node(sum % switches.max(1))
}

pub fn switch_node(n: usize) -> String {
    format!("freeswitch@load{n}.example.com")
}

/// The channel variables of each call.
pub fn channel_variables(account: &str) -> serde_json::Value {
    json!({
        "Account-ID": account,
        "Authorizing-ID": "7e1c0f2ab6f94b41b0e2a3ffb8f0a111",
        "Authorizing-Type": "device",
        "Call-Interaction-ID": "63923845331-9f3ad9cd",
        "Ecallmgr-Node": "ecallmgr@load.example.com",
        "Owner-ID": "9d8c7b6a5f4e3d2c1b0a998877665544",
        "Realm": "acme.sip.example.com",
        "Username": "user_a1b2c3",
    })
}

/// One `action.execute`, as callflow sends it: its `Msg-ID` and its body.
fn action(options: &CallsOptions, call_id: &str, replies: &str, control: &str) -> (String, Vec<u8>) {
    let mut body = defaults(
        "callflow",
        "action.execute",
        "callflow",
        "4.0.0",
        "kazoo_apps@load.example.com",
    );
    let server = address(&pid(), replies);
    merge(
        &mut body,
        json!({
            "Call-ID": call_id,
            "Server-ID": server,
            "Data": {"action": "start", "format": options.format, "label": "load"},
            "Call": {
                "Account-ID": options.account,
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
                "Switch-Nodename": switch_of(call_id, options.switches),
                "Key-Value-Store": {"cf_flow_name": "Main Number", "remote-action": "record_call"},
                "Custom-Channel-Vars": channel_variables(&options.account),
            },
        }),
    );
    let msg_id = text(&body, "Msg-ID").unwrap_or_default().to_owned();
    (msg_id, serde_json::to_vec(&body).unwrap_or_default())
}

async fn send(channel: &Channel, key: &str, body: &[u8]) -> anyhow::Result<()> {
    let mandatory = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_timestamp(Clock::default().gregorian_micros());
    let confirm = channel
        .basic_publish("kapps".into(), key.into(), mandatory, body, properties)
        .await?;
    tokio::spawn(async move {
        if let Ok(confirmation) = confirm.await
            && confirmation.take_message().is_some()
        {
            say("an action was returned: no queue is bound");
        }
    });
    Ok(())
}
