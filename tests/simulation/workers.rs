//! The workers: what they hear, take up, and drive on.

use std::collections::BTreeMap;

use kz_record_call::entry::Entry;
use kz_record_call::entry::fact::{Fact, What};
use kz_record_call::lifecycle::{Answer, Case, Effect, Hand, Input, Next, step};
use kz_record_call::recording::identity::Key;

use crate::world::*;

impl World {
    /// The broker gives a message to a worker that lives.
    pub fn deliver_message(&mut self) {
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

    pub fn hear(&mut self, worker: usize, message: Message) {
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

    pub fn command(&mut self, key: Key) {
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

    pub fn go_on(&mut self, worker: usize, entry: Entry, input: Input, unacked: Option<Message>) {
        let key = entry.key;
        let (now, policy) = (self.now, self.policy.clone());
        let mut again = None;
        if let Some(task) = self.workers[worker].tasks.get_mut(&key) {
            task.next = step(&mut task.case, input, now, &policy);
            again = task.unacked.take();
            task.unacked = unacked;
        } else {
            let mut case = Case {
                entry,
                hand: Hand::Empty,
            };
            let next = step(&mut case, input, now, &policy);
            self.workers[worker].tasks.insert(key, Task { case, next, unacked });
        }
        // The one that was in hand before stays with the broker.
        self.queue.extend(again);
    }

    /// A worker takes up what is due and nobody has.
    pub fn sweep(&mut self) {
        if self.store_down {
            return;
        }
        let worker = self.rng.usize(..self.workers.len());
        if !self.workers[worker].alive {
            return;
        }
        let part = self.workers[worker].part;
        let now = self.now;
        let due: Vec<Entry> = self.store[part]
            .values()
            .filter(|stored| stored.due.is_some_and(|at| at <= now))
            .filter(|stored| stored.leased_until.is_none_or(|until| until <= now))
            .filter_map(|stored| Some(self.complete(stored.entry.clone()?)))
            .collect();
        for entry in due {
            if self.chance(100) {
                // Another worker is asking for it too: neither gets it, and what is told meanwhile is heard all the same.
                continue;
            }
            if !self.workers[worker].tasks.contains_key(&entry.key) {
                self.write(part, &entry, Some(now.plus(LEASE)));
                self.go_on(worker, entry, Input::Due, None);
            }
        }
    }

    /// The program fails on a recording: that is noted, its lease given back, and what was told is not lost.
    fn panic(&mut self, worker: usize, key: Key) {
        let part = self.workers[worker].part;
        let Some(task) = self.workers[worker].tasks.remove(&key) else {
            return;
        };
        let mut entry = task.case.entry;
        let n = entry.next_number("panicked");
        entry.add(Fact {
            at: self.now,
            by: "w".into(),
            what: What::Panicked { n, why: "x".into() },
        });
        self.panics += 1;
        self.note(format!("worker {worker} panics at {key}"));
        if !self.write(part, &entry, None) {
            self.queue.extend(task.unacked);
        }
    }

    /// A worker does the next thing of one of its recordings.
    pub fn work(&mut self) {
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
        let (entry, next) = (task.case.entry.clone(), task.next.clone());
        let written = self.rng.bool() && self.write(part, &entry, Some(self.now.plus(LEASE)));
        if written {
            self.workers[worker].tasks.get_mut(&key).unwrap().unacked = None;
        }
        match next {
            Next::Idle | Next::Wait(_) => {
                if self.write(part, &entry, None) {
                    self.workers[worker].tasks.remove(&key);
                }
            }
            Next::Do(effect) => {
                if self.chance(20) {
                    return self.crash(worker); // before the effect
                }
                if self.chance(5) {
                    return self.panic(worker, key);
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
                task.next = step(&mut task.case, input, now, &policy);
            }
        }
    }
}
