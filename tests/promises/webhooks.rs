//! Outcomes that endpoints of operators get: signed, at least once, and beside everything that is done to recordings.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use aws_lc_rs::hmac;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::promises;
use crate::simulator::sim::{CallOptions, Recording};
use crate::support::{SOON, Services, TestResult, World, schemas};

promises![
    an_endpoint_gets_a_signed_outcome_once,
    an_endpoint_that_is_down_delays_nothing_and_gets_everything_later,
    a_worker_killed_before_it_notes_the_answer_sends_the_same_notice_again,
    a_notice_is_parked_after_its_last_attempt_and_retry_sends_it,
    two_workers_send_a_notice_once,
    an_endpoint_gets_only_the_outcomes_and_accounts_that_it_wants,
    the_receiver_of_the_documentation_takes_a_signed_test_event,
];

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A request that an endpoint got.
#[derive(Debug, Clone)]
struct Got {
    id: String,
    body: Value,
}

type Rule = Box<dyn Fn(usize) -> Option<u16> + Send + Sync>;

struct Inner {
    rule: Rule,
    got: Mutex<Vec<Got>>,
}

/// An endpoint that checks signatures, and answers as a test wants. Without an answer it holds the connection.
struct Endpoint {
    url: String,
    inner: Arc<Inner>,
    serving: JoinHandle<()>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Endpoint {
    /// `rule` is told how many requests came before.
    async fn with(rule: impl Fn(usize) -> Option<u16> + Send + Sync + 'static) -> anyhow::Result<Self> {
        let inner = Arc::new(Inner {
            rule: Box::new(rule),
            got: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/in?token=t0k3n", listener.local_addr()?);
        let router = Router::new().fallback(take).with_state(Arc::clone(&inner));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Ok(Self { url, inner, serving })
    }

    fn got(&self) -> Vec<Got> {
        self.inner.got.lock().unwrap().clone()
    }

    /// Waits until so many requests came.
    async fn wait(&self, count: usize) -> anyhow::Result<Vec<Got>> {
        let begun = Instant::now();
        while self.got().len() < count {
            ensure!(begun.elapsed() < SOON, "{:?} instead of {count}", self.got());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(self.got())
    }
}

async fn take(State(inner): State<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> (StatusCode, &'static str) {
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    if let Err(why) = genuine(&header, &body) {
        eprintln!("not genuine: {why}");
        return (StatusCode::UNAUTHORIZED, "not genuine");
    }
    let before = {
        let mut got = inner.got.lock().unwrap();
        got.push(Got {
            id: header("webhook-id").to_owned(),
            body: serde_json::from_slice(&body).unwrap(),
        });
        got.len() - 1
    };
    match (inner.rule)(before) {
        Some(status) => (StatusCode::from_u16(status).unwrap(), "said \u{1b}[31m t0k3n"),
        None => std::future::pending().await,
    }
}

fn genuine<'a>(header: &dyn Fn(&str) -> &'a str, body: &[u8]) -> anyhow::Result<()> {
    let stamp: i64 = header("webhook-timestamp").parse()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    ensure!((i64::try_from(now.as_secs())? - stamp).abs() < 30, "stamped {stamp}");
    let key = hmac::Key::new(
        hmac::HMAC_SHA256,
        &STANDARD.decode(SECRET.trim_start_matches("whsec_"))?,
    );
    let signed = [format!("{}.{stamp}.", header("webhook-id")).as_bytes(), body].concat();
    for signature in header("webhook-signature").split(' ') {
        let tag = STANDARD.decode(signature.strip_prefix("v1,").context("no v1")?)?;
        if hmac::verify(&key, &signed, &tag).is_ok() {
            return Ok(());
        }
    }
    bail!("no good signature")
}

/// The settings of endpoints, with short waits.
fn settings(endpoints: &[(&str, &Endpoint)], retry_ms: &str) -> Vec<(String, String)> {
    let mut all = vec![
        ("WEBHOOKS__TIMEOUT_MS".to_owned(), "1000".to_owned()),
        ("WEBHOOKS__RETRY_MS".to_owned(), retry_ms.to_owned()),
        ("DESTINATION__FIRST_PAUSE_MS".to_owned(), "200".to_owned()),
        ("DESTINATION__LONGEST_PAUSE_MS".to_owned(), "400".to_owned()),
    ];
    for (name, endpoint) in endpoints {
        let key = |what: &str| format!("WEBHOOKS__ENDPOINT__{}__{what}", name.to_uppercase());
        all.push((key("URL"), endpoint.url.clone()));
        all.push((key("SECRET"), SECRET.to_owned()));
    }
    all
}

fn borrowed(settings: &[(String, String)]) -> Vec<(&str, &str)> {
    settings
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect()
}

/// Records a call to its end.
async fn record(world: &World<'_>, data: Value) -> anyhow::Result<Recording> {
    let call = world.kazoo.new_call(CallOptions::talking());
    call.execute(data).await?.continued(SOON).await?;
    let recording = call.wait_recording_started(SOON).await?;
    call.hangup("NORMAL_CLEARING").await;
    world.ended(&recording).await
}

fn facts<'a>(entry: &'a Value, kind: &str) -> Vec<&'a Value> {
    let all = entry["facts"].as_array().into_iter().flatten();
    all.filter(|fact| fact["fact"] == kind).collect()
}

/// Waits until the entry has so many facts of this kind.
async fn noted(world: &World<'_>, recording: &Recording, kind: &str, count: usize) -> anyhow::Result<Value> {
    let begun = Instant::now();
    loop {
        let entry = world.entry(&recording.call_id).await?;
        if let Some(entry) = entry.as_ref().filter(|entry| facts(entry, kind).len() >= count) {
            return Ok(entry.clone());
        }
        ensure!(begun.elapsed() < SOON, "not {count} times {kind}: {entry:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn command(
    world: &World<'_>,
    arguments: &[&str],
    settings: &[(String, String)],
) -> anyhow::Result<(bool, String)> {
    let output = world.command_with(arguments, &borrowed(settings)).await?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

async fn an_endpoint_gets_a_signed_outcome_once(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let endpoint = Endpoint::with(|_| Some(204)).await?;
    let settings = settings(&[("archive", &endpoint)], "200,400");
    let worker = world.worker_with(&borrowed(&settings)).await?;
    let recording = record(&world, json!({"format": "wav"})).await?;
    world.stored(&recording).await?;
    let got = endpoint.wait(1).await?.swap_remove(0);
    schemas::check("webhook", &got.body)?;
    let event = world.outcome(&recording.id).await?;
    ensure!(got.id == event["Msg-ID"], "{got:?} {event:#}");
    let data = &got.body["data"];
    ensure!(
        got.body["type"] == "recording.stored" && data["media_id"] == recording.id,
        "{got:?}"
    );
    for (field, header) in [
        ("sha256", "SHA256"),
        ("database", "Database"),
        ("call_id", "Call-ID"),
        ("size", "Size"),
    ] {
        ensure!(data[field] == event[header], "{field}: {data:#} {event:#}");
    }
    let entry = noted(&world, &recording, "webhook_sent", 1).await?;
    ensure!(
        entry["state"] == "stored" && entry.get("webhooks").is_none(),
        "{entry:#}"
    );
    worker
        .counts("kz_record_call_webhooks_total{endpoint=\"archive\",result=\"sent\"} 1")
        .await?;
    // A second recording has gone the same way: the first one's notice is not sent again meanwhile.
    let second = record(&world, json!({"format": "wav"})).await?;
    noted(&world, &second, "webhook_sent", 1).await?;
    ensure!(endpoint.got().len() == 2, "{:?}", endpoint.got());
    for line in worker.lines() {
        ensure!(!line.to_string().contains("t0k3n"), "{line}");
    }
    world.finish().await
}

async fn an_endpoint_that_is_down_delays_nothing_and_gets_everything_later(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let (down, up) = (
        Arc::new(std::sync::atomic::AtomicBool::new(true)),
        Endpoint::with(|_| Some(200)).await?,
    );
    let is_down = Arc::clone(&down);
    let broken = move |before: usize| match is_down.load(std::sync::atomic::Ordering::SeqCst) {
        // It refuses, and it is silent.
        true if before.is_multiple_of(2) => Some(503),
        true => None,
        false => Some(200),
    };
    let broken = Endpoint::with(broken).await?;
    let settings = settings(
        &[("broken", &broken), ("good", &up)],
        "200,200,200,200,200,200,200,200,200,200,200,200,200,200,200,200,200,200,200,200",
    );
    let worker = world.worker_with(&borrowed(&settings)).await?;
    let mut recordings = Vec::new();
    for _ in 0..3 {
        let recording = record(&world, json!({"format": "wav"})).await?;
        // Announced, stored, and the switch's file is gone.
        world.stored(&recording).await?;
        world.state(&recording.call_id, "stored", SOON).await?;
        recordings.push(recording);
    }
    up.wait(3).await?;
    // Attempts that failed, and one that got no answer.
    noted(&world, &recordings[0], "webhook_failed", 2).await?;
    let (_, story) = command(&world, &["explain", &recordings[0].id], &settings).await?;
    ensure!(
        story.contains("webhook to broken, attempt 1 failed: ") && story.contains("broken: stored, attempt "),
        "{story}"
    );
    ensure!(!story.contains("t0k3n") && !story.contains('\u{1b}'), "{story}");
    let (_, listed) = command(&world, &["list", "--webhooks", "owed"], &settings).await?;
    ensure!(listed.contains("3 recordings"), "{listed}");
    worker
        .logged(
            "its circuit breaker open",
            |line| line["event"] == "target_paused" && line["target_name"] == "webhook broken",
            SOON,
        )
        .await?;
    down.store(false, std::sync::atomic::Ordering::SeqCst);
    for recording in &recordings {
        let entry = noted(&world, recording, "webhook_sent", 2).await?;
        ensure!(
            entry["state"] == "stored" && entry.get("webhooks").is_none(),
            "{entry:#}"
        );
    }
    let ids = |endpoint: &Endpoint| {
        let mut ids: Vec<String> = endpoint.got().into_iter().map(|got| got.id).collect();
        ids.sort();
        ids.dedup();
        ids
    };
    ensure!(ids(&up) == ids(&broken) && ids(&up).len() == 3);
    ensure!(up.got().len() == 3, "another endpoint's failures are none of its own");
    world.finish().await
}

async fn a_worker_killed_before_it_notes_the_answer_sends_the_same_notice_again(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    // The first request is taken, and its answer never reaches the worker.
    let endpoint = Endpoint::with(|before| (before > 0).then_some(200)).await?;
    let settings = settings(&[("archive", &endpoint)], "200,400,800");
    let mut worker = world.worker_with(&borrowed(&settings)).await?;
    let recording = record(&world, json!({"format": "wav"})).await?;
    let first = endpoint.wait(1).await?.swap_remove(0);
    noted(&world, &recording, "webhooks_owed", 1).await?;
    worker.kill().await?;
    let _other = world.worker_with(&borrowed(&settings)).await?;
    let entry = noted(&world, &recording, "webhook_sent", 1).await?;
    let got = endpoint.got();
    ensure!(got.len() >= 2 && got.iter().all(|got| got.id == first.id), "{got:?}");
    ensure!(got.iter().all(|got| got.body["type"] == "recording.stored"), "{got:?}");
    ensure!(entry.get("webhooks").is_none(), "{entry:#}");
    world.stored(&recording).await?;
    world.finish().await
}

async fn a_notice_is_parked_after_its_last_attempt_and_retry_sends_it(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let endpoint = Endpoint::with(|before| Some(if before < 3 { 500 } else { 200 })).await?;
    let settings = settings(&[("archive", &endpoint)], "100,100");
    let worker = world.worker_with(&borrowed(&settings)).await?;
    let recording = record(&world, json!({"format": "wav"})).await?;
    let entry = noted(&world, &recording, "webhook_parked", 1).await?;
    ensure!(facts(&entry, "webhook_failed").len() == 3, "{entry:#}");
    ensure!(
        entry["webhooks_parked"] == json!(["archive"]) && entry.get("webhooks").is_none(),
        "{entry:#}"
    );
    let parked = |line: &Value| line["event"] == "webhook_parked" && line["media_id"] == recording.id;
    worker.logged("it parked", parked, SOON).await?;
    let (_, listed) = command(&world, &["list", "--webhooks", "parked"], &settings).await?;
    ensure!(listed.contains(&recording.id), "{listed}");
    let (_, story) = command(&world, &["explain", &recording.id], &settings).await?;
    ensure!(
        story.contains("parked after attempt 3; the last answer: answered 500: said [31m ***"),
        "{story}"
    );
    // The recording itself is stored, and stays so.
    world.stored(&recording).await?;
    let (good, said) = command(&world, &["retry", &recording.id], &settings).await?;
    ensure!(good && said.contains("1 parked webhooks retried"), "{said}");
    let entry = noted(&world, &recording, "webhook_sent", 1).await?;
    ensure!(
        entry["state"] == "stored" && entry.get("webhooks_parked").is_none(),
        "{entry:#}"
    );
    let got = endpoint.got();
    ensure!(got.len() == 4 && got.iter().all(|one| one.id == got[0].id), "{got:?}");
    let (good, said) = command(&world, &["retry", &recording.id], &settings).await?;
    ensure!(!good && said.contains("already stored"), "{said}");
    let (_, listed) = command(&world, &["list", "--webhooks", "parked"], &settings).await?;
    ensure!(listed.contains("0 recordings"), "{listed}");
    world.finish().await
}

async fn two_workers_send_a_notice_once(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    // Each notice fails at first, so that both workers find it due.
    let endpoint = Endpoint::with(|before| Some(if before < 6 { 503 } else { 200 })).await?;
    let settings = settings(&[("archive", &endpoint)], "300,300,300,300,300,300,300,300");
    let _workers = [
        world.worker_with(&borrowed(&settings)).await?,
        world.worker_with(&borrowed(&settings)).await?,
    ];
    let mut recordings = Vec::new();
    for _ in 0..4 {
        recordings.push(record(&world, json!({"format": "wav"})).await?);
    }
    let mut attempts = 0;
    for recording in &recordings {
        let entry = noted(&world, recording, "webhook_sent", 1).await?;
        attempts += facts(&entry, "webhook_failed").len() + facts(&entry, "webhook_sent").len();
    }
    ensure!(
        attempts == endpoint.got().len(),
        "{attempts} noted, {} got",
        endpoint.got().len()
    );
    let sent = endpoint.got().len() - 6;
    ensure!(sent == 4, "{sent} accepted of 4 recordings");
    world.finish().await
}

async fn an_endpoint_gets_only_the_outcomes_and_accounts_that_it_wants(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let (parked, strange, all) = (
        Endpoint::with(|_| Some(200)).await?,
        Endpoint::with(|_| Some(200)).await?,
        Endpoint::with(|_| Some(200)).await?,
    );
    let mut settings = settings(&[("parked", &parked), ("strange", &strange), ("all", &all)], "200");
    settings.push(("WEBHOOKS__ENDPOINT__PARKED__OUTCOMES".into(), "parked".into()));
    settings.push(("WEBHOOKS__ENDPOINT__PARKED__ACCOUNTS".into(), world.account().into()));
    settings.push(("WEBHOOKS__ENDPOINT__STRANGE__ACCOUNTS".into(), "f".repeat(32)));
    let _worker = world.worker_with(&borrowed(&settings)).await?;
    let stored = record(&world, json!({"format": "wav"})).await?;
    let rests = record(&world, json!({"url": "s3://example.com/in"})).await?;
    noted(&world, &stored, "webhook_sent", 1).await?;
    let entry = noted(&world, &rests, "webhook_sent", 2).await?;
    ensure!(entry["state"] == "parked", "{entry:#}");
    let types = |endpoint: &Endpoint| -> Vec<String> {
        let got = endpoint.got().into_iter();
        let mut types: Vec<String> = got.map(|got| got.body["type"].to_string()).collect();
        types.sort();
        types
    };
    ensure!(types(&parked) == ["\"recording.parked\""], "{:?}", types(&parked));
    ensure!(
        types(&all) == ["\"recording.parked\"", "\"recording.stored\""],
        "{:?}",
        types(&all)
    );
    ensure!(strange.got().is_empty());
    ensure!(parked.got()[0].body["data"]["cause"] == "unusable_url");
    // A retry parks it again, and that is another notice.
    let (good, said) = command(&world, &["retry", &rests.id], &settings).await?;
    ensure!(good, "{said}");
    let got = parked.wait(2).await?;
    ensure!(got[0].id != got[1].id, "{got:?}");
    world.finish().await
}

/// The receiver in docs/webhooks.md, as a reader copies it.
fn receiver() -> anyhow::Result<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/webhooks.md"))?;
    let block = page.split("```python\n").nth(1).context("no receiver")?;
    Ok(block.split("```").next().context("no end")?.to_owned())
}

async fn the_receiver_of_the_documentation_takes_a_signed_test_event(services: Arc<Services>) -> TestResult {
    let world = World::new(&services).await?;
    let own = Endpoint::with(|_| Some(200)).await?;
    let mut settings = settings(&[("own", &own)], "200");
    let (good, said) = command(&world, &["webhook", "test", "own"], &settings).await?;
    ensure!(
        good && said.contains("own: accepted test_") && said.contains("answered 200: said [31m ***"),
        "{said}"
    );
    schemas::check("webhook", &own.got()[0].body)?;
    ensure!(own.got()[0].id.starts_with("test_"));
    let (good, said) = command(&world, &["webhook", "test", "other"], &settings).await?;
    ensure!(
        !good && said.contains("no endpoint \"other\"; they have: own"),
        "{said}"
    );
    if tokio::process::Command::new("python3")
        .arg("--version")
        .output()
        .await
        .is_err()
    {
        // The signature itself is checked by the endpoint above, and against the scheme's own vector in a unit test.
        return world.finish().await;
    }
    std::fs::create_dir_all(world.dir())?;
    let file = world.dir().join("receiver.py");
    std::fs::write(&file, receiver()?)?;
    // A port that is free now.
    let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let mut python = tokio::process::Command::new("python3")
        .arg(&file)
        .arg(port.to_string())
        .env("WEBHOOK_SECRET", format!("whsec_{} {SECRET}", STANDARD.encode([7; 32])))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    settings.push((
        "WEBHOOKS__ENDPOINT__OWN__URL".into(),
        format!("http://127.0.0.1:{port}/in"),
    ));
    let begun = Instant::now();
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        ensure!(begun.elapsed() < SOON, "the receiver does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (good, said) = command(&world, &["webhook", "test"], &settings).await?;
    ensure!(good && said.contains("answered 204"), "{said}");
    // Another secret.
    settings.push((
        "WEBHOOKS__ENDPOINT__OWN__SECRET".into(),
        format!("whsec_{}", STANDARD.encode([9; 32])),
    ));
    let (good, said) = command(&world, &["webhook", "test"], &settings).await?;
    ensure!(!good && said.contains("answered 401"), "{said}");
    python.kill().await?;
    let output = python.wait_with_output().await?;
    ensure!(
        String::from_utf8_lossy(&output.stdout).trim() == "webhook.test None",
        "{output:?}"
    );
    world.finish().await
}
