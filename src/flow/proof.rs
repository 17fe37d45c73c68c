//! Looks at databases: is a recording stored already, is it still there, does its account have a database at all.

use crate::couch::CouchError;
use crate::destination::modb::{self, Account, Step};
use crate::destination::{DeliveryError, Failed, bigcouch, pending};
use crate::entry::LOOKS;
use crate::entry::fact::{Delivery, DeliveryFailure, Destination, Document, What};
use crate::recording::names;
use crate::recording::order::Order;
use crate::telemetry::events::ReadBackFailed;

use super::deliver::{delivered, failure, ids};
use super::next::{self, Case, Input};
use super::perform::Parts;

impl Parts {
    /// The delivery that an earlier attempt, or another worker, made already.
    pub(super) async fn stored_already(&self, case: &Case, order: &Order) -> Result<Option<What>, DeliveryError> {
        let Some(account_id) = next::account(&case.entry) else {
            return Ok(None);
        };
        let decided = case.entry.destination().unwrap_or(Destination::Account);
        let found = self.stored_at(case, order, account_id, decided).await?;
        if found.is_some() || decided == Destination::Url {
            return Ok(found);
        }
        // The configuration may have been another one when somebody stored it, and died before he could say so.
        for other in [Destination::Account, Destination::ThirdParty] {
            if other == decided {
                continue;
            }
            match self.stored_at(case, order, account_id, other).await {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) if other == Destination::Account => return Err(error),
                Err(error) => tracing::debug!(call_id = order.call_id, %error, "the third party does not tell"),
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
        for id in ids(order) {
            let database = names::modb(account_id, id.month());
            if destination.documents_first() {
                let placed = pending::find(&couch, &database, &id, order.key).await?;
                if let Some(placed) = placed.filter(pending::Placed::is_complete) {
                    return Ok(Some(delivered(destination, placed)));
                }
            } else if let Some((rev, sha256)) = bigcouch::find(&couch, &database, &id, order.key).await? {
                let created = id.month().clamp(case.entry.ended_at().unwrap_or_else(|| self.now()));
                return Ok(Some(What::delivered(Delivery {
                    destination,
                    document: Document {
                        id,
                        database,
                        rev,
                        created,
                    },
                    sha256,
                    below_quorum: false,
                    // Another worker wrote it: it is read again.
                    controls: Some(String::new()),
                })));
            }
        }
        Ok(None)
    }

    /// Reads back what a server with too few copies had taken.
    pub(super) async fn read_back(&self, case: &Case, n: u32) -> Input {
        let why = match self.look_at(case).await {
            Ok(bigcouch::ReadBack::Whole { .. }) => None,
            Ok(bigcouch::ReadBack::Lost(why)) => Some(why),
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = &why {
            ReadBackFailed {
                call_id: &case.entry.call_id,
                media_id: case.entry.order().map_or("", |order| order.media_id.as_str()),
                why,
                last: case.entry.looks().count() + 1 >= LOOKS,
            }
            .emit();
        }
        Input::Fact(What::Looked { n, why })
    }

    async fn look_at(&self, case: &Case) -> Result<bigcouch::ReadBack, DeliveryError> {
        let entry = &case.entry;
        let unknown = || DeliveryError::Target("nobody knows what was stored".into());
        let delivery = entry.delivery().ok_or_else(unknown)?;
        let audio = entry.audio().ok_or_else(unknown)?;
        let couch = self.documents(case, delivery.destination).await?;
        let document = &delivery.document;
        bigcouch::read_back(&couch, &document.database, &document.id, entry.key, audio).await
    }

    /// Whether bringing the file here would be in vain now; what is to be noted then.
    pub(super) async fn in_vain(&self, case: &Case, attempt: u32) -> Option<Input> {
        let entry = &case.entry;
        let destination = entry.destination().filter(|to| *to == Destination::Account)?;
        let home = self.home().host;
        if let Some(until) = self.targets.rests(&home) {
            return Some(self.postponed(case, until, format!("{home} takes nothing now")));
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
        Some(names::modb(next::account(&case.entry)?, id.month()))
    }

    /// Creates a monthly database that is missing for too long. `Ok`: it is there now.
    pub(super) async fn create_missing(&self, case: &Case, database: &str) -> Result<(), DeliveryError> {
        let entry = &case.entry;
        let missing = || DeliveryError::NoDatabase(database.to_owned());
        let now = self.now();
        let (Some(order), Some(account_id)) = (entry.order(), next::account(entry)) else {
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
        let account: Account = modb::account(&self.couch, account_id).await.map_err(unclear)?;
        match modb::step(account, month, since, now, &self.config.destination) {
            Step::NoSuchAccount => Err(DeliveryError::Never(Failed::new(
                DeliveryFailure::NoAccount,
                format!("the account {account_id} does not exist, or is deleted"),
            ))),
            Step::Wait { .. } => Err(missing()),
            Step::Create => {
                let created = modb::create(&self.couch, account_id, month).await.map_err(unclear)?;
                let msg_id = order.key.derived(&format!("db_created {database}"));
                if let Some(notice) = created.notice(&self.sender, &msg_id)
                    && let Err(error) = self.publisher.publish(&notice).await
                {
                    tracing::warn!(database, %error, "nobody was told of the new database");
                }
                Ok(())
            }
        }
    }
}
