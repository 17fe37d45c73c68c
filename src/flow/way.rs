//! The route to a destination. It is looked up at each attempt, so that a changed configuration takes effect at
//! once.

use url::Url;

use crate::couch::{Couch, Server};
use crate::destination::url::Target;
use crate::destination::{DeliveryError, Failed};
use crate::entry::fact::{DeliveryFailure, Destination};
use crate::recording::order;
use crate::system_config::{Plan, Proxy, Storage, ThirdParty};

use super::deliveries::Parts;
use crate::lifecycle::Case;

/// The route to a destination.
pub(super) struct Way {
    /// The host and port that failures are attributed to.
    pub(super) host: String,
    pub(super) by: By,
}

/// How audio gets there.
pub(super) enum By {
    /// Document and audio together. A missing database may be created there.
    Database { couch: Couch, create: bool },
    /// An upload to a user's URL.
    Url(Target),
    /// Kazoo's store proxy, which knows the storage plan's handler.
    Proxy { couch: Couch, proxy: Proxy },
}

impl Parts {
    /// The route to `destination`.
    ///
    /// # Errors
    /// What the configuration lacks, or does not say any more.
    pub(super) async fn way(&self, case: &Case, destination: Destination) -> Result<Way, DeliveryError> {
        match destination {
            Destination::Account => Ok(self.home()),
            Destination::ThirdParty => {
                let server = self.third_party()?;
                Ok(Way {
                    host: authority(&server.url),
                    by: By::Database {
                        couch: self.servers.client(&server)?,
                        create: true,
                    },
                })
            }
            Destination::Url => {
                let target = match case.entry.order().map(|order| &order.url) {
                    Some(order::Url::Given(given)) => Target::parse(given)
                        .map_err(|error| DeliveryError::Never(Failed::new(DeliveryFailure::Unusable, error)))?,
                    _ => {
                        let why = "the action's url is not known any more";
                        return Err(DeliveryError::Never(Failed::new(DeliveryFailure::Lost, why)));
                    }
                };
                Ok(Way {
                    host: target.host(),
                    by: By::Url(target),
                })
            }
            Destination::StoragePlan => self.planned(case).await,
        }
    }

    /// The server that has the document of a recording which goes to `destination`.
    ///
    /// # Errors
    /// As `way`.
    pub(super) async fn documents(&self, case: &Case, destination: Destination) -> Result<Couch, DeliveryError> {
        match destination {
            Destination::Account | Destination::Url => Ok(self.couch.clone()),
            Destination::ThirdParty => Ok(self.servers.client(&self.third_party()?)?),
            Destination::StoragePlan => self.connected(&self.storage(case).await?),
        }
    }

    /// The cluster's own database.
    pub(super) fn home(&self) -> Way {
        Way {
            host: authority(&self.common.config.couchdb.url),
            by: By::Database {
                couch: self.couch.clone(),
                create: false,
            },
        }
    }

    fn third_party(&self) -> Result<Server, DeliveryError> {
        let nowhere = |why: &str| DeliveryError::Target(format!("third_party_bigcouch_host {why}"));
        let media = self.system_config.current();
        match media.map(|media| media.third_party) {
            Some(ThirdParty::Server(server)) => Ok(server),
            Some(ThirdParty::NotSet) => Err(nowhere("is not set any more")),
            Some(ThirdParty::Unusable(error)) => Err(nowhere(&format!("cannot be used: {error}"))),
            None => Err(nowhere("could not be read yet")),
        }
    }

    async fn storage(&self, case: &Case) -> Result<Storage, DeliveryError> {
        let account_id = case.entry.account_id().unwrap_or_default();
        match self.accounts.plan(account_id).await {
            Plan::Stored(storage) => Ok(storage),
            Plan::None => Err(DeliveryError::Target("the account has no storage plan any more".into())),
            Plan::Unknown => Err(DeliveryError::Target(
                "the account's storage plan cannot be read".into(),
            )),
        }
    }

    /// The server where a storage plan keeps the documents of recordings.
    fn connected(&self, storage: &Storage) -> Result<Couch, DeliveryError> {
        let Some(connection) = &storage.connection else {
            return Ok(self.couch.clone());
        };
        match &connection.server {
            Some(server) => Ok(self.servers.client(server)?),
            None => Err(DeliveryError::Target(format!(
                "the storage plan does not tell where its connection {} leads",
                connection.tag
            ))),
        }
    }

    async fn planned(&self, case: &Case) -> Result<Way, DeliveryError> {
        let storage = self.storage(case).await?;
        let couch = self.connected(&storage)?;
        if storage.handler.is_none() {
            let server = storage.connection.and_then(|connection| connection.server);
            return Ok(Way {
                host: server.map_or_else(
                    || authority(&self.common.config.couchdb.url),
                    |server| authority(&server.url),
                ),
                by: By::Database { couch, create: false },
            });
        }
        let unread = || DeliveryError::Target("system_config/media could not be read yet".into());
        let proxy = self.system_config.current().ok_or_else(unread)?.proxy;
        let Some(base) = &proxy.base else {
            let why = "system_config/media does not say where a store proxy is (proxy_hostname)";
            return Err(DeliveryError::Never(Failed::new(DeliveryFailure::NoProxy, why)));
        };
        Ok(Way {
            host: authority(base),
            by: By::Proxy { couch, proxy },
        })
    }
}

/// Host and port, without credentials.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}
