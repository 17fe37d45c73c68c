//! A worker: what it remembers, what it consumes, what it takes up.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kz_record_call::entry::Entry;
use kz_record_call::entry::fact::{Fact, What};
use kz_record_call::flow::driver::{Host, survive};
use kz_record_call::flow::hands::{Hands, Mailbox};
use kz_record_call::kazoo::time::{Clock, Moment};
use kz_record_call::ledger::Ledger;
use kz_record_call::lifecycle::{Input, Policy};
use kz_record_call::recording::identity::Key;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::broker::{Notice, QUEUES};
use crate::couch::Client;
use crate::gate::Gate;
use crate::world::World;

pub const LEASE: Duration = Duration::from_secs(300);
pub const LINGER: Duration = Duration::from_secs(1);
/// Uploads at once, of one switch.
const SLOTS: usize = 2;

pub fn policy(worker: String) -> Policy {
    Policy {
        worker,
        retry: [5, 30, 120, 600, 1800].map(Duration::from_secs).to_vec(),
        jitter: 20,
        max_attempts: 12,
        hold: true,
        hold_pause: Duration::from_secs(60),
        looks: [60, 300, 900, 3600].map(Duration::from_secs).to_vec(),
        start_timeout: Duration::from_secs(30),
        check_interval: Duration::from_secs(300),
        grace: Duration::from_secs(60),
        probe_gap: Duration::from_secs(60),
        stop_repeats: [2, 5, 15].map(Duration::from_secs).to_vec(),
        stop_alarm: Duration::from_secs(30),
    }
}

/// What a worker remembers, and promises nothing about.
#[derive(Debug, Default)]
struct Memory {
    entries: BTreeMap<Key, Entry>,
    restarts: BTreeMap<Key, Fact>,
    /// What was asked of recordings that began elsewhere.
    asked: BTreeMap<Key, Vec<Fact>>,
    /// Workers that are gone, and have nothing any more.
    forgotten: BTreeSet<String>,
}

pub struct Worker {
    pub world: Arc<World>,
    pub n: usize,
    pub name: String,
    pub policy: Policy,
    pub clock: Clock,
    pub ledger: Ledger,
    pub hands: Hands,
    pub stop: CancellationToken,
    pub slots: [Semaphore; 2],
    memory: Mutex<Memory>,
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
        let worker = Arc::new(Self {
            world: Arc::clone(world),
            n,
            name,
            policy,
            clock,
            ledger,
            hands: Hands::default(),
            stop,
            slots: std::array::from_fn(|_| Semaphore::new(SLOTS)),
            memory: Mutex::default(),
            tasks: Mutex::new(Some(JoinSet::new())),
            session: watch::channel(1).0,
        });
        world.workers.lock().unwrap()[n] = Some(Arc::clone(&worker));
        world.note(n, || format!("{} begins", worker.name));
        worker.spawn(writing);
        for queue in QUEUES {
            worker.spawn(Arc::clone(&worker).consume(queue));
        }
        worker.spawn(crate::sweep::run(Arc::clone(&worker)));
        worker.spawn(crate::sweep::reconcile(Arc::clone(&worker)));
        worker.spawn(crate::sweep::mend(Arc::clone(&worker)));
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

    /// Whether no other worker has heard of that one for long.
    pub fn is_gone(&self, name: &str) -> bool {
        let died = self.world.dead.lock().unwrap().get(name).copied();
        died.is_some_and(|at| self.world.now().since(at) > Duration::from_secs(30))
    }

    pub fn gone(&self) -> Vec<String> {
        let dead: Vec<String> = self.world.dead.lock().unwrap().keys().cloned().collect();
        let forgotten = &self.memory.lock().unwrap().forgotten;
        dead.into_iter()
            .filter(|name| self.is_gone(name) && !forgotten.contains(name))
            .collect()
    }

    /// A worker that is gone had nothing more.
    pub fn forget_worker(&self, name: &str) {
        self.memory.lock().unwrap().forgotten.insert(name.to_owned());
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
            self.memory.lock().unwrap().restarts.insert(member, fact.clone());
            let _ = self.hands.tell(member, Input::Fact(fact.what.clone()));
            member = member.continuation();
        }
    }

    pub fn heard_of(&self, key: Key, facts: &[Fact]) {
        let mut memory = self.memory.lock().unwrap();
        match memory.entries.get_mut(&key) {
            Some(entry) => facts.iter().for_each(|fact| _ = entry.add(fact.clone())),
            None => memory.asked.entry(key).or_default().extend(facts.iter().cloned()),
        }
        drop(memory);
        for fact in facts {
            let _ = self.hands.tell(key, Input::Fact(fact.what.clone()));
        }
    }

    pub fn remember(&self, entry: &Entry) {
        let mut memory = self.memory.lock().unwrap();
        let all = match memory.entries.remove(&entry.key) {
            Some(known) => known.merge(entry.clone()),
            None => entry.clone(),
        };
        memory.entries.insert(entry.key, all);
    }

    pub fn remembered(&self, key: Key) -> Option<Entry> {
        self.memory.lock().unwrap().entries.get(&key).cloned()
    }

    pub fn forget(&self, key: Key) {
        self.memory.lock().unwrap().entries.remove(&key);
    }

    /// What the ledger has, with what this worker heard and the ledger may not have yet.
    pub fn completed(&self, entry: Entry) -> Entry {
        let memory = self.memory.lock().unwrap();
        let mut entry = match memory.entries.get(&entry.key) {
            Some(known) => entry.merge(known.clone()),
            None => entry,
        };
        for fact in memory.asked.get(&entry.key).into_iter().flatten() {
            entry.add(fact.clone());
        }
        if let Some(started) = memory.restarts.get(&entry.key)
            && !matches!(&started.what, What::Started(told) if entry.is_of_one_before(told))
        {
            entry.add(started.clone());
        }
        entry
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
