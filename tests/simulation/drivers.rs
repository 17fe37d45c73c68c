//! The driver that workers run, over the simulated world. What would be I/O there is a question to the world here; the world answers when its
//! seed says so, or the worker dies before or after it.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use kz_record_call::entry::Entry;
use kz_record_call::flow::driver::{Effects, EntryStore, Host, survive};
use kz_record_call::flow::in_flight::Mailbox;
use kz_record_call::kazoo::time::Clock;
use kz_record_call::ledger::{Address, Lease, Promise, Receipt};
use kz_record_call::lifecycle::{Case, Effect, Input, Policy};
use kz_record_call::recording::identity::Key;
use tokio_util::sync::CancellationToken;

use crate::world::{Content, LEASE, Message};

/// What a driver asks the world.
pub enum Ask {
    Perform(Box<Entry>, Effect, Option<Content>),
    Known(Key),
}

/// What the world answers.
pub enum Reply {
    Performed(Option<Input>, Option<Content>),
    Panic,
    /// `None`: the ledger does not answer.
    Known(Option<Option<Entry>>),
}

/// What waits for the writer of a worker's ledger.
pub struct Note {
    pub entry: Entry,
    pub lease: Option<Lease>,
    pub done: Option<Promise>,
    /// The message that is acknowledged when this is written.
    pub unacked: Option<Message>,
}

/// What the tasks of one worker share.
pub struct Crew {
    pub policy: Policy,
    pub clock: Clock,
    pub stop: CancellationToken,
    pub notes: Mutex<VecDeque<Note>>,
}

/// Where one driver and the world meet.
#[derive(Default)]
pub struct Slot {
    pub ask: Option<Ask>,
    reply: Option<Reply>,
    /// The task holds audio whose switch waits for an answer.
    pub holds: bool,
}

/// A recording in flight.
pub struct Task {
    driving: Pin<Box<dyn Future<Output = ()>>>,
    pub slot: Arc<Mutex<Slot>>,
}

struct Services {
    crew: Arc<Crew>,
    slot: Arc<Mutex<Slot>>,
}

impl Task {
    pub fn begin(crew: &Arc<Crew>, entry: Entry, input: Input, mailbox: Mailbox) -> Self {
        let slot = Arc::<Mutex<Slot>>::default();
        let services = Services {
            crew: Arc::clone(crew),
            slot: Arc::clone(&slot),
        };
        let driving = async move {
            let crew = &services.crew;
            let host = Host {
                policy: &crew.policy,
                clock: &crew.clock,
                stop: &crew.stop,
                lease: LEASE,
                linger: Duration::from_secs(1),
            };
            survive((&services, &services, host), entry, input, mailbox).await;
        };
        Self {
            driving: Box::pin(driving),
            slot,
        }
    }

    /// Lets the driver go on. `true` when it has let its recording go.
    pub fn poll(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        self.driving.as_mut().poll(&mut context) == Poll::Ready(())
    }

    pub fn asks(&self) -> bool {
        self.slot.lock().unwrap().ask.is_some()
    }

    pub fn answer(&self, reply: Reply) {
        let mut slot = self.slot.lock().unwrap();
        slot.ask = None;
        slot.reply = Some(reply);
    }
}

impl Services {
    async fn ask(&self, ask: Ask) -> Reply {
        self.slot.lock().unwrap().ask = Some(ask);
        poll_fn(|_| match self.slot.lock().unwrap().reply.take() {
            Some(reply) => Poll::Ready(reply),
            None => Poll::Pending,
        })
        .await
    }
}

impl Effects for Services {
    type Upload = Content;

    async fn perform(&self, case: &Case, effect: Effect, hand: &mut Option<Content>) -> Option<Input> {
        let ask = Ask::Perform(Box::new(case.entry.clone()), effect, hand.clone());
        match self.ask(ask).await {
            Reply::Performed(input, left) => {
                self.slot.lock().unwrap().holds = left.is_some();
                *hand = left;
                input
            }
            // Without the panic hook, which would print it.
            Reply::Panic => std::panic::resume_unwind(Box::new("x")),
            Reply::Known(_) => unreachable!("the world answered another question"),
        }
    }

    fn keep(&self, _: Content) {
        self.slot.lock().unwrap().holds = false;
    }

    fn panicked(&self, _: &Entry, _: &str) {
        self.slot.lock().unwrap().holds = false;
    }

    fn stepped(&self, _: &Entry, _: &Entry) {}
}

impl EntryStore for Services {
    async fn known(&self, address: &Address) -> Option<Option<Entry>> {
        match self.ask(Ask::Known(address.key)).await {
            Reply::Known(known) => known,
            _ => unreachable!("the world answered another question"),
        }
    }

    async fn note(&self, entry: &Entry, lease: Option<Lease>, _: Duration) -> Receipt {
        let (promise, receipt) = Receipt::promised();
        self.crew.notes.lock().unwrap().push_back(Note {
            entry: entry.clone(),
            lease,
            done: Some(promise),
            unacked: None,
        });
        receipt
    }

    fn lease(&self, duration: Duration) -> Lease {
        let now = self.crew.clock.now();
        Lease {
            by: self.crew.policy.worker.clone(),
            until: now.plus(duration),
            stamped: now,
        }
    }

    fn no_lease(&self) -> Lease {
        let now = self.crew.clock.now();
        Lease {
            by: String::new(),
            until: now,
            stamped: now,
        }
    }
}
