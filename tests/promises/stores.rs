//! Accounts whose storage plan names an object store: the worker itself stores their recordings, the whole way.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use kz_record_call::kazoo::term::Term;
use serde_json::{Value, json};

use crate::places::{HERE, changes, document, marked, media, record, store_proxy_of};
use crate::promises;
use crate::simulator::sim::{CallOptions, Recording};
use crate::support::object_store::{BUCKET, Does, KEY, ObjectStore, SECRET, Setup};
use crate::support::{SOON, Services, TestResult, World};

promises![
    a_storage_plan_with_s3_is_stored_by_the_worker_itself,
    a_storage_plan_with_azure_is_stored_by_the_worker_itself,
    no_drivers_or_a_stub_leave_a_plan_to_kazoos_store_proxy,
    a_plan_that_changes_between_the_audio_and_the_document_is_followed,
    two_recordings_with_one_objects_name_at_once_lose_neither,
    a_plan_with_a_wrong_key_slows_no_other_account_and_is_delivered_when_it_is_put_right,
];

/// A second account.
const OTHER: &str = "0ddba11f00d1c54a0fb0d9c9d3e1a2b3";

/// A plan whose handler has these settings.
pub fn plan(kind: &str, settings: &Value) -> Value {
    json!({
        "plan": {"modb": {"types": {"call_recording": {"attachments": {"handler": "9b1c"}}}}},
        "attachments": {"9b1c": {"handler": kind, "settings": settings}},
    })
}

async fn a_storage_plan_with_s3_is_stored_by_the_worker_itself(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let store = ObjectStore::start(Setup::default()).await;
    let settings = store.s3();
    let plan = plan("s3", &settings);
    world.couch.create("system_data", world.account(), &plan).await?;
    let _worker = world.worker_with(&[HERE]).await?;
    let recording = record(&world, json!({})).await?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "stored" && outcome["Destination"] == "storage_plan",
        "{outcome:#}"
    );
    let document = document(&world, &recording.id).await?;
    let name = document["name"].as_str().context("name")?;
    let entry = &document["pvt_attachments"][name];
    ensure!(
        entry["length"] == recording.audio.len() && entry["stub"] == false,
        "{document:#}"
    );
    // What Kazoo reads the audio with: the settings, and the object's name.
    let handler = &entry["handler"]["kz_att_s3"];
    let Term::Tuple(term) = Term::from_base64(handler["S3"].as_str().context("no term")?)? else {
        anyhow::bail!("{handler}")
    };
    let [Term::Map(pairs), Term::Binary(key)] = &term[..] else {
        anyhow::bail!("{term:?}")
    };
    ensure!(
        pairs.contains(&(Term::atom("bucket"), Term::binary(BUCKET))),
        "{pairs:?}"
    );
    ensure!(
        pairs.contains(&(Term::atom("port"), Term::Integer(store.address.port().into()))),
        "{pairs:?}"
    );
    let key = String::from_utf8(key.clone())?;
    ensure!(key.starts_with("account%2F") && key.contains(&recording.id), "{key}");
    let objects = store.objects();
    let stored = objects.get(&key).with_context(|| format!("{key}: {objects:?}"))?;
    ensure!(
        stored.writes == 1 && stored.digests.md5 == handler["metadata"]["etag"],
        "{stored:?}"
    );
    ensure!(stored.digests.couch() == Some(format!("md5-{}", recording.audio.md5())));
    let told = changes(&world, &recording.id);
    ensure!(told == ["doc_created", "doc_edited"], "{told:?}");
    world.released(&recording).await?;
    // The ledger tells of the object, and of no secret.
    world.state(&recording.call_id, "stored", SOON).await?;
    let ledger = json!(world.entries().await?).to_string();
    ensure!(ledger.contains("object_stored"), "{ledger}");
    ensure!(!ledger.contains(SECRET) && !ledger.contains(KEY), "{ledger}");
    world.finish().await
}

async fn a_storage_plan_with_azure_is_stored_by_the_worker_itself(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let store = ObjectStore::start(Setup::default()).await;
    let (settings, endpoint) = store.azure();
    let plan = plan("azure", &settings);
    world.couch.create("system_data", world.account(), &plan).await?;
    let _worker = world
        .worker_with(&[HERE, ("STORAGE__AZURE_ENDPOINT", &endpoint)])
        .await?;
    let recording = record(&world, json!({})).await?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(outcome["Outcome"] == "stored", "{outcome:#}");
    let document = document(&world, &recording.id).await?;
    let name = document["name"].as_str().context("name")?;
    let entry = &document["pvt_attachments"][name];
    ensure!(entry["handler"]["kz_att_azure"]["azure"].is_string(), "{document:#}");
    let objects: Vec<_> = store.objects().into_values().collect();
    ensure!(
        objects.len() == 1 && objects[0].length == entry["length"],
        "{objects:?}"
    );
    world.finish().await
}

async fn no_drivers_or_a_stub_leave_a_plan_to_kazoos_store_proxy(services: Arc<Services>) -> TestResult {
    for stub in [false, true] {
        let world = World::new(&services).await?;
        let store = ObjectStore::start(Setup::default()).await;
        let mut plan = plan("s3", &store.s3());
        if stub {
            plan["plan"]["modb"]["types"]["call_recording"]["attachments"]["stub"] = json!(true);
        }
        world.couch.create("system_data", world.account(), &plan).await?;
        let modb = world.modb(&format!("{}-x", world.month()));
        let (port, serving) = store_proxy_of(world.couch.clone(), modb.clone(), stub).await?;
        media(&world, "proxy_hostname", json!("127.0.0.1")).await?;
        media(&world, "proxy_port", json!(port)).await?;
        let mut settings = vec![HERE];
        if !stub {
            settings.push(("STORAGE__DRIVERS", ""));
        }
        let _worker = world.worker_with(&settings).await?;
        let recording = record(&world, json!({})).await?;
        let outcome = world.outcome(&recording.id).await?;
        ensure!(
            outcome["Outcome"] == "stored" && outcome["Destination"] == "storage_plan",
            "{outcome:#}"
        );
        let document = document(&world, &recording.id).await?;
        ensure!(document["pvt_recording"]["state"] == "complete", "{document:#}");
        let name = document["name"].as_str().context("name")?;
        if stub {
            let stored = world.couch.stored(&modb, &recording.id, &recording.audio).await?;
            ensure!(stored.difference.is_none(), "{:?}", stored.difference);
            ensure!(document["pvt_attachments"].is_null(), "{document:#}");
        } else {
            ensure!(
                document["pvt_attachments"][name]["length"] == recording.audio.len(),
                "{document:#}"
            );
        }
        ensure!(store.objects().is_empty() && store.asked("HEAD") == 0);
        world.released(&recording).await?;
        serving.abort();
        world.finish().await?;
    }
    Ok(())
}

async fn a_plan_that_changes_between_the_audio_and_the_document_is_followed(services: Arc<Services>) -> TestResult {
    /// More steps than come before the document.
    const MOST: u32 = 40;
    const ROUNDS: u32 = 3;
    // Another place: the audio goes there too. The same place: the audio is not sent again.
    for (change, key, objects) in [
        (json!({"folder_path": "moved"}), "moved/account%2F", 2),
        (json!({"region": "us-east-1"}), "account%2F", 1),
    ] {
        let mut was_between = false;
        // Steps of other tasks count as well, so that one run through all of them can leave this one out.
        for n in (0..ROUNDS).flat_map(|_| 1..MOST) {
            let world = World::new(&services).await?;
            world.kazoo.tolerate("order");
            let store = ObjectStore::start(Setup::default()).await;
            world
                .couch
                .create("system_data", world.account(), &plan("s3", &store.s3()))
                .await?;
            let crash = format!("after:{n}");
            let mut first = world
                .worker_with(&[HERE, ("KZ_RECORD_CALL_TEST_CRASH", &crash)])
                .await?;
            let call = world.kazoo.new_call(CallOptions::talking());
            // A worker that is killed too early is of no interest here.
            let told = async {
                call.execute(json!({})).await?.continued(SOON).await?;
                let recording = call.wait_recording_started(SOON).await?;
                call.hangup("NORMAL_CLEARING").await;
                world.ended(&recording).await
            };
            let recording = tokio::select! {
                recording = told => Some(recording?),
                _ = first.exited() => None,
            };
            if let Some(recording) = recording {
                let stored = async { world.outcome(&recording.id).await };
                tokio::select! {
                    died = first.exited() => died.map(drop)?,
                    outcome = stored => outcome.map(drop)?,
                }
                let document = world.couch.get(&world.modb(&recording.id), &recording.id).await?;
                let pending = document.is_some_and(|document| document["pvt_recording"]["state"] == "pending");
                if pending && store.objects().len() == 1 {
                    was_between = true;
                    followed(&world, &store, (&recording, &change), (key, objects)).await?;
                }
            }
            drop(first);
            drop(call);
            world.finish().await?;
            if was_between {
                break;
            }
        }
        ensure!(was_between);
    }
    Ok(())
}

/// What another worker makes of the recording, after the plan's settings have changed.
async fn followed(
    world: &World<'_>,
    store: &ObjectStore,
    (recording, change): (&Recording, &Value),
    (key, objects): (&str, usize),
) -> TestResult {
    world
        .couch
        .edit("system_data", world.account(), |plan| {
            let settings = plan["attachments"]["9b1c"]["settings"].as_object_mut();
            settings
                .into_iter()
                .for_each(|settings| settings.extend(change.as_object().cloned().unwrap_or_default()));
        })
        .await?;
    let _second = world.worker_with(&[HERE]).await?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(outcome["Outcome"] == "stored", "{outcome:#}");
    let document = document(world, &recording.id).await?;
    let name = document["name"].as_str().context("name")?;
    let term = document["pvt_attachments"][name]["handler"]["kz_att_s3"]["S3"].as_str();
    let Term::Tuple(term) = Term::from_base64(term.context("no term")?)? else {
        anyhow::bail!("{document:#}")
    };
    let [Term::Map(settings), Term::Binary(named)] = &term[..] else {
        anyhow::bail!("{term:?}")
    };
    for (setting, value) in change.as_object().context("no change")? {
        let changed = (Term::atom(setting), Term::binary(value.as_str().unwrap_or_default()));
        ensure!(settings.contains(&changed), "{settings:?}");
    }
    let named = String::from_utf8(named.clone())?;
    ensure!(named.starts_with(key), "{named}");
    let all = store.objects();
    let digest = Some(format!("md5-{}", recording.audio.md5()));
    ensure!(
        all.len() == objects && all.contains_key(&named),
        "{named}: {:?}",
        all.keys()
    );
    ensure!(
        all.values()
            .all(|stored| stored.writes == 1 && stored.digests.couch() == digest),
        "{all:?}"
    );
    Ok(())
}

/// The store knows no conditional PUT, and the first PUT takes long. The plan gives one name to all recordings.
async fn two_recordings_with_one_objects_name_at_once_lose_neither(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let store = ObjectStore::start(Setup {
        ignores_conditions: true,
        ..Setup::default()
    })
    .await;
    let mut settings = store.s3();
    settings["field_list"] = json!(["shared.mp3"]);
    let plan = plan("s3", &settings);
    world.couch.create("system_data", world.account(), &plan).await?;
    let _worker = world.worker_with(&[HERE]).await?;
    store.next(&[Does::Slow(20_000)]);
    let (first, second) = (record(&world, json!({})).await?, record(&world, json!({})).await?);
    let mut told = Vec::new();
    for recording in [&first, &second] {
        let outcome = world.outcome(&recording.id).await?;
        told.push((outcome["Outcome"].clone(), outcome["Cause"].clone()));
    }
    told.sort_by_key(|(outcome, _)| outcome.to_string());
    ensure!(told[0] == (json!("parked"), json!("refused")), "{told:?}");
    ensure!(told[1].0 == "stored", "{told:?}");
    let objects = store.objects();
    ensure!(objects.len() == 1 && objects["shared.mp3"].writes == 1, "{objects:?}");
    world.finish().await
}

async fn a_plan_with_a_wrong_key_slows_no_other_account_and_is_delivered_when_it_is_put_right(
    services: Arc<Services>,
) -> TestResult {
    let world = World::new(&services).await?;
    let store = ObjectStore::start(Setup::default()).await;
    let mut wrong = store.s3();
    wrong["secret"] = json!("another secret");
    world
        .couch
        .create("system_data", world.account(), &plan("s3", &wrong))
        .await?;
    world
        .couch
        .create("system_data", OTHER, &plan("s3", &store.s3()))
        .await?;
    let mut account = world
        .couch
        .get("accounts", world.account())
        .await?
        .context("no account")?;
    account["_id"] = json!(OTHER);
    account.as_object_mut().context("no object")?.remove("_rev");
    world.couch.create("accounts", OTHER, &account).await?;
    let more = [
        HERE,
        ("FLOW__MAX_ATTEMPTS", "3"),
        ("DESTINATION__CREATE_DATABASES_AFTER_S", "0"),
    ];
    let worker = world.worker_with(&more).await?;
    // Two recordings, so that a circuit breaker opens.
    let (first, second) = (record(&world, json!({})).await?, record(&world, json!({})).await?);
    let options = CallOptions {
        account_id: Some(OTHER.to_owned()),
        ..CallOptions::talking()
    };
    let call = world.kazoo.new_call(options);
    call.execute(json!({})).await?.continued(SOON).await?;
    let good = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    let good = world.ended(&good).await?;
    let outcome = world.outcome_within(&good.id, SOON).await;
    let outcome = outcome.with_context(|| worker.tail())?;
    ensure!(outcome["Outcome"] == "stored", "{outcome:#}");
    for recording in [&first, &second] {
        let outcome = world.outcome(&recording.id).await?;
        ensure!(
            outcome["Outcome"] == "parked" && outcome["Cause"] == "plan_refused",
            "{outcome:#}"
        );
        marked(&world, &recording.id).await?;
    }
    // Kazoo's API shows one document for the cause, and it has no secret.
    let modb = world.modb(&first.id);
    let mut errors = Vec::new();
    for id in world.couch.ids(&modb).await? {
        let document = world.couch.get(&modb, &id).await?.context("gone")?;
        if document["pvt_type"] == "attachment_handler_error" {
            errors.push(document);
        }
    }
    let [error] = &errors[..] else {
        anyhow::bail!("{errors:#?}")
    };
    ensure!(
        error["handler_id"] == "9b1c" && error["resp_code"] == 403 && error["pvt_created"].is_i64(),
        "{error:#}"
    );
    ensure!(
        error["reason"]
            .as_str()
            .is_some_and(|why| why.contains("SignatureDoesNotMatch")),
        "{error:#}"
    );
    let told = format!("{error} {}", worker.log());
    ensure!(told.contains("storage_plan_refused"), "{told}");
    for secret in ["another secret", SECRET, KEY] {
        ensure!(!told.contains(secret), "{secret}");
    }
    world
        .couch
        .edit("system_data", world.account(), |plan| {
            plan["attachments"]["9b1c"]["settings"] = store.s3();
        })
        .await?;
    for recording in [&first, &second] {
        let (good, said) = world.command(&["retry", &recording.id]).await?;
        ensure!(good, "{said}");
        world.state(&recording.call_id, "stored", SOON).await?;
        let document = document(&world, &recording.id).await?;
        ensure!(document["pvt_recording"]["state"] == "complete", "{document:#}");
    }
    ensure!(store.objects().len() == 3, "{:?}", store.objects().keys());
    world.finish().await
}
