//! What goes wrong, and when. And who else is there: operators, and workers of the next version.

use std::sync::Arc;
use std::time::Duration;

use kz_record_call::couch::Documents as _;
use kz_record_call::entry::cause::{Cause, Outcome};
use kz_record_call::entry::fact::{Fact, What};
use kz_record_call::ledger::{Filter, Ledger};
use kz_record_call::lifecycle::State;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::couch::{Client, NODES};
use crate::plan::{Beside, CROWD_BEGINS};
use crate::worker::{Worker, policy};
use crate::world::{NEXT_VERSION, OPERATOR, Trouble, WORKERS, World};

/// A file that cannot be opened for so long counts as gone: the first delays of the workers' schedule.
const GONE_AFTER: Duration = Duration::from_secs(5 + 30 + 120);

/// How long a bad neighbour is one.
const CROWD_LASTS: Duration = Duration::from_secs(600);

/// How long things go wrong.
const ROUGH: Duration = Duration::from_secs(4200);

impl World {
    /// Begins everything, and lets things go wrong until they are over.
    pub async fn live(self: &Arc<Self>) {
        for n in 0..WORKERS {
            Worker::begin(self, n, 0);
        }
        for key in self.asked.keys() {
            tokio::spawn(Arc::clone(self).call(*key));
        }
        tokio::spawn(Arc::clone(self).replicate());
        if self.calm {
            return self.live_calmly().await;
        }
        let agents = [
            tokio::spawn(Arc::clone(self).operate(None)),
            tokio::spawn(Arc::clone(self).note_as_the_next_version()),
        ];
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < ROUGH {
            tokio::time::sleep(self.between(1_000, 240_000)).await;
            self.break_something();
        }
        agents.iter().for_each(tokio::task::JoinHandle::abort);
        self.heal();
    }

    /// A life of delays alone, and of a bad neighbour.
    async fn live_calmly(&self) {
        self.change(|trouble| trouble.couch_slow = self.beside == Beside::SlowCouch);
        if self.beside.has_crowd() {
            self.change(|trouble| match self.beside {
                Beside::Firewall => trouble.no_uploads[0] = true,
                _ => trouble.target_slow = true,
            });
            // Before attempts run out.
            tokio::time::sleep(CROWD_BEGINS + CROWD_LASTS).await;
            self.change(|trouble| (trouble.no_uploads[0], trouble.target_slow) = (false, false));
        }
        tokio::time::sleep(ROUGH).await;
    }

    /// The faults end.
    fn heal(self: &Arc<Self>) {
        self.change(|trouble| *trouble = Trouble::default());
        self.part(None);
        for node in &mut self.cluster().nodes {
            (node.up, node.knows) = (true, true);
        }
        self.revive();
        self.note(crate::world::WORLD, || "the faults end".to_owned());
    }

    fn revive(self: &Arc<Self>) {
        for n in 0..WORKERS {
            let is_dead = self.workers.lock().unwrap()[n].is_none();
            if is_dead {
                let life = self.dead.lock().unwrap().len() as u32 + 1;
                Worker::begin(self, n, life);
            }
        }
    }

    /// Copies of the cluster become equal, some seconds after they differed.
    async fn replicate(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.between(1_000, 20_000)).await;
            let mut cluster = self.cluster();
            if cluster.dirty {
                cluster.replicate();
            }
        }
    }

    /// Something breaks, for a while.
    fn break_something(self: &Arc<Self>) {
        let kind = self.rng(|rng| rng.u32(..21));
        let lasts = self.between(2_000, if self.chance(150) { 5_400_000 } else { 400_000 });
        let lasts = match kind {
            18 => lasts.min(Duration::from_secs(90)),
            // Long enough for several read-backs.
            19 => lasts.max(Duration::from_secs(1500)),
            _ => lasts,
        };
        let node = self.rng(|rng| rng.usize(..NODES));
        let at = node % 2;
        let name = match kind {
            0 | 1 => return self.kill_a_worker(lasts),
            2 => "a node is cut off",
            3 => "a node is down",
            4 => "a node does not know the databases",
            5 => "CouchDB is slow",
            6 => "CouchDB fails",
            7 => "CouchDB's answers are lost",
            8 => "answers are limited",
            9 => "a switch is cut off",
            10 => "a switch cannot open files",
            11 => "a switch cannot upload",
            12 => "the targets are down",
            13 => "a target is slow",
            14 => "the hold is down",
            15 => "the broker raises an alarm",
            16 => "confirms are lost",
            17 => "events are lost",
            18 => "an ecallmgr has just started",
            19 => "the databases have too few nodes",
            _ => return self.kill_a_switch(at, lasts),
        };
        self.note(crate::world::WORLD, || format!("{name}, for {} s", lasts.as_secs()));
        if kind == 10 {
            let is_long = lasts > GONE_AFTER || self.trouble().unopened[at];
            let (ever, long) = &mut self.unopened.lock().unwrap()[at];
            (*ever, *long) = (true, *long || is_long);
        }
        self.toggle(kind, node, true);
        let world = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(lasts).await;
            if world.trouble().rough {
                world.toggle(kind, node, false);
                world.note(crate::world::WORLD, || format!("no longer: {name}"));
            }
        });
    }

    fn toggle(&self, kind: u32, node: usize, on: bool) {
        let at = node % 2;
        match kind {
            2 => return self.part(on.then_some(node)),
            3 => self.cluster().nodes[node].up = !on,
            4 => self.cluster().nodes[node].knows = !on,
            _ => {}
        }
        self.cluster().dirty |= kind <= 4;
        self.change(|trouble| match kind {
            5 => trouble.couch_slow = on,
            6 => trouble.couch_fails = on,
            7 => trouble.couch_loses = on,
            8 => trouble.answer_limit = on.then_some(20_000),
            9 => trouble.cut[at] = on,
            10 => trouble.unopened[at] = on,
            11 => trouble.no_uploads[at] = on,
            12 => trouble.target_down = on,
            13 => trouble.target_slow = on,
            14 => trouble.hold_down = on,
            15 => trouble.alarm = on,
            16 => trouble.confirms_lost = on,
            17 => trouble.events_lost = on,
            18 => trouble.unlearned[at] = on,
            19 => trouble.thin = on,
            _ => {}
        });
    }

    fn kill_a_worker(self: &Arc<Self>, lasts: Duration) {
        let n = self.rng(|rng| rng.usize(..WORKERS));
        let worker = self.workers.lock().unwrap()[n].clone();
        match worker {
            // Its session alone is lost, and begins anew.
            Some(worker) if self.chance(300) => {
                self.broker.lose(&worker.name);
                worker.session.send_modify(|session| *session += 1);
                worker.note(|| "loses its session".to_owned());
            }
            Some(worker) => worker.kill(),
            None => {}
        }
        let world = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(lasts / 4).await;
            world.revive();
        });
    }

    fn kill_a_switch(self: &Arc<Self>, at: usize, lasts: Duration) {
        self.kill_switch(at);
        self.change(|trouble| trouble.cut[at] = true);
        let world = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(lasts / 4).await;
            world.change(|trouble| trouble.cut[at] = false);
        });
    }

    /// An operator moves on what is parked, once more and for the last time.
    pub async fn move_on(self: &Arc<Self>) {
        let moving = Arc::clone(self).operate(Some(Duration::from_secs(60)));
        let _ = tokio::time::timeout(Duration::from_secs(110), moving).await;
    }

    /// An operator moves on what is parked, or throws it away, from a host whose clock differs.
    async fn operate(self: Arc<Self>, pause: Option<Duration>) {
        let clock = self.clock(OPERATOR);
        let couch = Client {
            world: Arc::clone(&self),
            host: OPERATOR,
        };
        let policy = policy("operator".into());
        let (ledger, writing) = Ledger::over(Arc::new(couch), clock.clone(), &policy, CancellationToken::new());
        let desk = async {
            loop {
                tokio::time::sleep(pause.unwrap_or_else(|| self.between(60_000, 900_000))).await;
                let filter = Filter {
                    state: Some(State::Parked),
                    limit: 10,
                    ..Filter::default()
                };
                for record in ledger.find(&filter).await.unwrap_or_default() {
                    let mut entry = record.entry;
                    if entry.parked().is_none() || entry.outcome().is_some() {
                        continue;
                    }
                    let discards = self.mishap(60);
                    let what = match discards {
                        true => What::Concluded {
                            outcome: Outcome::Discarded,
                            cause: Cause::DiscardedByOperator,
                        },
                        false => entry.retry(),
                    };
                    let (at, by) = (clock.now(), "operator".to_owned());
                    entry.add(Fact { at, by, what });
                    if discards {
                        self.discarded.lock().unwrap().insert(self.root(entry.key));
                    }
                    let lease = Some(ledger.no_lease());
                    let noted = ledger.note(&entry, lease, Duration::ZERO).await;
                    noted.within(Duration::from_secs(15)).await;
                    self.count("moved on");
                    self.note(OPERATOR, || {
                        format!(
                            "moves on {}{}",
                            entry.key,
                            if discards { ", and discards it" } else { "" }
                        )
                    });
                }
            }
        };
        tokio::join!(writing, desk);
    }

    /// A worker of the next version notes what this one has no word for.
    async fn note_as_the_next_version(self: Arc<Self>) {
        let couch = Client {
            world: Arc::clone(&self),
            host: NEXT_VERSION,
        };
        loop {
            tokio::time::sleep(self.between(60_000, 900_000)).await;
            let Ok(months) = couch.databases(kz_record_call::ledger::PREFIX).await else {
                continue;
            };
            let Some(month) = self.pick(&months) else { continue };
            let Ok((entries, _)) = couch.id_page(&month, ("c", None), "d").await else {
                continue;
            };
            let Some(mut entry) = self.pick(&entries) else { continue };
            let key = entry["key"].as_str().unwrap().parse().unwrap();
            let n = self.newer.lock().unwrap().get(&key).copied().unwrap_or(0) + 1;
            let at = self.clock(NEXT_VERSION).now();
            let fact = json!({"at": at, "by": "w9", "fact": "of_the_next_version", "of": {"n": n}});
            entry["facts"].as_array_mut().unwrap().push(fact);
            entry.as_object_mut().unwrap().remove("_conflicts");
            let written = couch.bulk_docs(&month, &[entry]).await;
            if matches!(written.as_deref(), Ok([kz_record_call::couch::Row::Saved { .. }])) {
                self.newer.lock().unwrap().insert(key, n);
                self.count("of another version");
                self.note(NEXT_VERSION, || format!("notes something on {key}"));
            }
        }
    }
}
