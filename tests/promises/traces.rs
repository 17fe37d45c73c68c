//! A trace that comes with an action is carried through all that follows from it.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::promises;
use crate::simulator::sim::{CallOptions, Observed, RawExecute, Recording};
use crate::support::{SOON, Services, TestResult, Worker, World};

#[cfg(not(feature = "otlp"))]
promises![
    an_actions_trace_is_on_all_that_follows_from_it,
    a_collector_is_refused_by_a_program_that_cannot_export,
];
#[cfg(feature = "otlp")]
promises![
    an_actions_trace_is_on_all_that_follows_from_it,
    the_spans_of_an_action_reach_the_collector,
];

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Records one call; its action has these headers.
async fn record(world: &World<'_>, headers: &[(&str, &str)]) -> anyhow::Result<Recording> {
    let call = world.kazoo.new_call(CallOptions::talking());
    let mut action = RawExecute::new(Value::Object(call.action(json!({}))?).to_string());
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert((*name).into(), AMQPValue::LongString((*value).into()));
    }
    action.properties = action.properties.with_headers(table);
    call.execute_raw(action).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.stored(&recording).await?;
    world.state(&call.id(), "stored", SOON).await?;
    Ok(recording)
}

/// Those that belong to one recording, whose action ran in between.
fn since(world: &World<'_>, before: usize) -> Vec<Observed> {
    world.kazoo.tap().messages().split_off(before)
}

async fn an_actions_trace_is_on_all_that_follows_from_it(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let worker = world.worker().await?;
    let recording = record(&world, &[("traceparent", PARENT), ("tracestate", "vendor=1")]).await?;
    let messages = since(&world, 0);
    for name in ["action.accepted", "action.result", "command", "doc_created", "stored"] {
        let message = messages.iter().find(|message| message.name == name);
        let message = message.with_context(|| format!("{name} was not seen"))?;
        ensure!(belongs(message), "{name}: {:?}", message.traceparent);
        ensure!(
            !message.body.keys().any(|key| key.contains("trace")),
            "{name} has it in its body"
        );
    }
    // The upload that was asked of the switch, long after the action.
    let asked = messages.iter().find(|message| message.header("Command") == "send_http");
    ensure!(asked.is_some_and(belongs), "{asked:#?}");
    for told in ["action answered", "recording ended", "delivered", "recording closed"] {
        let fits = |line: &Value| line["message"] == told && line["span"]["trace_id"] == TRACE;
        worker.logged(&format!("{told:?} with its trace"), fits, SOON).await?;
    }
    let (_, story) = world.command(&["explain", &recording.id, "--json"]).await?;
    ensure!(story.contains(PARENT), "{story}");
    // What is no context is as good as none.
    for headers in [&[][..], &[("traceparent", "00-nonsense-01")]] {
        let before = world.kazoo.tap().messages().len();
        record(&world, headers).await?;
        untraced(&worker, &since(&world, before))?;
    }
    world.finish().await
}

fn belongs(message: &Observed) -> bool {
    let trace = message.traceparent.as_deref().unwrap_or_default();
    trace.get(3..35) == Some(TRACE)
}

/// Without a collector nobody begins a trace.
#[cfg(not(feature = "otlp"))]
fn untraced(_: &Worker, messages: &[Observed]) -> TestResult {
    let traced = messages.iter().find(|message| message.traceparent.is_some());
    ensure!(!messages.is_empty() && traced.is_none(), "{traced:#?}");
    Ok(())
}

#[cfg(feature = "otlp")]
fn untraced(_: &Worker, messages: &[Observed]) -> TestResult {
    ensure!(
        messages.iter().all(|message| message.traceparent.is_none()),
        "{messages:#?}"
    );
    Ok(())
}

#[cfg(not(feature = "otlp"))]
async fn a_collector_is_refused_by_a_program_that_cannot_export(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let mut worker = world.start_worker(&[("TELEMETRY__OTLP_ENDPOINT", "http://127.0.0.1:4318")])?;
    let status = worker.exited().await?;
    ensure!(status.code() == Some(64), "{status}");
    let log = worker.log();
    ensure!(
        log.contains("telemetry.otlp_endpoint") && log.contains("without the feature otlp"),
        "{log}"
    );
    world.finish().await
}

/// Paths and bodies.
#[cfg(feature = "otlp")]
type Kept = std::sync::Mutex<Vec<(String, Vec<u8>)>>;

/// A collector that keeps what it is sent.
#[cfg(feature = "otlp")]
struct Collector {
    url: String,
    bodies: Arc<Kept>,
}

#[cfg(feature = "otlp")]
impl Collector {
    async fn start() -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let bodies: Arc<Kept> = Arc::default();
        let kept = Arc::clone(&bodies);
        let take = move |uri: axum::http::Uri, body: bytes::Bytes| {
            kept.lock().unwrap().push((uri.path().to_owned(), body.to_vec()));
            async { "" }
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(take)).await });
        Ok(Self { url, bodies })
    }

    /// Whether these bytes were sent.
    fn has(&self, bytes: &[u8]) -> bool {
        let bodies = self.bodies.lock().unwrap();
        bodies
            .iter()
            .any(|(_, body)| body.windows(bytes.len()).any(|part| part == bytes))
    }
}

#[cfg(feature = "otlp")]
async fn the_spans_of_an_action_reach_the_collector(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let collector = Collector::start().await?;
    let mut worker = world
        .worker_with(&[("TELEMETRY__OTLP_ENDPOINT", &collector.url)])
        .await?;
    record(&world, &[("traceparent", PARENT)]).await?;
    let messages = since(&world, 0);
    let command = messages
        .iter()
        .find(|message| message.name == "command" && belongs(message));
    let command = command.context("the command is not in the trace")?;
    let own = command.traceparent.clone().unwrap_or_default();
    ensure!(
        own.get(36..52) != PARENT.get(36..52),
        "the command names its own span, not the caller's: {own}"
    );
    // An action without a context begins a trace.
    let before = world.kazoo.tap().messages().len();
    record(&world, &[]).await?;
    let begun = since(&world, before);
    let of = |name: &str| {
        let message = begun.iter().find(|message| message.name == name);
        message
            .and_then(|message| message.traceparent.clone())
            .and_then(|parent| Some(parent.get(3..35)?.to_owned()))
    };
    ensure!(
        of("command").is_some() && of("command") == of("action.result") && of("command") == of("stored"),
        "{begun:#?}"
    );
    worker.terminate(SOON).await?;
    let trace: Vec<u8> = (0..16)
        .map(|n| u8::from_str_radix(&TRACE[n * 2..n * 2 + 2], 16).unwrap())
        .collect();
    ensure!(collector.has(&trace), "nothing of the trace was sent");
    for span in ["action", "command", "collect", "delivery", "kz-record-call"] {
        ensure!(collector.has(span.as_bytes()), "no span {span} was sent");
    }
    let paths = collector
        .bodies
        .lock()
        .unwrap()
        .iter()
        .all(|(path, _)| path == "/v1/traces");
    ensure!(paths, "sent elsewhere");
    // A collector that is away costs spans, is told once, and holds nothing up.
    let mut worker = world
        .worker_with(&[("TELEMETRY__OTLP_ENDPOINT", "http://127.0.0.1:9")])
        .await?;
    record(&world, &[]).await?;
    record(&world, &[]).await?;
    ensure!(worker.terminate(SOON).await?.success());
    let lost = worker.log().matches("\"event\":\"collector_down\"").count();
    ensure!(lost == 1, "told {lost} times: {}", worker.tail());
    world.finish().await
}
