//! Accounts' monthly databases in the cluster: creates a missing one when its time has come, and completes one without its views.

use crate::amqp::Publisher;
use crate::config;
use crate::couch::{Couch, CouchError};
use crate::entry::Entry;
use crate::entry::fact::{DeliveryFailure, What};
use crate::kazoo::envelope::Sender;
use crate::kazoo::time::{Clock, Month};
use crate::recording::names;
use crate::recording::order::Order;

use super::super::ids::ids;
use super::super::{DeliveryError, Failed};
use super::missing_month::{self, Created, Step, Whole};

/// The monthly databases. May touch: monthly databases in the cluster, and the documents there that say how they are made. Publishes
/// `db_created`.
pub struct Months {
    couch: Couch,
    publisher: Publisher,
    sender: Sender,
    clock: Clock,
    config: config::Destination,
    whole: Whole,
}

impl Months {
    /// Monthly databases on `couch`, the cluster's own server. `sender` and `publisher` announce new ones.
    pub fn new(
        couch: Couch,
        (publisher, sender): (Publisher, Sender),
        clock: Clock,
        config: config::Destination,
    ) -> Self {
        Self {
            couch,
            publisher,
            sender,
            clock,
            config,
            whole: Whole::default(),
        }
    }

    /// Whether `couch` is the server with these databases.
    pub fn are_on(&self, couch: &Couch) -> bool {
        couch.is_same_server(&self.couch)
    }

    /// Whether the recording's database exists now, or can be made, if the last attempt lacked it.
    ///
    /// # Errors
    /// When it is still missing.
    pub async fn is_ready(&self, entry: &Entry) -> Result<(), DeliveryError> {
        let is_missing = entry
            .failures()
            .next_back()
            .is_some_and(|fact| is_about_database(&fact.what));
        let Some(database) = is_missing.then(|| database(entry)).flatten() else {
            return Ok(());
        };
        if self.couch.has_database(&database).await.unwrap_or(true) {
            return Ok(());
        }
        self.create(entry, &database).await
    }

    /// Creates a monthly database that is missing for too long. `Ok`: it exists now.
    ///
    /// # Errors
    /// When it is not created yet, or never will be.
    pub async fn create(&self, entry: &Entry, database: &str) -> Result<(), DeliveryError> {
        let missing = || DeliveryError::NoDatabase(database.to_owned());
        let now = self.clock.now();
        let (Some(order), Some(account_id)) = (entry.order(), entry.account_id()) else {
            return Err(missing());
        };
        let month = month(order, account_id, database).ok_or_else(missing)?;
        let since = entry.facts().find(|fact| is_about_database(&fact.what));
        let since = since.map_or(now, |fact| fact.at);
        let unclear = |error: CouchError| DeliveryError::Target(error.to_string());
        let account = missing_month::account(&self.couch, account_id).await.map_err(unclear)?;
        match missing_month::step(account, month, since, now, &self.config) {
            Step::NoSuchAccount => Err(DeliveryError::Never(Failed::new(
                DeliveryFailure::NoAccount,
                format!("the account {account_id} does not exist, or is deleted"),
            ))),
            Step::Wait { .. } => Err(missing()),
            Step::Create => {
                let created = missing_month::create(&self.couch, account_id, month).await;
                self.announce(created.map_err(unclear)?, order).await
            }
        }
    }

    /// Completes a monthly database that a worker created and left without its views; `database` is the one that something was stored in.
    ///
    /// # Errors
    /// When views may be missing.
    pub async fn complete_views(&self, entry: &Entry, database: &str) -> Result<(), DeliveryError> {
        let (Some(order), Some(account_id)) = (entry.order(), entry.account_id()) else {
            return Ok(());
        };
        // An older database had its views long ago.
        let month =
            month(order, account_id, database).filter(|month| missing_month::is_about(*month, self.clock.now()));
        let (Some(month), true) = (month, self.config.create_databases) else {
            return Ok(());
        };
        if self.whole.has(database) {
            return Ok(());
        }
        let unclear = |error: CouchError| without_views(database, &error.to_string());
        let completed = missing_month::complete(&self.couch, account_id, month).await;
        if let Some(created) = completed.map_err(unclear)? {
            self.announce(created, order).await?;
        }
        self.whole.remember(database);
        Ok(())
    }

    /// Publishes that a database was created, and then writes its last view. A worker that crashes before that leaves both to the next
    /// worker.
    async fn announce(&self, created: Created, order: &Order) -> Result<(), DeliveryError> {
        let database = created.database.clone();
        let msg_id = order.key.derived(&format!("db_created {database}"));
        if let Some(notice) = created.notice(&self.sender, &msg_id) {
            let published = self.publisher.publish(&notice).await;
            published.map_err(|error| without_views(&database, &format!("db_created was not published: {error}")))?;
        }
        let finished = created.finish(&self.couch).await;
        finished.map_err(|error| without_views(&database, &error.to_string()))?;
        self.whole.remember(&database);
        Ok(())
    }
}

fn without_views(database: &str, why: &str) -> DeliveryError {
    DeliveryError::NoDatabase(format!("{database}, with its views: {why}"))
}

/// The month of a recording's database, if it is a database of this recording.
fn month(order: &Order, account_id: &str, database: &str) -> Option<Month> {
    let mut months = ids(order).into_iter().map(|id| id.month());
    months.find(|month| names::modb(account_id, *month) == database)
}

/// The database that the recording belongs to, whatever its action said.
fn database(entry: &Entry) -> Option<String> {
    let id = ids(entry.order()?).pop()?;
    Some(names::modb(entry.account_id()?, id.month()))
}

fn is_about_database(what: &What) -> bool {
    matches!(
        what,
        What::DeliveryFailed {
            failure: DeliveryFailure::Database,
            ..
        }
    )
}
