//! What a broker that is short of memory, messages that cannot be put aside, and a slow callflow node do to the other calls: nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::{Value, json};

use crate::promises;
use crate::simulator::sim::{CallOptions, RawExecute};
use crate::support::{Broker, Mode, SOON, Services, TestResult, Worker, World};

promises![
    connections_that_say_nothing_keep_no_switch_out,
    looks_that_the_broker_refuses_are_given_up_and_told_once,
    a_callflow_queue_that_is_gone_costs_no_look_for_each_message,
    bytes_that_are_no_utf_8_and_times_of_the_broker_are_recorded_as_ever,
    an_event_that_is_not_known_is_left_alone,
    a_worker_goes_back_to_the_first_broker_with_both_connections,
    a_broker_alarm_is_told_and_afterwards_every_action_is_answered,
    a_message_that_cannot_be_copied_whole_is_put_aside_and_keeps_nobody_waiting,
    a_dead_letter_queue_that_is_missing_is_declared_again,
    a_callflow_node_that_reads_nothing_does_not_keep_others_waiting,
];

/// Messages of a queue: ready, and delivered without an acknowledgement.
async fn load(broker: &Broker, queue: &str) -> anyhow::Result<(u64, u64)> {
    let columns = ["-q", "list_queues", "name", "messages_ready", "messages_unacknowledged"];
    let listed = broker.rabbitmqctl(&columns).await?;
    let line = listed
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.first() == Some(&queue))
        .with_context(|| format!("no {queue} in {listed}"))?;
    Ok((line[1].parse()?, line[2].parse()?))
}

async fn empty(broker: &Broker, queue: &str, worker: &Worker) -> TestResult {
    let begun = Instant::now();
    loop {
        let load = load(broker, queue).await?;
        if load == (0, 0) {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(60),
            "{queue} has {load:?} (ready, unacknowledged)\n{}",
            worker.tail()
        );
    }
}

async fn readiness(worker: &Worker) -> anyhow::Result<(u16, String)> {
    let answer = reqwest::get(format!("{}/readyz", worker.admin().await?)).await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

/// A memory alarm for as long as this takes.
async fn alarm(broker: &Broker, on: bool) -> TestResult {
    let mark = if on { "0" } else { "0.6" };
    broker.rabbitmqctl(&["set_vm_memory_high_watermark", mark]).await?;
    Ok(())
}

/// A number from the environment, for longer runs by hand: `ALARM_SECONDS=120 ALARM_ACTIONS=1000 ALARM_PREFETCH=256`.
fn number(variable: &str, usual: u64) -> u64 {
    let given = std::env::var(variable).ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// More actions than a worker takes at once meet an alarm that is longer than a result is tried for.
async fn a_broker_alarm_is_told_and_afterwards_every_action_is_answered(services: Arc<Services>) -> TestResult {
    let broker = Broker::start().await?;
    let services = services.with_broker(&broker).await?;
    let world = World::new(&services).await?;
    let prefetch = number("ALARM_PREFETCH", 4).to_string();
    let settings = [
        // Old ones are answered first, and recorded when their call was seen to live.
        ("FLOW__STALE_ACTION_MS", "3600000"),
        ("AMQP__PREFETCH_ACTIONS", prefetch.as_str()),
        ("AMQP__PUBLISH_TIMEOUT_MS", "300"),
    ];
    let worker = world.worker_with(&settings).await?;
    let said = "kz_record_call_amqp_blocked 0";
    worker.counts(said).await?;
    // They are in the queue before the alarm: then Kazoo can publish as little as we can.
    worker.freeze()?;
    let mut runs = Vec::new();
    for _ in 0..number("ALARM_ACTIONS", 12) {
        let call = world.kazoo.new_call(CallOptions::talking());
        runs.push(call.execute(json!({"skip_module": true})).await?);
    }
    let call = world.kazoo.new_call(CallOptions::talking());
    runs.push(call.execute(json!({})).await?);
    alarm(&broker, true).await?;
    worker.thaw()?;
    let blocked = |line: &Value| line["event"] == "amqp_blocked";
    let line = worker.logged("the alarm", blocked, SOON).await?;
    ensure!(
        line["reason"].as_str().is_some_and(|why| why.contains("memory")),
        "{line}"
    );
    worker.counts("kz_record_call_amqp_blocked 1").await?;
    let (status, text) = readiness(&worker).await?;
    ensure!(
        status == 503 && text.contains("publishing: the broker takes no messages"),
        "{status} {text}"
    );
    // As long as a result is tried for, and longer.
    tokio::time::sleep(Duration::from_secs(number("ALARM_SECONDS", 12))).await;
    alarm(&broker, false).await?;
    let unblocked = |line: &Value| line["event"] == "amqp_unblocked";
    worker.logged("the alarm's end", unblocked, SOON).await?;
    for run in &runs {
        run.continued(Duration::from_secs(60))
            .await
            .with_context(|| worker.tail())?;
    }
    let later = world.kazoo.new_call(CallOptions::talking());
    later
        .execute(json!({}))
        .await?
        .continued(SOON)
        .await
        .with_context(|| worker.tail())?;
    later.wait_recording_started(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    empty(&broker, "kz_record_call.actions", &worker).await?;
    worker.ready(SOON).await?;
    worker.counts("kz_record_call_amqp_blocked 0").await?;
    worker.counts("kz_record_call_amqp_alarms_total 1").await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

async fn channel(uri: &str) -> anyhow::Result<(Connection, Channel)> {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok((connection, channel))
}

async fn publish(
    channel: &Channel,
    (exchange, key): (&str, &str),
    body: &[u8],
    properties: BasicProperties,
) -> TestResult {
    let options = BasicPublishOptions::default();
    let confirm = channel.basic_publish(exchange.into(), key.into(), options, body, properties);
    ensure!(confirm.await?.await?.is_ack(), "not published");
    Ok(())
}

/// Each queue gets more of them than its consumer takes at once, with properties that the broker takes from nobody else, that would delete the dead
/// letter, or send it elsewhere too.
async fn a_message_that_cannot_be_copied_whole_is_put_aside_and_keeps_nobody_waiting(
    services: Arc<Services>,
) -> TestResult {
    let broker = Broker::start().await?;
    broker.rabbitmqctl(&["add_user", "worker", "secret"]).await?;
    broker
        .rabbitmqctl(&["set_permissions", "worker", ".*", ".*", ".*"])
        .await?;
    let services = services.with_broker(&broker).await?;
    let world = World::new(&services).await?;
    let own = world.setting("AMQP__URI").replace("guest:guest", "worker:secret");
    let settings = [
        ("AMQP__URI", own.as_str()),
        ("AMQP__PREFETCH_ACTIONS", "3"),
        ("AMQP__PREFETCH_ENDINGS", "3"),
    ];
    let worker = world.worker_with(&settings).await?;
    let (connection, channel) = channel(&world.setting("AMQP__URI")).await?;
    let copies = "copies-of-dead-letters";
    let declare = channel.queue_declare(copies.into(), QueueDeclareOptions::default(), FieldTable::default());
    declare.await?;
    let plain = || BasicProperties::default().with_content_type("application/json".into());
    let headers = |name: &str, value: AMQPValue| {
        let mut table = FieldTable::default();
        table.insert(name.into(), value);
        table
    };
    let copied = AMQPValue::FieldArray(vec![AMQPValue::LongString(copies.into())].into());
    // A frame has 128 KiB: there is no room beside it for what we add.
    let long = AMQPValue::LongString("x".repeat(130_500).as_str().into());
    let kinds = [
        plain().with_user_id("guest".into()),
        plain().with_expiration("1000".into()),
        plain().with_headers(headers("CC", copied)),
        plain().with_headers(headers("long", long)),
    ];
    let places = [
        ("kapps", "callflow.action.record_call"),
        ("callevt", "call.RECORD_STOP.a"),
        ("", "kz_record_call.journal"),
    ];
    for place in places {
        for _ in 0..2 {
            for properties in &kinds {
                publish(&channel, place, b"{}", properties.clone()).await?;
            }
        }
    }
    let sent = u32::try_from(places.len() * kinds.len() * 2)?;
    let begun = Instant::now();
    loop {
        let passive = QueueDeclareOptions {
            passive: true,
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let dead = channel.queue_declare("kz_record_call.dead".into(), passive, FieldTable::default());
        let dead = dead.await?.message_count();
        if dead == sent {
            break;
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(30),
            "{dead} of {sent} are put aside\n{}",
            worker.tail()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({}))
        .await?
        .continued(SOON)
        .await
        .with_context(|| worker.tail())?;
    let mut reasons = 0;
    for _ in 0..sent {
        let letter = channel
            .basic_get("kz_record_call.dead".into(), BasicGetOptions::default())
            .await?;
        let letter = letter.context("a dead letter deleted itself")?;
        let properties = &letter.properties;
        ensure!(
            properties.expiration().is_none() && properties.user_id().is_none(),
            "{properties:?}"
        );
        let table = properties.headers().clone().unwrap_or_default();
        reasons += usize::from(table.inner().contains_key("x-kz-record-call-reason"));
        letter.acker.ack(BasicAckOptions::default()).await?;
    }
    ensure!(reasons == sent as usize, "{reasons} of {sent} have their reason");
    let copied = channel
        .queue_delete(copies.into(), QueueDeleteOptions::default())
        .await?;
    // Those that the sender itself asked for, of the exchange where that key leads to the queue.
    ensure!(copied == 2, "{copied} copies");
    empty(&broker, "kz_record_call.actions", &worker).await?;
    let _ = connection.close(200, "bye".into()).await;
    call.hangup("NORMAL_CLEARING").await;
    world.finish().await
}

/// It is deleted, by hand or by somebody's policy: what cannot be read is put there all the same, and what the broker drops finds it again.
async fn a_dead_letter_queue_that_is_missing_is_declared_again(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker().await?;
    let (connection, channel) = channel(&world.setting("AMQP__URI")).await?;
    let dead = "kz_record_call.dead";
    channel.queue_delete(dead.into(), QueueDeleteOptions::default()).await?;
    let properties = BasicProperties::default().with_content_type("application/json".into());
    publish(&channel, ("kapps", "callflow.action.record_call"), b"{}", properties).await?;
    let rejected = "kz_record_call_messages_rejected_total{queue=\"actions\"} 1";
    worker.counts(rejected).await?;
    let letter = channel.basic_get(dead.into(), BasicGetOptions::default()).await?;
    let letter = letter.context("it is not in the dead letters")?;
    letter.acker.ack(BasicAckOptions::default()).await?;
    // Also where nothing is put there: what the broker itself drops needs it.
    channel.queue_delete(dead.into(), QueueDeleteOptions::default()).await?;
    let again = |line: &Value| line["event"] == "dead_letter_queue_declared";
    let begun = Instant::now();
    while worker.lines().iter().filter(|line| again(line)).count() < 2 {
        ensure!(begun.elapsed() < Duration::from_secs(40), "{}", worker.tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(dead.into(), passive, FieldTable::default())
        .await?;
    let _ = connection.close(200, "bye".into()).await;
    world.finish().await
}

/// A name in Latin-1, as a carrier sends it, and the stamps that brokers put in the place of Kazoo's.
async fn bytes_that_are_no_utf_8_and_times_of_the_broker_are_recorded_as_ever(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker().await?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let stamps = [now.as_secs(), u64::try_from(now.as_millis())?, 0];
    for stamp in stamps {
        let call = world
            .kazoo
            .new_call(CallOptions::talking().parties(("Mueller", "1001"), ("Bob", "2001")));
        let body = Value::Object(call.action(json!({}))?).to_string();
        let latin = "M\u{1}ller \\\"\u{1F600}\\\"";
        let mut bytes = body.replace("Mueller", latin).into_bytes();
        for byte in &mut bytes {
            if *byte == 1 {
                *byte = 0xFC;
            }
        }
        let mut action = RawExecute::new(body).timestamp(stamp);
        action.body = bytes;
        call.execute_raw(action).await?;
        let recording = call.wait_recording_started(SOON).await.with_context(|| worker.tail())?;
        ensure!(recording.id.starts_with(&world.month()), "{}", recording.id);
        call.hangup("NORMAL_CLEARING").await;
        world.stored(&recording).await?;
    }
    worker
        .counts("kz_record_call_actions_total{action=\"start\"} 3")
        .await?;
    worker
        .counts("kz_record_call_messages_rejected_total{queue=\"actions\"} 0")
        .await?;
    world.finish().await
}

/// Another Kazoo tells of pauses; an operator may have bound our queue to all that is told of recordings.
async fn an_event_that_is_not_known_is_left_alone(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker().await?;
    let (connection, channel) = channel(&world.setting("AMQP__URI")).await?;
    let plain = || BasicProperties::default().with_content_type("application/json".into());
    for event in [
        "RECORD_PAUSE",
        "RECORD_RESUME",
        "RECORD_MASK",
        "RECORD_UNMASK",
        "CHANNEL_DESTROY",
    ] {
        let body = json!({"Event-Category": "call_event", "Event-Name": event, "Call-ID": "a", "App-Name": "ecallmgr"});
        publish(
            &channel,
            ("", "kz_record_call.endings"),
            body.to_string().as_bytes(),
            plain(),
        )
        .await?;
    }
    // Behind them, and no event: when this one is put aside they are through.
    publish(&channel, ("", "kz_record_call.endings"), b"{}", plain()).await?;
    worker
        .counts("kz_record_call_messages_rejected_total{queue=\"endings\"} 1")
        .await?;
    let _ = connection.close(200, "bye".into()).await;
    world.finish().await
}

/// The brokers of a list need not be one cluster: what is answered on another one than the action came by never arrives.
async fn a_worker_goes_back_to_the_first_broker_with_both_connections(services: Arc<Services>) -> TestResult {
    let second = Broker::start().await?;
    let world = World::new(&services).await?;
    let (proxy, (_, first)) = world.broker_proxy().await?;
    proxy.set(Mode::Refuse);
    let uris = format!("{first} {}", second.uri("%2f"));
    let worker = world.start_worker(&[("AMQP__URI", &uris)])?;
    worker.ready(Duration::from_secs(60)).await?;
    let connected = |broker: &str| {
        let lines = worker.lines();
        let lines = lines.iter().filter(|line| line["message"] == "AMQP connected");
        let of = lines.filter(|line| line["broker"].as_str().is_some_and(|name| name.contains(broker)));
        let mut names: Vec<String> = of
            .filter_map(|line| line["connection"].as_str().map(str::to_owned))
            .collect();
        names.sort_unstable();
        names.dedup();
        names.len()
    };
    ensure!(connected(&format!(":{}", second.port)) == 2, "{}", worker.tail());
    proxy.set(Mode::Pass);
    let begun = Instant::now();
    while connected(&format!(":{}", proxy.port)) < 2 {
        ensure!(
            begun.elapsed() < Duration::from_secs(90),
            "it does not go back\n{}",
            worker.tail()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    worker.ready(SOON).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

async fn looks_that_the_broker_refuses_are_given_up_and_told_once(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let (looks, (key, uri)) = world.broker_looks(true).await?;
    let worker = world.worker_with(&[(key, &uri)]).await?;
    let mut runs = Vec::new();
    for _ in 0..60 {
        let call = world.kazoo.new_call(CallOptions::talking());
        runs.push(call.execute(json!({"skip_module": true})).await?);
    }
    for run in runs {
        run.continued(SOON).await.with_context(|| worker.tail())?;
    }
    let told = |line: &Value| line["event"] == "queue_look_refused";
    worker.logged("the refusal", told, SOON).await?;
    let told = worker.lines().into_iter().filter(told).count();
    ensure!(
        looks.count() == 1 && told == 1,
        "{} looks, told {told} times",
        looks.count()
    );
    world.finish().await
}

async fn a_callflow_queue_that_is_gone_costs_no_look_for_each_message(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let (looks, (key, uri)) = world.broker_looks(false).await?;
    let worker = world.worker_with(&[(key, &uri)]).await?;
    for _ in 0..40 {
        let call = world.kazoo.new_call(CallOptions::talking());
        let mut body = call.action(json!({"skip_module": true}))?;
        body.insert("Server-ID".into(), json!("pid://<0.1.2>/a-node-that-is-gone"));
        call.execute_raw(RawExecute::new(Value::Object(body).to_string()))
            .await?;
    }
    worker
        .counts("kz_record_call_actions_total{action=\"skip\"} 40")
        .await?;
    ensure!(looks.count() <= 3, "{} looks\n{}", looks.count(), worker.log());
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({"skip_module": true}))
        .await?
        .continued(SOON)
        .await?;
    world.finish().await
}

/// Its queue has room for no more. The actions of its calls take no place for long, no other call waits for them, and when it reads again it finds
/// every answer.
async fn a_callflow_node_that_reads_nothing_does_not_keep_others_waiting(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker_with(&[("AMQP__PREFETCH_ACTIONS", "4")]).await?;
    let (connection, channel) = channel(&world.setting("AMQP__URI")).await?;
    let slow = format!("slow-node-{}", uuid::Uuid::new_v4().simple());
    let declare = channel.queue_declare(
        slow.as_str().into(),
        QueueDeclareOptions::default(),
        FieldTable::default(),
    );
    declare.await?;
    let bind = channel.queue_bind(
        slow.as_str().into(),
        "targeted".into(),
        slow.as_str().into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bind.await?;
    let before = 60;
    for _ in 0..before {
        publish(&channel, ("", &slow), b"{}", BasicProperties::default()).await?;
    }
    // Beyond those that go out unseen.
    let mut calls = Vec::new();
    for _ in 0..40 {
        let call = world.kazoo.new_call(CallOptions::talking());
        let mut body = call.action(json!({"skip_module": true}))?;
        body.insert("Server-ID".into(), json!(format!("pid://<0.1.2>/{slow}")));
        call.execute_raw(RawExecute::new(Value::Object(body).to_string()))
            .await?;
        calls.push(call.id());
    }
    let begun = Instant::now();
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({}))
        .await?
        .continued(SOON)
        .await
        .with_context(|| worker.tail())?;
    let took = begun.elapsed();
    ensure!(
        took < Duration::from_secs(8),
        "it waited {took:?} for the others\n{}",
        worker.tail()
    );
    let (mut missing, begun) = (calls, Instant::now());
    while !missing.is_empty() {
        ensure!(
            begun.elapsed() < Duration::from_secs(60),
            "never answered: {missing:?}\n{}",
            worker.tail()
        );
        let got = channel
            .basic_get(slow.as_str().into(), BasicGetOptions::default())
            .await?;
        let Some(got) = got else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        got.acker.ack(BasicAckOptions::default()).await?;
        let body: Value = serde_json::from_slice(&got.data).unwrap_or_default();
        if body["Event-Name"] == "action.result" {
            missing.retain(|id| body["Call-ID"] != *id);
        }
    }
    channel
        .queue_delete(slow.as_str().into(), QueueDeleteOptions::default())
        .await?;
    let _ = connection.close(200, "bye".into()).await;
    call.hangup("NORMAL_CLEARING").await;
    world.finish().await
}

/// Anybody who reaches the upload port can hold connections open, and open new ones.
async fn connections_that_say_nothing_keep_no_switch_out(services: Arc<Services>) -> TestResult {
    use tokio::io::AsyncReadExt as _;
    let world = World::new(&services).await?;
    let worker = world.worker_with(&[("INGEST__IN_ALL", "1")]).await?;
    let started = |line: &Value| line["message"] == "worker started";
    let line = worker.logged("the start", started, SOON).await?;
    let url = url::Url::parse(line["ingest"].as_str().context("no ingest")?)?;
    let port = url.port().context("no port")?;
    let (opened, mut watching) = tokio::sync::watch::channel(0);
    let opened = Arc::new(opened);
    let mut idle = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let opened = Arc::clone(&opened);
        idle.spawn(async move {
            loop {
                if let Ok(mut stream) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
                    opened.send_modify(|count| *count += 1);
                    let _ = stream.read(&mut [0]).await;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    // All the places there are, and more.
    watching.wait_for(|count| *count >= 100).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.outcome_within(&recording.id, Duration::from_secs(10)).await?;
    world.stored(&recording).await?;
    idle.abort_all();
    world.finish().await
}
