//! Counts how much of a request's body was written to the connection. An HTTP client reads the body some hundred kilobytes ahead of writing
//! it. A server may answer before it has received everything, so the end of the answer does not show how much was written.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// Bytes of the body that were written, and how many of them were flushed.
#[derive(Debug, Default)]
pub(super) struct Passed {
    flushed: AtomicU64,
    written: AtomicU64,
    told: Notify,
}

impl Passed {
    /// Waits until `length` bytes of the body were flushed.
    pub async fn all(&self, length: u64) {
        loop {
            let told = self.told.notified();
            if self.flushed.load(Ordering::Acquire) >= length {
                return;
            }
            told.await;
        }
    }

    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    pub fn has_all(&self, length: u64) -> bool {
        self.flushed.load(Ordering::Acquire) >= length
    }
}

/// A connection with one request, whose body follows the head without any encoding.
pub(super) struct Counting<S> {
    stream: S,
    passed: Arc<Passed>,
    /// The last bytes of the head. `None` after the end of the head.
    head: Option<[u8; 4]>,
    body: u64,
}

impl<S> Counting<S> {
    pub fn new(stream: S) -> (Self, Arc<Passed>) {
        let passed = Arc::<Passed>::default();
        let counting = Self {
            stream,
            passed: Arc::clone(&passed),
            head: Some([0; 4]),
            body: 0,
        };
        (counting, passed)
    }

    fn count(&mut self, written: &[u8]) {
        let mut rest = written;
        while let (Some(head), [byte, more @ ..]) = (&mut self.head, rest) {
            head.rotate_left(1);
            head[3] = *byte;
            rest = more;
            if head == b"\r\n\r\n" {
                self.head = None;
            }
        }
        self.body += u64::try_from(rest.len()).unwrap_or(u64::MAX);
        self.passed.written.store(self.body, Ordering::Release);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counting<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = written {
            self.count(bytes.get(..count).unwrap_or(bytes));
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if let Poll::Ready(Ok(())) = flushed {
            self.passed.flushed.store(self.body, Ordering::Release);
            self.passed.told.notify_waiters();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_left_is_counted_from_the_end_of_the_head_when_it_is_flushed() {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let (mut counting, passed) = Counting::new(near);
        for piece in ["PUT / HTTP/1.1\r\nA: b\r", "\n\r\nbo", "dy"] {
            counting.write_all(piece.as_bytes()).await.unwrap();
        }
        assert!(!passed.has_all(1), "written is not flushed");
        counting.flush().await.unwrap();
        assert!(passed.has_all(4) && !passed.has_all(5));
        passed.all(4).await;
        let mut read = [0; 32];
        assert!(far.read(&mut read).await.unwrap() > 4);
    }
}
