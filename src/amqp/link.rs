//! One connection to one of the brokers, and the pauses between attempts.

use std::time::Duration;

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::{Connection, ConnectionProperties};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;
use tracing::trace;

use crate::config;

use super::brokers::Brokers;
use super::{AmqpError, within};

/// The pause after an answer of the broker that is not a connection, such as wrong credentials.
const CALM: Duration = Duration::from_millis(500);

/// Connects to the broker that is chosen.
pub struct Link {
    name: &'static str,
    client_name: String,
    config: config::Amqp,
    brokers: Brokers,
    /// Which one was tried last.
    tried: usize,
    /// Whether a failure moves both connections to the next broker at once; else only one that lasts.
    leads: bool,
    /// Which one was tried last: host, port and vhost.
    broker: String,
    pause: Duration,
    failing_since: Option<Instant>,
}

/// A connection that follows asks for another broker when it has failed for so long: the other one may have the same trouble, or none.
const INSISTS_AFTER: Duration = Duration::from_secs(10);

/// For this long after a loss the pauses stay at their minimum: a broker that restarts is back within it, and Kazoo's callflow publishes
/// again 500 ms after it.
const EAGER: Duration = Duration::from_secs(60);

impl Link {
    pub fn new(name: &'static str, node: &str, config: config::Amqp, brokers: &Brokers, leads: bool) -> Self {
        let pause = config.reconnect_min;
        Self {
            name,
            client_name: format!("{node} {name}"),
            config,
            brokers: brokers.clone(),
            tried: 0,
            leads,
            broker: String::new(),
            pause,
            failing_since: None,
        }
    }

    /// One attempt, at the broker that is chosen now.
    pub async fn connect(&mut self) -> Result<Connection, AmqpError> {
        self.tried = self.brokers.chosen();
        let uri = &self.config.uris[self.tried % self.config.uris.len()];
        self.broker = config::broker(uri.expose_secret()).map_or_else(
            |error| error.to_string(),
            |uri| format!("{}/{}", config::authority(&uri), uri.vhost.trim_start_matches('/')),
        );
        let begun = Instant::now();
        let connected = connect(&self.config, uri, &self.client_name).await;
        let (connection, took) = (self.name, begun.elapsed());
        trace!(
            event = "amqp_connect_attempt",
            connection,
            ?took,
            connected = connected.is_ok(),
            "connect attempt"
        );
        if connected.is_err() {
            self.failed();
        }
        connected
    }

    /// This broker is of no use: it takes no connection, or does not let us work on one.
    pub fn failed(&mut self) {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if self.leads || since.elapsed() > INSISTS_AFTER {
            self.brokers.move_on(self.tried);
        }
    }

    /// Until another broker is chosen than the one of this session.
    pub async fn moved(&self) {
        self.brokers.moved(self.tried).await;
    }

    /// The session reached its work: the next loss is a new one.
    pub fn succeeded(&mut self) {
        self.pause = self.config.reconnect_min;
        self.failing_since = None;
    }

    /// Waits before the next attempt. A broker that is not there is looked for often; one that is there, and will not have us, is not
    /// pestered.
    pub async fn pause(&mut self, ended: &AmqpError) {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        let pause = if ended.is_refused_by_broker() {
            self.pause.max(CALM)
        } else {
            self.pause
        };
        tokio::time::sleep(pause.min(self.config.reconnect_max)).await;
        if since.elapsed() > EAGER {
            self.pause = (self.pause * 2).min(self.config.reconnect_max);
        }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The broker that was tried last, without credentials.
    pub fn broker(&self) -> &str {
        &self.broker
    }
}

/// Connects to one broker, within the configured time. `client_name` is what the broker's own tools show.
///
/// # Errors
/// `Tls` names the setting that helps.
pub async fn connect(config: &config::Amqp, uri: &SecretString, client_name: &str) -> Result<Connection, AmqpError> {
    // Read once already, when the configuration was checked.
    let uri = config::broker(uri.expose_secret())?;
    let properties = ConnectionProperties::default().with_connection_name(client_name.to_owned().into());
    let connecting = async {
        let runtime = lapin::runtime::default_runtime()?;
        Connection::connect_uri_with_config(uri, properties, tls(config), runtime).await
    };
    within(config.connect_timeout, "connecting", connecting).await
}

/// What `amqps` needs besides the host's own authorities; `amqp` does not look at it.
fn tls(config: &config::Amqp) -> OwnedTLSConfig {
    OwnedTLSConfig {
        identity: config.identity.as_ref().map(|identity| OwnedIdentity::PKCS8 {
            pem: identity.certificate.as_bytes().to_vec(),
            key: identity.key.as_bytes().to_vec(),
        }),
        cert_chain: config.ca.as_ref().map(|authorities| authorities.pem.to_string()),
    }
}

/// Closes a connection that may be dead already.
pub async fn close(connection: &Connection) {
    // The error would only say that it is closed.
    let _ = within(Duration::from_secs(2), "closing", connection.close(200, "bye".into())).await;
}
