//! The destinations of audio, and the check that it arrived.
//!
//! A destination is one implementation of the trait `Destination`, in a file or folder of its own, and one line in the registry below.
//! What decisions depend on is its `Description`, a row of a table in the room `entry`.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::couch::Couch;
use crate::entry::Entry;
use crate::entry::fact::{Description, Destination as Kind, What};
use crate::kazoo::time::Moment;
use crate::recording::order::{Order, Url};
use crate::system_config::{Accounts, Proxy, SystemConfig};

mod account;
mod error;
mod ids;
mod parcel;
mod source;
mod third_party;

pub mod choose;
pub mod circuit_breaker;
pub mod couchdb_write;
pub mod kazoo_copies;
pub mod pending_document;
pub mod servers;
pub mod storage_plan;
pub mod url;

use couchdb_write::months::Months;
use servers::Servers;
use url::Target;
use url::Uploads;
use url::http::Http;

pub use error::{DeliveryError, Failed, Fault};
pub use parcel::{Attempt, Parcel, Places, Search, Writer};
pub use source::Source;

registry! {
    account: Account => account::Account,
    third_party: ThirdParty => third_party::ThirdParty,
    url: Url => url::UserUrl,
    storage_plan: StoragePlan => storage_plan::StoragePlan,
}

/// A destination of audio.
pub trait Destination: Send + Sync {
    fn kind(&self) -> Kind;

    /// What decisions, metrics and people need to know of it.
    fn describe(&self) -> &'static Description {
        self.kind().describe()
    }

    /// The route of one attempt. It is looked up at each attempt, so that a changed configuration takes effect at once.
    ///
    /// Fails with what the configuration lacks, or does not say any more.
    fn resolve<'a>(&'a self, entry: &'a Entry) -> BoxFuture<'a, Result<Route, DeliveryError>>;

    /// The server that has the document of a recording which goes here. Fails as `resolve`.
    fn documents<'a>(&'a self, entry: &'a Entry) -> BoxFuture<'a, Result<Couch, DeliveryError>>;

    /// The delivery that an earlier attempt, or another worker, has made here already.
    fn find<'a>(&'a self, search: &'a Search<'a>) -> BoxFuture<'a, Result<Option<What>, DeliveryError>>;

    /// Delivers the audio. Harmless when it is done twice.
    fn send<'a>(&'a self, route: &'a Route, attempt: &'a Attempt<'a>) -> BoxFuture<'a, Result<What, DeliveryError>>;

    /// Whether what an earlier attempt lacked here is there now, or can be made. It is asked before a file is collected.
    fn is_ready<'a>(&'a self, entry: &'a Entry) -> BoxFuture<'a, Result<(), DeliveryError>> {
        let _ = entry;
        Box::pin(async { Ok(()) })
    }

    /// Other destinations where an earlier attempt may have stored the recording, when the configuration was another one.
    fn elsewhere(&self) -> Vec<Kind> {
        if !self.describe().is_configured {
            return Vec::new();
        }
        let others = Kind::ALL.into_iter().filter(|kind| *kind != self.kind());
        // The document of any other destination is in the ledger before its audio is there.
        others.filter(|kind| !kind.documents_first()).collect()
    }
}

/// The route of one attempt. It holds clients, and touches nothing by itself.
pub struct Route {
    /// The host and port that failures are attributed to.
    pub host: String,
    /// The server with the recording's document.
    pub couch: Couch,
    /// The user's URL. Other recordings of the call may have the same one.
    pub url: Option<Target>,
    /// Kazoo's store proxy, which knows the storage plan's handler.
    pub proxy: Option<Proxy>,
    /// The object store of a storage plan's handler that the worker serves itself.
    pub store: Option<storage_plan::native::Store>,
}

impl Route {
    /// The route to a database there.
    pub fn of(host: String, couch: Couch) -> Self {
        Self {
            host,
            couch,
            url: None,
            proxy: None,
            store: None,
        }
    }

    /// The circuit breaker of a storage plan's handler, which a plan that is refused opens. The breaker of the host is another one.
    pub fn handler_breaker(&self) -> Option<&str> {
        self.store.as_ref().map(|store| store.breaker.as_str())
    }
}

/// What destinations are built from. Each takes the parts that it may touch.
pub struct Means {
    /// The cluster's own database.
    pub home: Home,
    /// Accounts' monthly databases there.
    pub months: Arc<Months>,
    pub system_config: SystemConfig,
    pub accounts: Accounts,
    /// Databases outside of the cluster.
    pub servers: Servers,
    /// Uploads to users' URLs, through the SSRF filter.
    pub users: Uploads,
    /// Uploads to servers that the operator named.
    pub cluster: Http,
    /// Uploads to object stores that storage plans name.
    pub stores: storage_plan::native::Stores,
}

/// The cluster's own database.
#[derive(Clone)]
pub struct Home {
    pub couch: Couch,
    /// Its host and port, which failures are attributed to.
    pub host: String,
}

impl Home {
    /// The database that `url` names.
    pub fn new(couch: Couch, url: &::url::Url) -> Self {
        Self {
            couch,
            host: authority(url),
        }
    }
}

impl Destinations {
    /// The host and port of the cluster's own database.
    pub fn home(&self) -> &str {
        &self.home.host
    }

    /// The cluster's own database.
    pub fn home_couch(&self) -> &Couch {
        &self.home.couch
    }

    /// The destination of a recording. Before it is decided, a document can only be one of the cluster's.
    pub fn of_document(&self, entry: &Entry) -> &dyn Destination {
        self.of(entry.destination().unwrap_or(Kind::Url))
    }
}

/// The destinations by their kind.
pub trait Registry: Sync {
    /// The destination of a kind.
    fn of(&self, kind: Kind) -> &dyn Destination;
}

/// The delivery that an earlier attempt, or another worker, has made already, wherever the recording went then.
///
/// # Errors
/// When a server that must be asked does not answer, or has a damaged copy.
pub async fn find(
    all: &impl Registry,
    entry: &Entry,
    order: &Order,
    now: Moment,
) -> Result<Option<What>, DeliveryError> {
    let Some(account_id) = entry.account_id() else {
        return Ok(None);
    };
    let search = Search {
        entry,
        order,
        account_id,
        now,
    };
    let decided = all.of(entry.destination().unwrap_or_else(|| presumed(order)));
    if let Some(found) = decided.find(&search).await? {
        return Ok(Some(found));
    }
    // A worker may have stored it there, and crashed before it could note that.
    for other in decided.elsewhere() {
        match all.of(other).find(&search).await {
            Ok(None) => {}
            Ok(found) => return Ok(found),
            Err(error) if other.is_own() => return Err(error),
            Err(error) => {
                tracing::debug!(event = "third_party_unreadable", call_id = order.call_id, %error, "third-party server unreadable");
            }
        }
    }
    Ok(None)
}

/// Where a recording went, if a worker decided that and delivered, and its notes have not reached this worker.
const fn presumed(order: &Order) -> Kind {
    match order.url {
        Url::Given(_) => Kind::Url,
        Url::None | Url::Lost => Kind::Account,
    }
}

/// Host and port, without credentials.
fn authority(url: &::url::Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// All destinations, one a line: field, kind, type. Touches what they may touch.
macro_rules! registry {
    ($($field:ident: $kind:ident => $type:ty),+ $(,)?) => {
        /// All destinations. Each says itself what it may touch.
        pub struct Destinations {
            home: Home,
            $($field: $type),+
        }

        impl Destinations {
            pub fn new(means: &Means) -> Self {
                Self {
                    home: means.home.clone(),
                    $($field: <$type>::new(means)),+
                }
            }
        }

        impl Registry for Destinations {
            fn of(&self, kind: Kind) -> &dyn Destination {
                match kind {
                    $(Kind::$kind => &self.$field),+
                }
            }
        }
    };
}
use registry;

#[cfg(test)]
mod tests {
    use super::*;

    /// Another worker's document of a URL has no attachment: a search of the account's recordings does not count it as stored.
    #[test]
    fn an_undecided_recording_with_a_url_is_searched_for_as_one_of_a_url() {
        let of = |url| {
            let mut order = crate::lifecycle::tests::order();
            order.url = url;
            presumed(&order)
        };
        assert_eq!(of(Url::Given("https://example.com/in/".into())), Kind::Url);
        assert_eq!(of(Url::None), Kind::Account);
        assert_eq!(of(Url::Lost), Kind::Account);
    }
}
