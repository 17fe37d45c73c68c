//! Decides where audio goes, and brings it there. No file here knows a destination by name: what differs is in the room `destination`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::destination::{DeliveryError, Writer};
use crate::entry::fact::{Destination, What};
use crate::flow::common::Common;
use crate::lifecycle::{Case, Input};
use crate::recording::audio::Audio;
use crate::telemetry::events::DeliveryEnded;

mod choose;
mod deliver;
mod documents;
mod kazoo_copies;
mod names;
mod proof;
mod shares;

pub use choose::Chooser;
pub use deliver::Deliverer;
pub use documents::Documents;
pub use kazoo_copies::{KazooCopies, Seen};
pub use names::Names;
pub use proof::{Proof, Proofs};
pub use shares::Shares;

/// The services that bring audio to its destination. Each says itself what it may touch.
pub struct Deliveries {
    pub chooser: Chooser,
    pub deliverer: Deliverer,
    pub documents: Documents,
    pub proof: Arc<Proof>,
    pub kazoo_copies: Arc<KazooCopies>,
}

/// What documents say of this worker.
fn writer(common: &Common) -> Writer<'_> {
    Writer {
        node: &common.sender.node,
        worker: &common.policy.worker,
        clock: &common.clock,
        url_credentials: common.config.destination.url_credentials,
    }
}

/// The result of `what`, if it comes within `limit`.
async fn in_time<T>(limit: Duration, what: impl Future<Output = Result<T, DeliveryError>>) -> Result<T, DeliveryError> {
    let done = tokio::time::timeout(limit, what).await;
    done.unwrap_or_else(|_| Err(DeliveryError::Target(format!("not through within {limit:?}"))))
}

/// The audio as a worker received it last, else as the hold has it.
fn seen(case: &Case) -> Result<Audio, DeliveryError> {
    let held = case.entry.held();
    let audio = case.entry.judged_audio();
    let same = |audio: &Audio| held.is_none_or(|held| held.digests == audio.digests);
    if let Some(audio) = audio.filter(same) {
        return Ok(audio);
    }
    let unseen = || DeliveryError::Source(Arc::from("the audio was never here"));
    held.map(|holding| Audio {
        size: holding.size,
        digests: holding.digests.clone(),
        duration_ms: None,
        findings: Vec::new(),
        as_written: None,
    })
    .ok_or_else(unseen)
}

/// Reports a failed attempt, and returns it as the entry has it.
fn failed(
    case: &Case,
    attempt: u32,
    (destination, host): (Destination, &str),
    error: &DeliveryError,
    begun: Instant,
) -> Input {
    ended(case, (destination, host), Err(&error.to_string()), begun);
    Input::Fact(failure(attempt, destination, error))
}

/// A failed attempt, as the entry has it.
fn failure(attempt: u32, destination: Destination, error: &DeliveryError) -> What {
    What::DeliveryFailed {
        attempt,
        destination,
        failure: error.failure(),
        why: error.to_string(),
        retry_after_s: error.retry_after().map(|after| after.as_secs()),
    }
}

/// Reports how an attempt ended.
fn ended(case: &Case, (destination, host): (Destination, &str), result: Result<(), &str>, begun: Instant) {
    DeliveryEnded {
        call_id: &case.entry.call_id,
        media_id: case.entry.order().map_or("", |order| order.media_id.as_str()),
        destination: destination.name(),
        host,
        result,
        took: begun.elapsed(),
    }
    .emit();
}
