//! What becomes of a delivery that is not finished, or cannot be read. It never stays with this worker, where it would take a prefetch slot
//! that other messages need.

use std::sync::Arc;
use std::time::Duration;

use tracing::error;

use crate::amqp::{Delivery, PublishError, Publisher, QueueKind, QueueSpec};
use crate::telemetry::events::{DeadLettersDeclared, DeliveryReturned, MessageRejected};

use crate::flow::common::Common;

/// The queue for messages that cannot be read.
pub const DEAD_LETTERS: &str = "kz_record_call.dead";

const DEAD_MAX_BYTES: i64 = 256 << 20;

/// Delay before a message goes back to its queue. It doubles each time, up to the longest delay. The message takes its prefetch slot
/// meanwhile.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// A message that the dead-letter queue refused this often is left to the broker's own dead-lettering.
const REFUSALS: u32 = 5;

/// The queue of dead letters.
pub fn dead_letters() -> QueueSpec {
    QueueSpec {
        name: DEAD_LETTERS.into(),
        kind: QueueKind::DeadLetters {
            max_bytes: DEAD_MAX_BYTES,
        },
        bindings: Vec::new(),
        prefetch: 1,
        gate: None,
    }
}

fn pause(returns: u32) -> Duration {
    (FIRST_PAUSE * 2_u32.saturating_pow(returns.min(16))).min(LONGEST_PAUSE)
}

/// Gives deliveries back, or moves them to the dead letters.
pub struct Returns {
    pub common: Arc<Common>,
    pub publisher: Publisher,
}

impl Returns {
    /// Passes a delivery on to another queue of ours.
    ///
    /// # Errors
    /// As `Publisher::pass_on`.
    pub async fn pass_on(&self, delivery: &Delivery, queue: &str, why: &str) -> Result<(), PublishError> {
        self.publisher.pass_on(delivery, queue, why).await
    }

    /// Returns a delivery that could not be finished to its queue, after a delay: for this worker later, or for another worker.
    pub async fn put_back(&self, queue: &'static str, delivery: Delivery) {
        DeliveryReturned { queue }.emit();
        let pause = pause(delivery.returns());
        let _ = self.common.unless_stopped(tokio::time::sleep(pause)).await;
        delivery.give_back().await;
    }

    /// Moves a message that cannot be read to the dead letters, with its reason.
    pub async fn reject(&self, delivery: Delivery, queue: &'static str, call_id: &str, why: &str) {
        let mut put = self.publisher.pass_on(&delivery, DEAD_LETTERS, why).await;
        if put.as_ref().is_err_and(PublishError::is_unroutable) {
            // The dead-letter queue is missing.
            let spec = dead_letters();
            match self.publisher.restore(&spec).await {
                Ok(missing) => {
                    if missing {
                        DeadLettersDeclared { queue: &spec.name }.emit();
                    }
                    put = self.publisher.pass_on(&delivery, DEAD_LETTERS, why).await;
                }
                Err(error) => {
                    error!(event = "dead_letter_queue_not_declared", queue = spec.name, %error, "dead-letter queue not declared")
                }
            }
        }
        match put {
            Ok(()) => {
                MessageRejected { queue, call_id, why }.emit();
                delivery.ack().await;
            }
            Err(error) if error.is_refusal() && delivery.returns() >= REFUSALS => {
                error!(
                    event = "dead_letter_refused",
                    queue,
                    %error,
                    exchange = delivery.exchange(),
                    key = delivery.routing_key(),
                    bytes = delivery.body().len(),
                    "dead letter refused, left to RabbitMQ's dead-lettering"
                );
                MessageRejected { queue, call_id, why }.emit();
                delivery.refuse().await;
            }
            Err(error) => {
                error!(event = "dead_letter_failed", queue, %error, why, "dead letter not published, retrying");
                self.put_back(queue, delivery).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_comes_again_and_again_rests_longer_and_never_long() {
        let pauses: Vec<u128> = (0..7).map(|n| pause(n).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 8000, 8000]);
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }
}
