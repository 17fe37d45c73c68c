//! An operator's endpoint, which gets the outcomes of recordings by webhooks. It checks signatures, writes down what it accepts, and answers as
//! its mood is.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use aws_lc_rs::hmac;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::plan::Mood;
use crate::servers::mode;
use crate::support::{Mode, Proxy};

pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// An outcome that the endpoint accepted, or a request that was not genuine.
#[derive(Debug, Clone)]
pub struct Notice {
    /// The same at every repeat.
    pub id: String,
    pub media_id: String,
    pub outcome: String,
    pub at: Instant,
    pub data: Value,
    /// What is wrong with the request.
    pub wrong: Option<String>,
}

#[derive(Default)]
struct Inner {
    mood: Mutex<Option<Mood>>,
    notices: Mutex<Vec<Notice>>,
}

pub struct Endpoint {
    inner: Arc<Inner>,
    proxy: Proxy,
    serving: JoinHandle<()>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Endpoint {
    pub async fn start() -> anyhow::Result<Self> {
        let inner = Arc::<Inner>::default();
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let proxy = Proxy::start(&listener.local_addr()?.to_string()).await?;
        let router = Router::new().fallback(take).with_state(Arc::clone(&inner));
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { inner, proxy, serving })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/in", self.proxy.port)
    }

    pub fn notices(&self) -> Vec<Notice> {
        self.inner.notices.lock().unwrap().clone()
    }

    /// `None`: everything is accepted.
    pub fn set(&self, mood: Option<Mood>) {
        *self.inner.mood.lock().unwrap() = mood;
        self.proxy.set(match mood {
            Some(Mood::Cut(cut)) => mode(Some(cut)),
            _ => Mode::Pass,
        });
    }
}

async fn take(State(inner): State<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let mood = *inner.mood.lock().unwrap();
    match mood {
        Some(Mood::Status(status)) => return StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY),
        Some(Mood::Hang) => return std::future::pending().await,
        Some(Mood::Cut(_)) | None => {}
    }
    let told: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let id = headers.get("webhook-id").and_then(|id| id.to_str().ok());
    inner.notices.lock().unwrap().push(Notice {
        id: id.unwrap_or_default().to_owned(),
        media_id: text(&told["data"]["media_id"]),
        outcome: text(&told["type"]).trim_start_matches("recording.").to_owned(),
        at: Instant::now(),
        data: told["data"].clone(),
        wrong: genuine(&headers, &body).err().map(|error| format!("{error:#}")),
    });
    StatusCode::NO_CONTENT
}

/// The workers' clock is ahead of ours, so the timestamp is not compared.
fn genuine(headers: &HeaderMap, body: &[u8]) -> anyhow::Result<()> {
    let header = |name: &str| -> anyhow::Result<&str> { Ok(headers.get(name).context("no such header")?.to_str()?) };
    let key = STANDARD.decode(SECRET.trim_start_matches("whsec_"))?;
    let begins = format!("{}.{}.", header("webhook-id")?, header("webhook-timestamp")?);
    let tag = header("webhook-signature")?.strip_prefix("v1,").context("no v1")?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let good = hmac::verify(&key, &[begins.as_bytes(), body].concat(), &STANDARD.decode(tag)?);
    ensure!(good.is_ok(), "no good signature");
    Ok(())
}
