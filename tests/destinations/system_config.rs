//! What the configuration says of destinations, read from a real database and noticed when it changes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use kz_record_call::couch::Couch;
use kz_record_call::system_config::{Accounts, Connection, Media, Plan, Storage, SystemConfig, ThirdParty};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::promises;
use crate::support::{ACCOUNT, Couchdb, TestResult, World};

promises![
    a_changed_third_party_is_taken_by_notice_and_by_polling_and_nothing_is_written_back,
    a_storage_plan_is_merged_as_kazoo_merges_it,
    a_plan_that_cannot_be_read_is_unknown_and_asked_for_again,
    an_accounts_number_of_attempts_is_its_own_or_its_resellers_or_the_systems,
];

async fn a_changed_third_party_is_taken_by_notice_and_by_polling_and_nothing_is_written_back(
    couchdb: Arc<Couchdb>,
) -> TestResult {
    for (poll, by_notice) in [(Duration::from_secs(3600), true), (Duration::from_millis(100), false)] {
        let world = World::empty(&couchdb);
        world.seed().await?;
        let media = json!({"pvt_type": "config", "default": {"store_recordings": true}});
        world.put("system_config", "media", &media).await?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let config = SystemConfig::start(world.couch(), "local".into(), poll, &tasks, stop.clone());
        let third_party = || config.current().map(|media| media.third_party);
        until(|| third_party() == Some(ThirdParty::NotSet)).await?;
        let rev = world
            .edit("system_config", "media", |media| {
                media["default"]["third_party_bigcouch_host"] = json!("http://u:p@rec:6984");
            })
            .await?;
        if by_notice {
            config.notice();
        }
        until(|| matches!(third_party(), Some(ThirdParty::Server(_)))).await?;
        let document = world.get("system_config", "media").await?.context("gone")?;
        ensure!(document["_rev"] == rev, "written back: {document:#}");
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        world.finish().await?;
    }
    Ok(())
}

/// The settings have no event to await.
async fn until(is: impl Fn() -> bool) -> TestResult {
    let waiting = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .context("it is not taken")
}

async fn a_storage_plan_is_merged_as_kazoo_merges_it(couchdb: Arc<Couchdb>) -> TestResult {
    let world = World::empty(&couchdb);
    world.seed().await?;
    let plan = async || Accounts::new(world.couch()).plan(ACCOUNT).await;
    let kind = async || match plan().await {
        Plan::Stored(Storage {
            handler: Some(handler),
            connection: None,
        }) => Some(handler.kind),
        _ => None,
    };
    ensure!(plan().await == Plan::None, "nobody has written any");
    let system = json!({
        "pvt_type": "storage", "attachments": {"h": {"handler": "s3", "settings": {}}}, "connections": {"local": {}},
        "plan": {"modb": {"attachments": {}, "connection": "local", "types": {"call_recording": {"attachments": {"handler": "h"}}}}},
    });
    world.put("system_data", "system", &system).await?;
    let s3 = |kind: &str| Some(kind.to_owned());
    ensure!(kind().await == s3("s3"), "the system's");
    let named = json!({"pvt_type": "storage_plan", "attachments": {"h": {"handler": "azure"}}});
    world.put("system_data", "named-plan", &named).await?;
    ensure!(kind().await == s3("s3"), "no document names it");
    let own = json!({"pvt_type": "storage", "pvt_plan_id": "named-plan"});
    world.put("system_data", ACCOUNT, &own).await?;
    ensure!(kind().await == s3("azure"), "the named one");
    world
        .edit("system_data", ACCOUNT, |own| {
            own["connections"] = json!({"c": {"driver": "kazoo_couch", "settings": {"ip": "10.0.0.1", "port": 5984}}});
            own["plan"] = json!({"modb": {"types": {"call_recording": {"connection": "c"}}}});
        })
        .await?;
    match plan().await {
        Plan::Stored(Storage {
            handler: Some(handler),
            connection: Some(Connection {
                server: Some(server), ..
            }),
        }) => ensure!(handler.kind == "azure" && server.url.as_str() == "http://10.0.0.1:5984/"),
        other => anyhow::bail!("{other:?}"),
    }
    world
        .edit("system_data", ACCOUNT, |own| own["pvt_deleted"] = json!(true))
        .await?;
    ensure!(kind().await == s3("s3"), "its own is deleted");
    world.finish().await
}

async fn a_plan_that_cannot_be_read_is_unknown_and_asked_for_again(couchdb: Arc<Couchdb>) -> TestResult {
    let world = World::empty(&couchdb);
    world.seed().await?;
    let down = Accounts::new(Couch::new(&world.config("http://127.0.0.1:1"))?);
    ensure!(down.plan(ACCOUNT).await == Plan::Unknown);
    let accounts = Accounts::new(world.couch());
    ensure!(accounts.plan(ACCOUNT).await == Plan::None);
    let own = json!({"plan": {"modb": {"attachments": {"handler": "s3"}}}});
    world.put("system_data", ACCOUNT, &own).await?;
    ensure!(accounts.plan(ACCOUNT).await == Plan::None, "remembered for a minute");
    accounts.forget();
    ensure!(accounts.plan(ACCOUNT).await != Plan::None, "asked for again");
    world.finish().await
}

async fn an_accounts_number_of_attempts_is_its_own_or_its_resellers_or_the_systems(
    couchdb: Arc<Couchdb>,
) -> TestResult {
    let world = World::empty(&couchdb);
    world.seed().await?;
    let system = json!({"default": {"call_recording": {"storage_retry_times": 6}}});
    let media = Media::read(&system, "local");
    let times = async || Accounts::new(world.couch()).storage_retry_times(ACCOUNT, &media).await;
    let database = |account: &str| format!("account/{}/{}/{}", &account[..2], &account[2..4], &account[4..]);
    ensure!(times().await == Some(6), "the system's");
    world.create_database(&database(ACCOUNT)).await?;
    let reseller = "ffffffffffffffffffffffffffffffff";
    world.create_database(&database(reseller)).await?;
    world.create_database("services").await?;
    let of = |times: u32| json!({"call_recording": {"storage_retry_times": times}});
    world.put(&database(reseller), "configs_media", &of(7)).await?;
    ensure!(times().await == Some(6), "nobody's reseller");
    world
        .put("services", ACCOUNT, &json!({"pvt_reseller_id": reseller}))
        .await?;
    ensure!(times().await == Some(7), "the reseller's");
    world
        .put(&database(ACCOUNT), "configs_media", &json!({"other": true}))
        .await?;
    ensure!(times().await == Some(6), "its own document hides the reseller's");
    world
        .edit(&database(ACCOUNT), "configs_media", |own| {
            own["call_recording"] = json!({"storage_retry_times": "8"});
        })
        .await?;
    ensure!(times().await == Some(8), "its own");
    let down = Accounts::new(Couch::new(&world.config("http://127.0.0.1:1"))?);
    ensure!(down.storage_retry_times(ACCOUNT, &media).await == Some(6));
    world.finish().await
}
