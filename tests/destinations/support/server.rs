//! A user's HTTP server: takes audio, and answers what a test wants.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use kz_record_call::recording::digest::{Digests, Hasher};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What it answers.
#[derive(Debug, Clone)]
pub enum Reply {
    Status(u16),
    /// With `Retry-After`.
    Later(u16, String),
    /// With these headers, and this body.
    Says(u16, Vec<(&'static str, String)>, &'static str),
    /// With `Location`.
    Redirect(u16, String),
    /// Before the body is read.
    Early(u16),
    /// The body read at so many bytes a second.
    Slow(u64),
    /// Never, the body read.
    Never,
    /// Never, and of the body nothing is read after the first piece.
    Stall,
}

/// A request that arrived whole.
#[derive(Debug, Clone)]
pub struct Received {
    pub method: Method,
    /// Path and query, as sent.
    pub path: String,
    pub headers: HeaderMap,
    pub length: u64,
    pub digests: Digests,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default()
    }
}

type Rule = Box<dyn Fn(&Method, &str, usize) -> Reply + Send + Sync>;

struct Inner {
    rule: Rule,
    asked: Mutex<usize>,
    received: Mutex<Vec<Received>>,
}

/// The server.
pub struct Server {
    pub address: SocketAddr,
    inner: Arc<Inner>,
    serving: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Server {
    /// Answers as `rule` says, which is told the method, path and query, and how many requests came before.
    pub async fn with(rule: impl Fn(&Method, &str, usize) -> Reply + Send + Sync + 'static) -> Self {
        let inner = Arc::new(Inner {
            rule: Box::new(rule),
            asked: Mutex::default(),
            received: Mutex::default(),
        });
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(handle).with_state(Arc::clone(&inner));
        let serving = tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self {
            address,
            inner,
            serving,
        }
    }

    /// Always answers alike.
    pub async fn always(reply: Reply) -> Self {
        Self::with(move |_, _, _| reply.clone()).await
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The requests whose bodies arrived.
    pub fn received(&self) -> Vec<Received> {
        self.inner.received.lock().unwrap().clone()
    }

    /// All requests, those included whose bodies did not.
    pub fn asked(&self) -> usize {
        *self.inner.asked.lock().unwrap()
    }
}

async fn handle(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let before = {
        let mut asked = inner.asked.lock().unwrap();
        *asked += 1;
        *asked - 1
    };
    let reply = (inner.rule)(&parts.method, &path, before);
    let (mut hasher, mut length, mut body) = (Hasher::default(), 0u64, body.into_data_stream());
    match reply {
        Reply::Early(status) => return answer(status),
        Reply::Stall => {
            let _ = body.next().await;
            return std::future::pending().await;
        }
        _ => {}
    }
    while let Some(piece) = body.next().await {
        let Ok(piece) = piece else { return answer(400) };
        hasher.update(&piece);
        length += piece.len() as u64;
        if let Reply::Slow(rate) = reply {
            tokio::time::sleep(Duration::from_micros(piece.len() as u64 * 1_000_000 / rate)).await;
        }
    }
    inner.received.lock().unwrap().push(Received {
        method: parts.method,
        path,
        headers: parts.headers,
        length,
        digests: hasher.finish(),
    });
    match reply {
        Reply::Status(status) => answer(status),
        Reply::Says(status, headers, body) => {
            let mut response = (code(status), body).into_response();
            for (name, value) in headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        }
        Reply::Later(status, when) => (code(status), [(header::RETRY_AFTER, when)], "later").into_response(),
        Reply::Redirect(status, location) => {
            (code(status), [(header::LOCATION, location)], "over there").into_response()
        }
        Reply::Never => std::future::pending().await,
        Reply::Early(_) | Reply::Stall | Reply::Slow(_) => answer(200),
    }
}

fn code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap()
}

fn answer(status: u16) -> Response {
    if status == 204 || status == 304 {
        return code(status).into_response();
    }
    (code(status), "thanks").into_response()
}
