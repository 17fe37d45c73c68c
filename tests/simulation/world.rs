//! The world of a life: what there is, and what the store knows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kz_record_call::entry::Entry;
use kz_record_call::entry::fact::{Destination, Fact};
use kz_record_call::flow::in_flight::InFlight;
use kz_record_call::kazoo::call::Parties;
use kz_record_call::kazoo::dialplan::Trigger;
use kz_record_call::kazoo::time::{Clock, Moment};
use kz_record_call::lifecycle::{Policy, State, due};
use kz_record_call::recording::ending::Told;
use kz_record_call::recording::format::Format;
use kz_record_call::recording::identity::{Key, MediaId};
use kz_record_call::recording::order::{Command, Order, Url};
use kz_record_call::recording::settings::Method;
use tokio_util::sync::CancellationToken;

use crate::drivers::{Crew, Task};

pub const BEGIN: Moment = Moment::from_unix_seconds(1_795_386_262);
pub const LEASE: Duration = Duration::from_secs(300);

pub fn policy() -> Policy {
    Policy {
        worker: "w".into(),
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

/// What is in a file: how much of each stretch of recording.
pub type Content = Vec<(u32, u64)>;

/// A recording as the switch knows it.
#[derive(Debug)]
pub struct File {
    pub running: bool,
    /// On the switch's disk.
    pub there: bool,
    pub content: Content,
    /// Every stretch that was recorded, and how much of it; counted from 1.
    pub recorded: BTreeMap<u32, u64>,
    /// Calls live as long as this.
    pub alive: bool,
}

impl File {
    pub fn part(&self) -> u32 {
        self.recorded.keys().next_back().copied().unwrap_or(1)
    }

    pub fn grow(&mut self, more: u64) {
        *self.recorded.entry(self.part()).or_default() += more;
        self.content.last_mut().unwrap().1 += more;
    }
}

pub fn size_of(content: &Content) -> u64 {
    content.iter().map(|(_, size)| size).sum()
}

#[derive(Debug, Clone)]
pub enum Message {
    Action(Box<Order>),
    Started(Box<Told>, Key),
    Ended(Box<Told>, Key),
}

pub struct Worker {
    pub alive: bool,
    /// The part of the store that it reaches.
    pub part: usize,
    pub hands: InFlight,
    pub crew: Arc<Crew>,
    pub tasks: BTreeMap<Key, Task>,
}

impl Worker {
    fn new(part: usize) -> Self {
        let crew = Crew {
            policy: policy(),
            clock: Clock::fixed(BEGIN),
            stop: CancellationToken::new(),
            notes: Mutex::default(),
        };
        Self {
            alive: true,
            part,
            hands: InFlight::default(),
            crew: Arc::new(crew),
            tasks: BTreeMap::new(),
        }
    }

    /// Everything that it had in memory is gone; returns the messages that it had not acknowledged.
    pub fn killed(&mut self) -> Vec<Message> {
        let notes = std::mem::take(&mut *self.crew.notes.lock().unwrap());
        let part = self.part;
        *self = Self {
            alive: false,
            ..Self::new(part)
        };
        notes.into_iter().filter_map(|note| note.unacked).collect()
    }
}

#[derive(Clone, Default, PartialEq)]
pub struct Stored {
    pub entry: Option<Entry>,
    pub leased_until: Option<Moment>,
    /// As it is written down: what has none is never taken up by a sweep.
    pub due: Option<Moment>,
}

pub struct World {
    pub rng: fastrand::Rng,
    pub now: Moment,
    pub policy: Policy,
    pub queue: Vec<Message>,
    pub workers: Vec<Worker>,
    /// The store's two parts, by recording.
    pub store: [BTreeMap<Key, Stored>; 2],
    pub parted: bool,
    pub store_down: bool,
    pub switch_down: bool,
    pub target_down: bool,
    pub hold_down: bool,
    pub faults: bool,
    pub files: BTreeMap<Key, File>,
    pub orders: BTreeMap<Key, (Order, Destination)>,
    /// The recordings that parts of others became, and whose.
    pub roots: BTreeMap<Key, Key>,
    /// What all workers were told lately of recordings that the switch began again.
    pub begun_again: BTreeMap<Key, Fact>,
    /// Audio at its destination, by recording; other audio of the same one gets a document of its own.
    pub delivered: BTreeMap<Key, Vec<Content>>,
    pub documents: BTreeMap<Key, u32>,
    /// By name, which has the audio's digest.
    pub held: BTreeMap<String, Content>,
    /// What passed through a worker's hands, by its digest.
    pub seen: BTreeMap<String, Content>,
    pub restarts: u32,
    /// Those of which nobody heard at once, or ever.
    pub unheard: u32,
    /// What workers of the next version noted, by recording.
    pub newer: BTreeMap<Key, u32>,
    /// What operators moved on, and workers that panicked at it.
    pub retries: u32,
    pub panics: u32,
    pub announced: BTreeMap<Key, BTreeSet<&'static str>>,
    pub refuses: BTreeSet<Key>,
    pub log: Vec<String>,
}

pub fn order(n: u64, min_sec: u32, trigger: Trigger) -> Order {
    let key = Key::of("call", &n.to_string());
    Order {
        key,
        media_id: MediaId::derived(key, BEGIN),
        call_id: "call".into(),
        account_id: Some("4ba1f7d5a1c54a0fb0d9c9d3e1a2b3c4".into()),
        zone: "local".into(),
        file_name: format!("{key}.mp3"),
        media_name: format!("{key}.mp3"),
        format: Format::Mp3,
        origin: "callflow : x".into(),
        method: Method::Put,
        url: Url::None,
        min_sec,
        asked_at: BEGIN,
        parties: Parties::default(),
        continues: None,
        trace: None,
        command: Some(Command {
            control: "q".into(),
            fetch_id: None,
            trigger,
            time_limit: 3600,
            follow_transfer: true,
            sample_rate: None,
            silence: None,
            stereo: true,
            carry: "c".into(),
            node: Some("freeswitch@fs1".into()),
            path: format!("/tmp/{key}.mp3"),
        }),
    }
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut world = Self {
            now: BEGIN,
            policy: policy(),
            queue: Vec::new(),
            workers: (0..2).map(Worker::new).collect(),
            store: Default::default(),
            parted: false,
            store_down: false,
            switch_down: false,
            target_down: false,
            hold_down: false,
            faults: true,
            files: BTreeMap::new(),
            orders: BTreeMap::new(),
            roots: BTreeMap::new(),
            begun_again: BTreeMap::new(),
            delivered: BTreeMap::new(),
            documents: BTreeMap::new(),
            held: BTreeMap::new(),
            seen: BTreeMap::new(),
            restarts: 0,
            unheard: 0,
            newer: BTreeMap::new(),
            retries: 0,
            panics: 0,
            announced: BTreeMap::new(),
            refuses: BTreeSet::new(),
            log: Vec::new(),
            rng: fastrand::Rng::with_seed(seed),
        };
        for n in 0..4 {
            let trigger = if rng.bool() { Trigger::Bridge } else { Trigger::Now };
            let order = order(n, if rng.u8(..) < 40 { 3 } else { 0 }, trigger);
            let destination = Destination::ALL[rng.usize(..4)];
            if rng.u8(..) < 16 {
                world.refuses.insert(order.key);
            }
            world.queue.push(Message::Action(Box::new(order.clone())));
            world.orders.insert(order.key, (order, destination));
        }
        world
    }

    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.faults && self.rng.u32(..1000) < per_mille
    }

    pub fn note(&mut self, what: String) {
        let after = self.now.since(BEGIN).as_secs();
        self.log.push(format!("{after:>7} s  {what}"));
    }

    /// The recording that a part's recording comes from; itself, of all others.
    pub fn root(&self, key: Key) -> Key {
        self.roots.get(&key).map_or(key, |root| self.root(*root))
    }

    /// The two parts of the store become one, unless they are parted.
    pub fn sync(&mut self) {
        if self.parted || self.store_down {
            return;
        }
        let keys: BTreeSet<Key> = self.store.iter().flat_map(|part| part.keys().copied()).collect();
        for key in keys {
            let entries = [0, 1].map(|part| self.store[part].get(&key).cloned().unwrap_or_default());
            let [one, other] = entries;
            if one == other {
                continue;
            }
            let entry = match (one.entry, other.entry) {
                (Some(one), Some(other)) => Some(one.merge(other)),
                (one, other) => one.or(other),
            };
            let leased_until = one.leased_until.max(other.leased_until);
            let due = match &entry {
                // Whoever merges writes when it is due.
                Some(entry) => self.due_of(entry, leased_until),
                None => None,
            };
            let merged = Stored {
                entry,
                leased_until,
                due,
            };
            self.store
                .iter_mut()
                .for_each(|part| drop(part.insert(key, merged.clone())));
        }
    }

    pub fn write(&mut self, part: usize, entry: &Entry, lease: Option<Moment>) -> bool {
        if self.store_down {
            return false;
        }
        for at in if self.parted { vec![part] } else { vec![0, 1] } {
            let there = self.store[at].get(&entry.key).and_then(|stored| stored.entry.clone());
            let entry = match there {
                Some(there) => there.merge(entry.clone()),
                None => entry.clone(),
            };
            // As it is read back: what another version wrote is in it too.
            let read_back = || serde_json::from_value(serde_json::to_value(&entry).unwrap()).unwrap();
            let entry: Entry = if self.rng.u8(..8) == 0 { read_back() } else { entry };
            let due = self.due_of(&entry, lease);
            let stored = Stored {
                due,
                leased_until: lease,
                entry: Some(entry),
            };
            let key = stored.entry.as_ref().unwrap().key;
            self.store[at].insert(key, stored);
        }
        true
    }

    /// When something is to be done about it, as the ledger writes it down.
    fn due_of(&self, entry: &Entry, lease: Option<Moment>) -> Option<Moment> {
        let due = due(entry, self.now, &self.policy)?;
        Some(lease.map_or(due, |lease| due.max(lease)))
    }

    /// A worker of the next version notes something on it that this one has no word for.
    pub fn noted_by_a_newer_version(&mut self, part: usize, key: Key) {
        let Some(entry) = self.store[part].get(&key).and_then(|stored| stored.entry.clone()) else {
            return;
        };
        let n = self.newer.entry(key).or_default();
        *n += 1;
        let at = self.now.unix_micros();
        let mut written = serde_json::to_value(&entry).unwrap();
        let fact = serde_json::json!({"at": at, "by": "w2", "fact": "of_the_next_version", "of": {"n": *n}});
        written["facts"].as_array_mut().unwrap().push(fact);
        let lease = self.store[part][&key].leased_until;
        let newer: Entry = serde_json::from_value(written).unwrap();
        if !self.write(part, &newer, lease) {
            *self.newer.get_mut(&key).unwrap() -= 1;
        }
    }

    /// An operator moves on what is parked, from a host whose clock is an hour off.
    pub fn retry_something(&mut self, part: usize) {
        let hour = Duration::from_secs(3600);
        let at = if self.rng.bool() {
            self.now.plus(hour)
        } else {
            self.now.minus(hour)
        };
        let entries: Vec<Entry> = self.store[part]
            .values()
            .filter_map(|stored| stored.entry.clone())
            .collect();
        for mut entry in entries {
            if entry.parked().is_some() && entry.outcome().is_none() {
                let what = entry.retry();
                entry.add(Fact {
                    at,
                    by: "operator".into(),
                    what,
                });
                let lease = self.store[part][&entry.key].leased_until;
                self.retries += u32::from(self.write(part, &entry, lease));
            }
        }
    }

    pub fn read(&self, part: usize, key: Key) -> Option<Entry> {
        if self.store_down {
            None
        } else {
            Some(self.complete(self.store[part].get(&key)?.entry.clone()?))
        }
    }

    pub fn complete(&self, mut entry: Entry) -> Entry {
        if let Some(started) = self.begun_again.get(&entry.key) {
            entry.add(started.clone());
        }
        entry
    }

    /// The faults end, and everything comes to rest.
    pub async fn heal(&mut self) {
        self.faults = false;
        (self.parted, self.store_down, self.switch_down) = (false, false, false);
        (self.target_down, self.hold_down) = (false, false);
        self.workers.iter_mut().for_each(|worker| worker.alive = true);
        for _ in 0..6000 {
            self.step().await;
            self.sync();
            if self.is_at_rest() {
                // What two workers left in the hold of a recording that is closed is cleaned up in time: what nobody holds any more.
                let entries = self.store[0].values().filter_map(|stored| stored.entry.as_ref());
                let needed: BTreeSet<String> = entries
                    .filter(|entry| !entry.is_closed())
                    .filter_map(|entry| entry.held().map(|holding| holding.name.clone()))
                    .collect();
                self.held.retain(|name, _| needed.contains(name));
                return;
            }
        }
        self.tell_all();
        panic!("it does not come to rest");
    }

    pub fn is_at_rest(&self) -> bool {
        let settled = |entry: &Entry| {
            entry.is_closed() || entry.parked().is_some() && entry.open_announcements().next().is_none()
        };
        self.queue.is_empty()
            && self
                .workers
                .iter()
                .all(|worker| worker.tasks.is_empty() && worker.crew.notes.lock().unwrap().is_empty())
            && self.files.values().all(|file| !file.running)
            && self.orders.keys().chain(self.roots.keys()).all(|key| {
                self.store[0]
                    .get(key)
                    .and_then(|stored| stored.entry.as_ref())
                    .is_some_and(settled)
            })
    }

    /// The whole story, for whoever must find out why it went wrong.
    pub fn tell_all(&self) {
        eprintln!("{}", self.log.join("\n"));
        for entry in self.store[0].values().filter_map(|stored| stored.entry.as_ref()) {
            eprintln!(
                "\n{} of {}, {}",
                entry.key,
                self.root(entry.key),
                State::of(entry).name()
            );
            for fact in entry.facts() {
                let mut what = format!("{:?}", fact.what);
                what.truncate(150);
                eprintln!("{:>9.3} s  {what}", fact.at.since(BEGIN).as_secs_f64());
            }
        }
    }
}
