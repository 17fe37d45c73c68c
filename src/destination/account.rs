//! The account's own monthly database, in the cluster.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::couch::Couch;
use crate::entry::Entry;
use crate::entry::fact::{Destination as Kind, What};

use super::couchdb_write::delivery::{deliver, search};
use super::couchdb_write::months::Months;
use super::{Attempt, DeliveryError, Destination, Home, Means, Route, Search};

/// Stores in monthly databases of the cluster. May touch: the account's databases, and what creates a missing one.
pub struct Account {
    home: Home,
    months: Arc<Months>,
}

impl Account {
    pub fn new(means: &Means) -> Self {
        Self {
            home: means.home.clone(),
            months: Arc::clone(&means.months),
        }
    }

    async fn store(&self, attempt: &Attempt<'_>) -> Result<What, DeliveryError> {
        let entry = attempt.parcel.entry;
        let mut stored = deliver(&self.home.couch, attempt, false).await;
        if let Err(DeliveryError::NoDatabase(database)) = &stored {
            self.months.create(entry, database).await?;
            stored = deliver(&self.home.couch, attempt, false).await;
        }
        let delivery = stored?;
        self.months.complete_views(entry, &delivery.document.database).await?;
        Ok(What::delivered(delivery))
    }
}

impl Destination for Account {
    fn kind(&self) -> Kind {
        Kind::Account
    }

    fn resolve<'a>(&'a self, _: &'a Entry) -> BoxFuture<'a, Result<Route, DeliveryError>> {
        Box::pin(async { Ok(Route::of(self.home.host.clone(), self.home.couch.clone())) })
    }

    fn documents<'a>(&'a self, _: &'a Entry) -> BoxFuture<'a, Result<Couch, DeliveryError>> {
        Box::pin(async { Ok(self.home.couch.clone()) })
    }

    fn find<'a>(&'a self, sought: &'a Search<'a>) -> BoxFuture<'a, Result<Option<What>, DeliveryError>> {
        Box::pin(search(&self.home.couch, Kind::Account, sought))
    }

    fn send<'a>(&'a self, _: &'a Route, attempt: &'a Attempt<'a>) -> BoxFuture<'a, Result<What, DeliveryError>> {
        Box::pin(self.store(attempt))
    }

    fn is_ready<'a>(&'a self, entry: &'a Entry) -> BoxFuture<'a, Result<(), DeliveryError>> {
        Box::pin(self.months.is_ready(entry))
    }
}
