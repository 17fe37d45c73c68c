//! ⑤ Announce: publishes each notice that must go out, until the broker has confirmed it.
//!
//! The broker refuses a notice if one of the queues that it is routed to refuses it, for example because that queue is full. The other queues
//! have it then. Such a queue must not occupy this worker's tasks, so the notice is published again by the retry schedule, and in the end
//! given up.

use std::sync::Arc;

use crate::amqp::Publisher;

use crate::entry::NOTICE_REFUSED;
use crate::entry::fact::Announcement;
use crate::kazoo::change::{self, Change, DocumentChange};
use crate::kazoo::outgoing::Outgoing;
use crate::recording::document::DOCUMENT_TYPE;
use crate::recording::names;
use crate::telemetry::events::{Announced, NoticeGivenUp};

use crate::flow::common::{Common, Interrupted};
use crate::lifecycle::{Case, Input};

/// Refusals in a row, a second apart, after which a notice waits for the retry schedule.
const REFUSALS: u32 = 5;

/// Publishes notices.
pub struct Announcer {
    pub common: Arc<Common>,
    pub publisher: Publisher,
}

impl Announcer {
    /// Publishes a notice until the broker has confirmed it.
    pub(super) async fn announce(&self, case: &Case, announcement: Announcement) -> Result<Input, Interrupted> {
        let Some(message) = self.notice(case, announcement) else {
            return Ok(Input::Fact(case.entry.announced(announcement)));
        };
        let mut refusals = 0;
        loop {
            match self.publisher.publish(&message).await {
                Ok(()) => {
                    let media_id = case.entry.order().map_or("", |order| order.media_id.as_str());
                    Announced {
                        media_id,
                        kind: announcement.name(),
                    }
                    .emit();
                    return Ok(Input::Fact(case.entry.announced(announcement)));
                }
                Err(error) => {
                    tracing::warn!(event = "notification_not_published", call_id = case.entry.call_id, %error, "notification not published, retrying");
                    refusals = if error.is_refusal() { refusals + 1 } else { 0 };
                    if refusals >= REFUSALS {
                        return Ok(self.refused(case, announcement));
                    }
                }
            }
            self.common.rest().await?;
        }
    }

    /// What follows when a queue refuses a notice again and again. A notice that must come before the audio is sent cannot wait.
    fn refused(&self, case: &Case, announcement: Announcement) -> Input {
        let entry = &case.entry;
        let before = entry.notices_refused().count();
        let is_spent = before >= usize::try_from(self.common.policy.max_attempts).unwrap_or(usize::MAX);
        if entry.outcome().is_none() && entry.parked().is_none() || is_spent {
            let media_id = entry.order().map_or("", |order| order.media_id.as_str());
            NoticeGivenUp {
                call_id: &entry.call_id,
                media_id,
                kind: announcement.name(),
            }
            .emit();
            return Input::Fact(entry.announced(announcement));
        }
        self.common.postponed_by_schedule(case, before, NOTICE_REFUSED.into())
    }

    fn notice(&self, case: &Case, announcement: Announcement) -> Option<Outgoing> {
        let entry = &case.entry;
        // Always the same id, so that a consumer can drop a repeat.
        let msg_id = entry.notice_id(announcement)?;
        let changed = match announcement {
            Announcement::Outcome(outcome) => {
                return Some(change::recording_outcome(
                    &self.common.sender,
                    &msg_id,
                    outcome.name(),
                    entry.account_id(),
                    entry.outcome_event(outcome, entry.cause_of(outcome)),
                ));
            }
            Announcement::DocumentCreated => Change::Created,
            Announcement::DocumentEdited => Change::Edited,
        };
        let document = match changed {
            // The document as it was when it was created.
            Change::Created => entry
                .documented()
                .or_else(|| entry.delivery().map(|delivery| &delivery.document))?,
            Change::Edited => entry.delivery().map(|delivery| &delivery.document)?,
        };
        let modified = match changed {
            Change::Created => document.created,
            Change::Edited => self.common.now().max(document.created),
        };
        let notice = DocumentChange {
            change: changed,
            database: &names::encoded(&document.database),
            document_type: DOCUMENT_TYPE,
            id: document.id.as_str(),
            rev: &document.rev,
            account_id: entry.account_id()?,
            created: document.created,
            modified,
        };
        Some(change::document_change(&self.common.sender, &msg_id, &notice))
    }
}
