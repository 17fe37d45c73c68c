//! Stops and masks reach the recording that they mean, and no other.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::promises;
use crate::simulator::sim::{CallOptions, Recording};
use crate::support::{Mode, Proxy, SOON, Services, TestResult, Worker, World};

promises![
    a_stop_of_which_only_the_ledger_knows_waits_for_the_ledger,
    a_mask_of_which_only_the_ledger_knows_waits_for_the_ledger,
    a_stop_that_finds_its_recording_over_is_told,
    a_mask_that_finds_its_recording_over_is_told,
    a_stop_that_comes_again_leaves_the_next_recording_alone,
    a_stop_without_a_recording_is_answered_and_told,
    a_stop_finds_the_one_before_where_the_end_of_the_newest_was_missed,
    a_stop_and_a_mask_find_the_newest_where_its_start_was_missed,
    a_stop_without_a_recording_leaves_alone_what_begins_next,
    a_stop_is_followed_up_though_its_worker_died_while_the_ledger_was_away,
    an_answer_waits_until_its_callflow_node_is_back,
    two_stops_that_come_at_once_end_two_recordings,
    a_mask_whose_worker_was_killed_while_it_sent_it_is_told,
    a_mask_whose_worker_was_killed_and_whose_recording_ended_is_told,
    a_stop_and_a_mask_that_no_queue_takes_are_told_as_undelivered,
];

fn waits(line: &Value) -> bool {
    line["event"] == "control_waits"
}

/// A worker that remembers nothing and has no ledger gets the action; afterwards the ledger is there again.
async fn acted_on_by_a_stranger(services: &Services, action: &str) -> anyhow::Result<()> {
    let world = World::new(services).await?;
    let mut first = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    world.state(&call.id(), "recording", SOON).await?;
    // Not killed: the event of the start could come again, and tell the second worker of the recording.
    first.terminate(SOON).await?;
    let (proxy, (key, url)) = world.database_proxy().await?;
    proxy.set(Mode::Refuse);
    let second = world.start_worker(&[(key, &url)])?;
    call.execute(json!({"action": action})).await?.continued(SOON).await?;
    second.logged("an action that waits", waits, SOON).await?;
    second
        .counts("kz_record_call_controls_waiting_total{result=\"put\"} 1")
        .await?;
    proxy.set(Mode::Pass);
    if action == "stop" {
        call.wait_recording_ended(SOON).await?;
    } else {
        let masked = |state: &crate::simulator::sim::State| {
            let recording = state.recordings().first()?;
            (recording.masks > 0).then_some(())
        };
        world.kazoo.wait_for("a mask", SOON, masked).await?;
        call.hangup("NORMAL_CLEARING").await;
    }
    world.stored(&recording).await?;
    let entry = world.state(&call.id(), "stored", SOON).await?;
    let wanted = if action == "stop" { "stop_asked" } else { "mask_asked" };
    let facts = entry["facts"].as_array().into_iter().flatten();
    let asked = facts.filter(|fact| fact["fact"] == wanted).count();
    ensure!(asked == 1, "{entry:#}");
    world.finish().await
}

async fn a_stop_of_which_only_the_ledger_knows_waits_for_the_ledger(services: Arc<Services>) -> TestResult {
    acted_on_by_a_stranger(&services, "stop").await
}

async fn a_mask_of_which_only_the_ledger_knows_waits_for_the_ledger(services: Arc<Services>) -> TestResult {
    acted_on_by_a_stranger(&services, "mask").await
}

/// A worker that remembers nothing and has no ledger gets the action. The recording ends before the ledger is there again.
async fn acted_on_too_late(services: &Services, action: &str) -> anyhow::Result<()> {
    let world = World::new(services).await?;
    let mut first = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    world.state(&call.id(), "recording", SOON).await?;
    first.terminate(SOON).await?;
    let (proxy, (key, url)) = world.database_proxy().await?;
    proxy.set(Mode::Refuse);
    let second = world.start_worker(&[(key, &url)])?;
    call.execute(json!({"action": action})).await?.continued(SOON).await?;
    second.logged("an action that waits", waits, SOON).await?;
    // Well after the action, by any clock: the switch's end counts as the call's when it is at most two seconds later.
    tokio::time::sleep(Duration::from_secs(3)).await;
    call.hangup("NORMAL_CLEARING").await;
    call.wait_recording_ended(SOON).await?;
    proxy.set(Mode::Pass);
    let not_obeyed = |line: &Value| line["event"] == "control_not_obeyed" && line["control"] == action;
    let told = second.logged("that it was not obeyed", not_obeyed, SOON).await?;
    ensure!(told["why"] == "ended", "{told:#}");
    let said = async {
        loop {
            let document = world.stored(&recording).await?.document;
            if document["pvt_recording"]["not_obeyed"][0]["why"] == "ended" {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(SOON, said)
        .await
        .context("no document tells it")??;
    world.finish().await
}

async fn a_stop_that_finds_its_recording_over_is_told(services: Arc<Services>) -> TestResult {
    acted_on_too_late(&services, "stop").await
}

async fn a_mask_that_finds_its_recording_over_is_told(services: Arc<Services>) -> TestResult {
    acted_on_too_late(&services, "mask").await
}

async fn a_stop_that_comes_again_leaves_the_next_recording_alone(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let mut first = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    let stop = call.execute(json!({"action": "stop"})).await?;
    stop.continued(SOON).await?;
    call.wait_recording_ended(SOON).await?;
    world.stored(&recording).await?;
    call.execute(json!({})).await?.continued(SOON).await?;
    let two = |state: &crate::simulator::sim::State| (state.recordings().len() == 2).then_some(());
    world.kazoo.wait_for("a second recording", SOON, two).await?;
    // To a worker that remembers, and to one that has to ask the ledger.
    stop.again().await?;
    stop.results(2, SOON).await?;
    first.kill().await?;
    let _second = world.worker().await?;
    // What the broker delivers again says so; what is sent again here is told by its age.
    stop.again_as_old(Duration::from_secs(10)).await?;
    stop.results(3, SOON).await?;
    // What is asked of the second one afterwards is carried out, so what was to become of the repeats has.
    call.execute(json!({"action": "mask"})).await?.continued(SOON).await?;
    let masked = |state: &crate::simulator::sim::State| {
        let all = state.recordings();
        (all.len() == 2 && all[1].masks > 0).then_some(all[1].clone())
    };
    let next = world.kazoo.wait_for("a mask", SOON, masked).await?;
    ensure!(next.ended_at.is_none(), "the next recording was stopped: {next:?}");
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&next).await?;
    world.finish().await
}

async fn a_stop_without_a_recording_is_answered_and_told(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({"action": "stop"})).await?.continued(SOON).await?;
    let none = |line: &Value| line["event"] == "no_recording_of_call";
    let told = worker.logged("that there is no recording", none, SOON).await?;
    ensure!(told["call_id"] == json!(call.id()), "{told:#}");
    // A worker that started a moment ago does not believe it at once, and it has no other reason to wait.
    let lines = worker.lines();
    let mut why = lines.iter().filter(|line| waits(line)).map(|line| &line["why"]);
    ensure!(
        why.all(|why| *why == "this worker started a moment ago"),
        "{}",
        worker.tail()
    );
    world.finish().await
}

/// The only two recordings of the world, both begun: the oldest and the newest.
async fn two_recordings(world: &World<'_>) -> anyhow::Result<[Recording; 2]> {
    let two = |state: &crate::simulator::sim::State| {
        let all = <[Recording; 2]>::try_from(state.recordings().to_vec()).ok()?;
        all.iter().all(|recording| recording.starts > 0).then_some(all)
    };
    world.kazoo.wait_for("two recordings", SOON, two).await
}

/// Cuts a worker off from the broker, until both know of it.
async fn cut_off(world: &World<'_>, proxy: &Proxy, worker: &Worker) -> TestResult {
    proxy.set(Mode::Refuse);
    let cut = |line: &Value| line["message"] == "AMQP not connected" && line["connection"] == "consume";
    worker.logged("the cut", cut, SOON).await?;
    world.consumed_by("kz_record_call.actions", 1).await
}

/// A worker that was cut off from the broker when a recording ended takes it for open, until it asks.
async fn a_stop_finds_the_one_before_where_the_end_of_the_newest_was_missed(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let mut first = world.worker().await?;
    let (proxy, (key, uri)) = world.broker_proxy().await?;
    let second = world
        .worker_with(&[(key, &uri), ("LOG__LEVEL", "info,kz_record_call=trace")])
        .await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    for _ in 0..2 {
        call.execute(json!({})).await?.continued(SOON).await?;
    }
    let [oldest, newest] = &two_recordings(&world).await?;
    let opened = |line: &Value| line["message"] == "notice" && line["key"] == "kz_record_call.memory";
    second.logged("news of recordings", opened, SOON).await?;
    cut_off(&world, &proxy, &second).await?;
    call.execute(json!({"action": "stop"})).await?.continued(SOON).await?;
    world.stored(newest).await?;
    proxy.set(Mode::Pass);
    second.ready(SOON).await?;
    first.kill().await?;
    call.execute(json!({"action": "stop"})).await?.continued(SOON).await?;
    call.wait_recording_ended(SOON).await?;
    world.stored(oldest).await?;
    world.finish().await
}

/// A worker that was cut off from the broker when a recording began remembers an older one of the call alone.
async fn a_stop_and_a_mask_find_the_newest_where_its_start_was_missed(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let mut first = world.worker().await?;
    let (proxy, (key, uri)) = world.broker_proxy().await?;
    let second = world
        .worker_with(&[(key, &uri), ("LOG__LEVEL", "info,kz_record_call=trace")])
        .await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let opened = |line: &Value| line["message"] == "notice" && line["key"] == "kz_record_call.memory";
    second.logged("news of the first recording", opened, SOON).await?;
    cut_off(&world, &proxy, &second).await?;
    call.execute(json!({})).await?.continued(SOON).await?;
    let [oldest, newest] = &two_recordings(&world).await?;
    let is_known = |entries: &[Value]| entries.iter().filter(|entry| entry["state"] == "recording").count() == 2;
    let begun = std::time::Instant::now();
    while !is_known(&world.entries().await?) {
        ensure!(begun.elapsed() < SOON, "the ledger does not have both");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    proxy.set(Mode::Pass);
    second.ready(SOON).await?;
    first.kill().await?;
    call.execute(json!({"action": "mask"})).await?.continued(SOON).await?;
    let is_masked = |state: &crate::simulator::sim::State| {
        let masks: Vec<u32> = state.recordings().iter().map(|recording| recording.masks).collect();
        masks.iter().any(|masks| *masks > 0).then_some(masks)
    };
    let masks = world.kazoo.wait_for("a mask", SOON, is_masked).await?;
    ensure!(masks == [0, 1], "{masks:?}");
    call.execute(json!({"action": "stop"})).await?.continued(SOON).await?;
    world.stored(newest).await?;
    let all = call.recordings();
    ensure!(all[0].ended_at.is_none(), "the older one was stopped: {all:?}");
    // And the stop after that is for the older one.
    call.execute(json!({"action": "stop"})).await?.continued(SOON).await?;
    call.wait_recording_ended(SOON).await?;
    world.stored(oldest).await?;
    world.finish().await
}

/// A callflow that stops first, and then starts: the stop is looked for while the call goes on.
async fn a_stop_without_a_recording_leaves_alone_what_begins_next(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker().await?;
    for action in ["stop", "mask"] {
        let call = world.kazoo.new_call(CallOptions::talking());
        call.execute(json!({"action": action})).await?.continued(SOON).await?;
        call.execute(json!({})).await?.continued(SOON).await?;
        let recording = call.wait_recording_started(SOON).await?;
        let id = json!(call.id());
        let none = |line: &Value| line["event"] == "no_recording_of_call" && line["call_id"] == id;
        worker.logged("that there is no recording", none, SOON).await?;
        let all = call.recordings();
        ensure!(
            all.len() == 1 && all[0].ended_at.is_none() && all[0].masks == 0,
            "{all:?}"
        );
        call.execute(json!({"action": "stop"})).await?.continued(SOON).await?;
        call.wait_recording_ended(SOON).await?;
        world.stored(&recording).await?;
    }
    world.finish().await
}

/// The worker that takes the stop knows the recording only from another one's news, and cannot write anything into the ledger.
async fn a_stop_is_followed_up_though_its_worker_died_while_the_ledger_was_away(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let stops = [("FLOW__STOP_REPEATS_MS", "100,200"), ("FLOW__STOP_ALARM_MS", "600")];
    let mut first = world.worker().await?;
    let (proxy, (key, url)) = world.database_proxy().await?;
    let settings = [(key, url.as_str()), ("LOG__LEVEL", "info,kz_record_call=trace")];
    let mut second = world.worker_with(&settings).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    // Whichever takes the action, the other hears of it.
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    world.state(&call.id(), "recording", SOON).await?;
    let news = |line: &Value| line["message"] == "notice" && line["key"] == "kz_record_call.memory";
    second.logged("news of recordings", news, SOON).await?;
    first.kill().await?;
    proxy.set(Mode::Refuse);
    world.kazoo.faults(|faults| faults.ignore_commands = true);
    call.execute(json!({"action": "stop"})).await?.continued(SOON).await?;
    let journalled = "kz_record_call_journal_writes_total{result=\"written\"}";
    let begun = std::time::Instant::now();
    while !second
        .metrics()
        .await?
        .lines()
        .any(|line| line.starts_with(journalled) && !line.ends_with(" 0"))
    {
        ensure!(
            begun.elapsed() < SOON,
            "nothing came into the journal: {}",
            second.tail()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    second.kill().await?;
    let third = world.worker_with(&stops).await?;
    let told = |line: &Value| line["event"] == json!("stop_unconfirmed");
    third.logged("the alarm", told, SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

/// A callflow node that lost its connection has no queue until it is back, and its calls wait all that time.
async fn an_answer_waits_until_its_callflow_node_is_back(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    world.worker().await?.kill().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    let action = call.execute(json!({})).await?;
    world.kazoo.serve_callflow(false).await?;
    let worker = world
        .worker_with(&[("LOG__LEVEL", "info,kz_record_call=trace")])
        .await?;
    let away = |line: &Value| line["event"] == "callflow_node_away";
    worker.logged("that the node is away", away, SOON).await?;
    // The recording does not wait for it.
    let recording = call.wait_recording_started(SOON).await?;
    world.kazoo.serve_callflow(true).await?;
    let answered = action.continued(SOON).await;
    answered.with_context(|| format!("{:?}\n{}", world.kazoo.tap().messages(), worker.tail()))?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

/// Whichever workers take them, and whatever they have heard of each other.
async fn two_stops_that_come_at_once_end_two_recordings(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let workers = [world.worker().await?, world.worker().await?];
    for _ in 0..5 {
        let call = world.kazoo.new_call(CallOptions::talking());
        for _ in 0..2 {
            call.execute(json!({})).await?.continued(SOON).await?;
        }
        let two = |state: &crate::simulator::sim::State| {
            let mine = state.recordings().iter().filter(|recording| recording.starts > 0);
            let mine: Vec<_> = mine.filter(|recording| recording.ended_at.is_none()).cloned().collect();
            (mine.len() == 2).then_some(mine)
        };
        let recordings = world.kazoo.wait_for("two recordings", SOON, two).await?;
        let stop = || call.execute(json!({"action": "stop"}));
        let (one, other) = tokio::try_join!(stop(), stop())?;
        one.continued(SOON).await?;
        other.continued(SOON).await?;
        for recording in &recordings {
            // The call goes on: nothing else ends them.
            let stored = world.stored(recording).await;
            stored.with_context(|| workers.each_ref().map(crate::support::Worker::tail).join("\n--\n"))?;
        }
        call.hangup("NORMAL_CLEARING").await;
    }
    world.finish().await
}

/// A worker is killed when the switch has its mask, and before it noted that. The recording ends before another worker gets the action, or
/// runs on. Returns the private part of the document.
async fn killed_while_it_masks(services: &Services, ended: bool) -> anyhow::Result<Value> {
    let world = World::new(services).await?;
    // A worker that takes an action over answers it when it is carried out already.
    world.kazoo.tolerate("order");
    let mut first = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    world.state(&call.id(), "recording", SOON).await?;
    first.terminate(SOON).await?;
    // Its steps: it accepts the action, and sends the command.
    let mut second = world.worker_with(&[("KZ_RECORD_CALL_TEST_CRASH", "after:2")]).await?;
    let mask = call.execute(json!({"action": "mask"})).await?;
    second.exited().await?;
    let masked = |state: &crate::simulator::sim::State| (state.recordings().first()?.masks > 0).then_some(());
    world.kazoo.wait_for("the mask", SOON, masked).await?;
    if ended {
        call.hangup("NORMAL_CLEARING").await;
        call.wait_recording_ended(SOON).await?;
    }
    let third = world.worker_with(&[("KAZOO__SYSTEM_ALERTS", "true")]).await?;
    if ended {
        let told = |line: &Value| line["event"] == "control_not_obeyed" && line["why"] == "unconfirmed";
        third.logged("that it is not known", told, SOON).await?;
    } else {
        mask.continued(SOON).await?;
        let facts = async {
            loop {
                let entry = world.entry(&call.id()).await?.unwrap_or_default();
                let mut facts = entry["facts"].as_array().into_iter().flatten();
                if facts.any(|fact| fact["fact"] == "masked") {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(SOON, facts).await.context("not sent again")??;
        call.hangup("NORMAL_CLEARING").await;
    }
    let said = async {
        loop {
            let document = world.stored(&recording).await?.document;
            let private = &document["pvt_recording"];
            if private["masks"].is_array() || private["not_obeyed"].is_array() {
                return anyhow::Ok(private.clone());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let private = tokio::time::timeout(SOON, said)
        .await
        .context("no document tells it")??;
    world.finish().await?;
    Ok(private)
}

async fn a_mask_whose_worker_was_killed_while_it_sent_it_is_told(services: Arc<Services>) -> TestResult {
    let private = killed_while_it_masks(&services, false).await?;
    let mask = &private["masks"][0];
    let (perhaps, at) = (mask["perhaps_at"].as_str(), mask["at"].as_str());
    ensure!(
        mask["masked"] == true && perhaps.is_some() && perhaps < at,
        "{private:#}"
    );
    ensure!(private["not_obeyed"].is_null(), "{private:#}");
    Ok(())
}

async fn a_mask_whose_worker_was_killed_and_whose_recording_ended_is_told(services: Arc<Services>) -> TestResult {
    let private = killed_while_it_masks(&services, true).await?;
    let told = &private["not_obeyed"][0];
    ensure!(told["action"] == "mask" && told["why"] == "unconfirmed", "{private:#}");
    ensure!(private["masks"].is_null(), "{private:#}");
    Ok(())
}

/// An ecallmgr was restarted in the call: its control queue is gone. The unmask overtakes the mask.
async fn a_stop_and_a_mask_that_no_queue_takes_are_told_as_undelivered(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    // The alarm comes well after the unmask, and so does the end: an unmask just before the end is no fault.
    let settings = [
        ("FLOW__STOP_REPEATS_MS", "100,200"),
        ("FLOW__STOP_ALARM_MS", "2000"),
        ("KAZOO__SYSTEM_ALERTS", "true"),
    ];
    let worker = world.worker_with(&settings).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    world.state(&call.id(), "recording", SOON).await?;
    for action in ["mask", "unmask", "stop"] {
        let mut body = Value::Object(call.action(json!({"action": action}))?);
        body["Call"]["Control-Queue"] = json!("pid://<0.1.2>/ecallmgr@gone-<0.3.4>-abcdef");
        let raw = crate::simulator::sim::RawExecute::new(body.to_string());
        call.execute_raw(raw).await?.continued(SOON).await?;
        let returned = |line: &Value| line["event"] == "command_unroutable" && line["command"] == action;
        worker.logged("a command that met no queue", returned, SOON).await?;
        if action == "unmask" {
            let told = |line: &Value| line["event"] == "control_not_obeyed" && line["control"] == "mask";
            let told = worker.logged("the mask that came to nothing", told, SOON).await?;
            ensure!(told["why"] == "undelivered", "{told:#}");
        }
    }
    let alarm = |line: &Value| line["event"] == "stop_unconfirmed";
    worker.logged("the alarm", alarm, SOON).await?;
    for action in ["mask", "stop"] {
        let is_alert = |m: &crate::simulator::sim::Observed| {
            let is_told = |details: &Value| details["Not-Obeyed"] == action && details["Cause"] == "undelivered";
            m.exchange == "notifications" && m.body.get("Details").is_some_and(is_told)
        };
        world.kazoo.tap().wait(is_alert, SOON).await.context("no alert")?;
    }
    call.hangup("NORMAL_CLEARING").await;
    let document = world.stored(&recording).await?.document;
    let private = &document["pvt_recording"];
    let told = private["not_obeyed"].as_array().into_iter().flatten();
    let told: Vec<String> = told.map(|one| format!("{} {}", one["action"], one["why"])).collect();
    let wanted = ["mask", "unmask", "stop"].map(|action| format!("{} {}", json!(action), json!("undelivered")));
    ensure!(told == wanted && private["masks"].is_null(), "{private:#}");
    let (_, story) = world.command(&["explain", &recording.id]).await?;
    ensure!(
        story.contains("stop command 1 not delivered") && !story.contains("command 1 delivered"),
        "{story}"
    );
    world.finish().await
}
