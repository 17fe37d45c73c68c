//! The user's URL. The audio goes there, the document into the account's database.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::config;
use crate::couch::Couch;
use crate::entry::Entry;
use crate::entry::fact::{DeliveryFailure, Destination as Kind, What};
use crate::kazoo::time::Clock;
use crate::recording::order;

use super::couchdb_write::months::Months;
use super::pending_document::{find_or_create, is_safe, search};
use super::{Attempt, DeliveryError, Destination, Failed, Home, Means, Route, Search};

mod connect;
mod failure;
pub mod files;
pub mod guard;
pub mod http;
mod said;
mod signed;
mod target;

use files::Files;
use guard::Guard;
use guard::resolve::System;
use http::{Http, NoClient, Upload};
pub use target::{Protocol, Target, Unusable};

/// How audio gets to users' URLs, through the SSRF filter. Cheap to clone.
#[derive(Clone)]
pub struct Uploads {
    http: Http,
    files: Files,
}

impl Uploads {
    /// # Errors
    /// For example without any root certificate.
    pub fn new(config: &config::Destination, clock: Clock) -> Result<Self, NoClient> {
        Ok(Self {
            http: Http::for_users(config, clock)?,
            files: Files::guarded(config, Guard::new(config), Arc::new(System))?,
        })
    }
}

/// Uploads to users' URLs. May touch: the URL of the action, through the SSRF filter, and the document in the account's database.
pub struct UserUrl {
    home: Home,
    months: Arc<Months>,
    users: Uploads,
}

impl UserUrl {
    pub fn new(means: &Means) -> Self {
        Self {
            home: means.home.clone(),
            months: Arc::clone(&means.months),
            users: means.users.clone(),
        }
    }

    async fn upload(&self, route: &Route, attempt: &Attempt<'_>) -> Result<What, DeliveryError> {
        let parcel = &attempt.parcel;
        let (order, target) = (parcel.order, route.url.as_ref().ok_or_else(lost)?);
        let placed = find_or_create(&route.couch, parcel, &self.months).await;
        let placed = placed.map_err(DeliveryError::of_cluster)?;
        if placed.proven(&order.media_name).is_some() {
            is_safe(&route.couch, &placed)
                .await
                .map_err(DeliveryError::of_cluster)?;
            return Ok(What::delivered(placed.delivery(Kind::Url)));
        }
        let extension = order.format.extension();
        let target = target.of_recording(&placed.document, parcel.account_id, extension, attempt.own);
        // Two recordings can get the same id. This is never the key of the one that had it first.
        let key = placed.idempotency_key();
        if let Some(protocol) = target.protocol() {
            let upload = files::Upload {
                source: &attempt.source,
                length: parcel.audio.size,
                digests: &parcel.audio.digests,
                writer: &parcel.writer_of(&key),
            };
            let stored = self.users.files.send(&target, protocol, &upload).await?;
            if !stored.has_its_name {
                let name = stored.to.file();
                tracing::warn!(event = "file_name_taken", call_id = order.call_id, %target, name, "file name taken by another file");
            }
            return Ok(What::Uploaded {
                // Kazoo cannot fetch audio from such a server, with or without them.
                url: stored.to.without_credentials().expose().to_string(),
                sha256: Some(parcel.audio.digests.sha256.clone()),
            });
        }
        if target.is_expired(parcel.now()) {
            let why = "the URL's signature is not valid any more";
            return Err(DeliveryError::Never(Failed::new(DeliveryFailure::UrlExpired, why)));
        }
        let upload = Upload {
            source: &attempt.source,
            length: parcel.audio.size,
            content_type: order.format.content_type(),
            method: target.method(order.method),
            key: &key,
        };
        let sent = self.users.http.send(&target, &upload).await?;
        if let Some(other) = sent.md5.filter(|md5| *md5 != parcel.audio.digests.md5) {
            return Err(DeliveryError::Corrupt(format!(
                "{target} stored audio with the MD5 {other}"
            )));
        }
        Ok(What::Uploaded {
            url: sent.to.expose().to_string(),
            sha256: Some(parcel.audio.digests.sha256.clone()),
        })
    }
}

impl Destination for UserUrl {
    fn kind(&self) -> Kind {
        Kind::Url
    }

    fn resolve<'a>(&'a self, entry: &'a Entry) -> BoxFuture<'a, Result<Route, DeliveryError>> {
        Box::pin(async {
            let target = match entry.order().map(|order| &order.url) {
                Some(order::Url::Given(given)) => Target::parse(given)
                    .map_err(|error| DeliveryError::Never(Failed::new(DeliveryFailure::Unusable, error)))?,
                _ => return Err(lost()),
            };
            let mut route = Route::of(target.host(), self.home.couch.clone());
            route.url = Some(target);
            Ok(route)
        })
    }

    fn documents<'a>(&'a self, _: &'a Entry) -> BoxFuture<'a, Result<Couch, DeliveryError>> {
        Box::pin(async { Ok(self.home.couch.clone()) })
    }

    fn find<'a>(&'a self, sought: &'a Search<'a>) -> BoxFuture<'a, Result<Option<What>, DeliveryError>> {
        Box::pin(search(&self.home.couch, Kind::Url, sought))
    }

    fn send<'a>(&'a self, route: &'a Route, attempt: &'a Attempt<'a>) -> BoxFuture<'a, Result<What, DeliveryError>> {
        Box::pin(self.upload(route, attempt))
    }
}

fn lost() -> DeliveryError {
    let why = "the action's url is not known any more";
    DeliveryError::Never(Failed::new(DeliveryFailure::Lost, why))
}
