//! The cluster that a plan is played in: a simulated Kazoo, databases, servers that audio is sent to, and the workers.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::endpoint::{self, Endpoint};
use crate::evidence::Home;
use crate::hearing::Hearing;
use crate::plan::{Account, Plan, SERVERS};
use crate::servers::Servers;
use crate::simulator::sim::couch::{self, Couch};
use crate::simulator::sim::wire::Clock;
use crate::simulator::sim::{Kazoo, KazooOptions};
use crate::support::Worker;
use crate::support::object_store::{ObjectStore, Setup};
use crate::targets::{Book, Target};

const PLAIN: &str = "4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4";
const PLANNED: &str = "9c01d2e3f4a5b6c7d8e9f0a1b2c3d4e5";

const STORED: &str = "b7e6d5c4b3a291807f6e5d4c3b2a1908";

/// From here until the plan begins: workers start, queues are declared.
const PREPARATION: Duration = Duration::from_secs(4);

/// Settings with which the slow rules pass in seconds.
const SETTINGS: &[(&str, &str)] = &[
    ("INGEST__LISTEN", "127.0.0.1:0"),
    ("ADMIN__LISTEN", "127.0.0.1:0"),
    ("KAZOO__CONFIG_FILE", "none"),
    ("KAZOO__HOST", "localhost"),
    ("KAZOO__CONFIG_POLL_S", "1"),
    ("SECRET", "the secret of the tests"),
    ("LOG__FORMAT", "json"),
    ("LOG__LEVEL", "info,kz_record_call=debug"),
    ("SPOOL__MIN_FREE_BYTES", "1048576"),
    ("AMQP__PUBLISH_TIMEOUT_MS", "2000"),
    ("COUCHDB__READ_TIMEOUT_MS", "3000"),
    ("DESTINATION__ALLOW", "127.0.0.1"),
    ("DESTINATION__CONNECT_TIMEOUT_MS", "1000"),
    ("DESTINATION__SILENCE_TIMEOUT_MS", "2000"),
    ("DESTINATION__SEND_TIMEOUT_S", "10"),
    ("DESTINATION__FIRST_PAUSE_MS", "200"),
    ("DESTINATION__LONGEST_PAUSE_MS", "1500"),
    ("DESTINATION__CREATE_DATABASES_AFTER_S", "1"),
    ("FLOW__RETRY_MS", "200,400,800,1500"),
    ("FLOW__UPLOAD_START_TIMEOUT_MS", "3000"),
    ("FLOW__START_TIMEOUT_MS", "6000"),
    ("FLOW__CHECK_INTERVAL_MS", "2000"),
    ("FLOW__GRACE_MS", "2000"),
    ("FLOW__PROBE_GAP_MS", "1000"),
    ("FLOW__STOP_REPEATS_MS", "300,700,1500"),
    ("FLOW__STOP_ALARM_MS", "5000"),
    ("FLOW__DRAIN_S", "2"),
    ("HOLD__PAUSE_MS", "500"),
    ("INGEST__STALL_TIMEOUT_MS", "1000"),
    ("INGEST__DELIVERY_TIMEOUT_S", "4"),
    ("LEDGER__POLL_MS", "200"),
    ("LEDGER__LINGER_MS", "300"),
    ("LEDGER__LEASE_S", "5"),
    ("LEDGER__PATIENCE_MS", "2000"),
    ("WEBHOOKS__TIMEOUT_MS", "1000"),
    ("WEBHOOKS__RETRY_MS", "200,400,800,1500,1500,1500,1500,1500,1500,1500"),
];

pub struct Cluster {
    pub servers: Servers,
    pub kazoo: Kazoo,
    pub hearing: Hearing,
    pub couch: Couch,
    pub third: Couch,
    pub targets: Vec<Target>,
    pub store_proxy: Target,
    pub objects: ObjectStore,
    pub endpoint: Endpoint,
    pub book: Book,
    /// Of each worker's place, who is in it now.
    pub workers: Vec<Mutex<Option<Worker>>>,
    /// The program that the workers begin with, of another version, until their upgrade.
    old: Option<PathBuf>,
    /// Of each worker's place, whether it has this version.
    upgraded: Vec<AtomicBool>,
    /// The months before and after the turn.
    pub months: [String; 2],
    settings: Vec<(String, String)>,
    started: AtomicU32,
    dir: PathBuf,
    prefix: String,
}

impl Cluster {
    pub async fn start(plan: &Plan, dir: &Path, old: Option<PathBuf>) -> anyhow::Result<Self> {
        let servers = Servers::start().await?;
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let prefix = format!("chaos{}-", &unique[..10]);
        let clock = shortly_before_a_turn(plan.turn + PREPARATION)?;
        let (couch, book) = (seed(&servers.our_couch()?, &prefix, clock).await?, Book::default());
        let store_proxy = Target::store_proxy(book.clone(), couch.clone()).await?;
        let port = store_proxy.port();
        let configure = |media: &mut Value| {
            media["default"]["proxy_hostname"] = json!("127.0.0.1");
            media["default"]["proxy_port"] = json!(port);
        };
        couch.edit("system_config", "media", configure).await?;
        let objects = ObjectStore::start(Setup::default()).await;
        couch.create("system_data", STORED, &plan_of(&objects.s3())).await?;
        let endpoint = Endpoint::start().await?;
        let mut targets = Vec::new();
        for n in 0..SERVERS {
            targets.push(Target::server(n, book.clone()).await?);
        }
        clean(&servers.kazoos_amqp()?).await?;
        let recordings = dir.join("recordings");
        let mut options = KazooOptions::new(&servers.kazoos_amqp()?).ecallmgrs(2);
        options.switch_node = format!("freeswitch@fs-{}.example.com", &unique[..6]);
        options.loud = false;
        options.files_grow = true;
        options.account_id = PLAIN.into();
        options.clock = clock;
        options.seed = plan.seed;
        options.recordings = Some(recordings.clone());
        let settings = [
            ("AMQP__URI", servers.workers_amqp()?),
            ("COUCHDB__URL", servers.workers_couch()?),
            ("COUCHDB__DATABASE_PREFIX", prefix.clone()),
            ("KAZOO__RECORDINGS", format!("{}/", recordings.display())),
            ("KZ_RECORD_CALL_TEST_CLOCK_FORWARD_S", clock.offset_secs.to_string()),
            ("WEBHOOKS__ENDPOINT__ARCHIVE__URL", endpoint.url()),
            ("WEBHOOKS__ENDPOINT__ARCHIVE__SECRET", endpoint::SECRET.to_owned()),
        ];
        let adopts = plan.adopts.then(|| ("ADOPT__MODE", "store".to_owned()));
        let settings = settings.into_iter().chain(adopts);
        let fixed = SETTINGS.iter().map(|(key, value)| (*key, (*value).to_owned()));
        let settings = settings.chain(fixed);
        let cluster = Self {
            kazoo: Kazoo::start(options).await?,
            hearing: Hearing::start(servers.kazoos_amqp()?),
            third: Couch::new(&servers.our_third()?, &prefix)?,
            couch,
            targets,
            store_proxy,
            objects,
            endpoint,
            book,
            workers: (0..plan.workers).map(|_| Mutex::default()).collect(),
            upgraded: (0..plan.workers).map(|_| AtomicBool::new(old.is_none())).collect(),
            old,
            months: [clock.month(), later(clock, plan.turn + PREPARATION).month()],
            settings: settings.map(|(key, value)| (key.to_owned(), value)).collect(),
            started: AtomicU32::new(0),
            dir: dir.to_owned(),
            prefix,
            servers,
        };
        let [before, after] = &cluster.months;
        ensure!(before != after, "the month does not turn: {before}");
        // A worker that dies answers first when it is replaced, and looks for the call before it commands; and it may look for the file of a
        // command that a broker took with it. One that was cut off does not hear that a call has another id now.
        for rule in ["order", "file-name", "call-id"] {
            cluster.kazoo.tolerate(rule);
        }
        for n in 0..plan.workers {
            cluster.start_worker(n).await?;
        }
        for place in &cluster.workers {
            let worker = place.lock().await;
            worker
                .as_ref()
                .context("no worker")?
                .ready(Duration::from_secs(30))
                .await?;
        }
        Ok(cluster)
    }

    /// Puts a new worker into a place.
    pub async fn start_worker(&self, place: usize) -> anyhow::Result<()> {
        let number = self.started.fetch_add(1, Ordering::SeqCst);
        let dir = self.dir.join(format!("worker-{place}-{number}"));
        let mut settings = self.settings.clone();
        settings.push(("SPOOL__DIR".into(), dir.join("spool").display().to_string()));
        let old = self
            .old
            .as_ref()
            .filter(|_| !self.upgraded[place].load(Ordering::SeqCst));
        *self.workers[place].lock().await = Some(match old {
            Some(program) => Worker::start_program(program, &settings, dir)?,
            None => Worker::start(&settings, dir)?,
        });
        Ok(())
    }

    /// Puts a worker of this version into a place, for all that follow.
    pub async fn upgrade_worker(&self, place: usize) -> anyhow::Result<()> {
        self.upgraded[place].store(true, Ordering::SeqCst);
        self.start_worker(place).await
    }

    /// Ends all workers in good order.
    pub async fn end_workers(&self) -> anyhow::Result<()> {
        for place in &self.workers {
            if let Some(mut worker) = place.lock().await.take() {
                worker.terminate(Duration::from_secs(20)).await?;
            }
        }
        Ok(())
    }

    /// Runs a command of the program; whether it went well, and what it wrote to its output.
    pub async fn command(&self, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_kz-record-call"));
        // Not what this host may have.
        command
            .args(arguments)
            .env_remove("RUST_LOG")
            .env("KZ_RECORD_CALL_CONFIG", "none");
        for (key, value) in &self.settings {
            match key.starts_with("KZ_RECORD_CALL") {
                true => command.env(key, value),
                false => command.env(format!("KZ_RECORD_CALL__{key}"), value),
            };
        }
        command.env("KZ_RECORD_CALL__COUCHDB__URL", self.servers.our_couch()?);
        let output = command.output().await?;
        ensure!(
            output.status.success() || output.stderr.is_empty(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        ))
    }

    /// An operator sets, or takes away, the third party.
    pub async fn use_third_party(&self, on: bool) -> anyhow::Result<()> {
        let server = if on {
            json!(self.servers.workers_third()?)
        } else {
            Value::Null
        };
        let change = |media: &mut Value| media["default"]["third_party_bigcouch_host"] = server;
        self.couch.edit("system_config", "media", change).await
    }

    /// An operator changes the secret of the plan with the object store.
    pub async fn set_secret(&self, secret: &str) -> anyhow::Result<()> {
        let change = |plan: &mut Value| plan["attachments"]["9b1c"]["settings"]["secret"] = json!(secret);
        self.couch.edit("system_data", STORED, change).await
    }

    /// A database server's address.
    pub fn server(&self, home: Home) -> anyhow::Result<String> {
        match home {
            Home::Ours => self.servers.our_couch(),
            Home::ThirdParty => self.servers.our_third(),
        }
    }

    /// Our databases there with this beginning, without the prefix.
    pub async fn databases(&self, home: Home, beginning: &str) -> anyhow::Result<Vec<String>> {
        let url = format!("{}/_all_dbs", self.server(home)?);
        let all: Vec<String> = reqwest::get(url).await?.json().await?;
        let ours = all.iter().filter_map(|name| name.strip_prefix(&self.prefix));
        Ok(ours
            .filter(|name| name.starts_with(beginning))
            .map(str::to_owned)
            .collect())
    }

    /// Everything goes; a database that was lent to us is left as it was.
    pub async fn stop(self) -> anyhow::Result<()> {
        for database in self.databases(Home::Ours, "").await? {
            self.couch.delete_database(&database).await?;
        }
        self.kazoo.stop().await;
        self.servers.stop().await;
        Ok(())
    }
}

pub fn account_id(account: Account) -> &'static str {
    match account {
        Account::Plain => PLAIN,
        Account::Planned => PLANNED,
        Account::Native => STORED,
    }
}

async fn seed(url: &str, prefix: &str, clock: Clock) -> anyhow::Result<Couch> {
    couch::seed(url, prefix, PLANNED, clock).await?;
    couch::seed(url, prefix, STORED, clock).await?;
    let couch = couch::seed(url, prefix, PLAIN, clock).await?.couch;
    // Without a key it is nothing that a worker can serve itself.
    couch
        .create("system_data", PLANNED, &plan_of(&json!({"bucket": "b"})))
        .await?;
    Ok(couch)
}

/// A plan with S3.
fn plan_of(settings: &Value) -> Value {
    json!({
        "plan": {"modb": {"types": {"call_recording": {"attachments": {"handler": "9b1c"}}}}},
        "attachments": {"9b1c": {"handler": "s3", "settings": settings}},
    })
}

/// A clock for which the month turns after `wait`.
fn shortly_before_a_turn(wait: Duration) -> anyhow::Result<Clock> {
    let now = time::OffsetDateTime::now_utc();
    let in_it = now.replace_day(1)?.replace_time(time::Time::MIDNIGHT) + time::Duration::days(32);
    let turn = in_it.replace_day(1)?;
    let ahead = turn - now - wait;
    Ok(Clock {
        offset_secs: ahead.whole_seconds(),
    })
}

fn later(clock: Clock, by: Duration) -> Clock {
    Clock {
        offset_secs: clock.offset_secs + i64::try_from(by.as_secs()).unwrap_or(0) + 60,
    }
}

/// Takes away what another run left at a broker that was lent to us.
async fn clean(uri: &str) -> anyhow::Result<()> {
    use lapin::options::QueueDeleteOptions;
    let connection = lapin::Connection::connect(uri, lapin::ConnectionProperties::default()).await?;
    for queue in crate::hearing::QUEUES {
        let channel = connection.create_channel().await?;
        channel
            .queue_delete((*queue).into(), QueueDeleteOptions::default())
            .await?;
    }
    let _ = connection.close(200, "clean".into()).await;
    Ok(())
}
