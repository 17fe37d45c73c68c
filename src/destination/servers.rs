//! Clients of database servers outside the cluster: a third party's, or a storage plan's. Each client is created once, and kept while the
//! configuration names its server.

use std::sync::{Arc, Mutex, PoisonError};

use crate::config;
use crate::couch::{Couch, CouchError, Server};

/// Servers that are remembered. The least recently used one is forgotten first.
const MOST: usize = 16;

/// Creates clients. Cheap to clone.
#[derive(Clone)]
pub struct Servers {
    config: config::Couchdb,
    known: Arc<Mutex<Vec<(Server, Couch)>>>,
}

impl Servers {
    /// `config` is the cluster's own. Its time-outs apply to all servers.
    pub fn new(config: config::Couchdb) -> Self {
        Self {
            config,
            known: Arc::default(),
        }
    }

    /// The client of a server.
    ///
    /// # Errors
    /// When no client can be created, for example without any root certificate.
    pub fn client(&self, server: &Server) -> Result<Couch, CouchError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().position(|(other, _)| other == server);
        let entry = match found {
            Some(place) => known.remove(place),
            None => (server.clone(), Couch::elsewhere(server, &self.config)?),
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
        let servers = Servers::new(config::Config::of(layers).unwrap().couchdb);
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
}
