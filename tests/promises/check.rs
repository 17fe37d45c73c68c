//! `kz-record-call check` names what is wrong, whatever that is, and leaves everything as it was.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::promises;
use crate::simulator::sim::CallOptions;
use crate::support::tls::{Authority, TlsFront};
use crate::support::{Broker, Mode, Proxy, SOON, Services, TestResult, World, machine};

promises![
    a_good_set_up_is_found_good_and_left_as_it_was,
    a_check_beside_a_worker_takes_nothing_from_it,
    a_broker_that_does_not_let_us_in_is_told_with_the_reason,
    an_exchange_in_another_form_is_told,
    a_vhost_without_kazoo_is_told,
    a_user_without_rights_and_a_policy_that_is_not_set_are_told,
    the_policies_that_are_in_force_are_named_with_the_cure,
    a_database_that_is_away_or_refuses_us_is_told,
    a_cluster_without_media_settings_is_told_what_that_means,
    what_the_media_settings_mean_is_told,
    an_advertised_url_that_leads_elsewhere_is_told,
    a_port_that_another_program_has_is_told,
    a_spool_that_cannot_be_used_is_told,
    all_mistakes_of_the_configuration_are_rows,
    servers_that_hang_are_told_in_half_a_minute,
    an_upload_port_with_tls_is_tried_with_tls,
];

/// What a check found.
struct Found {
    status: Option<i32>,
    all: Value,
    text: String,
}

impl Found {
    fn row<'a>(&'a self, name: &'a str) -> anyhow::Result<&'a Value> {
        self.rows(name)
            .next()
            .with_context(|| format!("no row {name}: {}", self.text))
    }

    fn rows<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        let rows = self.all["rows"].as_array().into_iter().flatten();
        rows.filter(move |row| row["name"].as_str().is_some_and(|known| known.starts_with(name)))
    }

    /// A row with this name has this level, and says this.
    fn says(&self, name: &str, level: &str, words: &str) -> TestResult {
        let said =
            |row: &&Value| row["level"] == level && row["found"].as_str().is_some_and(|found| found.contains(words));
        let row = self.rows(name).find(said);
        let row = row.with_context(|| format!("{name} is not {level} with {words:?}: {}", self.text))?;
        let advised = row["advice"].as_str().is_some_and(|advice| !advice.is_empty());
        ensure!(
            advised == matches!(level, "warning" | "failure"),
            "what is wrong has an advice, the rest none: {row:#}"
        );
        Ok(())
    }

    /// The fault is named, and counts.
    fn fails(&self, name: &str, words: &str) -> TestResult {
        ensure!(
            self.status == Some(1) && self.all["good"] == false,
            "{:?} {}",
            self.status,
            self.text
        );
        self.says(name, "failure", words)
    }
}

async fn check(world: &World<'_>, more: &[(&str, &str)]) -> anyhow::Result<Found> {
    check_at(world, &world.dir().join("check"), more).await
}

/// With a spool folder of its own, which nobody has made.
async fn check_at(world: &World<'_>, spool: &Path, more: &[(&str, &str)]) -> anyhow::Result<Found> {
    let spool = spool.display().to_string();
    let mut settings = vec![("SPOOL__DIR", spool.as_str())];
    settings.extend_from_slice(more);
    let begun = Instant::now();
    let output = world.command_with(&["check", "--json"], &settings).await?;
    let (took, limit) = (begun.elapsed(), machine::allows(Duration::from_secs(30), begun));
    ensure!(took < limit, "{took:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for secret in ["hunter2", "the secret of the tests", "admin:secret", "guest:guest"] {
        ensure!(!text.contains(secret), "{secret} is told: {text}");
    }
    let all =
        serde_json::from_str(&text).with_context(|| format!("{text}\n{}", String::from_utf8_lossy(&output.stderr)))?;
    Ok(Found {
        status: output.status.code(),
        all,
        text,
    })
}

/// Every level, row by row, without the words.
fn failures(found: &Found) -> Vec<&str> {
    let rows = found.all["rows"].as_array().into_iter().flatten();
    let failed = rows.filter(|row| row["level"] == "failure");
    failed.filter_map(|row| row["name"].as_str()).collect()
}

async fn connect(uri: &str) -> anyhow::Result<Connection> {
    Ok(Connection::connect(uri, ConnectionProperties::default()).await?)
}

async fn a_good_set_up_is_found_good_and_left_as_it_was(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let databases = world.databases().await?;
    let found = check(&world, &[]).await?;
    ensure!(found.status == Some(0) && failures(&found).is_empty(), "{}", found.text);
    for (name, words) in [
        ("secret", "is set"),
        ("127.0.0.1:", "connected"),
        ("exchanges", "kapps, targeted, callctl"),
        ("permissions", "may declare"),
        ("ecallmgr", "1 answered"),
        ("credentials", "admin, a server admin"),
        ("accounts", "exists"),
        ("system_config", "exists"),
        ("ledger", "created by the first worker"),
        ("clock", "agrees"),
        ("recordings", "stored in the accounts' databases"),
        ("port", "is free"),
        ("spool", "created by the worker"),
        ("free space", "MiB"),
        ("hold", "in the cluster's CouchDB"),
    ] {
        found.says(name, "good", words)?;
    }
    found.says("advertised URL", "warning", "loopback")?;
    found.says("queues", "note", "kz_record_call.actions")?;
    ensure!(world.databases().await? == databases, "a database was left behind");
    ensure!(!world.dir().join("check").exists(), "a folder was left behind");
    let connection = connect(&world.setting("AMQP__URI")).await?;
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    for queue in [
        "kz_record_call.actions",
        "kz_record_call.endings",
        "kz_record_call.journal",
        "kz_record_call.controls",
        "kz_record_call.dead",
    ] {
        let channel = connection.create_channel().await?;
        let looked = channel
            .queue_declare(queue.into(), passive, FieldTable::default())
            .await;
        ensure!(looked.is_err(), "{queue} was left behind");
    }

    // For people: the same, as a table without colours where nobody sees them.
    let output = world
        .command_with(&["check"], &[("SPOOL__DIR", "/nowhere/spool")])
        .await?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(text.contains("  ok    secret") && !text.contains('\u{1b}'), "{text}");
    let verdict = text.lines().next_back().unwrap_or_default();
    ensure!(
        verdict.starts_with("no failures, ") || verdict.contains("failure"),
        "{text}"
    );
    world.finish().await
}

async fn free_port() -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    Ok(format!("127.0.0.1:{}", listener.local_addr()?.port()))
}

async fn a_check_beside_a_worker_takes_nothing_from_it(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let (ingest, admin) = (free_port().await?, free_port().await?);
    let settings = [("INGEST__LISTEN", ingest.as_str()), ("ADMIN__LISTEN", &admin)];
    let worker = world.worker_with(&settings).await?;
    let spool = worker.dir().join("spool");
    let checking = async {
        for _ in 0..3 {
            let found = check_at(&world, &spool, &settings).await?;
            ensure!(found.status == Some(0), "{}", found.text);
            found.says("on this host", "good", "is ready")?;
            found.says("queues", "good", "kz_record_call.actions")?;
            found.says("exchanges", "good", "kz_record_call.unrouted")?;
            found.says("port", "good", "used by the running worker")?;
            found.says("spool", "good", "used by the running worker")?;
        }
        anyhow::Ok(())
    };
    let calling = async {
        let mut recordings = Vec::new();
        for _ in 0..6 {
            let call = world.kazoo.new_call(CallOptions::talking());
            call.execute(json!({})).await?.continued(SOON).await?;
            let recording = call.wait_recording_started(SOON).await?;
            call.execute(json!({"action": "stop"})).await?.continued(SOON).await?;
            recordings.push(recording);
        }
        anyhow::Ok(recordings)
    };
    let (checked, recordings) = tokio::join!(checking, calling);
    checked?;
    for recording in recordings? {
        world.stored(&recording).await?;
    }
    // Another configuration's worker has the folder.
    let found = check_at(&world, &spool, &[]).await?;
    found.says("spool", "warning", "another configuration")?;
    drop(worker);
    world.finish().await
}

async fn a_broker_that_does_not_let_us_in_is_told_with_the_reason(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let good = world.setting("AMQP__URI");
    let url = url::Url::parse(&good)?;
    let place = format!("127.0.0.1:{}", url.port().unwrap_or(5672));
    for (uri, words) in [
        (format!("amqp://guest:hunter2@{place}/t1"), "ACCESS_REFUSED"),
        (format!("amqp://guest:guest@{place}/hunter3"), "vhost hunter3 not found"),
        ("amqp://guest:hunter2@127.0.0.1:1/t1".to_owned(), "refused"),
        (format!("amqps://guest:hunter2@{place}/t1"), "is this a TLS port?"),
        ("amqp://guest:hunter2@nowhere.invalid/t1".to_owned(), "lookup"),
    ] {
        let found = check(&world, &[("AMQP__URI", &uri)]).await?;
        let name = config_name(&uri)?;
        found.fails(&name, words)?;
        found.says("the rest", "note", "without a connection")?;
        found.says("system_config", "good", "exists")?;
        // The others are looked on at, and the one that is wrong is told all the same.
        let both = format!("{uri}, {good}");
        let found = check(&world, &[("AMQP__URI", &both)]).await?;
        ensure!(found.status == Some(0), "{}", found.text);
        found.says(&name, "warning", words)?;
        found.says("ecallmgr", "good", "answered")?;
    }
    world.finish().await
}

/// As a row names it.
fn config_name(uri: &str) -> anyhow::Result<String> {
    let uri = kz_record_call::config::broker(uri)?;
    Ok(format!(
        "{} vhost {}",
        kz_record_call::config::authority(&uri),
        uri.vhost
    ))
}

async fn an_exchange_in_another_form_is_told(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let connection = connect(&world.setting("AMQP__URI")).await?;
    let channel = connection.create_channel().await?;
    // Nobody else's: what Kazoo uses all the time would not be deleted.
    channel
        .exchange_delete("switch".into(), ExchangeDeleteOptions::default())
        .await?;
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    channel
        .exchange_declare("switch".into(), ExchangeKind::Direct, durable, FieldTable::default())
        .await?;
    let found = check(&world, &[]).await;
    channel
        .exchange_delete("switch".into(), ExchangeDeleteOptions::default())
        .await?;
    let found = found?;
    found.fails("exchange switch", "inequivalent arg")?;
    ensure!(failures(&found) == ["exchange switch"], "{}", found.text);
    world.kazoo.stop().await;
    Ok(())
}

async fn a_vhost_without_kazoo_is_told(services: Arc<Services>) -> TestResult {
    let world = World::with(&services, |kazoo| kazoo.ecallmgr_nodes.clear()).await?;
    let uri = world.setting("AMQP__URI");
    let found = check(&world, &[]).await?;
    found.fails("ecallmgr", "no ecallmgr answered")?;
    let connection = connect(&uri).await?;
    let channel = connection.create_channel().await?;
    for exchange in ["kapps", "targeted", "callctl", "callevt", "switch", "configuration"] {
        channel
            .exchange_delete(exchange.into(), ExchangeDeleteOptions::default())
            .await?;
    }
    let found = check(&world, &[]).await?;
    found.fails("Kazoo's exchanges", "missing: kapps, targeted")?;
    found.says("ecallmgr", "note", "not checked")?;
    for exchange in ["kapps", "targeted", "callctl", "callevt", "switch", "configuration"] {
        let channel = connection.create_channel().await?;
        let passive = ExchangeDeclareOptions {
            passive: true,
            ..ExchangeDeclareOptions::default()
        };
        let looked = channel
            .exchange_declare(exchange.into(), ExchangeKind::Topic, passive, FieldTable::default())
            .await;
        ensure!(looked.is_err(), "the check made {exchange}");
    }
    world.kazoo.stop().await;
    Ok(())
}

/// One policy alone is in force, by its priority; and what a foreign one does to our queues is named, with the command that ends it.
async fn the_policies_that_are_in_force_are_named_with_the_cure(services: Arc<Services>) -> TestResult {
    let broker = Broker::start().await?;
    let url = broker.management().await?;
    let services = services.with_broker(&broker).await?;
    let world = World::new(&services).await?;
    let _worker = world.worker().await?;
    let settings = [("AMQP__MANAGEMENT_URL", url.as_str())];
    for (name, pattern, definition, to) in [
        ("ha", ".*", r#"{"max-length":1000000}"#, "all"),
        (
            "kz-record-call",
            "^kapps$",
            r#"{"alternate-exchange":"kz_record_call.unrouted"}"#,
            "exchanges",
        ),
    ] {
        let priority = if name == "ha" { "1" } else { "0" };
        let arguments = [
            "set_policy",
            name,
            pattern,
            definition,
            "--priority",
            priority,
            "--apply-to",
            to,
        ];
        broker.rabbitmqctl(&arguments).await?;
    }
    // The management API gathers what it shows every few seconds.
    let begun = Instant::now();
    let found = loop {
        let found = check(&world, &settings).await?;
        let told = found.says("queue kz_record_call.actions", "warning", "max-length 1000000");
        if told.is_ok() {
            break found;
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "{}", found.text);
    };
    found.says("policy for kapps", "warning", "\"ha\" with priority 1")?;
    let command = found.row("policy for kapps")?["advice"].as_str().context("no advice")?;
    ensure!(command.contains("--priority 2 "), "{command}");
    let cure = found
        .rows("queue kz_record_call.actions")
        .find_map(|row| row["advice"].as_str());
    let cure = cure.context("no cure")?.to_owned();
    // What it says is done, word by word.
    for command in [command, &cure] {
        let words: Vec<&str> = command.split(' ').map(|word| word.trim_matches('\'')).collect();
        broker.rabbitmqctl(&words[1..]).await?;
    }
    let begun = Instant::now();
    let found = loop {
        let found = check(&world, &settings).await?;
        if found.says("policies", "good", "no policy drops").is_ok() {
            break found;
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "{}", found.text);
    };
    found.says("policy for kapps", "good", "are kept")?;
    found.says("Kazoo's queues", "good", "may query")?;
    world.finish().await
}

async fn a_user_without_rights_and_a_policy_that_is_not_set_are_told(services: Arc<Services>) -> TestResult {
    let broker = Broker::start().await?;
    let services = services.with_broker(&broker).await?;
    let world = World::new(&services).await?;
    let worker = world.worker().await?;
    let found = check(&world, &[]).await?;
    found.says("policy", "warning", "not set")?;
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
    let found = check(&world, &[]).await?;
    ensure!(found.status == Some(0), "{}", found.text);
    found.says("policy", "good", "are kept")?;

    broker.rabbitmqctl(&["add_user", "poor", "hunter2"]).await?;
    let uri = format!("amqp://poor:hunter2@127.0.0.1:{}/%2f", broker.port);
    let found = check(&world, &[("AMQP__URI", &uri)]).await?;
    found.fails("127.0.0.1:", "refused for user")?;
    // May declare and read everything, and write nothing of Kazoo's.
    broker
        .rabbitmqctl(&["set_permissions", "poor", ".*", "^kz_record_call", ".*"])
        .await?;
    let found = check(&world, &[("AMQP__URI", &uri)]).await?;
    found.fails("permissions", "publish to callevt")?;
    let row = found.row("permissions")?["found"].to_string();
    ensure!(
        !row.contains("bind queues") && !row.contains("an exclusive queue"),
        "{row}"
    );
    broker
        .rabbitmqctl(&["set_permissions", "poor", "^kz_record_call", ".*", ".*"])
        .await?;
    let found = check(&world, &[("AMQP__URI", &uri)]).await?;
    ensure!(found.status == Some(0), "a worker gets along: {}", found.text);
    found.says("exchange kapps", "warning", "no permission to declare it")?;
    found.says("permissions", "good", "publish")?;
    // What a worker's queues with dead letters need besides.
    let ours = "^(kz_record_call.*|kapps|targeted|callctl|callevt|switch|configuration|notifications)$";
    broker
        .rabbitmqctl(&["set_permissions", "poor", ours, ours, ours])
        .await?;
    let found = check(&world, &[("AMQP__URI", &uri)]).await?;
    found.fails("permissions", "dead-lettering")?;
    found.fails("permissions", "amq.default")?;
    let fewest = ours.replace("notifications", "notifications|amq\\.default");
    broker
        .rabbitmqctl(&["set_permissions", "poor", ours, &fewest, ours])
        .await?;
    let found = check(&world, &[("AMQP__URI", &uri)]).await?;
    found.says("permissions", "good", "publish")?;
    ensure!(found.status == Some(0), "{}", found.text);
    worker.ready(SOON).await?;
    drop(worker);
    world.finish().await
}

async fn a_database_that_is_away_or_refuses_us_is_told(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let mut url = url::Url::parse(&world.setting("COUCHDB__URL"))?;
    let place = format!("127.0.0.1:{}", url.port().unwrap_or(5984));
    let found = check(&world, &[("COUCHDB__URL", "http://admin:hunter2@127.0.0.1:1")]).await?;
    found.fails("127.0.0.1:1", "cannot connect")?;
    found.says("ecallmgr", "good", "answered")?;
    url.set_password(Some("hunter2")).ok().context("no password")?;
    let found = check(&world, &[("COUCHDB__URL", url.as_str())]).await?;
    found.fails(&place, "refuses the credentials (401)")?;
    let found = check(&world, &[("COUCHDB__URL", &format!("http://{place}"))]).await?;
    found.fails("credentials", "no server admin")?;
    let found = check(&world, &[("COUCHDB__DATABASE_PREFIX", "nothing-here-")]).await?;
    found.fails("accounts", "does not exist")?;
    found.fails("system_config", "does not exist")?;
    found.fails("document", "does not exist")?;
    world.finish().await
}

async fn a_cluster_without_media_settings_is_told_what_that_means(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    world.couch.delete_database("system_config").await?;
    world.couch.create_database("system_config").await?;
    let found = check(&world, &[]).await?;
    found.fails("document", "recordings without a url are discarded")?;
    world.finish().await
}

async fn what_the_media_settings_mean_is_told(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let set = async |key: &str, value: Value| {
        let change = |document: &mut Value| document["default"][key] = value;
        world.couch.edit("system_config", "media", change).await
    };
    set("max_recording_time_limit", json!(1234)).await?;
    set("proxy_hostname", json!("127.0.0.1")).await?;
    set("proxy_port", json!(1)).await?;
    let found = check(&world, &[]).await?;
    found.says("limits", "good", "1234 s at most")?;
    found.says("store proxy", "warning", "does not answer")?;
    set("store_recordings", json!(false)).await?;
    let found = check(&world, &[]).await?;
    ensure!(found.status == Some(0), "{}", found.text);
    found.says("recordings", "warning", "discarded")?;
    set("store_recordings", json!(true)).await?;
    let third = url::Url::parse(&world.setting("COUCHDB__URL"))?;
    set("third_party_bigcouch_host", json!(third)).await?;
    let found = check(&world, &[]).await?;
    ensure!(found.status == Some(0), "{}", found.text);
    found.says("third party", "good", "CouchDB")?;
    set("third_party_bigcouch_host", json!("http://admin:hunter2@127.0.0.1:1")).await?;
    let found = check(&world, &[]).await?;
    found.fails("third party", "cannot connect")?;
    set("third_party_bigcouch_host", json!("http://h/path")).await?;
    let found = check(&world, &[]).await?;
    found.fails("third party", "cannot be used")?;
    world.finish().await
}

async fn an_advertised_url_that_leads_elsewhere_is_told(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let database = url::Url::parse(&world.setting("COUCHDB__URL"))?;
    let elsewhere = format!("http://127.0.0.1:{}", database.port().unwrap_or(5984));
    for (url, words) in [
        ("http://127.0.0.1:1", "cannot be reached from here"),
        ("http://nowhere.invalid:24530", "does not resolve"),
        ("http://0.0.0.0:24530", "not an address"),
        (&elsewhere, "reaches another server"),
    ] {
        let found = check(&world, &[("INGEST__ADVERTISED_URL", url)]).await?;
        found.fails("advertised URL", words)?;
        ensure!(failures(&found) == ["advertised URL"], "{}", found.text);
    }
    world.finish().await
}

async fn a_port_that_another_program_has_is_told(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let listen = free_port().await?;
    let holder = TcpListener::bind(&listen).await?;
    let found = check(&world, &[("INGEST__LISTEN", &listen)]).await?;
    found.fails("port", "in use by another program")?;
    drop(holder);
    let found = check(&world, &[("INGEST__LISTEN", "192.0.2.1:24530")]).await?;
    found.fails("port", "cannot be listened on")?;
    world.finish().await
}

async fn a_spool_that_cannot_be_used_is_told(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    std::fs::create_dir_all(world.dir())?;
    // A file where a folder should be stops root as well.
    let file = world.dir().join("file");
    std::fs::write(&file, "")?;
    let found = check_at(&world, &file.join("spool"), &[]).await?;
    found.fails("spool", "cannot be created")?;
    let found = check_at(&world, &file, &[]).await?;
    found.fails("spool", "cannot be used")?;
    let dir = world.dir().join("spool");
    std::fs::create_dir_all(&dir)?;
    let found = check_at(&world, &dir, &[("SPOOL__MIN_FREE_BYTES", "4000000000000000000")]).await?;
    found.says("spool", "good", "is writable")?;
    found.fails("free space", "less than spool.min_free_bytes")?;
    ensure!(std::fs::read_dir(&dir)?.count() == 0, "something was left in the spool");
    let folder = world.dir().join("nothing").display().to_string();
    let found = check(&world, &[("HOLD__KIND", "folder"), ("HOLD__FOLDER", &folder)]).await?;
    found.fails("hold", "does not exist")?;
    let found = check(&world, &[("HOLD__URL", "http://admin:hunter2@127.0.0.1:1")]).await?;
    found.fails("hold", "127.0.0.1:1")?;
    world.finish().await
}

async fn all_mistakes_of_the_configuration_are_rows(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let settings = [
        ("LOG__FORMAT", "xml"),
        ("AMQP__URI", "http://u:hunter2@h"),
        ("NO__KEY", "hunter2"),
    ];
    let found = check(&world, &settings).await?;
    for name in ["log.format", "amqp.uri", "no.key"] {
        found.fails(name, "")?;
    }
    ensure!(failures(&found).len() == 3, "{}", found.text);
    let found = check(&world, &[("SECRET", "")]).await?;
    found.says("secret", "warning", "not set")?;
    ensure!(found.status == Some(0), "{}", found.text);

    let file = world.dir().join("config.ini");
    std::fs::create_dir_all(world.dir())?;
    std::fs::write(&file, "[kazoo_apps]\nnonsense\n")?;
    let path = file.display().to_string();
    let found = check(&world, &[("KAZOO__CONFIG_FILE", &path)]).await?;
    found.says("Kazoo's config.ini", "good", &path)?;
    found.says("odd value", "warning", "line 2")?;
    world.finish().await
}

async fn servers_that_hang_are_told_in_half_a_minute(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let place = |setting: &str, port| {
        let url = url::Url::parse(&world.setting(setting))?;
        anyhow::Ok(format!("127.0.0.1:{}", url.port().unwrap_or(port)))
    };
    let broker = Proxy::start(&place("AMQP__URI", 5672)?).await?;
    let (database, (_, url)) = world.database_proxy().await?;
    let uri = format!("amqp://guest:guest@127.0.0.1:{}/t1", broker.port);
    broker.set(Mode::Hang);
    database.set(Mode::Hang);
    let advertised = format!("http://127.0.0.1:{}", database.port);
    let settings = [
        ("AMQP__URI", uri.as_str()),
        ("COUCHDB__URL", &url),
        ("INGEST__ADVERTISED_URL", &advertised),
        ("HOLD__URL", &url),
    ];
    let found = check(&world, &settings).await?;
    found.fails(&config_name(&uri)?, "longer than")?;
    found.fails(&format!("127.0.0.1:{}", database.port), "no answer")?;
    found.fails("advertised URL", "cannot be reached")?;
    found.fails("hold", "does not answer")?;
    world.finish().await
}

async fn an_upload_port_with_tls_is_tried_with_tls(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let authority = Authority::new("nobody knows it")?;
    let (certificate, key) = authority.issue(&["localhost"])?.files(world.dir(), "own")?;
    let tls = [
        ("INGEST__TLS_CERTIFICATE", certificate.as_str()),
        ("INGEST__TLS_KEY", &key),
    ];
    let found = check(&world, &tls).await?;
    ensure!(found.status == Some(0), "{}", found.text);
    found.says("advertised URL", "warning", "https://localhost:")?;

    // A switch asks whether the certificate is for the host in the URL.
    let listen = free_port().await?;
    let mut settings = tls.to_vec();
    let advertised = format!("https://{listen}");
    settings.extend([
        ("INGEST__LISTEN", listen.as_str()),
        ("INGEST__ADVERTISED_URL", &advertised),
    ]);
    let found = check(&world, &settings).await?;
    found.fails("advertised URL", "not for that host")?;

    // Broker and database, with an authority that nobody told.
    let shown = authority.issue(&["localhost"])?;
    let url = url::Url::parse(&world.setting("COUCHDB__URL"))?;
    let front = TlsFront::start(&format!("127.0.0.1:{}", url.port().unwrap_or(5984)), &shown, None).await?;
    let secure = format!("https://admin:secret@localhost:{}", front.port);
    let found = check(&world, &[("COUCHDB__URL", &secure)]).await?;
    found.fails("localhost:", "couchdb.ca_file")?;
    let ca = authority.file(world.dir(), "ca.pem")?;
    let found = check(&world, &[("COUCHDB__URL", &secure), ("COUCHDB__CA_FILE", &ca)]).await?;
    ensure!(found.status == Some(0), "{}", found.text);
    world.finish().await
}
