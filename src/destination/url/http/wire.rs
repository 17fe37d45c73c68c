//! One request on a connection of its own. The answer is read even when the body cannot be sent to its end.
//!
//! A server that refuses a body answers and closes the connection (RFC 9110, 15.5.14). Its reset then meets our write, while the answer
//! waits in the receive buffer. A client that stops at the failed write, as hyper does, reports a lost connection although the server gave
//! a reason. Here a write cannot fail: bytes that cannot be sent are discarded, and the answer is still read.
//!
//! ```text
//! we      headers, body, body …………… body (EPIPE: swallowed)   read: 413
//! server  headers ← 413, close (RST)
//! ```

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::header::HeaderMap;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use crate::config::Authorities;
use crate::telemetry::survive;

use super::super::connect::{Connector, tls};
use super::super::guard::Guard;
use super::super::guard::resolve::Lookup;
use super::passed::{Counting, Passed};
use super::{Failure, NoClient};

/// How long to wait for an answer after the connection has refused more of the body.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Makes connections.
#[derive(Clone)]
pub(super) struct Wire {
    tls: Arc<rustls::ClientConfig>,
    connector: Connector,
}

/// The head of an answer, and the connection that delivers the rest.
pub(super) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    body: Incoming,
    lost: Arc<Lost>,
    passed: Arc<Passed>,
    /// The answer's body is over.
    is_read: bool,
    driver: Driver,
}

/// What happened on a connection whose answer came before its request was through.
pub(super) enum Moved {
    Sent,
    /// So many bytes more of the answer came.
    Answered(usize),
    Closed,
}

/// Ends the connection when its answer is dropped.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why the connection took no more of the body.
#[derive(Default)]
struct Lost {
    why: OnceLock<String>,
    told: Notify,
}

impl Wire {
    pub(super) fn new(
        guard: Option<Arc<Guard>>,
        lookup: Arc<dyn Lookup>,
        ca: Option<&Authorities>,
        patience: Duration,
    ) -> Result<Self, NoClient> {
        let mut tls = tls(ca)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            tls: Arc::new(tls),
            connector: Connector {
                guard,
                lookup,
                patience,
            },
        })
    }

    /// Sends `request`, whose URI is the target's path and query, to the host of `url`.
    pub(super) async fn exchange(&self, url: &Url, request: hyper::Request<reqwest::Body>) -> Result<Answer, Failure> {
        let port = url.port_or_known_default().unwrap_or(80);
        let stream = self.connector.connect(url, port).await?;
        let lost = Arc::<Lost>::default();
        let stream = Steady {
            stream,
            lost: Arc::clone(&lost),
        };
        if url.scheme() != "https" {
            return converse(stream, request, lost).await;
        }
        let name = match url.host() {
            Some(Host::Domain(name)) => ServerName::try_from(name.to_owned()),
            Some(Host::Ipv4(v4)) => Ok(ServerName::from(IpAddr::V4(v4))),
            Some(Host::Ipv6(v6)) => Ok(ServerName::from(IpAddr::V6(v6))),
            None => return Err(Failure::Unresolved),
        };
        let name = name.map_err(|error| Failure::Tls(error.to_string()))?;
        let shaking = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream);
        let stream = tokio::time::timeout(self.connector.patience, shaking)
            .await
            .map_err(|_| Failure::Connect("no answer".into()))?
            .map_err(|error| match super::tls(&error) {
                Some(why) => Failure::Tls(why),
                None => Failure::Connect(error.to_string()),
            })?;
        converse(stream, request, lost).await
    }
}

async fn converse<S>(stream: S, request: hyper::Request<reqwest::Body>, lost: Arc<Lost>) -> Result<Answer, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: hyper::Error| Failure::Lost(words(&error));
    let (stream, passed) = Counting::new(stream);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let driver = Driver(tokio::spawn(async move {
        let _ = survive("http connection", connection).await;
    }));
    let answered = tokio::select! {
        answered = sender.send_request(request) => answered.map_err(broken),
        () = lost.after(LAST_WORDS) => Err(Failure::Lost("no answer".into())),
    };
    let response = answered.map_err(|failure| match lost.why.get() {
        Some(why) => Failure::Lost(why.clone()),
        None => failure,
    })?;
    let (head, body) = response.into_parts();
    Ok(Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body,
        lost,
        passed,
        is_read: false,
        driver,
    })
}

fn words(error: &hyper::Error) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}

impl Answer {
    /// The next piece of the answer's body. `None` at its end, or when no more arrives.
    pub(super) async fn piece(&mut self) -> Option<Bytes> {
        loop {
            let frame = std::future::poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await;
            // All other frames are trailers.
            if let Ok(data) = frame?.ok()?.into_data() {
                return Some(data);
            }
        }
    }

    /// Waits until so many bytes of the body have left us, the answer goes on, or the connection is over.
    pub(super) async fn moved(&mut self, length: u64) -> Moved {
        let passed = Arc::clone(&self.passed);
        if self.is_read {
            return tokio::select! {
                () = passed.all(length) => Moved::Sent,
                () = self.closed() => Moved::Closed,
            };
        }
        tokio::select! {
            biased;
            () = passed.all(length) => Moved::Sent,
            piece = self.piece() => match piece {
                Some(piece) => Moved::Answered(piece.len()),
                None => {
                    self.is_read = true;
                    Moved::Answered(0)
                }
            },
        }
    }

    /// Bytes of the body that the connection has taken.
    pub(super) fn written(&self) -> u64 {
        self.passed.written()
    }

    /// Whether `length` bytes of the body were written.
    pub(super) fn has_sent(&self, length: u64) -> bool {
        self.passed.has_all(length)
    }

    /// Waits until the connection ends.
    pub(super) async fn closed(&mut self) {
        if !self.driver.0.is_finished() {
            let _ = (&mut self.driver.0).await;
        }
    }

    /// Why the connection did not take all of the body, if that happened.
    pub(super) fn lost(&self) -> Option<&str> {
        self.lost.why.get().map(String::as_str)
    }
}

impl Lost {
    fn note(&self, error: &io::Error) {
        if self.why.set(error.to_string()).is_ok() {
            self.told.notify_waiters();
        }
    }

    /// Waits until `pause` has passed after the connection was lost.
    async fn after(&self, pause: Duration) {
        let told = self.told.notified();
        if self.why.get().is_none() {
            told.await;
        }
        tokio::time::sleep(pause).await;
    }
}

/// A connection whose writes do not fail, so that the answer before a close is still read.
struct Steady<S> {
    stream: S,
    lost: Arc<Lost>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Steady<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Steady<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.lost.why.get().is_some() {
            return Poll::Ready(Ok(bytes.len()));
        }
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Ready(Err(error)) => {
                self.lost.note(&error);
                Poll::Ready(Ok(bytes.len()))
            }
            other => other,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Ready(Err(error)) => {
                self.lost.note(&error);
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
