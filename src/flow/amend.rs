//! The document says what is true of stops and masks. Another worker may have sent them, and noted that after the document was written.
//! Then the document gets a further revision.

use crate::destination::DeliveryError;
use crate::destination::pending_document;
use crate::entry::fact::{Delivery, What};
use crate::kazoo::change::{self, Change, DocumentChange};
use crate::recording::document::DOCUMENT_TYPE;
use crate::recording::names;

use super::deliveries::Parts;
use crate::lifecycle::{Case, Input};

impl Parts {
    /// Writes the stops and masks into the document, and notifies Kazoo of the change.
    pub(super) async fn amend(&self, case: &Case, n: u32) -> Input {
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
        let couch = self.documents(case, delivery.destination).await?;
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
