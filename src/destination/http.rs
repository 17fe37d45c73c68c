//! Sends audio over HTTP: to users' URLs through the guard, to the cluster's own store proxy without it.
//!
//! Streamed, never held in memory. Redirects are followed by hand, with the same verb and the audio read again from its beginning, for a
//! guard has to look at each. No connection is used twice: an upload must not begin on one that is being closed, and every one is judged anew.

use std::error::Error as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Body, Response};
use thiserror::Error;
use tokio::time::Instant;
use url::Host;

use crate::config;
use crate::couch::{Silent, Watch};
use crate::kazoo::time::{Clock, Moment};
use crate::recording::settings::Method;

use super::guard::resolve::{Lookup, Resolver, System, Unresolved, admit};
use super::guard::{Guard, Refused};
use super::url::Target;
use super::{DeliveryError, Source};

/// Redirects that are followed, as in Kazoo (`kz_att_http`).
const MAX_REDIRECTS: usize = 10;

/// Longest pause that a server's `Retry-After` can ask for: the longest that we make by ourselves.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(12 * 3600);

/// The error of a client that cannot be built, as without any root certificate.
#[derive(Debug, Error)]
#[error("the HTTP client cannot be built: {0}")]
pub struct NoClient(String);

/// Sends audio. Cheap to clone.
#[derive(Clone)]
pub struct Http {
    client: reqwest::Client,
    guard: Option<Arc<Guard>>,
    silence: Duration,
    total: Duration,
    max_bytes: u64,
    clock: Clock,
}

/// What is sent.
pub struct Upload<'a> {
    pub source: &'a Source,
    /// Bytes.
    pub length: u64,
    pub content_type: &'a str,
    pub method: Method,
    /// `Idempotency-Key`: the same at every attempt.
    pub key: &'a str,
}

/// Audio that a server has taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Where it is: after redirects, query and credentials included.
    pub to: Target,
    pub status: u16,
    pub redirects: usize,
}

/// An upload that failed. Its text names no more of the URL than the host.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{host}: {kind}")]
pub struct SendError {
    pub host: String,
    pub kind: Failure,
    /// How long the server wants to be left alone.
    pub retry_after: Option<Duration>,
}

/// How it failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Failure {
    #[error("answered {0}")]
    Status(u16),
    #[error("{0}")]
    Address(Refused),
    #[error("its name cannot be resolved")]
    Unresolved,
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("its certificate or its TLS is not good: {0}")]
    Tls(String),
    #[error("{0}")]
    Silent(Silent),
    #[error("not through within {0:?}")]
    TooSlow(Duration),
    #[error("the connection was lost: {0}")]
    Lost(String),
    #[error("redirected {MAX_REDIRECTS} times")]
    TooManyRedirects,
    #[error("answered {0}, which leads nowhere that audio is sent to")]
    Redirect(u16),
    #[error("the recording has {0} bytes, more than destination.max_bytes")]
    TooLarge(u64),
    #[error("the audio cannot be read: {0}")]
    Source(Arc<str>),
}

impl SendError {
    /// Whether trying again is of no use: the recording is at fault, or the URL, not the moment.
    pub fn is_for_ever(&self) -> bool {
        match self.kind {
            Failure::Status(status) => is_for_ever(status),
            Failure::Address(_) | Failure::TooLarge(_) => true,
            _ => false,
        }
    }

    /// The answer's status, if there was one.
    pub fn status(&self) -> Option<u16> {
        match self.kind {
            Failure::Status(status) | Failure::Redirect(status) => Some(status),
            _ => None,
        }
    }
}

impl Http {
    /// A client for users' URLs.
    ///
    /// # Errors
    /// Without any root certificate, for one.
    pub fn guarded(
        config: &config::Destination,
        guard: Guard,
        lookup: Arc<dyn Lookup>,
        clock: Clock,
    ) -> Result<Self, NoClient> {
        let guard = Arc::new(guard);
        let resolver = Resolver::new(Arc::clone(&guard), lookup);
        let client = builder(config).dns_resolver(resolver).build();
        Self::of(client, Some(guard), config.max_bytes, config, clock)
    }

    /// As `guarded`, with the host's own resolver.
    ///
    /// # Errors
    /// As `guarded`.
    pub fn for_users(config: &config::Destination, clock: Clock) -> Result<Self, NoClient> {
        Self::guarded(config, Guard::new(config), Arc::new(System), clock)
    }

    /// A client for the cluster's own servers, wherever they are.
    ///
    /// # Errors
    /// As `guarded`.
    pub fn trusting(config: &config::Destination, clock: Clock) -> Result<Self, NoClient> {
        Self::of(builder(config).build(), None, u64::MAX, config, clock)
    }

    fn of(
        client: reqwest::Result<reqwest::Client>,
        guard: Option<Arc<Guard>>,
        max_bytes: u64,
        config: &config::Destination,
        clock: Clock,
    ) -> Result<Self, NoClient> {
        Ok(Self {
            client: client.map_err(|error| NoClient(error.to_string()))?,
            guard,
            silence: config.silence_timeout,
            total: config.send_timeout,
            max_bytes,
            clock,
        })
    }

    /// Sends `upload` to `target`, and on where that redirects to. Any 2xx is success.
    ///
    /// # Errors
    /// Whatever else happened, and whether it is of use to try again.
    pub async fn send(&self, target: &Target, upload: &Upload<'_>) -> Result<Sent, SendError> {
        let (end, mut to) = (Instant::now() + self.total, target.clone());
        let failed = |to: &Target, kind: Failure| SendError {
            host: to.host(),
            kind,
            retry_after: None,
        };
        if upload.length > self.max_bytes {
            return Err(failed(&to, Failure::TooLarge(upload.length)));
        }
        for redirects in 0..=MAX_REDIRECTS {
            let response = tokio::time::timeout_at(end, self.once(&to, upload))
                .await
                .unwrap_or(Err(Failure::TooSlow(self.total)))
                .map_err(|kind| failed(&to, kind))?;
            let status = response.status();
            if status.is_success() {
                return Ok(Sent {
                    to,
                    status: status.as_u16(),
                    redirects,
                });
            }
            // Not 303: that says that the upload is done, and to look elsewhere for its result.
            if !matches!(status.as_u16(), 301 | 302 | 307 | 308) {
                return Err(SendError {
                    retry_after: retry_after(response.headers(), self.clock.now()),
                    ..failed(&to, Failure::Status(status.as_u16()))
                });
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            to = location
                .and_then(|location| to.redirected(location))
                .ok_or_else(|| failed(&to, Failure::Redirect(status.as_u16())))?;
        }
        Err(failed(&to, Failure::TooManyRedirects))
    }

    /// One request. An answer of success comes back only when the whole audio was taken.
    async fn once(&self, to: &Target, upload: &Upload<'_>) -> Result<Response, Failure> {
        self.check(to)?;
        let source = |error: DeliveryError| match error {
            DeliveryError::Source(why) => Failure::Source(why),
            other => Failure::Source(Arc::from(other.to_string())),
        };
        let (watch, body) = Watch::over(upload.source.open().await.map_err(source)?, upload.length);
        let mut url = to.expose().clone();
        let (username, password) = (decoded(url.username()), url.password().map(decoded));
        // Neither fails for a URL with a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        let method = match upload.method {
            Method::Put => reqwest::Method::PUT,
            Method::Post => reqwest::Method::POST,
        };
        let mut request = self
            .client
            .request(method, url)
            .header(CONTENT_TYPE, upload.content_type)
            .header(CONTENT_LENGTH, upload.length)
            .header("Idempotency-Key", upload.key)
            .body(Body::wrap_stream(body));
        if !username.is_empty() || password.is_some() {
            request = request.basic_auth(username, password);
        }
        let answered = watch.patiently(self.silence, request.send()).await;
        if let Some(why) = watch.failure() {
            return Err(Failure::Source(why));
        }
        let response = answered.map_err(Failure::Silent)?.map_err(|error| failure(&error))?;
        if response.status().is_success() {
            self.settle(response, &watch).await
        } else {
            Ok(response)
        }
    }

    /// A server may say yes before it has everything. What it takes then, it must still be given.
    async fn settle(&self, mut response: Response, watch: &Watch) -> Result<Response, Failure> {
        const READ_AT_MOST: usize = 64 << 10;
        watch.taken(self.silence).await.map_err(Failure::Silent)?;
        // To the end of the answer: then the last bytes have left us too.
        let reading = async {
            let mut read = 0;
            while let Ok(Some(piece)) = response.chunk().await {
                read += piece.len();
                if read > READ_AT_MOST {
                    break;
                }
            }
        };
        // What the answer says is of no interest, so neither is an end that does not come.
        let _ = tokio::time::timeout(Duration::from_secs(5).min(self.silence), reading).await;
        match watch.failure() {
            Some(why) => Err(Failure::Source(why)),
            None => Ok(response),
        }
    }

    /// An address in the URL itself is never resolved, so it is judged here.
    fn check(&self, to: &Target) -> Result<(), Failure> {
        let Some(guard) = &self.guard else { return Ok(()) };
        let address = match to.expose().host() {
            Some(Host::Ipv4(v4)) => IpAddr::V4(v4),
            Some(Host::Ipv6(v6)) => IpAddr::V6(v6),
            _ => return Ok(()),
        };
        admit(guard, &address.to_string(), address).map_err(Failure::Address)
    }
}

fn builder(config: &config::Destination) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("kz-record-call/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(config.connect_timeout)
        .pool_max_idle_per_host(0)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        // One of the environment would connect for us, and to whatever it likes.
        .no_proxy()
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text)
        .decode_utf8_lossy()
        .into_owned()
}

/// What a transport error was, without its text's URL.
fn failure(error: &reqwest::Error) -> Failure {
    let mut last = String::new();
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(refused) = cause.downcast_ref::<Refused>() {
            return Failure::Address(refused.clone());
        }
        if cause.is::<Unresolved>() {
            return Failure::Unresolved;
        }
        if let Some(tls) = tls(cause) {
            return Failure::Tls(tls);
        }
        last = cause.to_string();
        source = cause.source();
    }
    if error.is_connect() {
        let why = if error.is_timeout() {
            "no answer".to_owned()
        } else {
            last
        };
        return Failure::Connect(why);
    }
    Failure::Lost(last)
}

/// rustls' errors travel inside of I/O errors, several deep, which do not name them as their source.
fn tls(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<rustls::Error>() {
        return Some(error.to_string());
    }
    let inner = cause.downcast_ref::<std::io::Error>()?.get_ref()?;
    tls(inner)
}

/// How long a server wants to be left alone: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: Moment) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = httpdate::parse_http_date(value).ok()?;
            let at = at.duration_since(std::time::UNIX_EPOCH).ok()?;
            Moment::from_unix_seconds(i64::try_from(at.as_secs()).ok()?).since(now)
        }
    };
    Some(pause.min(MAX_RETRY_AFTER))
}

/// Whether a status says that this recording will not be taken, now or later.
const fn is_for_ever(status: u16) -> bool {
    matches!(status, 400 | 405 | 410 | 413 | 414 | 415 | 422)
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn what_is_of_no_use_to_try_again_is_known() {
        for status in [400, 405, 410, 413, 414, 415, 422] {
            assert!(is_for_ever(status), "{status}");
        }
        // A deploy at night needs no operator.
        for status in [303, 401, 403, 404, 408, 409, 423, 429, 500, 501, 502, 503, 504, 507] {
            assert!(!is_for_ever(status), "{status}");
        }
    }

    #[test]
    fn a_server_may_ask_for_a_pause_in_seconds_or_by_date_but_not_for_a_year() {
        let now = Moment::from_unix_seconds(784_111_777); // Sun, 06 Nov 1994 08:49:37 GMT
        for (value, pause) in [
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("0", Some(0)),
            ("31536000", Some(43_200)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("Sat, 06 Nov 2094 08:00:00 GMT", Some(43_200)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(value).unwrap());
            assert_eq!(retry_after(&headers, now), pause.map(Duration::from_secs), "{value}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
