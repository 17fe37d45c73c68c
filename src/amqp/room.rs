//! Limits how much JSON the worker decodes at once. A decoded value takes many times the memory of its text, and a gzipped body is much
//! smaller than its text. A large body waits here until earlier large bodies are decoded. A small body does not wait.

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::kazoo::envelope::{MAX_BODY_BYTES, is_longer_than};

use super::delivery::Delivery;

/// Bodies shorter than this, after inflation, are decoded at once.
pub const SMALL: usize = 64 << 10;

/// Bytes of JSON text that are decoded at the same time.
pub const AT_ONCE: usize = 2 * MAX_BODY_BYTES;

/// The memory limit for decoding messages.
#[derive(Debug)]
pub struct Room(Semaphore);

impl Default for Room {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

/// A share of the limit, held for as long as this value lives. Drop it after the decoded value, and do not hold it across a wait.
#[derive(Debug)]
pub struct Taken<'a>(Option<SemaphorePermit<'a>>);

impl Taken<'_> {
    /// Bytes of the limit that this share takes.
    pub fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, SemaphorePermit::num_permits)
    }
}

impl Room {
    /// Waits until a delivery may be decoded.
    pub async fn of(&self, delivery: &Delivery) -> Taken<'_> {
        self.take(weight(delivery.encoding(), delivery.body())).await
    }

    async fn take(&self, weight: usize) -> Taken<'_> {
        if weight == 0 {
            return Taken(None);
        }
        let permits = u32::try_from(weight.min(AT_ONCE)).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        Taken(self.0.acquire_many(permits).await.ok())
    }
}

/// How many bytes of the limit a body takes. A small body takes none, and neither does a body that is too long to be decoded. The inflated
/// length of a gzipped body is unknown before inflation, so a gzipped body that is not small counts as the longest.
fn weight(encoding: &str, body: &[u8]) -> usize {
    match encoding {
        "gzip" if is_longer_than(body, SMALL) => MAX_BODY_BYTES,
        "gzip" => 0,
        _ if (SMALL..=MAX_BODY_BYTES).contains(&body.len()) => body.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;

    fn gzipped(length: usize) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&vec![b' '; length]).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_body_weighs_what_it_may_become() {
        for (length, weighs) in [
            (0, 0),
            (SMALL - 1, 0),
            (SMALL, SMALL),
            (MAX_BODY_BYTES, MAX_BODY_BYTES),
            // Rejected without decoding.
            (MAX_BODY_BYTES + 1, 0),
        ] {
            assert_eq!(weight("", &vec![b' '; length]), weighs, "{length}");
        }
        for (length, weighs) in [
            (0, 0),
            (SMALL, 0),
            (SMALL + 1, MAX_BODY_BYTES),
            (16 * MAX_BODY_BYTES, MAX_BODY_BYTES),
        ] {
            let body = gzipped(length);
            assert_eq!(weight("gzip", &body), weighs, "{length}");
            assert!(body.len() < 1 << 20);
        }
        assert_eq!(weight("gzip", b"no gzip"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn large_ones_wait_for_each_other_and_small_ones_for_nobody() {
        let room = Room::default();
        let (one, two) = (room.take(MAX_BODY_BYTES).await, room.take(MAX_BODY_BYTES).await);
        assert_eq!(one.bytes() + two.bytes(), AT_ONCE);
        let waits = tokio::time::timeout(Duration::from_secs(1), room.take(SMALL)).await;
        assert!(waits.is_err());
        assert_eq!(room.take(0).await.bytes(), 0);
        drop(one);
        assert_eq!(room.take(SMALL).await.bytes(), SMALL);
    }
}
