//! What workers tell each other, and leave to each other, has the form that `schemas/` says: other versions must understand it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicNackOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};

use crate::promises;
use crate::simulator::sim::{CallOptions, Observed, Size};
use crate::support::{Mode, SOON, Services, TestResult, World, schemas};

promises![
    what_workers_tell_each_other_is_what_the_schemas_say,
    what_waits_in_the_journal_is_what_its_schema_says,
];

/// Hears everything on the two exchanges that our own messages go through. A `#` binding at `kapps` makes mandatory messages routable, so nothing
/// here may depend on their coming back.
async fn bystander(world: &World<'_>) -> anyhow::Result<(Connection, lapin::Consumer)> {
    let connection = Connection::connect(&world.setting("AMQP__URI"), ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let name = format!("bystander-{}", uuid::Uuid::new_v4().simple());
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(name.as_str().into(), options, FieldTable::default())
        .await?;
    for (exchange, durable) in [("kapps", false), ("kz_record_call.unrouted", true)] {
        let options = ExchangeDeclareOptions {
            durable,
            ..ExchangeDeclareOptions::default()
        };
        channel
            .exchange_declare(exchange.into(), ExchangeKind::Topic, options, FieldTable::default())
            .await?;
        channel
            .queue_bind(
                name.as_str().into(),
                exchange.into(),
                "#".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await?;
    }
    let options = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let consumer = channel
        .basic_consume(name.as_str().into(), "".into(), options, FieldTable::default())
        .await?;
    Ok((connection, consumer))
}

async fn what_workers_tell_each_other_is_what_the_schemas_say(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let (connection, mut heard) = bystander(&world).await?;
    let _worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::ringing());
    // Opened, stopped, closed; then opened, closed, and begun again by the next bridge.
    let stopped = world.kazoo.new_call(CallOptions::talking());
    stopped.execute(json!({})).await?.continued(SOON).await?;
    let recording = stopped.wait_recording_started(SOON).await?;
    stopped
        .execute(json!({"action": "stop"}))
        .await?
        .continued(SOON)
        .await?;
    world.stored(&recording).await?;
    call.execute(json!({"record_on_bridge": true}))
        .await?
        .continued(SOON)
        .await?;
    call.bridge();
    let first = call.wait_recording_started(SOON).await?;
    // The plain start that follows where the bridge was there first must not come after the end.
    world.state(&call.id(), "recording", SOON).await?;
    // As long as it is bridged its file stays.
    call.unbridge();
    world.kazoo.end_recordings(&call).await;
    world.stored(&first).await?;
    // The file is looked for once more when the call is over.
    world.state(&call.id(), "closing", SOON).await?;
    call.set_size(Size::Millis(7_000));
    call.bridge();
    call.wait_recordings(2, SOON).await?;
    let continues = |m: &Observed| m.category == "recording" && m.header("Continues") == first.id;
    world.kazoo.end_recordings(&call).await;
    world.kazoo.tap().wait(continues, SOON).await?;
    let spool = world.dir().join("check").display().to_string();
    world.command_with(&["check"], &[("SPOOL__DIR", &spool)]).await?;

    let mut seen: BTreeMap<&'static str, Value> = BTreeMap::new();
    let mut said: BTreeSet<String> = BTreeSet::new();
    let wanted = |seen: &BTreeMap<&'static str, Value>, said: &BTreeSet<String>| {
        ["recordings", "began_again", "check", "recording.outcome"]
            .iter()
            .all(|name| seen.contains_key(name))
            && ["opened", "closed", "stopping"].iter().all(|word| said.contains(*word))
    };
    let until = Instant::now() + SOON;
    while !wanted(&seen, &said) {
        let left = until.saturating_duration_since(Instant::now());
        let delivery = tokio::time::timeout(left, heard.next())
            .await
            .with_context(|| format!("only {:?} and {said:?} were heard", seen.keys()))?
            .context("the broker ended it")??;
        let body: Value = serde_json::from_slice(&delivery.data)?;
        if body["App-Name"] != "kz_record_call" {
            continue;
        }
        for news in body["Recordings"].as_array().into_iter().flatten() {
            said.extend(news.as_object().into_iter().flat_map(|news| news.keys().cloned()));
            if news["opened"]["stopping"] == true {
                said.insert("stopping".into());
            }
        }
        let schema = schemas::check_message(&body)?;
        let key = delivery.routing_key.as_str();
        let right = match schema {
            "recordings" | "began_again" | "alive" | "credentials" | "controlled" => key == "kz_record_call.memory",
            "check" => key.starts_with("kz_record_call_check_") && key.ends_with("_unrouted"),
            _ => key.starts_with("recording."),
        };
        ensure!(right, "{schema} went to {key}");
        seen.insert(schema, body);
    }
    // A schema that takes everything would hold nothing.
    for (schema, body) in &seen {
        for key in body.as_object().context("an object")?.keys() {
            let mut wrong = body.clone();
            wrong[key.as_str()] = if body[key].is_boolean() {
                json!("false")
            } else {
                json!(false)
            };
            ensure!(schemas::check(schema, &wrong).is_err(), "{schema} takes a false {key}");
        }
        let mut more = body.clone();
        more["Nonsense"] = json!(1);
        ensure!(
            schemas::check(schema, &more).is_err(),
            "{schema} takes what it does not know"
        );
    }
    let _ = connection.close(200, "done".into()).await;
    call.hangup("NORMAL_CLEARING").await;
    world.finish().await
}

async fn what_waits_in_the_journal_is_what_its_schema_says(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let (proxy, (key, url)) = world.database_proxy().await?;
    let _worker = world.worker_with(&[(key, &url)]).await?;
    proxy.set(Mode::Refuse);
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({"label": "desk", "silence_detection": true}))
        .await?
        .continued(SOON)
        .await?;
    let recording = call.wait_recording_started(SOON).await?;

    let connection = Connection::connect(&world.setting("AMQP__URI"), ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let until = Instant::now() + SOON;
    let written: Value = loop {
        let got = channel
            .basic_get("kz_record_call.journal".into(), BasicGetOptions::default())
            .await?;
        if let Some(message) = got {
            ensure!(
                message.properties.delivery_mode() == &Some(2),
                "a restart of the broker would lose it"
            );
            let body = serde_json::from_slice(&message.data)?;
            let options = BasicNackOptions {
                requeue: true,
                ..BasicNackOptions::default()
            };
            message.delivery.nack(options).await?;
            break body;
        }
        ensure!(Instant::now() < until, "nothing is in the journal");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    schemas::check("journal", &written)?;
    let facts = written["facts"].as_array().context("facts")?;
    ensure!(facts[0]["fact"] == "asked", "{written:#}");
    for key in ["key", "call_id", "facts"] {
        let mut wrong = written.clone();
        wrong[key] = json!([]);
        ensure!(schemas::check("journal", &wrong).is_err(), "the schema takes no {key}");
    }
    let mut wrong = written.clone();
    wrong["facts"][0]["of"]["media_id"] = json!("../../etc");
    ensure!(schemas::check("journal", &wrong).is_err(), "the schema takes any order");
    let _ = connection.close(200, "done".into()).await;
    call.hangup("NORMAL_CLEARING").await;
    proxy.set(Mode::Pass);
    world.stored(&recording).await?;
    world.finish().await
}
