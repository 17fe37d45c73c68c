//! A monthly database that is missing: created as Kazoo does it, with its views.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use kz_record_call::couch::Couch;
use kz_record_call::destination::couchdb_write::missing_month::{self, Account};
use kz_record_call::kazoo::envelope::Sender;
use kz_record_call::kazoo::time::Month;
use serde_json::json;

use crate::promises;
use crate::support::{ACCOUNT, Case, Couchdb, Fault, Front, Recording, TestResult, WAYS, World, view};

promises![
    a_created_database_has_kazoos_views_and_lists_the_recording,
    views_are_found_without_kazoos_view_of_views,
    a_database_without_views_is_never_made,
    eight_workers_at_once_create_it_once_and_announce_it_once,
    what_was_interrupted_is_completed,
    a_month_gets_its_views_and_its_notice_whatever_answer_goes_wrong_and_whoever_dies,
    a_database_that_kazoo_made_is_left_as_it_is,
    accounts_that_are_gone_are_known_and_a_server_without_accounts_says_nothing,
];

/// Kazoo's own way to tell which views a database must have.
const VIEW_OF_VIEWS: &str = "function(doc) { if (doc.pvt_type != 'view_definition' || doc.pvt_deleted) return; \
    if (!doc.kazoo || !doc.kazoo.view_map) return; for (var i in doc.kazoo.view_map) { var map = doc.kazoo.view_map[i]; \
    if (map.classification) emit(map.classification, null); if (map.database) emit(map.database, null); } }";

async fn seed(world: &World, with_view: bool) -> TestResult {
    world.seed().await?;
    if with_view {
        let views = json!({"language": "javascript", "views": {"views_by_classification": {"map": VIEW_OF_VIEWS}}});
        world.put("system_data", "_design/views", &views).await?;
    }
    let register = |map: serde_json::Value, design: serde_json::Value| json!({"pvt_type": "view_definition", "kazoo": {"view_map": [map]}, "view_definition": design});
    let mut recordings = view();
    recordings["_id"] = json!("_design/recordings");
    let of_modbs = json!({"classification": "modb"});
    let lines = json!({"_id": "_design/cdrs", "language": "javascript", "views": {"all": {"map": ["function(doc) {", "  emit(doc._id, null);", "}"]}}});
    let accounts = json!({"_id": "_design/users", "views": {"all": {"map": "function(doc) {}"}}});
    let own = format!("account/4b/a1/{}-202611", &ACCOUNT[4..]);
    let special = json!({"_id": "_design/special", "views": {"all": {"map": "function(doc) {}"}}});
    for (id, document) in [
        ("modb-kazoo_modb-recordings", register(of_modbs.clone(), recordings)),
        ("modb-kazoo_modb-cdrs", register(of_modbs, lines)),
        (
            "account-crossbar-users",
            register(json!({"classification": "account"}), accounts),
        ),
        ("one-database", register(json!({ "database": own }), special)),
    ] {
        world.put("system_data", id, &document).await?;
    }
    Ok(())
}

fn november() -> Month {
    Month::of_id("202611-x").unwrap()
}

async fn a_created_database_has_kazoos_views_and_lists_the_recording(couchdb: Arc<Couchdb>) -> TestResult {
    for way in WAYS.into_iter().filter(|way| !way.third_party) {
        let (case, recording) = (Case::of(World::empty(&couchdb), way).await?, Recording::of(1000));
        seed(&case.world, true).await?;
        ensure!(case.put(&recording).await.is_err(), "it is missing");
        let created = missing_month::create(&case.couch, ACCOUNT, november()).await?;
        let sender = Sender {
            node: "kz_record_call@rec1".into(),
        };
        let notice = created.notice(&sender, "5a0f").context("no notice")?;
        let created = created.finish(&case.couch).await?;
        ensure!(created.by_us && created.views == 3, "{created:?}");
        ensure!(created.database == recording.database(), "{created:?}");
        let design = case
            .world
            .get(&created.database, "_design/cdrs")
            .await?
            .context("no view")?;
        ensure!(
            design["views"]["all"]["map"] == "function(doc) {\n  emit(doc._id, null);\n}",
            "{design:#}"
        );
        ensure!(case.world.get(&created.database, "_design/users").await?.is_none());
        case.put_after(&recording, 1).await?;
        let listed = case.world.listed(&created.database).await?;
        ensure!(listed == [recording.id().to_string()], "{listed:?}");
        let encoded = format!("account%2F4b%2Fa1%2F{}-202611", &ACCOUNT[4..]);
        ensure!(
            notice.body["Database"] == encoded && notice.body["Event-Name"] == "db_created",
            "{:#}",
            notice.body
        );
        ensure!(
            notice
                .routing_key
                .starts_with(&format!("db_created.{encoded}.database."))
        );
        case.finish().await?;
    }
    Ok(())
}

async fn views_are_found_without_kazoos_view_of_views(couchdb: Arc<Couchdb>) -> TestResult {
    let world = World::empty(&couchdb);
    seed(&world, false).await?;
    // Page after page.
    let filler: Vec<_> = (0..1200).map(|n| json!({"_id": format!("filler-{n:04}")})).collect();
    world.couch().create_all("system_data", &filler).await?;
    let created = missing_month::create(&world.couch(), ACCOUNT, november()).await?;
    let created = created.finish(&world.couch()).await?;
    ensure!(created.views == 3, "{created:?}");
    world.finish().await
}

async fn a_database_without_views_is_never_made(couchdb: Arc<Couchdb>) -> TestResult {
    let world = World::empty(&couchdb);
    world.seed().await?;
    let error = missing_month::create(&world.couch(), ACCOUNT, november()).await.err();
    let error = error.context("created")?;
    ensure!(error.to_string().contains("no views"), "{error}");
    world.delete_database("system_data").await?;
    ensure!(
        missing_month::create(&world.couch(), ACCOUNT, november())
            .await
            .is_err()
    );
    ensure!(
        !world.databases().await?.iter().any(|name| name.starts_with("account/")),
        "it was made"
    );
    world.finish().await
}

async fn eight_workers_at_once_create_it_once_and_announce_it_once(couchdb: Arc<Couchdb>) -> TestResult {
    let world = World::empty(&couchdb);
    seed(&world, true).await?;
    let couch = world.couch();
    let sender = Sender {
        node: "kz_record_call@rec1".into(),
    };
    let make = async || {
        let created = missing_month::create(&couch, ACCOUNT, november()).await?;
        let announced = created.notice(&sender, "5a0f").is_some();
        anyhow::Ok((created.finish(&couch).await?.by_us, announced))
    };
    let (mut by_us, mut announced) = (0, 0);
    for made in futures_util::future::join_all((0..8).map(|_| make())).await {
        let (mine, told) = made?;
        by_us += usize::from(mine);
        announced += usize::from(told);
    }
    ensure!((by_us, announced) == (1, 1), "{by_us} {announced}");
    world.finish().await
}

async fn what_was_interrupted_is_completed(couchdb: Arc<Couchdb>) -> TestResult {
    let world = World::empty(&couchdb);
    seed(&world, true).await?;
    let front = Front::of(&world.url, None).await;
    // The database is made, then the worker dies.
    front.rule(|seen, _| {
        if seen.path.contains("_bulk_docs") {
            Fault::Refuse(503)
        } else {
            Fault::Pass
        }
    });
    let couch = Couch::new(&world.config(&front.url))?;
    ensure!(missing_month::create(&couch, ACCOUNT, november()).await.is_err());
    let created = missing_month::create(&world.couch(), ACCOUNT, november()).await?;
    let created = created.finish(&world.couch()).await?;
    ensure!(!created.by_us && created.views == 3, "{created:?}");
    let again = missing_month::create(&world.couch(), ACCOUNT, november()).await?;
    ensure!(again.finish(&world.couch()).await?.views == 0);
    world.finish().await
}

/// What happens to the worker that creates the month.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Trouble {
    /// To the request that creates the database.
    Creating(Fault),
    /// To the first request, or to all, that write views.
    Views(Fault),
    AllViews(Fault),
    /// Killed after the database was created, or before the last view.
    KilledAtOnce,
    KilledBeforeTheLast,
}

async fn a_month_gets_its_views_and_its_notice_whatever_answer_goes_wrong_and_whoever_dies(
    couchdb: Arc<Couchdb>,
) -> TestResult {
    for (trouble, at_once) in [
        // As two that create it at once see it, or a cluster whose shards do not open in time.
        (Trouble::Creating(Fault::Answer(500)), true),
        (Trouble::Creating(Fault::Hang), true),
        (Trouble::Views(Fault::Refuse(500)), true),
        (Trouble::Views(Fault::Hang), true),
        (Trouble::AllViews(Fault::Refuse(503)), false),
        (Trouble::KilledAtOnce, false),
        (Trouble::KilledBeforeTheLast, false),
    ] {
        let (world, recording) = (World::empty(&couchdb), Recording::of(1000));
        seed(&world, true).await?;
        let front = Front::of(&world.url, None).await;
        front.rule(move |seen, _| {
            let creates = seen.method == axum::http::Method::PUT && seen.content_type.is_empty();
            let writes = seen.path.contains("_bulk_docs");
            match trouble {
                Trouble::Creating(fault) if creates => fault,
                Trouble::AllViews(fault) if writes => fault,
                _ => Fault::Pass,
            }
        });
        if let Trouble::Views(fault) = trouble {
            let first = std::sync::atomic::AtomicBool::new(true);
            front.rule(move |seen, _| {
                let writes = seen.path.contains("_bulk_docs");
                if writes && first.swap(false, std::sync::atomic::Ordering::SeqCst) {
                    fault
                } else {
                    Fault::Pass
                }
            });
        }
        let mut config = world.config(&front.url);
        if let Trouble::Creating(Fault::Hang) | Trouble::Views(Fault::Hang) = trouble {
            // Only what hangs is given up, on a slow machine too.
            config.read_timeout = std::time::Duration::from_secs(10);
        }
        let couch = Couch::new(&config)?;
        let sender = Sender {
            node: "kz_record_call@rec1".into(),
        };
        let mut announced = 0;
        match trouble {
            Trouble::KilledAtOnce => world.create_database(&recording.database()).await?,
            Trouble::KilledBeforeTheLast => drop(missing_month::create(&couch, ACCOUNT, november()).await?),
            _ => match missing_month::create(&couch, ACCOUNT, november()).await {
                Ok(created) => {
                    ensure!(at_once, "{trouble:?}");
                    announced += usize::from(created.notice(&sender, "5a0f").is_some());
                    created.finish(&couch).await?;
                }
                Err(error) => ensure!(!at_once, "{trouble:?}: {error}"),
            },
        }
        // Another worker stores something there.
        let other = world.couch();
        let left = missing_month::complete(&other, ACCOUNT, november()).await?;
        ensure!(left.is_some() != at_once, "{trouble:?}: {left:?}");
        if let Some(created) = left {
            announced += usize::from(created.notice(&sender, "5a0f").is_some());
            created.finish(&other).await?;
        }
        for design in ["_design/recordings", "_design/cdrs", "_design/special"] {
            let there = world.get(&recording.database(), design).await?;
            ensure!(there.is_some(), "{trouble:?}: no {design}");
        }
        ensure!(announced == 1, "{trouble:?}: announced {announced} times");
        ensure!(
            missing_month::complete(&other, ACCOUNT, november()).await?.is_none(),
            "{trouble:?}: done again and again"
        );
        world.finish().await?;
    }
    Ok(())
}

async fn a_database_that_kazoo_made_is_left_as_it_is(couchdb: Arc<Couchdb>) -> TestResult {
    let recording = Recording::of(1000);
    let world = World::with_database_of(&couchdb, &recording).await?;
    seed(&world, true).await?;
    ensure!(
        missing_month::complete(&world.couch(), ACCOUNT, november())
            .await?
            .is_none()
    );
    ensure!(
        world.get(&recording.database(), "_design/cdrs").await?.is_none(),
        "it was written to"
    );
    world.finish().await
}

async fn accounts_that_are_gone_are_known_and_a_server_without_accounts_says_nothing(
    couchdb: Arc<Couchdb>,
) -> TestResult {
    let world = World::empty(&couchdb);
    let couch = world.couch();
    ensure!(missing_month::account(&couch, ACCOUNT).await.is_err(), "nobody knows");
    seed(&world, true).await?;
    ensure!(missing_month::account(&couch, ACCOUNT).await? == Account::There);
    ensure!(missing_month::account(&couch, &"0".repeat(32)).await? == Account::Gone);
    world
        .edit("accounts", ACCOUNT, |account| account["pvt_deleted"] = json!(true))
        .await?;
    ensure!(missing_month::account(&couch, ACCOUNT).await? == Account::Gone);
    world.finish().await
}
