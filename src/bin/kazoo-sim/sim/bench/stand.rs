//! The stand of one measurement: fresh queues, fresh databases, and workers as processes of their
//! own.

use std::{
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use lapin::{
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use reqwest::Client;
use serde_json::Value;

use super::{
    super::{
        couch::{self, Seeded},
        wire::{Clock, Object, hex},
    },
    BenchOptions,
    calls::{Calls, CallsOptions, close, connect},
    process::{self, Meter},
};

/// The shared queues of the workers.
const QUEUES: [&str; 6] = [
    "kz_record_call.actions",
    "kz_record_call.endings",
    "kz_record_call.dead",
    "kz_record_call.journal",
    "kz_record_call.answers",
    "kz_record_call.controls",
];
const READY_WITHIN: Duration = Duration::from_secs(60);

pub struct Stand<'a> {
    options: &'a BenchOptions,
    folder: PathBuf,
    pub prefix: String,
    pub seeded: Seeded,
    workers: Vec<Worker>,
}

/// A setting of a worker, without `KZ_RECORD_CALL__`.
pub type Setting = (&'static str, String);

impl<'a> Stand<'a> {
    /// A stand without workers.
    pub async fn new(options: &'a BenchOptions) -> anyhow::Result<Self> {
        let prefix = format!("bench-{}-", hex(8));
        let folder = options.scratch.join(&prefix);
        std::fs::create_dir_all(&folder).with_context(|| format!("the folder {}", folder.display()))?;
        delete_queues(&options.amqp_uri).await?;
        let seeded = couch::seed(&options.couchdb_url, &prefix, &options.account, Clock::default()).await?;
        Ok(Self {
            options,
            folder,
            prefix,
            seeded,
            workers: Vec::new(),
        })
    }

    /// A stand with so many workers, all of them ready.
    pub async fn with(options: &'a BenchOptions, workers: usize, more: &[Setting]) -> anyhow::Result<Self> {
        let mut stand = Self::new(options).await?;
        stand.start(workers, more).await?;
        Ok(stand)
    }

    pub async fn start(&mut self, workers: usize, more: &[Setting]) -> anyhow::Result<()> {
        for _ in 0..workers {
            let n = self.workers.len();
            let folder = self.folder.join(format!("worker-{n}"));
            let mut settings = self.settings(n, &folder)?;
            settings.extend_from_slice(more);
            self.workers
                .push(Worker::start(&self.options.worker, &settings, &folder)?);
        }
        for worker in &mut self.workers {
            worker.ready().await?;
        }
        Ok(())
    }

    fn settings(&self, n: usize, folder: &Path) -> anyhow::Result<Vec<Setting>> {
        let ingest = free_port()?;
        Ok(vec![
            ("AMQP__URI", self.options.amqp_uri.clone()),
            ("COUCHDB__URL", self.options.couchdb_url.clone()),
            ("COUCHDB__DATABASE_PREFIX", self.prefix.clone()),
            ("INGEST__LISTEN", format!("127.0.0.1:{ingest}")),
            ("INGEST__ADVERTISED_URL", format!("http://127.0.0.1:{ingest}")),
            ("ADMIN__LISTEN", format!("127.0.0.1:{}", free_port()?)),
            ("SPOOL__DIR", folder.join("spool").display().to_string()),
            ("KAZOO__CONFIG_FILE", "none".to_owned()),
            ("KAZOO__HOST", format!("bench{n}")),
            ("SECRET", "only good for the bench".to_owned()),
            ("LOG__LEVEL", "error".to_owned()),
        ])
    }

    pub fn meter(&self) -> Meter {
        Meter {
            workers: self.workers.iter().map(|worker| worker.child.id()).collect(),
            rabbitmq: self.options.rabbitmq_pid,
            couchdb: self.options.couchdb_pid,
        }
    }

    /// The resident memory in MiB of the worker that has most: now, and the peak.
    pub fn memory(&self) -> Option<(f64, f64)> {
        let all = self
            .workers
            .iter()
            .filter_map(|worker| process::memory(worker.child.id()));
        all.max_by(|one, other| one.0.total_cmp(&other.0))
    }

    /// Calls whose commands are dropped.
    pub async fn calls(&self) -> anyhow::Result<Calls> {
        Calls::connect(CallsOptions::new(&self.options.amqp_uri, &self.options.account)).await
    }

    /// Any document of one of this stand's databases whose name, without the prefix, begins so.
    pub async fn document(&self, database: &str) -> anyhow::Result<Option<Object>> {
        let http = Client::new();
        for name in databases(&http, &self.options.couchdb_url, &format!("{}{database}", self.prefix)).await? {
            let name = name.replace('/', "%2F");
            let url = format!(
                "{}/{name}/_all_docs?include_docs=true&limit=20",
                self.options.couchdb_url
            );
            let all: Value = serde_json::from_slice(&http.get(url).send().await?.bytes().await?)?;
            let rows = all["rows"].as_array().cloned().unwrap_or_default();
            let is_plain = |row: &&Value| row["id"].as_str().is_some_and(|id| !id.starts_with('_'));
            if let Some(Value::Object(document)) = rows.iter().find(is_plain).map(|row| row["doc"].clone()) {
                return Ok(Some(document));
            }
        }
        Ok(None)
    }

    /// The URL of a database of this stand.
    pub fn database_url(&self, database: &str) -> String {
        format!("{}/{}", self.options.couchdb_url, self.seeded.couch.full_name(database))
    }

    /// Messages that wait in the workers' queues. Messages that a worker has received do not count.
    pub async fn waiting(&self) -> anyhow::Result<u32> {
        let connection = connect(&self.options.amqp_uri).await?;
        let mut waiting = 0;
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        for queue in QUEUES {
            let channel = connection.create_channel().await?;
            let declared = channel
                .queue_declare(queue.into(), passive, FieldTable::default())
                .await;
            waiting += declared.map_or(0, |queue| queue.message_count());
        }
        close(&connection).await;
        Ok(waiting)
    }

    /// Waits until no message waits, and the ledger had time to take what was delivered last.
    pub async fn settled(&self, patience: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        while self.waiting().await? > 0 {
            ensure!(begun.elapsed() < patience, "messages still wait after {patience:?}");
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        tokio::time::sleep(Duration::from_secs(3).min(patience)).await;
        Ok(())
    }

    /// Ends the workers.
    pub fn stop(&mut self) {
        self.workers.clear();
    }

    /// Ends the workers, and removes their queues and databases.
    pub async fn end(mut self) -> anyhow::Result<()> {
        self.workers.clear();
        delete_queues(&self.options.amqp_uri).await?;
        let http = Client::new();
        for name in databases(&http, &self.options.couchdb_url, &self.prefix).await? {
            let url = format!("{}/{}", self.options.couchdb_url, name.replace('/', "%2F"));
            http.delete(url).send().await?;
        }
        let _ = std::fs::remove_dir_all(&self.folder);
        Ok(())
    }
}

/// The names of the databases that begin so.
async fn databases(http: &Client, server: &str, start: &str) -> anyhow::Result<Vec<String>> {
    let answer = http
        .get(format!("{server}/_all_dbs"))
        .send()
        .await?
        .error_for_status()?;
    let mut all: Vec<String> = serde_json::from_slice(&answer.bytes().await?)?;
    all.retain(|name| name.starts_with(start));
    Ok(all)
}

/// Removes the workers' queues. Fails if a worker consumes from them: it is not this program's.
async fn delete_queues(uri: &str) -> anyhow::Result<()> {
    let connection = connect(uri).await?;
    let begun = Instant::now();
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    for queue in QUEUES {
        loop {
            let channel = connection.create_channel().await?;
            let Ok(found) = channel
                .queue_declare(queue.into(), passive, FieldTable::default())
                .await
            else {
                break;
            };
            if found.consumer_count() == 0 {
                let options = QueueDeleteOptions::default();
                channel.queue_delete(queue.into(), options).await?;
                break;
            }
            // The broker may learn a moment later that a worker has ended.
            ensure!(
                begun.elapsed() < Duration::from_secs(10),
                "a worker consumes from {queue}: give this program a broker that no worker and no Kazoo uses"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    close(&connection).await;
    Ok(())
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A worker's process. It is killed when this is dropped.
struct Worker {
    child: Child,
    admin: String,
    log: PathBuf,
}

impl Worker {
    /// The environment of this program applies too, so that a run can try settings.
    fn start(program: &Path, settings: &[Setting], folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let log = folder.join("worker.log");
        let mut command = Command::new(program);
        command
            .arg("run")
            .env("KZ_RECORD_CALL_CONFIG", "none")
            .envs(
                settings
                    .iter()
                    .map(|(key, value)| (format!("KZ_RECORD_CALL__{key}"), value)),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        let child = command
            .spawn()
            .with_context(|| format!("starting the worker {}", program.display()))?;
        let admin = settings.iter().find(|(key, _)| *key == "ADMIN__LISTEN");
        let admin = admin
            .map(|(_, address)| format!("http://{address}"))
            .unwrap_or_default();
        Ok(Self { child, admin, log })
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let (http, url, begun) = (Client::new(), format!("{}/readyz", self.admin), Instant::now());
        loop {
            let answer = http.get(&url).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || begun.elapsed() > READY_WITHIN {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let last = lines[lines.len().saturating_sub(20)..].join("\n");
                bail!("a worker does not become ready; its log ends:\n{last}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
