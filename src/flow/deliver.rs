//! ④ Deliver: the audio, in hand or in the hold, goes to its destination.

use std::sync::Arc;

use tokio::time::Instant;

use crate::destination::{DeliveryError, Source, bigcouch};
use crate::entry::fact::{Delivery, Destination, Document, What};
use crate::recording::audio::Audio;
use crate::recording::document::Subject;
use crate::recording::identity::MediaId;
use crate::recording::names;
use crate::recording::order::Order;
use crate::telemetry::events::DeliveryEnded;

use super::next::{self, Case, Input};
use super::perform::{InHand, Parts};

impl Parts {
    pub(super) async fn deliver(
        &self,
        case: &Case,
        attempt: u32,
        destination: Destination,
        hand: Option<&InHand>,
    ) -> Input {
        let begun = Instant::now();
        let delivering = self.store(case, destination, hand);
        // Past this the switch has been told to keep its file.
        let result = tokio::time::timeout(self.config.ingest.delivery_timeout, delivering)
            .await
            .unwrap_or_else(|_| Err(DeliveryError::Target("it takes too long".into())));
        let why = result.as_ref().err().map(ToString::to_string);
        DeliveryEnded {
            call_id: &case.entry.call_id,
            media_id: case.entry.order().map_or("", |order| order.media_id.as_str()),
            destination: destination.name(),
            result: why.as_deref().map_or(Ok(()), Err),
            took: begun.elapsed(),
        }
        .emit();
        Input::Fact(match result {
            Ok(what) => what,
            Err(error) => failed(attempt, destination, &error),
        })
    }

    async fn store(&self, case: &Case, destination: Destination, hand: Option<&InHand>) -> Result<What, DeliveryError> {
        let (audio, source) = self.audio(case, hand)?;
        let ids = case.entry.order().map(ids).unwrap_or_default();
        let (_, subject) = self.subject(case, destination, &audio)?;
        let job = bigcouch::Job {
            audio: &audio,
            source: &source,
            ids: &ids,
            subject,
            progress: None,
            failures: 0,
            create_database: false,
        };
        let stored = bigcouch::put(&self.couch, &job).await?;
        Ok(What::Delivered(Delivery {
            destination,
            document: Document {
                id: stored.id,
                database: stored.database,
                rev: stored.rev,
                created: stored.created,
            },
            below_quorum: stored.below_quorum,
        }))
    }

    pub(super) async fn document(&self, _case: &Case, attempt: u32, destination: Destination) -> Input {
        Input::Fact(failed(
            attempt,
            destination,
            &DeliveryError::Target("not served".into()),
        ))
    }

    pub(super) async fn complete(&self, _case: &Case, attempt: u32, destination: Destination) -> Input {
        Input::Fact(failed(
            attempt,
            destination,
            &DeliveryError::Target("not served".into()),
        ))
    }

    /// The audio, and where it can be read: the upload in hand, else the hold.
    fn audio(&self, case: &Case, hand: Option<&InHand>) -> Result<(Audio, Source), DeliveryError> {
        if let Some(hand) = hand {
            return Ok((hand.upload.audio.clone(), Source::spooled(hand.upload.file.clone())));
        }
        let nowhere = || DeliveryError::Source(Arc::from("the audio is neither in hand nor in the hold"));
        let holding = case.entry.held().ok_or_else(nowhere)?;
        let seen = case
            .entry
            .audio()
            .filter(|audio| audio.digests == holding.digests)
            .cloned();
        let audio = seen.unwrap_or_else(|| Audio {
            size: holding.size,
            digests: holding.digests.clone(),
            duration_ms: None,
            findings: Vec::new(),
        });
        Ok((audio, Source::held(self.hold.clone(), holding.clone())))
    }

    /// What makes the document, for whichever id it gets.
    fn subject<'a>(
        &'a self,
        case: &'a Case,
        destination: Destination,
        audio: &'a Audio,
    ) -> Result<(&'a Order, impl Fn(&'a MediaId) -> Subject<'a>), DeliveryError> {
        let entry = &case.entry;
        let (Some(order), Some(ended), Some(account_id)) = (entry.order(), entry.ended(), next::account(entry)) else {
            return Err(DeliveryError::Source(Arc::from(
                "the recording has no order, end or account",
            )));
        };
        let subject = move |id| Subject {
            order,
            id,
            account_id,
            started: entry.started(),
            ended,
            audio: Some(audio),
            destination: destination.name(),
            node: &self.sender.node,
            now: self.now(),
        };
        Ok((order, subject))
    }

    /// The delivery that an earlier attempt, or another worker, made already.
    pub(super) async fn stored_already(&self, case: &Case, order: &Order) -> Result<Option<Delivery>, DeliveryError> {
        let Some(account_id) = next::account(&case.entry) else {
            return Ok(None);
        };
        for id in ids(order) {
            let database = names::modb(account_id, id.month());
            if let Some(rev) = bigcouch::find(&self.couch, &database, &id, order.key).await? {
                let created = id.month().clamp(case.entry.ended_at().unwrap_or_else(|| self.now()));
                return Ok(Some(Delivery {
                    destination: Destination::Account,
                    document: Document {
                        id,
                        database,
                        rev,
                        created,
                    },
                    below_quorum: false,
                }));
            }
        }
        Ok(None)
    }
}

fn failed(attempt: u32, destination: Destination, error: &DeliveryError) -> What {
    What::DeliveryFailed {
        attempt,
        destination,
        failure: error.failure(),
        why: error.to_string(),
        retry_after_s: None,
    }
}

/// The ids that the document may have, in order: the ordered one, then the derived one.
fn ids(order: &Order) -> Vec<MediaId> {
    let derived = MediaId::derived(order.key, order.asked_at);
    let ordered = order.media_id.clone();
    if ordered == derived {
        vec![ordered]
    } else {
        vec![ordered, derived]
    }
}
