//! Logs and metrics. What happened is a small struct with an `emit` that logs and counts together; see `events`.

use std::io::IsTerminal as _;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{fmt, reload};

use crate::config::{Log, LogFormat};

pub mod events;
mod level;
mod pulse;

pub use level::{FilterError, LogLevel};
pub use pulse::Pulses;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("log.level {0:?} {1}")]
    Filter(String, FilterError),
    #[error("the process has a logger already")]
    Logger,
    #[error("the process has a metrics recorder already: {0}")]
    Metrics(String),
}

/// Sets the process' logger. Logs go to standard error: standard output belongs to commands.
///
/// # Errors
/// A filter that cannot be read, or a logger that is set already.
pub fn init_logs(log: &Log) -> Result<LogLevel, TelemetryError> {
    let filter = level::filter(&log.level).map_err(|why| TelemetryError::Filter(log.level.clone(), why))?;
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let done = match log.format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            registry
                .with(fmt::layer().with_ansi(colours).with_writer(std::io::stderr))
                .try_init()
        }
        LogFormat::Json => registry
            .with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr))
            .try_init(),
    };
    done.map_err(|_| TelemetryError::Logger)?;
    Ok(LogLevel::new(handle, &log.level))
}

/// Sets the process' metrics recorder.
///
/// # Errors
/// A recorder that is set already.
pub fn init_metrics() -> Result<PrometheusHandle, TelemetryError> {
    const SECONDS: &[f64] = &[
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    ];
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| TelemetryError::Metrics(error.to_string()))?;
    events::describe();
    metrics_process::Collector::default().describe();
    Ok(handle)
}
