//! Every action is answered, and none holds up the next.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::promises;
use crate::simulator::sim::{CallOptions, RawExecute};
use crate::support::{SOON, Services, TestResult, Worker, World};

promises![
    a_message_that_is_no_json_blocks_nothing,
    an_action_without_a_call_is_answered,
    an_action_without_a_control_queue_is_answered,
    an_action_with_an_unknown_address_form_is_answered,
    an_action_that_nobody_waits_for_is_recorded_all_the_same,
    a_gzipped_action_is_read,
    a_plain_control_queue_is_used_too,
    the_result_has_kazoos_bytes,
];

/// After whatever came before, the next call is recorded as ever.
async fn the_next_call_is_recorded(world: &World<'_>) -> TestResult {
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    Ok(())
}

async fn refused(worker: &Worker) -> anyhow::Result<Value> {
    let fits = |line: &Value| {
        line["message"]
            .as_str()
            .is_some_and(|m| m.starts_with("action refused"))
    };
    worker.logged("the refusal", fits, SOON).await
}

async fn a_message_that_is_no_json_blocks_nothing(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    for body in ["", "{", "[]", "null", "\u{0}\u{1}", "{\"Event-Category\":\"callflow\"}"] {
        call.execute_raw(RawExecute::new(body)).await?;
    }
    let mut deep = "[".repeat(100_000);
    deep.push_str(&"]".repeat(100_000));
    call.execute_raw(RawExecute::new(deep)).await?;
    the_next_call_is_recorded(&world).await?;
    let rejected = "kz_record_call_messages_rejected_total{queue=\"actions\"} 7";
    let metrics = worker.metrics().await?;
    ensure!(metrics.contains(rejected), "no {rejected} in\n{metrics}");
    world.finish().await
}

/// An action that cannot be run is answered with `continue`, logged, and does not block the next.
async fn answered(services: Arc<Services>, change: impl FnOnce(&mut Value)) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    let mut body = Value::Object(call.action(json!({}))?);
    change(&mut body);
    let run = call.execute_raw(RawExecute::new(body.to_string())).await?;
    run.continued(SOON).await?;
    let line = refused(&worker).await?;
    ensure!(line["call_id"] == call.id() && line["answered"] == true, "{line:#}");
    the_next_call_is_recorded(&world).await?;
    world.finish().await
}

async fn an_action_without_a_call_is_answered(services: Arc<Services>) -> TestResult {
    answered(services, |body| {
        drop(body.as_object_mut().and_then(|body| body.remove("Call")))
    })
    .await
}

async fn an_action_without_a_control_queue_is_answered(services: Arc<Services>) -> TestResult {
    answered(services, |body| {
        drop(
            body["Call"]
                .as_object_mut()
                .and_then(|call| call.remove("Control-Queue")),
        )
    })
    .await
}

async fn an_action_with_an_unknown_address_form_is_answered(services: Arc<Services>) -> TestResult {
    answered(services, |body| {
        body["Call"]["Control-Queue"] = json!("sip://somewhere/else")
    })
    .await
}

async fn an_action_that_nobody_waits_for_is_recorded_all_the_same(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    // Nobody is told that the action was accepted before the command goes out.
    world.kazoo.tolerate("order");
    for server_id in [json!(""), json!("consumer://<0.1.2>/callflow_route_1"), Value::Null] {
        let call = world.kazoo.new_call(CallOptions::talking());
        let mut body = Value::Object(call.action(json!({}))?);
        body["Server-ID"] = server_id;
        body["Call"]["Controller-Queue"] = json!("");
        call.execute_raw(RawExecute::new(body.to_string())).await?;
        let recording = call.wait_recording_started(SOON).await?;
        call.hangup("NORMAL_CLEARING").await;
        world.stored(&recording).await?;
    }
    world.finish().await
}

async fn a_gzipped_action_is_read(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    let body = Value::Object(call.action(json!({}))?).to_string();
    call.execute_raw(RawExecute::new(body).gzip())
        .await?
        .continued(SOON)
        .await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

/// Kazoo 4.3 and older: an address without a pid.
async fn a_plain_control_queue_is_used_too(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    let mut body = Value::Object(call.action(json!({}))?);
    let address = body["Call"]["Control-Queue"]
        .as_str()
        .context("no control queue")?
        .to_owned();
    let queue = address.rsplit('/').next().unwrap_or_default().to_owned();
    body["Call"]["Control-Queue"] = json!(queue);
    // This simulator's control processes, like Kazoo 5's, want a pid.
    world.kazoo.tolerate("deliver-to-pid");
    call.execute_raw(RawExecute::new(body.to_string()))
        .await?
        .continued(SOON)
        .await?;
    let sent = world.kazoo.tap().wait(|m| m.exchange == "callctl", SOON).await?;
    ensure!(sent.key == queue, "{sent:?}");
    world.finish().await
}

async fn the_result_has_kazoos_bytes(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    let run = call.execute(json!({"action": "stop"})).await?;
    let answered = run.continued(SOON).await?;
    ensure!(answered < Duration::from_secs(5), "{answered:?}");
    let seen = world.kazoo.tap().wait(|m| m.name == "action.result", SOON).await?;
    ensure!(seen.header("Result") == "g2QACGNvbnRpbnVl", "{seen:?}");
    ensure!(
        seen.header("Msg-ID") == run.msg_id && seen.header("Call-ID") == call.id(),
        "{seen:?}"
    );
    world.finish().await
}
