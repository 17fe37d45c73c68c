//! The composition of deliveries: which service gets what.

use std::sync::Arc;

use crate::config::Adopt;
use crate::destination::circuit_breaker::{CircuitBreakers, Pauses};
use crate::destination::couchdb_write::months::Months;
use crate::destination::servers::Servers;
use crate::destination::url::guard::Guard;
use crate::destination::{Destinations, Home, Means};
use crate::flow::common::Common;
use crate::flow::deliveries::{Chooser, Deliverer, Deliveries, Documents, KazooCopies, Names, Proof, Shares};
use crate::flow::inbox::first_looks::FirstLooks;
use crate::flow::journal::Journal;
use crate::system_config::Accounts;

use super::build::Outside;

/// Builds the services that bring audio to its destination.
pub(super) fn deliveries(
    common: &Arc<Common>,
    outside: &Outside,
    accounts: &Accounts,
    journal: &Arc<Journal>,
) -> Deliveries {
    let config = &common.config;
    let pauses = Pauses {
        first: config.destination.first_pause,
        longest: config.destination.longest_pause,
    };
    let months = Arc::new(Months::new(
        outside.couch.clone(),
        (outside.publisher.clone(), common.sender.clone()),
        common.clock.clone(),
        config.destination.clone(),
    ));
    let destinations = Arc::new(Destinations::new(&Means {
        home: Home::new(outside.couch.clone(), &config.couchdb.url),
        months: Arc::clone(&months),
        system_config: outside.system_config.clone(),
        accounts: accounts.clone(),
        servers: Servers::new(
            config.couchdb.clone(),
            Guard::for_stores(&config.destination, &config.storage),
        ),
        users: outside.http.0.clone(),
        cluster: outside.http.1.clone(),
        stores: outside.stores.clone(),
    }));
    let breakers = Arc::new(CircuitBreakers::new(common.clock.clone(), pauses));
    Deliveries {
        chooser: Chooser {
            common: Arc::clone(common),
            ledger: outside.ledger.clone(),
            system_config: outside.system_config.clone(),
            accounts: accounts.clone(),
        },
        deliverer: Deliverer {
            common: Arc::clone(common),
            destinations: Arc::clone(&destinations),
            breakers: Arc::clone(&breakers),
            hold: outside.hold.clone(),
            shares: Shares::new(config),
            names: Names {
                ledger: outside.ledger.clone(),
                journal: Arc::clone(journal),
            },
        },
        documents: Documents {
            common: Arc::clone(common),
            destinations: Arc::clone(&destinations),
            months,
            publisher: outside.publisher.clone(),
        },
        kazoo_copies: Arc::new(KazooCopies {
            common: Arc::clone(common),
            destinations: Arc::clone(&destinations),
            system_config: outside.system_config.clone(),
            accounts: accounts.clone(),
            turns: KazooCopies::turns(),
        }),
        proof: Arc::new(Proof {
            common: Arc::clone(common),
            destinations,
            breakers,
        }),
    }
}

/// What looks for the recordings of Kazoo's own recorder, if the worker watches those.
pub(super) fn first_looks(adopt: &Adopt, deliveries: &Deliveries) -> Option<Arc<FirstLooks>> {
    let looks = || Arc::new(FirstLooks::new(&deliveries.kazoo_copies, adopt.batch));
    adopt.mode.watches().then(looks)
}
