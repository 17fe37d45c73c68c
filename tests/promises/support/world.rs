//! One test's world: a simulated Kazoo, databases of its own, and workers.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::Value;

use crate::simulator::sim::couch::{self, Couch, Stored, modb_of};
use crate::simulator::sim::{Kazoo, KazooOptions, Recording};

use super::schemas;
use super::services::{Lease, Services};
use super::worker::Worker;
use super::{Looks, Proxy, SOON};

const ACCOUNT: &str = "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4";

pub struct World<'a> {
    lease: Lease<'a>,
    pub kazoo: Kazoo,
    pub couch: Couch,
    couch_url: String,
    pub prefix: String,
    dir: PathBuf,
    workers: AtomicU32,
}

impl<'a> World<'a> {
    /// A world with one switch, one ecallmgr, and a database that stores recordings.
    pub async fn new(services: &'a Services) -> anyhow::Result<World<'a>> {
        Self::with(services, |_| {}).await
    }

    pub async fn with(services: &'a Services, options: impl FnOnce(&mut KazooOptions)) -> anyhow::Result<World<'a>> {
        let lease = services.vhost().await?;
        clean(&lease.uri).await?;
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let prefix = format!("t{}-", &unique[..10]);
        let mut kazoo_options = KazooOptions::new(&lease.uri);
        kazoo_options.switch_node = format!("freeswitch@fs-{}.example.com", &unique[..6]);
        kazoo_options.loud = false;
        options(&mut kazoo_options);
        let clock = kazoo_options.clock;
        let seeded = couch::seed(&services.couch_url, &prefix, ACCOUNT, clock).await?;
        let kazoo = Kazoo::start(kazoo_options).await?;
        let dir = std::env::temp_dir().join(format!("kz-record-call-{unique}"));
        let couch_url = services.couch_url.clone();
        Ok(Self {
            lease,
            kazoo,
            couch: seeded.couch,
            couch_url,
            prefix,
            dir,
            workers: AtomicU32::new(0),
        })
    }

    /// A proxy before the database, and the setting that makes a worker use it.
    pub async fn database_proxy(&self) -> anyhow::Result<(Proxy, (&'static str, String))> {
        let mut url = url::Url::parse(&self.couch_url)?;
        let target = format!("{}:{}", url.host_str().context("no host")?, url.port().unwrap_or(5984));
        let proxy = Proxy::start(&target).await?;
        url.set_host(Some("127.0.0.1"))?;
        url.set_port(Some(proxy.port)).ok().context("no port")?;
        Ok((proxy, ("COUCHDB__URL", url.to_string())))
    }

    /// A proxy before the broker, and the setting that makes a worker use it.
    pub async fn broker_proxy(&self) -> anyhow::Result<(Proxy, (&'static str, String))> {
        let mut uri = url::Url::parse(&self.lease.uri)?;
        let target = format!("{}:{}", uri.host_str().context("no host")?, uri.port().unwrap_or(5672));
        let proxy = Proxy::start(&target).await?;
        uri.set_host(Some("127.0.0.1"))?;
        uri.set_port(Some(proxy.port)).ok().context("no port")?;
        Ok((proxy, ("AMQP__URI", uri.to_string())))
    }

    /// A proxy before the broker that counts looks at queues, and the setting that makes a worker use it.
    pub async fn broker_looks(&self, refuse: bool) -> anyhow::Result<(Looks, (&'static str, String))> {
        let mut uri = url::Url::parse(&self.lease.uri)?;
        let target = format!("{}:{}", uri.host_str().context("no host")?, uri.port().unwrap_or(5672));
        let looks = Looks::start(&target, refuse).await?;
        uri.set_host(Some("127.0.0.1"))?;
        uri.set_port(Some(looks.port)).ok().context("no port")?;
        Ok((looks, ("AMQP__URI", uri.to_string())))
    }

    /// Waits until the broker gives a queue's messages to this many consumers. It learns of a cut connection later than the worker, and what it
    /// gave to a dead consumer comes again.
    pub async fn consumed_by(&self, queue: &str, count: u32) -> anyhow::Result<()> {
        let connection = Connection::connect(&self.lease.uri, ConnectionProperties::default()).await?;
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let begun = std::time::Instant::now();
        loop {
            let channel = connection.create_channel().await?;
            let declared = channel
                .queue_declare(queue.into(), passive, FieldTable::default())
                .await?;
            if declared.consumer_count() == count {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < SOON,
                "{} consumers of {queue}",
                declared.consumer_count()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The ledger's documents.
    pub async fn entries(&self) -> anyhow::Result<Vec<Value>> {
        let mut entries = Vec::new();
        for name in self.databases().await? {
            let month = name.strip_prefix(&self.prefix).unwrap_or_default();
            if !month.starts_with("kz_record_call-") {
                continue;
            }
            for id in self.couch.ids(month).await? {
                entries.extend(self.couch.get(month, &id).await?);
            }
        }
        Ok(entries)
    }

    /// The ledger's document of a recording of this call; the newest, if there are several.
    pub async fn entry(&self, call_id: &str) -> anyhow::Result<Option<Value>> {
        let of_call = self
            .entries()
            .await?
            .into_iter()
            .filter(|entry| entry["call_id"] == call_id);
        Ok(of_call.max_by_key(|entry| entry["asked_at"].as_i64()))
    }

    /// Waits until the ledger says that the newest recording of the call is in this state.
    pub async fn state(&self, call_id: &str, state: &str, patience: Duration) -> anyhow::Result<Value> {
        let begun = std::time::Instant::now();
        loop {
            let entry = self.entry(call_id).await?;
            if let Some(entry) = entry.as_ref().filter(|entry| entry["state"] == state) {
                return Ok(entry.clone());
            }
            ensure!(
                begun.elapsed() < patience,
                "not {state} within {patience:?}: {entry:#?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The settings that a worker of this world has, unless a test says otherwise.
    pub fn settings(&self) -> Vec<(String, String)> {
        let pairs = [
            ("AMQP__URI", self.lease.uri.as_str()),
            ("COUCHDB__URL", &self.couch_url),
            ("COUCHDB__DATABASE_PREFIX", &self.prefix),
            ("INGEST__LISTEN", "127.0.0.1:0"),
            ("ADMIN__LISTEN", "127.0.0.1:0"),
            // What Kazoo's own file on this machine says is nobody's business here.
            ("KAZOO__CONFIG_FILE", "none"),
            ("KAZOO__HOST", "localhost"),
            ("KAZOO__CONFIG_POLL_S", "1"),
            ("SECRET", "the secret of the tests"),
            ("LOG__FORMAT", "json"),
            ("LOG__LEVEL", "info,kz_record_call=debug"),
            ("FLOW__RETRY_MS", "200,400,800,1000"),
            ("SPOOL__MIN_FREE_BYTES", "1048576"),
            ("LEDGER__POLL_MS", "100"),
            ("LEDGER__LINGER_MS", "300"),
            ("LEDGER__LEASE_S", "2"),
            ("INGEST__DELIVERY_TIMEOUT_S", "2"),
        ];
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec()
    }

    /// One of these.
    pub fn setting(&self, key: &str) -> String {
        let found = self.settings().into_iter().find(|(known, _)| known == key);
        found.map(|(_, value)| value).unwrap_or_default()
    }

    /// A folder for files of this test.
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Starts a worker and waits until it is ready.
    pub async fn worker(&self) -> anyhow::Result<Worker> {
        self.worker_with(&[]).await
    }

    pub async fn worker_with(&self, more: &[(&str, &str)]) -> anyhow::Result<Worker> {
        let worker = self.start_worker(more)?;
        worker.ready(SOON).await?;
        Ok(worker)
    }

    /// Starts a worker, with a spool folder of its own, and does not wait.
    pub fn start_worker(&self, more: &[(&str, &str)]) -> anyhow::Result<Worker> {
        let number = self.workers.fetch_add(1, Ordering::SeqCst);
        let dir = self.dir.join(format!("worker-{number}"));
        let mut settings = self.settings();
        settings.push(("SPOOL__DIR".into(), dir.join("spool").display().to_string()));
        settings.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        Worker::start(&settings, dir)
    }

    /// Runs a command of the program, with a worker's settings; its exit status and what it wrote.
    pub async fn command(&self, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
        let output = self.command_with(arguments, &[]).await?;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        Ok((output.status.success(), format!("{out}{err}")))
    }

    /// As `command`, with more settings, and told apart.
    pub async fn command_with(
        &self,
        arguments: &[&str],
        more: &[(&str, &str)],
    ) -> anyhow::Result<std::process::Output> {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_kz-record-call"));
        // Not what this host may have.
        command
            .args(arguments)
            .env_remove("RUST_LOG")
            .env("KZ_RECORD_CALL_CONFIG", "none");
        let settings = self.settings();
        let own = settings.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        for (key, value) in own.chain(more.iter().copied()) {
            match super::worker::is_proxy(key) {
                true => command.env(key, value),
                false => command.env(format!("KZ_RECORD_CALL__{key}"), value),
            };
        }
        Ok(command.output().await?)
    }

    /// The names of this test's databases.
    pub async fn databases(&self) -> anyhow::Result<Vec<String>> {
        let all: Vec<String> = reqwest::get(format!("{}/_all_dbs", self.couch_url))
            .await?
            .json()
            .await?;
        Ok(all.into_iter().filter(|name| name.starts_with(&self.prefix)).collect())
    }

    pub fn account(&self) -> &'static str {
        ACCOUNT
    }

    /// The month that it is for Kazoo, as ids begin with it.
    pub fn month(&self) -> String {
        crate::simulator::sim::wire::Clock::default().month()
    }

    /// The database that a recording belongs to.
    pub fn modb(&self, media_id: &str) -> String {
        modb_of(ACCOUNT, media_id)
    }

    /// Waits until a recording's outcome is announced, and returns the announcement.
    pub async fn outcome(&self, media_id: &str) -> anyhow::Result<Value> {
        self.outcome_within(media_id, Duration::from_secs(60)).await
    }

    pub async fn outcome_within(&self, media_id: &str, patience: Duration) -> anyhow::Result<Value> {
        let seen = self.kazoo.tap().outcome(media_id, patience).await?;
        Ok(Value::Object((*seen.body).clone()))
    }

    /// Waits until the switch has deleted the recording's file. Its answer can reach it after the outcome reached us.
    pub async fn released(&self, recording: &Recording) -> anyhow::Result<()> {
        let deleted = |s: &crate::simulator::sim::State| {
            let mut files = s.recordings().iter().filter(|r| r.path == recording.path);
            files.find(|r| r.deleted).map(drop)
        };
        let waiting = self.kazoo.wait_for("the switch to delete its file", SOON, deleted);
        waiting.await
    }

    /// Waits until the recording is stored, and proves it: announced, the document as promised, the audio byte by byte what the switch wrote,
    /// and the switch's file gone.
    pub async fn stored(&self, recording: &Recording) -> anyhow::Result<Stored> {
        let outcome = self.outcome(&recording.id).await?;
        if outcome["Outcome"] != "stored" {
            let (_, story) = self.command(&["explain", &recording.id]).await?;
            bail!("{outcome:#}\n{story}");
        }
        let id = outcome["Media-ID"].as_str().context("no Media-ID")?.to_owned();
        self.kazoo.tap().document(&id, SOON).await?;
        let whole = self.ended(recording).await?;
        let stored = self.couch.stored(&self.modb(&id), &id, &whole.audio).await?;
        if let Some(difference) = &stored.difference {
            let (_, story) = self.command(&["explain", &recording.id]).await?;
            bail!("the audio is not the switch's: {difference}\n{story}");
        }
        schemas::check("call_recording", &stored.document)?;
        self.released(recording).await?;
        Ok(stored)
    }

    /// The recording as it was when it had ended.
    pub async fn ended(&self, recording: &Recording) -> anyhow::Result<Recording> {
        let path = recording.path.clone();
        self.kazoo
            .wait_for("the recording's end", SOON, |s| {
                s.recordings().iter().find(|r| r.path == path && r.ended()).cloned()
            })
            .await
    }

    /// The end of every test: nothing that the worker sent broke Kazoo's rules or our schemas, and nothing that it wrote did.
    pub async fn finish(self) -> anyhow::Result<()> {
        self.kazoo.check()?;
        schemas::check_messages(&self.kazoo.tap().messages())?;
        self.kazoo.stop().await;
        let all: Vec<String> = reqwest::get(format!("{}/_all_dbs", self.couch_url))
            .await?
            .json()
            .await?;
        for database in all.iter().filter_map(|name| name.strip_prefix(&self.prefix)) {
            schemas::check_documents(database, &documents(&self.couch_url, &self.prefix, database).await?)?;
            self.couch.delete_database(database).await?;
        }
        let _ = std::fs::remove_dir_all(&self.dir);
        Ok(())
    }
}

/// All documents of a database, whole.
async fn documents(couch_url: &str, prefix: &str, database: &str) -> anyhow::Result<Vec<Value>> {
    let mut url = url::Url::parse(couch_url)?;
    let name = format!("{prefix}{database}");
    url.path_segments_mut()
        .ok()
        .context("a URL")?
        .pop_if_empty()
        .extend([name.as_str(), "_all_docs"]);
    url.set_query(Some("include_docs=true"));
    let all: Value = reqwest::get(url).await?.json().await?;
    let rows = all["rows"].as_array().context("rows")?;
    Ok(rows.iter().map(|row| row["doc"].clone()).collect())
}

/// Takes away what the test before left in the vhost.
async fn clean(uri: &str) -> anyhow::Result<()> {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await?;
    for queue in [
        "kz_record_call.actions",
        "kz_record_call.endings",
        "kz_record_call.dead",
        "kz_record_call.journal",
        "kz_record_call.answers",
        "kz_record_call.controls",
        "kz_record_call.watch",
    ] {
        let channel = connection.create_channel().await?;
        channel
            .queue_delete(queue.into(), QueueDeleteOptions::default())
            .await?;
    }
    let _ = connection.close(200, "clean".into()).await;
    Ok(())
}
