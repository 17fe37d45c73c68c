//! What a worker takes up: the production sweep, and what it needs of a worker.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use kz_record_call::config::{Config, Layers};
use kz_record_call::entry::Entry;
use kz_record_call::flow::common::{Common, Tasks};
use kz_record_call::flow::in_flight::Mailbox;
use kz_record_call::flow::sweep::{Limits, Resume, Sweep};
use kz_record_call::kazoo::envelope::Sender;
use kz_record_call::kazoo::time::Clock;
use kz_record_call::lifecycle::{Input, Policy};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::collect::SLOTS;
use crate::worker::{LEASE, Worker};

pub const ZONE: &str = "local";

/// So few that the recordings of a life reach them.
const LIMITS: Limits = Limits { take: 8, in_flight: 4 };

static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let environment = [("KZ_RECORD_CALL__COUCHDB__URL".to_owned(), "http://h:1".to_owned())];
    let mut config = Config::of(Layers::load(None, environment.into_iter()).unwrap()).unwrap();
    config.ledger.poll = Duration::from_secs(40);
    config.ledger.lease = LEASE;
    config.kazoo.zone = ZONE.to_owned();
    config.ingest.per_switch = SLOTS;
    config
});

/// What every service of a worker shares.
pub fn common(host: usize, clock: &Clock, policy: &Policy, stop: &CancellationToken) -> Arc<Common> {
    let node = format!("kz_record_call@{host}");
    Arc::new(Common {
        config: CONFIG.clone(),
        sender: Sender { node },
        clock: clock.clone(),
        policy: policy.clone(),
        tasks: Tasks::new(TaskTracker::new(), stop.clone()),
    })
}

impl Resume for Worker {
    fn begin(self: &Arc<Self>, entry: Entry, input: Input, mailbox: Mailbox) {
        self.note(|| format!("takes up {}", entry.key));
        self.drive(entry, input, mailbox);
    }

    fn ledger_is_back(&self) {}
}

/// Begins to sweep, to reconcile, and to merge what a parted cluster wrote twice.
pub fn begin(worker: &Arc<Worker>) {
    let sweep = Arc::new(Sweep {
        common: Arc::clone(&worker.common),
        ledger: worker.ledger.clone(),
        memory: Arc::clone(&worker.memory),
        in_flight: worker.hands.clone(),
        peers: Arc::clone(&worker.peers),
        drivers: Arc::clone(worker),
        limits: LIMITS,
    });
    worker.spawn(Arc::clone(&sweep).run());
    worker.spawn(reconcile(Arc::clone(worker), sweep));
    worker.spawn(mend(Arc::clone(worker)));
    worker.spawn(beat(Arc::clone(worker)));
}

/// Events that were published while no queue was bound are lost: every open recording is looked at.
async fn reconcile(worker: Arc<Worker>, sweep: Arc<Sweep<Worker>>) {
    let mut sessions = worker.session.subscribe();
    sessions.mark_changed();
    while sessions.changed().await.is_ok() {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let open = loop {
            if let Ok(open) = worker.ledger.open(ZONE).await {
                break open;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        for address in worker.world.shuffled(open) {
            sweep.take(vec![(address, None)], &Input::Doubt, false).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn mend(worker: Arc<Worker>) {
    loop {
        tokio::time::sleep(worker.world.between(45_000, 75_000)).await;
        if worker.ledger.is_up() {
            let _ = worker.ledger.mend().await;
        }
    }
}

/// Heartbeats of all workers that live.
async fn beat(worker: Arc<Worker>) {
    loop {
        let names: Vec<String> = {
            let workers = worker.world.workers.lock().unwrap();
            workers.iter().flatten().map(|worker| worker.name.clone()).collect()
        };
        if !worker.world.trouble().alarm {
            names.iter().for_each(|name| worker.peers.heard(name));
        }
        tokio::time::sleep(Duration::from_secs(14)).await;
    }
}
