//! Sends audio over HTTP. Users' URLs pass the SSRF filter. The cluster's own store proxy does not.
//!
//! Audio is streamed, never held in memory. The code follows redirects itself, because the SSRF filter must check each of them. The method
//! stays the same, and the audio is read again from its beginning. No connection is reused. An upload must not start on a connection that
//! is being closed, and the filter checks each connection anew.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, LOCATION, RETRY_AFTER, USER_AGENT};
use reqwest::Body;
use tokio::time::Instant;

use crate::config::{self, HostHeader};
use crate::couch::{Silent, Watch};
use crate::kazoo::time::{Clock, Moment};
use crate::recording::settings::Method;

use super::super::{DeliveryError, Source};
use super::failure::MAX_REDIRECTS;
pub use super::failure::{Failure, NoClient, SendError};
use super::guard::Guard;
use super::guard::resolve::{Lookup, System};
use super::signed::{Scheme, md5_of_answer};
use super::target::{Target, unescaped};

pub mod exchange;
mod passed;
mod wire;

use wire::{Answer, Moved, Wire};

/// Longest delay that a server's `Retry-After` can ask for. It equals the longest delay of our own retry schedule.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(12 * 3600);

/// Sends audio. Cheap to clone.
#[derive(Clone)]
pub struct Http {
    wire: Wire,
    silence: Duration,
    total: Duration,
    max_bytes: u64,
    /// Further headers, by host.
    headers: Arc<[HostHeader]>,
    clock: Clock,
}

/// What to send.
pub struct Upload<'a> {
    pub source: &'a Source,
    /// Bytes.
    pub length: u64,
    pub content_type: &'a str,
    pub method: Method,
    /// `Idempotency-Key`, which is the same at each attempt.
    pub key: &'a str,
}

/// Audio that a server has accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The final URL after redirects, with query and credentials.
    pub to: Target,
    pub status: u16,
    pub redirects: usize,
    /// The MD5 of the object that the store of a signed URL reports, in hexadecimal.
    pub md5: Option<String>,
}

impl Http {
    /// A client for users' URLs.
    ///
    /// # Errors
    /// For example without any root certificate.
    pub fn guarded(
        config: &config::Destination,
        guard: Guard,
        lookup: Arc<dyn Lookup>,
        clock: Clock,
    ) -> Result<Self, NoClient> {
        let wire = Wire::new(
            Some(Arc::new(guard)),
            lookup,
            config.ca.as_ref(),
            config.connect_timeout,
        )?;
        let headers = config.headers.as_slice().into();
        Ok(Self {
            headers,
            ..Self::of(wire, config.max_bytes, config, clock)
        })
    }

    /// As `guarded`, with the host's own resolver.
    ///
    /// # Errors
    /// As `guarded`.
    pub fn for_users(config: &config::Destination, clock: Clock) -> Result<Self, NoClient> {
        Self::guarded(config, Guard::new(config), Arc::new(System), clock)
    }

    /// A client for the cluster's own servers, at any address.
    ///
    /// # Errors
    /// As `guarded`.
    pub fn trusting(config: &config::Destination, clock: Clock) -> Result<Self, NoClient> {
        let wire = Wire::new(None, Arc::new(System), None, config.connect_timeout)?;
        Ok(Self::of(wire, u64::MAX, config, clock))
    }

    /// A client for object stores. Without a filter it reaches any address. `ca`: authorities trusted in addition to the host's.
    ///
    /// # Errors
    /// As `guarded`.
    pub fn for_stores(
        config: &config::Destination,
        guard: Option<Guard>,
        (lookup, ca): (Arc<dyn Lookup>, Option<&config::Authorities>),
        clock: Clock,
    ) -> Result<Self, NoClient> {
        let wire = Wire::new(guard.map(Arc::new), lookup, ca, config.connect_timeout)?;
        Ok(Self::of(wire, u64::MAX, config, clock))
    }

    fn of(wire: Wire, max_bytes: u64, config: &config::Destination, clock: Clock) -> Self {
        Self {
            wire,
            silence: config.silence_timeout,
            total: config.send_timeout,
            max_bytes,
            headers: Arc::default(),
            clock,
        }
    }

    /// Sends `upload` to `target`, and follows redirects. Any 2xx is success.
    ///
    /// # Errors
    /// Any other outcome, with whether a retry is of use.
    pub async fn send(&self, target: &Target, upload: &Upload<'_>) -> Result<Sent, SendError> {
        let (end, mut to) = (Instant::now() + self.total, target.clone());
        let failed = SendError::of;
        if upload.length > self.max_bytes {
            return Err(failed(&to, Failure::TooLarge(upload.length)));
        }
        let mut typed = !to.scheme().is_some_and(Scheme::covers_type);
        let mut redirects = 0;
        while redirects <= MAX_REDIRECTS {
            let mut answer = tokio::time::timeout_at(end, self.once(&to, upload, typed))
                .await
                .unwrap_or(Err(Failure::TooSlow(self.total)))
                .map_err(|kind| failed(&to, kind))?;
            let status = answer.status;
            if (200..300).contains(&status) {
                let md5 = to.scheme().and_then(|_| md5_of_answer(&answer.headers));
                return Ok(Sent {
                    to,
                    status,
                    redirects,
                    md5,
                });
            }
            // 303 is excluded: it says that the upload is complete and that its result is at another URL.
            if !matches!(status, 301 | 302 | 307 | 308) {
                let said = self.said(&mut answer, &to).await;
                let bad_signature = to.is_signed() && is_about_signature(status, said.as_deref());
                if bad_signature && !typed {
                    // Its signer has signed the audio's type too.
                    typed = true;
                    continue;
                }
                return Err(SendError {
                    retry_after: retry_after(&answer.headers, self.clock.now()),
                    bad_signature,
                    said,
                    ..failed(&to, Failure::Status(status))
                });
            }
            // The signature is for this host and path only.
            let location = answer.headers.get(LOCATION).filter(|_| !to.is_signed());
            to = location
                .and_then(|location| to.redirected(location.as_bytes()))
                .ok_or_else(|| failed(&to, Failure::Redirect(status)))?;
            redirects += 1;
        }
        Err(failed(&to, Failure::TooManyRedirects))
    }

    /// The server's own reason for refusing.
    async fn said(&self, answer: &mut Answer, to: &Target) -> Option<String> {
        let body = self.read(answer).await;
        let sent = self.further(to).filter_map(|header| header.value.to_str().ok());
        super::said::reason(&answer.headers, &body, to.expose(), sent)
    }

    /// The further headers for a URL.
    fn further(&self, to: &Target) -> impl Iterator<Item = &HostHeader> {
        let (host, scheme) = (to.host(), to.expose().scheme());
        self.headers
            .iter()
            .filter(move |header| header.host == host && header.scheme == scheme)
    }

    /// One request. A 2xx is returned only when the server took the whole audio.
    /// `typed`: with the audio's type.
    async fn once(&self, to: &Target, upload: &Upload<'_>, typed: bool) -> Result<Answer, Failure> {
        let source = |error: DeliveryError| match error {
            DeliveryError::Source(why) => Failure::Source(why),
            other => Failure::Source(Arc::from(other.to_string())),
        };
        let (watch, body) = Watch::over(upload.source.open().await.map_err(source)?, upload.length);
        let url = to.expose();
        let method = match upload.method {
            Method::Put => hyper::Method::PUT,
            Method::Post => hyper::Method::POST,
        };
        let mut request = hyper::Request::builder()
            .method(method)
            .uri(to.path_and_query())
            .header(HOST, to.host())
            .header(USER_AGENT, concat!("kz-record-call/", env!("CARGO_PKG_VERSION")))
            .header("Accept", "*/*")
            .header(CONTENT_LENGTH, upload.length)
            .header("Idempotency-Key", upload.key);
        if typed {
            request = request.header(CONTENT_TYPE, upload.content_type);
        }
        for (name, value) in to.scheme().map_or(&[][..], Scheme::headers) {
            request = request.header(*name, *value);
        }
        let own = self.further(to).any(|header| header.name == AUTHORIZATION);
        if let Some(authorization) = basic(url).filter(|_| !own) {
            request = request.header(AUTHORIZATION, authorization);
        }
        for header in self.further(to) {
            request = request.header(&header.name, &header.value);
        }
        let request = request
            .body(Body::wrap_stream(body))
            .map_err(|error| Failure::Unsendable(error.to_string()))?;
        let answered = watch.patiently(self.silence, self.wire.exchange(url, request)).await;
        if let Some(why) = watch.failure() {
            return Err(Failure::Source(why));
        }
        let answer = answered.map_err(Failure::Silent)??;
        if (200..300).contains(&answer.status) {
            self.settle(answer, &watch, upload.length).await
        } else {
            Ok(answer)
        }
    }

    /// A server may answer 2xx before it has received everything. The rest of the audio must still be sent.
    async fn settle(&self, mut answer: Answer, watch: &Watch, length: u64) -> Result<Answer, Failure> {
        const READ_AT_MOST: usize = 64 << 10;
        tokio::select! {
            biased;
            taken = watch.taken(self.silence) => taken.map_err(Failure::Silent)?,
            () = answer.closed() => {}
        }
        if !watch.is_taken() && watch.failure().is_none() {
            let why = answer.lost().unwrap_or("it closed");
            return Err(Failure::Lost(format!(
                "it says {}, and took not all of it: {why}",
                answer.status
            )));
        }
        // The client took the body from us before it wrote it. A server may answer piece by piece as it reads, and waits for us to read that.
        let mut read = 0;
        let mut written = answer.written();
        while !answer.has_sent(length) && answer.lost().is_none() {
            let moved = tokio::time::timeout(self.silence, answer.moved(length)).await;
            match moved {
                Ok(Moved::Answered(more)) => read += more,
                Ok(Moved::Sent) => {}
                Ok(Moved::Closed) => break,
                Err(_) if answer.written() == written => return Err(Failure::Silent(Silent(self.silence))),
                Err(_) => written = answer.written(),
            }
        }
        if !answer.has_sent(length) && answer.lost().is_none() {
            return Err(Failure::Lost(format!(
                "it says {}, and took not all of it: it closed",
                answer.status
            )));
        }
        let reading = async {
            while read <= READ_AT_MOST
                && let Some(piece) = answer.piece().await
            {
                read += piece.len();
            }
        };
        // The content of the answer does not matter, so a missing end does not matter either.
        let _ = tokio::time::timeout(Duration::from_secs(5).min(self.silence), reading).await;
        if let Some(why) = answer.lost() {
            return Err(Failure::Lost(format!(
                "it says {}, and took not all of it: {why}",
                answer.status
            )));
        }
        match watch.failure() {
            Some(why) => Err(Failure::Source(why)),
            None => Ok(answer),
        }
    }
}

/// The `Authorization` header for the URL's credentials, which are decoded once, byte by byte.
fn basic(url: &::url::Url) -> Option<String> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let mut plain = unescaped(url.username());
    plain.push(b':');
    plain.extend(unescaped(url.password().unwrap_or_default()));
    Some(format!("Basic {}", STANDARD.encode(plain)))
}

/// Whether the server refuses a signed URL because of its signature or its expiry. A retry cannot succeed then.
fn is_about_signature(status: u16, said: Option<&str>) -> bool {
    const WORDS: [&str; 3] = ["signature", "expired", "authenticationfailed"];
    let said = said.unwrap_or_default().to_ascii_lowercase();
    matches!(status, 400 | 401 | 403) && WORDS.iter().any(|word| said.contains(word))
}

/// rustls' errors are nested several deep in I/O errors, which do not report them as their source.
fn tls(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<rustls::Error>() {
        return Some(error.to_string());
    }
    let inner = cause.downcast_ref::<std::io::Error>()?.get_ref()?;
    tls(inner)
}

/// How long a server asks to wait, as seconds or as a date.
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

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

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
