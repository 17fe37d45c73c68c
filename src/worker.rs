//! The composition: builds the parts, spawns, supervises, drains. Only this file knows all parts.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admin::{self, Instruments, Readiness};
use crate::amqp::{Brokers, Consumers, Delivery, Publisher, Requests, Room};
use crate::config::Config;
use crate::couch::{self, Couch, CouchError};
use crate::destination::hold::Hold;
use crate::destination::http::{Http, NoClient};
use crate::destination::modb;
use crate::destination::servers::Servers;
use crate::destination::targets::{Pauses, Targets};
use crate::flow::alerts::Alerts;
use crate::flow::alive::{self, Alive};
use crate::flow::common::Common;
use crate::flow::crash::Crash;
use crate::flow::hands::Hands;
use crate::flow::notices::{self, Outbox, Replaced};
use crate::flow::pace::Pace;
use crate::flow::perform::{Parts, Slots};
use crate::flow::registry::Registry;
use crate::flow::{answers, dying, end, journal, start, stop, sweep};
use crate::ingest::{Ingest, Spool};
use crate::kazoo::envelope::Sender;
use crate::kazoo::names::APP_NAME;
use crate::kazoo::time::Clock;
use crate::ledger::Ledger;
use crate::lifecycle::Policy;
use crate::recording::carry::{Seal, derive_key};
use crate::system_config::{Accounts, SystemConfig};
use crate::telemetry::events::ProxiesIgnored;
use crate::telemetry::{Pulses, survive, survive_for_ever};

mod labels;
pub mod name;
mod queues;
mod service;
mod turns;

pub use queues::{ACTIONS, ENDINGS, topology};
use queues::{Gates, queues};
use service::Service;

/// Why a worker did not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("the spool folder {dir} cannot be used: {why}")]
    Spool { dir: String, why: std::io::Error },
    #[error("{what} cannot listen on {address}: {why}")]
    Listen {
        what: &'static str,
        address: String,
        why: std::io::Error,
    },
    #[error("the HTTP client cannot be built: {0}")]
    Http(CouchError),
}

/// A worker that runs.
pub struct Worker {
    parts: Arc<Parts>,
    tasks: TaskTracker,
    handlers: TaskTracker,
    stop: CancellationToken,
    close: CancellationToken,
    service: Service,
    admin: std::net::SocketAddr,
}

impl Worker {
    /// Builds the parts and starts them. Neither RabbitMQ nor CouchDB needs to be available yet.
    ///
    /// # Errors
    /// When this host does not allow it: a port cannot be bound, or the spool cannot be used.
    pub async fn start(config: Config, clock: Clock, instruments: Instruments) -> Result<Self, StartError> {
        labels::begin_at_zero();
        ProxiesIgnored {
            variables: &couch::ignored(),
        }
        .emit();
        let (tasks, handlers) = (TaskTracker::new(), TaskTracker::new());
        let (stop, close) = (CancellationToken::new(), CancellationToken::new());
        let sender = Sender {
            node: format!("{APP_NAME}@{}", config.kazoo.host),
        };
        let secret = secret(&config);
        let (service, pulses) = (Service::of_environment(), Pulses::default());

        let gates = Gates::default();
        // Steps that can fail for good come first: a failure here leaves no session to close.
        let spool = Spool::open(&config.spool.dir, config.spool.min_free_bytes).map_err(|why| StartError::Spool {
            dir: config.spool.dir.display().to_string(),
            why,
        })?;
        let ingest = Ingest::start(
            &config.ingest,
            &config.kazoo.host,
            &secret,
            spool,
            clock.clone(),
            &tasks,
            close.clone(),
        )
        .await
        .map_err(|why| StartError::Listen {
            what: "ingest",
            address: config.ingest.listen.to_string(),
            why,
        })?;
        let port = admin::listen(&config.admin).await.map_err(|why| StartError::Listen {
            what: "admin",
            address: config.admin.listen.to_string(),
            why,
        })?;
        let couch = Couch::new(&config.couchdb).map_err(StartError::Http)?;
        let hold = Hold::new(&config.hold, &config.couchdb, &couch).map_err(StartError::Http)?;
        let upload = |error: NoClient| StartError::Http(CouchError::NoAnswer(error.to_string()));
        let users = Http::for_users(&config.destination, clock.clone()).map_err(upload)?;
        let cluster = Http::trusting(&config.destination, clock.clone()).map_err(upload)?;

        let brokers = Brokers::new(&config.amqp);
        brokers.prefer_the_first(&config.amqp, &sender.node, &tasks, close.clone());
        // Bound before anything is published: an action that no queue is bound for crashes its callflow listener.
        let (consumers, receivers) = Consumers::start(
            &config.amqp,
            &brokers,
            &sender.node,
            queues(&config, &gates),
            (&tasks, &pulses),
            stop.clone(),
            close.clone(),
        );
        let publisher = Publisher::start(
            &config.amqp,
            &brokers,
            &sender.node,
            clock.clone(),
            (&tasks, &pulses),
            close.clone(),
        );

        // Before the first request to the database.
        let turns = turns::turns(&publisher);
        let credentials = couch::join(derive_key(&secret, "kz_record_call credentials 1"), turns);

        let system_config = SystemConfig::start(
            couch.clone(),
            config.kazoo.zone.clone(),
            config.kazoo.config_poll,
            &tasks,
            stop.clone(),
        );
        let accounts = Accounts::new(couch.clone());
        let servers = Servers::new(config.couchdb.clone());
        let pauses = Pauses {
            first: config.destination.first_pause,
            longest: config.destination.longest_pause,
        };
        let targets = Targets::new(clock.clone(), pauses);
        let policy = Policy::of(&config, name::of_process(&config.kazoo.host));
        let policy_worker = policy.worker.clone();
        let ledger = { Ledger::start(couch.clone(), clock.clone(), &policy, (&tasks, &pulses), close.clone()) };
        gates.open(&ledger, config.ledger.patience, &tasks, stop.clone());
        let alerts = Alerts::new(config.kazoo.system_alerts, &publisher, &sender, &handlers, &stop);
        let parts = Arc::new(Parts {
            seal: Seal::new(&secret),
            publisher,
            consumers,
            requests: Requests::default(),
            room: Room::default(),
            couch,
            system_config,
            ingest,
            ledger,
            hold,
            registry: Registry::default(),
            replaced: Replaced::default(),
            outbox: Outbox::default(),
            hands: Hands::default(),
            alive: Alive::new(&policy_worker),
            pace: Pace::new(config.flow.pace_per_second),
            begun: tokio::time::Instant::now(),
            switches: Slots::new(config.ingest.per_switch),
            hosts: Slots::new(config.destination.per_host),
            outward: Slots::new(config.ingest.per_switch.saturating_sub(1).max(1)),
            shares: Slots::new((config.ingest.per_switch / 2).max(1)),
            users,
            cluster,
            accounts,
            servers,
            targets,
            whole: modb::Whole::default(),
            alerts,
            crash: Crash::from_environment(),
            tasks: handlers.clone(),
            common: Arc::new(Common {
                config,
                sender,
                clock,
                policy,
                stop: stop.clone(),
            }),
        });
        let readiness = Readiness::new(Arc::clone(&parts));
        let checks = admin::watch::start(&readiness, &tasks, close.clone());
        let admin = port.serve(readiness, instruments, pulses.clone(), &tasks, close.clone());
        let sessions = parts.consumers.watch();
        service.start(
            checks,
            sessions,
            parts.hands.clone(),
            pulses.clone(),
            &tasks,
            close.clone(),
        );
        let worker = Self {
            parts,
            tasks,
            handlers,
            stop,
            close,
            service,
            admin,
        };
        worker.consume(receivers);
        let sweep = survive_for_ever("sweep", background(&worker.parts, sweep::run));
        worker.tasks.spawn(pulses.beat("sweep", sweep));
        for (name, work) in [
            ("reconcile", background(&worker.parts, sweep::reconcile)),
            ("retain", background(&worker.parts, sweep::retain)),
            ("mend", background(&worker.parts, sweep::mend)),
            ("heartbeat", background(&worker.parts, alive::beat)),
        ] {
            worker.tasks.spawn(survive_for_ever(name, work));
        }
        let sharing = notices::share(Arc::clone(&worker.parts), credentials);
        worker.tasks.spawn(survive("credentials", sharing));
        info!(event = "worker_started",
            node = worker.parts.common.sender.node,
            ingest = %worker.parts.ingest.base(),
            admin = %worker.admin,
            zone = worker.parts.common.config.kazoo.zone,
            "worker started"
        );
        Ok(worker)
    }

    /// Where `/livez`, `/readyz`, `/metrics` and `/log-level` are.
    pub fn admin(&self) -> std::net::SocketAddr {
        self.admin
    }

    /// Reloads what may be replaced while the worker runs: the certificate for uploads.
    pub fn reload(&self) {
        self.parts.ingest.read_certificate_again();
    }

    /// Drains the worker. It accepts no new deliveries, and finishes or returns those in flight within `grace`. Then the
    /// connections close.
    pub async fn drain(self, grace: Duration) {
        info!(
            event = "draining",
            grace_s = grace.as_secs(),
            recordings = self.parts.hands.count(),
            tasks = self.handlers.len(),
            "draining"
        );
        self.service.stopping(grace);
        self.stop.cancel();
        self.handlers.close();
        if tokio::time::timeout(grace, self.handlers.wait()).await.is_err() {
            warn!(event = "drain_timeout", left = self.handlers.len(), "drain timed out");
        }
        self.close.cancel();
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(5), self.tasks.wait())
            .await
            .is_err()
        {
            warn!(
                event = "connections_not_closed",
                left = self.tasks.len(),
                "connections not closed in time"
            );
        }
        info!(event = "stopped", "stopped");
    }

    fn consume(&self, receivers: Vec<mpsc::Receiver<Delivery>>) {
        let mut receivers = receivers.into_iter();
        let mut next = || receivers.next();
        if let Some(actions) = next() {
            self.each(start::QUEUE, actions, |parts, delivery| async move {
                start::handle(&parts, delivery).await
            });
        }
        if let Some(endings) = next() {
            self.each("endings", endings, |parts, delivery| async move {
                end::handle(&parts, delivery).await
            });
        }
        if let Some(replies) = next() {
            let parts = Arc::clone(&self.parts);
            let receiving = receive("replies", self.parts.clone(), replies, move |delivery| {
                if let Ok(envelope) = delivery.envelope() {
                    parts.requests.reply(envelope);
                }
            });
            self.tasks.spawn(survive("replies", receiving));
        }
        if let Some(notices) = next() {
            let parts = Arc::clone(&self.parts);
            let receiving = receive("notices", self.parts.clone(), notices, move |delivery| {
                notices::handle(&parts, &delivery)
            });
            self.tasks.spawn(survive("notices", receiving));
        }
        if let Some(journal) = next() {
            self.each("journal", journal, |parts, delivery| async move {
                journal::handle(&parts, delivery).await
            });
        }
        if let Some(answers) = next() {
            self.each("answers", answers, |parts, delivery| async move {
                answers::handle(&parts, delivery).await
            });
        }
        if let Some(controls) = next() {
            self.each("controls", controls, |parts, delivery| async move {
                stop::handle(&parts, delivery).await
            });
        }
    }

    /// Spawns a task for each delivery, so that a delivery that waits blocks no other one. The prefetch limits the number of tasks.
    fn each<F, T>(&self, queue: &'static str, mut deliveries: mpsc::Receiver<Delivery>, handle: F)
    where
        F: Fn(Arc<Parts>, Delivery) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let (parts, handlers) = (Arc::clone(&self.parts), self.handlers.clone());
        let receiving = async move {
            while let Some(delivery) = deliveries.recv().await {
                let (parts, spare) = (Arc::clone(&parts), delivery.spare());
                let work = handle(Arc::clone(&parts), delivery);
                handlers.spawn(async move { dying::watched(&parts, queue, spare, work).await });
            }
        };
        self.tasks.spawn(survive(queue, receiving));
    }
}

/// Returns a closure that starts work which runs until the worker ends.
fn background<F: Future<Output = ()> + Send + 'static>(
    parts: &Arc<Parts>,
    work: fn(Arc<Parts>) -> F,
) -> Box<dyn FnMut() -> Turn + Send> {
    let parts = Arc::clone(parts);
    Box::new(move || -> Turn { Box::pin(work(Arc::clone(&parts))) })
}

type Turn = Pin<Box<dyn Future<Output = ()> + Send>>;

async fn receive(
    queue: &'static str,
    parts: Arc<Parts>,
    mut deliveries: mpsc::Receiver<Delivery>,
    handle: impl Fn(Delivery),
) {
    while let Some(delivery) = deliveries.recv().await {
        let _room = parts.room.of(&delivery).await;
        dying::survived(queue, delivery, &handle);
    }
}

/// The cluster's secret, or a random one for this process.
fn secret(config: &Config) -> Vec<u8> {
    match &config.secret {
        Some(secret) => secret.expose_secret().as_bytes().to_vec(),
        None => {
            warn!(
                event = "secret_random",
                "no secret set, random secret in use; set KZ_RECORD_CALL__SECRET"
            );
            let mut secret = uuid::Uuid::new_v4().into_bytes().to_vec();
            secret.extend(uuid::Uuid::new_v4().into_bytes());
            secret
        }
    }
}
