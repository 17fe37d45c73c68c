//! Clients of database servers outside the cluster: a third party's, or a storage plan's. Each client is created once, and kept while the
//! configuration names its server. A server that a tenant names is reached through the SSRF filter.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::Host;

use crate::config;
use crate::couch::{Couch, CouchError, Server};

use super::storage_plan::refusal::{refused, unanswered};
use super::url::guard::Guard;
use super::url::guard::resolve::{Lookup, System, addresses, admit};
use super::url::http::Failure;
use super::{DeliveryError, authority};

/// Servers that are remembered. The least recently used one is forgotten first.
const MOST: usize = 16;

type Known = Vec<((Server, bool), Couch)>;

/// Creates clients. Cheap to clone.
#[derive(Clone)]
pub struct Servers {
    config: config::Couchdb,
    /// For the servers that tenants name.
    names: Arc<Guarded>,
    /// By whether a tenant names the server.
    known: Arc<Mutex<Known>>,
}

/// Names of tenants' servers, through the SSRF filter.
struct Guarded {
    guard: Guard,
    lookup: System,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, lookup, name) = (self.guard.clone(), self.lookup, name.as_str().to_owned());
        Box::pin(async move {
            let found = addresses(Some(&guard), &lookup as &dyn Lookup, &name).await?;
            let sockets = found.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(sockets.collect::<Vec<_>>().into_iter()) as Addrs)
        })
    }
}

impl Servers {
    /// `config` is the cluster's own. Its time-outs apply to all servers. `guard` applies to those that tenants name.
    pub fn new(config: config::Couchdb, guard: Guard) -> Self {
        let names = Guarded { guard, lookup: System };
        Self {
            config,
            names: Arc::new(names),
            known: Arc::default(),
        }
    }

    /// The client of a server.
    ///
    /// # Errors
    /// When no client can be created, for example without any root certificate.
    pub fn client(&self, server: &Server) -> Result<Couch, CouchError> {
        self.known(server, false)
    }

    /// The client of a server that a tenant names.
    ///
    /// # Errors
    /// When the server is the cluster's own, or the SSRF filter refuses its address. Otherwise as `client`.
    pub fn client_of_tenant(&self, server: &Server) -> Result<Couch, DeliveryError> {
        let host = authority(&server.url);
        let address: Option<IpAddr> = match server.url.host() {
            Some(Host::Ipv4(address)) => Some(address.into()),
            Some(Host::Ipv6(address)) => Some(address.into()),
            _ => None,
        };
        if let Some(address) = address {
            let admitted = admit(&self.names.guard, &address.to_string(), address);
            admitted.map_err(|refused| unanswered(&host, Failure::Address(refused)))?;
        }
        if host == authority(&self.config.url) {
            return Err(refused(host, "ClusterDatabase"));
        }
        Ok(self.known(server, true)?)
    }

    fn known(&self, server: &Server, is_tenants: bool) -> Result<Couch, CouchError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known
            .iter()
            .position(|((other, tenants), _)| other == server && *tenants == is_tenants);
        let entry = match found {
            Some(place) => known.remove(place),
            None => {
                let couch = if is_tenants {
                    Couch::of_tenant(server, &self.config, Arc::clone(&self.names) as Arc<dyn Resolve>)?
                } else {
                    Couch::elsewhere(server, &self.config)?
                };
                ((server.clone(), is_tenants), couch)
            }
        };
        let couch = entry.1.clone();
        known.push(entry);
        if known.len() > MOST {
            known.remove(0);
        }
        Ok(couch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_again_until_its_value_changes() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let layers = config::Layers::load(None, std::iter::empty()).unwrap();
        let config = config::Config::of(layers).unwrap();
        let guard = Guard::for_stores(&config.destination, &config.storage);
        let servers = Servers::new(config.couchdb, guard);
        let known = || servers.known.lock().unwrap().len();
        let of = |text: &str| Server::parse(text, 5984).unwrap();
        for _ in 0..3 {
            servers.client(&of("http://u:p@rec")).unwrap();
        }
        assert_eq!(known(), 1);
        servers.client(&of("http://u:other@rec")).unwrap();
        assert_eq!(known(), 2);
        for n in 0..40 {
            servers.client(&of(&format!("rec{n}"))).unwrap();
        }
        assert_eq!(known(), MOST);
    }

    #[tokio::test]
    async fn a_tenant_reaches_neither_this_host_nor_the_clusters_database() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let layers = config::Layers::load(None, std::iter::empty()).unwrap();
        let mut config = config::Config::of(layers).unwrap();
        config.couchdb.url = url::Url::parse("http://db.example.com:5984").unwrap();
        let guard = Guard::for_stores(&config.destination, &config.storage);
        let servers = Servers::new(config.couchdb, guard);
        let of = |text: &str| Server::parse(text, 5984).unwrap();
        for (server, code) in [
            ("127.0.0.1", "AddressRefused:loopback"),
            ("[::1]", "AddressRefused:loopback"),
            ("169.254.169.254", "AddressRefused:metadata"),
            ("http://u:p@db.example.com:5984", "ClusterDatabase"),
        ] {
            let error = servers.client_of_tenant(&of(server)).err().unwrap();
            assert!(error.to_string().contains(code), "{server}: {error}");
            assert_eq!(error.fault(), crate::destination::Fault::Plan, "{server}");
            assert!(servers.client(&of(server)).is_ok(), "{server}");
        }
        // A name that leads to this host.
        let couch = servers.client_of_tenant(&of("localhost")).unwrap();
        let error = couch.ping().await.unwrap_err().to_string();
        assert!(error.contains("loopback"), "{error}");
    }
}
