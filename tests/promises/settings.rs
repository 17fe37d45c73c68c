//! Where settings come from, as an operator sees it.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::promises;
use crate::simulator::sim::CallOptions;
use crate::support::{SOON, Services, TestResult, Worker, World};

promises![
    a_worker_finds_broker_zone_and_database_in_kazoos_own_file,
    settings_are_shown_with_their_origins_and_wrong_ones_end_with_64,
];

/// Kazoo's file for this test's servers, in a zone of its own, with a few lines that are odd.
fn kazoo_file(world: &World<'_>) -> anyhow::Result<String> {
    let database = url::Url::parse(&world.setting("COUCHDB__URL"))?;
    let text = format!(
        "\u{feff}; made for a test\r\n\
         [zone]\r\nname = far\r\namqp_uri = \"amqp://guest:guest@127.0.0.1:1\"\r\n\
         [zone]\r\nname = \"near\" ; ours\r\namqp_uri = \"amqp://guest:guest@127.0.0.1:1\"\r\nuri = \"{}\"\r\n\
         [kazoo_apps]\r\ncookie = change_me\r\nhost = \"localhost\"\r\nzone = near\r\n\
         [bigcouch]\r\nip = \"127.0.0.1\"\r\nport = {}\r\nusername = \"{}\"\r\npassword = \"{}\"\r\nnonsense\r\n",
        world.setting("AMQP__URI"),
        database.port().context("no port")?,
        database.username(),
        database.password().unwrap_or_default(),
    );
    std::fs::create_dir_all(world.dir())?;
    let path = world.dir().join("config.ini");
    std::fs::write(&path, text)?;
    Ok(path.display().to_string())
}

async fn a_worker_finds_broker_zone_and_database_in_kazoos_own_file(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let path = kazoo_file(&world)?;
    let mut settings = world.settings();
    settings.retain(|(key, _)| !["AMQP__URI", "COUCHDB__URL", "KAZOO__CONFIG_FILE"].contains(&key.as_str()));
    settings.push(("KAZOO__CONFIG_FILE".into(), path.clone()));
    let dir = world.dir().join("worker");
    settings.push(("SPOOL__DIR".into(), dir.join("spool").display().to_string()));
    let worker = Worker::start(&settings, dir)?;
    worker.ready(SOON).await?;
    let started = |line: &Value| line["message"] == "worker started" && line["zone"] == "near";
    worker.logged("the start", started, SOON).await?;
    let odd = |line: &Value| {
        let told = line["message"].as_str().unwrap_or_default();
        line["level"] == "WARN" && told.contains(&path) && told.contains("line 18")
    };
    worker.logged("the odd line", odd, SOON).await?;
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(json!({})).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.execute(json!({"action": "stop"})).await?.continued(SOON).await?;
    world.stored(&recording).await?;
    drop(worker);
    world.finish().await
}

async fn settings_are_shown_with_their_origins_and_wrong_ones_end_with_64(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let path = kazoo_file(&world)?;
    let kazoo = [("KAZOO__CONFIG_FILE", path.as_str())];
    let output = world
        .command_with(&["config", "show", "--json", "--set", "log.level=warn"], &kazoo)
        .await?;
    ensure!(output.status.code() == Some(0), "{output:?}");
    let shown: Value = serde_json::from_slice(&output.stdout)?;
    let origin = |key: &str| {
        let mut all = shown["settings"].as_array().into_iter().flatten();
        all.find(|setting| setting["key"] == key)
            .map(|setting| setting["origin"].clone())
    };
    for (key, from) in [
        ("kazoo.zone", "kazoo"),
        ("amqp.uri", "environment"),
        ("couchdb.password", "kazoo"),
        ("log.level", "flag"),
        ("flow.drain_s", "default"),
    ] {
        ensure!(origin(key) == Some(json!(from)), "{key}: {shown:#}");
    }
    ensure!(!shown.to_string().contains("the secret of the tests"), "{shown:#}");

    let wrong = [("LOG__FORMAT", "xml"), ("AMQP__URI", "amqp://u:hunter2@h?heartbeat=x")];
    for arguments in [&["config", "show"][..], &["run"], &["list"]] {
        let output = world.command_with(arguments, &wrong).await?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(64), "{arguments:?}: {output:?}");
        ensure!(
            told.contains("log.format") && told.contains("amqp.uri") && !told.contains("hunter2"),
            "{told}"
        );
    }
    let output = world.command_with(&["config", "default"], &wrong).await?;
    ensure!(output.status.success() && output.stdout == kz_record_call::config::DEFAULTS.as_bytes());
    world.finish().await
}
