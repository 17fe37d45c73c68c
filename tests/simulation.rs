//! Thousands of lives of a recording, in seconds: the pure decisions over a broker, a store in two parts, a switch and a target that all live in
//! memory. Time is made up, a crash is a drop, and every seed can be run again: `SIMULATION_SEED=… cargo test --test simulation`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_macros
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kz_record_call::entry::Entry;
use kz_record_call::entry::cause::{Cause, Outcome};
use kz_record_call::entry::fact::{
    Announcement, CollectFailure, Delivery, DeliveryFailure, Destination, Document, Fact, Holding, What,
};
use kz_record_call::flow::next::{Case, Effect, Hand, Input, Policy, due, next};
use kz_record_call::ingest::Answer;
use kz_record_call::kazoo::call::Parties;
use kz_record_call::kazoo::dialplan::Trigger;
use kz_record_call::kazoo::time::Moment;
use kz_record_call::recording::audio::Audio;
use kz_record_call::recording::digest::Digests;
use kz_record_call::recording::ending::Told;
use kz_record_call::recording::format::Format;
use kz_record_call::recording::identity::{Key, MediaId};
use kz_record_call::recording::order::{Command, Order, Url};
use kz_record_call::recording::settings::Method;

const BEGIN: Moment = Moment::from_unix_seconds(1_795_386_262);
const LEASE: Duration = Duration::from_secs(300);

fn policy() -> Policy {
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
type Content = Vec<(u32, u64)>;

/// A recording as the switch knows it.
#[derive(Debug)]
struct File {
    running: bool,
    /// On the switch's disk.
    there: bool,
    content: Content,
    /// Every stretch that was recorded, and how much of it; counted from 1.
    recorded: BTreeMap<u32, u64>,
    /// Calls live as long as this.
    alive: bool,
}

impl File {
    fn part(&self) -> u32 {
        self.recorded.keys().next_back().copied().unwrap_or(1)
    }

    fn grow(&mut self, more: u64) {
        *self.recorded.entry(self.part()).or_default() += more;
        self.content.last_mut().unwrap().1 += more;
    }
}

fn size_of(content: &Content) -> u64 {
    content.iter().map(|(_, size)| size).sum()
}

#[derive(Debug, Clone)]
enum Message {
    Action(Box<Order>),
    Started(Box<Told>, Key),
    Ended(Box<Told>, Key),
}

/// What a worker does with one recording.
struct Task {
    case: Case,
    effects: Vec<Effect>,
    /// The message that is acknowledged when the store has what it told.
    unacked: Option<Message>,
}

struct Worker {
    alive: bool,
    /// The part of the store that it reaches.
    part: usize,
    tasks: BTreeMap<Key, Task>,
}

#[derive(Clone, Default)]
struct Stored {
    entry: Option<Entry>,
    leased_until: Option<Moment>,
}

struct World {
    rng: fastrand::Rng,
    now: Moment,
    policy: Policy,
    queue: Vec<Message>,
    workers: Vec<Worker>,
    /// The store's two parts, by recording.
    store: [BTreeMap<Key, Stored>; 2],
    parted: bool,
    store_down: bool,
    switch_down: bool,
    target_down: bool,
    hold_down: bool,
    faults: bool,
    files: BTreeMap<Key, File>,
    orders: BTreeMap<Key, (Order, Destination)>,
    /// The recordings that parts of others became, and whose.
    roots: BTreeMap<Key, Key>,
    /// What all workers were told lately of recordings that the switch began again.
    begun_again: BTreeMap<Key, Fact>,
    /// Audio at its destination, by recording; other audio of the same one gets a document of its own.
    delivered: BTreeMap<Key, Vec<Content>>,
    documents: BTreeMap<Key, u32>,
    /// By name, which has the audio's digest.
    held: BTreeMap<String, Content>,
    /// What passed through a worker's hands, by its digest.
    seen: BTreeMap<String, Content>,
    restarts: u32,
    announced: BTreeMap<Key, BTreeSet<&'static str>>,
    refuses: BTreeSet<Key>,
    log: Vec<String>,
}

fn order(n: u64, min_sec: u32) -> Order {
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
            trigger: Trigger::Now,
            time_limit: 3600,
            follow_transfer: true,
            sample_rate: None,
            silence: None,
            carry: "c".into(),
            node: Some("freeswitch@fs1".into()),
            path: "/tmp/a.mp3".into(),
        }),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut world = Self {
            now: BEGIN,
            policy: policy(),
            queue: Vec::new(),
            workers: (0..2)
                .map(|part| Worker {
                    alive: true,
                    part,
                    tasks: BTreeMap::new(),
                })
                .collect(),
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
            announced: BTreeMap::new(),
            refuses: BTreeSet::new(),
            log: Vec::new(),
            rng: fastrand::Rng::with_seed(seed),
        };
        for n in 0..4 {
            let order = order(n, if rng.u8(..) < 40 { 3 } else { 0 });
            let destination = Destination::ALL[rng.usize(..4)];
            if rng.u8(..) < 16 {
                world.refuses.insert(order.key);
            }
            world.queue.push(Message::Action(Box::new(order.clone())));
            world.orders.insert(order.key, (order, destination));
        }
        world
    }

    fn chance(&mut self, per_mille: u32) -> bool {
        self.faults && self.rng.u32(..1000) < per_mille
    }

    fn note(&mut self, what: String) {
        let after = self.now.since(BEGIN).as_secs();
        self.log.push(format!("{after:>7} s  {what}"));
    }

    /// One random thing happens.
    fn step(&mut self) {
        self.now = self.now.plus(Duration::from_millis(
            self.rng.u64(..if self.faults { 8_000 } else { 60_000 }),
        ));
        if self.chance(15) {
            self.break_something();
        }
        if self.chance(30) {
            self.mend_something();
        }
        match self.rng.u8(..10) {
            0 | 1 => self.deliver_message(),
            2 => self.life_goes_on(),
            3 => self.sweep(),
            4 => self.sync(),
            _ => self.work(),
        }
    }

    fn break_something(&mut self) {
        match self.rng.u8(..7) {
            0 | 1 => {
                let worker = self.rng.usize(..self.workers.len());
                self.crash(worker);
            }
            2 => self.parted = true,
            3 => self.store_down = true,
            4 => self.switch_down = true,
            5 => self.target_down = true,
            _ => self.hold_down = true,
        }
    }

    fn mend_something(&mut self) {
        match self.rng.u8(..7) {
            0 | 1 => self.workers.iter_mut().for_each(|worker| worker.alive = true),
            2 => self.parted = false,
            3 => self.store_down = false,
            4 => self.switch_down = false,
            5 => self.target_down = false,
            _ => self.hold_down = false,
        }
    }

    /// Everything that the worker had in memory is gone; what it had not acknowledged comes again.
    fn crash(&mut self, worker: usize) {
        self.workers[worker].alive = false;
        let tasks = std::mem::take(&mut self.workers[worker].tasks);
        self.queue.extend(tasks.into_values().filter_map(|task| task.unacked));
        self.note(format!("worker {worker} is killed"));
    }

    /// Files grow, calls end, and events are told, twice, or not at all.
    fn life_goes_on(&mut self) {
        let keys: Vec<Key> = self.files.keys().copied().collect();
        for key in keys {
            let ends = self.rng.u8(..4) == 0;
            let lost = self.chance(120);
            let twice = self.chance(200);
            let goes_on = self.chance(300);
            let again = self.chance(60);
            let file = self.files.get_mut(&key).unwrap();
            if !file.running {
                if again && file.alive {
                    self.begin_again(key);
                }
                continue;
            }
            let part = file.part();
            // Lengths that differ, as real ones do.
            file.grow(1000 + u64::from(part) * 10_007);
            if ends {
                let length = file.recorded[&part];
                // A call that goes on may be bridged again.
                (file.running, file.alive) = (false, goes_on && !lost);
                if lost {
                    self.note(format!("the end of {key} is told to nobody"));
                    continue;
                }
                let told = self.tell(length);
                self.queue.push(Message::Ended(told.clone(), key));
                if twice {
                    self.queue.push(Message::Ended(told, key));
                }
            }
        }
    }

    /// The switch begins to record again under the same name, as at another bridge. The event is heard at once: what happens before it is heard,
    /// nobody can know.
    fn begin_again(&mut self, key: Key) {
        let living = (0..self.workers.len()).find(|n| self.workers[*n].alive);
        let Some(worker) = living.filter(|_| !self.store_down && !self.parted) else {
            return;
        };
        // Nobody is just being told to delete it.
        let in_hand = self.workers.iter().any(|worker| {
            let mut cases = worker.tasks.values().map(|task| &task.case);
            cases.any(|case| self.root(case.entry.key) == key && case.hand != Hand::Empty)
        });
        if in_hand || self.files[&key].part() > 3 {
            return;
        }
        let file = self.files.get_mut(&key).unwrap();
        let part = file.part() + 1;
        if !file.there {
            file.content.clear();
        }
        (file.running, file.there) = (true, true);
        file.content.push((part, 1000));
        file.recorded.insert(part, 1000);
        self.restarts += 1;
        self.note(format!("the switch records {key} again, part {part}"));
        let told = self.tell(0);
        // Workers tell each other, for another one may have it in hand.
        let what = What::Started(told.clone());
        let mut member = key;
        for _ in 0..8 {
            let fact = Fact {
                at: self.now,
                by: "w".into(),
                what: what.clone(),
            };
            self.begun_again.insert(member, fact);
            for other in &mut self.workers {
                if let Some(task) = other.tasks.get_mut(&member) {
                    task.effects = next(&mut task.case, Input::Fact(what.clone()), self.now, &self.policy);
                }
            }
            member = member.continuation();
        }
        self.hear(worker, Message::Started(told, key));
    }

    /// The recording that a part's recording comes from; itself, of all others.
    fn root(&self, key: Key) -> Key {
        self.roots.get(&key).map_or(key, |root| self.root(*root))
    }

    /// The two parts of the store become one, unless they are parted.
    fn sync(&mut self) {
        if self.parted || self.store_down {
            return;
        }
        let keys: BTreeSet<Key> = self.store.iter().flat_map(|part| part.keys().copied()).collect();
        for key in keys {
            let entries = [0, 1].map(|part| self.store[part].get(&key).cloned().unwrap_or_default());
            let [one, other] = entries;
            let entry = match (one.entry, other.entry) {
                (Some(one), Some(other)) => Some(one.merge(other)),
                (one, other) => one.or(other),
            };
            let merged = Stored {
                entry,
                leased_until: one.leased_until.max(other.leased_until),
            };
            self.store
                .iter_mut()
                .for_each(|part| drop(part.insert(key, merged.clone())));
        }
    }

    fn write(&mut self, part: usize, entry: &Entry, lease: Option<Moment>) -> bool {
        if self.store_down {
            return false;
        }
        for at in if self.parted { vec![part] } else { vec![0, 1] } {
            let stored = self.store[at].entry(entry.key).or_default();
            stored.entry = Some(match stored.entry.take() {
                Some(there) => there.merge(entry.clone()),
                None => entry.clone(),
            });
            stored.leased_until = lease;
        }
        true
    }

    fn read(&self, part: usize, key: Key) -> Option<Entry> {
        if self.store_down {
            None
        } else {
            Some(self.complete(self.store[part].get(&key)?.entry.clone()?))
        }
    }

    fn complete(&self, mut entry: Entry) -> Entry {
        if let Some(started) = self.begun_again.get(&entry.key) {
            entry.add(started.clone());
        }
        entry
    }

    /// The broker gives a message to a worker that lives.
    fn deliver_message(&mut self) {
        let living: Vec<usize> = (0..self.workers.len()).filter(|n| self.workers[*n].alive).collect();
        if self.queue.is_empty() || living.is_empty() {
            return;
        }
        let worker = living[self.rng.usize(..living.len())];
        let message = self.queue.swap_remove(self.rng.usize(..self.queue.len()));
        if self.chance(60) {
            self.queue.push(message.clone());
        }
        self.hear(worker, message);
    }

    fn hear(&mut self, worker: usize, message: Message) {
        let part = self.workers[worker].part;
        let (key, what) = match &message {
            Message::Action(order) => (order.key, None),
            Message::Started(told, key) => (*key, Some(What::Started(told.clone()))),
            Message::Ended(told, key) => (*key, Some(What::Ended(told.clone()))),
        };
        let order = self.orders[&key].0.clone();
        let known = self.read(part, key);
        let (fresh, entry) = (
            known.is_none(),
            known.unwrap_or_else(|| self.complete(Entry::of_order(order.clone(), "w"))),
        );
        let Some(what) = what else {
            // The action: commanded at once, unless it is known that it was.
            let mut entry = entry;
            if !entry.is_commanded() && (fresh || self.rng.bool()) {
                self.command(key);
                if self.chance(60) {
                    // Killed between the command and the acknowledgement.
                    self.queue.push(message);
                    return self.crash(worker);
                }
                entry.add(Fact {
                    at: self.now,
                    by: "w".into(),
                    what: What::Commanded,
                });
            }
            if !self.write(part, &entry, None) {
                // The journal: as good as a message that comes again.
                self.queue.push(message);
            }
            return;
        };
        self.go_on(worker, entry, Input::Fact(what), Some(message));
    }

    /// An event of the switch, that says now what it says.
    fn tell(&self, length: u64) -> Box<Told> {
        Box::new(Told {
            call_id: "call".into(),
            at: self.now,
            stamp: Some(self.now.unix_micros()),
            node: Some("fs".into()),
            path: Some("path".into()),
            length_ms: Some(length),
            completion_cause: None,
            account_id: None,
            other_leg_call_id: None,
            parties: Parties::default(),
            variables: serde_json::Value::Null,
        })
    }

    fn command(&mut self, key: Key) {
        if self.files.contains_key(&key) {
            return; // A double is ignored by the switch.
        }
        self.files.insert(
            key,
            File {
                running: true,
                there: true,
                content: vec![(1, 1000)],
                recorded: BTreeMap::from([(1, 1000)]),
                alive: true,
            },
        );
        if !self.chance(50) {
            let told = self.tell(0);
            self.queue.push(Message::Started(told, key));
        }
        self.note(format!("the switch records {key}"));
    }

    fn go_on(&mut self, worker: usize, entry: Entry, input: Input, unacked: Option<Message>) {
        let key = entry.key;
        let (now, policy) = (self.now, self.policy.clone());
        let mut again = None;
        if let Some(task) = self.workers[worker].tasks.get_mut(&key) {
            task.effects = next(&mut task.case, input, now, &policy);
            again = task.unacked.take();
            task.unacked = unacked;
        } else {
            let mut case = Case {
                entry,
                hand: Hand::Empty,
            };
            let effects = next(&mut case, input, now, &policy);
            self.workers[worker].tasks.insert(key, Task { case, effects, unacked });
        }
        // The one that was in hand before stays with the broker.
        self.queue.extend(again);
    }

    /// A worker takes up what is due and nobody has.
    fn sweep(&mut self) {
        if self.store_down {
            return;
        }
        let worker = self.rng.usize(..self.workers.len());
        if !self.workers[worker].alive {
            return;
        }
        let part = self.workers[worker].part;
        let (now, policy) = (self.now, self.policy.clone());
        let due: Vec<Entry> = self.store[part]
            .values()
            .filter(|stored| stored.leased_until.is_none_or(|until| until <= now))
            .filter_map(|stored| Some(self.complete(stored.entry.clone()?)))
            .filter(|entry| due(entry, now, &policy).is_some_and(|at| at <= now))
            .collect();
        for entry in due {
            if !self.workers[worker].tasks.contains_key(&entry.key) {
                self.write(part, &entry, Some(now.plus(LEASE)));
                self.go_on(worker, entry, Input::Due, None);
            }
        }
    }

    /// A worker does the next thing of one of its recordings.
    fn work(&mut self) {
        let tasks: Vec<(usize, Key)> = (0..self.workers.len())
            .filter(|n| self.workers[*n].alive)
            .flat_map(|n| {
                self.workers[n]
                    .tasks
                    .keys()
                    .map(move |key| (n, *key))
                    .collect::<Vec<_>>()
            })
            .collect();
        if tasks.is_empty() {
            return;
        }
        let (worker, key) = tasks[self.rng.usize(..tasks.len())];
        let part = self.workers[worker].part;
        let task = &self.workers[worker].tasks[&key];
        let (entry, effect) = (task.case.entry.clone(), task.effects.first().cloned());
        let written = self.rng.bool() && self.write(part, &entry, Some(self.now.plus(LEASE)));
        if written {
            self.workers[worker].tasks.get_mut(&key).unwrap().unacked = None;
        }
        match effect {
            None | Some(Effect::Wait { .. }) => {
                if self.write(part, &entry, None) {
                    self.workers[worker].tasks.remove(&key);
                }
            }
            Some(effect) => {
                if self.chance(20) {
                    return self.crash(worker); // before the effect
                }
                let hand = self.workers[worker].tasks[&key].case.hand;
                // As the driver does: where only the store would tell what became of the audio, it must know before.
                let plain = entry
                    .delivery()
                    .is_some_and(|delivery| !delivery.destination.documents_first());
                let release = matches!(effect, Effect::Answer(Answer::Release) | Effect::Tidy { .. });
                let safe = !release || plain || self.write(part, &entry, Some(self.now.plus(LEASE)));
                let effect = match effect {
                    Effect::Tidy { .. } if !safe => return,
                    Effect::Answer(_) if !safe => Effect::Answer(Answer::Keep),
                    effect => effect,
                };
                let input = self.perform(&entry, &effect, hand);
                if self.chance(20) {
                    return self.crash(worker); // after it
                }
                let (now, policy) = (self.now, self.policy.clone());
                let task = self.workers[worker].tasks.get_mut(&key).unwrap();
                task.effects = next(&mut task.case, input, now, &policy);
            }
        }
    }

    fn audio(&mut self, content: Content) -> Audio {
        let (digest, size) = (format!("{content:?}"), size_of(&content));
        self.seen.insert(digest.clone(), content);
        Audio {
            size,
            digests: Digests {
                md5: digest.clone(),
                sha256: digest,
            },
            duration_ms: Some(size),
            findings: vec![],
        }
    }

    fn document(key: Key) -> Document {
        Document {
            id: MediaId::derived(key, BEGIN),
            database: "db".into(),
            rev: "1-a".into(),
            created: BEGIN,
        }
    }

    fn perform(&mut self, entry: &Entry, effect: &Effect, hand: Hand) -> Input {
        let key = entry.key;
        let root = self.root(key);
        let destination = self.orders[&root].1;
        let collect_failed = |attempt, failure| {
            Input::Fact(What::CollectFailed {
                attempt,
                failure,
                why: "x".into(),
            })
        };
        match effect {
            Effect::Command => {
                self.command(key);
                Input::Fact(What::Commanded)
            }
            Effect::Control { n, .. } => Input::Fact(What::StopSent { n: *n }),
            Effect::LookForChannel { n } => {
                let lives = |file: &File| file.alive || file.running;
                let alive = self.switch_down || self.files.get(&root).is_some_and(lives);
                Input::Fact(What::ChannelSeen { n: *n, alive })
            }
            Effect::Decide if self.chance(150) => self.postponed(entry),
            Effect::Decide => Input::Fact(What::Decided {
                n: entry.next_number("retried"),
                destination,
                attempts: None,
            }),
            Effect::Probe { attempt, .. } | Effect::Collect { attempt, .. } if self.switch_down => {
                collect_failed(*attempt, CollectFailure::Unreachable)
            }
            Effect::Probe { attempt, .. } | Effect::Collect { attempt, .. } if self.chance(80) => {
                collect_failed(*attempt, CollectFailure::Broken)
            }
            Effect::Probe { n, attempt, .. } => match self.looked_at(root) {
                Some(content) => Input::Fact(What::Probed {
                    n: *n,
                    size: size_of(&content),
                    md5: format!("{content:?}"),
                }),
                None => self.missing(entry, *attempt),
            },
            Effect::Collect { attempt, .. } => match self.there(root) {
                Some(content) => Input::Received(self.audio(content)),
                None => self.missing(entry, *attempt),
            },
            Effect::Tidy { n, .. } => {
                let left = if self.switch_down || self.chance(80) {
                    Some("not now".to_owned())
                } else {
                    let there = self.there(root).map(|content| self.audio(content).digests);
                    let short = entry.outcome() == Some((Outcome::Discarded, Cause::TooShort));
                    let seen = entry.audio().map(|audio| audio.digests.clone());
                    match there {
                        Some(there) if entry.is_safe(&there) || short && seen == Some(there.clone()) => {
                            self.release(entry);
                            None
                        }
                        Some(_) => Some("another one".to_owned()),
                        None => None,
                    }
                };
                Input::Fact(What::Tidied { n: *n, left })
            }
            Effect::Separate { name } => {
                let separated = entry.separated(name, self.now, "w").unwrap();
                if !self.write(0, &separated, None) {
                    return Input::Due;
                }
                self.roots.insert(separated.key, key);
                self.write(1, &separated, None);
                Input::Fact(What::Separated { name: name.clone() })
            }
            Effect::Continue => {
                let (continuation, told) = entry.continuation(self.now, "w").unwrap();
                // Durable, or not done.
                if !self.write(0, &continuation, None) {
                    return Input::Due;
                }
                self.roots.insert(continuation.key, key);
                self.write(1, &continuation, None);
                Input::Fact(What::Continued { told })
            }
            Effect::Document { attempt, destination } => {
                if self.store_down {
                    return Self::failed(*attempt, *destination, DeliveryFailure::Target);
                }
                self.documents.insert(key, 1);
                Input::Fact(What::Documented(Self::document(key)))
            }
            Effect::Deliver { attempt, destination } => {
                let content = match hand {
                    Hand::Empty => entry.held().and_then(|holding| self.held.get(&holding.name)).cloned(),
                    _ => self.in_hand(entry),
                };
                if self.refuses.contains(&key) {
                    return Self::failed(*attempt, *destination, DeliveryFailure::Refused);
                }
                let down = if *destination == Destination::Account {
                    self.store_down
                } else {
                    self.target_down
                };
                if self.chance(50) {
                    return self.postponed(entry);
                }
                let Some(content) = content.filter(|_| !down) else {
                    return Self::failed(*attempt, *destination, DeliveryFailure::Target);
                };
                let sha256 = Some(format!("{content:?}"));
                let there = self.delivered.entry(key).or_default();
                if !there.contains(&content) {
                    there.push(content);
                }
                if destination.documents_first() {
                    return Input::Fact(What::Uploaded {
                        url: "https://h/".into(),
                        sha256,
                    });
                }
                self.documents.insert(key, 1);
                let below = self.chance(100);
                Self::done_with(key, *destination, sha256, below)
            }
            Effect::ReadBack { n } => {
                let why = (self.store_down || self.chance(100)).then(|| "not there".to_owned());
                Input::Fact(What::Looked { n: *n, why })
            }
            Effect::Mark { n, .. } => Input::Fact(What::Marked { n: *n }),
            Effect::Complete { attempt, destination } => {
                if self.store_down {
                    return Self::failed(*attempt, *destination, DeliveryFailure::Target);
                }
                self.done(key, *destination)
            }
            Effect::Hold => {
                if self.hold_down {
                    return Input::NotHeld;
                }
                let content = self.in_hand(entry).unwrap();
                let name = format!("{root} {content:?}");
                self.held.insert(name.clone(), content.clone());
                let Audio { digests, size, .. } = self.audio(content);
                Input::Fact(What::Held {
                    n: entry.next_hold(),
                    holding: Holding {
                        place: "hold".into(),
                        name,
                        size,
                        digests,
                    },
                })
            }
            Effect::Unhold => {
                self.held.remove(&entry.held().unwrap().name);
                Input::Fact(What::Unheld {
                    n: entry.next_number("held") - 1,
                })
            }
            Effect::Answer(answer) => {
                if *answer == Answer::Release {
                    self.release(entry);
                }
                Input::Answered(*answer)
            }
            Effect::Announce(announcement) => {
                if let Announcement::Outcome(outcome) = announcement {
                    self.announced.entry(key).or_default().insert(outcome.name());
                }
                Input::Fact(What::Announced(*announcement))
            }
            Effect::Wait { .. } => Input::Due,
        }
    }

    fn failed(attempt: u32, destination: Destination, failure: DeliveryFailure) -> Input {
        let why = "x".into();
        Input::Fact(What::DeliveryFailed {
            attempt,
            destination,
            failure,
            why,
            retry_after_s: None,
        })
    }

    fn postponed(&self, entry: &Entry) -> Input {
        Input::Fact(What::Postponed {
            n: entry.next_number("postponed"),
            until: self.now.plus(Duration::from_secs(10)),
            why: "x".into(),
        })
    }

    /// What the document tells that is there.
    fn done(&self, key: Key, destination: Destination) -> Input {
        let first = self.delivered.get(&key).and_then(|all| all.first());
        Self::done_with(key, destination, first.map(|content| format!("{content:?}")), false)
    }

    fn done_with(key: Key, destination: Destination, sha256: Option<String>, below_quorum: bool) -> Input {
        let document = Self::document(key);
        Input::Fact(What::delivered(Delivery {
            destination,
            document,
            sha256,
            below_quorum,
        }))
    }

    fn there(&self, root: Key) -> Option<Content> {
        self.files
            .get(&root)
            .filter(|file| file.there)
            .map(|file| file.content.clone())
    }

    /// What a look finds: a recording that runs grows all the time.
    fn looked_at(&mut self, root: Key) -> Option<Content> {
        let file = self.files.get_mut(&root)?;
        if file.running {
            file.grow(7);
        }
        self.there(root)
    }

    fn held_of(&self, root: Key) -> impl Iterator<Item = &Content> {
        let of = root.to_string();
        let mine = self.held.iter().filter(move |(name, _)| name.starts_with(&of));
        mine.map(|(_, content)| content)
    }

    /// The audio that passed through the worker's hands last.
    fn in_hand(&self, entry: &Entry) -> Option<Content> {
        self.seen.get(&entry.audio()?.digests.md5).cloned()
    }

    /// As the worker does: what is missing is looked for at its destination first.
    fn missing(&self, entry: &Entry, attempt: u32) -> Input {
        let destination = self.orders[&self.root(entry.key)].1;
        if self.delivered.contains_key(&entry.key) {
            return self.done(entry.key, destination);
        }
        let failure = if self.store_down {
            CollectFailure::Broken
        } else {
            CollectFailure::Missing
        };
        Input::Fact(What::CollectFailed {
            attempt,
            failure,
            why: "no file".into(),
        })
    }

    /// The point of no return: the switch deletes its file.
    fn release(&mut self, entry: &Entry) {
        let key = entry.key;
        let too_short = entry.outcome() == Some((Outcome::Discarded, Cause::TooShort));
        let root = self.root(key);
        // What is gone already is nowhere else to be deleted.
        let safe = self.there(root).is_none_or(|there| {
            let family = self.delivered.iter().filter(|(member, _)| self.root(**member) == root);
            let mut safe = family.flat_map(|(_, all)| all).chain(self.held_of(root));
            safe.any(|content| *content == there)
        });
        if !safe && !too_short {
            self.tell_all();
        }
        assert!(
            safe || too_short,
            "the switch was told to delete audio that is nowhere else: {key}"
        );
        self.note(format!(
            "the switch is told to let {root} go, by {key}, {}: {:?}",
            entry.state(),
            entry.facts().iter().map(|fact| fact.what.kind()).collect::<Vec<_>>()
        ));
        if self.files[&root].running {
            self.tell_all();
        }
        let file = self.files.get_mut(&root).unwrap();
        assert!(!file.running, "a file is deleted while it is being written: {key}");
        file.there = false;
    }

    /// The faults end, and everything comes to rest.
    fn heal(&mut self) {
        self.faults = false;
        (self.parted, self.store_down, self.switch_down) = (false, false, false);
        (self.target_down, self.hold_down) = (false, false);
        self.workers.iter_mut().for_each(|worker| worker.alive = true);
        for _ in 0..6000 {
            self.step();
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

    fn is_at_rest(&self) -> bool {
        let settled = |entry: &Entry| {
            entry.is_closed() || entry.parked().is_some() && entry.open_announcements().next().is_none()
        };
        self.queue.is_empty()
            && self.workers.iter().all(|worker| worker.tasks.is_empty())
            && self.files.values().all(|file| !file.running)
            && self.orders.keys().chain(self.roots.keys()).all(|key| {
                self.store[0]
                    .get(key)
                    .and_then(|stored| stored.entry.as_ref())
                    .is_some_and(settled)
            })
    }

    /// The whole story, for whoever must find out why it went wrong.
    fn tell_all(&self) {
        eprintln!("{}", self.log.join("\n"));
        for entry in self.store[0].values().filter_map(|stored| stored.entry.as_ref()) {
            eprintln!("\n{} of {}, {}", entry.key, self.root(entry.key), entry.state());
            for fact in entry.facts() {
                let mut what = format!("{:?}", fact.what);
                what.truncate(150);
                eprintln!("{:>9.3} s  {what}", fact.at.since(BEGIN).as_secs_f64());
            }
        }
    }

    /// Knows only what was asked, what the switch has, and what the targets have; the ledger's word must agree.
    fn judge(&self) {
        for root in self.orders.keys() {
            let family: Vec<Key> = self
                .orders
                .keys()
                .chain(self.roots.keys())
                .copied()
                .filter(|key| self.root(*key) == *root)
                .collect();
            let mut safe: BTreeMap<u32, u64> = BTreeMap::new();
            for key in &family {
                self.judge_one(*key, *root);
                let delivered = self.delivered.get(key).into_iter().flatten();
                for (part, size) in delivered.chain(self.held_of(*root)).flatten() {
                    let known = safe.entry(*part).or_default();
                    *known = (*known).max(*size);
                }
            }
            let Some(file) = self.files.get(root) else { continue };
            for (part, size) in file.content.iter().filter(|_| file.there) {
                let known = safe.entry(*part).or_default();
                *known = (*known).max(*size);
            }
            // What was too short to be kept may be gone.
            let short = family.iter().any(|key| {
                let entry = self.store[0][key].entry.as_ref().unwrap();
                entry.outcome() == Some((Outcome::Discarded, Cause::TooShort))
            });
            if !short {
                assert_eq!(safe, file.recorded, "not all of {root} is somewhere");
            }
        }
    }

    fn judge_one(&self, key: Key, root: Key) {
        let entry = self.store[0][&key].entry.as_ref().unwrap();
        let file = self.files.get(&root);
        let told = self.announced.get(&key).cloned().unwrap_or_default();
        assert!(!told.is_empty(), "nobody was told of {key}");
        assert!(self.documents.get(&key).copied().unwrap_or(0) <= 1);
        let on_switch = file.is_some_and(|file| file.there);
        match (entry.outcome(), entry.parked()) {
            (Some((Outcome::Stored | Outcome::Delivered, _)), _) => {
                assert!(self.delivered.contains_key(&key), "it is not there: {key}");
                assert!(entry.held().is_none(), "the hold is not emptied: {key}");
                // Nothing is left behind that nobody needs, unless the switch could not be reached for long.
                let tidied = entry.tidied().count();
                let delivered = self.delivered.get(&key).cloned().unwrap_or_default();
                let left = on_switch && delivered.contains(&self.there(root).unwrap());
                assert!(!left || tidied >= 6, "the file of {key} is left on the switch");
            }
            (Some((Outcome::Discarded, Cause::TooShort)), _) => {
                let order = &self.orders[&root].0;
                assert!(order.min_sec > 0, "{key}");
            }
            (None, Some(_)) => {
                let held = entry
                    .held()
                    .is_some_and(|holding| self.held.contains_key(&holding.name));
                let kept = held || on_switch || self.delivered.contains_key(&key);
                // Of a part, the family tells: two workers that knew nothing of each other may both have brought it.
                assert!(kept || key != root, "parked, and its audio is nowhere: {key}");
            }
            // A part that another worker, which knew nothing of it, stored with its recording: its audio is accounted for there.
            (Some((Outcome::Failed, Cause::FileGone)), _) if key != root => {}
            (Some((Outcome::Failed, cause)), _) => {
                assert!(
                    file.is_none(),
                    "a recording that was made is given up as {cause}: {key}"
                );
            }
            other => panic!("{key} ended as {other:?}"),
        }
    }
}

static RESTARTS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

fn live(seed: u64) -> World {
    let mut world = World::new(seed);
    let steps = world.rng.u32(200..1500);
    for _ in 0..steps {
        world.step();
    }
    world.heal();
    world
}

#[test]
fn no_life_of_a_recording_loses_it() {
    let seeds: Vec<u64> = match std::env::var("SIMULATION_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => {
            let count = std::env::var("SIMULATION_SEEDS")
                .ok()
                .and_then(|n| n.parse().ok())
                .unwrap_or(1000);
            (0..count).collect()
        }
    };
    let mut outcomes: BTreeMap<&'static str, u32> = BTreeMap::new();
    for seed in seeds {
        let lived = std::panic::catch_unwind(|| {
            let world = live(seed);
            let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.judge()));
            RESTARTS.fetch_add(world.restarts, std::sync::atomic::Ordering::Relaxed);
            if judged.is_err() {
                world.tell_all();
                panic!("judged");
            }
            world.store[0]
                .values()
                .filter_map(|stored| stored.entry.as_ref().map(Entry::state))
                .collect::<Vec<_>>()
        });
        match lived {
            Ok(states) => states
                .into_iter()
                .for_each(|state| *outcomes.entry(state).or_default() += 1),
            Err(_) => panic!("seed {seed} fails; run it again: SIMULATION_SEED={seed} cargo test --test simulation"),
        }
    }
    let restarts = RESTARTS.load(std::sync::atomic::Ordering::Relaxed);
    eprintln!("{outcomes:?}; {restarts} recordings began again");
    if outcomes.values().sum::<u32>() > 100 {
        assert!(restarts > 10, "only {restarts} recordings began again");
        for state in ["stored", "delivered", "parked"] {
            assert!(outcomes.contains_key(state), "no life ended as {state}: {outcomes:?}");
        }
    }
}
