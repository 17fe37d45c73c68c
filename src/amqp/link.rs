//! One connection to one of the brokers, with its reconnect backoff.

use std::time::Duration;

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::{Connection, ConnectionProperties};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;
use tracing::trace;

use crate::config;

use super::brokers::Brokers;
use super::{AmqpError, within};

/// The minimum backoff after the broker refused the connection, for example because of wrong credentials.
const CALM: Duration = Duration::from_millis(500);

/// Connects to the broker that is chosen.
pub struct Link {
    name: &'static str,
    client_name: String,
    config: config::Amqp,
    brokers: Brokers,
    /// Index of the broker that was tried last.
    tried: usize,
    /// Whether each failure moves both connections to the next broker at once. Otherwise only a lasting failure does.
    leads: bool,
    /// The broker that was tried last: host, port and vhost.
    broker: String,
    pause: Duration,
    failing_since: Option<Instant>,
}

/// A connection that does not lead moves to another broker only after it has failed for this long. The leading connection may have met the
/// same fault, or none.
const INSISTS_AFTER: Duration = Duration::from_secs(10);

/// For this long after a loss the backoff stays at its minimum. A broker that restarts is back within this time, and Kazoo's callflow
/// publishes again 500 ms after the restart.
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

    /// Makes one connection attempt, at the selected broker.
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

    /// Records that this broker is unusable: it refused the connection, or did not let the worker use it.
    pub fn failed(&mut self) {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if self.leads || since.elapsed() > INSISTS_AFTER {
            self.brokers.move_on(self.tried);
        }
    }

    /// Waits until another broker is selected than the one of this session.
    pub async fn moved(&self) {
        self.brokers.moved(self.tried).await;
    }

    /// Records that the session is in use. The next loss starts with the minimum backoff again.
    pub fn succeeded(&mut self) {
        self.pause = self.config.reconnect_min;
        self.failing_since = None;
    }

    /// Waits for the reconnect backoff before the next attempt. The backoff is short for a broker that cannot be reached. It is longer for
    /// a broker that answered and refused the connection.
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
    // The URI was parsed once already, when the configuration was checked.
    let uri = config::broker(uri.expose_secret())?;
    let properties = ConnectionProperties::default().with_connection_name(client_name.to_owned().into());
    let connecting = async {
        let runtime = lapin::runtime::default_runtime()?;
        Connection::connect_uri_with_config(uri, properties, tls(config), runtime).await
    };
    within(config.connect_timeout, "connecting", connecting).await
}

/// The TLS settings of `amqps`, in addition to the host's trusted authorities. `amqp` ignores them.
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
    // An error here would only say that the connection is closed already.
    let _ = within(Duration::from_secs(2), "closing", connection.close(200, "bye".into())).await;
}
