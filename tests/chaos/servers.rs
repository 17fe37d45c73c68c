//! The broker and the databases, each behind proxies, so that it can be taken away and come back, on another port too. Those in containers are
//! really stopped and killed; to those that were lent to us only the connections are cut.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use testcontainers::{ContainerAsync, GenericImage};
use tokio::sync::Mutex;
use url::Url;

use crate::odd::Front;
use crate::plan::{Cut, Odd};
use crate::support::{Broker, Mode, Proxy, couch};

pub type Container = ContainerAsync<GenericImage>;

/// How long a server may need until it can be used.
const READY: Duration = Duration::from_secs(120);

/// With this policy an action that comes before anybody has bound again after a broker's restart is queued all the same.
const POLICY: &str = r#"{"alternate-exchange":"kz_record_call.unrouted"}"#;

/// A server behind a proxy for each kind of client.
struct Behind {
    /// As the containers or the environment say, credentials included.
    url: Url,
    workers: Proxy,
    others: Proxy,
    /// Of a database.
    odd: Option<Front>,
}

pub struct Servers {
    broker: Option<Mutex<Broker>>,
    database: Option<Container>,
    third_party: Container,
    amqp: Behind,
    couch: Behind,
    third: Behind,
}

impl Servers {
    pub async fn start() -> anyhow::Result<Self> {
        let lent = |variable: &str| std::env::var(variable).ok().filter(|url| !url.is_empty());
        let (amqp, broker) = match lent("TEST_AMQP_URI") {
            Some(uris) => {
                let uri = uris.split([',', ' ']).find(|uri| !uri.is_empty());
                (uri.context("TEST_AMQP_URI names no broker")?.to_owned(), None)
            }
            None => {
                let broker = Broker::start().await?;
                let policy = ["set_policy", "kz-record-call", "^kapps$", POLICY];
                let arguments: Vec<&str> = policy.into_iter().chain(["--apply-to", "exchanges"]).collect();
                broker.rabbitmqctl(&arguments).await?;
                (broker.uri("%2f"), Some(Mutex::new(broker)))
            }
        };
        let (database_url, database) = match lent("TEST_COUCHDB_URL") {
            Some(url) => (url, None),
            None => {
                let (container, url) = couch().await?;
                (url, Some(container))
            }
        };
        let (third_party, third_url) = couch().await?;
        Ok(Self {
            broker,
            database,
            third_party,
            amqp: Behind::start(&amqp, 5672).await?,
            couch: Behind::start(&database_url, 5984).await?.with_front().await?,
            third: Behind::start(&third_url, 5984).await?.with_front().await?,
        })
    }

    pub fn workers_amqp(&self) -> anyhow::Result<String> {
        self.amqp.by(&self.amqp.workers)
    }

    pub fn kazoos_amqp(&self) -> anyhow::Result<String> {
        self.amqp.by(&self.amqp.others)
    }

    pub fn workers_couch(&self) -> anyhow::Result<String> {
        self.couch.by(&self.couch.workers)
    }

    /// The way of everybody else to the database.
    pub fn our_couch(&self) -> anyhow::Result<String> {
        self.couch.by(&self.couch.others)
    }

    pub fn workers_third(&self) -> anyhow::Result<String> {
        self.third.by(&self.third.workers)
    }

    pub fn our_third(&self) -> anyhow::Result<String> {
        self.third.by(&self.third.others)
    }

    pub fn cut_broker(&self, cut: bool) {
        self.amqp.workers.set(if cut { Mode::Refuse } else { Mode::Pass });
    }

    pub fn cut_database(&self, cut: Option<Cut>) {
        self.couch.workers.set(mode(cut));
    }

    pub async fn odd_database(&self, odd: Option<Odd>) -> anyhow::Result<()> {
        self.couch.answer(odd).await
    }

    pub async fn odd_third_party(&self, odd: Option<Odd>) -> anyhow::Result<()> {
        self.third.answer(odd).await
    }

    pub fn cut_third_party(&self, cut: Option<Cut>) {
        self.third.workers.set(mode(cut));
    }

    /// The broker goes, and comes back after `away`; returns when it can be used again.
    pub async fn restart_broker(&self, killed: bool, away: Duration) -> anyhow::Result<()> {
        let Some(broker) = &self.broker else {
            return self.lose_everybody(away).await;
        };
        let mut broker = broker.lock().await;
        if killed {
            docker(&["kill", broker.container.id()]).await?;
            tokio::time::sleep(away).await;
            docker(&["start", broker.container.id()]).await?;
            broker.port = broker.container.get_host_port_ipv4(5672).await?;
            self.amqp.moved(broker.port);
        } else {
            broker.rabbitmqctl(&["stop_app"]).await?;
            tokio::time::sleep(away).await;
            broker.rabbitmqctl(&["start_app"]).await?;
        }
        broker.wait().await
    }

    /// What a lent broker can be made to look like.
    async fn lose_everybody(&self, away: Duration) -> anyhow::Result<()> {
        for mode in [Mode::Refuse, Mode::Pass] {
            self.amqp.workers.set(mode);
            self.amqp.others.set(mode);
            if mode == Mode::Refuse {
                tokio::time::sleep(away).await;
            }
        }
        Ok(())
    }

    /// The database goes, and comes back after `away`.
    pub async fn stop_database(&self, killed: bool, away: Duration) -> anyhow::Result<()> {
        let Some(database) = &self.database else {
            self.cut_database(Some(Cut::Refuse));
            tokio::time::sleep(away).await;
            self.cut_database(None);
            return Ok(());
        };
        let verb: &[&str] = if killed { &["kill"] } else { &["stop", "-t", "5"] };
        docker(&[verb, &[database.id()]].concat()).await?;
        tokio::time::sleep(away).await;
        docker(&["start", database.id()]).await?;
        self.couch.moved(database.get_host_port_ipv4(5984).await?);
        up(&self.our_couch()?).await
    }

    /// Removes the containers.
    pub async fn stop(self) {
        if let Some(broker) = self.broker {
            let _ = broker.into_inner().container.rm().await;
        }
        if let Some(database) = self.database {
            let _ = database.rm().await;
        }
        let _ = self.third_party.rm().await;
    }
}

impl Behind {
    async fn start(url: &str, usual: u16) -> anyhow::Result<Self> {
        let url = Url::parse(url.trim_end_matches('/')).context("a server's address")?;
        let host = url.host_str().context("no host")?;
        let target = format!("{host}:{}", url.port().unwrap_or(usual));
        Ok(Self {
            workers: Proxy::start(&target).await?,
            others: Proxy::start(&target).await?,
            odd: None,
            url,
        })
    }

    async fn with_front(self) -> anyhow::Result<Self> {
        let odd = Some(Front::of(&self.by(&self.others)?).await?);
        Ok(Self { odd, ..self })
    }

    /// The workers' connections lead to the odd one from now on, or to the database itself again; those that are open end.
    async fn answer(&self, odd: Option<Odd>) -> anyhow::Result<()> {
        let front = self.odd.as_ref().context("no front")?;
        match odd {
            Some(odd) => {
                front.set(odd);
                self.workers.retarget(&front.address);
            }
            None => self.workers.retarget(&format!("127.0.0.1:{}", self.others.port)),
        }
        self.workers.set(Mode::Refuse);
        // Each connection sees only what is wanted last.
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.workers.set(Mode::Pass);
        Ok(())
    }

    /// The address through a proxy.
    fn by(&self, proxy: &Proxy) -> anyhow::Result<String> {
        let mut url = self.url.clone();
        url.set_host(Some("127.0.0.1"))?;
        url.set_port(Some(proxy.port)).ok().context("no port")?;
        Ok(url.as_str().trim_end_matches('/').to_owned())
    }

    fn moved(&self, port: u16) {
        for proxy in [&self.workers, &self.others] {
            proxy.retarget(&format!("127.0.0.1:{port}"));
        }
    }
}

pub fn mode(cut: Option<Cut>) -> Mode {
    match cut {
        None => Mode::Pass,
        Some(Cut::Refuse) => Mode::Refuse,
        Some(Cut::Hang) => Mode::Hang,
        Some(Cut::After(bytes)) => Mode::After(bytes),
    }
}

async fn docker(arguments: &[&str]) -> anyhow::Result<()> {
    let docker = std::env::var("DOCKER").unwrap_or_else(|_| "docker".into());
    let output = tokio::process::Command::new(docker).args(arguments).output().await?;
    let err = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "docker {arguments:?}: {err}");
    Ok(())
}

/// Until the database answers.
async fn up(url: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let answer = reqwest::get(format!("{url}/_up")).await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        if begun.elapsed() > READY {
            bail!("the database does not come up");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
