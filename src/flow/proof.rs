//! Existing-document checks and read-backs: is a recording stored already, is it still there, does its account have a database at all.

use crate::couch::CouchError;
use crate::destination::couchdb_write::missing_month::{self, Account, Created, Step};
use crate::destination::couchdb_write::{self, Kept};
use crate::destination::{DeliveryError, Failed, pending_document};
use crate::entry::LOOKS;
use crate::entry::fact::{Delivery, DeliveryFailure, Destination, Document, What};
use crate::recording::audio::Finding;
use crate::recording::names;
use crate::recording::order::Order;
use crate::telemetry::events::ReadBackFailed;

use super::deliver::failure;
use super::deliveries::Parts;
use super::found::found;
use super::ids::{ids, ids_with_other};
use crate::lifecycle::{Case, Input};

impl Parts {
    /// The delivery that an earlier attempt, or another worker, has made already.
    pub(super) async fn stored_already(&self, case: &Case, order: &Order) -> Result<Option<What>, DeliveryError> {
        let Some(account_id) = case.entry.account_id() else {
            return Ok(None);
        };
        let decided = case.entry.destination().unwrap_or(Destination::Account);
        let found = self.stored_at(case, order, account_id, decided).await?;
        if found.is_some() || decided == Destination::Url {
            return Ok(found);
        }
        // The configuration may have been another one when a worker stored it, and crashed before it could note that.
        for other in [Destination::Account, Destination::ThirdParty] {
            if other == decided {
                continue;
            }
            match self.stored_at(case, order, account_id, other).await {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) if other == Destination::Account => return Err(error),
                Err(error) => {
                    tracing::debug!(event = "third_party_unreadable", call_id = order.call_id, %error, "third-party server unreadable")
                }
            }
        }
        Ok(None)
    }

    async fn stored_at(
        &self,
        case: &Case,
        order: &Order,
        account_id: &str,
        destination: Destination,
    ) -> Result<Option<What>, DeliveryError> {
        let couch = self.documents(case, destination).await?;
        let (mut damaged, mut missing, mut answered) = (None, None, false);
        let ids = match case.entry.last_audio() {
            Some(audio) => ids_with_other(order, audio),
            None => ids(order),
        };
        for id in ids {
            let database = names::modb(account_id, id.month());
            if destination.documents_first() {
                let placed = pending_document::find(&couch, &database, &id, order.key).await?;
                let Some(placed) = placed.filter(pending_document::Placed::is_complete) else {
                    continue;
                };
                match placed.proven(&order.media_name) {
                    Some(audio) => return Ok(Some(found(destination, placed, audio))),
                    None => damaged = Some("the document does not tell the same length of the audio twice".to_owned()),
                }
                continue;
            }
            let kept = match couchdb_write::find(&couch, &database, &id, order.key, &order.media_name).await {
                // The document is then under the next id, as the month of its first one has no database.
                Err(error @ DeliveryError::NoDatabase(_)) => {
                    missing = Some(error);
                    continue;
                }
                kept => kept?,
            };
            answered = true;
            match kept {
                Kept::Not => {}
                Kept::Damaged(why) => damaged = Some(why),
                Kept::Whole { rev, audio, deleted } => {
                    let below_quorum = !deleted && !couch.has_quorum(&database, id.as_str()).await?;
                    let mut audio = *audio;
                    if case.entry.last_audio().is_some_and(|seen| seen.size > audio.size) {
                        // A worker received more from the switch, and that is nowhere.
                        audio.findings.push(Finding::Truncated);
                    }
                    let created = id
                        .month()
                        .clamp(case.entry.ended_at().unwrap_or_else(|| self.common.now()));
                    return Ok(Some(What::delivered(Delivery {
                        destination,
                        document: Document {
                            id,
                            database,
                            rev,
                            created,
                        },
                        sha256: Some(audio.digests.sha256.clone()),
                        below_quorum,
                        audio: Some(audio),
                        deleted,
                        edit_told: false,
                        // Another worker wrote the document: it is read again.
                        controls: Some(String::new()),
                        again: 0,
                    })));
                }
            }
        }
        match damaged {
            // A damaged copy counts as not stored.
            Some(why) => Err(DeliveryError::Corrupt(why)),
            None => missing.filter(|_| !answered).map_or(Ok(None), Err),
        }
    }

    /// Reads back a delivery that a server with too few copies took.
    pub(super) async fn read_back(&self, case: &Case, n: u32) -> Input {
        let (why, unanswered, deleted) = match self.look_at(case).await {
            Ok(couchdb_write::ReadBack::Whole { .. }) => (None, false, false),
            Ok(couchdb_write::ReadBack::Deleted) => (None, false, true),
            Ok(couchdb_write::ReadBack::Lost(why)) => (Some(why), false, false),
            // That is no read-back: whether the copy is there is not known.
            Err(error) => (Some(error.to_string()), true, false),
        };
        if let Some(why) = &why {
            ReadBackFailed {
                call_id: &case.entry.call_id,
                media_id: case.entry.order().map_or("", |order| order.media_id.as_str()),
                why,
                last: !unanswered && case.entry.looks().count() + 1 == LOOKS,
            }
            .emit();
        }
        Input::Fact(What::Looked {
            n,
            why,
            unanswered,
            deleted,
        })
    }

    async fn look_at(&self, case: &Case) -> Result<couchdb_write::ReadBack, DeliveryError> {
        let entry = &case.entry;
        let unknown = || DeliveryError::Target("the stored document is unknown".into());
        let delivery = entry.delivery().ok_or_else(unknown)?;
        let audio = entry.audio().ok_or_else(unknown)?;
        let couch = self.documents(case, delivery.destination).await?;
        let document = &delivery.document;
        let name = entry.order().map_or("", |order| order.media_name.as_str());
        couchdb_write::read_back(&couch, &document.database, &document.id, entry.key, (name, audio)).await
    }

    /// Whether a collect of the file would be in vain now. Returns what must be noted then.
    pub(super) async fn in_vain(&self, case: &Case, attempt: u32) -> Option<Input> {
        let entry = &case.entry;
        let destination = entry.destination().filter(|to| *to == Destination::Account)?;
        let home = self.home().host;
        if let Some(until) = self.targets.rests(&home) {
            return Some(self.common.postponed(case, until, format!("{home} takes nothing now")));
        }
        let missing = entry.failures().next_back().is_some_and(|fact| {
            matches!(
                fact.what,
                What::DeliveryFailed {
                    failure: DeliveryFailure::Database,
                    ..
                }
            )
        });
        let database = missing.then(|| self.database(case)).flatten()?;
        if self.couch.has_database(&database).await.unwrap_or(true) {
            return None;
        }
        let error = self.create_missing(case, &database).await.err()?;
        Some(Input::Fact(failure(attempt, destination, &error)))
    }

    /// The database that the recording belongs to, whatever its action said.
    fn database(&self, case: &Case) -> Option<String> {
        let order = case.entry.order()?;
        let id = ids(order).pop()?;
        Some(names::modb(case.entry.account_id()?, id.month()))
    }

    /// Creates a monthly database that is missing for too long. `Ok`: it exists now.
    pub(super) async fn create_missing(&self, case: &Case, database: &str) -> Result<(), DeliveryError> {
        let entry = &case.entry;
        let missing = || DeliveryError::NoDatabase(database.to_owned());
        let now = self.common.now();
        let (Some(order), Some(account_id)) = (entry.order(), entry.account_id()) else {
            return Err(missing());
        };
        let mut ids = ids(order).into_iter();
        let month = ids.find(|id| names::modb(account_id, id.month()) == database);
        let month = month.ok_or_else(missing)?.month();
        let since = entry.facts().iter().find(|fact| {
            matches!(
                fact.what,
                What::DeliveryFailed {
                    failure: DeliveryFailure::Database,
                    ..
                }
            )
        });
        let since = since.map_or(now, |fact| fact.at);
        let unclear = |error: CouchError| DeliveryError::Target(error.to_string());
        let account: Account = missing_month::account(&self.couch, account_id).await.map_err(unclear)?;
        match missing_month::step(account, month, since, now, &self.common.config.destination) {
            Step::NoSuchAccount => Err(DeliveryError::Never(Failed::new(
                DeliveryFailure::NoAccount,
                format!("the account {account_id} does not exist, or is deleted"),
            ))),
            Step::Wait { .. } => Err(missing()),
            Step::Create => {
                let created = missing_month::create(&self.couch, account_id, month)
                    .await
                    .map_err(unclear)?;
                self.announce_database(created, order).await
            }
        }
    }

    /// Completes a monthly database that a worker created and left without its views; `database` is the one that something was stored in.
    pub(super) async fn complete_views(&self, case: &Case, database: &str) -> Result<(), DeliveryError> {
        let (Some(order), Some(account_id)) = (case.entry.order(), case.entry.account_id()) else {
            return Ok(());
        };
        let mut ids = ids(order).into_iter();
        let id = ids.find(|id| names::modb(account_id, id.month()) == database);
        // An older database had its views long ago.
        let month = id
            .map(|id| id.month())
            .filter(|month| missing_month::is_about(*month, self.common.now()));
        let (Some(month), true) = (month, self.common.config.destination.create_databases) else {
            return Ok(());
        };
        if self.whole.has(database) {
            return Ok(());
        }
        let unclear = |error: CouchError| DeliveryError::NoDatabase(format!("{database}, with its views: {error}"));
        if let Some(created) = missing_month::complete(&self.couch, account_id, month)
            .await
            .map_err(unclear)?
        {
            self.announce_database(created, order).await?;
        }
        self.whole.remember(database);
        Ok(())
    }

    /// Publishes that a database was created, and then writes its last view. A worker that crashes before that leaves both to the next
    /// worker.
    async fn announce_database(&self, created: Created, order: &Order) -> Result<(), DeliveryError> {
        let database = created.database.clone();
        let unclear = |error: String| DeliveryError::NoDatabase(format!("{database}, with its views: {error}"));
        let msg_id = order.key.derived(&format!("db_created {database}"));
        if let Some(notice) = created.notice(&self.common.sender, &msg_id) {
            let published = self.publisher.publish(&notice).await;
            published.map_err(|error| unclear(format!("db_created was not published: {error}")))?;
        }
        let created = created.finish(&self.couch).await;
        created.map_err(|error| unclear(error.to_string()))?;
        self.whole.remember(&database);
        Ok(())
    }
}
