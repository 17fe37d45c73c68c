//! `kazoo-sim demo`: calls through a running worker, from the flow's action to the stored document: into the account's database, to a user's
//! URL, and to a third party's database.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{
    audio::{Audio, Size},
    call::Call,
    callflow::{Outcome, Run},
    couch::{self, Couch, Seeded},
    kazoo::Kazoo,
    options::{CallOptions, KazooOptions, QueueStyle},
    report::{CallReport, Paint, say, verdict},
    term::Decision,
    wire::Clock,
};

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct DemoOptions {
    pub amqp_uri: String,
    pub couchdb_url: String,
    pub database_prefix: String,
    pub account: String,
    pub calls: usize,
    pub third_party_url: Option<String>,
    pub worker_admin_url: Option<String>,
    pub recordings: Option<std::path::PathBuf>,
    /// The name by which the worker reaches this host.
    pub receiver_host: String,
    pub durable_queues: bool,
    /// How long to wait for a worker.
    pub patience: Duration,
    /// How long people talk, for the eye only.
    pub talk: Duration,
}

/// Runs the demonstration; `false` when anything was not as it must be.
pub async fn run(options: DemoOptions) -> anyhow::Result<bool> {
    let paint = Paint::detect();
    say(paint.bold("kz-record-call: a demonstration with a simulated Kazoo"));
    let seeded = couch::seed(
        &options.couchdb_url,
        &options.database_prefix,
        &options.account,
        Clock::default(),
    )
    .await
    .context("preparing the databases")?;
    say(paint.dim(&format!("   databases ready, this month's is {}", seeded.modb)));
    let kazoo = Kazoo::start(KazooOptions {
        account_id: options.account.clone(),
        recordings: options.recordings.clone(),
        queues: if options.durable_queues {
            QueueStyle::Durable
        } else {
            QueueStyle::Kazoo
        },
        ..KazooOptions::new(&options.amqp_uri)
    })
    .await
    .context("connecting the simulated cluster to RabbitMQ")?;
    say(paint.dim(&format!(
        "   callflow, ecallmgr and switch are up, recording into {}",
        kazoo.folder().display()
    )));
    if let Some(url) = &options.worker_admin_url {
        wait_ready(url, options.patience).await?;
        say(paint.dim("   the worker says that it is ready"));
    }
    let mut places = vec![Place::Account; options.calls];
    places.push(Place::Url(
        Receiver::start(&options.receiver_host)
            .await
            .context("the user's server")?,
    ));
    if let Some(url) = &options.third_party_url {
        places.push(Place::ThirdParty(Couch::new(url, &options.database_prefix)?));
    }
    let mut reports = Vec::new();
    for (i, place) in places.iter().enumerate() {
        let report = one_call(&kazoo, &seeded, &options, (i, place), paint).await;
        report.print(paint, &kazoo.timeline());
        reports.push(report);
    }
    Ok(verdict(paint, &reports, &kazoo.violations()))
}

async fn wait_ready(url: &str, patience: Duration) -> anyhow::Result<()> {
    let url = format!("{}/readyz", url.trim_end_matches('/'));
    let deadline = Instant::now() + patience;
    loop {
        let last = match reqwest::get(&url).await {
            Ok(response) if response.status().is_success() => return Ok(()),
            Ok(response) => response.status().to_string(),
            Err(e) => e.to_string(),
        };
        if Instant::now() > deadline {
            bail!("the worker did not become ready: {url}: {last}");
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// A name and a number.
type Party = (&'static str, &'static str);

/// The people of the demonstration: who calls whom.
const PARTIES: [(Party, Party); 3] = [
    (("Alice", "1001"), ("Bob", "1002")),
    (("Carol", "+14155550100"), ("Front Desk", "1000")),
    (("Dave", "1004"), ("Erin", "+4930123456")),
];

/// Where a call's recording is to go.
#[derive(Clone)]
enum Place {
    Account,
    Url(Receiver),
    ThirdParty(Couch),
}

impl Place {
    const fn words(&self) -> &'static str {
        match self {
            Self::Account => "into the account's database",
            Self::Url(_) => "to a user's URL",
            Self::ThirdParty(_) => "into a third party's database",
        }
    }
}

async fn one_call(
    kazoo: &Kazoo,
    seeded: &Seeded,
    options: &DemoOptions,
    (i, place): (usize, &Place),
    paint: Paint,
) -> CallReport {
    let (caller, callee) = PARTIES[i % PARTIES.len()];
    let format = if i.is_multiple_of(2) { "mp3" } else { "wav" };
    let size = Size::Millis(4_000 + 1_500 * i as u64);
    let call = kazoo.new_call(CallOptions::talking().parties(caller, callee).size(size));
    let mut report = CallReport {
        title: format!(
            "call {}: {} calls {}, recorded as {format} {}",
            i + 1,
            caller.0,
            callee.0,
            place.words()
        ),
        began: Instant::now(),
        call_id: call.id(),
        recording: None,
        stored: None,
        database: String::new(),
        outcome: None,
        notices: Vec::new(),
        listed: None,
        arrived: None,
        failures: Vec::new(),
    };
    say("");
    say(format!("   {} calls {}", caller.0, callee.0));
    if let Err(e) = story(kazoo, seeded, options, (&call, place), (format, paint), &mut report).await {
        report.failures.push(format!("{e:#}"));
    }
    report
}

async fn story(
    kazoo: &Kazoo,
    seeded: &Seeded,
    options: &DemoOptions,
    (call, place): (&Call, &Place),
    (format, paint): (&str, Paint),
    report: &mut CallReport,
) -> anyhow::Result<()> {
    let report_began = report.began;
    let step = |text: &str| say(paint.dim(&format!("     {:>6.2} s  {text}", report_began.elapsed().as_secs_f64())));
    let mut data = json!({"action": "start", "format": format, "label": "demonstration", "time_limit": 600});
    if let Place::Url(receiver) = place {
        data["url"] = json!(receiver.url);
    }
    let third_party = match place {
        Place::ThirdParty(_) => options.third_party_url.clone(),
        _ => None,
    };
    seeded
        .couch
        .edit("system_config", "media", |media| {
            media["default"]["third_party_bigcouch_host"] = json!(third_party);
        })
        .await?;
    if third_party.is_some() {
        step("third_party_bigcouch_host is set; the worker polls system_config");
        tokio::time::sleep(CONFIGURED).await;
    }
    decided(&bound(call, data, options.patience).await?)
        .await
        .context("the start")?;
    let recording = call
        .wait_recording_started(PATIENCE)
        .await
        .context("the switch never began to record")?;
    report.recording = Some(recording.clone());
    step("the flow went on, the switch records; they talk");
    tokio::time::sleep(options.talk).await;
    decided(&call.execute(json!({"action": "stop"})).await?)
        .await
        .context("the stop")?;
    report.recording = Some(
        call.wait_recording_ended(PATIENCE)
            .await
            .context("the stop had no effect")?,
    );
    step("stopped; the worker collects the audio");
    let told = kazoo
        .tap()
        .outcome(&recording.id, PATIENCE)
        .await
        .context("the worker's last word")?;
    report.outcome = Some(told.key.clone());
    if !matches!(place, Place::ThirdParty(_)) {
        let notice = kazoo
            .tap()
            .document(&recording.id, PATIENCE)
            .await
            .context("the notice of the document")?;
        report
            .notices
            .push(format!("{} {}", notice.name, notice.header("Database")));
    }
    report.recording = Some(
        call.wait_file_deleted(PATIENCE)
            .await
            .context("the file on the switch")?,
    );
    call.hangup("NORMAL_CLEARING").await;
    step("done, hung up; looking at the database");
    report.database = couch::modb_of(&options.account, &recording.id);
    let audio = &report.recording.as_ref().unwrap_or(&recording).audio;
    match place {
        Place::Account => report.stored = Some(seeded.couch.stored(&report.database, &recording.id, audio).await?),
        Place::ThirdParty(couch) => report.stored = Some(couch.stored(&report.database, &recording.id, audio).await?),
        Place::Url(receiver) => report.arrived = Some(receiver.has(audio)),
    }
    if !matches!(place, Place::ThirdParty(_)) {
        report.listed = Some(seeded.couch.listed(&report.database).await?.contains(&recording.id));
    }
    Ok(())
}

/// How long the demonstration's worker has to notice a changed configuration; it polls every second.
const CONFIGURED: Duration = Duration::from_millis(2500);

/// A user's server, which takes what is uploaded to it.
#[derive(Clone)]
struct Receiver {
    url: String,
    bodies: Arc<Mutex<Vec<Bytes>>>,
}

impl Receiver {
    /// Listens on the loopback address alone unless the worker is elsewhere.
    async fn start(host: &str) -> anyhow::Result<Self> {
        let bodies = Arc::new(Mutex::<Vec<Bytes>>::default());
        let listen = if host == "127.0.0.1" { host } else { "0.0.0.0" };
        let listener = TcpListener::bind((listen, 0)).await?;
        let url = format!("http://{host}:{}/recordings", listener.local_addr()?.port());
        let taken = Arc::clone(&bodies);
        let take = move |body: Bytes| async move {
            taken.lock().unwrap_or_else(PoisonError::into_inner).push(body);
            StatusCode::CREATED
        };
        let router = Router::new().fallback(take).layer(DefaultBodyLimit::disable());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { url, bodies })
    }

    fn has(&self, audio: &Audio) -> Result<String, String> {
        let bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        let body = bodies.last().ok_or_else(|| "nothing was uploaded".to_owned())?;
        audio.check(&body[..])?;
        Ok(format!(
            "{} bytes at {}, as the switch wrote them",
            body.len(),
            self.url
        ))
    }
}

/// Executes, and again while no worker is bound.
async fn bound(call: &Call, data: Value, patience: Duration) -> anyhow::Result<Run> {
    let deadline = Instant::now() + patience;
    let mut told = false;
    loop {
        let run = call.execute(data.clone()).await?;
        if run.state().routed == Some(true) {
            return Ok(run);
        }
        if Instant::now() > deadline {
            bail!("no worker is bound to callflow.action.record_call: is kz-record-call running on this broker?");
        }
        if !std::mem::replace(&mut told, true) {
            say("   waiting for a worker to bind its queue …");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn decided(run: &Run) -> anyhow::Result<()> {
    run.accepted(PATIENCE).await?;
    match run.result(PATIENCE).await?.outcome {
        Outcome::Decided(Decision::Continue) => Ok(()),
        other => bail!("the flow got {other:?}"),
    }
}
