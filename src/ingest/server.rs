//! The HTTP server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};
use url::Url;

use crate::config;
use crate::kazoo::time::Clock;
use crate::recording::carry::derive_key;
use crate::recording::digest::{Digests, Hasher};
use crate::recording::identity::Key;
use crate::telemetry::events::{UploadAnswered, UploadTurnedAway, UploadsInProgress};
use crate::telemetry::{survive, survive_for_ever};

use super::connections::Connections;
use super::receive::receive;
use super::slots::{Expected, Slots, Wanted};
use super::spool::Spool;
use super::tls::Certificate;
use super::token::{Token, TokenError};
use crate::lifecycle::Answer;

/// The path of uploads: `/recordings/<token>/<file name>`.
const PREFIX: &str = "/recordings/";

/// A connection must have sent the head of its request by then, or completed its TLS handshake. Otherwise it is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// The receiver of uploads. Cheap to clone.
#[derive(Clone)]
pub struct Ingest(Arc<Inner>);

struct Inner {
    config: config::Ingest,
    base: Url,
    instance: u64,
    tokens: hmac::Key,
    clock: Clock,
    slots: Slots,
    spool: Spool,
    uploads: Semaphore,
    certificate: Option<Certificate>,
}

impl Ingest {
    /// Binds the listener and starts to serve. `host` names this worker when no URL is configured.
    ///
    /// # Errors
    /// When the address cannot be bound, or the advertised URL or the certificate cannot be used.
    pub async fn start(
        config: &config::Ingest,
        host: &str,
        secret: &[u8],
        spool: Spool,
        clock: Clock,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> std::io::Result<Self> {
        let invalid = |why: String| std::io::Error::new(std::io::ErrorKind::InvalidInput, why);
        let certificate = config.tls.as_ref().map(Certificate::open).transpose();
        let certificate = certificate.map_err(|why| invalid(why.to_string()))?;
        let acceptor = certificate.as_ref().map(Certificate::acceptor).transpose()?;
        let listener = TcpListener::bind(config.listen).await?;
        let base = advertised(config, host, listener.local_addr()?.port()).map_err(invalid)?;
        let ingest = Self(Arc::new(Inner {
            config: config.clone(),
            base,
            instance: fastrand::u64(..),
            tokens: hmac::Key::new(hmac::HMAC_SHA256, &derive_key(secret, "kz_record_call upload token 1")),
            clock,
            slots: Slots::default(),
            spool,
            uploads: Semaphore::new(config.in_all),
            certificate,
        }));
        if let Some(certificate) = &ingest.0.certificate {
            let (certificate, stop) = (certificate.clone(), stop.clone());
            let follow = move || certificate.clone().follow(stop.clone());
            tasks.spawn(survive_for_ever("certificate", follow));
        }
        let serving = ingest.clone().serve(listener, acceptor, tasks.clone(), stop);
        tasks.spawn(survive("uploads", serving));
        Ok(ingest)
    }

    /// Registers an expected upload. The result contains the URL to PUT it to.
    pub fn expect(&self, wanted: Wanted) -> Expected {
        let attempt = fastrand::u64(..);
        let token = Token {
            instance: self.0.instance,
            key: wanted.key,
            attempt,
            expires: self.0.clock.now().plus(self.0.config.token_ttl),
        };
        let base = self.0.base.as_str().trim_end_matches('/');
        let name = format!("{}.{}", wanted.key, wanted.format);
        let url = format!("{base}{PREFIX}{}/{name}", token.sign(&self.0.tokens));
        self.0.slots.expect(wanted, attempt, url)
    }

    /// Records that the recording's audio, with these digests, is safe outside this host.
    pub fn remember_safe(&self, key: Key, digests: &Digests) {
        self.0.slots.remember_safe(key, digests.clone());
    }

    pub fn spool(&self) -> &Spool {
        &self.0.spool
    }

    /// The URL that switches get, without a token.
    pub fn base(&self) -> &Url {
        &self.0.base
    }

    /// Reads the certificate's files again now, without waiting for the next periodic check.
    pub fn read_certificate_again(&self) {
        if let Some(certificate) = &self.0.certificate {
            certificate.notice();
        }
    }

    async fn serve(
        self,
        listener: TcpListener,
        acceptor: Option<TlsAcceptor>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) {
        let connections = Connections::new(self.0.config.in_all * 2 + 64);
        let router = Router::new().fallback(answer).with_state(self);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let Some(place) = connections.enter() else {
                        let limit = UploadTurnedAway::CONNECTIONS;
                        UploadTurnedAway { limit }.emit();
                        debug!(event = "upload_connection_closed", %peer, "connection closed: limit reached");
                        continue;
                    };
                    let (place, acceptor, stop) = (Arc::new(place), acceptor.clone(), stop.clone());
                    let (leave, of) = (place.leave(), Arc::clone(&place));
                    let router = router.clone().layer(from_fn(move |request: Request, next: Next| {
                        let busy = of.begin();
                        async move {
                            let response = next.run(request).await;
                            drop(busy);
                            response
                        }
                    }));
                    let work = async move {
                        tokio::select! {
                            () = accept(stream, peer, acceptor, router, stop) => {}
                            () = leave.cancelled() => debug!(event = "upload_connection_closed", %peer, "silent connection closed"),
                        }
                        drop(place);
                    };
                    tasks.spawn(survive("upload", work));
                }
                Err(error) => {
                    warn!(event = "upload_accept_failed", %error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn put(&self, path: &str, request: Request) -> Outcome {
        let inner = &self.0;
        let token = path.split('/').next().unwrap_or_default();
        let token = match Token::verify(token, &inner.tokens, inner.clock.now()) {
            Ok(token) if token.instance == inner.instance => token,
            Ok(_) => return Outcome::refused(StatusCode::MISDIRECTED_REQUEST, "this permission is another worker's"),
            Err(error @ TokenError::Forged) => return Outcome::refused(StatusCode::FORBIDDEN, &error.to_string()),
            Err(error @ TokenError::Expired) => return Outcome::refused(StatusCode::GONE, &error.to_string()),
        };
        let Some(slot) = inner.slots.find((token.key, token.attempt)) else {
            return self.late(token.key, request).await;
        };
        let media_id = slot.wanted.media_id.to_string();
        let Ok(_permit) = inner.uploads.try_acquire() else {
            let limit = UploadTurnedAway::UPLOADS;
            UploadTurnedAway { limit }.emit();
            return Outcome::refused(StatusCode::SERVICE_UNAVAILABLE, "too many uploads at once").of(media_id);
        };
        let length = match content_length(&request) {
            Ok(length) => length,
            Err(()) => return Outcome::refused(StatusCode::BAD_REQUEST, "Content-Length is not a number").of(media_id),
        };
        let receiving = slot.begin();
        let _counted = Counted::new();
        let received = receive(request.into_body(), length, &slot.wanted, &inner.spool, &inner.config).await;
        let (audio, file) = match received {
            Ok(received) => received,
            Err(error) => {
                let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
                let outcome = Outcome::refused(status, &error.to_string()).of(media_id);
                receiving.fail(error);
                return outcome;
            }
        };
        let (bytes, digests) = (audio.size, audio.digests.clone());
        // Subscribes before the delivery can answer.
        let answered = slot.answered(digests);
        let first = slot.hand_over(audio, file);
        let answered = tokio::time::timeout(inner.config.delivery_timeout, answered).await;
        drop(receiving);
        let outcome = match answered {
            Ok(Answer::Release) => Outcome {
                status: StatusCode::OK,
                bytes,
                why: "safe".into(),
                media_id,
            },
            Ok(Answer::Keep) => {
                Outcome::refused(StatusCode::SERVICE_UNAVAILABLE, "not delivered yet; keep it").of(media_id)
            }
            Err(_) => {
                Outcome::refused(StatusCode::SERVICE_UNAVAILABLE, "the delivery takes too long; keep it").of(media_id)
            }
        };
        debug!(
            event = "upload_done",
            media_id = outcome.media_id,
            first,
            status = outcome.status.as_u16(),
            "upload done"
        );
        Outcome { bytes, ..outcome }
    }

    /// A PUT that no delivery waits for. If the audio is known to be safe, the switch may delete its file.
    async fn late(&self, key: Key, request: Request) -> Outcome {
        let Some(safe) = self.0.slots.safe(key) else {
            return Outcome::refused(
                StatusCode::SERVICE_UNAVAILABLE,
                "no worker expects this upload; keep it",
            );
        };
        let mut stream = request.into_body().into_data_stream();
        let drained = async {
            use futures_util::StreamExt as _;
            let (mut bytes, mut hasher) = (0u64, Hasher::default());
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.ok()?;
                bytes += chunk.len() as u64;
                hasher.update(&chunk);
            }
            Some((bytes, hasher.finish()))
        };
        match tokio::time::timeout(self.0.config.upload_timeout, drained).await {
            // The switch may have started a new recording into the same file. It may delete only bytes that are safe.
            Ok(Some((bytes, digests))) if digests == safe => Outcome {
                status: StatusCode::OK,
                bytes,
                why: "safe already".into(),
                media_id: key.to_string(),
            },
            Ok(_) => Outcome::refused(StatusCode::SERVICE_UNAVAILABLE, "this is not what is safe; keep it"),
            Err(_) => Outcome::refused(StatusCode::REQUEST_TIMEOUT, "too slow"),
        }
    }
}

struct Outcome {
    status: StatusCode,
    bytes: u64,
    why: String,
    media_id: String,
}

impl Outcome {
    fn refused(status: StatusCode, why: &str) -> Self {
        Self {
            status,
            bytes: 0,
            why: why.to_owned(),
            media_id: String::new(),
        }
    }

    fn of(self, media_id: String) -> Self {
        Self { media_id, ..self }
    }
}

/// An upload that is counted while it is in flight.
struct Counted;

impl Counted {
    fn new() -> Self {
        UploadsInProgress { by: 1 }.emit();
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        UploadsInProgress { by: -1 }.emit();
    }
}

async fn answer(State(ingest): State<Ingest>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let outcome = match (path.strip_prefix(PREFIX), request.method()) {
        (Some(rest), &Method::PUT) => ingest.put(rest, request).await,
        (Some(_), _) => Outcome::refused(StatusCode::METHOD_NOT_ALLOWED, "only PUT is served here"),
        (None, _) => Outcome::refused(StatusCode::NOT_FOUND, "nothing is here"),
    };
    UploadAnswered {
        media_id: &outcome.media_id,
        status: outcome.status.as_u16(),
        bytes: outcome.bytes,
        why: &outcome.why,
    }
    .emit();
    let mut response = (outcome.status, format!("{}\n", outcome.why)).into_response();
    if !outcome.status.is_success() {
        // The body may not have been read, so the connection cannot be reused.
        response
            .headers_mut()
            .insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    }
    response
}

fn content_length(request: &Request) -> Result<Option<u64>, ()> {
    let Some(value) = request.headers().get(header::CONTENT_LENGTH) else {
        return Ok(None);
    };
    value
        .to_str()
        .ok()
        .and_then(|text| text.parse().ok())
        .map(Some)
        .ok_or(())
}

/// The URL that switches get: the configured URL, or one built from the host's name.
///
/// # Errors
/// When the name cannot be part of a URL.
pub fn advertised(config: &config::Ingest, host: &str, port: u16) -> Result<Url, String> {
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    match &config.advertised_url {
        Some(url) => Ok(url.clone()),
        None => Url::parse(&format!("{scheme}://{host}:{port}"))
            .map_err(|error| format!("kazoo.host {host:?} cannot be part of a URL: {error}")),
    }
}

async fn accept(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    stop: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else {
        return connection(stream, peer, router, stop).await;
    };
    let agreed = tokio::select! {
        agreed = tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream)) => agreed,
        () = stop.cancelled() => return,
    };
    match agreed {
        Ok(Ok(stream)) => connection(stream, peer, router, stop).await,
        Ok(Err(error)) => debug!(event = "upload_tls_failed", %peer, %error, "TLS handshake failed"),
        Err(_) => debug!(event = "upload_tls_failed", %peer, "TLS handshake timed out"),
    }
}

/// Bytes that a connection reads ahead at most. With the permitted number of concurrent uploads, this is most of their memory.
const MOST_READ: usize = 128 << 10;

async fn connection<S>(stream: S, peer: SocketAddr, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MOST_READ)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(event = "upload_connection_broken", %peer, %error, "connection broken");
    }
}
