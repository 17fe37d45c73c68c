//! What the production collector reaches in the simulated world: files of switches, ecallmgrs, and destinations where it looks for audio.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use kz_record_call::couch::Couch;
use kz_record_call::destination::{
    Attempt, DeliveryError, Destination, Registry, Route, Search, find as find_delivery,
};
use kz_record_call::entry::Entry;
use kz_record_call::entry::fact::{Delivery, Destination as Kind, What};
use kz_record_call::entry::legs::Leg;
use kz_record_call::flow::common::Common;
use kz_record_call::flow::deliveries::Proofs;
use kz_record_call::flow::effects::collect::{
    CallState, Channels, Collector, Fetched, Files, InHand, Predecessors, Quiescence, Received,
};
use kz_record_call::flow::in_flight::InFlight;
use kz_record_call::flow::slots::Slots;
use kz_record_call::kazoo::leg::LegEvent;
use kz_record_call::kazoo::time::Clock;
use kz_record_call::ledger::Ledger;
use kz_record_call::lifecycle::{Answer, Case, Input};
use kz_record_call::recording::audio::Audio;
use kz_record_call::recording::digest::Digests;
use kz_record_call::recording::identity::Key;
use kz_record_call::recording::order::Order;

use crate::effects::{Services, document};
use crate::switch::Upload;
use crate::world::World;

/// Uploads at once, of one switch.
pub const SLOTS: usize = 2;

/// An upload in flight.
pub type Hand = InHand<Upload>;

/// The collector of a worker, in this world.
pub type Collects = Collector<Switches, Ecallmgrs, Places>;

/// The collector of a worker on this host.
pub fn collector(
    world: &Arc<World>,
    host: usize,
    common: &Arc<Common>,
    ledger: &Ledger,
    in_flight: &InFlight,
) -> Collects {
    Collector {
        common: Arc::clone(common),
        files: Switches(Arc::clone(world)),
        quiescence: Quiescence {
            common: Arc::clone(common),
            channels: Ecallmgrs(Arc::clone(world)),
        },
        predecessors: Predecessors { ledger: ledger.clone() },
        proof: Arc::new(Places::new(world, host, &common.clock)),
        in_flight: in_flight.clone(),
        switches: Slots::new(SLOTS),
    }
}

pub struct Switches(Arc<World>);

impl Files for Switches {
    type Upload = Upload;

    async fn fetch(&self, case: &Case, _: &Order, _: &str, _: &str) -> Fetched<Upload> {
        self.0.upload(self.0.root(case.entry.key)).await
    }

    fn remember_safe(&self, _: Key, _: &Digests) {}

    async fn is_shared(&self, _: &Entry, _: &Audio) -> bool {
        false
    }

    async fn is_kazoos_too(&self, _: &Entry) -> bool {
        false
    }
}

impl Received for Upload {
    fn audio(&self) -> &Audio {
        &self.audio
    }

    fn answer(self, answer: Answer) -> bool {
        self.world.answer(&self, answer == Answer::Release)
    }
}

pub struct Ecallmgrs(Arc<World>);

impl Channels for Ecallmgrs {
    async fn call(&self, order: &Order) -> CallState {
        let world = &self.0;
        tokio::time::sleep(world.between(1, 100)).await;
        let root = world.root(order.key);
        let call = world.switch.lock().unwrap().calls[&root].clone();
        let at = world.asked[&root].switch;
        // An ecallmgr that is away says nothing: the call may be bridged.
        match () {
            () if world.trouble().unlearned[at] => CallState::Over,
            () if world.trouble().cut[at] || call.bridged => CallState::Bridged,
            () if call.alive => CallState::Apart,
            () => CallState::Over,
        }
    }

    async fn is_gone(&self, leg: &str) -> bool {
        let world = &self.0;
        tokio::time::sleep(world.between(1, 100)).await;
        let mut all = world.asked.iter();
        let Some((key, asked)) = all.find(|(_, asked)| asked.other_leg() == leg) else {
            return true;
        };
        let lives = world.switch.lock().unwrap().calls[key].other_alive;
        let trouble = world.trouble();
        trouble.unlearned[asked.switch] || !trouble.cut[asked.switch] && !lives
    }
}

impl Services {
    /// The case, with the leg that events told workers of.
    pub fn with_legs(&self, case: &Case) -> Case {
        let (world, mut case) = (&self.0.world, case.clone());
        let root = world.root(case.entry.key);
        let call = world.switch.lock().unwrap().calls[&root].clone();
        if call.moved && call.other_known {
            let asked = &world.asked[&root];
            let leg = Leg {
                call_id: asked.order.call_id.clone(),
                event: LegEvent::Replaced,
                other: Some(asked.other_leg()),
                control: None,
                was_answered: None,
                stamp: None,
            };
            case.entry.add(self.0.fact(What::Leg(Box::new(leg))));
        }
        case
    }
}

/// The destinations, as a worker that looks for audio finds them.
pub struct Places {
    world: Arc<World>,
    clock: Clock,
    each: Vec<Place>,
}

impl Places {
    fn new(world: &Arc<World>, host: usize, clock: &Clock) -> Self {
        let place = |kind| Place {
            world: Arc::clone(world),
            host,
            kind,
        };
        Self {
            world: Arc::clone(world),
            clock: clock.clone(),
            each: Kind::ALL.into_iter().map(place).collect(),
        }
    }
}

impl Registry for Places {
    fn of(&self, kind: Kind) -> &dyn Destination {
        self.each.iter().find(|place| place.kind == kind).unwrap()
    }
}

impl Proofs for Places {
    async fn stored_already(&self, case: &Case, order: &Order) -> Result<Option<What>, DeliveryError> {
        tokio::time::sleep(self.world.between(1, 60)).await;
        find_delivery(self, &case.entry, order, self.clock.now()).await
    }

    async fn in_vain(&self, _: &Case, _: u32) -> Option<Input> {
        None
    }

    async fn stored_by_kazoo(&self, _: &Case) -> Option<Input> {
        None
    }
}

/// One destination, seen from one host.
struct Place {
    world: Arc<World>,
    host: usize,
    kind: Kind,
}

impl Place {
    fn look(&self, key: Key) -> Result<Option<What>, DeliveryError> {
        let world = &self.world;
        let answers = match self.kind.documents_first() {
            true => world.home_answers(self.host) == Some(true),
            false => !world.trouble().target_down,
        };
        if !answers {
            return Err(DeliveryError::Target("it does not answer".into()));
        }
        let places = world.places.lock().unwrap();
        let found = match self.kind {
            // The document says so only when it was completed.
            Kind::Url => places.completed.get(&key),
            kind => {
                let found = places.found(key, world.now());
                found
                    .filter(|stored| stored.destination == kind)
                    .map(|stored| &stored.content)
            }
        };
        Ok(found.map(|content| {
            let audio = content.audio();
            What::delivered(Delivery {
                destination: self.kind,
                document: document(key),
                sha256: Some(audio.digests.sha256.clone()),
                below_quorum: false,
                audio: Some(audio),
                deleted: false,
                edit_told: false,
                controls: Some(String::new()),
                again: 0,
            })
        }))
    }
}

fn unasked<T>() -> Result<T, DeliveryError> {
    Err(DeliveryError::Target("only looks are simulated here".into()))
}

impl Destination for Place {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn resolve<'a>(&'a self, _: &'a Entry) -> BoxFuture<'a, Result<Route, DeliveryError>> {
        Box::pin(async { unasked() })
    }

    fn documents<'a>(&'a self, _: &'a Entry) -> BoxFuture<'a, Result<Couch, DeliveryError>> {
        Box::pin(async { unasked() })
    }

    fn find<'a>(&'a self, search: &'a Search<'a>) -> BoxFuture<'a, Result<Option<What>, DeliveryError>> {
        Box::pin(async { self.look(search.entry.key) })
    }

    fn send<'a>(&'a self, _: &'a Route, _: &'a Attempt<'a>) -> BoxFuture<'a, Result<What, DeliveryError>> {
        Box::pin(async { unasked() })
    }
}
