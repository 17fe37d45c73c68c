//! Watches a body while it is sent. The watch limits the silence on the connection, and not the length of a transfer.
//!
//! `reqwest` counts its read time-out from the start of a request to the head of the answer, the body included. The source of 0.13 and a
//! test show that. That time-out would cut a healthy upload that takes longer. Here the clock restarts with every piece that the connection
//! takes.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::ByteStream;

/// No bytes moved for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nothing moved for {0:?}")]
pub struct Silent(pub Duration);

/// Observes a body while it is sent.
#[derive(Debug, Clone)]
pub struct Watch {
    length: u64,
    seen: Arc<Mutex<Seen>>,
    moved: Arc<Notify>,
}

#[derive(Debug)]
struct Seen {
    bytes: u64,
    at: Instant,
    failed: Option<Arc<str>>,
}

impl Watch {
    /// Watches `body` of `length` bytes. The clock starts now.
    pub fn over(body: ByteStream, length: u64) -> (Self, ByteStream) {
        let watch = Self {
            length,
            seen: Arc::new(Mutex::new(Seen {
                bytes: 0,
                at: Instant::now(),
                failed: None,
            })),
            moved: Arc::default(),
        };
        let watched = Watched {
            body,
            watch: watch.clone(),
        };
        (watch, Box::pin(watched))
    }

    /// Waits for `answer`, until no bytes have moved for `silence`.
    ///
    /// # Errors
    /// `Silent`, when that time has passed.
    pub async fn patiently<T>(&self, silence: Duration, answer: impl Future<Output = T>) -> Result<T, Silent> {
        tokio::pin!(answer);
        loop {
            let until = self.with(|seen| seen.at) + silence;
            tokio::select! {
                answer = &mut answer => return Ok(answer),
                () = tokio::time::sleep_until(until) => {
                    if self.with(|seen| seen.at) + silence <= Instant::now() {
                        return Err(Silent(silence));
                    }
                }
            }
        }
    }

    /// Waits until the connection has taken the whole body.
    ///
    /// # Errors
    /// `Silent`, when no bytes move for `silence` before that.
    pub async fn taken(&self, silence: Duration) -> Result<(), Silent> {
        self.patiently(silence, async {
            loop {
                let moved = self.moved.notified();
                if self.is_taken() {
                    return;
                }
                moved.await;
            }
        })
        .await
    }

    /// Whether the connection has taken the whole body.
    pub fn is_taken(&self) -> bool {
        self.with(|seen| seen.bytes >= self.length)
    }

    /// Why our own side could not read the body, if that broke the upload.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.with(|seen| seen.failed.clone())
    }

    fn with<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Watched {
    body: ByteStream,
    watch: Watch,
}

impl Stream for Watched {
    type Item = std::io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.body.as_mut().poll_next(context);
        if let Poll::Ready(next) = &next {
            self.watch.with(|seen| {
                seen.at = Instant::now();
                let failed = match next {
                    Some(Ok(bytes)) => {
                        seen.bytes += bytes.len() as u64;
                        None
                    }
                    Some(Err(error)) => Some(error.to_string()),
                    None => (seen.bytes < self.watch.length).then(|| format!("it ends after {} bytes", seen.bytes)),
                };
                if let (Some(why), None) = (failed, &seen.failed) {
                    seen.failed = Some(Arc::from(why));
                }
            });
            self.watch.moved.notify_waiters();
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};

    use super::*;

    const SILENCE: Duration = Duration::from_secs(30);

    /// A body of `pieces` single bytes, with a delay of `pause` before each.
    fn slow(pieces: u64, pause: Duration) -> ByteStream {
        stream::iter(0..pieces)
            .then(move |_| async move {
                tokio::time::sleep(pause).await;
                Ok(Bytes::from_static(b"x"))
            })
            .boxed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_upload_that_moves_is_not_cut() {
        let (watch, body) = Watch::over(slow(100, Duration::from_secs(29)), 100);
        let sending = async move { body.count().await };
        assert_eq!(watch.patiently(SILENCE, sending).await, Ok(100));
        assert!(watch.is_taken() && watch.failure().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_stands_still_is_given_up() {
        let (watch, body) = Watch::over(slow(2, Duration::from_secs(31)), 2);
        let begun = Instant::now();
        assert_eq!(
            watch.patiently(SILENCE, async move { body.count().await }).await,
            Err(Silent(SILENCE))
        );
        assert_eq!(begun.elapsed().as_secs(), 30);
        assert!(!watch.is_taken());
        let (watch, body) = Watch::over(slow(2, Duration::from_secs(1)), 2);
        let hung = async move {
            body.count().await;
            std::future::pending::<()>().await;
        };
        let begun = Instant::now();
        assert!(watch.patiently(SILENCE, hung).await.is_err());
        assert_eq!(begun.elapsed().as_secs(), 32, "counted from the last piece");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_breaks_or_ends_early_is_known_to_be_our_fault() {
        let broken = stream::iter([Ok(Bytes::from_static(b"x")), Err(std::io::Error::other("disk"))]).boxed();
        let (watch, body) = Watch::over(broken, 2);
        body.for_each(|_| async {}).await;
        assert_eq!(watch.failure().as_deref(), Some("disk"));
        let (watch, body) = Watch::over(slow(1, Duration::ZERO), 2);
        body.for_each(|_| async {}).await;
        assert_eq!(watch.failure().as_deref(), Some("it ends after 1 bytes"));
        assert!(watch.taken(Duration::from_secs(1)).await.is_err());
    }
}
