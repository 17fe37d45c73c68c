//! One request to an object store, and its answer. The caller judges every status. No redirect is followed.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use hyper::header::{CONTENT_LENGTH, HOST, HeaderMap, USER_AGENT};
use reqwest::Body;
use tokio::time::Instant;
use url::Url;

use crate::couch::{ByteStream, Watch};

use super::super::super::{DeliveryError, Source};
use super::{Answer, Failure, Http, retry_after};

/// A request whose headers are signed: they are sent as they are.
pub struct Request<'a> {
    pub method: hyper::Method,
    /// The server: scheme, host and port.
    pub server: &'a Url,
    /// As it is signed.
    pub path_and_query: &'a str,
    /// Names in lower case, `host` included.
    pub headers: &'a [(String, String)],
    /// The body, and its bytes.
    pub body: Option<(&'a Source, u64)>,
    /// When the request must be through.
    pub until: Instant,
}

/// An answer, its body as far as an error needs it.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// How long the server asks to wait.
    pub retry_after: Option<Duration>,
}

impl Reply {
    /// A header's value, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

impl Http {
    /// Sends a request. A 2xx is returned only when the server took the whole body.
    ///
    /// # Errors
    /// When there is no answer, or the body cannot be read.
    pub async fn exchange(&self, request: &Request<'_>) -> Result<Reply, Failure> {
        tokio::time::timeout_at(request.until, self.exchanged(request))
            .await
            .unwrap_or(Err(Failure::TooSlow(self.total)))
    }

    /// When a request that begins now must be through.
    pub fn until(&self) -> Instant {
        Instant::now() + self.total
    }

    /// The time, by the worker's clock.
    pub fn now(&self) -> crate::kazoo::time::Moment {
        self.clock.now()
    }

    async fn exchanged(&self, request: &Request<'_>) -> Result<Reply, Failure> {
        let (body, length) = match request.body {
            Some((source, length)) => (opened(source).await?, length),
            None => (Box::pin(stream::empty()) as ByteStream, 0),
        };
        let (watch, body) = Watch::over(body, length);
        let mut sent = hyper::Request::builder()
            .method(request.method.clone())
            .uri(request.path_and_query)
            .header(USER_AGENT, concat!("kz-record-call/", env!("CARGO_PKG_VERSION")));
        for (name, value) in request.headers {
            let name = if name == "host" { HOST.as_str() } else { name };
            sent = sent.header(name, value);
        }
        let sent = match request.body {
            Some(_) => sent.header(CONTENT_LENGTH, length).body(Body::wrap_stream(body)),
            None => sent.body(Body::from(Bytes::new())),
        };
        let sent = sent.map_err(|error| Failure::Unsendable(error.to_string()))?;
        let exchanging = self.wire.exchange(request.server, sent);
        let answered = watch.patiently(self.silence, exchanging).await;
        if let Some(why) = watch.failure().filter(|_| length > 0) {
            return Err(Failure::Source(why));
        }
        let mut answer = answered.map_err(Failure::Silent)??;
        let (status, headers) = (answer.status, answer.headers.clone());
        let retry_after = retry_after(&headers, self.clock.now());
        let reply = |body| Reply {
            status,
            headers,
            body,
            retry_after,
        };
        if request.body.is_some() && (200..300).contains(&status) {
            self.settle(answer, &watch, length).await?;
            return Ok(reply(Vec::new()));
        }
        let body = self.read(&mut answer).await;
        Ok(reply(body))
    }

    /// As much of the answer's body as a reason needs.
    pub(super) async fn read(&self, answer: &mut Answer) -> Vec<u8> {
        const READ_AT_MOST: usize = 16 << 10;
        let mut body = Vec::new();
        let reading = async {
            while let Some(piece) = answer.piece().await {
                body.extend_from_slice(&piece);
                if body.len() > READ_AT_MOST {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2).min(self.silence), reading).await;
        body
    }
}

async fn opened(source: &Source) -> Result<ByteStream, Failure> {
    source.open().await.map_err(|error| match error {
        DeliveryError::Source(why) => Failure::Source(why),
        other => Failure::Source(other.to_string().into()),
    })
}
