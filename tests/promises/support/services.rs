//! The servers: in containers, or ones that run already.

use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use testcontainers::core::{IntoContainerPort as _, WaitFor, wait::HttpWaitStrategy};
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerAsync, GenericImage, ImageExt as _};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Tests that run at once, each in a vhost of its own.
const WIDTH: usize = 4;

/// A RabbitMQ in a container.
pub struct Broker {
    pub container: ContainerAsync<GenericImage>,
    pub port: u16,
}

pub struct Services {
    broker: Option<Broker>,
    couch: Option<ContainerAsync<GenericImage>>,
    pub couch_url: String,
    vhosts: Mutex<Vec<String>>,
    permits: Semaphore,
    width: usize,
}

/// A vhost that one test has for itself.
pub struct Lease<'a> {
    services: &'a Services,
    pub uri: String,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.services.vhosts.lock().unwrap().push(self.uri.clone());
    }
}

impl Services {
    pub async fn start() -> anyhow::Result<Self> {
        let (broker, uris) = match std::env::var("TEST_AMQP_URI") {
            Ok(uris) => (
                None,
                uris.split([',', ' '])
                    .filter(|uri| !uri.is_empty())
                    .map(str::to_owned)
                    .collect(),
            ),
            Err(_) => {
                let broker = Broker::start().await?;
                let uris = broker.vhosts(WIDTH).await?;
                (Some(broker), uris)
            }
        };
        let uris: Vec<String> = uris;
        ensure!(!uris.is_empty(), "TEST_AMQP_URI names no broker");
        let (couch, couch_url) = match std::env::var("TEST_COUCHDB_URL") {
            Ok(url) => (None, url.trim_end_matches('/').to_owned()),
            Err(_) => {
                let (container, url) = couch().await?;
                (Some(container), url)
            }
        };
        let width = uris.len();
        Ok(Self {
            broker,
            couch,
            couch_url,
            vhosts: Mutex::new(uris),
            permits: Semaphore::new(width),
            width,
        })
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub async fn vhost(&self) -> anyhow::Result<Lease<'_>> {
        let permit = self.permits.acquire().await?;
        let uri = self.vhosts.lock().unwrap().pop().context("no vhost is free")?;
        Ok(Lease {
            services: self,
            uri,
            _permit: permit,
        })
    }

    /// The same database, and a broker that a test may restart.
    pub async fn with_broker(&self, broker: &Broker) -> anyhow::Result<Self> {
        let uris = vec![broker.uri("%2f")];
        Ok(Self {
            broker: None,
            couch: None,
            couch_url: self.couch_url.clone(),
            vhosts: Mutex::new(uris),
            permits: Semaphore::new(1),
            width: 1,
        })
    }

    /// Removes the containers.
    pub async fn stop(self) {
        if let Some(broker) = self.broker {
            let _ = broker.container.rm().await;
        }
        if let Some(couch) = self.couch {
            let _ = couch.rm().await;
        }
    }
}

/// The name and tag of an image, as `docker/images.sh` says unless the environment does.
fn image(variable: &str) -> anyhow::Result<GenericImage> {
    let name = match std::env::var(variable) {
        Ok(name) => name,
        Err(_) => {
            let root = env!("CARGO_MANIFEST_DIR");
            for script in ["engine.sh", "images.sh"] {
                let output = Command::new(format!("{root}/docker/{script}"))
                    .stderr(std::process::Stdio::inherit())
                    .output()?;
                ensure!(output.status.success(), "docker/{script} failed");
                if script == "images.sh" {
                    let text = String::from_utf8(output.stdout)?;
                    let found = text
                        .lines()
                        .find_map(|line| line.strip_prefix(variable)?.strip_prefix('='));
                    let found = found
                        .context("docker/images.sh named no image")?
                        .trim_matches(['\'', '"'])
                        .to_owned();
                    return Ok(generic(&found));
                }
            }
            bail!("no image for {variable}")
        }
    };
    Ok(generic(&name))
}

fn generic(name: &str) -> GenericImage {
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => GenericImage::new(name, tag),
        _ => GenericImage::new(name, "latest"),
    }
}

pub async fn couch() -> anyhow::Result<(ContainerAsync<GenericImage>, String)> {
    let up = HttpWaitStrategy::new("/_up")
        .with_port(5984.tcp())
        .with_expected_status_code(200u16);
    let container = image("COUCHDB_IMAGE")?
        .with_exposed_port(5984.tcp())
        .with_wait_for(WaitFor::http(up))
        .with_env_var("COUCHDB_USER", "admin")
        .with_env_var("COUCHDB_PASSWORD", "secret")
        .with_startup_timeout(Duration::from_secs(120))
        .start()
        .await?;
    let port = container.get_host_port_ipv4(5984).await?;
    Ok((container, format!("http://admin:secret@127.0.0.1:{port}")))
}

impl Broker {
    pub async fn start() -> anyhow::Result<Self> {
        let container = image("RABBITMQ_IMAGE")?
            .with_exposed_port(5672.tcp())
            .with_exposed_port(15672.tcp())
            .with_startup_timeout(Duration::from_secs(120))
            .start()
            .await?;
        let port = container.get_host_port_ipv4(5672).await?;
        let broker = Self { container, port };
        broker.wait().await?;
        Ok(broker)
    }

    pub fn uri(&self, vhost: &str) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/{vhost}?heartbeat=5", self.port)
    }

    /// Until it takes connections.
    pub async fn wait(&self) -> anyhow::Result<()> {
        let (begun, uri) = (Instant::now(), self.uri("%2f"));
        loop {
            let connecting = lapin::Connection::connect(&uri, lapin::ConnectionProperties::default());
            match tokio::time::timeout(Duration::from_secs(5), connecting).await {
                Ok(Ok(connection)) => {
                    let _ = connection.close(200, "bye".into()).await;
                    return Ok(());
                }
                _ if begun.elapsed() > Duration::from_secs(120) => bail!("the broker does not come up"),
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Makes `count` vhosts at once: every call of rabbitmqctl costs a second.
    async fn vhosts(&self, count: usize) -> anyhow::Result<Vec<String>> {
        let names: Vec<String> = (1..=count).map(|n| format!("t{n}")).collect();
        let list = names
            .iter()
            .map(|name| format!("<<\"{name}\">>"))
            .collect::<Vec<_>>()
            .join(",");
        self.rabbitmqctl(&[
            "eval",
            &format!(
                "lists:foreach(fun(V) -> rabbit_vhost:add(V, <<\"tests\">>), \
                 rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, V, <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"tests\">>) \
                 end, [{list}])."
            ),
        ])
        .await?;
        Ok(names.iter().map(|name| self.uri(name)).collect())
    }

    /// Turns the management API on; its URL.
    pub async fn management(&self) -> anyhow::Result<String> {
        let docker = std::env::var("DOCKER").unwrap_or_else(|_| "docker".into());
        let output = tokio::process::Command::new(docker)
            .args([
                "exec",
                self.container.id(),
                "rabbitmq-plugins",
                "enable",
                "rabbitmq_management",
            ])
            .output()
            .await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let url = format!("http://127.0.0.1:{}", self.container.get_host_port_ipv4(15672).await?);
        let begun = Instant::now();
        while reqwest::get(&url).await.is_err() {
            ensure!(
                begun.elapsed() < Duration::from_secs(60),
                "the management API does not come up"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(url)
    }

    pub async fn rabbitmqctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let docker = std::env::var("DOCKER").unwrap_or_else(|_| "docker".into());
        let output = tokio::process::Command::new(docker)
            .args(["exec", self.container.id(), "rabbitmqctl"])
            .args(arguments)
            .output()
            .await?;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        ensure!(output.status.success(), "rabbitmqctl {arguments:?}: {out} {err}");
        Ok(out.into_owned())
    }
}
