//! A server between the workers and their database that answers as a cluster of CouchDB nodes in trouble does. Connections lead to it only while
//! that lasts, so that all other breaks are those of the network.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::plan::Odd;

struct Inner {
    upstream: String,
    http: reqwest::Client,
    odd: Mutex<(Odd, u64)>,
}

pub struct Front {
    pub address: String,
    inner: Arc<Inner>,
    serving: JoinHandle<()>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Front {
    /// Before the database at this URL, whose credentials are the clients' business.
    pub async fn of(upstream: &str) -> anyhow::Result<Self> {
        let mut url = url::Url::parse(upstream)?;
        let _ = (url.set_username(""), url.set_password(None));
        let inner = Arc::new(Inner {
            upstream: url.as_str().trim_end_matches('/').to_owned(),
            http: reqwest::Client::builder()
                .no_proxy()
                .pool_max_idle_per_host(0)
                .build()?,
            odd: Mutex::new((Odd::Errors, 0)),
        });
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let address = listener.local_addr()?.to_string();
        let router = Router::new().fallback(handle).with_state(Arc::clone(&inner));
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self {
            address,
            inner,
            serving,
        })
    }

    /// From now on.
    pub fn set(&self, odd: Odd) {
        *self.inner.odd.lock().unwrap() = (odd, 0);
    }
}

async fn handle(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let (odd, n) = {
        let mut odd = inner.odd.lock().unwrap();
        odd.1 += 1;
        *odd
    };
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let bulk = path.ends_with("/_bulk_docs");
    let writes = method == Method::PUT || bulk;
    // Every other one: what is tried again comes through.
    let struck = n % 2 == 1;
    match odd {
        Odd::Errors if struck => {
            drain(request).await;
            told(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal_server_error",
                "made by the chaos",
            )
        }
        Odd::NoDatabases => {
            drain(request).await;
            told(StatusCode::NOT_FOUND, "not_found", "Database does not exist.")
        }
        Odd::FewCopies if writes => {
            let mut answer = forward(&inner, request).await;
            if answer.status() == StatusCode::CREATED {
                *answer.status_mut() = StatusCode::ACCEPTED;
            }
            answer
        }
        // One node took it, and another one a revision beside it: who asked hears of a conflict, and it is there.
        Odd::Conflicts if writes && struck => {
            let answer = forward(&inner, request).await;
            if !answer.status().is_success() {
                return answer;
            }
            if bulk {
                in_conflict(answer).await
            } else {
                told(StatusCode::CONFLICT, "conflict", "Document update conflict.")
            }
        }
        _ => forward(&inner, request).await,
    }
}

/// The rows of a batch, each as one that lost.
async fn in_conflict(answer: Response) -> Response {
    let body = axum::body::to_bytes(answer.into_body(), usize::MAX)
        .await
        .unwrap_or_default();
    let rows: Vec<Value> = serde_json::from_slice(&body).unwrap_or_default();
    let lost = |row: &Value| json!({"id": row["id"], "error": "conflict", "reason": "Document update conflict."});
    let rows: Vec<Value> = rows.iter().map(lost).collect();
    let json = [(header::CONTENT_TYPE, "application/json")];
    (StatusCode::CREATED, json, Value::Array(rows).to_string()).into_response()
}

async fn drain(request: Request) {
    let _ = axum::body::to_bytes(request.into_body(), usize::MAX).await;
}

fn told(status: StatusCode, error: &str, reason: &str) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (status, json, json!({"error": error, "reason": reason}).to_string()).into_response()
}

async fn forward(inner: &Inner, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let mut headers = parts.headers;
    let has_body = headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING);
    for name in [
        header::HOST,
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::EXPECT,
    ] {
        headers.remove(name);
    }
    let mut onward = inner
        .http
        .request(parts.method, format!("{}{target}", inner.upstream))
        .headers(headers);
    if has_body {
        onward = onward.body(reqwest::Body::wrap_stream(body.into_data_stream()));
    }
    match onward.send().await {
        Ok(answer) => {
            let (status, mut headers) = (answer.status(), answer.headers().clone());
            for name in [header::CONNECTION, header::TRANSFER_ENCODING] {
                headers.remove(name);
            }
            let mut response = Response::new(Body::from_stream(answer.bytes_stream().map_err(std::io::Error::other)));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response
        }
        Err(error) => told(StatusCode::BAD_GATEWAY, "bad_gateway", &error.to_string()),
    }
}
