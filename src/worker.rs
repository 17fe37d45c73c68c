//! The composition: builds the parts, spawns, supervises, drains. Only this file knows all parts.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use secrecy::ExposeSecret as _;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admin::{self, Instruments, Readiness, Watched};
use crate::amqp::{Brokers, Consumers, Delivery, Publisher};
use crate::config::Config;
use crate::couch::{self, Couch, CouchError};
use crate::destination::storage_plan::native::Stores;
use crate::destination::url::Uploads;
use crate::destination::url::http::{Http, NoClient};
use crate::flow::common::{Common, Tasks};
use crate::flow::heartbeat::Heartbeat;
use crate::flow::in_flight::InFlight;
use crate::flow::inbox::Inbox;
use crate::flow::inbox::first_looks::FirstLooks;
use crate::flow::journal::Moves;
use crate::flow::kazoo_recorder::KazooRecorder;
use crate::flow::reconcile::Reconcile;
use crate::flow::retention::Retention;
use crate::flow::sweep::Sweep;
use crate::flow::webhooks::{Endpoint, Outcomes, Webhook};
use crate::hold::Hold;
use crate::ingest::{Ingest, Spool};
use crate::kazoo::envelope::Sender;
use crate::kazoo::names::APP_NAME;
use crate::kazoo::time::Clock;
use crate::ledger::Ledger;
use crate::lifecycle::Policy;
use crate::recording::carry::derive_key;
use crate::system_config::SystemConfig;
use crate::telemetry::events::{ProxiesIgnored, WebhookKnown};
use crate::telemetry::{Pulses, survive, survive_for_ever};
use crate::webhook::Client;

mod build;
mod deliveries;
mod labels;
pub mod name;
mod queues;
mod service;
mod turns;

use build::{Background, Outside, build};
pub use queues::{ACTIONS, ENDINGS, topology};
use queues::{Gates, Handle, Queue, queues};
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
    common: Arc<Common>,
    ingest: Ingest,
    in_flight: InFlight,
    tasks: TaskTracker,
    handlers: TaskTracker,
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
        let hold = hold.within(config.ingest.delivery_timeout);
        let upload = |error: NoClient| StartError::Http(CouchError::NoAnswer(error.to_string()));
        let users = Uploads::new(&config.destination, clock.clone()).map_err(upload)?;
        let cluster = Http::trusting(&config.destination, clock.clone()).map_err(upload)?;
        let stores = Stores::new(&config, &clock).map_err(upload)?;

        let (outcomes, endpoints) = webhooks(&config).map_err(StartError::Http)?;

        let brokers = Brokers::new(&config.amqp);
        brokers.prefer_the_first(&config.amqp, &sender.node, &tasks, close.clone());
        let queues = queues(&config, &gates);
        // Bound before anything is published: an action that no queue is bound for crashes its callflow listener.
        let (consumers, receivers) = Consumers::start(
            &config.amqp,
            &brokers,
            &sender.node,
            queues.iter().map(|queue| queue.spec.clone()).collect(),
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
        let policy = Policy::of(&config, name::of_process(&config.kazoo.host));
        let ledger = Ledger::start(couch.clone(), clock.clone(), &policy, (&tasks, &pulses), close.clone());
        let moves: Arc<Moves> = Arc::default();
        gates.open(
            &ledger,
            Arc::clone(&moves),
            config.ledger.patience,
            &tasks,
            stop.clone(),
        );
        let common = Arc::new(Common {
            config,
            sender,
            clock,
            policy,
            tasks: Tasks::new(handlers.clone(), stop.clone()),
        });
        let outside = Outside {
            publisher,
            consumers,
            couch,
            ledger,
            hold,
            ingest,
            system_config,
            http: (users, cluster),
            outcomes,
            stores,
            moves,
        };
        let flow = build(&common, &outside, &secret, endpoints);
        let watched = Arc::new(Watched {
            common: Arc::clone(&common),
            publisher: outside.publisher,
            consumers: outside.consumers.clone(),
            couch: outside.couch,
            ingest: outside.ingest.clone(),
            ledger: outside.ledger,
            hold: outside.hold,
            targets: flow.targets,
        });
        let readiness = Readiness::new(watched);
        let checks = admin::watch::start(&readiness, &tasks, close.clone());
        let admin = port.serve(readiness, instruments, pulses.clone(), &tasks, close.clone());
        service.start(
            checks,
            outside.consumers.watch(),
            flow.in_flight.clone(),
            pulses.clone(),
            &tasks,
            close.clone(),
        );
        let worker = Self {
            common,
            ingest: outside.ingest,
            in_flight: flow.in_flight,
            tasks,
            handlers,
            close,
            service,
            admin,
        };
        worker.consume(&Arc::new(flow.inbox), queues, receivers);
        worker.work_in_background(flow.background, credentials, &pulses);
        for webhook in flow.webhooks {
            let sending = repeatedly(&webhook, Webhook::run);
            worker.tasks.spawn(survive_for_ever("webhooks", sending));
        }
        info!(event = "worker_started",
            node = worker.common.sender.node,
            ingest = %worker.ingest.base(),
            admin = %worker.admin,
            zone = worker.common.config.kazoo.zone,
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
        self.ingest.read_certificate_again();
    }

    /// Drains the worker. It accepts no new deliveries, and finishes or returns those in flight within `grace`. Then the
    /// connections close.
    pub async fn drain(self, grace: Duration) {
        info!(
            event = "draining",
            grace_s = grace.as_secs(),
            recordings = self.in_flight.count(),
            tasks = self.handlers.len(),
            "draining"
        );
        self.service.stopping(grace);
        self.common.stop().cancel();
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

    /// Has each queue's deliveries handled.
    fn consume(&self, inbox: &Arc<Inbox>, queues: Vec<Queue>, receivers: Vec<mpsc::Receiver<Delivery>>) {
        for (queue, deliveries) in queues.into_iter().zip(receivers) {
            let (name, inbox) = (queue.name, Arc::clone(inbox));
            match queue.handle {
                Handle::Each(handle) => {
                    let receiving = each(name, inbox, deliveries, handle, self.handlers.clone());
                    self.tasks.spawn(survive(name, receiving));
                }
                Handle::InOrder(handle) => {
                    let receiving = in_order(name, inbox, deliveries, handle);
                    self.tasks.spawn(survive(name, receiving));
                }
                Handle::Declared => {}
            }
        }
    }

    /// Starts what works until the worker ends.
    fn work_in_background(&self, background: Background, credentials: mpsc::Receiver<couch::News>, pulses: &Pulses) {
        let Background {
            sweep,
            reconcile,
            retention,
            heartbeat,
            notices,
            kazoo_recorder,
            first_looks,
        } = background;
        let sweeping = survive_for_ever("sweep", repeatedly(&sweep, Sweep::run));
        self.tasks.spawn(pulses.beat("sweep", sweeping));
        for (name, work) in [
            ("reconcile", repeatedly(&reconcile, Reconcile::run)),
            ("retain", repeatedly(&retention, Retention::retain)),
            ("mend", repeatedly(&retention, Retention::mend)),
            ("heartbeat", repeatedly(&heartbeat, Heartbeat::run)),
        ] {
            self.tasks.spawn(survive_for_ever(name, work));
        }
        if let Some(kazoo_recorder) = kazoo_recorder {
            let looking = repeatedly(&kazoo_recorder, KazooRecorder::run);
            self.tasks.spawn(survive_for_ever("kazoo_recorder", looking));
        }
        if let Some(first_looks) = first_looks {
            let looking = repeatedly(&first_looks, FirstLooks::run);
            self.tasks.spawn(survive_for_ever("first_looks", looking));
        }
        let sharing = async move { notices.share_credentials(credentials).await };
        self.tasks.spawn(survive("credentials", sharing));
    }
}

/// Handles each delivery in a task of its own.
async fn each(
    queue: &'static str,
    inbox: Arc<Inbox>,
    mut deliveries: mpsc::Receiver<Delivery>,
    handle: fn(Arc<Inbox>, Delivery) -> BoxFuture<'static, ()>,
    handlers: TaskTracker,
) {
    while let Some(delivery) = deliveries.recv().await {
        let (inbox, spare) = (Arc::clone(&inbox), delivery.spare());
        let work = handle(Arc::clone(&inbox), delivery);
        handlers.spawn(async move { inbox.guard.watch(queue, spare, work).await });
    }
}

/// Handles one delivery after the other.
async fn in_order(
    queue: &'static str,
    inbox: Arc<Inbox>,
    mut deliveries: mpsc::Receiver<Delivery>,
    handle: fn(&Inbox, &Delivery),
) {
    while let Some(delivery) = deliveries.recv().await {
        let handling = |delivery: &Delivery| handle(&inbox, delivery);
        inbox.guard.in_order(queue, &delivery, handling).await;
    }
}

/// Returns a closure that starts work which runs until the worker ends.
fn repeatedly<T: Send + Sync + 'static, F: Future<Output = ()> + Send + 'static>(
    service: &Arc<T>,
    work: fn(Arc<T>) -> F,
) -> Box<dyn FnMut() -> BoxFuture<'static, ()> + Send> {
    let service = Arc::clone(service);
    Box::new(move || Box::pin(work(Arc::clone(&service))))
}

/// The endpoints of operators, and what passes outcomes to them.
fn webhooks(config: &Config) -> Result<(Outcomes, Vec<Endpoint>), CouchError> {
    let settings = &config.webhooks;
    let mut clients = Vec::new();
    for endpoint in &settings.endpoints {
        let client = Client::new(endpoint, settings.timeout).map_err(CouchError::NoAnswer)?;
        WebhookKnown {
            endpoint: &endpoint.name,
        }
        .emit();
        clients.push((endpoint.name.clone(), client));
    }
    Ok(Outcomes::to(clients, settings.per_endpoint))
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
