//! Nothing lost, nothing silent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::places::HERE;
use crate::promises;
use crate::simulator::sim::{CallOptions, EventFault, Mistreat};
use crate::support::http::{Reply, Server};
use crate::support::{Mode, SOON, Services, TestResult, World, machine};

promises![
    the_ledger_has_the_whole_story_in_three_writes,
    a_ledger_that_is_away_delays_no_answer_and_loses_no_recording,
    a_ledger_that_hangs_delays_no_answer,
    a_stop_works_on_another_worker_than_the_start,
    a_stop_that_the_switch_ignores_is_repeated_and_told,
    an_end_that_nobody_told_is_presumed,
    an_end_is_found_soon_where_the_ecallmgrs_come_back_after_the_worker,
    a_recording_that_never_starts_fails_with_its_cause,
    a_lost_start_at_an_answer_that_came_fails_with_its_cause,
    a_dialplan_error_fails_the_recording_with_its_cause,
    a_control_queue_that_is_gone_fails_the_recording_with_its_cause,
    of_many_starts_at_once_those_fail_whose_control_queue_is_gone,
    events_that_come_twice_change_nothing,
    an_action_that_comes_twice_makes_one_recording,
    a_recording_is_taken_up_again_when_its_workers_lease_runs_out,
    what_is_parked_is_listed_explained_and_moved_on,
    what_is_given_up_is_never_asked_for_again,
    what_an_earlier_version_left_discarded_is_told_in_the_document,
    each_rest_of_a_recording_is_told,
];

async fn the_ledger_has_the_whole_story_in_three_writes(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let settings = [
        ("LEDGER__LINGER_MS", "5000"),
        ("LOG__LEVEL", "info,kz_record_call=debug"),
    ];
    let worker = world.worker_with(&settings).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    world.state(&call.id(), "recording", SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    let begun = std::time::Instant::now();
    let entry = loop {
        let entry = world.state(&call.id(), "stored", SOON).await?;
        if entry.get("due").is_none() && entry.get("lease").is_none() {
            break entry;
        }
        ensure!(begun.elapsed() < SOON, "it is still leased, or due: {entry:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let facts: Vec<&str> = entry["facts"]
        .as_array()
        .context("facts")?
        .iter()
        .filter_map(|f| f["fact"].as_str())
        .collect();
    for fact in [
        "asked",
        "commanded",
        "started",
        "ended",
        "decided",
        "collected",
        "delivered",
    ] {
        ensure!(facts.contains(&fact), "{fact} is missing: {facts:?}");
    }
    ensure!(
        facts.iter().filter(|fact| **fact == "announced").count() == 2,
        "{facts:?}"
    );
    let generation = entry["_rev"]
        .as_str()
        .and_then(|rev| rev.split('-').next())
        .context("rev")?
        .to_owned();
    // What comes within the batch delay is written together, and the delay is long enough for a slow machine.
    // Every session looks after what is open once; on a slow machine that comes in between.
    let looks = facts.iter().filter(|fact| **fact == "channel_seen").count();
    // A write that CouchDB answered too late, or not, is done again.
    let lines = worker.lines();
    let again = lines
        .iter()
        .filter(|line| line["event"] == "ledger_entry_rewrite")
        .count();
    ensure!(
        generation.parse::<usize>()? <= 3 + 2 * looks + again,
        "{generation} writes: {entry:#}"
    );
    ensure!(entry.to_string().len() < 16_000, "{} bytes", entry.to_string().len());
    world.finish().await
}

async fn a_ledger_that_is_away_delays_no_answer_and_loses_no_recording(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let (proxy, (key, url)) = world.database_proxy().await?;
    let worker = world
        .worker_with(&[(key, &url), ("LEDGER__PATIENCE_MS", "1000")])
        .await?;
    let mut calls = Vec::new();
    let mut answers = [Vec::new(), Vec::new()];
    // As long as the ledger is there, and when it is away.
    for (mode, answers) in [Mode::Pass, Mode::Refuse].into_iter().zip(&mut answers) {
        proxy.set(mode);
        for _ in 0..20 {
            let call = world.kazoo.new_call(CallOptions::talking());
            let answered = call.execute(json!({"action": "start"})).await?.continued(SOON).await?;
            answers.push(answered);
            let recording = call.wait_recording_started(SOON).await?;
            calls.push((call, recording));
        }
        answers.sort_unstable();
    }
    // What waited for the database would be late every time, by more than this.
    let [there, away] = &answers;
    ensure!(
        away[10] < there[10] + Duration::from_millis(240),
        "answers took {away:?}, and before {there:?}"
    );
    // A stop too.
    let (call, _) = &calls[0];
    call.execute(json!({"action": "stop"})).await?.continued(SOON).await?;
    call.wait_recording_ended(SOON).await?;
    for (call, _) in &calls {
        call.hangup("NORMAL_CLEARING").await;
    }
    let down = |line: &Value| line["event"] == "endings_gate_closed";
    worker.logged("the endings' consumer stepping back", down, SOON).await?;
    let metrics = worker.metrics().await?;
    ensure!(
        metrics.contains("kz_record_call_journal_writes_total{result=\"written\"}"),
        "{metrics}"
    );
    proxy.set(Mode::Pass);
    for (call, recording) in &calls {
        world.stored(recording).await?;
        world.state(&call.id(), "stored", SOON).await?;
    }
    world.finish().await
}

async fn a_ledger_that_hangs_delays_no_answer(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let (proxy, (key, url)) = world.database_proxy().await?;
    let _worker = world
        .worker_with(&[(key, &url), ("COUCHDB__READ_TIMEOUT_MS", "30000")])
        .await?;
    proxy.set(Mode::Hang);
    let mut calls = Vec::new();
    for _ in 0..10 {
        let call = world.kazoo.new_call(CallOptions::talking());
        let asked = Instant::now();
        let answered = call.execute(json!({})).await?.continued(SOON).await?;
        let limit = machine::allows(Duration::from_secs(2), asked);
        ensure!(answered < limit, "an answer took {answered:?}");
        calls.push((call.wait_recording_started(SOON).await?, call));
    }
    for (_, call) in &calls {
        call.hangup("NORMAL_CLEARING").await;
    }
    proxy.set(Mode::Pass);
    for (recording, _) in &calls {
        world.stored(recording).await?;
    }
    world.finish().await
}

async fn a_stop_works_on_another_worker_than_the_start(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let mut first = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    world.state(&call.id(), "recording", SOON).await?;
    // What the first remembers is gone with it.
    first.kill().await?;
    let _second = world.worker().await?;
    call.execute(json!({"action": "stop"})).await?.continued(SOON).await?;
    call.wait_recording_ended(SOON).await?;
    world.stored(&recording).await?;
    world.finish().await
}

async fn a_stop_that_the_switch_ignores_is_repeated_and_told(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let settings = [
        ("FLOW__STOP_REPEATS_MS", "100,200,300"),
        ("FLOW__STOP_ALARM_MS", "4000"),
    ];
    let worker = world.worker_with(&settings).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    world.kazoo.faults(|faults| faults.ignore_commands = true);
    call.execute(json!({"action": "stop"})).await?.continued(SOON).await?;
    let told = |line: &Value| line["event"] == "stop_unconfirmed" && line["level"] == "ERROR";
    let line = worker.logged("the alarm", told, SOON).await?;
    ensure!(line["media_id"] == recording.id, "{line:#}");
    let stops = world
        .kazoo
        .tap()
        .messages()
        .iter()
        .filter(|m| m.header("Record-Action") == "stop")
        .count();
    ensure!(stops == 4, "{stops} stops");
    world.kazoo.faults(|faults| faults.ignore_commands = false);
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.finish().await
}

/// Settings with which the slow rules pass in a second.
pub const FAST: [(&str, &str); 4] = [
    ("FLOW__CHECK_INTERVAL_MS", "500"),
    ("FLOW__GRACE_MS", "500"),
    ("FLOW__PROBE_GAP_MS", "500"),
    ("FLOW__START_TIMEOUT_MS", "3000"),
];

async fn an_end_that_nobody_told_is_presumed(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker_with(&FAST).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    world
        .kazoo
        .faults(|faults| faults.events = vec![EventFault::new("RECORD_STOP", Mistreat::Drop)]);
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(outcome["End-Presumed"] == true, "{outcome:#}");
    world.finish().await
}

/// As after a restart of RabbitMQ: the worker is back first, and the end was lost in between. The regular look comes after five minutes.
async fn an_end_is_found_soon_where_the_ecallmgrs_come_back_after_the_worker(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let settings = [("FLOW__GRACE_MS", "500"), ("FLOW__PROBE_GAP_MS", "500")];
    let mut before = world.worker_with(&settings).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    world.state(&call.id(), "recording", SOON).await?;
    before.terminate(SOON).await?;
    world.kazoo.faults(|faults| {
        faults.events = ["RECORD_STOP", "CHANNEL_DESTROY"]
            .map(|event| EventFault::new(event, Mistreat::Drop))
            .to_vec();
    });
    call.hangup("NORMAL_CLEARING").await;
    let ecallmgrs = world.kazoo.options().ecallmgr_nodes.len();
    for i in 0..ecallmgrs {
        world.kazoo.stop_ecallmgr(i).await?;
    }
    let worker = world.worker_with(&settings).await?;
    let silent = |line: &Value| line["event"] == "ecallmgr_silent";
    worker.logged("that no ecallmgr answers", silent, SOON).await?;
    for i in 0..ecallmgrs {
        world.kazoo.start_ecallmgr(i).await?;
    }
    world.stored(&recording).await?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(outcome["End-Presumed"] == true, "{outcome:#}");
    world.finish().await
}

async fn fails_with(world: &World<'_>, call_id: &str, cause: &str) -> TestResult {
    let entry = world.state(call_id, "failed", SOON).await?;
    ensure!(entry["cause"] == cause, "{entry:#}");
    let told = |m: &crate::simulator::sim::Observed| m.category == "recording" && m.header("Call-ID") == call_id;
    let seen = world.kazoo.tap().wait(told, SOON).await?;
    ensure!(
        seen.header("Outcome") == "failed" && seen.header("Cause") == cause,
        "{seen:?}"
    );
    Ok(())
}

async fn a_recording_that_never_starts_fails_with_its_cause(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker_with(&FAST).await?;
    world.kazoo.faults(|faults| faults.ignore_starts = 1);
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    fails_with(&world, &call.id(), "never_started").await?;
    world.finish().await
}

/// The command is lost after the broker confirmed it, and the call is answered later: that is a loss, and no call that was never answered.
async fn a_lost_start_at_an_answer_that_came_fails_with_its_cause(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker_with(&FAST).await?;
    for (answers, state, cause) in [
        (true, "failed", "never_started"),
        (false, "discarded", "never_triggered"),
    ] {
        world.kazoo.faults(|faults| faults.ignore_starts = 1);
        let call = world.kazoo.new_call(CallOptions::ringing());
        call.execute(json!({"record_on_answer": true}))
            .await?
            .continued(SOON)
            .await?;
        let _ = world.state(&call.id(), "asked", SOON).await?;
        if answers {
            call.answer();
        }
        call.hangup("NORMAL_CLEARING").await;
        let entry = world.state(&call.id(), state, SOON).await?;
        ensure!(entry["cause"] == cause, "{entry:#}");
    }
    let failed = |line: &Value| line["event"] == "recording_closed" && line["cause"] == "never_started";
    worker.logged("that the recording failed", failed, SOON).await?;
    world.finish().await
}

async fn a_dialplan_error_fails_the_recording_with_its_cause(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    // Only the error can end it while anybody waits: not the time that a start has.
    let _worker = world.worker_with(&[("FLOW__START_TIMEOUT_MS", "600000")]).await?;
    world
        .kazoo
        .faults(|faults| faults.dialplan_errors = vec!["something is wrong".into()]);
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    fails_with(&world, &call.id(), "start_refused").await?;
    world.finish().await
}

async fn a_control_queue_that_is_gone_fails_the_recording_with_its_cause(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker_with(&FAST).await?;
    // An ecallmgr that lost its connection declares its queues again when it is back. One that is not back within flow.grace_ms is told.
    for (lives, cause) in [(true, "never_started"), (false, "call_gone")] {
        let call = world.kazoo.new_call(CallOptions::talking());
        let mut body = Value::Object(call.action(json!({}))?);
        body["Call"]["Control-Queue"] = json!("pid://<0.1.2>/ecallmgr@gone-<0.3.4>-abcdef");
        if !lives {
            call.hangup("NORMAL_CLEARING").await;
        }
        let raw = crate::simulator::sim::RawExecute::new(body.to_string());
        call.execute_raw(raw).await?.continued(SOON).await?;
        if lives {
            let again = |line: &Value| line["event"] == "command_unroutable" && line["call_id"] == json!(call.id());
            worker.logged("a command that met no queue", again, SOON).await?;
        }
        fails_with(&world, &call.id(), cause).await?;
    }
    world.finish().await
}

/// The starts of many calls are in flight to the broker on one channel, which returns those that meet no queue.
async fn of_many_starts_at_once_those_fail_whose_control_queue_is_gone(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker_with(&FAST).await?;
    let mut runs = Vec::new();
    for n in 0..40 {
        let call = world.kazoo.new_call(CallOptions::talking());
        let mut body = Value::Object(call.action(json!({}))?);
        let is_gone = n % 3 == 0;
        if is_gone {
            body["Call"]["Control-Queue"] = json!("pid://<0.1.2>/ecallmgr@gone-<0.3.4>-abcdef");
        }
        let raw = crate::simulator::sim::RawExecute::new(body.to_string());
        runs.push((is_gone, call.execute_raw(raw).await?, call));
    }
    for (is_gone, run, call) in &runs {
        run.continued(SOON).await?;
        if !is_gone {
            let recording = call.wait_recording_started(SOON).await?;
            call.hangup("NORMAL_CLEARING").await;
            world.stored(&recording).await?;
        }
    }
    for (_, _, call) in runs.iter().filter(|(is_gone, ..)| *is_gone) {
        fails_with(&world, &call.id(), "never_started").await?;
    }
    for (is_gone, _, call) in &runs {
        let lines = worker.lines();
        let returned = |line: &&Value| line["event"] == "command_unroutable" && line["call_id"] == json!(call.id());
        let count = lines.iter().filter(returned).count();
        ensure!(
            (count > 0) == *is_gone,
            "{count} returned of a call whose queue is gone: {is_gone}"
        );
    }
    world.finish().await
}

async fn events_that_come_twice_change_nothing(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    world.kazoo.faults(|faults| {
        faults.events = vec![
            EventFault::new("RECORD_START", Mistreat::Duplicate(2)),
            EventFault::new("RECORD_STOP", Mistreat::Duplicate(3)),
        ];
    });
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    let entry = world.state(&call.id(), "stored", SOON).await?;
    let ends = entry["facts"]
        .as_array()
        .context("facts")?
        .iter()
        .filter(|f| f["fact"] == "ended")
        .count();
    ensure!(ends == 1, "{ends} ends");
    let ids = world.couch.ids(&world.modb(&recording.id)).await?;
    ensure!(ids.iter().filter(|id| !id.starts_with('_')).count() == 1, "{ids:?}");
    world.finish().await
}

async fn an_action_that_comes_twice_makes_one_recording(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let _other = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    let run = call.execute(json!({})).await?;
    run.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    for _ in 0..4 {
        run.again().await?;
    }
    let answered = |s: &crate::simulator::sim::State| (s.recordings().len() == 1).then_some(());
    world.kazoo.wait_for("one recording", SOON, answered).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    // Also after it has ended.
    run.again().await?;
    run.results(6, SOON).await?;
    ensure!(world.kazoo.recordings().len() == 1, "{:?}", world.kazoo.recordings());
    world.finish().await
}

async fn a_recording_is_taken_up_again_when_its_workers_lease_runs_out(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let mut first = world.worker().await?;
    let second = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    // Nobody serves the switch, so the end is written down and rests.
    world.kazoo.serve_switch(false).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.state(&call.id(), "ended", SOON).await?;
    first.kill().await?;
    world.kazoo.serve_switch(true).await?;
    world.stored(&recording).await?;
    ensure!(second.spooled().is_empty());
    world.finish().await
}

/// Parks a recording: nobody serves its switch, and its attempts are over.
async fn park(world: &World<'_>) -> anyhow::Result<(crate::simulator::sim::Call, crate::simulator::sim::Recording)> {
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    world.kazoo.serve_switch(false).await?;
    call.hangup("NORMAL_CLEARING").await;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "parked" && outcome["Cause"] == "not_collected",
        "{outcome:#}"
    );
    world.state(&call.id(), "parked", SOON).await?;
    Ok((call, recording))
}

async fn what_is_parked_is_listed_explained_and_moved_on(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker_with(&[("FLOW__MAX_ATTEMPTS", "2")]).await?;
    let (call, recording) = park(&world).await?;
    let (good, listed) = world.command(&["list", "--state", "parked"]).await?;
    ensure!(
        good && listed.contains(&recording.id) && listed.contains("not_collected"),
        "{listed}"
    );
    let (_, listed) = world
        .command(&["list", "--state", "parked", "--json", "--older", "1h"])
        .await?;
    ensure!(listed.is_empty(), "{listed}");
    for name in [recording.id.as_str(), &call.id()] {
        let (good, story) = world.command(&["explain", name]).await?;
        ensure!(good, "{story}");
        for words in [
            "ordered by a callflow",
            "recording ended on the switch",
            "attempt 2",
            "no ecallmgr serves the switch",
            "parked",
            "retry",
        ] {
            ensure!(story.contains(words), "{words:?} is not in\n{story}");
        }
    }
    world.kazoo.serve_switch(true).await?;
    let (good, said) = world.command(&["retry", &recording.id]).await?;
    ensure!(good, "{said}");
    world.state(&call.id(), "stored", SOON).await?;
    let (_, story) = world.command(&["explain", &recording.id]).await?;
    ensure!(
        story.contains("none: the recording is closed") && story.contains("retried by an operator"),
        "{story}"
    );
    let (good, said) = world.command(&["explain", "no such call"]).await?;
    ensure!(!good && said.contains("has no recording"), "{said}");
    world.finish().await
}

async fn what_is_given_up_is_never_asked_for_again(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker_with(&[("FLOW__MAX_ATTEMPTS", "1")]).await?;
    let (call, recording) = park(&world).await?;
    let (good, said) = world.command(&["discard", &recording.id]).await?;
    ensure!(!good && said.contains("--yes"), "{said}");
    let (good, said) = world.command(&["discard", "--yes", &recording.id]).await?;
    ensure!(good, "{said}");
    let entry = world.state(&call.id(), "discarded", SOON).await?;
    ensure!(entry["cause"] == "discarded_by_operator", "{entry:#}");
    let (good, said) = world.command(&["retry", &recording.id]).await?;
    ensure!(!good && said.contains("already"), "{said}");
    ensure!(recording.path.exists(), "nobody asked for the file");
    world.finish().await
}

/// A version before this one let the document say that the recording is parked. Its entry is final, and has no timer.
async fn what_an_earlier_version_left_discarded_is_told_in_the_document(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let settings = [("FLOW__MAX_ATTEMPTS", "1"), HERE];
    let mut worker = world.worker_with(&settings).await?;
    let server = Server::always(Reply::Status(500)).await;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({"url": server.url("/in")}))
        .await?
        .continued(SOON)
        .await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.state(&call.id(), "parked", SOON).await?;
    let (good, said) = world.command(&["discard", "--yes", &recording.id]).await?;
    ensure!(good, "{said}");
    world.state(&call.id(), "discarded", SOON).await?;
    let modb = world.modb(&recording.id);
    let is_discarded = |document: &Value| document["pvt_recording"]["state"] == "discarded";
    let document = world.couch.get(&modb, &recording.id).await?.context("no document")?;
    ensure!(is_discarded(&document), "{document:#}");
    ensure!(worker.terminate(SOON).await?.success());

    let entry = world.entry(&call.id()).await?.context("no entry")?;
    ensure!(entry["due"].is_null(), "{entry:#}");
    let id = entry["_id"].as_str().context("no id")?;
    let ledger = format!("kz_record_call-{}", world.month());
    let is_mark = |fact: &Value| fact["fact"] == "marked" && fact["of"]["n"] == 2;
    let mut marks = 0;
    let forget = |entry: &mut Value| {
        let facts = entry["facts"].as_array_mut().expect("facts");
        marks = facts.iter().filter(|fact| is_mark(fact)).count();
        facts.retain(|fact| !is_mark(fact));
    };
    world.couch.edit(&ledger, id, forget).await?;
    ensure!(marks == 1, "{entry:#}");
    let park = |document: &mut Value| document["pvt_recording"]["state"] = "parked".into();
    world.couch.edit(&modb, &recording.id, park).await?;

    let begun = Instant::now();
    let _worker = world.worker_with(&settings).await?;
    loop {
        let document = world.couch.get(&modb, &recording.id).await?.context("no document")?;
        if is_discarded(&document) {
            break;
        }
        ensure!(begun.elapsed() < SOON, "{document:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.state(&call.id(), "discarded", SOON).await?;
    world.finish().await
}

async fn each_rest_of_a_recording_is_told(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker_with(&[("FLOW__MAX_ATTEMPTS", "1")]).await?;
    let (call, recording) = park(&world).await?;
    let mut told = vec![world.outcome(&recording.id).await?["Msg-ID"].clone()];
    // No ecallmgr serves its switch, so it rests again each time.
    for _ in 0..2 {
        let (good, said) = world.command(&["retry", &recording.id]).await?;
        ensure!(good, "{said}");
        let again = |m: &crate::simulator::sim::Observed| {
            m.category == "recording"
                && m.header("Media-ID") == recording.id
                && m.header("Outcome") == "parked"
                && !told.contains(&json!(m.header("Msg-ID")))
        };
        let again = world.kazoo.tap().wait(again, SOON).await?;
        told.push(json!(again.header("Msg-ID")));
        world.state(&call.id(), "parked", SOON).await?;
    }
    world.kazoo.serve_switch(true).await?;
    let (good, said) = world.command(&["retry", &recording.id]).await?;
    ensure!(good, "{said}");
    world.state(&call.id(), "stored", SOON).await?;
    world.finish().await
}
