//! A worker: what it remembers, what it consumes, what it takes up.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kz_record_call::entry::Entry;
use kz_record_call::entry::fact::{Fact, What};
use kz_record_call::flow::common::Common;
use kz_record_call::flow::deliveries::Shares;
use kz_record_call::flow::driver::{Host, survive};
use kz_record_call::flow::effects::segments::Segments;
use kz_record_call::flow::in_flight::{InFlight, Mailbox};
use kz_record_call::flow::journal::Journal;
use kz_record_call::flow::memory::{OpenRecordings, Peers};
use kz_record_call::kazoo::time::{Clock, Moment};
use kz_record_call::ledger::Ledger;
use kz_record_call::lifecycle::{Input, Policy};
use kz_record_call::recording::identity::Key;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::broker::{Confirming, Notice, QUEUES};
use crate::collect::Collects;
use crate::couch::Client;
use crate::gate::Gate;
use crate::world::World;

pub const LEASE: Duration = Duration::from_secs(300);
pub const LINGER: Duration = Duration::from_secs(1);

pub fn policy(worker: String) -> Policy {
    Policy {
        worker,
        // Shorter than a worker's default, so that recordings are parked while things still go wrong.
        retry: [5, 30, 120, 300].map(Duration::from_secs).to_vec(),
        jitter: 20,
        max_attempts: 8,
        hold: true,
        hold_pause: Duration::from_secs(60),
        hold_retention: None,
        looks: [60, 120, 240].map(Duration::from_secs).to_vec(),
        start_timeout: Duration::from_secs(30),
        check_interval: Duration::from_secs(300),
        grace: Duration::from_secs(60),
        probe_gap: Duration::from_secs(60),
        stop_repeats: [2, 5, 15].map(Duration::from_secs).to_vec(),
        stop_alarm: Duration::from_secs(30),
        rescue: false,
        hooks: kz_record_call::lifecycle::Hooks::default(),
    }
}

pub struct Worker {
    pub world: Arc<World>,
    pub n: usize,
    pub name: String,
    pub policy: Policy,
    pub clock: Clock,
    pub ledger: Ledger,
    pub hands: InFlight,
    pub stop: CancellationToken,
    pub common: Arc<Common>,
    pub collector: Collects,
    pub journal: Arc<Journal<Confirming>>,
    pub shares: Shares,
    pub segments: Segments<Confirming>,
    pub memory: Arc<OpenRecordings>,
    pub peers: Arc<Peers>,
    tasks: Mutex<Option<JoinSet<()>>>,
    /// Sessions with the broker.
    pub session: watch::Sender<u32>,
}

impl Worker {
    pub fn begin(world: &Arc<World>, n: usize, life: u32) {
        let name = format!("w{n}.{life}");
        let (policy, clock) = (policy(name.clone()), world.clock(n));
        let couch = Client {
            world: Arc::clone(world),
            host: n,
        };
        let stop = CancellationToken::new();
        let (ledger, writing) = Ledger::over(Arc::new(couch), clock.clone(), &policy, stop.clone());
        let peers = Arc::new(Peers::new(&name));
        let common = crate::sweep::common(n, &clock, &policy, &stop);
        let hands = InFlight::default();
        let memory: Arc<OpenRecordings> = Arc::default();
        let confirming = Confirming(Arc::clone(world));
        let journal = Arc::new(Journal::new(&common, &ledger, confirming, &Arc::default()));
        let collector = crate::collect::collector(world, n, &common, &ledger, &hands);
        let worker = Arc::new(Self {
            world: Arc::clone(world),
            n,
            name,
            policy,
            clock,
            ledger,
            stop,
            collector,
            shares: Shares::new(&common.config),
            segments: Segments {
                common: Arc::clone(&common),
                journal: Arc::clone(&journal),
                memory: Arc::clone(&memory),
                in_flight: hands.clone(),
            },
            journal,
            memory,
            common,
            hands,
            peers,
            tasks: Mutex::new(Some(JoinSet::new())),
            session: watch::channel(1).0,
        });
        world.workers.lock().unwrap()[n] = Some(Arc::clone(&worker));
        world.note(n, || format!("{} begins", worker.name));
        worker.spawn(writing);
        for queue in QUEUES {
            worker.spawn(Arc::clone(&worker).consume(queue));
        }
        crate::sweep::begin(&worker);
    }

    /// A task that ends with the worker.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = &mut *self.tasks.lock().unwrap() {
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task);
        }
    }

    /// SIGKILL.
    pub fn kill(&self) {
        let Some(mut tasks) = self.tasks.lock().unwrap().take() else {
            return;
        };
        tasks.abort_all();
        tokio::spawn(async move { while tasks.join_next().await.is_some() {} });
        self.world.workers.lock().unwrap()[self.n] = None;
        self.world
            .dead
            .lock()
            .unwrap()
            .insert(self.name.clone(), self.world.now());
        self.world.broker.lose(&self.name);
        self.world.note(self.n, || format!("{} is killed", self.name));
        self.world.count("kills");
    }

    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    pub fn fact(&self, what: What) -> Fact {
        Fact {
            at: self.now(),
            by: self.policy.worker.clone(),
            what,
        }
    }

    pub fn note(&self, what: impl FnOnce() -> String) {
        self.world.note(self.n, what);
    }

    async fn consume(self: Arc<Self>, queue: crate::broker::Queue) {
        loop {
            let delivery = self.world.broker.take(&self.world, &self.name, queue).await;
            self.spawn(crate::inbox::handle(Arc::clone(&self), delivery));
        }
    }

    /// Another worker's notice.
    pub fn hear(&self, notice: &Notice) {
        match notice {
            Notice::BeganAgain(key, fact) => self.began_again(*key, fact),
            Notice::Asked(key, facts) => self.heard_of(*key, facts),
        }
    }

    /// The switch began a recording again. A task that has it, or a part of it, must know before it lets the file go.
    pub fn began_again(&self, key: Key, fact: &Fact) {
        let mut member = key;
        for _ in 0..6 {
            self.memory.began_again(member, fact.clone());
            let _ = self.hands.tell(member, Input::Fact(fact.what.clone()));
            member = member.continuation();
        }
    }

    pub fn heard_of(&self, key: Key, facts: &[Fact]) {
        let call_id = &self.world.asked[&self.world.root(key)].order.call_id;
        self.memory.hear(key, call_id, facts);
        for fact in facts {
            let _ = self.hands.tell(key, Input::Fact(fact.what.clone()));
        }
    }

    /// Passes an input to the task that has the recording, or begins to drive it.
    pub fn go_on(self: &Arc<Self>, entry: Entry, input: Input) {
        let key = entry.key;
        let Err(input) = self.hands.tell(key, input) else {
            return;
        };
        if let Some(mailbox) = self.hands.take(key) {
            self.drive(entry, input, mailbox);
        }
    }

    /// Drives a recording, with the driver that workers run.
    pub fn drive(self: &Arc<Self>, entry: Entry, input: Input, mailbox: Mailbox) {
        let worker = Arc::clone(self);
        self.spawn(async move {
            let host = Host {
                policy: &worker.policy,
                clock: &worker.clock,
                stop: &worker.stop,
                lease: LEASE,
                linger: LINGER,
            };
            let effects = Gate::new(Arc::clone(&worker), crate::effects::Services(Arc::clone(&worker)));
            let ledger = Gate::new(Arc::clone(&worker), worker.ledger.clone());
            survive((&effects, &ledger, host), entry, input, mailbox).await;
        });
    }
}
