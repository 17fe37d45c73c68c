//! A server in front of the database that does to requests what networks, old servers and full disks do.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What is done to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The server answers itself.
    Pass,
    /// Answered with this status, the body read, the server not asked.
    Refuse(u16),
    /// Answered as by a rule that the database has for its documents, for this reason.
    Forbid(&'static str),
    /// Answered with this status before the body is read.
    Early(u16),
    /// The server does it; the answer is another.
    Answer(u16),
    /// The server does it; no answer ever comes.
    Hang,
    /// One bit of the body is another when it arrives.
    Corrupt,
    /// The body is read at so many bytes a second.
    Slow(u64),
    /// Of the body nothing is read any more, and nothing answered.
    Stall,
}

/// A request that came by.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    /// Path and query, as sent.
    pub path: String,
    pub content_type: String,
}

impl Seen {
    /// Whether it is the first road's.
    pub fn is_multipart(&self) -> bool {
        self.content_type.starts_with("multipart/related")
    }

    /// Whether it brings audio by itself.
    pub fn is_attachment(&self) -> bool {
        self.method == Method::PUT && self.content_type.starts_with("audio/")
    }

    /// Whether it writes to a document.
    pub fn is_write(&self) -> bool {
        self.method == Method::PUT && !self.content_type.is_empty()
    }
}

type Rule = Box<dyn Fn(&Seen, usize) -> Fault + Send + Sync>;

struct Inner {
    upstream: String,
    http: reqwest::Client,
    version: Option<&'static str>,
    rule: Mutex<Rule>,
    seen: Mutex<Vec<Seen>>,
}

/// The server in front.
pub struct Front {
    pub url: String,
    inner: Arc<Inner>,
    serving: JoinHandle<()>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Front {
    /// Stands before `upstream`, and says that it has this version.
    pub async fn of(upstream: &str, version: Option<&'static str>) -> Self {
        // The upstream's credentials are the client's business.
        let credentials = upstream
            .split_once("://")
            .and_then(|(_, rest)| rest.split_once('@'))
            .map(|(credentials, _)| format!("{credentials}@"))
            .unwrap_or_default();
        let inner = Arc::new(Inner {
            upstream: upstream.replacen(&credentials, "", 1),
            http: reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap(),
            version,
            rule: Mutex::new(Box::new(|_, _| Fault::Pass)),
            seen: Mutex::default(),
        });
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(handle).with_state(Arc::clone(&inner));
        let serving = tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self {
            url: format!("http://{credentials}{address}"),
            inner,
            serving,
        }
    }

    /// What happens to requests from now on. The rule is told how many came before that are written alike (multipart, attachment, other).
    pub fn rule(&self, rule: impl Fn(&Seen, usize) -> Fault + Send + Sync + 'static) {
        *self.inner.rule.lock().unwrap() = Box::new(rule);
        self.inner.seen.lock().unwrap().clear();
    }

    /// The requests since the last rule, without those for the version.
    pub fn seen(&self) -> Vec<Seen> {
        self.inner.seen.lock().unwrap().clone()
    }

    /// Those that wrote.
    pub fn writes(&self) -> Vec<Seen> {
        self.seen().into_iter().filter(Seen::is_write).collect()
    }
}

async fn handle(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if let (Some(version), "/") = (inner.version, parts.uri.path()) {
        let welcome = format!("{{\"couchdb\":\"Welcome\",\"version\":\"{version}\"}}");
        return ([(header::CONTENT_TYPE, "application/json")], welcome).into_response();
    }
    let text = |name: header::HeaderName| {
        let value = parts.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let seen = Seen {
        method: parts.method.clone(),
        path: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        content_type: text(header::CONTENT_TYPE),
    };
    let fault = {
        let mut all = inner.seen.lock().unwrap();
        let alike = |other: &&Seen| {
            other.is_multipart() == seen.is_multipart() && other.is_attachment() == seen.is_attachment()
        };
        let before = all
            .iter()
            .filter(alike)
            .filter(|other| other.method == seen.method)
            .count();
        all.push(seen.clone());
        inner.rule.lock().unwrap()(&seen, before)
    };
    let length: u64 = text(header::CONTENT_LENGTH).parse().unwrap_or(0);
    let body = match fault {
        Fault::Refuse(status) => {
            let mut body = body.into_data_stream();
            while let Some(Ok(_)) = body.next().await {}
            return refusal(status);
        }
        Fault::Forbid(reason) => {
            let mut body = body.into_data_stream();
            while let Some(Ok(_)) = body.next().await {}
            let body = format!("{{\"error\":\"forbidden\",\"reason\":\"{reason}\"}}");
            return (
                StatusCode::FORBIDDEN,
                [(header::CONTENT_TYPE, "application/json")],
                body,
            )
                .into_response();
        }
        Fault::Early(status) => return refusal(status),
        Fault::Stall => {
            let mut body = body.into_data_stream();
            let _ = body.next().await;
            return std::future::pending().await;
        }
        Fault::Corrupt => corrupt(body, length / 2),
        Fault::Slow(rate) => slowed(body, rate),
        Fault::Pass | Fault::Answer(_) | Fault::Hang => body,
    };
    let answer = forward(&inner, &seen, &parts.headers, body, length).await;
    match fault {
        Fault::Hang => std::future::pending().await,
        Fault::Answer(status) if status < 300 => with_status(answer, status),
        Fault::Answer(status) => refusal(status),
        _ => answer,
    }
}

async fn forward(inner: &Inner, seen: &Seen, headers: &HeaderMap, body: Body, length: u64) -> Response {
    let mut request = inner
        .http
        .request(seen.method.clone(), format!("{}{}", inner.upstream, seen.path));
    for name in [header::CONTENT_TYPE, header::AUTHORIZATION, header::ACCEPT] {
        if let Some(value) = headers.get(&name) {
            request = request.header(name, value);
        }
    }
    if length > 0 {
        let stream = body.into_data_stream().map_err(std::io::Error::other);
        request = request
            .header(header::CONTENT_LENGTH, length)
            .body(reqwest::Body::wrap_stream(stream));
    }
    match request.send().await {
        Ok(answer) => {
            let status = answer.status();
            let content_type = answer.headers().get(header::CONTENT_TYPE).cloned();
            let mut response = Response::new(Body::from(answer.bytes().await.unwrap_or_default()));
            *response.status_mut() = status;
            if let Some(content_type) = content_type {
                response.headers_mut().insert(header::CONTENT_TYPE, content_type);
            }
            response
        }
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

fn refusal(status: u16) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    let body = "{\"error\":\"fault\",\"reason\":\"made by the test\"}";
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn with_status(mut answer: Response, status: u16) -> Response {
    if answer.status().is_success() {
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    }
    answer
}

/// Turns one bit at `place`.
fn corrupt(body: Body, place: u64) -> Body {
    let mut at = 0u64;
    let stream = body.into_data_stream().map_ok(move |bytes| {
        let mut bytes = bytes.to_vec();
        if let Some(index) = place.checked_sub(at).and_then(|index| usize::try_from(index).ok())
            && let Some(byte) = bytes.get_mut(index)
        {
            *byte ^= 1;
        }
        at += bytes.len() as u64;
        Bytes::from(bytes)
    });
    Body::from_stream(stream)
}

fn slowed(body: Body, rate: u64) -> Body {
    let stream = body.into_data_stream().then(move |piece| async move {
        let length = piece.as_ref().map_or(0, |piece| piece.len() as u64);
        tokio::time::sleep(Duration::from_micros(length * 1_000_000 / rate)).await;
        piece
    });
    Body::from_stream(stream)
}
