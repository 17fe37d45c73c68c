//! Logs and metrics. Each event is a small struct whose `emit` logs and counts; see `events`.

use std::io::IsTerminal as _;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt, reload};

use crate::config::{self, Config, FilterError, LogFormat};

pub mod events;
mod level;
mod masked;
#[cfg(feature = "otlp")]
mod otlp;
mod pulse;
mod survive;
pub mod trace;

pub use level::LogLevel;
pub use masked::masked;
pub use pulse::Pulses;
pub use survive::{survive, survive_for_ever, words};

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("log.level {0:?} {1}")]
    Filter(String, FilterError),
    #[error("traces cannot be exported: {0}")]
    Traces(String),
    #[error("the process has a logger already")]
    Logger,
    #[error("the process has a metrics recorder already: {0}")]
    Metrics(String),
}

/// Handles on the process' logger.
pub struct Logs {
    pub level: LogLevel,
    #[cfg(feature = "otlp")]
    exporter: Option<otlp::Exporter>,
}

impl Logs {
    /// Exports the remaining spans at the end of the process. It blocks for some seconds at most, so do not call it on the runtime.
    pub fn shut_down(&self) {
        #[cfg(feature = "otlp")]
        if let Some(exporter) = &self.exporter {
            exporter.shut_down();
        }
    }
}

/// Sets the process' logger and the exporter of its traces. Logs go to standard error, because commands write to standard output.
///
/// # Errors
/// When the filter cannot be parsed, the exporter cannot be created, or a logger is set already.
pub fn init_logs(config: &Config) -> Result<Logs, TelemetryError> {
    let log = &config.log;
    let filter = config::log_filter(&log.level).map_err(|why| TelemetryError::Filter(log.level.clone(), why))?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = match log.format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            fmt::layer().with_ansi(colours).with_writer(std::io::stderr).boxed()
        }
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            // The innermost span has the trace's id, as each of them does.
            .with_span_list(false)
            .with_writer(std::io::stderr)
            .boxed(),
    };
    let registry = tracing_subscriber::registry().with(lines.with_filter(filter));
    #[cfg(feature = "otlp")]
    let exporter = match &config.telemetry.otlp_endpoint {
        Some(endpoint) => Some(otlp::Exporter::start(endpoint, &config.kazoo.host)?),
        None => None,
    };
    #[cfg(feature = "otlp")]
    let registry = registry.with(exporter.as_ref().map(|exporter| {
        let ours = tracing_subscriber::filter::filter_fn(|about| about.target() == trace::EXPORTED);
        tracing_opentelemetry::layer()
            .with_tracer(exporter.tracer())
            .with_filter(ours)
    }));
    registry.try_init().map_err(|_| TelemetryError::Logger)?;
    #[cfg(feature = "otlp")]
    if exporter.is_some() {
        otlp::activate();
    }
    Ok(Logs {
        level: LogLevel::new(handle, &log.level),
        #[cfg(feature = "otlp")]
        exporter,
    })
}

/// Sets the process' metrics recorder.
///
/// # Errors
/// When a recorder is set already.
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
