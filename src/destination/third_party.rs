//! The other cluster that `third_party_bigcouch_host` names: a database of the same name there. Nothing is stored in this cluster.

use futures_util::future::BoxFuture;

use crate::couch::{Couch, Server};
use crate::entry::Entry;
use crate::entry::fact::{Destination as Kind, What};
use crate::system_config::{SystemConfig, ThirdParty as Setting};

use super::couchdb_write::delivery::{deliver, search};
use super::servers::Servers;
use super::{Attempt, DeliveryError, Destination, Means, Route, Search, authority};

/// Stores in the third party's databases. May touch: the server that `system_config/media` names.
pub struct ThirdParty {
    system_config: SystemConfig,
    servers: Servers,
}

impl ThirdParty {
    pub fn new(means: &Means) -> Self {
        Self {
            system_config: means.system_config.clone(),
            servers: means.servers.clone(),
        }
    }

    fn server(&self) -> Result<Server, DeliveryError> {
        let nowhere = |why: &str| DeliveryError::Target(format!("third_party_bigcouch_host {why}"));
        let media = self.system_config.current();
        match media.map(|media| media.third_party) {
            Some(Setting::Server(server)) => Ok(server),
            Some(Setting::NotSet) => Err(nowhere("is not set any more")),
            Some(Setting::Unusable(error)) => Err(nowhere(&format!("cannot be used: {error}"))),
            None => Err(nowhere("could not be read yet")),
        }
    }

    fn client(&self) -> Result<Couch, DeliveryError> {
        Ok(self.servers.client(&self.server()?)?)
    }
}

impl Destination for ThirdParty {
    fn kind(&self) -> Kind {
        Kind::ThirdParty
    }

    fn resolve<'a>(&'a self, _: &'a Entry) -> BoxFuture<'a, Result<Route, DeliveryError>> {
        Box::pin(async {
            let server = self.server()?;
            Ok(Route::of(authority(&server.url), self.servers.client(&server)?))
        })
    }

    fn documents<'a>(&'a self, _: &'a Entry) -> BoxFuture<'a, Result<Couch, DeliveryError>> {
        Box::pin(async { self.client() })
    }

    fn find<'a>(&'a self, sought: &'a Search<'a>) -> BoxFuture<'a, Result<Option<What>, DeliveryError>> {
        Box::pin(async { search(&self.client()?, Kind::ThirdParty, sought).await })
    }

    fn send<'a>(&'a self, route: &'a Route, attempt: &'a Attempt<'a>) -> BoxFuture<'a, Result<What, DeliveryError>> {
        // No other program creates databases there.
        Box::pin(async { Ok(What::delivered(deliver(&route.couch, attempt, true).await?)) })
    }
}
