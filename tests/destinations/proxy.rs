//! Accounts with a storage plan: through Kazoo's store proxy, which is played here as `media_store_proxy` behaves.

use std::sync::{Arc, Mutex};

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kz_record_call::destination::pending_document::{self, Placed};
use kz_record_call::destination::storage_plan::proxy::{self, Job, Kept};
use kz_record_call::destination::url::http::Http;
use kz_record_call::destination::{DeliveryError, Fault};
use kz_record_call::kazoo::term::Term;
use kz_record_call::kazoo::time::Clock;
use kz_record_call::recording::progress::{Progress, State as Stage};
use kz_record_call::system_config::{Media, Proxy};
use serde_json::json;
use tokio::net::TcpListener;

use crate::promises;
use crate::support::{Couchdb, Recording, TestResult, World, check_schema, settings};

promises![
    the_handler_gets_the_audio_and_the_document_says_where_it_is,
    a_plan_that_keeps_the_audio_in_the_document_is_compared_by_digest,
    what_is_stored_already_is_not_sent_again,
    an_answer_of_the_proxy_that_is_lost_is_looked_up,
    a_proxy_that_fails_is_tried_again_and_one_that_lies_is_found_out,
    a_proxy_that_is_nowhere_is_told,
    a_database_that_does_not_answer_is_not_the_proxys_fault,
];

/// What the proxy does once it has the audio.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    /// A handler stores it, and the document says where.
    Handler,
    /// It becomes an attachment of the document.
    Attachment,
    /// Stores it, and answers 500.
    HandlerThenFails,
    /// Says so, and stores nothing.
    Lies,
    Fails(u16),
}

struct Behind {
    world: World,
    does: Does,
    asked: usize,
}

struct Played {
    proxy: Proxy,
    state: Arc<Mutex<Behind>>,
    http: Http,
    placed: Placed,
    recording: Recording,
}

impl Played {
    async fn new(couchdb: &Couchdb, does: Does, size: usize) -> anyhow::Result<Self> {
        let recording = Recording::of(size);
        let world = World::with_database_of(couchdb, &recording).await?;
        let pending = Progress {
            state: Stage::Pending,
            attempts: 1,
            cause: None,
        };
        let couch = world.couch();
        let subject = |id| recording.subject(id, "storage_plan");
        let placed = pending_document::create(&couch, &recording.ids, subject, &pending).await?;
        let state = Arc::new(Mutex::new(Behind { world, does, asked: 0 }));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let router = Router::new().fallback(store).with_state(Arc::clone(&state));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let section =
            json!({"proxy_hostname": "127.0.0.1", "proxy_port": port, "proxy_username": "3f", "proxy_password": "9a/"});
        Ok(Self {
            proxy: Media::read(&json!({ "default": section }), "local").proxy,
            state,
            http: Http::trusting(&settings(&[]), Clock::system())?,
            placed,
            recording,
        })
    }

    async fn store(&self) -> Result<Kept, DeliveryError> {
        let couch = self.state.lock().unwrap().world.couch();
        let job = Job {
            placed: &self.placed,
            name: "front-desk.mp3",
            content_type: "audio/mpeg",
            audio: &self.recording.audio,
            source: &self.recording.source,
        };
        proxy::store(&couch, &self.http, &self.proxy, &job).await
    }

    fn now_does(&self, does: Does) {
        self.state.lock().unwrap().does = does;
    }

    fn asked(&self) -> usize {
        self.state.lock().unwrap().asked
    }

    fn world(&self) -> World {
        let state = self.state.lock().unwrap();
        let couchdb = Couchdb::at(&state.world.url);
        World::with_prefix(&couchdb, &state.world.prefix)
    }
}

async fn store(State(state): State<Arc<Mutex<Behind>>>, request: Request) -> (StatusCode, String) {
    let (parts, body) = request.into_parts();
    let (does, world) = {
        let mut state = state.lock().unwrap();
        state.asked += 1;
        let couchdb = Couchdb::at(&state.world.url);
        (state.does, World::with_prefix(&couchdb, &state.world.prefix))
    };
    match put(does, &world, &parts, body).await {
        Ok(status) => (status, "{}".into()),
        Err(error) => (StatusCode::IM_A_TEAPOT, error.to_string()),
    }
}

/// As the proxy: credentials, the blob, the content type, the whole body, then the handler.
async fn put(does: Does, world: &World, parts: &axum::http::request::Parts, body: Body) -> anyhow::Result<StatusCode> {
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let basic = format!("Basic {}", STANDARD.encode("3f:9a/"));
    if header("authorization") != Some(&basic) {
        return Ok(StatusCode::UNAUTHORIZED);
    }
    let mut segments = parts.uri.path().split('/').skip(1);
    ensure!(segments.next() == Some("store"), "{}", parts.uri);
    let decoded = |text: Option<&str>| -> anyhow::Result<String> {
        let text = text.context("too few segments")?;
        Ok(percent_encoding::percent_decode_str(text).decode_utf8()?.into_owned())
    };
    let (blob, name) = (decoded(segments.next())?, decoded(segments.next())?);
    let Term::Tuple(request) = Term::from_base64(&blob)? else {
        anyhow::bail!("no tuple")
    };
    let [
        Term::Binary(database),
        Term::Binary(id),
        Term::Binary(attachment),
        options,
    ] = &request[..]
    else {
        anyhow::bail!("{request:?}")
    };
    let option = Term::Tuple(vec![Term::atom("doc_type"), Term::binary("call_recording")]);
    ensure!(*options == Term::List(vec![option]) && *attachment == name.as_bytes());
    let content_type = header("content-type").unwrap_or_default().to_owned();
    if !content_type.starts_with("audio/") {
        return Ok(StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    let bytes = axum::body::to_bytes(body, usize::MAX).await?;
    let (database, id) = (String::from_utf8(database.clone())?, String::from_utf8(id.clone())?);
    let database = database.replace("%2F", "/");
    match does {
        Does::Fails(status) => return Ok(StatusCode::from_u16(status)?),
        Does::Lies => {}
        Does::Handler | Does::HandlerThenFails => {
            let stub = json!({
                "content_type": content_type, "length": bytes.len(), "stub": false, "handler": {"kz_att_s3": {"S3": {"key": "x"}}},
            });
            world
                .edit(&database, &id, |document| {
                    document["pvt_attachments"] = json!({ name: stub })
                })
                .await?;
        }
        Does::Attachment => {
            world
                .edit(&database, &id, |document| {
                    document["_attachments"] =
                        json!({ name: {"content_type": content_type, "data": STANDARD.encode(&bytes)} });
                })
                .await?;
        }
    }
    Ok(match does {
        Does::HandlerThenFails => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::OK,
    })
}

async fn the_handler_gets_the_audio_and_the_document_says_where_it_is(couchdb: Arc<Couchdb>) -> TestResult {
    let played = Played::new(&couchdb, Does::Handler, 300_000).await?;
    let kept = played.store().await?;
    ensure!(kept.handler.as_deref() == Some("kz_att_s3"), "{kept:?}");
    let world = played.world();
    let document = world.document(&played.recording).await?;
    ensure!(document["_rev"] == kept.rev);
    let complete = Progress {
        state: Stage::Complete,
        attempts: 1,
        cause: Some("complete"),
    };
    let subject = played.recording.subject(&played.placed.id, "storage_plan");
    pending_document::note(&world.couch(), &played.placed, &subject, &complete).await?;
    let document = world.document(&played.recording).await?;
    check_schema(&document)?;
    ensure!(document["pvt_recording"]["state"] == "complete");
    ensure!(document["pvt_attachments"]["front-desk.mp3"]["length"] == 300_000);
    ensure!(world.listed(&played.recording.database()).await?.len() == 1);
    world.finish().await
}

async fn a_plan_that_keeps_the_audio_in_the_document_is_compared_by_digest(couchdb: Arc<Couchdb>) -> TestResult {
    let played = Played::new(&couchdb, Does::Attachment, 3000).await?;
    let kept = played.store().await?;
    ensure!(kept.handler.is_none(), "{kept:?}");
    ensure!(played.world().audio(&played.recording).await? == played.recording.bytes);
    played.world().finish().await
}

async fn what_is_stored_already_is_not_sent_again(couchdb: Arc<Couchdb>) -> TestResult {
    let played = Played::new(&couchdb, Does::Handler, 3000).await?;
    let first = played.store().await?;
    let second = played.store().await?;
    ensure!(first == second && played.asked() == 1, "{}", played.asked());
    played.world().finish().await
}

async fn an_answer_of_the_proxy_that_is_lost_is_looked_up(couchdb: Arc<Couchdb>) -> TestResult {
    let played = Played::new(&couchdb, Does::HandlerThenFails, 3000).await?;
    let kept = played.store().await?;
    ensure!(kept.handler.is_some() && played.asked() == 1);
    played.world().finish().await
}

async fn a_proxy_that_fails_is_tried_again_and_one_that_lies_is_found_out(couchdb: Arc<Couchdb>) -> TestResult {
    let played = Played::new(&couchdb, Does::Lies, 3000).await?;
    let error = played.store().await.err().context("stored")?;
    ensure!(error.fault() == Fault::Target, "{error:?}");
    for (status, fault) in [
        (500, Fault::Target),
        (404, Fault::Target),
        (401, Fault::Target),
        (415, Fault::Recording),
    ] {
        played.now_does(Does::Fails(status));
        let error = played.store().await.err().context("stored")?;
        ensure!(error.fault() == fault, "{error:?}");
        ensure!(!error.to_string().contains("9a"), "{error}");
    }
    played.now_does(Does::Handler);
    played.store().await?;
    played.world().finish().await
}

async fn a_proxy_that_is_nowhere_is_told(couchdb: Arc<Couchdb>) -> TestResult {
    let mut played = Played::new(&couchdb, Does::Handler, 3000).await?;
    let of = |section| Media::read(&json!({ "default": section }), "local").proxy;
    played.proxy = of(json!({}));
    let error = played.store().await.err().context("stored")?;
    ensure!(error.fault() == Fault::Target && error.to_string().contains("proxy_hostname"));
    played.proxy = of(json!({"proxy_hostname": "127.0.0.1", "proxy_port": 1}));
    let error = played.store().await.err().context("stored")?;
    ensure!(error.fault() == Fault::Target, "{error:?}");
    played.world().finish().await
}

async fn a_database_that_does_not_answer_is_not_the_proxys_fault(couchdb: Arc<Couchdb>) -> TestResult {
    let played = Played::new(&couchdb, Does::Handler, 3000).await?;
    let nowhere = World::with_prefix(&Couchdb::at("http://127.0.0.1:1"), "x").couch();
    let job = Job {
        placed: &played.placed,
        name: "front-desk.mp3",
        content_type: "audio/mpeg",
        audio: &played.recording.audio,
        source: &played.recording.source,
    };
    let error = proxy::store(&nowhere, &played.http, &played.proxy, &job).await;
    let error = error.err().context("stored")?;
    ensure!(error.fault() == Fault::Cluster && played.asked() == 0, "{error:?}");
    played.world().finish().await
}
