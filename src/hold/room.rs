//! How much of the hold is taken, as this worker knows it: measured from time to time, with what this worker has put there since.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::HoldError;

/// A measurement counts for this long. It can be large: BigCouch returns the names of all databases, whatever range is requested. What other
/// workers put there meanwhile is seen at the next one.
const KNOWN_FOR: Duration = Duration::from_secs(30);

/// The bytes in the hold.
#[derive(Debug, Default)]
pub struct Room {
    /// One task at a time measures.
    measuring: tokio::sync::Mutex<()>,
    taken: Mutex<Bytes>,
}

#[derive(Debug, Default)]
struct Bytes {
    measured: Option<(u64, Instant)>,
    /// What was put there since the measurement began.
    put: u64,
    under_way: u64,
}

/// Room that a put has. Without `fill` it is free again when this value is dropped.
#[derive(Debug)]
pub struct Place<'a> {
    room: &'a Room,
    size: u64,
}

impl Room {
    /// Takes room for `size` bytes, of `max` in all.
    ///
    /// # Errors
    /// `Full`, or why the hold cannot be measured.
    pub async fn take(
        &self,
        size: u64,
        max: u64,
        measure: impl Future<Output = Result<u64, HoldError>>,
    ) -> Result<Place<'_>, HoldError> {
        let _one = self.measuring.lock().await;
        let is_known = self.with(|bytes| bytes.measured.is_some_and(|(_, at)| at.elapsed() < KNOWN_FOR));
        if !is_known {
            self.measured_by(measure).await?;
        }
        self.with(|bytes| {
            let measured = bytes.measured.map_or(0, |(measured, _)| measured);
            let held = measured.saturating_add(bytes.put).saturating_add(bytes.under_way);
            if held.saturating_add(size) > max {
                return Err(HoldError::Full { held, max, size });
            }
            bytes.under_way += size;
            Ok(Place { room: self, size })
        })
    }

    /// The result of a measurement, which counts from now on.
    ///
    /// # Errors
    /// As the measurement.
    pub async fn measured_by(&self, measure: impl Future<Output = Result<u64, HoldError>>) -> Result<u64, HoldError> {
        let before = self.with(|bytes| bytes.put);
        let measured = measure.await?;
        self.with(|bytes| {
            bytes.measured = Some((measured, Instant::now()));
            // What was put there meanwhile may not be in the sum.
            bytes.put = bytes.put.saturating_sub(before);
        });
        Ok(measured)
    }

    fn with<T>(&self, change: impl FnOnce(&mut Bytes) -> T) -> T {
        change(&mut self.taken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Place<'_> {
    /// The audio is there.
    pub fn fill(self) {
        self.room.with(|bytes| bytes.put = bytes.put.saturating_add(self.size));
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.room
            .with(|bytes| bytes.under_way = bytes.under_way.saturating_sub(self.size));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of them found the hold half empty otherwise.
    #[tokio::test(start_paused = true)]
    async fn puts_at_once_do_not_take_the_same_room() {
        let room = Room::default();
        let measure = |bytes| async move { Ok(bytes) };
        let first = room.take(60, 100, measure(20)).await.unwrap();
        let full = room.take(60, 100, measure(20)).await.unwrap_err();
        assert!(
            matches!(
                full,
                HoldError::Full {
                    held: 80,
                    max: 100,
                    size: 60
                }
            ),
            "{full}"
        );
        drop(first);
        room.take(60, 100, measure(20)).await.unwrap().fill();
        let full = room.take(60, 100, measure(0)).await.unwrap_err();
        assert!(matches!(full, HoldError::Full { held: 80, .. }), "{full}");
        // Another worker has removed something.
        tokio::time::advance(KNOWN_FOR).await;
        room.take(60, 100, measure(30)).await.unwrap().fill();
        assert_eq!(room.measured_by(measure(90)).await.unwrap(), 90);
        assert!(room.take(20, 100, measure(0)).await.is_err());
        assert!(room.take(10, 100, measure(0)).await.is_ok());
    }
}
