//! The worker is killed before and after each of its steps, to each place that a recording can go to: another worker finishes the work, and there
//! is one document, the whole audio, and one story.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::places::{HERE, media, plan, store_proxy};
use crate::promises;
use crate::simulator::sim::{CallOptions, Recording};
use crate::support::http::{Reply, Server};
use crate::support::object_store::{ObjectStore, Setup};
use crate::support::{SOON, Services, TestResult, Worker, World};

promises![
    a_worker_killed_at_any_step_loses_nothing_for_the_account,
    a_worker_killed_at_any_step_loses_nothing_for_a_url,
    a_worker_killed_at_any_step_loses_nothing_for_a_third_party,
    a_worker_killed_at_any_step_loses_nothing_for_a_storage_plan,
    a_worker_killed_at_any_step_loses_nothing_for_an_object_store,
];

/// More steps than any recording has.
const MOST: u32 = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Account,
    Url,
    ThirdParty,
    StoragePlan,
    ObjectStore,
}

async fn a_worker_killed_at_any_step_loses_nothing_for_the_account(services: Arc<Services>) -> TestResult {
    at_every_step(&services, Place::Account, 10).await
}

async fn a_worker_killed_at_any_step_loses_nothing_for_a_url(services: Arc<Services>) -> TestResult {
    at_every_step(&services, Place::Url, 12).await
}

async fn a_worker_killed_at_any_step_loses_nothing_for_a_third_party(services: Arc<Services>) -> TestResult {
    at_every_step(&services, Place::ThirdParty, 10).await
}

async fn a_worker_killed_at_any_step_loses_nothing_for_a_storage_plan(services: Arc<Services>) -> TestResult {
    at_every_step(&services, Place::StoragePlan, 11).await
}

async fn a_worker_killed_at_any_step_loses_nothing_for_an_object_store(services: Arc<Services>) -> TestResult {
    at_every_step(&services, Place::ObjectStore, 12).await
}

/// `least`: the steps that such a recording has at least, so that a run which ends too early is noticed.
async fn at_every_step(services: &Services, place: Place, least: u32) -> TestResult {
    for n in 1..MOST {
        let mut killed = false;
        for side in ["before", "after"] {
            let crash = format!("{side}:{n}");
            let died = one(services, place, &crash)
                .await
                .with_context(|| format!("{place:?}, killed {crash}"))?;
            killed |= died;
        }
        if !killed {
            ensure!(n > least, "only {n} steps");
            return Ok(());
        }
    }
    bail!("there is no end of steps")
}

/// One recording, its worker killed at one step; whether it was.
async fn one(services: &Services, place: Place, crash: &str) -> anyhow::Result<bool> {
    let world = World::new(services).await?;
    // A worker that takes an action over answers it first, and makes sure of its call before it commands.
    world.kazoo.tolerate("order");
    let server = Server::always(Reply::Status(200)).await;
    let objects = ObjectStore::start(Setup::default()).await;
    let (mut data, mut proxies) = (json!({}), Vec::new());
    let mut keep = None;
    match place {
        Place::Account => {}
        Place::Url => data["url"] = json!(server.url("/in")),
        Place::ThirdParty => {
            let (proxy, (_, url)) = world.database_proxy().await?;
            media(&world, "third_party_bigcouch_host", json!(url)).await?;
            keep = Some(proxy);
        }
        Place::StoragePlan => {
            let modb = world.modb(&format!("{}-x", world.month()));
            let (port, serving) = store_proxy(world.couch.clone(), modb).await?;
            plan(&world).await?;
            media(&world, "proxy_hostname", json!("127.0.0.1")).await?;
            media(&world, "proxy_port", json!(port)).await?;
            proxies.push(serving);
        }
        Place::ObjectStore => {
            let plan = crate::stores::plan("s3", &objects.s3());
            world.couch.create("system_data", world.account(), &plan).await?;
        }
    }
    let mut first = world.worker_with(&[HERE, ("KZ_RECORD_CALL_TEST_CRASH", crash)]).await?;
    let mut second: Option<Worker> = None;
    let story = async {
        let call = world.kazoo.new_call(CallOptions::talking());
        call.execute(data).await?.continued(Duration::from_secs(60)).await?;
        let recording = call.wait_recording_started(Duration::from_secs(30)).await?;
        call.hangup("NORMAL_CLEARING").await;
        let recording = world.ended(&recording).await?;
        let outcome = world.outcome(&recording.id).await?;
        world
            .state(&call.id(), outcome["Outcome"].as_str().unwrap_or_default(), SOON)
            .await?;
        anyhow::Ok((recording, outcome))
    };
    let supervise = async {
        first.exited().await?;
        second = Some(world.worker_with(&[HERE]).await?);
        std::future::pending::<anyhow::Result<()>>().await
    };
    let (recording, outcome) = tokio::select! {
        story = story => story?,
        failed = supervise => bail!("the second worker: {failed:?}"),
    };
    proved(&world, place, (&server, &objects), &recording, &outcome).await?;
    for proxy in proxies {
        proxy.abort();
    }
    drop((first, keep));
    let killed = second.is_some();
    drop(second);
    world.finish().await?;
    Ok(killed)
}

async fn proved(
    world: &World<'_>,
    place: Place,
    (server, objects): (&Server, &ObjectStore),
    recording: &Recording,
    outcome: &Value,
) -> TestResult {
    let expected = if place == Place::Url { "delivered" } else { "stored" };
    ensure!(
        outcome["Outcome"] == expected && outcome["Cause"] == "complete",
        "{outcome:#}"
    );
    let modb = world.modb(&recording.id);
    let documents = world.couch.ids(&modb).await?;
    ensure!(documents == [recording.id.clone()], "{documents:?}");
    let document = world.couch.get(&modb, &recording.id).await?.context("no document")?;
    match place {
        Place::Account | Place::ThirdParty => {
            let stored = world.couch.stored(&modb, &recording.id, &recording.audio).await?;
            ensure!(stored.difference.is_none(), "{:?}", stored.difference);
        }
        Place::Url => {
            let digest = Some(format!("md5-{}", recording.audio.md5()));
            let received = server.received();
            ensure!(!received.is_empty() && received.iter().all(|upload| upload.digests.couch() == digest));
        }
        Place::ObjectStore => {}
        Place::StoragePlan => {
            let stub = &document["pvt_attachments"][document["name"].as_str().context("name")?];
            ensure!(stub["length"] == recording.audio.len(), "{document:#}");
        }
    }
    if place == Place::ObjectStore {
        let stub = &document["pvt_attachments"][document["name"].as_str().context("name")?];
        ensure!(stub["length"] == recording.audio.len(), "{document:#}");
        ensure!(stub["handler"]["kz_att_s3"]["S3"].is_string(), "{document:#}");
        // Whatever was lost in between, the audio was sent once.
        let all: Vec<_> = objects.objects().into_values().collect();
        let digest = Some(format!("md5-{}", recording.audio.md5()));
        ensure!(
            all.len() == 1 && all[0].writes == 1 && all[0].digests.couch() == digest,
            "{all:?}"
        );
    }
    ensure!(document["pvt_recording"]["state"] == "complete", "{document:#}");
    world.released(recording).await?;
    let all = world.kazoo.tap().messages();
    let told: BTreeSet<(&str, &str)> = all
        .iter()
        .filter(|m| m.category == "recording")
        .map(|m| (m.name.as_str(), m.header("Msg-ID")))
        .collect();
    ensure!(told.len() == 1, "{told:?}");
    Ok(())
}
