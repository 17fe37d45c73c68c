//! The place that the account's storage plan names. The worker itself serves handlers of the kinds in `storage.drivers`, and Kazoo's store
//! proxy all others. A plan without a handler names a database.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::couch::Couch;
use crate::entry::Entry;
use crate::entry::fact::{DeliveryFailure, Destination as Kind, What};
use crate::system_config::{Accounts, Plan, Storage, SystemConfig};

use super::couchdb_write::delivery::deliver;
use super::couchdb_write::months::Months;
use super::pending_document::{find_or_create, is_safe, note, search};
use super::servers::Servers;
use super::url::http::Http;
use super::{Attempt, DeliveryError, Destination, Failed, Fault, Home, Means, Route, Search, authority};

pub mod azure;
mod found;
pub mod learned;
pub mod name;
pub mod native;
pub mod not_ours;
pub mod proxy;
pub mod refusal;
pub mod s3;
pub mod sign;
pub mod store;
pub mod stub;

use native::Native;

/// Stores as the account's storage plan says. May touch: the plan's server and object store, Kazoo's store proxy, and the document, wherever
/// the plan has it.
pub struct StoragePlan {
    home: Home,
    months: Arc<Months>,
    system_config: SystemConfig,
    accounts: Accounts,
    servers: Servers,
    cluster: Http,
    native: Native,
}

impl StoragePlan {
    pub fn new(means: &Means) -> Self {
        Self {
            home: means.home.clone(),
            months: Arc::clone(&means.months),
            system_config: means.system_config.clone(),
            accounts: means.accounts.clone(),
            servers: means.servers.clone(),
            cluster: means.cluster.clone(),
            native: Native::new(means.stores.clone()),
        }
    }

    async fn storage(&self, entry: &Entry) -> Result<Storage, DeliveryError> {
        let account_id = entry.account_id().unwrap_or_default();
        let nowhere = |why: &str| DeliveryError::Target(why.to_owned());
        match self.accounts.plan(account_id).await {
            Plan::Stored(storage) => Ok(storage),
            Plan::None => Err(nowhere("the account has no storage plan any more")),
            Plan::Unknown => Err(nowhere("the account's storage plan cannot be read")),
        }
    }

    /// The server where a storage plan keeps the documents of recordings.
    fn connected(&self, storage: &Storage) -> Result<Couch, DeliveryError> {
        let Some(connection) = &storage.connection else {
            return Ok(self.home.couch.clone());
        };
        match &connection.server {
            Some(server) if connection.is_systems => Ok(self.servers.client(server)?),
            Some(server) => self.servers.client_of_tenant(server),
            None => Err(DeliveryError::Target(format!(
                "the storage plan does not tell where its connection {} leads",
                connection.tag
            ))),
        }
    }

    async fn route(&self, entry: &Entry) -> Result<Route, DeliveryError> {
        let storage = self.storage(entry).await?;
        let couch = self.connected(&storage)?;
        let Some(handler) = storage.handler else {
            let server = storage.connection.and_then(|connection| connection.server);
            let host = server.map_or_else(|| self.home.host.clone(), |server| authority(&server.url));
            return Ok(Route::of(host, couch));
        };
        if let Some(store) = self.native.of(&handler) {
            let mut route = Route::of(store.host(), couch);
            // The object's name may be one that only Kazoo can build.
            route.proxy = self.system_config.current().map(|media| media.proxy);
            route.store = Some(store);
            return Ok(route);
        }
        let unread = || DeliveryError::Target("system_config/media could not be read yet".into());
        let proxy = self.system_config.current().ok_or_else(unread)?.proxy;
        let Some(base) = &proxy.base else {
            return Err(no_proxy());
        };
        let mut route = Route::of(authority(base), couch);
        route.proxy = Some(proxy);
        Ok(route)
    }

    async fn store(&self, route: &Route, attempt: &Attempt<'_>) -> Result<What, DeliveryError> {
        let (couch, parcel) = (&route.couch, &attempt.parcel);
        if route.proxy.is_none() && route.store.is_none() {
            return Ok(What::delivered(deliver(couch, attempt, false).await?));
        }
        let placed = find_or_create(couch, parcel, &self.months).await;
        let placed = placed.map_err(DeliveryError::of_cluster)?;
        if let Some(store) = &route.store {
            if placed.proven(&parcel.order.media_name).is_some() {
                is_safe(couch, &placed).await.map_err(DeliveryError::of_cluster)?;
                return Ok(What::delivered(placed.delivery(Kind::StoragePlan)));
            }
            if let Some(named) = self.native.named(store, &placed, &parcel.order.media_name) {
                let stored = self.native.store((couch, store), (&placed, &named), attempt).await;
                if stored.as_ref().is_err_and(|error| error.fault() == Fault::Plan) {
                    self.accounts.forget_plan(parcel.account_id);
                }
                return stored;
            }
        }
        let proxy = route
            .proxy
            .as_ref()
            .filter(|proxy| proxy.base.is_some())
            .ok_or_else(no_proxy)?;
        let job = proxy::Job {
            placed: &placed,
            name: &parcel.order.media_name,
            content_type: parcel.order.format.content_type(),
            audio: &parcel.audio,
            source: &attempt.source,
        };
        proxy::store(couch, &self.cluster, proxy, &job).await?;
        let noted = note(couch, &placed, &parcel.subject(&placed.id), &attempt.progress()).await;
        let noted = noted.map_err(DeliveryError::of_cluster)?;
        let mut delivery = noted.delivery(Kind::StoragePlan);
        delivery.edit_told = true;
        Ok(What::delivered(delivery))
    }
}

fn no_proxy() -> DeliveryError {
    let why = "system_config/media does not say where a store proxy is (proxy_hostname)";
    DeliveryError::Never(Failed::new(DeliveryFailure::NoProxy, why))
}

impl Destination for StoragePlan {
    fn kind(&self) -> Kind {
        Kind::StoragePlan
    }

    fn resolve<'a>(&'a self, entry: &'a Entry) -> BoxFuture<'a, Result<Route, DeliveryError>> {
        Box::pin(self.route(entry))
    }

    fn documents<'a>(&'a self, entry: &'a Entry) -> BoxFuture<'a, Result<Couch, DeliveryError>> {
        Box::pin(async { self.connected(&self.storage(entry).await?) })
    }

    fn find<'a>(&'a self, sought: &'a Search<'a>) -> BoxFuture<'a, Result<Option<What>, DeliveryError>> {
        Box::pin(async {
            let couch = self.documents(sought.entry).await?;
            search(&couch, Kind::StoragePlan, sought).await
        })
    }

    fn send<'a>(&'a self, route: &'a Route, attempt: &'a Attempt<'a>) -> BoxFuture<'a, Result<What, DeliveryError>> {
        Box::pin(self.store(route, attempt))
    }
}
