//! What the workers hold of a person is removed when an operator asks for it, or when it is older than the settings say.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use serde_json::{Value, json};

use crate::promises;
use crate::simulator::sim::CallOptions;
use crate::support::http::{Reply, Server};
use crate::support::{SOON, Services, TestResult, World};

promises![
    what_is_erased_is_gone_and_the_receipt_says_what_is_left,
    a_copy_in_the_hold_is_not_erased_while_its_recording_is_open,
    held_audio_past_its_retention_goes_with_an_outcome,
    dead_letters_past_their_retention_are_removed_and_no_others,
];

const DEAD: &str = "kz_record_call.dead";

async fn what_is_erased_is_gone_and_the_receipt_says_what_is_left(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let (call, other) = (
        world.kazoo.new_call(CallOptions::talking()),
        world.kazoo.new_call(CallOptions::talking()),
    );
    call.execute(json!({})).await?.continued(SOON).await?;
    other.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    let kept = other.wait_recording_started(SOON).await?;
    world.state(&call.id(), "recording", SOON).await?;

    let (good, said) = world.command(&["erase", "--yes", &call.id()]).await?;
    ensure!(!good && said.contains("nothing is erased"), "{said}");
    call.hangup("NORMAL_CLEARING").await;
    other.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.stored(&kept).await?;
    world.state(&call.id(), "stored", SOON).await?;
    world.state(&other.id(), "stored", SOON).await?;
    // A dead letter of each call.
    let connection = Connection::connect(&world.setting("AMQP__URI"), ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    for id in [call.id(), other.id()] {
        let body = json!({"Event-Category": "call_event", "Event-Name": "RECORD_STOP", "Call-ID": id}).to_string();
        let properties = BasicProperties::default().with_content_type("application/json".into());
        let options = BasicPublishOptions::default();
        channel
            .basic_publish("".into(), DEAD.into(), options, body.as_bytes(), properties)
            .await?
            .await?;
    }
    // A copy of each recording in the hold, of which the ledger knows nothing.
    let day = "kz_record_call_hold-20261105";
    world.couch.create_database(day).await?;
    let mut copies = Vec::new();
    for id in [call.id(), other.id()] {
        let entry = world.entry(&id).await?.context("no entry")?;
        let copy = format!("{}-0123456789abcdef", entry["key"].as_str().context("no key")?);
        let held =
            json!({"held_at": "2026-11-05T10:00:00Z", "call_id": id, "month": world.month(), "key": entry["key"]});
        world.couch.create(day, &copy, &held).await?;
        copies.push(copy);
    }

    let (good, said) = world.command(&["erase", &call.id()]).await?;
    ensure!(!good && said.contains("--yes"), "{said}");
    ensure!(
        world.entry(&call.id()).await?.is_some(),
        "erased without being confirmed"
    );
    let (good, said) = world.command(&["erase", "--yes", "--json", &call.id()]).await?;
    ensure!(good, "{said}");
    let receipt: Value = serde_json::from_str(&said)?;
    let says = |list: &str, words: &str| {
        let lines = receipt[list].as_array().into_iter().flatten();
        lines.filter_map(Value::as_str).any(|line| line.contains(words))
    };
    ensure!(
        says("removed", "ledger entry") && says("removed", "1 of 2 dead letters"),
        "{receipt:#}"
    );
    ensure!(
        says("not_reached", &recording.id),
        "the document is not named: {receipt:#}"
    );
    ensure!(world.entry(&call.id()).await?.is_none(), "the entry is still there");
    ensure!(
        world.entry(&other.id()).await?.is_some(),
        "the entry of another call is gone"
    );
    ensure!(
        says("removed", &copies[0]) && !says("removed", &copies[1]),
        "{receipt:#}"
    );
    ensure!(
        world.couch.ids(day).await? == copies[1..],
        "the wrong copies are in the hold"
    );
    world.couch.delete_database(day).await?;
    let (good, said) = world.command(&["explain", &call.id()]).await?;
    ensure!(!good && said.contains("has no recording"), "{said}");
    // The other call's letter waits as before.
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let waiting = channel
        .queue_declare(DEAD.into(), passive, FieldTable::default())
        .await?;
    ensure!(waiting.message_count() == 1, "{waiting:?}");
    let letter = channel.basic_get(DEAD.into(), BasicGetOptions::default()).await?;
    let letter = letter.context("the other letter is gone")?;
    ensure!(
        String::from_utf8_lossy(&letter.data).contains(&other.id()),
        "the wrong letter was removed"
    );
    let _ = connection.close(200, "bye".into()).await;
    world.finish().await
}

/// A call can have more recordings than one listing contains. The last of these is open, and the hold has its only copy.
async fn a_copy_in_the_hold_is_not_erased_while_its_recording_is_open(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let mut worker = world.worker().await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    let open = world.state(&call.id(), "recording", SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    let closed = world.state(&call.id(), "stored", SOON).await?;
    worker.terminate(SOON).await?;
    let ledger = format!("kz_record_call-{}", world.month());
    let key = closed["key"].as_str().context("no key")?;
    let other = |entry: &Value, key_of_other: &str| {
        let mut entry = entry.clone();
        let id = entry["_id"].as_str().unwrap_or_default().replace(key, key_of_other);
        entry["key"] = json!(key_of_other);
        if let Some(fields) = entry.as_object_mut() {
            fields.retain(|name, _| !["_rev", "_id", "due", "lease"].contains(&name.as_str()));
        }
        (id, entry)
    };
    for n in 0..100 {
        let (id, entry) = other(&closed, &format!("{n:032x}"));
        world.couch.create(&ledger, &id, &entry).await?;
    }
    let last = "f".repeat(32);
    let (id, entry) = other(&open, &last);
    world.couch.create(&ledger, &id, &entry).await?;
    let day = "kz_record_call_hold-20261105";
    world.couch.create_database(day).await?;
    let copy = format!("{last}-0123456789abcdef");
    let held = json!({"held_at": "2026-11-05T10:00:00Z", "call_id": call.id(), "month": world.month(), "key": last});
    world.couch.create(day, &copy, &held).await?;
    let (good, said) = world.command(&["erase", "--yes", &call.id()]).await?;
    ensure!(!good && said.contains("nothing is erased"), "{said}");
    ensure!(world.couch.ids(day).await? == [copy], "the only copy is gone");
    ensure!(world.entries().await?.len() == 102, "entries are gone");
    world.couch.delete_database(day).await?;
    for entry in world.entries().await? {
        let id = entry["_id"].as_str().unwrap_or_default();
        if !id.contains(key) {
            let deleted = json!({"_deleted": true, "_rev": entry["_rev"]});
            world.couch.create(&ledger, id, &deleted).await?;
        }
    }
    world.finish().await
}

/// The clock of workers that are so many days ahead.
fn ahead(days: u32) -> (&'static str, String) {
    ("KZ_RECORD_CALL_TEST_CLOCK_FORWARD_S", (days * 86_400).to_string())
}

async fn held_audio_past_its_retention_goes_with_an_outcome(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let here = ("DESTINATION__ALLOW", "127.0.0.1");
    let server = Server::always(Reply::Status(413)).await;
    let mut worker = world.worker_with(&[here]).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({"url": server.url("/in")}))
        .await?
        .continued(SOON)
        .await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.state(&call.id(), "parked", SOON).await?;
    worker.terminate(SOON).await?;
    let hold = async || {
        let databases = world.databases().await?;
        let names = databases.iter().filter_map(|name| name.strip_prefix(&world.prefix));
        let mut copies = Vec::new();
        for day in names.filter(|name| name.starts_with("kz_record_call_hold-")) {
            copies.extend(world.couch.ids(day).await?);
        }
        anyhow::Ok(copies)
    };
    ensure!(hold().await?.len() == 1, "{:?}", hold().await?);
    // A worker that keeps held audio, and one that keeps it for longer, leave it.
    let (ahead, days) = ahead(2);
    for kept in ["0", "30"] {
        let settings = [here, (ahead, days.as_str()), ("HOLD__RETENTION_DAYS", kept)];
        let mut worker = world.worker_with(&settings).await?;
        worker
            .logged("retention_done", |line| line["event"] == "retention_done", SOON)
            .await?;
        ensure!(hold().await?.len() == 1, "the only copy is gone: {}", worker.tail());
        world.state(&call.id(), "parked", SOON).await?;
        worker.terminate(SOON).await?;
    }
    let settings = [here, (ahead, days.as_str()), ("HOLD__RETENTION_DAYS", "1")];
    let _worker = world.worker_with(&settings).await?;
    let entry = world.state(&call.id(), "discarded", SOON).await?;
    ensure!(entry["cause"] == "retention_over", "{entry:#}");
    let outcome = |m: &crate::simulator::sim::Observed| {
        m.category == "recording" && m.header("Media-ID") == recording.id && m.header("Outcome") == "discarded"
    };
    let told = world.kazoo.tap().wait(outcome, SOON).await?;
    ensure!(told.header("Cause") == "retention_over", "{}", told.header("Cause"));
    ensure!(hold().await?.is_empty(), "{:?}", hold().await?);
    let (_, story) = world.command(&["explain", &recording.id]).await?;
    ensure!(story.contains("hold.retention_days"), "{story}");
    world.finish().await
}

async fn dead_letters_past_their_retention_are_removed_and_no_others(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let mut worker = world.worker().await?;
    let connection = Connection::connect(&world.setting("AMQP__URI"), ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let publish = async |queue: &str, body: &'static [u8]| {
        let properties = BasicProperties::default().with_content_type("application/json".into());
        let options = BasicPublishOptions::default();
        let published = channel.basic_publish("".into(), queue.into(), options, body, properties);
        anyhow::Ok(published.await?.await?)
    };
    // One that a worker moves, and one of a version that noted no time.
    publish("kz_record_call.endings", b"unreadable").await?;
    worker
        .logged("message_rejected", |line| line["event"] == "message_rejected", SOON)
        .await?;
    publish(DEAD, b"of an older version").await?;
    worker.terminate(SOON).await?;
    let waiting = async || {
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let queue = channel.queue_declare(DEAD.into(), passive, FieldTable::default());
        anyhow::Ok(queue.await?.message_count())
    };
    ensure!(waiting().await? == 2, "{}", waiting().await?);
    let (ahead, days) = ahead(2);
    for (kept, left) in [("0", 2), ("30", 2), ("1", 1)] {
        let settings = [(ahead, days.as_str()), ("AMQP__DEAD_LETTERS_RETENTION_DAYS", kept)];
        let mut worker = world.worker_with(&settings).await?;
        worker
            .logged("retention_done", |line| line["event"] == "retention_done", SOON)
            .await?;
        ensure!(waiting().await? == left, "{kept}: {}", waiting().await?);
        let expired = worker
            .lines()
            .into_iter()
            .find(|line| line["event"] == "dead_letters_expired");
        ensure!(
            expired.is_some_and(|line| line["removed"] == 1) == (kept == "1"),
            "{kept}: {}",
            worker.tail()
        );
        worker.terminate(SOON).await?;
    }
    let letter = channel.basic_get(DEAD.into(), BasicGetOptions::default()).await?;
    let letter = letter.context("the letter without a time is gone")?;
    ensure!(letter.data == b"of an older version", "the wrong letter was removed");
    let _ = connection.close(200, "bye".into()).await;
    world.finish().await
}
