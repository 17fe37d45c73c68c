//! The composition of the flow: which service gets what.

use std::sync::Arc;

use tokio::time::Instant;

use crate::amqp::{Consumers, Publisher, Requests, Room};
use crate::config::AdoptMode;
use crate::couch::Couch;
use crate::destination::circuit_breaker::CircuitBreakers;
use crate::destination::storage_plan::native::Stores;
use crate::destination::url::{Uploads, http::Http};
use crate::flow::common::Common;
use crate::flow::deliveries::Deliveries;
use crate::flow::drivers::Drivers;
use crate::flow::effects::Performer;
use crate::flow::effects::announce::Announcer;
use crate::flow::effects::calls::Calls;
use crate::flow::effects::collect::{Collector, Ecallmgrs, Fetcher, Predecessors, Quiescence};
use crate::flow::effects::commands::Commands;
use crate::flow::effects::hold::Holder;
use crate::flow::effects::segments::Segments;
use crate::flow::heartbeat::Heartbeat;
use crate::flow::in_flight::InFlight;
use crate::flow::inbox::actions::Actions;
use crate::flow::inbox::answers::Answers;
use crate::flow::inbox::call_events::CallEvents;
use crate::flow::inbox::control_actions::{AtOnce, Carrier, Controls, Finder};
use crate::flow::inbox::dead_letters::Returns;
use crate::flow::inbox::event_orders::EventOrders;
use crate::flow::inbox::first_looks::FirstLooks;
use crate::flow::inbox::journal::JournalMessages;
use crate::flow::inbox::kazoo_ends::KazooEnds;
use crate::flow::inbox::notices::Notices;
use crate::flow::inbox::panic_guard::PanicGuard;
use crate::flow::inbox::peers::PeerMessages;
use crate::flow::inbox::record_events::RecordEvents;
use crate::flow::inbox::request::ActionReader;
use crate::flow::inbox::starts::Starts;
use crate::flow::inbox::{Ends, Inbox};
use crate::flow::journal::{Journal, Moves};
use crate::flow::kazoo_recorder::KazooRecorder;
use crate::flow::memory::{Alerts, CallIds, OpenRecordings, Peers, RateLimit};
use crate::flow::peer_notices::{Outbox, PeerNotices};
use crate::flow::reconcile::Reconcile;
use crate::flow::retention::Retention;
use crate::flow::slots::Slots;
use crate::flow::sweep::{Limits, Sweep};
use crate::flow::webhooks::{Endpoint, Outcomes, Webhook};
use crate::hold::Hold;
use crate::ingest::Ingest;
use crate::ledger::Ledger;
use crate::recording::carry::Seal;
use crate::system_config::{Accounts, SystemConfig};

use super::deliveries::{deliveries, first_looks};

/// What is outside this process, by the clients that speak to it.
pub(super) struct Outside {
    pub publisher: Publisher,
    pub consumers: Consumers,
    pub couch: Couch,
    pub ledger: Ledger,
    pub hold: Hold,
    pub ingest: Ingest,
    pub system_config: SystemConfig,
    /// Uploads to users' URLs, and to servers that the operator named.
    pub http: (Uploads, Http),
    /// What passes outcomes to endpoints of operators.
    pub outcomes: Outcomes,
    /// Uploads to object stores.
    pub stores: Stores,
    /// What is on its way from the journal into the ledger.
    pub moves: Arc<Moves>,
}

/// What this process remembers. It is shared by many services.
struct Shared {
    memory: Arc<OpenRecordings>,
    call_ids: Arc<CallIds>,
    peers: Arc<Peers>,
    in_flight: InFlight,
    requests: Requests,
    /// The memory limit for decoding messages.
    room: Arc<Room>,
    seal: Arc<Seal>,
    accounts: Accounts,
    /// Set if it counts whether Kazoo's own recorder runs.
    kazoo_recorder: Option<Arc<KazooRecorder>>,
    /// Set if the worker watches what Kazoo's own recorder stores.
    first_looks: Option<Arc<FirstLooks>>,
}

/// What works in the background.
pub(super) struct Background {
    pub sweep: Arc<Sweep<Drivers>>,
    pub reconcile: Arc<Reconcile>,
    pub retention: Arc<Retention>,
    pub heartbeat: Arc<Heartbeat>,
    pub notices: Arc<PeerNotices>,
    pub kazoo_recorder: Option<Arc<KazooRecorder>>,
    pub first_looks: Option<Arc<FirstLooks>>,
}

/// The flow of a worker.
pub(super) struct Flow {
    pub inbox: Inbox,
    pub background: Background,
    pub in_flight: InFlight,
    pub targets: Arc<CircuitBreakers>,
    pub webhooks: Vec<Arc<Webhook>>,
}

/// Builds the flow.
pub(super) fn build(common: &Arc<Common>, outside: &Outside, secret: &[u8], endpoints: Vec<Endpoint>) -> Flow {
    let (accounts, adopt) = (Accounts::new(outside.couch.clone()), &common.config.adopt);
    let publisher = outside.publisher.clone();
    let journal = Arc::new(Journal::new(common, &outside.ledger, publisher, &outside.moves));
    let deliveries = deliveries(common, outside, &accounts, &journal);
    let targets = Arc::clone(&deliveries.deliverer.breakers);
    let shared = Shared {
        memory: Arc::default(),
        call_ids: Arc::default(),
        peers: Arc::new(Peers::new(&common.policy.worker)),
        in_flight: InFlight::default(),
        requests: Requests::default(),
        room: Arc::default(),
        seal: Arc::new(Seal::new(secret)),
        accounts,
        kazoo_recorder: (adopt.mode != AdoptMode::Off)
            .then(|| Arc::new(KazooRecorder::new(common, &outside.publisher))),
        first_looks: first_looks(adopt, &deliveries),
    };
    let calls = Arc::new(Calls {
        common: Arc::clone(common),
        publisher: outside.publisher.clone(),
        consumers: outside.consumers.clone(),
        requests: shared.requests.clone(),
        rate_limit: RateLimit::new(common.config.flow.pace_per_second),
        memory: Arc::clone(&shared.memory),
    });
    let notices = Arc::new(PeerNotices {
        common: Arc::clone(common),
        publisher: outside.publisher.clone(),
        memory: Arc::clone(&shared.memory),
        in_flight: shared.in_flight.clone(),
        outbox: Outbox::default(),
    });
    let drivers = Arc::new(Drivers {
        common: Arc::clone(common),
        performer: performer(common, outside, &shared, (&calls, &journal, deliveries)),
        ledger: outside.ledger.clone(),
        in_flight: shared.in_flight.clone(),
        memory: Arc::clone(&shared.memory),
        outcomes: outside.outcomes.clone(),
        consumers: outside.consumers.clone(),
        alerts: Alerts::new(
            common.config.kazoo.system_alerts,
            &outside.publisher,
            &common.sender,
            &common.tasks,
        ),
    });
    let webhook = |endpoint| {
        Arc::new(Webhook {
            common: Arc::clone(common),
            ledger: outside.ledger.clone(),
            in_flight: shared.in_flight.clone(),
            peers: Arc::clone(&shared.peers),
            breakers: Arc::clone(&targets),
            endpoint,
        })
    };
    let webhooks = endpoints.into_iter().map(webhook).collect();
    let background = background(common, outside, &shared, (&calls, &notices, &drivers));
    let inbox = inbox(common, outside, &shared, (calls, journal, notices, drivers));
    Flow {
        inbox,
        background,
        in_flight: shared.in_flight,
        targets,
        webhooks,
    }
}

fn performer(
    common: &Arc<Common>,
    outside: &Outside,
    shared: &Shared,
    (calls, journal, deliveries): (&Arc<Calls>, &Arc<Journal>, Deliveries),
) -> Performer {
    Performer {
        commands: Commands {
            common: Arc::clone(common),
            calls: Arc::clone(calls),
            call_ids: Arc::clone(&shared.call_ids),
            ledger: outside.ledger.clone(),
            memory: Arc::clone(&shared.memory),
            in_flight: shared.in_flight.clone(),
        },
        collector: Collector {
            common: Arc::clone(common),
            files: Fetcher {
                common: Arc::clone(common),
                ingest: outside.ingest.clone(),
                publisher: outside.publisher.clone(),
                consumers: outside.consumers.clone(),
                requests: shared.requests.clone(),
                memory: Arc::clone(&shared.memory),
                ledger: outside.ledger.clone(),
                kazoo_recorder: shared.kazoo_recorder.clone(),
            },
            quiescence: Quiescence {
                common: Arc::clone(common),
                channels: Ecallmgrs {
                    calls: Arc::clone(calls),
                    call_ids: Arc::clone(&shared.call_ids),
                },
            },
            predecessors: Predecessors {
                ledger: outside.ledger.clone(),
            },
            proof: Arc::clone(&deliveries.proof),
            in_flight: shared.in_flight.clone(),
            switches: Slots::new(common.config.ingest.per_switch),
        },
        holder: Holder {
            common: Arc::clone(common),
            hold: outside.hold.clone(),
        },
        segments: Segments {
            common: Arc::clone(common),
            journal: Arc::clone(journal),
            memory: Arc::clone(&shared.memory),
            in_flight: shared.in_flight.clone(),
        },
        announcer: Announcer {
            common: Arc::clone(common),
            publisher: outside.publisher.clone(),
        },
        deliveries,
    }
}

fn background(
    common: &Arc<Common>,
    outside: &Outside,
    shared: &Shared,
    (calls, notices, drivers): (&Arc<Calls>, &Arc<PeerNotices>, &Arc<Drivers>),
) -> Background {
    let sweep = Arc::new(Sweep {
        common: Arc::clone(common),
        ledger: outside.ledger.clone(),
        memory: Arc::clone(&shared.memory),
        in_flight: shared.in_flight.clone(),
        peers: Arc::clone(&shared.peers),
        drivers: Arc::clone(drivers),
        limits: Limits::default(),
    });
    Background {
        reconcile: Arc::new(Reconcile {
            common: Arc::clone(common),
            consumers: outside.consumers.clone(),
            ledger: outside.ledger.clone(),
            calls: Arc::clone(calls),
            sweep: Arc::clone(&sweep),
        }),
        retention: Arc::new(Retention {
            common: Arc::clone(common),
            couch: outside.couch.clone(),
            ledger: outside.ledger.clone(),
            hold: outside.hold.clone(),
            sweep: Arc::clone(&sweep),
        }),
        sweep,
        heartbeat: Arc::new(Heartbeat {
            common: Arc::clone(common),
            notices: Arc::clone(notices),
            in_flight: shared.in_flight.clone(),
        }),
        notices: Arc::clone(notices),
        kazoo_recorder: shared.kazoo_recorder.clone(),
        first_looks: shared.first_looks.clone(),
    }
}

type Services = (Arc<Calls>, Arc<Journal>, Arc<PeerNotices>, Arc<Drivers>);

fn inbox(common: &Arc<Common>, outside: &Outside, shared: &Shared, services: Services) -> Inbox {
    let returns = Arc::new(Returns {
        common: Arc::clone(common),
        publisher: outside.publisher.clone(),
    });
    let reader = Arc::new(ActionReader {
        common: Arc::clone(common),
        seal: Arc::clone(&shared.seal),
        system_config: outside.system_config.clone(),
        room: Arc::clone(&shared.room),
    });
    let answers = Arc::new(Answers {
        common: Arc::clone(common),
        calls: Arc::clone(&services.0),
        publisher: outside.publisher.clone(),
        call_ids: Arc::clone(&shared.call_ids),
        returns: Arc::clone(&returns),
        room: Arc::clone(&shared.room),
    });
    let controls = Arc::new(Controls {
        common: Arc::clone(common),
        reader: Arc::clone(&reader),
        carrier: carrier(common, outside, shared, &services),
        finder: finder(outside, shared, &services),
        journal: Arc::clone(&services.1),
        answers: Arc::clone(&answers),
        returns: Arc::clone(&returns),
        begun: Instant::now(),
    });
    let notices = messages(common, outside, shared, &services);
    let (calls, journal, peer_notices, drivers) = services;
    Inbox {
        actions: Actions {
            common: Arc::clone(common),
            reader,
            starts: Starts {
                common: Arc::clone(common),
                calls,
                answers: Arc::clone(&answers),
                memory: Arc::clone(&shared.memory),
                ledger: outside.ledger.clone(),
                journal,
                notices: Arc::clone(&peer_notices),
                drivers: Arc::clone(&drivers),
            },
            controls: Arc::clone(&controls),
            answers: Arc::clone(&answers),
            returns: Arc::clone(&returns),
            memory: Arc::clone(&shared.memory),
        },
        controls,
        ends: Ends {
            kazoos: kazoo_ends(common, outside, shared, &returns),
            own: RecordEvents {
                common: Arc::clone(common),
                orders: EventOrders {
                    common: Arc::clone(common),
                    seal: Arc::clone(&shared.seal),
                    memory: Arc::clone(&shared.memory),
                    kazoo_recorder: shared.kazoo_recorder.clone(),
                },
                memory: Arc::clone(&shared.memory),
                ledger: outside.ledger.clone(),
                notices: peer_notices,
                drivers,
                returns: Arc::clone(&returns),
                room: Arc::clone(&shared.room),
            },
        },
        journal: JournalMessages {
            common: Arc::clone(common),
            ledger: outside.ledger.clone(),
            moves: Arc::clone(&outside.moves),
            returns: Arc::clone(&returns),
            room: Arc::clone(&shared.room),
        },
        notices,
        requests: shared.requests.clone(),
        guard: PanicGuard {
            answers: Arc::clone(&answers),
            returns,
            room: Arc::clone(&shared.room),
        },
        answers,
    }
}

fn kazoo_ends(common: &Arc<Common>, outside: &Outside, shared: &Shared, returns: &Arc<Returns>) -> Option<KazooEnds> {
    let looks = shared.first_looks.clone()?;
    Some(KazooEnds {
        common: Arc::clone(common),
        looks,
        ledger: outside.ledger.clone(),
        returns: Arc::clone(returns),
        room: Arc::clone(&shared.room),
    })
}

fn finder(outside: &Outside, shared: &Shared, (calls, journal, ..): &Services) -> Arc<Finder> {
    Arc::new(Finder {
        memory: Arc::clone(&shared.memory),
        ledger: outside.ledger.clone(),
        journal: Arc::clone(journal),
        calls: Arc::clone(calls),
        call_ids: Arc::clone(&shared.call_ids),
    })
}

fn carrier(common: &Arc<Common>, outside: &Outside, shared: &Shared, services: &Services) -> Carrier {
    let (calls, journal, notices, drivers) = services;
    Carrier {
        common: Arc::clone(common),
        calls: Arc::clone(calls),
        at_once: AtOnce {
            finder: finder(outside, shared, services),
        },
        memory: Arc::clone(&shared.memory),
        ledger: outside.ledger.clone(),
        journal: Arc::clone(journal),
        notices: Arc::clone(notices),
        drivers: Arc::clone(drivers),
    }
}

fn messages(common: &Arc<Common>, outside: &Outside, shared: &Shared, services: &Services) -> Notices {
    let (_, _, notices, drivers) = services;
    Notices {
        call_events: CallEvents {
            common: Arc::clone(common),
            memory: Arc::clone(&shared.memory),
            call_ids: Arc::clone(&shared.call_ids),
            drivers: Arc::clone(drivers),
            ledger: outside.ledger.clone(),
        },
        peers: PeerMessages {
            memory: Arc::clone(&shared.memory),
            peers: Arc::clone(&shared.peers),
            notices: Arc::clone(notices),
            drivers: Arc::clone(drivers),
        },
        accounts: shared.accounts.clone(),
        system_config: outside.system_config.clone(),
    }
}
