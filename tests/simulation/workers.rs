//! The workers: what they hear, take up, and drive on.

use std::collections::BTreeMap;

use kz_record_call::entry::Entry;
use kz_record_call::entry::fact::{Fact, What};
use kz_record_call::flow::in_flight::Mailbox;
use kz_record_call::lifecycle::Input;
use kz_record_call::recording::identity::Key;

use crate::drivers::{Ask, Note, Reply, Task};
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
        // Noted, and acknowledged when that is written; the driver goes on at once.
        let mut noted = entry.clone();
        noted.add(Fact {
            at: self.now,
            by: "w".into(),
            what: what.clone(),
        });
        self.workers[worker].crew.notes.lock().unwrap().push_back(Note {
            entry: noted,
            lease: None,
            done: None,
            unacked: Some(message),
        });
        self.go_on(worker, entry, Input::Fact(what));
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

    /// Passes an input to the task that has the recording, or begins to drive it.
    pub fn go_on(&mut self, worker: usize, entry: Entry, input: Input) {
        let key = entry.key;
        let Err(input) = self.workers[worker].hands.tell(key, input) else {
            return;
        };
        if let Some(mailbox) = self.workers[worker].hands.take(key) {
            self.begin(worker, entry, input, mailbox);
        }
    }

    fn begin(&mut self, worker: usize, entry: Entry, input: Input, mailbox: Mailbox) {
        let (key, worker) = (entry.key, &mut self.workers[worker]);
        let task = Task::begin(&worker.crew, entry, input, mailbox);
        worker.tasks.insert(key, task);
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
            let Some(mut mailbox) = self.workers[worker].hands.take(entry.key) else {
                continue;
            };
            let input = if self.chance(100) {
                // Another worker is asking for it too: neither gets it, and what is told meanwhile is heard all the same.
                mailbox.let_go()
            } else {
                self.write(part, &entry, Some(now.plus(LEASE)));
                Some(Input::Due)
            };
            if let Some(input) = input {
                self.begin(worker, entry, input, mailbox);
            }
        }
    }

    /// The writer of a worker's ledger writes what waits.
    pub fn write_notes(&mut self) {
        let worker = self.rng.usize(..self.workers.len());
        if self.store_down || !self.workers[worker].alive {
            return;
        }
        let part = self.workers[worker].part;
        let notes = std::mem::take(&mut *self.workers[worker].crew.notes.lock().unwrap());
        for note in notes {
            let lease = match note.lease {
                None => self.store[part]
                    .get(&note.entry.key)
                    .and_then(|stored| stored.leased_until),
                Some(lease) if lease.by.is_empty() => None,
                Some(lease) => Some(lease.until),
            };
            self.write(part, &note.entry, lease);
            if let Some(done) = note.done {
                done.keep();
            }
        }
    }

    /// A worker does the next thing of one of its recordings.
    pub fn work(&mut self) {
        let of = |n: usize| self.workers[n].tasks.keys().map(move |key| (n, *key));
        let living = (0..self.workers.len()).filter(|n| self.workers[*n].alive);
        let tasks: Vec<(usize, Key)> = living.flat_map(of).collect();
        if tasks.is_empty() {
            return;
        }
        let (worker, key) = tasks[self.rng.usize(..tasks.len())];
        let part = self.workers[worker].part;
        if !self.workers[worker].tasks[&key].asks() {
            return self.poll(worker, key);
        }
        let ask = self.workers[worker].tasks[&key]
            .slot
            .lock()
            .unwrap()
            .ask
            .take()
            .unwrap();
        let reply = match ask {
            Ask::Known(key) => Reply::Known((!self.store_down).then(|| self.read(part, key))),
            Ask::Perform(entry, effect, mut hand) => {
                if self.chance(20) {
                    return self.crash(worker); // before the effect
                }
                if self.chance(5) {
                    self.panics += 1;
                    self.note(format!("worker {worker} panics at {key}"));
                    Reply::Panic
                } else {
                    let input = self.perform(&entry, &effect, &mut hand);
                    if self.chance(20) {
                        return self.crash(worker); // after it
                    }
                    Reply::Performed(Some(input), hand)
                }
            }
        };
        self.workers[worker].tasks[&key].answer(reply);
        self.poll(worker, key);
    }

    fn poll(&mut self, worker: usize, key: Key) {
        let tasks = &mut self.workers[worker].tasks;
        if tasks.get_mut(&key).is_some_and(Task::poll) {
            tasks.remove(&key);
        }
    }
}
