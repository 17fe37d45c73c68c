//! Exports our spans over OTLP (HTTP, protobuf) to a collector. This requires the feature `otlp` and a configured endpoint.
//!
//! The exporter has its own thread and a bounded queue. When the collector is unreachable, spans are lost, and nothing else is affected.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{self, SdkTracer, SdkTracerProvider, SpanData};
use tracing::{Span, error_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::TelemetryError;
use super::trace::{EXPORTED, Stage, Trace};

/// Time limit of one export.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The path for traces, below the endpoint.
const PATH: &str = "v1/traces";

static ACTIVE: OnceLock<()> = OnceLock::new();

/// The exporter. Shut it down at the end, so that it sends its remaining spans.
#[derive(Debug, Clone)]
pub struct Exporter(SdkTracerProvider);

impl Exporter {
    /// Starts to export to `endpoint`, as `host`.
    pub(super) fn start(endpoint: &url::Url, host: &str) -> Result<Self, TelemetryError> {
        let mut address = endpoint.as_str().trim_end_matches('/').to_owned();
        if !address.ends_with(PATH) {
            address = format!("{address}/{PATH}");
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(address)
            .with_timeout(TIMEOUT)
            .build()
            .map_err(|error| TelemetryError::Traces(error.to_string()))?;
        let resource = Resource::builder()
            .with_service_name(env!("CARGO_PKG_NAME"))
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", host.to_owned()),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(Telling {
                exporter,
                failed: AtomicBool::new(false),
            })
            .with_resource(resource)
            .build();
        Ok(Self(provider))
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.0.tracer("kz_record_call")
    }

    /// Sends the remaining spans, for some seconds at most.
    pub fn shut_down(&self) {
        if let Err(error) = self.0.shutdown_with_timeout(TIMEOUT) {
            tracing::debug!(event = "spans_lost", %error, "last spans not exported");
        }
    }
}

/// Logs when the collector stops accepting spans and when it accepts them again, but not each failure.
#[derive(Debug)]
struct Telling {
    exporter: SpanExporter,
    failed: AtomicBool,
}

impl trace::SpanExporter for Telling {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        match (&result, self.failed.swap(result.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => tracing::warn!(event = "collector_down", %error, "spans not exported"),
            (Ok(()), true) => tracing::info!(event = "collector_up", "spans exported again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// From this call on, spans are created.
pub(super) fn activate() {
    let _ = ACTIVE.set(());
}

pub(super) fn is_active() -> bool {
    ACTIVE.get().is_some()
}

/// One of our spans below `parent`, or the first of a new trace. Also the context for its messages.
pub(super) fn open(stage: Stage, parent: Option<&Trace>) -> Option<(Span, Trace)> {
    use tracing::field::Empty;
    let span = match stage {
        Stage::Action => error_span!(target: EXPORTED, "action", trace_id = Empty, otel.kind = ?SpanKind::Consumer),
        Stage::Command => error_span!(target: EXPORTED, "command", trace_id = Empty, otel.kind = ?SpanKind::Producer),
        Stage::Collect => error_span!(target: EXPORTED, "collect", trace_id = Empty, otel.kind = ?SpanKind::Client),
        Stage::Delivery => error_span!(target: EXPORTED, "delivery", trace_id = Empty, otel.kind = ?SpanKind::Client),
        Stage::Recording => return None,
    };
    if let Some(context) = parent.and_then(remote) {
        // An error means that this process' layer does not record the span. The context is then passed on unchanged.
        let _ = span.set_parent(Context::new().with_remote_span_context(context));
    }
    let context = span.context();
    let own = context.span().span_context().clone();
    let trace = if own.is_valid() {
        let header = format!(
            "00-{}-{}-{:02x}",
            own.trace_id(),
            own.span_id(),
            own.trace_flags().to_u8()
        );
        Trace::read(&header, parent.and_then(Trace::state))
    } else {
        parent.cloned()
    }?;
    span.record("trace_id", trace.id());
    Some((span, trace))
}

/// The sender's span, from the message.
fn remote(trace: &Trace) -> Option<SpanContext> {
    let mut parts = trace.parent().split('-').skip(1);
    let trace_id = TraceId::from_hex(parts.next()?).ok()?;
    let span_id = SpanId::from_hex(parts.next()?).ok()?;
    let flags = u8::from_str_radix(parts.next()?, 16).ok()?;
    let state = trace.state().and_then(|state| state.parse::<TraceState>().ok());
    Some(SpanContext::new(
        trace_id,
        span_id,
        TraceFlags::new(flags),
        true,
        state.unwrap_or_default(),
    ))
}
