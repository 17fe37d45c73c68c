//! What fails around a recording, and what happens then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::promises;
use crate::simulator::sim::{CallOptions, Outcome, Size, UploadFault};
use crate::support::{Broker, SOON, Services, TestResult, World, machine};

promises![
    a_worker_killed_during_a_call_loses_no_recording,
    a_worker_killed_during_an_upload_loses_no_recording,
    sigterm_gives_back_what_is_in_hand,
    a_broken_upload_is_tried_again,
    a_switch_that_nobody_serves_is_asked_again,
    a_lost_reply_does_not_matter,
    a_restarted_broker_is_bound_again_within_a_second,
    with_the_policy_every_action_of_a_broker_restart_is_answered,
];

async fn a_worker_killed_during_a_call_loses_no_recording(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let mut first = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({"format": "wav"})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    first.kill().await?;
    // Nobody is there when the recording ends.
    call.hangup("NORMAL_CLEARING").await;
    world.ended(&recording).await?;
    let second = world.worker().await?;
    world.stored(&recording).await?;
    ensure!(second.spooled().is_empty());
    world.finish().await
}

async fn a_worker_killed_during_an_upload_loses_no_recording(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let mut first = world.worker().await?;
    world.kazoo.faults(|faults| faults.bandwidth = Some(1_000_000));
    let call = world
        .kazoo
        .new_call(CallOptions::talking().size(Size::Bytes(5_000_000)));
    call.execute(json!({"format": "wav"})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.kazoo.wait_upload(0, 1_000_000, SOON).await?;
    first.kill().await?;
    world.kazoo.faults(|faults| faults.bandwidth = None);
    ensure!(recording.path.exists(), "the switch deleted a file that nobody has");
    let _second = world.worker().await?;
    world.stored(&recording).await?;
    world.finish().await
}

async fn sigterm_gives_back_what_is_in_hand(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let mut first = world.worker_with(&[("FLOW__DRAIN_S", "1")]).await?;
    world.kazoo.faults(|faults| faults.bandwidth = Some(500_000));
    let call = world
        .kazoo
        .new_call(CallOptions::talking().size(Size::Bytes(5_000_000)));
    call.execute(json!({"format": "wav"})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.kazoo.wait_upload(0, 100_000, SOON).await?;
    let begun = Instant::now();
    let status = first.terminate(SOON).await?;
    ensure!(status.success(), "{status}\n{}", first.tail());
    let (took, limit) = (begun.elapsed(), machine::allows(Duration::from_secs(12), begun));
    ensure!(took < limit, "{took:?}");
    world.kazoo.faults(|faults| faults.bandwidth = None);
    let _second = world.worker().await?;
    world.stored(&recording).await?;
    world.finish().await
}

async fn a_broken_upload_is_tried_again(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker_with(&[("INGEST__STALL_TIMEOUT_MS", "500")]).await?;
    world.kazoo.faults(|faults| {
        faults.uploads = vec![
            UploadFault::CutAfter(10_000),
            UploadFault::StallAfter(10_000, Duration::from_secs(3)),
            UploadFault::PromiseMore(1000),
        ];
    });
    let call = world.kazoo.new_call(CallOptions::talking().size(Size::Bytes(100_000)));
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    ensure!(worker.spooled().is_empty(), "half an upload is left in the spool");
    world.finish().await
}

async fn a_switch_that_nobody_serves_is_asked_again(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    world.kazoo.serve_switch(false).await?;
    call.hangup("NORMAL_CLEARING").await;
    let why = |line: &serde_json::Value| line["why"] == "no ecallmgr serves the switch";
    worker.logged("the unroutable request", why, SOON).await?;
    world.kazoo.serve_switch(true).await?;
    world.stored(&recording).await?;
    world.finish().await
}

async fn a_lost_reply_does_not_matter(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    world.kazoo.faults(|faults| faults.lose_send_http_replies = 1);
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

/// From the moment that its port is open again the actions' queue is bound within a second, everything is consumed within ten, and what ran
/// meanwhile is stored.
async fn a_restarted_broker_is_bound_again_within_a_second(services: Arc<Services>) -> TestResult {
    let broker = Broker::start().await?;
    let services = services.with_broker(&broker).await?;
    let world = World::new(&services).await?;
    let worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    broker.rabbitmqctl(&["stop_app"]).await?;
    let begun = Instant::now();
    let (started, bound) = tokio::join!(
        broker.rabbitmqctl(&["start_app"]),
        bound_after_the_port_opens(broker.port)
    );
    started?;
    let bound = bound?;
    ensure!(
        bound < machine::allows(Duration::from_secs(1), begun),
        "bound {bound:?} after the port opened\n{}",
        worker.tail()
    );
    worker.ready(SOON).await?;
    world.kazoo.ready(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

/// With the policy that the docs recommend an action that comes at any time of a restart is answered, also one that comes before anybody has
/// bound again.
async fn with_the_policy_every_action_of_a_broker_restart_is_answered(services: Arc<Services>) -> TestResult {
    let broker = Broker::start().await?;
    let policy = r#"{"alternate-exchange":"kz_record_call.unrouted"}"#;
    broker
        .rabbitmqctl(&[
            "set_policy",
            "kz-record-call",
            "^kapps$",
            policy,
            "--apply-to",
            "exchanges",
        ])
        .await?;
    let services = services.with_broker(&broker).await?;
    let world = World::new(&services).await?;
    let worker = world.worker().await?;
    for _ in 0..2 {
        broker.rabbitmqctl(&["stop_app"]).await?;
        // As soon as the simulated callflow node has a connection again it goes on asking, as a cluster full of calls would.
        let asking = async {
            let mut runs = Vec::new();
            while runs.len() < 40 {
                let call = world.kazoo.new_call(CallOptions::talking());
                // One that is cut off with the old connection never asked.
                if let Ok(run) = call.execute(json!({"action": "stop"})).await {
                    runs.push(run);
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            anyhow::Ok(runs)
        };
        let (started, runs) = tokio::join!(broker.rabbitmqctl(&["start_app"]), asking);
        started?;
        for run in runs? {
            let answered = run.result(SOON).await?;
            ensure!(
                matches!(answered.outcome, Outcome::Decided(_)),
                "not answered: {answered:?}\n{}",
                worker.tail()
            );
        }
    }
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

/// Time from the first moment that the broker takes a connection until a mandatory message with the action's key is routed.
async fn bound_after_the_port_opens(port: u16) -> anyhow::Result<Duration> {
    use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
    use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties, ExchangeKind};
    let uri = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
    let begun = Instant::now();
    let connection = loop {
        if let Ok(connection) = Connection::connect(&uri, ConnectionProperties::default()).await {
            break connection;
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(60),
            "the broker does not come back"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let opened = Instant::now();
    let channel = connection.create_channel().await?;
    channel
        .exchange_declare(
            "kapps".into(),
            ExchangeKind::Topic,
            ExchangeDeclareOptions::default(),
            Default::default(),
        )
        .await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    loop {
        let options = BasicPublishOptions {
            mandatory: true,
            ..Default::default()
        };
        // Not an action: the worker puts it to the dead letters.
        let confirm = channel
            .basic_publish(
                "kapps".into(),
                "callflow.action.record_call".into(),
                options,
                b"probe",
                BasicProperties::default().with_content_type("application/json".into()),
            )
            .await?
            .await
            .context("publishing the probe")?;
        if matches!(confirm, Confirmation::Ack(None)) {
            let _ = connection.close(200, "bye".into()).await;
            return Ok(opened.elapsed());
        }
        ensure!(opened.elapsed() < Duration::from_secs(30), "nobody binds");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
