//! Every action is answered, and none holds up the next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::promises;
use crate::simulator::sim::{CallOptions, RawExecute};
use crate::support::{SOON, Services, TestResult, Worker, World, machine};

promises![
    a_message_that_is_no_json_blocks_nothing,
    an_action_without_a_call_is_answered,
    an_action_without_a_control_queue_is_answered,
    an_action_with_an_unknown_address_form_is_answered,
    an_action_that_nobody_waits_for_is_recorded_all_the_same,
    a_gzipped_action_is_read,
    a_plain_control_queue_is_used_too,
    the_result_has_kazoos_bytes,
    data_that_makes_no_sense_is_answered_and_recorded,
    nothing_that_a_tenant_wrote_reaches_the_switchs_shell,
    a_burst_after_an_outage_leaves_no_call_hanging,
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
    worker.counts(rejected).await?;
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
    let asked = Instant::now();
    let run = call.execute(json!({"action": "stop"})).await?;
    let answered = run.continued(SOON).await?;
    let limit = machine::allows(Duration::from_secs(5), asked);
    ensure!(answered < limit, "{answered:?}");
    let seen = world.kazoo.tap().wait(|m| m.name == "action.result", SOON).await?;
    ensure!(seen.header("Result") == "g2QACGNvbnRpbnVl", "{seen:?}");
    ensure!(
        seen.header("Msg-ID") == run.msg_id && seen.header("Call-ID") == call.id(),
        "{seen:?}"
    );
    world.finish().await
}

async fn data_that_makes_no_sense_is_answered_and_recorded(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker().await?;
    let nonsense: String = (0..1_000_000).map(|n| char::from(b' ' + (n % 90) as u8)).collect();
    for data in [
        Value::Null,
        json!([1, "two", {"three": 3}]),
        json!("start"),
        json!({"action": {"x": 1}, "time_limit": "soon", "format": ["mp3"], "url": null, "label": nonsense}),
        json!(nonsense),
    ] {
        let call = world.kazoo.new_call(CallOptions::talking());
        let mut body = Value::Object(call.action(json!({}))?);
        body["Data"] = data.clone();
        let run = call.execute_raw(RawExecute::new(body.to_string())).await?;
        run.continued(SOON).await?;
        let recording = call.wait_recording_started(SOON).await?;
        call.hangup("NORMAL_CLEARING").await;
        world.stored(&recording).await?;
    }
    // Each correction is told once, with the call's id, and shortened.
    let corrected: Vec<Value> = worker
        .lines()
        .into_iter()
        .filter(|line| line["message"].as_str().is_some_and(|m| m.contains("correct")))
        .collect();
    ensure!(
        corrected
            .iter()
            .all(|line| line["call_id"].is_string() && line.to_string().len() < 2_000),
        "{corrected:#?}"
    );
    let keys: Vec<&str> = corrected.iter().filter_map(|line| line["key"].as_str()).collect();
    for (key, times) in [
        ("data", 3),
        ("action", 1),
        ("time_limit", 1),
        ("format", 1),
        ("label", 1),
    ] {
        let told = keys.iter().filter(|told| **told == key).count();
        ensure!(told == times, "{key} was told {told} times: {keys:?}");
    }
    world.finish().await
}

/// The simulated switch looks at every application argument for what FreeSWITCH would expand.
async fn nothing_that_a_tenant_wrote_reaches_the_switchs_shell(services: Arc<Services>) -> TestResult {
    const EVIL: &str = "${system touch /tmp/owned}";
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    for key in [
        "media_id",
        "media_name",
        "label",
        "origin",
        "format",
        "method",
        "action",
        "time_limit",
    ] {
        let call = world.kazoo.new_call(CallOptions::talking());
        call.execute(json!({key: EVIL})).await?.continued(SOON).await?;
        let recording = call.wait_recording_started(SOON).await?;
        call.hangup("NORMAL_CLEARING").await;
        world.stored(&recording).await?;
    }
    let call = world.kazoo.new_call(CallOptions::talking());
    let data = json!({"url": format!("http://127.0.0.1:9/{EVIL}"), "media_id": "202611-'~}#x", "media_name": "a#b~c'd}e\n\0.mp3"});
    call.execute(data).await?.continued(SOON).await?;
    call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    let mut options = CallOptions::talking();
    options.call_id = Some(format!("a84b4c76{EVIL}@pc33.example.com"));
    options.caller_name = EVIL.into();
    options.flow_name = Some(EVIL.into());
    options.owner_id = Some(EVIL.into());
    let call = world.kazoo.new_call(options);
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

/// Nobody served the queue for a while; Kazoo's own queues hold 100 messages each and drop the rest without a word.
async fn a_burst_after_an_outage_leaves_no_call_hanging(services: Arc<Services>) -> TestResult {
    const CALLS: usize = 2_000;
    let world = World::new(&services).await?;
    // Its queue stays when it goes.
    let mut first = world.worker().await?;
    first.terminate(SOON).await?;
    // Answers come before commands to calls that are looked for first.
    world.kazoo.tolerate("order");
    let mut runs = Vec::with_capacity(CALLS);
    for n in 0..CALLS {
        let call = world.kazoo.new_call(CallOptions::talking());
        let data = if n % 20 == 0 {
            json!({})
        } else {
            json!({"action": "stop"})
        };
        runs.push((call.execute(data).await?, call));
    }
    let _second = world.worker().await?;
    for (run, _) in &runs {
        run.continued(Duration::from_secs(120)).await?;
    }
    for (_, call) in runs.iter().step_by(20) {
        let recording = call.wait_recording_started(Duration::from_secs(60)).await?;
        call.hangup("NORMAL_CLEARING").await;
        let outcome = world.outcome(&recording.id).await?;
        ensure!(outcome["Outcome"] == "stored", "{outcome:#}");
    }
    world.finish().await
}
