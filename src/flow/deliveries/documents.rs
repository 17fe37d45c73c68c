//! Documents of recordings that are not written together with their audio: before it, after it, when a recording is parked, and when stops
//! and masks became known later. Then the document gets a further revision.

use std::sync::Arc;

use tokio::time::Instant;

use crate::amqp::Publisher;
use crate::couch::Couch;
use crate::destination::couchdb_write::months::Months;
use crate::destination::pending_document::{self, Placed, find_or_create};
use crate::destination::{DeliveryError, Destinations, Parcel, Registry};
use crate::entry::Entry;
use crate::entry::cause::{Cause, Outcome};
use crate::entry::fact::{Delivery, Destination, What};
use crate::flow::common::Common;
use crate::kazoo::change::{self, Change, DocumentChange};
use crate::lifecycle::{Case, Input};
use crate::recording::document::DOCUMENT_TYPE;
use crate::recording::names;
use crate::recording::progress::{Elsewhere, Progress, State};

use super::{failed, in_time, seen, writer};

/// Writes documents. May touch: the recording's document, wherever its destination has it, and a monthly database that is missing. Publishes
/// that a document was edited.
pub struct Documents {
    pub common: Arc<Common>,
    pub destinations: Arc<Destinations>,
    pub months: Arc<Months>,
    pub publisher: Publisher,
}

impl Documents {
    /// Writes the document that comes before the audio.
    pub async fn document(&self, case: &Case, attempt: u32, destination: Destination) -> Input {
        let begun = Instant::now();
        let placed = async {
            let couch = self.destinations.of(destination).documents(&case.entry).await?;
            find_or_create(&couch, &self.parcel(case, destination)?, &self.months).await
        };
        match in_time(self.common.config.ingest.delivery_timeout, placed).await {
            Ok(placed) => Input::Fact(What::Documented(placed.document())),
            Err(error) => failed(case, attempt, (destination, ""), &error, begun),
        }
    }

    /// Completes the document that came before the audio.
    pub async fn complete(&self, case: &Case, attempt: u32, destination: Destination) -> Input {
        let begun = Instant::now();
        let completed = async {
            let couch = self.destinations.of(destination).documents(&case.entry).await?;
            let parcel = self.parcel(case, destination)?;
            let placed = find_or_create(&couch, &parcel, &self.months).await?;
            let at = Elsewhere {
                name: &parcel.order.media_name,
                url: case.entry.uploaded().unwrap_or_default(),
                content_type: parcel.order.format.content_type(),
                length: parcel.audio.size,
            };
            let (subject, progress) = (parcel.subject(&placed.id), parcel.delivered_by(attempt));
            pending_document::complete(&couch, &placed, &subject, &at, &progress).await
        };
        match in_time(self.common.config.destination.send_timeout, completed).await {
            Ok(placed) => Input::Fact(What::delivered(placed.delivery(destination))),
            Err(error) => failed(case, attempt, (destination, ""), &error, begun),
        }
    }

    /// Writes into the document that came before the audio that the recording is parked, or that it ended without a delivery. It is tried
    /// once, because the ledger knows it anyway.
    pub async fn mark(&self, case: &Case, n: u32, cause: Cause) -> Input {
        let marked = match case.entry.outcome() {
            None => self.mark_parked(case, cause).await.map(drop),
            Some((outcome, cause)) => self.mark_ended(case, outcome, cause).await,
        };
        if let Err(error) = marked {
            tracing::warn!(event = "document_not_marked_parked", call_id = case.entry.call_id, %error, "state not written to the document");
        }
        Input::Fact(What::Marked { n })
    }

    /// The audio may be gone, so nothing else of the document changes.
    async fn mark_ended(&self, case: &Case, outcome: Outcome, cause: Cause) -> Result<(), DeliveryError> {
        let entry = &case.entry;
        let Some(document) = entry.documented() else {
            return Ok(());
        };
        let couch = self.destinations.of_document(entry).documents(entry).await?;
        let placed = pending_document::find(&couch, &document.database, &document.id, entry.key).await?;
        let Some(placed) = placed else { return Ok(()) };
        let progress = ended(entry, outcome, cause);
        pending_document::conclude(&couch, &placed, &progress, self.common.now()).await
    }

    async fn mark_parked(&self, case: &Case, cause: Cause) -> Result<Placed, DeliveryError> {
        let destination = self.destinations.of_document(&case.entry);
        let couch: Couch = destination.documents(&case.entry).await?;
        let parcel = self.parcel(case, destination.kind())?;
        let placed = find_or_create(&couch, &parcel, &self.months).await?;
        let progress = Progress {
            state: State::Parked,
            attempts: case.entry.next_attempt() - 1,
            cause: Some(cause.name()),
        };
        pending_document::park(&couch, &placed, &parcel.subject(&placed.id), &progress).await
    }

    fn parcel<'a>(&'a self, case: &'a Case, destination: Destination) -> Result<Parcel<'a>, DeliveryError> {
        let writer = writer(&self.common);
        Parcel::of(&case.entry, seen(case)?, destination, writer)
    }

    /// Writes the stops and masks into the document, and notifies Kazoo of the change.
    pub async fn amend(&self, case: &Case, n: u32) -> Input {
        let entry = &case.entry;
        let controls = entry.controls().fingerprint();
        let Some(delivery) = entry.delivery() else {
            return Input::Due;
        };
        let unsaid = |error: &DeliveryError| {
            tracing::error!(
                event = "document_not_amended",
                call_id = entry.call_id,
                %error,
                "document not amended with masks and stops"
            );
            let unsaid = Some(error.to_string());
            Input::Fact(What::Amended {
                n,
                controls: controls.clone(),
                unsaid,
            })
        };
        let said = self.amend_document(case, delivery).await;
        let before = entry.postponed_since_delivery();
        match said {
            Ok(()) => Input::Fact(What::Amended {
                n,
                controls,
                unsaid: None,
            }),
            // The document was deleted, or belongs to another recording: nothing is left to amend.
            Err(error @ DeliveryError::Corrupt(_)) => unsaid(&error),
            // The document's server may have been removed from the settings.
            Err(error) if before >= self.common.policy.retry.len() => unsaid(&error),
            Err(error) => {
                tracing::warn!(
                    event = "document_not_amended_yet",
                    call_id = entry.call_id,
                    %error,
                    "document not amended yet"
                );
                self.common.postponed_by_schedule(case, before, error.to_string())
            }
        }
    }

    async fn amend_document(&self, case: &Case, delivery: &Delivery) -> Result<(), DeliveryError> {
        let entry = &case.entry;
        let couch = self.destinations.of(delivery.destination).documents(entry).await?;
        let document = &delivery.document;
        let placed = pending_document::find(&couch, &document.database, &document.id, entry.key).await?;
        let placed = placed.ok_or_else(|| DeliveryError::Corrupt("its document is gone".into()))?;
        let Some(amended) = pending_document::amend(&couch, &placed, &entry.controls(), self.common.now()).await?
        else {
            return Ok(());
        };
        if !delivery.destination.is_documented_here() {
            return Ok(());
        }
        let notice = DocumentChange {
            change: Change::Edited,
            database: &names::encoded(&amended.database),
            document_type: DOCUMENT_TYPE,
            id: amended.id.as_str(),
            rev: &amended.rev,
            account_id: entry.account_id().unwrap_or_default(),
            created: amended.created,
            modified: self.common.now().max(amended.created),
        };
        let msg_id = entry.key.derived(&format!("amended {}", amended.rev));
        let message = change::document_change(&self.common.sender, &msg_id, &notice);
        if let Err(error) = self.publisher.publish(&message).await {
            // Caches keep the older revision until they read the document again. What was added is private.
            tracing::warn!(event = "document_change_not_published", call_id = entry.call_id, %error, "document change not published");
        }
        Ok(())
    }
}

/// What the document says of a recording that ended without a delivery.
fn ended(entry: &Entry, outcome: Outcome, cause: Cause) -> Progress<'static> {
    Progress {
        state: match outcome {
            Outcome::Failed => State::Failed,
            _ => State::Discarded,
        },
        attempts: entry.next_attempt() - 1,
        cause: Some(cause.name()),
    }
}
