//! Where audio is sent to: users' HTTP servers, and Kazoo's store proxy. They write down every body that arrives whole, by its own digest, and
//! answer as their mood is.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::put;
use base64::Engine as _;
use futures_util::StreamExt as _;
use md5::{Digest as _, Md5};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::plan::Mood;
use crate::servers::mode;
use crate::simulator::sim::couch::Couch;
use crate::support::{Mode, Proxy};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Server(usize),
    StoreProxy,
}

/// A body that arrived whole.
#[derive(Debug, Clone)]
pub struct Body {
    pub place: Place,
    /// The recording that it is said to be.
    pub label: String,
    pub md5: String,
    pub length: u64,
    /// What it was answered; `None`: nothing.
    pub status: Option<u16>,
}

/// What all of them have received.
pub type Book = Arc<Mutex<Vec<Body>>>;

struct Inner {
    place: Place,
    mood: Mutex<Option<Mood>>,
    book: Book,
    /// The store proxy writes into documents.
    couch: Option<Couch>,
}

pub struct Target {
    inner: Arc<Inner>,
    proxy: Proxy,
    serving: JoinHandle<()>,
}

impl Drop for Target {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Target {
    /// A user's server.
    pub async fn server(n: usize, book: Book) -> anyhow::Result<Self> {
        let router = Router::new().fallback(take);
        Self::start(router, Place::Server(n), book, None).await
    }

    pub async fn store_proxy(book: Book, couch: Couch) -> anyhow::Result<Self> {
        let router = Router::new().route("/store/{blob}/{name}", put(store));
        Self::start(router, Place::StoreProxy, book, Some(couch)).await
    }

    async fn start(router: Router<Arc<Inner>>, place: Place, book: Book, couch: Option<Couch>) -> anyhow::Result<Self> {
        let inner = Arc::new(Inner {
            place,
            mood: Mutex::default(),
            book,
            couch,
        });
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let proxy = Proxy::start(&listener.local_addr()?.to_string()).await?;
        let router = router.with_state(Arc::clone(&inner));
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { inner, proxy, serving })
    }

    pub fn port(&self) -> u16 {
        self.proxy.port
    }

    /// The URL that a recording is sent to.
    pub fn url(&self, label: &str) -> String {
        format!("http://127.0.0.1:{}/in/{label}?of=chaos", self.proxy.port)
    }

    /// `None`: everything is taken.
    pub fn set(&self, mood: Option<Mood>) {
        *self.inner.mood.lock().unwrap() = mood;
        self.proxy.set(match mood {
            Some(Mood::Cut(cut)) => mode(Some(cut)),
            _ => Mode::Pass,
        });
    }
}

impl Inner {
    /// Reads the body; `None` when it breaks off.
    async fn read(&self, request: Request) -> Option<(String, u64)> {
        let told = request.headers().get(header::CONTENT_LENGTH).cloned();
        let told = told.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let (mut hash, mut length, mut body) = (Md5::new(), 0, request.into_body().into_data_stream());
        while let Some(piece) = body.next().await {
            let piece = piece.ok()?;
            hash.update(&piece);
            length += piece.len() as u64;
        }
        let whole = told.is_none_or(|told| told == length);
        whole.then(|| (hex(&hash.finalize()), length))
    }

    fn note(&self, label: &str, (md5, length): (String, u64), status: Option<u16>) {
        self.book.lock().unwrap().push(Body {
            place: self.place,
            label: label.to_owned(),
            md5,
            length,
            status,
        });
    }

    /// The answer that its mood gives; `None`: that of a server which is well.
    fn moody(&self) -> Option<Mood> {
        *self.mood.lock().unwrap()
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A user's server.
async fn take(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let label = request.uri().path().split('/').nth(2).unwrap_or_default().to_owned();
    let Some(body) = inner.read(request).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    match inner.moody() {
        Some(Mood::Status(status)) => {
            inner.note(&label, body, Some(status));
            refusal(status)
        }
        Some(Mood::Hang) => {
            inner.note(&label, body, None);
            std::future::pending().await
        }
        Some(Mood::Cut(_)) | None => {
            inner.note(&label, body, Some(200));
            StatusCode::OK.into_response()
        }
    }
}

fn refusal(status: u16) -> Response {
    let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    match status {
        429 => (code, [(header::RETRY_AFTER, "1")]).into_response(),
        _ => code.into_response(),
    }
}

/// Kazoo's store proxy: takes the audio, and writes into the document where it is.
async fn store(
    State(inner): State<Arc<Inner>>,
    Path((blob, name)): Path<(String, String)>,
    request: Request,
) -> Response {
    let Some(body) = inner.read(request).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    match inner.moody() {
        Some(Mood::Status(status)) => return refusal(status),
        Some(Mood::Hang) => return std::future::pending().await,
        Some(Mood::Cut(_)) | None => {}
    }
    match keep(&inner, &blob, &name, body.1).await {
        Ok(label) => {
            inner.note(&label, body, Some(200));
            StatusCode::OK.into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response(),
    }
}

/// Writes the stub; tells whose document it is.
async fn keep(inner: &Inner, blob: &str, name: &str, length: u64) -> anyhow::Result<String> {
    let couch = inner.couch.as_ref().context("no database")?;
    let (database, id) = named(blob).context("no such place")?;
    let database = database.replace("%2F", "/");
    couch.get(&database, &id).await?.context("no such document")?;
    let mut label = String::new();
    let change = |document: &mut Value| {
        let origin = document["origin"].as_str().unwrap_or_default();
        label = origin.trim_start_matches("callflow : ").to_owned();
        let stub = json!({"length": length, "content_type": "audio/mpeg", "stub": false, "handler": {"kz_att_s3": {"key": name}}});
        document["pvt_attachments"] = json!({ name: stub });
    };
    couch.edit(&database, &id, change).await?;
    anyhow::ensure!(!label.is_empty(), "the document is nobody's");
    Ok(label)
}

/// Database and id of `term_to_binary({Db, Id, Name, Options})`.
fn named(blob: &str) -> Option<(String, String)> {
    let term = base64::engine::general_purpose::STANDARD.decode(blob).ok()?;
    let mut rest = term.strip_prefix(&[131, 104, 4])?;
    let mut binary = || {
        let after = rest.strip_prefix(&[109])?;
        let (length, after) = after.split_first_chunk::<4>()?;
        let (text, after) = after.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        rest = after;
        String::from_utf8(text.to_vec()).ok()
    };
    Some((binary()?, binary()?))
}
