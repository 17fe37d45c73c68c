//! The world of a life: its time, its chance, its troubles, and what is in it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use kz_record_call::kazoo::time::{Clock, Moment};
use kz_record_call::recording::identity::Key;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::couch::Cluster;
use crate::places::Places;
use crate::plan::{Asked, Beside};
use crate::switch::Switch;
use crate::worker::Worker;

pub const BEGIN: Moment = Moment::from_unix_seconds(1_795_386_262);

/// Workers, and two hosts more: an operator's, and one that has a worker of the next version.
pub const WORKERS: usize = 3;
pub const OPERATOR: usize = WORKERS;
pub const NEXT_VERSION: usize = WORKERS + 1;
pub const HOSTS: usize = WORKERS + 2;
const NAMES: [&str; HOSTS] = ["worker 0", "worker 1", "worker 2", "operator", "next version"];
/// Of a line that no host wrote.
pub const WORLD: usize = HOSTS;

/// What is wrong now.
#[derive(Debug, Clone, Default)]
pub struct Trouble {
    pub couch_slow: bool,
    pub couch_fails: bool,
    pub couch_loses: bool,
    /// No answer of a server may be longer.
    pub answer_limit: Option<usize>,
    /// No ecallmgr serves this switch.
    pub cut: [bool; 2],
    /// This switch cannot open files.
    pub unopened: [bool; 2],
    /// The ecallmgr of this switch has just started, and knows no call yet.
    pub unlearned: [bool; 2],
    /// Uploads of this switch meet a firewall.
    pub no_uploads: [bool; 2],
    pub target_down: bool,
    pub target_slow: bool,
    pub hold_down: bool,
    /// The databases of recordings have too few nodes.
    pub thin: bool,
    pub alarm: bool,
    pub confirms_lost: bool,
    pub events_lost: bool,
    /// Workers die, programs panic, and messages come twice.
    pub rough: bool,
}

pub struct World {
    pub myself: Weak<Self>,
    /// Nothing goes wrong but delays.
    pub calm: bool,
    pub beside: Beside,
    rng: Mutex<fastrand::Rng>,
    begun: Instant,
    log: Mutex<Vec<(Moment, usize, String)>>,
    trouble: Mutex<Trouble>,
    cluster: Mutex<Cluster>,
    pub switch: Mutex<Switch>,
    pub places: Mutex<Places>,
    pub broker: Broker,
    pub asked: BTreeMap<Key, Asked>,
    /// The recordings that parts of others became, and whose.
    pub roots: Mutex<BTreeMap<Key, Key>>,
    pub workers: Mutex<Vec<Option<Arc<Worker>>>>,
    /// Incarnations of workers that died, and when.
    pub dead: Mutex<BTreeMap<String, Moment>>,
    sides: Mutex<[u8; HOSTS]>,
    clocks: Vec<Clock>,
    /// What workers of the next version noted, by recording.
    pub newer: Mutex<BTreeMap<Key, u32>>,
    pub counts: Mutex<BTreeMap<&'static str, u32>>,
    pub discarded: Mutex<BTreeSet<Key>>,
    /// Stops, and masks (`false`), of which a worker said that there is no recording.
    pub unfound: Mutex<BTreeSet<(Key, bool)>>,
    /// Stops, and masks (`false`), that a worker acknowledged.
    pub acknowledged: Mutex<BTreeSet<(Key, bool)>>,
    /// Recordings whose start a worker acknowledged.
    pub started: Mutex<BTreeSet<Key>>,
    /// Whether each switch ever could open no file, and for longer than a worker asks before a file counts as gone: see docs/limits.md.
    pub unopened: Mutex<[(bool, bool); 2]>,
    /// Recordings whose first events were all lost: a worker knows them by their action alone.
    pub unheard: Mutex<BTreeSet<Key>>,
    /// Recordings of whose last end no event reached a queue.
    pub end_unheard: Mutex<BTreeSet<Key>>,
    /// When the switch last ended each recording.
    pub ended: Mutex<BTreeMap<Key, Moment>>,
    /// Calls that end when a worker looks at them, by recording.
    pub surprises: Mutex<BTreeMap<String, Arc<Notify>>>,
    /// Hosts whose next write fails.
    pub fails_next: Mutex<BTreeSet<usize>>,
}

thread_local! {
    static CLOCKS: RefCell<Vec<(Clock, i64, Instant)>> = const { RefCell::new(Vec::new()) };
}

/// Time has passed: moves the clocks of all hosts.
pub fn tick() {
    CLOCKS.with_borrow(|clocks| {
        for (clock, skew, begun) in clocks {
            clock.set(shifted(BEGIN.plus(begun.elapsed()), *skew));
        }
    });
}

fn shifted(at: Moment, micros: i64) -> Moment {
    Moment::from_unix_micros(at.unix_micros() + micros)
}

impl World {
    pub fn new(seed: u64) -> Arc<Self> {
        let mut rng = fastrand::Rng::with_seed(seed);
        fastrand::seed(seed);
        let calm = seed.is_multiple_of(4);
        let begun = Instant::now();
        // A lease says little to a worker whose clock differs by more than the lease: then work is done twice, and later.
        let mut skew = || {
            if rng.bool() {
                rng.i64(-3_600..3_600) * 1_000_000
            } else {
                0
            }
        };
        let skews: Vec<i64> = (0..HOSTS).map(|_| if calm { 0 } else { skew() }).collect();
        let clocks: Vec<Clock> = skews.iter().map(|skew| Clock::fixed(shifted(BEGIN, *skew))).collect();
        CLOCKS.with_borrow_mut(|all| {
            *all = clocks
                .iter()
                .cloned()
                .zip(&skews)
                .map(|(clock, skew)| (clock, *skew, begun))
                .collect();
        });
        let beside = Beside::of(seed);
        let asked = Asked::all(&mut rng, calm, beside);
        let switch = Switch::of(&asked, &mut rng);
        Arc::new_cyclic(|myself| Self {
            myself: Weak::clone(myself),
            calm,
            beside,
            begun,
            log: Mutex::default(),
            trouble: Mutex::new(Trouble {
                rough: !calm,
                ..Trouble::default()
            }),
            cluster: Mutex::default(),
            switch: Mutex::new(switch),
            places: Mutex::default(),
            broker: Broker::default(),
            asked,
            roots: Mutex::default(),
            workers: Mutex::new((0..WORKERS).map(|_| None).collect()),
            dead: Mutex::default(),
            sides: Mutex::default(),
            clocks,
            newer: Mutex::default(),
            counts: Mutex::default(),
            discarded: Mutex::default(),
            unfound: Mutex::default(),
            acknowledged: Mutex::default(),
            started: Mutex::default(),
            unopened: Mutex::default(),
            unheard: Mutex::default(),
            end_unheard: Mutex::default(),
            ended: Mutex::default(),
            surprises: Mutex::default(),
            fails_next: Mutex::default(),
            rng: Mutex::new(rng),
        })
    }

    /// The true time.
    pub fn now(&self) -> Moment {
        BEGIN.plus(self.begun.elapsed())
    }

    pub fn clock(&self, host: usize) -> Clock {
        self.clocks[host].clone()
    }

    pub fn rng<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap())
    }

    pub fn chance(&self, per_mille: u32) -> bool {
        self.rng(|rng| rng.u32(..1000) < per_mille)
    }

    /// A chance of what happens only in rough times.
    pub fn mishap(&self, per_mille: u32) -> bool {
        self.trouble().rough && self.chance(per_mille)
    }

    /// Some milliseconds.
    pub fn between(&self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.rng(|rng| rng.u64(least..=most)))
    }

    pub fn pick<T: Clone>(&self, all: &[T]) -> Option<T> {
        if all.is_empty() {
            return None;
        }
        Some(all[self.rng(|rng| rng.usize(..all.len()))].clone())
    }

    pub fn shuffled<T>(&self, mut all: Vec<T>) -> Vec<T> {
        self.rng(|rng| rng.shuffle(&mut all));
        all
    }

    pub fn trouble(&self) -> Trouble {
        self.trouble.lock().unwrap().clone()
    }

    pub fn change(&self, change: impl FnOnce(&mut Trouble)) {
        change(&mut self.trouble.lock().unwrap());
    }

    pub fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }

    /// Whether the node of CouchDB that answers a host knows the databases; `None`: no node answers.
    pub fn home_answers(&self, host: usize) -> Option<bool> {
        let side = self.side(host);
        let there: Vec<bool> = {
            let cluster = self.cluster();
            let there = cluster.nodes.iter().filter(|node| node.up && node.side == side);
            there.map(|node| node.knows).collect()
        };
        self.pick(&there)
    }

    /// A host reads the entry of a recording. If its call waits for that, it ends, and the next write of that host fails.
    pub fn looked_at(&self, host: usize, id: &str) {
        let mut surprises = self.surprises.lock().unwrap();
        let key = surprises.keys().find(|key| id.ends_with(*key)).cloned();
        if let Some(ends) = key.and_then(|key| surprises.remove(&key)) {
            self.fails_next.lock().unwrap().insert(host);
            ends.notify_one();
        }
    }

    pub fn side(&self, host: usize) -> u8 {
        self.sides.lock().unwrap()[host]
    }

    /// Cuts one node and some hosts off from the others; `None` joins them again.
    pub fn part(&self, node: Option<usize>) {
        let hosts: Vec<u8> = (0..HOSTS)
            .map(|_| u8::from(node.is_some() && self.chance(400)))
            .collect();
        self.sides.lock().unwrap().copy_from_slice(&hosts);
        let mut cluster = self.cluster();
        for (n, of) in cluster.nodes.iter_mut().enumerate() {
            of.side = u8::from(Some(n) == node);
        }
        cluster.dirty = true;
    }

    pub fn note(&self, host: usize, what: impl FnOnce() -> String) {
        self.log.lock().unwrap().push((self.now(), host, what()));
    }

    pub fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
    }

    /// The recording that a part's recording comes from; itself, of all others.
    pub fn root(&self, key: Key) -> Key {
        let above = self.roots.lock().unwrap().get(&key).copied();
        above.map_or(key, |above| self.root(above))
    }

    /// The timeline: time since the beginning, host, event.
    pub fn timeline(&self) -> Vec<String> {
        let log = self.log.lock().unwrap();
        let line = |(at, host, what): &(Moment, usize, String)| {
            let host = NAMES.get(*host).copied().unwrap_or("world");
            format!("{:>12.3} s  {host:<12}  {what}", at.since(BEGIN).as_secs_f64())
        };
        log.iter().map(line).collect()
    }
}
