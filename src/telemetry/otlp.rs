//! Our spans, exported over OTLP (HTTP, protobuf) to a collector. Only with the feature `otlp`, and only when an endpoint is configured.
//!
//! The exporter has a thread of its own and a queue with a bound: a collector that is away costs spans, and nothing else.

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

/// The whole of one export.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where traces are posted, below the endpoint.
const PATH: &str = "v1/traces";

static ACTIVE: OnceLock<()> = OnceLock::new();

/// The exporter. To be shut down at the end, so that what it has goes out.
#[derive(Debug, Clone)]
pub struct Exporter(SdkTracerProvider);

impl Exporter {
    /// Begins to export to `endpoint`, as `host`.
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

    /// Sends what is left, for a few seconds at most.
    pub fn shut_down(&self) {
        if let Err(error) = self.0.shutdown_with_timeout(TIMEOUT) {
            tracing::debug!(event = "spans_lost", %error, "last spans not exported");
        }
    }
}

/// Tells when the collector stops taking spans, and when it takes them again; not each time.
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

/// Spans are made from now on.
pub(super) fn activate() {
    let _ = ACTIVE.set(());
}

pub(super) fn is_active() -> bool {
    ACTIVE.get().is_some()
}

/// A span of ours below `parent`, or the first of a new trace; and the context that its messages carry.
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
        // An error says that the span is not recorded by this process' layer; the context is passed on as it came then.
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

/// What the message said of its sender's span.
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
