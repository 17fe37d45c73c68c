//! The admin port: `/livez`, `/readyz`, `/metrics`, `/log-level`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::amqp::{Consumers, Publisher};
use crate::config;
use crate::couch::Couch;
use crate::destination::circuit_breaker::CircuitBreakers;
use crate::flow::common::Common;
use crate::hold::Hold;
use crate::ingest::Ingest;
use crate::ledger::Ledger;
use crate::telemetry::{LogLevel, Pulses, survive};

pub mod watch;

/// Instruments of the process. Each one is `None` if the process did not set it up.
#[derive(Clone, Default)]
pub struct Instruments {
    /// Renders the metrics.
    pub metrics: Option<PrometheusHandle>,
    /// Changes what is logged.
    pub log_level: Option<LogLevel>,
}

/// The longest request body that is read.
const MAX_BODY: usize = 16 << 10;

/// Time limit for an answer of the database, and of the spool's disk.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the admin port reports of.
pub struct Watched {
    pub common: Arc<Common>,
    pub publisher: Publisher,
    pub consumers: Consumers,
    pub couch: Couch,
    pub ingest: Ingest,
    pub ledger: Ledger,
    pub hold: Hold,
    pub targets: Arc<CircuitBreakers>,
}

/// Asks whether the worker can do its work.
#[derive(Clone)]
pub struct Readiness {
    watched: Arc<Watched>,
    /// Allows one check of the spool at a time. On a disk that hangs, each check would block a
    /// thread for ever.
    looking: Arc<Semaphore>,
}

/// One thing that readiness depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    /// What is wrong, in words.
    pub fault: Option<String>,
}

impl Readiness {
    pub fn new(watched: Arc<Watched>) -> Self {
        Self {
            watched,
            looking: Arc::new(Semaphore::new(1)),
        }
    }

    /// Runs all checks.
    pub async fn checks(&self) -> Vec<Check> {
        let watched = &self.watched;
        let check = |name, good: bool, fault: &str| Check {
            name,
            fault: (!good).then(|| fault.to_owned()),
        };
        let database = match tokio::time::timeout(PATIENCE, watched.couch.ping()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {PATIENCE:?}")),
        };
        vec![
            check(
                "consuming",
                watched.consumers.state().consuming,
                "the queues are not bound and consumed",
            ),
            Check {
                name: "publishing",
                fault: match watched.publisher.alarm() {
                    Some(reason) => Some(format!("the broker takes no messages: {reason}")),
                    None if !watched.publisher.is_connected() => Some("there is no connection to publish on".into()),
                    None => None,
                },
            },
            Check {
                name: "database",
                fault: database,
            },
            Check {
                name: "spool",
                fault: self.spool().await,
            },
            check(
                "running",
                !watched.common.stop().is_cancelled(),
                "the worker is going down",
            ),
        ]
    }

    async fn spool(&self) -> Option<String> {
        let hangs = || Some(format!("the spool folder does not answer within {PATIENCE:?}"));
        let Ok(permit) = Arc::clone(&self.looking).try_acquire_owned() else {
            // Another check is running. If it ends in time, this check reports no fault, and the
            // next request shows what is wrong.
            return match tokio::time::timeout(PATIENCE, self.looking.acquire()).await {
                Ok(_) => None,
                Err(_) => hangs(),
            };
        };
        let watched = Arc::clone(&self.watched);
        let look = tokio::task::spawn_blocking(move || {
            let good = watched.ingest.spool().is_writable();
            drop(permit);
            good
        });
        match tokio::time::timeout(PATIENCE, look).await {
            Ok(Ok(true)) => None,
            Ok(_) => Some("the spool folder cannot be written".into()),
            Err(_) => hangs(),
        }
    }
}

#[derive(Clone)]
struct Admin {
    readiness: Readiness,
    instruments: Instruments,
    pulses: Pulses,
    process: metrics_process::Collector,
}

/// The admin port: bound, but not serving yet.
pub struct Port {
    listener: TcpListener,
    address: SocketAddr,
}

/// Binds the admin port.
///
/// # Errors
/// When the address cannot be bound.
pub async fn listen(config: &config::Admin) -> std::io::Result<Port> {
    let listener = TcpListener::bind(config.listen).await?;
    let address = listener.local_addr()?;
    Ok(Port { listener, address })
}

impl Port {
    /// Begins to serve; returns the address that was bound.
    pub fn serve(
        self,
        readiness: Readiness,
        instruments: Instruments,
        pulses: Pulses,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> SocketAddr {
        let Self { listener, address } = self;
        let router = Router::new()
            .route("/livez", get(alive))
            .route("/readyz", get(ready))
            .route("/metrics", get(render))
            .route("/log-level", get(log_level).put(set_log_level))
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .with_state(Admin {
                readiness,
                instruments,
                pulses,
                process: metrics_process::Collector::default(),
            });
        let serving = async move {
            let service = router.into_make_service_with_connect_info::<SocketAddr>();
            if let Err(error) = axum::serve(listener, service)
                .with_graceful_shutdown(stop.cancelled_owned())
                .await
            {
                tracing::error!(event = "admin_port_stopped", %error, "admin port stopped");
            }
        };
        tasks.spawn(survive("admin", serving));
        address
    }
}

/// A task that every worker needs and that is silent for longer makes the worker count as dead: a container's supervisor restarts it then, as systemd does
/// without a heartbeat.
const SILENT: Duration = Duration::from_secs(60);

/// `/livez`: whether every task that the worker needs makes progress.
async fn alive(State(admin): State<Admin>) -> (StatusCode, String) {
    match admin.pulses.silent(SILENT) {
        None => (StatusCode::OK, "alive\n".into()),
        Some((task, silent)) => {
            let text = format!("the task {task} has been silent for {} s\n", silent.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

/// 200 when everything is in order, else 503; a line for each check.
async fn ready(State(admin): State<Admin>) -> Response {
    let checks = admin.readiness.checks().await;
    let status = if checks.iter().all(|check| check.fault.is_none()) {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut lines: String = checks
        .iter()
        .map(|check| format!("{}: {}\n", check.name, check.fault.as_deref().unwrap_or("ok")))
        .collect();
    // Open circuit breakers do not make the worker unready: it still delivers to the other targets.
    for (target, why) in admin.readiness.watched.targets.paused() {
        lines.push_str(&format!("target {target}: paused: {why}\n"));
    }
    (status, lines).into_response()
}

async fn render(State(admin): State<Admin>) -> Response {
    match &admin.instruments.metrics {
        Some(handle) => {
            admin.process.collect();
            handle.run_upkeep();
            (
                [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
                handle.render(),
            )
                .into_response()
        }
        None => (StatusCode::NOT_FOUND, "no metrics are recorded\n").into_response(),
    }
}

async fn log_level(State(admin): State<Admin>) -> Response {
    match &admin.instruments.log_level {
        Some(level) => format!("{}\n", level.get()).into_response(),
        None => (StatusCode::NOT_FOUND, "the log level cannot be changed\n").into_response(),
    }
}

/// The body is the filter, as in `log.level`. The filter applies until the worker ends.
async fn set_log_level(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    filter: String,
) -> Response {
    if !may_set_log_level(admin.readiness.watched.common.config.admin.log_level_from, peer) {
        let why = "only from this host's loopback address: see admin.log_level_from\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    let Some(level) = &admin.instruments.log_level else {
        return (StatusCode::NOT_FOUND, "the log level cannot be changed\n").into_response();
    };
    match level.set(&filter) {
        Ok(()) => format!("{}\n", level.get()).into_response(),
        Err(why) => {
            let given = crate::kazoo::call::clip(filter.trim(), 200);
            (StatusCode::BAD_REQUEST, format!("{given:?} {why}\n")).into_response()
        }
    }
}

fn may_set_log_level(from: config::LogLevelFrom, peer: SocketAddr) -> bool {
    match from {
        config::LogLevelFrom::Anywhere => true,
        // A socket that listens on `::` shows an IPv4 peer as a mapped address.
        config::LogLevelFrom::Loopback => peer.ip().to_canonical().is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_changes_what_is_logged_unless_a_setting_says_otherwise() {
        for (peer, ours) in [
            ("127.0.0.1:1", true),
            ("127.8.9.1:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("172.17.0.1:1", false),
            ("[::ffff:10.0.0.1]:1", false),
            ("[fe80::1]:1", false),
        ] {
            let peer = peer.parse().unwrap();
            assert_eq!(may_set_log_level(config::LogLevelFrom::Loopback, peer), ours, "{peer}");
            assert!(may_set_log_level(config::LogLevelFrom::Anywhere, peer));
        }
    }
}
